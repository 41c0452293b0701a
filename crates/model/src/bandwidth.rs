//! How much of the line between datacentres moves may take, by the time of day.
//!
//! ```text
//! limit of a datacentre = the lowest of its limits that hold now; none holds: as much as the line carries
//! rate of a move        = the lower of limit / moves that leave, at its source, and limit / moves that arrive, at its target
//! ```
//!
//! Times are those of a fixed offset from UTC: summer time is not followed. A clock that is wrong makes a move slower or
//! faster, and nothing else.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use sterna_base::units::Rate;
use utoipa::ToSchema;

/// Of one datacentre.
pub const LIMITS_MAX: usize = 50;
/// A slower line moves no VM within a day.
pub const LIMIT_MIN: Rate = Rate::kbit(100);

const DAY_MINUTES: i64 = 24 * 60;
const MINUTE_MS: i64 = 60_000;
/// 1970-01-01 was a Thursday.
const FIRST_DAY: i64 = 3;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
/// Whatever begins or ends does so again within a week.
const WEEK: i64 = 7;

/// The most that moves may take of a datacentre's line, in each direction, at some times of the week.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BandwidthLimit {
    /// On which it begins, such as `mon-fri` or `sat,sun`. Absent: every day.
    #[serde(default, skip_serializing_if = "Days::is_every")]
    #[schema(value_type = String, example = "mon-fri")]
    pub days: Days,
    /// Absent: midnight.
    #[serde(default)]
    #[schema(value_type = String, example = "08:00")]
    pub from: TimeOfDay,
    /// Not after `from`: on the next day. Absent: midnight.
    #[serde(default = "TimeOfDay::end_of_day")]
    #[schema(value_type = String, example = "18:00")]
    pub to: TimeOfDay,
    /// What clocks there show more than UTC, such as `+01:00`. Absent: UTC.
    #[serde(default, skip_serializing_if = "UtcOffset::is_zero")]
    #[schema(value_type = String, example = "+01:00")]
    pub utc_offset: UtcOffset,
    #[schema(value_type = String, example = "20Mbit/s")]
    pub limit: Rate,
}

impl BandwidthLimit {
    /// Why it cannot be meant.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        if self.from == TimeOfDay::end_of_day() {
            return Some(format!("`{self}` begins at 24:00; write 00:00 and the next day"));
        }
        if self.from == self.to {
            return Some(format!("`{self}` begins and ends at {}; a whole day is 00:00-24:00", self.from));
        }
        (self.limit < LIMIT_MIN)
            .then(|| format!("`{self}` lets nothing through; a limit is {LIMIT_MIN} or more"))
    }

    fn holds_at(&self, at: Timestamp) -> bool {
        let local = self.local(at);
        let (day, minute) = (local.div_euclid(DAY_MINUTES), local.rem_euclid(DAY_MINUTES));
        let (from, to) = (self.from.minutes(), self.to.minutes());
        if from < to {
            return self.days.has(day) && (from..to).contains(&minute);
        }
        (self.days.has(day) && minute >= from) || (self.days.has(day - 1) && minute < to)
    }

    /// In minutes, as clocks there show it.
    fn local(&self, at: Timestamp) -> i64 {
        at.as_millis().div_euclid(MINUTE_MS) + i64::from(self.utc_offset.0)
    }

    /// When it may begin or end within a week.
    fn edges(&self, after: Timestamp) -> impl Iterator<Item = Timestamp> + use<> {
        let today = self.local(after).div_euclid(DAY_MINUTES);
        let (offset, edges) = (i64::from(self.utc_offset.0), [self.from.minutes(), self.to.minutes()]);
        let at = move |day: i64, edge: i64| (day * DAY_MINUTES + edge - offset) * MINUTE_MS;
        (today..=today + WEEK)
            .flat_map(move |day| edges.map(|edge| Timestamp::from_millis(at(day, edge))))
            .filter(move |at| *at > after)
    }
}

