//! A guest that says on its disk which boot of it runs, so that a judge outside sees when guest code runs, and that one
//! copy of it does and no second one.
//!
//! It writes one sector, [`SECTOR`], at its first instruction or nearly so, and then at every so many ticks of the timer.
//! All numbers are little-endian:
//!
//! | bytes | content |
//! |---|---|
//! | 0..4 | `TICK` |
//! | 4..8 | boots so far, over all hosts |
//! | 8..12 | token: the processor's time-stamp counter at this boot, which no other boot has alike |
//! | 12..16 | marks of this boot, from 1 |
//! | 16..20 | strangers: how often a boot found another's mark where it had left its own |
//! | 508..512 | the number of marks again: a sector that is half another has two |
//!
//! Before each mark but its first it reads the sector. A mark with another token than its own was written by a copy that
//! runs beside it; that is a stranger. So two copies give each other away however seldom a judge looks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{Code, ORIGIN, Sector};

/// Where the mark is, in sectors.
pub const SECTOR: u64 = 100;
const MAGIC: [u8; 4] = *b"TICK";

/// What is written, and where what others wrote is read to.
const OWN: u16 = 0x8000;
const FOUND: u16 = 0x8200;
const BOOTS: u16 = 4;
const TOKEN: u16 = 8;
const MARKS: u16 = 12;
const STRANGERS: u16 = 16;
const SEAL: u16 = 508;

const READ: u16 = 0x4200;
const WRITE: u16 = 0x4300;

/// What one sector said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub boots: u32,
    pub token: u32,
    pub marks: u32,
    pub strangers: u32,
}

impl Mark {
    /// As it stands in a file, at this byte.
    pub fn of(file: &File, at: u64) -> io::Result<Option<Self>> {
        let mut sector = [0; 512];
        file.read_exact_at(&mut sector, at)?;
        Ok(Self::read(&sector))
    }

    /// `None`: no guest has written it yet, or not to its end.
    #[must_use]
    pub fn read(sector: &Sector) -> Option<Self> {
        let number = |at: u16| {
            let at = usize::from(at);
            u32::from_le_bytes([sector[at], sector[at + 1], sector[at + 2], sector[at + 3]])
        };
        let mark = Self {
            boots: number(BOOTS),
            token: number(TOKEN),
            marks: number(MARKS),
            strangers: number(STRANGERS),
        };
        (sector[..4] == MAGIC && number(SEAL) == mark.marks).then_some(mark)
    }
}

/// The guest; `ticks` (1 to 65535) of the timer, of which there are 18 a second, lie between two marks.
#[must_use]
pub fn ticker(ticks: u16) -> Sector {
    let mut code = Code::new();
    code.put(&[0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0]); // cli; ds = es = ss = 0
    code.put(&[0xbc]).put16(ORIGIN).put(&[0xfb, 0x88, 0x16]); // mov sp,7c00; sti; mov [drive],dl
    let mut drive_in = vec![code.here()];
    code.put16(0).put(&[0x0f, 0x31, 0x66, 0x89, 0xc5]); // rdtsc; mov ebp,eax
    let mut own_in = vec![call(&mut code, &mut drive_in, READ)];
    code.put(&[0x66, 0x81, 0x3e]).put16(OWN).put(&MAGIC); // cmp dword [own],magic
    code.put(&[0x74, 0x0b, 0x66, 0x31, 0xc0]); // je +11; xor eax,eax
    store(&mut code, BOOTS);
    store(&mut code, STRANGERS);
    code.put(&[0x66, 0xc7, 0x06]).put16(OWN).put(&MAGIC); // mov dword [own],magic
    code.put(&[0x66, 0xff, 0x06]).put16(OWN + BOOTS); // inc dword [boots]
    code.put(&[0x66, 0x89, 0x2e]).put16(OWN + TOKEN); // mov [token],ebp
    code.put(&[0x66, 0x31, 0xc0]); // xor eax,eax
    let mark = code.here();
    code.put(&[0x66, 0x40]); // inc eax: marks
    store(&mut code, MARKS);
    store(&mut code, SEAL);
    own_in.push(call(&mut code, &mut drive_in, WRITE));
    code.put(&[0xb9]).put16(ticks); // mov cx,ticks
    let wait = code.put(&[0xfb]).here() - 1; // sti
    code.put(&[0xf4]).jump_back(0xe2, wait); // hlt; loop
    let found_in = call(&mut code, &mut drive_in, READ);
    code.put(&[0x66, 0x39, 0x2e]).put16(FOUND + TOKEN); // cmp [found token],ebp
    code.put(&[0x74, 0x05, 0x66, 0xff, 0x06]).put16(OWN + STRANGERS); // je +5; inc dword [strangers]
    code.put(&[0x66, 0xa1]).put16(OWN + MARKS).jump_back(0xeb, mark); // mov eax,[marks]; jmp
    data(&mut code, &drive_in, (&own_in, OWN), (&[found_in], FOUND));
    code.sector()
}

/// `mov [own + field],eax`.
fn store(code: &mut Code, field: u16) {
    code.put(&[0x66, 0xa3]).put16(OWN + field);
}

/// `mov dl,[drive]; mov si,packet; mov ax,function; int 13h`; answers where the packet's address goes. `ebp` is left alone.
fn call(code: &mut Code, drive_in: &mut Vec<usize>, function: u16) -> usize {
    drive_in.push(code.put(&[0x8a, 0x16]).here());
    code.put16(0);
    super::disk_call(code, function)
}

/// Behind the code: the drive's number, and a packet of the extended disk services for each buffer, each with the places
/// that name it.
fn data(code: &mut Code, drive_in: &[usize], own: (&[usize], u16), found: (&[usize], u16)) {
    let drive = Code::address(code.here());
    code.put(&[0]);
    drive_in.iter().for_each(|at| code.patch16(*at, drive));
    for (places, buffer) in [own, found] {
        let packet = Code::address(code.here());
        // Size, count, buffer offset and segment, first sector.
        code.put(&[16, 0]).put16(1).put16(buffer).put16(0).put(&SECTOR.to_le_bytes());
        places.iter().for_each(|at| code.patch16(*at, packet));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(fields: &[(u16, u32)]) -> Sector {
        let mut sector = [0; 512];
        sector[..4].copy_from_slice(&MAGIC);
        for (at, value) in fields {
            sector[usize::from(*at)..][..4].copy_from_slice(&value.to_le_bytes());
        }
        sector
    }

    #[test]
    fn a_mark_is_read_as_it_is_laid_out_and_half_of_one_is_none() {
        let whole = [(BOOTS, 2), (TOKEN, 77), (MARKS, 5), (STRANGERS, 1), (SEAL, 5)];
        let mark = Mark { boots: 2, token: 77, marks: 5, strangers: 1 };
        assert_eq!(Mark::read(&sector(&whole)), Some(mark));
        assert_eq!(Mark::read(&sector(&whole[..4])), None, "its end is another's");
        assert_eq!(Mark::read(&[0; 512]), None);
    }

    #[test]
    fn it_fits_its_sector_with_whatever_pace() {
        for ticks in [1, 18, u16::MAX] {
            assert_eq!(ticker(ticks)[510..], [0x55, 0xaa]);
        }
    }
}
