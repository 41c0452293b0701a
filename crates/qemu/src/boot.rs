//! Guests of one boot sector: running guest code 0.1 s after QEMU starts, under TCG.
//!
//! They prove things about hosts that a real system would prove later and less clearly: that an accelerator
//! executes code ([`exits`]), that one copy writes and no second one does ([`writer`], [`ticker`]), that memory
//! arrives whole ([`dirtier`]). Each is put at the start of a raw disk, to which the firmware jumps in real mode at
//! 0x7c00 with the drive's number in `dl`.

/// A guest that tells its boots apart.
pub mod ticker;

use std::io;
use std::path::Path;

/// A disk's first sector.
pub type Sector = [u8; 512];

/// Where [`writer`] keeps its counter on the disk, in sectors.
pub const COUNTER_SECTOR: u64 = 100;

/// Port and value at which [`exits`] ends QEMU, and the exit status that comes of it.
pub const EXIT_PORT: u16 = 0xf4;
const EXIT_VALUE: u8 = 0x21;
/// QEMU's `isa-debug-exit` makes `value * 2 + 1` of what is written.
pub const EXIT_STATUS: i32 = (EXIT_VALUE as i32) * 2 + 1;

const ORIGIN: u16 = 0x7c00;

/// Bytes of machine code with jumps filled in once their target is known.
struct Code {
    bytes: Vec<u8>,
}

impl Code {
    fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn put16(&mut self, value: u16) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    fn put32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    fn here(&self) -> usize {
        self.bytes.len()
    }

    /// A two-byte jump (`eb` always, `72` if carry, `75` if not zero, `e2` while `cx` counts down) back to a place already
    /// passed.
    fn jump_back(&mut self, opcode: u8, target: usize) -> &mut Self {
        let distance = target as isize - (self.here() as isize + 2);
        let distance = i8::try_from(distance).expect("our sectors are shorter than a short jump");
        self.put(&[opcode, distance as u8])
    }

    /// Address of a byte once the firmware has loaded the sector.
    fn address(offset: usize) -> u16 {
        ORIGIN + u16::try_from(offset).expect("a sector has 512 bytes")
    }

    fn patch16(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn sector(&self) -> Sector {
        assert!(self.here() <= 510, "the code leaves no room for the boot signature");
        let mut sector = [0; 512];
        sector[..self.here()].copy_from_slice(&self.bytes);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }
}

/// Does nothing, for ever.
pub fn hlt() -> Sector {
    let mut code = Code::new();
    let start = code.put(&[0xfa]).here(); // cli
    code.put(&[0xf4]).jump_back(0xeb, start); // hlt; jmp
    code.sector()
}

/// Counts to about a million and ends QEMU with [`EXIT_STATUS`] through an `isa-debug-exit` at
/// [`EXIT_PORT`]: so much guest code that an accelerator that crawls is told from one that runs.
pub fn exits() -> Sector {
    let mut code = Code::new();
    code.put(&[0xfa, 0x66, 0xb9]).put32(1_000_000); // cli; mov ecx,1000000
    let again = code.here();
    code.put(&[0x66, 0x49]).jump_back(0x75, again); // dec ecx; jnz
    code.put(&[0xb0, EXIT_VALUE, 0xba]).put16(EXIT_PORT).put(&[0xee]); // mov al,V; mov dx,P; out dx,al
    let end = code.here();
    code.put(&[0xf4]).jump_back(0xeb, end);
    code.sector()
}

/// Tells QEMU through pvpanic that it has crashed.
pub fn panicker() -> Sector {
    let mut code = Code::new();
    code.put(&[0xfa, 0xb0, 0x01, 0xba]).put16(0x505).put(&[0xee]); // cli; mov al,1; mov dx,505; out
    let end = code.here();
    code.put(&[0xf4]).jump_back(0xeb, end);
    code.sector()
}

/// Where QEMU puts the watchdog that [`unfed`] starts: device 1d of bus 0, as a PCI configuration address.
const WATCHDOG_AT: u32 = 0x8000_e800;

/// Prints `.` on the serial port, starts an i6300esb that bites after half a second, and sleeps for ever without feeding
/// it. Registers as in Intel's 6300ESB I/O Controller Hub datasheet, chapter 15.
pub fn unfed() -> Sector {
    const TICKS: u32 = 0x100; // About a millisecond each, in each of two stages.
    let mut code = Code::new();
    let tables = go_flat(&mut code);
    code.put(&[0xb0, b'.', 0x66, 0xba]).put16(0x3f8).put(&[0xee]); // print
    code.put(&[0xb8]).put32(WATCHDOG_AT | 0x10); // mov eax,(its base address register)
    code.put(&[0xba]).put32(0xcf8).put(&[0xef, 0xb2, 0xfc, 0xed]); // mov edx,cf8; out dx,eax; mov dl,fc; in eax,dx
    code.put(&[0x24, 0xf0, 0x89, 0xc7]); // and al,f0; mov edi,eax
    for (register, opcode) in [(None, &[0xc7, 0x07][..]), (Some(4), &[0xc7, 0x47])] {
        for key in [0x80_u32, 0x86] {
            code.put(&[0xc7, 0x47, 0x0c]).put32(key); // mov dword [edi+c],key: unlocks the next write
        }
        code.put(opcode).put(register.as_slice()).put32(TICKS); // mov dword [edi+register],ticks
    }
    code.put(&[0xb8]).put32(WATCHDOG_AT | 0x68); // mov eax,(its lock register)
    code.put(&[0xb2, 0xf8, 0xef, 0xb0, 0x02, 0xb2, 0xfc, 0xee]); // mov dl,f8; out; mov al,enable; mov dl,fc; out
    let end = code.here();
    code.put(&[0xf4]).jump_back(0xeb, end); // hlt; jmp
    tables.put(&mut code);
    code.sector()
}

/// How fast [`writer`] goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As fast as the disk allows; thousands a second.
    Flat,
    /// At each timer tick, about 18 a second, asleep in between.
    Ticks,
}

