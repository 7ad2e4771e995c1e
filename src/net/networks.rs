//! Networks that an operator lists (`BUILDER_ALLOW_CIDR`).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// Networks, as `10.1.0.0/16,fd00:1::/64`; a single address is a network of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Whether one of them has this address. An IPv4 address is the same one written as IPv6.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&ip.to_canonical()))
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &IpNet> {
        self.0.iter()
    }
}

impl FromStr for Networks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let network = |part: &str| {
            let single = part.parse::<IpAddr>().map(IpNet::from);
            single.or_else(|_| part.parse::<IpNet>().map(|net| net.trunc())).map_err(|_| {
                format!(
                    "`{part}` is no network; write it like 10.1.0.0/16, fd00:1::/64 or 10.1.2.3"
                )
            })
        };
        parts.map(network).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&all.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_written() {
        let networks: Networks = " 10.1.2.3/16,fd00::1 , 192.0.2.7".parse().expect("networks");
        assert_eq!(networks.to_string(), "10.1.0.0/16,fd00::1/128,192.0.2.7/32");
        assert!(networks.contains("10.1.255.1".parse().expect("an address")));
        for bad in ["10.1.0.0/33", "example.com", "10.1.0.0-10.1.0.9"] {
            let error = bad.parse::<Networks>().expect_err(bad);
            assert!(error.contains(bad), "{error}");
        }
    }
}
