//! Commands against a fake server: what they send, what they print, how they end.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod fake;

use fake::{FakeServer, meta, operation, sterna, vm};
use serde_json::json;

async fn world() -> (tempfile::TempDir, FakeServer) {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeServer::start(dir.path()).await;
    (dir, fake)
}

#[tokio::test]
async fn a_name_and_an_image_make_a_vm() {
    let (_dir, fake) = world().await;
    let goal = json!({"goal": "vm-power", "vm": "web", "request": 0});
    fake.answer("POST /v1/vms", 202, json!({"operation": operation(goal.clone(), "running", "waits")}));
    fake.answer("GET /v1/operations/op-1", 200, operation(goal, "succeeded", "running on host a1"));
    let ran = sterna(&fake, "vm create web --image tiny").await;
    assert_eq!((ran.code, ran.data.as_str()), (0, ""), "{ran:?}");
    assert_eq!(ran.talk, "vm web: running on host a1\n");
    let writes = fake.writes();
    assert_eq!(writes.len(), 1);
    assert_eq!(
        writes[0].body,
        json!({"name": "web", "spec": {"image": "tiny"}}),
        "defaults are the server's"
    );
}

#[tokio::test]
async fn not_waiting_returns_the_operation() {
    let (_dir, fake) = world().await;
    let goal = json!({"goal": "vm-power", "vm": "web", "request": 0});
    fake.answer("POST /v1/vms/web/start", 202, json!({"operation": operation(goal, "running", "waits")}));
    let ran = sterna(&fake, "vm start web --no-wait -o json").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let printed: serde_json::Value = serde_json::from_str(&ran.data).unwrap();
    assert_eq!(printed["meta"]["name"], "op-1");
    assert!(ran.talk.contains("sterna operation show op-1"), "{}", ran.talk);
    assert_eq!(fake.asked().len(), 1);
}

#[tokio::test]
async fn a_list_is_a_table_json_or_yaml() {
    let (_dir, fake) = world().await;
    fake.list("/v1/vms", json!([vm("web", "running"), vm("db", "stopped")]));
    let table = sterna(&fake, "vm list").await;
    assert_eq!(
        table.data,
        "NAME  STATE    HOST  CPUS  MEMORY   ADDRESS     MESSAGE\n\
         web   running  a1    1     256 MiB  10.100.0.7  -\n\
         db    stopped  a1    1     256 MiB  10.100.0.7  -\n"
    );
    let json: serde_json::Value = serde_json::from_str(&sterna(&fake, "vm list -o json").await.data).unwrap();
    assert_eq!(json[0]["status"]["state"], "running");
    assert!(sterna(&fake, "vm list -o yaml").await.data.contains("state: running"));
    sterna(&fake, "vm list -l tier=web --host a1").await;
    let last = fake.asked().pop().unwrap();
    assert_eq!(last.path, "/v1/vms?label=tier%3Dweb&host=a1");
}

#[tokio::test]
async fn pages_are_followed_to_the_end() {
    let (_dir, fake) = world().await;
    let page = |name, next| json!({"items": [vm(name, "running")], "next": next, "revision": 9});
    fake.answer("GET /v1/vms", 200, page("a", json!("a")));
    fake.answer("GET /v1/vms", 200, page("b", json!(null)));
    let ran = sterna(&fake, "vm list").await;
    assert_eq!(ran.data.lines().count(), 3);
    assert_eq!(fake.asked()[1].path, "/v1/vms?after=a");
}

#[tokio::test]
async fn what_is_lost_is_asked_for_first() {
    let (_dir, fake) = world().await;
    for line in ["vm delete web", "vm stop web --force", "vm reset web", "volume delete web-boot"] {
        let ran = sterna(&fake, line).await;
        assert_eq!(ran.code, 2, "{line}");
        assert!(ran.talk.contains("hint: add --yes"), "{line}: {}", ran.talk);
    }
    assert!(fake.writes().is_empty());
    let goal = json!({"goal": "vm-gone", "vm": "web"});
    fake.answer("DELETE /v1/vms/web", 202, json!({"operation": operation(goal.clone(), "running", "stops")}));
    fake.answer("GET /v1/operations/op-1", 200, operation(goal, "succeeded", "deleted"));
    let ran = sterna(&fake, "vm delete web --yes").await;
    assert_eq!((ran.code, ran.talk.as_str()), (0, "vm web: deleted\n"));
}

