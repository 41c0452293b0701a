//! The journal against a plain disk.

use proptest::prelude::*;

use super::*;

const SIZE: u64 = 5 * CHUNK_BYTES as u64 / 2;
const ROOM: Limits = Limits { memory_bytes: 1 << 20, spill: None };
const SECTOR: usize = SECTOR_BYTES as usize;

/// What the target would have after what was taken.
fn apply(journal: &mut Journal, taken: &Taken, disks: &mut [Vec<u8>]) {
    for (volume, range) in &taken.zeros {
        disks[usize::from(*volume)][range.start as usize..range.end as usize].fill(0);
    }
    for chunk in &taken.chunks {
        for run in chunk.runs() {
            let mut data = Vec::new();
            journal.read(chunk, run.clone(), &mut data).unwrap();
            let start = chunk.place.offset() as usize + run.start;
            disks[usize::from(chunk.place.volume)][start..start + data.len()].copy_from_slice(&data);
        }
        journal.free(chunk);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write { volume: u16, sector: usize, sectors: usize, byte: u8 },
    Zero { volume: u16, sector: usize, sectors: usize },
    Take { chunks: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let last = SIZE as usize / SECTOR;
    prop_oneof![
        4 => (0..2_u16, 0..last, 1..300_usize, 0..3_u8).prop_map(|(volume, sector, sectors, byte)| {
            Step::Write { volume, sector, sectors, byte }
        }),
        2 => (0..2_u16, 0..last, 1..200_usize)
            .prop_map(|(volume, sector, sectors)| Step::Zero { volume, sector, sectors }),
        1 => (1..4_usize).prop_map(|chunks| Step::Take { chunks }),
    ]
}

proptest! {
    #[test]
    fn what_is_taken_in_order_makes_the_same_disks(
        steps in proptest::collection::vec(step(), 0..60),
        memory_blocks in 30..200_u64,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let spill = Some(Spill { folder: folder.path().to_owned(), bytes: 4 << 20 });
        let limits = Limits { memory_bytes: memory_blocks * 4096, spill };
        let mut journal = Journal::new(&[SIZE, SIZE], &limits).unwrap();
        let blank = vec![vec![9_u8; SIZE as usize]; 2];
        let (mut model, mut disks) = (blank.clone(), blank);
        let mut held = Vec::new();
        for step in steps {
            let now = Instant::now();
            match step {
                Step::Write { volume, sector, sectors, byte } => {
                    let (start, end) = (sector * SECTOR, ((sector + sectors) * SECTOR).min(SIZE as usize));
                    let data = vec![byte; end - start];
                    prop_assert_eq!(journal.write(volume, start as u64, &data, now).unwrap(), data.len());
                    model[usize::from(volume)][start..end].copy_from_slice(&data);
                }
                Step::Zero { volume, sector, sectors } => {
                    let (start, end) = (sector * SECTOR, ((sector + sectors) * SECTOR).min(SIZE as usize));
                    prop_assert!(journal.zero(volume, start as u64..end as u64, now));
                    model[usize::from(volume)][start..end].fill(0);
                }
                // Applied late: what comes meanwhile must not change what was taken.
                Step::Take { chunks } => held.extend(journal.take(now, Duration::ZERO, chunks)),
            }
            if held.len() > 2 {
                let taken = held.remove(0);
                apply(&mut journal, &taken, &mut disks);
            }
        }
        while let Some(taken) = journal.take(Instant::now(), Duration::ZERO, 2) {
            held.push(taken);
        }
        for taken in held {
            apply(&mut journal, &taken, &mut disks);
        }
        prop_assert!(model == disks);
        prop_assert!(journal.is_empty() && journal.oldest().is_none());
        prop_assert_eq!(journal.usage().0, 0);
    }
}

#[test]
fn writes_for_the_same_place_wait_once_and_the_last_wins() {
    let (mut journal, now) = (Journal::new(&[SIZE], &ROOM).unwrap(), Instant::now());
    for byte in 1..=50 {
        journal.write(0, 4096, &[byte; 4096], now).unwrap();
    }
    assert_eq!(journal.usage().0, 4096);
    let taken = journal.take(now, Duration::ZERO, 9).unwrap();
    assert_eq!(taken.chunks[0].runs(), vec![4096..8192_usize]);
    let mut data = Vec::new();
    journal.read(&taken.chunks[0], 4096..8192, &mut data).unwrap();
    assert_eq!(data, [50; 4096]);
}

#[test]
fn a_write_is_taken_when_it_has_waited_long_enough_and_a_rewrite_does_not_make_it_wait_longer() {
    let (mut journal, start) = (Journal::new(&[SIZE], &ROOM).unwrap(), Instant::now());
    let wait = Duration::from_millis(200);
    journal.write(0, 0, &[1; 512], start).unwrap();
    journal.write(0, 0, &[2; 512], start + wait / 2).unwrap();
    journal.write(0, CHUNK_BYTES as u64, &[3; 512], start + wait / 2).unwrap();
    assert!(journal.take(start + wait / 2, wait, 9).is_none());
    let taken = journal.take(start + wait, wait, 9).unwrap();
    assert_eq!((taken.chunks.len(), taken.since), (1, start));
    assert_eq!(journal.oldest(), Some(start + wait / 2));
}

#[test]
fn a_full_journal_takes_the_part_that_fits_and_the_rest_when_there_is_room() {
    let limits = Limits { memory_bytes: 3 * 4096, spill: None };
    let (mut journal, now) = (Journal::new(&[SIZE], &limits).unwrap(), Instant::now());
    let data = vec![7; 5 * 4096];
    assert_eq!(journal.write(0, 0, &data, now).unwrap(), 3 * 4096);
    assert_eq!(journal.write(0, 3 * 4096, &data[3 * 4096..], now).unwrap(), 0);
    // What is here already can be written again, and zeros need no room.
    assert_eq!(journal.write(0, 0, &[8; 512], now).unwrap(), 512);
    assert_eq!(journal.write(0, CHUNK_BYTES as u64, &[0; CHUNK_BYTES], now).unwrap(), CHUNK_BYTES);
    let taken = journal.take(now, Duration::ZERO, 9).unwrap();
    assert_eq!(journal.usage(), (3 * 4096, 3 * 4096));
    journal.free(&taken.chunks[0]);
    assert_eq!(journal.write(0, 3 * 4096, &data[3 * 4096..], now).unwrap(), 2 * 4096);
}

#[test]
fn only_whole_chunks_of_zeros_become_ranges() {
    let (mut journal, now) = (Journal::new(&[SIZE], &ROOM).unwrap(), Instant::now());
    let mut data = vec![0; 2 * CHUNK_BYTES];
    data[CHUNK_BYTES + 9] = 1;
    journal.write(0, 0, &data, now).unwrap();
    let taken = journal.take(now, Duration::ZERO, 9).unwrap();
    assert_eq!(taken.zeros, [(0, 0..CHUNK_BYTES as u64)]);
    assert!(taken.chunks.len() == 1 && journal.is_whole(&taken.chunks[0]));
}

#[test]
fn a_chunk_is_whole_when_every_sector_was_written_also_at_the_end_of_a_volume() {
    let (mut journal, now) = (Journal::new(&[SIZE], &ROOM).unwrap(), Instant::now());
    journal.write(0, 0, &vec![1; CHUNK_BYTES], now).unwrap();
    journal.write(0, CHUNK_BYTES as u64, &vec![1; CHUNK_BYTES - 512], now).unwrap();
    journal.write(0, 2 * CHUNK_BYTES as u64, &vec![1; CHUNK_BYTES / 2], now).unwrap();
    let taken = journal.take(now, Duration::ZERO, 9).unwrap();
    let whole: Vec<bool> = taken.chunks.iter().map(|chunk| journal.is_whole(chunk)).collect();
    assert_eq!(whole, [true, false, true]);
}

#[test]
fn the_pressure_is_what_the_next_write_meets() {
    let now = Instant::now();
    let small = Limits { memory_bytes: 8 * BLOCK_BYTES as u64, spill: None };
    let mut journal = Journal::new(&[SIZE], &small).unwrap();
    assert_eq!(journal.pressure(), Pressure::None);
    assert_eq!(journal.write(0, 0, &[1; 9 * BLOCK_BYTES], now).unwrap(), 8 * BLOCK_BYTES);
    assert_eq!(journal.pressure(), Pressure::Full);
    journal.store = Store::refusing();
    journal.entries.clear();
    assert_eq!(journal.write(0, 0, &[1; SECTOR], now).unwrap(), 0);
    assert_eq!(journal.pressure(), Pressure::NoSpace);
}

#[test]
fn a_journal_with_too_many_ranges_is_full_whatever_room_it_has() {
    let now = Instant::now();
    let mut journal = Journal::new(&[RANGES_MAX as u64 * 2 * SECTOR_BYTES], &ROOM).unwrap();
    for range in 0..RANGES_MAX as u64 {
        assert_eq!(journal.pressure(), Pressure::None);
        let start = range * 2 * SECTOR_BYTES;
        assert!(journal.zero(0, start..start + SECTOR_BYTES, now));
    }
    assert_eq!(journal.pressure(), Pressure::Full);
}
