//! What changed in a page since it was sent: runs of XORed bytes with the distances between them.

use super::Error;
use super::token::{Reader, put_varint};
use crate::hash::{PAGE_BYTES, Page};

/// Beyond this a page that is sent whole is squeezed as well and costs less to rebuild.
const DELTA_MAX: usize = PAGE_BYTES / 2;
/// Two runs this near to each other are one: a new run costs two bytes.
const GAP_MIN: usize = 4;
const WORD: usize = 8;

/// Appends the delta from `old` to `new`; `None`, with nothing appended, if it would be long.
pub(super) fn write(out: &mut Vec<u8>, old: &Page, new: &Page) -> Option<usize> {
    let begin = out.len();
    let mut written = 0;
    let mut at = 0;
    while let Some(start) = next_difference(old, new, at) {
        let end = run_end(old, new, start);
        put_varint(out, (start - written) as u64);
        put_varint(out, (end - start) as u64);
        out.extend(old[start..end].iter().zip(&new[start..end]).map(|(old, new)| old ^ new));
        (written, at) = (end, end);
        if out.len() - begin > DELTA_MAX {
            out.truncate(begin);
            return None;
        }
    }
    Some(out.len() - begin)
}

fn next_difference(old: &Page, new: &Page, from: usize) -> Option<usize> {
    let mut at = from;
    while at < PAGE_BYTES {
        // A word at a time where words begin: nearly all of a page is the same.
        if at.is_multiple_of(WORD) && old[at..at + WORD] == new[at..at + WORD] {
            at += WORD;
        } else if old[at] == new[at] {
            at += 1;
        } else {
            return Some(at);
        }
    }
    None
}

/// Behind the last different byte before a gap.
fn run_end(old: &Page, new: &Page, start: usize) -> usize {
    let mut end = start + 1;
    for at in start + 1..PAGE_BYTES {
        if old[at] != new[at] {
            end = at + 1;
        } else if at - end >= GAP_MIN {
            break;
        }
    }
    end
}

/// Turns the old page into the new one.
pub(super) fn apply(page: &mut Page, delta: &[u8]) -> Result<(), Error> {
    let mut reader = Reader(delta);
    let mut at = 0_usize;
    while !reader.is_empty() {
        let start = at.checked_add(reader.length()?);
        let run = reader.length()?;
        let bytes = reader.take(run)?;
        let target = start.and_then(|start| page.get_mut(start..start.checked_add(run)?));
        let target = target.ok_or(Error::Malformed("a delta leaves its page"))?;
        target.iter_mut().zip(bytes).for_each(|(byte, changed)| *byte ^= changed);
        at = start.unwrap_or(PAGE_BYTES) + run;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_delta_makes_the_new_page_of_the_old(changes in prop::collection::vec((0..PAGE_BYTES, any::<u8>()), 0..200)) {
            let old: Page = std::array::from_fn(|at| (at * 31 / 7) as u8);
            let mut new = old;
            for (at, value) in changes {
                new[at] = value;
            }
            let mut delta = vec![1, 2];
            let length = write(&mut delta, &old, &new).unwrap();
            prop_assert_eq!(length + 2, delta.len());
            let mut page = old;
            apply(&mut page, &delta[2..]).unwrap();
            prop_assert!(page == new);
        }

        #[test]
        fn a_delta_from_a_stranger_is_refused_or_stays_in_its_page(delta in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut page = [0; PAGE_BYTES];
            let _ = apply(&mut page, &delta);
        }
    }

    #[test]
    fn a_page_that_changed_everywhere_has_no_delta() {
        let mut out = vec![9];
        assert_eq!(write(&mut out, &[1; PAGE_BYTES], &[2; PAGE_BYTES]), None);
        assert_eq!(out, [9]);
    }

    #[test]
    fn one_changed_word_costs_a_few_bytes() {
        let (old, mut new) = ([7; PAGE_BYTES], [7; PAGE_BYTES]);
        new[4000] = 8;
        assert_eq!(write(&mut Vec::new(), &old, &new), Some(4));
    }
}
