//! Git LFS. The git part is the real server's; a stand-in in front of it answers as GitHub's LFS
//! server does.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use image_builder_actors::model::digest::hex;
use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::Target;
use image_builder_actors::model::scope::Scope;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use image_builder::source::{GitSettings, GithubSettings};

use super::git::{at, connector, name, settings, with};
use super::git_server::{GOOD_TOKEN, GitRepo, PRIVATE, server_url};
use super::stand_in::{Answer, Asked, StandIn};
use super::{fetch, fetched, list, refused, request};

/// What makes a pointer one: else it is a text like any other.
const ATTRIBUTES: (&str, &str) = (".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n");

fn oid(content: &str) -> String {
    hex(&Sha256::digest(content.as_bytes()))
}

fn pointer(content: &str) -> String {
    let (oid, size) = (oid(content), content.len());
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n")
}

type Store = Arc<HashMap<String, String>>;

fn store(contents: &[&str]) -> Store {
    Arc::new(contents.iter().map(|content| (oid(content), (*content).to_owned())).collect())
}

/// Where the objects are.
async fn storage(store: Store) -> StandIn {
    StandIn::start(move |asked| {
        let oid = asked.path.trim_start_matches("/objects/");
        store.get(oid).map_or_else(|| Answer::status(404), |text| Answer::bytes(text.as_str()))
    })
    .await
}

/// The answer of the batch API: each object at `storage`, with a header of its own.
fn batch(asked: &Asked, store: &Store, storage: &str) -> Answer {
    let wanted: Value = serde_json::from_slice(&asked.body).expect("the request is JSON");
    assert_eq!(wanted["operation"], "download");
    let objects: Vec<Value> = wanted["objects"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|object| {
            let oid = object["oid"].as_str().expect("a text");
            if !store.contains_key(oid) {
                let error = json!({"code": 404, "message": "Object does not exist"});
                return json!({"oid": oid, "size": object["size"], "error": error});
            }
            let download = json!({
                "href": format!("{storage}/objects/{oid}"),
                "header": {"X-Ticket": "a ticket", "Host": "evil.example", "Connection": "x-ticket"},
            });
            json!({"oid": oid, "size": object["size"], "actions": {"download": download}})
        })
        .collect();
    Answer::json(&json!({"transfer": "basic", "objects": objects}))
}

