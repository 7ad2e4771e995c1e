//! From a build that was given up to one that goes well: what an operator does with a dead letter,
//! beside a worker at work.

use serde_json::Value;

use crate::support::git_server::{GOOD_TOKEN, GitRepo, PRIVATE};
use crate::support::worker::run_with_input;
use crate::support::world::{World, dockerfile, with};

/// Runs `image-builder dead …` with this on its standard input; returns what it prints.
#[track_caller]
fn dead(world: &World, arguments: &[&str], input: &str) -> String {
    let arguments = [&["dead"], arguments].concat();
    let ended = run_with_input(&arguments, &world.settings(), input);
    assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.stderr);
    ended.stdout
}

#[test]
fn a_build_that_was_given_up_is_redriven_with_a_new_credential_and_goes_well() {
    let world = World::new();
    world.keep_secret(GOOD_TOKEN);
    let worker = world.worker();
    let repo = GitRepo::create(PRIVATE, "redriven");
    let commit = repo.commit(&[("Dockerfile", &dockerfile("COPY . /src"))]);
    let token = serde_json::json!({"token": "no longer good"});
    let old = world.publish(&with(world.request(&repo), token));
    world.outcome(&old).failed("unauthorized");

    let listed = dead(&world, &["list"], "");
    assert!(listed.contains(&old) && listed.contains("unauthorized"), "{listed}");
    let shown = dead(&world, &["show", &old, "--json"], "");
    let letter: Value = serde_json::from_str(&shown).expect("it is JSON");
    assert!(!shown.contains("no longer good"), "{letter}");

    // What was cancelled is the build that was given up: who asks again asks for another one.
    world.cancel(&old);
    worker.wait_for_line("asked to cancel");
    let printed = dead(&world, &["redrive", &old, "--token-stdin"], GOOD_TOKEN);
    let new = printed.trim().rsplit(' ').next().expect("it names the new build").to_owned();
    assert_ne!(new, old);
    let told = world.outcome(&new).ready();
    assert_eq!(told.text("/commit"), commit);
    assert_eq!(told.data()["attempts"], 1);
    let accepted = worker.wait_for_line_where("the new build is accepted", |line| {
        line.contains("job accepted") && line.contains(&new)
    });
    assert!(accepted.contains(&old), "it names the old build: {accepted}");

    let (told, letters) = world.finish(&[&worker]);
    assert_eq!(told.len(), 2);
    assert!(letters.is_empty(), "the letter is gone: {letters:?}");
}
