//! The guest agent, at the other end of a virtio-serial channel: a sign of life, and programs run in the guest.
//!
//! What comes from there is the guest's: each line is bounded, and nothing of it is believed but the answer to the
//! question that was asked. Protocol: QEMU's docs/interop/qemu-ga-ref. After a question that was not answered the
//! channel is used up; the next one begins with a synchronisation, which skips what may still come.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

/// An answer of the commands that are used here fits many times over.
const LINE_MAX: u64 = 64 << 10;
/// Lines that a guest may send before the answer, left over from questions nobody waited for.
const LINES_MAX: usize = 64;
/// Ends whatever the agent has read so far of an earlier question, and begins the answer to the next.
const MARK: u8 = 0xff;
const POLL_FIRST: Duration = Duration::from_millis(10);
const POLL_LATER: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens at the host's end of the channel, or it broke.
    #[error("the guest agent's channel")]
    Channel(#[from] io::Error),
    /// No answer in time: no agent runs, or the guest hangs.
    #[error("the guest agent did not answer in time")]
    Silent,
    /// It answered, and said no.
    #[error("the guest agent refused: {0}")]
    Refused(String),
    /// What came is no answer.
    #[error("the guest agent answered nonsense: {0}")]
    Nonsense(String),
}

/// How a program in the guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Code(i64),
    Signal(i64),
}

/// One synchronised connection. After an error it is used up.
pub struct Channel {
    stream: BufReader<UnixStream>,
}

#[derive(Deserialize)]
struct Started {
    pid: i64,
}

#[derive(Deserialize)]
struct Status {
    exited: bool,
    #[serde(default)]
    exitcode: Option<i64>,
    #[serde(default)]
    signal: Option<i64>,
}

impl Channel {
    /// Connects and waits for the agent to answer with `mark`, a number that no earlier question had.
    pub async fn open(socket: &Path, mark: u32, until: Instant) -> Result<Self, Error> {
        let stream = timeout_at(until, UnixStream::connect(socket)).await.map_err(|_| Error::Silent)??;
        let mut channel = Self { stream: BufReader::new(stream) };
        let request = json!({ "execute": "guest-sync-delimited", "arguments": { "id": mark } });
        let mut bytes = vec![MARK];
        bytes.extend(request.to_string().into_bytes());
        bytes.push(b'\n');
        timeout_at(until, channel.synchronise(&bytes, mark)).await.map_err(|_| Error::Silent)??;
        Ok(channel)
    }

    async fn synchronise(&mut self, request: &[u8], mark: u32) -> Result<(), Error> {
        self.stream.get_mut().write_all(request).await?;
        for _ in 0..LINES_MAX {
            let line = self.line().await?;
            let answer = line.rsplit(|byte| *byte == MARK).next().unwrap_or_default();
            let value: Option<Value> = serde_json::from_slice(answer).ok();
            if value.is_some_and(|value| value["return"].as_u64() == Some(mark.into())) {
                return Ok(());
            }
        }
        Err(Error::Nonsense("it talks without end".to_owned()))
    }

    async fn line(&mut self) -> Result<Vec<u8>, Error> {
        let mut line = Vec::new();
        (&mut self.stream).take(LINE_MAX).read_until(b'\n', &mut line).await?;
        match line.last() {
            Some(b'\n') => Ok(line),
            None => Err(Error::Channel(io::ErrorKind::UnexpectedEof.into())),
            Some(_) => Err(Error::Nonsense(format!("a line of more than {LINE_MAX} bytes"))),
        }
    }

    /// One command; the answer's `return`.
    async fn ask(&mut self, command: &str, arguments: Value, until: Instant) -> Result<Value, Error> {
        let request = json!({ "execute": command, "arguments": arguments });
        let asked = async {
            self.stream.get_mut().write_all(format!("{request}\n").as_bytes()).await?;
            let line = self.line().await?;
            serde_json::from_slice::<Value>(&line).map_err(|error| Error::Nonsense(error.to_string()))
        };
        let mut answer = timeout_at(until, asked).await.map_err(|_| Error::Silent)??;
        if let Some(error) = answer.get("error") {
            let desc = error["desc"].as_str().unwrap_or("no reason given");
            return Err(Error::Refused(desc.chars().filter(|c| !c.is_control()).take(200).collect()));
        }
        Ok(answer["return"].take())
    }

    /// A sign of life.
    pub async fn ping(&mut self, until: Instant) -> Result<(), Error> {
        self.ask("guest-ping", json!({}), until).await.map(drop)
    }

