//! The relay: one loop moves frames between two taps; one thread takes orders.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::num::NonZeroU64;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::line::Line;
use super::{Order, Settings, State};
use crate::tap;

/// The largest frame: an MTU of 9000 and headers.
const FRAME_MAX: usize = 9216;
/// Frames taken from a tap before the others are looked at again.
const BATCH: usize = 64;
/// An order is one short line.
const ORDER_BYTES_MAX: u64 = 4096;
/// How long a client may take to write it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the two ends are: namespace of the tap at a, at b.
pub struct Ends {
    pub a: String,
    pub b: String,
    pub device: String,
}

/// Carries frames until the process ends. Settings survive a restart in `settings_file`.
pub fn run(ends: &Ends, socket: &Path, settings_file: &Path) -> Result<()> {
    let taps = [tap::open(&ends.a, &ends.device)?, tap::open(&ends.b, &ends.device)?];
    let shared = Shared {
        state: Arc::new(Mutex::new(State { settings: read_settings(settings_file)?, ..State::default() })),
        settings_file: settings_file.to_owned(),
    };
    sterna_base::file::remove_if_there(socket).context("remove the old socket")?;
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    let orders = shared.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = serve(&orders, &stream) {
                tracing::warn!(error = format!("{error:#}"), "an order was not carried out");
            }
        }
    });
    carry(&taps, &shared)
}

fn read_settings(file: &Path) -> Result<Settings> {
    let bytes = sterna_base::file::read_if_there(file).context("read the line's settings")?;
    bytes.map_or(Ok(Settings::default()), |bytes| serde_json::from_slice(&bytes).context("understand them"))
}

#[derive(Clone)]
struct Shared {
    state: Arc<Mutex<State>>,
    settings_file: PathBuf,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        shared.lock().settings = settings;
    }
    let mut answer = serde_json::to_string(&*shared.lock())?;
    answer.push('\n');
    let mut stream = stream;
    stream.write_all(answer.as_bytes()).context("answer")
}

/// Frames on their way in one direction, in the order in which they come out.
struct Flight {
    line: Line,
    frames: VecDeque<(Instant, Vec<u8>)>,
}

fn carry(taps: &[File; 2], shared: &Shared) -> Result<()> {
    // A frame is released when it is due, not when the kernel finds it convenient (50 us later by default).
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).context("ask for exact timers")?;
    let now = Instant::now();
    let mut flights = [now, now].map(|now| Flight { line: Line::new(now), frames: VecDeque::new() });
    let mut buffer = [0; FRAME_MAX];
    loop {
        wait(taps, &flights)?;
        let settings = shared.lock().settings.clone();
        for (from, flight) in flights.iter_mut().enumerate() {
            accept(&taps[from], flight, &settings, &mut buffer)?;
            release(&taps[1 - from], flight, &settings);
        }
        let mut state = shared.lock();
        state.a_to_b.clone_from(&flights[0].line.counters);
        state.b_to_a.clone_from(&flights[1].line.counters);
    }
}

/// Until a frame arrives or one is due.
fn wait(taps: &[File; 2], flights: &[Flight; 2]) -> Result<()> {
    let now = Instant::now();
    let due = flights.iter().filter_map(|flight| flight.frames.front().map(|(at, _)| *at)).min();
    let timeout = due.map(|at| {
        let left = at.saturating_duration_since(now);
        Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
    });
    let mut ready = taps.each_ref().map(|tap| PollFd::new(tap, PollFlags::IN));
    match poll(&mut ready, timeout.as_ref()) {
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
        let now = Instant::now();
        if let Some(at) = flight.line.admit(settings, now, length, &mut rand::random::<f64>) {
            flight.frames.push_back((at, buffer[..length].to_vec()));
        }
    }
    Ok(())
}

/// A cut line loses what is on its way, too.
fn release(mut tap: &File, flight: &mut Flight, settings: &Settings) {
    let now = Instant::now();
    while let Some((_, frame)) = flight.frames.pop_front_if(|(at, _)| !settings.up || *at <= now) {
        let carried = settings.up && tap.write_all(&frame).is_ok();
        if !carried {
            let counters = &mut flight.line.counters;
            counters.packets -= 1;
            counters.bytes -= frame.len() as u64;
            counters.dropped_down += 1;
        }
    }
}