#[tokio::test]
async fn a_selector_takes_many_and_one_failure_stops_none() {
    let (_dir, fake) = world().await;
    fake.list("/v1/vms", json!([vm("a", "running"), vm("b", "running")]));
    let refusal = json!({"code": "wrong-state", "message": "vm a is being deleted", "hint": "wait"});
    fake.answer("POST /v1/vms/a/pause", 409, refusal);
    fake.answer("POST /v1/vms/b/pause", 200, vm("b", "paused"));
    let ran = sterna(&fake, "vm pause -l tier=web").await;
    assert_eq!(ran.code, 1);
    assert_eq!(ran.talk, "error: vm a is being deleted\nhint: wait\nvm b: paused\nerror: 1 of 2 failed\n");
    let nobody = sterna(&fake, "vm pause").await;
    assert_eq!(nobody.code, 2);
}

#[tokio::test]
async fn a_selector_that_matches_nothing_is_no_success() {
    let (_dir, fake) = world().await;
    fake.list("/v1/vms", json!([]));
    let ran = sterna(&fake, "vm stop -l tier=wbe").await;
    assert_eq!(ran.code, 1);
    assert!(ran.talk.contains("tier=wbe"), "{}", ran.talk);
}

#[tokio::test]
async fn exit_codes_tell_refused_failed_and_not_reachable_apart() {
    let (dir, fake) = world().await;
    fake.answer("GET /v1/vms/no", 404, json!({"code": "not-found", "message": "vm no does not exist"}));
    assert_eq!(sterna(&fake, "vm show no").await.code, 1);
    let goal = json!({"goal": "vm-power", "vm": "web", "request": 0});
    fake.answer("POST /v1/vms/web/start", 202, json!({"operation": operation(goal.clone(), "running", "")}));
    fake.answer("GET /v1/operations/op-1", 200, operation(goal, "failed", "no host has 1 TiB free"));
    let failed = sterna(&fake, "vm start web").await;
    assert_eq!(failed.code, 1);
    assert_eq!(failed.talk, "error: vm web: no host has 1 TiB free\nhint: `sterna vm why web` tells more\n");
    let nobody = "server = \"127.0.0.1:1\"\ntoken = \"t\"\nca = \"ca.pem\"\n";
    std::fs::write(dir.path().join("config.toml"), nobody).unwrap();
    let gone = sterna(&fake, "vm list").await;
    assert_eq!(gone.code, 4);
    assert!(gone.talk.contains("is the server running?"), "{}", gone.talk);
}

#[tokio::test]
async fn labels_are_changed_from_those_present_and_with_their_revision() {
    let (_dir, fake) = world().await;
    let mut web = vm("web", "running");
    web["meta"]["labels"] = json!({"tier": "web", "old": "1"});
    fake.answer("GET /v1/vms/web", 200, web.clone());
    let answer = json!({"object": web, "applied": ["labels"], "at_next_start": ["memory 256MiB -> 1GiB"]});
    fake.answer("PATCH /v1/vms/web", 200, answer);
    let ran = sterna(&fake, "vm set web --memory 1024MiB --set-label tier=db --set-label old-").await;
    assert_eq!(ran.talk, "vm web: applied: labels; at next start: memory 256MiB -> 1GiB\n");
    let sent = &fake.writes()[0].body;
    assert_eq!(*sent, json!({"revision": 4, "labels": {"tier": "db"}, "spec": {"memory": "1GiB"}}));
}

