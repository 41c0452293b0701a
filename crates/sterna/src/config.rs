//! What the services' settings files say, as far as this binary writes them, and where they lie.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use sterna_base::file;
use sterna_model::meta::Name;

pub const SERVER: &str = "/etc/sterna/server.toml";
pub const AGENT: &str = "/etc/sterna/agent.toml";

/// The keys of `agent.toml` that joining knows; the others have defaults.
#[derive(Debug, Serialize)]
pub struct AgentSettings<'a> {
    pub server: &'a str,
    pub host: &'a Name,
    pub data_dir: &'a Path,
    pub run_dir: &'a Path,
    pub guard: &'a Path,
}

/// Writes settings as TOML for everybody to read: they hold no secret.
pub fn write(path: &Path, settings: &impl Serialize) -> Result<()> {
    let text = toml::to_string(settings).with_context(|| format!("write {}", path.display()))?;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    file::write_durably(path, text.as_bytes(), 0o644).with_context(|| format!("write {}", path.display()))
}

/// The path as other processes will need it, started elsewhere.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("find {}", path.display()))
}
