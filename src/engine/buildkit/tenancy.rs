//! What keeps the builds of different users apart on one engine.
//!
//! A step that ran a command is found again in the cache by what it is: so something of its user is put
//! into each (an extra host, which no image holds), and cache mounts have a name space for each user.
//! Layers of files are found by their content, and may be shared. Under [`Tenancy::Strict`] a source policy
//! and a fixed front end come to it, and only the worker sets what the front end obeys.

use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy::{
    MatchType, Policy, PolicyAction, Rule, Selector,
};
use hmac::{Hmac, Mac};
use image_builder_actors::model::digest::{add_part, hex};
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::Plan;
use ipnet::{IpNet, Ipv4Net};
use sha2::{Digest, Sha256};

use super::syntax;
use crate::engine::docker::local::LOCAL_REGISTRY;
use crate::engine::faults::fault;
use crate::net::networks::Networks;

/// Whether the users of an engine may reach each other's builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tenancy {
    /// They may not: an engine that cannot keep them apart builds nothing.
    #[default]
    Strict,
    /// All users are one.
    Trusted,
}

/// Hex digits of what is put into steps (128 bits).
const SALT_DIGITS: usize = 32;

/// Build arguments that are sent to every step without being in its cache key, in lower case.
const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"];

/// Loopback, private, link-local, shared and other addresses that are not public.
const PRIVATE_ADDRESSES: &str = r"0\.|10\.|127\.|169\.254\.|192\.168\.|192\.0\.0\.|172\.(1[6-9]|2[0-9]|3[01])\.|100\.(6[4-9]|[7-9][0-9]|1[01][0-9]|12[0-7])\.|198\.1[89]\.|22[4-9]\.|2[3-5][0-9]\.";

/// Whose build it is: the part of the image's name that no two users share.
pub(in crate::engine) fn user(reference: &ImageReference) -> &str {
    reference.repository.split('/').next().unwrap_or_default()
}

/// An extra host for the steps that run commands. Steps of other users, or with other secrets, have another
/// one. `key` keeps the secrets from being guessed by it.
pub(super) fn extra_host(reference: &ImageReference, plan: &Plan, key: &Secret) -> String {
    let user = user(reference);
    let salt = if plan.secrets.is_empty() {
        let mut hash = Sha256::new();
        add_part(&mut hash, user);
        hash.finalize()
    } else {
        let mut mac = Hmac::<Sha256>::new_from_slice(key.expose().as_bytes())
            .expect("HMAC takes a key of any length");
        add_part(&mut mac, user);
        for (id, secret) in &plan.secrets {
            add_part(&mut mac, id);
            add_part(&mut mac, secret.expose());
        }
        mac.finalize().into_bytes()
    };
    format!("{}.image-builder.invalid=127.0.0.1", &hex(&salt)[..SALT_DIGITS])
}

/// The name space of a user's cache mounts.
pub(super) fn cache_name_space(reference: &ImageReference) -> String {
    hex(&Sha256::digest(user(reference)))[..SALT_DIGITS].to_owned()
}

impl Tenancy {
    /// Whether a user may not set this build argument.
    pub(in crate::engine) fn reserves(self, argument: &str) -> bool {
        self == Tenancy::Strict && is_reserved(argument)
    }

    /// Refuses a Dockerfile that asks for a front end other than the engine's own, where users are kept apart: it
    /// would run with more rights than a step.
    ///
    /// # Errors
    /// `invalid_plan`.
    pub(in crate::engine) fn check_front_end(self, dockerfile: &[u8]) -> Result<(), Fault> {
        match self {
            Tenancy::Strict => check_front_end(dockerfile),
            Tenancy::Trusted => Ok(()),
        }
    }
}

/// What is said of a build argument that a user may not set.
pub(in crate::engine) fn left_out(argument: &str) -> String {
    format!("the build argument is the service's own to set, and is left out: {argument}")
}

/// Whether a build argument is obeyed by the front end, or reaches steps behind the cache's back.
fn is_reserved(argument: &str) -> bool {
    argument.starts_with("BUILDKIT_") || PROXIES.contains(&argument.to_ascii_lowercase().as_str())
}