/// Counts on its own disk: reads sector [`COUNTER_SECTOR`], then adds one to its first four bytes (little
/// endian) and writes it back, for ever. Prints `.` on the serial port for each write, `!` for a failed one.
///
/// A restart goes on from the disk; a migrated guest goes on from its memory, so two running copies are seen
/// as a counter that falls back.
pub fn writer(pace: Pace) -> Sector {
    const BUFFER: u16 = 0x8000;
    let mut code = Code::new();
    code.put(&[0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0]); // cli; ds = es = ss = 0
    code.put(&[0xbc]).put16(ORIGIN).put(&[0xfb]); // mov sp,7c00; sti
    code.put(&[0x88, 0x16]); // mov [drive],dl
    let drive_in_store = code.here();
    code.put16(0);
    let packet_in_read = disk_call(&mut code, 0x4200);
    let again = code.here();
    code.put(&[0x66, 0xff, 0x06]).put16(BUFFER); // inc dword [buffer]
    code.put(&[0x8a, 0x16]); // mov dl,[drive]
    let drive_in_load = code.here();
    code.put16(0);
    let packet_in_write = disk_call(&mut code, 0x4300);
    code.put(&[0xb0, b'.', 0x73, 0x02, 0xb0, b'!']); // mov al,'.'; jnc +2; mov al,'!'
    code.put(&[0xba]).put16(0x3f8).put(&[0xee]); // mov dx,3f8; out dx,al
    if pace == Pace::Ticks {
        code.put(&[0xfb, 0xf4]); // sti; hlt
    }
    code.jump_back(0xeb, again);
    let drive = code.here();
    code.put(&[0]);
    let packet = code.here();
    // Size, count, buffer offset and segment, first sector: the packet of the extended disk services.
    code.put(&[16, 0]).put16(1).put16(BUFFER).put16(0).put(&COUNTER_SECTOR.to_le_bytes());
    for at in [drive_in_store, drive_in_load] {
        code.patch16(at, Code::address(drive));
    }
    for at in [packet_in_read, packet_in_write] {
        code.patch16(at, Code::address(packet));
    }
    code.sector()
}

/// `mov si,packet; mov ax,function; int 13h`; answers where the packet's address goes.
fn disk_call(code: &mut Code, function: u16) -> usize {
    let packet = code.put(&[0xbe]).here();
    code.put16(0).put(&[0xb8]).put16(function).put(&[0xcd, 0x13]);
    packet
}

/// Where guests that use more memory than real mode reaches begin with it.
const START: u32 = 1 << 20;
const PAGE: u32 = 4096;

/// Writes one word to each of `pages` pages above 1 MiB, round after round, spinning `spin` times between
/// two pages. Prints `.` on the serial port after each round.
pub fn dirtier(pages: u32, spin: u32) -> Sector {
    let mut code = Code::new();
    let tables = go_flat(&mut code);
    code.put(&[0x31, 0xdb]); // xor ebx,ebx
    let round = code.here();
    code.put(&[0x43, 0xbf]).put32(START); // inc ebx; mov edi,start
    let page = code.here();
    code.put(&[0x89, 0x1f, 0x81, 0xc7]).put32(PAGE); // mov [edi],ebx; add edi,page
    code.put(&[0xb9]).put32(spin.max(1)); // mov ecx,spin
    let wait = code.here();
    code.put(&[0x49]).jump_back(0x75, wait); // dec ecx; jnz
    code.put(&[0x81, 0xff]).put32(START + pages * PAGE).jump_back(0x72, page); // cmp edi,end; jb
    code.put(&[0xb0, b'.', 0x66, 0xba]).put16(0x3f8).put(&[0xee]).jump_back(0xeb, round); // print; jmp
    tables.put(&mut code);
    code.sector()
}

