//! The command line of a checked [`Config`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use serde_json::{Value, json};

use super::block::seed_node;
use super::device::{self, SLOT_DISPLAY, SLOT_HOT_PORTS, SLOT_RNG, SLOT_SEED, SLOT_SERIAL, SLOT_WATCHDOG};
use super::{Accel, Config, Monitor};

/// All functions of the one slot that is kept for them.
pub(super) const HOT_PORTS_MAX: u8 = 8;

/// Everything QEMU may not do once it has started. Tried with boot and migration on 7.2 and 10.0.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, name: &str) {
        self.0.push(format!("-{name}").into());
    }

    fn pair(&mut self, name: &str, value: impl Into<OsString>) {
        self.flag(name);
        self.0.push(value.into());
    }

    fn json(&mut self, name: &str, value: &Value) {
        self.pair(name, sorted(value).to_string());
    }
}

/// The same value with its keys in order, so that the command line does not depend on how `serde_json` was
/// built.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let in_order: BTreeMap<&String, &Value> = map.iter().collect();
            Value::Object(in_order.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

pub(super) fn argv(config: &Config) -> Vec<OsString> {
    let mut args = Args::default();
    machine(config, &mut args);
    monitor(config, &mut args);
    channels(config, &mut args);
    hot_ports(config, &mut args);
    disks(config, &mut args);
    nics(config, &mut args);
    if config.paused {
        args.flag("S");
    }
    if config.incoming {
        args.pair("incoming", "defer");
    }
    args.0
}

fn machine(config: &Config, args: &mut Args) {
    args.flag("nodefaults");
    args.flag("no-user-config");
    args.pair("display", "none");
    args.pair("name", format!("guest={}", config.name));
    args.pair("uuid", config.uuid.as_str());
    // SMM needs more of the host's KVM than a guest without secure boot is worth.
    args.pair(
        "machine",
        format!("{},usb=off,vmport=off,smm=off,hpet=off,dump-guest-core=off", config.machine),
    );
    args.pair("accel", accel(config));
    args.pair("cpu", cpu(config));
    args.pair("smp", format!("cpus={0},maxcpus={0},sockets=1,cores={0},threads=1", config.vcpus));
    args.pair("m", format!("size={}k", config.memory_kib));
    args.pair("rtc", "base=utc,clock=host");
    args.pair("boot", "menu=off,strict=on");
    // A guest asleep in S3 can neither be moved nor asked to shut down.
    args.pair("global", "ICH9-LPC.disable_s3=1");
    args.pair("global", "ICH9-LPC.disable_s4=1");
    args.pair("action", "panic=pause");
    if config.watchdog {
        args.pair("action", "watchdog=none");
    }
    args.pair("sandbox", SANDBOX);
    args.pair("msg", "timestamp=on");
}

fn accel(config: &Config) -> String {
    match (config.accel, config.tcg_buffer_mib) {
        (Accel::Tcg, Some(mib)) => format!("tcg,tb-size={mib}"),
        (accel, _) => accel.as_str().to_owned(),
    }
}

fn cpu(config: &Config) -> String {
    let mut text = config.cpu.model.clone();
    for (feature, is_on) in &config.cpu.features {
        text.push_str(&format!(",{feature}={}", if *is_on { "on" } else { "off" }));
    }
    if config.cpu.enforce {
        text.push_str(",enforce");
    }
    text
}

fn monitor(config: &Config, args: &mut Args) {
    match &config.monitor {
        Monitor::Fd(fd) => args.pair("chardev", format!("socket,id=qmp,fd={fd},server=off")),
        Monitor::Socket(socket) => args.pair("chardev", listening("qmp", socket)),
    }
    args.pair("mon", "chardev=qmp,mode=control");
}

/// `-chardev` knows no JSON; a comma inside a value is written twice.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

fn listening(id: &str, socket: &Path) -> String {
    format!("socket,id={id},path={},server=on,wait=off", escaped(socket))
}

fn channels(config: &Config, args: &mut Args) {
    if let Some(serial) = &config.serial {
        let mut chardev = listening("serial0", &serial.socket);
        if let Some(log) = &serial.log {
            chardev.push_str(&format!(",logfile={},logappend=on", escaped(log)));
        }
        args.pair("chardev", chardev);
        args.json("device", &json!({ "driver": "isa-serial", "id": "serial", "chardev": "serial0" }));
    }
    if let Some(socket) = &config.guest_agent {
        args.pair("chardev", listening("agent0", socket));
        args.json("device", &at(SLOT_SERIAL, json!({ "driver": "virtio-serial-pci", "id": "channels" })));
        args.json(
            "device",
            &json!({
                "driver": "virtserialport", "id": "agent", "bus": "channels.0", "nr": 1,
                "chardev": "agent0", "name": "org.qemu.guest_agent.0",
            }),
        );
    }
    if let Some(socket) = &config.vnc {
        args.pair("vnc", format!("unix:{}", escaped(socket)));
        args.json("device", &at(SLOT_DISPLAY, json!({ "driver": "VGA", "id": "display", "vgamem_mb": 16 })));
    }
    args.json("device", &json!({ "driver": "pvpanic", "id": "panic" }));
    if config.watchdog {
        args.json("device", &at(SLOT_WATCHDOG, json!({ "driver": "i6300esb", "id": "watchdog" })));
    }
    args.json("object", &json!({ "qom-type": "rng-builtin", "id": "rng0" }));
    args.json("device", &at(SLOT_RNG, json!({ "driver": "virtio-rng-pci", "id": "rng", "rng": "rng0" })));
}

fn at(slot: u8, mut device: Value) -> Value {
    device::put_at(&mut device, slot);
    device
}

fn hot_ports(config: &Config, args: &mut Args) {
    for port in 0..config.hot_ports {
        let mut device = json!({
            "driver": "pcie-root-port",
            "id": device::hot_port_id(port),
            "bus": "pcie.0",
            "addr": format!("{SLOT_HOT_PORTS:#04x}.{port}"),
            // Distinct from each other and from 0, the number of the built-in slots.
            "chassis": port + 1,
            "slot": port + 1,
        });
        if port == 0 {
            device["multifunction"] = json!(true);
        }
        args.json("device", &device);
    }
}

fn disks(config: &Config, args: &mut Args) {
    for disk in &config.disks {
        args.json("blockdev", &disk.blockdev());
        args.json("device", &disk.device(config.vcpus));
    }
    if let Some(seed) = &config.seed {
        args.json("blockdev", &seed_node(seed));
        let device = json!({ "driver": "virtio-blk-pci", "id": "seed", "drive": "seed", "num-queues": 1 });
        args.json("device", &at(SLOT_SEED, device));
    }
}

fn nics(config: &Config, args: &mut Args) {
    for nic in &config.nics {
        args.json("netdev", &nic.netdev());
        args.json("device", &nic.device(&config.machine));
    }
}
