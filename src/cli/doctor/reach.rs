//! What a step of a build reaches beside the internet: this machine, and what the settings name.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

use super::Finding;
use crate::config::{Config, ToolConfig};
use crate::engine::docker::Tenancy;
use crate::net::public::is_public;

/// What the finding is called.
pub(super) const NAME: &str = "step reach";
/// How probes call the machine that a step's bridge is on.
const GATEWAY: &str = "gateway";
/// Where clouds tell a machine who it is.
const METADATA: &str = "169.254.169.254";
/// A port that most machines answer on.
const SSH: u16 = 22;

const REMEDY: &str = "Load the rules of `image-builder build-network` on the engine's machine, see \
                      docs/operations.md, or list it in BUILDER_ALLOW_CIDR";

/// What no step is to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// For people; has no white space.
    name: String,
    /// An address, or [`GATEWAY`].
    host: String,
    port: u16,
}

impl Target {
    fn new(name: &str, host: impl Into<String>, port: u16) -> Self {
        Self { name: name.to_owned(), host: host.into(), port }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.as_str() {
            GATEWAY => write!(f, "{} (port {} of the engine's machine)", self.name, self.port),
            host => write!(f, "{} ({host}, port {})", self.name, self.port),
        }
    }
}

/// What is looked for, and how that is judged.
pub(super) struct Reach {
    targets: Vec<Target>,
    network: Option<String>,
    tenancy: Tenancy,
}

impl Reach {
    /// What the settings name is looked up; what is at public addresses, or allowed, is no matter.
    pub(super) async fn of(tools: &ToolConfig, whole: Option<&Config>) -> Self {
        let mut targets =
            vec![Target::new("this-machine", GATEWAY, SSH), Target::new("metadata", METADATA, 80)];
        for (name, host, port) in whole.into_iter().flat_map(named) {
            let Ok(found) = tokio::net::lookup_host((host.as_str(), port)).await else { continue };
            let addresses: Vec<IpAddr> = found.map(|at| at.ip().to_canonical()).collect();
            // What listens on loopback alone may listen on all addresses of the machine.
            let here = |ip: &IpAddr| ip.is_loopback() || ip.is_unspecified();
            let private = |ip: &&IpAddr| !is_public(**ip) && !tools.network.allowed.contains(**ip);
            if addresses.iter().any(here) {
                targets.push(Target::new(name, GATEWAY, port));
            } else if let Some(ip) = addresses.iter().find(private) {
                targets.push(Target::new(name, ip.to_string(), port));
            }
        }
        let (network, tenancy) = (tools.engine.builds.network.clone(), tools.engine.builds.tenancy);
        Self { targets, network, tenancy }
    }

    /// The targets, as the probe reads them.
    pub(super) fn argument(&self) -> String {
        let each = |target: &Target| format!("{},{},{}", target.name, target.host, target.port);
        self.targets.iter().map(each).collect::<Vec<_>>().join(" ")
    }

