//! What only the real registry has: other people's answers, and credentials.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image_builder::registry::{Platform, RegistrySettings};
use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::image::digest_of;
use image_builder_actors::ports::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::server::{PASSWORD, USER, registry_that, token_flow};
use super::{CLOSED, NOWHERE, OPEN, client, reference_in, settings, with_password};
use crate::http_server::{HttpServer, Request, answer};

#[tokio::test]
async fn a_reference_into_another_registry_is_a_refusal_and_nobody_is_asked() {
    let server = registry_that(|_| None).await;
    let registry = client(settings(&server.host()));
    let fault = registry.find(&reference_in(OPEN)).await.expect_err("it is refused");
    assert_eq!(fault.reason, Reason::RegistryRefused, "{fault}");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_registry_that_speaks_no_tls_where_tls_is_asked_for_is_a_refusal_that_says_so() {
    let registry = client(settings(&format!("https://{OPEN}")));
    let fault = registry.find(&reference_in(OPEN)).await.expect_err("no TLS");
    assert_eq!(fault.reason, Reason::RegistryRefused, "{fault}");
    assert!(fault.message.contains("begin REGISTRY_URL with http://"), "{fault}");
}

#[tokio::test]
async fn a_question_that_the_registry_hangs_up_on_is_asked_once_more() {
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
    let registry = client(settings(&host));
    assert_eq!(registry.find(&reference_in(&host)).await, Ok(None));
    server.await.expect("it was asked twice");
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_given_up_in_time() {
    let server = HttpServer::silent().await;
    let request_timeout = Duration::from_millis(300);
    let registry = client(RegistrySettings { request_timeout, ..settings(&server.host()) });
    let begun = Instant::now();
    let fault = registry.find(&reference_in(&server.host())).await.expect_err("no answer");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(fault.reason, Reason::Timeout, "{fault}");
}

#[tokio::test]
async fn an_answer_that_is_no_manifest_or_a_huge_one_is_a_failure() {
    for body in ["<html>".to_owned(), format!("\"{}\"", "x".repeat(5 << 20)), "{}".to_owned()] {
        let server = HttpServer::with_answers([answer(200, &[], body)]).await;
        let registry = client(settings(&server.host()));
        let found = registry.find(&reference_in(&server.host())).await;
        assert_eq!(found.expect_err("no manifest").reason, Reason::RegistryFailed);
    }
}

#[tokio::test]
async fn of_an_index_the_image_for_the_platform_counts_and_the_index_keeps_its_digest() {
    let platform = Platform { os: "linux".to_owned(), architecture: "riscv64".to_owned() };
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
        entry(&images[0], &platform.os, &platform.architecture),
    );
    let index_digest = digest_of(index.as_bytes());
    let server = HttpServer::answering(move |request| {
        let asked = request.path.rsplit('/').next().unwrap_or_default();
        let of_an_image = images.iter().find(|image| digest_of(image.as_bytes()) == asked);
        answer(200, &[], of_an_image.unwrap_or(&index).clone())
    })
    .await;
    let registry = client(RegistrySettings { platform, ..settings(&server.host()) });
    let found = registry.find(&reference_in(&server.host())).await;
    let found = found.expect("it is readable").expect("it is there");
    assert_eq!(
        (found.digest, found.image_id, found.size_bytes),
        (index_digest, "sha256:ours".to_owned(), 5)
    );
}

#[tokio::test]
async fn a_refused_password_at_the_token_server_is_a_refusal() {
    let server = registry_that(token_flow()).await;
    let registry = client(with_password(settings(&server.host()), "wrong"));
    let fault = registry.find(&reference_in(&server.host())).await.expect_err("it is refused");
    assert_eq!(fault.reason, Reason::RegistryRefused, "{fault}");
}

#[tokio::test]
async fn no_wider_token_is_bought_than_for_what_is_done_whatever_the_registry_says() {
    let wide = "repository:somebody/else:pull,push registry:catalog:*";
    let server = HttpServer::answering(move |request| {
        if request.target().0 == "/token" {
            return answer(200, &[], r#"{"token":"t"}"#);
        }
        let realm = format!("http://{}/token", request.header("host"));
        let challenge = format!(r#"Bearer realm="{realm}",service="s",scope="{wide}""#);
        answer(401, &[("www-authenticate", &challenge)], "")
    })
    .await;
    let registry = client(with_password(settings(&server.host()), PASSWORD));
    let reference = reference_in(&server.host());
    registry.find(&reference).await.expect_err("its token opens nothing");
    let requests = server.requests();
    let asked: Vec<&str> =
        requests.iter().map(Request::target).filter(|t| t.0 == "/token").map(|t| t.1).collect();
    let own = format!("scope=repository%3A{}%3Apull", reference.repository.replace('/', "%2F"));
    assert_eq!(asked, [format!("service=s&{own}")]);
}

#[tokio::test]
async fn the_password_is_not_sent_to_a_token_server_elsewhere_without_tls() {
    let thief = HttpServer::answering(|_| answer(200, &[], r#"{"token":"x"}"#)).await;
    // Another name for this machine, so that it can be reached and is another host.
    let realm = format!("http://localhost:{}/token", thief.port());
    let challenge = format!(r#"Bearer realm="{realm}",service="x""#);
    let server =
        HttpServer::answering(move |_| answer(401, &[("www-authenticate", &challenge)], "")).await;
    let registry = client(with_password(settings(&server.host()), PASSWORD));
    let fault = registry.find(&reference_in(&server.host())).await.expect_err("it is refused");
    assert_eq!(fault.reason, Reason::RegistryRefused, "{fault}");
    assert!(thief.requests().is_empty());
}

#[tokio::test]
async fn the_password_stays_behind_when_the_registry_sends_the_worker_elsewhere() {
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
    let registry = client(with_password(settings(&server.host()), PASSWORD));
    let reference = reference_in(&server.host());
    assert!(registry.find(&reference).await.is_ok_and(|found| found.is_some()));
    let fault = registry.find(&reference).await.expect_err("it is refused");
    assert_eq!(fault.reason, Reason::RegistryRefused, "{fault}");
    assert_eq!(elsewhere.requests().len(), 2);
    for request in elsewhere.requests() {
        assert_eq!(request.header("authorization"), "");
    }
}

#[tokio::test]
async fn a_registry_is_ready_when_it_answers_even_if_it_wants_a_password() {
    for registry in [OPEN, CLOSED] {
        assert_eq!(client(settings(registry)).ping().await, Ok(()), "{registry}");
    }
    let down = client(settings(NOWHERE)).ping().await.expect_err("nothing is there");
    assert_eq!(down.reason, Reason::RegistryDown);
    let server = HttpServer::with_answers([answer(503, &[], "")]).await;
    let failing = client(settings(&server.host())).ping().await.expect_err("it fails");
    assert_eq!(failing.reason, Reason::RegistryFailed);
}

#[tokio::test]
async fn a_registry_that_asks_for_patience_in_any_notation_is_heard() {
    let day = Duration::from_secs(24 * 60 * 60);
    for (value, patience) in [
        ("7", Duration::from_secs(7)),
        ("Wed, 21 Oct 2099 07:28:00 GMT", day),
        ("Wednesday, 21-Oct-65 07:28:00 GMT", day),
        ("Wed Oct 21 07:28:00 2099", day),
        ("Sun Nov  6 08:49:37 1994", Duration::from_secs(1)),
        ("99999999999999999999999", day),
    ] {
        let server = HttpServer::with_answers([answer(429, &[("retry-after", value)], "")]).await;
        let registry = client(settings(&server.host()));
        let fault = registry.find(&reference_in(&server.host())).await.expect_err("it refuses");
        assert_eq!(
            (fault.reason, fault.retry_after),
            (Reason::RateLimited, Some(patience)),
            "{value}"
        );
    }
}
