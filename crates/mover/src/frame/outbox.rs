//! Frames of one lane from the moment they are ready until the peer acknowledged them.
//!
//! A connection takes a frame to send; when it breaks, the frames it took and that were not acknowledged are ready
//! again. Nothing else is ever sent twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Frame, Kind};

/// Which connection took a frame. A connection that comes back is another one.
pub type Carrier = u64;

#[derive(Debug)]
struct Slot {
    kind: Kind,
    payload: Bytes,
    sent: Option<Sent>,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    by: Carrier,
    at: Instant,
    /// Bytes acknowledged when it left, for the measure of the rate.
    acked_before: u64,
    /// A second sending says nothing about the line's round trip.
    again: bool,
}

/// What an acknowledgement tells about the line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Acked {
    /// Of the newest frame it covers, if that was sent once only.
    pub round_trip: Option<Duration>,
    /// Bytes a second that were acknowledged between that frame's sending and now.
    pub rate: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frame {acked} was acknowledged, but only {sent} were sent")]
pub struct NeverSent {
    pub acked: u64,
    pub sent: u64,
}

#[derive(Debug, Default)]
pub struct Outbox {
    /// Number of the last frame that was put in.
    last: u64,
    /// All up to this one arrived.
    acked: u64,
    slots: BTreeMap<u64, Slot>,
    ready: BTreeSet<u64>,
    bytes: usize,
    acked_bytes: u64,
    resent_bytes: u64,
}

impl Outbox {
    pub fn push(&mut self, kind: Kind, payload: Bytes) {
        self.last += 1;
        self.bytes += payload.len();
        self.ready.insert(self.last);
        self.slots.insert(self.last, Slot { kind, payload, sent: None });
    }

    /// The oldest frame that waits for a connection.
    pub fn take(&mut self, carrier: Carrier, now: Instant) -> Option<Frame> {
        let number = self.ready.pop_first()?;
        let slot = self.slots.get_mut(&number)?;
        let again = slot.sent.is_some();
        if again {
            self.resent_bytes += slot.payload.len() as u64;
        }
        slot.sent = Some(Sent { by: carrier, at: now, acked_before: self.acked_bytes, again });
        Some(Frame { kind: slot.kind, number, payload: slot.payload.clone() })
    }

    /// Everything up to `number` arrived. An old acknowledgement is no error: two may cross on two connections.
    pub fn on_ack(&mut self, number: u64, now: Instant) -> Result<Acked, NeverSent> {
        let mut newest = None;
        if number > self.last {
            return Err(NeverSent { acked: number, sent: self.last });
        }
        while self.acked < number {
            self.acked += 1;
            let Some(slot) = self.slots.remove(&self.acked) else { continue };
            // Acknowledged after a new connection made it ready again.
            self.ready.remove(&self.acked);
            self.bytes -= slot.payload.len();
            self.acked_bytes += slot.payload.len() as u64;
            newest = slot.sent;
        }
        let Some(sent) = newest.filter(|sent| !sent.again) else {
            return Ok(Acked { round_trip: None, rate: None });
        };
        let took = now.saturating_duration_since(sent.at);
        let arrived = (self.acked_bytes - sent.acked_before) as f64;
        let rate = (took > Duration::ZERO).then(|| arrived / took.as_secs_f64());
        Ok(Acked { round_trip: Some(took), rate })
    }

    /// A connection broke: what it carried is ready again.
    pub fn on_lost(&mut self, carrier: Carrier) {
        let lost = self.slots.iter().filter(|(_, slot)| slot.sent.is_some_and(|sent| sent.by == carrier));
        self.ready.extend(lost.map(|(number, _)| *number));
    }

    /// Bytes not acknowledged yet, sent or not.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    #[must_use]
    pub fn acked_bytes(&self) -> u64 {
        self.acked_bytes
    }

    #[must_use]
    pub fn resent_bytes(&self) -> u64 {
        self.resent_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(frames: usize) -> Outbox {
        let mut outbox = Outbox::default();
        for _ in 0..frames {
            outbox.push(Kind::Batch, Bytes::from_static(&[0; 10]));
        }
        outbox
    }

    fn numbers(outbox: &mut Outbox, carrier: Carrier) -> Vec<u64> {
        std::iter::from_fn(|| outbox.take(carrier, Instant::now())).map(|frame| frame.number).collect()
    }

    #[test]
    fn only_unacknowledged_frames_of_the_lost_connection_go_again() {
        let (mut outbox, now) = (outbox(4), Instant::now());
        assert_eq!(outbox.take(1, now).unwrap().number, 1);
        assert_eq!(outbox.take(2, now).unwrap().number, 2);
        assert_eq!(outbox.take(1, now).unwrap().number, 3);
        outbox.on_ack(1, now).unwrap();
        outbox.on_lost(1);
        assert_eq!(numbers(&mut outbox, 3), [3, 4]);
        assert_eq!((outbox.resent_bytes(), outbox.bytes()), (10, 30));
    }

    #[test]
    fn a_frame_acknowledged_while_it_waits_to_go_again_does_not_go() {
        let (mut outbox, now) = (outbox(2), Instant::now());
        numbers(&mut outbox, 1);
        outbox.on_lost(1);
        outbox.on_ack(1, now).unwrap();
        assert_eq!(numbers(&mut outbox, 2), [2]);
        outbox.on_ack(2, now).unwrap();
        assert!(outbox.is_empty() && outbox.bytes() == 0);
    }

    #[test]
    fn an_acknowledgement_measures_the_line_unless_the_frame_went_twice() {
        let (mut outbox, start) = (outbox(2), Instant::now());
        outbox.take(1, start);
        outbox.take(1, start);
        let later = start + Duration::from_millis(100);
        let acked = outbox.on_ack(1, later).unwrap();
        assert_eq!(acked.round_trip, Some(Duration::from_millis(100)));
        assert_eq!(acked.rate.unwrap().round() as u64, 100);
        outbox.on_lost(1);
        outbox.take(2, later);
        assert_eq!(outbox.on_ack(2, later).unwrap().round_trip, None);
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_is_an_error() {
        assert_eq!(outbox(1).on_ack(2, Instant::now()), Err(NeverSent { acked: 2, sent: 1 }));
    }
}
