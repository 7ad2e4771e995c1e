//! The checks, one function each. What is not there is a finding, and never an error.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::ports::build_store::BuildStore;
use reqwest::header::{DATE, HeaderMap};
use reqwest::{Client, Response, Url};

use super::super::faults;
use super::{Finding, Status};
use crate::blocking::blocking;
use crate::broker::sqlite::queues::waiting_by_queue;
use crate::config::{Config, ConfigErrors, DoctorConfig, ForgeConfig, NotifyConfig, ToolConfig};
use crate::data_dir::QUEUE;
use crate::data_dir::{self, Seen};
use crate::engine::docker::Tenancy;
use crate::engine::docker::disk::size::Size;
use crate::engine::docker::disk::space::{Place, Room};
use crate::engine::fleet::{Fleet, FleetSettings};
use crate::net::address::without_credentials;
use crate::net::http::{self, USER_AGENT, causes};
use crate::store;
use crate::wiring;
use crate::wiring::tools::Tools;

/// A clock that is off by more than this makes signatures and tokens look old.
const CLOCK_WARN: u64 = 30;
const CLOCK_FAIL: u64 = 300;
/// Longest wait for an answer over HTTP.
const ANSWER: Duration = Duration::from_secs(10);
/// Where the registry is tried out.
const SCRATCH: &str = "image-builder/doctor";
/// The oldest API that the worker speaks: Docker 20.10.
const OLDEST_API: (u32, u32) = (1, 41);

/// The settings as `serve` reads them.
pub(super) fn settings(whole: &Result<Config, ConfigErrors>) -> Vec<Finding> {
    let name = "settings";
    match whole {
        Ok(config) => {
            let warnings = config.warnings().into_iter().map(|warning| {
                Finding::warn(name, warning, "`image-builder config` shows what is in force")
            });
            let mut found: Vec<_> = warnings.collect();
            if found.is_empty() {
                found.push(Finding::ok(name, "good"));
            }
            found
        }
        Err(errors) => {
            let remedy = "`image-builder config --example` lists the settings";
            errors.0.iter().map(|line| Finding::fail(name, line.clone(), remedy)).collect()
        }
    }
}

/// Whether DATA_DIR can be written, and who has it.
pub(super) async fn data_dir(path: PathBuf) -> Vec<Finding> {
    let name = "data";
    let shown = path.display().to_string();
    vec![match blocking(move || data_dir::look(&path)).await {
        Ok(Seen::Free) => Finding::ok(name, format!("{shown} can be written, and nobody has it")),
        Ok(Seen::Missing(parent)) => {
            Finding::ok(name, format!("{shown} will be made in {}", parent.display()))
        }
        Ok(Seen::InUse(process)) => {
            let who = process.map_or("a process".to_owned(), |id| format!("process {id}"));
            Finding::ok(name, format!("{shown} is in use by {who}: a worker is running"))
        }
        Err(error) => Finding::fail(
            name,
            error.to_string(),
            "Set DATA_DIR to a directory that this user can write",
        ),
    }]
}

/// Whether the disks have the room that the watermarks ask for.
pub(super) async fn disk(config: DoctorConfig, tools: Arc<Tools>) -> Vec<Finding> {
    let mut places = vec![Place { name: "the disk of DATA_DIR", path: existing(&config.data_dir) }];
    if config.tools.fleet.is_none()
        && tools.engine.is_local()
        && let Ok(Some(root)) = tools.engine.data_root().await
    {
        places.push(Place { name: "the engine's disk", path: root.into() });
    }
    let rooms =
        blocking(move || places.iter().filter_map(|place| place.room().ok()).collect::<Vec<_>>());
    let finding = |room: Room| {
        let name = "disk";
        let remedy = "Make room: `docker system df` shows what takes it";
        if room.lacks(&config.disk.low) > 0 {
            let detail = room.complaint("DISK_LOW_WATERMARK", &config.disk.low);
            return Finding::fail(name, format!("{detail}: nothing is built"), remedy);
        }
        if room.lacks(&config.disk.high) > 0 {
            let detail = room.complaint("DISK_HIGH_WATERMARK", &config.disk.high);
            return Finding::warn(name, format!("{detail}: the engine will be pruned"), remedy);
        }
        let (free, total) = (Size(room.free), Size(room.total));
        Finding::ok(name, format!("{} has {free} of {total} free", room.place))
    };
    rooms.await.into_iter().map(finding).collect()
}

