//! The encrypted way between hosts of different datacentres: keys, addresses, and what a host says of its end.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// A unique local prefix (RFC 4193) of Sterna's own. It is used inside tunnels alone and never seen outside.
const PREFIX: [u16; 4] = [0xfd53, 0x7465, 0x726e, 0x6100];
pub const PREFIX_LENGTH: u8 = 64;

/// The address of a host in the tunnel: a function of its uid, so that it needs no allocation and stays for the host's
/// life. The low half of a uid holds 62 random bits.
#[must_use]
pub fn address_of(host: Uuid) -> Ipv6Addr {
    let [.., e, f, g, h] = Ipv6Addr::from_bits(host.as_u128()).segments();
    let [a, b, c, d] = PREFIX;
    Ipv6Addr::new(a, b, c, d, e, f, g, h)
}

/// A host's end of the tunnel as its agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum TunnelSeen {
    Ready {
        #[schema(value_type = String)]
        public_key: PublicKey,
        /// Where the other hosts send to.
        #[schema(value_type = String)]
        endpoint: SocketAddr,
        carrier: Carrier,
        /// Why it does not work at the moment.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trouble: Option<String>,
    },
    /// Networks of this host reach no other datacentre.
    Unavailable { why: String },
}

/// What encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Carrier {
    Kernel,
    WireguardGo,
}

/// 32 bytes in base64, as WireGuard's tools write them. Checked, because it goes into other hosts' configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a WireGuard key: 43 characters of base64 and `=`")]
pub struct NotAKey(String);

/// 32 bytes are 43 characters and one for padding; the last one of the 43 holds 4 bits, the others 6.
const LENGTH: usize = 44;
const LAST: &str = "AEIMQUYcgkosw048";

impl FromStr for PublicKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let is_base64 = |c: char| c.is_ascii_alphanumeric() || c == '+' || c == '/';
        let body = text.strip_suffix('=').filter(|body| body.len() == LENGTH - 1);
        let fits =
            body.is_some_and(|body| body.chars().all(is_base64) && body.ends_with(|c| LAST.contains(c)));
        if fits { Ok(Self(text.to_owned())) } else { Err(NotAKey(text.chars().take(60).collect())) }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_made_in_the_same_millisecond_have_different_addresses() {
        let made =
            |random: u128| address_of(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 | random));
        assert_ne!(made(1), made(2));
        assert_eq!(made(1), made(1));
        assert_eq!(made(0x0123_4567_89ab_cdef).to_string(), "fd53:7465:726e:6100:8123:4567:89ab:cdef");
    }

    #[test]
    fn only_keys_are_keys() {
        let key = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
        assert_eq!(key.parse::<PublicKey>().unwrap().to_string(), key);
        let line = format!("{key}\nEndpoint = 192.0.2.1:1");
        for bad in ["", "short=", &key[1..], &key.replace('=', "A"), &line, &key.replace("w=", "x=")] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<PublicKey>(r#""no key""#).is_err());
    }
}
