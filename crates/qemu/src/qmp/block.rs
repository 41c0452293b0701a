//! Disks of a running guest.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Client, Error, Schema};

/// One disk of `query-block`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockDevice {
    /// Path of the guest device: `/machine/peripheral/ID/virtio-backend` for one with an id.
    #[serde(default)]
    pub qdev: Option<String>,
    /// `ok`, `failed` or `nospace`: why the guest was paused.
    #[serde(default)]
    pub io_status: Option<String>,
    #[serde(default)]
    pub inserted: Option<Inserted>,
}

impl BlockDevice {
    /// The id given in the configuration.
    pub fn id(&self) -> Option<&str> {
        self.qdev.as_deref()?.strip_prefix("/machine/peripheral/")?.split('/').next()
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Inserted {
    #[serde(default)]
    pub node_name: Option<String>,
    #[serde(rename = "ro")]
    pub is_read_only: bool,
    pub image: Image,
    /// Writes above this offset are told by an event; 0 = none set.
    #[serde(default, rename = "write_threshold")]
    pub write_threshold: u64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Image {
    pub virtual_size: u64,
    /// Bytes taken in the pool.
    #[serde(default)]
    pub actual_size: Option<u64>,
}

/// Counters of one disk since QEMU started, from `query-blockstats`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockStats {
    #[serde(default)]
    pub qdev: Option<String>,
    #[serde(default)]
    pub node_name: Option<String>,
    pub stats: Counters,
    /// The file below a format; its highest write is the watermark of a growing image.
    #[serde(default)]
    pub parent: Option<Box<BlockStats>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Counters {
    pub rd_bytes: u64,
    pub wr_bytes: u64,
    pub rd_operations: u64,
    pub wr_operations: u64,
    pub flush_operations: u64,
    pub rd_total_time_ns: u64,
    pub wr_total_time_ns: u64,
    pub wr_highest_offset: u64,
}

/// One node of `query-named-block-nodes`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Node {
    #[serde(default)]
    pub node_name: Option<String>,
    #[serde(rename = "drv")]
    pub driver: String,
    pub file: String,
    #[serde(rename = "ro")]
    pub is_read_only: bool,
    /// Whether this process may write and holds the image's lock; absent before 10.0.
    #[serde(default, rename = "active")]
    pub is_active: Option<bool>,
    pub image: ImageInfo,
}

/// What a node shows to whoever reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    /// In bytes.
    pub virtual_size: u64,
}

impl Client {
    pub async fn query_block(&self) -> Result<Vec<BlockDevice>, Error> {
        self.execute("query-block", Value::Null).await
    }

    pub async fn query_block_stats(&self) -> Result<Vec<BlockStats>, Error> {
        self.execute("query-blockstats", Value::Null).await
    }

    /// Every node, backing chains not repeated.
    pub async fn query_named_block_nodes(&self) -> Result<Vec<Node>, Error> {
        self.execute("query-named-block-nodes", json!({ "flat": true })).await
    }

    /// Takes (or gives back) all image locks, also while the guest is paused. `Ok(false)` = this QEMU cannot.
    pub async fn set_blocks_active(&self, schema: &Schema, is_active: bool) -> Result<bool, Error> {
        if !schema.has_command("blockdev-set-active") {
            return Ok(false);
        }
        self.done("blockdev-set-active", json!({ "active": is_active })).await?;
        Ok(true)
    }

    /// Grows (or shrinks, destroying what was there) the image below this node, and tells the guest.
    pub async fn block_resize(&self, node: &str, bytes: u64) -> Result<(), Error> {
        self.done("block_resize", json!({ "node-name": node, "size": bytes })).await
    }

    /// Asks for an event when the guest first writes above this offset; 0 = no more.
    pub async fn set_write_threshold(&self, node: &str, bytes: u64) -> Result<(), Error> {
        let arguments = json!({ "node-name": node, "write-threshold": bytes });
        self.done("block-set-write-threshold", arguments).await
    }
}
