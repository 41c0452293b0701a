//! Frames as a tap with a virtio header gives and takes them. Between hosts of one machine the kernel hands over many
//! TCP segments as one large frame with one header, unless it is told not to; on a real line each would be a frame.

/// The header before each frame: flags, kind of segmentation, lengths and offsets, as virtio's network device has it.
pub const HEADER: usize = 10;
/// The largest frame: 64 KiB of segments that belong together, with headers.
pub const FRAME_MAX: usize = HEADER + 14 + 4 + (1 << 16);

const UDP_HEADER: usize = 8;
/// The kinds of segmentation, without the bit for congestion notification.
const KIND_MASK: u8 = 0x7f;
const TCP_V4: u8 = 1;
const TCP_V6: u8 = 4;
const UDP: u8 = 5;

/// What a frame amounts to on a real line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    pub packets: u64,
    pub bytes: u64,
}

impl Load {
    /// Of what was read from a tap: header and frame. Each segment after the first repeats the headers.
    #[must_use]
    pub fn of(read: &[u8]) -> Self {
        let bytes = read.len().saturating_sub(HEADER);
        let repeated = segments(read).filter(|(headers, size)| *size > 0 && *headers < bytes);
        let (headers, packets) =
            repeated.map_or((0, 1), |(headers, size)| (headers, (bytes - headers).div_ceil(size)));
        Self { packets: packets as u64, bytes: (bytes + (packets - 1) * headers) as u64 }
    }
}

/// Length of the headers, and of each segment's payload; `None`: one frame.
fn segments(read: &[u8]) -> Option<(usize, usize)> {
    let (header, frame) = read.split_at_checked(HEADER)?;
    let number = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let (size, transport) = (number(4), number(6));
    let headers = match header[1] & KIND_MASK {
        // The upper half of a byte: its length in words.
        TCP_V4 | TCP_V6 => usize::from(frame.get(transport + 12)? >> 4) * 4,
        UDP => UDP_HEADER,
        _ => return None,
    };
    (headers >= UDP_HEADER).then_some((transport + headers, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with Ethernet, IPv4 and TCP headers (54 bytes), as the driver gives it.
    fn tcp(payload: usize, kind: u8, size: u16) -> Vec<u8> {
        let mut read = vec![0; HEADER + 54 + payload];
        read[1] = kind;
        read[4..6].copy_from_slice(&size.to_ne_bytes());
        read[6..8].copy_from_slice(&34_u16.to_ne_bytes());
        read[HEADER + 34 + 12] = 5 << 4;
        read
    }

    #[test]
    fn a_frame_is_itself() {
        assert_eq!(Load::of(&tcp(1460, 0, 0)), Load { packets: 1, bytes: 1514 });
    }

    #[test]
    fn segments_count_as_the_frames_that_they_would_be() {
        let whole = Load { packets: 10, bytes: 10 * 1514 };
        assert_eq!(Load::of(&tcp(14_600, TCP_V4, 1460)), whole);
        // With the bit for congestion notification.
        assert_eq!(Load::of(&tcp(14_600, TCP_V4 | 0x80, 1460)), whole);
        assert_eq!(Load::of(&tcp(1461, TCP_V4, 1460)), Load { packets: 2, bytes: 1514 + 55 });
    }

    #[test]
    fn what_makes_no_sense_counts_as_one_frame() {
        for (kind, size) in [(TCP_V4, 0), (9, 1460)] {
            assert_eq!(Load::of(&tcp(3000, kind, size)), Load { packets: 1, bytes: 3054 });
        }
        let mut beyond = tcp(0, TCP_V4, 1460);
        beyond[6..8].copy_from_slice(&u16::MAX.to_ne_bytes());
        assert_eq!(Load::of(&beyond), Load { packets: 1, bytes: 54 });
        assert_eq!(Load::of(&[0; 3]), Load { packets: 1, bytes: 0 });
    }
}
