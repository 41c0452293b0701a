//! Prints what planning costs in large worlds: `cargo run --release -p sterna-plan --example scale`.

#[path = "../tests/scale/mod.rs"]
mod worlds;

use std::time::{Duration, Instant};

use sterna_model::key::{Key, Kind};
use sterna_plan::assignment::assignment;
use sterna_plan::{View, round, status};
use worlds::{NOW, Size, name, settled};

/// Median of some runs.
fn median(mut run: impl FnMut()) -> Duration {
    let mut times: Vec<_> = (0..15)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

fn commit(view: &mut View) -> usize {
    let actions = round(view, NOW);
    let revision = view.revision + 1;
    for (key, value) in actions.iter().flat_map(|action| &action.puts) {
        view.apply(&key.to_string(), Some(value.to_string().as_bytes()), revision);
    }
    actions.len()
}

fn main() {
    for (vms, hosts) in [(1000, 50), (10_000, 300)] {
        let mut view = settled(Size { vms, hosts, ended: 3 * vms, waiting: 0 });
        while commit(&mut view) > 0 {}
        println!("{vms} VMs on {hosts} hosts, {} ended migrations", 3 * vms);
        println!("  round, nothing to do      {:>10.2?}", median(|| drop(round(&view, NOW))));
        let mut full = settled(Size { vms, hosts, ended: 3 * vms, waiting: vms / 20 });
        while commit(&mut full) > 0 {}
        let label = format!("round, {} find no host", vms / 20);
        println!("  {label:<25} {:>10.2?}", median(|| drop(round(&full, NOW))));
        println!("  assignment of one host    {:>10.2?}", median(|| drop(assignment(&view, &name("h003")))));
        println!(
            "  status of all VMs         {:>10.2?}",
            median(|| {
                view.vms.keys().for_each(|vm| drop(status::vm(&view, vm, NOW)));
            })
        );
        println!("  copy of the view          {:>10.2?}", median(|| drop(view.clone())));
        let vm = name("vm-00007");
        let key = Key::report_of(Kind::Vm, &vm, &name("h007")).to_string();
        let row = serde_json::to_vec(&*view.vms[&vm].reports[&name("h007")].value).expect("plain data");
        let alone = median(|| view.apply(&key, Some(&row), view.revision + 1));
        println!("  one change, view unshared {alone:>10.2?}");
        let shared = median(|| {
            let reader = view.clone();
            view.apply(&key, Some(&row), view.revision + 1);
            drop(reader);
        });
        println!("  one change, view shared   {shared:>10.2?}");
    }
}
