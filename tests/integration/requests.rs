//! Build requests: what can be asked for, in which shapes, and what cannot be had.

use serde_json::{Value, json};

use crate::support::canary;
use crate::support::git_server::{GOOD_TOKEN, GitRepo, PRIVATE};
use crate::support::managers::Notification;
use crate::support::unique;
use crate::support::world::{World, dockerfile, full_name, repository, shared, with};

/// Builds this; the image has to be that of the commit.
#[track_caller]
fn builds_commit(world: &World, request: &Value, commit: &str) -> Notification {
    let told = world.build(request).ready();
    assert_eq!(told.text("/commit"), commit);
    assert_eq!(told.text("/image/tag"), commit);
    told
}

/// A repository with a history: its default branch is `trunk`, and everything else is elsewhere.
struct History {
    repo: GitRepo,
    first: String,
    tagged: String,
    head: String,
    on_branch: String,
}

fn history() -> History {
    let repo = GitRepo::create("it", "history");
    let step = dockerfile(&format!("RUN : {}\nCOPY version /version", unique("step")));
    let first = repo.commit(&[("Dockerfile", &step), ("version", "first")]);
    repo.branch("trunk");
    repo.set_default_branch("trunk");
    let tagged = repo.commit(&[("version", "tagged")]);
    repo.tag("v1-light");
    repo.annotated_tag("v1-annotated");
    repo.branch("topic/one");
    let on_branch = repo.commit(&[("version", "on the branch")]);
    repo.switch("trunk");
    let head = repo.commit(&[("version", "head")]);
    History { repo, first, tagged, head, on_branch }
}

#[test]
fn a_repository_is_built_at_the_head_of_its_default_branch_whatever_it_is_called() {
    let (world, history) = (shared(), history());
    let told = builds_commit(&world, &world.request(&history.repo), &history.head);
    assert_eq!(told.text("/builder"), "dockerfile");
    assert_eq!(told.text("/repo"), full_name(&history.repo));
    assert_eq!(told.text("/connector"), "github");
    assert_eq!(told.text("/applicationID"), history.repo.name);
    assert_eq!(told.data()["attempts"], 1);
    assert_eq!(told.data()["reused"], false);
}

#[test]
fn branches_tags_releases_and_commits_are_built() {
    let (world, history) = (shared(), history());
    let repo = &history.repo;
    world.release(repo, "latest", json!({"tag_name": "v1-light", "draft": false}));
    world.release(repo, "tags/v1-annotated", json!({"tag_name": "v1-annotated", "draft": false}));
    let wanted = [
        (json!({"type": "branch", "branch": "topic/one"}), &history.on_branch),
        (json!({"type": "tag", "tag": "v1-light"}), &history.tagged),
        (json!({"type": "tag", "tag": "v1-annotated"}), &history.tagged),
        (json!({"type": "release", "release": "latest"}), &history.tagged),
        (json!({"type": "release", "release": "v1-annotated"}), &history.tagged),
        (json!({"type": "commit", "commit": history.first}), &history.first),
        (json!({"type": "commit", "commit": history.first[..8]}), &history.first),
    ];
    let published: Vec<_> = wanted
        .into_iter()
        .map(|(fields, commit)| {
            (world.publish(&with(world.request(repo), fields.clone())), fields, commit)
        })
        .collect();
    for (build_id, fields, commit) in published {
        let told = world.outcome(&build_id).ready();
        assert_eq!(told.text("/commit"), commit, "{fields}");
    }
}

#[test]
fn the_older_nested_shape_and_addresses_are_understood() {
    let (world, history) = (shared(), history());
    let name = full_name(&history.repo);
    let nested = |pull_info: Value| {
        let pull_info = with(json!({"userID": world.user, "repo": name}), pull_info);
        json!({"applicationID": "nested", "uuid": unique("build"), "pullInfo": pull_info})
    };
    let address = world.settings["GITHUB_URL"].clone();
    let flat = |repo: String| json!({"userID": world.user, "uuid": unique("build"), "repo": repo});
    let wanted = [
        (nested(json!({"commit": "latest"})), &history.head),
        (nested(json!({"commit": "latest", "branch": "topic/one"})), &history.on_branch),
        (nested(json!({"branch": "trunk", "token": "", "connector": "github"})), &history.head),
        (nested(json!({"branch": "trunk", "commit": history.first})), &history.first),
        (flat(format!("{address}/{name}")), &history.head),
        (flat(format!("{address}/{name}.git")), &history.head),
    ];
    let published: Vec<_> =
        wanted.iter().map(|(request, commit)| (world.publish(request), request, commit)).collect();
    for (build_id, request, commit) in published {
        let told = world.outcome(&build_id).ready();
        assert_eq!(told.text("/commit"), **commit, "{request}");
    }
}

