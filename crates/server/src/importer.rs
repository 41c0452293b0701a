//! Takes in images: to disk under limits, checksum, inspection, and only then a place among the images.
//!
//! A partial or refused file never has the image's name. Never lets QEMU open what it has not inspected.

/// Images from URLs.
pub mod fetch;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use sterna_base::units::Bytes as Size;
use sterna_model::error::Code;
use sterna_model::event::Event;
use sterna_model::image::{Format, ImageReport, ImageSpec};
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use sterna_qemu::image;
use sterna_store::Txn;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use crate::app::App;
use crate::ca::hex;
use crate::error::{Answer, Refusal, refuse};
use crate::write;

/// A sender that is silent this long has gone.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// The longest any import may take.
const TIME_MAX: Duration = Duration::from_secs(6 * 3600);
/// The largest disk that an image may show a guest.
const VIRTUAL_MAX: u64 = 16 << 40;

/// Which images are being taken in.
#[derive(Default)]
pub struct Importer {
    busy: Mutex<BTreeSet<Name>>,
}

/// The right to write one image; given back when dropped.
struct Claim<'a> {
    importer: &'a Importer,
    name: Name,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.importer.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

impl Importer {
    fn claim(&self, name: &Name) -> Answer<Claim<'_>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if !busy.insert(name.clone()) {
            let message = format!("image {name} is being taken in already");
            return Err(refuse(Code::WrongState, message).hint("wait for it, or delete the image"));
        }
        Ok(Claim { importer: self, name: name.clone() })
    }
}

/// Where the content of a ready image lies.
#[must_use]
pub fn path(app: &App, name: &Name) -> PathBuf {
    app.config.images_dir().join(name.as_str())
}

/// Takes in the content of an image that waits for it.
pub async fn take<E: std::fmt::Display>(
    app: &App,
    name: &Name,
    content: impl Stream<Item = Result<Bytes, E>>,
) -> Answer<()> {
    let _claim = app.importer.claim(name)?;
    let spec = waiting(app, name)?;
    let name_of_part = format!(".{name}.{}.part", Uuid::new_v4().simple());
    let partial = Partial(app.config.images_dir().join(name_of_part));
    let received = tokio::time::timeout(TIME_MAX, receive(app, &partial.0, content)).await;
    let received = received.map_err(|_| refuse(Code::Malformed, "the transfer took too long"))??;
    finish(app, name, &spec, &partial.0, received).await
}

/// A file that is not an image yet. It goes when the import ends in any way, also when its sender vanishes.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // After success it has another name. What cannot be removed now is removed at the next start.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The image as it was asked for, if its content may still come.
fn waiting(app: &App, name: &Name) -> Answer<ImageSpec> {
    let view = app.view();
    let entry = view.images.get(name);
    let spec = entry.and_then(|entry| entry.spec.as_ref());
    let spec = spec.ok_or_else(|| refuse(Code::NotFound, format!("image {name} does not exist")))?;
    let report = entry.and_then(|entry| entry.report.as_ref());
    if report.is_some_and(|row| matches!(*row.value, ImageReport::Ready { .. })) {
        return Err(refuse(Code::WrongState, format!("image {name} has its content already"))
            .hint("images do not change; import it under another name"));
    }
    Ok(spec.value.spec.clone())
}

struct Received {
    size: u64,
    sha256: String,
}

async fn receive<E: std::fmt::Display>(
    app: &App,
    partial: &Path,
    content: impl Stream<Item = Result<Bytes, E>>,
) -> Answer<Received> {
    let size_max = app.config.image_size_max.as_u64();
    // Never follows or overwrites: the name is random and must be new.
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(partial)
        .await
        .map_err(|error| disk(&error))?;
    let (mut hash, mut size) = (Sha256::new(), 0_u64);
    let mut content = std::pin::pin!(content);
    loop {
        let next = tokio::time::timeout(SILENCE_MAX, content.next()).await;
        let chunk = match next {
            Err(_) => return Err(refuse(Code::Malformed, "nothing arrived for 30 s")),
            Ok(None) => break,
            Ok(Some(Err(error))) => {
                return Err(refuse(Code::Malformed, format!("the content broke off: {error}")));
            }
            Ok(Some(Ok(chunk))) => chunk,
        };
        size += chunk.len() as u64;
        if size > size_max {
            let message = format!("the image is larger than {}", app.config.image_size_max);
            return Err(refuse(Code::TooLarge, message).hint("raise image_size_max in server.toml"));
        }
        hash.update(&chunk);
        file.write_all(&chunk).await.map_err(|error| disk(&error))?;
    }
    file.sync_all().await.map_err(|error| disk(&error))?;
    Ok(Received { size, sha256: hex(&hash.finalize()) })
}

