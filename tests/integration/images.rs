//! Images: their names, labels and digests, and when one is reused.

use serde_json::json;

use crate::support::world::{dockerfile, full_name, repository, shared, with};
use crate::support::{engine, registry, unique};

#[test]
fn an_image_is_named_labelled_and_to_be_had_by_its_digest() {
    let world = shared();
    let repo = repository("labels", &[("Dockerfile", &dockerfile("RUN echo whatever > /what"))]);
    let commit = repo.git(&["rev-parse", "HEAD"]);
    let committed = repo.git(&["show", "-s", "--format=%cI", "HEAD"]);
    let told = world.build(&with(world.request(&repo), json!({"applicationID": "web"}))).ready();

    let registry_url = registry::open();
    let repository = format!("{}/web", world.user);
    let name = format!("{registry_url}/{repository}");
    assert_eq!(told.text("/image/reference"), format!("{name}:{commit}"));
    assert_eq!(told.text("/image/repository"), name);
    assert_eq!(told.text("/image/tag"), commit);
    assert_eq!(told.text("/applicationID"), "web");
    let digest = told.text("/image/digest");
    assert_eq!(registry::digest(&repository, &commit).as_deref(), Some(digest));
    assert!(told.data()["image"]["sizeBytes"].as_u64().is_some_and(|size| size > 1_000_000));

    let by_digest = format!("{name}@{digest}");
    engine::docker(&["pull", "--quiet", &by_digest]);
    let label = |label: &str| engine::label(&by_digest, label);
    let url = label("org.opencontainers.image.source");
    assert!(url.starts_with(&format!("{}/{}", world.settings["GITHUB_URL"], full_name(&repo))));
    assert_eq!(label("org.opencontainers.image.revision"), commit);
    assert_eq!(label("org.opencontainers.image.version"), "main");
    assert_eq!(label("image-builder.builder"), "dockerfile");
    let parse = |text: &str| {
        time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    };
    assert_eq!(parse(&label("org.opencontainers.image.created")), parse(&committed));
    let key = label("image-builder.build-key");
    assert_eq!(key.len(), 64, "{key}");
    let tagged = registry::digest(&repository, &format!("key-{key}"));
    assert_eq!(tagged.as_deref(), Some(digest), "the build key is a tag of the same image");

    let seconds = &told.data()["seconds"];
    let of = |stage: &str| seconds[stage].as_f64().unwrap_or_else(|| panic!("{stage}: {seconds}"));
    let stages: f64 = ["queue", "connector", "builder", "pusher"].map(of).iter().sum();
    assert!((of("total") - stages).abs() < 0.1, "{seconds}");
}

#[test]
fn a_commit_beside_the_application_builds_nothing() {
    let world = shared();
    let repo = repository("beside", &[("app/Dockerfile", &dockerfile("COPY a /")), ("app/a", "1")]);
    let wish = || with(world.request(&repo), json!({"buildPlan": {"rootDirectory": "app"}}));
    let first = world.build(&wish()).ready();
    let commit = repo.commit(&[("elsewhere/a", "2")]);
    let second = world.build(&wish()).ready();
    assert_eq!(second.data()["reused"], true);
    let image = |field: &str| (&first.data()["image"][field], &second.data()["image"][field]);
    assert_eq!(image("digest").0, image("digest").1);
    assert_eq!((image("tag").1, &second.data()["commit"]), (&json!(commit), &json!(commit)));
    let repository = second.text("/image/repository").to_owned();
    let repository = repository.replace(&format!("{}/", registry::open()), "");
    let digest = second.data()["image"]["digest"].as_str();
    assert_eq!(registry::digest(&repository, &commit).as_deref(), digest);

    repo.commit(&[("app/a", "2")]);
    assert_eq!(world.build(&wish()).ready().data()["reused"], false);
}

