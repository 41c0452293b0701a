//! Packet filter rules: one table of each family named `sterna`, replaced whole.

use std::fmt::Write as _;

use sterna_model::network::Cidr;

use super::{Error, name, overlay, tool};

/// The whole rule set for these overlays (`nft -f` text). Applying it twice changes nothing.
pub(super) fn rules(overlays: &[(u32, Cidr)]) -> String {
    let (mut raw, mut nat) = (String::new(), String::new());
    for (vni, cidr) in overlays {
        let bridge = name::bridge(*vni);
        // Where bridged frames pass the IP hooks (br_netfilter), the way from guest to gateway port would bind the
        // connection before it is routed, and it would never be translated.
        let _ = writeln!(raw, "    iifname \"{bridge}\" ip daddr != {cidr} notrack");
        let _ = writeln!(nat, "    ip saddr {cidr} ip daddr != {cidr} oifname != \"sterna-*\" masquerade");
    }
    let far = overlay::FAR_PORT;
    format!(
        r#"table bridge sterna
delete table bridge sterna
table bridge sterna {{
  # Each host answers its own guests: DHCP does not cross to other hosts.
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname {{ "sterna-x*", "sterna-f*" }} udp dport {{ 67, 68 }} drop
    oifname {{ "sterna-x*", "sterna-f*" }} udp dport {{ 67, 68 }} drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname {{ "sterna-x*", "sterna-f*" }} udp dport {{ 67, 68 }} drop
  }}
}}
table inet sterna
delete table inet sterna
table inet sterna {{
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
{raw}  }}
  # Networks reach the world through their gateway, not each other.
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "sterna-g*" oifname "sterna-b*" drop
  }}
  # Segments between datacentres go through the tunnel, or not at all: neither in nor out in clear.
  chain input {{
    type filter hook input priority filter; policy accept;
    udp dport {far} iifname != "sterna-w*" drop
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    udp dport {far} oifname != "sterna-w*" drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
{nat}  }}
}}
"#
    )
}

pub(super) async fn apply(rules: &str) -> Result<(), Error> {
    tool::run("nft", &["-f", "-"], rules).await.map(drop)
}

pub(super) async fn remove() -> Result<(), Error> {
    let gone =
        "table bridge sterna\ndelete table bridge sterna\ntable inet sterna\ndelete table inet sterna\n";
    apply(gone).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_overlay_is_translated_on_its_way_out_only() {
        let text = rules(&[(100, "10.64.0.0/24".parse().unwrap())]);
        assert!(
            text.contains(
                "ip saddr 10.64.0.0/24 ip daddr != 10.64.0.0/24 oifname != \"sterna-*\" masquerade"
            )
        );
        assert!(text.contains("iifname \"sterna-b64\" ip daddr != 10.64.0.0/24 notrack"));
    }
}