/// `[DAYS] FROM-TO [OFFSET] LIMIT`, or a limit alone.
impl fmt::Display for BandwidthLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.days.is_every() {
            write!(f, "{} ", self.days)?;
        }
        write!(f, "{}-{} ", self.from, self.to)?;
        if !self.utc_offset.is_zero() {
            write!(f, "{} ", self.utc_offset)?;
        }
        write!(f, "{}", self.limit)
    }
}

/// Which word of a limit is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("`{0}` is no time of day; write hours and minutes from 00:00 to 24:00")]
    Time(String),
    #[error("`{0}` are no days; write mon, tue, wed, thu, fri, sat or sun, such as mon-fri or sat,sun")]
    Days(String),
    #[error("`{0}` is no offset from UTC; write hours and minutes from -14:00 to +14:00, such as +01:00")]
    Offset(String),
    #[error(transparent)]
    Rate(#[from] sterna_base::units::Error),
    #[error(
        "`{0}` is no limit; write DAYS FROM-TO OFFSET RATE such as `mon-fri 08:00-18:00 +01:00 20Mbit/s`"
    )]
    Limit(String),
    #[error("{0}")]
    Fault(String),
}

fn cut(text: &str) -> String {
    text.chars().take(60).collect()
}

impl FromStr for BandwidthLimit {
    type Err = Error;

    /// Only the rate has to be there.
    fn from_str(text: &str) -> Result<Self, Error> {
        let mut words = text.split_whitespace().peekable();
        let begins =
            |word: Option<&&str>, is: fn(char) -> bool| word.is_some_and(|word| word.starts_with(is));
        let mut limit = Self {
            days: Days::default(),
            from: TimeOfDay::default(),
            to: TimeOfDay::end_of_day(),
            utc_offset: UtcOffset::default(),
            limit: Rate::default(),
        };
        if begins(words.peek(), |c| c.is_ascii_alphabetic()) {
            limit.days = words.next().unwrap_or_default().parse()?;
        }
        if words.peek().is_some_and(|word| word.contains(':') && word.contains('-'))
            && begins(words.peek(), |c| c.is_ascii_digit())
        {
            let (from, to) = words.next().and_then(|word| word.split_once('-')).unwrap_or_default();
            (limit.from, limit.to) = (from.parse()?, to.parse()?);
        }
        if begins(words.peek(), |c| c == '+' || c == '-') {
            limit.utc_offset = words.next().unwrap_or_default().parse()?;
        }
        match (words.next(), words.next()) {
            (Some(rate), None) => limit.limit = rate.parse()?,
            _ => return Err(Error::Limit(cut(text))),
        }
        limit.fault().map_or(Ok(limit), |fault| Err(Error::Fault(fault)))
    }
}

/// Days of the week, a bit each, Monday the lowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days(u8);

const EVERY_DAY: u8 = 0x7f;

impl Default for Days {
    fn default() -> Self {
        Self(EVERY_DAY)
    }
}

impl Days {
    #[must_use]
    pub fn is_every(&self) -> bool {
        self.0 == EVERY_DAY
    }

    /// `day`: since 1970-01-01.
    fn has(self, day: i64) -> bool {
        self.0 & (1 << (day + FIRST_DAY).rem_euclid(WEEK)) != 0
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut day = 0;
        while day < DAYS.len() {
            let last = (day..DAYS.len()).take_while(|day| self.0 & (1 << day) != 0).last();
            let Some(last) = last else {
                day += 1;
                continue;
            };
            write!(f, "{separator}{}", DAYS[day])?;
            if last > day {
                write!(f, "-{}", DAYS[last])?;
            }
            separator = ",";
            day = last + 1;
        }
        Ok(())
    }
}

impl FromStr for Days {
    type Err = Error;

