//! What only the real adapter has: the engine's names, other people's answers, credentials.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::Docker;
use hyper::Method;
use image_builder::registry::RegistrySettings;
use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::ports::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::engine::Engine;
use super::server::{PASSWORD, USER, digest_of, is_manifest, registry_that, token_flow};
use super::{
    CLOSED, NOWHERE, OPEN, any_image, client, key, progress, push, reference_in, settings,
    with_password,
};
use crate::http_server::{HttpServer, answer};

// ---- names on the engine ----------------------------------------------------------------------

#[tokio::test]
async fn a_push_leaves_no_name_on_the_engine_and_keeps_the_image() {
    let mut engine = Engine::connect().await;
    let (image, reference) = (engine.image().await, reference_in(OPEN));
    let registry = client(settings(OPEN), &engine);
    registry.push(&image, &reference, &[key().tag()], &progress()).await.expect("it succeeds");
    let left = engine.docker.inspect_image(&image.id).await.expect("the image is kept");
    let left = left.repo_tags.unwrap_or_default();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(!left.contains(&reference.to_string()), "{left:?}");
}

#[tokio::test]
async fn a_name_that_was_there_before_the_push_is_there_after_it() {
    let mut engine = Engine::connect().await;
    let (image, reference) = (engine.image().await, reference_in(OPEN));
    engine.tag(&image.id, &reference).await;
    push(&client(settings(OPEN), &engine), &image, &reference).await.expect("it succeeds");
    assert_eq!(engine.id_of(&reference.to_string()).await, Some(image.id));
}

#[tokio::test]
async fn a_failed_push_leaves_no_name_on_the_engine() {
    let mut engine = Engine::connect().await;
    let (image, reference) = (engine.image().await, reference_in(NOWHERE));
    push(&client(settings(NOWHERE), &engine), &image, &reference).await.expect_err("it fails");
    assert_eq!(engine.id_of(&reference.to_string()).await, None);
    assert_eq!(engine.id_of(&image.id).await, Some(image.id));
}

