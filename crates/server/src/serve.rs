//! Listens and serves: everything that runs as long as the server does.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use sterna_store::{History, Store};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::app::{App, Parts};
use crate::auth::Strangers;
use crate::ca::{Ca, server_names};
use crate::config::Config;
use crate::follow::Follower;
use crate::gateway::{Gateway, link};
use crate::importer::{self, Importer};
use crate::samples::Samples;
use crate::{alerts, backup, init, openapi, retention, tls};

/// A server that is bound to its addresses and not serving yet.
pub struct Server {
    app: App,
    acceptor: TlsAcceptor,
    listeners: Vec<TcpListener>,
}

impl Server {
    /// Opens the CA, reads the store and binds every address.
    pub async fn bind(config: Config, store: Arc<dyn Store>, history: Arc<History>) -> anyhow::Result<Self> {
        // The one provider of cryptography, also for fetching images. A second call in one process finds it set.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        init::folders(&config)?;
        let ca = Ca::open_or_create(&config.data_dir).context("open the CA")?;
        let identity = ca
            .server_identity(&config.data_dir, &server_names(&config))
            .context("sign the server's certificate")?;
        let acceptor = tls::acceptor(&ca, identity).context("set up TLS")?;
        let receivers = alerts::Receivers::new(&config.alerts).context("read who is told of alerts")?;
        init::ensure_main(&store).await?;
        let follower = Follower::open(&*store).await.context("read the store")?;
        let mut listeners = Vec::new();
        for address in &config.listen {
            let listener =
                TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
            listeners.push(listener);
        }
        let first = listeners.first().context("find an address in `listen`")?;
        let app = Arc::new(Parts {
            address: first.local_addr()?,
            config,
            store,
            history,
            follower: Arc::new(follower),
            samples: Samples::default(),
            gateway: Gateway::default(),
            importer: Importer::default(),
            ca,
            strangers: Strangers::default(),
            receivers,
            openapi: OnceLock::new(),
        });
        Ok(Self { app, acceptor, listeners })
    }

    /// Where it listens.
    pub fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.listeners.iter().map(TcpListener::local_addr).collect()
    }

    /// Serves until `cancel`, or until the store is closed.
    pub async fn serve(self, cancel: CancellationToken) -> anyhow::Result<()> {
        let Self { app, acceptor, listeners } = self;
        importer::resume(&app).await.context("look through the images")?;
        link::watch_all(&app);
        let router = openapi::router(App::clone(&app));
        let mut accepting = tokio::task::JoinSet::new();
        for listener in listeners {
            tracing::info!(address = %listener.local_addr()?, "serving");
            accepting.spawn(tls::serve(listener, acceptor.clone(), router.clone(), cancel.clone()));
        }
        let closed = tokio::select! {
            () = cancel.cancelled() => false,
            () = app.follower.follow(&*app.store) => true,
            never = retention::run(App::clone(&app)) => match never {},
            never = backup::schedule::run(App::clone(&app)) => match never {},
            never = alerts::run(App::clone(&app)) => match never {},
        };
        cancel.cancel();
        while accepting.join_next().await.is_some() {}
        if closed { anyhow::bail!("the store was closed") } else { Ok(()) }
    }
}

/// Binds and serves.
pub async fn run(
    config: Config,
    store: Arc<dyn Store>,
    history: Arc<History>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    Server::bind(config, store, history).await?.serve(cancel).await
}
