//! Builds: asked for, shown, cancelled.

use image_builder_actors::delivery::envelope::Envelope;

use super::*;

#[tokio::test]
async fn a_request_is_in_the_queue_and_known_before_it_is_answered() {
    let world = World::start().await;
    let answer = world.submit(&json!({"userID": "u", "repo": "o/n", "token": "hunter2"})).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert!(!answer.body.contains("hunter2"));
    let submitted = answer.json();
    let id = submitted["buildID"].as_str().expect("an id");
    assert_eq!(submitted["status"], "queued");
    assert_eq!(submitted["url"], format!("http://{}/v1/builds/{id}", world.address));
    assert_eq!(answer.header("location"), submitted["url"].as_str());
    let [message] = &world.broker.messages(Queue::Build)[..] else { panic!("one message") };
    assert_eq!(message.message_id.as_deref(), Some(id));
    assert!(Envelope::decode(message).given_id, "its id is the service's own");
    let body: Value = serde_json::from_slice(&message.body).expect("JSON");
    assert_eq!(body["token"], "hunter2", "as it was sent");
    let build = world.get(&format!("/v1/builds/{id}")).await;
    assert_eq!(build.status, 200);
    assert_eq!(build.json()["state"], "queued");
    assert_eq!(build.json()["applicationID"], "n");
}

