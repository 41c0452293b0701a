//! A server that comes back from an old backup while VMs run: none is started twice, none is ended, and each is owned by the host
//! that has it. Needs root, QEMU and the guest image of `./dev image`.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod machine;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use machine::Machine;
use serde_json::Value;

const BACKUP: &str = "/var/lib/one.backup";
/// What the manual promises, for a new machine and a person who reads.
const WITHIN: Duration = Duration::from_secs(300);

/// The QEMU processes of both machines: host, number and moment of start. The same set means that nothing ended or began.
fn guests(machines: [(&str, &Machine); 2]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (name, machine) in machines {
        let listed = machine.ok("ps axo pid,lstart,comm | grep qemu-system || true");
        found.extend(listed.lines().map(|line| format!("{name} {}", line.trim())));
    }
    found
}

fn owner(machine: &Machine, vm: &str) -> String {
    let shown = machine.json(&format!("sterna vm show {vm} -o json"));
    shown["decision"]["owner"]["host"].as_str().unwrap_or_default().to_owned()
}

fn serve(machine: &Machine) {
    machine.ok(
        "setsid sterna supervise --log /run/sterna/server.log -- sterna server run --settings /etc/sterna/server.toml \
         </dev/null >/dev/null 2>&1 & echo $! >/run/sterna/server.pid",
    );
    machine.eventually("the server answers", || machine.run("sterna server status").code == 0);
}

fn end_server(machine: &Machine) {
    machine.ok("kill $(cat /run/sterna/server.pid)");
    machine.eventually("the server has ended", || machine.run("sterna server status").code != 0);
    machine.eventually("its store is free", || !machine.ok("ps axo args").contains("sterna server run"));
}

fn recovered(machine: &Machine) -> Value {
    machine.eventually("the recovery ends", || {
        let server = machine.json("sterna server recover -o json");
        server["mode"] == "normal" && server["recovered"].is_string()
    });
    machine.json("sterna server recover -o json")
}

#[test]
fn an_old_backup_of_the_server_starts_nothing_twice_and_ends_nothing() {
    let (north, south) = (Machine::start("north"), Machine::start("south"));
    north.connect(&south, ["192.0.2.1", "192.0.2.2"]);
    let join = north.ok("sterna server init --advertise 192.0.2.1:7443");
    south.ok(join.trim());
    for vm in ["moved", "again", "stopped", "still"] {
        north.ok(&format!("sterna vm create {vm} --image tiny --memory 128MiB"));
    }
    north.ok(&format!("sterna server backup --to {BACKUP}"));
    assert_eq!(north.ok(&format!("stat -c %a {BACKUP}")).trim(), "600");

    // What the backup does not know.
    let other = if owner(&north, "moved") == "north" { "south" } else { "north" };
    north.ok(&format!("sterna vm migrate moved --to {other}"));
    north.ok("sterna vm stop again --force --yes");
    north.ok("sterna vm start again");
    north.ok("sterna vm stop stopped --force --yes");
    north.ok("sterna vm create young --image tiny --memory 128MiB");
    let owners: Vec<_> = ["moved", "again", "still", "young"].map(|vm| (vm, owner(&north, vm))).into();
    let machines = [("north", &north), ("south", &south)];
    let before = guests(machines);
    assert_eq!(before.len(), 4, "{before:?}");

    let began = Instant::now();
    end_server(&north);
    let refused = north.run(&format!("sterna server restore {BACKUP}"));
    assert!(refused.code == 1 && refused.talk.contains("is not empty"), "{refused:?}");
    north.ok(&format!("sterna server restore {BACKUP} --replace"));
    serve(&north);
    let server = recovered(&north);
    let took = began.elapsed();
    println!("from the end of the old server to the end of the recovery: {took:?}");
    assert!(took < WITHIN, "{took:?}");

    assert_eq!(guests(machines), before, "a VM was ended, or started a second time");
    let found: Vec<_> =
        server["findings"].as_array().unwrap().iter().map(|it| it["vm"].as_str().unwrap()).collect();
    assert_eq!(found, ["again", "moved", "stopped"], "{server}");
    for (vm, host) in owners.iter().filter(|(vm, _)| *vm != "young") {
        north.eventually("the VM is shown as running", || {
            let shown = north.json(&format!("sterna vm show {vm} -o json"));
            shown["status"]["state"] == "running"
        });
        assert_eq!(owner(&north, vm), *host, "{vm}");
    }
    assert_eq!(north.json("sterna vm show stopped -o json")["status"]["state"], "stopped");

    // The one that is younger runs on, held, until a person says otherwise; and that is remembered.
    let (_, host) = owners.iter().find(|(vm, _)| *vm == "young").unwrap();
    let message = north.json(&format!("sterna host show {host} -o json"))["status"]["message"].to_string();
    assert!(message.contains("1 VMs that the store does not know"), "{message}");
    // Everything can be done again: moved back, and started.
    north.ok("sterna vm migrate moved");
    north.ok("sterna vm start stopped");
    north.ok("sterna server accept-store --yes");
    north.eventually("the young one is gone", || guests(machines).len() == 4);
    end_server(&north);
    serve(&north);
    north.eventually("both hosts are back", || {
        let hosts = north.json("sterna host list -o json");
        hosts.as_array().unwrap().iter().all(|host| host["status"]["state"] == "ready")
    });
    assert!(!north.ok("sterna host list").contains("does not know"));
}
