//! What is kept of repositories: what it saves, and for whom.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image_builder::source::{CacheSettings, GitConnector, GitSettings, GithubSettings};
use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::request::{BuildRequest, Target};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::testing::draw::noise;
use tempfile::TempDir;

use super::git::{name, settings, with};
use super::git_server::{GOOD_TOKEN, GitRepo, PRIVATE, server_url};
use super::stand_in::{Answer, StandIn};
use super::{commit, fetched, list, refused, request, scratch};

/// A connector that keeps objects, and the server that it asks.
struct Keeping {
    directory: TempDir,
    forge: StandIn,
    connector: Arc<GitConnector>,
}

impl Keeping {
    async fn start() -> Self {
        Self::with_budget(1 << 30).await
    }

    async fn with_budget(budget: u64) -> Self {
        let forge = StandIn::start(|_| Answer::From(server_url())).await;
        let directory = scratch();
        let cache = CacheSettings {
            directory: directory.path().join("git"),
            budget,
            secret: Secret::new("the tests' secret"),
        };
        let connector = with(GitSettings {
            github: GithubSettings { url: forge.url(), api_url: forge.url() },
            cache: Some(cache),
            ..settings()
        });
        Self { directory, forge, connector: Arc::new(connector) }
    }

    /// How many packs were asked for.
    fn packs_asked(&self) -> usize {
        let asked = self.forge.asked();
        asked.iter().filter(|asked| asked.path.ends_with("/git-upload-pack")).count()
    }

    /// The packs that are kept, with their sizes, the largest one first.
    fn packs(&self) -> Vec<(u64, PathBuf)> {
        let mut found = Vec::new();
        let mut directories = vec![self.directory.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for name in list(&directory) {
                let path = directory.join(name);
                if path.is_dir() {
                    directories.push(path);
                } else if path.extension().is_some_and(|extension| extension == "pack") {
                    found.push((path.metadata().expect("it is there").len(), path));
                }
            }
        }
        found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        found
    }
}

