//! Alerts that reach receivers: a mail server, a web server and two log hosts, each small and real.

#![allow(clippy::unwrap_used)]

mod world;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use sterna_base::units::Span;
use sterna_model::alert::Severity;
use sterna_server::config::{Least, Mail, MailTls, Syslog, Webhook};
use sterna_store::Txn;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, UdpSocket, UnixDatagram};
use world::{Kind, World, eventually};

fn name(text: &str) -> sterna_model::meta::Name {
    sterna_model::meta::Name::new(text).unwrap()
}

/// Stands in for control: the alert fires since `since`, or is over.
async fn fire(world: &World, alert: &str, severity: &str, since: &str, resolved: Option<&str>) {
    let meta = json!({"name": alert, "uid": uuid::Uuid::now_v7(), "created": since});
    let mut decision = json!({"rule": "host-unreachable", "severity": severity, "object": format!("host/{alert}"),
        "text": format!("no word from {alert}\u{1b}[2J"), "since": since});
    if let Some(resolved) = resolved {
        decision["resolved"] = json!(resolved);
    }
    let (spec_key, decision_key) = (format!("alert/{alert}/spec"), format!("alert/{alert}/decision"));
    let mut txn = Txn::new().put(decision_key, decision.to_string().into_bytes());
    if world.store.get(&spec_key).await.unwrap().is_none() {
        txn = txn.put(spec_key, json!({"meta": meta, "spec": {}}).to_string().into_bytes());
    }
    world.store.commit(txn).await.unwrap();
}

const FIRST: &str = "2026-01-01T00:00:00.000Z";
const LATER: &str = "2026-01-02T00:00:00.000Z";

/// What a receiver took so far.
#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Vec<String>>>);

