//! From nothing to a server with hosts, and the command line against the real server.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod world;

use serde_json::Value;
use world::{World, mode};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn init_prints_one_line_that_joins_another_machine() {
    let mut world = World::new();
    let init = world.init("--host a1");
    assert_eq!(init.code, 0, "{init:?}");
    assert_eq!(init.data.lines().count(), 1, "{}", init.data);
    let line = init.data.trim().strip_prefix("sterna ").unwrap().to_owned();
    assert!(line.starts_with("agent join 127.0.0.1:"), "{line}");
    assert!(init.talk.contains("host a1: joined"), "{}", init.talk);

    for secret in ["agent/host.key", "agent/host.pem", "cli/config.toml", "server/ca.key"] {
        assert_eq!(mode(&world.path(secret)), 0o600, "{secret}");
    }
    assert_eq!(mode(&world.path("server")), 0o700);
    let agent = std::fs::read_to_string(world.path("agent.toml")).unwrap();
    assert!(agent.contains(&format!("server = \"127.0.0.1:{}\"", world.port)), "{agent}");

    world.serve();
    let dir = world.path("b1");
    let dir = dir.display();
    let join =
        format!("--host b1 --address 127.0.0.1 --agent-data-dir {dir}/data --run-dir {dir}/run --no-start");
    let joined = world.sterna(&format!("{line} {join} --agent-config-out {dir}/agent.toml"));
    assert_eq!(joined.code, 0, "{joined:?}");
    let hosts = json(&world.ok("host list -o json"));
    let names: Vec<_> = hosts.as_array().unwrap().iter().map(|host| host["meta"]["name"].clone()).collect();
    assert_eq!(names, ["a1", "b1"]);

    // The line works once, and says so.
    let again = world.sterna(&format!("{line} {join} --host c1 --agent-config-out {dir}/other.toml"));
    assert_ne!(again.code, 0);
    let again = world.sterna(&format!(
        "{line} --host c1 --address 127.0.0.1 --agent-data-dir {dir}/c --run-dir {dir}/c --no-start --agent-config-out {dir}/c.toml"
    ));
    assert_eq!(again.code, 1);
    assert!(again.talk.contains("used") && again.talk.contains("sterna host token"), "{}", again.talk);
    assert!(!world.path("b1/c.toml").exists());
}

#[test]
fn the_first_host_serves_the_default_pool() {
    let mut world = World::new();
    let init = world.init("--host a1 --network 10.77.0.0/24");
    assert_eq!(init.code, 0, "{init:?}");
    world.serve();
    let pool = json(&world.ok("pool show default -o json"));
    assert_eq!(pool["spec"]["kind"]["type"], "nbd");
    assert_eq!(pool["spec"]["kind"]["host"], "a1");
    assert_eq!(pool["spec"]["kind"]["path"], world.path("agent/pools/default").to_str().unwrap());
    assert!(world.ok("network list").contains("10.77.0.0/24"));
    assert!(world.ok("pool list").contains("nbd"));
}

