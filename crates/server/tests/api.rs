//! The API as people use it: who may, what is there, what changes, what is refused when it changed meanwhile.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod world;

use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sterna_store::Txn;
use world::{Kind, World, eventually};

#[test]
fn the_document_is_the_golden_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    world::golden(&path, &sterna_server::openapi::document());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_a_token_gets_in_and_a_viewer_changes_nothing() {
    let world = World::new(Kind::Memory).await;
    for token in ["", "0".repeat(64).as_str(), &world.token[..63]] {
        let (status, body) = world.send(world.http.get(world.url("/v1/vms")).bearer_auth(token)).await;
        assert_eq!((status, &body["code"]), (StatusCode::UNAUTHORIZED, &json!("unauthenticated")));
    }
    let (status, body) = world.post("/v1/tokens", json!({"name": "eve", "role": "viewer"})).await;
    assert_eq!(status, StatusCode::CREATED);
    let secret = body["secret"].as_str().unwrap().to_owned();
    let as_viewer = |method, path: &str| world.http.request(method, world.url(path)).bearer_auth(&secret);
    let (status, _) = world.send(as_viewer(Method::GET, "/v1/hosts")).await;
    assert_eq!(status, StatusCode::OK);
    let (status, _) = world.send(as_viewer(Method::POST, "/v1/host-tokens").json(&json!({}))).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (status, _) = world.send(as_viewer(Method::GET, "/v1/audit")).await;
    assert_eq!(status, StatusCode::FORBIDDEN);

    world.make_vm("web").await;
    let data = json!({"spec": {"cloud_init": {"user_data": "password: secret"}}});
    assert_eq!(world.patch("/v1/vms/web", data).await.0, StatusCode::OK);
    let (_, seen) = world.send(as_viewer(Method::GET, "/v1/vms/web")).await;
    assert!(!seen.to_string().contains("secret"), "{seen}");
    assert!(!world.get("/v1/tokens").await.to_string().contains("hash"));

    // The record has what was refused and what was done, and no secret.
    let rows = eventually("the record", || async {
        let rows = world.get("/v1/audit?limit=100").await["items"].as_array().unwrap().clone();
        let has = |outcome: &str| rows.iter().any(|row| row["outcome"] == outcome);
        (has("403 forbidden") && has("accepted") && has("201") && has("200")).then_some(rows)
    })
    .await;
    assert!(rows.iter().all(|row| !row.to_string().contains("secret")));
    assert!(rows.iter().any(|row| row["actor"] == "eve"));

    let (status, body) = world.delete("/v1/tokens/admin").await;
    assert_eq!((status, &body["code"]), (StatusCode::CONFLICT, &json!("wrong-state")));
    assert_eq!(world.delete("/v1/tokens/eve").await.0, StatusCode::OK);
    let (status, _) = world.send(as_viewer(Method::GET, "/v1/hosts")).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_made_listed_changed_watched_and_deleted() {
    for kind in [Kind::Memory, Kind::Sqlite] {
        let world = World::new(kind).await;
        let from = world.get("/v1/vms").await["revision"].as_u64().unwrap();
        let watch =
            world.request(Method::GET, &format!("/v1/watch?kind=vm&from={from}")).send().await.unwrap();
        assert_eq!(watch.status(), StatusCode::OK);
        let mut lines = watch.bytes_stream();

        let made = world.make_vm("web").await;
        assert_eq!(made["object"]["spec"]["volumes"], json!(["web-boot"]));
        assert_eq!(made["object"]["spec"]["nics"][0]["network"], "default");
        assert_eq!(made["operation"]["status"]["state"], "running");
        let volume = world.get("/v1/volumes/web-boot").await;
        assert_eq!((&volume["spec"]["image"], &volume["spec"]["vm"]), (&json!("tiny"), &json!("web")));

        let mut text = String::new();
        while !text.contains("\"name\":\"web\"") {
            let chunk =
                tokio::time::timeout(Duration::from_secs(10), lines.next()).await.unwrap().unwrap().unwrap();
            text.push_str(&String::from_utf8_lossy(&chunk));
        }
        assert!(text.contains("event: change"), "{text}");

        let (status, again) = world.post("/v1/vms", json!({"name": "web", "spec": {"image": "tiny"}})).await;
        assert_eq!((status, &again["code"]), (StatusCode::CONFLICT, &json!("already-exists")));

        let revision = made["object"]["revision"].as_u64().unwrap();
        let change = json!({"revision": revision, "labels": {"tier": "web"}, "spec": {"cpus": 2}});
        let (status, changed) = world.patch("/v1/vms/web", change.clone()).await;
        assert_eq!(status, StatusCode::OK, "{changed}");
        assert_eq!(changed["applied"], json!(["cpus 1 -> 2", "labels changed"]));
        let (status, stale) = world.patch("/v1/vms/web", change).await;
        assert_eq!((status, &stale["code"]), (StatusCode::CONFLICT, &json!("conflict")));
        let request = world
            .request(Method::PATCH, "/v1/vms/web")
            .header("If-Match", "\"1\"")
            .json(&json!({"notes": "x"}));
        assert_eq!(world.send(request).await.0, StatusCode::CONFLICT);

        let find = async |query: &str| {
            let page = world.get(&format!("/v1/vms?{query}")).await;
            page["items"].as_array().unwrap().len()
        };
        assert_eq!(find("label=tier=web").await, 1);
        assert_eq!(find("label=tier=db").await, 0);
        assert_eq!(find("state=placing").await, 1);
        assert_eq!(find("host=a1").await, 0);

        let (status, _) = world.post("/v1/vms/web/pause", json!({})).await;
        assert_eq!(status, StatusCode::CONFLICT);
        let (status, refused) = world.post("/v1/vms/web/migrate", json!({})).await;
        assert_eq!((status, &refused["code"]), (StatusCode::CONFLICT, &json!("unmet")));
        let outlook = world.get("/v1/vms/web/forecast").await;
        assert!(!outlook["reasons"].as_array().unwrap().is_empty());
        assert_eq!(world.get("/v1/vms/web/why").await["status"]["state"], "placing");
        assert_eq!(world.get("/v1/vms/web/ledger").await["items"], json!([]));

        let (status, body) = world.post("/v1/vms/web/nics", json!({"network": "default"})).await;
        assert_eq!((status, body["object"]["spec"]["nics"].as_array().unwrap().len()), (StatusCode::OK, 2));
        assert_eq!(world.delete("/v1/vms/web/nics/1").await.0, StatusCode::OK);
        assert_eq!(world.delete("/v1/vms/web/nics/9").await.0, StatusCode::NOT_FOUND);
        assert_eq!(world.delete("/v1/networks/default").await.0, StatusCode::CONFLICT);
        assert_eq!(world.delete("/v1/images/tiny").await.0, StatusCode::CONFLICT);
        assert_eq!(world.delete("/v1/volumes/web-boot").await.0, StatusCode::CONFLICT);

        let (status, deleted) = world.delete("/v1/vms/web").await;
        assert_eq!(status, StatusCode::ACCEPTED);
        assert_eq!(world.get("/v1/vms/web").await["status"]["state"], "deleting");
        let operation = deleted["operation"]["meta"]["name"].as_str().unwrap();
        let begin = Instant::now();
        assert_eq!(
            world.get(&format!("/v1/operations/{operation}?wait=200ms")).await["status"]["state"],
            "running"
        );
        assert!(begin.elapsed() >= Duration::from_millis(200));
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_change_at_once_none_is_lost() {
    let world = std::sync::Arc::new(World::new(Kind::Sqlite).await);
    world.make_vm("web").await;
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let world = std::sync::Arc::clone(&world);
            tokio::spawn(async move { world.post("/v1/vms/web/stop", json!({})).await.0 })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), StatusCode::ACCEPTED);
    }
    assert_eq!(world.get("/v1/vms/web").await["spec"]["power_request"], 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_vms_are_listed_quickly() {
    let world = World::new(Kind::Sqlite).await;
    world.make_vm("web").await;
    let row = world.store.get("vm/default/web/spec").await.unwrap().unwrap();
    let object: Value = serde_json::from_slice(&row.value).unwrap();
    for slice in (0..1000).collect::<Vec<_>>().chunks(250) {
        let mut txn = Txn::new();
        for n in slice {
            let mut object = object.clone();
            object["meta"]["name"] = json!(format!("vm-{n}"));
            object["spec"]["power"] = json!("stopped");
            txn = txn.put(format!("vm/default/vm-{n}/spec"), object.to_string().into_bytes());
        }
        world.store.commit(txn).await.unwrap();
    }
    eventually("all VMs", async || {
        let page = world.get("/v1/vms?limit=1000&state=stopped").await;
        (page["items"].as_array().unwrap().len() == 1000).then_some(())
    })
    .await;
    let mut times = Vec::new();
    for _ in 0..7 {
        let begin = Instant::now();
        let bytes =
            world.request(Method::GET, "/v1/vms?limit=1000").send().await.unwrap().bytes().await.unwrap();
        times.push(begin.elapsed());
        assert!(bytes.len() > 100_000);
    }
    times.sort();
    println!("1,000 VMs listed in {:?} (median of 7, whole answer read)", times[3]);
    // Generous: this is an unoptimised build beside other work. The bar of 50 ms is the benchmark's.
    assert!(times[0] < Duration::from_millis(1500), "{times:?}");

    let (mut after, mut seen) = (String::new(), 0);
    loop {
        let page = world.get(&format!("/v1/vms?limit=300{after}")).await;
        seen += page["items"].as_array().unwrap().len();
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(seen, 1001);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_objects_are_made_changed_and_guarded() {
    let world = World::new(Kind::Memory).await;
    let (status, _) =
        world.post("/v1/datacentres", json!({"name": "b", "spec": {"location": "Berlin"}})).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(world.get("/v1/clusters/b").await["spec"]["datacentre"], "b");
    let nfs = json!({"name": "nfs", "spec": {"kind": {"type": "shared-dir", "path": "/srv/nfs"}, "datacentre": "b"}});
    assert_eq!(world.post("/v1/pools", nfs).await.0, StatusCode::CREATED);
    let (status, body) = world.delete("/v1/datacentres/b").await;
    assert_eq!((status, &body["code"]), (StatusCode::CONFLICT, &json!("in-use")));
    let (status, body) = world.patch("/v1/pools/nfs", json!({"spec": {"datacentre": null}})).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body["spec"].get("datacentre").is_none(), "{body}");
    assert_eq!(world.delete("/v1/datacentres/b").await.0, StatusCode::OK);
    assert_eq!(world.send(world.request(Method::GET, "/v1/clusters/b")).await.0, StatusCode::NOT_FOUND);

    let lan = json!({"name": "lan", "spec": {"kind": {"type": "bridge", "bridge": "br0", "vlan": 7}}});
    assert_eq!(world.post("/v1/networks", lan).await.0, StatusCode::CREATED);
    let (status, body) = world.patch("/v1/networks/lan", json!({"spec": {"default": true}})).await;
    assert_eq!((status, &body["code"]), (StatusCode::CONFLICT, &json!("wrong-state")), "{body}");

    let (status, _) = world.post("/v1/volumes", json!({"name": "data", "spec": {"size": "10GiB"}})).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(
        world.post("/v1/volumes/data/grow", json!({"size": "5GiB"})).await.0,
        StatusCode::UNPROCESSABLE_ENTITY
    );
    assert_eq!(world.post("/v1/volumes/data/grow", json!({"size": "20GiB"})).await.0, StatusCode::ACCEPTED);
    assert_eq!(world.get("/v1/volumes/data").await["spec"]["size"], "20GiB");
    assert_eq!(world.delete("/v1/volumes/data").await.0, StatusCode::ACCEPTED);
    for path in [
        "clusters",
        "datacentres",
        "pools",
        "networks",
        "hosts",
        "images",
        "migrations",
        "operations",
        "events",
        "tokens",
    ] {
        world.get(&format!("/v1/{path}")).await;
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_the_document_are_open_to_everyone_and_carry_a_strict_policy() {
    let world = World::new(Kind::Memory).await;
    let page = world.http.get(world.url("/")).send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    assert!(page.text().await.unwrap().contains("<title>Sterna</title>"));
    let document: Value =
        world.http.get(world.url("/v1/openapi.json")).send().await.unwrap().json().await.unwrap();
    assert_eq!((&document["info"]["title"], &document["openapi"]), (&json!("Sterna"), &json!("3.1.0")));
    let health: Value = world.http.get(world.url("/healthz")).send().await.unwrap().json().await.unwrap();
    assert_eq!(health["status"], "ok");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_events_are_forgotten_and_the_record_is_not() {
    let dir = tempfile::tempdir().unwrap();
    {
        let history = sterna_store::History::open(&dir.path().join("history.db")).unwrap();
        let event = |time_ms, object: &str| sterna_store::history::Event {
            time_ms,
            kind: "placed".into(),
            object_kind: "vm".into(),
            object: object.into(),
            message: "x".into(),
            why: None,
            operation: None,
        };
        let day = 86_400_000;
        let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
        history.append_event(event(now - 91 * day, "old")).await.unwrap();
        history.append_event(event(now - 89 * day, "young")).await.unwrap();
    }
    let world = World::at(dir, Kind::Memory).await;
    let left = eventually("forgetting", async || {
        let events = world.get("/v1/events").await.to_string();
        (!events.contains("\"old\"")).then_some(events)
    })
    .await;
    assert!(left.contains("\"young\""), "{left}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_waited_for_until_the_host_says_so() {
    use world::agent::{decide, join, report};
    let world = World::new(Kind::Memory).await;
    let agent = join(&world, &world.join_token, "a1").await.unwrap();
    let uid = world.make_vm("web").await["object"]["meta"]["uid"].clone();
    decide(&world, "web", "a1", 1).await;
    assert_eq!(agent.report(json!([agent.host(), agent.inventory(&[])])).await, StatusCode::NO_CONTENT);
    let says = async |state: Value| {
        let seen = json!({"type": "vm", "name": "web", "uid": uid, "report": report(1, &state)});
        assert_eq!(agent.report(json!([seen])).await, StatusCode::NO_CONTENT);
    };
    says(json!({"state": "running"})).await;
    let stands = json!({"state": "paused", "why": "as asked"});
    for (verb, state) in [("pause", stands), ("resume", json!({"state": "running"}))] {
        let (status, asked) = world.post(&format!("/v1/vms/web/{verb}"), json!({})).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{asked}");
        assert_eq!(asked["operation"]["status"]["state"], "running", "{verb}: {asked}");
        says(state).await;
        let path = format!("/v1/operations/{}", asked["operation"]["meta"]["name"].as_str().unwrap());
        assert_eq!(world.get(&path).await["status"]["state"], "succeeded", "{verb}");
    }
    world.stop().await;
}
