//! Objects as the API shows them: stored columns side by side, and the status computed from them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sterna_base::units::Bytes;
use sterna_model::cluster::{ClusterDecision, ClusterSpec};
use sterna_model::datacentre::DatacentreSpec;
use sterna_model::fence::FenceDevice;
use sterna_model::ha::{HostDecision, VoterDecision};
use sterna_model::host::{HostReport, HostSpec, LinkState};
use sterna_model::image::{ImageReport, ImageSpec};
use sterna_model::key::Kind;
use sterna_model::meta::{Meta, Name};
use sterna_model::migration::{MigrationDecision, MigrationSpec, Phase, Progress, SideState};
use sterna_model::network::{NetworkDecision, NetworkSpec};
use sterna_model::operation::{OperationDecision, OperationSpec, OperationState};
use sterna_model::pool::PoolSpec;
use sterna_model::probe::LineProbe;
use sterna_model::status::VmStatus;
use sterna_model::token::{Role, TokenSpec};
use sterna_model::vm::{VmDecision, VmReport, VmSpec};
use sterna_model::volume::{VolumeDecision, VolumeReport, VolumeSpec};
use sterna_plan::View;
use sterna_plan::ha::lease;
use sterna_plan::view::{Entry, Table};
use utoipa::ToSchema;

use crate::app::Parts;

/// From where objects are shown, and to whom.
#[derive(Clone, Copy)]
pub struct Eye<'a> {
    pub app: &'a Parts,
    pub view: &'a View,
    pub role: Role,
}

/// A kind of object: its table in the view, and how one is shown.
pub trait Resource: 'static {
    const KIND: Kind;
    type Spec: Clone + Serialize + Send + Sync;
    type Decision;
    type Report;
    type Shown: Serialize + ToSchema + Send;

    fn table(view: &View) -> &Table<Self::Spec, Self::Decision, Self::Report>;

    /// `None` for what is left of an object that is gone.
    fn show(eye: Eye<'_>, entry: &Entry<Self::Spec, Self::Decision, Self::Report>) -> Option<Self::Shown>;

    /// The host that the object is on, for the filter `host=`.
    fn is_on(_view: &View, _entry: &Entry<Self::Spec, Self::Decision, Self::Report>, _host: &str) -> bool {
        false
    }

    /// One word, for the filter `state=`.
    fn state(_shown: &Self::Shown) -> Option<String> {
        None
    }
}

