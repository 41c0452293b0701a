//! The queue alone, and the queue between a journal and a target that answers as late as it may.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::hash::Key;
use crate::volume::journal::{Journal, Limits};

const CHUNK: u64 = CHUNK_BYTES as u64;
const SIZE: u64 = 4 * CHUNK;
const KEY: Key = Key([1; 32]);

fn journal() -> Journal {
    Journal::new(&[SIZE], &Limits { memory_bytes: 8 << 20, spill: None }).unwrap()
}

fn content(journal: &Journal, chunk: &Chunk) -> Vec<u8> {
    let mut data = Vec::new();
    journal.read(chunk, 0..CHUNK_BYTES, &mut data).unwrap();
    data
}

/// Takes what is there, and asks about all that may be asked about.
fn admit(journal: &mut Journal, queue: &mut Queue) -> Vec<(Place, ChunkHash)> {
    let Some(taken) = journal.take(Instant::now(), Duration::ZERO, 64) else { return vec![] };
    let name = |chunk: &Chunk| {
        let is_asked = journal.is_whole(chunk) && queue.may_ask(chunk.place);
        is_asked.then(|| ChunkHash::of(&KEY, &content(journal, chunk)))
    };
    let hashes = taken.chunks.iter().map(name).collect();
    queue.admit(taken, hashes)
}

fn write(journal: &mut Journal, chunk: u64, byte: u8) {
    let data = vec![byte; CHUNK_BYTES];
    journal.write(0, chunk * CHUNK, &data, Instant::now()).unwrap();
}

#[test]
fn a_chunk_on_its_way_is_not_asked_about_until_its_epoch_is_applied() {
    let (mut journal, mut queue) = (journal(), Queue::new(1));
    write(&mut journal, 0, 1);
    assert_eq!(admit(&mut journal, &mut queue).len(), 1);
    write(&mut journal, 0, 2);
    write(&mut journal, 1, 2);
    let asked: Vec<Place> = admit(&mut journal, &mut queue).into_iter().map(|(place, _)| place).collect();
    assert_eq!(asked, [Place { volume: 0, chunk: 1 }]);
    // The second waits behind the first, though nobody asked about it.
    assert!(queue.pop().is_none());
    queue.on_answer(&[false]).unwrap();
    assert!(matches!(queue.pop(), Some(Ready::Data(_))));
    assert!(matches!(queue.pop(), Some(Ready::End(1))));
    assert!(matches!(queue.on_applied(2), Err(Error::OutOfPlace)));
    queue.on_applied(1).unwrap();
    assert!(!queue.may_ask(Place { volume: 0, chunk: 0 }));
    queue.on_answer(&[true]).unwrap();
    while queue.pop().is_some() {}
    queue.on_applied(2).unwrap();
    assert!(queue.may_ask(Place { volume: 0, chunk: 0 }) && queue.is_sent());
}

#[test]
fn zeros_on_their_way_forbid_questions_about_what_they_cover() {
    let (mut journal, mut queue) = (journal(), Queue::new(1));
    journal.zero(0, 512..CHUNK + 512, Instant::now());
    admit(&mut journal, &mut queue);
    let may_ask: Vec<bool> = (0..3).map(|chunk| queue.may_ask(Place { volume: 0, chunk })).collect();
    assert_eq!(may_ask, [false, false, true]);
    while queue.pop().is_some() {}
    queue.on_applied(1).unwrap();
    assert!(queue.may_ask(Place { volume: 0, chunk: 0 }));
}

#[test]
fn answers_that_nobody_asked_for_are_out_of_place() {
    let (mut journal, mut queue) = (journal(), Queue::new(1));
    assert!(matches!(queue.on_answer(&[true]), Err(Error::OutOfPlace)));
    write(&mut journal, 0, 1);
    admit(&mut journal, &mut queue);
    assert!(matches!(queue.on_answer(&[true, true]), Err(Error::OutOfPlace)));
    assert!(matches!(Queue::new(1).on_applied(1), Err(Error::OutOfPlace)));
}

#[test]
fn the_lead_grows_when_the_target_has_what_it_is_asked_about() {
    let mut queue = Queue::new(1);
    let limits = Limits { memory_bytes: 64 << 20, spill: None };
    let mut journal = Journal::new(&[1 << 30], &limits).unwrap();
    let mut at = 0;
    // Sixty-four chunks at a time, for as long as more is wanted, but never more than the journal holds.
    let mut fill = |queue: &mut Queue, journal: &mut Journal| {
        while queue.wants_more(1 << 20) && queue.unanswered < 512 {
            (0..64).for_each(|chunk| write(journal, at + chunk, 1));
            at += 64;
            admit(journal, queue);
        }
        queue.unanswered
    };
    assert_eq!(fill(&mut queue, &mut journal), 64);
    for _ in 0..8 {
        let spared = queue.on_answer(&[true; 64]).unwrap();
        spared.iter().for_each(|spared| journal.free(&spared.chunk));
        fill(&mut queue, &mut journal);
    }
    assert_eq!(fill(&mut queue, &mut journal), 512);
}

