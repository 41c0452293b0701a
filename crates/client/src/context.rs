//! Where the server is and how to speak to it: a small TOML file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sterna_base::file;

use crate::error::{Error, Result};

/// `~/.config/sterna/config.toml`, or the file that `$STERNA_CONFIG` names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `HOST:PORT`.
    pub server: String,
    /// Sent with every request.
    pub token: String,
    /// PEM file of the CA that signed the server's certificate; relative to the context file.
    pub ca: PathBuf,
}

impl Context {
    /// The file that is used when none is named.
    #[must_use]
    pub fn default_path() -> PathBuf {
        if let Some(path) = std::env::var_os("STERNA_CONFIG") {
            return path.into();
        }
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
        let config = std::env::var_os("XDG_CONFIG_HOME").map_or_else(|| home.join(".config"), PathBuf::from);
        config.join("sterna/config.toml")
    }

    /// The file that is read when none is named: the default one, or, when there is none, that of the lab on this
    /// machine.
    #[must_use]
    pub fn find() -> PathBuf {
        let own = Self::default_path();
        let lab = std::env::var_os("STERNA_LAB_DIR")
            .map_or_else(|| PathBuf::from("/var/lib/sterna-lab"), PathBuf::from);
        let lab = lab.join("cli.toml");
        if !own.exists() && lab.exists() { lab } else { own }
    }

    /// Reads a context; a relative `ca` is taken from beside the file.
    pub fn load(path: &Path) -> Result<Self> {
        let wrong = |why: String, hint: &str| Error::Context { why, hint: hint.to_owned() };
        let bytes = file::read_if_there(path)
            .map_err(|error| wrong(format!("{}: {error}", path.display()), "is the file yours to read?"))?
            .ok_or_else(|| {
                wrong(
                    format!("there is no context: {} does not exist", path.display()),
                    "run `sterna server init` here, or name a context file with --config or $STERNA_CONFIG",
                )
            })?;
        let text = String::from_utf8_lossy(&bytes);
        let mut context: Context = toml::from_str(&text).map_err(|error| {
            wrong(
                format!("{}: {}", path.display(), error.message()),
                "a context has exactly the keys server, token and ca",
            )
        })?;
        if context.ca.is_relative() {
            context.ca = path.parent().unwrap_or(Path::new(".")).join(&context.ca);
        }
        Ok(context)
    }

    /// Writes a context that only its owner can read: it holds the token.
    pub fn save(&self, path: &Path) -> Result<()> {
        let failed = |source| Error::Local { what: format!("write {}", path.display()), source };
        let text = toml::to_string(self).map_err(|error| failed(std::io::Error::other(error)))?;
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        file::write_durably(path, text.as_bytes(), 0o600).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_survives_its_file_and_finds_its_ca_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        Context { server: "127.0.0.1:7443".into(), token: "t".into(), ca: "ca.pem".into() }
            .save(&path)
            .unwrap();
        let read = Context::load(&path).unwrap();
        assert_eq!(read.ca, dir.path().join("ca.pem"));
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_absent_or_misspelt_context_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let absent = Context::load(&dir.path().join("x")).unwrap_err();
        assert!(absent.hint().unwrap().contains("server init"), "{absent}");
        let path = dir.path().join("config.toml");
        std::fs::write(&path, "server = \"a:1\"\ntokn = \"t\"\nca = \"c\"\n").unwrap();
        let misspelt = Context::load(&path).unwrap_err();
        assert!(misspelt.to_string().contains("tokn"), "{misspelt}");
    }
}
