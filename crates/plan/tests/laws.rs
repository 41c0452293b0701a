//! What holds in every world: worlds are made of short random histories, in which hosts do what they are told, or fail.

mod world;

#[path = "laws/history.rs"]
mod history;
#[path = "laws/hold.rs"]
mod hold;

use history::{Op, Story};
use proptest::prelude::*;
use sterna_plan::View;

/// Few enough for every build; PROPTEST_CASES asks for more.
fn config() -> ProptestConfig {
    let cases =
        if std::env::var_os("PROPTEST_CASES").is_some() { ProptestConfig::default().cases } else { 192 };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// Every round of every history keeps every law of `hold`.
    #[test]
    fn no_history_breaks_a_law(ops in prop::collection::vec(any::<Op>(), 1..40)) {
        let mut story = Story::new();
        for op in ops {
            story.act(op);
            story.plan();
        }
    }

    /// Every state has an exit: once the hosts answer again and nothing more fails, everything ends as it was asked.
    #[test]
    fn every_history_comes_to_a_good_end(ops in prop::collection::vec(any::<Op>(), 1..40)) {
        let mut story = Story::new();
        for op in ops {
            story.act(op);
            story.plan();
        }
        story.heal();
        hold::good_end(&story.world);
    }

    /// The view is a function of the rows: the order in which different rows came does not show.
    #[test]
    fn a_followed_view_equals_a_read_one(
        ops in prop::collection::vec(any::<Op>(), 1..25),
        torn in prop::collection::vec(any::<(prop::sample::Index, bool)>(), 0..6),
        order in any::<u64>(),
    ) {
        let mut story = Story::new();
        for op in ops {
            story.act(op);
            story.plan();
        }
        let mut changes: Vec<_> = story.world.changes.clone();
        for (place, is_mended) in torn {
            let (key, value) = changes[place.index(changes.len())].clone();
            changes.push((key.clone(), Some("{\"torn".to_owned())));
            if is_mended {
                changes.push((key, value));
            }
        }
        let numbered: Vec<_> = (1..).zip(changes).collect();
        let followed = view_of(numbered.iter());
        let mut last = std::collections::BTreeMap::new();
        for (revision, (key, value)) in &numbered {
            last.insert(key.clone(), (*revision, (key.clone(), value.clone())));
        }
        let read = view_of(last.values().filter(|(_, (_, value))| value.is_some()));
        prop_assert_eq!(shown(&followed, 0), shown(&read, 0));
        let mixed = view_of(mix(&numbered, order).iter());
        prop_assert_eq!(shown(&followed, 0), shown(&mixed, 0));
    }
}

type Change = (u64, (String, Option<String>));

fn view_of<'a>(changes: impl Iterator<Item = &'a Change>) -> View {
    let mut view = View::default();
    for (revision, (key, value)) in changes {
        view.apply(key, value.as_ref().map(String::as_bytes), *revision);
    }
    view
}

/// Everything in it, with its indexes; the last commits may have been deletions, so the revision itself is set.
fn shown(view: &View, revision: u64) -> String {
    let mut view = view.clone();
    view.revision = revision;
    format!("{view:?}")
}

/// Changes of one row stay in order, those of different rows do not.
fn mix(changes: &[Change], order: u64) -> Vec<Change> {
    let hash = |key: &str| {
        key.bytes().fold(order, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    };
    let mut mixed = changes.to_vec();
    mixed.sort_by_key(|(revision, (key, _))| (hash(key), *revision));
    mixed
}
