//! From a commit to files: what is kept, what is refused, and what is over a limit.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::Target;
use image_builder_actors::testing::conformance::source::Got;
use image_builder_actors::testing::draw::noise;

use super::git::{limited, name, plain};
use super::git_server::{GOOD_TOKEN, GitRepo, PRIVATE, server_url};
use super::{commit, fetched, list, refused, request};

#[tokio::test(flavor = "multi_thread")]
async fn links_modes_and_bytes_are_kept_and_nothing_of_git_is_there() {
    let repo = GitRepo::create("contract", "kept");
    let work = repo.work();
    std::fs::create_dir_all(work.join("deep/er")).expect("is writable");
    symlink("../run.sh", work.join("deep/link")).expect("is writable");
    symlink("/etc/passwd", work.join("outward")).expect("is writable");
    std::fs::write(work.join("run.sh"), "#!/bin/sh\n").expect("is writable");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(work.join("run.sh"), executable).expect("is writable");
    repo.commit(&[
        (".gitattributes", "*.bat text eol=crlf\n*.id ident\n*.txt filter=anything\n"),
        ("a.bat", "one\ntwo\n"),
        ("b.id", "$Id$\n"),
        ("deep/er/c.txt", "text\n"),
        ("with space/ä", ""),
    ]);
    let got = fetched(&plain(), &request(&name(&repo), Target::DefaultBranch, None)).await;
    let tree = &got.source.tree;
    assert_eq!(
        list(tree),
        [".gitattributes", "a.bat", "b.id", "deep", "outward", "run.sh", "with space"]
    );
    assert_eq!(std::fs::read_link(tree.join("deep/link")).expect("a link"), Path::new("../run.sh"));
    assert_eq!(std::fs::read_link(tree.join("outward")).expect("a link"), Path::new("/etc/passwd"));
    let mode = |path: &str| {
        let metadata = tree.join(path).symlink_metadata().expect("is there");
        metadata.permissions().mode() & 0o777
    };
    assert_eq!((mode("run.sh"), mode("a.bat")), (0o755, 0o644));
    // Attributes are kept to, as by `git checkout`; filters are not run.
    let id = repo.git(&["rev-parse", "HEAD:b.id"]);
    let expanded = format!("$Id: {id} $\n");
    assert_eq!((got.read("a.bat"), got.read("b.id")), ("one\r\ntwo\r\n".into(), expanded));
    assert_eq!(got.read("deep/er/c.txt"), "text\n");
    assert_eq!(got.read("with space/ä"), "");
    assert_eq!(list(got.source.workspace.path()), ["tree"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_in_no_file_of_the_workspace() {
    let repo = GitRepo::create(PRIVATE, "no-token");
    repo.commit(&[("a", "1")]);
    let got =
        fetched(&plain(), &request(&name(&repo), Target::DefaultBranch, Some(GOOD_TOKEN))).await;
    let mut directories = vec![got.source.workspace.path().to_owned()];
    let mut files = 0;
    while let Some(directory) = directories.pop() {
        for name in list(&directory) {
            let path = directory.join(name);
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            files += 1;
            let content = std::fs::read(&path).expect("can be read");
            let content = String::from_utf8_lossy(&content);
            assert!(!content.contains(GOOD_TOKEN), "{}", path.display());
        }
    }
    assert_eq!(files, 1);
}

/// What git itself says in a tree.
fn git(tree: &Path, arguments: &[&str]) -> String {
    let output = std::process::Command::new("git")
        .arg("-C")
        .arg(tree)
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .expect("git is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The bytes of all files below a directory, by their paths.
fn bytes(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for name in list(directory) {
        let path = directory.join(name);
        match path.is_dir() {
            true => all.extend(bytes(&path)),
            false => drop(all.insert(path.clone(), std::fs::read(&path).expect("can be read"))),
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_directory_that_is_asked_for_is_enough_to_describe_the_commit() {
    let repo = GitRepo::create(PRIVATE, "described");
    repo.commit(&[("a", "1"), ("d/b", "1")]);
    repo.annotated_tag("v1");
    let second = repo.commit(&[("a", "2")]);
    repo.tag("light");
    let third = repo.commit(&[("a", "3")]);
    repo.branch("other");
    repo.commit(&[("c", "4")]);
    repo.annotated_tag("v2");
    let in_tree = |got: &Got| {
        let all = bytes(&got.source.tree).into_iter();
        let name = |path: PathBuf| path.strip_prefix(&got.source.tree).map(PathBuf::from);
        all.map(|(path, bytes)| (name(path), bytes)).collect::<Vec<_>>()
    };
    for filters in ["false", "true"] {
        repo.config("uploadpack.allowFilter", filters);
        let of = async |target: Target| {
            let mut request = request(&name(&repo), target, Some(GOOD_TOKEN));
            request.plan.keep_git_dir = true;
            fetched(&plain(), &request).await
        };
        let got = of(Target::DefaultBranch).await;
        let again = of(Target::DefaultBranch).await;
        assert!(in_tree(&got) == in_tree(&again), "the same commit has the same bytes");
        let tree = &got.source.tree;
        assert_eq!(git(tree, &["rev-parse", "HEAD"]), third);
        assert_eq!(git(tree, &["rev-parse", "--abbrev-ref", "HEAD"]), "main");
        assert_eq!(git(tree, &["describe", "--dirty"]), format!("v1-2-g{}", &third[..7]));
        assert_eq!(git(tree, &["describe", "--tags"]), format!("light-1-g{}", &third[..7]));
        assert_eq!(git(tree, &["rev-list", "--count", "HEAD"]), "3");
        assert_eq!(git(tree, &["log", "-1", "--format=%H"]), third);
        assert_eq!(git(tree, &["status", "--porcelain"]), "");
        assert_eq!(git(tree, &["tag"]), "light\nv1", "tags of other commits are not there");
        assert_eq!(git(tree, &["remote"]), "");
        for (path, content) in bytes(got.source.workspace.path()) {
            let content = String::from_utf8_lossy(&content).into_owned();
            assert!(!content.contains(GOOD_TOKEN), "{}", path.display());
            assert!(!content.contains(&server_url()), "{}", path.display());
        }
        assert_eq!(list(got.source.workspace.path()), ["tree"]);
        let earlier = of(commit(&second)).await;
        let tree = &earlier.source.tree;
        assert_eq!(git(tree, &["describe", "--tags", "--exact-match"]), "light");
        assert_eq!(git(tree, &["rev-parse", "--abbrev-ref", "HEAD"]), "HEAD");
        assert_eq!(git(tree, &["status", "--porcelain"]), "");
    }
}

/// Stores a tree object of these entries (mode, id and name), however wrong they are.
fn tree(repo: &GitRepo, entries: &[(&str, &str, &str)]) -> String {
    let mut object = Vec::new();
    for (mode, id, name) in entries {
        object.extend(format!("{mode} {name}\0").into_bytes());
        let digits = |n: usize| u8::from_str_radix(&id[2 * n..2 * n + 2], 16);
        object.extend((0..20).map(|n| digits(n).expect("an object name")));
    }
    let arguments = ["hash-object", "-t", "tree", "-w", "--literally", "--stdin"];
    repo.git_with_input(&arguments, &object)
}

fn blob(repo: &GitRepo, content: &str) -> String {
    repo.git_with_input(&["hash-object", "-w", "--stdin"], content.as_bytes())
}

/// Makes a commit of a tree the head of `main`.
fn publish(repo: &GitRepo, tree: &str) {
    let commit = repo.git(&["commit-tree", "-m", "hostile", tree]);
    repo.git(&["push", "-q", &repo.bare_path(), &format!("{commit}:refs/heads/main")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_lead_out_or_into_git_s_directory_are_refused() {
    for bad in ["..", ".git", ".GIT", "git~1", ".git ", "."] {
        let repo = GitRepo::create("contract", "names");
        let file = blob(&repo, "x");
        let below = tree(&repo, &[("100644", &file, bad)]);
        publish(&repo, &tree(&repo, &[("40000", &below, "sub")]));
        let request = request(&name(&repo), Target::DefaultBranch, None);
        refused(&plain(), &request, Reason::ForbiddenSource, "forbidden name").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_writes_through_its_own_link_is_refused() {
    let outside = super::scratch();
    let repo = GitRepo::create("contract", "through");
    let link = blob(&repo, &outside.path().to_string_lossy());
    let file = blob(&repo, "written outside");
    let below = tree(&repo, &[("100644", &file, "escaped")]);
    publish(&repo, &tree(&repo, &[("120000", &link, "a"), ("40000", &below, "a")]));
    let request = request(&name(&repo), Target::DefaultBranch, None);
    refused(&plain(), &request, Reason::ForbiddenSource, "twice").await;
    assert_eq!(list(outside.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_unpacks_without_end_costs_no_disk_and_little_time() {
    let repo = GitRepo::create("contract", "bomb");
    let file = blob(&repo, &"x".repeat(10_000));
    let mut level = tree(&repo, &[("100644", &file, "f")]);
    for _ in 0..12 {
        let names: Vec<String> = (0..10).map(|n| format!("d{n}")).collect();
        let entries: Vec<_> =
            names.iter().map(|name| ("40000", level.as_str(), name.as_str())).collect();
        level = tree(&repo, &entries);
    }
    publish(&repo, &level);
    let request = request(&name(&repo), Target::DefaultBranch, None);
    let limits = Limits { source_entries: 20_000, ..Limits::default() };
    let few = limited(limits);
    let limits = Limits { source_bytes: 50 << 20, ..Limits::default() };
    let small = limited(limits);
    // A connector that wrote the tree would not come to an end before the disk does.
    let measured = async {
        refused(&few, &request, Reason::TooLarge, "20000 files and directories").await;
        refused(&small, &request, Reason::TooLarge, "50.0 MiB").await;
    };
    tokio::time::timeout(Duration::from_secs(20), measured).await.expect("it is only measured");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_of_endless_depth_is_too_large() {
    let repo = GitRepo::create("contract", "deep");
    let file = blob(&repo, "x");
    let mut level = tree(&repo, &[("100644", &file, "f")]);
    for _ in 0..20 {
        level = tree(&repo, &[("40000", &level, &"d".repeat(200))]);
    }
    publish(&repo, &level);
    let request = request(&name(&repo), Target::DefaultBranch, None);
    refused(&plain(), &request, Reason::TooLarge, "too long").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_and_a_large_transfer_are_refused_by_their_limits() {
    let repo = GitRepo::create("contract", "large");
    let noise = noise(300_000);
    repo.commit(&[("noise", &noise)]);
    let request = request(&name(&repo), Target::DefaultBranch, None);
    let limits = Limits { source_file_bytes: 100_000, ..Limits::default() };
    let by_file = limited(limits);
    refused(&by_file, &request, Reason::TooLarge, "`noise`").await;
    let limits = Limits { transfer_bytes: 100_000, ..Limits::default() };
    let by_transfer = limited(limits);
    refused(&by_transfer, &request, Reason::TooLarge, "transfers more than 100000 bytes").await;
    assert_eq!(fetched(&plain(), &request).await.read("noise"), noise);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_fetch_that_failed() {
    let repo = GitRepo::create("contract", "left");
    repo.commit(&[("a", "1"), ("b", "2")]);
    let limits = Limits { source_entries: 1, ..Limits::default() };
    let connector = limited(limits);
    let scratch = super::scratch();
    let request = request(&name(&repo), Target::DefaultBranch, None);
    let result = super::fetch_into(&scratch, &connector, &request, None).await;
    assert_eq!(result.err().map(|fault| fault.reason), Some(Reason::TooLarge));
    super::empties(scratch.path()).await;
}
