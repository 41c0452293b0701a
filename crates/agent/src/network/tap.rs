//! Ports of VMs: persistent taps, owned by the user that QEMU runs as, marked with the VM's uid.

use uuid::Uuid;

use super::name::{self, TAP_MARK};
use super::world::World;
use super::{Error, Ready, tool};

/// A port as found on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    pub name: String,
    pub vm: Uuid,
    pub index: usize,
    /// The bridge it is on.
    pub bridge: Option<String>,
}

pub(super) async fn ensure(vm: Uuid, index: usize, network: &Ready, owner: u32) -> Result<String, Error> {
    let name = name::tap(vm, index);
    let mut lines = Vec::new();
    match alias_of(&name).await? {
        None => lines.push(format!("tuntap add dev {name} mode tap user {owner} vnet_hdr")),
        Some(alias) if alias == mark(vm, index) => {}
        // An end of the agent between making and marking leaves a port of our name without a mark.
        Some(alias) if alias.is_empty() => {}
        Some(_) => return Err(Error::Foreign { device: name }),
    }
    lines.push(format!(
        "link set dev {name} alias {} mtu {} addrgenmode none master {} up",
        mark(vm, index),
        network.mtu,
        network.bridge
    ));
    tool::ip_batch(&lines).await?;
    if let Some(vlan) = network.vlan {
        let only =
            [format!("vlan del dev {name} vid 1"), format!("vlan add dev {name} vid {vlan} pvid untagged")];
        tool::bridge_batch(&only[usize::from(vlan == 1)..]).await?;
    }
    Ok(name)
}

pub(super) async fn remove(name: &str) -> Result<(), Error> {
    match tool::run("ip", &["link", "del", "dev", name], "").await {
        Err(Error::Refused { text, .. }) if is_absence(&text) => Ok(()),
        other => other.map(drop),
    }
}

pub(super) fn list(world: &World) -> Vec<Tap> {
    let ours = world.links().filter(|link| link.info.kind == "tun").filter_map(|link| {
        let (vm, index) = read_mark(link.alias.as_deref()?)?;
        Some(Tap { name: link.name.clone(), vm, index, bridge: link.master.clone() })
    });
    ours.collect()
}

/// `None` when there is no such device.
async fn alias_of(name: &str) -> Result<Option<String>, Error> {
    // A start should not wait for a process that says what is nearly always so.
    if !is_device(name)? {
        return Ok(None);
    }
    match tool::run("ip", &["-json", "address", "show", "dev", name], "").await {
        Err(Error::Refused { text, .. }) if is_absence(&text) => Ok(None),
        Err(error) => Err(error),
        Ok(text) => {
            let world = World::parse(&text)?;
            Ok(world.link(name).map(|link| link.alias.clone().unwrap_or_default()))
        }
    }
}

/// From the kernel's list of this process's own network namespace.
pub(super) fn is_device(name: &str) -> Result<bool, Error> {
    let path = "/proc/thread-self/net/dev";
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::Io { action: format!("read {path}"), source })?;
    Ok(text.lines().filter_map(|line| line.split_once(':')).any(|(device, _)| device.trim() == name))
}

fn is_absence(text: &str) -> bool {
    text.contains("Cannot find device") || text.contains("does not exist")
}

fn mark(vm: Uuid, index: usize) -> String {
    format!("{TAP_MARK}{vm}:{index}")
}

fn read_mark(alias: &str) -> Option<(Uuid, usize)> {
    let (vm, index) = alias.strip_prefix(TAP_MARK)?.split_once(':')?;
    Some((vm.parse().ok()?, index.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_taps_are_ours() {
        let vm = Uuid::from_u128(5);
        let text = format!(
            r#"[{{"ifname":"t00000005-0","mtu":1350,"ifalias":"{}","linkinfo":{{"info_kind":"tun"}}}},
                {{"ifname":"tap0","mtu":1500,"ifalias":"vpn","linkinfo":{{"info_kind":"tun"}}}},
                {{"ifname":"tap1","mtu":1500,"linkinfo":{{"info_kind":"tun"}}}}]"#,
            mark(vm, 0)
        );
        let taps = list(&World::parse(&text).unwrap());
        assert_eq!(taps, [Tap { name: "t00000005-0".to_owned(), vm, index: 0, bridge: None }]);
    }
}
