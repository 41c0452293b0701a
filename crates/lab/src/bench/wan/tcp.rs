//! A download through the VM while it moves: one TCP connection, every byte checked.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sterna_base::units::Bytes;
use tokio::time::sleep;

use super::case::tell;
use super::rig::{Path, Rig};
use crate::bench::table::{Bar, Table};
use crate::netns;
use crate::probe::http::PORT;

const MEMORY: Bytes = Bytes::mib(256);
/// At a rate at which it lasts longer than the move, before and after it.
const MIB: usize = 40;
const KIB_PER_S: usize = 1024;
/// Before the move.
const BEFORE: Duration = Duration::from_secs(3);
/// TCP itself gives up much later; nobody who downloads something waits that long.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// The guest's own seed (`guest/workload/src/http.rs`).
const SEED: u64 = 0xd0_4210ad;

pub async fn tcp(rig: &Rig<'_>, repeats: usize) -> Result<Table> {
    let (mut broken, mut wrong, mut longest) = (0, 0, Duration::ZERO);
    let mut table = Table::default();
    for number in 0..repeats {
        let guest = rig.guest("serves", MEMORY).await?;
        rig.path(Path::R)?;
        let address = guest.address;
        let began = Instant::now();
        let client = netns::inside(Some(&rig.world.space(rig.client)), move || download(address))?;
        sleep(BEFORE).await;
        let moved = rig.by_sterna(&guest, rig.away).await?;
        tell("while it serves a download", number, Some(&moved));
        ensure!(
            began.elapsed().as_secs() < (MIB * 1024 / KIB_PER_S) as u64,
            "the move took longer than the download that it was to disturb"
        );
        let seen = tokio::task::spawn_blocking(move || client.join()).await?;
        match seen.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
            Ok(seen) => {
                wrong += seen.wrong;
                longest = longest.max(seen.longest);
            }
            Err(error) => {
                broken += 1;
                table.note(format!("download: {error:#}"));
            }
        }
        rig.clear().await?;
    }
    table.bar("download while the VM moves: broken off", f64::from(broken), "", Bar::AtMost(0.0), None);
    table.bar("download while the VM moves: wrong bytes", wrong as f64, "", Bar::AtMost(0.0), None);
    table.info("download while the VM moves: longest silence", longest.as_secs_f64() * 1000.0, "ms", None);
    Ok(table)
}

/// What a whole download was like.
#[derive(Debug, PartialEq)]
struct Seen {
    wrong: u64,
    longest: Duration,
}

fn download(guest: Ipv4Addr) -> Result<Seen> {
    let mut stream = TcpStream::connect_timeout(&(guest, PORT).into(), SILENCE_MAX).context("connect")?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    write!(
        stream,
        "GET /download?mib={MIB}&kib_per_s={KIB_PER_S} HTTP/1.1\r\nHost: {guest}\r\nConnection: close\r\n\r\n"
    )
    .context("ask for a download")?;
    check(BufReader::new(stream), MIB << 20)
}

/// Reads an answer to its end.
fn check(mut answer: impl BufRead, bytes: usize) -> Result<Seen> {
    let mut line = String::new();
    answer.read_line(&mut line).context("receive")?;
    ensure!(line.starts_with("HTTP/1.1 200 "), "answered {}", line.trim());
    while line != "\r\n" {
        line.clear();
        ensure!(answer.read_line(&mut line).context("receive")? > 0, "the head has no end");
    }
    let (mut expected, mut seen) = (Expected::new(), Seen { wrong: 0, longest: Duration::ZERO });
    let (mut buffer, mut received) = (vec![0; 64 << 10], 0);
    loop {
        let began = Instant::now();
        let length =
            answer.read(&mut buffer).with_context(|| format!("broken off after {received} bytes"))?;
        seen.longest = seen.longest.max(began.elapsed());
        if length == 0 {
            break;
        }
        received += length;
        seen.wrong += buffer[..length].iter().filter(|byte| expected.next() != Some(**byte)).count() as u64;
    }
    if received != bytes {
        bail!("ended after {received} bytes of {bytes}");
    }
    Ok(seen)
}

/// The bytes that the guest makes: xorshift64*, in little-endian words.
struct Expected {
    state: u64,
    word: [u8; 8],
    at: usize,
}

impl Expected {
    fn new() -> Self {
        Self { state: SEED | 1, word: [0; 8], at: 8 }
    }
}

impl Iterator for Expected {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        if self.at == self.word.len() {
            self.state ^= self.state >> 12;
            self.state ^= self.state << 25;
            self.state ^= self.state >> 27;
            self.word = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            self.at = 0;
        }
        self.at += 1;
        Some(self.word[self.at - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &[u8]) -> Vec<u8> {
        [b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n".as_slice(), body].concat()
    }

    #[test]
    fn a_whole_right_download_has_no_wrong_byte() {
        let body: Vec<u8> = Expected::new().take(64).collect();
        assert_eq!(check(&answer(&body)[..], 64).unwrap().wrong, 0);
    }

    #[test]
    fn every_wrong_byte_counts() {
        let mut body: Vec<u8> = Expected::new().take(64).collect();
        body[7] ^= 1;
        body[63] ^= 1;
        assert_eq!(check(&answer(&body)[..], 64).unwrap().wrong, 2);
    }

    #[test]
    fn a_download_that_ends_early_or_is_refused_is_broken_off() {
        let body: Vec<u8> = Expected::new().take(63).collect();
        assert!(check(&answer(&body)[..], 64).unwrap_err().to_string().contains("after 63 bytes"));
        assert!(check(&b"HTTP/1.1 404 Not Found\r\n\r\n"[..], 64).is_err());
    }
}
