//! Dead letters.

use super::*;

#[tokio::test]
async fn dead_letters_are_listed_shown_and_dropped() {
    let world = World::start().await;
    for (id, user) in [("a", "u"), ("b", "v"), ("c", "u")] {
        world.keep_letter(id, &json!({"userID": user, "repo": "o/n"})).await;
    }
    let ids = |page: &Value| -> Vec<String> {
        let letters = page["letters"].as_array().expect("letters");
        letters.iter().map(|letter| letter["buildID"].as_str().expect("an id").to_owned()).collect()
    };
    let first = world.get("/v1/dead?limit=2").await.json();
    assert_eq!(ids(&first), ["a", "b"]);
    let cursor = first["next"].as_str().expect("there is more");
    assert_eq!(ids(&world.get(&format!("/v1/dead?cursor={cursor}")).await.json()), ["c"]);
    assert_eq!(ids(&world.get("/v1/dead?user=u&fault=service").await.json()), ["a", "c"]);
    assert_eq!(ids(&world.get("/v1/dead?fault=build_failed").await.json()), [""; 0]);
    for wrong in ["fault=x", "limit=0"] {
        assert_eq!(world.get(&format!("/v1/dead?{wrong}")).await.status, 400, "{wrong}");
    }
    assert_eq!(world.get("/v1/dead?cursor=x").await.status, 404);
    let letter = world.get("/v1/dead/a").await.json();
    assert_eq!(letter["letter"]["reason"], "engine_failed");
    assert_eq!(world.get("/v1/dead/x").await.status, 404);
    assert_eq!(world.ask("DELETE", "/v1/dead/a", &[], "").await.status, 204);
    assert_eq!(world.ask("DELETE", "/v1/dead/a", &[], "").await.status, 404);
    assert_eq!(world.letters.letters().len(), 2);
}

/// The builds of a page, and its `next`.
async fn page(world: &World, query: &str) -> (Vec<String>, Option<String>) {
    let page = world.get(&format!("/v1/dead?{query}")).await.json();
    let letters = page["letters"].as_array().expect("letters");
    let ids = letters.iter().map(|letter| letter["buildID"].as_str().expect("an id").to_owned());
    (ids.collect(), page["next"].as_str().map(str::to_owned))
}

#[tokio::test]
async fn what_is_dropped_between_two_pages_hides_no_letter() {
    let world = World::start().await;
    for id in ["a", "b", "c", "d", "e"] {
        world.keep_letter(id, &json!({"userID": "u", "repo": "o/n"})).await;
    }
    let (first, next) = page(&world, "limit=2").await;
    assert_eq!(first, ["a", "b"]);
    let rest = format!("limit=2&cursor={}", next.expect("there is more"));
    // The letters before where it begins, and then the one that it begins behind.
    for gone in ["a", "b"] {
        assert_eq!(world.ask("DELETE", &format!("/v1/dead/{gone}"), &[], "").await.status, 204);
        let (second, next) = page(&world, &rest).await;
        assert_eq!(second, ["c", "d"], "without {gone}");
        let last = format!("cursor={}", next.expect("there is more"));
        assert_eq!(page(&world, &last).await, (vec!["e".to_owned()], None));
    }
}

#[tokio::test]
async fn copies_of_a_letter_are_passed_one_by_one() {
    let world = World::start().await;
    for letter in ["a", "b"].map(|id| letter(id, &json!({"userID": "u", "repo": "o/n"}))) {
        for _ in 0..2 {
            world.letters.keep(&letter).await.expect("it is kept");
        }
    }
    let (mut seen, mut query) = (Vec::new(), "limit=1".to_owned());
    for _ in 0..4 {
        let (ids, next) = page(&world, &query).await;
        seen.extend(ids);
        query = format!("limit=1&cursor={}", next.unwrap_or_default());
    }
    assert_eq!(seen, ["a", "a", "b", "b"]);
    assert!(query.ends_with("cursor="), "it is the last: {query}");
}

#[tokio::test]
async fn one_of_a_builds_letters_is_dropped_or_redriven_alone() {
    let world = World::start().await;
    for repo in ["o/one", "o/two"] {
        world.keep_letter("a", &json!({"userID": "u", "repo": repo})).await;
    }
    let listed = world.get("/v1/dead").await.json();
    let name = |number: usize| listed["letters"][number]["name"].as_str().expect("a name");
    let redrive = format!("/v1/dead/a/redrive?letter={}", name(0));
    assert_eq!(world.ask("POST", &redrive, &[], "").await.status, 202);
    let [message] = &world.requests()[..] else { panic!("one message") };
    let body: Value = serde_json::from_slice(&message.body).expect("JSON");
    assert_eq!(body["repo"], "o/one", "not of the newest");
    assert_eq!(world.ask("POST", &redrive, &[], "").await.status, 404);
    assert_eq!(world.letters().len(), 1);
    let drop = |name: &str| format!("/v1/dead/a?letter={name}");
    assert_eq!(world.ask("DELETE", &drop(name(0)), &[], "").await.status, 404);
    assert_eq!(world.ask("DELETE", &drop(name(1)), &[], "").await.status, 204);
    assert_eq!(world.letters().len(), 0);
}

#[tokio::test]
async fn a_dead_letter_is_redriven_with_what_it_lacks() {
    let world = World::start().await;
    world.keep_letter("old", &json!({"userID": "u", "repo": "o/n", "token": "t0"})).await;
    let lacking = world.ask("POST", "/v1/dead/old/redrive", &[], "").await;
    assert_eq!(lacking.status, 409);
    assert!(lacking.body.contains("`token`"), "{}", lacking.body);
    let redrive = |body| world.ask("POST", "/v1/dead/old/redrive", &JSON, body);
    assert_eq!(redrive(r#"{"tokn": "hunter2"}"#).await.status, 400);
    let answer = redrive(r#"{"token": "t1"}"#).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let redriven = answer.json();
    assert_eq!(redriven["redriveOf"], "old");
    let [message] = &world.broker.messages(Queue::Build)[..] else { panic!("one message") };
    let body: Value = serde_json::from_slice(&message.body).expect("JSON");
    assert_eq!((&body["token"], &body["uuid"]), (&json!("t1"), &redriven["buildID"]));
    assert!(world.letters.letters().is_empty());
    let id = redriven["buildID"].as_str().expect("an id");
    assert_eq!(world.get(&format!("/v1/builds/{id}")).await.json()["state"], "queued");
    assert_eq!(redrive("{}").await.status, 404);
}

#[tokio::test]
async fn where_two_users_have_a_dead_letter_of_one_id_it_has_to_be_said_whose_is_meant() {
    let world = World::start().await;
    for user in ["u", "v"] {
        world.keep_letter("a", &json!({"userID": user, "repo": "o/n"})).await;
    }
    assert_eq!(world.get("/v1/dead/a").await.status, 409);
    assert_eq!(world.ask("DELETE", "/v1/dead/a", &[], "").await.status, 409);
    assert_eq!(world.ask("DELETE", "/v1/dead/a?user=u", &[], "").await.status, 204);
    assert_eq!(world.get("/v1/dead/a").await.json()["userID"], "v");
}
