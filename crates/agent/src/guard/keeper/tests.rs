//! The keeper against a guard that answers as it is told.

use std::sync::Mutex;

use serde_json::{Value, json};
use sterna_model::ha::{Peer, Profile, VoterDecision};
use sterna_wire::assignment::Joined;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;

use super::*;

const HOST: Uuid = Uuid::from_u128(1);
const VM: Uuid = Uuid::from_u128(7);
const WARD: Ward = Ward { vm: VM, epoch: 3, host_epoch: 2, starting: true };

/// What the fake guard says of itself.
#[derive(Debug, Clone)]
struct Says {
    lease: Value,
    now: u64,
    silent: u64,
    may_start: bool,
}

struct World {
    folder: tempfile::TempDir,
    says: Arc<Mutex<Says>>,
    heard: mpsc::UnboundedReceiver<Value>,
    told: mpsc::UnboundedReceiver<Up>,
    assigned: watch::Sender<Option<Arc<Assignment>>>,
    seen: watch::Receiver<Option<GuardSeen>>,
    handle: Handle,
    keeper: tokio::task::JoinHandle<()>,
    guard: tokio::task::JoinHandle<()>,
}

struct Mouth(mpsc::UnboundedSender<Up>);

impl Reports for Mouth {
    fn report(&self, up: Up) {
        let _ = self.0.send(up);
    }
}

impl World {
    fn start(lease: Value, wards: BTreeMap<Uuid, Ward>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let says = Arc::new(Mutex::new(Says { lease, now: 100, silent: 0, may_start: true }));
        let (hear, heard) = mpsc::unbounded_channel();
        let (tell, told) = mpsc::unbounded_channel();
        let socket = folder.path().join("guard.sock");
        let guard = tokio::spawn(serve(UnixListener::bind(&socket).unwrap(), Arc::clone(&says), hear));
        let identity = Identity {
            name: Name::new("a1").unwrap(),
            host: HOST,
            key: GuardKey::try_from("ab".repeat(32)).unwrap(),
            addresses: vec!["10.0.0.1:7450".parse().unwrap()],
            socket,
        };
        let assigned = watch::Sender::new(None);
        let (handle, keeper) = Keeper::prepare(identity, wards, assigned.subscribe(), Arc::new(Mouth(tell)));
        let seen = watch::Sender::<Option<GuardSeen>>::new(None);
        let (now, row) = (seen.subscribe(), seen.subscribe());
        let host = move || Up::Event {
            kind: "host".into(),
            name: Name::new("a1").unwrap(),
            what: "row".into(),
            why: format!("{:?}", row.borrow().as_ref().map(|seen| seen.lease)),
        };
        let keeper = tokio::spawn(keeper.attach(seen, Arc::new(host)).run());
        Self { folder, says, heard, told, assigned, seen: now, handle, keeper, guard }
    }

    /// The next request of that kind.
    async fn request(&mut self, kind: &str) -> Value {
        loop {
            let heard = self.heard.recv().await.expect("the keeper speaks");
            if heard["request"] == kind {
                return heard;
            }
        }
    }

    fn order(&self, joined: Option<Joined>) {
        let peer = Peer {
            name: "a1".into(),
            key: GuardKey::try_from("ab".repeat(32)).unwrap(),
            addresses: vec!["10.0.0.1:7450".parse().unwrap()],
        };
        let voters = VoterDecision {
            version: 1,
            voters: [HOST].into(),
            fencers: Default::default(),
            profile: Profile::Quick,
            former: None,
            peers: [(HOST, peer)].into(),
            since: Default::default(),
        };
        let guard = Some(Box::new(GuardOrder { host: HOST, voters, joined, release: false }));
        let empty = r#"{"revision":1,"host":"a1"}"#;
        let assignment: Assignment = serde_json::from_str(empty).unwrap();
        self.assigned.send_replace(Some(Arc::new(Assignment { guard, ..assignment })));
    }

    async fn question(&mut self, before: Option<Uuid>) -> Uuid {
        let seen = self.seen.wait_for(|seen| {
            let asks = seen.as_ref().and_then(|seen| seen.asks);
            asks.is_some() && asks != before
        });
        seen.await.unwrap().as_ref().unwrap().asks.unwrap()
    }

    fn says(&self, change: impl FnOnce(&mut Says)) {
        change(&mut self.says.lock().unwrap());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.keeper.abort();
        self.guard.abort();
    }
}