/// The path, or of its parents the first that is there.
fn existing(path: &Path) -> PathBuf {
    let parent = path.ancestors().find(|parent| parent.exists());
    parent.unwrap_or(Path::new(".")).to_owned()
}

/// What this machine's clock is off by, as the registry or the forge tells the time.
pub(super) async fn clock(config: ToolConfig) -> Vec<Finding> {
    let name = "clock";
    let registry = format!("{}/v2/", config.registry.url.api_base());
    let mut off = None;
    for (who, url) in [("the registry", registry), ("the forge", config.forge.url.clone())] {
        if off.is_none()
            && let Ok(response) = get(&url, None).await
        {
            off = off_by(response.headers()).map(|seconds| (who, seconds));
        }
    }
    vec![match off {
        None => Finding::skip(name, "neither the registry nor the forge tells the time"),
        Some((who, seconds)) => of_clock(who, seconds),
    }]
}

fn of_clock(who: &str, seconds: u64) -> Finding {
    let remedy = "Set the clock, and keep it right with an NTP service";
    let detail = format!("{seconds} s away from that of {who}");
    match seconds {
        CLOCK_FAIL.. => Finding::fail("clock", detail, remedy),
        CLOCK_WARN.. => Finding::warn("clock", detail, remedy),
        _ => Finding::ok("clock", format!("that of {who}")),
    }
}

fn off_by(headers: &HeaderMap) -> Option<u64> {
    let told = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    let now = SystemTime::now();
    let off = now.duration_since(told).or_else(|_| told.duration_since(now)).ok()?;
    Some(off.as_secs())
}

/// Which engine it is.
pub(super) async fn engine(config: DoctorConfig, tools: Arc<Tools>) -> Vec<Finding> {
    let name = "engine";
    if let Some(fleet) = config.tools.fleet {
        return hosts(name, fleet, config.data_dir).await;
    }
    let found = match tools.engine.facts().await {
        Err(fault) => of_fault(name, &fault),
        Ok(facts) => {
            let detail = format!(
                "{}, API {}, {}, {}",
                facts.version, facts.api_version, facts.storage_driver, facts.architecture
            );
            if is_too_old(&facts.api_version) {
                let detail = format!("{detail}: too old");
                Finding::fail(name, detail, "Docker Engine 20.10 or later is needed")
            } else {
                Finding::ok(name, detail)
            }
        }
    };
    let strict = config.tools.engine.builds.tenancy == Tenancy::Strict;
    let apart = if strict && found.status == Status::Ok {
        tools.engine.keeps_users_apart().await
    } else {
        Ok(())
    };
    std::iter::once(found).chain(apart.err().map(|fault| of_fault(name, &fault))).collect()
}

/// Each host of `BUILDKIT_HOST`.
async fn hosts(name: &'static str, settings: FleetSettings, data_dir: PathBuf) -> Vec<Finding> {
    let drain = settings.drain.clone();
    let fleet = match Fleet::new(settings, data_dir) {
        Ok(fleet) => fleet,
        Err(error) => return vec![Finding::fail(name, error.to_string(), "Correct that setting")],
    };
    let look = |host: String| {
        let (fleet, drains) = (fleet.clone(), drain.contains(&host));
        async move {
            let drains = if drains { ", and drains" } else { "" };
            match fleet.look_at(&host).await {
                Ok(()) => Finding::ok(name, format!("BuildKit at {host} answers{drains}")),
                Err(why) => Finding::fail(
                    name,
                    format!("{host}: {why}"),
                    "See that `buildkitd` runs there, and listens to this machine",
                ),
            }
        }
    };
    join_all(fleet.hosts().into_iter().map(look)).await
}

fn is_too_old(api: &str) -> bool {
    let version = api
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    version.is_some_and(|version| version < OLDEST_API)
}

/// Whether the registry takes something, and gives it out by its digest.
pub(super) async fn registry(tools: Arc<Tools>) -> Vec<Finding> {
    let name = "registry";
    let address = tools.registry_name();
    let client = match tools.registry() {
        Ok(client) => client,
        Err(error) => {
            let remedy = "Install the machine's certificates (ca-certificates)";
            return vec![Finding::fail(name, format!("{error:#}"), remedy)];
        }
    };
    vec![match client.try_out(SCRATCH).await {
        Ok(()) => Finding::ok(name, format!("{address} takes pushes, and gives out by digest")),
        Err(fault) => of_fault(name, &fault),
    }]
}