#[test]
fn a_private_repository_is_built_with_its_token_only() {
    let world = shared();
    let repo = GitRepo::create(PRIVATE, "private");
    repo.commit(&[("Dockerfile", &dockerfile("RUN true"))]);
    let wrong = canary::secret("wrong-token");
    world.keep_secret(&wrong);
    world.keep_secret(GOOD_TOKEN);

    let good = world.publish(&with(world.request(&repo), json!({"token": GOOD_TOKEN})));
    let bad = world.publish(&with(world.request(&repo), json!({"token": wrong})));
    let none = world.publish(&world.request(&repo));
    world.outcome(&good).ready();
    for build_id in [bad, none] {
        let told = world.outcome(&build_id).failed("unauthorized");
        assert_eq!(told.text("/fault"), "user");
        assert_eq!(told.text("/stage"), "connector");
        assert_eq!(told.data()["attempts"], 1);
        assert!(told.text("/message").contains(&full_name(&repo)), "{}", told.raw);
    }
}

#[test]
fn what_is_not_there_is_a_fault_of_the_user_that_names_it() {
    let world = shared();
    let repo = repository("incomplete", &[("readme.md", "nothing to build")]);
    let request = |fields: Value| with(world.request(&repo), fields);
    let missing = unique("missing");
    let wanted = [
        (request(json!({"repo": format!("it/{missing}")})), "repository_not_found", "connector"),
        (request(json!({"type": "branch", "branch": missing})), "ref_not_found", "connector"),
        (request(json!({"type": "tag", "tag": missing})), "ref_not_found", "connector"),
        (request(json!({"type": "release", "release": missing})), "ref_not_found", "connector"),
        (
            request(json!({"type": "commit", "commit": "0".repeat(40)})),
            "ref_not_found",
            "connector",
        ),
        (request(json!({"buildPlan": {"builder": "dockerfile"}})), "no_build_plan", "builder"),
        (request(json!({})), "no_build_plan", "builder"),
        (request(json!({"buildPlan": {"rootDirectory": missing}})), "invalid_plan", "builder"),
    ];
    let published: Vec<_> = wanted
        .iter()
        .map(|(request, reason, stage)| (world.publish(request), request, reason, stage))
        .collect();
    for (build_id, request, reason, stage) in published {
        let told = world.outcome(&build_id).failed(reason);
        assert_eq!(told.text("/stage"), *stage, "{request}");
        assert_eq!(told.text("/fault"), "user", "{request}");
        assert_eq!(told.data()["attempts"], 1, "{request}");
        let named = request.to_string().contains(&missing);
        assert!(!named || told.text("/message").contains(&missing), "{}", told.raw);
    }
}

#[test]
fn a_root_directory_is_built_and_its_neighbours_are_not_in_the_way() {
    let world = shared();
    let repo = repository(
        "roots",
        &[
            ("Dockerfile", "FROM scratch\nRUN this would fail"),
            ("apps/web/Dockerfile", &dockerfile("COPY here /here\nRUN test ! -e /apps")),
            ("apps/web/here", "the web app"),
        ],
    );
    let request =
        |root: &str| with(world.request(&repo), json!({"buildPlan": {"rootDirectory": root}}));
    for root in ["apps/web", "/apps/web/"] {
        let told = world.build(&request(root)).ready();
        let image = told.text("/image/imageID");
        assert_eq!(crate::support::engine::file_in(image, "/here"), "the web app");
    }
    world.build(&request("../..")).failed("invalid_plan");
}