/// The forge: git by the real server, LFS by this store.
async fn forge(store: Store, storage: String) -> StandIn {
    StandIn::start(move |asked| {
        if asked.path.ends_with(".git/info/lfs/objects/batch") {
            batch(asked, &store, &storage)
        } else {
            Answer::From(server_url())
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn pointers_become_their_content_and_the_token_stays_with_the_forge() {
    let repo = GitRepo::create(PRIVATE, "lfs");
    let (big, other) = ("large content\n".repeat(10_000), "another content\n");
    std::fs::write(repo.work().join("run.bin"), pointer(&big)).expect("is writable");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(repo.work().join("run.bin"), executable).expect("is writable");
    repo.commit(&[
        ATTRIBUTES,
        ("deep/a.bin", &pointer(&big)),
        ("deep/b.bin", &pointer(other)),
        ("plain.txt", "version https://git-lfs.github.com/spec/v1 is its first line\n"),
    ]);
    let store = store(&[&big, other]);
    let storage = storage(store.clone()).await;
    let forge = forge(store, storage.url()).await;
    let connector = at(&forge.url());
    let request = request(&name(&repo), Target::DefaultBranch, Some(GOOD_TOKEN));
    let got = fetched(&connector, &request).await;

    assert!(got.read("run.bin") == big && got.read("deep/a.bin") == big);
    assert_eq!(got.read("deep/b.bin"), other);
    assert!(got.read("plain.txt").starts_with("version https://git-lfs"));
    let mode = |path: &str| {
        let metadata = got.source.tree.join(path).metadata().expect("is there");
        metadata.permissions().mode() & 0o777
    };
    assert_eq!((mode("run.bin"), mode("deep/a.bin")), (0o755, 0o644));
    assert_eq!(list(got.source.workspace.path()), ["tree"]);

    let downloads = storage.asked();
    assert_eq!(downloads.len(), 2, "the same content is downloaded once");
    for download in downloads {
        assert_eq!(download.header("x-ticket"), "a ticket");
        assert_eq!(download.header("authorization"), "");
    }
    let asked = forge.asked();
    let batch = asked.iter().find(|asked| asked.path.ends_with("/batch")).expect("was asked");
    assert!(batch.header("authorization").starts_with("Basic "));
    assert_eq!(batch.header("accept"), "application/vnd.git-lfs+json");
    assert_eq!(batch.header("content-type"), "application/vnd.git-lfs+json");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_that_cannot_be_had_is_a_fault_and_never_a_pointer() {
    let repo = GitRepo::create("contract", "lfs-missing");
    let content = "a content that is somewhere else\n";
    repo.commit(&[ATTRIBUTES, ("deep/a.bin", &pointer(content))]);
    let request = request(&name(&repo), Target::DefaultBranch, None);

    // Not in the store; in the batch answer but not in the storage; and another content there.
    let full = store(&[content]);
    let empty = store(&[]);
    let swapped = Arc::new(HashMap::from([(oid(content), content.to_uppercase())]));
    let longer = Arc::new(HashMap::from([(oid(content), content.repeat(1_000))]));
    for (known, stored, reason) in [
        (&empty, &empty, Reason::ForbiddenSource),
        (&full, &empty, Reason::ForbiddenSource),
        (&full, &swapped, Reason::ForgeFailed),
        (&full, &longer, Reason::ForgeFailed),
    ] {
        let storage = storage(stored.clone()).await;
        let forge = forge(known.clone(), storage.url()).await;
        let connector = at(&forge.url());
        refused(&connector, &request, reason, "`deep/a.bin`").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_lfs_server_answers_has_its_reason() {
    let repo = GitRepo::create("contract", "lfs-status");
    repo.commit(&[ATTRIBUTES, ("a.bin", &pointer("some content"))]);
    let request = request(&name(&repo), Target::DefaultBranch, None);
    for (status, reason, naming) in [
        (404, Reason::ForbiddenSource, "`a.bin`"),
        (401, Reason::Unauthorized, "over its budget"),
        (402, Reason::ForgeFailed, "Git LFS quota"),
        (403, Reason::Unauthorized, "Git LFS quota"),
        (429, Reason::RateLimited, "Git LFS quota"),
        (500, Reason::ForgeFailed, "over its budget"),
        (507, Reason::ForgeFailed, "Git LFS quota"),
        (200, Reason::ForgeFailed, "cannot be used"),
    ] {
        let forge = StandIn::start(move |asked| {
            if asked.path.ends_with("/batch") {
                let body = b"{\"message\": \"over its budget\"}".to_vec();
                return Answer::Text { status, headers: Vec::new(), body };
            }
            Answer::From(server_url())
        })
        .await;
        let connector = at(&forge.url());
        let fault = refused(&connector, &request, reason, naming).await;
        if reason == Reason::RateLimited {
            assert_eq!(fault.scope, Scope::Repository(page(&forge, &repo)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_lfs_server_answers_for_one_object_has_its_reason() {
    let repo = GitRepo::create("contract", "lfs-quota");
    repo.commit(&[ATTRIBUTES, ("a.bin", &pointer("some content"))]);
    let request = request(&name(&repo), Target::DefaultBranch, None);
    for (code, message, reason, naming) in [
        (404, "gone", Reason::ForbiddenSource, "`a.bin` is not on the Git LFS server"),
        (410, "gone", Reason::ForbiddenSource, "`a.bin` is not on the Git LFS server"),
        (403, "no", Reason::Unauthorized, "does not give out `a.bin`: status 403, no"),
        (403, "over its data Quota", Reason::Unauthorized, "Git LFS quota that"),
        (429, "later", Reason::RateLimited, "does not give out `a.bin`"),
        (507, "full", Reason::ForgeFailed, "Git LFS quota that"),
    ] {
        let forge = StandIn::start(move |asked| {
            if !asked.path.ends_with("/batch") {
                return Answer::From(server_url());
            }
            let wanted: Value = serde_json::from_slice(&asked.body).expect("the request is JSON");
            let error = json!({"code": code, "message": message});
            let object = json!({"oid": wanted["objects"][0]["oid"], "size": 12, "error": error});
            Answer::json(&json!({"objects": [object]}))
        })
        .await;
        refused(&at(&forge.url()), &request, reason, naming).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_files_without_a_content_are_named_up_to_some() {
    let repo = GitRepo::create("contract", "lfs-many-missing");
    let there = "a content that is there\n";
    let missing: Vec<_> = (0..7).map(|n| (format!("m{n}.bin"), pointer(&n.to_string()))).collect();
    let files = missing.iter().map(|(path, text)| (path.as_str(), text.as_str()));
    let pointer_there = pointer(there);
    repo.commit(&files.chain([ATTRIBUTES, ("there.bin", &pointer_there)]).collect::<Vec<_>>());
    let store = store(&[there]);
    let storage = storage(store.clone()).await;
    let forge = forge(store, storage.url()).await;
    let request = request(&name(&repo), Target::DefaultBranch, None);
    let named = "`m0.bin`, `m1.bin`, `m2.bin`, `m3.bin`, `m4.bin` and 2 more is not on";
    refused(&at(&forge.url()), &request, Reason::ForbiddenSource, named).await;
    assert_eq!(storage.asked().len(), 0, "nothing is fetched for nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_attributes_and_lfsconfig_want_is_fetched_in_submodules_too() {
    let (wanted, other) = ("wanted content\n", "another content\n");
    let (wanted_pointer, other_pointer) = (pointer(wanted), pointer(other));
    let files = [
        ATTRIBUTES,
        (".lfsconfig", "[lfs]\n\tfetchexclude = big, *.iso.bin\n"),
        ("wanted.bin", &*wanted_pointer),
        ("big/a.bin", &other_pointer),
        ("deep/b.iso.bin", &other_pointer),
        ("plain.txt", &other_pointer),
        ("no-pointer.bin", other),
    ];
    let inner = GitRepo::create("contract", "lfs-inner");
    let inner_commit = inner.commit(&files);
    let repo = GitRepo::create("contract", "lfs-outer");
    repo.commit(&files);
    repo.add_submodule("sub", &format!("../{}.git", inner.name), &inner_commit);
    repo.commit_index();

    let known = store(&[wanted]);
    let storage = storage(known.clone()).await;
    let forge = forge(known, storage.url()).await;
    let request = request(&name(&repo), Target::DefaultBranch, None);
    let got = fetched(&at(&forge.url()), &request).await;
    for root in ["", "sub/"] {
        let read = |path: &str| got.read(&format!("{root}{path}"));
        assert_eq!(read("wanted.bin"), wanted);
        assert_eq!(read("no-pointer.bin"), other);
        for path in ["big/a.bin", "deep/b.iso.bin", "plain.txt"] {
            assert_eq!(read(path), other_pointer, "{root}{path}");
        }
    }
    assert_eq!(storage.asked().len(), 2, "once for each repository");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_a_submodule_that_has_no_content_is_named_with_its_path() {
    let inner = GitRepo::create("contract", "lfs-inner");
    let inner_commit = inner.commit(&[ATTRIBUTES, ("deep/a.bin", &pointer("a content"))]);
    let repo = GitRepo::create("contract", "lfs-outer");
    repo.add_submodule("sub", &format!("../{}.git", inner.name), &inner_commit);
    repo.commit_index();
    let empty = store(&[]);
    let storage = storage(empty.clone()).await;
    let forge = forge(empty, storage.url()).await;
    let request = request(&name(&repo), Target::DefaultBranch, None);
    let connector = at(&forge.url());
    refused(&connector, &request, Reason::ForbiddenSource, "`sub/deep/a.bin`").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_an_lfs_server_states_for_an_object_concerns_its_repository_alone() {
    let repo = GitRepo::create("contract", "lfs-object-limit");
    let content = "some content";
    repo.commit(&[ATTRIBUTES, ("a.bin", &pointer(content))]);
    let forge = StandIn::start(move |asked| {
        if asked.path.ends_with("/batch") {
            let error = json!({"code": 429, "message": "later"});
            let object = json!({"oid": oid(content), "size": content.len(), "error": error});
            let body = json!({"objects": [object]}).to_string().into_bytes();
            return Answer::Text { status: 200, headers: Vec::new(), body };
        }
        Answer::From(server_url())
    })
    .await;
    let request = request(&name(&repo), Target::DefaultBranch, None);
    let fault = refused(&at(&forge.url()), &request, Reason::RateLimited, "later").await;
    assert_eq!(fault.scope, Scope::Repository(page(&forge, &repo)));
}

/// The address of a repository for people.
fn page(forge: &StandIn, repo: &GitRepo) -> String {
    format!("{}/{}", forge.url(), name(repo))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_store_of_lfs_objects_lacks_concerns_its_repository_alone() {
    let repo = GitRepo::create(PRIVATE, "lfs-lacking");
    let content = "some content";
    repo.commit(&[ATTRIBUTES, ("a.bin", &pointer(content))]);
    let known = store(&[content]);
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let address = listener.and_then(|listener| listener.local_addr());
        format!("http://{}", address.expect("a local port is free"))
    };
    let limited = StandIn::start(|_| Answer::status(429).with("retry-after", "17")).await;
    for storage in [closed, limited.url()] {
        let forge = forge(known.clone(), storage).await;
        let connector = at(&forge.url());
        let request = request(&name(&repo), Target::DefaultBranch, Some(GOOD_TOKEN));
        let Err(fault) = fetch(&connector, &request, None).await else { panic!("it is not there") };
        assert_eq!(fault.scope, Scope::Repository(page(&forge, &repo)), "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_lfs_server_sends_a_download_to_a_private_address() {
    let repo = GitRepo::create(PRIVATE, "lfs-private");
    let content = "some content";
    repo.commit(&[ATTRIBUTES, ("a.bin", &pointer(content))]);
    let known = store(&[content]);
    let storage = storage(known.clone()).await;
    let port = storage.address.port();
    // The forge is at 127.0.0.1, where its own store may be.
    let elsewhere = format!("http://localhost:{port}");
    let redirecting = {
        let to = elsewhere.clone();
        StandIn::start(move |asked| {
            Answer::status(302).with("location", &format!("{to}{}", asked.path))
        })
        .await
    };
    for (sent_to, host) in [
        (elsewhere.clone(), "localhost"),
        (format!("http://127.0.0.2:{port}"), "127.0.0.2"),
        (format!("http://[::1]:{port}"), "[::1]"),
        ("http://169.254.169.254".to_owned(), "169.254.169.254"),
        (redirecting.url(), "localhost"),
    ] {
        let forge = forge(known.clone(), sent_to).await;
        let request = request(&name(&repo), Target::DefaultBranch, Some(GOOD_TOKEN));
        let part = format!("from `{host}`, where the Git LFS server");
        refused(&at(&forge.url()), &request, Reason::ForbiddenSource, &part).await;
    }
    assert_eq!(storage.asked().len(), 0, "it was never asked");

    // An operator may list the store.
    let forge = forge(known, elsewhere).await;
    let allowed = "127.0.0.0/8,::1".parse().expect("networks");
    let github = GithubSettings { url: forge.url(), api_url: forge.url() };
    let connector = with(GitSettings { github, allowed, ..settings() });
    let request = request(&name(&repo), Target::DefaultBranch, Some(GOOD_TOKEN));
    assert_eq!(fetched(&connector, &request).await.read("a.bin"), content);
    // Neither the name that is asked for nor how the request is sent is the server's to choose.
    let asked = storage.asked();
    assert_eq!(asked[0].header("host"), format!("localhost:{port}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lfs_content_counts_against_the_limits_before_it_is_fetched() {
    let repo = GitRepo::create("contract", "lfs-large");
    let content = "x".repeat(100_000);
    repo.commit(&[ATTRIBUTES, ("a.bin", &pointer(&content))]);
    let store = store(&[&content]);
    let storage = storage(store.clone()).await;
    let forge = forge(store, storage.url()).await;
    let limits = Limits { source_bytes: 50_000, ..Limits::default() };
    let connector = connector(&forge.url(), &forge.url(), limits);
    let request = request(&name(&repo), Target::DefaultBranch, None);
    refused(&connector, &request, Reason::TooLarge, "50000 bytes").await;
    assert_eq!(storage.asked().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_lfs_server_of_the_repository_s_choice_must_be_at_the_forge() {
    let content = "some content";
    let store = store(&[content]);
    let other = StandIn::start(|_| Answer::status(500)).await;
    let storage = storage(store.clone()).await;
    let storage_url = storage.url();
    let forge = StandIn::start(move |asked| {
        if asked.path == "/special/lfs/objects/batch" {
            batch(asked, &store, &storage_url)
        } else {
            Answer::From(server_url())
        }
    })
    .await;
    let connector = at(&forge.url());

    let repo = GitRepo::create("contract", "lfs-config");
    let config = format!("[lfs]\n\turl = {}/special/lfs/\n", forge.url());
    repo.commit(&[ATTRIBUTES, (".lfsconfig", &config), ("a.bin", &pointer(content))]);
    let wish = request(&name(&repo), Target::DefaultBranch, Some("a-token"));
    assert_eq!(fetched(&connector, &wish).await.read("a.bin"), content);

    let config = format!("[lfs]\n\turl = {}/special/lfs\n", other.url());
    repo.commit(&[(".lfsconfig", &config)]);
    refused(&connector, &wish, Reason::ForbiddenSource, ".lfsconfig").await;
    assert_eq!(other.asked().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_files_than_one_request_asks_for_are_all_fetched() {
    let repo = GitRepo::create("contract", "lfs-many");
    let contents: Vec<String> = (0..150).map(|n| format!("content {n}\n")).collect();
    let files: Vec<(String, String)> = contents
        .iter()
        .enumerate()
        .map(|(n, content)| (format!("f{n}.bin"), pointer(content)))
        .collect();
    let files = files.iter().map(|(path, text)| (path.as_str(), text.as_str()));
    repo.commit(&files.chain([ATTRIBUTES]).collect::<Vec<_>>());
    let store = store(&contents.iter().map(String::as_str).collect::<Vec<_>>());
    let storage = storage(store.clone()).await;
    let forge = forge(store, storage.url()).await;
    let connector = at(&forge.url());
    let got = fetched(&connector, &request(&name(&repo), Target::DefaultBranch, None)).await;
    for (n, content) in contents.iter().enumerate() {
        assert_eq!(&got.read(&format!("f{n}.bin")), content);
    }
}
