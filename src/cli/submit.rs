//! `image-builder submit`: asks a service for a build.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::api::client::{Client, Failure};
use super::api::events::{Followed, follow};
use super::api::outcome;
use super::api::screen::{Colours, log_line};
use super::dead_letters::given::{GivenError, token};
use super::{environment, print, until_interrupted, wait_for};
use crate::config::ConfigErrors;
use crate::exit::Exit;
use crate::text::{ascii, plain};

/// Longest request that is read, in bytes: no service takes a longer one.
const LONGEST: u64 = 512 * 1024;
/// How often a request is sent, where the answer is lost.
const TRIES: u32 = 4;

/// Ask a service for a build.
///
/// Prints the build's id; with --wait its log on the standard error stream, and the image's name once it is
/// there. The service is the one at IMAGE_BUILDER_URL, else the one at HTTP_ADDR on this machine; API_TOKEN is
/// sent where it is set. The forge's token for a private repository is read from IMAGE_BUILDER_TOKEN or
/// IMAGE_BUILDER_TOKEN_FILE.
#[derive(Debug, Default, Args)]
#[command(after_long_help = "\
Exit codes:
  0    asked for; with --wait: the image is in the registry
  1    the request is wrong; with --wait: the build failed by its own fault, or was cancelled
  64   usage
  69   the service is not available; with --wait: a service that the build takes failed
  75   temporary failure: try it again
  78   bad settings, or the service does not take the token
  130  interrupted; the build goes on

Examples:
  image-builder submit owner/name --wait
  image-builder submit owner/name@v1.2 --type tag --user alice --app shop
  image-builder submit --file request.json --json

`image-builder config --example` lists the settings, and docs/settings.md explains them.")]
pub struct Arguments {
    /// What is to be built: a repository, and the branch, commit (7 to 40 hexadecimal digits) or whatever --type
    /// says
    #[arg(
        value_name = "OWNER/NAME[@REF]",
        required_unless_present = "file",
        conflicts_with = "file"
    )]
    repository: Option<String>,
    /// What REF is, where it is neither a branch nor a commit
    #[arg(long = "type", value_name = "TYPE", requires = "repository")]
    kind: Option<Kind>,
    /// Whose build it is [default: the user of this machine who asks]
    #[arg(long, value_name = "USER", conflicts_with = "file")]
    user: Option<String>,
    /// The application that the image is for [default: the repository's name]
    #[arg(long, value_name = "APPLICATION", conflicts_with = "file")]
    app: Option<String>,
    /// The build's id; the same request under the same id is not built twice [default: a fresh one]
    #[arg(long, value_name = "ID", conflicts_with = "file")]
    uuid: Option<String>,
    /// Build even where there is an image of the same inputs
    #[arg(long, conflicts_with = "file")]
    force: bool,
    /// Read the whole request, as JSON, from a file, or from the standard input (-)
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Wait until the build has ended, and end as it did
    #[arg(long)]
    wait: bool,
    /// Print lines of JSON: what was asked for, and with --wait the outcome
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Branch,
    Tag,
    Release,
    Commit,
}

impl Kind {
    /// The value of the request's `type`, and the field that then says which.
    fn field(self) -> &'static str {
        match self {
            Kind::Branch => "branch",
            Kind::Tag => "tag",
            Kind::Release => "release",
            Kind::Commit => "commit",
        }
    }

    /// What a ref is that nobody says anything of.
    fn of(name: &str) -> Self {
        let is_commit =
            (7..=40).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_commit { Kind::Commit } else { Kind::Branch }
    }
}

