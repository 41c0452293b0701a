//! The client believes exactly one server: the one with a certificate of our CA for the fixed name.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sterna_client::tls::{SERVER_NAME, Trust, pin};
use sterna_client::{Client, Error};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct FakeServer {
    address: String,
    ca_pem: String,
    ca_pin: String,
}

/// A CA, a certificate of it for `name`, and a server that answers every request with `{"ok":true}`.
async fn fake_server(name: &str) -> FakeServer {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let ca_der: CertificateDer<'static> = ca.der().clone();
    let chain = vec![leaf.der().clone(), ca_der.clone()];
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let body = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\nconnection: close\r\n\r\n{\"ok\":true}";
                let _ = stream.write_all(body.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    FakeServer { address, ca_pem: ca.pem(), ca_pin: pin(&ca_der) }
}

async fn ask(server: &FakeServer, trust: Trust) -> Result<(), Error> {
    Client::trusting(&server.address, &trust, Some("t".into()))?.health().await.map(|_| ())
}

#[tokio::test]
async fn a_server_of_our_ca_is_believed_at_any_address() {
    let server = fake_server(SERVER_NAME).await;
    ask(&server, Trust::Ca(server.ca_pem.clone().into_bytes())).await.unwrap();
    ask(&server, Trust::Pin(server.ca_pin.clone())).await.unwrap();
}

#[tokio::test]
async fn a_server_of_another_ca_is_not_believed() {
    let server = fake_server(SERVER_NAME).await;
    let other = fake_server(SERVER_NAME).await;
    for trust in [Trust::Ca(other.ca_pem.into_bytes()), Trust::Pin(other.ca_pin)] {
        let error = ask(&server, trust).await.unwrap_err();
        assert!(matches!(error, Error::Untrusted { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn our_ca_for_another_name_is_not_believed() {
    // A host's certificate comes from the same CA; it must not pass for the server's.
    let server = fake_server("a1").await;
    for trust in [Trust::Ca(server.ca_pem.clone().into_bytes()), Trust::Pin(server.ca_pin.clone())] {
        let error = ask(&server, trust).await.unwrap_err();
        assert!(matches!(error, Error::Untrusted { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn nobody_there_is_said_with_a_hint() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error =
        Client::trusting(&address, &Trust::Pin("0".repeat(64)), None).unwrap().health().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("is the server running?"));
}
