//! What all connections of one side of a session share.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::hello::Hello;
use super::line::Line;
use super::tls::Fingerprint;
use super::{Ended, Options, Progress, Refusal, SessionId, hello};
use crate::frame::inbox::{Inbox, TooEarly};
use crate::frame::outbox::{Carrier, NeverSent, Outbox};
use crate::frame::{Frame, Kind, Lane};

/// Messages are small and few; a caller that makes more waits.
const URGENT_BYTES_MAX: usize = 4 << 20;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) session: SessionId,
    pub(super) options: Options,
    pub(super) stop: CancellationToken,
    state: Mutex<State>,
    /// By lane: there may be something to write.
    ready: [Notify; 2],
    /// There may be room in an outbox.
    room: Notify,
    /// By lane: there may be something to read.
    arrived: [Notify; 2],
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Default)]
struct State {
    outboxes: [Outbox; 2],
    inboxes: [Inbox; 2],
    /// By lane: something was taken that the other side does not know of.
    owes_ack: [bool; 2],
    line: Line,
    peer: Option<Fingerprint>,
    carriers: Vec<(u8, Carrier, CancellationToken)>,
    last_carrier: Carrier,
    lost: u64,
    wire_bytes: u64,
    received_bytes: u64,
    /// Asked to say goodbye.
    is_finishing: bool,
    owes_bye: bool,
    said_bye: bool,
    ended: Option<Ended>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misbehaved {
    #[error(transparent)]
    NeverSent(#[from] NeverSent),
    #[error(transparent)]
    TooEarly(#[from] TooEarly),
    #[error("a frame of kind {0:?} has no place here")]
    OutOfPlace(Kind),
}

/// What a connection is to do next.
pub(super) enum Next {
    Write(Frame),
    /// The rate limit says to wait.
    Wait(Duration),
    Nothing,
}

impl Shared {
    pub(super) fn new(session: SessionId, options: Options, stop: CancellationToken) -> Self {
        Self {
            session,
            options,
            stop,
            state: Mutex::default(),
            ready: Default::default(),
            room: Notify::new(),
            arrived: Default::default(),
            progress: watch::channel(Progress::default()).0,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change below is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(super) fn ready(&self, lane: Lane) -> &Notify {
        &self.ready[lane.index()]
    }

    pub(super) async fn send(&self, kind: Kind, payload: Bytes) -> Result<(), Ended> {
        let Some(lane) = kind.lane() else { return Ok(()) };
        loop {
            let room = self.room.notified();
            {
                let mut state = self.state();
                state.check_end(&self.stop)?;
                if state.has_room(lane, payload.len()) {
                    state.outboxes[lane.index()].push(kind, payload);
                    self.publish(&state);
                    break;
                }
            }
            tokio::select! {
                () = room => {}
                () = self.stop.cancelled() => {}
            }
        }
        self.ready(lane).notify_waiters();
        Ok(())
    }

    pub(super) fn fill(&self) -> f64 {
        let state = self.state();
        state.outboxes[Lane::Data.index()].bytes() as f64 / state.line.window() as f64
    }

    pub(super) async fn recv(&self, lane: Lane) -> Result<Frame, Ended> {
        loop {
            let arrived = self.arrived[lane.index()].notified();
            {
                let mut state = self.state();
                if let Some(frame) = state.inboxes[lane.index()].pop() {
                    state.owes_ack[lane.index()] = true;
                    state.received_bytes += frame.payload.len() as u64;
                    self.publish(&state);
                    drop(state);
                    self.ready(Lane::Urgent).notify_waiters();
                    return Ok(frame);
                }
                state.check_end(&self.stop)?;
            }
            tokio::select! {
                () = arrived => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    pub(super) async fn finish(&self, lanes: &[Lane]) -> Result<(), Ended> {
        self.until(|state| lanes.iter().all(|lane| state.outboxes[lane.index()].is_empty())).await?;
        {
            let mut state = self.state();
            (state.is_finishing, state.owes_bye) = (true, true);
        }
        self.ready(Lane::Urgent).notify_waiters();
        self.until(|state| state.said_bye).await
    }

    pub(super) fn on_said_bye(&self) {
        self.state().said_bye = true;
        self.room.notify_waiters();
    }

    async fn until(&self, mut holds: impl FnMut(&State) -> bool) -> Result<(), Ended> {
        loop {
            let room = self.room.notified();
            {
                let state = self.state();
                if holds(&state) {
                    return Ok(());
                }
                state.check_end(&self.stop)?;
            }
            tokio::select! {
                () = room => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// A new connection; one of the same number that was up before ends.
    pub(super) fn attach(&self, connection: u8) -> (Carrier, CancellationToken) {
        let mut state = self.state();
        state.last_carrier += 1;
        let (carrier, stop) = (state.last_carrier, self.stop.child_token());
        if let Some(at) = state.carriers.iter().position(|(number, ..)| *number == connection) {
            let (_, old, old_stop) = state.carriers.swap_remove(at);
            old_stop.cancel();
            state.lose(old);
        }
        state.carriers.push((connection, carrier, stop.clone()));
        self.publish(&state);
        (carrier, stop)
    }

    pub(super) fn detach(&self, carrier: Carrier) {
        let mut state = self.state();
        let Some(at) = state.carriers.iter().position(|(_, other, _)| *other == carrier) else { return };
        state.carriers.swap_remove(at);
        state.lose(carrier);
        self.publish(&state);
        drop(state);
        Lane::ALL.into_iter().for_each(|lane| self.ready(lane).notify_waiters());
    }

    /// The session belongs to the first certificate that joined it.
    pub(super) fn admit(&self, peer: Fingerprint) -> Result<(), Refusal> {
        let mut state = self.state();
        if *state.peer.get_or_insert(peer) == peer { Ok(()) } else { Err(Refusal::OtherPeer) }
    }

    pub(super) fn hello(&self, connection: u8) -> Hello {
        let state = self.state();
        let delivered = [state.inboxes[0].delivered(), state.inboxes[1].delivered()];
        Hello { session: self.session, connection, delivered }
    }

    /// What the other side had when this connection began.
    pub(super) fn on_hello(&self, hello: &Hello, now: Instant) -> Result<(), Misbehaved> {
        Lane::ALL.into_iter().try_for_each(|lane| self.on_ack(lane, hello.delivered[lane.index()], now))
    }

    pub(super) fn next(&self, connection: u8, carrier: Carrier, now: Instant) -> Next {
        let mut state = self.state();
        if connection == 0 {
            return state.next_urgent(carrier, now).map_or(Next::Nothing, Next::Write);
        }
        if !state.outboxes[Lane::Data.index()].has_ready() {
            return Next::Nothing;
        }
        let wait = self.options.pace.wait(now);
        if !wait.is_zero() {
            return Next::Wait(wait);
        }
        match state.outboxes[Lane::Data.index()].take(carrier, now) {
            Some(frame) => {
                self.options.pace.charge(now, frame.wire_bytes());
                Next::Write(frame)
            }
            None => Next::Nothing,
        }
    }

    pub(super) fn on_written(&self, bytes: usize) {
        let mut state = self.state();
        state.wire_bytes += bytes as u64;
        self.publish(&state);
    }

    pub(super) fn on_round_trip(&self, now: Instant, took: Duration) {
        self.state().line.on_round_trip(now, took);
    }

    /// A frame that is about the session, not about its connection.
    pub(super) fn on_frame(&self, frame: Frame, now: Instant) -> Result<(), Misbehaved> {
        match (frame.kind, frame.kind.lane()) {
            (_, Some(lane)) => {
                self.state().inboxes[lane.index()].push(frame)?;
                self.arrived[lane.index()].notify_waiters();
                Ok(())
            }
            (Kind::Ack, None) => {
                let (lane, number) =
                    hello::parse_ack(&frame.payload).ok_or(Misbehaved::OutOfPlace(frame.kind))?;
                self.on_ack(lane, number, now)
            }
            (Kind::Bye, None) => {
                self.end(Ended::Finished);
                Ok(())
            }
            (kind, None) => Err(Misbehaved::OutOfPlace(kind)),
        }
    }

    fn on_ack(&self, lane: Lane, number: u64, now: Instant) -> Result<(), Misbehaved> {
        let mut state = self.state();
        let acked = state.outboxes[lane.index()].on_ack(number, now)?;
        if let Some(took) = acked.round_trip {
            state.line.on_round_trip(now, took);
        }
        if let Some(rate) = acked.rate.filter(|_| lane == Lane::Data) {
            state.line.on_rate(now, rate);
        }
        self.publish(&state);
        drop(state);
        self.room.notify_waiters();
        Ok(())
    }

    /// Nothing goes any more; what arrived can still be read.
    pub(super) fn end(&self, why: Ended) {
        self.state().ended.get_or_insert(why);
        self.room.notify_waiters();
        self.arrived.iter().for_each(Notify::notify_waiters);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state().ended.is_some()
    }

    fn publish(&self, state: &State) {
        let data = &state.outboxes[Lane::Data.index()];
        self.progress.send_replace(Progress {
            connected: state.carriers.len() as u8,
            lost: state.lost,
            acked_bytes: state.outboxes.iter().map(Outbox::acked_bytes).sum(),
            resent_bytes: state.outboxes.iter().map(Outbox::resent_bytes).sum(),
            queued_bytes: data.bytes() as u64,
            window_bytes: state.line.window() as u64,
            wire_bytes: state.wire_bytes,
            received_bytes: state.received_bytes,
            round_trip: state.line.round_trip(),
            rate: state.line.rate().map(|rate| rate as u64),
        });
    }
}

impl State {
    fn check_end(&self, stop: &CancellationToken) -> Result<(), Ended> {
        match self.ended {
            Some(why) => Err(why),
            None if stop.is_cancelled() => Err(Ended::Stopped),
            None => Ok(()),
        }
    }

    fn has_room(&self, lane: Lane, bytes: usize) -> bool {
        let limit = match lane {
            Lane::Urgent => URGENT_BYTES_MAX,
            Lane::Data => self.line.window(),
        };
        let outbox = &self.outboxes[lane.index()];
        outbox.is_empty() || outbox.bytes() + bytes <= limit
    }

    fn next_urgent(&mut self, carrier: Carrier, now: Instant) -> Option<Frame> {
        for lane in Lane::ALL {
            if std::mem::take(&mut self.owes_ack[lane.index()]) {
                let payload = hello::ack(lane, self.inboxes[lane.index()].delivered());
                return Some(Frame::unnumbered(Kind::Ack, payload));
            }
        }
        if let Some(frame) = self.outboxes[Lane::Urgent.index()].take(carrier, now) {
            return Some(frame);
        }
        std::mem::take(&mut self.owes_bye).then(|| Frame::unnumbered(Kind::Bye, Bytes::new()))
    }

    fn lose(&mut self, carrier: Carrier) {
        self.lost += 1;
        self.owes_bye = self.is_finishing && !self.said_bye;
        // An acknowledgement may have been lost with it; the next hello says it again.
        self.outboxes.iter_mut().for_each(|outbox| outbox.on_lost(carrier));
    }
}
