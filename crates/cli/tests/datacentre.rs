//! `sterna datacentre` and what moves may take of a line, against a server that only remembers what it was told.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod fake;

use fake::{FakeServer, meta, sterna};
use serde_json::{Value, json};

async fn world() -> (tempfile::TempDir, FakeServer) {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeServer::start(dir.path()).await;
    (dir, fake)
}

fn north(bandwidth: &Value) -> Value {
    let spec = json!({"location": "here", "bandwidth": bandwidth});
    json!({"kind": "datacentre", "meta": meta("north"), "revision": 7, "spec": spec})
}

#[tokio::test]
async fn limits_are_given_shown_replaced_and_taken_away() {
    let (_dir, fake) = world().await;
    let always = json!([{"from": "00:00", "to": "24:00", "limit": "20Mbit/s"}]);
    fake.answer("POST /v1/datacentres", 201, north(&always));
    let made = sterna(&fake, "datacentre create north --location here --bandwidth 20Mbit/s").await;
    assert_eq!((made.code, made.talk.as_str()), (0, "datacentre north: created\n"));
    fake.answer("GET /v1/datacentres", 200, json!({"items": [north(&always)]}));
    let listed = sterna(&fake, "datacentre list").await;
    assert_eq!(listed.data, "NAME   LOCATION  BANDWIDTH\nnorth  here      00:00-24:00 20Mbit/s\n");
    fake.answer("PATCH /v1/datacentres/north", 200, north(&json!([])));
    let set = sterna(&fake, "datacentre set north --bandwidth 1Mbit --bandwidth 2Mbit/s").await;
    assert_eq!((set.code, set.talk.as_str()), (0, "datacentre north: changed\n"));
    assert_eq!(sterna(&fake, "datacentre set north --no-bandwidth").await.code, 0);
    let writes = fake.writes();
    assert_eq!(writes[0].body["spec"], json!({"location": "here", "bandwidth": always}));
    let limit = |rate: &str| json!({"from": "00:00", "to": "24:00", "limit": rate});
    assert_eq!(writes[1].body, json!({"spec": {"bandwidth": [limit("1Mbit/s"), limit("2Mbit/s")]}}));
    assert_eq!(writes[2].body, json!({"spec": {"bandwidth": []}}));
    let nothing = sterna(&fake, "datacentre set north").await;
    assert_ne!(nothing.code, 0);
    assert!(nothing.talk.contains("nothing to change"), "{}", nothing.talk);
}

#[tokio::test]
async fn a_file_says_limits_as_people_write_times() {
    let (dir, fake) = world().await;
    let file = dir.path().join("north.yaml");
    let limit = "{days: mon-fri, from: 08:00, to: 18:00, utc_offset: +01:00, limit: 20Mbit/s}";
    std::fs::write(&file, format!("kind: datacentre\nname: north\nspec: {{bandwidth: [{limit}]}}\n"))
        .unwrap();
    fake.answer("POST /v1/datacentres", 201, north(&json!([])));
    let ran = sterna(&fake, &format!("apply -f {}", file.display())).await;
    assert_eq!(ran.code, 0, "{}", ran.talk);
    let office = json!({"days": "mon-fri", "from": "08:00", "to": "18:00", "utc_offset": "+01:00", "limit": "20Mbit/s"});
    assert_eq!(fake.writes()[0].body["spec"], json!({"bandwidth": [office]}));
}
