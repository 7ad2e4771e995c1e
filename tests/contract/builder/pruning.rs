//! Pruning an engine that fails with some of its images, as no real one does when asked to.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::Method;
use image_builder::engine::docker::disk::size::Size;
use image_builder::engine::docker::disk::{DiskGuard, DiskSettings, Young};
use image_builder::engine::docker::{DockerEngine, DockerSettings};
use image_builder_actors::model::image::KEY_LABEL;
use serde_json::{Value, json};

use crate::http_server::{Answer, HttpServer, Request};

/// The images of the engine by name, in the order of their last use.
const ALL: [&str; 6] = ["no-history", "no-layers", "unreadable", "unseen", "stuck", "plain"];

fn name(image: &str) -> String {
    format!("image-builder.local/u/{image}:c0ffee0-0123456789ab")
}

fn listed(image: &str) -> Value {
    if image == "unreadable" {
        return json!({"Id": image, "Labels": "none"});
    }
    json!({"Id": image, "RepoTags": [name(image)], "RepoDigests": null, "Labels": {KEY_LABEL: "k"}})
}

/// What the engine answers; `gone` are the names that were removed from it.
fn answer(asked: &Request, gone: &Mutex<BTreeSet<String>>) -> Answer {
    let (path, _) = asked.target();
    let path = path.trim_start_matches("/v1.41");
    let of = |image: &str| path.strip_prefix("/images/").is_some_and(|rest| rest.contains(image));
    if asked.method == Method::DELETE {
        if of("stuck") {
            return Answer::status(500);
        }
        let name = path.trim_start_matches("/images/").replace("%2F", "/").replace("%3A", ":");
        gone.lock().expect("no panic inside").insert(name);
        return Answer::json(&json!([]));
    }
    match path {
        "/version" => Answer::json(&json!({"ApiVersion": "1.41"})),
        "/system/df" => {
            let gone = gone.lock().expect("no panic inside");
            let left = ALL.iter().filter(|image| !gone.contains(&name(image)));
            let images: Vec<Value> = left.map(|image| listed(image)).collect();
            Answer::json(&json!({"Images": images, "BuildCache": null}))
        }
        "/build/prune" => Answer::json(&json!({})),
        _ if of("unseen") => Answer::status(500),
        _ if path.ends_with("/history") && of("no-history") => Answer::json(&Value::Null),
        _ if path.ends_with("/history") && of("no-layers") => Answer::status(500),
        _ if path.ends_with("/history") => Answer::json(&json!([{"Size": 3, "Tags": null}])),
        _ => {
            let at = ALL.iter().position(|image| of(image)).expect("one of these images");
            let layers = if of("no-layers") { Value::Null } else { json!([path]) };
            Answer::json(&json!({
                "Created": format!("2026-01-01T00:00:0{at}Z"),
                "RootFS": {"Type": "layers", "Layers": layers},
            }))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_image_keeps_others_from_being_pruned() {
    let gone = Arc::new(Mutex::new(BTreeSet::new()));
    let removed = gone.clone();
    let server = HttpServer::answering(move |asked| answer(asked, &removed)).await;
    let host = format!("tcp://{}", server.host());
    let engine = DockerEngine::connect(DockerSettings { host, ..DockerSettings::default() });
    let engine = Arc::new(engine.expect("good settings"));
    assert_eq!(engine.layer_bytes("no-history").await, Ok(vec![]));

    let mark = |text: &str| text.parse().expect("a watermark");
    // The image that cannot be removed is the older of two, of which one has to go.
    let mut settings = DiskSettings::new(mark("1%,1MB"), mark("2%,2MB"), Size(3));
    settings.young = Young { image: Duration::ZERO, cache: Duration::ZERO };
    let data_dir = tempfile::tempdir().expect("a directory");
    let guard = DiskGuard::new(settings, data_dir.path(), engine, "localhost:5000".to_owned());
    guard.tidy().await;
    let names = |images: &[&str]| images.iter().map(|image| name(image)).collect::<BTreeSet<_>>();
    assert_eq!(*gone.lock().expect("no panic inside"), names(&["no-history", "no-layers"]));
    guard.tidy().await;
    assert_eq!(
        *gone.lock().expect("no panic inside"),
        names(&["no-history", "no-layers", "plain"])
    );
}
