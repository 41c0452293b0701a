//! One lab for all tests of a file, one test at a time in it. It is removed when this process ends, however it ends.

#![allow(dead_code)] // Not every file of tests needs all of it.

pub mod console;
pub mod lost;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use sterna_base::units::Bytes;
use sterna_client::Filter;
use sterna_client::object::New;
use sterna_client::vm::{Ask, Boot, Vm};
use sterna_lab::bench::world::World;
pub use sterna_lab::bench::world::until;
use sterna_lab::member;
use sterna_lab::place::{Host, Lab};
use sterna_lab::user::{self, User};
use sterna_model::meta::Name;
use sterna_model::status::VmState;

/// Small guests boot faster.
pub const MEMORY: Bytes = Bytes::mib(128);
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a lab stands, apart from all others.
pub struct Plot {
    pub name: &'static str,
    pub net: &'static str,
    pub port: u16,
    /// One letter each.
    pub datacentres: &'static str,
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub data: String,
    pub talk: String,
}

/// The lab of this process, once a test needed it.
static LAB: Mutex<Option<Home>> = Mutex::new(None);

struct Home {
    world: World,
    /// A test failed: nothing of it is used again.
    is_spoilt: bool,
    /// Removes the lab when the pipe to it closes, which the end of this process does.
    _remover: Child,
}

/// Runs a test in the lab: whole, empty and alone.
pub fn run<T>(plot: &Plot, test: impl AsyncFnOnce(&World) -> Result<T>) -> Result<T> {
    let mut home = LAB.lock().unwrap_or_else(PoisonError::into_inner);
    if home.is_none() {
        *home = Some(build(plot)?);
    }
    let Home { world, is_spoilt, .. } = home.as_mut().context("the lab is up")?;
    let world = &*world;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let keeps = if *is_spoilt { "" } else { SHARED };
    // Also after a panic.
    *is_spoilt = true;
    let outcome = runtime.block_on(async {
        let began = Instant::now();
        tidy(world, keeps).await.context("tidy the lab before the test")?;
        let tidied = began.elapsed().as_secs_f64();
        let outcome = test(world).await;
        println!("tidied in {tidied:.1} s, all in {:.1} s", began.elapsed().as_secs_f64());
        if outcome.is_err() {
            tell(world).await;
        }
        outcome
    })?;
    *is_spoilt = false;
    Ok(outcome)
}

/// One user of labs on a machine at a time, whatever checkout it runs from: they would spoil each other's figures, and
/// one would remove the other's lab. Held as long as the file is open anywhere; nothing is left of it.
fn alone() -> Result<File> {
    let folder = Path::new(sterna_lab::place::DEFAULT_DIR).parent().context("labs lie in a folder")?;
    let lock = File::open(folder)?;
    flock(&lock, FlockOperation::LockExclusive).context("wait until other tests have removed their lab")?;
    Ok(lock)
}

