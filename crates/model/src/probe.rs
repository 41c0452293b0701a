//! What a host measured of the line to another datacentre, before a guest goes over it.

use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use sterna_base::units::{Rate, Span};
use utoipa::ToSchema;

use crate::meta::Name;

/// A line as it was at one time, in the direction away from the host that measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LineProbe {
    /// The host of the other datacentre that answered.
    pub peer: Name,
    /// When it was measured, by the clock of the host that did.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The median of several echoes on an idle line.
    #[schema(value_type = String, example = "40ms")]
    pub round_trip: Span,
    /// What got through of bytes that cannot be packed.
    #[schema(value_type = String, example = "93400kbit/s")]
    pub rate: Rate,
    /// The limit of the line's bandwidth that held then. Absent: none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "20Mbit/s")]
    pub limit: Option<Rate>,
}

/// A measurement so near to the limit is one of the limit.
const NEAR_PERCENT: u64 = 80;

impl LineProbe {
    /// It was the limit that held it back, so that the line carries at least this.
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        self.limit.is_some_and(|limit| self.rate.bits() / NEAR_PERCENT >= limit.bits() / 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_near_the_limit_is_the_limits_and_one_below_it_the_lines() {
        let probe = |rate, limit| LineProbe {
            peer: "b1".parse().unwrap(),
            at: Timestamp::default(),
            round_trip: Span::from_millis(40),
            rate: Rate::mbit(rate),
            limit,
        };
        let cases = [(93, None, false), (19, Some(20), true), (16, Some(20), true), (9, Some(20), false)];
        for (rate, limit, expected) in cases {
            assert_eq!(probe(rate, limit.map(Rate::mbit)).is_held_back(), expected, "{rate} {limit:?}");
        }
    }
}
