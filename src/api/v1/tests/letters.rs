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
