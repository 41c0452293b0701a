//! Who grants leases, and what a majority is.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::core::id::HostId;
use crate::core::mutation::Mutations;

/// More voters make a lease no safer and every renewal dearer.
pub const VOTERS_MAX: usize = 9;

/// The voters of a datacentre at one version of its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Voters(pub BTreeSet<HostId>);

/// A set that grants nothing, or too much.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("there are no voters: nobody could grant a lease")]
    None,
    #[error("there are {0} voters, at most 9 are of use")]
    TooMany(usize),
}

impl Voters {
    /// An even number is allowed: it is what a change from three to five passes through.
    pub fn check(&self) -> Result<(), Error> {
        match self.0.len() {
            0 => Err(Error::None),
            count if count > VOTERS_MAX => Err(Error::TooMany(count)),
            _ => Ok(()),
        }
    }

    /// Whether those who said yes are more than half. Of nobody there is no majority.
    #[must_use]
    pub fn has_majority(&self, agreed: &BTreeSet<HostId>, mutations: Mutations) -> bool {
        let yes = self.0.intersection(agreed).count();
        if crate::mutated!(mutations, OneVoterIsEnough) {
            return yes > 0;
        }
        yes * 2 > self.0.len()
    }
}

impl FromIterator<HostId> for Voters {
    fn from_iter<I: IntoIterator<Item = HostId>>(hosts: I) -> Self {
        Self(hosts.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(numbers: &[u128]) -> BTreeSet<HostId> {
        numbers.iter().copied().map(HostId::from_u128).collect()
    }

    #[test]
    fn a_majority_is_more_than_half_of_those_who_vote() {
        let none = Mutations::default();
        for (voters, agreed, is_majority) in [
            (&[1u128, 2, 3][..], &[1u128, 2][..], true),
            (&[1, 2, 3], &[1], false),
            (&[1, 2, 3], &[1, 8, 9], false),
            (&[1, 2, 3, 4], &[1, 2], false),
            (&[1, 2, 3, 4], &[1, 2, 4], true),
            (&[1], &[1], true),
            (&[], &[], false),
            (&[], &[1], false),
        ] {
            let voters = Voters(hosts(voters));
            assert_eq!(voters.has_majority(&hosts(agreed), none), is_majority, "{voters:?} {agreed:?}");
        }
    }

    #[test]
    fn an_empty_and_a_vast_set_are_refused() {
        assert_eq!(Voters::default().check(), Err(Error::None));
        let many: Voters = (0..10).map(HostId::from_u128).collect();
        assert_eq!(many.check(), Err(Error::TooMany(10)));
    }
}
