//! What only the engine can find out: whether it pushes to the registry, and what a step of a build sees. Two
//! tiny builds tell.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use image_builder_actors::model::build_log::{BuildEvent, BuildLog, BuildLogListener};
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::image::{BuildKey, BuiltImage, ImageLocation};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::request::{
    BuildRequest, BuilderKind, ForgeName, PlanRequest, RepoName, Target,
};
use image_builder_actors::model::secret::Redactor;
use image_builder_actors::ports::{BuildOrder, ImageBuilder, Plan, Registry};
use reqwest::Url;

use super::Finding;
use super::checks::of_fault;
use super::reach::Reach;
use crate::blocking::blocking;
use crate::wiring::tools::Tools;

/// What the build itself is called among the findings.
pub(super) const BUILD: &str = "build";
/// And a push by the engine.
pub(super) const PUSH: &str = "push";

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
    reach: Reach,
    folder: PathBuf,
) -> Vec<Finding> {
    let base = match base(&tools, image).await {
        Ok(Some(base)) => base,
        Ok(None) => {
            let detail = format!("none of {} is on the engine: not looked at", USUAL.join(", "));
            let remedy = "Name an image with --image, or pull one of them";
            return vec![Finding::warn(BUILD, detail, remedy)];
        }
        Err(fault) => return vec![of_engine(BUILD, &fault)],
    };
    let Ok(forge) = Url::parse(&forge) else {
        return vec![Finding::skip(BUILD, "GITHUB_URL is no address")];
    };
    let begun = Instant::now();
    match probe(&tools, &base, &forge, &reach, folder).await {
        Ok(seen) => {
            let seconds = begun.elapsed().as_secs_f64();
            let ran = format!("BuildKit ran a step from {base}, in {seconds:.1} s");
            let built = Finding::ok(BUILD, ran);
            let has_proxy = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"]
                .iter()
                .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
            let mut found = vec![built];
            found.extend(findings(&seen, &forge, has_proxy));
            found.push(reach.finding(&seen));
            found
        }
        Err(fault) => vec![of_engine(BUILD, &fault)],
    }
}

