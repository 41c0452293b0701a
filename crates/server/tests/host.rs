//! Hosts leave: never while something is on them, and without leaving words behind that a later host would inherit.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod world;

use reqwest::StatusCode;
use serde_json::{Value, json};
use sterna_store::Txn;
use world::agent::{decide, join, report};
use world::{Kind, World};

async fn put(world: &World, key: &str, value: Value) {
    world.store.commit(Txn::new().put(key.to_owned(), value.to_string().into_bytes())).await.unwrap();
}

/// The deletion is refused and has changed nothing; gives what it said.
async fn refused(world: &World) -> String {
    let (status, body) = world.delete("/v1/hosts/a1").await;
    assert_eq!((status, &body["code"]), (StatusCode::CONFLICT, &json!("in-use")), "{body}");
    let host = world.get("/v1/hosts/a1").await;
    assert_eq!((&host["spec"]["cordoned"], &host["meta"]["deleting"]), (&json!(false), &Value::Null));
    format!("{}; {}", body["message"].as_str().unwrap(), body["hint"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_not_deleted_while_a_vm_or_a_move_may_be_on_it() {
    let world = World::new(Kind::Memory).await;
    let agent = join(&world, &world.join_token, "a1").await.unwrap();
    let uid = world.make_vm("web").await["object"]["meta"]["uid"].clone();
    assert_eq!(agent.report(json!([agent.host(), agent.inventory(&[])])).await, StatusCode::NO_CONTENT);
    let says = async |epoch: u64, state: Value| {
        let seen = json!({"type": "vm", "name": "web", "uid": uid, "report": report(epoch, &state)});
        assert_eq!(agent.report(json!([seen])).await, StatusCode::NO_CONTENT);
    };

    decide(&world, "web", "a1", 1).await;
    let drain = "host a1 still has vm web; move VMs away with `sterna host drain`, or stop them";
    assert_eq!(refused(&world).await, drain, "its start may be on its way");
    says(1, json!({"state": "running"})).await;
    assert_eq!(refused(&world).await, drain);
    // Owned elsewhere; the copy here was not heard to have ended.
    decide(&world, "web", "a2", 2).await;
    assert_eq!(refused(&world).await, drain);
    says(1, json!({"state": "stopped", "exit": {"exit": "released"}})).await;
    let spec = json!({"vm": "web", "to": "a1"});
    let meta = json!({"name": "web-1", "uid": uuid::Uuid::now_v7(), "created": "2026-01-01T00:00:00Z"});
    put(&world, "migration/default/web-1/spec", json!({"meta": meta, "spec": spec})).await;
    let waits = "host a1 still has migration web-1; wait for migrations, or cancel them";
    assert_eq!(refused(&world).await, waits);
    let decision = json!({"phase": {"phase": "failed", "why": "test"}, "epoch": 1, "next_epoch": 2, "method": "",
        "started": "2026-01-01T00:00:00Z", "since": "2026-01-01T00:00:00Z"});
    put(&world, "migration/default/web-1/decision", decision).await;
    // A row that cannot be read may say anything.
    put(&world, "vm/default/web/report/a1", json!({"epoch": "?"})).await;
    assert_eq!(refused(&world).await, drain);
    says(1, json!({"state": "stopped", "exit": {"exit": "released"}})).await;
    let (status, body) = world.delete("/v1/hosts/a1").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_left_is_deleted_and_a_later_one_of_its_name_inherits_nothing() {
    let world = World::new(Kind::Memory).await;
    let first = join(&world, &world.join_token, "a1").await.unwrap();
    let uid = world.make_vm("web").await["object"]["meta"]["uid"].clone();
    let (status, _) = world.post("/v1/vms/web/stop", json!({})).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    decide(&world, "web", "a1", 1).await;
    let ended = json!({"state": "stopped", "exit": {"exit": "requested", "forced": false}});
    let seen = json!({"type": "vm", "name": "web", "uid": uid, "report": report(1, &ended)});
    let everything = json!([first.host(), first.inventory(&[]), seen]);
    assert_eq!(first.report(everything.clone()).await, StatusCode::NO_CONTENT);

    // It left without telling the server; a VM that is known to have ended there keeps nobody.
    let (status, body) = world.delete("/v1/hosts/a1").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(first.report(everything).await, StatusCode::FORBIDDEN, "it has no say any more");

    let token = world.post("/v1/host-tokens", json!({})).await.1["token"].as_str().unwrap().to_owned();
    let (status, body) = join(&world, &token, "a1").await.err().unwrap();
    assert_eq!((status, &body["code"]), (StatusCode::CONFLICT, &json!("wrong-state")), "{body}");
    // As control does, once nothing rests on the row (`plan::cleanup`).
    world.store.commit(Txn::new().delete("vm/default/web/report/a1".to_owned())).await.unwrap();
    assert_eq!(world.get("/v1/vms/web").await["status"]["state"], "stopped");
    let second = join(&world, &token, "a1").await.unwrap();
    assert!(world.get("/v1/vms/web").await["reports"]["a1"].is_null());
    assert_eq!(
        first.report(json!([first.host()])).await,
        StatusCode::FORBIDDEN,
        "its certificate is the earlier host's"
    );
    assert_eq!(second.report(json!([second.host()])).await, StatusCode::NO_CONTENT);
    world.stop().await;
}