#[test]
fn a_shared_folder_is_the_default_pool_when_there_is_one() {
    let mut world = World::new();
    let init = world.init("--server-only --shared-dir /srv/volumes -o json");
    assert_eq!(init.code, 0, "{init:?}");
    let data = json(&init.data);
    assert_eq!(data["join"], format!("sterna agent join {}", data["token"].as_str().unwrap()));
    assert!(!world.path("agent.toml").exists());
    world.serve();
    let pool = json(&world.ok("pool show default -o json"));
    assert_eq!(pool["spec"]["kind"], json(r#"{"type": "shared-dir", "path": "/srv/volumes"}"#));
    assert_eq!(world.sterna("host list").talk, "no hosts\n");
}

#[test]
fn init_may_be_repeated_and_keeps_what_it_made() {
    let mut world = World::new();
    assert_eq!(world.init("--host a1").code, 0);
    let context = std::fs::read(world.path("cli/config.toml")).unwrap();
    let certificate = std::fs::read(world.path("agent/host.pem")).unwrap();
    let again = world.init("--host a1");
    assert_eq!(again.code, 0, "{again:?}");
    assert!(again.talk.contains("joined before"), "{}", again.talk);
    assert_eq!(std::fs::read(world.path("cli/config.toml")).unwrap(), context);
    assert_eq!(std::fs::read(world.path("agent/host.pem")).unwrap(), certificate);
    world.serve();
    // A server that runs is not set up a second time beside itself.
    let beside = world.init("--host a1");
    assert_eq!(beside.code, 1);
    assert!(beside.talk.contains("sterna server status"), "{}", beside.talk);
}

#[test]
fn a_token_of_another_server_is_refused_before_anything_is_sent() {
    let (mut one, other) = (World::new(), World::new());
    assert_eq!(one.init("--server-only").code, 0);
    let line = other.init("--server-only").data;
    one.serve();
    // The other's token, pointed at this server: the pin does not fit.
    let wrong = line.trim().replace(&other.port.to_string(), &one.port.to_string());
    let wrong = wrong.strip_prefix("sterna ").unwrap();
    let dir = one.path("x");
    let dir = dir.display();
    let ran = one.sterna(&format!(
        "{wrong} --host x --address 127.0.0.1 --no-start --agent-data-dir {dir} --agent-config-out {dir}/agent.toml"
    ));
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.talk.contains("not the one that made this token"), "{}", ran.talk);
    assert!(!one.path("x/agent.toml").exists());
    let cut = one.sterna("agent join 127.0.0.1:1/abc --no-start");
    assert_eq!(cut.code, 2, "{cut:?}");
}

#[test]
fn the_command_line_speaks_the_servers_language() {
    let mut world = World::new();
    assert_eq!(world.init("--server-only").code, 0);
    world.serve();
    world.ok("datacentre create north --location here -l site=n");
    let file = world.path("web.yaml");
    let text = "kind: network\nname: lan\nlabels: {tier: web}\nspec: {kind: {type: overlay, cidr: 10.9.0.0/24}}\n\
                ---\nkind: pool\nname: fast\nspec: {kind: {type: shared-dir, path: /srv/fast}}\n";
    std::fs::write(&file, text).unwrap();
    let dry = world.ok(&format!("apply --dry-run -f {}", file.display()));
    assert!(dry.contains("network lan would be created"), "{dry}");
    world.ok(&format!("apply -f {}", file.display()));
    let same = world.ok(&format!("apply --dry-run -f {}", file.display()));
    assert_eq!(same, "pool fast is as described\nnetwork lan is as described\n");
    std::fs::write(&file, text.replace("tier: web", "tier: db").replace("10.9.0.0", "10.8.0.0")).unwrap();
    let changed = world.ok(&format!("apply --dry-run -f {}", file.display()));
    assert!(changed.contains("~ labels.tier: web -> db"), "{changed}");
    assert!(changed.contains("~ spec.kind.cidr: 10.9.0.0/24 -> 10.8.0.0/24"), "{changed}");
    world.ok(&format!("apply -f {}", file.display()));
    assert!(world.ok("network list -l tier=db").contains("10.8.0.0/24"));

    let vm = world.sterna("vm create web --image tiny --no-wait");
    assert_eq!(vm.code, 1, "{vm:?}");
    assert!(vm.talk.contains("tiny") && vm.talk.contains("hint:"), "{}", vm.talk);
    world.ok("volume create data --size 1GiB --no-wait");
    world.ok("vm create web --volume data --stopped --no-wait -l tier=web");
    let set = world.sterna("vm set web --memory 512MiB --set-label tier=db --notes hello");
    assert_eq!(set.code, 0, "{set:?}");
    let web = json(&world.ok("vm show web -o json"));
    assert_eq!((&web["spec"]["memory"], &web["meta"]["labels"]["tier"]), (&"512MiB".into(), &"db".into()));
    assert!(world.ok("vm list -l tier=db").contains("web"));
    assert!(world.ok("vm why web").contains("web is"));
    world.ok("nic add web --network lan");
    assert!(world.ok("nic list web").contains("lan"));
    world.ok("nic remove web 0 --yes");

    let secret = world.ok("token create reader");
    assert_eq!(secret.trim().len(), 64);
    assert!(world.ok("token list").contains("viewer"));
    world.ok("token delete reader --yes");
    assert!(world.ok("audit list").contains("POST"));
    assert!(world.ok("operation list").contains("vm/web"));
    assert!(world.ok("cluster list").contains("north"));
    world.sterna("event list --object vm/web");
    let refused = world.sterna("datacentre delete nowhere --yes");
    assert_eq!(refused.code, 1, "{refused:?}");
}

#[test]
fn an_image_is_sent_and_checked() {
    let mut world = World::new();
    assert_eq!(world.init("--server-only").code, 0);
    world.serve();
    let file = world.path("disk.raw");
    std::fs::write(&file, vec![7_u8; 3 << 20]).unwrap();
    world.ok(&format!("image import small --file {}", file.display()));
    let image = json(&world.ok("image show small -o json"));
    assert_eq!((&image["report"]["state"], &image["report"]["size"]), (&"ready".into(), &"3MiB".into()));
    assert!(world.ok("image list").contains("raw"));
    let wrong = "0".repeat(64);
    let refused = world.sterna(&format!("image import other --file {} --sha256 {wrong}", file.display()));
    assert_eq!(refused.code, 1, "{refused:?}");
    world.ok("image delete small --yes");
}

#[test]
fn events_are_printed_as_they_happen() {
    use std::io::{BufRead, BufReader};
    let mut world = World::new();
    assert_eq!(world.init("--server-only").code, 0);
    world.serve();
    let mut command = world.command("event follow -o json");
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut told = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut told).unwrap();
    assert!(told.contains("waiting"), "{told}");
    let token = json(&world.ok("host token b1 -o json"))["token"].as_str().unwrap().to_owned();
    let dir = world.path("b1");
    let dir = dir.display();
    world.ok(&format!(
        "agent join {token} --host b1 --address 127.0.0.1 --no-start --agent-data-dir {dir} --agent-config-out {dir}/agent.toml"
    ));
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((json(&line)["name"].as_str(), json(&line)["what"].as_str()), (Some("b1"), Some("joined")));
}

