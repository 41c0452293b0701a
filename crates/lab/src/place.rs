//! Names and addresses of a lab. Pure: what it says is made by `topology`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

pub use crate::site::{Host, Pair, Site};

pub const DEFAULT_NAME: &str = "sterna";
pub const DEFAULT_NET: &str = "10.91.0.0/16";
pub const DEFAULT_DIR: &str = "/var/lib/sterna-lab";
/// The port that the server serves on.
pub const DEFAULT_PORT: u16 = 7443;
/// Device names have 15 characters; `-lab` follows the name.
const NAME_MAX: usize = 11;

/// One lab. Several can stand side by side: with other names, nets and ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lab {
    pub name: String,
    /// The first two bytes of every address.
    pub net: [u8; 2],
    pub port: u16,
    /// In the order of their letters; the server is in the first.
    #[serde(default = "Site::first_two")]
    pub datacentres: Vec<Site>,
    #[serde(skip)]
    pub dir: PathBuf,
}

impl Lab {
    pub fn new(name: &str, net: &str, port: u16, dir: &Path) -> Result<Self> {
        let is_good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            (1..=NAME_MAX).contains(&name.len()) && name.chars().all(is_good) && !name.starts_with('-'),
            "`{name}` is no name for a lab: 1 to {NAME_MAX} of a-z, 0-9 and -"
        );
        let dir = std::path::absolute(dir)?;
        Ok(Self { name: name.to_owned(), net: parse_net(net)?, port, datacentres: Site::first_two(), dir })
    }

    /// The same with other datacentres than a and b.
    pub fn with_datacentres(self, sites: &[Site]) -> Result<Self> {
        let (given, mut datacentres) = (sites.len(), sites.to_vec());
        datacentres.sort_unstable();
        datacentres.dedup();
        ensure!(datacentres.len() == given, "a datacentre is named twice");
        ensure!(given >= 2, "a lab has two datacentres at least");
        Ok(Self { datacentres, ..self })
    }

    /// All machines that run VMs.
    pub fn hosts(&self) -> impl Iterator<Item = Host> + '_ {
        self.datacentres.iter().copied().flat_map(Host::of)
    }

    /// The datacentre that the server and this machine are in.
    #[must_use]
    pub fn home(&self) -> Site {
        self.datacentres[0]
    }

    /// A line each.
    pub fn pairs(&self) -> impl Iterator<Item = Pair> + '_ {
        let later = |first: Site| self.datacentres.iter().copied().filter(move |last| *last > first);
        let sites = self.datacentres.iter().copied();
        sites.flat_map(move |first| later(first).filter_map(move |last| Pair::new(first, last)))
    }

    /// The line that is meant; in a lab that has only one it need not be named.
    pub fn pair(&self, named: Option<Pair>) -> Result<Pair> {
        let all: Vec<_> = self.pairs().collect();
        let names = || all.iter().map(Pair::to_string).collect::<Vec<_>>().join(", ");
        match (named, all.as_slice()) {
            (None, [only]) => Ok(*only),
            (None, _) => bail!("say which line: {}", names()),
            (Some(pair), all) if all.contains(&pair) => Ok(pair),
            (Some(pair), _) => bail!("there is no line {pair}; the lab has {}", names()),
        }
    }

    /// What [`Lab::save`] wrote, if a lab was begun in `dir`.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let dir = std::path::absolute(dir)?;
        let file = dir.join("lab.json");
        let Some(bytes) = sterna_base::file::read_if_there(&file).context("read lab.json")? else {
            return Ok(None);
        };
        let lab: Self =
            serde_json::from_slice(&bytes).with_context(|| format!("understand {}", file.display()))?;
        Ok(Some(Self { dir, ..lab }))
    }

    pub fn save(&self) -> Result<()> {
        std::fs::create_dir_all(&self.dir).with_context(|| format!("make {}", self.dir.display()))?;
        let bytes = serde_json::to_vec_pretty(self)?;
        sterna_base::file::write_atomically(&self.dir.join("lab.json"), &bytes, 0o644)
            .context("write lab.json")
    }

    #[must_use]
    pub fn address(&self, site: Site, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(self.net[0], self.net[1], site.third_byte(), last)
    }

    /// The network of the whole lab.
    #[must_use]
    pub fn cidr(&self) -> String {
        format!("{}.{}.0.0/16", self.net[0], self.net[1])
    }

    #[must_use]
    pub fn site_cidr(&self, site: Site) -> String {
        format!("{}/24", self.address(site, 0))
    }

    #[must_use]
    pub fn switch_space(&self, site: Site) -> String {
        format!("{}-sw-{}", self.name, site.letter())
    }

    #[must_use]
    pub fn switch_address(&self, site: Site) -> Ipv4Addr {
        self.address(site, 1)
    }

    #[must_use]
    pub fn host_space(&self, host: Host) -> String {
        format!("{}-{}", self.name, host.name())
    }

    /// The namespace of the host with this name, such as `a1`.
    #[must_use]
    pub fn host_space_of(&self, name: &str) -> Option<String> {
        self.host(name).map(|host| self.host_space(host))
    }

    #[must_use]
    pub fn host(&self, name: &str) -> Option<Host> {
        self.hosts().find(|host| host.name() == name)
    }

    #[must_use]
    pub fn host_address(&self, host: Host) -> Ipv4Addr {
        self.address(host.site, 10 + host.number)
    }

    /// The device by which the machine itself joins the first datacentre.
    #[must_use]
    pub fn root_device(&self) -> String {
        format!("{}-lab", self.name)
    }

    /// Where the server is reached by the hosts.
    #[must_use]
    pub fn root_address(&self) -> Ipv4Addr {
        self.address(self.home(), 2)
    }

    /// A switch's end of a line.
    #[must_use]
    pub fn wan_address(&self, pair: Pair, end: Site) -> Ipv4Addr {
        let last = if end == pair.ends()[0] { 1 } else { 2 };
        Ipv4Addr::new(self.net[0], self.net[1], 255, 4 * pair.number() + last)
    }

    /// Every namespace of the lab.
    #[must_use]
    pub fn spaces(&self) -> Vec<String> {
        let hosts = self.hosts().map(|host| self.host_space(host));
        hosts.chain(self.datacentres.iter().map(|site| self.switch_space(*site))).collect()
    }

    /// The folder that the hosts of a site share.
    #[must_use]
    pub fn shared(&self, site: Site) -> PathBuf {
        self.dir.join(format!("shared-{}", site.letter()))
    }

    #[must_use]
    pub fn host_dir(&self, host: Host) -> PathBuf {
        self.dir.join(host.name())
    }

    /// What lasts until the next boot: on tmpfs where the machine has one.
    #[must_use]
    pub fn run_root(&self) -> PathBuf {
        Path::new("/run").join(format!("{}-lab", self.name))
    }

    #[must_use]
    pub fn run_dir(&self, host: Host) -> PathBuf {
        self.run_root().join(host.name())
    }

    #[must_use]
    pub fn log(&self, role: &str) -> PathBuf {
        self.dir.join("log").join(format!("{role}.log"))
    }

    /// Where a line's relay takes orders.
    #[must_use]
    pub fn wan_socket(&self, pair: Pair) -> PathBuf {
        self.dir.join(format!("wan-{pair}.sock"))
    }

    /// What a line's relay keeps over its own end.
    #[must_use]
    pub fn wan_settings(&self, pair: Pair) -> PathBuf {
        self.dir.join(format!("wan-{pair}.json"))
    }

    /// What `sterna` is told to find the lab's server.
    #[must_use]
    pub fn cli_config(&self) -> PathBuf {
        self.dir.join("cli.toml")
    }
}

