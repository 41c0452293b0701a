//! What each line from either side leads to; no I/O.
//!
//! Requests get ids of our own on their way to QEMU, so that an answer to a connection that is gone never
//! reaches its successor, who counts from 1 again.

use std::collections::VecDeque;

use serde_json::{Value, json};
use sterna_wire::shim::Status;

/// Events kept for an agent that comes back. QEMU sends a handful for each change of state.
const EVENTS_KEPT: usize = 256;

/// What is to be sent or done now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Out {
    pub to_qemu: Vec<u8>,
    pub to_client: Vec<u8>,
    pub kill: bool,
    pub is_ready: bool,
}

/// How far QEMU has come.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Greeting,
    Negotiating,
    Open,
}

pub struct Exchange {
    epoch: u64,
    qemu_pid: u32,
    stage: Stage,
    /// Requests that came before QEMU was ready for them.
    held: Vec<u8>,
    /// Number of the present connection.
    connection: u64,
    next_seq: u64,
    events: VecDeque<(u64, Vec<u8>)>,
    pub shutdown_reason: Option<String>,
}

impl Exchange {
    pub fn new(epoch: u64, qemu_pid: u32) -> Self {
        Self {
            epoch,
            qemu_pid,
            stage: Stage::Greeting,
            held: Vec::new(),
            connection: 0,
            next_seq: 0,
            events: VecDeque::new(),
            shutdown_reason: None,
        }
    }

    /// Answers to what older connections asked are dropped from now on.
    pub fn on_connected(&mut self) {
        self.connection += 1;
        self.held.clear();
    }

    pub fn on_qemu_line(&mut self, line: &[u8]) -> Out {
        let Ok(message) = serde_json::from_slice::<Value>(line) else { return Out::default() };
        if message.get("event").is_some() {
            return self.on_event(message);
        }
        match self.stage {
            Stage::Greeting => {
                self.stage = Stage::Negotiating;
                Out { to_qemu: as_line(&json!({ "execute": "qmp_capabilities" })), ..Out::default() }
            }
            Stage::Negotiating => {
                self.stage = Stage::Open;
                Out { to_qemu: std::mem::take(&mut self.held), is_ready: true, ..Out::default() }
            }
            Stage::Open => self.on_answer(message),
        }
    }

    fn on_event(&mut self, mut message: Value) -> Out {
        if message["event"] == "SHUTDOWN" {
            self.shutdown_reason = message["data"]["reason"].as_str().map(str::to_owned);
        }
        message["seq"] = json!(self.next_seq);
        let line = as_line(&message);
        self.events.push_back((self.next_seq, line.clone()));
        self.next_seq += 1;
        if self.events.len() > EVENTS_KEPT {
            self.events.pop_front();
        }
        Out { to_client: line, ..Out::default() }
    }

    fn on_answer(&self, mut message: Value) -> Out {
        let id = message["id"].take();
        if id["connection"].as_u64() != Some(self.connection) {
            return Out::default();
        }
        match id.get("id") {
            Some(id) if !id.is_null() => message["id"] = id.clone(),
            _ => drop(message.as_object_mut().and_then(|fields| fields.remove("id"))),
        }
        Out { to_client: as_line(&message), ..Out::default() }
    }

    pub fn on_client_line(&mut self, line: &[u8]) -> Out {
        let Ok(mut request) = serde_json::from_slice::<Value>(line) else {
            return refuse(&Value::Null, "GenericError", "the line is no JSON");
        };
        if !request.is_object() {
            return refuse(&Value::Null, "GenericError", "a request is an object");
        }
        let id = request["id"].clone();
        match request["execute"].as_str() {
            Some("shim-status") => self.answer(&id, json!(self.status())),
            Some("shim-events") => self.replay(&id, request["arguments"]["from"].as_u64().unwrap_or(0)),
            Some("shim-kill") => Out { kill: true, ..self.answer(&id, json!({})) },
            Some(name) if name.starts_with("shim-") => {
                refuse(&id, "CommandNotFound", "the shim has no such command")
            }
            _ => {
                request["id"] = json!({ "connection": self.connection, "id": id });
                self.pass_on(as_line(&request))
            }
        }
    }

    fn pass_on(&mut self, line: Vec<u8>) -> Out {
        if self.stage == Stage::Open {
            return Out { to_qemu: line, ..Out::default() };
        }
        self.held.extend(line);
        Out::default()
    }

    fn status(&self) -> Status {
        Status {
            version: sterna_wire::VERSION,
            epoch: self.epoch,
            qemu_pid: self.qemu_pid,
            next_seq: self.next_seq,
        }
    }