/// What came of a build. That the engine is away is said by the check of the engine.
fn of_engine(name: &'static str, fault: &Fault) -> Finding {
    match fault.reason {
        Reason::EngineDown => Finding::skip(name, "no engine"),
        _ => of_fault(name, fault),
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

/// Has the engine push an image of one small file, and looks for it in the registry.
pub(super) async fn push(tools: Arc<Tools>, folder: PathBuf) -> Vec<Finding> {
    let id = uuid::Uuid::new_v4().to_string();
    let files = [("Dockerfile", "FROM scratch\nCOPY id /\n".to_owned()), ("id", id.clone())];
    let pushed = async {
        let folder = folder.join("push");
        let order = order(&tools, &id, folder.clone(), BTreeMap::new());
        let log = BuildLog::new(&id, Redactor::default());
        let image = build(&tools, &order, folder, files.to_vec(), &log).await?;
        let pushed = tools.engine.push(&image, &order.reference, &log).await;
        forget(&tools, &image, &order).await?;
        Ok((order.reference, pushed?))
    };
    let (reference, digest) = match pushed.await {
        Ok(pushed) => pushed,
        Err(fault) => return vec![of_push(&fault)],
    };
    let Ok(registry) = tools.registry() else {
        return vec![Finding::ok(PUSH, format!("the engine pushed {reference}"))];
    };
    vec![match registry.find(&reference.with_tag(&digest)).await {
        Ok(Some(_)) => {
            // Most registries keep it: it has a few hundred bytes, and the next one takes its tag.
            let _ = registry.remove(&reference, &digest).await;
            Finding::ok(
                PUSH,
                format!("the engine pushed {reference}, and it is there by its digest"),
            )
        }
        Ok(None) => Finding::fail(
            PUSH,
            format!("the engine pushed {reference}, and the registry does not have {digest}"),
            "Check that engine and worker mean the same registry by REGISTRY_URL",
        ),
        Err(fault) => of_fault(PUSH, &fault),
    }]
}

fn of_push(fault: &Fault) -> Finding {
    // The engine speaks TLS to whatever it is not told about.
    if fault.message.contains("HTTP response to HTTPS client") {
        let remedy = "Name the registry in the engine's `insecure-registries`";
        return Finding::fail(PUSH, fault.message.clone(), remedy);
    }
    of_engine(PUSH, fault)
}

/// Has a step tell what it sees.
async fn probe(
    tools: &Tools,
    base: &str,
    forge: &Url,
    reach: &Reach,
    folder: PathBuf,
) -> Result<Said, Fault> {
    let folder = folder.join("probe");
    let id = uuid::Uuid::new_v4().to_string();
    let dockerfile = format!(
        "FROM {base}\nCOPY probe.sh /image-builder-probe.sh\nARG RUN_ID HOST PORT URL TARGETS\n\
         RUN sh /image-builder-probe.sh\n"
    );
    let arguments = [
        // Another one each time, so that the step runs.
        ("RUN_ID", id.clone()),
        ("HOST", forge.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned()),
        ("PORT", forge.port_or_known_default().unwrap_or(443).to_string()),
        ("URL", forge.to_string()),
        ("TARGETS", reach.argument()),
    ];
    let arguments = arguments.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let said = Arc::new(Listener::default());
    let log = BuildLog::new(&id, Redactor::default()).with_listener(said.clone());
    let order = order(tools, &id, folder.clone(), arguments);
    let files = vec![("Dockerfile", dockerfile), ("probe.sh", PROBE.to_owned())];
    let image = build(tools, &order, folder, files, &log).await?;
    forget(tools, &image, &order).await?;
    let said = std::mem::take(&mut *said.0.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(said)
}

/// Builds what these files are.
async fn build(
    tools: &Tools,
    order: &BuildOrder,
    folder: PathBuf,
    files: Vec<(&'static str, String)>,
    log: &BuildLog,
) -> Result<BuiltImage, Fault> {
    let write = move || {
        fs::create_dir_all(&folder)?;
        files.iter().try_for_each(|(name, text)| fs::write(folder.join(name), text))
    };
    blocking(write).await.map_err(|error: io::Error| {
        let message = format!("cannot write to the folder for temporary files (TMPDIR): {error}");
        Fault::new(StageName::Builder, Reason::DiskLow, message)
    })?;
    match tools.engine.build(order, log).await? {
        ImageLocation::OnEngine(image) => Ok(image),
        ImageLocation::InRegistry(_) | ImageLocation::Pushed { .. } => {
            let message = "the engine did not keep the image";
            Err(Fault::new(StageName::Builder, Reason::EngineFailed, message))
        }
    }
}

/// Removes the image: with its only name it goes.
async fn forget(tools: &Tools, image: &BuiltImage, order: &BuildOrder) -> Result<(), Fault> {
    tools.engine.rename(&image.id, &order.reference, &[]).await
}

fn order(
    tools: &Tools,
    id: &str,
    context: PathBuf,
    build_args: BTreeMap<String, String>,
) -> BuildOrder {
    let plan = Plan {
        builder: BuilderKind::Dockerfile,
        context,
        dockerfile: "Dockerfile".to_owned(),
        target: None,
        build_args,
        secrets: BTreeMap::new(),
        platforms: Vec::new(),
        registry_auth: BTreeMap::new(),
        fingerprint: id.to_owned(),
    };
    BuildOrder {
        build_id: id.to_owned(),
        key: BuildKey::of(&request(id), "", &plan.fingerprint),
        plan,
        labels: BTreeMap::new(),
        reference: ImageReference::for_build(
            &tools.registry_name(),
            "image-builder",
            "doctor",
            "latest",
        ),
    }
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
        supersede: false,
        commit_status: false,
        redrive_of: None,
        token_ref: None,
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

/// What to do where a step does not get to what it should.
const NETWORK: &str = "Check the engine's `dns`, its proxies and its machine's firewall; a private address needs \
    BUILDER_ALLOW_CIDR where the rules of `image-builder build-network` stand";
/// What to do where a step gets there, and does not believe what answers.
const TRUST: &str = "Put the authority that signed it among the base image's certificates (ca-certificates), and have a \
    proxy that opens TLS leave this host alone";

/// Whether what a client says is about the server's certificate.
fn is_untrusted(said: &str) -> bool {
    let said = said.to_ascii_lowercase();
    said.contains("certificate") || said.contains("self-signed") || said.contains("(60)")
}

/// What is to be thought of what the probe said. `has_proxy` = this program has a proxy of its own.
fn findings(said: &Said, forge: &Url, has_proxy: bool) -> Vec<Finding> {
    let host = forge.host_str().unwrap_or_default();
    let of = |about: &str| said.get(about).map(String::as_str);
    let dns = match of("dns") {
        None => Finding::skip("step dns", "the image has no getent to ask with"),
        Some("none") => Finding::fail("step dns", format!("a step cannot resolve {host}"), NETWORK),
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
            let remedy = if is_untrusted(why) { TRUST } else { NETWORK };
            Finding::fail("step tls", format!("{forge}: {why}"), remedy)
        }
        (None, Some("ok")) => Finding::skip(
            "step tls",
            format!(
                "{host} can be reached; its certificate needs curl, wget or python3 in the image"
            ),
        ),
        (None, Some(_)) => {
            Finding::fail("step tls", format!("a step cannot reach {host}"), NETWORK)
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
        for (said, remedy) in [
            ("curl: (60) SSL certificate problem: self-signed certificate", TRUST),
            ("wget: The certificate of 'forge.example' is not trusted.", TRUST),
            ("curl: (28) Connection timed out", NETWORK),
            ("", NETWORK),
        ] {
            let said = Said::from([("tls".to_owned(), said.to_owned())]);
            let forge = Url::parse("https://forge.example").expect("an address");
            let found = findings(&said, &forge, false);
            assert_eq!(found[3].remedy.as_deref(), Some(remedy), "{said:?}");
        }
        let poor = found(&["probe tcp ok"], false);
        assert_eq!((poor[0].1, poor[3].1, poor[4].1), (Status::Skip, Status::Skip, Status::Skip));
    }
}
