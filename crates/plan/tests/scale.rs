//! Planning costs what there is to decide, and an assignment what its host has. The bounds are generous: they catch a walk
//! over everything for each of everything, not a slow machine. `cargo run --example scale` prints the figures.

#[path = "scale/mod.rs"]
mod worlds;

use std::time::{Duration, Instant};

use sterna_plan::assignment::assignment;
use sterna_plan::{View, round};
use worlds::{NOW, Size, name, settled};

/// The best of a few: what else runs on the machine only adds.
fn best(mut run: impl FnMut()) -> Duration {
    let time = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    (0..7).map(|_| time(&mut run)).min().unwrap_or_default()
}

fn at_rest(mut view: View) -> View {
    while let actions @ [_, ..] = &round(&view, NOW)[..] {
        let revision = view.revision + 1;
        for (key, value) in actions.iter().flat_map(|action| &action.puts) {
            view.apply(&key.to_string(), Some(value.to_string().as_bytes()), revision);
        }
    }
    view
}

#[test]
fn a_round_over_a_thousand_vms_is_short() {
    let view = at_rest(settled(Size { vms: 1000, hosts: 50, ended: 3000, waiting: 0 }));
    let took = best(|| assert!(round(&view, NOW).is_empty()));
    assert!(took < Duration::from_millis(60), "{took:?}");
}

#[test]
fn an_assignment_costs_what_the_host_has() {
    let small = at_rest(settled(Size { vms: 200, hosts: 10, ended: 600, waiting: 0 }));
    let large = at_rest(settled(Size { vms: 4000, hosts: 200, ended: 12_000, waiting: 0 }));
    let time = |view: &View| {
        best(|| {
            for _ in 0..10 {
                assert_eq!(assignment(view, &name("h003")).vms.len(), 20);
            }
        })
    };
    let (few, many) = (time(&small), time(&large));
    // Twenty times the world: the list of the other hosts of the overlay grows, nothing else does.
    assert!(many < few * 6, "{few:?} in a small world, {many:?} in one of twenty times its size");
}

#[test]
fn a_copy_of_a_view_costs_nothing() {
    let view = settled(Size { vms: 1000, hosts: 50, ended: 3000, waiting: 0 });
    let took = best(|| drop(view.clone()));
    assert!(took < Duration::from_micros(200), "{took:?}");
}
