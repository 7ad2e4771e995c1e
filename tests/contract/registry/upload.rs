//! Fills a registry over its own API, without any engine.

use std::collections::BTreeMap;
use std::sync::Arc;

use image_builder::registry::RegistrySettings;
use image_builder_actors::model::image::{RegistryImage, StoredManifest, digest_of};
use image_builder_actors::model::reference::ImageReference;
use reqwest::header::{CONTENT_TYPE, LOCATION};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::json;

use super::unique;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Stores an image without layers that has these labels and no equal.
pub(super) async fn upload(
    settings: &RegistrySettings,
    reference: &ImageReference,
    labels: &BTreeMap<String, String>,
) -> RegistryImage {
    let http = Client::new();
    let repository = settings.url.api_repository(&reference.repository);
    let base = format!("{}/v2/{repository}", settings.url.api_base());
    let request = |method: Method, url: &str| -> RequestBuilder {
        let request = http.request(method, url);
        match &settings.credentials {
            Some(known) => request.basic_auth(&known.username, Some(known.password.expose())),
            None => request,
        }
    };
    let send = async |request: RequestBuilder| {
        let response = request.send().await.expect("the registry answers");
        response.error_for_status().expect("the registry takes it")
    };

    let config = json!({
        "architecture": "amd64", "os": "linux", "author": unique(),
        "config": {"Labels": labels}, "rootfs": {"type": "layers", "diff_ids": []},
    });
    let config = config.to_string();
    let image_id = digest_of(config.as_bytes());
    let begun = send(request(Method::POST, &format!("{base}/blobs/uploads/"))).await;
    let upload = begun.headers()[LOCATION].to_str().expect("an address");
    let mut upload = begun.url().join(upload).expect("an address");
    upload.query_pairs_mut().append_pair("digest", &image_id);
    send(request(Method::PUT, upload.as_str()).body(config.clone())).await;

    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": {"mediaType": CONFIG, "digest": image_id, "size": config.len()},
    });
    let manifest = manifest.to_string();
    let stored = request(Method::PUT, &format!("{base}/manifests/{}", reference.tag));
    send(stored.header(CONTENT_TYPE, MANIFEST).body(manifest.clone())).await;
    let digest = digest_of(manifest.as_bytes());
    RegistryImage {
        digest,
        image_id,
        size_bytes: config.len() as u64,
        manifest: Arc::new(StoredManifest {
            media_type: MANIFEST.to_owned(),
            bytes: manifest.into(),
        }),
    }
}
