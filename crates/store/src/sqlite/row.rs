//! How a row is stored: revisions as SQLite's signed integers, and a checksum over all of it.

use std::sync::Arc;

use rusqlite::Row;

use crate::error::Error;
use crate::store::Revision;

/// A row of `entry` or `change`, in the order of [`COLUMNS`].
pub(super) struct Stored {
    pub(super) key: String,
    pub(super) modified: Revision,
    pub(super) created: Revision,
    pub(super) value: Option<Arc<[u8]>>,
    sum: i64,
}

pub(super) const COLUMNS: &str = "key, modified, created, value, sum";

impl Stored {
    pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            key: row.get(0)?,
            modified: revision_at(row, 1)?,
            created: revision_at(row, 2)?,
            value: row.get_ref(3)?.as_blob_or_null()?.map(Arc::from),
            sum: row.get(4)?,
        })
    }

    /// Refuses a row that is not as it was written.
    pub(super) fn verified(self) -> Result<Self, Error> {
        if self.sum == sum(&self.key, self.modified, self.created, self.value.as_deref()) {
            Ok(self)
        } else {
            Err(Error::Damaged { key: self.key, revision: self.modified })
        }
    }
}

/// A revision as a column. A commit every nanosecond would reach the end of `i64` after 292 years.
pub(crate) fn column(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

pub(super) fn revision_at(row: &Row<'_>, index: usize) -> rusqlite::Result<Revision> {
    let value: i64 = row.get(index)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(index, value))
}

/// Against decay, not against people. Each step is a bijection of the state for a given word and of the word
/// for a given state, so damage within one aligned word of eight bytes never goes unseen.
pub(crate) fn sum(key: &str, modified: Revision, created: Revision, value: Option<&[u8]>) -> i64 {
    let mut state = mix(mix(mix_bytes(0, key.as_bytes()), modified), created);
    if let Some(value) = value {
        state = mix_bytes(mix(state, 1), value);
    }
    state.cast_signed()
}

fn mix(state: u64, word: u64) -> u64 {
    // Odd, hence invertible: the fraction of the golden ratio in 64 bits.
    (state.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn mix_bytes(mut state: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        state = mix(state, u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(mix(state, u64::from_le_bytes(last)), bytes.len() as u64)
}
