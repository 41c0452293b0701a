//! Backups that are taken of a server that runs, and put back: whole, or not at all.

#![allow(clippy::unwrap_used)]

mod world;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sterna_base::clock::{Clock, SystemClock};
use sterna_base::units::Span;
use sterna_server::Config;
use sterna_server::backup::{Asked, Error, FORMAT, Restored, restore, take};
use sterna_store::{OpenError, Sqlite, Store};
use world::{Kind, World, eventually};

fn config(dir: &Path) -> Config {
    Config { listen: vec!["127.0.0.1:0".parse().unwrap()], data_dir: dir.join("server"), ..Config::default() }
}

/// A server's data directory with something in it, and a backup of it.
async fn backed_up(dir: &Path) -> (Config, PathBuf) {
    let config = config(dir);
    sterna_server::init::folders(&config).unwrap();
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(&config.store_path()).unwrap());
    sterna_server::init(&config, &store).await.unwrap();
    let file = dir.join("one.backup");
    // It is open all the while.
    let taken = take(&config, &file, SystemClock.now()).unwrap();
    assert_eq!(taken.manifest.revision, store.revision().await.unwrap());
    assert_eq!(taken.bytes, std::fs::metadata(&file).unwrap().len());
    (config, file)
}

fn asked(file: &Path, dir: &Path) -> Asked {
    Asked {
        file: file.to_owned(),
        settings: dir.join("server.toml"),
        data_dir: Some(dir.join("data/server")),
        replace: false,
    }
}

fn put_back(asked: &Asked) -> Result<Restored, Error> {
    restore(asked, SystemClock.now())
}