fn of(repo: &GitRepo) -> BuildRequest {
    request(&name(repo), Target::DefaultBranch, None)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_commit_costs_what_changed_and_the_same_one_a_look_at_the_refs() {
    let keeping = Keeping::start().await;
    let repo = GitRepo::create("contract", "kept");
    repo.commit(&[("noise", &noise(300_000)), ("deep/a", "1"), ("gone", "x")]);
    fetched(&*keeping.connector, &of(&repo)).await;
    assert_eq!((keeping.packs_asked(), keeping.packs().len()), (1, 1));
    let again = fetched(&*keeping.connector, &of(&repo)).await;
    assert_eq!(keeping.packs_asked(), 1);
    assert_eq!(again.read("noise"), noise(300_000));

    for round in 2..5 {
        std::fs::remove_file(repo.work().join("gone")).ok();
        let id = repo.commit(&[("deep/a", &round.to_string())]);
        let got = fetched(&*keeping.connector, &of(&repo)).await;
        assert_eq!(got.source.commit, id);
        assert_eq!(got.read("deep/a"), round.to_string());
        assert_eq!(
            (list(&got.source.tree), got.read("noise").len()),
            (vec!["deep".to_owned(), "noise".to_owned()], 300_000)
        );
        let packs = keeping.packs();
        assert_eq!(packs.len(), round);
        assert!(packs[0].0 > 200_000 && packs[1].0 < 2_000, "{packs:?}");
    }
    assert_eq!(keeping.packs_asked(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_what_another_user_or_credential_fetched() {
    let keeping = Keeping::start().await;
    let repo = GitRepo::create(PRIVATE, "kept");
    repo.commit(&[("a", "1")]);
    let with_token = |token| request(&name(&repo), Target::DefaultBranch, token);
    fetched(&*keeping.connector, &with_token(Some(GOOD_TOKEN))).await;
    let other = BuildRequest { user_id: "someone else".to_owned(), ..with_token(Some(GOOD_TOKEN)) };
    fetched(&*keeping.connector, &other).await;
    assert_eq!((keeping.packs_asked(), keeping.packs().len()), (2, 2));
    for token in [None, Some("a-wrong-token")] {
        refused(&*keeping.connector, &with_token(token), Reason::Unauthorized, "").await;
    }
    let mut files = String::new();
    for (_, pack) in keeping.packs() {
        files.push_str(&pack.display().to_string());
        let entry = pack.ancestors().nth(3).expect("an entry");
        for file in ["config", "HEAD", "shallow"] {
            files.push_str(&std::fs::read_to_string(entry.join(file)).expect("a text"));
        }
    }
    assert!(!files.contains(GOOD_TOKEN), "{files}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_the_server_no_longer_gives_out_is_not_taken_from_what_is_kept() {
    let keeping = Keeping::start().await;
    let repo = GitRepo::create("contract", "withdrawn");
    repo.commit(&[("a", "1")]);
    let secret = repo.commit(&[("secret", "s")]);
    let wish = request(&name(&repo), commit(&secret), None);
    fetched(&*keeping.connector, &wish).await;
    repo.git(&["reset", "-q", "--hard", "HEAD~1"]);
    repo.commit(&[("b", "2")]);
    refused(&*keeping.connector, &wish, Reason::RefNotFound, &secret).await;

    let earlier = repo.commit(&[("b", "3")]);
    repo.commit(&[("b", "4")]);
    fetched(&*keeping.connector, &of(&repo)).await;
    for _ in 0..2 {
        let wish = request(&name(&repo), commit(&earlier), None);
        assert_eq!(fetched(&*keeping.connector, &wish).await.read("b"), "3");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_or_half_there_is_thrown_away_and_never_a_wrong_tree() {
    type Damage = fn(&Path);
    let damage: [(&str, Damage); 5] = [
        ("a pack of zeros", |pack| {
            let length = pack.metadata().expect("there").len() as usize;
            std::fs::remove_file(pack).expect("removed");
            std::fs::write(pack, vec![0; length]).expect("written");
        }),
        ("a pack cut off", |pack| {
            let bytes = std::fs::read(pack).expect("read");
            std::fs::remove_file(pack).expect("removed");
            std::fs::write(pack, &bytes[..bytes.len() / 2]).expect("written");
        }),
        ("no pack", |pack| std::fs::remove_file(pack).expect("removed")),
        ("no index", |pack| {
            std::fs::remove_file(pack.with_extension("idx")).expect("removed");
        }),
        ("no HEAD", |pack| {
            let entry = pack.ancestors().nth(3).expect("an entry");
            std::fs::remove_file(entry.join("HEAD")).expect("removed");
        }),
    ];
    for (what, damage) in damage {
        let keeping = Keeping::start().await;
        let repo = GitRepo::create("contract", "damaged");
        repo.commit(&[("a", &noise(5_000)), ("b", "1")]);
        fetched(&*keeping.connector, &of(&repo)).await;
        damage(&keeping.packs()[0].1);
        for round in ["1", "2", "3"] {
            repo.commit(&[("b", round)]);
            let got = fetched(&*keeping.connector, &of(&repo)).await;
            assert_eq!((got.read("a"), got.read("b")), (noise(5_000), round.to_owned()), "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_builds_of_one_repository_at_once_share_one_fetch() {
    let keeping = Keeping::start().await;
    let repo = GitRepo::create("contract", "shared");
    repo.commit(&[("noise", &noise(100_000))]);
    let fetches = (0..6).map(|_| {
        let (connector, wish) = (keeping.connector.clone(), of(&repo));
        tokio::spawn(async move { fetched(&*connector, &wish).await.read("noise").len() })
    });
    for fetch in fetches.collect::<Vec<_>>() {
        assert_eq!(fetch.await.expect("no fetch panics"), 100_000);
    }
    assert_eq!(keeping.packs_asked(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_the_budget_is_not_kept() {
    let keeping = Keeping::with_budget(10_000).await;
    let repo = GitRepo::create("contract", "budget");
    repo.commit(&[("noise", &noise(100_000))]);
    fetched(&*keeping.connector, &of(&repo)).await;
    let user =
        keeping.directory.path().join("git").join(&list(&keeping.directory.path().join("git"))[0]);
    super::empties(&user).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_shared_with_the_commit_before_and_what_is_done_to_one_changes_no_other_build() {
    let keeping = Keeping::start().await;
    let repo = GitRepo::create("contract", "links");
    let many: Vec<_> = (0..200).map(|n| (format!("many/{}/{n}", n % 7), n.to_string())).collect();
    let mut files: Vec<_> = many.iter().map(|(path, text)| (&**path, &**text)).collect();
    let large = noise(3 << 20);
    files.extend([
        ("twin", "1"),
        ("large", &large),
        ("changed", "old"),
        ("tool", "x"),
        ("empty", ""),
    ]);
    repo.commit(&files);
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(repo.work().join("tool"), executable).expect("a mode");
    std::os::unix::fs::symlink("tool", repo.work().join("link")).expect("a link");
    repo.commit(&[]);

    let first = fetched(&*keeping.connector, &of(&repo)).await;
    repo.commit(&[("changed", "new")]);
    let second = fetched(&*keeping.connector, &of(&repo)).await;
    let entry = |tree: &Path, path: &str| tree.join(path).symlink_metadata().expect("it is there");
    let same = |path: &str| {
        entry(&first.source.tree, path).ino() == entry(&second.source.tree, path).ino()
    };
    assert!(many.iter().all(|(path, _)| same(path)));
    assert!(["twin", "large", "tool", "empty"].iter().all(|path| same(path)));
    assert!(!same("changed") && !same("link") && !same("many"));
    assert_eq!((first.read("changed"), second.read("changed")), ("old".into(), "new".into()));
    assert_eq!((second.read("large") == large, second.read("link")), (true, "x".to_owned()));
    let mode = |path| entry(&second.source.tree, path).permissions().mode() & 0o777;
    assert_eq!((mode("tool"), mode("twin")), (0o755, 0o644));

    // What builds do: replace, move, remove. And what none may do: write into a file.
    std::fs::remove_file(second.source.tree.join("twin")).expect("removed");
    std::fs::write(second.source.tree.join("twin"), "of the build").expect("written");
    std::fs::remove_dir_all(second.source.tree.join("many")).expect("removed");
    std::fs::write(second.source.tree.join("changed"), "bad").expect("written");
    assert_eq!(first.read("twin"), "1");
    let third = fetched(&*keeping.connector, &of(&repo)).await;
    let read = ["twin", "changed", "tool", "empty"].map(|path| third.read(path));
    assert_eq!(read, ["1", "new", "x", ""]);
    assert!(many.iter().all(|(path, text)| third.read(path) == *text));
}
