//! What a move would take, asked for by itself and as a condition of the order.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod world;

use reqwest::StatusCode;
use serde_json::{Value, json};
use sterna_store::Txn;
use world::agent::{Agent, Lines, decide, join, report};
use world::{Kind, World, eventually};

/// `web` runs on a1, and a2 could have it. The streams keep both connected.
async fn running(world: &World) -> (Agent, [Lines; 2]) {
    let one = join(world, &world.join_token, "a1").await.unwrap();
    let (_, token) = world.post("/v1/host-tokens", json!({})).await;
    let two = join(world, token["token"].as_str().unwrap(), "a2").await.unwrap();
    let uid = world.make_vm("web").await["object"]["meta"]["uid"].clone();
    let streams = [one.stream().await, two.stream().await];
    decide(world, "web", "a1", 1).await;
    let seen =
        json!({"type": "vm", "name": "web", "uid": uid, "report": report(1, &json!({"state": "running"}))});
    assert_eq!(two.report(json!([two.host(), two.inventory(&[])])).await, StatusCode::NO_CONTENT);
    assert_eq!(one.report(json!([one.host(), one.inventory(&[]), seen])).await, StatusCode::NO_CONTENT);
    eventually("a2 may have it", || async {
        let outlook = world.get("/v1/vms/web/forecast?to=a2").await;
        (outlook["reasons"] == json!([])).then_some(())
    })
    .await;
    (one, streams)
}

/// Memory in use, and what the guest writes in 1, 3 and 10 seconds, in MiB.
async fn measured(agent: &Agent, used: u64, written: [u64; 3]) {
    let written: Vec<_> = ["1s", "3s", "10s"]
        .iter()
        .zip(written)
        .map(|(window, mib)| json!({"window": window, "bytes": format!("{mib}MiB")}))
        .collect();
    let sample = json!({"used": format!("{used}MiB"), "written": written, "cpu_milli": 0});
    let samples = json!([{"type": "samples", "vms": {"web": sample}}]);
    assert_eq!(agent.report(samples).await, StatusCode::NO_CONTENT);
}

/// A move of the past from a1 to a2, ended, with what it was expected to take and what it took.
async fn moved(world: &World, name: &str) {
    let spec = json!({"meta": {"name": name, "uid": "00000000-0000-4000-8000-000000000001",
            "created": "2026-01-01T00:00:00Z"},
        "spec": {"vm": "web", "forecast": {"total": "4s", "downtime": "40ms", "bytes": "100MiB", "verdict": "fits",
            "basis": "test"}}});
    let decision = json!({"phase": {"phase": "succeeded"}, "epoch": 1, "next_epoch": 2, "source": "a1", "target": "a2",
        "method": "test", "started": "2026-01-01T00:00:00Z", "since": "2026-01-01T00:00:10Z",
        "outcome": {"total": "10500ms", "downtime": "25ms", "bytes": 200_000_000, "rounds": 3}});
    let txn = Txn::new()
        .put(format!("migration/default/{name}/spec"), spec.to_string().into_bytes())
        .put(format!("migration/default/{name}/decision"), decision.to_string().into_bytes());
    world.store.commit(txn).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forecast_rests_on_what_was_measured_and_says_so() {
    let world = World::new(Kind::Memory).await;
    let (agent, _streams) = running(&world).await;
    let forecast = async || world.get("/v1/vms/web/forecast?to=a2").await["forecast"].clone();
    let guess = forecast().await;
    assert_eq!(guess["confidence"], "low");
    let basis = guess["basis"].as_str().unwrap();
    assert!(basis.contains("256 MiB in use, the guest's writes have not been measured yet"), "{basis}");
    assert!(basis.contains("1 Gbit/s assumed"), "{basis}");

    measured(&agent, 100, [1, 3, 10]).await;
    moved(&world, "web-1").await;
    let known = eventually("the move that was measured", || async {
        let known = forecast().await;
        (known["confidence"] == "good").then_some(known)
    })
    .await;
    let basis = known["basis"].as_str().unwrap();
    // 200 MB in ten seconds.
    assert!(basis.contains("1 MiB in 1s, 3 MiB in 3s, 10 MiB in 10s; 20.0 MB/s"), "{basis}");
    assert_eq!(known["verdict"], "fits");
    let past = world.get("/v1/vms/web/forecast").await["past"].clone();
    let expected = json!([{"migration": "web-1", "total_expected": "4s", "total": "10500ms",
        "downtime_expected": "40ms", "downtime": "25ms"}]);
    assert_eq!(past, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_writes_too_much_is_told_how_long_a_pause_would_do() {
    let world = World::new(Kind::Memory).await;
    let (agent, _streams) = running(&world).await;
    moved(&world, "web-1").await;
    measured(&agent, 1024, [60, 60, 60]).await;
    let forecast = eventually("the measurement", || async {
        let forecast = world.get("/v1/vms/web/forecast?to=a2&max_downtime=10ms").await["forecast"].clone();
        (forecast["verdict"] == "needs-longer-pause").then_some(forecast)
    })
    .await;
    // 60 MiB at 20 MB/s.
    assert!(forecast["advice"].as_str().unwrap().starts_with("allow a pause of 3"), "{forecast}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_cannot_end_in_time_is_refused_and_one_that_can_keeps_its_time() {
    let world = World::new(Kind::Memory).await;
    let (_agent, _streams) = running(&world).await;
    let order =
        async |by: &str| world.post("/v1/vms/web/migrate", json!({"to": "a2", "finish_by": by})).await;
    for wrong in ["soon", "0s", "2020-01-01T00:00:00Z"] {
        let (status, refused) = order(wrong).await;
        assert_eq!(
            (status, &refused["code"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &json!("invalid")),
            "{refused}"
        );
        let asked = world.request(reqwest::Method::GET, &format!("/v1/vms/web/forecast?finish_by={wrong}"));
        assert!(world.send(asked).await.0.is_client_error());
    }
    let (status, refused) = order("100ms").await;
    assert_eq!((status, &refused["code"]), (StatusCode::CONFLICT, &json!("unmet")));
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("it would end ") && message.contains("expected to take "), "{message}");
    let outlook = world.get("/v1/vms/web/forecast?to=a2&finish_by=100ms").await;
    assert!(outlook["reasons"][0].as_str().unwrap().contains("it would end "), "{outlook}");
    assert_eq!(world.get("/v1/migrations").await["items"], json!([]), "nothing has begun");

    let (status, ordered) = order("2h").await;
    assert_eq!(status, StatusCode::ACCEPTED, "{ordered}");
    let path = format!("/v1/migrations/{}", ordered["migration"].as_str().unwrap());
    let by: Value = world.get(&path).await["spec"]["finish_by"].clone();
    let by: sterna_base::clock::Timestamp = by.as_str().unwrap().parse().unwrap();
    let created: sterna_base::clock::Timestamp =
        world.get(&path).await["meta"]["created"].as_str().unwrap().parse().unwrap();
    assert_eq!(by.since(created).as_secs(), 7200);
}
