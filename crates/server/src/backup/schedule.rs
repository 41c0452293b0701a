//! Takes a backup now and then while the server runs, forgets old ones, and says in the store how it went.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use sterna_base::clock::Timestamp;
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use sterna_model::store::{Backup, MAIN, StoreReport};
use sterna_store::Txn;

use super::{Error, keep, take};
use crate::app::App;
use crate::error::Answer;
use crate::write;

/// After a try that failed; the disk may have room again by then.
const RETRY: Duration = Duration::from_secs(300);
/// A server that has just come up has more urgent things to do.
const FIRST_AFTER: Duration = Duration::from_secs(60);
/// What a process that was killed left of one is older than any that is being made.
const LEFT_AFTER: Duration = Duration::from_secs(3600);
/// Clocks are set, and machines sleep: what is due is looked at anew this often.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Never ends. Without an embedded store there is nothing to copy.
pub(crate) async fn run(app: App) -> Infallible {
    if !app.config.backup.scheduled || !app.config.store_path().exists() {
        tell(&app, StoreReport { since: app.now(), ..StoreReport::default() }).await;
        return std::future::pending().await;
    }
    let begun = app.now();
    loop {
        let newest = newest(&app).await;
        let every = app.config.backup.every.0;
        let due = newest.as_ref().map_or(begun + FIRST_AFTER.min(every), |backup| backup.taken + every);
        if app.now() < due {
            tell(&app, report(&app, newest, None, begun)).await;
            let wait = due.since(app.now()).min(LOOK_EVERY);
            tokio::time::sleep(wait.max(Duration::from_millis(10))).await;
            continue;
        }
        match take_one(&app).await {
            Ok(backup) => tell(&app, report(&app, Some(backup), None, begun)).await,
            Err(why) => {
                tracing::error!(%why, "no backup was taken");
                tell(&app, report(&app, newest, Some(why), begun)).await;
                tokio::time::sleep(RETRY.min(app.config.backup.every.0)).await;
            }
        }
    }
}

fn report(app: &App, backup: Option<Backup>, failed: Option<String>, since: Timestamp) -> StoreReport {
    StoreReport { backup, every: Some(app.config.backup.every), since, failed }
}

async fn take_one(app: &App) -> Result<Backup, String> {
    let (config, now) = (app.config.clone(), app.now());
    let taking = tokio::task::spawn_blocking(move || {
        let folder = config.backups_dir();
        make(&folder)?;
        tidy(&folder)?;
        let taken = take::take(&config, &folder.join(keep::name(now)), now)?;
        let all = keep::list(&folder).map_err(super::io(&folder))?;
        for old in keep::surplus(&all, config.backup.hourly, config.backup.daily) {
            let path = folder.join(keep::name(old));
            std::fs::remove_file(&path).map_err(super::io(&path))?;
        }
        Ok::<_, Error>(taken)
    });
    let taken = match taking.await {
        Ok(taken) => taken.map_err(|error| explain(&error))?,
        Err(error) => return Err(error.to_string()),
    };
    tracing::info!(file = %taken.file.display(), bytes = taken.bytes, revision = taken.manifest.revision, "backup taken");
    let file = taken.file.display().to_string();
    Ok(Backup { taken: taken.manifest.taken, file, bytes: taken.bytes })
}

fn make(folder: &std::path::Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(super::io(folder))
}

/// Removes what processes that were killed have left of backups.
fn tidy(folder: &std::path::Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(folder).map_err(super::io(folder))? {
        let entry = entry.map_err(super::io(folder))?;
        let name = entry.file_name();
        let is_part = name.to_str().is_some_and(|name| name.starts_with(".sterna-"));
        let age = entry.metadata().and_then(|data| data.modified()).ok().and_then(|at| at.elapsed().ok());
        if !is_part || age.is_none_or(|age| age < LEFT_AFTER) {
            continue;
        }
        let path = entry.path();
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.map_err(super::io(&path))?;
    }
    Ok(())
}

/// The newest backup in the folder, whoever took it.
async fn newest(app: &App) -> Option<Backup> {
    let folder: PathBuf = app.config.backups_dir();
    let looking = tokio::task::spawn_blocking(move || {
        let taken = *keep::list(&folder).ok()?.last()?;
        let file = folder.join(keep::name(taken));
        let bytes = std::fs::metadata(&file).ok()?.len();
        Some(Backup { taken, file: file.display().to_string(), bytes })
    });
    looking.await.ok().flatten()
}

/// Written only when it differs, and it may: nothing rests on it but what people see.
async fn tell(app: &App, report: StoreReport) {
    let written: Answer<()> = async {
        let key = Key::report(Kind::Store, &Name::new(MAIN)?);
        let view = app.view();
        let before = view.stores.get(MAIN).and_then(|entry| entry.report.as_ref());
        let report = match before {
            // The moment since which this is asked of the server is that of its first start.
            Some(before) if before.every == report.every => StoreReport { since: before.since, ..report },
            _ => report,
        };
        if before.is_none_or(|before| *before.value != report) {
            app.commit(Txn::new().put(key.to_string(), write::bytes(&report)?)).await?;
        }
        Ok(())
    }
    .await;
    if let Err(error) = written {
        tracing::warn!(error = %error.0, "how the backups are was not noted");
    }
}

/// The whole chain in one line.
fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
