//! What a stranger's program said, short enough for a reason.

/// Of a reason.
const LENGTH_MAX: usize = 200;
/// The last lines say why.
const LINES: usize = 2;

/// `None` when it said nothing.
pub fn short(text: &str, secrets: &[&str]) -> Option<String> {
    let mut text = text.to_owned();
    // Before anything is cut: half a secret would not be found.
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "(hidden)");
    }
    let plain =
        |line: &str| -> String { line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect() };
    let lines: Vec<_> =
        text.lines().map(|line| plain(line).trim().to_owned()).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(LINES)..].join("; ");
    let count = last.chars().count();
    // The end says most.
    let kept: String = last.chars().skip(count.saturating_sub(LENGTH_MAX)).collect();
    (!kept.is_empty()).then_some(if count > LENGTH_MAX { format!("... {kept}") } else { kept })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_without_secrets_or_control_characters() {
        let text = "starts\n\nipmitool -P geheim\u{1b}[0m failed\nUnable to log in\n";
        assert_eq!(short(text, &["geheim"]).unwrap(), "ipmitool -P (hidden) [0m failed; Unable to log in");
        assert_eq!(short(" \n\n", &[]), None);
        let long = short(&"x".repeat(1000), &[]).unwrap();
        assert_eq!(long.chars().count(), LENGTH_MAX + 4);
    }
}
