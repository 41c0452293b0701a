//! What people get wrong at the command line, and files that would harm: each is refused with a reason, and nothing
//! that was there changes. Bodies that only a program would send are in the server's own tests.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod world;

use std::path::Path;
use std::process::Command;

use world::World;

/// The line, the exit code it must end with, and words that must be in what it says.
type Case<'a> = (&'a str, i32, &'a [&'a str]);

fn server() -> World {
    let mut world = World::new();
    assert_eq!(world.init("--server-only").code, 0);
    world.serve();
    world
}

fn refused(world: &World, cases: &[Case]) {
    let before = everything(world);
    for (line, code, words) in cases {
        let ran = world.sterna(line);
        assert_eq!(ran.code, *code, "{line:.120}: {ran:?}");
        for word in *words {
            assert!(ran.talk.contains(word), "{line:.120} does not say {word:?}: {}", ran.talk);
        }
        assert_eq!(ran.data, "", "{line:.120} printed data");
        assert!(!ran.talk.contains("error: error:") && !ran.talk.contains("panicked"), "{}", ran.talk);
    }
    assert_eq!(everything(world), before, "something was changed");
}

/// All objects but operations, as the server shows them.
fn everything(world: &World) -> String {
    let nouns = ["vm", "volume", "image", "network", "pool", "datacentre", "cluster", "host", "token"];
    nouns.map(|noun| world.ok(&format!("{noun} list -o json"))).concat()
}

fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    assert!(output.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn names_and_values_that_cannot_be_are_said_before_anything_is_sent() {
    let world = server();
    let long = "a".repeat(64);
    let too_long = format!("network create {long} --overlay 10.9.0.0/24");
    refused(
        &world,
        &[
            ("vm create ../etc --image tiny", 2, &["../etc"]),
            ("vm create Web --image tiny", 2, &["Web"]),
            ("vm create -- -web --image tiny", 2, &[]),
            ("vm create web_1 --image tiny", 2, &["web_1"]),
            (&too_long, 2, &[&long]),
            ("vm create web", 2, &["--image"]),
            ("vm create web --image tiny --memory lots", 2, &["lots"]),
            ("vm create web --image tiny --memory 256", 1, &["256B", "16MiB"]),
            ("vm create web --image tiny --cpus 0", 2, &["0"]),
            ("vm create web --image tiny --cpus 65", 2, &["64"]),
            ("vm create web --image tiny --nic lan,speed=9", 2, &["speed=9"]),
            ("vm create web --image tiny --nic lan,mac=00:11", 2, &["00:11"]),
            ("network create lan --overlay 10.9.0.1/24", 2, &["10.9.0.1/24"]),
            ("volume create data --size -1GiB", 2, &[]),
            ("vm lst", 2, &["list"]),
            ("vm set web", 2, &["nothing to change"]),
        ],
    );
}

#[test]
fn what_does_not_exist_is_named() {
    let world = server();
    refused(
        &world,
        &[
            ("vm create web --image absent --no-wait", 1, &["absent", "hint:"]),
            ("vm create web --volume absent --no-wait", 1, &["absent"]),
            ("vm show absent", 1, &["absent"]),
            ("vm start absent", 1, &["absent"]),
            ("vm migrate absent", 1, &["absent"]),
            ("vm delete absent --yes", 1, &["absent"]),
            ("volume grow absent 10GiB", 1, &["absent"]),
            ("nic add absent --network default", 1, &["absent"]),
            ("host drain absent", 1, &["absent"]),
            ("migration cancel absent", 1, &["absent"]),
            ("image import some --file /absent/file.qcow2", 2, &["/absent/file.qcow2", "--file"]),
            ("image import some --file /", 2, &["is no file"]),
            ("vm create web --image tiny --user-data /absent/user-data", 2, &["/absent/user-data"]),
            ("apply -f /absent/lab.yaml", 2, &["/absent/lab.yaml"]),
            ("--config /absent/config.toml vm list", 1, &["/absent/config.toml", "hint:"]),
        ],
    );
}

#[test]
fn images_that_would_open_other_files_are_refused() {
    let world = server();
    let at = |name: &str| world.path(name).display().to_string();
    let secret = at("secret.raw");
    std::fs::write(&secret, vec![b's'; 1 << 20]).unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", &secret, "-F", "raw", &at("backing.qcow2")]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        "json:{\"driver\":\"raw\"}",
        "-F",
        "raw",
        &at("json.qcow2"),
        "1M",
    ]);
    let data = format!("data_file={},data_file_raw=on", at("data.raw"));
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &data, &at("data.qcow2"), "1M"]);
    qemu_img(&["create", "-q", "-f", "vmdk", &at("other.vmdk"), "1M"]);
    qemu_img(&["create", "-q", "-f", "qcow2", &at("good.qcow2"), "1M"]);
    let good = std::fs::read(world.path("good.qcow2")).unwrap();
    std::fs::write(world.path("cut.qcow2"), &good[..60]).unwrap();
    std::fs::write(world.path("empty.raw"), b"").unwrap();

    for (name, file, word) in [
        ("backing", "backing.qcow2", "backing"),
        ("json", "json.qcow2", "backing"),
        ("data", "data.qcow2", "data in another file"),
        ("vmdk", "other.vmdk", "vmdk"),
        ("cut", "cut.qcow2", "header is cut off"),
        ("empty", "empty.raw", "empty"),
    ] {
        let ran = world.sterna(&format!("image import {name} --file {}", at(file)));
        println!("{name}: {}", ran.talk.trim());
        assert_eq!(ran.code, 1, "{name}: {ran:?}");
        assert!(ran.talk.to_lowercase().contains(word), "{name} does not say {word}: {}", ran.talk);
        is_unusable(&world, name);
    }
    world.ok(&format!("image import good --file {}", at("good.qcow2")));
    assert_eq!(images(&world), ["good"], "nothing else has content");
}