    fn answer(&self, id: &Value, value: Value) -> Out {
        Out { to_client: as_line(&json!({ "return": value, "id": id })), ..Out::default() }
    }

    fn replay(&self, id: &Value, from: u64) -> Out {
        let mut out = self.answer(id, json!({}));
        let wanted = self.events.iter().filter(|(seq, _)| *seq >= from);
        wanted.for_each(|(_, line)| out.to_client.extend_from_slice(line));
        out
    }
}

fn refuse(id: &Value, class: &str, desc: &str) -> Out {
    let answer = json!({ "error": { "class": class, "desc": desc }, "id": id });
    Out { to_client: as_line(&answer), ..Out::default() }
}

fn as_line(message: &Value) -> Vec<u8> {
    let mut line = message.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Exchange {
        let mut exchange = Exchange::new(4, 99);
        let asked = exchange.on_qemu_line(br#"{"QMP":{}}"#);
        assert_eq!(json_of(&asked.to_qemu)["execute"], "qmp_capabilities");
        assert!(exchange.on_qemu_line(br#"{"return":{}}"#).is_ready);
        exchange.on_connected();
        exchange
    }

    fn json_of(line: &[u8]) -> Value {
        serde_json::from_slice(line).unwrap()
    }

    #[test]
    fn a_command_goes_to_qemu_and_its_answer_back_under_the_callers_id() {
        let mut exchange = open();
        let sent = json_of(&exchange.on_client_line(br#"{"execute":"query-status","id":1}"#).to_qemu);
        let answer = json!({ "return": { "running": true }, "id": sent["id"] });
        let back = json_of(&exchange.on_qemu_line(&as_line(&answer)).to_client);
        assert_eq!(back, json!({ "return": { "running": true }, "id": 1 }));
    }

    #[test]
    fn an_answer_for_an_older_connection_reaches_nobody() {
        let mut exchange = open();
        let sent = json_of(&exchange.on_client_line(br#"{"execute":"cont","id":1}"#).to_qemu);
        exchange.on_connected();
        let answer = json!({ "return": {}, "id": sent["id"] });
        assert_eq!(exchange.on_qemu_line(&as_line(&answer)), Out::default());
    }

    #[test]
    fn events_are_numbered_and_sent_again_on_request() {
        let mut exchange = open();
        for name in ["STOP", "RESUME", "SHUTDOWN"] {
            let event = json!({ "event": name, "data": { "reason": "guest-shutdown" } });
            exchange.on_qemu_line(&as_line(&event));
        }
        let again = exchange.on_client_line(br#"{"execute":"shim-events","arguments":{"from":1},"id":5}"#);
        let lines: Vec<Value> =
            again.to_client.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(json_of).collect();
        assert_eq!(lines[0], json!({ "return": {}, "id": 5 }));
        let seqs: Vec<_> = lines[1..].iter().map(|event| event["seq"].as_u64().unwrap()).collect();
        assert_eq!(seqs, [1, 2]);
        assert_eq!(exchange.shutdown_reason.as_deref(), Some("guest-shutdown"));
        let status = json_of(&exchange.on_client_line(br#"{"execute":"shim-status","id":6}"#).to_client);
        assert_eq!(status["return"]["next_seq"], 3);
    }

    #[test]
    fn the_ring_of_events_is_bounded() {
        let mut exchange = open();
        for _ in 0..EVENTS_KEPT + 10 {
            exchange.on_qemu_line(br#"{"event":"RTC_CHANGE"}"#);
        }
        assert_eq!(exchange.events.len(), EVENTS_KEPT);
        assert_eq!(exchange.events.front().unwrap().0, 10);
    }

    #[test]
    fn requests_wait_until_qemu_has_negotiated_but_a_kill_does_not() {
        let mut exchange = Exchange::new(1, 2);
        exchange.on_connected();
        assert_eq!(exchange.on_client_line(br#"{"execute":"cont","id":1}"#), Out::default());
        assert!(exchange.on_client_line(br#"{"execute":"shim-kill","id":2}"#).kill);
        exchange.on_qemu_line(br#"{"QMP":{}}"#);
        let opened = exchange.on_qemu_line(br#"{"return":{}}"#);
        assert_eq!(json_of(&opened.to_qemu)["execute"], "cont");
    }

    #[test]
    fn nonsense_is_refused_and_nothing_reaches_qemu() {
        let mut exchange = open();
        for line in [&b"nonsense"[..], b"[]", br#"{"execute":"shim-nothing","id":1}"#] {
            let out = exchange.on_client_line(line);
            assert!(out.to_qemu.is_empty() && json_of(&out.to_client).get("error").is_some());
        }
    }
}
