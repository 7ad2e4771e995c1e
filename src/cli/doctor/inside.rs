//! What a step of a build sees: a tiny build finds out.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use image_builder_actors::model::build_log::{BuildEvent, BuildLog, BuildLogListener};
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::image::{BuildKey, ImageLocation};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::request::{
    BuildRequest, BuilderKind, ForgeName, PlanRequest, RepoName, Target,
};
use image_builder_actors::model::secret::Redactor;
use image_builder_actors::ports::{BuildOrder, ImageBuilder, Plan};
use reqwest::Url;

use super::Finding;
use super::checks::of_fault;
use crate::blocking::blocking;
use crate::wiring::tools::Tools;

/// What the build itself is called among the findings.
pub(super) const BUILD: &str = "build";

/// Small images that many engines have.
const USUAL: [&str; 5] = [
    "debian:bookworm-slim",
    "debian:stable-slim",
    "ubuntu:latest",
    "alpine:latest",
    "node:18-slim",
];
/// What a step runs.
const PROBE: &str = include_str!("probe.sh");
/// Begins each line that a probe writes.
const MARK: &str = "probe ";

/// Builds from `image`, or from one that the engine has.
pub(super) async fn look(
    tools: Arc<Tools>,
    image: Option<String>,
    forge: String,
    folder: PathBuf,
) -> Vec<Finding> {
    let base = match base(&tools, image).await {
        Ok(Some(base)) => base,
        Ok(None) => {
            let detail = format!("none of {} is on the engine: not looked at", USUAL.join(", "));
            let remedy = "Name an image with --image, or pull one of them";
            return vec![Finding::warn(BUILD, detail, remedy)];
        }
        Err(fault) => {
            return vec![Finding::skip(BUILD, format!("no engine: {}", fault.message))];
        }
    };
    let Ok(forge) = Url::parse(&forge) else {
        return vec![Finding::skip(BUILD, "GITHUB_URL is no address")];
    };
    let begun = Instant::now();
    match build(&tools, &base, &forge, folder).await {
        Ok(seen) => {
            let seconds = begun.elapsed().as_secs_f64();
            let built = Finding::ok(BUILD, format!("a step from {base} ran, in {seconds:.1} s"));
            let has_proxy = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"]
                .iter()
                .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
            std::iter::once(built).chain(findings(&seen, &forge, has_proxy)).collect()
        }
        Err(fault) => vec![of_fault(BUILD, &fault)],
    }
}

