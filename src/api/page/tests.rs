//! The page over a real socket: what is answered to browsers that mean well, and to pages that do not.

use image_builder_actors::model::fault::StageName;
use image_builder_actors::model::notification::NotificationType;
use image_builder_actors::ports::build_store::{BuildState, Change};
use image_builder_actors::ports::{Broker, Queue};
use serde_json::{Value, json};

use crate::api::server::Bounds;
use crate::api::v1::tests::{Answer, World, ended, output, request, stage};

const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");
const TOKEN: &str = "s3cret-token";
const HOSTILE: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>";

async fn with_token() -> World {
    let world = World::with(Some(TOKEN), Bounds::default()).await;
    world.connect();
    world
}

async fn get(world: &World, path: &str) -> Answer {
    // An empty cookie: nobody bears the token.
    world.fetch("GET", path, &[("Cookie", "")], "").await
}

async fn post(world: &World, path: &str, fields: &[(&str, &str)]) -> Answer {
    let body = serde_urlencoded::to_string(fields).expect("a form");
    world.fetch("POST", path, &[("Cookie", ""), FORM], &body).await
}

/// What the forms of a page show.
fn form_token(page: &Answer) -> String {
    let (_, rest) = page.body.split_once("name=\"form_token\" value=\"").expect("a form");
    rest.split_once('"').expect("a value").0.to_owned()
}

async fn log_in(world: &World) -> String {
    let answer = post(world, "/login", &[("token", TOKEN), ("next", "/dead")]).await;
    assert_eq!((answer.status, answer.header("location")), (303, Some("/dead")), "{answer:?}");
    let cookie = answer.header("set-cookie").expect("a session").to_owned();
    assert!(cookie.contains("; HttpOnly; SameSite=Strict") && !cookie.contains(TOKEN), "{cookie}");
    cookie.split_once(';').expect("attributes").0.to_owned()
}

/// Builds that all workers were told to stop.
fn cancelled(world: &World) -> usize {
    let mut heard = world.broker.cancellations();
    std::iter::from_fn(|| heard.try_recv().ok()).count()
}

async fn submitted(world: &World, id: &str) {
    assert_eq!(world.submit(&request(id)).await.status, 202);
}

#[tokio::test]
async fn every_page_is_guarded_by_its_headers() {
    let world = World::start().await;
    submitted(&world, "a").await;
    world.keep_letter("d", &request("d")).await;
    let pages = [
        ("/", 200),
        ("/?q=x&state=ready", 200),
        ("/?state=x", 404),
        ("/?cursor=x", 404),
        ("/builds/a", 200),
        ("/builds/unknown", 404),
        ("/builds/a/cancel", 200),
        ("/new", 200),
        ("/new?of=a&user=u", 200),
        ("/workers", 200),
        ("/dead", 200),
        ("/dead?fault=x", 400),
        ("/dead/d", 200),
        ("/dead/d/redrive", 200),
        ("/dead/d/drop", 200),
        ("/dead/unknown", 404),
        ("/all-dead/drop", 200),
        ("/all-dead/redrive", 200),
        ("/login", 303),
        ("/assets/page.css", 200),
        ("/assets/unknown", 404),
        ("/logout", 405),
    ];
    for (path, status) in pages {
        let answer = get(&world, path).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        let policy = answer.header("content-security-policy").expect("a policy");
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'"),
            "{policy}"
        );
        assert!(
            !policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"),
            "{policy}"
        );
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("x-frame-options"), Some("DENY"), "{path}");
        assert_eq!(answer.header("referrer-policy"), Some("same-origin"), "{path}");
        if path.starts_with("/assets/page") {
            assert!(answer.header("cache-control").is_some_and(|it| it.contains("immutable")));
            continue;
        }
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        if status != 303 {
            assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"), "{path}");
            // What the policy would stop is not there in the first place.
            for inline in ["<style", " style=", "<script>", " onclick=", "http://", "https://"] {
                assert!(!answer.body.contains(inline), "{path}: {inline}");
            }
        }
    }
    assert_eq!(get(&world, "/livez").await.header("content-security-policy"), None);
}

