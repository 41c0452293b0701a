//! Versions of QEMU and of its machine types.
//!
//! What a QEMU can do is read from its QMP schema, never from its number. The number decides only what no
//! schema shows: known defects (`ram`) and the names of machine types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The version of a QEMU binary, ordered as expected (7.2.22 < 9.0.0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
    pub micro: u16,
}

impl Version {
    pub const fn new(major: u16, minor: u16, micro: u16) -> Self {
        Self { major, minor, micro }
    }

    /// Reads the first line of `qemu-system-x86_64 --version` or of `qemu-img --version`.
    pub fn from_banner(banner: &str) -> Option<Self> {
        banner.split_whitespace().skip_while(|word| *word != "version").nth(1)?.parse().ok()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// The text is not `MAJOR.MINOR` or `MAJOR.MINOR.MICRO`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a version such as 10.0.2")]
pub struct NotAVersion {
    pub text: String,
}

impl FromStr for Version {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let refuse = || NotAVersion { text: text.to_owned() };
        let mut numbers = [0u16; 3];
        let parts: Vec<&str> = text.trim_end_matches(',').split('.').collect();
        if !(2..=3).contains(&parts.len()) {
            return Err(refuse());
        }
        for (number, part) in numbers.iter_mut().zip(&parts) {
            *number = part.parse().map_err(|_| refuse())?;
        }
        Ok(Self::new(numbers[0], numbers[1], numbers[2]))
    }
}

/// A machine type with its version, such as `pc-q35-10.0`.
///
/// An unversioned name (`q35`) means something else after each upgrade of QEMU: a guest started with it
/// could not move to a host with another QEMU. Such names cannot be expressed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineType {
    name: String,
    version: (u16, u16),
}

/// The machine type cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineTypeRefused {
    #[error("machine type {name:?} has no version; name one such as pc-q35-7.2")]
    Unversioned { name: String },
    #[error("machine type {name:?} is not of the family pc-q35")]
    OtherFamily { name: String },
}

impl MachineType {
    const FAMILY: &str = "pc-q35-";

    pub fn parse(name: &str) -> Result<Self, MachineTypeRefused> {
        if matches!(name, "q35" | "pc" | "") {
            return Err(MachineTypeRefused::Unversioned { name: name.to_owned() });
        }
        let version = name
            .strip_prefix(Self::FAMILY)
            .ok_or_else(|| MachineTypeRefused::OtherFamily { name: name.to_owned() })?;
        let (major, minor) = version
            .split_once('.')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
            .ok_or_else(|| MachineTypeRefused::Unversioned { name: name.to_owned() })?;
        // Written again from the numbers, so that `+7.2` or `07.2` cannot pass as another name.
        let written = format!("{}{major}.{minor}", Self::FAMILY);
        if written != name {
            return Err(MachineTypeRefused::Unversioned { name: name.to_owned() });
        }
        Ok(Self { name: written, version: (major, minor) })
    }

    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// Major and minor number: the QEMU that introduced this machine type.
    pub fn version(&self) -> (u16, u16) {
        self.version
    }
}

impl fmt::Display for MachineType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl TryFrom<String> for MachineType {
    type Error = MachineTypeRefused;

    fn try_from(name: String) -> Result<Self, MachineTypeRefused> {
        Self::parse(&name)
    }
}

impl From<MachineType> for String {
    fn from(machine: MachineType) -> Self {
        machine.name
    }
}

impl FromStr for MachineType {
    type Err = MachineTypeRefused;

    fn from_str(name: &str) -> Result<Self, MachineTypeRefused> {
        Self::parse(name)
    }
}

impl PartialOrd for MachineType {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for MachineType {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.version.cmp(&other.version).then_with(|| self.name.cmp(&other.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banners_of_both_tools_are_read() {
        let system = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        assert_eq!(Version::from_banner(system), Some(Version::new(7, 2, 22)));
        assert_eq!(Version::from_banner("qemu-img version 10.0.2 (Debian)"), Some(Version::new(10, 0, 2)));
        assert_eq!(Version::from_banner("bash: not found"), None);
    }

    #[test]
    fn versions_are_ordered_as_numbers() {
        assert!(Version::new(9, 0, 0) < Version::new(10, 0, 0));
        assert!(MachineType::parse("pc-q35-9.2").unwrap() < MachineType::parse("pc-q35-10.0").unwrap());
    }

    #[test]
    fn an_unversioned_machine_type_is_refused() {
        for name in
            ["q35", "pc", "", "pc-q35-", "pc-q35-7", "pc-q35-07.2", "pc-q35-+7.2", "pc-q35-7.2,accel=kvm"]
        {
            assert!(
                matches!(MachineType::parse(name), Err(MachineTypeRefused::Unversioned { .. })),
                "{name} must be refused"
            );
        }
        assert!(matches!(MachineType::parse("microvm"), Err(MachineTypeRefused::OtherFamily { .. })));
    }
}