fn migration(phase: serde_json::Value) -> serde_json::Value {
    let mut decision = json!({"epoch": 1, "next_epoch": 2, "source": "a1", "target": "a2", "method": "direct",
        "started": "2026-11-22T12:00:00Z", "since": "2026-11-22T12:00:01Z",
        "outcome": {"total": "1100ms", "downtime": "35ms", "gap": "60ms", "bytes": "280MiB", "rounds": 3}});
    decision.as_object_mut().unwrap().extend(phase.as_object().unwrap().clone());
    json!({"kind": "migration", "meta": meta("m-1"), "revision": 6, "decision": decision,
        "spec": {"vm": "web", "to": "a2", "asked_by": "person", "forecast": {"total": "1200ms", "downtime": "40ms",
            "bytes": "300MiB", "verdict": "fits", "basis": "the last 60 s"}}})
}

#[tokio::test]
async fn the_end_of_a_move_shows_forecast_beside_measurement() {
    let (_dir, fake) = world().await;
    let goal = json!({"goal": "migration-ends", "migration": "m-1"});
    let begun = json!({"operation": operation(goal.clone(), "running", ""), "migration": "m-1"});
    fake.answer("POST /v1/vms/web/migrate", 202, begun);
    fake.answer("GET /v1/operations/op-1", 200, operation(goal, "succeeded", "moved to host a2"));
    fake.answer("GET /v1/migrations/m-1", 200, migration(json!({"phase": {"phase": "succeeded"}})));
    let ran = sterna(&fake, "vm migrate web --to a2 --max-downtime 300ms").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(fake.writes()[0].body, json!({"to": "a2", "max_downtime": "300ms"}));
    assert!(ran.talk.starts_with("vm web: expected: 1.2 s, pause 40 ms (fits)\n"), "{ran:?}");
    assert_eq!(
        ran.data,
        "vm web moved from host a1 to host a2 while it ran.\n\
         \x20                       FORECAST  MEASURED\n\
         duration                1.2 s     1.1 s\n\
         guest paused            40 ms     35 ms\n\
         bytes sent              300 MiB   280 MiB\n\
         passes over memory      -         3\n\
         silence on the network  -         60 ms\n"
    );
}

#[tokio::test]
async fn apply_creates_changes_and_shows_before_it_does() {
    let (dir, fake) = world().await;
    let file = dir.path().join("web.yaml");
    std::fs::write(
        &file,
        "kind: vm\nname: web\nspec: {cpus: 2, memory: 256MiB}\n---\nkind: datacentre\nname: north\nspec: {location: here}\n",
    )
    .unwrap();
    fake.answer("GET /v1/vms/web", 200, vm("web", "running"));
    let dry = sterna(&fake, &format!("apply --dry-run -f {}", file.display())).await;
    assert_eq!(
        dry.data,
        "datacentre north would be created\n  + spec.location: here\nvm web would be changed\n  ~ spec.cpus: 1 -> 2\n"
    );
    assert!(fake.writes().is_empty());
    let north =
        json!({"kind": "datacentre", "meta": meta("north"), "revision": 7, "spec": {"location": "here"}});
    fake.answer("POST /v1/datacentres", 201, north);
    fake.answer(
        "PATCH /v1/vms/web",
        200,
        json!({"object": vm("web", "running"), "at_next_start": ["cpus 1 -> 2"]}),
    );
    let ran = sterna(&fake, &format!("apply -f {}", file.display())).await;
    assert_eq!(
        (ran.code, ran.talk.as_str()),
        (0, "datacentre north: created\nvm web: changed; at next start: cpus 1 -> 2\n")
    );
    let writes = fake.writes();
    assert_eq!(writes[0].body, json!({"name": "north", "spec": {"location": "here"}}));
    assert_eq!(writes[1].body, json!({"revision": 4, "spec": {"cpus": 2, "memory": "256MiB"}}));
}

#[tokio::test]
async fn a_new_secret_is_data_and_what_is_said_about_it_is_not() {
    let (_dir, fake) = world().await;
    fake.answer(
        "POST /v1/host-tokens",
        201,
        json!({"token": "h:1/aa/bb", "expires": "2026-11-22T13:00:00Z"}),
    );
    let ran = sterna(&fake, "host token").await;
    assert_eq!(ran.data, "sterna agent join h:1/aa/bb\n");
    assert!(ran.talk.contains("works once"));
}

