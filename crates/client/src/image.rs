//! Immutable sources of boot disks; sending their content.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::TryStreamExt;
use serde_json::Value;
use sterna_model::image::{ImageReport, ImageSpec};
use sterna_model::meta::Name;

use crate::Client;
use crate::error::{Error, Result};
use crate::object::{Answer, Api, Object, Resource};

#[derive(Debug)]
pub struct Images;

impl Resource for Images {
    const PATH: &'static str = "images";
    const KIND: &'static str = "image";
    type Spec = ImageSpec;
    type Decision = Value;
    type Report = ImageReport;
    type Status = Value;
}

pub type Image = Object<ImageSpec, Value, ImageReport, Value>;

impl Client {
    #[must_use]
    pub fn images(&self) -> Api<'_, Images> {
        Api::new(self)
    }
}

/// Bytes handed to the connection at once.
const CHUNK: usize = 256 * 1024;

impl Api<'_, Images> {
    /// Sends the content of an image from a file; `sent` counts the bytes on their way.
    pub async fn upload(&self, name: &Name, file: &Path, sent: Arc<AtomicU64>) -> Result<Answer<Image>> {
        let failed = |source| Error::Local { what: format!("read {}", file.display()), source };
        let source = tokio::fs::File::open(file).await.map_err(failed)?;
        let size = source.metadata().await.map_err(failed)?.len();
        let chunks = tokio_util::io::ReaderStream::with_capacity(source, CHUNK).inspect_ok(move |chunk| {
            sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        });
        let body = reqwest::Body::wrap_stream(chunks);
        self.client.put_stream(&Self::verb(name, "content"), size, body).await
    }
}