fn check_front_end(dockerfile: &[u8]) -> Result<(), Fault> {
    let Some(front_end) = syntax::front_end(dockerfile) else { return Ok(()) };
    let (name, _) = front_end.split_once([':', '@']).unwrap_or((&front_end, ""));
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    if name == "docker/dockerfile" {
        // What the engine has built in.
        return Ok(());
    }
    Err(fault(
        Reason::InvalidPlan,
        format!(
            "The Dockerfile's `# syntax=` line asks for the front end `{front_end}`, which is not \
             allowed here: remove that line, or name `docker/dockerfile`."
        ),
    ))
}

/// Which sources a user's build may have. Of several rules that match, the last one counts. `cache` = the registry
/// that has the build caches of all users, where that is another one.
///
/// A policy sees an address as it is written. What its name stands for, and where a redirect leads, the engine finds
/// out by itself: so HTTP and Git are for `hosts` and addresses of `networks` alone.
pub(super) fn source_policy(
    reference: &ImageReference,
    networks: &Networks,
    hosts: &[String],
    cache: Option<&str>,
) -> Policy {
    use PolicyAction::{Allow, Deny};
    let (registry, own) = (&reference.registry, user(reference));
    let mut rules = vec![
        rule(Deny, r"^(https?|git|ssh|oci-layout)://".to_owned()),
        rule(
            Deny,
            format!(
                r"(?i)^docker-image://(localhost|({PRIVATE_ADDRESSES})[0-9.]*|\[.*)(:[0-9]+)?/"
            ),
        ),
    ];
    rules.extend(hosts.iter().map(|host| rule(Allow, at(&host_pattern(host)))));
    for network in networks.iter().filter_map(as_v4) {
        let addresses = addresses(network);
        rules.push(rule(Allow, at(&addresses)));
        rules.push(rule(Allow, format!("^docker-image://({addresses})(:[0-9]+)?/")));
    }
    for registry in [LOCAL_REGISTRY, registry].into_iter().chain(cache) {
        rules.push(rule(Deny, images_of(registry)));
    }
    rules.push(rule(
        Allow,
        format!("^docker-image://{}", regex::escape(&format!("{registry}/{own}/"))),
    ));
    Policy { version: 1, rules }
}

/// A pattern of all images of a registry, however its host is written: names and TLS know no upper case, and a port
/// that is the usual one may be left out.
fn images_of(registry: &str) -> String {
    let host = registry.split('/').next().unwrap_or_default();
    let bare = [":443", ":80"].iter().find_map(|port| host.strip_suffix(port));
    // The last colon of an address in brackets may be one of its own.
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    let (host, port) = match bare {
        Some(bare) => (bare, "(:443|:80)?"),
        None if has_port => (host, ""),
        None => (host, "(:443|:80)?"),
    };
    format!("(?i)^docker-image://{}{port}/", regex::escape(host))
}

/// Addresses in brackets are denied whatever they are.
fn as_v4(network: &IpNet) -> Option<Ipv4Net> {
    match network {
        IpNet::V4(network) => Some(*network),
        IpNet::V6(_) => None,
    }
}

/// A pattern of a network's addresses, as they are written with four numbers.
fn addresses(network: Ipv4Net) -> String {
    let (first, last) = (network.network().octets(), network.broadcast().octets());
    let number = |(first, last): (u8, u8)| match (first, last) {
        (0, 255) => "[0-9]{1,3}".to_owned(),
        (first, last) => {
            let each: Vec<String> = (first..=last).map(|number| number.to_string()).collect();
            format!("({})", each.join("|"))
        }
    };
    first.into_iter().zip(last).map(number).collect::<Vec<_>>().join(r"\.")
}

/// A pattern of a host's name, or with `*.` of the names below it.
fn host_pattern(host: &str) -> String {
    match host.strip_prefix("*.") {
        Some(domain) => format!(r"([a-z0-9_-]+\.)+{}", regex::escape(domain)),
        None => regex::escape(host),
    }
}

/// An address of HTTP or Git whose host is `host`, whatever stands around it.
fn at(host: &str) -> String {
    format!(r"(?i)^(https?|git)://([^/@?#]*@)?({host})(:[0-9]+)?([/?#]|$)")
}

