//! From the first byte to the first request, on the server's side.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    ERROR_INVALID, ERROR_UNKNOWN, ERROR_UNSUPPORTED, FIXED_NEWSTYLE, HAS_FLAGS, INFO_BLOCK_SIZE, INFO_EXPORT,
    MAGIC, NO_ZEROES, OPTION_ABORT, OPTION_EXPORT_NAME, OPTION_GO, OPTION_INFO, OPTION_LIST, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, PAYLOAD_MAX, REPLY_ACK, REPLY_INFO, REPLY_SERVER, SEND_FLUSH, SEND_FUA, SEND_TRIM,
    SEND_WRITE_ZEROES,
};
use crate::volume::chunk::{CHUNK_BYTES, SECTOR_BYTES};

/// A name and a handful of numbers fit in; nobody says more in earnest.
const OPTION_BYTES_MAX: usize = 4096;
/// Of a client that asks and asks and never goes.
const OPTIONS_MAX: usize = 64;

/// The one export of a server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Export<'a> {
    pub(super) name: &'a str,
    pub(super) bytes: u64,
}

impl Export<'_> {
    /// No reads are promised: a mirror makes none.
    fn flags() -> u16 {
        HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES
    }

    fn is_called(&self, name: &[u8]) -> bool {
        // The empty name asks for the default.
        name.is_empty() || name == self.name.as_bytes()
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the client closed its socket, or it broke")]
    Io(#[from] io::Error),
    #[error("the client speaks no fixed newstyle NBD")]
    NotNbd,
    #[error("the client wants nothing")]
    Nothing,
}

/// What an option is answered with, and what comes then.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    /// The next option.
    Ask,
    /// Requests.
    Serve,
    Close,
}