fn build(plot: &Plot) -> Result<Home> {
    let lock = alone()?;
    // Whatever an earlier run could not remove.
    expect(&sterna_lab(plot, "down"))?;
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"cat >/dev/null; "$0" lab down --name "$1"; rm -rf "${0%/*}""#])
        .arg(binary()?)
        .arg(plot.name);
    // It has the lock until nothing is left.
    command.stdin(Stdio::piped()).stdout(Stdio::from(lock)).stderr(Stdio::null());
    let remover = std::os::unix::process::CommandExt::process_group(&mut command, 0).spawn()?;
    let up = format!("up --net {} --port {} --datacentres {}", plot.net, plot.port, plot.datacentres);
    expect(&sterna_lab(plot, &up))?;
    let lab = Lab::load(Path::new(&format!("{}-{}", sterna_lab::place::DEFAULT_DIR, plot.name)))?;
    let lab = lab.context("the lab left no record")?;
    let world = World { user: User::of(&lab)?, lab, image: image()?, program: "qemu-system-x86_64".into() };
    Ok(Home { world, is_spoilt: false, _remover: remover })
}

/// A verb of the lab itself.
pub fn sterna_lab(plot: &Plot, line: &str) -> Ran {
    let mut words = line.split_whitespace();
    let mut command = Command::new(binary().expect("a copy of the binary"));
    command.arg("lab").args(words.next()).args(["--name", plot.name]).args(words);
    ran(command.env_remove("STERNA_LAB_DIR"))
}

/// A demo in a lab of its own, which must be gone afterwards; what it printed.
pub fn demo_once(plot: &Plot, which: &str) -> Result<String> {
    // The lab's addresses are those it was begun with.
    let begun = sterna_lab(plot, &format!("up --network-only --net {} --port {}", plot.net, plot.port));
    ensure!(begun.code == 0, "{}", begun.talk);
    let shown = sterna_lab(plot, &format!("demo {which} --once --image {}", image()?.display()));
    let spaces = ran(Command::new("ip").args(["netns", "list"])).data;
    let folder = PathBuf::from(format!("{}-{}", sterna_lab::place::DEFAULT_DIR, plot.name));
    let is_left = spaces.contains(plot.name) || folder.exists();
    // Also when it failed half-way.
    sterna_lab(plot, "down");
    ensure!(shown.code == 0, "{}{}", shown.data, shown.talk);
    ensure!(!is_left && member::all(&folder).is_empty(), "something was left: {spaces}");
    Ok(shown.data)
}

/// A command of a user of the lab.
pub fn sterna(world: &World, line: &str) -> Ran {
    let mut command = Command::new(binary().expect("a copy of the binary"));
    ran(command.args(line.split_whitespace()).env("STERNA_CONFIG", world.lab.cli_config()))
}

/// The same, where it must succeed; what it printed for programs and for people.
pub fn ok(world: &World, line: &str) -> Result<Ran> {
    let ran = sterna(world, line);
    ensure!(ran.code == 0, "{line}: {} {}", ran.code, ran.talk);
    Ok(ran)
}

pub fn ran(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().expect("run a command");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: status.code().unwrap_or(-1), data: text(stdout), talk: text(stderr) }
}

fn expect(ran: &Ran) -> Result<()> {
    ensure!(ran.code == 0, "the lab: {}", ran.talk);
    Ok(())
}

/// A second name of the binary: another build may replace the first while the lab runs.
pub fn binary() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bin-{}", std::process::id()));
    let binary = folder.join("sterna");
    if !binary.exists() {
        std::fs::create_dir_all(&folder)?;
        std::fs::hard_link(env!("CARGO_BIN_EXE_sterna"), &binary).context("keep the binary")?;
    }
    Ok(binary)
}

pub fn image() -> Result<PathBuf> {
    let usual = || concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/images/tiny.qcow2").into();
    let image = std::env::var_os("STERNA_TINY_IMAGE").map_or_else(usual, PathBuf::from);
    ensure!(image.is_file(), "there is no guest image at {}; make it with `./dev image`", image.display());
    Ok(image)
}

/// What an earlier test left, also one that failed, is no matter of the next.
async fn tidy(world: &World, keeps: &str) -> Result<()> {
    for member in member::all(&world.lab.dir) {
        member.signal(Signal::CONT);
    }
    until(PATIENCE, "the server to answer", async || Ok(world.user.client.health().await.is_ok())).await?;
    for host in world.lab.hosts() {
        world.user.client.hosts().undrain(&name(&host.name())).await?;
    }
    let vms = world.user.client.vms();
    let others = async || -> Result<Vec<Vm>> {
        let all = vms.list(&Filter::default()).await?;
        Ok(all.into_iter().filter(|vm| vm.name().as_str() != keeps).collect())
    };
    for vm in others().await? {
        vms.delete(vm.name()).await?;
    }
    until(PATIENCE, "all hosts to be ready and no VM to be left", async || {
        let hosts = world.user.client.hosts().list(&Filter::default()).await?;
        let ready =
            hosts.iter().filter(|host| host.status.as_ref().is_some_and(|status| status.state == "ready"));
        let volumes = world.user.client.volumes().list(&Filter::default()).await?;
        let is_of_others = |volume: &Name| !volume.as_str().starts_with(&format!("{keeps}-"));
        Ok(ready.count() == world.lab.hosts().count()
            && others().await?.is_empty()
            && !volumes.iter().any(|volume| is_of_others(volume.name())))
    })
    .await
}

/// For the one who looks for a failure.
async fn tell(world: &World) {
    for line in ["vm list", "host list", "migration list", "event list"] {
        let ran = sterna(world, line);
        println!("$ sterna {line}\n{}{}", ran.data, ran.talk);
    }
    for role in ["server".to_owned()].into_iter().chain(world.lab.hosts().map(Host::name)) {
        let ran = ran(Command::new("tail").args(["-n", "15"]).arg(world.lab.log(&role)));
        println!("--- log of {role}\n{}", ran.data);
    }
}

/// The VM of those tests that leave it running as they found it.
pub const SHARED: &str = "shared";

/// A VM that runs; its guest may still boot.
pub async fn running(world: &World, vm: &str) -> Result<(Vm, Host)> {
    let tiny = name("tiny");
    world.user.ensure_image(&tiny, &world.image).await?;
    let made = world.user.ensure_vm(&name(vm), &tiny, MEMORY).await?;
    let host = world.host_of(user::owner(&made)?)?;
    Ok((made, host))
}

/// A VM whose guest answers, asked from the host that it is on.
pub async fn serving(world: &World, vm: &str) -> Result<(Vm, Host)> {
    let (made, host) = running(world, vm).await?;
    world.guest_answers(host, user::address(&made)?).await?;
    Ok((made, host))
}

/// A VM that was started on a certain host and may run on any.
pub async fn running_on(world: &World, vm: &str, host: Host) -> Result<Vm> {
    let ask = Ask { image: Some(name("tiny")), memory: Some(MEMORY), ..Ask::default() };
    world.user.make_on(host, New::named(name(vm), ask), &Boot::default()).await
}

/// The other host of the same datacentre.
pub fn neighbour(world: &World, host: Host) -> Host {
    world.neighbour(host).expect("a datacentre has two hosts")
}

pub async fn get(world: &World, vm: &str) -> Result<Vm> {
    Ok(world.user.client.vms().get(&name(vm)).await?)
}

/// The VM as soon as it is in that state.
pub async fn until_state(world: &World, vm: &str, state: VmState) -> Result<Vm> {
    until(PATIENCE, &format!("{vm} to be {}", state.word()), async || {
        Ok(get(world, vm).await?.status.is_some_and(|status| status.state == state))
    })
    .await?;
    get(world, vm).await
}

pub fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}