fn rule(action: PolicyAction, identifier: String) -> Rule {
    let (action, match_type) = (action.into(), MatchType::Regex.into());
    let selector = Some(Selector { identifier, match_type, constraints: Vec::new() });
    Rule { action, selector, updates: None }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use image_builder_actors::model::request::BuilderKind;
    use regex::Regex;

    use super::*;

    fn reference(user: &str) -> ImageReference {
        ImageReference::for_build("localhost:5000/images", user, "shop", "c")
    }

    fn plan(secrets: &[(&str, &str)]) -> Plan {
        Plan {
            builder: BuilderKind::Dockerfile,
            context: Default::default(),
            dockerfile: String::new(),
            target: None,
            build_args: BTreeMap::new(),
            secrets: secrets.iter().map(|(k, v)| ((*k).to_owned(), Secret::new(*v))).collect(),
            platforms: Vec::new(),
            registry_auth: BTreeMap::new(),
            fingerprint: String::new(),
        }
    }

    #[test]
    fn steps_differ_by_user_and_by_secrets_and_by_nothing_else() {
        let key = Secret::new("key");
        let of = |user, secrets: &[_]| extra_host(&reference(user), &plan(secrets), &key);
        assert_eq!(of("alice", &[]), of("alice", &[]));
        let all = [
            of("alice", &[]),
            of("bob", &[]),
            of("alice", &[("a", "1")]),
            of("alice", &[("a", "2")]),
            of("alice", &[("b", "1")]),
            of("alice", &[("a", "1"), ("b", "1")]),
            extra_host(&reference("alice"), &plan(&[("a", "1")]), &Secret::new("another")),
            cache_name_space(&reference("alice")),
            cache_name_space(&reference("bob")),
        ];
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
    }

    /// Whether a policy lets a source through, as the engine reads one.
    fn allows(policy: &Policy, source: &str) -> bool {
        let mut denied = false;
        for rule in &policy.rules {
            let selector = rule.selector.as_ref().expect("each has one");
            if Regex::new(&selector.identifier).expect("a good pattern").is_match(source) {
                denied = rule.action == i32::from(PolicyAction::Deny);
            }
        }
        !denied
    }

    #[test]
    fn sources_are_the_users_own_or_of_hosts_that_are_listed() {
        let cache = Some("caches.example/all");
        let hosts = ["example.com", "github.com", "*.example.co.uk"].map(str::to_owned);
        let policy = source_policy(&reference("alice"), &Networks::default(), &hosts, cache);
        for good in [
            "docker-image://docker.io/library/debian:12",
            "docker-image://ghcr.io/railwayapp/nixpacks:ubuntu-1745885067",
            "docker-image://localhost:5000/images/alice/shop:1",
            "https://example.com/file.tar.gz",
            "https://user@sub.example.co.uk:8443?x=1",
            "http://EXAMPLE.com:8080/x",
            "git://github.com/moby/buildkit.git#v0.13",
            "git://git@github.com/moby/buildkit.git",
            "docker-image://10.example.com/base:1",
            "local://context",
        ] {
            assert!(allows(&policy, good), "{good}");
        }
        for bad in [
            "docker-image://localhost:5000/images/bob/shop:1",
            "docker-image://localhost:5000/images/alice-2/shop:1",
            "docker-image://localhost:5000/elsewhere:1",
            "docker-image://caches.example/all/alice/shop:cache",
            "docker-image://caches.example/all/bob/shop:cache",
            "docker-image://Caches.EXAMPLE/all/bob/shop:cache",
            "docker-image://caches.example:443/all/bob/shop:cache",
            "docker-image://127.0.0.1:5000/images/bob/shop:1",
            "docker-image://[::1]:5000/images/bob/shop:1",
            "docker-image://image-builder.local/bob/shop:1234567-0123456789ab",
            "https://example.co.uk/",
            "https://sub.example.com/",
            "https://example.com.evil.example/",
            "https://evil-example.com/",
            "https://example.com@evil.example/",
            "https://evil.example/example.com",
            "https://evil.example/@example.com/",
            "https://evil.example?@example.com/",
            "git://evil.example/x.git#example.com",
            "http://93.184.216.34/x",
            "http://localhost/",
            "http://LOCALHOST:15672/api",
            "http://127.0.0.1:9090/metrics",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://127.1/",
            "http://0/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://rabbitmq:15672/",
            "http://a.localhost/",
            "http://metadata.google.internal/",
            "http://169.254.169.254/latest/meta-data",
            "http://10.1.2.3/",
            "http://172.20.0.1/",
            "http://192.168.0.1/",
            "http://100.100.1.1/",
            "http://example.com@127.0.0.1/",
            "http://a@b@example.com@127.0.0.1/",
            "http://127.0.0.1.",
            "https://localhost.",
            "git://127.0.0.1/x.git",
            "git://git@localhost/x.git",
            "ssh://git@example.com/x.git",
        ] {
            assert!(!allows(&policy, bad), "{bad}");
        }
    }

    #[test]
    fn other_users_images_stay_theirs_however_their_registry_is_written() {
        for (registry, written) in [
            ("registry.example.com", &["registry.example.com", "REGISTRY.example.com:443"][..]),
            ("registry.example.com:443", &["registry.example.com", "Registry.example.com:443"]),
            ("registry.example.com/all", &["registry.example.com", "registry.example.com:80"]),
            (
                "registry.example.com:5000",
                &["registry.example.com:5000", "Registry.Example.com:5000"],
            ),
        ] {
            let reference = ImageReference::for_build(registry, "alice", "shop", "c");
            let policy = source_policy(&reference, &Networks::default(), &[], None);
            for host in written {
                let other = format!("docker-image://{host}/bob/shop:1");
                assert!(!allows(&policy, &other), "{registry}: {other}");
            }
            let own = format!("docker-image://{registry}/alice/shop:1");
            assert!(allows(&policy, &own), "{own}");
            let elsewhere = "docker-image://registry.example.com.evil.example/bob/shop:1";
            assert!(allows(&policy, elsewhere), "another registry");
        }
    }

    #[test]
    fn what_the_operator_lists_may_be_a_source() {
        let allowed = "10.1.96.0/20,192.168.7.5,fd00::/8".parse().expect("networks");
        let policy = source_policy(&reference("alice"), &allowed, &[], None);
        for good in [
            "http://10.1.96.1/",
            "http://10.1.111.255:8080/x",
            "git://192.168.7.5/x.git",
            "docker-image://192.168.7.5:5000/base:1",
        ] {
            assert!(allows(&policy, good), "{good}");
        }
        for bad in [
            "http://10.1.95.1/",
            "http://10.1.112.1/",
            "http://192.168.7.50/",
            "https://github.com/x",
            "http://192.168.7.5.evil@127.0.0.1/",
            "docker-image://192.168.7.6:5000/base:1",
            "docker-image://localhost:5000/images/bob/shop:1",
        ] {
            assert!(!allows(&policy, bad), "{bad}");
        }
    }

    #[test]
    fn a_front_end_is_the_engines_own() {
        for good in [
            "",
            "FROM x",
            "# syntax=docker/dockerfile:1\nFROM x",
            "#syntax = docker.io/docker/dockerfile:1.7-labs",
        ] {
            assert_eq!(check_front_end(good.as_bytes()), Ok(()), "{good}");
        }
        for bad in ["# syntax=evil/frontend", "# syntax=docker/dockerfile-upstream:master\n"] {
            let fault = check_front_end(bad.as_bytes()).expect_err(bad);
            assert_eq!(fault.reason, Reason::InvalidPlan);
        }
    }

    #[test]
    fn what_the_front_end_obeys_is_no_users_to_set() {
        for name in ["BUILDKIT_SYNTAX", "BUILDKIT_CACHE_MOUNT_NS", "HTTP_PROXY", "no_proxy"] {
            assert!(is_reserved(name), "{name}");
        }
        for name in ["VERSION", "MY_HTTP_PROXY", "buildkit", "SOURCE_DATE_EPOCH"] {
            assert!(!is_reserved(name), "{name}");
        }
    }
}