async fn base(tools: &Tools, image: Option<String>) -> Result<Option<String>, Fault> {
    if image.is_some() {
        return Ok(image);
    }
    for name in USUAL {
        if tools.engine.image_detail(name).await?.is_some() {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

/// What the probe said, by what it was about.
type Said = HashMap<String, String>;

async fn build(tools: &Tools, base: &str, forge: &Url, folder: PathBuf) -> Result<Said, Fault> {
    let folder = folder.join("doctor");
    // A different one each time, so that the step runs.
    let dockerfile = format!(
        "FROM {base}\nCOPY probe.sh /image-builder-probe.sh\nARG RUN_ID HOST PORT URL\n\
         RUN sh /image-builder-probe.sh\n"
    );
    let to = folder.clone();
    let written = blocking(move || {
        fs::create_dir_all(&to)?;
        fs::write(to.join("Dockerfile"), dockerfile)?;
        fs::write(to.join("probe.sh"), PROBE)
    });
    written.await.map_err(|error| {
        let message = format!("cannot write to {}: {error}", folder.display());
        Fault::new(StageName::Builder, Reason::DiskLow, message)
    })?;
    let id = uuid::Uuid::new_v4().to_string();
    let arguments = [
        ("RUN_ID", id.clone()),
        ("HOST", forge.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned()),
        ("PORT", forge.port_or_known_default().unwrap_or(443).to_string()),
        ("URL", forge.to_string()),
    ];
    let plan = Plan {
        builder: BuilderKind::Dockerfile,
        context: folder,
        dockerfile: "Dockerfile".to_owned(),
        target: None,
        build_args: arguments.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        secrets: BTreeMap::new(),
        fingerprint: id.clone(),
    };
    let reference =
        ImageReference::for_build(&tools.registry_name(), "image-builder", "doctor", "latest");
    let order = BuildOrder {
        key: BuildKey::of(&request(&id), "", &plan.fingerprint),
        build_id: id.clone(),
        plan,
        labels: BTreeMap::new(),
        reference: reference.clone(),
    };
    let said = Arc::new(Listener::default());
    let log = BuildLog::new(&id, Redactor::default()).with_listener(said.clone());
    if let ImageLocation::OnEngine(image) = tools.engine.build(&order, &log).await? {
        // With its only name the image goes.
        tools.engine.rename(&image.id, &reference, &[]).await?;
    }
    let said = std::mem::take(&mut *said.0.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(said)
}

/// Nobody asked for this build; its key has to be made of something.
fn request(id: &str) -> BuildRequest {
    BuildRequest {
        build_id: id.to_owned(),
        user_id: "image-builder".to_owned(),
        application_id: "doctor".to_owned(),
        forge: ForgeName::Github,
        repo: RepoName { owner: "image-builder".to_owned(), name: "doctor".to_owned() },
        target: Target::DefaultBranch,
        token: None,
        force: true,
        redrive_of: None,
        plan: PlanRequest::default(),
    }
}

/// Keeps what the probe says.
#[derive(Debug, Default)]
struct Listener(Mutex<Said>);

impl BuildLogListener for Listener {
    fn hear(&self, event: &BuildEvent) {
        let BuildEvent::Output(line) = event else { return };
        let Some(said) = line.strip_prefix(MARK) else { return };
        let (about, what) = said.split_once(' ').unwrap_or((said, ""));
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(about.to_owned(), what.trim().to_owned());
    }
}

/// What is to be thought of what the probe said. `has_proxy` = this program has a proxy of its own.
fn findings(said: &Said, forge: &Url, has_proxy: bool) -> Vec<Finding> {
    let host = forge.host_str().unwrap_or_default();
    let of = |about: &str| said.get(about).map(String::as_str);
    let network =
        "Check the engine's network, its `dns` and its proxies, or set BUILDER_NETWORK=host";
    let dns = match of("dns") {
        None => Finding::skip("step dns", "the image has no getent to ask with"),
        Some("none") => Finding::fail("step dns", format!("a step cannot resolve {host}"), network),
        Some(addresses) => Finding::ok("step dns", format!("{host} is {addresses}")),
    };
    let ipv6 = match of("ipv6") {
        Some("yes") => Finding::ok("step ipv6", "a step has an address"),
        _ => Finding::ok("step ipv6", "a step has none: it reaches IPv4 alone"),
    };
    let proxy = match of("proxy").unwrap_or_default() {
        "" if has_proxy => Finding::warn(
            "step proxy",
            "there is a proxy here, and none in a step",
            "Set it in the engine's client configuration, or as a build argument (HTTPS_PROXY)",
        ),
        "" => Finding::ok("step proxy", "none, as here"),
        names => Finding::ok("step proxy", names),
    };
    let certificates = match (of("tls"), of("tcp")) {
        (Some("ok"), _) if forge.scheme() == "https" => {
            Finding::ok("step tls", format!("{host} answers, and its certificate is trusted"))
        }
        (Some("ok"), _) => Finding::ok("step tls", format!("{host} answers, without TLS")),
        (Some(why), _) => {
            let why = if why.is_empty() { "no answer" } else { why };
            Finding::fail("step tls", format!("{forge}: {why}"), network)
        }
        (None, Some("ok")) => Finding::skip(
            "step tls",
            format!(
                "{host} can be reached; its certificate needs curl, wget or python3 in the image"
            ),
        ),
        (None, Some(_)) => {
            Finding::fail("step tls", format!("a step cannot reach {host}"), network)
        }
        (None, None) => Finding::skip("step tls", "the image has nothing to ask with"),
    };
    let mirror = match of("mirror").and_then(|said| said.split_once(' ')) {
        None => Finding::skip("step mirror", "the image names none, or has nothing to ask with"),
        Some(("ok", host)) => Finding::ok("step mirror", format!("{host} can be reached")),
        Some((_, host)) => Finding::warn(
            "step mirror",
            format!("a step cannot reach {host}, where its packages come from"),
            "Use base images with a mirror that can be reached",
        ),
    };
    vec![dns, ipv6, proxy, certificates, mirror]
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn found(lines: &[&str], has_proxy: bool) -> Vec<(&'static str, Status)> {
        let listener = Listener::default();
        for line in lines {
            listener.hear(&BuildEvent::Output((*line).to_owned()));
        }
        let said = listener.0.lock().expect("no test panics with it");
        let forge = Url::parse("https://forge.example").expect("an address");
        findings(&said, &forge, has_proxy).into_iter().map(|it| (it.check, it.status)).collect()
    }

    #[test]
    fn what_a_step_sees_is_judged() {
        let good = [
            "probe dns 192.0.2.1 2001:db8::1 ",
            "probe ipv6 yes",
            "probe proxy ",
            "probe tls ok",
            "probe mirror ok mirror.example",
            "something else",
        ];
        assert!(found(&good, false).iter().all(|(_, status)| *status == Status::Ok));
        let bad = ["probe dns none", "probe tls curl: (60) self-signed", "probe mirror failed m"];
        assert_eq!(
            found(&bad, true),
            [
                ("step dns", Status::Fail),
                ("step ipv6", Status::Ok),
                ("step proxy", Status::Warn),
                ("step tls", Status::Fail),
                ("step mirror", Status::Warn),
            ]
        );
        let poor = found(&["probe tcp ok"], false);
        assert_eq!((poor[0].1, poor[3].1, poor[4].1), (Status::Skip, Status::Skip, Status::Skip));
    }
}
