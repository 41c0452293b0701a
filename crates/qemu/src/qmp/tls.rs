//! A migration that QEMU encrypts by itself (TLS 1.3), with a key that both sides were given.
//!
//! The key lies in a file that QEMU reads: the client once, when its credentials are made; the server at each handshake, so
//! its file must stay until the last connection is open, and whoever removes it ends the key.

use std::path::Path;

use serde_json::json;

use super::{Client, Error};

/// What the file is called in the directory that QEMU is told.
pub const KEY_FILE: &str = "keys.psk";
/// Parameters of the key exchange before TLS 1.3, beside the key. Without this file QEMU 10.0 and older look for a prime of
/// their own whenever a server's credentials are made, which takes a second or more; TLS 1.3 does not use it.
pub const DH_FILE: &str = "dh-params.pem";
/// The group ffdhe2048 of RFC 7919.
pub const DH_PARAMETERS: &str = "\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
";

/// The user that a QEMU client calls itself.
const USER: &str = "qemu";
/// As GnuTLS writes it. QEMU adds the kinds of key exchange; those with forward secrecy come first. What GnuTLS
/// chooses by itself for such a key has half the speed of AES-128 on processors that know AES.
const PRIORITY: &str = "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:+CHACHA20-POLY1305";

/// Which end of the line a QEMU is: the target of a migration is the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Endpoint {
    Server,
    Client,
}

/// What [`KEY_FILE`] holds; `key` in hexadecimal digits.
#[must_use]
pub fn key_line(key: &str) -> String {
    format!("{USER}:{key}\n")
}

/// The key in the content of a [`KEY_FILE`].
#[must_use]
pub fn key_of(content: &str) -> Option<&str> {
    content.trim_end().strip_prefix(USER)?.strip_prefix(':')
}

impl Client {
    /// Makes credentials of the key file in `directory`, for `tls-creds` of a migration.
    pub async fn add_key(&self, id: &str, endpoint: Endpoint, directory: &Path) -> Result<(), Error> {
        let endpoint = match endpoint {
            Endpoint::Server => "server",
            Endpoint::Client => "client",
        };
        let arguments = json!({
            "qom-type": "tls-creds-psk",
            "id": id,
            "endpoint": endpoint,
            "dir": directory,
            "priority": PRIORITY,
        });
        self.done("object-add", arguments).await
    }

    /// A line that uses it goes on. Refused when there is none of that name.
    pub async fn remove_key(&self, id: &str) -> Result<(), Error> {
        self.done("object-del", json!({ "id": id })).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_is_written() {
        assert_eq!(key_of(&key_line("0badcafe")), Some("0badcafe"));
        assert_eq!(key_of("somebody:0badcafe\n"), None);
    }
}
