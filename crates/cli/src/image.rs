//! Sources of boot disks.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::{Args, Subcommand};
use sterna_base::units::Bytes;
use sterna_client::image::{Image, Images};
use sterna_model::error::Code;
use sterna_model::image::{Format, ImageReport, ImageSpec};
use sterna_model::meta::Name;

use crate::crud::{self, About, Delete};
use crate::exit::{Failure, Result};
use crate::output::Listed;
use crate::readable::size;
use crate::select::Selector;
use crate::session::Session;
use crate::wait::{Talker, Wait};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Take in an image from a file here, or let the server fetch it
    Import(Import),
    /// List images
    List(Selector),
    /// Show one image
    Show { name: Name },
    /// Delete images that no volume was cloned from
    Delete(Delete),
}

#[derive(Debug, Args)]
pub struct Import {
    name: Name,
    #[command(flatten)]
    source: Source,
    /// SHA-256 that the content must have
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    #[command(flatten)]
    about: About,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// Image file on this machine, raw or qcow2
    #[arg(long, short = 'f', value_name = "FILE")]
    file: Option<PathBuf>,
    /// Address from which the server fetches it
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

impl Listed for Image {
    const WORDS: &'static str = "images";
    const HEAD: &'static [&'static str] = &["name", "state", "format", "size", "disk", "sha256"];

    fn row(&self) -> Vec<String> {
        let name = self.meta.name.to_string();
        match &self.report {
            None | Some(ImageReport::Waiting) => vec![name, "waiting".into()],
            Some(ImageReport::Failed { why }) => vec![name, format!("failed: {why}")],
            Some(ImageReport::Ready { sha256, format, size: file, virtual_size }) => {
                let format = match format {
                    Format::Raw => "raw",
                    Format::Qcow2 => "qcow2",
                };
                let sum = sha256.chars().take(12).collect();
                vec![name, "ready".into(), format.into(), size(*file), size(*virtual_size), sum]
            }
        }
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    match verb {
        Verb::Import(import) => self::import(session, import).await,
        Verb::List(selector) => crud::list::<Images>(session, &selector).await,
        Verb::Show { name } => crud::show::<Images>(session, &name).await,
        Verb::Delete(args) => crud::delete::<Images>(session, &args, "").await,
    }
}

async fn import(session: &Session, import: Import) -> Result<()> {
    let Import { name, source, sha256, about, wait } = import;
    let what = format!("image {name}");
    if let Some(file) = &source.file
        && !file.is_file()
    {
        return Err(Failure::usage(format!("{} is no file", file.display()), "check the path after --file"));
    }
    let spec = ImageSpec { source: source.url.unwrap_or_else(|| "upload".to_owned()), sha256 };
    let made = session.client.images().create(&about.new_object(name.clone(), spec)).await;
    let mut answer = match made {
        // One that lost its content, such as with the server's machine, gets it again.
        Err(error) if error.is(Code::AlreadyExists) && source.file.is_some() => {
            let present = session.client.images().get(&name).await?;
            if !matches!(present.report, None | Some(ImageReport::Waiting)) {
                return Err(error.into());
            }
            Default::default()
        }
        made => made?,
    };
    if let Some(file) = source.file {
        answer = upload(session, &name, &file).await?;
    }
    crud::finish(session, wait, &what, "imported", answer).await
}

async fn upload(
    session: &Session,
    name: &Name,
    file: &std::path::Path,
) -> Result<sterna_client::object::Answer<Image>> {
    let total = file.metadata().map_or(0, |metadata| metadata.len());
    let sent = Arc::new(AtomicU64::new(0));
    let talker = Talker::new(session);
    let images = session.client.images();
    let upload = images.upload(name, file, sent.clone());
    tokio::pin!(upload);
    loop {
        tokio::select! {
            answer = &mut upload => return Ok(answer?),
            () = tokio::time::sleep(Duration::from_millis(200)) => {
                let now = sent.load(Ordering::Relaxed);
                talker.fraction(now, total);
                if talker.is_person() {
                    talker.say(&format!("image {name}: {} of {}", size(Bytes(now)), size(Bytes(total))));
                }
            }
        }
    }
}
