//! Manifests: what a registry says an image is made of.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use image_builder_actors::model::image::{RegistryImage, StoredManifest, digest_of};
use serde::Deserialize;

use crate::net::http::excerpt;

/// Every kind of manifest that is understood here, for `Accept`.
pub(super) const MEDIA_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

/// A manifest as the registry sent it.
#[derive(Debug, Clone)]
pub(super) struct Manifest {
    /// SHA-256 of its bytes, `sha256:…`.
    pub(super) digest: String,
    pub(super) stored: Arc<StoredManifest>,
    pub(super) content: Content,
}

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Image(Image),
    /// One image a platform.
    Index(Vec<Entry>),
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    /// Digest of the image's configuration.
    pub(super) config: String,
    /// Digests of its layers, the lowest first.
    pub(super) layers: Vec<String>,
    /// Configuration and compressed layers, in bytes.
    pub(super) size_bytes: u64,
}

/// One image of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) digest: String,
    pub(super) platform: Platform,
}

/// What an image runs on, in the specification's words.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
}

impl Platform {
    /// That of the machine that this runs on.
    pub fn of_this_machine() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: std::env::consts::OS.to_owned(), architecture: architecture.to_owned() }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    media_type: Option<String>,
    config: Option<Descriptor>,
    /// Some engines write `null` for the layers of an image that has none.
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

impl Manifest {
    /// Reads a manifest; `content_type` is the answer's, and counts where the manifest itself does
    /// not name its type.
    ///
    /// # Errors
    /// A clause that says why it cannot be read.
    pub(super) fn read(bytes: Vec<u8>, content_type: Option<&str>) -> Result<Self, String> {
        let document: Document = serde_json::from_slice(&bytes)
            .map_err(|error| excerpt(&format!("the manifest cannot be read: {error}")))?;
        let content = match (document.config, document.manifests) {
            (Some(config), None) => {
                let layers = document.layers.unwrap_or_default();
                let sizes = layers.iter().map(|layer| layer.size);
                let size_bytes = sizes.fold(config.size, u64::saturating_add);
                let layers = layers.into_iter().map(|layer| layer.digest).collect();
                Content::Image(Image { config: config.digest, layers, size_bytes })
            }
            (None, Some(entries)) => Content::Index(
                entries
                    .into_iter()
                    .map(|entry| Entry {
                        digest: entry.digest,
                        platform: entry.platform.unwrap_or_default(),
                    })
                    .collect(),
            ),
            _ => return Err("the manifest is of a kind that is not known here".to_owned()),
        };
        let media_type = document.media_type.or(content_type.map(str::to_owned));
        Ok(Self {
            digest: digest_of(&bytes),
            stored: Arc::new(StoredManifest {
                media_type: media_type.ok_or("the manifest does not name its type")?,
                bytes,
            }),
            content,
        })
    }

    /// `image` under this manifest's digest, which is what deploying it takes.
    pub(super) fn registry_image(&self, image: &Image) -> RegistryImage {
        RegistryImage {
            digest: self.digest.clone(),
            image_id: image.config.clone(),
            size_bytes: image.size_bytes,
            manifest: self.stored.clone(),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// The entry of an index for a platform, else its first image, as of one that was built for others alone. Attestations, which lie beside the
/// images as `unknown/unknown`, are none.
pub(super) fn choose<'a>(entries: &'a [Entry], wanted: &Platform) -> Option<&'a Entry> {
    let images: Vec<_> = entries.iter().filter(|entry| entry.platform.os != "unknown").collect();
    let of_platform = images.iter().find(|entry| entry.platform == *wanted);
    of_platform.or(images.first()).copied()
}

/// The labels of an image, by its configuration.
pub(super) fn read_labels(config: &[u8]) -> serde_json::Result<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Configuration {
        config: Option<RunConfig>,
    }
    #[derive(Deserialize)]
    struct RunConfig {
        #[serde(rename = "Labels")]
        labels: Option<BTreeMap<String, String>>,
    }
    let Configuration { config } = serde_json::from_slice(config)?;
    Ok(config.and_then(|config| config.labels).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_size_is_that_of_its_configuration_and_layers() {
        let bytes = br#"{"schemaVersion":2,"config":{"digest":"sha256:c","size":3},
            "layers":[{"digest":"sha256:a","size":5},{"digest":"sha256:b","size":7}]}"#;
        let manifest = Manifest::read(bytes.to_vec(), Some("application/x")).expect("a manifest");
        let Content::Image(image) = &manifest.content else { panic!("one image") };
        let image = manifest.registry_image(image);
        assert_eq!((image.image_id.as_str(), image.size_bytes), ("sha256:c", 15));
        assert_eq!(image.digest, digest_of(bytes));
        assert_eq!(manifest.stored.media_type, "application/x");
        assert_eq!(image.manifest, manifest.stored);
    }