#[tokio::test]
async fn strangers_words_are_words() {
    let world = World::start().await;
    let body = json!({"userID": HOSTILE, "repo": "o/n", "applicationID": HOSTILE, "uuid": HOSTILE});
    assert_eq!(world.submit(&body).await.status, 202);
    let log = format!("\u{1b}[31m{HOSTILE}\u{1b}[0m\u{7}\u{202e}\n");
    world
        .record(
            HOSTILE,
            HOSTILE,
            [
                Change::Stage { attempt: 1, stage: StageName::Builder, worker: HOSTILE.to_owned() },
                Change::Commit(HOSTILE.to_owned()),
                output(&log),
                ended(
                    NotificationType::BuildFailed,
                    &json!({"message": HOSTILE, "reason": HOSTILE, "stage": HOSTILE, "fault": HOSTILE}),
                ),
            ],
        )
        .await;
    world.keep_letter(HOSTILE, &body).await;
    let id = encoded_id();
    for path in [
        "/".to_owned(),
        format!("/?q={id}"),
        format!("/builds/{id}"),
        format!("/new?of={id}"),
        "/dead".to_owned(),
        format!("/dead/{id}"),
        format!("/dead/{id}/redrive"),
        "/all-dead/drop".to_owned(),
    ] {
        let answer = get(&world, &path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.body.contains("&#60;script&#62;"), "{path}: it is shown: {}", answer.body);
        for raw in ["<script>", "<img", "\u{1b}", "\u{7}", "\u{202e}", "alert(1)\""] {
            assert!(!answer.body.contains(raw), "{path}: {raw:?}");
        }
    }
    let log = get(&world, &format!("/v1/builds/{id}/log")).await;
    assert_eq!(log.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(log.header("content-type"), Some("text/plain; charset=utf-8"));
}

fn encoded_id() -> String {
    crate::net::address::encoded(HOSTILE)
}

#[tokio::test]
async fn builds_are_listed_by_state_and_found_by_what_is_known_of_them() {
    let world = World::start().await;
    let empty = get(&world, "/").await;
    assert!(
        empty.body.contains("Nothing was built yet") && empty.body.contains("image-builder submit")
    );
    for number in 0..60 {
        submitted(&world, &format!("b{number}")).await;
    }
    world.record("u", "b1", [stage(StageName::Builder)]).await;
    let first = get(&world, "/").await;
    assert_eq!(first.body.matches("class=\"row-link\"").count(), 50);
    assert!(first.body.contains("Queued <span class=\"count\">59</span>"), "{}", first.body);
    let (_, next) = first.body.split_once("href=\"/?cursor=").expect("a next page");
    let next = next.split_once('"').expect("an address").0;
    let second = get(&world, &format!("/?cursor={next}")).await;
    assert_eq!(second.body.matches("class=\"row-link\"").count(), 10);
    let building = get(&world, "/?state=building&q=u").await;
    assert!(building.body.contains("/builds/b1?user=u") && !building.body.contains("/builds/b2?"));
    assert!(get(&world, "/?q=nobody").await.body.contains("No such build"));
}

#[tokio::test]
async fn one_build_shows_how_it_went() {
    let world = World::start().await;
    submitted(&world, "a").await;
    assert!(get(&world, "/builds/a").await.body.contains("It waits for its turn"));
    let image = json!({
        "repository": "localhost:5000/u/n", "digest": "sha256:c0ffee", "reference": "localhost:5000/u/n:1",
        "sizeBytes": 44_272_272,
    });
    let steps = [stage(StageName::Connector), stage(StageName::Builder), output("one\ntwo\n")];
    world.record("u", "a", steps).await;
    world.record("u", "a", [ended(NotificationType::ImageReady, &json!({"image": image}))]).await;
    let page = get(&world, "/builds/a").await.body;
    for shown in [
        "docker pull localhost:5000/u/n@sha256:c0ffee",
        "44.3\u{a0}MB",
        "Attempt 1",
        "one\ntwo",
        "Build again",
    ] {
        assert!(page.contains(shown), "{shown}: {page}");
    }
    // Two users who chose one id: the page asks whose is meant.
    assert_eq!(world.submit(&json!({"userID": "v", "repo": "o/n", "uuid": "a"})).await.status, 202);
    let which = get(&world, "/builds/a").await;
    assert_eq!(which.status, 409);
    assert!(which.body.contains("/builds/a?user=u") && which.body.contains("/builds/a?user=v"));
    assert_eq!(get(&world, "/builds/a?user=v").await.status, 200);
}

#[tokio::test]
async fn without_a_store_the_page_says_so() {
    let world = World::start().await;
    submitted(&world, "a").await;
    world.store.set_away(true);
    for path in ["/", "/builds/a", "/builds/a/cancel", "/new?of=a"] {
        let answer = get(&world, path).await;
        assert_eq!(answer.status, 503, "{path}");
        assert!(answer.body.contains("Not available") && answer.header("retry-after").is_some());
    }
    let workers = get(&world, "/workers").await;
    assert!(workers.status == 200 && workers.body.contains("cannot be had for now"));
}

#[tokio::test]
async fn a_form_becomes_a_build_once() {
    let world = World::start().await;
    let page = get(&world, "/new").await;
    let token = form_token(&page);
    let (_, uuid) = page.body.split_once("name=\"uuid\" value=\"").expect("an id");
    let uuid = uuid.split_once('"').expect("a value").0;
    let fields = [
        ("form_token", token.as_str()),
        ("uuid", uuid),
        ("user", "alice"),
        ("repo", "alice/shop"),
        ("connector", "github"),
        ("type", "branch"),
        ("reference", "main"),
        ("token", "hunter2"),
        ("secrets", "npm=hunter3"),
    ];
    for _ in 0..2 {
        let answer = post(&world, "/new", &fields).await;
        assert_eq!(answer.status, 303, "{}", answer.body);
        assert_eq!(answer.header("location"), Some(format!("/builds/{uuid}?user=alice").as_str()));
    }
    let [message] = &world.requests()[..] else { panic!("one request") };
    let body: Value = serde_json::from_slice(&message.body).expect("JSON");
    assert_eq!((&body["branch"], &body["token"]), (&json!("main"), &json!("hunter2")));
    assert_eq!(body["buildPlan"]["secrets"]["npm"], "hunter3");
    // What is wrong is said, and no credential comes back.
    let mut wrong = fields;
    wrong[3].1 = "<b>";
    let answer = post(&world, "/new", &wrong).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("`repo`") && answer.body.contains("alice"), "{}", answer.body);
    assert!(!answer.body.contains("hunter") && !answer.body.contains("<b>"));
}