/// Declares how a kind looks in the API. `kind`, `meta`, `revision` and `spec` are in all of them.
macro_rules! shown {
    ($(#[$doc:meta])* $name:ident($spec:ty) { $($(#[$attribute:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Serialize, ToSchema)]
        pub struct $name {
            pub kind: &'static str,
            pub meta: Meta,
            /// Of the spec: what a change gives back to prove that it knows the newest.
            pub revision: u64,
            pub spec: $spec,
            $($(#[$attribute])* pub $field: $type,)*
        }
    };
}

shown! {
    /// A virtual server.
    Vm(VmSpec) {
        #[serde(skip_serializing_if = "Option::is_none")]
        decision: Option<VmDecision>,
        /// What each host saw of it.
        reports: BTreeMap<String, VmReport>,
        status: VmStatus,
    }
}
shown! {
    /// A machine that runs VMs.
    Host(HostSpec) {
        /// Where its lease stands.
        #[serde(skip_serializing_if = "Option::is_none")]
        decision: Option<HostDecision>,
        #[serde(skip_serializing_if = "Option::is_none")]
        report: Option<HostReport>,
        status: HostStatus,
    }
}
shown! {
    /// A source of boot disks.
    Image(ImageSpec) {
        #[serde(skip_serializing_if = "Option::is_none")]
        report: Option<ImageReport>,
    }
}
shown! {
    /// A virtual disk.
    Volume(VolumeSpec) {
        #[serde(skip_serializing_if = "Option::is_none")]
        decision: Option<VolumeDecision>,
        #[serde(skip_serializing_if = "Option::is_none")]
        report: Option<VolumeReport>,
    }
}
shown! {
    /// A place that holds volumes.
    Pool(PoolSpec) {}
}
shown! {
    /// An L2 segment.
    Network(NetworkSpec) {
        #[serde(skip_serializing_if = "Option::is_none")]
        decision: Option<NetworkDecision>,
    }
}
shown! {
    /// A site with its own failure domain.
    Datacentre(DatacentreSpec) {
        status: DatacentreStatus,
        /// Who grants its hosts their leases; absent: nobody.
        #[serde(skip_serializing_if = "Option::is_none")]
        decision: Option<VoterDecision>,
    }
}
shown! {
    /// Hosts with one CPU baseline.
    Cluster(ClusterSpec) {
        #[serde(skip_serializing_if = "Option::is_none")]
        decision: Option<ClusterDecision>,
    }
}
shown! {
    /// A move of a running VM.
    Migration(MigrationSpec) {
        #[serde(skip_serializing_if = "Option::is_none")]
        decision: Option<MigrationDecision>,
        /// The newest numbers of a running transfer.
        #[serde(skip_serializing_if = "Option::is_none")]
        progress: Option<Progress>,
    }
}
shown! {
    /// Long work that a user can wait for.
    Operation(OperationSpec) {
        status: OperationState,
        /// Set once it has ended.
        #[serde(skip_serializing_if = "Option::is_none")]
        decision: Option<OperationDecision>,
    }
}
shown! {
    /// A person's or program's right to talk to the API. Its secret is not kept.
    Token(TokenShown) {}
}

/// What may be shown of a token.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenShown {
    pub role: Role,
}

/// What is known of a site.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DatacentreStatus {
    /// What its hosts measured last of the lines to other datacentres, by datacentre.
    pub lines: BTreeMap<String, SeenLine>,
}

/// A line as one host measured it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SeenLine {
    #[schema(value_type = String)]
    pub host: Name,
    #[serde(flatten)]
    pub probe: LineProbe,
}

/// A host in one word, one sentence and what it has to give.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct HostStatus {
    /// `ready`, `cordoned`, `draining` or `silent`.
    pub state: String,
    pub message: String,
    /// VMs that it owns.
    pub vms: usize,
    /// Memory that VMs may still take.
    #[schema(value_type = String)]
    pub memory_free: Bytes,
    /// `up`, `suspect`, `fencing`, `fenced`, `quarantined`, or `-` without a lease.
    pub ha: String,
    /// How it would be known that its VMs may be started elsewhere; nothing: it would not.
    pub protected_by: Vec<String>,
    /// CPU in use, in thousandths of one CPU; absent without a fresh measurement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_milli: Option<u32>,
}

macro_rules! head {
    ($kind:expr, $spec:expr) => {
        ($kind.as_str(), $spec.value.meta.clone(), $spec.revision, $spec.value.spec.clone())
    };
}

/// The key of a move's line is between the server and the two hosts.
fn without_key(report: &VmReport) -> VmReport {
    let mut report = report.clone();
    if let Some(SideState::Listening { line, .. }) = report.migration.as_mut().map(|told| &mut told.side) {
        *line = None;
    }
    report
}

fn row<T: Clone>(row: Option<&sterna_plan::view::Row<T>>) -> Option<T> {
    row.map(|row| (*row.value).clone())
}

pub struct Vms;

impl Resource for Vms {
    const KIND: Kind = Kind::Vm;
    type Spec = VmSpec;
    type Decision = VmDecision;
    type Report = VmReport;
    type Shown = Vm;

    fn table(view: &View) -> &Table<VmSpec, VmDecision, VmReport> {
        &view.vms
    }

    fn show(eye: Eye<'_>, entry: &Entry<VmSpec, VmDecision, VmReport>) -> Option<Vm> {
        let (kind, meta, revision, mut spec) = head!(Kind::Vm, entry.spec.as_ref()?);
        // User data often carries passwords; whoever may only look does not get them.
        if let (Role::Viewer, Some(cloud_init)) = (eye.role, &mut spec.cloud_init) {
            cloud_init.user_data = cloud_init.user_data.as_ref().map(|_| "(hidden)".to_owned());
        }
        let status = sterna_plan::status::vm(eye.view, &meta.name, eye.app.now())?;
        let reports = entry.reports.iter().map(|(host, row)| (host.to_string(), without_key(&row.value)));
        let reports = reports.collect();
        Some(Vm { kind, meta, revision, spec, decision: row(entry.decision.as_ref()), reports, status })
    }