/// Whether the broker answers, and has the queues.
pub(super) async fn broker(whole: Option<Config>) -> Vec<Finding> {
    let name = "broker";
    let Some(config) = whole else {
        return vec![Finding::skip(name, "the settings are not good")];
    };
    let (Some(queues), Some(rabbitmq)) = (wiring::queues(&config), &config.broker.rabbitmq) else {
        return vec![embedded_queue(&config.data_dir.join(QUEUE)).await];
    };
    vec![match queues.look().await {
        Ok(seen) => {
            let missing = seen.iter().filter(|queue| queue.counts.is_none()).count();
            if missing == 0 {
                Finding::ok(name, format!("RabbitMQ answers, and has all {} queues", seen.len()))
            } else {
                let detail = format!(
                    "RabbitMQ answers; {missing} of {} queues are not there: a worker makes them",
                    seen.len()
                );
                Finding::ok(name, detail)
            }
        }
        Err(error) => {
            let remedy =
                format!("Start it, and check {} and the rights of its user", rabbitmq.uri_variable);
            Finding::fail(name, error.to_string(), remedy)
        }
    }]
}

/// Whether the embedded queue can be read, if a worker has made it.
async fn embedded_queue(file: &Path) -> Finding {
    let name = "broker";
    if !file.exists() {
        return Finding::ok(name, "the embedded queue, which the first worker makes");
    }
    match waiting_by_queue(file).await {
        Ok(counted) => {
            let queues = counted.iter().filter(|counted| counted.queue != "dead");
            let all: u64 = queues.map(|it| it.waiting + it.delayed + it.in_hand).sum();
            Finding::ok(name, format!("the embedded queue, with {all} messages"))
        }
        Err(error) => {
            let remedy = "Check the rights on DATA_DIR, and that the disk is whole";
            Finding::fail(name, error.to_string(), remedy)
        }
    }
}

/// Whether the history of builds can be read and written, where it is in a database of somebody else's.
pub(super) async fn history(whole: Option<Config>) -> Vec<Finding> {
    let name = "history";
    let Some(config) = whole else {
        return vec![Finding::skip(name, "the settings are not good")];
    };
    let Some(url) = config.history.database.clone() else {
        return vec![Finding::ok(name, "in a file below DATA_DIR")];
    };
    let looked = async { wiring::build_store(&config, store::Place::Postgres(url))?.look().await };
    vec![match looked.await {
        Ok(()) => Finding::ok(name, "PostgreSQL answers, and can be written"),
        Err(error) => {
            let remedy = "Start it, and check DATABASE_URL and the rights of its user: builds go on \
                          without, but nobody can look them up";
            Finding::fail(name, error.to_string(), remedy)
        }
    }]
}

/// Whether the forge answers, and what it still lets a token ask.
pub(super) async fn forge(forge: ForgeConfig) -> Vec<Finding> {
    let name = "forge";
    let token = std::env::var("GITHUB_TOKEN").ok().filter(|token| !token.trim().is_empty());
    let remedy = "Check the network, the proxy variables and GITHUB_URL";
    let answered = match get(&forge.url, None).await {
        Err(error) => Err(error),
        Ok(response) if response.status().is_server_error() => {
            Err(format!("it answers {}", response.status()))
        }
        Ok(_) => Ok(()),
    };
    if let Err(why) = answered {
        return vec![Finding::fail(name, format!("{}: {why}", forge.url), remedy)];
    }
    let mut found = vec![Finding::ok(name, format!("{} answers", forge.url))];
    let api = format!("{}/rate_limit", forge.api_url);
    found.push(match get(&api, token.as_deref().map(str::trim)).await {
        Err(error) => {
            let detail = format!("{}: {error}", forge.api_url);
            Finding::warn("forge api", detail, "Releases need it: check GITHUB_API_URL")
        }
        Ok(response) => of_api(response.status().as_u16(), response.headers(), token.is_some()),
    });
    found
}

