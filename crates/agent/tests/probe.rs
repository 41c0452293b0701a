//! One agent measures the line to another, over a narrow relay.
#![allow(clippy::unwrap_used)]

#[path = "../../mover/tests/world/mod.rs"]
mod line;
mod world;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use line::Narrow;
use sterna_agent::carrier::{Carriers, Lines, PROBE_EVERY};
use sterna_base::clock::{Clock, SystemClock};
use sterna_base::scope::Scope;
use sterna_base::units::Rate;
use sterna_model::bandwidth::Share;
use sterna_model::probe::LineProbe;
use sterna_wire::assignment::{Assignment, Probe, Probed};
use uuid::Uuid;
use world::{certificates, eventually, folder, name};

const SESSION: Uuid = Uuid::from_u128(5);
const ONE_WAY: Duration = Duration::from_millis(20);

/// The hosts a and b; a measures, b answers.
struct Hosts {
    a: Carriers,
    b: Carriers,
    scope: Scope,
    _folder: tempfile::TempDir,
}

fn told(probes: Vec<Probe>, probed: Option<Probed>) -> Assignment {
    let empty = serde_json::json!({"revision": 1, "host": "h"});
    Assignment { probes, probed, ..serde_json::from_value(empty).unwrap() }
}

impl Hosts {
    /// `a` measures every so often.
    fn start(every: Duration) -> Self {
        let (folder, scope) = (folder(), Scope::new());
        let [a, b] = ["a", "b"].map(|host| {
            let folder = folder.path().join(host);
            std::fs::create_dir_all(&folder).unwrap();
            certificates::carriers(&folder, &scope)
        });
        scope.spawn(a.clone().keep_probing(every));
        scope.spawn(b.clone().keep_probing(every));
        Self { a, b, scope, _folder: folder }
    }

    /// Where `b` answers.
    async fn answers(&self) -> SocketAddr {
        let listen = "127.0.0.1".parse().unwrap();
        self.b.set_probes(&told(vec![], Some(Probed { listen, sessions: vec![SESSION] })));
        let mut lines = self.b.lines();
        lines.wait_for(|lines| lines.mover.is_some()).await.unwrap().mover.unwrap()
    }

    fn order(&self, at: SocketAddr, shares: Vec<Share>) {
        let probe = Probe { datacentre: name("far"), peer: name("b"), at, session: SESSION, shares };
        self.a.set_probes(&told(vec![probe], None));
    }

    async fn seen(&self, is_it: impl Fn(&LineProbe) -> bool) -> LineProbe {
        let mut lines = self.a.lines();
        let has = |lines: &Lines| lines.seen.get(&name("far")).is_some_and(&is_it);
        let waits = lines.wait_for(has);
        let lines = tokio::time::timeout(Duration::from_secs(60), waits).await.expect("not within 60 s");
        lines.unwrap().seen[&name("far")].clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_is_measured_at_first_sight_and_again_after_its_time() {
    let hosts = Hosts::start(Duration::from_millis(50));
    let line = Narrow::to(hosts.answers().await, ONE_WAY, 2_000_000).await;
    let before = SystemClock.now();
    hosts.order(line.address, vec![]);
    let first = hosts.seen(|_| true).await;
    assert_eq!((first.peer.as_str(), first.limit), ("b", None));
    assert!(first.at >= before && (40..90).contains(&first.round_trip.as_millis()), "{first:?}");
    let kbit = first.rate.bits() / 1000;
    assert!((8_000..19_200).contains(&kbit), "{kbit} kbit/s over 16000");
    hosts.seen(|line| line.at > first.at).await;
    hosts.scope.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_withdrawn_ends_the_measurement_and_one_that_comes_back_begins_it_anew() {
    let hosts = Hosts::start(PROBE_EVERY);
    let mover = hosts.answers().await;
    // Such a line needs 1.6 s for what is under way first.
    let line = Narrow::to(mover, ONE_WAY, 40_000).await;
    hosts.order(line.address, vec![]);
    eventually("noise goes", || line.forwarded.load(Ordering::Relaxed) > 60_000).await;
    hosts.a.set_probes(&told(vec![], None));
    eventually("all connections are closed", || line.open.load(Ordering::Relaxed) == 0).await;
    assert!(hosts.a.lines().borrow().seen.is_empty());
    // The other side waits for the next.
    hosts.order(mover, vec![]);
    hosts.seen(|_| true).await;
    hosts.scope.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_takes_no_more_of_a_line_than_its_limit() {
    let hosts = Hosts::start(PROBE_EVERY);
    let line = Narrow::to(hosts.answers().await, ONE_WAY, 5_000_000).await;
    let share = Share { limits: vec!["4Mbit/s".parse().unwrap()], moves: 1 };
    hosts.order(line.address, vec![share]);
    let seen = hosts.seen(|_| true).await;
    assert_eq!(seen.limit, Some(Rate::mbit(4)));
    assert!(seen.rate <= Rate::kbit(5_200) && seen.rate >= Rate::mbit(2), "{seen:?}");
    // In a second and a little: what is limited is what goes in that time.
    assert!(line.forwarded.load(Ordering::Relaxed) < 1_000_000);
    hosts.scope.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_the_one_meant_gets_nothing() {
    let hosts = Hosts::start(PROBE_EVERY);
    let line = Narrow::to(hosts.answers().await, Duration::ZERO, 5_000_000).await;
    let probe = |peer, session| Probe {
        datacentre: name("far"),
        peer: name(peer),
        at: line.address,
        session,
        shares: vec![],
    };
    // Its certificate names another host; then it does not expect this one.
    for (peer, session) in [("c", SESSION), ("b", Uuid::from_u128(6))] {
        let before = line.forwarded.load(Ordering::Relaxed);
        hosts.a.set_probes(&told(vec![probe(peer, session)], None));
        eventually("it called", || line.forwarded.load(Ordering::Relaxed) > before).await;
        hosts.a.set_probes(&told(vec![], None));
        eventually("all connections are closed", || line.open.load(Ordering::Relaxed) == 0).await;
        assert!(hosts.a.lines().borrow().seen.is_empty(), "{peer}");
    }
    hosts.scope.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_to_answer_no_more_says_so() {
    let hosts = Hosts::start(PROBE_EVERY);
    hosts.answers().await;
    hosts.b.set_probes(&told(vec![], None));
    hosts.b.lines().wait_for(|lines| lines.mover.is_none()).await.unwrap();
    hosts.scope.shut_down().await;
}
