//! Tells the guard beside the server whom it speaks to. It has no agent, holds no lease, and votes in every datacentre that
//! needs one more voter.

use std::collections::BTreeMap;
use std::time::Duration;

use sterna_guard::core::id::HostId;
use sterna_guard::core::profile::Profile;
use sterna_guard::shell::request::{PeerSettings, ProfileName, Request, Settings};
use sterna_model::ha::VoterDecision;
use sterna_model::meta::Name;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use uuid::Uuid;

use super::Witness;

/// A guard that was started anew may have forgotten everything.
const TELL_EVERY: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_millis(500);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Ends its task when it is dropped.
pub struct Teller {
    settings: watch::Sender<Option<Settings>>,
    task: AbortHandle,
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Teller {
    pub fn start(witness: Witness) -> Self {
        let (settings, wanted) = watch::channel(None);
        let task = tokio::spawn(keep_told(witness, wanted)).abort_handle();
        Self { settings, task }
    }

    pub fn tell(&self, settings: Settings) {
        self.settings.send_if_modified(|known| {
            let is_news = known
                .as_ref()
                .is_none_or(|known| Settings { version: settings.version, ..known.clone() } != settings);
            if is_news {
                *known = Some(settings);
            }
            is_news
        });
    }
}

/// What the guard beside the server is to know: all datacentres' peers, and itself for a voter.
pub fn settings(
    witness: Uuid,
    decisions: &BTreeMap<&Name, &VoterDecision>,
    fencer: Uuid,
    revision: u64,
) -> Settings {
    let peers = decisions.values().flat_map(|decision| &decision.peers);
    let peers = peers.filter_map(|(id, peer)| {
        let key = peer.key.as_str().parse().ok()?;
        Some((HostId(*id), PeerSettings { key, addresses: peer.addresses.clone() }))
    });
    let fencers = decisions.values().flat_map(|decision| &decision.fencers);
    let fencers = fencers.chain([&fencer]).copied().map(HostId).collect();
    // A successor of it has to be silent for as long as any promise lasts.
    let profiles = decisions.values().map(|decision| decision.profile);
    let longest = profiles.max_by_key(|it| Profile::named(it.as_str()).map(|known| known.promise()));
    Settings {
        // Grows with the store: a guard takes nothing older than what it has.
        version: revision.max(1),
        voters: [HostId(witness)].into_iter().collect(),
        fencers,
        profile: ProfileName::Named(longest.unwrap_or_default().as_str().to_owned()),
        peers: peers.collect(),
    }
}

async fn keep_told(witness: Witness, mut wanted: watch::Receiver<Option<Settings>>) {
    let mut is_away = false;
    loop {
        let settings = wanted.borrow_and_update().clone();
        let pause = match settings {
            None => TELL_EVERY,
            Some(settings) => match tell(&witness, settings).await {
                Ok(()) => {
                    is_away = false;
                    TELL_EVERY
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_away, true) {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "the guard beside the server is not told"
                        );
                    }
                    RETRY_AFTER
                }
            },
        };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn tell(witness: &Witness, settings: Settings) -> anyhow::Result<()> {
    let asked = async {
        let mut stream = UnixStream::connect(&witness.socket).await?;
        let mut text = serde_json::to_vec(&Request::Configure(settings))?;
        text.push(b'\n');
        stream.write_all(&text).await?;
        let mut lines = BufReader::new(stream).lines();
        while let Some(line) = lines.next_line().await? {
            let said: serde_json::Value = serde_json::from_str(&line)?;
            match said["answer"].as_str() {
                Some("done") => return Ok(()),
                Some(_) => anyhow::bail!("it refuses: {}", said["why"]),
                // A report.
                None => {}
            }
        }
        anyhow::bail!("it hung up")
    };
    tokio::time::timeout(ANSWER_WITHIN, asked).await?
}
