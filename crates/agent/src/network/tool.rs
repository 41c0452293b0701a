//! Runs the system's network tools: `ip`, `bridge`, `nft`. Many changes in one process: a start costs milliseconds.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::Error;

/// Applies lines of `ip -batch`, in order, up to the first that is refused.
pub(super) async fn ip_batch(lines: &[String]) -> Result<(), Error> {
    batch("ip", lines).await
}

/// The same for `bridge -batch`.
pub(super) async fn bridge_batch(lines: &[String]) -> Result<(), Error> {
    batch("bridge", lines).await
}

async fn batch(tool: &'static str, lines: &[String]) -> Result<(), Error> {
    if lines.is_empty() {
        return Ok(());
    }
    let text = lines.join("\n") + "\n";
    match run(tool, &["-batch", "-"], &text).await {
        // The tool says only the number of the line that it refused.
        Err(Error::Refused { text, .. }) => {
            Err(Error::Refused { command: refused(tool, lines, &text), text })
        }
        other => other.map(drop),
    }
}

fn refused(tool: &str, lines: &[String], text: &str) -> String {
    let number = text.rsplit_once("-:").and_then(|(_, rest)| {
        rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse::<usize>().ok())
    });
    let line = number.and_then(|number| lines.get(number.checked_sub(1)?));
    format!("`{tool} {}`", line.map_or("-batch", String::as_str))
}

/// Runs `tool` with `input` on its standard input; returns its standard output.
pub(super) async fn run(tool: &'static str, args: &[&str], input: &str) -> Result<String, Error> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => Error::Missing { tool, package: package(tool) },
        _ => Error::Io { action: format!("run {tool}"), source },
    };
    let mut child = Command::new(tool)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that refuses early closes its input: what it printed says why.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(Error::Refused { command: format!("`{tool} {}`", args.join(" ")), text })
}

pub(super) fn package(tool: &str) -> &'static str {
    match tool {
        "nft" => "nftables",
        "dnsmasq" => "dnsmasq-base",
        "wg" => "wireguard-tools",
        "wireguard-go" => "wireguard-go",
        _ => "iproute2",
    }
}

#[cfg(test)]
mod tests {
    use super::refused;

    #[test]
    fn a_refused_line_is_named() {
        let lines = ["link add a".to_owned(), "link set b".to_owned()];
        let text = "Cannot find device \"b\"; Command failed -:2";
        assert_eq!(refused("ip", &lines, text), "`ip link set b`");
        assert_eq!(refused("ip", &lines, "something else"), "`ip -batch`");
    }
}
