//! Virtual disks.

use serde::{Deserialize, Serialize};
use sterna_base::units::Bytes;
use utoipa::ToSchema;

use crate::image::Format;
use crate::meta::Name;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// Absent: a default pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
    /// Size of the disk that the guest sees; it may only grow. Absent: the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub size: Option<Bytes>,
    /// A thin clone of this image; absent: blank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Name>,
    /// The VM that uses it; set for the boot volume that came with a VM, which also goes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Name>,
}

/// What control chose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeDecision {
    pub pool: Name,
    /// The host that makes, grows and removes it; for a `dir` pool also the only one that can open it.
    pub host: Name,
    pub format: Format,
    #[schema(value_type = String)]
    pub size: Bytes,
    /// Image and its checksum: the backing file of the clone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
    /// A migration fills a copy there; at the handover it becomes the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arriving: Option<Location>,
    /// Where it was until the handover, as long as the guest may have to go back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<Location>,
    /// Where it was before, newest last: what lies there still makes a way back short.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<Location>,
    pub why: String,
}

/// Former places that are remembered; what lies at older ones goes with their hosts' limits.
const FORMER_MAX: usize = 4;

impl VolumeDecision {
    /// Where it is, or for a running migration where the owner of the VM has it.
    #[must_use]
    pub fn location(&self) -> Location {
        Location { pool: self.pool.clone(), host: self.host.clone() }
    }

    /// Every place with something of it.
    pub fn locations(&self) -> impl Iterator<Item = Location> + '_ {
        let others = self.arriving.iter().chain(&self.leaving).chain(&self.former).cloned();
        std::iter::once(self.location()).chain(others)
    }

    /// Between two places it neither grows nor moves again.
    #[must_use]
    pub fn is_moving(&self) -> bool {
        self.arriving.is_some() || self.leaving.is_some()
    }

    /// A migration begins: a copy of it is filled at `to`.
    #[must_use]
    pub fn begin_move(mut self, to: Location) -> Self {
        self.former.retain(|place| *place != to);
        Self { arriving: Some(to), ..self }
    }

    /// The guest's owner changed between the two sides of a migration, or back.
    #[must_use]
    pub fn hand_over(self, to: &Location) -> Self {
        let from = self.location();
        if from == *to {
            return self;
        }
        let is_back = self.leaving.as_ref() == Some(to);
        let (arriving, leaving) = if is_back { (Some(from), None) } else { (None, Some(from)) };
        Self { pool: to.pool.clone(), host: to.host.clone(), arriving, leaving, ..self }
    }

    /// The migration has ended, either way: the place without the guest is a former one.
    #[must_use]
    pub fn end_move(mut self) -> Self {
        for place in self.arriving.take().into_iter().chain(self.leaving.take()) {
            self.former.retain(|other| *other != place);
            self.former.push(place);
        }
        let surplus = self.former.len().saturating_sub(FORMER_MAX);
        self.former.drain(..surplus);
        self
    }
}

/// A pool on one host. In a shared pool the host is the one that cares for the file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Location {
    pub pool: Name,
    pub host: Name,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageRef {
    pub name: Name,
    pub sha256: String,
    pub format: Format,
}

/// What the host that makes it saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum VolumeReport {
    Making {
        /// 0-100: how much of the image has been fetched.
        percent: u8,
    },
    Ready {
        #[schema(value_type = String)]
        size: Bytes,
    },
    Failed {
        why: String,
    },
    /// Removed from the pool.
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(pool: &str, host: &str) -> Location {
        Location { pool: Name::new(pool).unwrap(), host: Name::new(host).unwrap() }
    }

    fn volume() -> VolumeDecision {
        VolumeDecision {
            pool: Name::new("local").unwrap(),
            host: Name::new("a1").unwrap(),
            format: Format::Qcow2,
            size: Bytes::gib(1),
            image: None,
            arriving: None,
            leaving: None,
            former: Vec::new(),
            why: String::new(),
        }
    }

    #[test]
    fn a_move_leaves_a_former_place_and_the_way_back_takes_it_up_again() {
        let (here, there) = (at("local", "a1"), at("local", "b1"));
        let moved = volume().begin_move(there.clone()).hand_over(&there);
        assert_eq!((moved.location(), moved.leaving.clone()), (there.clone(), Some(here.clone())));
        let ended = moved.end_move();
        assert!(!ended.is_moving());
        assert_eq!(ended.former, std::slice::from_ref(&here));
        let back = ended.begin_move(here.clone());
        assert!(back.former.is_empty(), "a place is one thing at a time: {back:?}");
        assert_eq!(back.hand_over(&here).end_move().former, [there]);
    }

    #[test]
    fn a_move_that_is_handed_back_ends_where_it_began() {
        let (here, there) = (at("local", "a1"), at("local", "b1"));
        let back = volume().begin_move(there.clone()).hand_over(&there).hand_over(&here);
        assert_eq!((back.location(), back.arriving.clone()), (here, Some(there.clone())));
        assert_eq!(back.end_move().former, [there]);
    }

    #[test]
    fn only_so_many_former_places_are_remembered() {
        let mut volume = volume();
        for number in 0..20 {
            let to = at("local", &format!("h{number}"));
            volume = volume.begin_move(to.clone()).hand_over(&to).end_move();
        }
        assert_eq!(volume.former.len(), FORMER_MAX);
        assert_eq!(volume.former.last(), Some(&at("local", "h18")));
    }
}