    fn is_on(_: &View, entry: &Entry<VmSpec, VmDecision, VmReport>, host: &str) -> bool {
        entry.decision.as_ref().is_some_and(|decision| decision.owner.host.as_str() == host)
    }

    fn state(shown: &Vm) -> Option<String> {
        Some(shown.status.state.word().to_owned())
    }
}

pub struct Hosts;

impl Resource for Hosts {
    const KIND: Kind = Kind::Host;
    type Spec = HostSpec;
    type Decision = HostDecision;
    type Report = HostReport;
    type Shown = Host;

    fn table(view: &View) -> &Table<HostSpec, HostDecision, HostReport> {
        &view.hosts
    }

    fn show(eye: Eye<'_>, entry: &Entry<HostSpec, HostDecision, HostReport>) -> Option<Host> {
        let (kind, meta, revision, mut spec) = head!(Kind::Host, entry.spec.as_ref()?);
        spec.fence = spec.fence.as_ref().map(FenceDevice::without_secrets);
        let report = row(entry.report.as_ref());
        let status = host_status(eye, &meta.name, &spec, report.as_ref());
        Some(Host { kind, meta, revision, spec, decision: row(entry.decision.as_ref()), report, status })
    }

    fn is_on(_: &View, entry: &Entry<HostSpec, HostDecision, HostReport>, host: &str) -> bool {
        entry.meta().is_some_and(|meta| meta.name.as_str() == host)
    }

    fn state(shown: &Host) -> Option<String> {
        Some(shown.status.state.clone())
    }
}

fn host_status(eye: Eye<'_>, name: &Name, spec: &HostSpec, report: Option<&HostReport>) -> HostStatus {
    let connected = report.is_some_and(|report| report.link == LinkState::Connected);
    let (state, message) = match report {
        None => ("silent", "has joined; its agent has not connected yet".to_owned()),
        Some(report) if !connected => ("silent", format!("no word from its agent since {}", report.since)),
        Some(_) if spec.draining => ("draining", "its VMs move away".to_owned()),
        Some(_) if spec.cordoned => ("cordoned", "gets no new VMs".to_owned()),
        Some(report) => ("ready", format!("connected since {}", report.since)),
    };
    let owned = |entry: &&sterna_plan::view::VmEntry| {
        entry.decision.as_ref().is_some_and(|decision| decision.owner.host == *name)
    };
    let host = eye.view.host(name);
    let memory_free =
        host.as_ref().map_or(Bytes(0), |host| sterna_plan::capacity::free_memory(eye.view, host));
    let held: Vec<_> = eye.app.gateway.held().remove(name).unwrap_or_default();
    let message = match held.len() {
        0 => message,
        vms => format!(
            "{message}; has {vms} VMs that the store does not know, held until `sterna server accept-store`"
        ),
    };
    HostStatus {
        state: state.to_owned(),
        message,
        vms: eye.view.vms.values().filter(owned).count(),
        memory_free,
        ha: host
            .as_ref()
            .map_or("-", |host| host.decision.map_or("-", |it| it.word(eye.app.now())))
            .to_owned(),
        protected_by: host.iter().flat_map(lease::protected_by).map(str::to_owned).collect(),
        cpu_milli: eye.app.samples.host(name).map(|sample| sample.cpu_milli),
    }
}

pub struct Images;

impl Resource for Images {
    const KIND: Kind = Kind::Image;
    type Spec = ImageSpec;
    type Decision = ();
    type Report = ImageReport;
    type Shown = Image;

    fn table(view: &View) -> &Table<ImageSpec, (), ImageReport> {
        &view.images
    }

    fn show(_: Eye<'_>, entry: &Entry<ImageSpec, (), ImageReport>) -> Option<Image> {
        let (kind, meta, revision, spec) = head!(Kind::Image, entry.spec.as_ref()?);
        Some(Image { kind, meta, revision, spec, report: row(entry.report.as_ref()) })
    }

    fn state(shown: &Image) -> Option<String> {
        tag(&shown.report, "state")
    }
}

