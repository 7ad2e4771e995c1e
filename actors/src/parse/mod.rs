//! Reading a build request: every rule of `docs/requests-and-notifications.md`, one clear message a
//! fault.

pub(crate) mod base_images;
mod document;
mod fields;
mod plan;
mod repository;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::model::fault::{Fault, Reason, StageName};
use crate::model::identity::BuildIdentity;
use crate::model::limits::Limits;
use crate::model::notification::Subject;
use crate::model::request::{BuildRequest, ForgeName, RepoName, Target};
use crate::model::secret::{Redactor, Secret};
use crate::model::suspect;
use fields::{Fields, quote};

pub(crate) use document::Document;

/// What a request is checked against.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The addresses of the forges that there are, without a trailing slash. Each has one, but for git
    /// servers of no kind, which may be several.
    forges: BTreeMap<ForgeName, Vec<String>>,
    pub limits: Limits,
}

impl Rules {
    /// With GitHub at this address.
    pub fn new(github: &str, limits: Limits) -> Self {
        Self { forges: BTreeMap::new(), limits }.with(ForgeName::Github, github)
    }

    /// The same, with a forge or server more.
    pub fn with(mut self, forge: ForgeName, url: &str) -> Self {
        self.forges.entry(forge).or_default().push(url.trim_end_matches('/').to_owned());
        self
    }

    fn urls(&self, forge: ForgeName) -> &[String] {
        self.forges.get(&forge).map_or(&[], Vec::as_slice)
    }
}

/// A request that breaks a rule.
#[derive(Debug)]
pub struct Rejected {
    pub fault: Fault,
    /// What could be read of it, to notify its owner.
    pub subject: Subject,
}

/// The object that the older shape has, and the field that says whose a request is.
const NESTED: &str = "pullInfo";
/// A commit of the older shape that pins none: the head of the branch.
const LATEST: &str = "latest";
const OWNER: &str = "userID";

/// The fields that stand in `pullInfo` in the older shape, and at the top in the other one.
const SOURCE: [&str; 8] =
    [OWNER, "token", "repo", "connector", "branch", "tag", "release", "commit"];

/// Fields that stand in logs and notifications.
const SHOWN: [&str; 7] =
    ["repo", "connector", "branch", "tag", "release", "commit", "applicationID"];

/// A shorter token, in bytes, may be a word that stands elsewhere by chance.
const TELLING_TOKEN: usize = 12;

/// So many broken rules are told of: their messages are for people.
const MOST_FAULTS: usize = 10;

/// Longest build id, in bytes: as long as a message's own id can be, which any of them may become.
const LONGEST_ID: usize = 255;

/// Longest `tokenRef`, in bytes.
const LONGEST_REFERENCE: usize = 1024;

/// The build that a message asks for. Its id is the body's `uuid`, else the message's own id; `None` where
/// it has neither, or none that can serve as one.
pub fn identity(body: &[u8], message_id: Option<&str>) -> Option<BuildIdentity> {
    let body = Document::read(body).ok();
    let uuid = body.as_ref().and_then(|body| body.value.get("uuid")).and_then(Value::as_str);
    let build_id = [uuid, message_id].into_iter().flatten().find(|id| is_id(id))?;
    Some(BuildIdentity::new(body.as_ref().and_then(owner), build_id))
}

/// Whose request it is, byte by byte, whatever is wrong with it; `None` = it does not say so, or names two.
fn owner(body: &Document) -> Option<&str> {
    let map = body.value.as_object().filter(|_| !body.doubts_its_owner())?;
    let nested = map.get(NESTED).and_then(Value::as_object).and_then(|nested| nested.get(OWNER));
    let [nested, top] = [nested, map.get(OWNER)].map(|id| id.filter(|id| !fields::is_absent(id)));
    if nested.is_some() && top.is_some() && nested != top {
        return None;
    }
    nested.or(top)?.as_str().filter(|id| id.len() <= fields::LONGEST_NAME)
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
    let unread = |fault| {
        let subject = Subject { build_id: build_id.to_owned(), ..Subject::default() };
        Box::new(Rejected { fault, subject })
    };
    let document = read_document(body).map_err(unread)?;
    let Value::Object(map) = &document.value else {
        let found = fields::type_name(&document.value);
        let message = format!("The build request must be a JSON object; it is {found}.");
        return Err(unread(invalid(message)));
    };
    let reject = |fault: Fault| {
        let known = known_credentials(map);
        let subject = subject(&document, map, build_id, &known);
        let fault = Fault { message: known.redact(&fault.message), ..fault };
        Box::new(Rejected { fault, subject })
    };
    if body.len() > rules.limits.request_bytes {
        let message = format!(
            "The build request has {} bytes; at most {} are accepted.",
            body.len(),
            rules.limits.request_bytes
        );
        return Err(reject(invalid(message)));
    }
    if let Some(message) = document.ambiguity() {
        return Err(reject(invalid(message)));
    }
    let mut faults = Faults::default();
    misplaced(map, &mut faults);
    let request = Reader { map, rules, faults: &mut faults }.request(build_id);
    match (request, faults.into_fault()) {
        (Some(request), None) => Ok(request),
        (_, Some(fault)) => Err(reject(fault)),
        (None, None) => unreachable!("a request that cannot be read has a fault"),
    }
}

