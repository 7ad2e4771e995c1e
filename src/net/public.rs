//! Whether an address that a stranger names may be reached: public ones alone, so that nobody reads
//! through this worker what only its own network can reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Longest wait for a name to be resolved that a proxy will resolve as well.
const LOOKUP: Duration = Duration::from_secs(5);

/// A stranger named a server that is not on the public internet.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not at a public address")]
pub(crate) struct NotPublic(String);

/// Refuses an address that is written as numbers; names are looked at when they are resolved.
pub(crate) fn check_literal(url: &Url) -> Result<(), NotPublic> {
    let host = url.host_str().unwrap_or_default();
    match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(ip) if !is_public(ip) => Err(NotPublic(host.to_owned())),
        _ => Ok(()),
    }
}

/// Refuses a name that leads, as far as can be seen from here, to an address that is not public.
///
/// For what a proxy may connect to, which resolves the name for itself. Where there is a proxy, names of
/// the internet often cannot be resolved, so one that cannot passes.
pub(crate) async fn check_resolved(url: &Url) -> Result<(), NotPublic> {
    let host = url.host_str().unwrap_or_default();
    let looked_up = tokio::time::timeout(LOOKUP, tokio::net::lookup_host((host, 0))).await;
    let mut found = looked_up.ok().and_then(Result::ok).into_iter().flatten();
    if found.any(|address| !is_public(address.ip())) {
        return Err(NotPublic(host.to_owned()));
    }
    Ok(())
}

/// Resolves names to public addresses only. It is the resolver of the connection itself, so a name
/// cannot show a public address to a check and another one to the connection.
pub(crate) struct PublicOnly {
    /// The hosts of this network's proxies, which may be anywhere.
    pub(crate) proxies: Vec<String>,
}

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let is_proxy = self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(name.as_str()));
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if !is_proxy && found.iter().any(|address| !is_public(address.ip())) {
                return Err(NotPublic(name.as_str().to_owned()).into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Whether an address belongs to the public internet (IANA's special-purpose registries).
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = matches!(
        (a, b, c),
        (0 | 10 | 127, ..)
            | (100, 64..=127, _) // shared by carriers, and metadata of some clouds
            | (169, 254, _) // link-local, and metadata of most clouds
            | (172, 16..=31, _)
            | (192, 168, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (198, 18..=19, _)
            | (198, 51, 100)
            | (203, 0, 113)
            | (224..=255, ..)
    );
    // The address of Azure's own services lies in an ordinary range.
    !special && ip != Ipv4Addr::new(168, 63, 129, 16)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    if let Some(v4) = ip.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    let [a, b, c, d, e, f, g, h] = ip.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match (a, b) {
        // NAT64 and 6to4 carry an IPv4 address.
        (0x64, 0xff9b) => [c, d, e, f] == [0; 4] && is_public_v4(v4(g, h)),
        (0x2002, _) => is_public_v4(v4(b, c)),
        // Teredo and other protocol assignments, and documentation.
        (0x2001, 0..=0x1ff | 0xdb8) | (0x3fff, 0..=0xfff) => false,
        _ => (0x2000..=0x3fff).contains(&a),
    }
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
            "ff02::1",
        ] {
            assert!(!is_public(ip.parse().expect("an address")), "{ip}");
        }
    }

    #[tokio::test]
    async fn a_name_of_this_machine_is_refused_and_one_that_nobody_knows_is_left_to_the_proxy() {
        let passes = async |text| {
            let url = Url::parse(text).expect("a valid address");
            check_resolved(&url).await.is_ok()
        };
        assert!(!passes("https://localhost/x").await);
        assert!(passes("https://nobody.invalid/x").await);
    }

    #[test]
    fn an_address_in_any_notation_of_numbers_is_looked_at() {
        for text in ["http://127.0.0.1/", "http://2130706433/", "http://0x7f.1/", "http://[::1]/"] {
            let url = Url::parse(text).expect("a valid address");
            assert!(check_literal(&url).is_err(), "{text}");
        }
    }
}