pub struct Volumes;

impl Resource for Volumes {
    const KIND: Kind = Kind::Volume;
    type Spec = VolumeSpec;
    type Decision = VolumeDecision;
    type Report = VolumeReport;
    type Shown = Volume;

    fn table(view: &View) -> &Table<VolumeSpec, VolumeDecision, VolumeReport> {
        &view.volumes
    }

    fn show(_: Eye<'_>, entry: &Entry<VolumeSpec, VolumeDecision, VolumeReport>) -> Option<Volume> {
        let (kind, meta, revision, spec) = head!(Kind::Volume, entry.spec.as_ref()?);
        let (decision, report) = (row(entry.decision.as_ref()), row(entry.report.as_ref()));
        Some(Volume { kind, meta, revision, spec, decision, report })
    }

    fn is_on(_: &View, entry: &Entry<VolumeSpec, VolumeDecision, VolumeReport>, host: &str) -> bool {
        entry.decision.as_ref().is_some_and(|decision| decision.host.as_str() == host)
    }

    fn state(shown: &Volume) -> Option<String> {
        tag(&shown.report, "state")
    }
}

/// The word that a tagged enum is told by in JSON.
fn tag(value: &impl Serialize, field: &str) -> Option<String> {
    let value = serde_json::to_value(value).ok()?;
    value.get(field)?.as_str().map(str::to_owned)
}

pub struct Migrations;

impl Resource for Migrations {
    const KIND: Kind = Kind::Migration;
    type Spec = MigrationSpec;
    type Decision = MigrationDecision;
    type Report = ();
    type Shown = Migration;

    fn table(view: &View) -> &Table<MigrationSpec, MigrationDecision, ()> {
        &view.migrations
    }

    fn show(eye: Eye<'_>, entry: &Entry<MigrationSpec, MigrationDecision, ()>) -> Option<Migration> {
        let (kind, meta, revision, spec) = head!(Kind::Migration, entry.spec.as_ref()?);
        let mut decision = row(entry.decision.as_ref());
        if let Some(Phase::Copying { line, .. }) = decision.as_mut().map(|decision| &mut decision.phase) {
            *line = None;
        }
        let progress = eye.app.samples.migration(&meta.name);
        Some(Migration { kind, meta, revision, spec, decision, progress })
    }

    fn is_on(_: &View, entry: &Entry<MigrationSpec, MigrationDecision, ()>, host: &str) -> bool {
        entry.decision.as_ref().is_some_and(|decision| {
            let sides = [&decision.source, &decision.target];
            sides.into_iter().flatten().any(|side| side.as_str() == host)
        })
    }

    fn state(shown: &Migration) -> Option<String> {
        Some(shown.decision.as_ref().map_or("pending", |decision| decision.phase.word()).to_owned())
    }
}

pub struct Operations;

impl Resource for Operations {
    const KIND: Kind = Kind::Operation;
    type Spec = OperationSpec;
    type Decision = OperationDecision;
    type Report = ();
    type Shown = Operation;

    fn table(view: &View) -> &Table<OperationSpec, Self::Decision, ()> {
        &view.operations
    }

    fn show(eye: Eye<'_>, entry: &Entry<OperationSpec, Self::Decision, ()>) -> Option<Operation> {
        let (kind, meta, revision, spec) = head!(Kind::Operation, entry.spec.as_ref()?);
        let decision = row(entry.decision.as_ref());
        let status = match &decision {
            Some(decision) => decision.state.clone(),
            None => sterna_plan::operation::state(eye.view, &spec, eye.app.now()),
        };
        Some(Operation { kind, meta, revision, spec, status, decision })
    }

    fn state(shown: &Operation) -> Option<String> {
        tag(&shown.status, "state")
    }
}

pub struct Tokens;

impl Resource for Tokens {
    const KIND: Kind = Kind::Token;
    type Spec = TokenSpec;
    type Decision = ();
    type Report = ();
    type Shown = Token;

    fn table(view: &View) -> &Table<TokenSpec, (), ()> {
        &view.tokens
    }