#[test]
fn the_same_inputs_are_served_from_the_registry_and_force_builds_them_anew() {
    let world = shared();
    // What the step writes is new each time that it runs without the engine's cache.
    let repo = repository(
        "reuse",
        &[("Dockerfile", &dockerfile("RUN cat /proc/sys/kernel/random/uuid > /when"))],
    );
    let first = world.build(&world.request(&repo)).ready();
    assert_eq!(first.data()["reused"], false);

    let second = world.build(&world.request(&repo)).ready();
    assert_eq!(second.data()["reused"], true);
    assert_eq!(second.data()["image"], first.data()["image"]);
    assert_ne!(second.build_id(), first.build_id());

    let forced = world.build(&with(world.request(&repo), json!({"force": true}))).ready();
    assert_eq!(forced.data()["reused"], false);

    let secrets = json!({"buildPlan": {"secrets": {"unused": "any secret at all"}}});
    let with_secrets = world.build(&with(world.request(&repo), secrets)).ready();
    assert_eq!(with_secrets.data()["reused"], false);

    let other = json!({"userID": format!("{}-other", world.user)});
    let of_another_user = world.build(&with(world.request(&repo), other)).ready();
    assert_eq!(of_another_user.data()["reused"], false, "nothing is reused across users");

    let arguments = json!({"buildPlan": {"buildArgs": {"A": "b"}}});
    let other_plan = world.build(&with(world.request(&repo), arguments)).ready();
    assert_eq!(other_plan.data()["reused"], false);
}

#[test]
fn users_and_applications_with_odd_names_never_share_an_image() {
    let world = shared();
    let repo = repository("names", &[("Dockerfile", &dockerfile("RUN true"))]);
    let names = ["Web", "web", "WEB", "w eb", "w/eb", "wéb", "w..eb", "-web"];
    let published: Vec<_> = names
        .iter()
        .map(|name| {
            let user = format!("{} {name}", world.user);
            let names = json!({"userID": user, "applicationID": name});
            world.publish(&with(world.request(&repo), names))
        })
        .collect();
    let mut repositories: Vec<String> = published
        .iter()
        .map(|build_id| world.outcome(build_id).ready().text("/image/repository").to_owned())
        .collect();
    repositories.sort();
    repositories.dedup();
    assert_eq!(repositories.len(), names.len(), "{repositories:?}");
}

#[test]
fn an_image_goes_to_a_registry_that_wants_a_password() {
    let (url, username, password) = registry::guarded();
    let world = crate::support::world::World::new()
        .with("REGISTRY_URL", &url)
        .with("REGISTRY_USERNAME", &username)
        .with("REGISTRY_PASSWORD", &password);
    world.keep_secret(&password);
    let worker = world.worker();
    let step = unique("step");
    let repo = repository("guarded", &[("Dockerfile", &dockerfile(&format!("RUN : {step}")))]);
    let first = world.build(&world.request(&repo)).ready();
    assert!(first.text("/image/reference").starts_with(&format!("{url}/")));
    let second = world.build(&world.request(&repo)).ready();
    assert_eq!(second.data()["reused"], true);
    world.finish(&[&worker]);
}

#[test]
fn an_image_made_over_a_cache_mount_is_of_its_commit_though_that_is_older_than_what_is_cached() {
    let world = shared();
    // Decides as `make` does: what is newer than its source is not made again. To busybox a second is one moment.
    let dockerfile = format!(
        "FROM {}\nCOPY . /src\nRUN --mount=type=cache,id={},target=/out \
         {{ [ /out/program -nt /src/main ] || cp /src/main /out/program; }} && cp /out/program /\n",
        engine::DEBIAN,
        unique("out")
    );
    let repo = repository("cached", &[("Dockerfile", &dockerfile), ("main", "one")]);
    let one = repo.git(&["rev-parse", "HEAD"]);
    // Both are there before anything is made.
    let two = repo.commit(&[("main", "two")]);
    for (commit, program) in [(&one, "one"), (&two, "two"), (&one, "one"), (&two, "two")] {
        let wish = json!({"type": "commit", "commit": commit, "force": true});
        let told = world.build(&with(world.request(&repo), wish)).ready();
        let image = format!(
            "{}/{}@{}",
            registry::open(),
            told.text("/image/repository").split_once('/').expect("a registry's name").1,
            told.text("/image/digest")
        );
        assert_eq!(engine::file_in(&image, "/program"), program);
    }
}