impl Taken {
    fn add(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    async fn reach(&self, count: usize) -> Vec<String> {
        eventually(&format!("message {count}"), async || {
            let all = self.all();
            (all.len() >= count).then_some(all)
        })
        .await
    }
}

/// One conversation of SMTP (RFC 5321), as a relay leads it. With `credentials` nothing is taken without them.
async fn smtp(stream: impl AsyncRead + AsyncWrite + Unpin, taken: Taken, credentials: Option<&str>) {
    let mut stream = BufReader::new(stream);
    let mut is_known = credentials.is_none();
    let (mut line, mut mail) = (String::new(), String::new());
    stream.write_all(b"220 relay.test ESMTP\r\n").await.unwrap();
    loop {
        line.clear();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let verb = line.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        let answer = match verb.as_str() {
            "EHLO" => "250-relay.test\r\n250-AUTH PLAIN LOGIN\r\n250 8BITMIME\r\n",
            "AUTH" => {
                is_known = credentials.is_some_and(|wanted| line.trim_end().ends_with(wanted));
                if is_known { "235 known\r\n" } else { "535 who are you?\r\n" }
            }
            "MAIL" if !is_known => "530 say who you are\r\n",
            "MAIL" | "RCPT" => {
                mail.push_str(&line);
                "250 fine\r\n"
            }
            "DATA" => {
                stream.write_all(b"354 go on\r\n").await.unwrap();
                loop {
                    line.clear();
                    stream.read_line(&mut line).await.unwrap();
                    if line == ".\r\n" {
                        break;
                    }
                    mail.push_str(&line);
                }
                taken.add(std::mem::take(&mut mail));
                "250 taken\r\n"
            }
            "QUIT" => "221 bye\r\n",
            _ => "250 fine\r\n",
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

/// Answers the statuses in turn, the last one for ever.
async fn web(listener: TcpListener, taken: Taken, statuses: Vec<StatusCode>) {
    let left = Arc::new(Mutex::new(statuses));
    let take = move |headers: axum::http::HeaderMap, body: String| async move {
        let status = {
            let mut left = left.lock().unwrap();
            if left.len() > 1 { left.remove(0) } else { left[0] }
        };
        assert_eq!(headers["content-type"], "application/json");
        if status.is_success() {
            taken.add(body);
        }
        (status, "an answer")
    };
    let app = axum::Router::new().route("/hook", axum::routing::post(take));
    axum::serve(listener, app).await.unwrap();
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

fn webhook(address: &str) -> Webhook {
    Webhook { url: format!("http://{address}/hook"), token_file: None, ca: None, least: Least::default() }
}

async fn world_with_webhook(statuses: Vec<StatusCode>, group_for: Duration) -> (World, Taken) {
    let (listening, address) = listener().await;
    let taken = Taken::default();
    tokio::spawn(web(listening, taken.clone(), statuses));
    let world = World::with(tempfile::tempdir().unwrap(), Kind::Sqlite, |config| {
        config.alerts.group_for = Span(group_for);
        config.alerts.webhook.insert(name("chat"), webhook(&address));
    })
    .await;
    (world, taken)
}

fn states(message: &str) -> Vec<(String, String)> {
    let message: Value = serde_json::from_str(message).unwrap();
    let alerts = message["alerts"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    alerts.map(|alert| (text(&alert["name"]), text(&alert["state"]))).collect()
}

fn pair(name: &str, state: &str) -> (String, String) {
    (name.to_owned(), state.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fires_together_is_one_message_and_its_end_another_and_nothing_is_told_twice() {
    let (world, taken) = world_with_webhook(vec![StatusCode::OK], Duration::from_secs(1)).await;
    for alert in ["a1", "b1", "c1"] {
        fire(&world, alert, if alert == "b1" { "critical" } else { "warning" }, FIRST, None).await;
    }
    let all = taken.reach(1).await;
    assert_eq!(states(&all[0]), [pair("b1", "firing"), pair("a1", "firing"), pair("c1", "firing")]);
    assert!(!all[0].contains("\\u001b") && all[0].contains("no word from a1 [2J"), "{}", all[0]);
    fire(&world, "a1", "warning", FIRST, Some(LATER)).await;
    let all = taken.reach(2).await;
    assert_eq!(states(&all[1]), [pair("a1", "resolved")]);
    let shown = world.get("/v1/alerts/a1").await;
    assert_eq!(shown["status"]["state"], "resolved");
    // It is written down after the receiver has it.
    eventually("the end was told", async || {
        let shown = world.get("/v1/alerts/a1").await;
        let told = &shown["report"]["told"]["webhook/chat"];
        (told["delivered"].is_string() && told["is_resolved"] == true).then_some(())
    })
    .await;
    let (_, list) = world.send(world.request(Method::GET, "/v1/alerts?state=firing")).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 2, "{list}");

    // What ends before anybody was told of it is no news; what comes next is, and alone.
    fire(&world, "d1", "warning", FIRST, Some(LATER)).await;
    fire(&world, "e1", "warning", FIRST, None).await;
    let all = taken.reach(3).await;
    assert_eq!(states(&all[2]), [pair("e1", "firing")]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_fails_is_tried_again_and_what_it_missed_is_shown() {
    let statuses = vec![StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK];
    let (world, taken) = world_with_webhook(statuses, Duration::from_millis(10)).await;
    fire(&world, "a1", "warning", FIRST, None).await;
    let failed = eventually("the failure is shown", async || {
        let receivers = world.get("/v1/alerts/receivers").await;
        receivers["receivers"][0]["error"].is_string().then_some(receivers)
    })
    .await;
    assert_eq!(failed["receivers"][0]["error"], "answered 503 Service Unavailable: an answer", "{failed}");
    assert!(failed["receivers"][0]["delivered"].is_null());
    let all = taken.reach(1).await;
    assert_eq!(states(&all[0]), [pair("a1", "firing")]);
    let receivers = world.get("/v1/alerts/receivers").await;
    assert!(
        receivers["receivers"][0]["delivered"].is_string() && receivers["receivers"][0]["error"].is_null()
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_of_what_is_cared_for_or_silenced() {
    let (world, taken) = world_with_webhook(vec![StatusCode::OK], Duration::from_secs(3)).await;
    for alert in ["a1", "b1", "c1"] {
        fire(&world, alert, "warning", FIRST, None).await;
    }
    let (status, acked) = acknowledge(&world, "a1").await;
    assert_eq!((status, &acked["status"]["state"]), (StatusCode::OK, &json!("acknowledged")), "{acked}");
    assert_eq!(acked["spec"]["acknowledged"]["by"], "admin");
    let (status, silent) = world.post("/v1/alerts/b1/silence", json!({"for": "1h"})).await;
    assert_eq!((status, &silent["status"]["state"]), (StatusCode::OK, &json!("silenced")), "{silent}");
    let all = taken.reach(1).await;
    assert_eq!(states(&all[0]), [pair("c1", "firing")]);
    // The silence ends, and it still fires; what is cared for begins anew.
    world.post("/v1/alerts/b1/silence", json!({"for": "0s"})).await;
    fire(&world, "a1", "warning", LATER, None).await;
    let all = taken.reach(2).await;
    assert_eq!(states(&all[1]), [pair("a1", "firing"), pair("b1", "firing")]);

    let (status, refused) = world.post("/v1/alerts/b1/silence", json!({"for": "1000d"})).await;
    assert_eq!((status, &refused["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("invalid")));
    assert_eq!(acknowledge(&world, "nobody").await.0, StatusCode::NOT_FOUND);
    fire(&world, "c1", "warning", FIRST, Some(LATER)).await;
    let refused = eventually("its end", async || {
        let (status, refused) = acknowledge(&world, "c1").await;
        (status == StatusCode::CONFLICT).then_some(refused)
    })
    .await;
    assert_eq!(refused["code"], "wrong-state");
    world.stop().await;
}

async fn acknowledge(world: &World, alert: &str) -> (StatusCode, Value) {
    world.post(&format!("/v1/alerts/{alert}/ack"), json!({})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_through_a_relay_over_tls_with_a_password_and_only_what_is_grave_enough() {
    let dir = tempfile::tempdir().unwrap();
    let (listening, address) = listener().await;
    let port = address.rsplit_once(':').unwrap().1.to_owned();
    let authority = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (ca, password) = (dir.path().join("relay.pem"), dir.path().join("password"));
    std::fs::write(&ca, authority.cert.pem()).unwrap();
    std::fs::write(&password, "geheim\n").unwrap();
    let key = PrivateKeyDer::try_from(authority.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![authority.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let taken = Taken::default();
    let all = taken.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listening.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            // "\0sterna\0geheim"
            tokio::spawn(smtp(stream, taken.clone(), Some("AHN0ZXJuYQBnZWhlaW0=")));
        }
    });
    let mail = Mail {
        server: format!("localhost:{port}"),
        tls: MailTls::Wrapped,
        from: "Sterna <sterna@example.org>".into(),
        to: vec!["ops@example.org".into(), "Ann <ann@example.org>".into()],
        user: Some("sterna".into()),
        password_file: Some(password),
        ca: Some(ca),
        least: Least(Severity::Critical),
    };
    let world = World::with(tempfile::tempdir().unwrap(), Kind::Sqlite, |config| {
        config.alerts.group_for = Span(Duration::from_millis(200));
        config.alerts.mail.insert(name("ops"), mail.clone());
        // Trusts nobody who signed the relay's certificate.
        config.alerts.mail.insert(name("wary"), Mail { ca: None, ..mail.clone() });
    })
    .await;
    let (status, tested) = world.post("/v1/alerts/test", json!({"receiver": "mail/ops"})).await;
    assert_eq!(
        (status, &tested["tests"]),
        (StatusCode::OK, &json!([{"receiver": "mail/ops", "delivered": true}]))
    );
    let text = all.reach(1).await.remove(0);
    for part in [
        "RCPT TO:<ops@example.org>",
        "RCPT TO:<ann@example.org>",
        "Subject: [sterna] a test of alerts",
        "From: Sterna <sterna@example.org>",
        "Message-ID: <",
        "nothing is wrong",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    fire(&world, "a1", "warning", FIRST, None).await;
    fire(&world, "b1", "critical", FIRST, None).await;
    let text = all.reach(2).await.remove(1);
    assert!(text.contains("Subject: [sterna] firing: host-unreachable host/b1"), "{text}");
    assert!(!text.contains("host/a1"), "{text}");

    let (_, tested) = world.post("/v1/alerts/test", json!({"receiver": "mail/wary"})).await;
    let test = &tested["tests"][0];
    assert_eq!(test["delivered"], false, "{tested}");
    assert!(test["error"].as_str().unwrap().to_lowercase().contains("certificate"), "{tested}");
    let (status, _) = world.post("/v1/alerts/test", json!({"receiver": "mail/nobody"})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_in_clear_goes_to_a_relay_on_this_machine_and_a_refusal_is_told() {
    let (listening, address) = listener().await;
    let taken = Taken::default();
    let all = taken.clone();
    tokio::spawn(async move {
        for credentials in [None, Some("nobody has these")] {
            let (stream, _) = listening.accept().await.unwrap();
            tokio::spawn(smtp(stream, taken.clone(), credentials));
        }
    });
    let mail = Mail {
        server: address,
        tls: MailTls::None,
        from: "sterna@example.org".into(),
        to: vec!["ops@example.org".into()],
        user: None,
        password_file: None,
        ca: None,
        least: Least::default(),
    };
    let world = World::with(tempfile::tempdir().unwrap(), Kind::Sqlite, |config| {
        config.alerts.mail.insert(name("ops"), mail);
    })
    .await;
    let (_, tested) = world.post("/v1/alerts/test", json!({})).await;
    assert_eq!(tested["tests"][0]["delivered"], true, "{tested}");
    assert_eq!(all.all().len(), 1);
    let (_, tested) = world.post("/v1/alerts/test", json!({})).await;
    assert_eq!(tested["tests"][0]["delivered"], false, "{tested}");
    assert!(tested["tests"][0]["error"].as_str().unwrap().contains("say who you are"), "{tested}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_hosts_get_a_line_an_alert() {
    let dir = tempfile::tempdir().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let path = dir.path().join("log");
    let local = UnixDatagram::bind(&path).unwrap();
    let to = udp.local_addr().unwrap().to_string();
    let world = World::with(tempfile::tempdir().unwrap(), Kind::Sqlite, |config| {
        config.alerts.group_for = Span(Duration::from_millis(100));
        let syslog = |to: String| Syslog { to, least: Least::default() };
        config.alerts.syslog.insert(name("far"), syslog(to));
        config.alerts.syslog.insert(name("near"), syslog(path.to_string_lossy().into_owned()));
    })
    .await;
    fire(&world, "a1", "critical", FIRST, None).await;
    fire(&world, "b1", "warning", FIRST, None).await;
    for number in 0..2 {
        let mut buffer = [0; 4096];
        let length =
            tokio::time::timeout(Duration::from_secs(10), udp.recv(&mut buffer)).await.unwrap().unwrap();
        let far = String::from_utf8(buffer[..length].to_vec()).unwrap();
        let length =
            tokio::time::timeout(Duration::from_secs(10), local.recv(&mut buffer)).await.unwrap().unwrap();
        let near = String::from_utf8(buffer[..length].to_vec()).unwrap();
        let (priority, alert) = [("<26>1 ", "a1"), ("<28>1 ", "b1")][number];
        for line in [far, near] {
            assert!(line.starts_with(priority), "{line}");
            assert!(line.contains(&format!("object=\"host/{alert}\"")), "{line}");
            assert!(
                line.contains(&format!("firing: host-unreachable host/{alert}: no word from {alert} [2J")),
                "{line}"
            );
        }
    }
    world.stop().await;
}

#[test]
fn settings_that_cannot_work_are_refused_at_the_start() {
    use sterna_server::alerts::Receivers;
    use sterna_server::config::Alerts;
    let refused = |toml: &str, why: &str| {
        let alerts: Alerts = toml::from_str(toml).unwrap();
        let error = format!("{:#}", Receivers::new(&alerts).unwrap_err());
        assert!(error.contains(why), "{error}");
    };
    let mail = "[mail.ops]\nserver = \"relay:25\"\nfrom = \"a@b.org\"\n";
    refused(&format!("{mail}to = []"), "names nobody");
    refused(&format!("{mail}to = [\"no address\"]"), "no mail address");
    refused(&format!("{mail}to = [\"c@d.org\"]\nuser = \"u\""), "go together");
    refused(
        &format!("{mail}to = [\"c@d.org\"]\ntls = \"none\"\nuser = \"u\"\npassword_file = \"/x\""),
        "without TLS",
    );
    refused("[webhook.x]\nurl = \"ftp://x\"", "http or https");
    refused("[webhook.x]\nurl = \"http://x\"\ntoken_file = \"/x\"", "without TLS");
    refused("[syslog.x]\nto = \"loghost\"", "neither HOST:PORT nor a path");
    assert!(
        toml::from_str::<Alerts>("[mail.ops]\nserver = \"x:1\"\nfrom = \"a\"\nto = []\ntsl = \"none\"")
            .is_err()
    );
}
