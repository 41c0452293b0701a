//! One message about several alerts, in the words that every way shares.

use std::fmt::Write as _;

use serde::Serialize;
use sterna_base::clock::Timestamp;
use sterna_model::alert::Severity;

use super::due::{Due, What};

/// The longest text of one alert: what came from a guest or a stranger's program may be anything.
const TEXT_MAX: usize = 1000;

/// What is sent. Its JSON is the webhook's body.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Message {
    /// Of this form.
    pub(super) version: u32,
    /// The server that speaks.
    pub(super) server: String,
    pub(super) sent: Timestamp,
    pub(super) test: bool,
    pub(super) alerts: Vec<Line>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Line {
    pub(super) name: String,
    /// `firing`, `still firing` or `resolved`.
    pub(super) state: &'static str,
    pub(super) severity: Severity,
    pub(super) rule: String,
    /// As `KIND/NAME`.
    pub(super) object: String,
    pub(super) text: String,
    pub(super) since: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resolved: Option<Timestamp>,
}

impl Message {
    pub(super) fn about(server: &str, now: Timestamp, all: &[Due]) -> Self {
        let alerts = all.iter().map(|due| Line {
            name: due.name.to_string(),
            state: due.what.word(),
            severity: due.decision.severity,
            rule: due.decision.rule.clone(),
            object: plain(&due.decision.object),
            text: plain(&due.decision.text),
            since: due.decision.since,
            resolved: due.decision.resolved,
        });
        Self { version: 1, server: server.to_owned(), sent: now, test: false, alerts: alerts.collect() }
    }

    /// Says that this way works, and nothing else.
    pub(super) fn test(server: &str, now: Timestamp) -> Self {
        let line = Line {
            name: "test".to_owned(),
            state: What::Fires.word(),
            severity: Severity::Warning,
            rule: "test".to_owned(),
            object: "store/main".to_owned(),
            text: "somebody tests whether alerts arrive here; nothing is wrong".to_owned(),
            since: now,
            resolved: None,
        };
        Self { version: 1, server: server.to_owned(), sent: now, test: true, alerts: vec![line] }
    }

    /// One line that says how bad it is.
    pub(super) fn subject(&self) -> String {
        if self.test {
            return "[sterna] a test of alerts".to_owned();
        }
        let is_over = |line: &&Line| line.state == What::Resolved.word();
        let over = self.alerts.iter().filter(is_over).count();
        let counts = match (self.alerts.len() - over, over) {
            (firing, 0) => format!("{firing} firing"),
            (0, over) => format!("{over} resolved"),
            (firing, over) => format!("{firing} firing, {over} resolved"),
        };
        match &self.alerts[..] {
            [only] => format!("[sterna] {}: {} {}", only.state, only.rule, only.object),
            [first, ..] => format!("[sterna] {counts}: {} {}, ...", first.rule, first.object),
            [] => format!("[sterna] {counts}"),
        }
    }

    /// For people.
    pub(super) fn body(&self) -> String {
        let mut text = String::new();
        for line in &self.alerts {
            let severity = line.severity.word();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{} ({severity}): {} {}", line.state, line.rule, line.object);
            let _ = writeln!(text, "    {}", line.text);
            let _ = match line.resolved {
                Some(resolved) => writeln!(text, "    from {} to {resolved}", line.since),
                None => writeln!(text, "    since {}", line.since),
            };
            text.push('\n');
        }
        if !self.test {
            text.push_str("sterna alert list shows all; sterna alert ack NAME says that you care for one.\n");
        }
        let _ = writeln!(text, "From the Sterna server at {}, {}.", self.server, self.sent);
        text
    }
}

/// Without control characters, and not longer than a person reads.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT_MAX).collect()
}
