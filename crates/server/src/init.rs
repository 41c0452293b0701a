//! What a new server needs before its first start: the CA, and objects that make `vm create` work at once. Idempotent.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use serde::Serialize;
use sterna_base::clock::{Clock, SystemClock, Timestamp};
use sterna_model::cluster::ClusterSpec;
use sterna_model::datacentre::DatacentreSpec;
use sterna_model::key::{Key, Kind};
use sterna_model::meta::{Labels, Meta, Name};
use sterna_model::network::{NetworkKind, NetworkSpec};
use sterna_model::pool::{PoolKind, PoolSpec};
use sterna_model::store::{MAIN, StoreSpec};
use sterna_model::token::Role;
use sterna_store::{Error, Store, Txn};
use uuid::Uuid;

use crate::ca::Ca;
use crate::config::Config;
use crate::error::Refusal;
use crate::routes::host::new_join_token;
use crate::routes::token::new_token;
use crate::write::put_new;

/// Where agents keep volumes unless told otherwise.
const POOL_PATH: &str = "/var/lib/sterna/agent/pools/default";
const CIDR: &str = "10.100.0.0/24";
const ADMIN: &str = "admin";

/// What `init` made or found.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The first admin token's secret; `None` when there was a token already: it cannot be shown twice.
    pub admin_token: Option<String>,
    /// What `sterna agent join` takes on the first other machine.
    pub join_token: String,
    /// PEM of the CA, for clients.
    pub ca: String,
}

/// Prepares `config.data_dir` and the store. Objects that exist are left as they are.
pub async fn init(config: &Config, store: &Arc<dyn Store>) -> anyhow::Result<Ready> {
    folders(config)?;
    let ca = Ca::open_or_create(&config.data_dir).context("open the CA")?;
    let now = SystemClock.now();
    let default = Name::new("default")?;
    let datacentre = &config.datacentre;
    ensure(store, Kind::Datacentre, datacentre, DatacentreSpec::default(), now).await?;
    let cluster = ClusterSpec { datacentre: datacentre.clone(), cpu_model: None, reserve: None };
    ensure(store, Kind::Cluster, datacentre, cluster, now).await?;
    let network = NetworkSpec { kind: NetworkKind::Overlay { cidr: CIDR.parse()? }, default: true };
    ensure(store, Kind::Network, &default, network, now).await?;
    let pool =
        PoolSpec { kind: PoolKind::Dir { path: POOL_PATH.to_owned() }, datacentre: None, default: true };
    ensure(store, Kind::Pool, &default, pool, now).await?;
    ensure_main(store).await?;
    let admin_token = ensure_admin(store, now).await?;
    let server = config.advertise.clone().unwrap_or_else(|| {
        let said = config.listen.iter().find(|at| !at.ip().is_unspecified()).or(config.listen.first());
        said.map(ToString::to_string).unwrap_or_default()
    });
    let (join_token, _, txn) = new_join_token(&server, &ca.pin(), None, now).map_err(plain)?;
    store.commit(txn).await.context("write the join token")?;
    Ok(Ready { admin_token, join_token: join_token.to_string(), ca: ca.pem().to_owned() })
}

/// The store as an object: it gets its incarnation once. A store of an older version has none yet.
pub async fn ensure_main(store: &Arc<dyn Store>) -> anyhow::Result<()> {
    let main = Name::new(MAIN)?;
    ensure(store, Kind::Store, &main, StoreSpec::new(Uuid::new_v4()), SystemClock.now()).await
}

/// The folders that only the server may enter: they hold keys and other people's disks.
pub fn folders(config: &Config) -> anyhow::Result<()> {
    make_private(&config.data_dir)?;
    make_private(&config.images_dir())
}

/// A folder that only the server may enter, and what is above it.
pub fn folder(path: &Path) -> anyhow::Result<()> {
    make_private(path)
}

/// What lies above it stays passable: an agent's pools may be beside it, which QEMU's own user must reach.
fn make_private(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let make = |path: &Path, mode: u32| {
        let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
        made.with_context(|| format!("make {}", path.display()))
    };
    path.parent().map_or(Ok(()), |above| make(above, 0o711))?;
    make(path, 0o700)
}

/// Creates an object unless something of that name is there.
async fn ensure<S: Serialize>(
    store: &Arc<dyn Store>,
    kind: Kind,
    name: &Name,
    spec: S,
    now: Timestamp,
) -> anyhow::Result<()> {
    let meta = Meta {
        name: name.clone(),
        uid: Uuid::now_v7(),
        created: now,
        labels: Labels::new(),
        notes: String::new(),
        deleting: None,
    };
    let txn = put_new(Txn::new(), kind, meta, spec).map_err(plain)?;
    match store.commit(txn).await {
        Ok(_) | Err(Error::Conflict { .. }) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("write {}", Key::spec(kind, name))),
    }
}

async fn ensure_admin(store: &Arc<dyn Store>, now: Timestamp) -> anyhow::Result<Option<String>> {
    let tokens = store.range(&Kind::Token.prefix(), None).await.context("read the tokens")?;
    if !tokens.entries.is_empty() {
        return Ok(None);
    }
    let (secret, txn) = new_token(&Name::new(ADMIN)?, Role::Admin, now).map_err(plain)?;
    match store.commit(txn).await {
        Ok(_) => Ok(Some(secret)),
        Err(Error::Conflict { .. }) => Ok(None),
        Err(error) => Err(error).context("write the admin token"),
    }
}

fn plain(refusal: Refusal) -> anyhow::Error {
    anyhow::Error::new(*refusal.0)
}
