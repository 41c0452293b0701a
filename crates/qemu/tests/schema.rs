//! Every command and argument this crate sends exists in each QEMU it supports, or is guarded.
//!
//! `tests/golden/schema-*.json` are parts of real schemas: what we send and what that refers to. With QEMU
//! at hand, `UPDATE_GOLDEN=1` writes them anew.
#![allow(clippy::unwrap_used)]

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sterna_qemu::config::{Config, Disk, Format, Nic, Place, Source};
use sterna_qemu::qmp::export::{NbdAddress, NbdExport, Removal};
use sterna_qemu::qmp::migration::{Address, Announcement, Capability, Parameters};
use sterna_qemu::qmp::mirror::{CopyMode, Depth, Mirror, NbdNode, OnError};
use sterna_qemu::qmp::tls::Endpoint;
use sterna_qemu::qmp::{Client, Greeting, Options, Schema};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use world::{Binary, Qemu, folder, machine, qemu};

type Sent = Vec<(String, Value)>;

/// A client whose other side notes what it is asked and answers nothing useful.
async fn recorder() -> (Client, Arc<Mutex<Sent>>) {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let sent: Arc<Mutex<Sent>> = Arc::default();
    let notes = Arc::clone(&sent);
    tokio::spawn(async move {
        let (read, mut write) = tokio::io::split(theirs);
        let mut lines = BufReader::new(read).lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            let mut request: Value = serde_json::from_str(&line).unwrap();
            let command = request["execute"].as_str().unwrap().to_owned();
            notes.lock().unwrap().push((command, request["arguments"].take()));
            let answer = json!({ "return": {}, "id": request["id"] });
            write.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        }
    });
    let options = Options { greeting: Greeting::Absent, ..Options::default() };
    (Client::connect(ours, options).await.unwrap(), sent)
}

fn disk() -> Disk {
    Disk {
        id: "d".into(),
        node: "n".into(),
        format: Format::Qcow2,
        source: Source::File { path: "/d".into() },
        backing: vec![],
        serial: Some("s".into()),
        read_only: false,
        place: Place::HotPort(0),
        boot_index: None,
    }
}

fn nic() -> Nic {
    Nic {
        id: "n".into(),
        tap_fd: 7,
        vhost_fd: Some(8),
        mac: "52:54:00:00:00:01".into(),
        mtu: 1500,
        place: Place::HotPort(1),
    }
}

fn mirror() -> Mirror {
    Mirror {
        job: "m".into(),
        node: "n".into(),
        target: "t".into(),
        depth: Depth::Full,
        copy_mode: CopyMode::Background,
        buffer: Some(1 << 20),
        granularity: Some(1 << 16),
        on_source_error: OnError::Report,
        on_target_error: OnError::Stop,
        auto_finalize: true,
        auto_dismiss: true,
    }
}

fn parameters() -> Parameters {
    Parameters {
        max_bandwidth: Some(1),
        downtime_limit: Some(1),
        announce_rounds: Some(1),
        multifd_channels: Some(1),
        cpu_throttle_initial: Some(1),
        cpu_throttle_increment: Some(1),
        max_cpu_throttle: Some(1),
        max_postcopy_bandwidth: Some(1),
        tls_creds: Some("k".into()),
    }
}

/// Everything this crate can ask of a QEMU with this schema. Answers have unknown shapes here, so the
/// outcomes mean nothing.
async fn everything(schema: &Schema, binary_machine: &str) -> Sent {
    use Capability::*;
    let (qmp, sent) = recorder().await;
    let all = [
        Events,
        ReturnPath,
        PauseBeforeSwitchover,
        LateBlockActivate,
        AutoConverge,
        Multifd,
        PostcopyRam,
        Xbzrle,
    ];
    let address = Address::Unix("/in".into());
    let announcement = Announcement { initial_ms: 1, max_ms: 1, rounds: 1, step_ms: 1 };
    let machine = binary_machine.parse().unwrap();
    let _ = qmp.execute::<Value>("qmp_capabilities", Value::Null).await;
    let _ = (qmp.query_status().await, qmp.cont().await, qmp.stop().await, qmp.quit().await);
    let _ = (qmp.system_powerdown().await, qmp.system_reset().await, qmp.query_version().await);
    let _ = (qmp.query_cpu_definitions().await, qmp.query_machines().await, qmp.query_schema().await);
    let _ = qmp.pmemsave(0, 1, Path::new("/m")).await;
    let _ = (qmp.query_block().await, qmp.query_block_stats().await, qmp.query_named_block_nodes().await);
    let _ = qmp.set_blocks_active(schema, true).await;
    let _ = (qmp.block_resize("n", 1).await, qmp.set_write_threshold("n", 1).await);
    let _ = qmp.set_migration_capabilities(&all, &all).await;
    let _ = qmp.set_migration_parameters(&parameters()).await;
    let _ = (qmp.migrate_incoming(&address).await, qmp.migrate(&address).await, qmp.incoming_port().await);
    let _ = (qmp.migrate_continue().await, qmp.migrate_cancel().await, qmp.query_migrate().await);
    let _ = qmp.announce_self(announcement).await;
    let _ = (qmp.calc_dirty_rate(schema, Duration::from_secs(1)).await, qmp.query_dirty_rate().await);
    let _ = (qmp.add_disk(&disk(), 1).await, qmp.add_nic(&nic(), &machine).await);
    let _ = (qmp.remove_device("d").await, qmp.remove_node("n").await, qmp.remove_netdev("n").await);
    let _ = (qmp.add_key("k", Endpoint::Server, Path::new("/k")).await, qmp.remove_key("k").await);
    let _ = qmp.query_memory_size().await;
    copying(&qmp, schema).await;
    sent.lock().unwrap().clone()
}

