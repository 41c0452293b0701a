//! Hosts that know each other: one CA for all tests of a program, and a certificate for each host.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use sterna_agent::carrier::{Carriers, Settings};
use sterna_base::scope::Scope;
use sterna_wire::join::host_dns_name;

use super::{RUN_AS, name};

fn ca() -> &'static CertifiedIssuer<'static, KeyPair> {
    static CA: OnceLock<CertifiedIssuer<'static, KeyPair>> = OnceLock::new();
    CA.get_or_init(|| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    })
}

/// Of the host whose files are in `folder`, which has the folder's name.
pub fn carriers(folder: &Path, scope: &Scope) -> Carriers {
    let host = name(folder.file_name().unwrap().to_str().unwrap());
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![host_dns_name(&host)]).unwrap();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&key, ca()).unwrap();
    let file = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let settings = Settings {
        certificate: file("host.pem", certificate.pem()),
        key: file("host.key", key.serialize_pem()),
        ca: file("ca.pem", ca().pem()),
        data_dir: folder.join("data"),
        run_dir: folder.join("run"),
        run_as_uid: RUN_AS,
        run_as_gid: RUN_AS,
        checkpoints_kept: Duration::from_secs(3600),
    };
    Carriers::open(settings, scope.clone()).unwrap()
}