    /// What is to be thought of what the probe said.
    pub(super) fn finding(&self, said: &HashMap<String, String>) -> Finding {
        match self.network.as_deref() {
            Some("host") => {
                let detail =
                    "BUILDER_NETWORK is `host`: steps reach what the engine's machine reaches";
                return Finding::skip(NAME, detail);
            }
            Some("none") => return Finding::ok(NAME, "steps have no network"),
            _ => {}
        }
        let answered = |what: &str| {
            let did = |target: &&Target| {
                said.get(&format!("reach:{}", target.name)).is_some_and(|said| said == what)
            };
            self.targets.iter().filter(did).map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        if !said.keys().any(|about| about.starts_with("reach:")) {
            return Finding::skip(NAME, "the image has no bash to connect with");
        }
        match (answered("open"), answered("refused")) {
            (open, _) if !open.is_empty() && self.tenancy == Tenancy::Strict => {
                Finding::fail(NAME, format!("a step reaches {open}"), REMEDY)
            }
            (open, _) if !open.is_empty() => {
                Finding::warn(NAME, format!("a step reaches {open}"), REMEDY)
            }
            (_, refused) if !refused.is_empty() => {
                let detail =
                    format!("nothing keeps a step from {refused}: it answers, and refuses");
                Finding::warn(NAME, detail, REMEDY)
            }
            _ => Finding::ok(NAME, "a step reaches neither this machine nor its services"),
        }
    }
}

/// The services that the settings name, with their hosts and ports.
fn named(config: &Config) -> Vec<(&'static str, String, u16)> {
    let mut found = Vec::new();
    let mut add = |name, text: &str| {
        let Some((host, port)) = place(text) else { return };
        found.push((name, host, port));
    };
    add("worker", &config.api.address);
    if let Some(broker) = &config.broker.rabbitmq {
        add("broker", broker.uri.expose());
    }
    add("registry", config.registry.url.server_address());
    if let Some(database) = &config.history.database {
        add("database", database.expose());
    }
    let notify = &config.notify;
    let managers = [
        ("container-manager", &notify.container_manager),
        ("connector-manager", &notify.connector_manager),
        ("credentials", &config.forge.credentials_url),
    ];
    for (name, url) in managers {
        if let Some(url) = url {
            add(name, url.as_str());
        }
    }
    if config.engine.host.starts_with("tcp://") || config.engine.host.starts_with("http") {
        add("engine", &config.engine.host);
    }
    found
}

/// Host and port of an address, with or without a scheme.
fn place(text: &str) -> Option<(String, u16)> {
    let text = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let url = Url::parse(&text).ok()?;
    let host = url.host_str().filter(|host| !host.is_empty())?;
    let port = url.port_or_known_default().or(match url.scheme() {
        "amqp" => Some(5672),
        "amqps" => Some(5671),
        "postgres" | "postgresql" => Some(5432),
        "tcp" => Some(2375),
        _ => None,
    })?;
    Some((host.trim_matches(['[', ']']).to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn reach(tenancy: Tenancy, network: Option<&str>) -> Reach {
        let targets = vec![
            Target::new("this-machine", GATEWAY, SSH),
            Target::new("broker", GATEWAY, 5672),
            Target::new("metadata", METADATA, 80),
        ];
        Reach { targets, network: network.map(str::to_owned), tenancy }
    }

    #[test]
    fn places_of_all_kinds_of_addresses_are_found() {
        for (text, host, port) in [
            ("127.0.0.1:8080", "127.0.0.1", 8080),
            ("localhost:5000", "localhost", 5000),
            ("registry.example", "registry.example", 443),
            ("amqp://guest:guest@rabbit/%2f", "rabbit", 5672),
            ("postgres://b:s@[fd00::1]:6543/builds", "fd00::1", 6543),
            ("http://manager.example/ready", "manager.example", 80),
        ] {
            assert_eq!(place(text), Some((host.to_owned(), port)), "{text}");
        }
    }

    #[test]
    fn what_a_step_reaches_is_judged_by_how_users_are_kept_apart() {
        use Status::{Fail, Ok, Skip, Warn};
        use Tenancy::{Strict, Trusted};
        let away = [("this-machine", "none"), ("broker", "none"), ("metadata", "none")];
        let refusing = [("this-machine", "refused"), ("broker", "none")];
        let open = [("this-machine", "refused"), ("broker", "open")];
        for (tenancy, network, said, status, part) in [
            (Strict, None, &away[..], Ok, "neither"),
            (Strict, None, &refusing[..], Warn, "this-machine (port 22 of the engine's machine)"),
            (Strict, None, &open[..], Fail, "a step reaches broker (port 5672"),
            (Trusted, None, &open[..], Warn, "a step reaches broker (port 5672"),
            (Strict, None, &[], Skip, "no bash"),
            (Strict, Some("host"), &open[..], Skip, "`host`"),
            (Strict, Some("none"), &[], Ok, "no network"),
        ] {
            let said =
                said.iter().map(|(name, what)| (format!("reach:{name}"), (*what).to_owned()));
            let found = reach(tenancy, network).finding(&said.collect());
            assert_eq!(found.status, status, "{found:?}");
            assert!(found.detail.contains(part), "{found:?}");
        }
        let argument = reach(Strict, None).argument();
        assert!(argument.contains("broker,gateway,5672 metadata,169.254.169.254,80"), "{argument}");
    }
}
