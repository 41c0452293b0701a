//! Two machines and nothing else: from nothing to the first live migration in three commands, and back to nothing.
//!
//! A machine is a process with namespaces of its own for mounts, network, processes and host name: `/etc`, `/run` and
//! `/var/lib` are its own. Between the two is one virtual cable. Needs root, QEMU and the guest image of `./dev image`.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod machine;

use machine::Machine;
use serde_json::Value;

#[test]
fn three_commands_from_nothing_to_the_first_live_migration() {
    let (north, south) = (Machine::start("north"), Machine::start("south"));
    north.connect(&south, ["192.0.2.1", "192.0.2.2"]);
    let before = south.everything();
    let mut commands = 0;
    let mut say = |machine: &Machine, line: &str| {
        commands += 1;
        let ran = machine.run(line);
        assert_eq!(ran.code, 0, "{line}: {}\n{}\n{}", ran.talk, north.logs(), south.logs());
        ran
    };

    // Without a default route no address is everybody's obvious choice: it is said.
    let init = say(&north, "sterna server init --advertise 192.0.2.1:7443");
    assert_eq!(init.data.lines().count(), 1, "one line and nothing else on stdout: {}", init.data);
    let join = init.data.trim();
    assert!(join.starts_with("sterna agent join 192.0.2.1:7443/"), "{join}");
    say(&south, join);
    let test = say(&north, "sterna migration test");
    assert_eq!(commands, 3);

    assert!(test.data.contains("moved from host north to host south while it ran"), "{}", test.data);
    let row = |what: &str| {
        let line = test.data.lines().find(|line| line.starts_with(what));
        line.unwrap_or_else(|| panic!("no {what} in {}", test.data))
            .trim_start_matches(what)
            .trim()
            .to_owned()
    };
    for what in ["duration", "guest paused", "bytes sent"] {
        let figures: Vec<_> =
            row(what).split("  ").map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect();
        assert_eq!(figures.len(), 2, "forecast and measurement of {what}: {figures:?}");
        println!("{what}: forecast {}, measured {}", figures[0], figures[1]);
    }
    // What the test made is gone; what moved was on a disk that north serves.
    assert_eq!(north.json("sterna vm list -o json"), Value::Array(Vec::new()));
    // Its disk goes after it, when nobody has it open any more.
    north.eventually("no volume is left", || {
        north.json("sterna volume list -o json") == Value::Array(Vec::new())
    });
    let moves = north.json("sterna migration list -o json");
    assert_eq!(moves[0]["decision"]["phase"]["phase"], "succeeded", "{moves}");
    let pool = north.json("sterna pool show default -o json");
    assert_eq!(pool["spec"]["kind"]["type"], "nbd", "{pool}");
    for machine in [&north, &south] {
        assert!(!machine.ok("ps axo args").contains("qemu-system"), "a VM is left");
    }

    let leave = south.run("sterna host leave --yes");
    assert_eq!(leave.code, 0, "{}", leave.talk);
    let after = south.everything();
    let difference: Vec<_> = after.symmetric_difference(&before).collect();
    assert!(difference.is_empty(), "not as the machine was found: {difference:#?}");
    // South knows no administrator: north says that it is gone.
    north.ok("sterna host delete south --yes");
    assert_eq!(north.json("sterna host list -o json").as_array().unwrap().len(), 1);
}
