//! `sterna server backup` and `sterna server restore`: on this machine, without the API. A backup holds the CA's key, which
//! never goes over a network.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;
use sterna_base::clock::{Clock, SystemClock};
use sterna_cli::exit::Failure;
use sterna_cli::machine::{BackupArgs, RestoreArgs};
use sterna_cli::{Format, Global, Terminal, text};
use sterna_server::Config;
use sterna_server::backup::{self, Asked};

use crate::config;

pub async fn backup(args: &BackupArgs, global: &Global, terminal: &Terminal) -> Result<()> {
    let path = args.settings.clone().unwrap_or_else(|| PathBuf::from(config::SERVER));
    let config = Config::read(&path).context("read the server's settings")?;
    let now = SystemClock.now();
    let file = match &args.to {
        Some(file) => config::absolute(file)?,
        None => {
            sterna_server::init::folder(&config.backups_dir())?;
            config.backups_dir().join(backup::file_name(now))
        }
    };
    let taken = tokio::task::spawn_blocking(move || backup::take(&config, &file, now))
        .await
        .context("take the backup")?
        .map_err(failure)?;
    if global.output == Format::Table {
        terminal.talk(&format!("revision {}, {} bytes", taken.manifest.revision, taken.bytes));
        terminal.data(&format!("{}\n", taken.file.display()))?;
        return Ok(());
    }
    let value = json!({ "file": taken.file, "bytes": taken.bytes, "manifest": taken.manifest });
    terminal.data(&text(global.output, &value)?)?;
    Ok(())
}

pub async fn restore(args: &RestoreArgs, global: &Global, terminal: &Terminal) -> Result<()> {
    let asked = Asked {
        file: args.file.clone(),
        settings: args.settings.clone().unwrap_or_else(|| PathBuf::from(config::SERVER)),
        data_dir: args.data_dir.as_deref().map(config::absolute).transpose()?,
        replace: args.replace,
    };
    let settings = asked.settings.clone();
    let now = SystemClock.now();
    let restored = tokio::task::spawn_blocking(move || backup::restore(&asked, now))
        .await
        .context("put the backup back")?
        .map_err(failure)?;
    let data_dir = &restored.config.data_dir;
    if global.output != Format::Table {
        let value = json!({
            "data_dir": data_dir,
            "settings": settings,
            "wrote_settings": restored.wrote_settings,
            "aside": restored.aside,
            "manifest": restored.manifest,
        });
        terminal.data(&text(global.output, &value)?)?;
        return Ok(());
    }
    let manifest = &restored.manifest;
    terminal.talk(&format!(
        "{}: the server as it was at {} (revision {})",
        data_dir.display(),
        manifest.taken,
        manifest.revision
    ));
    if let Some(aside) = &restored.aside {
        terminal.talk(&format!("what was there is in {}", aside.display()));
    }
    let wrote = if restored.wrote_settings { "written from the backup" } else { "as they were here" };
    terminal.talk(&format!("settings: {}, {wrote}", settings.display()));
    terminal.talk(&format!(
        "next: `sterna server run --settings {}`, or start the service; then `sterna server recover`",
        settings.display()
    ));
    Ok(())
}

fn failure(error: backup::Error) -> anyhow::Error {
    match error.hint() {
        Some(hint) => {
            let hint = hint.to_owned();
            let message = format!("{:#}", anyhow::Error::new(error));
            Failure::failed(message, hint).into()
        }
        None => error.into(),
    }
}