#[tokio::test]
async fn the_plan_is_shown_before_and_what_was_shown_is_built() {
    let world = with_token().await;
    let cookie = log_in(&world).await;
    let cookies = ("Cookie", cookie.as_str());
    let send = async |path: &str, fields: &[(&str, &str)], cookies| {
        let body = serde_urlencoded::to_string(fields).expect("a form");
        world.fetch("POST", path, &[cookies, FORM], &body).await
    };
    let token = form_token(&world.fetch("GET", "/new", &[cookies], "").await);
    let mut fields = [
        ("form_token", token.as_str()),
        ("wish", "plan"),
        ("user", "alice"),
        ("repo", "alice/shop"),
        ("type", "branch"),
        ("reference", "main"),
        ("token", "hunter2"),
        ("build_args", "A=hunter4"),
        ("uuid", "p1"),
    ];
    let shown = send("/new", &fields, cookies).await;
    assert_eq!(shown.status, 200, "{}", shown.body);
    for part in [
        "7e94453020bf1111111111111111111111111111",
        "because there is a `Dockerfile`",
        "<code>golang:1.22</code>",
        "linux/arm64",
        "3 files, 1.5\u{a0}MB",
        "`envs.HTTP_PROXY` is not used",
        "# &#60;script&#62;alert(1)",
    ] {
        assert!(shown.body.contains(part), "{part}: {}", shown.body);
    }
    for hidden in ["hunter2", "<script>alert", "\u{1b}"] {
        assert!(!shown.body.contains(hidden), "{hidden}");
    }
    assert_eq!(world.requests().len(), 0, "nothing is built yet");
    let (_, plan) = shown.body.split_once("name=\"plan\" value=\"").expect("a plan");
    let plan = plan.split_once('"').expect("a value").0.to_owned();
    let build = [("form_token", token.as_str()), ("plan", plan.as_str())];
    // Another login has other plans.
    let other = log_in(&world).await;
    let others = ("Cookie", other.as_str());
    let others_token = form_token(&world.fetch("GET", "/new", &[others], "").await);
    let foreign = [("form_token", others_token.as_str()), build[1]];
    assert_eq!(send("/new/planned", &foreign, others).await.status, 404);
    for _ in 0..2 {
        let answer = send("/new/planned", &build, cookies).await;
        assert_eq!(answer.header("location"), Some("/builds/p1?user=alice"), "{}", answer.body);
    }
    let [message] = &world.requests()[..] else { panic!("one request") };
    let body: Value = serde_json::from_slice(&message.body).expect("JSON");
    assert_eq!(
        (&body["type"], &body["commit"], &body["token"]),
        (&json!("commit"), &json!("7e94453020bf1111111111111111111111111111"), &json!("hunter2"))
    );
    // What the build would fail of is said by the form, with what was filled in.
    for (repo, status, sentence) in [
        ("alice/nothing", 422, "there is no `Dockerfile`"),
        ("alice/limited", 503, "The forge asks for patience."),
        ("alice", 400, "`repo`"),
    ] {
        fields[3].1 = repo;
        let answer = send("/new", &fields, cookies).await;
        assert_eq!(answer.status, status, "{repo}: {}", answer.body);
        assert!(answer.body.contains(sentence) && answer.body.contains("value=\"main\""));
        assert_eq!(answer.header("retry-after").is_some(), status == 503, "{repo}");
    }
}

