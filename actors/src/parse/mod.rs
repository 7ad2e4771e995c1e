//! Reading a build request: every rule of `docs/requests-and-notifications.md`, one clear message a
//! fault.

mod fields;
mod plan;

use serde_json::{Map, Value};

use crate::model::fault::{Fault, Reason, StageName};
use crate::model::limits::Limits;
use crate::model::notification::Subject;
use crate::model::request::{BuildRequest, ForgeName, RepoName, Target};
use fields::{Fields, quote};

/// What a request is checked against.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The forge's address (`GITHUB_URL`), without a trailing slash.
    pub forge_url: String,
    pub limits: Limits,
}

/// A request that breaks a rule.
#[derive(Debug)]
pub struct Rejected {
    pub fault: Fault,
    /// What could be read of it, to notify its owner.
    pub subject: Subject,
}

/// Longest build id, in bytes: as long as a message's own id can be, which any of them may become.
const LONGEST_ID: usize = 255;

/// The build id that a message brings: the body's `uuid`, else the message's own id. `None` where it
/// has neither, or none that can serve as one.
pub fn build_id(body: &[u8], message_id: Option<&str>) -> Option<String> {
    let body: Option<Value> = serde_json::from_slice(body).ok();
    let uuid = body.as_ref().and_then(|body| body.get("uuid")).and_then(Value::as_str);
    [uuid, message_id].into_iter().flatten().find(|id| is_id(id)).map(str::to_owned)
}

fn is_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= LONGEST_ID
}

/// Reads the request in `body`.
///
/// # Errors
///
/// All rules that the request breaks, in one fault.
pub fn parse(body: &[u8], build_id: &str, rules: &Rules) -> Result<BuildRequest, Box<Rejected>> {
    let map = object(body, build_id)?;
    let reject = |fault| Box::new(Rejected { fault, subject: subject(&map, build_id) });
    if body.len() > rules.limits.request_bytes {
        let message = format!(
            "The build request has {} bytes; at most {} are accepted.",
            body.len(),
            rules.limits.request_bytes
        );
        return Err(reject(Fault::new(StageName::Listener, Reason::InvalidRequest, message)));
    }
    let mut faults = Faults::default();
    let request = Reader { map: &map, rules, faults: &mut faults }.request(build_id);
    match (request, faults.into_fault()) {
        (Some(request), None) => Ok(request),
        (_, Some(fault)) => Err(reject(fault)),
        (None, None) => unreachable!("a request that cannot be read has a fault"),
    }
}

fn object(body: &[u8], build_id: &str) -> Result<Map<String, Value>, Box<Rejected>> {
    let message = match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => return Ok(map),
        Ok(other) => {
            format!("The build request must be a JSON object; it is {}.", fields::type_name(&other))
        }
        Err(_) if body.iter().all(u8::is_ascii_whitespace) => {
            "The build request is empty.".to_owned()
        }
        Err(error) => format!(
            "The build request is not JSON: line {}, column {}.",
            error.line(),
            error.column()
        ),
    };
    let fault = Fault::new(StageName::Listener, Reason::InvalidRequest, message);
    let subject = Subject { build_id: build_id.to_owned(), ..Subject::default() };
    Err(Box::new(Rejected { fault, subject }))
}

/// What can be read of a request, whatever else is wrong with it.
fn subject(map: &Map<String, Value>, build_id: &str) -> Subject {
    let nested = map.get("pullInfo").and_then(Value::as_object);
    let text = |name: &str| {
        let value = nested.and_then(|nested| nested.get(name)).or_else(|| map.get(name));
        value.and_then(Value::as_str).filter(|text| !text.trim().is_empty()).map(str::to_owned)
    };
    let repo = text("repo").filter(|repo| repo.len() <= 300 && !repo.contains('@'));
    Subject {
        build_id: build_id.to_owned(),
        user_id: text("userID").filter(|id| fields::is_name(id)),
        application_id: text("applicationID").filter(|id| fields::is_name(id)).or_else(|| {
            repo.as_deref().and_then(|repo| repo.rsplit('/').next()).map(str::to_owned)
        }),
        connector: Some(text("connector").unwrap_or_else(|| ForgeName::Github.as_str().to_owned())),
        repo,
    }
}