fn read_document(body: &[u8]) -> Result<Document, Fault> {
    Document::read(body).map_err(|error| {
        if body.iter().all(u8::is_ascii_whitespace) {
            return invalid("The build request is empty.");
        }
        let (line, column) = (error.line(), error.column());
        invalid(format!("The build request is not JSON: line {line}, column {column}."))
    })
}

/// The credentials that stand where credentials stand.
fn known_credentials(map: &Map<String, Value>) -> Redactor {
    let nested = map.get(NESTED).and_then(Value::as_object);
    let tokens = [Some(map), nested].into_iter().flatten().filter_map(|source| source.get("token"));
    let secrets =
        map.get("buildPlan").and_then(|plan| plan.get("secrets")).and_then(Value::as_object);
    let texts = tokens.chain(secrets.into_iter().flat_map(Map::values)).filter_map(Value::as_str);
    let texts = texts.chain(base_images::passwords(map));
    Redactor::new(texts.map(str::trim).map(Secret::new))
}

/// Names the fields that hold the token as well: they are shown to people.
fn misplaced(map: &Map<String, Value>, faults: &mut Faults) {
    let nested = map.get(NESTED).and_then(Value::as_object);
    let sources: Vec<_> = [Some(map), nested].into_iter().flatten().collect();
    let text = |source: &Map<String, Value>, name: &str| {
        source.get(name).and_then(Value::as_str).map(|text| text.trim().to_owned())
    };
    let tokens: Vec<_> = sources
        .iter()
        .filter_map(|source| text(source, "token"))
        .filter(|token| token.len() >= TELLING_TOKEN)
        .collect();
    for source in sources {
        for name in SHOWN {
            let shown = text(source, name).unwrap_or_default();
            if tokens.iter().any(|token| shown.contains(token)) {
                let message = format!("`{name}` holds the token, and is no place for it.");
                faults.add(Reason::InvalidRequest, message);
            }
        }
    }
}

fn invalid(message: impl Into<String>) -> Fault {
    Fault::new(StageName::Listener, Reason::InvalidRequest, message)
}

/// What can be read of a request, whatever else is wrong with it.
fn subject(
    document: &Document,
    map: &Map<String, Value>,
    build_id: &str,
    known: &Redactor,
) -> Subject {
    let nested = map.get(NESTED).and_then(Value::as_object);
    let text = |name: &str| {
        let value = nested.and_then(|nested| nested.get(name)).or_else(|| map.get(name));
        let text = value.and_then(Value::as_str).filter(|text| !text.trim().is_empty());
        text.filter(|text| known.redact(text) == *text)
    };
    let repo = text("repo").filter(|repo| repo.contains('/') && is_plain(repo, "/.:-_"));
    let application = text("applicationID").filter(|id| fields::is_name(id) && !suspect::text(id));
    let connector =
        text("connector").filter(|name| is_plain(name, "-_") && !suspect::looks_random(name));
    let connector =
        connector.or_else(|| text("connector").is_none().then(|| ForgeName::Github.as_str()));
    Subject {
        build_id: build_id.to_owned(),
        user_id: owner(document).map(str::to_owned),
        application_id: application
            .or_else(|| repo.and_then(|repo| repo.rsplit('/').next()))
            .map(str::to_owned),
        connector: connector.map(str::to_owned),
        repo: repo.map(str::to_owned),
    }
}

