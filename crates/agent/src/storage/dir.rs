//! Pools of kind `dir`: a folder on the host's own disk. Each of its volumes can be opened on this host only.

use std::path::Path;

use super::error::Error;
use super::folder::{Folder, Missing, User};

pub fn open(path: &Path, cluster: &str, user: User) -> Result<Folder, Error> {
    Folder::open(path, Missing::Make, cluster, user)
}