#[tokio::test]
async fn completions_know_every_noun() {
    let (_dir, fake) = world().await;
    for shell in ["bash", "zsh", "fish"] {
        let ran = sterna(&fake, &format!("completion {shell}")).await;
        assert!(ran.data.contains("migrate") && ran.data.contains("datacentre"), "{shell}");
    }
    assert!(fake.asked().is_empty());
}

fn recovering() -> serde_json::Value {
    json!({
        "version": "0.1.0", "incarnation": "018f2f6e-0000-7000-8000-000000000000", "mode": "recovering",
        "restored": {"at": "2026-11-29T10:00:00Z", "taken": "2026-11-29T09:00:00Z", "revision": 41},
        "waits_for": ["b1"], "without": [], "more": 0,
        "findings": [{"vm": "web", "stored": "to run, on host a1 under epoch 1",
            "found": "a process on host c1 under epoch 2", "done": "host c1 owns it"}],
        "unsettled": [{"vm": "db", "why": "host a1 is moving it (db-1), which began after the backup"}],
        "backup": {},
    })
}

#[tokio::test]
async fn a_recovery_shows_what_differs_and_what_it_waits_for() {
    let (_dir, fake) = world().await;
    fake.answer("GET /v1/server", 200, recovering());
    let ran = sterna(&fake, "server recover").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        ran.data,
        "VM   THE STORE SAID                    FOUND                               DONE\n\
         web  to run, on host a1 under epoch 1  a process on host c1 under epoch 2  host c1 owns it\n"
    );
    for part in ["revision 41", "waits for b1", "--without HOST", "vm db waits: host a1 is moving it"] {
        assert!(ran.talk.contains(part), "{part}: {}", ran.talk);
    }
    assert!(fake.writes().is_empty());
}

#[tokio::test]
async fn a_host_is_left_out_only_by_a_person_who_says_so() {
    let (_dir, fake) = world().await;
    fake.answer("POST /v1/server/recover", 200, recovering());
    let refused = sterna(&fake, "server recover --without b1,c1").await;
    assert!(refused.code != 0 && refused.talk.contains("not confirmed: go on without b1, c1"), "{refused:?}");
    assert!(fake.writes().is_empty());
    let ran = sterna(&fake, "server recover --without b1,c1 --yes -o json").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(fake.writes()[0].body, json!({"without": ["b1", "c1"]}));
}

#[tokio::test]
async fn alerts_are_listed_the_gravest_first_and_what_is_over_only_when_asked_for() {
    let (_dir, fake) = world().await;
    let alert = |name: &str, severity: &str, state: &str| {
        json!({"kind": "alert", "meta": meta(name), "revision": 3, "spec": {},
            "decision": {"rule": "host-unreachable", "severity": severity, "object": format!("host/{name}"),
                "text": "no word", "since": "2026-11-29T10:00:00Z"},
            "status": {"state": state}})
    };
    fake.list(
        "/v1/alerts",
        json!([
            alert("a", "warning", "firing"),
            alert("b", "critical", "acknowledged"),
            alert("c", "critical", "resolved")
        ]),
    );
    let names = |data: &str| {
        data.lines()
            .skip(1)
            .map(|line| line.split_whitespace().next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&sterna(&fake, "alert list").await.data), ["b", "a"]);
    assert_eq!(names(&sterna(&fake, "alert list --all").await.data), ["b", "c", "a"]);
    fake.answer("POST /v1/alerts/a/silence", 200, alert("a", "warning", "silenced"));
    let ran = sterna(&fake, "alert silence a --for 30m").await;
    assert_eq!((ran.code, ran.talk.as_str()), (0, "alert a: silenced\n"));
    assert_eq!(fake.writes()[0].body, json!({"for": "30m"}));
}
