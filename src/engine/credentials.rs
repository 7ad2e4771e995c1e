//! Credentials for base images: what the session of a build answers when the engine asks for them.
//!
//! The engine asks for a registry's host, and says nothing of the image. So what is answered opens all that
//! the credential opens, to whoever sent the build: a request's own credentials come first, and those of the
//! installation are for what all its users may pull. The worker's own registry has the images of all users,
//! so for it the installation's are never given.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image_builder_actors::model::login::{DOCKER_HUB, RegistryLogin, registry_host};
use image_builder_actors::model::secret::Secret;
use serde::Deserialize;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Longest `config.json`, and longest answer of a credential helper, in bytes.
const LONGEST: u64 = 1 << 20;
/// Longest wait for a credential helper.
const PATIENCE: Duration = Duration::from_secs(20);
/// How Docker's own files and helpers call Docker Hub.
const DOCKER_HUB_ADDRESS: &str = "https://index.docker.io/v1/";
/// What a credential helper says where it has nothing.
const NOT_FOUND: &str = "credentials not found";
/// The user of a token that others are bought with.
const TOKEN_USER: &str = "<token>";

/// A credential for one registry.
#[derive(Debug, Clone)]
pub struct RegistryAuth {
    /// `host` or `host:port`, as the engine calls the registry; Docker Hub has several names.
    pub host: String,
    pub username: String,
    pub password: Secret,
}

/// What one build may pull with. The default is nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct PullCredentials {
    /// Those of the request, by host.
    pub(super) request: BTreeMap<String, RegistryLogin>,
    /// The directory of Docker's own `config.json`; `None` = there are none of the installation.
    pub(super) docker_config: Option<PathBuf>,
    /// The registry that images are pushed to.
    pub(super) own_registry: Option<String>,
    /// What BuildKit itself pushes with, images and caches. It counts before all others: the registry that it is
    /// for takes nobody else's pushes.
    pub(super) own: Vec<RegistryAuth>,
}

impl PullCredentials {
    /// The credential for a registry; `None` = it is asked as nobody.
    pub(super) async fn of(&self, host: &str) -> Option<RegistryLogin> {
        let (asked, host) = (host, registry_host(host));
        // The engine asks for the host as the image's name has it: only the worker's own way to write it is the worker's.
        let is_own = |own: &&RegistryAuth| {
            let is_written_so = own.host == asked || asked == asked.to_lowercase();
            is_written_so && registry_host(&own.host) == host
        };
        if let Some(own) = self.own.iter().find(is_own) {
            let (username, password) = (own.username.clone(), own.password.clone());
            return Some(RegistryLogin { username, password });
        }
        if let Some(login) = self.request.get(&host) {
            return Some(login.clone());
        }
        let directory = self.docker_config.as_deref()?;
        if self.own_registry.as_deref().map(registry_host) == Some(host.clone()) {
            return None;
        }
        of_installation(directory, &host).await.unwrap_or_else(|why| {
            tracing::warn!(host, why, "no credential for base images: they are pulled as nobody");
            None
        })
    }
}

/// Docker's `config.json`, as far as it is about credentials.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ConfigFile {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    /// `user:password` in Base64.
    auth: Option<Secret>,
    username: String,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
}

/// The credential that Docker itself would take. It is read anew each time: such files are renewed.
async fn of_installation(directory: &Path, host: &str) -> Result<Option<RegistryLogin>, String> {
    let path = directory.join("config.json");
    let text = match read(&path).await {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
    };
    // What is wrong with it may stand beside a password.
    let config: ConfigFile = serde_json::from_slice(&text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("{} cannot be understood: line {line}, column {column}", path.display())
    })?;
    let is_meant = |name: &str| registry_host(name) == host;
    if let Some((name, helper)) = config.cred_helpers.iter().find(|(name, _)| is_meant(name)) {
        return ask(helper, name).await;
    }
    if !config.creds_store.is_empty() {
        let server = if host == DOCKER_HUB { DOCKER_HUB_ADDRESS } else { host };
        return ask(&config.creds_store, server).await;
    }
    let entry = config.auths.into_iter().find(|(name, _)| is_meant(name));
    entry.map_or(Ok(None), |(name, entry)| {
        entry.login().map_err(|why| format!("{}: `{name}` {why}", path.display()))
    })
}

