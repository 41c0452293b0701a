//! The slow lines between the datacentres, one each two: a relay in user space (the kernel of many machines has no
//! netem), a process of its own for every line, so that nothing on one line disturbs another.
//!
//! Each switch has a tap for each other datacentre. A frame is stamped when it arrives, waits its turn at the rate of the line, and is released
//! after the delay. So TCP behaves as on a real path: its window grows, its losses hurt, its queue fills.

/// When a frame comes out at the other end, if it does.
pub mod line;
/// The process that carries the frames.
pub mod relay;
/// Frames as the tap gives and takes them.
pub mod segment;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::place::{Pair, Site};

/// The relay answers at once; longer means that it hangs.
const PATIENCE: Duration = Duration::from_secs(2);

/// How the line is. Both directions are alike.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub up: bool,
    /// One way; a round trip takes twice this.
    pub delay_us: u64,
    /// Up to this much more, evenly distributed; frames keep their order.
    pub jitter_us: u64,
    /// Of each direction, counted in whole Ethernet frames. Absent: as fast as the machine.
    pub rate_bits: Option<u64>,
    /// 0 to 1.
    pub loss: f64,
    /// What waits for its turn at most; more is dropped.
    pub queue_bytes: u64,
}

impl Settings {
    /// Nothing is decided by the frame: a line without a rate and without losses may carry many as one.
    #[must_use]
    pub fn is_unshaped(&self) -> bool {
        self.rate_bits.is_none() && self.loss == 0.0
    }
}

impl Default for Settings {
    /// Two cities some 1,000 km apart with a fast line between them.
    fn default() -> Self {
        Self {
            up: true,
            delay_us: 10_000,
            jitter_us: 0,
            rate_bits: Some(1_000_000_000),
            loss: 0.0,
            queue_bytes: 4 << 20,
        }
    }
}

/// What went over one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub packets: u64,
    pub bytes: u64,
    pub dropped_queue: u64,
    pub dropped_loss: u64,
    pub dropped_down: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// `a-b`.
    pub line: String,
    pub settings: Settings,
    /// By direction: `a_to_b` and `b_to_a`.
    #[serde(flatten)]
    pub directions: BTreeMap<String, Counters>,
}

/// The tap of the line to `other`, in a switch's namespace.
#[must_use]
pub fn device(other: Site) -> String {
    format!("to-{}", other.letter())
}

/// What the processes that carry a line are marked with.
#[must_use]
pub fn role(pair: Pair) -> String {
    format!("wan-{pair}")
}

/// What a direction is called.
#[must_use]
pub fn direction(from: Site, to: Site) -> String {
    format!("{}_to_{}", from.letter(), to.letter())
}

/// One line to the relay; it answers with one line, a [`State`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Order {
    Show,
    Set { settings: Settings },
}

/// Gives the relay an order.
pub fn ask(socket: &Path, order: &Order) -> Result<State> {
    let stream = UnixStream::connect(socket).context("reach the relay; is the lab up?")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(order)?;
    line.push('\n');
    (&stream).write_all(line.as_bytes()).context("send to the relay")?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).context("wait for the relay")?;
    if answer.is_empty() {
        bail!("the relay refused {line}");
    }
    serde_json::from_str(&answer).context("understand the relay")
}

/// Changes some settings and leaves the others.
pub fn change(socket: &Path, change: impl FnOnce(&mut Settings)) -> Result<State> {
    let mut settings = ask(socket, &Order::Show)?.settings;
    change(&mut settings);
    ask(socket, &Order::Set { settings })
}