/// Every file below a folder.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        }
        found.insert(path);
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_makes_a_server_of_an_empty_machine() {
    let dir = tempfile::tempdir().unwrap();
    let (config, file) = backed_up(dir.path()).await;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let before = files(dir.path());
    assert!(before.iter().all(|path| !path.to_string_lossy().contains(".sterna-backup-")), "{before:?}");

    let there = dir.path().join("there");
    let asked = asked(&file, &there);
    let restored = put_back(&asked).unwrap();
    assert!(restored.wrote_settings && restored.aside.is_none());
    let data = asked.data_dir.unwrap();
    for secret in ["ca.key", "store.db"] {
        assert_eq!(
            std::fs::metadata(data.join(secret)).unwrap().permissions().mode() & 0o777,
            0o600,
            "{secret}"
        );
    }
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(
        std::fs::read(data.join("ca.pem")).unwrap(),
        std::fs::read(config.data_dir.join("ca.pem")).unwrap()
    );
    let settings = Config::read(&asked.settings).unwrap();
    assert_eq!(settings.data_dir, data);
    let kept: Vec<_> = std::fs::read_dir(there.join("data")).unwrap().collect();
    assert_eq!(kept.len(), 1, "nothing lies beside it: {kept:?}");

    let store = Sqlite::open(&data.join("store.db")).unwrap();
    let revision = store.revision().await.unwrap();
    assert_eq!(revision, restored.manifest.revision + 1_000_000_000);
    let main = store.get("store/main/spec").await.unwrap().unwrap();
    let main: Value = serde_json::from_slice(&main.value).unwrap();
    assert_eq!(main["spec"]["restored"]["revision"], restored.manifest.revision);
    let old = restored.manifest.incarnation.unwrap().to_string();
    assert_eq!(main["spec"]["restored"]["incarnation"], json!(old));
    assert_ne!(main["spec"]["incarnation"], json!(old), "another life");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = backed_up(dir.path()).await;
    let whole = std::fs::read(&file).unwrap();
    let there = dir.path().join("there");
    let asked = asked(&file, &there);
    let refused = |bytes: &[u8], what: &str| {
        std::fs::write(&file, bytes).unwrap();
        let error = put_back(&asked).expect_err(what);
        let left: Vec<_> = files(&there).into_iter().filter(|path| path.is_file()).collect();
        assert!(left.is_empty(), "{what}: {left:?}");
        assert!(!asked.data_dir.as_ref().unwrap().exists(), "{what}");
        error
    };
    // Every part is hit many times over, and so are the manifest and its sum.
    let step = (whole.len() / 97).max(1);
    for place in (0..400).step_by(5).chain((400..whole.len()).step_by(step)) {
        let mut bytes = whole.clone();
        // All bits of it: one alone may be one that the compression does not use, and then nothing is wrong.
        bytes[place] ^= 0xff;
        let error = refused(&bytes, &format!("byte {place} is wrong"));
        assert!(
            matches!(
                error,
                Error::Damaged { .. } | Error::Foreign { .. } | Error::Newer { .. } | Error::Truncated { .. }
            ),
            "byte {place}: {error}"
        );
    }
    for length in (0..whole.len()).step_by(step) {
        let error = refused(&whole[..length], &format!("{length} bytes are there"));
        assert!(matches!(error, Error::Truncated { .. } | Error::Foreign { .. }), "{length}: {error}");
    }
    let longer = [&whole[..], b"x"].concat();
    assert!(matches!(refused(&longer, "one more"), Error::Damaged { why, .. } if why.contains("follow")));
    let newer = [b"STERNA BACKUP 2\n", &whole[b"STERNA BACKUP 1\n".len()..]].concat();
    let error = refused(&newer, "a newer format");
    assert!(matches!(error, Error::Newer { found: 2, known: FORMAT, .. }), "{error}");
    assert!(matches!(refused(b"#!/bin/sh\n", "something else"), Error::Foreign { .. }));
    std::fs::write(&file, &whole).unwrap();
    put_back(&asked).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_replaced_only_when_told_and_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (config, file) = backed_up(dir.path()).await;
    std::fs::write(config.images_dir().join("tiny"), b"content").unwrap();
    let settings = dir.path().join("server.toml");
    std::fs::write(&settings, toml::to_string(&config).unwrap()).unwrap();
    let asked = Asked { file, settings, data_dir: None, replace: false };
    let error = put_back(&asked).unwrap_err();
    assert!(matches!(&error, Error::NotEmpty { path } if *path == config.data_dir), "{error}");

    let asked = Asked { replace: true, ..asked };
    let running = Sqlite::open(&config.store_path()).unwrap();
    let before = files(&config.data_dir);
    let error = put_back(&asked).unwrap_err();
    assert!(matches!(&error, Error::Store(OpenError::Locked { .. })), "{error}");
    assert!(error.hint().is_some());
    assert_eq!(files(&config.data_dir), before);
    drop(running);

    let restored = put_back(&asked).unwrap();
    assert!(!restored.wrote_settings);
    let aside = restored.aside.unwrap();
    assert!(aside.join("store.db").exists() && aside.join("images/tiny").exists(), "{:?}", files(&aside));
    assert_eq!(std::fs::read(config.images_dir().join("tiny")).unwrap(), b"content");
    // What was put aside is still a server.
    assert!(Sqlite::open(&aside.join("store.db")).unwrap().revision().await.unwrap() < 1_000_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_takes_backups_and_says_how_old_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::with(dir, Kind::Sqlite, |config| {
        config.backup.every = Span(Duration::from_millis(200));
        (config.backup.hourly, config.backup.daily) = (2, 1);
    })
    .await;
    let shows = async |what: &str, holds: &dyn Fn(&Value) -> bool| {
        eventually(what, async || {
            let server = world.get("/v1/server").await;
            holds(&server).then_some(server)
        })
        .await
    };
    let server = shows("a backup", &|server| server["backup"]["newest"].is_object()).await;
    assert!(server["backup"]["age_seconds"].as_u64().unwrap() < 60, "{server}");
    assert_eq!(server["backup"]["every"], "200ms");
    assert_eq!(server["mode"], "normal");
    let first = server["backup"]["newest"]["file"].clone();
    shows("another backup", &|server| server["backup"]["newest"]["file"] != first).await;
    let folder = world.dir.path().join("backups");
    // The oldest go.
    shows("the end of the first", &|_| {
        !files(&folder).iter().any(|path| Some(path.to_string_lossy().as_ref()) == first.as_str())
    })
    .await;
    // It goes when it is old enough, perhaps now.
    let kept = world.dir.path().join("kept.backup");
    eventually("a copy", async || {
        let newest =
            files(&folder).into_iter().rfind(|path| path.extension().is_some_and(|it| it == "backup"));
        std::fs::copy(newest?, &kept).ok()
    })
    .await;
    let there = world.dir.path().join("there");
    put_back(&asked(&kept, &there)).unwrap();
    world.stop().await;
}
