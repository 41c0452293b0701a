//! What people may say of lost hosts, and what they may ask of VMs that are to survive one.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod world;

use reqwest::StatusCode;
use serde_json::{Value, json};
use world::agent::join;
use world::{Kind, World};

#[tokio::test(flavor = "multi_thread")]
async fn only_a_silent_host_is_called_dead_and_only_by_its_name() {
    let world = World::new(Kind::Memory).await;
    let agent = join(&world, &world.join_token, "a1").await.unwrap();
    let word = "/v1/hosts/a1/confirm-dead";
    let (_, body) = world.post(word, json!({ "host": "a2" })).await;
    assert_eq!(body["code"], "invalid", "{body}");
    let (_, body) = world.post(word, json!({})).await;
    assert_ne!(body["code"], Value::Null, "{body}");
    let spec =
        json!({ "spec": { "confirmed_dead": { "epoch": 0, "by": "me", "at": "2026-01-01T00:00:00Z" } } });
    let (_, body) = world.patch("/v1/hosts/a1", spec).await;
    assert_eq!(body["code"], "invalid", "{body}");
    assert_eq!(world.get("/v1/hosts/a1").await["spec"]["confirmed_dead"], Value::Null);

    let (status, body) = world.post(word, json!({ "host": "a1" })).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["spec"]["confirmed_dead"]["epoch"], 0);
    assert_eq!((&body["status"]["ha"], &body["status"]["protected_by"]), (&json!("-"), &json!([])));

    assert_eq!(agent.report(json!([agent.host(), agent.inventory(&[])])).await, StatusCode::NO_CONTENT);
    let (status, body) = world.post(word, json!({ "host": "a1" })).await;
    assert_eq!((status, &body["code"]), (StatusCode::CONFLICT, &json!("wrong-state")), "{body}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_protected_is_not_promised() {
    let world = World::new(Kind::Memory).await;
    world.make_vm("web").await;
    let (status, body) = world.patch("/v1/vms/web", json!({ "spec": { "ha": "on" } })).await;
    assert_eq!((status, &body["code"]), (StatusCode::CONFLICT, &json!("unmet")), "{body}");
    let message = body["message"].as_str().unwrap();
    assert!(message.contains("0 of the 3 voters") || message.contains("local disk"), "{message}");
    let pinned = json!({ "spec": { "ha": "on", "restart": "never" } });
    let (_, body) = world.patch("/v1/vms/web", pinned).await;
    assert!(body["message"].as_str().unwrap().contains("restart policy is never"), "{body}");
    let (status, body) = world.patch("/v1/vms/web", json!({ "spec": { "ha": "off" } })).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    world.stop().await;
}
