//! Repositories inside repositories.

use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::Target;

use super::git::{limited, name, plain};
use super::git_server::{GOOD_TOKEN, GitRepo, PRIVATE, server_url};
use super::stand_in::{Answer, StandIn};
use super::{fetched, list, refused, request};

#[tokio::test(flavor = "multi_thread")]
async fn submodules_are_fetched_at_their_commits_nested_ones_too() {
    let inner = GitRepo::create(PRIVATE, "inner");
    let inner_commit = inner.commit(&[("i", "inner")]);
    inner.commit(&[("i", "inner, later")]);
    let middle = GitRepo::create(PRIVATE, "middle");
    middle.commit(&[("m", "middle")]);
    middle.add_submodule("in", &inner.url(), &inner_commit);
    let middle_commit = middle.commit_index();
    let outer = GitRepo::create(PRIVATE, "outer");
    outer.commit(&[("o", "outer")]);
    outer.add_submodule("libs/mid", &format!("../{}.git", middle.name), &middle_commit);
    outer.commit_index();

    let got =
        fetched(&plain(), &request(&name(&outer), Target::DefaultBranch, Some(GOOD_TOKEN))).await;
    assert_eq!(got.read("o"), "outer");
    assert_eq!(got.read("libs/mid/m"), "middle");
    assert_eq!(got.read("libs/mid/in/i"), "inner");
    assert!(!got.has("libs/mid/.git") && !got.has("libs/mid/in/.git"));
    assert_eq!(list(got.source.workspace.path()), ["tree"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ssh_address_of_the_forge_is_fetched_over_http() {
    let inner = GitRepo::create("contract", "byssh");
    let commit = inner.commit(&[("i", "inner")]);
    for url in [
        format!("git@127.0.0.1:contract/{}.git", inner.name),
        format!("ssh://git@127.0.0.1:22/contract/{}.git", inner.name),
    ] {
        let outer = GitRepo::create("contract", "outer");
        outer.add_submodule("sub", &url, &commit);
        outer.commit_index();
        let got = fetched(&plain(), &request(&name(&outer), Target::DefaultBranch, None)).await;
        assert_eq!(got.read("sub/i"), "inner");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submodule_that_leads_into_the_network_or_to_no_http_is_forbidden() {
    let inside = StandIn::start(|_| Answer::status(200)).await;
    let commit = "0123456789".repeat(4);
    for url in [
        format!("{}/a/b.git", inside.url()),
        format!("http://localhost:{}/a/b.git", inside.address.port()),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "http://[::1]/a".to_owned(),
        "http://2130706433/a".to_owned(),
        "git@elsewhere.invalid:a/b.git".to_owned(),
        "git://127.0.0.1/a/b.git".to_owned(),
        "file:///etc".to_owned(),
        "/etc".to_owned(),
        "../../../../../etc".to_owned(),
    ] {
        let outer = GitRepo::create("contract", "lead");
        outer.add_submodule("deep/sub", &url, &commit);
        outer.commit_index();
        let request = request(&name(&outer), Target::DefaultBranch, Some("a-token"));
        refused(&plain(), &request, Reason::ForbiddenSource, "`deep/sub`").await;
    }
    assert_eq!(inside.asked().len(), 0, "an address inside the network was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submodule_that_cannot_be_read_is_named() {
    let private = GitRepo::create(PRIVATE, "hidden");
    let hidden = private.commit(&[("i", "inner")]);
    let public = GitRepo::create("contract", "public");
    public.commit(&[("i", "inner")]);
    let nowhere = "0123456789".repeat(4);
    for (url, commit, reason) in [
        (private.url(), &hidden, Reason::Unauthorized),
        (format!("{}/nobody/nothing.git", server_url()), &hidden, Reason::RepositoryNotFound),
        (public.url(), &nowhere, Reason::RefNotFound),
        (String::new(), &nowhere, Reason::RepositoryNotFound),
        // A stranger's server that is not there must not pause the worker.
        ("http://no-such-host.invalid/a.git".to_owned(), &nowhere, Reason::ForgeFailed),
    ] {
        let outer = GitRepo::create("contract", "outer");
        outer.add_submodule("deep/sub", &url, commit);
        outer.commit_index();
        let request = request(&name(&outer), Target::DefaultBranch, None);
        refused(&plain(), &request, reason, "ubmodule `deep/sub`").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submodule_that_its_repository_switches_off_stays_empty() {
    let outer = GitRepo::create("contract", "off");
    outer.add_submodule("sub", "../nothing.git", &"0123456789".repeat(4));
    let modules = outer.work().join(".gitmodules");
    let text = std::fs::read_to_string(&modules).expect("is there") + "\tupdate = none\n";
    std::fs::write(&modules, text).expect("is writable");
    outer.git(&["add", ".gitmodules"]);
    outer.commit_index();
    let got = fetched(&plain(), &request(&name(&outer), Target::DefaultBranch, None)).await;
    assert_eq!(list(&got.source.tree.join("sub")), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submodule_that_is_not_declared_stays_empty_and_the_others_are_fetched() {
    let inner = GitRepo::create("contract", "inner");
    let commit = inner.commit(&[("a", "1")]);
    let outer = GitRepo::create("contract", "undeclared");
    outer.add_submodule("declared", &format!("../{}", inner.name), &commit);
    let of_nothing = format!("160000,{},sub", "0123456789".repeat(4));
    outer.git(&["update-index", "--add", "--cacheinfo", &of_nothing]);
    outer.commit_index();
    let got = fetched(&plain(), &request(&name(&outer), Target::DefaultBranch, None)).await;
    assert_eq!(list(&got.source.tree.join("sub")), Vec::<String>::new());
    assert_eq!(list(&got.source.tree.join("declared")), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn submodules_count_against_the_limits() {
    let inner = GitRepo::create("contract", "inner");
    let commit = inner.commit(&[("a", "1"), ("b", "2")]);
    let outer = GitRepo::create("contract", "outer");
    for path in ["x", "y", "z"] {
        outer.add_submodule(path, &format!("../{}", inner.name), &commit);
    }
    outer.commit_index();
    let request = request(&name(&outer), Target::DefaultBranch, None);
    for (limits, naming) in [
        (Limits { submodules: 2, ..Limits::default() }, "more than 2 submodules"),
        (Limits { source_entries: 8, ..Limits::default() }, "more than 8 files"),
    ] {
        let connector = limited(limits);
        refused(&connector, &request, Reason::TooLarge, naming).await;
    }
    assert_eq!(list(&fetched(&plain(), &request).await.source.tree.join("z")), ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submodule_is_never_written_through_a_link_of_the_tree() {
    let outside = super::scratch();
    let inner = GitRepo::create("contract", "inner");
    let commit = inner.commit(&[("escaped", "1")]);
    let outer = GitRepo::create("contract", "outer");
    std::os::unix::fs::symlink(outside.path(), outer.work().join("link")).expect("is writable");
    // What counts is where the tree has the submodule, not what `.gitmodules` calls its path.
    outer.commit(&[(
        ".gitmodules",
        &format!("[submodule \"x\"]\npath = link/sub\nurl = {}\n", inner.url()),
    )]);
    outer.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},sub")]);
    outer.commit_index();
    let request = request(&name(&outer), Target::DefaultBranch, None);
    let got = fetched(&plain(), &request).await;
    assert_eq!(list(&got.source.tree.join("sub")), Vec::<String>::new());
    assert_eq!(list(outside.path()), Vec::<String>::new());
}
