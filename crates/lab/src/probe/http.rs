//! Requests over HTTP/1.1, one after another on one connection; how many had no complete right answer in 10 s.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::Stop;
use crate::netns;

pub const PORT: u16 = 80;
/// A request without an answer for longer is lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// A guest that runs takes a connection sooner.
const CONNECT: Duration = Duration::from_secs(2);
/// A connection that found no guest is tried again by the kernel after a second: too late to tell when one came.
const CONNECT_SOON: Duration = Duration::from_millis(50);
/// Before the next try when the guest cannot be reached at all.
const PAUSE: Duration = Duration::from_millis(100);
const BODY_BYTES_MAX: usize = 64 << 10;
const HEAD_BYTES_MAX: u64 = 16 << 10;
/// What the first few losses were; the rest is counted.
const REASONS_MAX: usize = 5;

#[derive(Debug, Clone, Default)]
pub struct Live(Arc<Mutex<(u64, String)>>);

impl Live {
    /// How many requests were answered, and the last answer.
    #[must_use]
    pub fn answered(&self) -> (u64, String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Outcome {
    pub requests: u64,
    /// Those without a complete right answer in 10 s; none is tried again.
    pub lost: u64,
    pub slowest_ms: f64,
    /// Why the first few were lost.
    pub reasons: Vec<String>,
    /// The guest's own count went up by one with each answer, so that no other guest answered.
    pub in_order: bool,
    pub last_answer: String,
}

/// Asks until stopped. The sockets are those of the calling thread's namespace.
pub fn run(guest: Ipv4Addr, port: u16, stop: &Stop, live: &Live) -> Result<Outcome> {
    let mut outcome = Outcome { in_order: true, ..Outcome::default() };
    let mut connection = None;
    let mut last_count = None;
    while !stop.is_stopped() {
        let began = Instant::now();
        let answer = ask(&mut connection, (guest, port).into(), began + PATIENCE);
        outcome.requests += 1;
        outcome.slowest_ms = outcome.slowest_ms.max(began.elapsed().as_secs_f64() * 1000.0);
        match answer {
            Ok(answer) => {
                let count = count_in(&answer);
                outcome.in_order &= count.is_some() && last_count.is_none_or(|last| count > Some(last));
                last_count = count.or(last_count);
                let mut shown = live.0.lock().unwrap_or_else(PoisonError::into_inner);
                *shown = (outcome.requests - outcome.lost, answer.clone());
                outcome.last_answer = answer;
            }
            Err(error) => {
                connection = None;
                outcome.lost += 1;
                if outcome.reasons.len() < REASONS_MAX {
                    outcome.reasons.push(format!("request {}: {error:#}", outcome.requests));
                }
                std::thread::sleep(PAUSE.saturating_sub(began.elapsed()));
            }
        }
    }
    Ok(outcome)
}

/// The guest's own count of requests, in `... requests=N ...`.
fn count_in(answer: &str) -> Option<u64> {
    answer.split_whitespace().find_map(|word| word.strip_prefix("requests=")?.parse().ok())
}

fn ask(
    connection: &mut Option<BufReader<TcpStream>>,
    guest: SocketAddr,
    deadline: Instant,
) -> Result<String> {
    let reader = match connection {
        Some(reader) => reader,
        None => {
            let stream = TcpStream::connect_timeout(&guest, left(deadline)?).context("connect")?;
            stream.set_nodelay(true)?;
            connection.insert(BufReader::new(stream))
        }
    };
    let stream = reader.get_mut();
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", guest.ip()).as_bytes()).context("send")?;
    let (answer, stays_open) = read_answer(&mut Patient { reader, deadline })?;
    if !stays_open {
        *connection = None;
    }
    Ok(answer)
}

fn left(deadline: Instant) -> Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    ensure!(!left.is_zero(), "no complete answer in {} s", PATIENCE.as_secs());
    Ok(left)
}

/// Every read ends at the same deadline, however the answer trickles in.
struct Patient<'a> {
    reader: &'a mut BufReader<TcpStream>,
    deadline: Instant,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Patient<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.reader.buffer().is_empty() {
            let left = left(self.deadline).map_err(std::io::Error::other)?;
            self.reader.get_ref().set_read_timeout(Some(left))?;
        }
        self.reader.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.reader.consume(amount);
    }
}