#[tokio::test]
async fn a_build_is_cancelled_by_its_form() {
    let world = World::start().await;
    submitted(&world, "a").await;
    let page = get(&world, "/builds/a/cancel").await;
    let token = form_token(&page);
    let answer = post(&world, "/builds/a/cancel?user=u", &[("form_token", &token)]).await;
    assert_eq!(answer.header("location"), Some("/builds/a?user=u&done=cancel"), "{answer:?}");
    assert_eq!(cancelled(&world), 1);
    world.record("u", "a", [ended(NotificationType::BuildCancelled, &json!({}))]).await;
    assert_eq!(world.store.build("a").expect("known").state, BuildState::Cancelled);
    let again = post(&world, "/builds/a/cancel?user=u", &[("form_token", &token)]).await;
    assert_eq!(again.status, 409);
}

#[tokio::test]
async fn letters_are_dropped_and_redriven_one_by_one_and_all_that_match() {
    let world = World::start().await;
    for (user, id) in [("u", "1"), ("u", "2"), ("v", "3"), ("v", "4")] {
        world.keep_letter(id, &json!({"userID": user, "repo": "o/n", "token": "t"})).await;
    }
    let token = form_token(&get(&world, "/dead/1/drop").await);
    let shown = [("form_token", token.as_str())];
    assert_eq!(post(&world, "/dead/1/drop?user=u", &shown).await.status, 303);
    assert_eq!(world.letters().len(), 3);
    // It lacks its token.
    let refused = post(&world, "/dead/2/redrive?user=u", &shown).await;
    assert!(refused.status == 409 && refused.body.contains("`token`"), "{}", refused.body);
    let given = [shown[0], ("given.token", "hunter2")];
    let answer = post(&world, "/dead/2/redrive?user=u", &given).await;
    assert!(answer.header("location").is_some_and(|to| to.starts_with("/builds/")), "{answer:?}");
    let body: Value = serde_json::from_slice(&world.requests()[0].body).expect("JSON");
    assert_eq!((&body["token"], &body["redriveOf"]), (&json!("hunter2"), &json!("2")));

    let confirm = get(&world, "/all-dead/redrive?user=v").await;
    assert!(confirm.body.contains("all 2 letters"), "{}", confirm.body);
    let (_, until) = confirm.body.split_once("name=\"until\" value=\"").expect("a time");
    let until = until.split_once('"').expect("a value").0;
    // Those that came later are not meant.
    let early = [shown[0], ("until", "1000"), ("without", "on")];
    let answer = post(&world, "/all-dead/redrive?user=v", &early).await;
    assert_eq!(answer.header("location"), Some("/dead?done=redriven-0-0"));
    let all = [shown[0], ("until", until)];
    let answer = post(&world, "/all-dead/redrive?user=v", &all).await;
    assert_eq!(answer.header("location"), Some("/dead?done=redriven-0-2"));
    let without = [shown[0], ("until", until), ("without", "on")];
    let answer = post(&world, "/all-dead/redrive?user=v", &without).await;
    assert_eq!(answer.header("location"), Some("/dead?done=redriven-2-0"));
    assert_eq!((world.letters().len(), world.requests().len()), (0, 3));
    assert!(get(&world, "/dead?done=redriven-2-0").await.body.contains("2 letters"));
    world.keep_letter("5", &request("5")).await;
    let answer =
        post(&world, "/all-dead/drop?user=nobody", &[shown[0], ("until", "9999999999")]).await;
    assert_eq!(answer.header("location"), Some("/dead?done=dropped-0"));
    let answer = post(&world, "/all-dead/drop?user=u", &[shown[0], ("until", "9999999999")]).await;
    assert_eq!(answer.header("location"), Some("/dead?done=dropped-1"));
}