fn parse_net(text: &str) -> Result<[u8; 2]> {
    let address: Option<Ipv4Addr> = text.strip_suffix("/16").and_then(|base| base.parse().ok());
    match address.map(|address| address.octets()) {
        Some([a, b, 0, 0]) if (1..224).contains(&a) && a != 127 => Ok([a, b]),
        _ => bail!("`{text}` is no net for a lab: a /16 such as {DEFAULT_NET}"),
    }
}

/// Whether two networks have addresses in common.
#[must_use]
pub fn overlaps(net: [u8; 2], route: &str) -> bool {
    let (base, prefix) = route.split_once('/').unwrap_or((route, "32"));
    let (Ok(IpAddr::V4(base)), Ok(prefix)) = (base.parse(), prefix.parse::<u32>()) else { return false };
    if prefix == 0 || prefix > 32 {
        return false;
    }
    let mask = u32::MAX << (32 - prefix.min(16));
    (base.to_bits() ^ Ipv4Addr::new(net[0], net[1], 0, 0).to_bits()) & mask == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_from_the_net() {
        let lab = Lab::new("x", "10.92.0.0/16", 1, Path::new("/tmp/x")).unwrap();
        let hosts: Vec<_> =
            lab.hosts().map(|h| format!("{} {}", lab.host_space(h), lab.host_address(h))).collect();
        assert_eq!(hosts, ["x-a1 10.92.1.11", "x-a2 10.92.1.12", "x-b1 10.92.2.11", "x-b2 10.92.2.12"]);
        assert_eq!(lab.site_cidr("b".parse().unwrap()), "10.92.2.0/24");
    }

    fn lab(datacentres: &str) -> Result<Lab> {
        let sites: Result<Vec<Site>> = datacentres.split(',').map(str::parse).collect();
        Lab::new("x", DEFAULT_NET, 1, Path::new("/tmp/x")).unwrap().with_datacentres(&sites?)
    }

    #[test]
    fn each_two_datacentres_have_a_line_with_addresses_of_its_own() {
        let lab = lab("c,a,b").unwrap();
        let ends = |pair: Pair| pair.ends().map(|end| lab.wan_address(pair, end).to_string()).join(" ");
        let lines: Vec<_> = lab.pairs().map(|pair| format!("{pair} {}", ends(pair))).collect();
        assert_eq!(
            lines,
            ["a-b 10.91.255.1 10.91.255.2", "a-c 10.91.255.5 10.91.255.6", "b-c 10.91.255.9 10.91.255.10"]
        );
        assert_eq!(lab.home().letter(), 'a');
    }

    #[test]
    fn the_largest_lab_has_different_addresses_on_all_its_lines() {
        let lab = lab("a,b,c,d,e,f,g,h").unwrap();
        let all = lab.pairs().flat_map(|pair| pair.ends().map(|end| lab.wan_address(pair, end)));
        assert_eq!(all.collect::<std::collections::BTreeSet<_>>().len(), 2 * 28);
    }

    #[test]
    fn datacentres_that_cannot_be_are_refused() {
        for (datacentres, why) in
            [("a", "two"), ("a,b,a", "twice"), ("a,i", "a to h"), ("a,berlin", "a to h")]
        {
            let error = lab(datacentres).unwrap_err().to_string();
            assert!(error.contains(why), "{datacentres}: {error}");
        }
    }

    #[test]
    fn a_line_is_found_by_either_order_and_must_be_named_where_there_are_several() {
        let three = lab("a,b,c").unwrap();
        assert_eq!(three.pair(Some("c-a".parse().unwrap())).unwrap().to_string(), "a-c");
        assert!(three.pair(None).unwrap_err().to_string().contains("a-b, a-c, b-c"));
        assert!(three.pair(Some("a-d".parse().unwrap())).is_err());
        assert_eq!(lab("a,b").unwrap().pair(None).unwrap().to_string(), "a-b");
        assert!("a-a".parse::<Pair>().is_err() && "ab".parse::<Pair>().is_err());
    }

    #[test]
    fn a_lab_that_was_begun_before_it_could_have_more_datacentres_has_two() {
        let begun: Lab = serde_json::from_str(r#"{"name":"x","net":[10,91],"port":1}"#).unwrap();
        assert_eq!(begun.datacentres, Site::first_two());
        let kept = serde_json::to_string(&lab("a,c").unwrap()).unwrap();
        assert!(kept.contains(r#""datacentres":["a","c"]"#), "{kept}");
    }

    #[test]
    fn names_and_nets_that_cannot_be_are_refused() {
        for (name, net) in
            [("", DEFAULT_NET), ("twelve-chars", DEFAULT_NET), ("a/b", DEFAULT_NET), ("x", "10.91.0.0/24")]
        {
            assert!(Lab::new(name, net, 1, Path::new("/tmp/x")).is_err(), "{name} {net}");
        }
        assert!(Lab::new("x", "10.91.1.0/16", 1, Path::new("/tmp/x")).is_err());
    }

    #[test]
    fn a_route_into_the_net_or_around_it_overlaps() {
        for (route, expected) in [
            ("10.91.7.0/24", true),
            ("10.91.0.0/16", true),
            ("10.0.0.0/8", true),
            ("10.91.3.4", true),
            ("10.92.0.0/16", false),
            ("192.0.2.0/24", false),
            ("default", false),
        ] {
            assert_eq!(overlaps([10, 91], route), expected, "{route}");
        }
    }
}