fn disk(error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            refuse(Code::Unavailable, "the server's disk is full").hint("delete images that nobody needs")
        }
        _ => refuse(Code::Internal, format!("cannot write the image: {error}")),
    }
}

async fn finish(app: &App, name: &Name, spec: &ImageSpec, partial: &Path, content: Received) -> Answer<()> {
    if let Some(expected) = &spec.sha256
        && *expected != content.sha256
    {
        let message = format!("the content has SHA-256 {}, not {expected}", content.sha256);
        return Err(refuse(Code::Invalid, message).hint("fetch it again from where the checksum came from"));
    }
    let opened = partial.to_owned();
    let inspected = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::open(opened).map_err(|source| image::Refused::Unreadable { source })?;
        image::inspect(&image::opened(file)?, VIRTUAL_MAX)
    });
    let inspected = inspected.await.map_err(|error| refuse(Code::Internal, error.to_string()))?;
    let found = inspected.map_err(|refused| {
        refuse(Code::Invalid, format!("the image is refused: {refused}")).hint(refused.hint())
    })?;
    let report = ImageReport::Ready {
        sha256: content.sha256,
        format: match found.format {
            sterna_qemu::config::Format::Raw => Format::Raw,
            sterna_qemu::config::Format::Qcow2 => Format::Qcow2,
        },
        size: Size(content.size),
        virtual_size: Size(found.virtual_size),
    };
    tokio::fs::rename(partial, path(app, name)).await.map_err(|error| disk(&error))?;
    sync_folder(app).await?;
    report_on(app, name, &report).await?;
    record(app, name, "imported", format!("{} bytes, checksum and format were checked", content.size));
    Ok(())
}

async fn sync_folder(app: &App) -> Answer<()> {
    let folder = File::open(app.config.images_dir()).await.map_err(|error| disk(&error))?;
    folder.sync_all().await.map_err(|error| disk(&error))
}

/// Writes the report, unless the image was deleted meanwhile.
pub async fn report_on(app: &App, name: &Name, report: &ImageReport) -> Answer<()> {
    let spec = Key::spec(Kind::Image, name);
    let revision = app.view().revision_of(&spec);
    if revision == 0 {
        return Err(refuse(Code::NotFound, format!("image {name} was deleted meanwhile")));
    }
    let txn = Txn::new().require(spec.to_string(), revision);
    let key = Key::report(Kind::Image, name).to_string();
    app.commit(txn.put(key, write::bytes(report)?)).await?;
    Ok(())
}

fn record(app: &App, name: &Name, what: &str, why: String) {
    let event = Event {
        time: app.now(),
        kind: Kind::Image.as_str().to_owned(),
        name: name.to_string(),
        what: what.to_owned(),
        why,
    };
    app.record(&event);
}

/// Fetches an image from its URL in the background and reports how that ended.
pub fn start_fetch(app: &App, name: Name, url: String) {
    let app = App::clone(app);
    tokio::spawn(async move {
        let fetched = match fetch::get(&url, app.config.allow_private_urls).await {
            Ok(content) => take(&app, &name, content).await,
            Err(error) => Err(refuse(Code::Invalid, error.to_string())),
        };
        let Err(refusal) = fetched else { return };
        let why = refusal.0.message.clone();
        tracing::info!(image = %name, why, "an image was not fetched");
        record(&app, &name, "import-failed", why.clone());
        if let Err(error) = report_on(&app, &name, &ImageReport::Failed { why }).await {
            tracing::debug!(image = %name, ?error, "the failure was not reported");
        }
    });
}

/// After a start: removes what an earlier run left half done, and begins interrupted fetches anew.
pub async fn resume(app: &App) -> io::Result<()> {
    let mut folder = tokio::fs::read_dir(app.config.images_dir()).await?;
    while let Some(entry) = folder.next_entry().await? {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with('.') {
            tokio::fs::remove_file(entry.path()).await?;
        }
    }
    for (name, entry) in &app.view().images {
        let Some(spec) = &entry.spec else { continue };
        let mut waits = entry.report.as_ref().is_none_or(|row| *row.value == ImageReport::Waiting);
        let is_ready =
            entry.report.as_ref().is_some_and(|row| matches!(*row.value, ImageReport::Ready { .. }));
        // A server that came back from a backup has no content.
        if is_ready && !path(app, name).exists() {
            let wrote = report_on(app, name, &ImageReport::Waiting).await;
            wrote.map_err(|refusal| io::Error::other(refusal.0.message.clone()))?;
            record(app, name, "lost", "its content is not here: it has to be imported again".to_owned());
            waits = true;
        }
        if waits && is_url(&spec.value.spec.source) {
            start_fetch(app, name.clone(), spec.value.spec.source.clone());
        }
    }
    Ok(())
}

#[must_use]
pub fn is_url(source: &str) -> bool {
    source.contains("://")
}