#[tokio::test]
async fn a_form_that_is_not_of_this_service_does_nothing() {
    let world = World::start().await;
    submitted(&world, "a").await;
    let token = form_token(&get(&world, "/builds/a/cancel").await);
    let other = World::start().await;
    let others = form_token(&get(&other, "/new").await);
    for shown in ["", "x", others.as_str()] {
        let answer = post(&world, "/builds/a/cancel", &[("form_token", shown)]).await;
        assert_eq!(answer.status, 403, "{shown}");
    }
    let body = format!("form_token={token}");
    for header in [
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
        ("Origin", "http://evil.example"),
        ("Origin", "null"),
        ("X-Forwarded-For", "192.0.2.1"),
    ] {
        let answer = world.fetch("POST", "/builds/a/cancel", &[FORM, header], &body).await;
        assert_eq!(answer.status, 403, "{header:?}");
        let answer = world.fetch("GET", "/", &[header], "").await;
        assert_eq!(answer.status, 403, "{header:?}");
    }
    assert_eq!(cancelled(&world), 0);
}

#[tokio::test]
async fn with_a_token_nothing_is_shown_before_the_login() {
    let world = with_token().await;
    submitted(&world, "a").await;
    for path in ["/", "/builds/a?user=u", "/workers", "/dead", "/new"] {
        let answer = get(&world, path).await;
        assert_eq!(answer.status, 303, "{path}");
        let login = answer.header("location").expect("an address").to_owned();
        assert!(login.starts_with("/login"), "{login}");
        assert_eq!(get(&world, &login).await.status, 200);
    }
    assert_eq!(get(&world, "/v1/builds/a").await.status, 401);
    assert_eq!(post(&world, "/builds/a/cancel", &[]).await.status, 401);
    assert_eq!(get(&world, "/assets/page.css").await.status, 200);
    // Whoever bears the token needs no session, and no form's token.
    assert_eq!(world.fetch("GET", "/builds/a", &[], "").await.status, 200);
    assert_eq!(world.fetch("POST", "/builds/a/cancel", &[FORM], "").await.status, 303);
}