    /// Runs a program in the guest, as the agent's user there, and waits for its end; its output is not taken.
    pub async fn run(&mut self, program: &str, args: &[String], until: Instant) -> Result<Ended, Error> {
        let arguments = json!({ "path": program, "arg": args, "capture-output": false });
        let started: Started = decoded(self.ask("guest-exec", arguments, until).await?)?;
        let mut pause = POLL_FIRST;
        loop {
            let asked = self.ask("guest-exec-status", json!({ "pid": started.pid }), until).await?;
            let status: Status = decoded(asked)?;
            if status.exited {
                let signal = status.signal.map(Ended::Signal);
                return Ok(signal.unwrap_or(Ended::Code(status.exitcode.unwrap_or(-1))));
            }
            if timeout_at(until, tokio::time::sleep(pause)).await.is_err() {
                return Err(Error::Silent);
            }
            pause = (pause * 2).min(POLL_LATER);
        }
    }
}

fn decoded<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, Error> {
    serde_json::from_value(value).map_err(|error| Error::Nonsense(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// Somebody at the guest's end who says this to each line, the first being the synchronisation.
    fn guest(folder: &Path, answers: Vec<Vec<u8>>) -> std::path::PathBuf {
        let socket = folder.join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            for answer in answers {
                let mut line = Vec::new();
                if stream.read_until(b'\n', &mut line).await.unwrap_or(0) == 0 {
                    return;
                }
                let _ = stream.get_mut().write_all(&answer).await;
            }
            // What is not answered is waited for.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        socket
    }

    fn synchronised(mark: u32) -> Vec<u8> {
        let mut bytes = b"left over from before\n{\"return\": {}}\n\xff".to_vec();
        bytes.extend(format!("{{\"return\": {mark}}}\n").bytes());
        bytes
    }

    #[tokio::test]
    async fn a_sign_of_life_comes_after_what_was_left_over() {
        let folder = tempfile::tempdir().unwrap();
        let socket = guest(folder.path(), vec![synchronised(7), b"{\"return\": {}}\n".to_vec()]);
        let mut channel = Channel::open(&socket, 7, soon()).await.unwrap();
        channel.ping(soon()).await.unwrap();
        let silent = channel.ping(Instant::now() + Duration::from_millis(20)).await;
        assert!(matches!(silent, Err(Error::Silent)), "{silent:?}");
    }

    #[tokio::test]
    async fn a_program_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let answers = [
            r#"{"return":{"pid":9}}"#,
            r#"{"return":{"exited":false}}"#,
            r#"{"return":{"exited":true,"exitcode":3}}"#,
        ];
        let lines = answers.iter().map(|answer| format!("{answer}\n").into_bytes());
        let socket = guest(folder.path(), std::iter::once(synchronised(1)).chain(lines).collect());
        let mut channel = Channel::open(&socket, 1, soon()).await.unwrap();
        assert_eq!(channel.run("/bin/false", &[], soon()).await.unwrap(), Ended::Code(3));
    }

    #[tokio::test]
    async fn a_guest_that_lies_or_floods_is_an_error_and_no_answer() {
        let flood = vec![b'x'; usize::try_from(LINE_MAX).unwrap() + 10];
        let cases = [
            b"{\"error\":{\"class\":\"X\",\"desc\":\"no\\u0007 such\"}}\n".to_vec(),
            b"nonsense\n".to_vec(),
            flood,
        ];
        for answer in cases {
            let folder = tempfile::tempdir().unwrap();
            let socket = guest(folder.path(), vec![synchronised(1), answer]);
            let mut channel = Channel::open(&socket, 1, soon()).await.unwrap();
            let error = channel.ping(soon()).await.unwrap_err();
            assert!(matches!(error, Error::Refused(_) | Error::Nonsense(_)), "{error:?}");
            assert!(!error.to_string().contains('\u{7}'));
        }
        let folder = tempfile::tempdir().unwrap();
        let socket = guest(folder.path(), vec![synchronised(2)]);
        let other = Channel::open(&socket, 1, Instant::now() + Duration::from_millis(50)).await;
        assert!(matches!(other, Err(Error::Silent)), "the answer to somebody else's question");
    }

    #[tokio::test]
    async fn nobody_there_is_told_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let none = Channel::open(&folder.path().join("none"), 1, soon()).await;
        assert!(matches!(none, Err(Error::Channel(_))));
    }
}
