//! Whether an application's check passes: counting is pure, asking is bounded in time and bytes.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use sterna_model::health::{CheckReport, CheckState, HealthCheck, Probe, StatusClass};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::hypervisor::Guest;

/// A status line that is longer is none.
const STATUS_LINE_MAX: u64 = 1024;

/// How one check stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    state: CheckState,
    failed: u32,
    why: Option<String>,
}

impl Default for Standing {
    fn default() -> Self {
        Self { state: CheckState::Starting, failed: 0, why: None }
    }
}

/// What an answer changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turned {
    Nothing,
    Healthy,
    /// It was healthy before.
    Unhealthy {
        why: String,
    },
    /// It has not been healthy since the guest started: it may still be starting.
    NotUp,
}

impl Standing {
    pub fn on(&mut self, answer: Result<(), String>, failures_max: u32) -> Turned {
        let Err(why) = answer else {
            self.failed = 0;
            self.why = None;
            let was = std::mem::replace(&mut self.state, CheckState::Healthy);
            return if was == CheckState::Healthy { Turned::Nothing } else { Turned::Healthy };
        };
        self.failed = self.failed.saturating_add(1);
        if self.failed != failures_max {
            return Turned::Nothing;
        }
        self.why = Some(why.clone());
        match self.state {
            CheckState::Healthy => {
                self.state = CheckState::Unhealthy;
                Turned::Unhealthy { why }
            }
            CheckState::Starting => Turned::NotUp,
            CheckState::Unhealthy => Turned::Nothing,
        }
    }

    #[must_use]
    pub fn report(&self, check: &HealthCheck) -> CheckReport {
        CheckReport { check: check.probe.words(), state: self.state, why: self.why.clone() }
    }
}

/// Asks once. `at`: the guest's address, if it has one that this host reaches.
pub async fn ask<G: Guest>(check: &HealthCheck, guest: &G, at: Option<Ipv4Addr>) -> Result<(), String> {
    let within = check.timeout.0;
    let asked = async {
        match (&check.probe, at) {
            (Probe::Exec { command }, _) => exec(guest, command, within).await,
            (Probe::Tcp { port }, Some(at)) => connect(at, *port).await.map(drop),
            (Probe::Http { port, path, expect }, Some(at)) => http(at, *port, path, *expect).await,
            (_, None) => Err("the VM has no address that its host reaches".to_owned()),
        }
    };
    match tokio::time::timeout(within, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {}", check.timeout)),
    }
}

async fn exec<G: Guest>(guest: &G, command: &[String], within: Duration) -> Result<(), String> {
    let Some((program, args)) = command.split_first() else { return Err("it names no program".to_owned()) };
    guest.execute(program, args, within).await.map_err(|error| error.to_string())
}

async fn connect(at: Ipv4Addr, port: u16) -> Result<TcpStream, String> {
    let opened = TcpStream::connect(SocketAddrV4::new(at, port)).await;
    opened.map_err(|error| format!("{at}:{port}: {error}"))
}

/// A request of HTTP/1.1 (RFC 9112) on a connection of its own; of the answer only the status line is read.
async fn http(at: Ipv4Addr, port: u16, path: &str, expect: StatusClass) -> Result<(), String> {
    let mut stream = BufReader::new(connect(at, port).await?);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {at}:{port}\r\nUser-Agent: sterna\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    let broken = |error: std::io::Error| format!("{at}:{port}: {error}");
    stream.get_mut().write_all(request.as_bytes()).await.map_err(broken)?;
    let mut line = Vec::new();
    stream.take(STATUS_LINE_MAX).read_until(b'\n', &mut line).await.map_err(broken)?;
    let status = status_of(&line).ok_or_else(|| format!("{at}:{port} does not answer in HTTP"))?;
    if expect.has(status) { Ok(()) } else { Err(format!("status {status}")) }
}

/// Of `HTTP/1.x SSS reason`.
fn status_of(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line).ok()?;
    let rest = line.strip_prefix("HTTP/1.")?;
    let (_minor, rest) = rest.split_once(' ')?;
    let digits = rest.trim_start().get(..3)?;
    digits.parse().ok().filter(|status| (100..600).contains(status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn failed() -> Result<(), String> {
        Err("refused".to_owned())
    }

    #[test]
    fn a_check_turns_after_enough_failures_in_a_row_and_only_once() {
        let mut standing = Standing::default();
        let mut on = |answer| standing.on(answer, 3);
        assert_eq!(
            [on(failed()), on(failed()), on(failed())],
            [Turned::Nothing, Turned::Nothing, Turned::NotUp]
        );
        assert_eq!(
            [on(failed()), on(Ok(())), on(Ok(()))],
            [Turned::Nothing, Turned::Healthy, Turned::Nothing]
        );
        assert_eq!(
            [on(failed()), on(failed()), on(Ok(()))],
            [Turned::Nothing, Turned::Nothing, Turned::Nothing]
        );
        assert_eq!([on(failed()), on(failed())], [Turned::Nothing, Turned::Nothing]);
        assert_eq!(on(failed()), Turned::Unhealthy { why: "refused".into() });
        assert_eq!([on(failed()), on(Ok(()))], [Turned::Nothing, Turned::Healthy]);
    }

    #[test]
    fn only_a_status_line_has_a_status() {
        for (line, status) in [
            ("HTTP/1.1 200 OK\r\n", Some(200)),
            ("HTTP/1.0 503\r\n", Some(503)),
            ("HTTP/1.1 99 no\r\n", None),
            ("HTTP/1.1 2", None),
            ("SSH-2.0-x\r\n", None),
            ("", None),
        ] {
            assert_eq!(status_of(line.as_bytes()), status, "{line:?}");
        }
        assert_eq!(status_of(b"HTTP/1.1 \xff\xff\xff"), None);
    }

    /// A service on this machine that answers each connection with these bytes.
    async fn service(answer: &'static [u8]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer).await;
            }
        });
        port
    }

    async fn http_of(answer: &'static [u8], expect: StatusClass) -> Result<(), String> {
        http(Ipv4Addr::LOCALHOST, service(answer).await, "/live", expect).await
    }

    #[tokio::test]
    async fn the_class_of_the_status_decides() {
        let ok = b"HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(http_of(ok, StatusClass::Success).await, Ok(()));
        assert_eq!(http_of(ok, StatusClass::Redirection).await, Err("status 204".into()));
        let down = b"HTTP/1.1 503 Service Unavailable\r\n\r\n";
        assert_eq!(http_of(down, StatusClass::Success).await, Err("status 503".into()));
        assert!(http_of(b"SSH-2.0-OpenSSH\r\n", StatusClass::Success).await.is_err());
    }

    #[tokio::test]
    async fn a_port_that_nobody_listens_at_fails() {
        let port = service(b"").await;
        assert!(connect(Ipv4Addr::LOCALHOST, port).await.is_ok());
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        assert!(connect(Ipv4Addr::LOCALHOST, closed).await.is_err());
    }
}
