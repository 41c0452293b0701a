//! Fence devices through the API: what is taken, what is refused, and what nobody is shown.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod world;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sterna_server::config::Fencing;
use world::agent::join;
use world::{Kind, World};

/// The agents of `power`'s own tests; they switch nothing.
const AGENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../power/tests/agents");

/// A server that speaks to guards, with host a1; and where its fake machine lies.
async fn fenced() -> (World, String) {
    let dir = tempfile::tempdir().unwrap();
    let machine = dir.path().to_str().unwrap().to_owned();
    std::fs::write(dir.path().join("state"), "on").unwrap();
    let fencing = Fencing { listen: "127.0.0.1:7451".parse().unwrap(), witness: None, agents: AGENTS.into() };
    let world = World::with(dir, Kind::Memory, |config| config.fencing = Some(fencing)).await;
    (world, machine)
}

fn device(machine: &str, plug: &str) -> Value {
    json!({
        "agent": "fence_fake", "options": { "ip": machine, "plug": plug }, "secrets": { "password": "geheim" }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_taken_when_it_answers_and_its_secrets_are_never_shown() {
    let (world, machine) = fenced().await;
    let agent = join(&world, &world.join_token, "a1").await.unwrap();
    let at = "/v1/hosts/a1/fence";
    let (status, body) = world.post(at, device(&machine, "1")).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["spec"]["fence"]["secrets"], json!({ "password": "(hidden)" }));
    assert_eq!(body["spec"]["fence"]["options"]["plug"], "1");
    for path in ["/v1/hosts", "/v1/hosts/a1", "/v1/events", "/v1/audit"] {
        assert!(!world.get(path).await.to_string().contains("geheim"), "{path}");
    }
    let audit = world.get("/v1/audit").await.to_string();
    assert!(audit.contains("withheld"), "a hash would tell a short password: {audit}");
    // What is shown is not what is kept.
    let (_, body) = world.patch("/v1/hosts/a1", json!({ "spec": { "cordoned": true } })).await;
    assert_eq!(body["spec"]["cordoned"], true, "{body}");
    let (status, body) = world.post("/v1/hosts/a1/fence/test", json!({})).await;
    assert_eq!((status, &body["power"]), (StatusCode::OK, &json!("on")), "{body}");
    let (_, body) = world.patch("/v1/hosts/a1", json!({ "spec": { "fence": null } })).await;
    assert_eq!(body["code"], "invalid", "{body}");

    // It says off, which the connected host belies.
    std::fs::write(format!("{machine}/state"), "off").unwrap();
    let (status, body) = world.post("/v1/hosts/a1/fence/test", json!({})).await;
    assert_eq!((status, &body["power"]), (StatusCode::OK, &json!("off")), "{body}");
    assert_eq!(agent.report(json!([agent.host(), agent.inventory(&[])])).await, StatusCode::NO_CONTENT);
    let (_, body) = world.post("/v1/hosts/a1/fence/test", json!({})).await;
    assert!(body["message"].as_str().unwrap().contains("another machine"), "{body}");

    let (status, body) = world.send(world.request(Method::DELETE, at)).await;
    assert_eq!((status, &body["spec"]["fence"]), (StatusCode::OK, &Value::Null), "{body}");
    let (_, body) = world.post("/v1/hosts/a1/fence/test", json!({})).await;
    assert_eq!(body["code"], "wrong-state", "{body}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_does_not_answer_or_is_no_agent_is_refused_and_changes_nothing() {
    let (world, machine) = fenced().await;
    join(&world, &world.join_token, "a1").await.unwrap();
    let at = "/v1/hosts/a1/fence";
    let (status, body) = world.post(at, device(&machine, "refuses")).await;
    let message = body["message"].as_str().unwrap();
    assert_eq!((status, &body["code"]), (StatusCode::CONFLICT, &json!("unmet")), "{body}");
    assert!(message.contains("cannot log in with -P (hidden)"), "{message}");
    let bad = [
        json!({ "agent": "sh" }),
        json!({ "agent": "fence_../../bin/sh" }),
        json!({ "agent": "fence_fake", "options": { "action": "on" } }),
        json!({ "agent": "fence_fake", "options": { "debug_file": "/etc/passwd" } }),
        json!({ "agent": "fence_fake", "options": { "ip": "1\naction=on" } }),
        json!({ "agent": "fence_fake", "secrets": { "password_script": "/bin/sh" } }),
    ];
    for body in bad {
        let (status, answer) = world.post(at, body.clone()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}: {answer}");
    }
    let (_, body) = world.post("/v1/hosts/a9/fence", device(&machine, "1")).await;
    assert_eq!(body["code"], "not-found", "{body}");
    assert_eq!(world.get("/v1/hosts/a1").await["spec"]["fence"], Value::Null);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_calls_no_host_lost_takes_no_device() {
    let world = World::new(Kind::Memory).await;
    join(&world, &world.join_token, "a1").await.unwrap();
    let (_, body) = world.post("/v1/hosts/a1/fence", device("/nowhere", "1")).await;
    assert_eq!(body["code"], "unmet", "{body}");
    assert!(body["message"].as_str().unwrap().contains("no guards"), "{body}");
    world.stop().await;
}