/// The body of one answer, and whether the connection stays open.
fn read_answer(reader: &mut impl BufRead) -> Result<(String, bool)> {
    let mut head = reader.take(HEAD_BYTES_MAX);
    let mut line = String::new();
    ensure!(head.read_line(&mut line).context("receive")? > 0, "the connection was closed");
    let status = line.split_whitespace().nth(1).unwrap_or_default().to_owned();
    ensure!(line.starts_with("HTTP/1.1 ") && status == "200", "answered {}", line.trim());
    let (mut length, mut stays_open) = (None, true);
    loop {
        line.clear();
        ensure!(head.read_line(&mut line).context("receive")? > 0, "the head has no end");
        let header = line.trim_end().to_ascii_lowercase();
        match header.split_once(':').map(|(name, value)| (name, value.trim())) {
            Some(("content-length", value)) => length = value.parse::<usize>().ok(),
            Some(("connection", "close")) => stays_open = false,
            _ if header.is_empty() => break,
            _ => {}
        }
    }
    let Some(length) = length.filter(|length| *length <= BODY_BYTES_MAX) else {
        bail!("an answer without a length")
    };
    let mut body = vec![0; length];
    reader.read_exact(&mut body).context("receive the body")?;
    Ok((String::from_utf8(body).context("read the body")?.trim_end().to_owned(), stays_open))
}

/// One request from a namespace on a connection of its own; the body of its answer.
pub fn once(space: &str, guest: Ipv4Addr, path: &str) -> Result<String> {
    let path = path.to_owned();
    let thread = netns::inside(Some(space), move || once_here(guest, &path, CONNECT))?;
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Asks a guest that does not answer yet again and again, each time on a new connection; when it answered.
pub fn first_answer(space: &str, guest: Ipv4Addr, path: &str, until: Instant) -> Result<Instant> {
    let path = path.to_owned();
    let thread = netns::inside(Some(space), move || {
        loop {
            let asked = Instant::now();
            match once_here(guest, &path, CONNECT_SOON) {
                Ok(_) => return Ok(Instant::now()),
                Err(error) if Instant::now() > until => return Err(error.context("it does not answer")),
                Err(_) => std::thread::sleep(CONNECT_SOON.saturating_sub(asked.elapsed())),
            }
        }
    })?;
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn once_here(guest: Ipv4Addr, path: &str, connect: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&(guest, PORT).into(), connect).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {guest}\r\nConnection: close\r\n\r\n").context("send")?;
    read_answer(&mut BufReader::new(stream)).map(|(body, _)| body)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_whole_answer_is_read_and_nothing_of_the_next() {
        let mut text = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1".as_bytes();
        assert_eq!(read_answer(&mut text).unwrap(), ("abc".to_owned(), true));
        assert_eq!(text, b"HTTP/1.1");
    }

    #[test]
    fn an_answer_that_is_wrong_or_cut_is_none() {
        for text in [
            "",
            "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Le",
        ] {
            assert!(read_answer(&mut text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn requests_and_losses_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Stop::default();
        let stopper = stop.clone();
        let server = std::thread::spawn(move || {
            // The first connection is cut in the third answer; the second is answered until the end.
            for (connection, whole) in [(0, 2), (1, 3)] {
                let (stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream);
                for answer in 0..=whole {
                    let mut line = String::new();
                    while line != "\r\n" {
                        line.clear();
                        reader.read_line(&mut line).unwrap();
                    }
                    let body = format!("requests={}\n", 10 * connection + answer + 1);
                    let cut = if answer == whole { 4 } else { 0 };
                    if connection == 1 && answer == whole {
                        stopper.stop();
                    }
                    let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    reader.get_mut().write_all(&text.as_bytes()[..text.len() - cut]).unwrap();
                }
            }
        });
        let outcome = run(Ipv4Addr::LOCALHOST, port, &stop, &Live::default()).unwrap();
        server.join().unwrap();
        assert_eq!((outcome.requests, outcome.lost, outcome.in_order), (7, 2, true), "{outcome:?}");
        assert_eq!(outcome.last_answer, "requests=13");
    }
}