fn of_api(status: u16, headers: &HeaderMap, has_token: bool) -> Finding {
    let name = "forge api";
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if status == 401 && has_token {
        return Finding::fail(name, "GITHUB_TOKEN is refused", "Make a new token");
    }
    let scopes = text("x-oauth-scopes").filter(|scopes| !scopes.is_empty());
    let scopes = match (has_token, scopes) {
        (false, _) => "no token is given (GITHUB_TOKEN)".to_owned(),
        (true, Some(scopes)) => format!("the token has {scopes}"),
        (true, None) => "the token does not say what it may".to_owned(),
    };
    match (text("x-ratelimit-remaining"), text("x-ratelimit-limit")) {
        (Some("0"), _) => Finding::warn(
            name,
            format!("no request is left for now; {scopes}"),
            "Wait, or use a token (GITHUB_TOKEN)",
        ),
        (Some(left), Some(limit)) => {
            Finding::ok(name, format!("{left} of {limit} requests are left; {scopes}"))
        }
        _ => Finding::ok(name, format!("it names no limit; {scopes}")),
    }
}

/// Whether the managers can be reached. They are sent nothing.
pub(super) async fn managers(notify: NotifyConfig) -> Vec<Finding> {
    let managers = [
        ("CONTAINER_MANAGER_URL", notify.container_manager),
        ("CONNECTOR_MANAGER_URL", notify.connector_manager),
    ];
    let mut found = Vec::new();
    for (variable, url) in managers {
        let name = "manager";
        found.push(match url {
            None => Finding::skip(name, format!("{variable} is not set: nobody is notified")),
            Some(url) => match reached(&url).await {
                Ok(()) => Finding::ok(
                    name,
                    format!("{variable}: {} answers", without_credentials(url.as_str())),
                ),
                Err(why) => {
                    let remedy = format!("Start it, or correct {variable}");
                    Finding::fail(name, format!("{variable}: {why}"), remedy)
                }
            },
        });
    }
    found
}

/// Whether a server answers anything at the root of an address; its certificate is checked.
async fn reached(url: &Url) -> Result<(), String> {
    let client = client()?;
    let mut root = url.clone();
    root.set_path("/");
    root.set_query(None);
    client.head(root).send().await.map(drop).map_err(causes)
}

async fn get(url: &str, token: Option<&str>) -> Result<Response, String> {
    let request = client()?.get(url);
    let request = match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    };
    request.send().await.map_err(causes)
}

fn client() -> Result<Client, String> {
    let redirects = reqwest::redirect::Policy::none();
    let builder = http::client().map_err(|error| error.to_string())?;
    builder.user_agent(USER_AGENT).timeout(ANSWER).redirect(redirects).build().map_err(causes)
}

/// A fault of the engine or the registry.
pub(super) fn of_fault(name: &'static str, fault: &Fault) -> Finding {
    let remedy = faults::remedy(fault).map(str::to_owned);
    Finding { remedy, ..Finding::new(name, Status::Fail, fault.message.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    #[test]
    fn a_clock_that_is_off_is_told_by_how_much() {
        for (seconds, status) in
            [(0, Status::Ok), (29, Status::Ok), (30, Status::Warn), (300, Status::Fail)]
        {
            assert_eq!(of_clock("the forge", seconds).status, status, "{seconds}");
        }
        let date = HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT");
        let headers = HeaderMap::from_iter([(DATE, date)]);
        assert!(off_by(&headers) > Some(900_000_000));
        assert_eq!(off_by(&HeaderMap::new()), None);
    }

    #[test]
    fn an_engine_before_20_10_is_too_old() {
        for (api, too_old) in [("1.40", true), ("1.41", false), ("1.51", false), ("", false)] {
            assert_eq!(is_too_old(api), too_old, "{api}");
        }
    }

    #[test]
    fn a_forge_tells_what_is_left_and_what_a_token_may() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            let pair = |(name, value): &(&'static str, &'static str)| {
                (name.parse().expect("a name"), HeaderValue::from_static(value))
            };
            pairs.iter().map(pair).collect()
        };
        let left = |left| [("x-ratelimit-remaining", left), ("x-ratelimit-limit", "60")];
        let found = of_api(200, &headers(&left("59")), false);
        assert_eq!((found.status, found.detail.contains("59 of 60")), (Status::Ok, true));
        assert_eq!(of_api(403, &headers(&left("0")), false).status, Status::Warn);
        assert_eq!(of_api(401, &HeaderMap::new(), true).status, Status::Fail);
        let found = of_api(200, &headers(&[("x-oauth-scopes", "repo, read:org")]), true);
        assert!(found.detail.contains("repo, read:org"), "{found:?}");
    }
}