#[tokio::test]
async fn the_same_request_under_its_uuid_is_taken_once_and_another_one_is_refused() {
    let world = World::start().await;
    assert_eq!(world.submit(&request("a")).await.status, 202);
    let again = world.submit(&request("a")).await;
    assert_eq!((again.status, &again.json()["buildID"]), (200, &json!("a")));
    let other = world.submit(&json!({"userID": "u", "repo": "o/m", "uuid": "a"})).await;
    assert_eq!(other.status, 409, "{other:?}");
    // Another user's is another build.
    let others = world.submit(&json!({"userID": "v", "repo": "o/n", "uuid": "a"})).await;
    assert_eq!(others.status, 202);
    let messages = world.broker.messages(Queue::Build);
    assert_eq!(messages.len(), 2);
    assert!(
        messages.iter().all(|message| !Envelope::decode(message).given_id),
        "the ids are the users' own"
    );
    let url = others.json()["url"].as_str().expect("an address").to_owned();
    assert!(url.ends_with("/v1/builds/a?user=v"), "{url}");
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_and_nothing_is_published() {
    let world = World::start().await;
    for (body, reason, word) in [
        (json!({"repo": "o/n"}), "invalid_request", "`userID` is required"),
        (json!({"userID": "u", "repo": "o/n", "connector": "x"}), "unsupported", "`connector`"),
        (json!({"userID": "u", "repo": "https://a.example/o/n"}), "forbidden_source", "`repo`"),
        (json!([]), "invalid_request", "must be a JSON object"),
    ] {
        let answer = world.submit(&body).await;
        assert_eq!((answer.status, &answer.json()["reason"]), (400, &json!(reason)), "{answer:?}");
        assert!(answer.body.contains(word), "{word}: {}", answer.body);
    }
    for (headers, body, status) in [
        (&JSON[..], "{\"a\": ", 400),
        (&JSON, "", 400),
        (&[], "{}", 415),
        (&[("Content-Type", "text/plain")], "{}", 415),
    ] {
        let answer = world.ask("POST", "/v1/builds", headers, body).await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
    let long = json!({"userID": "u", "repo": "o/n", "x": "x".repeat(512 * 1024)});
    assert_eq!(world.submit(&long).await.status, 413);
    assert!(world.broker.published().is_empty());
}

#[tokio::test]
async fn what_cannot_be_made_durable_is_not_taken() {
    let world = World::with(None, Bounds::default()).await;
    let answer = world.submit(&request("a")).await;
    assert_eq!(answer.status, 503, "the queue is not connected");
    assert_eq!(world.get("/v1/builds/a").await.status, 404);
    world.connect();
    world.store.set_away(true);
    let answer = world.submit(&request("a")).await;
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some());
    assert!(world.broker.published().is_empty(), "nothing is half taken");
    world.store.set_away(false);
    world.broker.down();
    assert_eq!(world.submit(&request("a")).await.status, 503);
    assert_eq!(world.get("/v1/builds/a").await.status, 404, "it is in no queue");
    let accepted_before = OffsetDateTime::now_utc();
    world.broker.up();
    assert_eq!(world.submit(&request("a")).await.status, 202);
    // The message may be the second that was made of it, if whoever published the first did not live to say so.
    let [message] = &world.broker.messages(Queue::Build)[..] else { panic!("one message") };
    let accepted_at = Envelope::decode(message).accepted_at;
    assert!(accepted_at.is_some_and(|at| at < accepted_before), "{accepted_at:?}");
    let seconds = |at: Option<OffsetDateTime>| at.map(OffsetDateTime::unix_timestamp);
    assert_eq!(seconds(message.timestamp), seconds(accepted_at));
    let requested_at = world.store.build("a").map(|build| build.requested.requested_at);
    assert_eq!(requested_at, accepted_at);
}

#[tokio::test]
async fn builds_are_listed_in_pages_and_by_filters() {
    let world = World::start().await;
    for id in ["a", "b", "c"] {
        world.submit(&request(id)).await;
    }
    world.submit(&json!({"userID": "v", "repo": "o/n", "uuid": "d"})).await;
    let ids = |page: &Value| -> Vec<String> {
        let builds = page["builds"].as_array().expect("builds");
        builds.iter().map(|build| build["buildID"].as_str().expect("an id").to_owned()).collect()
    };
    let first = world.get("/v1/builds?limit=3").await.json();
    assert_eq!(ids(&first), ["d", "c", "b"]);
    let next = first["next"].as_str().expect("there is more");
    let second = world.get(&format!("/v1/builds?limit=3&cursor={next}")).await.json();
    assert_eq!((ids(&second), second.get("next")), (vec!["a".to_owned()], None));
    assert_eq!(ids(&world.get("/v1/builds?user=v&state=queued").await.json()), ["d"]);
    assert_eq!(ids(&world.get("/v1/builds?state=ready").await.json()), [""; 0]);
    for wrong in ["state=done", "state=", "limit=0", "limit=201", "limit=x"] {
        assert_eq!(world.get(&format!("/v1/builds?{wrong}")).await.status, 400, "{wrong}");
    }
    assert_eq!(world.get("/v1/builds?cursor=x").await.status, 404);
}

#[tokio::test]
async fn of_a_build_that_ended_there_are_its_attempts_and_its_notifications_data() {
    let world = World::start().await;
    world.submit(&request("a")).await;
    let data = json!({"buildID": "a", "image": {"digest": "sha256:1"}});
    let changes = [stage(StageName::Builder), ended(NotificationType::ImageReady, &data)];
    world.record("u", "a", changes).await;
    let build = world.get("/v1/builds/a").await.json();
    assert_eq!((&build["state"], &build["type"]), (&json!("ready"), &json!("image.ready")));
    assert_eq!(build["data"], data);
    assert_eq!(build["attempts"][0]["stages"][0]["stage"], "builder");
    assert_eq!(world.get("/v1/builds/b").await.status, 404);
}

#[tokio::test]
async fn where_two_users_chose_one_id_it_has_to_be_said_whose_is_meant() {
    let world = World::start().await;
    for user in ["u", "v"] {
        world.submit(&json!({"userID": user, "repo": "o/n", "uuid": "a"})).await;
    }
    for path in ["/v1/builds/a", "/v1/builds/a/log"] {
        let answer = world.get(path).await;
        assert_eq!(answer.status, 409);
        assert!(answer.body.contains("?user="), "{}", answer.body);
        assert_eq!(world.get(&format!("{path}?user=v")).await.status, 200);
        assert_eq!(world.get(&format!("{path}?user=w")).await.status, 404);
    }
    assert_eq!(world.ask("DELETE", "/v1/builds/a", &[], "").await.status, 409);
}

#[tokio::test]
async fn a_build_is_cancelled_by_the_broker_unless_it_has_ended() {
    let world = World::start().await;
    let mut heard = world.broker.cancellations();
    world.submit(&request("a")).await;
    let delete = |path: &'static str| world.ask("DELETE", path, &[], "");
    assert_eq!(delete("/v1/builds/a").await.status, 202);
    let mut body = async || -> Value {
        let heard = heard.recv().await.expect("it is sent");
        serde_json::from_slice(&heard.body).expect("JSON")
    };
    assert_eq!(body().await, json!({"buildID": "a", "userID": "u"}));
    assert_eq!(delete("/v1/builds/b").await.status, 404);
    assert_eq!(delete("/v1/builds/b?user=w").await.status, 202, "no worker has read it yet");
    assert_eq!(body().await, json!({"buildID": "b", "userID": "w"}));
    world.record("u", "a", [ended(NotificationType::BuildCancelled, &json!({}))]).await;
    assert_eq!(delete("/v1/builds/a").await.status, 409);
}

#[tokio::test]
async fn builds_are_counted_by_state_and_by_user() {
    let world = World::start().await;
    for (user, id) in [("ann", "a"), ("ann", "b"), ("bob", "c")] {
        let body = json!({"userID": user, "repo": "o/n", "uuid": id});
        assert_eq!(world.submit(&body).await.status, 202);
    }
    world.record("ann", "a", [stage(StageName::Builder)]).await;
    world.record("bob", "c", [ended(NotificationType::ImageReady, &json!({}))]).await;
    let summary = world.get("/v1/summary").await.json();
    assert_eq!(summary["states"]["queued"], 1);
    assert_eq!(summary["states"]["building"], 1);
    assert_eq!(summary["states"]["ready"], 1);
    assert_eq!(summary["states"]["failed"], 0);
    assert_eq!(summary["users"], json!([{"userID": "ann", "waiting": 1, "inHand": 1}]));
    let found = world.get("/v1/builds?search=ann").await.json();
    assert_eq!(found["builds"].as_array().map(Vec::len), Some(2));
    world.store.set_away(true);
    assert_eq!(world.get("/v1/summary").await.status, 503);
}

#[tokio::test]
async fn what_would_be_built_is_shown_and_nothing_is_built() {
    let world = World::start().await;
    let body = json!({
        "userID": "u", "repo": "o/n",
        "buildPlan": {"rootDirectory": "web", "buildArgs": {"A": "hunter2"}, "secrets": {"npm": "hunter3"}},
    });
    let answer = world.plan(&body).await;
    let plan = answer.json();
    assert_eq!((answer.status, &plan["baseImages"]), (200, &json!(["golang:1.22"])));
    assert_eq!(plan["context"], json!({"files": 3, "bytes": 1_500_000}));
    assert_eq!((&plan["buildArgs"], &plan["secrets"]), (&json!(["A"]), &json!(["npm"])));
    assert_eq!((&plan["rootDirectory"], &plan["builder"]), (&json!("web"), &json!("dockerfile")));
    assert!(!answer.body.contains("hunter"), "{}", answer.body);
    for (repo, status, reason) in [
        ("o/nothing", 422, "no_build_plan"),
        ("o/limited", 503, "rate_limited"),
        ("o", 400, "invalid_request"),
    ] {
        let answer = world.plan(&json!({"userID": "u", "repo": repo})).await;
        assert_eq!((answer.status, &answer.json()["reason"]), (status, &json!(reason)), "{repo}");
    }
    assert_eq!(world.requests().len(), 0);
}
