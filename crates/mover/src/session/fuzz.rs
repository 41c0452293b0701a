//! Thousands of broken messages and return paths: never a panic, and nothing is understood that nobody would have said.

use bytes::Bytes;

use super::End;
use super::message::{Message, OFFER_MAX, grant, parse_grant};
use super::return_path::ReturnPath;
use crate::checkpoint::CheckpointId;
use crate::dice::{Dice, mutate};
use crate::hash::{Key, PageHash, StreamHash};

const SEEDS: u64 = 20_000;
const READ_BYTES: usize = 700;

fn said() -> Vec<Message> {
    let open =
        |checkpoint| Message::Open { key: Key([9; 32]), store_bytes: 1 << 30, pages_max: 7, checkpoint };
    vec![
        open(Some(CheckpointId([5; 32]))),
        open(None),
        Message::Offer((0..20).map(|number| PageHash([number; 16])).collect()),
        Message::Accept { has_checkpoint: true },
        Message::ReturnPath(Bytes::from_static(b"\0\x02\0\x04\0\0\0\x01")),
        Message::Loaded { code: 3 },
        Message::Committed,
        Message::Abort { reason: "no room, no room, no room".into() },
    ]
}

#[test]
fn what_is_understood_of_a_damaged_message_is_what_it_says() {
    let said = said();
    for seed in 1..=SEEDS {
        let mut dice = Dice(seed);
        let mut payload = said[dice.below(said.len())].payload().to_vec();
        mutate(&mut payload, &mut dice);
        let payload = Bytes::from(payload);
        match Message::parse(&payload) {
            // Broken characters of a reason are replaced by another.
            Some(Message::Abort { reason }) => assert!(reason.len() <= 3 * payload.len(), "seed {seed}"),
            Some(message) => assert_eq!(message.payload(), payload, "seed {seed}"),
            None => {}
        }
    }
}

#[test]
fn more_names_than_an_offer_may_have_are_refused() {
    let most = Message::Offer(vec![PageHash([1; 16]); OFFER_MAX]);
    assert!(Message::parse(&most.payload()).is_some());
    let more = Message::Offer(vec![PageHash([1; 16]); OFFER_MAX + 1]);
    assert!(Message::parse(&more.payload()).is_none());
}

#[test]
fn a_damaged_grant_is_an_error_or_says_what_it_says() {
    let good = grant(End { hash: StreamHash([3; 32]), length: 1 << 40 }, b"batch");
    for seed in 1..=SEEDS {
        let (mut dice, mut payload) = (Dice(seed), good.to_vec());
        mutate(&mut payload, &mut dice);
        if let Some((end, batch)) = parse_grant(&payload) {
            assert_eq!(grant(end, batch), payload, "seed {seed}");
        }
    }
}

#[test]
fn a_damaged_return_path_passes_unchanged_up_to_its_last_word_and_little_of_it_is_kept() {
    let words: [&[u8]; 5] = [
        b"\0\x02\0\x04\0\0\0\x01",
        b"\0\x05\0\x02\x01a\0\0\0\0\0\0\0\x08\x01\x23\x45\x67\x89\xab\xcd\xef\0\0\0\0\0\0\0\0",
        b"\0\x03\0\x10\0\0\0\0\0\0\x10\0\0\0\x10\0\x03ram",
        b"\0\x07\0\0",
        b"\0\x01\0\x04\0\0\0\0",
    ];
    for seed in 1..=SEEDS {
        let mut dice = Dice(seed);
        let picked = (0..30).map(|_| words[dice.below(4)]).chain([words[4]]);
        let mut bytes = picked.collect::<Vec<_>>().concat();
        mutate(&mut bytes, &mut dice);
        let (mut path, mut passed, mut pushed) = (ReturnPath::default(), Vec::new(), 0);
        for part in bytes.chunks(1 + dice.below(READ_BYTES)) {
            passed.extend(path.push(part));
            pushed += part.len();
            assert!(bytes.starts_with(&passed), "seed {seed}");
            if path.shut().is_some() {
                break;
            }
            // A message that has not come whole: its head and a length of two bytes.
            assert!(pushed - passed.len() < 4 + usize::from(u16::MAX), "seed {seed}");
        }
        passed.extend(path.take_rest());
        assert!(passed == bytes[..pushed], "seed {seed}");
    }
}
