//! Datacentres, the lines between them, and their hosts: how they are called.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// As many as the addresses of lines between each two of them suffice for.
const SITES_MAX: u8 = 8;
const PER_SITE: u8 = 2;

/// A datacentre of a lab; it is called by one letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Site(u8);

/// Two datacentres, the earlier letter first: there is a line between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair([Site; 2]);

/// A machine that runs VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    pub site: Site,
    /// From 1.
    pub number: u8,
}

impl Site {
    #[must_use]
    pub fn letter(self) -> char {
        char::from(b'a' + self.0)
    }

    /// The two that a lab has unless told otherwise.
    #[must_use]
    pub fn first_two() -> Vec<Self> {
        vec![Self(0), Self(1)]
    }

    pub(crate) fn third_byte(self) -> u8 {
        1 + self.0
    }
}

impl FromStr for Site {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.as_bytes() {
            [letter @ b'a'..=b'z'] if letter - b'a' < SITES_MAX => Ok(Site(letter - b'a')),
            _ => {
                let last = Site(SITES_MAX - 1).letter();
                bail!("`{text}` is no datacentre of a lab: they are called a to {last}")
            }
        }
    }
}

impl TryFrom<String> for Site {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Site> for String {
    fn from(site: Site) -> Self {
        site.letter().into()
    }
}

impl Pair {
    /// Both sites, in either order; none has a line to itself.
    #[must_use]
    pub fn new(one: Site, other: Site) -> Option<Self> {
        (one != other).then(|| Self([one.min(other), one.max(other)]))
    }

    #[must_use]
    pub fn ends(self) -> [Site; 2] {
        self.0
    }

    /// The other end, seen from `site`; `None`: the line does not end there.
    #[must_use]
    pub fn across(self, site: Site) -> Option<Site> {
        let [first, last] = self.0;
        if site == first { Some(last) } else { (site == last).then_some(first) }
    }

    /// Each pair's own, whatever other sites the lab has.
    pub(crate) fn number(self) -> u8 {
        let [Site(first), Site(last)] = self.0;
        last * (last - 1) / 2 + first
    }
}

/// `a-b`.
impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, last] = self.0.map(Site::letter);
        write!(f, "{first}-{last}")
    }
}

impl FromStr for Pair {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (one, other) =
            text.split_once('-').with_context(|| format!("`{text}` is no line, such as a-b"))?;
        Self::new(one.parse()?, other.parse()?).with_context(|| format!("{one} has no line to itself"))
    }
}

impl Host {
    /// Those of a site.
    pub fn of(site: Site) -> impl Iterator<Item = Self> {
        (1..=PER_SITE).map(move |number| Self { site, number })
    }

    /// `a1`.
    #[must_use]
    pub fn name(self) -> String {
        format!("{}{}", self.site.letter(), self.number)
    }
}
