//! What of a lab is there and runs.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::place::{Host, Lab, Pair};
use crate::{member, netns, wan};

#[derive(Debug, Serialize)]
pub struct Status {
    pub name: String,
    pub dir: String,
    pub net: String,
    /// Namespaces, and whether they are there.
    pub namespaces: BTreeMap<String, bool>,
    /// By role: the processes that run, supervisors included.
    pub processes: BTreeMap<String, Vec<Process>>,
    /// By name; null: its relay does not answer.
    pub lines: BTreeMap<String, Option<wan::State>>,
}

#[derive(Debug, Serialize)]
pub struct Process {
    pub pid: i32,
    pub command: String,
}

#[must_use]
pub fn status(lab: &Lab) -> Status {
    let roles = lab.hosts().map(Host::name).chain(lab.pairs().map(wan::role)).chain(["server".to_owned()]);
    let mut processes: BTreeMap<String, Vec<Process>> = roles.map(|role| (role, Vec::new())).collect();
    for member in member::all(&lab.dir) {
        processes.entry(member.role).or_default().push(Process { pid: member.pid, command: member.line });
    }
    Status {
        name: lab.name.clone(),
        dir: lab.dir.display().to_string(),
        net: lab.cidr(),
        namespaces: lab.spaces().into_iter().map(|space| (space.clone(), netns::exists(&space))).collect(),
        processes,
        lines: lab.pairs().map(|pair| (pair.to_string(), ask(lab, pair))).collect(),
    }
}

fn ask(lab: &Lab, pair: Pair) -> Option<wan::State> {
    wan::ask(&lab.wan_socket(pair), &wan::Order::Show).ok()
}

impl Status {
    /// Everything that belongs to a lab is there.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let has_spaces = self.namespaces.values().all(|there| *there);
        has_spaces
            && self.processes.values().all(|running| !running.is_empty())
            && self.lines.values().all(Option::is_some)
    }

    /// Lines for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut lines = vec![format!("lab {} in {}, {}", self.name, self.dir, self.net)];
        let missing: Vec<_> =
            self.namespaces.iter().filter(|(_, there)| !**there).map(|(name, _)| name.as_str()).collect();
        if !missing.is_empty() {
            lines.push(format!("missing namespaces: {}", missing.join(", ")));
        }
        for (role, running) in &self.processes {
            let what = match running.as_slice() {
                [] => "does not run".to_owned(),
                some => format!("{} processes", some.len()),
            };
            lines.push(format!("  {role:<8} {what}"));
        }
        lines.extend(self.lines.iter().map(|(name, state)| match state {
            Some(state) => line_text(state),
            None => format!("  line {name}   no answer"),
        }));
        lines.join("\n")
    }
}

/// A line's settings and counters for people.
#[must_use]
pub fn line_text(line: &wan::State) -> String {
    let wan::Settings { up, delay_us, jitter_us, rate_bits, loss, queue_bytes } = &line.settings;
    let state = if *up { "up" } else { "down" };
    let rate =
        rate_bits.map_or("as fast as it goes".to_owned(), |bits| format!("{} Mbit/s", bits as f64 / 1e6));
    let (delay, jitter) = (*delay_us as f64 / 1000.0, *jitter_us as f64 / 1000.0);
    let head = format!(
        "  line {}   {state}, {delay} ms one way (+ up to {jitter} ms), {rate}, loss {}%, queue {queue_bytes} bytes",
        line.line,
        loss * 100.0
    );
    let ways = line.directions.iter().map(|(direction, counters)| {
        let wan::Counters { packets, bytes, dropped_queue, dropped_loss, dropped_down } = counters;
        format!(
            "    {}   {packets} packets, {bytes} bytes; dropped: {dropped_queue} queue full, {dropped_loss} lost, {dropped_down} line down",
            direction.replace('_', " ")
        )
    });
    [head].into_iter().chain(ways).collect::<Vec<_>>().join("\n")
}
