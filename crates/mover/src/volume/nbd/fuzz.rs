//! Thousands of broken handshakes, requests and replies: never a panic, never a wait for what was announced and does not
//! come, and nothing is taken in that is longer than an option may be.

use tokio::io::{AsyncWriteExt, duplex};

use super::client::Client;
use super::negotiate::{Export, negotiate};
use super::{
    FIXED_NEWSTYLE, HAS_FLAGS, INFO_EXPORT, MAGIC, NO_ZEROES, OPTION_EXPORT_NAME, OPTION_GO, OPTION_LIST,
    OPTION_MAGIC, OPTION_REPLY_MAGIC, REPLY_ACK, REPLY_INFO, Request, parse_reply, reply,
};
use crate::dice::{Dice, mutate};

const SEEDS: u64 = 20_000;
const HANDSHAKES: u64 = 4_000;
/// Whatever either side answers fits in: it never waits for its reader.
const PIPE: usize = 1 << 20;

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [&OPTION_MAGIC.to_be_bytes()[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data]
        .concat()
}

/// What a client says until requests begin.
fn asked(dice: &mut Dice) -> Vec<u8> {
    let mut said = u32::from(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes().to_vec();
    for _ in 0..dice.below(4) {
        said.extend(option(OPTION_LIST, b""));
    }
    match dice.below(2) {
        0 => said.extend(option(OPTION_GO, b"\0\0\0\x01x\0\x01\0\x03")),
        _ => said.extend(option(OPTION_EXPORT_NAME, b"x")),
    }
    said
}

#[tokio::test]
async fn a_server_ends_what_a_damaged_client_begins() {
    let mut served = 0;
    for seed in 1..=HANDSHAKES {
        let mut dice = Dice(seed);
        let mut said = asked(&mut dice);
        mutate(&mut said, &mut dice);
        let (mut near, mut far) = duplex(PIPE);
        far.write_all(&said).await.unwrap();
        far.shutdown().await.unwrap();
        let export = Export { name: "x", bytes: 1 << 30 };
        served += u64::from(negotiate(&mut near, export).await.is_ok());
    }
    assert!((100..HANDSHAKES).contains(&served), "{served}");
}

/// What a server says until requests begin.
fn answered() -> Vec<u8> {
    let mut said = [&MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes()].concat();
    said.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    let info =
        [&INFO_EXPORT.to_be_bytes()[..], &(1_u64 << 30).to_be_bytes(), &HAS_FLAGS.to_be_bytes()].concat();
    for (kind, data) in [(REPLY_INFO, &info[..]), (REPLY_INFO, &[0, 9, 1]), (REPLY_ACK, &[])] {
        said.extend(OPTION_REPLY_MAGIC.to_be_bytes());
        said.extend(OPTION_GO.to_be_bytes());
        said.extend(kind.to_be_bytes());
        said.extend((data.len() as u32).to_be_bytes());
        said.extend(data);
    }
    said
}

#[tokio::test]
async fn a_client_ends_what_a_damaged_server_begins() {
    let mut connected = 0;
    for seed in 1..=HANDSHAKES {
        let (mut dice, mut said) = (Dice(seed), answered());
        // Answers to the read below, too, or to something that nobody asked for.
        said.extend(reply(1 + dice.below(2) as u64, 0));
        said.extend([7; 512]);
        mutate(&mut said, &mut dice);
        let (near, mut far) = duplex(PIPE);
        far.write_all(&said).await.unwrap();
        far.shutdown().await.unwrap();
        if let Ok(client) = Client::over(near, "x").await {
            connected += 1;
            if let Ok(read) = client.read(0, 512).await {
                assert_eq!(read.len(), 512, "seed {seed}");
            }
        }
    }
    assert!((100..HANDSHAKES).contains(&connected), "{connected}");
}

#[test]
fn a_damaged_request_or_reply_is_none_or_says_what_it_says() {
    let request = Request { flags: 1, command: 6, cookie: 1 << 60, offset: 1 << 40, length: 9 };
    for seed in 1..=SEEDS {
        let (mut dice, mut asks) = (Dice(seed), request.bytes().to_vec());
        mutate(&mut asks, &mut dice);
        if let Some(found) = asks.first_chunk().and_then(|bytes| Some((bytes, Request::parse(bytes)?))) {
            assert_eq!(found.1.bytes(), *found.0, "seed {seed}");
        }
        let mut answers = reply(dice.next(), 28).to_vec();
        mutate(&mut answers, &mut dice);
        if let Some(found) = answers.first_chunk().and_then(|bytes| Some((bytes, parse_reply(bytes)?))) {
            let (cookie, error) = found.1;
            assert_eq!(reply(cookie, error), *found.0, "seed {seed}");
        }
    }
}
