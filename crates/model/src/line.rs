//! The line from one QEMU to the other: how it is laid, and the key that both ends hold for one move.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What the source must know to call the target's QEMU. The target says it to the server, the server to the source, and
/// nobody shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Absent: in clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<LineKey>,
    /// Connections for memory beside the first; 0: the first carries everything.
    #[serde(default)]
    pub channels: u8,
    /// Where the disks go that come along. Absent: none do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<DiskLine>,
}

/// The target's QEMU takes in disks beside memory, at the same address, and encrypted with the same key or as open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLine {
    pub port: u16,
    /// Part of the exports' names, drawn for this move: a source of another move that calls here by mistake has none of
    /// them. In clear it keeps out nobody who can read the line.
    pub word: LineKey,
    /// Disks whose topmost image is empty there, and what is below it is the same image as at the source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blank: Vec<usize>,
}

impl DiskLine {
    /// The export of the n-th disk.
    #[must_use]
    pub fn export(&self, index: usize) -> String {
        format!("{}.{index}", self.word.digits())
    }
}

/// How a line is to be laid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Laying {
    /// As in [`Line`].
    pub channels: u8,
    pub is_encrypted: bool,
}

/// 32 random bytes as 64 hexadecimal digits. Checked, because it goes into a file and into names that QEMU reads; its
/// digits are in no log.
#[derive(Clone, PartialEq, Eq)]
pub struct LineKey(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a line's key: 64 hexadecimal digits")]
pub struct NotALineKey;

impl LineKey {
    #[must_use]
    pub fn new(drawn: [u8; 32]) -> Self {
        Self(drawn.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// For the file alone.
    #[must_use]
    pub fn digits(&self) -> &str {
        &self.0
    }
}

impl FromStr for LineKey {
    type Err = NotALineKey;

    fn from_str(text: &str) -> Result<Self, NotALineKey> {
        let is_digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        let fits = text.len() == 64 && text.bytes().all(is_digit);
        if fits { Ok(Self(text.to_owned())) } else { Err(NotALineKey) }
    }
}

impl fmt::Debug for LineKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LineKey(..)")
    }
}

impl Serialize for LineKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for LineKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_are_keys() {
        let key = LineKey::new([0xa5; 32]);
        assert_eq!(key.digits().parse(), Ok(key.clone()));
        let two_lines = format!("{}\n", key.digits());
        for bad in ["", "a5", &key.digits().to_uppercase(), &key.digits().replace('a', "g"), &two_lines] {
            assert_eq!(bad.parse::<LineKey>(), Err(NotALineKey), "{bad}");
        }
        assert!(serde_json::from_str::<LineKey>(r#""no key""#).is_err());
    }

    #[test]
    fn a_log_has_no_digit_of_a_key() {
        let disks = DiskLine { port: 4000, word: LineKey::new([0xa5; 32]), blank: vec![1] };
        let line = Line { key: Some(LineKey::new([0xa5; 32])), channels: 2, disks: Some(disks) };
        assert!(!format!("{line:?}").contains("a5"), "{line:?}");
        for line in [Line { key: None, ..line.clone() }, Line { disks: None, ..line.clone() }, line] {
            let stored = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<Line>(&stored).unwrap(), line);
        }
        let of_an_older_agent = r#"{"channels":2}"#;
        let line = Line { key: None, channels: 2, disks: None };
        assert_eq!(serde_json::from_str::<Line>(of_an_older_agent).unwrap(), line);
    }
}