    #[test]
    fn an_image_without_layers_is_read_however_they_are_left_out() {
        for layers in ["", r#","layers":[]"#, r#","layers":null"#] {
            let text = format!(r#"{{"config":{{"digest":"sha256:c","size":3}}{layers}}}"#);
            let manifest = Manifest::read(text.into_bytes(), Some("t")).expect("a manifest");
            let Content::Image(image) = manifest.content else { panic!("one image") };
            assert_eq!(image.size_bytes, 3, "{layers}");
        }
    }

    #[test]
    fn what_a_manifest_holds_does_not_make_its_error_long() {
        let text = format!(r#"{{"config":"{}"}}"#, "x".repeat(1 << 20));
        let error = Manifest::read(text.into_bytes(), Some("t")).expect_err("no manifest");
        assert!(error.len() < 400, "{}", error.len());
    }

    #[test]
    fn an_index_is_resolved_to_the_platform_and_never_to_an_attestation() {
        let index = |entries: &str| {
            let bytes = format!(r#"{{"mediaType":"m","manifests":[{entries}]}}"#).into_bytes();
            match Manifest::read(bytes, None).expect("an index").content {
                Content::Index(entries) => entries,
                Content::Image(_) => panic!("not an image"),
            }
        };
        let amd64 =
            r#"{"digest":"sha256:x","size":1,"platform":{"os":"linux","architecture":"amd64"}}"#;
        let arm64 =
            r#"{"digest":"sha256:y","size":1,"platform":{"os":"linux","architecture":"arm64"}}"#;
        let proof = r#"{"digest":"sha256:z","size":1,"platform":{"os":"unknown","architecture":"unknown"}}"#;
        let wanted = Platform { os: "linux".to_owned(), architecture: "arm64".to_owned() };
        let digest = |entries: &str| choose(&index(entries), &wanted).map(|e| e.digest.clone());

        assert_eq!(digest(&format!("{amd64},{arm64},{proof}")).as_deref(), Some("sha256:y"));
        assert_eq!(digest(&format!("{proof},{amd64}")).as_deref(), Some("sha256:x"));
        assert_eq!(digest(&format!("{proof},{amd64},{amd64}")).as_deref(), Some("sha256:x"));
        assert_eq!(digest(proof), None);
    }

    #[test]
    fn labels_are_read_wherever_there_are_any() {
        let labels = |text: &str| read_labels(text.as_bytes()).expect("a configuration");
        let some = labels(r#"{"config":{"Labels":{"a":"1","b":"2"},"Cmd":null},"os":"linux"}"#);
        assert_eq!(
            some.into_iter().collect::<Vec<_>>(),
            [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]
        );
        for none in ["{}", r#"{"config":null}"#, r#"{"config":{"Labels":null}}"#] {
            assert!(labels(none).is_empty(), "{none}");
        }
        assert!(read_labels(b"[]").is_err());
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        for text in ["", "[]", "{}", r#"{"config":{"digest":"x","size":-1}}"#, "null"] {
            assert!(Manifest::read(text.as_bytes().to_vec(), Some("t")).is_err(), "{text}");
        }
    }
}