/// Whether a text is short, has letters, digits and these marks alone, and is no credential: what is in a
/// wrong field is not to be repeated.
fn is_plain(text: &str, marks: &str) -> bool {
    text.len() <= 300
        && text.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(c))
        && !suspect::text(text)
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
        let rest = self.0.len().saturating_sub(MOST_FAULTS);
        let mut messages: Vec<_> = self.0.into_iter().map(|(_, message)| message).collect();
        messages.truncate(MOST_FAULTS);
        if rest > 0 {
            messages.push(format!("{rest} more rules are broken."));
        }
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
        let nested = match self.map.get(NESTED) {
            None | Some(Value::Null) => None,
            Some(Value::Object(nested)) => Some(nested),
            Some(other) => {
                let found = fields::type_name(other);
                self.invalid(format!("`pullInfo` must be an object; it is {found}."));
                return None;
            }
        };
        if let Some(nested) = nested {
            self.one_shape(nested);
        }
        let prefix = if nested.is_some() { "pullInfo." } else { "" };
        let mut source = Fields::new(nested.unwrap_or(self.map), prefix);
        let mut top = Fields::new(self.map, "");

        let user_id = source.name("userID", true);
        let token = source.secret("token");
        let token_ref = self.token_ref(&mut top, token.is_some());
        let forge = self.forge(source.text("connector"));
        let repo = self.repo(&mut source, forge.unwrap_or(ForgeName::Github));
        let target = if nested.is_some() {
            Some(self.nested_target(&mut source))
        } else {
            self.target(&mut source)
        };
        let application_id = top.name("applicationID", false);
        let force = top.flag("force");
        let supersede = top.flag("supersede");
        let commit_status = top.flag("commitStatus");
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
        let mut plan = plan::read(self.map.get("buildPlan"), self.faults);
        let registry_auth = base_images::registry_auth(&mut top);
        if plan.registry_auth.is_empty() {
            plan.registry_auth = registry_auth;
        } else if !registry_auth.is_empty() {
            self.invalid("`registryAuth` stands in `buildPlan` and beside it; give it once.");
        }
        for message in source.faults.into_iter().chain(top.faults) {
            self.invalid(message);
        }
        let repo = repo?;
        Some(BuildRequest {
            build_id: build_id.to_owned(),
            user_id: user_id?,
            application_id: application_id
                .unwrap_or_else(|| repository::without_git(&repo.name).to_owned()),
            forge: forge?,
            repo,
            target: target?,
            token,
            token_ref,
            force,
            supersede,
            commit_status,
            redrive_of,
            plan,
        })
    }

    /// Both shapes may be there, if they say the same.
    fn one_shape(&mut self, nested: &Map<String, Value>) {
        let present = |map: &Map<String, Value>, name: &str| {
            map.get(name).filter(|value| !fields::is_absent(value)).cloned()
        };
        let pinned = present(nested, "commit").is_some_and(|commit| commit != LATEST);
        let asked_for = match present(nested, "branch") {
            _ if pinned => "commit",
            Some(_) => "branch",
            None => "repo",
        };
        let mut differ: Vec<&str> = SOURCE
            .into_iter()
            .filter(|name| {
                let top = present(self.map, name);
                top.is_some() && top != present(nested, name)
            })
            .collect();
        if present(self.map, "type").is_some_and(|kind| kind != asked_for) {
            differ.push("type");
        }
        for name in differ {
            self.invalid(format!(
                "`{name}` and `{NESTED}` do not say the same; give the one or the other."
            ));
        }
    }

    fn invalid(&mut self, message: impl Into<String>) {
        self.faults.add(Reason::InvalidRequest, message);
    }

    fn forge(&mut self, connector: Option<String>) -> Option<ForgeName> {
        let Some(name) = connector else { return Some(ForgeName::Github) };
        let forge = ForgeName::from_name(&name).filter(|forge| !self.rules.urls(*forge).is_empty());
        if forge.is_none() {
            let known = self.rules.forges.keys().map(|forge| format!("`{}`", forge.as_str()));
            let known = known.collect::<Vec<_>>().join(", ");
            let message = format!(
                "`connector` {} is not supported by this build service; it knows {known}.",
                quote(&name)
            );
            self.faults.add(Reason::Unsupported, message);
        }
        forge
    }

    /// It may be a credential by mistake, so it is never repeated.
    fn token_ref(&mut self, top: &mut Fields<'_>, has_token: bool) -> Option<String> {
        let reference = top.text("tokenRef")?;
        if reference.len() > LONGEST_REFERENCE || reference.chars().any(char::is_control) {
            let what =
                format!("must have at most {LONGEST_REFERENCE} bytes and no control characters");
            top.fault("tokenRef", &what);
        }
        if has_token {
            top.fault("tokenRef", "stands beside `token`; give the one or the other");
        }
        Some(reference)
    }

    fn repo(&mut self, source: &mut Fields<'_>, forge: ForgeName) -> Option<RepoName> {
        let text = source.required("repo")?;
        let read = repository::read(&text, forge, self.rules);
        read.map_err(|(reason, message)| self.faults.add(reason, message)).ok()
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
        let commit = source.text("commit").filter(|commit| commit != LATEST);
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
        // It becomes part of an address at the forge, whatever that makes of dots.
        let leads_away = name.split(['/', '\\']).any(|part| matches!(part, "." | ".."));
        if name.len() > 255 || name.chars().any(char::is_control) || leads_away {
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
