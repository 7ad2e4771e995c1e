//! Whether an address that a stranger names may be reached: public ones alone, so that nobody reads
//! through this worker what only its own network can reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::networks::Networks;

/// Networks that are not of the public internet (IANA's special-purpose registries), and addresses in it that
/// are a cloud's own services.
const NOT_PUBLIC_V4: [&str; 15] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10", // shared by carriers, and metadata of some clouds
    "127.0.0.0/8",
    "168.63.129.16/32", // Azure's
    "169.254.0.0/16",   // link-local, and metadata of most clouds
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
];
/// The same of IPv6: all but global unicast, and what in it is documentation, or a tunnel to anywhere.
const NOT_PUBLIC_V6: [&str; 7] =
    ["::/3", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "4000::/2", "8000::/1"];
/// IPv4 addresses in IPv6 ones, for a gateway to translate (NAT64).
const NAT64: &str = "64:ff9b::/96";

/// [`NOT_PUBLIC_V4`] and [`NOT_PUBLIC_V6`].
static NOT_PUBLIC: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    NOT_PUBLIC_V4.iter().chain(&NOT_PUBLIC_V6).map(|text| network(text)).collect()
});

fn network<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("the tables hold networks")
}

/// The networks of IPv4 that are not public.
pub(crate) fn not_public_v4() -> impl Iterator<Item = Ipv4Net> {
    NOT_PUBLIC_V4.iter().map(|text| network(text))
}

/// The networks of IPv6 that are not public, apart from [`nat64`].
pub(crate) fn not_public_v6() -> impl Iterator<Item = Ipv6Net> {
    NOT_PUBLIC_V6.iter().map(|text| network(text))
}

/// The network whose addresses hold those of IPv4, and what of it leads to those that are not public.
pub(crate) fn nat64() -> (Ipv6Net, impl Iterator<Item = Ipv6Net>) {
    let all: Ipv6Net = network(NAT64);
    let inside = not_public_v4().map(move |net| {
        let address = u128::from(all.network()) | u128::from(u32::from(net.network()));
        Ipv6Net::new_assert(Ipv6Addr::from(address), 96 + net.prefix_len())
    });
    (all, inside)
}

/// Longest wait for a name to be resolved that a proxy will resolve as well.
const LOOKUP: Duration = Duration::from_secs(5);

/// A stranger named a server that is not on the public internet.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not at a public address")]
pub(crate) struct NotPublic(String);

/// Refuses an address that is written as numbers; names are looked at when they are resolved.
pub(crate) fn check_literal(url: &Url, allowed: &Networks) -> Result<(), NotPublic> {
    let host = url.host_str().unwrap_or_default();
    match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(ip) if !may_be_reached(ip, allowed) => Err(NotPublic(host.to_owned())),
        _ => Ok(()),
    }
}

/// Refuses a name that leads, as far as can be seen from here, to an address that is not public.
///
/// For what a proxy may connect to, which resolves the name for itself. Where there is a proxy, names of
/// the internet often cannot be resolved, so one that cannot passes.
pub(crate) async fn check_resolved(url: &Url, allowed: &Networks) -> Result<(), NotPublic> {
    let host = url.host_str().unwrap_or_default();
    let looked_up = tokio::time::timeout(LOOKUP, tokio::net::lookup_host((host, 0))).await;
    let mut found = looked_up.ok().and_then(Result::ok).into_iter().flatten();
    if found.any(|address| !may_be_reached(address.ip(), allowed)) {
        return Err(NotPublic(host.to_owned()));
    }
    Ok(())
}

/// Resolves names to public addresses only. It is the resolver of the connection itself, so a name
/// cannot show a public address to a check and another one to the connection.
pub(crate) struct PublicOnly {
    /// The hosts of this network's proxies, which may be anywhere.
    pub(crate) proxies: Vec<String>,
    /// What else may be reached (`BUILDER_ALLOW_CIDR`).
    pub(crate) allowed: Networks,
}

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let is_proxy = self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(name.as_str()));
        let allowed = self.allowed.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if !is_proxy && found.iter().any(|address| !may_be_reached(address.ip(), &allowed)) {
                return Err(NotPublic(name.as_str().to_owned()).into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

fn may_be_reached(ip: IpAddr, allowed: &Networks) -> bool {
    is_public(ip) || allowed.contains(ip)
}

/// Whether an address belongs to the public internet.
pub(crate) fn is_public(ip: IpAddr) -> bool {
    let IpAddr::V6(v6) = ip else { return is_in_no_table(ip) };
    if let Some(v4) = v6.to_ipv4_mapped() {
        return is_in_no_table(v4.into());
    }
    if network::<Ipv6Net>(NAT64).contains(&v6) {
        let [.., a, b, c, d] = v6.octets();
        return is_in_no_table(Ipv4Addr::new(a, b, c, d).into());
    }
    is_in_no_table(ip)
}

fn is_in_no_table(ip: IpAddr) -> bool {
    !NOT_PUBLIC.iter().any(|network| network.contains(&ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        for ip in ["140.82.121.4", "2606:50c0:8000::153", "64:ff9b::8c52:7904"] {
            assert!(is_public(ip.parse().expect("an address")), "{ip}");
        }
        for ip in [
            "127.0.0.1",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "0.0.0.0",
            "255.255.255.255",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "fe80::1",
            "fd00:ec2::254",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(ip.parse().expect("an address")), "{ip}");
        }
    }

    #[tokio::test]
    async fn a_name_of_this_machine_is_refused_and_one_that_nobody_knows_is_left_to_the_proxy() {
        let passes = async |text| {
            let url = Url::parse(text).expect("a valid address");
            check_resolved(&url, &Networks::default()).await.is_ok()
        };
        assert!(!passes("https://localhost/x").await);
        assert!(passes("https://nobody.invalid/x").await);
    }

    #[test]
    fn an_address_in_any_notation_of_numbers_is_looked_at() {
        for text in ["http://127.0.0.1/", "http://2130706433/", "http://0x7f.1/", "http://[::1]/"] {
            let url = Url::parse(text).expect("a valid address");
            assert!(check_literal(&url, &Networks::default()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_the_operator_lists_may_be_reached() {
        let allowed: Networks = "10.1.0.0/16, fd00::5".parse().expect("networks");
        let passes = |text| check_literal(&Url::parse(text).expect("good"), &allowed).is_ok();
        for text in ["http://10.1.2.3/", "http://[fd00::5]/", "http://[::ffff:10.1.2.3]/"] {
            assert!(passes(text), "{text}");
        }
        for text in ["http://10.2.0.1/", "http://[fd00::6]/", "http://127.0.0.1/"] {
            assert!(!passes(text), "{text}");
        }
    }
}