/// The faults found so far. They have a reason of their own where all have the same, and are an invalid
/// request otherwise.
#[derive(Default)]
struct Faults(Vec<(Reason, String)>);

impl Faults {
    fn add(&mut self, reason: Reason, message: impl Into<String>) {
        self.0.push((reason, message.into()));
    }

    fn into_fault(self) -> Option<Fault> {
        let (first, _) = self.0.first()?;
        let same = self.0.iter().all(|(reason, _)| reason == first);
        let reason = if same { *first } else { Reason::InvalidRequest };
        let messages: Vec<_> = self.0.into_iter().map(|(_, message)| message).collect();
        Some(Fault::new(StageName::Listener, reason, messages.join(" ")))
    }
}

struct Reader<'a> {
    map: &'a Map<String, Value>,
    rules: &'a Rules,
    faults: &'a mut Faults,
}

impl Reader<'_> {
    fn request(mut self, build_id: &str) -> Option<BuildRequest> {
        let nested = match self.map.get("pullInfo") {
            None | Some(Value::Null) => None,
            Some(Value::Object(nested)) => Some(nested),
            Some(other) => {
                let found = fields::type_name(other);
                self.invalid(format!("`pullInfo` must be an object; it is {found}."));
                return None;
            }
        };
        let prefix = if nested.is_some() { "pullInfo." } else { "" };
        let mut source = Fields::new(nested.unwrap_or(self.map), prefix);
        let mut top = Fields::new(self.map, "");

        let user_id = source.name("userID", true);
        let token = source.secret("token");
        let forge = self.forge(source.text("connector"));
        let repo = self.repo(&mut source);
        let target = if nested.is_some() {
            Some(self.nested_target(&mut source))
        } else {
            self.target(&mut source)
        };
        let application_id = top.name("applicationID", false);
        let force = top.flag("force");
        let _ = top.text("uuid");
        let redrive_of = top.text("redriveOf");
        for name in ["uuid", "redriveOf"] {
            if let Some(id) = self.map.get(name).and_then(Value::as_str)
                && !id.is_empty()
                && !is_id(id)
            {
                self.invalid(format!("`{name}` must have at most {LONGEST_ID} bytes."));
            }
        }
        let plan = plan::read(self.map.get("buildPlan"), self.faults);
        for message in source.faults.into_iter().chain(top.faults) {
            self.invalid(message);
        }
        let repo = repo?;
        Some(BuildRequest {
            build_id: build_id.to_owned(),
            user_id: user_id?,
            application_id: application_id.unwrap_or_else(|| repo.name.clone()),
            forge: forge?,
            repo,
            target: target?,
            token,
            force,
            redrive_of,
            plan,
        })
    }

    fn invalid(&mut self, message: impl Into<String>) {
        self.faults.add(Reason::InvalidRequest, message);
    }

    fn forge(&mut self, connector: Option<String>) -> Option<ForgeName> {
        let Some(name) = connector else { return Some(ForgeName::Github) };
        let forge = ForgeName::from_name(&name);
        if forge.is_none() {
            let message = format!("`connector` {} is not supported; `github` is.", quote(&name));
            self.faults.add(Reason::Unsupported, message);
        }
        forge
    }

    fn repo(&mut self, source: &mut Fields<'_>) -> Option<RepoName> {
        let text = source.required("repo")?;
        if text.contains('@') {
            self.invalid("`repo` must hold no credential and no SSH address: give `owner/name`.");
            return None;
        }
        let Some(path) = self.path_at_forge(&text) else {
            let forge = &self.rules.forge_url;
            let message = format!("`repo` {} is not at the forge {forge}.", quote(&text));
            self.faults.add(Reason::ForbiddenSource, message);
            return None;
        };
        let path = path.trim_end_matches('/');
        let path = path.strip_suffix(".git").unwrap_or(path);
        let repo =
            path.split_once('/').filter(|(owner, name)| is_repo_part(owner) && is_repo_part(name));
        let Some((owner, name)) = repo else {
            self.invalid(format!("`repo` must be `owner/name`; it is {}.", quote(&text)));
            return None;
        };
        Some(RepoName { owner: owner.to_owned(), name: name.to_owned() })
    }

    /// The path in a repository's address, which must be at the forge; a name is its own path.
    fn path_at_forge<'t>(&self, text: &'t str) -> Option<&'t str> {
        let Some((_, address)) = text.split_once("://") else { return Some(text) };
        let forge = &self.rules.forge_url;
        let forge = forge.split_once("://").map_or(forge.as_str(), |(_, forge)| forge);
        strip_prefix_ignoring_case(address, forge)?.strip_prefix('/')
    }

    fn target(&mut self, source: &mut Fields<'_>) -> Option<Target> {
        let kind = source.text("type").unwrap_or_else(|| "repo".to_owned());
        let mut name = || source.required(&kind);
        match kind.as_str() {
            "repo" => Some(Target::DefaultBranch),
            "branch" => self.ref_name("branch", &name()?, "refs/heads/").map(Target::Branch),
            "tag" => self.ref_name("tag", &name()?, "refs/tags/").map(Target::Tag),
            "release" => self.release(&name()?).map(Target::Release),
            "commit" => Some(Target::Commit { id: self.commit(&name()?)?, branch: None }),
            other => {
                let message = format!(
                    "`type` {} is not supported; `repo`, `branch`, `tag`, `release` and `commit` are.",
                    quote(other)
                );
                self.faults.add(Reason::Unsupported, message);
                None
            }
        }
    }

    /// The older shape has no `type`: a commit pins, `latest` or nothing means the branch's head.
    fn nested_target(&mut self, source: &mut Fields<'_>) -> Target {
        let branch = source
            .text("branch")
            .and_then(|branch| self.ref_name("pullInfo.branch", &branch, "refs/heads/"));
        let commit = source.text("commit").filter(|commit| commit != "latest");
        match (commit.and_then(|commit| self.commit(&commit)), branch) {
            (Some(id), branch) => Target::Commit { id, branch },
            (None, Some(branch)) => Target::Branch(branch),
            (None, None) => Target::DefaultBranch,
        }
    }

    fn ref_name(&mut self, field: &str, name: &str, prefix: &str) -> Option<String> {
        let short = name.strip_prefix(prefix).unwrap_or(name);
        if !is_ref_name(short) {
            self.invalid(format!("`{field}` is not a valid ref name: {}.", quote(name)));
            return None;
        }
        Some(short.to_owned())
    }

    fn release(&mut self, name: &str) -> Option<String> {
        if name.len() > 255 || name.chars().any(char::is_control) {
            self.invalid(format!("`release` is not a valid release: {}.", quote(name)));
            return None;
        }
        Some(name.to_owned())
    }

    fn commit(&mut self, id: &str) -> Option<String> {
        let id = id.to_ascii_lowercase();
        if !(4..=40).contains(&id.len()) || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let found = quote(&id);
            self.invalid(format!("`commit` must be 4 to 40 hexadecimal digits; it is {found}."));
            return None;
        }
        Some(id)
    }
}

fn strip_prefix_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

fn is_repo_part(part: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=100).contains(&part.len())
        && part.bytes().all(allowed)
        && !matches!(part, "." | "..")
        && !part.starts_with('-')
}

/// The rules of `git check-ref-format`.
fn is_ref_name(name: &str) -> bool {
    let bad = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
    let bad_part = |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with(".lock");
    name.len() <= 255
        && !name.starts_with('-')
        && !name.ends_with('.')
        && name != "@"
        && !name.contains("..")
        && !name.contains("@{")
        && !name.chars().any(bad)
        && !name.split('/').any(bad_part)
}

#[cfg(test)]
mod tests;
