//! Reading what a request says of base images and platforms: `registryAuth` and `platforms`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::Faults;
use super::fields::{Fields, quote};
use crate::model::fault::Reason;
use crate::model::login::{RegistryLogin, registry_host};
use crate::model::platform::{Platform, list};
use crate::model::secret::Secret;

pub(super) const REGISTRY_AUTH: &str = "registryAuth";

/// A request names at most this many registries, and this many platforms.
const MOST_REGISTRIES: usize = 16;
const MOST_PLATFORMS: usize = 4;
/// Longest name of a registry and of its user, and longest password, in bytes: some are keys in JSON.
const LONGEST_NAME: usize = 256;
const LONGEST_PASSWORD: usize = 16 * 1024;

/// Credentials for base images by their registry's host: an object of `{username, password}`.
pub(super) fn registry_auth(fields: &mut Fields<'_>) -> BTreeMap<String, RegistryLogin> {
    let mut logins = BTreeMap::new();
    let Some(map) = fields.object(REGISTRY_AUTH) else { return logins };
    if map.len() > MOST_REGISTRIES {
        fields.fault(REGISTRY_AUTH, &format!("has more than {MOST_REGISTRIES} registries"));
        return logins;
    }
    for (name, value) in map {
        let host = registry_host(name);
        if !is_host(&host) {
            let what = format!("has a key that is no registry's host: {}", quote(name));
            fields.fault(REGISTRY_AUTH, &what);
            continue;
        }
        match login(value) {
            Ok(login) => {
                if logins.insert(host, login).is_some() {
                    let what = format!("has two entries for {}", quote(name));
                    fields.fault(REGISTRY_AUTH, &what);
                }
            }
            Err(what) => fields.fault(REGISTRY_AUTH, &format!("needs {what} for {}", quote(name))),
        }
    }
    logins
}

/// The passwords of a request's `registryAuth`, whatever else is wrong with it.
pub(crate) fn passwords(map: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let places = [Some(map), map.get("buildPlan").and_then(Value::as_object)];
    let auths = places.into_iter().flatten().filter_map(|place| place.get(REGISTRY_AUTH));
    let logins = auths.filter_map(Value::as_object).flat_map(Map::values);
    logins.filter_map(|login| login.get("password").and_then(Value::as_str))
}

fn login(value: &Value) -> Result<RegistryLogin, &'static str> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).filter(|it| !it.is_empty());
    let username = text("username").ok_or("a `username`")?;
    let password = text("password").ok_or("a `password`")?;
    if username.len() > LONGEST_NAME || username.chars().any(|c| c.is_control() || c == ':') {
        return Err("a `username` of at most 256 bytes, without colons and control characters,");
    }
    if password.len() > LONGEST_PASSWORD || password.contains('\0') {
        return Err("a `password` of at most 16 KiB, without NUL bytes,");
    }
    Ok(RegistryLogin { username: username.to_owned(), password: Secret::new(password) })
}

/// `host` or `host:port`.
fn is_host(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    (1..=LONGEST_NAME).contains(&host.len())
        && host.chars().all(is_name)
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// The platforms that an image is to be for, each once, in a fixed order; none = the engine's own.
pub(super) fn platforms(fields: &mut Fields<'_>, faults: &mut Faults) -> Vec<Platform> {
    let names = fields.list("platforms");
    if names.len() > MOST_PLATFORMS {
        fields.fault("platforms", &format!("names more than {MOST_PLATFORMS} platforms"));
    }
    let mut platforms = Vec::new();
    for name in &names {
        let Some(platform) = Platform::from_name(name) else {
            let message = format!(
                "`buildPlan.platforms`: {} is not supported; {} are.",
                quote(name),
                list(Platform::all())
            );
            faults.add(Reason::Unsupported, message);
            return Vec::new();
        };
        platforms.push(platform);
    }
    platforms.sort();
    platforms.dedup();
    platforms
}
