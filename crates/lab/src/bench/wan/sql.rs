//! As much of PostgreSQL's protocol (version 3.0, "Frontend/Backend Protocol" of its manual) as one client needs that
//! asks one thing after another and is not asked for a password.

use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const PORT: u16 = 5432;
const VERSION: u32 = 3 << 16;
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// TCP itself gives up much later; nobody who waits for a transaction waits that long.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// One connection.
pub struct Session {
    stream: BufReader<TcpStream>,
}

impl Session {
    /// As the database's own administrator.
    pub fn open(guest: Ipv4Addr) -> Result<Self> {
        Self::open_at((guest, PORT).into())
    }

    fn open_at(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, CONNECT_MAX).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        let mut session = Self { stream: BufReader::new(stream) };
        let who = b"user\0postgres\0database\0postgres\0\0";
        session.send(&[&VERSION.to_be_bytes()[..], who].concat(), None)?;
        session.until_ready()?;
        Ok(session)
    }

    /// Any statements; the first column of every row that they give.
    pub fn ask(&mut self, sql: &str) -> Result<Vec<String>> {
        self.send(&[sql.as_bytes(), b"\0"].concat(), Some(b'Q'))?;
        self.until_ready()
    }

    /// The first message of a connection has no kind.
    fn send(&mut self, body: &[u8], kind: Option<u8>) -> Result<()> {
        let length = u32::try_from(body.len() + 4)?.to_be_bytes();
        let message = [kind.as_slice(), &length, body].concat();
        self.stream.get_mut().write_all(&message).context("send")
    }

    fn until_ready(&mut self) -> Result<Vec<String>> {
        let (mut values, mut refusal) = (Vec::new(), None);
        loop {
            let (kind, body) = match (self.message(), &refusal) {
                (Ok(message), _) => message,
                // A connection that is refused is closed after the reason.
                (Err(_), Some(reason)) => bail!("the database refused: {reason}"),
                (Err(error), None) => return Err(error),
            };
            match kind {
                b'Z' => break,
                // Authentication: 0 is "you are in", all others are questions.
                b'R' => ensure!(body.starts_with(&[0; 4]), "the database asks for a password"),
                b'D' => values.push(first_column(&body).context("understand a row")?),
                b'E' => refusal = Some(reason(&body)),
                _ => {}
            }
        }
        match refusal {
            Some(reason) => bail!("the database refused: {reason}"),
            None => Ok(values),
        }
    }

    fn message(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head).context("receive")?;
        let [kind, length @ ..] = head;
        let length =
            (u32::from_be_bytes(length) as usize).checked_sub(4).context("a message without a length")?;
        ensure!(length <= MESSAGE_BYTES_MAX, "a message of {length} bytes");
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).context("receive")?;
        Ok((kind, body))
    }
}

/// Number of columns, then each with its length; all are text.
fn first_column(row: &[u8]) -> Option<String> {
    let length = u32::from_be_bytes(row.get(2..6)?.try_into().ok()?) as usize;
    Some(String::from_utf8_lossy(row.get(6..6 + length)?).into_owned())
}

/// Fields of a letter and a text each; M is the message for people.
fn reason(fields: &[u8]) -> String {
    let message = fields.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(b"M"));
    String::from_utf8_lossy(message.unwrap_or(b"without a reason")).into_owned()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind], &(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
    }

    /// A database that says this to its client and this to what it asks first, and goes away.
    fn talk(hello: Vec<u8>, answer: Vec<u8>) -> Result<Vec<String>> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 256];
            assert!(stream.read(&mut buffer).unwrap() > 0);
            stream.write_all(&hello).unwrap();
            if !answer.is_empty() {
                assert!(stream.read(&mut buffer).unwrap() > 5);
                assert_eq!(&buffer[..5], b"Q\0\0\0\r");
                stream.write_all(&answer).unwrap();
            }
        });
        let asked = Session::open_at(address).and_then(|mut session| session.ask("SELECT 1"));
        server.join().unwrap();
        asked
    }

    fn welcome() -> Vec<u8> {
        [message(b'R', &[0; 4]), message(b'S', b"TimeZone\0UTC\0"), message(b'Z', b"I")].concat()
    }

    #[test]
    fn rows_come_until_the_database_is_ready() {
        let row = message(b'D', b"\0\x01\0\0\0\x0242");
        let answer =
            [message(b'T', b"\0\0"), row, message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat();
        assert_eq!(talk(welcome(), answer).unwrap(), ["42"]);
    }

    #[test]
    fn a_refusal_has_the_reason_and_a_connection_that_ends_is_an_error() {
        let refused = message(b'E', b"SERROR\0Mno such table\0\0");
        let answer = [refused.clone(), message(b'Z', b"I")].concat();
        assert!(talk(welcome(), answer).unwrap_err().to_string().contains("no such table"));
        assert!(talk(refused, vec![]).unwrap_err().to_string().contains("no such table"));
        assert!(talk(welcome(), message(b'T', b"")).unwrap_err().to_string().contains("receive"));
        assert!(talk(message(b'R', b"\0\0\0\x0a"), vec![]).unwrap_err().to_string().contains("password"));
    }
}
