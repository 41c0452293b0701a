//! Images from URLs: only from addresses that are public, checked after the name was resolved, at every redirect.
//!
//! The connection goes to the very addresses that were checked, so that a name which resolves differently the second
//! time gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};

const REDIRECTS_MAX: usize = 5;
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
const READ_PATIENCE: Duration = Duration::from_secs(30);

/// Why an image cannot be fetched. Texts name the host at most: paths and queries may hold secrets.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the source is no URL that can be fetched: {0}")]
    Url(&'static str),
    #[error(
        "{host} is at {address}, which is not a public address; allow_private_urls in server.toml permits it"
    )]
    Private { host: String, address: IpAddr },
    #[error("{host} cannot be found")]
    NotFound { host: String },
    #[error("{host} redirects more than {REDIRECTS_MAX} times")]
    Redirects { host: String },
    #[error("{host} answered {status}")]
    Status { host: String, status: u16 },
    #[error("no answer from {host}: {why}")]
    Line { host: String, why: String },
}

/// Asks `url` for its content.
pub async fn get(
    url: &str,
    allow_private: bool,
) -> Result<impl Stream<Item = Result<Bytes, reqwest::Error>> + use<>, Error> {
    let mut url = parse(url)?;
    for _ in 0..=REDIRECTS_MAX {
        let response = ask(&url, allow_private).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.bytes_stream());
        }
        let host = host_of(&url)?;
        if !status.is_redirection() {
            return Err(Error::Status { host, status: status.as_u16() });
        }
        let location =
            response.headers().get(reqwest::header::LOCATION).and_then(|value| value.to_str().ok());
        let next = location.and_then(|location| url.join(location).ok());
        url = parse(next.ok_or(Error::Url("a redirect leads nowhere"))?.as_str())?;
    }
    Err(Error::Redirects { host: host_of(&url)? })
}

/// A URL of a scheme, with a host and without a password.
pub fn parse(text: &str) -> Result<Url, Error> {
    let url = Url::parse(text).map_err(|_| Error::Url("it cannot be read"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Error::Url("only http and https are fetched"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::Url("it must not carry a user name or password"));
    }
    host_of(&url)?;
    Ok(url)
}

fn host_of(url: &Url) -> Result<String, Error> {
    url.host_str().map(str::to_owned).ok_or(Error::Url("it names no host"))
}

async fn ask(url: &Url, allow_private: bool) -> Result<Response, Error> {
    let host = host_of(url)?;
    let addresses = resolve(url, &host, allow_private).await?;
    let line =
        |error: reqwest::Error| Error::Line { host: host.clone(), why: error.without_url().to_string() };
    let client = Client::builder()
        .redirect(Policy::none())
        .no_proxy()
        .resolve_to_addrs(&host, &addresses)
        .connect_timeout(CONNECT_PATIENCE)
        .read_timeout(READ_PATIENCE)
        .build()
        .map_err(line)?;
    client.get(url.clone()).send().await.map_err(line)
}

/// The addresses of a host; every one must be allowed, so that none is reached by chance.
async fn resolve(url: &Url, host: &str, allow_private: bool) -> Result<Vec<SocketAddr>, Error> {
    let not_found = || Error::NotFound { host: host.to_owned() };
    let port = url.port_or_known_default().unwrap_or(443);
    let bare = host.trim_matches(['[', ']']);
    let addresses: Vec<SocketAddr> = match bare.parse::<IpAddr>() {
        Ok(address) => vec![SocketAddr::new(address, port)],
        Err(_) => tokio::net::lookup_host((bare, port)).await.map_err(|_| not_found())?.collect(),
    };
    if addresses.is_empty() {
        return Err(not_found());
    }
    match addresses.iter().find(|at| !allow_private && !is_public(at.ip())) {
        Some(at) => Err(Error::Private { host: host.to_owned(), address: at.ip() }),
        None => Ok(addresses),
    }
}

/// Whether an address is one of the Internet's, by the special-purpose registries (RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    let special = v4.is_loopback()
        || v4.is_private()
        || v4.is_link_local()
        || v4.is_multicast()
        || v4.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && matches!(b, 18 | 19));
    !special
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    let parts = v6.segments();
    let embedded = |high: u16, low: u16| Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low));
    if let Some(v4) = v6.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    match parts {
        // Translated (RFC 6052) and 6to4 (RFC 3056) addresses reach the IPv4 address inside them.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => is_public_v4(embedded(high, low)),
        [0x2002, high, low, ..] => is_public_v4(embedded(high, low)),
        // Global unicast is 2000::/3; documentation is inside it.
        [first, second, ..] => (first & 0xe000) == 0x2000 && !(first == 0x2001 && second == 0xdb8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_addresses_are_not_public_in_any_spelling() {
        let inner = [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "ff02::1",
        ];
        for text in inner {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[tokio::test]
    async fn urls_to_inner_addresses_are_refused_before_anything_is_sent() {
        for url in [
            "http://127.0.0.1:1/x",
            "http://2130706433/x",
            "http://0177.0.0.1/x",
            "http://[::ffff:127.0.0.1]/x",
            "http://localhost:1/x",
        ] {
            assert!(matches!(get(url, false).await.err(), Some(Error::Private { .. })), "{url}");
        }
        for url in ["file:///etc/passwd", "gopher://x/", "http://user:secret@example.com/", "x"] {
            let error = get(url, false).await.err();
            assert!(matches!(error, Some(Error::Url(_))), "{url}");
            assert!(!format!("{error:?}").contains("secret"));
        }
    }
}
