//! Sizes, durations and rates as people write them: `4GiB`, `300ms`, `20Mbit/s`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The text is no size or duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("`{0}` is not a size; write a number with B, KiB, MiB, GiB or TiB, such as 4GiB")]
    Size(String),
    #[error("`{0}` is not a duration; write a number with ms, s, m, h or d, such as 300ms")]
    Duration(String),
    #[error("`{0}` is not a rate; write a number with bit/s, kbit/s, Mbit/s or Gbit/s, such as 20Mbit/s")]
    Rate(String),
}

/// A number of bytes. Text form: the largest binary unit that is exact (`4GiB`, `1500B`).
/// JSON form: the text; plain numbers are read as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

const UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl Bytes {
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS.iter().find(|(_, size)| self.0 != 0 && self.0.is_multiple_of(*size));
        let (unit, size) = exact.copied().unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / size)
    }
}

impl FromStr for Bytes {
    type Err = Error;

    /// Accepts an integer with an optional unit. `K`, `M`, `G`, `T` mean the binary units, as everywhere in this field.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Size(text.to_owned());
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let number: u64 = trimmed[..split].parse().map_err(|_| wrong())?;
        let unit = trimmed[split..].trim();
        let size = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1u64 << 40,
            _ => return Err(wrong()),
        };
        number.checked_mul(size).map(Bytes).ok_or_else(wrong)
    }
}

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a size such as \"4GiB\"")
            }

            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Bytes, E> {
                Ok(Bytes(n))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A span of time. Text form: the largest unit that is exact (`300ms`, `2h`). Resolution: milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(pub Duration);

const SPANS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl Span {
    #[must_use]
    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    #[must_use]
    pub const fn from_secs(s: u64) -> Self {
        Self(Duration::from_secs(s))
    }

    #[must_use]
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.as_millis();
        let exact = SPANS.iter().find(|(_, size)| ms != 0 && ms.is_multiple_of(*size));
        let (unit, size) = exact.copied().unwrap_or(("ms", 1));
        write!(f, "{}{unit}", ms / size)
    }
}

impl FromStr for Span {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Duration(text.to_owned());
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = trimmed[..split].parse().map_err(|_| wrong())?;
        let unit = trimmed[split..].trim();
        let size = SPANS.iter().find(|(name, _)| *name == unit).map(|(_, size)| *size).ok_or_else(wrong)?;
        number.checked_mul(size).map(Span::from_millis).ok_or_else(wrong)
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// How fast a line is, in bits a second. Text form: the largest decimal unit that is exact (`20Mbit/s`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Rate(u64);

const RATES: [(&str, u64); 4] =
    [("Gbit/s", 1_000_000_000), ("Mbit/s", 1_000_000), ("kbit/s", 1000), ("bit/s", 1)];

impl Rate {
    #[must_use]
    pub const fn kbit(n: u64) -> Self {
        Self(n * 1000)
    }

    #[must_use]
    pub const fn mbit(n: u64) -> Self {
        Self(n * 1_000_000)
    }

    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    #[must_use]
    pub const fn bytes_per_second(self) -> u64 {
        self.0 / 8
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = RATES.iter().find(|(_, size)| self.0 != 0 && self.0.is_multiple_of(*size));
        let (unit, size) = exact.copied().unwrap_or(("bit/s", 1));
        write!(f, "{}{unit}", self.0 / size)
    }
}

impl FromStr for Rate {
    type Err = Error;

    /// The case of letters does not matter, and `/s` may be left out.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Rate(text.chars().take(40).collect());
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = trimmed[..split].parse().map_err(|_| wrong())?;
        let unit = trimmed[split..].trim().to_ascii_lowercase();
        let unit = unit.strip_suffix("/s").unwrap_or(&unit);
        let is = |name: &str| name.to_ascii_lowercase().strip_suffix("/s") == Some(unit);
        let size = RATES.iter().find(|(name, _)| is(name)).map(|(_, size)| *size).ok_or_else(wrong)?;
        number.checked_mul(size).map(Rate).ok_or_else(wrong)
    }
}

impl Serialize for Rate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        let cases = [("4GiB", 4 << 30), ("4g", 4 << 30), ("512 MiB", 512 << 20), ("17", 17), ("0", 0)];
        for (text, bytes) in cases {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes), "{text}");
        }
        for text in ["", "-1", "4GB!", "1.5GiB", "99999999999TiB", "GiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_and_a_span_survive_their_text() {
        for n in [0, 1, 1023, 1024, 262_136 << 10, 1 << 40, u64::MAX] {
            assert_eq!(Bytes(n).to_string().parse::<Bytes>().unwrap(), Bytes(n));
        }
        for ms in [0, 1, 999, 1000, 90_000, 7_200_000, 86_400_000] {
            let span = Span::from_millis(ms);
            assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
        }
    }

    #[test]
    fn a_duration_needs_its_unit() {
        assert_eq!("2h".parse::<Span>().unwrap(), Span::from_secs(7200));
        assert!("300".parse::<Span>().is_err());
    }

    #[test]
    fn rates_read_as_lines_are_sold() {
        let cases = [
            ("20Mbit/s", 20_000_000),
            ("20 mbit", 20_000_000),
            ("1Gbit/s", 1_000_000_000),
            ("64kbit/s", 64_000),
        ];
        for (text, bits) in cases {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.bits(), rate.bytes_per_second()), (bits, bits / 8), "{text}");
            assert_eq!(rate.to_string().parse::<Rate>().unwrap(), rate);
        }
        for text in ["", "20", "20MB/s", "-1Mbit/s", "1.5Mbit/s", "99999999999Gbit/s", "Mbit/s", "20Mbit/h"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
