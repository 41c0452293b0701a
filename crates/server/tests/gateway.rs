//! The agents' side, driven by an agent that is only its wire: join, assignments, reports, strays, streams.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod world;

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use world::agent::{decide, join, report};
use world::{Kind, World, client, eventually};

async fn link(world: &World, host: &str) -> Value {
    world.get(&format!("/v1/hosts/{host}")).await["report"]["link"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_works_once_for_its_host_and_its_certificate_ends_with_the_host() {
    let world = World::new(Kind::Memory).await;
    let agent = join(&world, &world.join_token, "a1").await.unwrap();
    let (status, body) = join(&world, &world.join_token, "a2").await.err().unwrap();
    assert_eq!((status, &body["code"]), (StatusCode::FORBIDDEN, &json!("forbidden")));
    eventually("the event", async || {
        let events = world.get("/v1/events?object=host/a1").await;
        events.to_string().contains("join-token-reused").then_some(())
    })
    .await;
    let (_, bound) = world.post("/v1/host-tokens", json!({"host": "a2"})).await;
    let bound = bound["token"].as_str().unwrap().to_owned();
    assert_eq!(join(&world, &bound, "a3").await.err().unwrap().0, StatusCode::FORBIDDEN);
    join(&world, &bound, "a2").await.unwrap();
    let (_, free) = world.post("/v1/host-tokens", json!({})).await;
    let free = free["token"].as_str().unwrap().to_owned();
    let (status, body) = join(&world, &free, "a1").await.err().unwrap();
    assert_eq!((status, &body["code"]), (StatusCode::CONFLICT, &json!("already-exists")));

    // Without a certificate, with another CA's, and after the host was deleted.
    let status = world.http.get(world.url("/agent/v1/assignment")).send().await.unwrap().status();
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let other = World::new(Kind::Memory).await;
    let stranger = join(&other, &other.join_token, "a1").await.unwrap();
    let forged = client(&world.ca, Some((&stranger.answer.certificate, &stranger.key)), true);
    assert!(forged.get(world.url("/agent/v1/assignment")).send().await.is_err());
    assert_eq!(agent.report(json!([agent.host()])).await, StatusCode::NO_CONTENT);
    assert_eq!(world.delete(&format!("/v1/hosts/{}", agent.name)).await.0, StatusCode::OK);
    assert_eq!(agent.report(json!([agent.host()])).await, StatusCode::FORBIDDEN);
    // The agent's certificate is no token for the API.
    assert_eq!(agent.http.get(world.url("/v1/vms")).send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    other.stop().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_gets_its_assignment_and_its_reports_become_rows() {
    let world = World::new(Kind::Sqlite).await;
    let a1 = join(&world, &world.join_token, "a1").await.unwrap();
    let (_, token) = world.post("/v1/host-tokens", json!({})).await;
    let a2 = join(&world, token["token"].as_str().unwrap(), "a2").await.unwrap();
    let mut lines = a1.stream().await;
    assert_eq!(lines.next().await.unwrap()["type"], "assignment");
    assert_eq!(a1.report(json!([a1.host(), a1.inventory(&[])])).await, StatusCode::NO_CONTENT);
    assert_eq!(link(&world, "a1").await, "connected");

    let vm = world.make_vm("web").await["object"].clone();
    let uid = vm["meta"]["uid"].as_str().unwrap().to_owned();
    decide(&world, "web", "a1", 1).await;
    let has_vm =
        |line: &Value| line["vms"].as_array().is_some_and(|vms| vms.iter().any(|vm| vm["name"] == "web"));
    let line = lines.until(has_vm).await;
    assert_eq!((&line["vms"][0]["role"]["role"], &line["vms"][0]["epoch"]), (&json!("owner"), &json!(1)));

    let running = json!({"state": "running"});
    let seen = json!({"type": "vm", "name": "web", "uid": uid, "report": report(1, &running)});
    assert_eq!(a1.report(json!([seen])).await, StatusCode::NO_CONTENT);
    assert_eq!(world.get("/v1/vms/web").await["status"]["state"], "running");
    let revision = world.store.revision().await.unwrap();
    assert_eq!(a1.report(json!([seen])).await, StatusCode::NO_CONTENT);
    assert_eq!(world.store.revision().await.unwrap(), revision, "an unchanged row was written again");

    // Another host writes a row of its own, never one of a1's.
    let claim =
        json!({"type": "vm", "name": "web", "uid": uid, "report": report(9, &json!({"state": "incoming"}))});
    assert_eq!(a2.report(json!([a2.host(), claim])).await, StatusCode::NO_CONTENT);
    let reports = world.get("/v1/vms/web").await["reports"].clone();
    assert_eq!((&reports["a1"]["epoch"], &reports["a2"]["epoch"]), (&json!(1), &json!(9)));
    // A complete inventory without the VM takes the row away; an incomplete one does not.
    let partial = json!({"type": "inventory", "complete": false, "vms": [], "volumes": []});
    assert_eq!(a2.report(json!([partial])).await, StatusCode::NO_CONTENT);
    assert!(world.get("/v1/vms/web").await["reports"]["a2"].is_object());
    assert_eq!(a2.report(json!([a2.inventory(&[])])).await, StatusCode::NO_CONTENT);
    assert!(world.get("/v1/vms/web").await["reports"]["a2"].is_null());

    // Measurements are shown and not stored.
    let revision = world.store.revision().await.unwrap();
    let sample = json!({"type": "samples", "vms": {"web": {"used": "100MiB", "written": [{"window": "1s", "bytes": "1MiB"}], "cpu_milli": 10}},
        "host": {"cpu_milli": 700, "memory_used": "1GiB", "pool_free": {}}});
    assert_eq!(
        a1.report(json!([sample, {"type": "of-a-newer-agent", "x": 1}])).await,
        StatusCode::NO_CONTENT
    );
    assert_eq!(world.get("/v1/hosts/a1").await["status"]["cpu_milli"], 700);
    assert_eq!(world.store.revision().await.unwrap(), revision);
    assert_eq!(a1.report(json!({"no": "array"})).await, StatusCode::BAD_REQUEST);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_move_is_stored_for_the_source_and_shown_to_nobody() {
    let world = World::new(Kind::Memory).await;
    let agent = join(&world, &world.join_token, "a1").await.unwrap();
    let vm = world.make_vm("web").await["object"].clone();
    let key = "0bad".repeat(16);
    let side = json!({"side": "listening", "at": "10.0.0.1:4000", "line": {"key": key, "channels": 2}});
    let mut told = report(2, &json!({"state": "incoming"}));
    told["migration"] = json!({"migration": "m", "side": side});
    let seen = json!({"type": "vm", "name": "web", "uid": vm["meta"]["uid"], "report": told});
    assert_eq!(agent.report(json!([agent.host(), seen])).await, StatusCode::NO_CONTENT);
    let row = world.store.get("vm/default/web/report/a1").await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&row.value).contains(&key));
    let shown = world.get("/v1/vms/web").await;
    let side = &shown["reports"]["a1"]["migration"]["side"];
    assert_eq!(*side, json!({"side": "listening", "at": "10.0.0.1:4000"}));
    let phase = json!({"phase": "copying", "listen": "10.0.0.1:4000", "line": {"key": key, "channels": 2}});
    let spec = json!({"meta": vm["meta"], "spec": {"vm": "web"}});
    let decision = json!({"phase": phase, "epoch": 1, "next_epoch": 2, "method": "straight",
        "started": "2026-01-01T00:00:00Z", "since": "2026-01-01T00:00:00Z"});
    let [spec, decision] = [spec, decision].map(|value| value.to_string().into_bytes());
    let txn = sterna_store::Txn::new().put("migration/default/web-1/spec", spec);
    world.store.commit(txn.put("migration/default/web-1/decision", decision)).await.unwrap();
    let shown = eventually("the migration", async || {
        let migrations = world.get("/v1/migrations").await;
        migrations.to_string().contains("straight").then_some(migrations)
    })
    .await;
    assert!(shown.to_string().contains("10.0.0.1:4000"));
    for everything in ["/v1/vms", "/v1/migrations", "/v1/events", "/v1/hosts"] {
        assert!(!world.get(everything).await.to_string().contains(&key), "{everything}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_never_ran_of_a_vm_that_nobody_knows_is_released_until_it_is_gone() {
    let world = World::new(Kind::Memory).await;
    let agent = join(&world, &world.join_token, "a1").await.unwrap();
    let mut lines = agent.stream().await;
    let uid = uuid::Uuid::now_v7();
    let stray = |state: Value| json!({"name": "ghost", "uid": uid, "report": report(4, &state)});
    let messages = json!([agent.host(), agent.inventory(&[stray(json!({"state": "incoming"}))])]);
    assert_eq!(agent.report(messages).await, StatusCode::NO_CONTENT);
    let listed = |line: &Value| line["vms"].as_array().is_some_and(|vms| !vms.is_empty());
    let line = lines.until(listed).await;
    assert_eq!(line["vms"][0], json!({"name": "ghost", "uid": uid, "epoch": 4, "role": {"role": "release"}}));
    assert!(world.store.get("vm/default/ghost/report/a1").await.unwrap().is_none());

    let mut gone = stray(json!({"state": "stopped", "exit": {"exit": "released"}}));
    gone["type"] = json!("vm");
    assert_eq!(agent.report(json!([gone])).await, StatusCode::NO_CONTENT);
    let line = lines.until(|line| line["type"] == "assignment").await;
    assert_eq!(line["vms"], json!([]));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_ran_and_that_the_store_does_not_know_is_held_until_a_person_accepts_the_store() {
    let world = World::new(Kind::Memory).await;
    let agent = join(&world, &world.join_token, "a1").await.unwrap();
    let mut lines = agent.stream().await;
    assert_eq!(lines.next().await.unwrap()["vms"], json!([]));
    let uid = uuid::Uuid::now_v7();
    let ghost = json!({"name": "ghost", "uid": uid, "report": report(4, &json!({"state": "running"}))});
    let loaded = json!({"migration": "m", "side": {"side": "loaded"}});
    let mut moving = report(7, &json!({"state": "incoming"}));
    moving["migration"] = loaded;
    let moving = json!({"name": "moving", "uid": uuid::Uuid::now_v7(), "report": moving});
    // Said again with every inventory, also over a new line: it stays held.
    for _ in 0..2 {
        let inventory = agent.inventory(&[ghost.clone(), moving.clone()]);
        assert_eq!(agent.report(json!([agent.host(), inventory])).await, StatusCode::NO_CONTENT);
    }
    let message = world.get("/v1/hosts/a1").await["status"]["message"].to_string();
    assert!(
        message.contains("2 VMs that the store does not know") && message.contains("accept-store"),
        "{message}"
    );
    eventually("the event", async || {
        let events = world.get("/v1/events?object=host/a1").await.to_string();
        events.contains("vm-held").then_some(())
    })
    .await;
    // Whatever is sent after that report does not release it: a VM that is decided later comes alone.
    world.make_vm("web").await;
    decide(&world, "web", "a1", 1).await;
    let line = lines.until(|line| line["vms"].as_array().is_some_and(|vms| !vms.is_empty())).await;
    assert_eq!((line["vms"].as_array().unwrap().len(), &line["vms"][0]["name"]), (1, &json!("web")));

    let (status, accepted) = world.post("/v1/server/accept-store", json!({})).await;
    assert_eq!(status, StatusCode::OK, "{accepted}");
    let released = accepted["released"].as_array().unwrap();
    assert!(
        released.len() == 2 && released.contains(&json!({"host": "a1", "vm": "ghost", "uid": uid})),
        "{accepted}"
    );
    let line = lines.until(|line| line["vms"].as_array().is_some_and(|vms| vms.len() == 3)).await;
    assert!(
        line["vms"]
            .as_array()
            .unwrap()
            .contains(&json!({"name": "ghost", "uid": uid, "epoch": 4, "role": {"role": "release"}}))
    );
    let (_, again) = world.post("/v1/server/accept-store", json!({})).await;
    assert_eq!(again["released"], json!([]));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_silent_seconds_after_its_stream_ended_and_not_before() {
    let world = World::new(Kind::Memory).await;
    let agent = join(&world, &world.join_token, "a1").await.unwrap();
    let lines = agent.stream().await;
    assert_eq!(agent.report(json!([agent.host(), agent.inventory(&[])])).await, StatusCode::NO_CONTENT);
    assert_eq!(link(&world, "a1").await, "connected");
    let end = std::time::Instant::now();
    drop(lines);
    eventually("silence", async || (link(&world, "a1").await == "silent").then_some(())).await;
    assert!(end.elapsed() >= Duration::from_millis(2900), "{:?}", end.elapsed());
    let _lines = agent.stream().await;
    assert_eq!(agent.report(json!([agent.inventory(&[])])).await, StatusCode::NO_CONTENT);
    assert_eq!(link(&world, "a1").await, "connected");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_joins_a_person_and_an_agent_and_its_ticket_works_once() {
    let world = World::new(Kind::Memory).await;
    let agent = join(&world, &world.join_token, "a1").await.unwrap();
    let mut lines = agent.stream().await;
    let vm = world.make_vm("web").await["object"].clone();
    decide(&world, "web", "a1", 1).await;
    let seen = json!({"type": "vm", "name": "web", "uid": vm["meta"]["uid"], "report": report(1, &json!({"state": "running"}))});
    assert_eq!(agent.report(json!([agent.host(), agent.inventory(&[]), seen])).await, StatusCode::NO_CONTENT);

    let upgrade = |http: &reqwest::Client, path: &str| {
        http.get(world.url(path)).header("connection", "upgrade").header("upgrade", "sterna-stream")
    };
    let person = upgrade(&client(&world.ca, None, false), "/v1/vms/web/console").bearer_auth(&world.token);
    let person = tokio::spawn(person.send());
    let order = lines.until(|line| line["type"] == "attach").await;
    let ticket = order["ticket"].as_str().unwrap().to_owned();
    let http = client(&agent.answer.ca, Some((&agent.answer.certificate, &agent.key)), false);
    let response = upgrade(&http, &format!("/agent/v1/attach/{ticket}")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut guest = response.upgrade().await.unwrap();
    let mut person = person.await.unwrap().unwrap().upgrade().await.unwrap();
    guest.write_all(b"login: ").await.unwrap();
    let mut buffer = [0; 7];
    person.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"login: ");
    person.write_all(b"root\n").await.unwrap();
    let mut buffer = [0; 5];
    guest.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"root\n");

    let again = upgrade(&http, &format!("/agent/v1/attach/{ticket}")).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::FORBIDDEN);
    let (status, _) = world.send(world.request(Method::GET, "/v1/vms/web/console")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    world.stop().await;
}

/// The store as a backup leaves it.
async fn restore(world: &World) -> uuid::Uuid {
    let row = world.store.get("store/main/spec").await.unwrap().unwrap();
    let mut main: Value = serde_json::from_slice(&row.value).unwrap();
    let incarnation = uuid::Uuid::now_v7();
    let time = "2026-01-01T00:00:00Z";
    main["spec"] =
        json!({"incarnation": incarnation, "restored": {"at": time, "taken": time, "revision": 1}});
    let txn = sterna_store::Txn::new().put("store/main/spec", main.to_string().into_bytes());
    world.store.commit(txn).await.unwrap();
    eventually("the mode", async || (world.get("/v1/server").await["mode"] == "recovering").then_some(()))
        .await;
    incarnation
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_store_tells_hosts_to_hold_and_waits_until_they_say_that_they_do() {
    let world = World::new(Kind::Memory).await;
    let a1 = join(&world, &world.join_token, "a1").await.unwrap();
    world.make_vm("web").await;
    decide(&world, "web", "a1", 1).await;
    let incarnation = restore(&world).await;
    let mut lines = a1.stream().await;
    let line = lines.next().await.unwrap();
    assert_eq!(line, json!({"type": "hold", "incarnation": incarnation}), "no order comes before");
    assert_eq!(a1.report(json!([a1.host(), a1.inventory(&[])])).await, StatusCode::NO_CONTENT);
    let server = world.get("/v1/server").await;
    assert_eq!(server["waits_for"], json!(["a1"]), "it may still have orders: {server}");

    let (status, refused) = world.post("/v1/server/recover", json!({"without": ["b9"]})).await;
    assert_eq!((status, &refused["code"]), (StatusCode::NOT_FOUND, &json!("not-found")));
    let mut held = a1.inventory(&[]);
    held["held"] = json!(uuid::Uuid::now_v7());
    assert_eq!(a1.report(json!([held])).await, StatusCode::NO_CONTENT);
    assert_eq!(world.get("/v1/server").await["waits_for"], json!(["a1"]), "of another life of the store");
    held["held"] = json!(incarnation);
    assert_eq!(a1.report(json!([held])).await, StatusCode::NO_CONTENT);
    let server = world.get("/v1/server").await;
    assert_eq!(server["waits_for"], json!([]), "{server}");
    let found = &server["findings"][0];
    assert_eq!((&found["vm"], &found["found"]), (&json!("web"), &json!("no host has anything of it")));
    let (status, refused) = world.post("/v1/server/recover", json!({"without": ["a1"]})).await;
    assert_eq!((status, &refused["code"]), (StatusCode::CONFLICT, &json!("wrong-state")), "{refused}");
    // Its word stays: what the agent says of itself does not take it back.
    assert_eq!(a1.report(json!([a1.host()])).await, StatusCode::NO_CONTENT);
    assert_eq!(world.get("/v1/server").await["waits_for"], json!([]));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_goes_on_without_a_host_when_a_person_says_so() {
    let world = World::new(Kind::Memory).await;
    let _a1 = join(&world, &world.join_token, "a1").await.unwrap();
    let (status, refused) = world.post("/v1/server/recover", json!({"without": ["a1"]})).await;
    assert_eq!((status, &refused["code"]), (StatusCode::CONFLICT, &json!("wrong-state")), "{refused}");
    restore(&world).await;
    let (status, server) = world.post("/v1/server/recover", json!({"without": ["a1"]})).await;
    assert_eq!(status, StatusCode::OK, "{server}");
    assert_eq!((&server["waits_for"], &server["without"]), (&json!([]), &json!(["a1"])));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_gave_up_is_given_up_for_the_next_server_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::at(dir, Kind::Sqlite).await;
    let agent = join(&world, &world.join_token, "a1").await.unwrap();
    let uid = uuid::Uuid::now_v7();
    let ghost = json!({"name": "ghost", "uid": uid, "report": report(4, &json!({"state": "running"}))});
    let inventory = json!([agent.host(), agent.inventory(&[ghost])]);
    assert_eq!(agent.report(inventory.clone()).await, StatusCode::NO_CONTENT);
    let (_, accepted) = world.post("/v1/server/accept-store", json!({})).await;
    assert_eq!(accepted["released"].as_array().unwrap().len(), 1, "{accepted}");
    let row = world.store.get("store/main/spec").await.unwrap().unwrap();
    let main: Value = serde_json::from_slice(&row.value).unwrap();
    assert_eq!(main["spec"]["released"], json!([uid]));
    // The same store, and a server that remembers nothing else.
    let world = world.again().await;
    let agent = agent.towards(&world);
    let mut lines = agent.stream().await;
    assert_eq!(agent.report(inventory).await, StatusCode::NO_CONTENT);
    let listed = |line: &Value| line["vms"].as_array().is_some_and(|vms| !vms.is_empty());
    let line = lines.until(listed).await;
    assert_eq!(line["vms"][0], json!({"name": "ghost", "uid": uid, "epoch": 4, "role": {"role": "release"}}));
    world.stop().await;
}
