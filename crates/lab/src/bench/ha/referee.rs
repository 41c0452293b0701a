//! Who runs, as the guests themselves say it on their disks, and whether ever two of one did.
//!
//! The referee stands outside of all hosts, in a thread of its own, and reads every disk again and again. What it sees is a
//! little later than it was, never earlier: what it measures errs to the side of the slow.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sterna_qemu::boot::ticker::Mark;

use super::disk::Disk;
use crate::probe::Stop;

/// Between two looks at all disks.
const LOOK: Duration = Duration::from_millis(2);

/// One run of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    token: u32,
    /// When its first mark was seen.
    pub first: Instant,
    /// When its latest mark was seen.
    pub last: Instant,
    pub marks: u32,
    /// The longest time between two of its marks.
    pub pause: Duration,
}

/// What was seen of one guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judge {
    /// In the order in which they began.
    pub boots: Vec<Boot>,
    /// As the first mark had it, and as the highest has it.
    strangers: Option<(u32, u32)>,
    /// Marks of a boot after a later one had begun.
    late: u64,
    previous: Option<Mark>,
}

impl Judge {
    pub fn on_mark(&mut self, mark: Mark, now: Instant) {
        if self.previous.replace(mark) == Some(mark) {
            return;
        }
        let (first, most) = self.strangers.unwrap_or((mark.strangers, mark.strangers));
        self.strangers = Some((first, most.max(mark.strangers)));
        match self.boots.iter().rposition(|boot| boot.token == mark.token) {
            None => {
                let (token, marks) = (mark.token, mark.marks);
                self.boots.push(Boot { token, first: now, last: now, marks, pause: Duration::ZERO });
            }
            Some(at) => {
                self.late += u64::from(at + 1 < self.boots.len());
                let boot = &mut self.boots[at];
                boot.pause = boot.pause.max(now - boot.last);
                (boot.last, boot.marks) = (now, mark.marks);
            }
        }
    }

    /// Marks that were written while another copy ran: 0, or there were two writers.
    #[must_use]
    pub fn doubles(&self) -> u64 {
        self.late + self.strangers.map_or(0, |(first, most)| u64::from(most - first))
    }

    /// Of the latest boot.
    #[must_use]
    pub fn marks(&self) -> u32 {
        self.boots.last().map_or(0, |boot| boot.marks)
    }
}

