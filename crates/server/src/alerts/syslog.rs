//! RFC 5424, one datagram an alert, over UDP or a local socket. Nobody answers: delivered means sent.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use sterna_model::alert::Severity;
use tokio::net::{UdpSocket, UnixDatagram};

use super::message::{Line, Message};
use crate::config;

/// "daemon".
const FACILITY: u8 = 3;
/// Every receiver must take this much (RFC 5426, section 3.2).
const DATAGRAM_MAX: usize = 2048;
/// For parameters that no company has registered names for (RFC 5612).
const PARAMETERS: &str = "sterna@32473";

#[derive(Debug)]
pub(super) struct Syslog {
    to: To,
    host: String,
}

#[derive(Debug)]
enum To {
    Udp(String),
    Local(PathBuf),
}

impl Syslog {
    pub(super) fn new(config: &config::Syslog) -> anyhow::Result<Self> {
        let to = if config.to.starts_with('/') {
            To::Local(PathBuf::from(&config.to))
        } else {
            let port = config.to.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
            port.with_context(|| format!("{:?} is neither HOST:PORT nor a path", config.to))?
                .with_context(|| format!("{:?} has no port", config.to))?;
            To::Udp(config.to.clone())
        };
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Self { to, host: word(&host, 255) })
    }

    pub(super) async fn send(&self, message: &Message) -> Result<(), String> {
        let lines: Vec<_> = message.alerts.iter().map(|line| self.line(message, line)).collect();
        let sent = match &self.to {
            To::Udp(to) => send_udp(to, &lines).await,
            To::Local(path) => send_local(path, &lines).await,
        };
        sent.map_err(|error| error.to_string())
    }

    fn line(&self, message: &Message, alert: &Line) -> String {
        let severity = match (alert.state, alert.severity) {
            ("resolved", _) => 5,
            (_, Severity::Critical) => 2,
            (_, Severity::Warning) => 4,
        };
        let parameters = [
            ("name", alert.name.as_str()),
            ("state", alert.state),
            ("rule", &alert.rule),
            ("object", &alert.object),
            ("since", &alert.since.to_string()),
        ]
        .map(|(key, value)| format!("{key}=\"{}\"", escaped(value)))
        .join(" ");
        // Other than ASCII would need a mark of its kind before it.
        let text: String = format!("{}: {} {}: {}", alert.state, alert.rule, alert.object, alert.text)
            .chars()
            .map(|c| if c.is_ascii() { c } else { '?' })
            .collect();
        let mut line = format!(
            "<{}>1 {} {} sterna {} alert [{PARAMETERS} {parameters}] {text}",
            FACILITY * 8 + severity,
            message.sent,
            self.host,
            std::process::id(),
        );
        let mut end = line.len().min(DATAGRAM_MAX);
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line
    }
}

async fn send_udp(to: &str, lines: &[String]) -> std::io::Result<()> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(to).await?.collect();
    let to = *addresses.first().ok_or_else(|| std::io::Error::other("the name has no address"))?;
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    for line in lines {
        socket.send(line.as_bytes()).await?;
    }
    Ok(())
}

async fn send_local(path: &std::path::Path, lines: &[String]) -> std::io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    for line in lines {
        socket.send(line.as_bytes()).await?;
    }
    Ok(())
}

/// A value between quotes (RFC 5424, section 6.3.3).
fn escaped(value: &str) -> String {
    value.chars().fold(String::new(), |mut text, c| {
        if matches!(c, '"' | '\\' | ']') {
            text.push('\\');
        }
        text.push(c);
        text
    })
}

/// Visible ASCII, or the sign for nothing.
fn word(text: &str, length: usize) -> String {
    let word: String = text.chars().filter(char::is_ascii_graphic).take(length).collect();
    if word.is_empty() { "-".to_owned() } else { word }
}

#[cfg(test)]
mod tests {
    use sterna_base::clock::Timestamp;

    use super::*;

    #[test]
    fn a_line_is_rfc_5424_whatever_the_text_says() {
        let syslog = Syslog { to: To::Local(PathBuf::from("/dev/log")), host: "north".into() };
        let at: Timestamp = "2026-11-29T10:42:02.123Z".parse().unwrap();
        let line = Line {
            name: "vm-restarted-web".into(),
            state: "firing",
            severity: Severity::Critical,
            rule: "vm-restarted".into(),
            object: "vm/we\"b]\\".into(),
            text: "qemu ended: \u{e9}".into(),
            since: at,
            resolved: None,
        };
        let message =
            Message { version: 1, server: "s".into(), sent: at, test: false, alerts: vec![line.clone()] };
        let text = syslog.line(&message, &line);
        let pid = std::process::id();
        assert_eq!(
            text,
            format!(
                "<26>1 2026-11-29T10:42:02.123Z north sterna {pid} alert [sterna@32473 name=\"vm-restarted-web\" \
                 state=\"firing\" rule=\"vm-restarted\" object=\"vm/we\\\"b\\]\\\\\" since=\"2026-11-29T10:42:02.123Z\"] \
                 firing: vm-restarted vm/we\"b]\\: qemu ended: ?"
            )
        );
        let long = Line { text: "x".repeat(5000), state: "resolved", ..line };
        let text = syslog.line(&message, &long);
        assert_eq!(text.len(), DATAGRAM_MAX);
        assert!(text.starts_with("<29>1 "), "{text:.20}");
    }

    #[test]
    fn what_is_no_address_is_refused_at_once() {
        let new = |to: &str| Syslog::new(&config::Syslog { to: to.into(), least: config::Least::default() });
        assert!(new("logs.example:514").is_ok() && new("/dev/log").is_ok());
        assert!(new("logs.example").is_err() && new("logs.example:x").is_err());
    }
}
