//! The relay of one line: a thread for each direction moves frames from one tap to the other; one takes orders.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::num::NonZeroU64;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::line::Line;
use super::segment::{FRAME_MAX, Load};
use super::{Counters, Order, Settings, State, device, direction};
use crate::place::{Lab, Pair};
use crate::tap;

/// Frames taken from a tap before those that are due are looked at again.
const BATCH: usize = 64;
/// What is on its way in one direction at most, however long the delay; more is dropped.
const FLIGHT_BYTES_MAX: usize = 256 << 20;
/// An order is one short line.
const ORDER_BYTES_MAX: u64 = 4096;
/// How long a client may take to write it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Carries frames until the process ends. Settings survive a restart.
pub fn run(lab: &Lab, pair: Pair) -> Result<()> {
    let [first, last] = pair.ends();
    let taps = [
        tap::open(&lab.switch_space(first), &device(last))?,
        tap::open(&lab.switch_space(last), &device(first))?,
    ];
    let shared = Arc::new(Shared {
        name: pair.to_string(),
        directions: [direction(first, last), direction(last, first)],
        settings: Mutex::default(),
        counters: [Mutex::default(), Mutex::default()],
        settings_file: lab.wan_settings(pair),
        taps,
    });
    shared.change(shared.read_settings()?)?;
    let socket = lab.wan_socket(pair);
    sterna_base::file::remove_if_there(&socket).context("remove the old socket")?;
    let listener = UnixListener::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
    let orders = Arc::clone(&shared);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = serve(&orders, &stream) {
                tracing::warn!(error = format!("{error:#}"), "an order was not carried out");
            }
        }
    });
    carry(&shared)
}

struct Shared {
    name: String,
    directions: [String; 2],
    settings: Mutex<Settings>,
    counters: [Mutex<Counters>; 2],
    settings_file: PathBuf,
    taps: [File; 2],
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn read_settings(&self) -> Result<Settings> {
        let bytes =
            sterna_base::file::read_if_there(&self.settings_file).context("read the line's settings")?;
        bytes.map_or(Ok(Settings::default()), |bytes| {
            serde_json::from_slice(&bytes).context("understand the line's settings")
        })
    }

    fn change(&self, settings: Settings) -> Result<()> {
        // A rate, a queue and losses are about single frames.
        self.taps.iter().try_for_each(|tap| tap::set_offload(tap, settings.is_unshaped()))?;
        *lock(&self.settings) = settings;
        Ok(())
    }

    fn state(&self) -> State {
        let counters = self.counters.each_ref().map(|counters| *lock(counters));
        State {
            line: self.name.clone(),
            settings: *lock(&self.settings),
            directions: self.directions.iter().cloned().zip(counters).collect(),
        }
    }
}

fn serve(shared: &Shared, stream: &UnixStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(ORDER_BYTES_MAX)).read_line(&mut line).context("read an order")?;
    let order: Order = serde_json::from_str(&line).context("understand an order")?;
    if let Order::Set { settings } = order {
        let bytes = serde_json::to_vec_pretty(&settings)?;
        sterna_base::file::write_atomically(&shared.settings_file, &bytes, 0o644)
            .context("keep the settings")?;
        shared.change(settings)?;
    }
    let mut answer = serde_json::to_string(&shared.state())?;
    answer.push('\n');
    let mut stream = stream;
    stream.write_all(answer.as_bytes()).context("answer")
}

/// Both directions, until one fails.
fn carry(shared: &Arc<Shared>) -> Result<()> {
    let (ended, ends) = mpsc::channel();
    for way in 0..2 {
        let (shared, ended) = (Arc::clone(shared), ended.clone());
        std::thread::spawn(move || {
            // The receiver is gone only when the other direction has failed, which ends the process.
            let _ = ended.send(carry_one_way(&shared, way));
        });
    }
    ends.recv().context("wait for the line's end")?
}

fn carry_one_way(shared: &Shared, way: usize) -> Result<()> {
    // A frame is released when it is due, not when the kernel finds it convenient (50 us later by default).
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).context("ask for exact timers")?;
    let (from, to) = (&shared.taps[way], &shared.taps[1 - way]);
    let mut flight = Flight { line: Line::new(Instant::now()), frames: VecDeque::new(), bytes: 0 };
    let mut buffer = vec![0; FRAME_MAX];
    loop {
        wait(from, flight.frames.front().map(|frame| frame.at))?;
        let settings = *lock(&shared.settings);
        accept(from, &mut flight, &settings, &mut buffer)?;
        release(to, &mut flight, &settings);
        *lock(&shared.counters[way]) = flight.line.counters;
    }
}

/// Frames on their way in one direction, in the order in which they come out.
struct Flight {
    line: Line,
    frames: VecDeque<Frame>,
    bytes: usize,
}

struct Frame {
    at: Instant,
    load: Load,
    bytes: Vec<u8>,
}

/// Until a frame arrives or one is due.
fn wait(tap: &File, due: Option<Instant>) -> Result<()> {
    let timeout = due.map(|at| {
        let left = at.saturating_duration_since(Instant::now());
        Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
    });
    match poll(&mut [PollFd::new(tap, PollFlags::IN)], timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("wait for frames"),
    }
}

fn accept(mut tap: &File, flight: &mut Flight, settings: &Settings, buffer: &mut [u8]) -> Result<()> {
    for _ in 0..BATCH {
        let length = match tap.read(buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("read a frame"),
        };
        let (now, bytes) = (Instant::now(), &buffer[..length]);
        let load = Load::of(bytes);
        if flight.bytes + length > FLIGHT_BYTES_MAX {
            flight.line.counters.dropped_queue += load.packets;
        } else if let Some(at) = flight.line.admit(settings, now, load, &mut rand::random::<f64>) {
            flight.bytes += length;
            flight.frames.push_back(Frame { at, load, bytes: bytes.to_vec() });
        }
    }
    Ok(())
}

/// A cut line loses what is on its way, too.
fn release(mut tap: &File, flight: &mut Flight, settings: &Settings) {
    let now = Instant::now();
    while let Some(frame) = flight.frames.pop_front_if(|frame| !settings.up || frame.at <= now) {
        flight.bytes -= frame.bytes.len();
        // A tap takes a frame at once or never.
        if !settings.up || tap.write(&frame.bytes).is_err() {
            flight.line.take_back(frame.load);
        }
    }
}
