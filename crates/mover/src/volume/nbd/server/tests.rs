//! A server that talks to well-behaved and to hostile clients, without sockets.

use std::time::Instant;

use proptest::prelude::*;
use tokio::io::DuplexStream;

use super::super::{FIXED_NEWSTYLE, NO_ZEROES, OPTION_GO, OPTION_MAGIC, REPLY_BYTES, parse_reply};
use super::*;
use crate::volume::journal::Limits;

const VOLUME: Volume = Volume { bytes: 1 << 20 };

fn intake(memory_bytes: u64) -> Arc<Intake> {
    Arc::new(Intake::new(&[VOLUME], &Limits { memory_bytes, spill: None }).unwrap())
}

fn hello() -> Vec<u8> {
    let mut bytes = u32::from(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes().to_vec();
    bytes.extend(OPTION_MAGIC.to_be_bytes());
    bytes.extend(OPTION_GO.to_be_bytes());
    bytes.extend([0, 0, 0, 6, 0, 0, 0, 0, 0, 0]);
    bytes
}

fn request(command: u16, offset: u64, length: u32) -> [u8; REQUEST_BYTES] {
    Request { flags: 0, command, cookie: 7, offset, length }.bytes()
}

/// A connection on which requests may be made.
async fn open(intake: &Arc<Intake>) -> (DuplexStream, tokio::task::JoinHandle<Gone>) {
    let (mut near, far) = tokio::io::duplex(1 << 20);
    let intake = Arc::clone(intake);
    let served = tokio::spawn(async move { converse(far, 0, VOLUME, &intake).await });
    near.write_all(&hello()).await.unwrap();
    // Greeting, then export, block sizes, acknowledgement.
    near.read_exact(&mut [0; 18 + (20 + 12) + (20 + 14) + 20]).await.unwrap();
    (near, served)
}

async fn ask(stream: &mut DuplexStream, bytes: &[u8]) -> u32 {
    stream.write_all(bytes).await.unwrap();
    let mut answer = [0; REPLY_BYTES];
    stream.read_exact(&mut answer).await.unwrap();
    let (cookie, error) = parse_reply(&answer).unwrap();
    assert_eq!(cookie, 7);
    error
}

#[tokio::test]
async fn each_request_is_answered_with_what_it_deserves_and_the_next_one_is_understood() {
    let intake = intake(1 << 20);
    let (mut stream, served) = open(&intake).await;
    let write = |offset, length: u32| {
        [&request(COMMAND_WRITE, offset, length)[..], &vec![5; length as usize]].concat()
    };
    let end = VOLUME.bytes;
    let table = [
        (write(0, 4096), 0),
        (write(end - 512, 512), 0),
        (write(end, 512), ENOSPC),
        (write(u64::MAX - 511, 512), ENOSPC),
        (write(1, 512), EINVAL),
        (write(0, 100), EINVAL),
        (write(0, 0), EINVAL),
        (request(COMMAND_WRITE_ZEROES, 0, 512).to_vec(), 0),
        (request(COMMAND_WRITE_ZEROES, 512, end as u32).to_vec(), ENOSPC),
        (request(COMMAND_TRIM, 512, 512).to_vec(), 0),
        (request(COMMAND_FLUSH, 0, 0).to_vec(), 0),
        (request(COMMAND_READ, 0, 512).to_vec(), EIO),
        (request(77, 0, 0).to_vec(), EINVAL),
    ];
    for (number, (bytes, error)) in table.into_iter().enumerate() {
        assert_eq!(ask(&mut stream, &bytes).await, error, "request {number}");
    }
    stream.write_all(&request(COMMAND_DISCONNECT, 0, 0)).await.unwrap();
    assert!(matches!(served.await.unwrap(), Gone::Disconnected));
    let progress = *intake.progress().borrow();
    assert_eq!((progress.written_bytes, progress.zeroed_bytes), (4096 + 512, 1024));
}

#[tokio::test]
async fn a_length_from_a_stranger_ends_the_connection() {
    let (mut stream, served) = open(&intake(1 << 20)).await;
    stream.write_all(&request(COMMAND_WRITE, 0, PAYLOAD_MAX + 1)).await.unwrap();
    assert!(matches!(served.await.unwrap(), Gone::TooLong(_)));
}

#[tokio::test]
async fn a_write_that_has_no_room_is_answered_when_there_is_some() {
    let intake = intake(16 << 10);
    let (mut stream, _served) = open(&intake).await;
    let write = [&request(COMMAND_WRITE, 0, 32 << 10)[..], &[5; 32 << 10]].concat();
    let mut asking = std::pin::pin!(ask(&mut stream, &write));
    let mut freed = 0;
    let error = loop {
        tokio::select! {
            error = &mut asking => break error,
            () = intake.arrived.notified() => {
                let mut journal = intake.journal();
                if journal.usage().0 == 16 << 10 {
                    let taken = journal.take(Instant::now(), Duration::ZERO, 9).unwrap();
                    taken.chunks.iter().for_each(|chunk| journal.free(chunk));
                    freed += 1;
                }
                drop(journal);
                intake.on_room();
            }
        }
    };
    assert_eq!(error, 0);
    // Twice full on the way; the last part may have been taken before the answer was seen, or not.
    assert!((1..=2).contains(&freed), "{freed}");
}

#[tokio::test]
async fn a_socket_is_closed_to_others_replaces_a_dead_one_and_goes_with_its_owner() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let socket = Socket::bind(&path).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    drop(socket);
    assert!(!path.exists());
    // What is no socket is not ours.
    std::fs::write(&path, "mine").unwrap();
    assert!(Socket::bind(&path).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_bytes_make_it_panic_or_hang(
        garbage in proptest::collection::vec(any::<u8>(), 0..200),
        at in 0..300_usize,
        changed in proptest::collection::vec((0..300_usize, any::<u8>()), 0..4),
    ) {
        let mut bytes = hello();
        for command in [COMMAND_WRITE, COMMAND_WRITE_ZEROES, COMMAND_TRIM, COMMAND_READ, 99] {
            bytes.extend(request(command, 512, 512));
            if command == COMMAND_WRITE {
                bytes.extend([3; 512]);
            }
        }
        for (place, value) in changed {
            let length = bytes.len();
            bytes[place % length] = value;
        }
        bytes.splice(at.min(bytes.len()).., garbage);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let intake = intake(1 << 20);
            let (mut near, far) = tokio::io::duplex(1 << 20);
            near.write_all(&bytes).await.unwrap();
            near.shutdown().await.unwrap();
            let served = tokio::time::timeout(Duration::from_secs(20), converse(far, 0, VOLUME, &intake));
            served.await.unwrap();
            assert!(intake.journal().usage().0 <= 1 << 20);
        });
    }
}
