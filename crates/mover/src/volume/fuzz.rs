//! Thousands of broken messages, manifests and batches of volumes: never a panic, nothing is understood that nobody would
//! have said, and nothing grows beyond what came or what a frame may hold.

use bytes::Bytes;

use super::VOLUMES_MAX;
use super::chunk::{CHUNK_BYTES, ChunkHash, Digest, Place, chunk_length};
use super::message::{
    Message, OFFER_MAX, Record, Why, barrier, batch, epoch, manifest, parse_barrier, parse_batch,
    parse_epoch, parse_manifest,
};
use crate::codec::squeeze::{Expander, Squeezer};
use crate::dice::{Dice, mutate};

const SEEDS: u64 = 20_000;

fn said() -> Vec<Message> {
    vec![
        Message::Open { volumes: vec![1 << 30, 512, 1 << 40] },
        Message::Accept,
        Message::Answer { had: (0..OFFER_MAX).map(|at| at % 3 == 0).collect() },
        Message::Answer { had: vec![true; 9] },
        Message::Applied { epoch: 7 },
        Message::Flushed { barrier: 2, digest: Digest([4; 32]) },
        Message::Abort { why: Why::Local, reason: "no room, no room, no room".into() },
    ]
}

#[test]
fn what_is_understood_of_a_damaged_message_is_what_it_says() {
    let said = said();
    for seed in 1..=SEEDS {
        let mut dice = Dice(seed);
        let mut payload = said[dice.below(said.len())].payload().to_vec();
        mutate(&mut payload, &mut dice);
        match Message::parse(&payload) {
            // Broken characters of a reason are replaced by another.
            Some(Message::Abort { reason, .. }) => assert!(reason.len() <= 3 * payload.len(), "seed {seed}"),
            // Bits beyond the last chunk say nothing.
            Some(Message::Answer { had }) => {
                assert!(had.len() <= OFFER_MAX && had.len().div_ceil(8) + 3 == payload.len(), "seed {seed}");
            }
            Some(message) => {
                assert!(!matches!(&message, Message::Open { volumes } if volumes.len() > VOLUMES_MAX));
                assert_eq!(message.payload(), payload, "seed {seed}");
            }
            None => {}
        }
    }
}

#[test]
fn a_damaged_frame_of_the_data_lane_is_an_error_or_says_what_it_says() {
    let offer = |number: u16| (Place { volume: number, chunk: 1 << number }, ChunkHash([6; 16]));
    let good =
        [manifest(&(0..30).map(offer).collect::<Vec<_>>()), epoch(1 << 33), barrier(9, Digest([1; 32]))];
    for seed in 1..=SEEDS {
        let mut dice = Dice(seed);
        let mut payload = good[dice.below(good.len())].to_vec();
        mutate(&mut payload, &mut dice);
        if let Some(offers) = parse_manifest(&payload) {
            assert!(offers.len() <= OFFER_MAX, "seed {seed}");
            assert_eq!(manifest(&offers), payload, "seed {seed}");
            for (place, _) in offers {
                // A place far beyond its volume has nothing, and is not reckoned with further.
                assert!(chunk_length(1 << 40, place.chunk) <= CHUNK_BYTES, "seed {seed}");
            }
        }
        if let Some(number) = parse_epoch(&payload) {
            assert_eq!(epoch(number), payload, "seed {seed}");
        }
        if let Some((number, digest)) = parse_barrier(&payload) {
            assert_eq!(barrier(number, digest), payload, "seed {seed}");
        }
    }
}

/// A few records as a source makes them, before they are packed.
fn plain(dice: &mut Dice) -> Vec<u8> {
    let mut plain = Vec::new();
    for number in 0..1 + dice.below(12) as u16 {
        let offset = dice.next() >> 20;
        if dice.below(3) == 0 {
            plain.extend(Record::zero(number, offset, dice.next() >> 30));
        } else {
            let data = vec![number as u8; 1 + dice.below(600)];
            plain.extend(Record::data_header(number, offset, data.len()));
            plain.extend(data);
        }
    }
    plain
}

/// The bytes that these records were.
fn again(records: &[Record]) -> Vec<u8> {
    let mut plain = Vec::new();
    for record in records {
        match record {
            Record::Data { volume, offset, data } => {
                plain.extend(Record::data_header(*volume, *offset, data.len()));
                plain.extend(data);
            }
            Record::Zero { volume, offset, length } => plain.extend(Record::zero(*volume, *offset, *length)),
        }
    }
    plain
}

#[test]
fn damaged_records_are_an_error_or_say_what_they_say() {
    let mut understood = 0;
    for seed in 1..=SEEDS {
        let mut dice = Dice(seed);
        let mut bytes = plain(&mut dice);
        mutate(&mut bytes, &mut dice);
        if let Some(records) = Record::parse_all(&Bytes::from(bytes.clone())) {
            assert!(again(&records) == bytes, "seed {seed}");
            understood += 1;
        }
    }
    assert!((1_000..SEEDS).contains(&understood), "{understood}");
}

#[test]
fn a_damaged_batch_unpacks_to_as_much_as_it_says_or_to_nothing() {
    for seed in 1..=SEEDS / 4 {
        let mut dice = Dice(seed);
        let plain = plain(&mut dice);
        let packed = Squeezer::new(1).unwrap().pack(&plain, 1).unwrap();
        let mut payload = batch(plain.len(), &packed).to_vec();
        mutate(&mut payload, &mut dice);
        let Some((length, packed)) = parse_batch(&payload) else { continue };
        if let Ok(out) = Expander::new().unwrap().unpack(packed, length) {
            assert!(out.len() == length && out.capacity() <= length + 1, "seed {seed}");
            let _ = Record::parse_all(&Bytes::from(out));
        }
    }
}