#[test]
fn a_host_leaves_and_what_sterna_put_there_is_gone() {
    // In a network of its own: leaving removes network devices.
    let mut world = World::apart();
    assert_eq!(world.init("--server-only").code, 0);
    world.serve();
    let token = world.ok("host token b1");
    let dir = world.path("b1");
    let here = dir.display();
    let options =
        format!("--host b1 --address 127.0.0.1 --no-start --agent-data-dir {here}/data --run-dir {here}/run");
    world.ok(&format!(
        "{} {options} --agent-config-out {here}/agent.toml",
        token.trim().strip_prefix("sterna ").unwrap()
    ));
    std::fs::create_dir_all(dir.join("data/pools/default")).unwrap();
    let leave = format!("host leave --settings {here}/agent.toml");
    let unasked = world.sterna(&leave);
    assert_eq!(unasked.code, 2, "{unasked:?}");
    assert!(world.ok("host list").contains("b1"));
    let left = world.sterna(&format!("{leave} --yes"));
    assert_eq!(left.code, 0, "{left:?}");
    assert!(left.talk.contains("kept: the disks"), "{}", left.talk);
    assert_eq!(world.sterna("host list").talk, "no hosts\n");
    let rest: Vec<_> =
        std::fs::read_dir(dir.join("data")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(rest, ["pools"]);
    assert!(!dir.join("agent.toml").exists());
    let again = world.sterna(&format!("{leave} --yes"));
    assert_eq!(again.code, 1);
}

#[test]
fn services_start_without_systemd_and_end_when_told() {
    if std::path::Path::new("/run/systemd/system").exists() {
        return; // Here systemd would be given units that belong to no package.
    }
    let world = World::new();
    let dir = world.path("");
    let dir = dir.display();
    let started = world.sterna(&format!(
        "server init --server-only --listen 127.0.0.1:{} --data-dir {dir}/server --config-out {dir}/server.toml --run-dir {dir}/run",
        world.port
    ));
    assert_eq!(started.code, 0, "{started:?}");
    assert!(started.talk.contains("not after a reboot"), "{}", started.talk);
    world.eventually("the server answers", |world| world.sterna("server status").code == 0);
    // It votes in datacentres with too few hosts, and was started with the server.
    assert!(started.talk.contains("guard beside the server: started"), "{}", started.talk);
    let socket = world.path("run/guard/guard.sock");
    let answers = || std::os::unix::net::UnixStream::connect(&socket).is_ok();
    world.eventually("the guard answers", |_| answers());
    let end = |role: &str| {
        let pid = std::fs::read_to_string(world.path(&format!("run/{role}.pid"))).unwrap().parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    };
    end("guard");
    world.eventually("the guard has ended", |_| !answers());
    end("server");
    world.eventually("the server has ended", |world| world.sterna("server status").code == 4);
}

#[test]
fn a_backup_makes_a_server_of_another_machine() {
    let (mut old, mut new) = (World::new(), World::new());
    assert_eq!(old.init("--server-only").code, 0);
    old.serve();
    old.ok("datacentre create north --location here");
    let file = new.path("one.backup");
    let file = file.display();
    old.ok(&format!("server backup --settings {} --to {file}", old.path("server.toml").display()));
    let again =
        old.sterna(&format!("server backup --settings {} --to {file}", old.path("server.toml").display()));
    assert!(again.code == 1 && again.talk.contains("exists already"), "{again:?}");
    // What came after it is not in it.
    old.ok("datacentre create south");

    let settings = new.path("server.toml");
    let restored = new.sterna(&format!(
        "server restore {file} --settings {} --data-dir {}",
        settings.display(),
        new.path("server").display()
    ));
    assert_eq!(restored.code, 0, "{restored:?}");
    assert!(restored.talk.contains("written from the backup"), "{}", restored.talk);
    // Another port, because both are one machine here; the person's token and CA are the old ones.
    let moved = |text: String| {
        let text = text.replace(&old.port.to_string(), &new.port.to_string());
        text.replace(&old.path("").display().to_string(), &new.path("").display().to_string())
    };
    std::fs::write(&settings, moved(std::fs::read_to_string(&settings).unwrap())).unwrap();
    std::fs::create_dir(new.path("cli")).unwrap();
    std::fs::copy(old.path("cli/ca.pem"), new.path("cli/ca.pem")).unwrap();
    let context = std::fs::read_to_string(old.path("cli/config.toml")).unwrap();
    std::fs::write(new.path("cli/config.toml"), moved(context)).unwrap();
    new.serve();
    let names = |world: &World| {
        let list = json(&world.ok("datacentre list -o json"));
        list.as_array().unwrap().iter().map(|it| it["meta"]["name"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(&new), ["\"default\"", "\"north\""]);
    // There is no host to wait for.
    new.eventually("the recovery ends", |world| world.sterna("server recover").talk.contains("recovered at"));
    let (old, new) = (json(&old.ok("server show -o json")), json(&new.ok("server show -o json")));
    assert_ne!(old["incarnation"], new["incarnation"]);
    assert_eq!(new["restored"]["incarnation"], old["incarnation"]);
    assert_eq!((&old["mode"], &new["mode"]), (&"normal".into(), &"normal".into()));
}

#[test]
fn alerts_are_listed_and_tested_from_the_command_line() {
    let mut world = World::new();
    assert_eq!(world.init("--server-only").code, 0);
    let logs = std::os::unix::net::UnixDatagram::bind(world.path("log")).unwrap();
    let settings = world.path("server.toml");
    let text = std::fs::read_to_string(&settings).unwrap();
    let receiver = format!("\n[alerts.syslog.near]\nto = \"{}\"\n", world.path("log").display());
    std::fs::write(&settings, text + &receiver).unwrap();
    world.serve();
    assert_eq!(world.sterna("alert list").talk, "no alerts\n");
    assert!(world.ok("alert receivers").contains("syslog/near"));
    assert!(world.ok("alert test").contains("syslog/near  yes"));
    let mut buffer = [0; 2048];
    let length = logs.recv(&mut buffer).unwrap();
    assert!(String::from_utf8_lossy(&buffer[..length]).contains("nothing is wrong"));
    let refused = world.sterna("alert test mail/nobody");
    assert!(refused.code == 1 && refused.talk.contains("does not exist"), "{refused:?}");
    let refused = world.sterna("alert ack nothing-fires");
    assert!(refused.code == 1 && refused.talk.contains("does not exist"), "{refused:?}");
    // Where nobody listens, that is said.
    drop(logs);
    let failed = world.sterna("alert test syslog/near");
    assert!(failed.code == 1 && failed.data.contains("no") && failed.talk.contains("[alerts]"), "{failed:?}");
}

#[test]
fn a_restore_that_is_killed_leaves_all_or_nothing() {
    let world = World::new();
    assert_eq!(world.init("--server-only").code, 0);
    let (file, settings) = (world.path("one.backup"), world.path("server.toml"));
    let (file, settings) = (file.display(), settings.display());
    world.ok(&format!("server backup --settings {settings} --to {file}"));
    let (above, data) = (world.path("there"), world.path("there/server"));
    let restore = format!("server restore {file} --settings {settings} --data-dir {}", data.display());
    let began = std::time::Instant::now();
    world.ok(&restore);
    let takes = began.elapsed();
    std::fs::remove_dir_all(&data).unwrap();
    let mut whole = 0;
    for part in 0..40 {
        let mut child = world.command(&restore).stderr(std::process::Stdio::null()).spawn().unwrap();
        let began = std::time::Instant::now();
        // The moment of the kill goes through all that it does, and a little beyond.
        while began.elapsed() < takes * part / 36 {
            std::thread::yield_now();
        }
        let _ = child.kill();
        child.wait().unwrap();
        if data.exists() {
            whole += 1;
            for name in ["ca.pem", "ca.key"] {
                assert_eq!(
                    std::fs::read(data.join(name)).unwrap(),
                    std::fs::read(world.path("server").join(name)).unwrap()
                );
            }
            drop(sterna_store::Sqlite::open(&data.join("store.db")).unwrap());
            std::fs::remove_dir_all(&data).unwrap();
        }
    }
    assert!(whole < 40, "nothing was killed in time");
    // What the killed ones left is taken away by the next.
    world.ok(&restore);
    let left: Vec<_> = std::fs::read_dir(&above).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["server"]);
}