/// The part of [`everything`] about disks that are copied.
async fn copying(qmp: &Client, schema: &Schema) {
    let at = "127.0.0.1:1".parse().unwrap();
    let far = NbdAddress::Tcp { at, tls_creds: Some("c".into()) };
    let node = NbdNode {
        node: "t".into(),
        at: Path::new("/s").into(),
        export: "e".into(),
        reconnect_delay: Duration::ZERO,
        open_timeout: Duration::ZERO,
    };
    let _ = qmp.add_nbd_node(&NbdNode { at: far.clone(), ..node.clone() }).await;
    let export = NbdExport { id: "x".into(), node: "n".into(), name: "e".into(), is_writable: true };
    let _ = (qmp.add_nbd_node(&node).await, qmp.mirror(&mirror()).await, qmp.query_block_jobs().await);
    let _ = qmp.make_write_blocking(schema, "m").await;
    let _ = (qmp.finish_mirror("m").await, qmp.abort_mirror("m").await);
    let _ = qmp.yank_node("t").await;
    let _ = (qmp.finalize_job("m").await, qmp.dismiss_job("m").await);
    let _ = qmp.nbd_server_start(&far, 1).await;
    let _ = (qmp.nbd_server_start(&Path::new("/s").into(), 0).await, qmp.nbd_server_stop().await);
    let _ = (qmp.add_nbd_export(&export).await, qmp.query_exports().await);
    let _ = (qmp.remove_export("x", Removal::Safe).await, qmp.remove_export("x", Removal::Hard).await);
}

/// Fields of the other kinds of an argument that depends on another one (`driver`, `type`) are in variants,
/// which real QEMU checks in `tests/boots.rs` and `tests/mirror.rs`, and `object-add` in the agent's `tests/move.rs`.
const OPEN: [&str; 6] =
    ["device_add", "blockdev-add", "netdev_add", "block-export-add", "block-job-change", "object-add"];

async fn check(schema: &Schema, version: &str, machine: &str) {
    for (command, arguments) in everything(schema, machine).await {
        assert!(schema.has_command(&command), "QEMU {version} has no {command}");
        let arguments = arguments.as_object().cloned().unwrap_or_default();
        for name in arguments.keys().filter(|_| !OPEN.contains(&command.as_str())) {
            assert!(schema.has_argument(&command, name), "QEMU {version}: {command} has no {name}");
        }
        for capability in arguments.get("capabilities").and_then(Value::as_array).into_iter().flatten() {
            let word = capability["capability"].as_str().unwrap();
            let known = schema.has_value(&command, &["capabilities", "capability"], word);
            assert!(known, "QEMU {version} has no capability {word}");
        }
    }
    for event in typed_events() {
        assert!(schema.has_event(&event), "QEMU {version} has no event {event}");
    }
}

fn source(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/qmp").join(file)).unwrap()
}

/// The first text in quotes after each occurrence of `mark`, if it follows closely.
fn quoted_after(text: &str, mark: &str) -> BTreeSet<String> {
    let after = text.split(mark).skip(1);
    after
        .filter_map(|rest| {
            let mut parts = rest.splitn(3, '"');
            (parts.next()?.len() < 40).then(|| parts.next().map(str::to_owned))?
        })
        .collect()
}

/// The events that `event.rs` gives a type of their own.
fn typed_events() -> BTreeSet<String> {
    let text = source("event.rs");
    let code = text.split("#[cfg(test)]").next().unwrap();
    let arms = code.lines().filter_map(|line| line.trim().strip_prefix('"')?.split_once("\" =>"));
    let events: BTreeSet<String> = arms.map(|(name, _)| name.to_owned()).collect();
    assert!(events.contains("SHUTDOWN") && events.contains("BLOCK_IO_ERROR"), "{events:?}");
    events
}

