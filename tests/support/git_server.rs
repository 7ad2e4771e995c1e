//! Repositories on the real git server of the development services.
//!
//! The server is started by `.devcontainer/stack.sh up`. It is told where its repositories are by
//! `GIT_SERVER_URL`, `GIT_SERVER_ROOT` and `IMAGE_BUILDER_STATE`, which all have a default.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part of this")]

use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;

/// The token that repositories of the owner `private` want.
pub const GOOD_TOKEN: &str = "good-token";
/// The owner whose repositories want it.
pub const PRIVATE: &str = "private";

/// The server's address, without a slash at the end.
pub fn server_url() -> String {
    std::env::var("GIT_SERVER_URL").unwrap_or_else(|_| "http://127.0.0.1:3080".to_owned())
}

fn server_root() -> PathBuf {
    if let Some(root) = std::env::var_os("GIT_SERVER_ROOT") {
        return root.into();
    }
    let state = std::env::var_os("IMAGE_BUILDER_STATE")
        .map_or_else(|| PathBuf::from("/var/lib/image-builder-dev"), PathBuf::from);
    state.join("git")
}

/// A bare repository on the git server, and a work tree to fill it from. Dropping it removes both.
pub struct GitRepo {
    pub owner: String,
    pub name: String,
    bare: PathBuf,
    work: TempDir,
}

impl GitRepo {
    /// A new, empty repository of this owner; its name begins with the hint and is unique. Its
    /// default branch is `main`, and like GitHub it gives out any commit that a ref reaches.
    pub fn create(owner: &str, hint: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let url = server_url();
        let address = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
        assert!(
            TcpStream::connect(address).is_ok(),
            "the git server at {url} is not up: start it with .devcontainer/stack.sh up"
        );
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{hint}-{}-{count}", std::process::id());
        let bare = server_root().join(owner).join(format!("{name}.git"));
        let work = tempfile::tempdir().expect("a temporary directory can be made");
        let repo = Self { owner: owner.to_owned(), name, bare, work };
        std::fs::create_dir_all(&repo.bare).expect("the git server's root is writable");
        git(&repo.bare, &["init", "-q", "--bare", "-b", "main"], b"");
        repo.config("uploadpack.allowTipSHA1InWant", "true");
        repo.config("uploadpack.allowReachableSHA1InWant", "true");
        git(repo.work(), &["init", "-q", "-b", "main"], b"");
        repo
    }

    /// The clone address, as the server has it.
    pub fn url(&self) -> String {
        format!("{}/{}/{}.git", server_url(), self.owner, self.name)
    }

    /// The work tree: what is put here goes into the next commit.
    pub fn work(&self) -> &Path {
        self.work.path()
    }

    /// Commits these files (path and content) with all else in the work tree to the present branch,
    /// and pushes it; returns the commit.
    pub fn commit(&self, files: &[(&str, &str)]) -> String {
        for (path, content) in files {
            let path = self.work().join(path);
            let parent = path.parent().expect("a file has a directory");
            std::fs::create_dir_all(parent).expect("the work tree is writable");
            std::fs::write(path, content).expect("the work tree is writable");
        }
        self.git(&["add", "-A"]);
        self.commit_index()
    }

    /// Commits the index as it is, and pushes it; returns the commit.
    pub fn commit_index(&self) -> String {
        self.git(&["commit", "-q", "--allow-empty", "-m", "a commit"]);
        self.push(&["HEAD"]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// Makes a branch at the present commit, goes to it and pushes it.
    pub fn branch(&self, name: &str) {
        self.git(&["checkout", "-q", "-b", name]);
        self.push(&["HEAD"]);
    }

    /// Goes to a branch that exists.
    pub fn switch(&self, name: &str) {
        self.git(&["checkout", "-q", name]);
    }

    /// A tag that is a ref and nothing else.
    pub fn tag(&self, name: &str) {
        self.git(&["tag", name]);
        self.push(&[name]);
    }

    /// A tag that is an object of its own.
    pub fn annotated_tag(&self, name: &str) {
        self.git(&["tag", "-a", "-m", "a tag", name]);
        self.push(&[name]);
    }

    pub fn set_default_branch(&self, name: &str) {
        git(&self.bare, &["symbolic-ref", "HEAD", &format!("refs/heads/{name}")], b"");
    }

    /// Sets the server's configuration of this repository.
    pub fn config(&self, key: &str, value: &str) {
        git(&self.bare, &["config", key, value], b"");
    }

    /// Has the server run this after each push, with what was pushed as its input: a line `BEFORE AFTER REF` each.
    pub fn after_push(&self, command: &str) {
        let hook = self.bare.join("hooks/post-receive");
        std::fs::write(&hook, format!("#!/bin/sh\nexec {command}\n")).expect("it is writable");
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&hook, executable).expect("it is ours");
    }

    /// Records another repository's commit at `path`, as `git submodule add` does, for the next
    /// [`commit`](Self::commit_index); `url` goes into `.gitmodules` as it is.
    pub fn add_submodule(&self, path: &str, url: &str, commit: &str) {
        let modules = self.work().join(".gitmodules");
        let mut text = std::fs::read_to_string(&modules).unwrap_or_default();
        text.push_str(&format!("[submodule \"{path}\"]\n\tpath = {path}\n\turl = {url}\n"));
        std::fs::write(&modules, text).expect("the work tree is writable");
        // The directory of a submodule that is not fetched: without it git takes it for removed.
        std::fs::create_dir_all(self.work().join(path)).expect("the work tree is writable");
        self.git(&["add", "-A"]);
        self.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},{path}")]);
    }

    /// Where the bare repository is on this machine.
    pub fn bare_path(&self) -> String {
        self.bare.to_string_lossy().into_owned()
    }

    /// Runs git in the work tree; returns what it prints.
    pub fn git(&self, arguments: &[&str]) -> String {
        git(self.work(), arguments, b"")
    }

    /// Runs git in the work tree with this input; returns what it prints.
    pub fn git_with_input(&self, arguments: &[&str], input: &[u8]) -> String {
        git(self.work(), arguments, input)
    }

    /// Runs git in the bare repository; returns what it prints.
    pub fn git_on_server(&self, arguments: &[&str]) -> String {
        git(&self.bare, arguments, b"")
    }

    fn push(&self, refs: &[&str]) {
        let bare = self.bare_path();
        let mut arguments = vec!["push", "-q", "--force", &bare];
        arguments.extend(refs);
        self.git(&arguments);
    }
}

impl Drop for GitRepo {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.bare);
    }
}

/// Runs git, away from the configuration of the machine and the user.
fn git(directory: &Path, arguments: &[&str], input: &[u8]) -> String {
    let mut child = Command::new("git")
        .arg("-C")
        .arg(directory)
        .args(["-c", "user.name=A Tester", "-c", "user.email=tester@example.invalid"])
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("git is installed");
    let mut stdin = child.stdin.take().expect("the input is a pipe");
    stdin.write_all(input).expect("git reads its input");
    drop(stdin);
    let output = child.wait_with_output().expect("git ends");
    assert!(
        output.status.success(),
        "git {arguments:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
