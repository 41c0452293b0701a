//! A small HTTP/1.1 server: GET only, keep-alive, one thread a connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::filler::Random;
use crate::{Workload, routes};

/// A guest of 64 MiB still answers with this many threads.
const CONNECTIONS_MAX: usize = 256;
const STACK_BYTES: usize = 64 << 10;
const HEAD_BYTES_MAX: u64 = 8 << 10;
/// Longer than any pause of a migration: an idle connection must outlive the move.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

pub struct Response {
    pub status: u16,
    pub content_type: &'static str,
    pub body: String,
    /// Instead of the body.
    pub stream: Option<Stream>,
}

/// Pseudo-random bytes, the same ones every time, at a steady rate: a download that lasts, and that can be checked.
pub struct Stream {
    pub bytes: u64,
    pub bytes_per_s: u64,
}

/// The seed of what is downloaded.
const SEED: u64 = 0xd0_4210ad;
const CHUNK: usize = 16 << 10;

impl Stream {
    fn send(&self, to: &mut impl Write) -> io::Result<()> {
        let (began, mut random, mut sent) = (Instant::now(), Random::new(SEED), 0);
        let mut chunk = Vec::with_capacity(CHUNK);
        while sent < self.bytes {
            chunk.clear();
            let length = CHUNK.min((self.bytes - sent) as usize);
            (0..length / 8).for_each(|_| chunk.extend_from_slice(&random.next().to_le_bytes()));
            to.write_all(&chunk)?;
            sent += chunk.len() as u64;
            let due = Duration::from_secs_f64(sent as f64 / self.bytes_per_s as f64);
            thread::sleep(due.saturating_sub(began.elapsed()));
        }
        Ok(())
    }
}

impl Response {
    pub fn text(body: impl Into<String>) -> Self {
        Self { status: 200, content_type: "text/plain; charset=utf-8", body: body.into(), stream: None }
    }

    pub fn json(body: String) -> Self {
        Self { content_type: "application/json", ..Self::text(body) }
    }

    /// A whole number of KiB.
    pub fn stream(stream: Stream) -> Self {
        Self { content_type: "application/octet-stream", stream: Some(stream), ..Self::text("") }
    }

    pub fn refusal(status: u16, why: impl Into<String>) -> Self {
        Self { status, ..Self::text(why) }
    }
}

/// Accepts for ever.
pub fn serve(workload: &Arc<Workload>) {
    let listener = TcpListener::bind("[::]:80").or_else(|_| TcpListener::bind("0.0.0.0:80"));
    let listener = listener.expect("nothing else in the guest uses port 80");
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming().flatten() {
        if open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            continue; // Dropping it closes it.
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (workload, counted) = (Arc::clone(workload), Counted(Arc::clone(&open)));
        let _ = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            let _counted = counted;
            // A connection ends when its peer goes away: nobody is left to be told.
            let _ = converse(&workload, stream);
        });
    }
}

/// Gives the place of a connection back, also when its thread could not be made.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn converse(workload: &Workload, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    let mut reader = BufReader::with_capacity(4096, stream.try_clone()?);
    let mut writer = stream;
    while let Some(request) = read_request(&mut reader)? {
        let response = respond(workload, &request);
        writer.write_all(encode(&response, request.keeps_alive).as_bytes())?;
        if let Some(stream) = &response.stream {
            stream.send(&mut writer)?;
        }
        if !request.keeps_alive {
            break;
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq)]
struct Request {
    method: String,
    target: String,
    keeps_alive: bool,
}

fn respond(workload: &Workload, request: &Request) -> Response {
    if request.method != "GET" {
        return Response::refusal(405, "only GET is answered here\n");
    }
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    routes::answer(workload, path, query)
}

/// `None` at the end of the connection. Bodies are not read: a request with one ends the connection.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut head = reader.take(HEAD_BYTES_MAX);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a request line"));
    };
    let (method, target) = (method.to_owned(), target.to_owned());
    let mut keeps_alive = version == "HTTP/1.1";
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the head has no end"));
        }
        let header = line.trim_end().to_ascii_lowercase();
        match header.split_once(':').map(|(name, value)| (name, value.trim())) {
            Some(("connection", "close")) => keeps_alive = false,
            Some(("connection", "keep-alive")) => keeps_alive = true,
            Some(("content-length", length)) if length != "0" => keeps_alive = false,
            Some(("transfer-encoding", _)) => keeps_alive = false,
            _ if header.is_empty() => return Ok(Some(Request { method, target, keeps_alive })),
            _ => {}
        }
    }
}

fn encode(response: &Response, keeps_alive: bool) -> String {
    let Response { status, content_type, body, stream } = response;
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        507 => "Insufficient Storage",
        _ => "Error",
    };
    let connection = if keeps_alive { "keep-alive" } else { "close" };
    let length = stream.as_ref().map_or(body.len() as u64, |stream| stream.bytes);
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         Connection: {connection}\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> io::Result<Option<Request>> {
        read_request(&mut text.as_bytes())
    }

    fn request(target: &str, keeps_alive: bool) -> Option<Request> {
        Some(Request { method: "GET".to_owned(), target: target.to_owned(), keeps_alive })
    }

    #[test]
    fn requests_are_read_one_after_the_other() {
        let mut both = "GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\n\r\n".as_bytes();
        assert_eq!(read_request(&mut both).unwrap(), request("/a", true));
        assert_eq!(read_request(&mut both).unwrap(), request("/b", true));
        assert_eq!(read_request(&mut both).unwrap(), None);
    }

    #[test]
    fn the_client_says_whether_the_connection_stays() {
        assert_eq!(read("GET / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap(), request("/", false));
        assert_eq!(read("GET / HTTP/1.0\r\n\r\n").unwrap(), request("/", false));
        assert_eq!(read("GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n").unwrap(), request("/", true));
    }

    #[test]
    fn a_broken_head_is_an_error() {
        assert!(read("GARBAGE\r\n\r\n").is_err());
        assert!(read("GET / HTTP/1.1\r\nHost: x\r\n").is_err(), "no empty line");
        assert!(read(&format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(9000))).is_err(), "too long");
    }

    #[test]
    fn a_stream_is_the_same_bytes_every_time() {
        let stream = Stream { bytes: 40 << 10, bytes_per_s: 1 << 30 };
        let [mut one, mut other] = [Vec::new(), Vec::new()];
        stream.send(&mut one).unwrap();
        stream.send(&mut other).unwrap();
        assert_eq!(one.len(), 40 << 10);
        assert_eq!(one, other);
        assert!(one.chunks(4096).skip(1).all(|page| page != &one[..4096]));
        assert!(encode(&Response::stream(stream), true).contains("Content-Length: 40960\r\n"));
    }

    #[test]
    fn the_length_is_that_of_the_body() {
        let text = encode(&Response::text("hello"), true);
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(text.contains("Content-Length: 5\r\n"));
        assert!(text.ends_with("\r\n\r\nhello"));
    }
}