/// Returns when requests may come.
pub(super) async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    export: Export<'_>,
) -> Result<(), Error> {
    let mut greeting = [0; 18];
    greeting[..8].copy_from_slice(&MAGIC.to_be_bytes());
    greeting[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    greeting[16..].copy_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    stream.write_all(&greeting).await?;
    let flags = stream.read_u32().await?;
    if flags & u32::from(FIXED_NEWSTYLE) == 0 || flags > u32::from(FIXED_NEWSTYLE | NO_ZEROES) {
        return Err(Error::NotNbd);
    }
    for _ in 0..OPTIONS_MAX {
        if stream.read_u64().await? != OPTION_MAGIC {
            return Err(Error::NotNbd);
        }
        let (option, length) = (stream.read_u32().await?, stream.read_u32().await? as usize);
        if length > OPTION_BYTES_MAX {
            return Err(Error::NotNbd);
        }
        let mut data = vec![0; length];
        stream.read_exact(&mut data).await?;
        let mut out = Vec::new();
        let then = answer(option, &data, export, flags & u32::from(NO_ZEROES) != 0, &mut out);
        stream.write_all(&out).await?;
        match then {
            Then::Ask => {}
            Then::Serve => return Ok(()),
            Then::Close => return Err(Error::Nothing),
        }
    }
    Err(Error::Nothing)
}

fn answer(option: u32, data: &[u8], export: Export<'_>, has_no_zeroes: bool, out: &mut Vec<u8>) -> Then {
    match option {
        OPTION_EXPORT_NAME if export.is_called(data) => {
            out.extend(export.bytes.to_be_bytes());
            out.extend(Export::flags().to_be_bytes());
            if !has_no_zeroes {
                out.extend([0; 124]);
            }
            Then::Serve
        }
        // This option has no way to say no.
        OPTION_EXPORT_NAME => Then::Close,
        OPTION_ABORT => {
            say(out, option, REPLY_ACK, &[]);
            Then::Close
        }
        OPTION_LIST if data.is_empty() => {
            let name = [&(export.name.len() as u32).to_be_bytes()[..], export.name.as_bytes()].concat();
            say(out, option, REPLY_SERVER, &name);
            say(out, option, REPLY_ACK, &[]);
            Then::Ask
        }
        OPTION_INFO | OPTION_GO => match wanted_name(data) {
            Some(name) if export.is_called(name) => {
                inform(out, option, export);
                if option == OPTION_GO { Then::Serve } else { Then::Ask }
            }
            name => {
                say(out, option, if name.is_some() { ERROR_UNKNOWN } else { ERROR_INVALID }, &[]);
                Then::Ask
            }
        },
        OPTION_LIST => {
            say(out, option, ERROR_INVALID, &[]);
            Then::Ask
        }
        _ => {
            say(out, option, ERROR_UNSUPPORTED, &[]);
            Then::Ask
        }
    }
}

/// `be32 length, name, be16 count, count times be16`, and nothing else.
fn wanted_name(data: &[u8]) -> Option<&[u8]> {
    let (length, rest) = data.split_first_chunk()?;
    let (name, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let (count, rest) = rest.split_first_chunk()?;
    (rest.len() == 2 * usize::from(u16::from_be_bytes(*count))).then_some(name)
}

/// Size, flags and block sizes: a client that has not asked for the latter may still be told.
fn inform(out: &mut Vec<u8>, option: u32, export: Export<'_>) {
    let mut info = INFO_EXPORT.to_be_bytes().to_vec();
    info.extend(export.bytes.to_be_bytes());
    info.extend(Export::flags().to_be_bytes());
    say(out, option, REPLY_INFO, &info);
    let mut info = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [SECTOR_BYTES as u32, CHUNK_BYTES as u32, PAYLOAD_MAX] {
        info.extend(size.to_be_bytes());
    }
    say(out, option, REPLY_INFO, &info);
    say(out, option, REPLY_ACK, &[]);
}

fn say(out: &mut Vec<u8>, option: u32, reply: u32, data: &[u8]) {
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(reply.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPORT: Export<'_> = Export { name: "disk", bytes: 1 << 30 };

    fn go(name: &[u8], wishes: &[u16], count: u16) -> Vec<u8> {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend(name);
        data.extend(count.to_be_bytes());
        wishes.iter().for_each(|wish| data.extend(wish.to_be_bytes()));
        data
    }

    fn reply_of(option: u32, data: &[u8]) -> (Then, Option<u32>) {
        let mut out = Vec::new();
        let then = answer(option, data, EXPORT, true, &mut out);
        (then, out.get(12..16).map(|code| u32::from_be_bytes(code.try_into().unwrap())))
    }

    #[test]
    fn every_option_has_an_answer() {
        let unknown = 99;
        let table = [
            (OPTION_GO, go(b"disk", &[3], 1), Then::Serve, Some(REPLY_INFO)),
            (OPTION_GO, go(b"", &[], 0), Then::Serve, Some(REPLY_INFO)),
            (OPTION_INFO, go(b"disk", &[], 0), Then::Ask, Some(REPLY_INFO)),
            (OPTION_GO, go(b"other", &[], 0), Then::Ask, Some(ERROR_UNKNOWN)),
            (OPTION_GO, go(b"disk", &[3], 2), Then::Ask, Some(ERROR_INVALID)),
            (OPTION_GO, vec![0xff; 4], Then::Ask, Some(ERROR_INVALID)),
            (OPTION_LIST, vec![], Then::Ask, Some(REPLY_SERVER)),
            (OPTION_LIST, vec![1], Then::Ask, Some(ERROR_INVALID)),
            (OPTION_ABORT, vec![], Then::Close, Some(REPLY_ACK)),
            (OPTION_EXPORT_NAME, b"other".to_vec(), Then::Close, None),
            (unknown, vec![], Then::Ask, Some(ERROR_UNSUPPORTED)),
        ];
        for (option, data, then, reply) in table {
            assert_eq!(reply_of(option, &data), (then, reply), "option {option} with {data:?}");
        }
        assert_eq!(reply_of(OPTION_EXPORT_NAME, b"disk").0, Then::Serve);
    }
}