async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    tokio::fs::File::open(path).await?.take(LONGEST).read_to_end(&mut text).await?;
    Ok(text)
}

impl Entry {
    fn login(self) -> Result<Option<RegistryLogin>, &'static str> {
        let some = |secret: Option<Secret>| secret.filter(|secret| !secret.is_empty());
        if let Some(password) = some(self.identitytoken) {
            return Ok(Some(RegistryLogin { username: String::new(), password }));
        }
        if let Some(auth) = some(self.auth) {
            const BAD: &str = "has an `auth` that is no user and password in Base64";
            let decoded = STANDARD.decode(auth.expose().trim()).map_err(|_| BAD)?;
            let text = String::from_utf8(decoded).map_err(|_| BAD)?;
            let (username, password) = text.trim_end_matches('\0').split_once(':').ok_or(BAD)?;
            let password = Secret::new(password);
            return Ok(Some(RegistryLogin { username: username.to_owned(), password }));
        }
        let username = self.username;
        Ok(some(self.password).map(|password| RegistryLogin { username, password }))
    }
}

/// What a credential helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: Secret,
}

/// Asks a credential helper, `docker-credential-<helper>`, by Docker's protocol: the server on its standard
/// input, JSON on its standard output.
async fn ask(helper: &str, server: &str) -> Result<Option<RegistryLogin>, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if helper.is_empty() || !helper.chars().all(is_plain) {
        return Err("config.json names a credential helper that can be none".to_owned());
    }
    let program = format!("docker-credential-{helper}");
    run(Command::new(&program), &program, server).await
}

async fn run(
    mut helper: Command,
    program: &str,
    server: &str,
) -> Result<Option<RegistryLogin>, String> {
    let failed = |error: io::Error| format!("{program}: {error}");
    let mut child = helper
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    // One that writes without an end is closed when enough is read.
    let asked = async {
        if let Some(mut stdin) = stdin {
            // One that does not read what it is asked will say so by its exit code.
            let _ = stdin.write_all(server.as_bytes()).await;
        }
        let mut answer = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(LONGEST).read_to_end(&mut answer).await?;
        }
        Ok((child.wait().await?, answer))
    };
    let (status, answer) = tokio::time::timeout(PATIENCE, asked)
        .await
        .map_err(|_| format!("{program} did not answer within {} s", PATIENCE.as_secs()))?
        .map_err(failed)?;
    if !status.success() {
        let is_missing = String::from_utf8_lossy(&answer).contains(NOT_FOUND);
        return if is_missing { Ok(None) } else { Err(format!("{program} ended with {status}")) };
    }
    let answer: Answer = serde_json::from_slice(&answer)
        .map_err(|_| format!("{program} did not answer with a user name and a secret"))?;
    let username = if answer.username == TOKEN_USER { String::new() } else { answer.username };
    Ok(Some(RegistryLogin { username, password: answer.secret }))
}

#[cfg(test)]
mod tests {

    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;

    fn login(username: &str, password: &str) -> RegistryLogin {
        RegistryLogin { username: username.to_owned(), password: Secret::new(password) }
    }

