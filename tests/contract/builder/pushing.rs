//! What a push does to the names on the engine.

use image_builder::engine::docker::{DockerEngine, DockerSettings};
use image_builder::engine::settings::BuildSettings;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::image::BuiltImage;
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::secret::Redactor;
use image_builder_actors::ports::ImageBuilder;

use crate::engine::{Engine, any_image, docker_engine};
use crate::http_server::HttpServer;
use crate::registry::{NOWHERE, OPEN, reference_in};

fn anonymous() -> DockerEngine {
    docker_engine(BuildSettings::default())
}

async fn push(
    engine: &DockerEngine,
    image: &BuiltImage,
    reference: &ImageReference,
) -> Result<String, Fault> {
    let progress = BuildLog::new("a build of the tests", Redactor::default());
    engine.push(image, reference, &progress).await
}

#[tokio::test]
async fn a_push_leaves_no_name_on_the_engine_and_keeps_the_image() {
    let mut engine = Engine::connect().await;
    let (image, reference) = (engine.image().await, reference_in(OPEN));
    push(&anonymous(), &image, &reference).await.expect("it succeeds");
    let left = engine.names_of(&image.id).await;
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(!left.contains(&reference.to_string()), "{left:?}");
}

#[tokio::test]
async fn a_name_that_was_there_before_the_push_is_there_after_it() {
    let mut engine = Engine::connect().await;
    let (image, reference) = (engine.image().await, reference_in(OPEN));
    engine.tag(&image.id, &reference).await;
    push(&anonymous(), &image, &reference).await.expect("it succeeds");
    assert_eq!(engine.id_of(&reference.to_string()).await, Some(image.id));
}

#[tokio::test]
async fn a_failed_push_leaves_no_name_on_the_engine() {
    let mut engine = Engine::connect().await;
    let (image, reference) = (engine.image().await, reference_in(NOWHERE));
    push(&anonymous(), &image, &reference).await.expect_err("it fails");
    assert_eq!(engine.id_of(&reference.to_string()).await, None);
    assert_eq!(engine.id_of(&image.id).await, Some(image.id));
}

#[tokio::test]
async fn a_push_never_removes_an_image_that_has_no_other_name() {
    let mut engine = Engine::connect().await;
    let (image, reference) = (engine.nameless_image().await, reference_in(OPEN));
    push(&anonymous(), &image, &reference).await.expect("it succeeds");
    assert_eq!(engine.id_of(&image.id).await, Some(image.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_is_given_up_leaves_no_name_on_the_engine() {
    let mut engine = Engine::connect().await;
    let server = HttpServer::silent().await;
    let (image, reference) = (engine.image().await, reference_in(&server.host()));
    let mut names = engine.watch_names(&image.id);
    let pushing = {
        let (image, reference) = (image.clone(), reference.clone());
        tokio::spawn(async move { push(&anonymous(), &image, &reference).await })
    };
    // What they ask for first is not the same on all engines.
    server.wait_until_asked().await;
    assert_eq!(engine.id_of(&reference.to_string()).await.as_ref(), Some(&image.id));
    pushing.abort();
    names.name_taken_off().await;
    assert_eq!(engine.id_of(&reference.to_string()).await, None);
    assert_eq!(engine.id_of(&image.id).await, Some(image.id));
}

#[tokio::test]
async fn a_name_that_the_engine_does_not_accept_is_a_refusal() {
    let mut engine = Engine::connect().await;
    let image = engine.image().await;
    let reference = ImageReference { repository: "Upper/Case".to_owned(), ..reference_in(OPEN) };
    let fault = push(&anonymous(), &image, &reference).await.expect_err("it is refused");
    assert_eq!(fault.reason, Reason::RegistryRefused, "{fault}");
}

#[tokio::test]
async fn an_engine_out_of_reach_is_down() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("docker.sock");
    let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
    let by_socket = format!("unix://{}", path.display());
    drop(listener);
    for host in [by_socket.clone(), format!("tcp://{NOWHERE}")] {
        assert_engine_down(host).await;
    }
    std::fs::remove_file(&path).expect("the socket is there");
    assert_engine_down(by_socket).await;
}

async fn assert_engine_down(host: String) {
    let settings = DockerSettings { host, ..DockerSettings::default() };
    let engine = DockerEngine::connect(settings).expect("good settings");
    let pushed = push(&engine, &any_image(), &reference_in(OPEN)).await;
    let fault = pushed.expect_err("no engine");
    assert_eq!((fault.stage, fault.reason), (StageName::Pusher, Reason::EngineDown), "{fault}");
}
