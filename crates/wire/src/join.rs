//! A machine becomes a host: a single-use token and a certificate request for a certificate.

use serde::{Deserialize, Serialize};
use sterna_model::host::Addresses;
use sterna_model::meta::Name;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    pub version: u32,
    /// The secret part of the token.
    pub token: String,
    pub host: Name,
    /// Absent: the server's only datacentre.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacentre: Option<Name>,
    pub addresses: Addresses,
    /// PEM certificate request. The server sets the subject's names itself.
    pub csr: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// PEM certificate of the host.
    pub certificate: String,
    /// PEM certificate of the CA that signs hosts and the server.
    pub ca: String,
}

/// The text that `sterna server init` prints for the other machines: `HOST:PORT/SECRET/PIN`, where the pin is the lower-case hex
/// SHA-256 of the CA certificate (DER). Whoever has it can join one host before it expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub server: String,
    pub secret: String,
    pub ca_pin: String,
}

impl std::fmt::Display for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.server, self.secret, self.ca_pin)
    }
}

/// The text is no join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAJoinToken;

impl std::fmt::Display for NotAJoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "not a join token; copy the whole line that `sterna server init` or `sterna host token` printed",
        )
    }
}

impl std::error::Error for NotAJoinToken {}

impl std::str::FromStr for JoinToken {
    type Err = NotAJoinToken;

    fn from_str(text: &str) -> Result<Self, NotAJoinToken> {
        let mut parts = text.trim().split('/');
        let (Some(server), Some(secret), Some(ca_pin), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NotAJoinToken);
        };
        let is_hex = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let has_port = server.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if has_port && is_hex(secret) && is_hex(ca_pin) {
            Ok(Self { server: server.to_owned(), secret: secret.to_owned(), ca_pin: ca_pin.to_owned() })
        } else {
            Err(NotAJoinToken)
        }
    }
}

/// What stands in a host's certificate for other hosts that call it. No host can be named so that this is a server's.
#[must_use]
pub fn host_dns_name(host: &Name) -> String {
    format!("{host}.host.sterna")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_token_survives_its_text_and_a_cut_one_is_refused() {
        let token =
            JoinToken { server: "10.0.0.1:7443".into(), secret: "a".repeat(64), ca_pin: "b".repeat(64) };
        let text = token.to_string();
        assert_eq!(text.parse::<JoinToken>(), Ok(token));
        assert_eq!(text[..text.len() - 1].parse::<JoinToken>(), Err(NotAJoinToken));
        assert_eq!("x".parse::<JoinToken>(), Err(NotAJoinToken));
    }
}
