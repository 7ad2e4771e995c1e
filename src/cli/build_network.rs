//! `image-builder build-network`: the firewall's rules that keep build steps from everything but the internet.

use std::collections::BTreeSet;
use std::fmt::{Display, Write as _};
use std::fs;
use std::net::{IpAddr, ToSocketAddrs};

use clap::Args;
use ipnet::IpNet;

use super::{environment, print};
use crate::config::{ConfigErrors, ToolConfig};
use crate::exit::Exit;
use crate::net::public::{nat64, not_public_v4, not_public_v6};

/// Where name servers stand, as an engine looks for them; the second where the first names systemd's stub alone.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Print the firewall's rules that keep build steps from everything but the internet.
///
/// They are rules of nftables for the machine that the engine runs on: what comes from the engine's bridge may go to
/// public addresses, to the name servers on port 53, to the proxies of the settings and to BUILDER_ALLOW_CIDR, and
/// nowhere else: not to the machine itself, nor to private networks, nor from one build to another. Nothing is
/// changed but by whoever loads them, as root; loaded again they replace those from before.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exit codes:
  0   printed
  64  usage
  78  bad settings

Examples:
  image-builder build-network | nft -f -
  image-builder build-network --bridge br-builds --dns 10.0.0.2 > /etc/nftables.d/image-builder.nft
  image-builder doctor    # says what a step reaches")]
pub struct Arguments {
    /// The bridge that the engine's build steps are on
    #[arg(long, value_name = "NAME", default_value = "docker0", value_parser = interface)]
    bridge: String,
    /// A name server that steps ask, as the engine's `dns` has it; without it those of this machine's resolv.conf
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
}

/// The name of an interface: what the kernel takes, without what would end it in the rules.
fn interface(name: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match (1..=15).contains(&name.len()) && name.chars().all(good) {
        true => Ok(name.to_owned()),
        false => Err("is no name of an interface".to_owned()),
    }
}

/// # Errors
///
/// Bad settings.
pub fn run(arguments: &Arguments) -> Result<Exit, ConfigErrors> {
    let config = environment()?.tools()?;
    if config.engine.builds.network.as_deref() == Some("host") {
        eprintln!(
            "image-builder: warning: BUILDER_NETWORK is `host`: build steps are on no bridge, and these rules do \
             not concern them"
        );
    }
    let resolvers = if arguments.dns.is_empty() { resolvers() } else { arguments.dns.clone() };
    Ok(print(&ruleset(&Reach {
        bridge: &arguments.bridge,
        resolvers: resolvers.into_iter().map(IpNet::from).collect(),
        allowed: config.network.allowed.iter().copied().collect(),
        proxies: proxies(&config),
    })))
}

/// The name servers that a step is told of: not those on the machine's loopback.
fn resolvers() -> Vec<IpAddr> {
    let read = |path| named(&fs::read_to_string(path).unwrap_or_default());
    RESOLVERS.iter().map(read).find(|found| !found.is_empty()).unwrap_or_default()
}

fn named(resolv_conf: &str) -> Vec<IpAddr> {
    let address = |line: &str| line.trim().strip_prefix("nameserver")?.trim().parse().ok();
    resolv_conf.lines().filter_map(address).filter(|ip: &IpAddr| !ip.is_loopback()).collect()
}

/// Where the proxies are that steps are told of, as far as their names can be resolved here.
fn proxies(config: &ToolConfig) -> BTreeSet<(IpAddr, u16)> {
    let found = config.network.proxies.places().flat_map(|place| {
        let resolved = place.to_socket_addrs();
        if let Err(error) = &resolved {
            let host = &place.0;
            eprintln!("image-builder: warning: the proxy {host} is left out: {error}");
        }
        resolved.into_iter().flatten()
    });
    found.map(|at| (at.ip(), at.port())).collect()
}

/// What build steps may reach beside the public internet.
struct Reach<'a> {
    bridge: &'a str,
    resolvers: BTreeSet<IpNet>,
    allowed: BTreeSet<IpNet>,
    proxies: BTreeSet<(IpAddr, u16)>,
}

/// The rules, for `nft -f`.
fn ruleset(reach: &Reach<'_>) -> String {
    let bridge = reach.bridge;
    let mut steps = String::new();
    let mut rule = |text: String| {
        let _ = writeln!(steps, "        {text}");
    };
    rule("ct state established,related accept".to_owned());
    // Without these no address of IPv6 is found on the bridge.
    rule(
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept"
            .to_owned(),
    );
    for family in [Family::V4, Family::V6] {
        let ip = family.word();
        if let Some(set) = family.set(&reach.resolvers) {
            rule(format!("{ip} daddr {set} meta l4proto {{ tcp, udp }} th dport 53 accept"));
        }
        for (at, port) in reach.proxies.iter().filter(|(at, _)| family.has(*at)) {
            rule(format!("{ip} daddr {at} tcp dport {port} accept"));
        }
        if let Some(set) = family.set(&reach.allowed) {
            rule(format!("{ip} daddr {set} accept"));
        }
    }
    let (translated, private) = nat64();
    let refuse = "reject with icmpx admin-prohibited";
    format!(
        "\
# What the build steps of image-builder may reach. Made by `image-builder build-network`; load it with `nft -f`.
table inet image_builder
delete table inet image_builder
table inet image_builder {{
    # What a step may reach though it is not public.
    chain steps {{
{steps}        return
    }}

    # To other machines, and to other steps (for that, bridges have to hand frames to these rules:
    # net.bridge.bridge-nf-call-iptables and -ip6tables are 1).
    chain forward {{
        type filter hook forward priority filter - 10; policy accept;
        iifname != \"{bridge}\" accept
        jump steps
        oifname \"{bridge}\" {refuse}
        ip daddr {{ {v4} }} {refuse}
        ip6 daddr {{ {private} }} {refuse}
        ip6 daddr {translated} accept
        ip6 daddr {{ {v6} }} {refuse}
    }}

    # To this machine, by whichever of its addresses.
    chain input {{
        type filter hook input priority filter - 10; policy accept;
        iifname != \"{bridge}\" accept
        jump steps
        {refuse}
    }}
}}
",
        v4 = listed(not_public_v4()),
        private = listed(private),
        v6 = listed(not_public_v6()),
    )
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn word(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }

    fn has(self, address: IpAddr) -> bool {
        match self {
            Family::V4 => address.is_ipv4(),
            Family::V6 => address.is_ipv6(),
        }
    }

    /// Those of these networks that are of this family; `None` = none.
    fn set(self, networks: &BTreeSet<IpNet>) -> Option<String> {
        let own: Vec<IpNet> =
            networks.iter().filter(|network| self.has(network.addr())).copied().collect();
        // Sets take no networks that lie in each other.
        let own = IpNet::aggregate(&own);
        (!own.is_empty()).then(|| format!("{{ {} }}", listed(own.into_iter())))
    }
}

fn listed(networks: impl Iterator<Item = impl Display>) -> String {
    networks.map(|network| network.to_string()).collect::<Vec<_>>().join(", ")
}
