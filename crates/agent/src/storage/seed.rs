//! The cloud-init seed of a VM: a small ISO 9660 image with NoCloud data
//! (docs.cloud-init.io, "NoCloud": label `cidata`, files `meta-data`, `user-data`, `network-config`).
//!
//! The same VM gives the same bytes on every host, because both ends of a migration must show their guest the same disk:
//! all dates are fixed, and names of programs and machines are left out.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::json;
use sterna_model::meta::Name;
use sterna_model::vm::CloudInit;
use tokio::process::Command;
use uuid::Uuid;

use super::error::{Error, blocking};
use super::folder::{self, User};

/// 1 January 2000 in the three forms that the tool wants. Any date would do; before 1980 some readers stumble.
const EPOCH: &str = "946684800";
const DATE: &str = "2000010100000000";

/// Who the image says it is from; the tool's own text would hold its version.
const MAKER: &str = "STERNA";

/// Makes (or makes anew) the seed at `iso`. Its folder must exist and belong to us alone.
pub async fn ensure(
    iso: &Path,
    vm: Uuid,
    hostname: &Name,
    cloud_init: &CloudInit,
    user: User,
) -> Result<PathBuf, Error> {
    let what = || format!("make the cloud-init seed {iso:?}");
    let tree = iso.with_extension("d");
    let files = files(vm, hostname, cloud_init);
    let written = {
        let tree = tree.clone();
        blocking(move || write_tree(&tree, &files)).await
    };
    written.map_err(Error::io(what()))?;
    let unfinished = iso.with_extension("new");
    let made = write_iso(&tree, &unfinished).await;
    // The text files hold secrets of the guest; nothing reads them any more.
    let _ = std::fs::remove_dir_all(&tree);
    made?;
    let target = iso.to_owned();
    blocking(move || {
        let file = std::fs::File::open(&unfinished)?;
        folder::finish(&file, Some(user.uid), user.gid, 0o400)?;
        std::fs::rename(&unfinished, &target)
    })
    .await
    .map_err(Error::io(what()))?;
    Ok(iso.to_owned())
}

/// Names and contents. JSON is valid YAML: the serializer, not a template, decides what a value may do.
fn files(vm: Uuid, hostname: &Name, cloud_init: &CloudInit) -> Vec<(&'static str, String)> {
    let meta = json!({ "instance-id": vm.to_string(), "local-hostname": hostname.as_str() });
    let user_data = cloud_init.user_data.clone().unwrap_or_else(|| "#cloud-config\n{}\n".to_owned());
    let mut files = vec![("meta-data", format!("{meta}\n")), ("user-data", user_data)];
    if let Some(network) = &cloud_init.network_config {
        files.push(("network-config", network.clone()));
    }
    files
}

fn write_tree(tree: &Path, files: &[(&str, String)]) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::remove_dir_all(tree) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::DirBuilder::new().mode(0o700).create(tree)?;
    for (name, content) in files {
        std::fs::write(tree.join(name), content)?;
    }
    Ok(())
}

async fn write_iso(tree: &Path, iso: &Path) -> Result<(), Error> {
    let _ = std::fs::remove_file(iso);
    let mut command = Command::new("xorriso");
    command.args(["-as", "mkisofs", "-quiet", "-V", "cidata", "-J", "-r"]);
    command.args(["-A", MAKER, "-p", MAKER, "-publisher", MAKER, "-sysid", MAKER]);
    command.args([&format!("--modification-date={DATE}"), "--set_all_file_dates", DATE, "-o"]);
    command.arg(iso).arg(tree).env("SOURCE_DATE_EPOCH", EPOCH).env("TZ", "UTC").env("LC_ALL", "C");
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(Error::io("run xorriso; install the package xorriso"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(Error::Io { what: "make the cloud-init seed".to_owned(), source: std::io::Error::other(said) })
}
