//! What a receiver has yet to be told: a pure function of the alerts and of what it knows.

use std::time::Duration;

use sterna_base::clock::Timestamp;
use sterna_model::alert::{AlertDecision, AlertState, Severity, state};
use sterna_model::meta::Name;
use sterna_plan::View;

/// One alert to tell of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) name: Name,
    pub(super) what: What,
    pub(super) decision: AlertDecision,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Fires,
    /// It was told long ago and still fires.
    StillFires,
    Resolved,
}

impl What {
    pub(super) fn word(self) -> &'static str {
        match self {
            What::Fires => "firing",
            What::StillFires => "still firing",
            What::Resolved => "resolved",
        }
    }
}

/// Everything that is due, the gravest first.
pub(super) fn due(
    view: &View,
    receiver: &str,
    least: Severity,
    repeat_every: Duration,
    now: Timestamp,
) -> Vec<Due> {
    let mut all: Vec<Due> = view
        .alerts
        .iter()
        .filter_map(|(name, entry)| {
            let spec = &entry.spec.as_ref()?.value.spec;
            let decision = entry.decision.as_ref().filter(|decision| decision.severity >= least)?;
            let told = entry.report.as_ref().and_then(|report| report.told.get(receiver));
            let knows_it = told.is_some_and(|told| told.firing == Some(decision.since));
            let what = match state(spec, decision, now) {
                AlertState::Firing if !knows_it => What::Fires,
                AlertState::Firing => {
                    let last = told.and_then(|told| told.delivered)?;
                    (now.since(last) >= repeat_every).then_some(What::StillFires)?
                }
                // Nobody who was not told that it began wants to know that it is over.
                AlertState::Resolved if knows_it && told.is_some_and(|told| !told.is_resolved) => {
                    if spec.silenced_until.is_some_and(|until| now < until) {
                        return None;
                    }
                    What::Resolved
                }
                AlertState::Resolved | AlertState::Acknowledged | AlertState::Silenced => return None,
            };
            Some(Due { name: name.clone(), what, decision: (*decision.value).clone() })
        })
        .collect();
    all.sort_by(|a, b| {
        let key = |due: &Due| (due.what == What::Resolved, std::cmp::Reverse(due.decision.severity));
        key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
    });
    all
}

#[cfg(test)]
mod tests {
    use sterna_model::alert::{Acknowledged, AlertReport, AlertSpec, Told};
    use sterna_model::key::{Key, Kind};
    use sterna_model::meta::{Labels, Meta, Object};

    use super::*;

    const REPEAT: Duration = Duration::from_secs(4 * 3600);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    struct Alert {
        spec: AlertSpec,
        decision: AlertDecision,
        told: Told,
    }

    fn alert() -> Alert {
        let decision = AlertDecision {
            rule: "host-unreachable".into(),
            severity: Severity::Warning,
            object: "host/a1".into(),
            text: "no word".into(),
            since: at(100),
            ceased: None,
            resolved: None,
        };
        Alert { spec: AlertSpec::default(), decision, told: Told::default() }
    }

    fn told(alert: &Alert, now: i64) -> Option<What> {
        let mut view = View::default();
        let name = Name::new("x").unwrap();
        let meta = Meta {
            name: name.clone(),
            uid: uuid::Uuid::nil(),
            created: at(0),
            labels: Labels::new(),
            notes: String::new(),
            deleting: None,
        };
        let mut put = |key: Key, value: serde_json::Value| {
            view.apply(&key.to_string(), Some(value.to_string().as_bytes()), 1);
        };
        let object = Object { meta, spec: alert.spec.clone() };
        put(Key::spec(Kind::Alert, &name), serde_json::to_value(object).unwrap());
        put(Key::decision(Kind::Alert, &name), serde_json::to_value(&alert.decision).unwrap());
        let report = AlertReport { told: [("mail/ops".to_owned(), alert.told.clone())].into() };
        put(Key::report(Kind::Alert, &name), serde_json::to_value(report).unwrap());
        due(&view, "mail/ops", Severity::Warning, REPEAT, at(now)).first().map(|due| due.what)
    }

    #[test]
    fn an_alert_is_told_once_then_seldom_and_at_its_end() {
        let mut alert = alert();
        assert_eq!(told(&alert, 110), Some(What::Fires));
        alert.told.failed = Some("refused".into());
        assert_eq!(told(&alert, 110), Some(What::Fires), "a try that failed told nobody");
        alert.told = Told { firing: Some(at(100)), delivered: Some(at(110)), ..Told::default() };
        assert_eq!(told(&alert, 111), None);
        assert_eq!(told(&alert, 110 + 4 * 3600 - 1), None);
        assert_eq!(told(&alert, 110 + 4 * 3600), Some(What::StillFires));
        alert.decision.resolved = Some(at(200));
        assert_eq!(told(&alert, 201), Some(What::Resolved));
        alert.told.is_resolved = true;
        assert_eq!(told(&alert, 201), None);
        (alert.decision.since, alert.decision.resolved) = (at(300), None);
        assert_eq!(told(&alert, 301), Some(What::Fires), "another firing is news");
    }

    #[test]
    fn who_is_cared_for_or_silenced_is_not_told_of() {
        let mut alert = alert();
        alert.spec.acknowledged = Some(Acknowledged { by: "ann".into(), since: at(100) });
        assert_eq!(told(&alert, 110), None);
        alert.spec.acknowledged = Some(Acknowledged { by: "ann".into(), since: at(50) });
        assert_eq!(told(&alert, 110), Some(What::Fires), "that was another firing");
        alert.spec.silenced_until = Some(at(500));
        assert_eq!(told(&alert, 110), None);
        assert_eq!(told(&alert, 500), Some(What::Fires));
        // Over before anybody was told: nothing to say.
        (alert.spec.silenced_until, alert.decision.resolved) = (None, Some(at(105)));
        assert_eq!(told(&alert, 110), None);
    }

    #[test]
    fn a_receiver_of_grave_alerts_is_not_told_of_others() {
        let alert = alert();
        let mut view = View::default();
        let key = Key::decision(Kind::Alert, &Name::new("x").unwrap()).to_string();
        view.apply(&key, Some(serde_json::to_string(&alert.decision).unwrap().as_bytes()), 1);
        assert!(due(&view, "mail/ops", Severity::Critical, REPEAT, at(110)).is_empty());
    }
}