/// Looks at guests until it is dropped.
pub struct Referee {
    judges: Arc<Mutex<Vec<Judge>>>,
    stop: Stop,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Referee {
    /// Of guests whose volumes these are; each is called by its number from here on.
    pub fn watch<P: AsRef<Path>>(volumes: &[P]) -> Result<Self> {
        let disks: Result<Vec<_>> = volumes.iter().map(|volume| Disk::open(volume.as_ref())).collect();
        let disks = disks?;
        let judges = Arc::new(Mutex::new(vec![Judge::default(); disks.len()]));
        let (stop, told) = (Stop::default(), Arc::clone(&judges));
        let until = stop.clone();
        let thread = std::thread::Builder::new().name("referee".to_owned());
        let thread = thread.spawn(move || look(disks, &told, &until)).context("start the referee")?;
        Ok(Self { judges, stop, thread: Some(thread) })
    }

    /// What was seen so far, guest by guest.
    pub fn judges(&self) -> Result<Vec<Judge>> {
        ensure!(self.thread.as_ref().is_some_and(|thread| !thread.is_finished()), "the referee fell asleep");
        Ok(self.judges.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    pub fn judge(&self, guest: usize) -> Result<Judge> {
        self.judges()?.into_iter().nth(guest).context("no such guest")
    }

    /// Waits for a boot of the guest after those that are known.
    pub async fn next_boot(&self, guest: usize, known: usize, patience: Duration) -> Result<Boot> {
        self.when(guest, patience, "no guest code runs", |judge| judge.boots.get(known).cloned()).await
    }

    /// Waits until the guest's latest boot marks on.
    pub async fn marks_on(&self, guest: usize, patience: Duration) -> Result<()> {
        let before = self.judge(guest)?;
        let known = (before.boots.len(), before.marks());
        let is_new = |judge: &Judge| (judge.boots.len(), judge.marks()) > known && judge.marks() > 1;
        self.when(guest, patience, "the guest stands still", |judge| is_new(judge).then_some(())).await
    }

    async fn when<T>(
        &self,
        guest: usize,
        patience: Duration,
        otherwise: &str,
        find: impl Fn(&Judge) -> Option<T>,
    ) -> Result<T> {
        let until = Instant::now() + patience;
        loop {
            if let Some(found) = find(&self.judge(guest)?) {
                return Ok(found);
            }
            ensure!(Instant::now() < until, "{otherwise} within {} s", patience.as_secs());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends it; why it ended before, if it did.
    pub fn finish(mut self) -> Result<Vec<Judge>> {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(std::mem::take(&mut *self.judges.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Drop for Referee {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

fn look(mut disks: Vec<Disk>, told: &Mutex<Vec<Judge>>, until: &Stop) -> Result<()> {
    while !until.is_stopped() {
        for (guest, disk) in disks.iter_mut().enumerate() {
            let mark = disk.mark().context("read a guest's disk")?;
            // Taken after it was read: nobody is made faster than they were.
            let now = Instant::now();
            if let Some(mark) = mark {
                told.lock().unwrap_or_else(PoisonError::into_inner)[guest].on_mark(mark, now);
            }
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Marks as (milliseconds, token, marks, strangers).
    fn judge(seen: &[(u64, u32, u32, u32)]) -> (Judge, Instant) {
        let (mut judge, start) = (Judge::default(), Instant::now());
        for (at, token, marks, strangers) in seen {
            let (boots, token, marks, strangers) = (1, *token, *marks, *strangers);
            judge.on_mark(Mark { boots, token, marks, strangers }, start + Duration::from_millis(*at));
        }
        (judge, start)
    }

    #[test]
    fn a_takeover_has_two_boots_one_after_the_other_and_no_double() {
        let (judge, start) =
            judge(&[(0, 7, 9, 0), (2, 7, 9, 0), (50, 7, 10, 0), (8000, 8, 1, 0), (8055, 8, 2, 0)]);
        assert_eq!(judge.boots.iter().map(|boot| boot.marks).collect::<Vec<_>>(), [10, 2]);
        assert_eq!(judge.boots[1].first, start + Duration::from_secs(8));
        assert_eq!(judge.boots[0].last, start + Duration::from_millis(50), "a mark seen twice is one");
        assert_eq!(judge.doubles(), 0);
    }

    #[test]
    fn an_old_copy_that_marks_after_the_new_one_began_is_a_double() {
        let (judge, _) = judge(&[(0, 7, 9, 0), (50, 8, 1, 0), (60, 7, 10, 0), (70, 8, 2, 0)]);
        assert_eq!((judge.boots.len(), judge.doubles()), (2, 1));
    }

    #[test]
    fn a_mark_of_before_that_is_there_again_is_a_double_too() {
        // What the disk says must not go back, whoever wrote it.
        let (judge, _) = judge(&[(0, 7, 9, 0), (50, 8, 1, 0), (60, 7, 9, 0)]);
        assert_eq!(judge.doubles(), 1);
    }

    #[test]
    fn what_the_guests_themselves_noticed_counts_and_what_was_before_does_not() {
        let (judge, _) = judge(&[(0, 7, 9, 2), (50, 8, 1, 2), (60, 8, 2, 5)]);
        assert_eq!(judge.doubles(), 3);
    }

    #[test]
    fn the_longest_pause_of_a_boot_is_its_own() {
        let (judge, _) =
            judge(&[(0, 7, 1, 0), (50, 7, 2, 0), (1050, 7, 3, 0), (9000, 8, 1, 0), (9050, 8, 2, 0)]);
        let pauses: Vec<_> = judge.boots.iter().map(|boot| boot.pause.as_millis()).collect();
        assert_eq!(pauses, [1000, 50]);
    }

    #[test]
    fn a_guest_that_has_not_marked_yet_is_none() {
        assert_eq!((Judge::default().doubles(), Judge::default().marks()), (0, 0));
    }
}