    /// Single days and ranges, which may go over the end of the week.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Days(cut(text));
        let number = |word: &str| {
            let word = word.trim().to_ascii_lowercase();
            DAYS.iter().position(|day| *day == word).ok_or_else(wrong)
        };
        let mut days = 0;
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (mut day, last) = (number(first)?, number(last)?);
            days |= 1 << day;
            while day != last {
                day = (day + 1) % DAYS.len();
                days |= 1 << day;
            }
        }
        Ok(Self(days))
    }
}

/// Hours and minutes: minutes since midnight, up to 24:00.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeOfDay(u16);

impl TimeOfDay {
    #[must_use]
    pub fn end_of_day() -> Self {
        Self(24 * 60)
    }

    fn minutes(self) -> i64 {
        i64::from(self.0)
    }
}

/// `HH:MM`.
fn minutes(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let two_digits = |part: &str| {
        let is = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
        is.then(|| part.parse::<u16>().ok())?
    };
    let (hours, minutes) = (two_digits(hours)?, two_digits(minutes)?);
    (minutes < 60).then_some(hours * 60 + minutes)
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

impl FromStr for TimeOfDay {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let at = minutes(text).map(Self).filter(|at| *at <= Self::end_of_day());
        at.ok_or_else(|| Error::Time(cut(text)))
    }
}

/// Minutes that clocks show more than UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UtcOffset(i16);

/// The date line's other side.
const OFFSET_MAX: u16 = 14 * 60;

impl UtcOffset {
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for UtcOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, minutes) = (if self.0 < 0 { '-' } else { '+' }, self.0.unsigned_abs());
        write!(f, "{sign}{:02}:{:02}", minutes / 60, minutes % 60)
    }
}

impl FromStr for UtcOffset {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (sign, rest) = match (text.strip_prefix('+'), text.strip_prefix('-')) {
            (Some(rest), _) => (1, rest),
            (_, Some(rest)) => (-1, rest),
            _ => (1, ""),
        };
        let minutes = minutes(rest).filter(|minutes| *minutes <= OFFSET_MAX);
        let minutes = minutes.and_then(|minutes| i16::try_from(minutes).ok());
        minutes.map(|minutes| Self(sign * minutes)).ok_or_else(|| Error::Offset(cut(text)))
    }
}

macro_rules! as_text {
    ($($kind:ty)*) => {$(
        impl Serialize for $kind {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
as_text!(Days TimeOfDay UtcOffset);

/// What one of several moves may take of a datacentre's line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub limits: Vec<BandwidthLimit>,
    /// That share the line in this direction, this one among them.
    pub moves: u32,
}

impl Share {
    fn rate_at(&self, at: Timestamp) -> Option<u64> {
        let holding = self.limits.iter().filter(|limit| limit.holds_at(at));
        let limit = holding.map(|limit| limit.limit).min()?;
        Some(limit.bytes_per_second() / u64::from(self.moves.max(1)))
    }
}

/// The lowest of several shares, in bytes a second. `None`: no limit holds.
#[must_use]
pub fn rate_at(shares: &[Share], at: Timestamp) -> Option<u64> {
    shares.iter().filter_map(|share| share.rate_at(at)).min()
}

/// The same from now on for a week: each rate with the time until it holds. The first holds now.
#[must_use]
pub fn rates_from(shares: &[Share], now: Timestamp) -> Vec<(Duration, Option<u64>)> {
    let limits = shares.iter().flat_map(|share| &share.limits);
    let mut edges: Vec<_> = limits.flat_map(|limit| limit.edges(now)).collect();
    edges.sort_unstable();
    let mut rates = vec![(Duration::ZERO, rate_at(shares, now))];
    for edge in edges {
        let rate = rate_at(shares, edge);
        if rates.last().is_some_and(|(_, last)| *last != rate) {
            rates.push((edge.since(now), rate));
        }
    }
    rates
}

#[cfg(test)]
#[path = "bandwidth_tests.rs"]
mod tests;