/// A refused image can be seen with the reason, cannot be booted from, and goes when it is deleted.
fn is_unusable(world: &World, name: &str) {
    let shown: serde_json::Value =
        serde_json::from_str(&world.ok(&format!("image show {name} -o json"))).unwrap();
    assert_ne!(shown["report"]["state"], "ready", "{shown}");
    world.ok(&format!("image delete {name} --yes"));
    assert_eq!(images(world), Vec::<String>::new());
}

/// Files that the server keeps for images.
fn images(world: &World) -> Vec<String> {
    let entries = std::fs::read_dir(world.path("server/images")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_checksum_that_does_not_fit_is_refused_with_both() {
    let world = server();
    let file = world.path("disk.raw");
    std::fs::write(&file, vec![7_u8; 1 << 20]).unwrap();
    let wrong = "0".repeat(64);
    let ran = world.sterna(&format!("image import disk --file {} --sha256 {wrong}", file.display()));
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.talk.contains(&wrong) && ran.talk.contains(&sum(&file)), "{}", ran.talk);
    is_unusable(&world, "disk");
    let short = world.sterna(&format!("image import disk --file {} --sha256 abc", file.display()));
    assert_ne!(short.code, 0, "{short:?}");
    world.ok(&format!("image import disk --file {} --sha256 {}", file.display(), sum(&file)));
}

fn sum(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

#[test]
fn user_data_and_descriptions_that_are_wrong_change_nothing() {
    let world = server();
    let disk = world.path("disk.raw");
    std::fs::write(&disk, vec![7_u8; 1 << 20]).unwrap();
    world.ok(&format!("image import tiny --file {}", disk.display()));
    let at = |name: &str, content: &[u8]| {
        std::fs::write(world.path(name), content).unwrap();
        world.path(name).display().to_string()
    };
    let huge = at("huge", &vec![b'#'; (256 << 10) + 1]);
    let binary = at("binary", &[0xff, 0xfe, 0]);
    let enormous = at("enormous", &vec![b'#'; 32 << 20]);
    let unknown =
        at("unknown.yaml", b"kind: network\nname: lan\nspec: {kind: {type: overlay, cdir: 10.9.0.0/24}}\n");
    let kindless = at("kindless.yaml", b"name: lan\n");
    let broken = at("broken.yaml", b"kind: [network\n");
    // The first is right and must not be made when the second is wrong.
    let second =
        at("second.yaml", b"kind: datacentre\nname: north\nspec: {}\n---\nkind: vm\nname: UPPER\nspec: {}\n");
    let user_data = |file: &str| format!("vm create web --image tiny --stopped --no-wait --user-data {file}");
    let apply = |file: &str| format!("apply -f {file}");
    refused(
        &world,
        &[
            (&user_data(&huge), 1, &["262144"]),
            (&user_data(&binary), 2, &["binary"]),
            (&user_data(&enormous), 1, &[]),
            (&apply(&unknown), 2, &["cdir", "cidr"]),
            (&apply(&kindless), 2, &["kind"]),
            (&apply(&broken), 2, &["error: line 1 column 7", "unclosed bracket"]),
            (&apply(&second), 2, &["UPPER"]),
        ],
    );
}