/// What cannot be made a request of. Quotes no credential.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("cannot read {file}: {error}")]
    Unreadable { file: String, error: std::io::Error },
    #[error("{0} is longer than any request may be")]
    TooLong(String),
    #[error("--user: say whose build it is; this machine does not know who asks")]
    NoUser,
    #[error("--type {0}: write which one behind the repository, as owner/name@{0}")]
    NoRef(&'static str),
    #[error("{0}")]
    Token(#[from] GivenError),
}

/// # Errors
///
/// Bad settings.
pub fn run(arguments: &Arguments) -> Result<Exit, ConfigErrors> {
    let config = environment()?.api()?;
    let body = match body(arguments) {
        Ok(body) => body,
        Err(error) => {
            eprintln!("image-builder: {error}");
            return Ok(Exit::Usage);
        }
    };
    Ok(wait_for(until_interrupted(async {
        let client = Client::new(&config);
        submit(&client, body, arguments).await.unwrap_or_else(|failure| failure.told())
    })))
}

async fn submit(client: &Client, body: Vec<u8>, arguments: &Arguments) -> Result<Exit, Failure> {
    let user = owner(&body);
    let submitted = sent(client, body).await?;
    let id = submitted["buildID"].as_str().unwrap_or_default();
    let shown = plain(id);
    if arguments.json {
        print(&format!("{}\n", ascii(&submitted)));
    } else if !arguments.wait {
        return Ok(print(&format!("{shown}\n")));
    }
    if !arguments.wait {
        return Ok(Exit::Ok);
    }
    eprintln!("build {shown}");
    let ended = follow(client, id, user.as_deref(), true, progress()).await?;
    match outcome::image(&ended).filter(|_| !arguments.json) {
        Some(image) => {
            eprintln!("-- ready");
            print(&format!("{image}\n"));
        }
        None => {
            if arguments.json {
                print(&format!("{}\n", ascii(&ended)));
            }
            eprintln!("{}", outcome::sentence(&ended));
        }
    }
    Ok(outcome::exit(&ended))
}

/// Sends the request. It has an id, so that it can be sent again where its answer is lost.
async fn sent(client: &Client, body: Vec<u8>) -> Result<Value, Failure> {
    let mut tries = 1;
    loop {
        match client.post("/builds", body.clone()).await {
            Err(Failure::Lost(_) | Failure::Refused { status: 408 | 429 | 503, .. })
                if tries < TRIES =>
            {
                tokio::time::sleep(std::time::Duration::from_secs(1) * tries).await;
                tries += 1;
            }
            answer => return answer,
        }
    }
}

/// Tells of a build that is followed, on the standard error stream.
fn progress() -> impl FnMut(Followed<'_>) {
    let mut told = String::new();
    let colours = Colours::of_stderr();
    move |followed| match followed {
        Followed::Line(line) => eprintln!("{}", log_line(line, colours)),
        // How it ended is told when all of the log is.
        Followed::State("ready" | "failed" | "cancelled") => {}
        Followed::State(state) if state != told => {
            state.clone_into(&mut told);
            eprintln!("-- {}", plain(state));
        }
        Followed::State(_) => {}
        Followed::Away(why) => eprintln!("-- {}; trying again", plain(why)),
    }
}

/// Whose build a request asks for, where it says so in so many words.
fn owner(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let of = |map: &Value| map["userID"].as_str().map(str::to_owned);
    of(&body["pullInfo"]).or_else(|| of(&body))
}

fn body(arguments: &Arguments) -> Result<Vec<u8>, Unusable> {
    if let Some(file) = &arguments.file {
        return read(file).map(with_id);
    }
    let repository = arguments.repository.as_deref().unwrap_or_default();
    let (repo, name) = match repository.rsplit_once('@') {
        Some((repo, name)) if !name.is_empty() => (repo, Some(name)),
        _ => (repository, None),
    };
    let user = arguments.user.clone().or_else(user_of_machine).ok_or(Unusable::NoUser)?;
    let id = arguments.uuid.clone().unwrap_or_else(|| Uuid::new_v4().to_string());
    if let (Some(kind), None) = (arguments.kind, name) {
        return Err(Unusable::NoRef(kind.field()));
    }
    let mut request = Map::new();
    let mut set = |field: &str, value: Value| request.insert(field.to_owned(), value);
    set("uuid", json!(id));
    set("userID", json!(user));
    set("repo", json!(repo));
    if let Some(name) = name {
        let kind = arguments.kind.unwrap_or_else(|| Kind::of(name)).field();
        set("type", json!(kind));
        set(kind, json!(name));
    }
    if let Some(application) = &arguments.app {
        set("applicationID", json!(application));
    }
    if arguments.force {
        set("force", json!(true));
    }
    if let Some(token) = token(&Default::default())? {
        set("token", json!(token.expose()));
    }
    Ok(Value::Object(request).to_string().into_bytes())
}

fn read(file: &Path) -> Result<Vec<u8>, Unusable> {
    let mut bytes = Vec::new();
    let name = if file == Path::new("-") { "-".into() } else { file.display().to_string() };
    let unreadable = |error| Unusable::Unreadable { file: name.clone(), error };
    let source: Box<dyn Read> = match name.as_str() {
        "-" => Box::new(std::io::stdin().lock()),
        _ => Box::new(std::fs::File::open(file).map_err(unreadable)?),
    };
    source.take(LONGEST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > LONGEST {
        return Err(Unusable::TooLong(name));
    }
    Ok(bytes)
}

/// The request with an id, so that it can be sent again. Nothing else of it is touched: what is wrong with it is
/// for the service to say.
fn with_id(body: Vec<u8>) -> Vec<u8> {
    let has_none = match serde_json::from_slice::<Map<String, Value>>(&body) {
        Ok(request) => !request.is_empty() && !request.contains_key("uuid"),
        Err(_) => false,
    };
    match body.iter().position(|byte| *byte == b'{') {
        Some(start) if has_none => {
            let id = format!("\"uuid\": \"{}\", ", Uuid::new_v4());
            [&body[..=start], id.as_bytes(), &body[start + 1..]].concat()
        }
        _ => body,
    }
}

/// Who asks, as the machine knows them.
fn user_of_machine() -> Option<String> {
    let set = |name| std::env::var(name).ok().filter(|name| !name.is_empty());
    set("USER").or_else(|| set("LOGNAME")).or_else(|| {
        let uid = rustix::process::getuid().as_raw().to_string();
        let known = std::fs::read_to_string("/etc/passwd").ok()?;
        let mut lines = known.lines().map(|line| line.split(':').collect::<Vec<_>>());
        lines
            .find(|line| line.get(2) == Some(&uid.as_str()))?
            .first()
            .map(|name| (*name).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_without_a_ref_is_refused() {
        let arguments = Arguments {
            repository: Some("o/n".to_owned()),
            kind: Some(Kind::Release),
            user: Some("u".to_owned()),
            ..Arguments::default()
        };
        let refused = body(&arguments).expect_err("the default branch is no release");
        assert_eq!(
            refused.to_string(),
            "--type release: write which one behind the repository, as owner/name@release"
        );
    }

    #[test]
    fn a_ref_is_a_commit_if_it_looks_like_one_and_a_branch_otherwise() {
        for (name, kind) in [
            ("main", Kind::Branch),
            ("v1.2", Kind::Branch),
            ("7e94453", Kind::Commit),
            ("7e9445", Kind::Branch),
            ("7e94453020bf7e94453020bf7e94453020bf0000", Kind::Commit),
            ("feedback", Kind::Branch),
        ] {
            assert_eq!(Kind::of(name), kind, "{name}");
        }
    }

    #[test]
    fn a_request_gets_an_id_where_it_has_none_and_is_left_alone_otherwise() {
        let named = with_id(br#" {"repo": "o/n", "repo": "o/m"}"#.to_vec());
        let text = String::from_utf8(named).expect("text");
        assert!(text.starts_with(r#" {"uuid": ""#), "{text}");
        assert!(text.ends_with(r#"", "repo": "o/n", "repo": "o/m"}"#), "{text}");
        for same in [r#"{"uuid": "a"}"#, "{}", "[]", "{", ""] {
            assert_eq!(with_id(same.as_bytes().to_vec()), same.as_bytes());
        }
    }

    #[test]
    fn a_request_says_whose_it_is_in_both_shapes() {
        assert_eq!(owner(br#"{"userID": "u"}"#).as_deref(), Some("u"));
        assert_eq!(owner(br#"{"pullInfo": {"userID": "u"}}"#).as_deref(), Some("u"));
        assert_eq!(owner(b"{}"), None);
    }
}
