//! What holds for all routes.

use super::*;

#[tokio::test]
async fn the_workers_actors_are_shown() {
    let world = World::start().await;
    let workers = world.get("/v1/workers").await.json();
    let worker = &workers["workers"][0];
    assert_eq!((&worker["name"], &worker["draining"]), (&json!("here"), &json!(false)));
    assert_eq!(worker["actors"].as_array().map(Vec::len), Some(6));
    assert_eq!(worker["actors"][0]["name"], "listener");
}

#[tokio::test]
async fn what_is_not_there_is_a_problem_as_well() {
    let world = World::start().await;
    for (method, path, status) in [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/builds/a/b/c", 404),
        ("PUT", "/v1/builds", 405),
        ("PATCH", "/v1/builds/a", 405),
        ("POST", "/v1/workers", 405),
        ("DELETE", "/v1/openapi.json", 405),
    ] {
        let answer = world.ask(method, path, &[], "").await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.header("allow").is_some(), status == 405);
    }
}

#[tokio::test]
async fn whoever_may_not_ask_gets_a_problem_wherever_it_asks() {
    let world = World::with(Some("s3cret"), Bounds::default()).await;
    world.connect();
    assert_eq!(world.get("/v1/builds").await.status, 200);
    let nobody = World { token: None, ..world };
    let answer = nobody.get("/v1/builds").await;
    assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(nobody.ask("POST", "/v1/builds", &JSON, "{}").await.status, 401);
    let open = World::start().await;
    let foreign = [("Origin", "http://evil.example")];
    assert_eq!(open.ask("GET", "/v1/builds", &foreign, "").await.status, 403);
}

#[tokio::test]
async fn the_description_has_every_route_and_no_other() {
    let routes: Vec<(String, Vec<String>)> = include_str!("../mod.rs")
        .lines()
        .filter_map(|line| line.trim().strip_prefix(".route(\""))
        .map(|route| {
            let (path, handlers) = route.split_once('"').expect("a path");
            let methods = ["get", "post", "delete", "put", "patch"];
            let methods = methods.map(str::to_owned).into_iter();
            let methods = methods.filter(|method| handlers.contains(&format!("{method}(")));
            (format!("{PREFIX}{path}"), methods.collect())
        })
        .collect();
    assert!(routes.len() > 6, "the routes were read");
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    let mut described: Vec<(String, Vec<String>)> = document["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .map(|(path, operations)| {
            let operations = operations.as_object().expect("operations");
            (path.clone(), operations.keys().cloned().collect())
        })
        .collect();
    let sorted = |mut routes: Vec<(String, Vec<String>)>| {
        routes.iter_mut().for_each(|(_, methods)| methods.sort());
        routes.sort();
        routes
    };
    described = sorted(described);
    assert_eq!(described, sorted(routes));
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let world = World::start().await;
    let mut stream = TcpStream::connect(&world.address).await.expect("it listens");
    let head =
        format!("GET /v1/builds HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(64 * 1024));
    // It may hang up before all of it is sent.
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn wrong_tokens_are_looked_at_only_so_often_and_health_is_always_told() {
    let world = World::with(Some("s3cret-token"), Bounds::default()).await;
    world.connect();
    let wrong = [("Cookie", ""), ("Authorization", "Bearer a-guess")];
    let mut answers = Vec::new();
    for path in ["/v1/builds", "/"].repeat(6) {
        let answer = world.fetch("GET", path, &wrong, "").await;
        assert_eq!(answer.header("retry-after").is_some(), answer.status == 429, "{answer:?}");
        answers.push(answer.status);
    }
    assert_eq!(answers[0], 401);
    assert_eq!(answers.last(), Some(&429), "{answers:?}");
    // Not even the right one is looked at by now; who shows none is told so.
    assert_eq!(world.ask("GET", "/v1/builds", &[], "").await.status, 429);
    assert_eq!(world.ask("GET", "/v1/builds", &[("Cookie", "")], "").await.status, 401);
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_ne!(world.fetch("GET", path, &wrong, "").await.status, 429, "{path}");
    }
}