/// Each word that [`filler`] writes comes from the one before.
const FILL_FACTOR: u32 = 1_664_525;
const FILL_STEP: u32 = 1_013_904_223;

/// Fills `pages` pages above 1 MiB with [`filling`], prints `.` on the serial port and sleeps for ever.
pub fn filler(pages: u32) -> Sector {
    let mut code = Code::new();
    let tables = go_flat(&mut code);
    code.put(&[0x31, 0xc0, 0xbf]).put32(START); // xor eax,eax; mov edi,start
    let next = code.here();
    code.put(&[0x69, 0xc0]).put32(FILL_FACTOR).put(&[0x05]).put32(FILL_STEP); // imul eax,F; add eax,S
    code.put(&[0x89, 0x07, 0x83, 0xc7, 0x04]); // mov [edi],eax; add edi,4
    code.put(&[0x81, 0xff]).put32(START + pages * PAGE).jump_back(0x72, next); // cmp edi,end; jb
    code.put(&[0xb0, b'.', 0x66, 0xba]).put16(0x3f8).put(&[0xee]); // print
    let end = code.here();
    code.put(&[0xf4]).jump_back(0xeb, end); // hlt; jmp
    tables.put(&mut code);
    code.sector()
}

/// What [`filler`] writes, page by page: no two of the first million pages are alike, and none shrinks by much.
pub fn filling() -> impl Iterator<Item = [u8; PAGE as usize]> {
    let mut word = 0_u32;
    std::iter::repeat_with(move || {
        let mut page = [0; PAGE as usize];
        for bytes in page.as_chunks_mut().0 {
            word = word.wrapping_mul(FILL_FACTOR).wrapping_add(FILL_STEP);
            *bytes = word.to_le_bytes();
        }
        page
    })
}

/// What [`go_flat`] refers to, and must come behind the code.
struct Tables {
    table_in_load: usize,
    flat_in_jump: usize,
    flat: usize,
}

/// Into protected mode, where all of memory is reached by 32 bits.
fn go_flat(code: &mut Code) -> Tables {
    code.put(&[0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x0f, 0x01, 0x16]); // cli; ds = 0; lgdt [table]
    let table_in_load = code.here();
    code.put16(0);
    code.put(&[0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0]); // protected mode on
    code.put(&[0xea]); // jmp 08:flat
    let flat_in_jump = code.here();
    code.put16(0).put16(8);
    let flat = code.here();
    code.put(&[0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8]); // ds = 10 (all memory)
    Tables { table_in_load, flat_in_jump, flat }
}

impl Tables {
    fn put(self, code: &mut Code) {
        let entries = code.here();
        // Nothing; code and data over all 4 GiB.
        code.put(&[0; 8])
            .put(&[0xff, 0xff, 0, 0, 0, 0x9a, 0xcf, 0])
            .put(&[0xff, 0xff, 0, 0, 0, 0x92, 0xcf, 0]);
        let table = code.here();
        code.put16(23).put32(Code::address(entries).into());
        code.patch16(self.table_in_load, Code::address(table));
        code.patch16(self.flat_in_jump, Code::address(self.flat));
    }
}

/// A raw disk of `bytes` (at least 1 MiB, so that each disk driver takes it) that boots this sector.
pub fn write_disk(path: &Path, sector: &Sector, bytes: u64) -> io::Result<()> {
    std::fs::write(path, sector)?;
    std::fs::OpenOptions::new().write(true).open(path)?.set_len(bytes.max(1 << 20))
}

/// The counter that [`writer`] keeps on a raw disk.
pub fn read_counter(disk: &Path) -> io::Result<u32> {
    use std::os::unix::fs::FileExt;
    let mut counter = [0; 4];
    std::fs::File::open(disk)?.read_exact_at(&mut counter, COUNTER_SECTOR * 512)?;
    Ok(u32::from_le_bytes(counter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_guest_fits_its_sector_and_is_bootable() {
        for sector in [
            hlt(),
            exits(),
            panicker(),
            unfed(),
            writer(Pace::Flat),
            writer(Pace::Ticks),
            dirtier(1000, 100),
            filler(1000),
            ticker::ticker(1),
        ] {
            assert_eq!(sector[510..], [0x55, 0xaa]);
            assert_eq!(sector[0], 0xfa);
        }
    }

    #[test]
    fn pages_of_a_filling_differ() {
        let pages: std::collections::BTreeSet<_> = filling().take(3000).collect();
        assert_eq!(pages.len(), 3000);
    }
}
