//! One run of a program: its input, its end in time, and the beginning of what it says.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::Failed;

/// Kept of each stream; the rest is read and dropped, so that a program that talks much does not get stuck.
const OUTPUT_MAX: usize = 16 * 1024;
/// What a program leaves behind may keep its output open.
const LAST_WORDS: Duration = Duration::from_millis(500);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// Absent: by a signal.
    pub code: Option<i32>,
    pub output: String,
    pub errors: String,
}

/// The program with all that it has started. Dropped before its end, it is killed.
struct Group(Child);

impl Group {
    fn kill(&self) {
        // As long as it has not been waited for, the number is its own.
        let leader = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(leader) = leader {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs it with `input`. It is killed when it has not ended `within` that time.
pub async fn run(program: &Path, input: &str, within: Duration) -> Result<Ended, Failed> {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Whoever is killed is also waited for.
        .kill_on_drop(true);
    let child = command.spawn().map_err(|error| Failed(format!("cannot start it: {error}")))?;
    let mut group = Group(child);
    match tokio::time::timeout(within, talk(&mut group.0, input)).await {
        Ok(ended) => ended.map_err(|error| Failed(format!("cannot speak to it: {error}"))),
        Err(_) => {
            group.kill();
            // It cannot refuse; one that the kernel does not let go is nobody's to wait for.
            let _ = tokio::time::timeout(LAST_WORDS, group.0.wait()).await;
            Err(Failed(format!("no answer within {} s", within.as_secs())))
        }
    }
}

async fn talk(child: &mut Child, input: &str) -> std::io::Result<Ended> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let tell = async {
        if let Some(mut stdin) = stdin {
            // One that does not read needs no input.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let listen = async {
        let both = async { tokio::join!(read(stdout, &mut output), read(stderr, &mut errors)) };
        tokio::pin!(both);
        tokio::select! {
            _ = &mut both => child.wait().await,
            status = child.wait() => {
                let _ = tokio::time::timeout(LAST_WORDS, &mut both).await;
                status
            }
        }
    };
    let ((), status) = tokio::join!(tell, listen);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ended { code: status?.code(), output: text(&output), errors: text(&errors) })
}

async fn read(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut bytes).await {
        let room = OUTPUT_MAX.saturating_sub(kept.len()).min(length);
        kept.extend_from_slice(&bytes[..room]);
    }
}
