//! Which commit is fetched, and how much of its history, from servers that allow more or less.

use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::request::Target;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::git::{at, name, plain};
use super::git_server::{GitRepo, server_url};
use super::stand_in::{Answer, StandIn};
use super::{branch, commit, fetch, fetched, refused, request};

#[tokio::test(flavor = "multi_thread")]
async fn an_annotated_tag_is_peeled_to_its_commit() {
    let repo = GitRepo::create("contract", "annotated");
    let first = repo.commit(&[("a", "1")]);
    repo.annotated_tag("v1");
    repo.git(&["tag", "-a", "-m", "a tag of a tag", "v1-again", "v1"]);
    repo.git(&["push", "-q", &repo.bare_path(), "v1-again"]);
    repo.commit(&[("a", "2")]);
    for tag in ["v1", "v1-again"] {
        let request = request(&name(&repo), Target::Tag(tag.to_owned()), None);
        let got = fetched(&plain(), &request).await;
        assert_eq!((&got.source.commit, got.source.version.as_str()), (&first, tag));
        assert_eq!(got.read("a"), "1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_of_a_file_is_not_a_commit() {
    let repo = GitRepo::create("contract", "blobtag");
    repo.commit(&[("a", "1")]);
    repo.git(&["tag", "blob", "HEAD:a"]);
    repo.git(&["push", "-q", &repo.bare_path(), "blob"]);
    let request = request(&name(&repo), Target::Tag("blob".to_owned()), None);
    refused(&plain(), &request, Reason::RefNotFound, "is not a commit").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_head_is_the_default_where_there_is_no_default_branch() {
    let repo = GitRepo::create("contract", "detached");
    let first = repo.commit(&[("a", "1")]);
    repo.commit(&[("a", "2")]);
    repo.git_on_server(&["update-ref", "--no-deref", "HEAD", &first]);
    let got = fetched(&plain(), &request(&name(&repo), Target::DefaultBranch, None)).await;
    assert_eq!(got.source.commit, first);
    assert_eq!(got.source.version, first[..12]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_repository_has_nothing_to_fetch() {
    let repo = GitRepo::create("contract", "empty");
    for target in [Target::DefaultBranch, branch("main"), commit("0123456789")] {
        let request = request(&name(&repo), target, None);
        refused(&plain(), &request, Reason::RefNotFound, "is empty").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_branch_that_does_not_exist_is_not_found() {
    let repo = GitRepo::create("contract", "unborn");
    repo.commit(&[("a", "1")]);
    repo.set_default_branch("elsewhere");
    let request = request(&name(&repo), Target::DefaultBranch, None);
    refused(&plain(), &request, Reason::RefNotFound, "default branch").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_a_source_is_its_committer_s() {
    let repo = GitRepo::create("contract", "times");
    repo.commit(&[("a", "1")]);
    let told = repo.git(&["log", "-1", "--format=%cI"]);
    let told = OffsetDateTime::parse(&told, &Rfc3339).expect("git prints RFC 3339");
    let got = fetched(&plain(), &request(&name(&repo), Target::DefaultBranch, None)).await;
    assert_eq!(got.source.committed_at, told);
}

/// A repository with a long history: the first commit, and one in the middle.
fn long_history(hint: &str) -> (GitRepo, String, String) {
    let repo = GitRepo::create("contract", hint);
    let mut stream = String::new();
    for n in 0..600 {
        let text = if n == 0 { "first".to_owned() } else { n.to_string() };
        stream.push_str(&format!(
            "commit refs/heads/main\ncommitter T <t@example.invalid> {} +0000\ndata 2\nc\n\
             M 100644 inline a\ndata {}\n{text}\n",
            1_700_000_000 + n,
            text.len()
        ));
    }
    repo.git_with_input(&["fast-import", "--quiet"], stream.as_bytes());
    repo.git(&["reset", "-q", "--hard", "main"]);
    let first = repo.git(&["rev-parse", "HEAD~599"]);
    let middle = repo.git(&["rev-parse", "HEAD~100"]);
    repo.commit(&[("a", "last")]);
    (repo, first, middle)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exact_commit_that_is_no_tip_is_fetched_alone() {
    let (repo, first, _) = long_history("alone");
    let proxy = StandIn::start(|_| Answer::From(server_url())).await;
    let connector = at(&proxy.url());
    let got = fetched(&connector, &request(&name(&repo), commit(&first), None)).await;
    assert_eq!((got.source.commit.as_str(), got.read("a").as_str()), (first.as_str(), "first"));
    let asked = proxy.asked();
    let posts: Vec<_> = asked.iter().filter(|asked| asked.path.ends_with("upload-pack")).collect();
    assert!(posts.iter().any(|post| post.method == "POST"));
    for post in posts.iter().filter(|post| post.method == "POST") {
        let body = String::from_utf8_lossy(&post.body);
        assert!(body.contains("deepen 1"), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_gives_out_no_single_commits_is_asked_for_the_history() {
    let (repo, first, _) = long_history("strict");
    repo.config("uploadpack.allowTipSHA1InWant", "false");
    repo.config("uploadpack.allowReachableSHA1InWant", "false");
    let name = name(&repo);
    for hint in [None, Some("main"), Some("no-such-branch")] {
        let target = Target::Commit { id: first.clone(), branch: hint.map(str::to_owned) };
        let got = fetched(&plain(), &request(&name, target, None)).await;
        assert_eq!((&got.source.commit, got.read("a").as_str()), (&first, "first"));
    }
    let missing = "0123456789".repeat(4);
    refused(&plain(), &request(&name, commit(&missing), None), Reason::RefNotFound, &missing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_gives_out_tips_alone_is_asked_for_the_history() {
    let (repo, first, _) = long_history("tips");
    repo.config("uploadpack.allowReachableSHA1InWant", "false");
    let got = fetched(&plain(), &request(&name(&repo), commit(&first), None)).await;
    assert_eq!(got.source.commit, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_commit_is_found_however_deep_it_is() {
    let (repo, first, middle) = long_history("short");
    let name = name(&repo);
    for full in [&first, &middle] {
        for hint in [None, Some("main"), Some("refs/heads/main"), Some("no-such-branch")] {
            let id = full[..9].to_owned();
            let target = Target::Commit { id, branch: hint.map(str::to_owned) };
            let got = fetched(&plain(), &request(&name, target, None)).await;
            assert_eq!(&got.source.commit, full);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_commit_off_the_hinted_branch_is_found_too() {
    let repo = GitRepo::create("contract", "offhint");
    repo.commit(&[("a", "1")]);
    repo.branch("other");
    let wanted = repo.commit(&[("a", "2")]);
    repo.commit(&[("a", "3")]);
    let target = Target::Commit { id: wanted[..10].to_owned(), branch: Some("main".to_owned()) };
    assert_eq!(fetched(&plain(), &request(&name(&repo), target, None)).await.source.commit, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ambiguous_short_commit_is_told_apart_from_a_missing_one() {
    let (repo, _, _) = long_history("ambiguous");
    let all = repo.git(&["rev-list", "main"]);
    let mut ids: Vec<&str> = all.lines().collect();
    ids.sort_unstable();
    let shared = ids.windows(2).find(|pair| pair[0][..4] == pair[1][..4]).map(|pair| &pair[0][..4]);
    // The six hundred commits are the same each time, so they do or they never do.
    let shared = shared.expect("two commits share four digits");
    let request = request(&name(&repo), commit(shared), None);
    refused(&plain(), &request, Reason::RefNotFound, "ambiguous").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_commit_outlives_a_forced_push() {
    let repo = GitRepo::create("contract", "forced");
    let gone = repo.commit(&[("a", "1")]);
    repo.tag("kept");
    repo.git(&["checkout", "-q", "--orphan", "fresh"]);
    let fresh = repo.commit(&[("a", "2")]);
    repo.git_on_server(&["update-ref", "refs/heads/main", &fresh]);
    let request = request(&name(&repo), branch("main"), None);
    let got = fetch(&plain(), &request, Some(&gone)).await.expect("a tag still holds it");
    assert_eq!((&got.source.commit, got.read("a").as_str()), (&gone, "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_release_is_named_by_the_tag_at_its_commit_without_the_api() {
    let repo = GitRepo::create("contract", "pinned-release");
    let first = repo.commit(&[("a", "1")]);
    repo.annotated_tag("v1");
    let second = repo.commit(&[("a", "2")]);
    // The git server is no API: a question to it would fail.
    let request = request(&name(&repo), Target::Release("latest".to_owned()), None);
    let got = fetch(&plain(), &request, Some(&first)).await.expect("is fetched");
    assert_eq!((&got.source.commit, got.source.version.as_str()), (&first, "v1"));
    let got = fetch(&plain(), &request, Some(&second)).await.expect("is fetched");
    assert_eq!((&got.source.commit, got.source.version.as_str()), (&second, &second[..12]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_whose_name_is_not_utf_8_does_no_harm() {
    use std::os::unix::ffi::OsStrExt as _;
    let repo = GitRepo::create("contract", "latin");
    let first = repo.commit(&[("a", "1")]);
    let heads = std::path::Path::new(&repo.bare_path()).join("refs/heads");
    let odd = heads.join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    std::fs::write(odd, format!("{first}\n")).expect("the ref can be written");
    let got = fetched(&plain(), &request(&name(&repo), commit(&first[..8]), None)).await;
    assert_eq!(got.source.commit, first);
}
