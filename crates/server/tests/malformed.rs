//! Bad input: each kind is refused with a precise 4xx, changes nothing, and the server lives on.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod world;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use world::{Kind, World};

/// What is sent, and the status and code that it must get.
struct Case {
    what: &'static str,
    method: Method,
    path: String,
    content_type: &'static str,
    body: Vec<u8>,
    status: u16,
    code: &'static str,
}

const JSON: &str = "application/json";

fn post(what: &'static str, body: impl Into<Vec<u8>>, status: u16, code: &'static str) -> Case {
    Case {
        what,
        method: Method::POST,
        path: "/v1/vms".into(),
        content_type: JSON,
        body: body.into(),
        status,
        code,
    }
}

fn vm(what: &'static str, spec: Value, status: u16, code: &'static str) -> Case {
    post(what, json!({"name": "x", "spec": spec}).to_string(), status, code)
}

fn named(what: &'static str, name: &str) -> Case {
    post(what, json!({"name": name, "spec": {"image": "tiny"}}).to_string(), 422, "invalid")
}

fn to(path: impl Into<String>, case: Case) -> Case {
    Case { path: path.into(), ..case }
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn json_and_yaml() -> Vec<Case> {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    vec![
        post("no body", "", 400, "malformed"),
        post("broken JSON", r#"{"name": "x""#, 400, "malformed"),
        post("trailing garbage", r#"{"name": "x", "spec": {}} x"#, 400, "malformed"),
        post("duplicate field", r#"{"name": "x", "name": "y", "spec": {}}"#, 400, "malformed"),
        post("100,000 levels", deep, 400, "malformed"),
        post("NaN", r#"{"name": "x", "spec": {"cpus": NaN}}"#, 400, "malformed"),
        post("1e999", r#"{"name": "x", "spec": {"cpus": 1e999}}"#, 400, "malformed"),
        post("2^64", r#"{"name": "x", "spec": {"cpus": 18446744073709551616}}"#, 400, "malformed"),
        post(
            "2^63",
            r#"{"name": "x", "spec": {"image": "tiny", "cpus": 9223372036854775808}}"#,
            422,
            "invalid",
        ),
        post("UTF-16", utf16(r#"{"name": "x"}"#), 400, "malformed"),
        post("YAML with Norway", "name: no\nspec: {}", 400, "malformed"),
        post("an alias bomb", "a: &a [x,x]\nb: [*a,*a]", 400, "malformed"),
        post("an array", "[]", 400, "malformed"),
        post("2 MiB", format!(r#"{{"name": "x", "notes": "{}"}}"#, "a".repeat(2 << 20)), 413, "too-large"),
        Case { content_type: "text/plain", ..post("wrong content type", "{}", 415, "unsupported-media") },
        Case {
            content_type: "application/json; charset=utf-16",
            ..post("wrong charset", "{}", 415, "unsupported-media")
        },
        vm("a typing error", json!({"memroy": "1GiB"}), 422, "unknown-field"),
        vm("a bool where a number is", json!({"cpus": true}), 400, "malformed"),
        vm("no unit that exists", json!({"memory": "1GB!"}), 422, "invalid"),
    ]
}

fn names() -> Vec<Case> {
    let long = "x".repeat(10_000);
    let mut cases: Vec<Case> = [
        ("a path", "../../x"),
        ("a slash", "a/b"),
        ("an option", "-drive"),
        ("a comma", "a,file=/etc/passwd"),
        ("NUL", "a\0b"),
        ("a newline", "a\nb"),
        ("right-to-left override", "\u{202e}abc"),
        ("emoji", "\u{1f600}"),
        ("10 kB", long.as_str()),
        ("empty", ""),
        ("upper case", "Web"),
    ]
    .into_iter()
    .map(|(what, name)| named(what, name))
    .collect();
    let get = |path: &str, status, code| Case {
        method: Method::GET,
        ..to(path, post("a name in a path", "", status, code))
    };
    cases.extend([
        get("/v1/vms/..%2f..%2fetc%2fpasswd", 422, "invalid"),
        get("/v1/vms/%00", 422, "invalid"),
        get("/v1/vms/%ff%fe", 400, "malformed"),
        get("/v1/vms/absent", 404, "not-found"),
        get("/v1/vms?lable=a", 422, "unknown-field"),
        get("/v1/vms?limit=100000", 422, "invalid"),
        get("/v1/nothing", 404, "not-found"),
        Case {
            method: Method::PUT,
            ..to("/v1/vms", post("another method", "{}", 405, "method-not-allowed"))
        },
    ]);
    cases
}

fn values() -> Vec<Case> {
    let data = "x".repeat(300 * 1024);
    let bridge = |name: &str| {
        let body = json!({"name": "lan", "spec": {"kind": {"type": "bridge", "bridge": name}}}).to_string();
        to("/v1/networks", post("a bridge's name", body, 422, "invalid"))
    };
    let pool = |path: &str| {
        let body = json!({"name": "p", "spec": {"kind": {"type": "dir", "path": path}}}).to_string();
        to("/v1/pools", post("a pool's path", body, 422, "invalid"))
    };
    let shared = |path: &str| {
        let body = json!({"name": "p", "spec": {"kind": {"type": "shared-dir", "path": path}}}).to_string();
        to("/v1/pools", post("a shared pool's path", body, 422, "invalid"))
    };
    let image = |source: &str| {
        let body = json!({"name": "i", "spec": {"source": source}}).to_string();
        to("/v1/images", post("an image's source", body, 422, "invalid"))
    };
    let check = |what: &'static str, check: Value| {
        vm(what, json!({"image": "tiny", "checks": [check]}), 422, "invalid")
    };
    vec![
        check("no port", json!({"probe": {"type": "tcp", "port": 0}})),
        check("a port that is none", json!({"probe": {"type": "tcp", "port": 70_000}})),
        check("a probe that is none", json!({"probe": {"type": "icmp"}})),
        check(
            "a path with a request in it",
            json!({"probe": {"type": "http", "port": 80, "path": "/ HTTP/1.1\r\nX: y"}}),
        ),
        check("a relative path", json!({"probe": {"type": "http", "port": 80, "path": "live"}})),
        check("a status that is no class", json!({"probe": {"type": "http", "port": 80, "expect": "200"}})),
        check("no program", json!({"probe": {"type": "exec", "command": []}})),
        check("a program without a path", json!({"probe": {"type": "exec", "command": ["true"]}})),
        check("no interval", json!({"probe": {"type": "tcp", "port": 22}, "interval": "0s"})),
        check(
            "a timeout above the interval",
            json!({"probe": {"type": "tcp", "port": 22}, "timeout": "11s"}),
        ),
        check("never unhealthy", json!({"probe": {"type": "tcp", "port": 22}, "failures": 0})),
        vm(
            "too many checks",
            json!({"image": "tiny", "checks": vec![json!({"probe": {"type": "tcp", "port": 22}}); 9]}),
            422,
            "invalid",
        ),
        vm(
            "nobody to ask",
            json!({"image": "tiny", "nics": [], "checks": [{"probe": {"type": "tcp", "port": 22}}]}),
            422,
            "invalid",
        ),
        vm("another fault policy", json!({"image": "tiny", "on_panic": "reboot"}), 422, "invalid"),
        vm("a million CPUs", json!({"image": "tiny", "cpus": 1_000_000}), 422, "invalid"),
        vm("no CPU", json!({"image": "tiny", "cpus": 0}), 422, "invalid"),
        vm("negative memory", json!({"image": "tiny", "memory": "-1GiB"}), 422, "invalid"),
        vm("too much memory", json!({"image": "tiny", "memory": "2TiB"}), 422, "invalid"),
        vm(
            "10,000 NICs",
            json!({"image": "tiny", "nics": vec![json!({"network": "default"}); 10_000]}),
            422,
            "invalid",
        ),
        vm(
            "a MAC with shell in it",
            json!({"image": "tiny", "nics": [{"network": "default", "mac": "52:54:00:12:34:5;reboot"}]}),
            422,
            "invalid",
        ),
        vm(
            "an address outside",
            json!({"image": "tiny", "nics": [{"network": "default", "address": "8.8.8.8"}]}),
            422,
            "invalid",
        ),
        vm(
            "the broadcast address",
            json!({"image": "tiny", "nics": [{"network": "default", "address": "10.100.0.255"}]}),
            422,
            "invalid",
        ),
        vm("an absent network", json!({"image": "tiny", "nics": [{"network": "absent"}]}), 409, "unmet"),
        vm("an absent image", json!({"image": "absent"}), 409, "unmet"),
        vm("nothing to boot from", json!({}), 422, "invalid"),
        vm("more QEMU arguments", json!({"image": "tiny", "qemu_args": ["-device"]}), 422, "unknown-field"),
        vm("large user data", json!({"image": "tiny", "cloud_init": {"user_data": data}}), 422, "invalid"),
        vm("a counter of the server", json!({"image": "tiny", "power_request": 9}), 422, "invalid"),
        post(
            "a label that ends its quotes",
            json!({"name": "x", "labels": {"a\" init=/bin/sh": "b"}, "spec": {"image": "tiny"}}).to_string(),
            422,
            "invalid",
        ),
        bridge("lo"),
        bridge("a-name-that-is-too-long"),
        bridge("br0;reboot"),
        bridge("-br"),
        pool("/srv/../etc"),
        pool("relative/../up"),
        pool("relative//twice"),
        shared("relative"),
        pool("/srv/a,b"),
        image("file:///etc/passwd"),
        image("gopher://x/"),
        image("http://user:secret@example.com/x"),
        image("/etc/passwd"),
        to(
            "/v1/networks",
            post(
                "host bits",
                r#"{"name": "n", "spec": {"kind": {"type": "overlay", "cidr": "10.0.0.1/24"}}}"#,
                422,
                "invalid",
            ),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_precisely_and_changes_nothing() {
    let world = World::new(Kind::Sqlite).await;
    let (status, _) = world.post("/v1/images", json!({"name": "tiny", "spec": {}})).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let before = world.store.revision().await.unwrap();
    let cases: Vec<Case> = json_and_yaml().into_iter().chain(names()).chain(values()).collect();
    assert!(cases.len() >= 40, "{}", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let request = world
            .request(case.method.clone(), &case.path)
            .header("content-type", case.content_type)
            .body(case.body);
        let (status, body) = world.send(request).await;
        let message = body["message"].as_str().unwrap_or_default();
        let readable = !message.is_empty() && message.len() < 1200 && !message.contains(char::is_control);
        if (status.as_u16(), &body["code"]) != (case.status, &json!(case.code)) || !readable {
            wrong.push(format!("{}: {} {}: {status} {body}", case.what, case.method, case.path));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(world.store.revision().await.unwrap(), before);
    world.make_vm("alive").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_images_are_refused_and_leave_nothing() {
    let world = World::new(Kind::Memory).await;
    let sum = |bytes: &[u8]| sterna_server::ca::hex(&<sha2::Sha256 as sha2::Digest>::digest(bytes));
    let disk = vec![7_u8; 64 * 1024];
    let mut backing = qcow2();
    backing[8..16].copy_from_slice(&512_u64.to_be_bytes());
    backing[16..20].copy_from_slice(&11_u32.to_be_bytes());
    backing[512..523].copy_from_slice(b"/etc/shadow");
    let mut huge = qcow2();
    huge[24..32].copy_from_slice(&(2_u64 << 60).to_be_bytes());
    let vmdk =
        b"# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 100 FLAT \"/dev/sda\" 0\n"
            .to_vec();
    let gzip = [&[0x1f, 0x8b, 8, 0][..], &[0; 2000]].concat();
    let cases = [("backing", backing), ("huge", huge), ("vmdk", vmdk), ("gzip", gzip), ("empty", Vec::new())];
    for (name, bytes) in cases {
        assert_eq!(world.post("/v1/images", json!({"name": name, "spec": {}})).await.0, StatusCode::ACCEPTED);
        let put = world.request(Method::PUT, &format!("/v1/images/{name}/content")).body(bytes);
        let (status, body) = world.send(put).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &json!("invalid")),
            "{name}: {body}"
        );
        assert_eq!(world.get(&format!("/v1/images/{name}")).await["report"]["state"], "waiting");
    }
    let spec = json!({"name": "sum", "spec": {"sha256": sum(b"other")}});
    assert_eq!(world.post("/v1/images", spec).await.0, StatusCode::ACCEPTED);
    let put = |name: &str, bytes: &[u8]| {
        world.request(Method::PUT, &format!("/v1/images/{name}/content")).body(bytes.to_vec())
    };
    let (status, body) = world.send(put("sum", &disk)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
    let left: Vec<_> = std::fs::read_dir(world.dir.path().join("images")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");

    let spec = json!({"name": "good", "spec": {"sha256": sum(&disk)}});
    assert_eq!(world.post("/v1/images", spec).await.0, StatusCode::ACCEPTED);
    let (status, body) = world.send(put("good", &disk)).await;
    assert_eq!((status, &body["report"]["state"]), (StatusCode::OK, &json!("ready")), "{body}");
    assert_eq!(body["report"]["format"], "raw");
    assert_eq!(world.send(put("good", &disk)).await.0, StatusCode::CONFLICT);
    assert_eq!(std::fs::read(world.dir.path().join("images/good")).unwrap(), disk);
    assert_eq!(world.delete("/v1/images/good").await.0, StatusCode::OK);
    assert!(!world.dir.path().join("images/good").exists());

    // A URL to an inner address: nothing is sent, the image says why.
    let spec = json!({"name": "inner", "spec": {"source": "http://127.0.0.1:1/x"}});
    assert_eq!(world.post("/v1/images", spec).await.0, StatusCode::ACCEPTED);
    let why = world::eventually("the refusal", || async {
        let image = world.get("/v1/images/inner").await;
        image["report"]["why"].as_str().map(str::to_owned)
    })
    .await;
    assert!(why.contains("not a public address"), "{why}");
    world.stop().await;
}

/// An empty qcow2 version 2 header in a file of 256 KiB.
fn qcow2() -> Vec<u8> {
    let mut image = vec![0; 256 * 1024];
    image[..4].copy_from_slice(b"QFI\xfb");
    image[4..8].copy_from_slice(&2_u32.to_be_bytes());
    image[20..24].copy_from_slice(&16_u32.to_be_bytes());
    image[24..32].copy_from_slice(&(1_u64 << 20).to_be_bytes());
    image[36..40].copy_from_slice(&1_u32.to_be_bytes());
    image[40..48].copy_from_slice(&(1_u64 << 16).to_be_bytes());
    image[48..56].copy_from_slice(&(2_u64 << 16).to_be_bytes());
    image[56..60].copy_from_slice(&1_u32.to_be_bytes());
    image
}
