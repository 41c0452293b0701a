//! Alerts and the store itself, as the API shows them.

use serde::Serialize;
use sterna_model::alert::{self, AlertDecision, AlertReport, AlertSpec, AlertState};
use sterna_model::key::Kind;
use sterna_model::meta::Meta;
use sterna_model::store::{StoreDecision, StoreReport, StoreSpec};
use sterna_plan::View;
use sterna_plan::view::{Entry, Table};
use utoipa::ToSchema;

use super::{Eye, Resource, row};

shown! {
    /// A fact that needs a person.
    Alert(AlertSpec) {
        /// What fires, or fired.
        decision: AlertDecision,
        /// Who was told.
        #[serde(skip_serializing_if = "Option::is_none")]
        report: Option<AlertReport>,
        status: AlertStatus,
    }
}

/// An alert in one word.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AlertStatus {
    pub state: AlertState,
}

pub struct Alerts;

impl Resource for Alerts {
    const KIND: Kind = Kind::Alert;
    type Spec = AlertSpec;
    type Decision = AlertDecision;
    type Report = AlertReport;
    type Shown = Alert;

    fn table(view: &View) -> &Table<AlertSpec, AlertDecision, AlertReport> {
        &view.alerts
    }

    fn show(eye: Eye<'_>, entry: &Entry<AlertSpec, AlertDecision, AlertReport>) -> Option<Alert> {
        let (kind, meta, revision, spec) = head!(Kind::Alert, entry.spec.as_ref()?);
        let decision = row(entry.decision.as_ref())?;
        let status = AlertStatus { state: alert::state(&spec, &decision, eye.app.now()) };
        Some(Alert { kind, meta, revision, spec, decision, report: row(entry.report.as_ref()), status })
    }

    fn state(shown: &Alert) -> Option<String> {
        Some(shown.status.state.word().to_owned())
    }
}

shown! {
    /// The store: which life of it this is, how it came back, and its backups.
    Store(StoreSpec) {
        #[serde(skip_serializing_if = "Option::is_none")]
        decision: Option<StoreDecision>,
        #[serde(skip_serializing_if = "Option::is_none")]
        report: Option<StoreReport>,
    }
}

pub struct Stores;

impl Resource for Stores {
    const KIND: Kind = Kind::Store;
    type Spec = StoreSpec;
    type Decision = StoreDecision;
    type Report = StoreReport;
    type Shown = Store;

    fn table(view: &View) -> &Table<StoreSpec, StoreDecision, StoreReport> {
        &view.stores
    }

    fn show(_: Eye<'_>, entry: &Entry<StoreSpec, StoreDecision, StoreReport>) -> Option<Store> {
        let (kind, meta, revision, spec) = head!(Kind::Store, entry.spec.as_ref()?);
        let (decision, report) = (row(entry.decision.as_ref()), row(entry.report.as_ref()));
        Some(Store { kind, meta, revision, spec, decision, report })
    }
}
