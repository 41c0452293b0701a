//! Thousands of broken first frames and acknowledgements: never a panic, and nothing is understood that was not said.

use super::hello::{Error, Hello, STREAMS_MAX, ack, parse_ack, parse_refusal};
use super::{Refusal, SessionId};
use crate::dice::{Dice, mutate};
use crate::frame::Lane;

const SEEDS: u64 = 20_000;

#[test]
fn a_damaged_hello_is_an_error_or_says_what_it_says() {
    let hello = Hello { session: SessionId([7; 16]), connection: 3, delivered: [9, 1 << 40] };
    let mut understood = 0;
    for seed in 1..=SEEDS {
        let (mut dice, mut payload) = (Dice(seed), hello.payload().to_vec());
        mutate(&mut payload, &mut dice);
        match Hello::parse(&payload) {
            Ok(other) => {
                assert!(other.connection <= STREAMS_MAX, "seed {seed}");
                assert_eq!(other.payload(), payload, "seed {seed}");
                understood += 1;
            }
            Err(Error::Version(version)) => assert_eq!(payload.first(), Some(&version), "seed {seed}"),
            Err(Error::Malformed) => {}
        }
    }
    assert!((1_000..SEEDS).contains(&understood), "{understood}");
}

#[test]
fn a_damaged_acknowledgement_is_none_or_says_what_it_says() {
    for seed in 1..=SEEDS {
        let mut dice = Dice(seed);
        let mut payload = ack(Lane::ALL[dice.below(2)], dice.next()).to_vec();
        mutate(&mut payload, &mut dice);
        if let Some((lane, delivered)) = parse_ack(&payload) {
            assert_eq!(ack(lane, delivered), payload, "seed {seed}");
        }
        // Whatever a refusal says, it is one.
        let refusal = parse_refusal(&payload);
        let known = [Refusal::UnknownSession, Refusal::OtherPeer, Refusal::Version];
        assert!(known.contains(&refusal), "seed {seed}");
    }
}
