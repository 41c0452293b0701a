//! Keeps the alerts: facts that need a person, from the view alone.
//!
//! Reads: everything. Decides: which alerts fire and which are over. A rule is a function in [`rules`]; add one there.
//! Never tells anybody (the server's `alerts` do) and never changes anything else.

mod rules;

use std::collections::BTreeMap;
use std::time::Duration;

use sterna_base::clock::Timestamp;
use sterna_model::alert::{AlertDecision, AlertSpec, Severity};
use sterna_model::key::{Column, Key, Kind};
use sterna_model::meta::{Labels, Meta, Name, Object};
use uuid::Uuid;

use crate::action::Action;
use crate::view::{AlertEntry, View};

/// What comes and goes within this is one alert and not many.
const HELD: Duration = Duration::from_secs(120);
/// How long an alert that is over is shown.
const KEPT: Duration = Duration::from_secs(7 * 86_400);
/// More at once are one trouble, and a person reads the first.
const FIRING_MAX: usize = 1000;

/// What a rule found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firing {
    pub rule: &'static str,
    pub severity: Severity,
    /// As `KIND/NAME`.
    pub object: String,
    /// What is wrong, and what it means. Without figures that change by themselves: each change is written.
    pub text: String,
}

impl Firing {
    /// What makes it the same alert the next time: its rule and its object.
    #[must_use]
    pub fn name(&self) -> Name {
        let object = self.object.split_once('/').map_or(self.object.as_str(), |(_, name)| name);
        let object: String = object
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .collect();
        let whole = format!("{}-{object}", self.rule);
        let text = if whole.len() <= 63 {
            whole.clone()
        } else {
            format!("{}-{:08x}", &whole[..54].trim_end_matches('-'), hash(&whole) as u32)
        };
        Name::new(text.trim_end_matches('-')).unwrap_or_else(|_| fallback(&whole))
    }
}

/// An object whose name is no name still gets an alert.
fn fallback(text: &str) -> Name {
    Name::new(&format!("alert-{:016x}", hash(text))).expect("hexadecimal digits are a name")
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[must_use]
pub fn plan(view: &View, now: Timestamp) -> Vec<Action> {
    let firing: BTreeMap<Name, Firing> =
        rules::all(view, now).into_iter().take(FIRING_MAX).map(|firing| (firing.name(), firing)).collect();
    let begun = firing.iter().filter_map(|(name, firing)| fire(view, name, firing, now));
    let over = view.alerts.iter().filter(|(name, _)| !firing.contains_key(*name));
    let over = over.filter_map(|(name, entry)| settle(view, name, entry, now));
    begun.chain(over).collect()
}

fn fire(view: &View, name: &Name, firing: &Firing, now: Timestamp) -> Option<Action> {
    let entry = view.alerts.get(name);
    if view.is_broken(Kind::Alert, name) {
        return None;
    }
    let before = entry.and_then(|entry| entry.decision.as_ref()).map(|row| &*row.value);
    let running = before.filter(|decision| decision.resolved.is_none());
    let decision = AlertDecision {
        rule: firing.rule.to_owned(),
        severity: firing.severity,
        object: firing.object.clone(),
        text: firing.text.clone(),
        since: running.map_or(now, |decision| decision.since),
        ceased: None,
        resolved: None,
    };
    if before == Some(&decision) {
        return None;
    }
    let what = if running.is_some() { "changed" } else { "fires" };
    let why = format!("{}: {}", firing.object, firing.text);
    let action = Action::new(now, &Key::spec(Kind::Alert, name), what, why).put(
        view,
        Key::decision(Kind::Alert, name),
        &decision,
    );
    Some(match entry.and_then(|entry| entry.spec.as_ref()) {
        Some(_) => action,
        None => action.put(view, Key::spec(Kind::Alert, name), &new_object(name, now)),
    })
}

fn new_object(name: &Name, now: Timestamp) -> Object<AlertSpec> {
    let time = u128::from(now.as_millis().unsigned_abs());
    let meta = Meta {
        name: name.clone(),
        // Derived, not drawn: the same round after a crash makes the same object.
        uid: Uuid::from_u128((u128::from(hash(name.as_str())) << 64) | time),
        created: now,
        labels: Labels::new(),
        notes: String::new(),
        deleting: None,
    };
    Object { meta, spec: AlertSpec::default() }
}

/// What does not fire any more is over, and then forgotten.
fn settle(view: &View, name: &Name, entry: &AlertEntry, now: Timestamp) -> Option<Action> {
    if view.is_broken(Kind::Alert, name) {
        return None;
    }
    let decision = entry.decision.as_ref()?;
    let key = Key::decision(Kind::Alert, name);
    let about = Key::spec(Kind::Alert, name);
    match decision.resolved {
        None => {
            let (what, next) = match decision.ceased {
                None => ("ceased", AlertDecision { ceased: Some(now), ..(*decision.value).clone() }),
                Some(at) if now.since(at) < HELD => return None,
                Some(_) => ("is over", AlertDecision { resolved: Some(now), ..(*decision.value).clone() }),
            };
            let why = format!("{}: no longer so", decision.object);
            Some(Action::new(now, &about, what, why).put(view, key, &next))
        }
        // One that is silenced keeps that: it may be back.
        Some(at) if now.since(at) > KEPT => {
            let spec = entry.spec.as_ref().map(|row| &row.value.spec);
            if spec.and_then(|spec| spec.silenced_until).is_some_and(|until| now < until) {
                return None;
            }
            let columns = [Column::Spec, Column::Decision, Column::Report];
            let present = columns.into_iter().filter(|column| entry.revision(column) != 0);
            let action = Action::new(now, &about, "forgotten", "it has been over for long");
            Some(
                present
                    .fold(action, |action, column| action.delete(view, Key::new(Kind::Alert, name, column))),
            )
        }
        Some(_) => None,
    }
}