    fn show(_: Eye<'_>, entry: &Entry<TokenSpec, (), ()>) -> Option<Token> {
        let (kind, meta, revision, spec) = head!(Kind::Token, entry.spec.as_ref()?);
        Some(Token { kind, meta, revision, spec: TokenShown { role: spec.role } })
    }
}

pub struct Datacentres;

impl Resource for Datacentres {
    const KIND: Kind = Kind::Datacentre;
    type Spec = DatacentreSpec;
    type Decision = VoterDecision;
    type Report = ();
    type Shown = Datacentre;

    fn table(view: &View) -> &Table<DatacentreSpec, VoterDecision, ()> {
        &view.datacentres
    }

    fn show(eye: Eye<'_>, entry: &Entry<DatacentreSpec, VoterDecision, ()>) -> Option<Datacentre> {
        let (kind, meta, revision, spec) = head!(Kind::Datacentre, entry.spec.as_ref()?);
        let seen = sterna_plan::probe::lines(eye.view, &meta.name).into_iter();
        let line = |host: &Name, probe: &LineProbe| SeenLine { host: host.clone(), probe: probe.clone() };
        let lines = seen.map(|(to, (host, probe))| (to.to_string(), line(host, probe))).collect();
        Some(Datacentre {
            kind,
            meta,
            revision,
            spec,
            status: DatacentreStatus { lines },
            decision: row(entry.decision.as_ref()),
        })
    }
}

/// Kinds that are shown as they are stored.
macro_rules! plain {
    ($resource:ident, $kind:ident, $table:ident, $spec:ty, $decision:ty, $shown:ident $(, $field:ident)*) => {
        pub struct $resource;

        impl Resource for $resource {
            const KIND: Kind = Kind::$kind;
            type Spec = $spec;
            type Decision = $decision;
            type Report = ();
            type Shown = $shown;

            fn table(view: &View) -> &Table<$spec, $decision, ()> {
                &view.$table
            }

            fn show(_: Eye<'_>, entry: &Entry<$spec, $decision, ()>) -> Option<$shown> {
                let (kind, meta, revision, spec) = head!(Kind::$kind, entry.spec.as_ref()?);
                Some($shown { kind, meta, revision, spec, $($field: row(entry.$field.as_ref()),)* })
            }
        }
    };
}

plain!(Pools, Pool, pools, PoolSpec, (), Pool);
plain!(Clusters, Cluster, clusters, ClusterSpec, ClusterDecision, Cluster, decision);
plain!(Networks, Network, networks, NetworkSpec, NetworkDecision, Network, decision);

// After the macros that it uses.
mod alert;

pub use alert::{Alert, AlertStatus, Alerts, Store, Stores};

/// Calls `$run` with the resource type of a kind; kinds that the API does not show answer `$none`.
macro_rules! with_resource {
    ($kind:expr, $resource:ident => $run:expr, $none:expr) => {{
        use $crate::shown::*;
        match $kind {
            sterna_model::key::Kind::Datacentre => {
                type $resource = Datacentres;
                $run
            }
            sterna_model::key::Kind::Cluster => {
                type $resource = Clusters;
                $run
            }
            sterna_model::key::Kind::Host => {
                type $resource = Hosts;
                $run
            }
            sterna_model::key::Kind::Pool => {
                type $resource = Pools;
                $run
            }
            sterna_model::key::Kind::Image => {
                type $resource = Images;
                $run
            }
            sterna_model::key::Kind::Network => {
                type $resource = Networks;
                $run
            }
            sterna_model::key::Kind::Volume => {
                type $resource = Volumes;
                $run
            }
            sterna_model::key::Kind::Vm => {
                type $resource = Vms;
                $run
            }
            sterna_model::key::Kind::Migration => {
                type $resource = Migrations;
                $run
            }
            sterna_model::key::Kind::Operation => {
                type $resource = Operations;
                $run
            }
            sterna_model::key::Kind::Token => {
                type $resource = Tokens;
                $run
            }
            sterna_model::key::Kind::JoinToken => $none,
            sterna_model::key::Kind::Store => {
                type $resource = Stores;
                $run
            }
            sterna_model::key::Kind::Alert => {
                type $resource = Alerts;
                $run
            }
        }
    }};
}
pub(crate) use with_resource;