#[tokio::test]
async fn a_session_reads_everything_and_changes_by_its_own_forms_alone() {
    let world = with_token().await;
    submitted(&world, "a").await;
    let cookie = log_in(&world).await;
    let cookies = ("Cookie", cookie.as_str());
    for path in ["/", "/builds/a", "/v1/builds/a", "/v1/builds/a/log", "/v1/summary"] {
        assert_eq!(world.fetch("GET", path, &[cookies], "").await.status, 200, "{path}");
    }
    // The API is changed by whoever bears the token, and never by a cookie.
    for (method, path) in
        [("DELETE", "/v1/builds/a"), ("POST", "/v1/builds"), ("DELETE", "/v1/dead/a")]
    {
        assert_eq!(world.fetch(method, path, &[cookies], "").await.status, 401, "{method}");
    }
    let page = world.fetch("GET", "/builds/a/cancel", &[cookies], "").await;
    let token = form_token(&page);
    let other = log_in(&world).await;
    let others_page = world.fetch("GET", "/new", &[("Cookie", &other)], "").await;
    assert_ne!(form_token(&others_page), token, "a form is one of its session");
    let body = |token: &str| format!("form_token={token}");
    let cancel = async |headers: &[(&str, &str)], token: &str| {
        world.fetch("POST", "/builds/a/cancel", headers, &body(token)).await.status
    };
    assert_eq!(cancel(&[cookies, FORM], &form_token(&others_page)).await, 403);
    assert_eq!(cancel(&[cookies, FORM], "").await, 403);
    assert_eq!(cancel(&[cookies, FORM, ("Sec-Fetch-Site", "cross-site")], &token).await, 403);
    assert_eq!(cancelled(&world), 0);
    assert_eq!(cancel(&[cookies, FORM], &token).await, 303);

    let answer = world.fetch("POST", "/logout", &[cookies, FORM], &body(&token)).await;
    assert!(answer.header("set-cookie").is_some_and(|it| it.contains("Max-Age=0")), "{answer:?}");
    assert_eq!(world.fetch("GET", "/v1/builds/a", &[cookies], "").await.status, 401);
    assert_eq!(world.fetch("GET", "/", &[("Cookie", &other)], "").await.status, 200);
}

#[tokio::test]
async fn a_login_is_guarded() {
    let world = with_token().await;
    let secure = world
        .fetch(
            "POST",
            "/login",
            &[("Cookie", ""), FORM, ("X-Forwarded-Proto", "https")],
            "token=s3cret-token",
        )
        .await;
    let cookie = secure.header("set-cookie").expect("a session");
    assert!(
        cookie.starts_with("__Host-image-builder=") && cookie.ends_with("; Secure"),
        "{cookie}"
    );
    let foreign = [("Cookie", ""), FORM, ("Sec-Fetch-Site", "cross-site")];
    assert_eq!(world.fetch("POST", "/login", &foreign, "token=s3cret-token").await.status, 403);
    let away = post(&world, "/login", &[("token", TOKEN), ("next", "//evil.example")]).await;
    assert_eq!(away.header("location"), Some("/"));
    let mut answers = Vec::new();
    for _ in 0..12 {
        let answer = post(&world, "/login", &[("token", "a guess")]).await;
        assert!(answer.header("set-cookie").is_none() && !answer.body.contains("a guess"));
        answers.push(answer.status);
    }
    assert_eq!(answers[0], 401);
    assert_eq!(answers.last(), Some(&429), "{answers:?}");
    let open = World::start().await;
    assert_eq!(post(&open, "/login", &[("token", "x")]).await.status, 404);
    assert_eq!(open.broker.messages(Queue::Build).len(), 0);
}
