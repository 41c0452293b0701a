//! Asks a network block server whether it has an export, and hangs up
//! (github.com/NetworkBlockDevice/nbd, doc/proto.md: fixed newstyle negotiation, `NBD_OPT_INFO`).

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// The server and we speak the fixed form.
const FIXED_NEWSTYLE: u16 = 1;

const OPT_ABORT: u32 = 2;
const OPT_INFO: u32 = 6;

const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
/// Set in every refusal.
const REPLY_ERROR: u32 = 1 << 31;

/// No honest reply to this option is longer.
const REPLY_MAX: u32 = 64 << 10;

/// Whether the server has an export of this name.
pub async fn has_export(server: SocketAddr, name: &str) -> io::Result<bool> {
    let mut stream = TcpStream::connect(server).await?;
    if stream.read_u64().await? != MAGIC || stream.read_u64().await? != OPTION_MAGIC {
        return Err(io::Error::other("no network block server"));
    }
    if stream.read_u16().await? & FIXED_NEWSTYLE == 0 {
        return Err(io::Error::other("a network block server of an old kind"));
    }
    stream.write_u32(u32::from(FIXED_NEWSTYLE)).await?;
    stream.write_all(&option(OPT_INFO, &info_request(name))).await?;
    let has = loop {
        match reply(&mut stream).await? {
            REPLY_ACK => break true,
            REPLY_INFO => {}
            kind if kind & REPLY_ERROR != 0 => break false,
            kind => return Err(io::Error::other(format!("an unknown reply {kind}"))),
        }
    };
    // A farewell; the server may have hung up already.
    let _ = stream.write_all(&option(OPT_ABORT, &[])).await;
    Ok(has)
}

fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The name, and no further questions.
fn info_request(name: &str) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(0_u16.to_be_bytes());
    data
}

/// The kind of the next reply; its data is skipped.
async fn reply(stream: &mut TcpStream) -> io::Result<u32> {
    if stream.read_u64().await? != REPLY_MAGIC {
        return Err(io::Error::other("a broken reply"));
    }
    let (_option, kind, length) =
        (stream.read_u32().await?, stream.read_u32().await?, stream.read_u32().await?);
    if length > REPLY_MAX {
        return Err(io::Error::other("a reply that is too long"));
    }
    let mut data = vec![0; usize::try_from(length).unwrap_or_default()];
    stream.read_exact(&mut data).await?;
    Ok(kind)
}
