//! A transaction: what must hold, what to write, and the limits that every back end shares.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::error::Error;
use crate::lease::Lease;
use crate::store::Revision;

/// Longest key in bytes; a few times what the longest DNS labels of an object's path need.
pub const KEY_BYTES_MAX: usize = 1024;
/// Most compares, and most writes, in one transaction; room for a plan about a rack of virtual machines.
pub const STEPS_MAX: usize = 512;
/// Most bytes of keys and values in one transaction; below what etcd takes in one request (1.5 MiB).
pub const BYTES_MAX: usize = 1024 * 1024;

/// What must hold for the writes to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key was last written by commit `at`; 0 means that the key is absent.
    Modified { key: String, at: Revision },
    /// The lease is held, in this epoch.
    Leader { name: String, epoch: Revision },
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Put { key: String, value: Arc<[u8]> },
    Delete { key: String },
}

impl Write {
    pub fn key(&self) -> &str {
        match self {
            Write::Put { key, .. } | Write::Delete { key } => key,
        }
    }
}

/// Compares and writes that happen as one.
///
/// ```
/// # use sterna_store::Txn;
/// let rename = Txn::new().require("vm/web", 7).absent("vm/www").delete("vm/web").put("vm/www", *b"{}");
/// assert_eq!(rename.writes.len(), 2);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub writes: Vec<Write>,
}

impl Txn {
    pub fn new() -> Self {
        Self::default()
    }

    /// The key must have been last written by commit `at` (0: must be absent).
    pub fn require(mut self, key: impl Into<String>, at: Revision) -> Self {
        self.compares.push(Compare::Modified { key: key.into(), at });
        self
    }

    /// The key must not exist.
    pub fn absent(self, key: impl Into<String>) -> Self {
        self.require(key, 0)
    }

    /// The lease must still be held in its epoch: fences a leader that was deposed.
    pub fn led_by(mut self, lease: &Lease) -> Self {
        self.compares.push(Compare::Leader { name: lease.name.clone(), epoch: lease.epoch });
        self
    }

    pub fn put(mut self, key: impl Into<String>, value: impl Into<Arc<[u8]>>) -> Self {
        self.writes.push(Write::Put { key: key.into(), value: value.into() });
        self
    }

    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push(Write::Delete { key: key.into() });
        self
    }

    /// Whether the transaction keeps the rules: valid keys, each written once, within the limits.
    pub fn check(&self) -> Result<(), Error> {
        if self.compares.len() > STEPS_MAX || self.writes.len() > STEPS_MAX {
            return Err(invalid(format!("more than {STEPS_MAX} compares or writes in one transaction")));
        }
        let mut bytes = 0;
        let mut written = BTreeSet::new();
        for compare in &self.compares {
            if let Compare::Modified { key, .. } = compare {
                check_key(key)?;
                bytes += key.len();
            }
        }
        for write in &self.writes {
            check_key(write.key())?;
            bytes += write.key().len();
            if let Write::Put { value, .. } = write {
                bytes += value.len();
            }
            if !written.insert(write.key()) {
                return Err(invalid(format!("{} is written twice in one transaction", write.key())));
            }
        }
        if bytes > BYTES_MAX {
            return Err(invalid(format!("transaction has {bytes} bytes, {BYTES_MAX} are allowed")));
        }
        Ok(())
    }
}

/// A key is 1 to [`KEY_BYTES_MAX`] visible ASCII characters: then byte order, text order and the end of a
/// prefix are the same in every back end.
pub fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() {
        return Err(invalid("a key must not be empty".to_owned()));
    }
    check_prefix(key)
}

/// A prefix is as a key, or empty for all keys.
pub fn check_prefix(prefix: &str) -> Result<(), Error> {
    if prefix.len() > KEY_BYTES_MAX {
        return Err(invalid(format!("key has {} bytes, {KEY_BYTES_MAX} are allowed", prefix.len())));
    }
    match prefix.bytes().find(|byte| !byte.is_ascii_graphic()) {
        Some(byte) => {
            Err(invalid(format!("key {prefix:?} has byte 0x{byte:02x}, only visible ASCII may be used")))
        }
        None => Ok(()),
    }
}

/// The first text after all keys with this prefix.
pub(crate) fn prefix_end(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    // Visible ASCII ends at 0x7e, so the successor of the last byte is still ASCII.
    match end.pop() {
        Some(last) => end.push(char::from(last as u8 + 1)),
        None => end.push('\u{7f}'),
    }
    end
}

fn invalid(reason: String) -> Error {
    Error::Invalid { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_kept() {
        let refused = [
            Txn::new().put("", *b"x"),
            Txn::new().put("a b", *b"x"),
            Txn::new().put("a/\u{e9}", *b"x"),
            Txn::new().put("a\0", *b"x"),
            Txn::new().absent("a\n"),
            Txn::new().put("a".repeat(KEY_BYTES_MAX + 1), *b"x"),
            Txn::new().put("a", *b"x").delete("a"),
            Txn::new().put("a", vec![0; BYTES_MAX]),
            (0..=STEPS_MAX).fold(Txn::new(), |txn, i| txn.delete(format!("k{i}"))),
        ];
        for txn in refused {
            assert!(matches!(txn.check(), Err(Error::Invalid { .. })), "{txn:.100?}");
        }
        assert!(Txn::new().put("a", vec![0; BYTES_MAX - 1]).absent("b").check().is_err());
        assert_eq!(Txn::new().put("a", vec![0; BYTES_MAX - 1]).check(), Ok(()));
    }

    #[test]
    fn a_prefix_ends_before_its_successor() {
        assert_eq!(prefix_end("vm/"), "vm0");
        assert!("vm/~~~~" < prefix_end("vm/").as_str());
        assert!("~~~~" < prefix_end("").as_str());
        assert!("a~~" < prefix_end("a~").as_str());
    }
}