    /// The credentials of an installation with this `config.json`.
    fn installation(config: &Value) -> (PullCredentials, TempDir) {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("config.json"), config.to_string()).expect("written");
        let docker_config = Some(directory.path().to_owned());
        (PullCredentials { docker_config, ..PullCredentials::default() }, directory)
    }

    async fn user_and_password(credentials: &PullCredentials, host: &str) -> (String, String) {
        let login = credentials.of(host).await.unwrap_or_else(|| login("", ""));
        (login.username, login.password.expose().to_owned())
    }

    #[tokio::test]
    async fn a_request_s_own_credential_goes_to_its_registry_alone_and_first() {
        let auths = json!({"auths": {"registry.example": {"auth": STANDARD.encode("all:of-all")}}});
        let (mut credentials, _directory) = installation(&auths);
        credentials.request = BTreeMap::from([
            ("registry.example".to_owned(), login("joe", "his")),
            (DOCKER_HUB.to_owned(), login("joe", "hub")),
        ]);
        for (asked, user) in [
            ("registry.example", "joe"),
            ("registry-1.docker.io", "joe"),
            ("registry.example:5000", ""),
            ("registry.example.evil.example", ""),
            ("evil.example/registry.example", ""),
            ("", ""),
        ] {
            assert_eq!(user_and_password(&credentials, asked).await.0, user, "{asked}");
        }
    }

    #[tokio::test]
    async fn what_buildkit_pushes_with_goes_to_its_registry_alone_and_before_all_others() {
        let own = RegistryAuth {
            host: "own.example:5000".to_owned(),
            username: "push".to_owned(),
            password: Secret::new("p"),
        };
        let request = BTreeMap::from([("own.example:5000".to_owned(), login("joe", "his"))]);
        let credentials = PullCredentials { own: vec![own], request, ..Default::default() };
        for (asked, user) in [
            ("own.example:5000", "push"),
            ("OWN.example:5000", "joe"),
            ("own.example", ""),
            ("else", ""),
        ] {
            assert_eq!(user_and_password(&credentials, asked).await.0, user, "{asked}");
        }
    }

    #[tokio::test]
    async fn docker_s_own_file_is_read_as_docker_reads_it() {
        let (credentials, _directory) = installation(&json!({"auths": {
            "https://index.docker.io/v1/": {"auth": STANDARD.encode("joe:a:b")},
            "one.example": {"username": "joe", "password": "plain"},
            "two.example": {"auth": "", "identitytoken": "a-token"},
            "bad.example": {"auth": "hunter2"},
        }}));
        for (host, user, password) in [
            ("registry-1.docker.io", "joe", "a:b"),
            ("one.example", "joe", "plain"),
            ("two.example", "", "a-token"),
            ("bad.example", "", ""),
            ("else.example", "", ""),
        ] {
            let known = user_and_password(&credentials, host).await;
            assert_eq!(known, (user.to_owned(), password.to_owned()), "{host}");
        }
        let nowhere = PathBuf::from("/nowhere");
        let nothing = PullCredentials { docker_config: Some(nowhere), ..Default::default() };
        assert_eq!(nothing.of("one.example").await, None);
    }

    #[tokio::test]
    async fn the_worker_s_own_registry_is_opened_by_a_request_alone() {
        let auths = json!({"auths": {"Own.Example:5000": {"username": "push", "password": "all"}}});
        let (mut credentials, _directory) = installation(&auths);
        assert!(credentials.of("own.example:5000").await.is_some());
        credentials.own_registry = Some("own.example:5000".to_owned());
        assert_eq!(credentials.of("own.example:5000").await, None);
        assert_eq!(credentials.of("https://OWN.example:5000/v2/").await, None);
        credentials.request.insert("own.example:5000".to_owned(), login("joe", "his"));
        assert_eq!(credentials.of("own.example:5000").await, Some(login("joe", "his")));
    }

    /// What becomes of the answer of a helper that does this.
    async fn answer(script: &str) -> Result<Option<RegistryLogin>, String> {
        let mut command = Command::new("sh");
        // What comes behind the script is its `$0`.
        command.arg("-c").arg(script);
        run(command, "the helper", "registry.example").await
    }

    #[tokio::test]
    async fn credential_helpers_are_asked_by_docker_s_protocol() {
        let good = r#"[ "$0" = get ] && printf '{"ServerURL":"x","Username":"of %s","Secret":"s"}' "$(cat)""#;
        assert_eq!(answer(good).await, Ok(Some(login("of registry.example", "s"))));
        let token = r#"echo '{"Username":"<token>","Secret":"s"}'"#;
        assert_eq!(answer(token).await, Ok(Some(login("", "s"))));
        let nothing = "echo credentials not found in native keychain; exit 1";
        assert_eq!(answer(nothing).await, Ok(None));
        for bad in ["exit 3", "echo '{\"Username\": \"hunter2\"}'", "yes hunter2"] {
            let why = answer(bad).await.expect_err(bad);
            assert!(why.starts_with("the helper") && !why.contains("hunter2"), "{why}");
        }
        assert!(ask("../x", "registry.example").await.is_err());
        let why = ask("no-such-helper", "registry.example").await.expect_err("it is nowhere");
        assert!(why.starts_with("docker-credential-no-such-helper: "), "{why}");
    }
}