fn golden(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/schema-{version}.json"))
}

fn kept(version: &str) -> Schema {
    let text = std::fs::read_to_string(golden(version)).unwrap();
    Schema::new(serde_json::from_str(&text).unwrap())
}

#[tokio::test]
async fn all_that_is_sent_is_known_to_the_kept_schemas() {
    check(&kept("7.2"), "7.2", "pc-q35-7.2").await;
    check(&kept("10.0"), "10.0", "pc-q35-10.0").await;
}

#[tokio::test]
async fn guards_read_the_schema() {
    let (old, new) = (kept("7.2"), kept("10.0"));
    assert!(!old.has_command("blockdev-set-active") && new.has_command("blockdev-set-active"));
    let unit = |schema: &Schema| schema.has_argument("calc-dirty-rate", "calc-time-unit");
    assert!(!unit(&old) && unit(&new));
    assert!(!new.has_command("made-up") && !new.has_argument("migrate", "made-up"));
    assert!(!new.has_event("migrate") && !new.has_command("STOP"));
    assert!(!new.has_value("migrate-set-capabilities", &["capabilities", "capability"], "made-up"));
    let names = |sent: Sent| sent.into_iter().map(|(command, _)| command).collect::<BTreeSet<_>>();
    let sent_to_old = names(everything(&old, "pc-q35-7.2").await);
    let sent_to_new = names(everything(&new, "pc-q35-10.0").await);
    let only_new: Vec<&String> = sent_to_new.difference(&sent_to_old).collect();
    assert_eq!(only_new, ["block-job-change", "blockdev-set-active"]);
}

#[tokio::test]
async fn no_command_in_the_code_is_left_out_here() {
    let sent = everything(&kept("10.0"), "pc-q35-10.0").await;
    let sent: BTreeSet<String> = sent.into_iter().map(|(command, _)| command).collect();
    let mut written = BTreeSet::new();
    for file in [
        "client.rs",
        "block.rs",
        "export.rs",
        "hotplug.rs",
        "machine.rs",
        "migration.rs",
        "mirror.rs",
        "tls.rs",
    ] {
        let text = source(file);
        let code = text.split("#[cfg(test)]").next().unwrap();
        for mark in [".done(", ".execute(", ".execute_within", ".execute::<"] {
            written.extend(quoted_after(code, mark));
        }
    }
    assert_eq!(written, sent);
}

/// Real QEMU, where it is at hand, agrees with what is kept.
#[tokio::test]
async fn all_that_is_sent_is_known_to_real_qemu() {
    for (major, version) in [(7, "7.2"), (10, "10.0")] {
        let Some(binary) = qemu(major) else { continue };
        let entities = ask(&binary).await;
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(golden(version), trimmed(&entities).await).unwrap();
        }
        let schema = Schema::new(serde_json::from_value(Value::Array(entities)).unwrap());
        check(&schema, version, binary.machine().as_str()).await;
    }
}

async fn ask(binary: &Binary) -> Vec<Value> {
    let folder = folder();
    let config = Config {
        disks: vec![],
        paused: true,
        ..machine(binary, folder.path(), "schema", Path::new("/none"))
    };
    let vm = Qemu::start(binary, &config).await.unwrap();
    vm.qmp.execute("query-qmp-schema", Value::Null).await.unwrap()
}

/// What we send and what that refers to, one entity a line.
async fn trimmed(entities: &[Value]) -> String {
    let by_name: BTreeMap<&str, &Value> =
        entities.iter().map(|entity| (entity["name"].as_str().unwrap(), entity)).collect();
    let whole = Schema::new(serde_json::from_value(json!(entities)).unwrap());
    let sent = everything(&whole, "pc-q35-7.2").await;
    let mut wanted: Vec<String> =
        sent.into_iter().map(|(command, _)| command).chain(typed_events()).collect();
    let mut kept = BTreeMap::new();
    while let Some(name) = wanted.pop() {
        let Some(entity) = by_name.get(name.as_str()) else { continue };
        let mut entity = (*entity).clone();
        let object = entity.as_object_mut().unwrap();
        for unused in ["ret-type", "variants", "tag", "values", "features", "allow-oob"] {
            object.remove(unused);
        }
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        if object["meta-type"] == "command" {
            wanted.extend(text(object.get("arg-type")));
        }
        wanted.extend(text(object.get("element-type")));
        let members = object.get("members").and_then(Value::as_array).into_iter().flatten();
        let enumerations = members
            .filter(|member| ["capabilities", "capability"].iter().any(|name| member["name"] == *name));
        wanted.extend(enumerations.filter_map(|member| text(member.get("type"))));
        kept.insert(name, entity);
    }
    let lines: Vec<String> = kept.values().map(Value::to_string).collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}