#[tokio::test]
async fn a_push_never_removes_an_image_that_has_no_other_name() {
    let mut engine = Engine::connect().await;
    let (image, reference) = (engine.nameless_image().await, reference_in(OPEN));
    push(&client(settings(OPEN), &engine), &image, &reference).await.expect("it succeeds");
    assert_eq!(engine.id_of(&image.id).await, Some(image.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_is_given_up_leaves_no_name_on_the_engine() {
    let mut engine = Engine::connect().await;
    let server = HttpServer::silent().await;
    let (image, reference) = (engine.image().await, reference_in(&server.host()));
    let mut names = engine.watch_names(&image.id);
    let registry = client(settings(&server.host()), &engine);
    let pushing = {
        let (image, reference) = (image.clone(), reference.clone());
        tokio::spawn(async move { push(&registry, &image, &reference).await })
    };
    server.wait_for(|request| request.path == "/v2/").await;
    assert_eq!(engine.id_of(&reference.to_string()).await.as_ref(), Some(&image.id));
    pushing.abort();
    names.name_taken_off().await;
    assert_eq!(engine.id_of(&reference.to_string()).await, None);
    assert_eq!(engine.id_of(&image.id).await, Some(image.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_that_are_pushed_under_one_name_at_once_each_get_their_own_digest() {
    let mut engine = Engine::connect().await;
    let reference = reference_in(OPEN);
    let registry = client(settings(OPEN), &engine);
    let images = [engine.image().await, engine.image().await, engine.image().await];
    let pushes = images.iter().map(|image| push(&registry, image, &reference));
    let pushed = futures_util::future::join_all(pushes).await;
    for (image, pushed) in images.iter().zip(pushed) {
        assert_eq!(pushed.expect("it succeeds").image_id, image.id);
    }
}

#[tokio::test]
async fn a_registry_with_a_path_before_its_repositories_works() {
    let mut engine = Engine::connect().await;
    let (image, registry) = (engine.image().await, format!("{OPEN}/team/images"));
    let reference = reference_in(&registry);
    let pushed = push(&client(settings(&registry), &engine), &image, &reference).await;
    let pushed = pushed.expect("it succeeds");

    let whole = reference_in(OPEN);
    let whole =
        ImageReference { repository: format!("team/images/{}", reference.repository), ..whole };
    let found = client(settings(OPEN), &engine).find(&whole.with_tag(&reference.tag)).await;
    assert_eq!(found, Ok(Some(pushed)));
}

// ---- refusals ---------------------------------------------------------------------------------

#[tokio::test]
async fn a_wrong_password_and_none_are_refusals_and_the_password_is_not_told() {
    let mut engine = Engine::connect().await;
    let (image, reference) = (engine.image().await, reference_in(CLOSED));
    for settings in [settings(CLOSED), with_password(settings(CLOSED), "wrong-password")] {
        assert!(!format!("{settings:?}").contains("wrong-password"));
        let registry = client(settings, &engine);
        let found = registry.find(&reference).await.expect_err("it is refused");
        let pushed = push(&registry, &image, &reference).await.expect_err("it is refused");
        for fault in [found, pushed] {
            assert_eq!(fault.reason, Reason::RegistryRefused, "{fault}");
            assert!(!fault.message.contains("wrong-password"), "{fault}");
        }
    }
}

#[tokio::test]
async fn a_name_that_the_engine_does_not_accept_is_a_refusal() {
    let mut engine = Engine::connect().await;
    let image = engine.image().await;
    let reference = ImageReference { repository: "Upper/Case".to_owned(), ..reference_in(OPEN) };
    let registry = client(settings(OPEN), &engine);
    let fault = push(&registry, &image, &reference).await.expect_err("it is refused");
    assert_eq!(fault.reason, Reason::RegistryRefused, "{fault}");
}

#[tokio::test]
async fn a_reference_into_another_registry_is_a_refusal_and_nobody_is_asked() {
    let engine = Engine::connect().await;
    let server = registry_that(|_| None).await;
    let registry = client(settings(&server.host()), &engine);
    let fault = registry.find(&reference_in(OPEN)).await.expect_err("it is refused");
    assert_eq!(fault.reason, Reason::RegistryRefused, "{fault}");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_registry_that_speaks_no_tls_where_tls_is_asked_for_is_a_refusal_that_says_so() {
    let engine = Engine::connect().await;
    let registry = client(settings(&format!("https://{OPEN}")), &engine);
    let fault = registry.find(&reference_in(OPEN)).await.expect_err("no TLS");
    assert_eq!(fault.reason, Reason::RegistryRefused, "{fault}");
    assert!(fault.message.contains("begin REGISTRY_URL with http://"), "{fault}");
}

// ---- failures ---------------------------------------------------------------------------------

#[tokio::test]
async fn an_engine_out_of_reach_is_down() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("docker.sock");
    let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
    let address = path.to_str().expect("a path in UTF-8").to_owned();
    let version = bollard::API_DEFAULT_VERSION;
    let by_socket = Docker::connect_with_unix(&address, 5, version).expect("the socket exists");
    let by_network = Docker::connect_with_http(NOWHERE, 5, version).expect("an address");

    drop(listener);
    for docker in [by_socket.clone(), by_network] {
        assert_engine_down(docker).await;
    }
    std::fs::remove_file(&path).expect("the socket is there");
    assert_engine_down(by_socket).await;
}

async fn assert_engine_down(docker: Docker) {
    rustls::crypto::ring::default_provider().install_default().ok();
    let registry = image_builder::registry::RegistryClient::new(settings(OPEN), docker);
    let registry = registry.expect("a client");
    let fault = push(&registry, &any_image(), &reference_in(OPEN)).await.expect_err("no engine");
    assert_eq!(fault.reason, Reason::EngineDown, "{fault}");
}

#[tokio::test]
async fn a_registry_that_answers_with_an_error_has_failed() {
    let mut engine = Engine::connect().await;
    let server = registry_that(|request| {
        let about_a_manifest =
            is_manifest(request, Method::PUT) || is_manifest(request, Method::GET);
        about_a_manifest.then(|| answer(500, &[], "boom"))
    })
    .await;
    let (image, reference) = (engine.image().await, reference_in(&server.host()));
    let registry = client(settings(&server.host()), &engine);
    let found = registry.find(&reference).await.expect_err("it fails");
    let pushed = push(&registry, &image, &reference).await.expect_err("it fails");
    for fault in [found, pushed] {
        assert_eq!(fault.reason, Reason::RegistryFailed, "{fault}");
        assert!(fault.message.contains("500"), "{fault}");
    }
}

#[tokio::test]
async fn a_question_that_the_registry_hangs_up_on_is_asked_once_more() {
    let engine = Engine::connect().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a local port is free");
    let host = listener.local_addr().expect("the port is known").to_string();
    let server = tokio::spawn(async move {
        for answer in ["", "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"] {
            let (mut stream, _) = listener.accept().await.expect("somebody asks");
            let read = stream.read(&mut [0; 4096]).await.expect("a question comes");
            assert!(read > 0, "a question is not empty");
            stream.write_all(answer.as_bytes()).await.expect("it is listened to");
        }
    });
    let registry = client(settings(&host), &engine);
    assert_eq!(registry.find(&reference_in(&host)).await, Ok(None));
    server.await.expect("it was asked twice");
}

#[tokio::test]
async fn a_registry_that_asks_for_patience_is_heard() {
    let mut engine = Engine::connect().await;
    let server = registry_that(|request| {
        let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
        (request.path != "/v2/").then(|| answer(429, &[("retry-after", "7")], body))
    })
    .await;
    let (image, reference) = (engine.image().await, reference_in(&server.host()));
    let registry = client(settings(&server.host()), &engine);
    let found = registry.find(&reference).await.expect_err("it refuses");
    assert_eq!(found.reason, Reason::RateLimited, "{found}");
    assert_eq!(found.retry_after, Some(Duration::from_secs(7)));
    assert!(found.message.contains("TOOMANYREQUESTS: slow down"), "{found}");
    // The engine keeps the header to itself.
    let pushed = push(&registry, &image, &reference).await.expect_err("it refuses");
    assert_eq!(pushed.reason, Reason::RateLimited, "{pushed}");
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_given_up_in_time() {
    let mut engine = Engine::connect().await;
    let server = HttpServer::silent().await;
    let (image, reference) = (engine.image().await, reference_in(&server.host()));
    let settings = RegistrySettings {
        request_timeout: Duration::from_millis(300),
        push_timeout: Duration::from_millis(600),
        ..settings(&server.host())
    };
    let registry = client(settings, &engine);
    let mut names = engine.watch_names(&image.id);
    let begun = Instant::now();
    let found = registry.find(&reference).await.expect_err("no answer");
    let pushed = push(&registry, &image, &reference).await.expect_err("no answer");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    for fault in [found, pushed] {
        assert_eq!(fault.reason, Reason::Timeout, "{fault}");
    }
    names.name_taken_off().await;
}

#[tokio::test]
async fn a_registry_that_returns_another_manifest_than_it_took_has_failed() {
    let mut engine = Engine::connect().await;
    let server = registry_that(|request| {
        let other = r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json",
            "config":{"digest":"sha256:0","size":1},"layers":[]}"#;
        is_manifest(request, Method::GET).then(|| answer(200, &[], other))
    })
    .await;
    let (image, reference) = (engine.image().await, reference_in(&server.host()));
    let registry = client(settings(&server.host()), &engine);
    let fault = push(&registry, &image, &reference).await.expect_err("it is not the same");
    assert_eq!(fault.reason, Reason::RegistryFailed, "{fault}");
    assert!(fault.message.contains("in place of sha256:"), "{fault}");
}

#[tokio::test]
async fn a_registry_that_forgets_what_it_took_has_failed() {
    let mut engine = Engine::connect().await;
    let server =
        registry_that(|request| is_manifest(request, Method::GET).then(|| answer(404, &[], "")))
            .await;
    let (image, reference) = (engine.image().await, reference_in(&server.host()));
    let registry = client(settings(&server.host()), &engine);
    let fault = push(&registry, &image, &reference).await.expect_err("it is gone");
    assert_eq!(fault.reason, Reason::RegistryFailed, "{fault}");
}

#[tokio::test]
async fn an_answer_that_is_no_manifest_or_a_huge_one_is_a_failure() {
    let engine = Engine::connect().await;
    for body in ["<html>".to_owned(), format!("\"{}\"", "x".repeat(5 << 20)), "{}".to_owned()] {
        let server = HttpServer::with_answers([answer(200, &[], body)]).await;
        let registry = client(settings(&server.host()), &engine);
        let found = registry.find(&reference_in(&server.host())).await;
        assert_eq!(found.expect_err("no manifest").reason, Reason::RegistryFailed);
    }
}

// ---- further tags and indexes -----------------------------------------------------------------

#[tokio::test]
async fn where_the_registry_takes_no_tag_from_the_worker_the_engine_pushes_it() {
    let mut engine = Engine::connect().await;
    let server = registry_that(|request| {
        let by_the_worker = request.header("user-agent").starts_with("image-builder/");
        (by_the_worker && is_manifest(request, Method::PUT)).then(|| answer(405, &[], ""))
    })
    .await;
    let (image, reference) = (engine.image().await, reference_in(&server.host()));
    let registry = client(settings(&server.host()), &engine);
    let tags = [key().tag()];
    let pushed = registry.push(&image, &reference, &tags, &progress()).await.expect("it succeeds");
    let found = registry.find(&reference.with_tag(&tags[0])).await;
    assert_eq!(found, Ok(Some(pushed)));
}

#[tokio::test]
async fn of_an_index_the_image_for_the_engines_platform_counts_and_the_index_keeps_its_digest() {
    let engine = Engine::connect().await;
    let version = engine.docker.version().await.expect("the engine has a version");
    let own = (version.os.expect("an OS"), version.arch.expect("an architecture"));
    let image = |id: &str| {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        format!(
            r#"{{"mediaType":"{kind}","config":{{"digest":"{id}","size":2}},"layers":[{{"digest":"l","size":3}}]}}"#
        )
    };
    let images = [image("sha256:ours"), image("sha256:theirs")];
    let entry = |image: &str, os: &str, architecture: &str| {
        let (digest, size) = (digest_of(image.as_bytes()), image.len());
        format!(
            r#"{{"digest":"{digest}","size":{size},"platform":{{"os":"{os}","architecture":"{architecture}"}}}}"#
        )
    };
    let index = format!(
        r#"{{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{},{}]}}"#,
        entry(&images[1], "plan9", "mips"),
        entry(&images[0], &own.0, &own.1),
    );
    let index_digest = digest_of(index.as_bytes());
    let server = HttpServer::answering(move |request| {
        let asked = request.path.rsplit('/').next().unwrap_or_default();
        let of_an_image = images.iter().find(|image| digest_of(image.as_bytes()) == asked);
        answer(200, &[], of_an_image.unwrap_or(&index).clone())
    })
    .await;
    let registry = client(settings(&server.host()), &engine);
    let found = registry.find(&reference_in(&server.host())).await;
    let found = found.expect("it is readable").expect("it is there");
    assert_eq!(
        (found.digest, found.image_id, found.size_bytes),
        (index_digest, "sha256:ours".to_owned(), 5)
    );
}

// ---- credentials ------------------------------------------------------------------------------

#[tokio::test]
async fn a_registry_that_wants_tokens_gets_them_and_each_is_used_until_it_is_refused() {
    let mut engine = Engine::connect().await;
    let server = registry_that(token_flow()).await;
    let (image, reference) = (engine.image().await, reference_in(&server.host()));
    let bought = || {
        let requests = server.requests();
        let by_the_worker =
            |r: &&_| crate::http_server::Request::header(r, "user-agent").starts_with("image-b");
        requests.iter().filter(by_the_worker).filter(|r| r.path == "/token").count()
    };
    let registry = client(with_password(settings(&server.host()), PASSWORD), &engine);
    for _ in 0..3 {
        assert_eq!(registry.find(&reference).await, Ok(None));
    }
    assert_eq!(bought(), 1, "the token is kept");
    // The engine buys a token for itself, and the worker's is no longer good.
    let tags = [key().tag()];
    let pushed = registry.push(&image, &reference, &tags, &progress()).await.expect("it succeeds");
    let found = registry.find(&reference.with_tag(&tags[0])).await;
    assert_eq!(found, Ok(Some(pushed)));

    let requests = server.requests();
    let token = requests.iter().find(|request| request.path == "/token").expect("one was bought");
    let scope = format!("scope=repository%3A{}%3Apull", reference.repository.replace('/', "%2F"));
    assert_eq!(token.query, format!("service=the+tests&{scope}"));
}

#[tokio::test]
async fn a_refused_password_at_the_token_server_is_a_refusal() {
    let engine = Engine::connect().await;
    let server = registry_that(token_flow()).await;
    let registry = client(with_password(settings(&server.host()), "wrong"), &engine);
    let fault = registry.find(&reference_in(&server.host())).await.expect_err("it is refused");
    assert_eq!(fault.reason, Reason::RegistryRefused, "{fault}");
}

#[tokio::test]
async fn the_password_is_not_sent_to_a_token_server_elsewhere_without_tls() {
    let engine = Engine::connect().await;
    let thief = HttpServer::answering(|_| answer(200, &[], r#"{"token":"x"}"#)).await;
    // Another name for this machine, so that it can be reached and is another host.
    let realm = format!("http://localhost:{}/token", thief.address.port());
    let challenge = format!(r#"Bearer realm="{realm}",service="x""#);
    let server =
        HttpServer::answering(move |_| answer(401, &[("www-authenticate", &challenge)], "")).await;
    let registry = client(with_password(settings(&server.host()), PASSWORD), &engine);
    let fault = registry.find(&reference_in(&server.host())).await.expect_err("it is refused");
    assert_eq!(fault.reason, Reason::RegistryRefused, "{fault}");
    assert!(thief.requests().is_empty());
}

#[tokio::test]
async fn the_password_stays_behind_when_the_registry_sends_the_worker_elsewhere() {
    let engine = Engine::connect().await;
    let password = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let manifest = r#"{"mediaType":"m","config":{"digest":"sha256:c","size":1},"layers":[]}"#;
    let elsewhere = HttpServer::with_answers([
        answer(200, &[], manifest),
        // What it asks for on its own account is not given.
        answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
    ])
    .await;
    let there = elsewhere.url("/manifest");
    let server = HttpServer::answering(move |request| {
        if request.header("authorization") != password {
            return answer(401, &[("www-authenticate", "Basic realm=\"x\"")], "");
        }
        answer(307, &[("location", &there)], "")
    })
    .await;
    let registry = client(with_password(settings(&server.host()), PASSWORD), &engine);
    let reference = reference_in(&server.host());
    assert!(registry.find(&reference).await.is_ok_and(|found| found.is_some()));
    let fault = registry.find(&reference).await.expect_err("it is refused");
    assert_eq!(fault.reason, Reason::RegistryRefused, "{fault}");
    assert_eq!(elsewhere.requests().len(), 2);
    for request in elsewhere.requests() {
        assert_eq!(request.header("authorization"), "");
    }
}

// ---- readiness --------------------------------------------------------------------------------

#[tokio::test]
async fn a_registry_is_ready_when_it_answers_even_if_it_wants_a_password() {
    let engine = Engine::connect().await;
    for registry in [OPEN, CLOSED] {
        assert_eq!(client(settings(registry), &engine).ping().await, Ok(()), "{registry}");
    }
    let down = client(settings(NOWHERE), &engine).ping().await.expect_err("nothing is there");
    assert_eq!(down.reason, Reason::RegistryDown);
    let server = HttpServer::with_answers([answer(503, &[], "")]).await;
    let failing = client(settings(&server.host()), &engine).ping().await.expect_err("it fails");
    assert_eq!(failing.reason, Reason::RegistryFailed);
}
