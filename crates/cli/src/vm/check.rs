//! `--check`: an application's check in one word.

use std::str::FromStr;

use sterna_base::units::Span;
use sterna_model::health::{CheckAction, HealthCheck, OnFault, Probe, StatusClass};

/// What is done when a guest fails in a way that only its host sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// Reset it, at most three times an hour
    Restart,
    /// Leave it as it is
    Leave,
}

impl From<Fault> for OnFault {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Restart => OnFault::Restart,
            Fault::Leave => OnFault::Leave,
        }
    }
}

const FORM: &str = "write http:PORT[/PATH], tcp:PORT or exec:/PROGRAM[ ARGUMENTS], then \
                    [,interval=10s][,timeout=3s][,failures=3][,expect=2xx][,action=restart]";

/// Reads `http:PORT[/PATH]`, `tcp:PORT` or `exec:/PROGRAM ARGS`, followed by `,KEY=VALUE`.
pub fn check(text: &str) -> Result<HealthCheck, String> {
    let mut parts = text.split(',');
    let mut check = HealthCheck {
        probe: probe(parts.next().unwrap_or_default())?,
        interval: Span::from_secs(10),
        timeout: Span::from_secs(3),
        failures: 3,
        action: CheckAction::None,
    };
    for part in parts {
        let (key, value) =
            part.split_once('=').ok_or_else(|| format!("`{part}` is not understood; {FORM}"))?;
        match (key, &mut check.probe) {
            ("interval", _) => check.interval = parsed(key, value)?,
            ("timeout", _) => check.timeout = parsed(key, value)?,
            ("failures", _) => check.failures = parsed(key, value)?,
            ("action", _) => check.action = word(key, value)?,
            ("expect", Probe::Http { expect, .. }) => *expect = word(key, value)?,
            _ => return Err(format!("`{part}` is not understood; {FORM}")),
        }
    }
    Ok(check)
}

fn probe(text: &str) -> Result<Probe, String> {
    let wrong = || format!("`{text}` is no check; {FORM}");
    let (kind, rest) = text.split_once(':').ok_or_else(wrong)?;
    match kind {
        "tcp" => Ok(Probe::Tcp { port: parsed("port", rest)? }),
        "http" => {
            let (port, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let path = if path.is_empty() { "/" } else { path };
            let expect = StatusClass::default();
            Ok(Probe::Http { port: parsed("port", port)?, path: path.to_owned(), expect })
        }
        "exec" => {
            let command: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
            if command.is_empty() { Err(wrong()) } else { Ok(Probe::Exec { command }) }
        }
        _ => Err(wrong()),
    }
}

fn parsed<T: FromStr>(key: &str, value: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    value.parse().map_err(|error| format!("{key} `{value}`: {error}"))
}

/// A word of the API.
fn word<T: serde::de::DeserializeOwned>(key: &str, value: &str) -> Result<T, String> {
    serde_json::from_value(value.into()).map_err(|error| format!("{key} `{value}`: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_a_probe_with_what_differs_from_the_usual() {
        let read = check("http:8080/live,interval=5s,failures=2,expect=3xx,action=restart").unwrap();
        let expected = Probe::Http { port: 8080, path: "/live".into(), expect: StatusClass::Redirection };
        assert_eq!((read.probe, read.failures, read.action), (expected, 2, CheckAction::Restart));
        assert_eq!((read.interval, read.timeout), (Span::from_secs(5), Span::from_secs(3)));
        assert_eq!(check("tcp:22").unwrap().probe, Probe::Tcp { port: 22 });
        let command = vec!["/usr/bin/pg_isready".to_owned(), "-q".to_owned()];
        assert_eq!(check("exec:/usr/bin/pg_isready -q").unwrap().probe, Probe::Exec { command });
    }

    #[test]
    fn what_is_no_check_is_refused_with_the_form() {
        for wrong in
            ["", "http", "http:", "http:x/", "icmp:1", "tcp:70000", "exec:", "tcp:22,expect=2xx", "tcp:22,x"]
        {
            assert!(check(wrong).is_err(), "{wrong}");
        }
        assert!(check("tcp:22,retry=3").unwrap_err().contains("failures="));
        assert!(check("http:80,expect=2").unwrap_err().contains("2xx"));
    }
}
