//! Datacentres and what moves may take of the lines between them.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod world;

use reqwest::StatusCode;
use serde_json::{Value, json};
use world::{Kind, World};

fn with(bandwidth: Value) -> Value {
    json!({"spec": {"bandwidth": bandwidth}})
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_line_are_kept_as_given_and_replaced_as_a_whole() {
    let world = World::new(Kind::Memory).await;
    let office = json!({"days": "mon-fri", "from": "08:00", "to": "18:00", "utc_offset": "+01:00", "limit": "20Mbit/s"});
    let body = json!({"name": "b", "spec": {"location": "Berlin", "bandwidth": [office]}});
    assert_eq!(world.post("/v1/datacentres", body).await.0, StatusCode::CREATED);
    assert_eq!(world.get("/v1/datacentres/b").await["spec"]["bandwidth"], json!([office]));
    let (status, body) = world.patch("/v1/datacentres/b", with(json!([{"limit": "1000kbit/s"}]))).await;
    let always = json!([{"from": "00:00", "to": "24:00", "limit": "1Mbit/s"}]);
    assert_eq!((status, &body["spec"]["bandwidth"]), (StatusCode::OK, &always));
    assert_eq!(body["spec"]["location"], "Berlin");
    let (status, body) = world.patch("/v1/datacentres/b", with(Value::Null)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body["spec"].get("bandwidth").is_none(), "{body}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_cannot_be_meant_is_refused_with_its_reason_and_changes_nothing() {
    let world = World::new(Kind::Memory).await;
    let kept = with(json!([{"days": "sat", "limit": "5Mbit/s"}]));
    assert_eq!(world.post("/v1/datacentres", json!({"name": "b", "spec": {}})).await.0, StatusCode::CREATED);
    assert_eq!(world.patch("/v1/datacentres/b", kept).await.0, StatusCode::OK);
    let before = world.get("/v1/datacentres/b").await;
    for (limit, word) in [
        (json!({"limit": "20MB/s"}), "`20MB/s` is not a rate"),
        (json!({"limit": 20}), "invalid type"),
        (json!({"limit": "10kbit/s"}), "lets nothing through"),
        (json!({"from": "25:00", "limit": "1Mbit/s"}), "`25:00` is no time of day"),
        (json!({"from": "09:00", "to": "09:00", "limit": "1Mbit/s"}), "begins and ends at 09:00"),
        (json!({"days": "mo", "limit": "1Mbit/s"}), "`mo` are no days"),
        (json!({"utc_offset": "CET", "limit": "1Mbit/s"}), "`CET` is no offset from UTC"),
        (json!({"form": "09:00", "limit": "1Mbit/s"}), "\"form\" is not a field here"),
        (json!({"days": "mon"}), "missing field `limit`"),
    ] {
        let (status, body) = world.patch("/v1/datacentres/b", with(json!([limit]))).await;
        assert!(status.is_client_error(), "{limit}: {status} {body}");
        assert!(body["message"].as_str().unwrap().contains(word), "{limit}: {body}");
    }
    let many = vec![json!({"limit": "1Mbit/s"}); 51];
    let (status, body) = world.patch("/v1/datacentres/b", with(json!(many))).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(body["message"].as_str().unwrap().contains("51 bandwidth limits; at most 50"), "{body}");
    assert_eq!(world.get("/v1/datacentres/b").await, before);
    world.stop().await;
}