/// Steps of a world with one volume: byte patterns repeat, so that the target often has what it is asked about.
#[derive(Debug, Clone)]
enum Step {
    Whole {
        chunk: u64,
        byte: u8,
    },
    Part {
        chunk: u64,
        sector: u64,
        byte: u8,
    },
    Zero {
        chunk: u64,
        sectors: u64,
    },
    Admit,
    /// The target takes the oldest frame.
    Frame,
    /// The source hears the oldest message.
    Hear,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..4_u64, 0..3_u8).prop_map(|(chunk, byte)| Step::Whole { chunk, byte }),
        2 => (0..4_u64, 0..128_u64, 0..3_u8)
            .prop_map(|(chunk, sector, byte)| Step::Part { chunk, sector, byte }),
        1 => (0..4_u64, 1..200_u64).prop_map(|(chunk, sectors)| Step::Zero { chunk, sectors }),
        3 => Just(Step::Admit),
        5 => Just(Step::Frame),
        5 => Just(Step::Hear),
    ]
}

enum Frame {
    Manifest(Vec<(Place, ChunkHash)>),
    Data(u64, Vec<u8>),
    Zero(Range<u64>),
    End(u64),
}

enum Said {
    Answer(Vec<bool>),
    Applied(u64),
}

struct World {
    journal: Journal,
    queue: Queue,
    model: Vec<u8>,
    target: Vec<u8>,
    line: VecDeque<Frame>,
    back: VecDeque<Said>,
    spared: usize,
}

impl World {
    fn new() -> Self {
        Self {
            journal: journal(),
            queue: Queue::new(1),
            model: vec![0; SIZE as usize],
            target: vec![0; SIZE as usize],
            line: VecDeque::new(),
            back: VecDeque::new(),
            spared: 0,
        }
    }

    fn write(&mut self, offset: u64, length: u64, byte: u8) {
        let data = vec![byte; length.min(SIZE - offset) as usize];
        self.journal.write(0, offset, &data, Instant::now()).unwrap();
        self.model[offset as usize..][..data.len()].copy_from_slice(&data);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Whole { chunk, byte } => self.write(chunk * CHUNK, CHUNK, byte),
            Step::Part { chunk, sector, byte } => self.write(chunk * CHUNK + sector * 512, 4096, byte),
            Step::Zero { chunk, sectors } => {
                let end = (chunk * CHUNK + sectors * 512).min(SIZE);
                self.journal.zero(0, chunk * CHUNK..end, Instant::now());
                self.model[(chunk * CHUNK) as usize..end as usize].fill(0);
            }
            Step::Admit => {
                let offers = admit(&mut self.journal, &mut self.queue);
                if !offers.is_empty() {
                    self.line.push_back(Frame::Manifest(offers));
                }
            }
            Step::Frame => self.target_takes(),
            Step::Hear => match self.back.pop_front() {
                Some(Said::Answer(had)) => {
                    for spared in self.queue.on_answer(&had).unwrap() {
                        self.journal.free(&spared.chunk);
                        self.spared += 1;
                    }
                }
                Some(Said::Applied(epoch)) => drop(self.queue.on_applied(epoch).unwrap()),
                None => {}
            },
        }
        self.send();
    }

    fn send(&mut self) {
        while let Some(ready) = self.queue.pop() {
            match ready {
                Ready::Data(chunk) => {
                    for run in chunk.runs() {
                        let mut data = Vec::new();
                        self.journal.read(&chunk, run.clone(), &mut data).unwrap();
                        self.line.push_back(Frame::Data(chunk.place.offset() + run.start as u64, data));
                    }
                    self.journal.free(&chunk);
                }
                Ready::Zero(_, range) => self.line.push_back(Frame::Zero(range)),
                Ready::End(epoch) => self.line.push_back(Frame::End(epoch)),
            }
        }
    }

    fn target_takes(&mut self) {
        match self.line.pop_front() {
            Some(Frame::Manifest(offers)) => {
                let has = |(place, hash): &(Place, ChunkHash)| {
                    ChunkHash::of(&KEY, &self.target[place.offset() as usize..][..CHUNK_BYTES]) == *hash
                };
                self.back.push_back(Said::Answer(offers.iter().map(has).collect()));
            }
            Some(Frame::Data(offset, data)) => {
                self.target[offset as usize..][..data.len()].copy_from_slice(&data);
            }
            Some(Frame::Zero(range)) => self.target[range.start as usize..range.end as usize].fill(0),
            Some(Frame::End(epoch)) => self.back.push_back(Said::Applied(epoch)),
            None => {}
        }
    }
}

proptest! {
    #[test]
    fn however_late_the_answers_the_target_ends_with_what_was_written_last(
        steps in proptest::collection::vec(step(), 0..120),
    ) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        for _ in 0..400 {
            [Step::Admit, Step::Frame, Step::Hear].into_iter().for_each(|step| world.step(step));
        }
        prop_assert!(world.queue.is_sent() && world.line.is_empty() && world.back.is_empty());
        prop_assert!(world.model == world.target);
        prop_assert_eq!(world.journal.usage().0, 0);
        prop_assert!(world.queue.touched.is_empty() && world.queue.oldest().is_none());
    }
}
