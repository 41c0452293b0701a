//! The client against a scripted other side.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::{Value, json};
use sterna_qemu::qmp::client::Heard;
use sterna_qemu::qmp::event::Event;
use sterna_qemu::qmp::{Client, Error, Greeting, Options};
use sterna_qemu::version::Version;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, Lines, ReadHalf, WriteHalf};

const GREETING: &str =
    r#"{"QMP":{"version":{"qemu":{"micro":2,"minor":0,"major":10},"package":""},"capabilities":["oob"]}}"#;

struct Qemu {
    lines: Lines<BufReader<ReadHalf<DuplexStream>>>,
    write: WriteHalf<DuplexStream>,
}

impl Qemu {
    async fn say(&mut self, line: impl std::fmt::Display) {
        self.write.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
    }

    async fn asked(&mut self) -> Value {
        serde_json::from_str(&self.lines.next_line().await.unwrap().unwrap()).unwrap()
    }

    async fn answer(&mut self, request: &Value, with: Value) {
        self.say(json!({ "return": with, "id": request["id"] })).await;
    }
}

fn pipe() -> (DuplexStream, Qemu) {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let (read, write) = tokio::io::split(theirs);
    (ours, Qemu { lines: BufReader::new(read).lines(), write })
}

/// A client behind somebody who has greeted QEMU already.
async fn connected(options: Options) -> (Client, Qemu) {
    let (ours, qemu) = pipe();
    let client = Client::connect(ours, Options { greeting: Greeting::Absent, ..options }).await.unwrap();
    (client, qemu)
}

fn event(name: &str, data: Value) -> Value {
    json!({ "timestamp": { "seconds": 1, "microseconds": 0 }, "event": name, "data": data })
}

#[tokio::test]
async fn a_greeting_is_read_and_answered() {
    let (ours, mut qemu) = pipe();
    let far = tokio::spawn(async move {
        qemu.say(GREETING).await;
        let request = qemu.asked().await;
        assert_eq!(request["execute"], "qmp_capabilities");
        qemu.answer(&request, json!({})).await;
        qemu
    });
    let client = Client::connect(ours, Options::default()).await.unwrap();
    assert_eq!(client.greeted_version(), Some(Version::new(10, 0, 2)));
    drop(far.await.unwrap());
}

#[tokio::test]
async fn something_else_than_qmp_is_refused() {
    for first in ["SSH-2.0-OpenSSH_9.2", "{}", "{\"QMP\":{}}"] {
        let (ours, mut qemu) = pipe();
        qemu.say(first).await;
        let refused = Client::connect(ours, Options::default()).await.err().unwrap();
        assert!(matches!(refused, Error::NotQmp { .. }), "{refused}");
    }
    let (ours, qemu) = pipe();
    drop(qemu);
    assert!(matches!(Client::connect(ours, Options::default()).await.err().unwrap(), Error::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_second_client_of_a_busy_socket_is_told_in_time() {
    let (ours, _qemu) = pipe();
    let refused = Client::connect(ours, Options::default()).await.err().unwrap();
    assert!(matches!(refused, Error::TimedOut { .. }), "{refused}");
}

#[tokio::test]
async fn answers_find_their_requests_in_any_order() {
    let (client, mut qemu) = connected(Options::default()).await;
    let far = tokio::spawn(async move {
        let (first, second) = (qemu.asked().await, qemu.asked().await);
        qemu.say(event("STOP", Value::Null)).await;
        for request in [&second, &first] {
            qemu.answer(request, json!({ "was": request["execute"] })).await;
        }
        qemu
    });
    let (first, second) =
        tokio::join!(client.execute::<Value>("a", Value::Null), client.execute::<Value>("b", Value::Null));
    assert_eq!(first.unwrap()["was"], "a");
    assert_eq!(second.unwrap()["was"], "b");
    drop(far.await.unwrap());
}

#[tokio::test]
async fn a_refusal_carries_what_qemu_said() {
    let (client, mut qemu) = connected(Options::default()).await;
    tokio::spawn(async move {
        let request = qemu.asked().await;
        qemu.say(json!({ "error": { "class": "GenericError", "desc": "no" }, "id": request["id"] })).await;
        qemu.asked().await;
    });
    let Error::Refused { command, class, desc } = client.cont().await.unwrap_err() else { panic!() };
    assert_eq!((command.as_str(), class.as_str(), desc.as_str()), ("cont", "GenericError", "no"));
}

#[tokio::test(start_paused = true)]
async fn a_frozen_qemu_costs_one_deadline_and_a_late_answer_confuses_nobody() {
    let (client, mut qemu) = connected(Options::default()).await;
    let refused = client.stop().await.unwrap_err();
    assert!(matches!(refused, Error::TimedOut { .. }), "{refused}");
    let late = qemu.asked().await;
    tokio::spawn(async move {
        qemu.answer(&late, json!({ "stale": true })).await;
        let request = qemu.asked().await;
        qemu.answer(&request, json!({ "running": true, "status": "running" })).await;
        qemu.asked().await;
    });
    assert!(client.query_status().await.unwrap().is_running);
}

#[tokio::test]
async fn a_closed_connection_fails_all_requests_and_ends_all_events() {
    let (client, mut qemu) = connected(Options::default()).await;
    let mut events = client.events();
    let far = tokio::spawn(async move {
        qemu.asked().await;
        qemu.asked().await;
        qemu.say(event("STOP", Value::Null)).await;
    });
    let (first, second) = tokio::join!(client.cont(), client.stop());
    assert!(matches!(first.unwrap_err(), Error::Closed));
    assert!(matches!(second.unwrap_err(), Error::Closed));
    far.await.unwrap();
    let Some(Heard::Event(last)) = events.next().await else { panic!("the last event was lost") };
    assert_eq!(last.event, Event::Stop);
    assert_eq!(events.next().await, None);
    assert_eq!(client.events().next().await, None);
    assert!(client.is_closed());
    assert!(matches!(client.stop().await.unwrap_err(), Error::Closed));
}

#[tokio::test]
async fn a_slow_listener_is_told_what_it_lost_and_holds_nobody_up() {
    let (client, mut qemu) = connected(Options { events_kept: 4, ..Options::default() }).await;
    let mut slow = client.events();
    tokio::spawn(async move {
        for pass in 0..100 {
            qemu.say(event("MIGRATION_PASS", json!({ "pass": pass }))).await;
        }
        let request = qemu.asked().await;
        qemu.answer(&request, json!({})).await;
        qemu.asked().await;
    });
    client.stop().await.unwrap();
    assert_eq!(slow.next().await, Some(Heard::Lagged(96)));
    let Some(Heard::Event(next)) = slow.next().await else { panic!() };
    assert_eq!(next.event, Event::MigrationPass { pass: 96 });
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_the_connection_whole() {
    let (client, mut qemu) = connected(Options::default()).await;
    let given_up = tokio::time::timeout(Duration::ZERO, client.execute::<Value>("a", Value::Null)).await;
    assert!(given_up.is_err());
    tokio::spawn(async move {
        loop {
            let request = qemu.asked().await;
            qemu.answer(&request, json!({ "was": request["execute"] })).await;
        }
    });
    assert_eq!(client.execute::<Value>("b", Value::Null).await.unwrap()["was"], "b");
}

#[tokio::test]
async fn a_line_that_is_not_json_ends_the_connection() {
    let (client, mut qemu) = connected(Options::default()).await;
    tokio::spawn(async move {
        qemu.asked().await;
        qemu.say("qemu: could not").await;
        qemu.asked().await;
    });
    assert!(matches!(client.stop().await.unwrap_err(), Error::Closed));
}