async fn serve(listener: UnixListener, says: Arc<Mutex<Says>>, heard: mpsc::UnboundedSender<Value>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (input, mut out) = stream.into_split();
        let mut lines = BufReader::new(input).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let request: Value = serde_json::from_str(&line).unwrap();
            let kind = request["request"].as_str().unwrap().to_owned();
            let answer = {
                let says = says.lock().unwrap();
                match kind.as_str() {
                    "status" => status(&says),
                    "may-start" if !says.may_start => json!({ "answer": "refused", "why": "no" }),
                    _ => json!({ "answer": "done" }),
                }
            };
            let _ = heard.send(request);
            out.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        }
    }
}

fn status(says: &Says) -> Value {
    json!({
        "answer": "status", "watchdog": "fake", "watchdog_error": null, "steadiness": {},
        "guard": {
            "lease": says.lease, "left": null, "now": says.now, "silent_for": { "secs": says.silent, "nanos": 0 },
            "configuration": 1, "confirmed_configuration": 1, "is_killing": false, "vms": 0, "feeds_watchdog": true,
        },
    })
}

fn no_epoch() -> Value {
    json!({ "state": "no-epoch" })
}

fn held(epoch: u64) -> Value {
    json!({ "state": "held", "epoch": epoch })
}

#[tokio::test]
async fn a_copy_is_listed_before_its_start_is_asked_for_and_taken_out_when_it_may_not() {
    let mut world = World::start(held(2), BTreeMap::new());
    assert_eq!(world.request("vms").await["vms"], json!([]));
    world.handle.begin(WARD).await.unwrap();
    let listed = world.request("vms").await;
    assert_eq!((&listed["vms"][0]["vm"], &listed["vms"][0]["starting"]), (&json!(VM), &json!(true)));
    assert_eq!(world.request("may-start").await["host_epoch"], 2);
    world.handle.set(VM, Some(Ward { starting: false, ..WARD }));
    assert_eq!(world.request("vms").await["vms"][0]["starting"], false);
    world.handle.set(VM, None);
    assert_eq!(world.request("vms").await["vms"], json!([]));

    world.says(|says| says.may_start = false);
    let refused = world.handle.begin(WARD).await;
    assert!(matches!(refused, Err(Refused::NotNow(_))), "the lease is held: it may come {refused:?}");
    assert_eq!(world.request("vms").await["vms"].as_array().unwrap().len(), 1);
    assert_eq!(world.request("vms").await["vms"], json!([]));
    world.says(|says| says.lease = held(3));
    let refused = world.handle.begin(WARD).await;
    assert!(matches!(refused, Err(Refused::Over(_))), "epoch 2 never comes back: {refused:?}");
}

#[tokio::test]
async fn what_an_earlier_agent_had_listed_is_told_first() {
    let ward = Ward { starting: false, ..WARD };
    let mut world = World::start(held(2), [(VM, ward)].into());
    let first = world.heard.recv().await.unwrap();
    assert_eq!((&first["request"], &first["vms"][0]["vm"]), (&json!("vms"), &json!(VM)));
}

#[tokio::test]
async fn a_running_copy_is_listed_only_under_the_lease_that_is_held() {
    let mut world = World::start(held(2), BTreeMap::new());
    let stale = world.handle.enlist(Ward { host_epoch: 1, starting: false, ..WARD }).await;
    assert!(matches!(stale, Err(Refused::NotNow(_))), "the guard would end it: {stale:?}");
    world.handle.enlist(Ward { starting: false, ..WARD }).await.unwrap();
    assert_eq!(world.request("vms").await["vms"], json!([]));
    assert_eq!(world.request("vms").await["vms"][0]["host_epoch"], 2);
}

#[tokio::test]
async fn only_the_answer_to_the_newest_question_reaches_the_guard() {
    let mut world = World::start(no_epoch(), BTreeMap::new());
    world.order(None);
    world.request("configure").await;
    let first = world.question(None).await;
    world.says(|says| says.now = 200);
    // No answer: asked anew, and counted from then.
    let second = world.question(Some(first)).await;
    world.order(Some(Joined { question: first, epoch: 4 }));
    world.order(Some(Joined { question: second, epoch: 5 }));
    let join = world.request("join").await;
    assert_eq!((&join["epoch"], &join["asked_at"]), (&json!(5), &json!(200)));
}

#[tokio::test]
async fn nobody_asks_for_an_epoch_while_the_voters_say_nothing() {
    let mut world = World::start(no_epoch(), BTreeMap::new());
    world.says(|says| says.silent = 9);
    world.order(None);
    world.request("configure").await;
    // Two looks later.
    for _ in 0..3 {
        world.request("status").await;
    }
    assert_eq!(world.seen.borrow().as_ref().and_then(|seen| seen.asks), None);
    world.says(|says| says.silent = 0);
    world.question(None).await;
    assert!(world.told.recv().await.is_some(), "the host row says so");
    assert!(world.folder.path().exists());
}
