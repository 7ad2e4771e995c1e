//! The build cache of an application in a registry, for engines that do not have it.

use std::collections::HashMap;

use bollard_buildkit_proto::moby::buildkit::v1::{CacheOptions, CacheOptionsEntry};
use image_builder_actors::model::reference::ImageReference;
use serde_json::json;

use crate::engine::settings::{CacheMode, CacheRegistry};

/// How the engine calls the step in which it reads a cache.
const IMPORT: &str = "importing cache manifest from ";
/// And the one in which it writes one.
const EXPORT: &str = "exporting cache to ";

/// One application's cache.
pub(super) struct RemoteCache {
    reference: String,
    plain_http: bool,
    mode: &'static str,
}

impl RemoteCache {
    /// It has the user's name in it, as the image has: no two users share one.
    pub(super) fn of(cache: &CacheRegistry, reference: &ImageReference) -> Self {
        let mode = match cache.mode {
            CacheMode::Image => "min",
            CacheMode::AllSteps => "max",
        };
        Self { reference: cache.of(reference), plain_http: cache.plain_http, mode }
    }

    fn attributes(&self) -> HashMap<String, String> {
        let mut attributes = HashMap::from([("ref".to_owned(), self.reference.clone())]);
        if self.plain_http {
            attributes.insert("registry.insecure".to_owned(), "true".to_owned());
        }
        attributes
    }

    /// For the solver.
    pub(super) fn options(&self) -> CacheOptions {
        let r#type = "registry".to_owned();
        let mut exported = self.attributes();
        for (name, value) in [
            ("mode", self.mode),
            // As an image, which registries take that know no other kinds.
            ("image-manifest", "true"),
            ("oci-mediatypes", "true"),
            // The image is made; the next build can do without.
            ("ignore-error", "true"),
        ] {
            exported.insert(name.to_owned(), value.to_owned());
        }
        CacheOptions {
            imports: vec![CacheOptionsEntry { r#type: r#type.clone(), attrs: self.attributes() }],
            exports: vec![CacheOptionsEntry { r#type, attrs: exported }],
            ..CacheOptions::default()
        }
    }

    /// For the front end, which asks the solver in its turn.
    pub(super) fn imports(&self) -> String {
        json!([{ "Type": "registry", "Attrs": self.attributes() }]).to_string()
    }
}

/// Whether a step is about a cache in a registry: then its failure fails no build.
pub(super) fn is_about_cache(step: &str) -> bool {
    step.starts_with(IMPORT) || step.starts_with(EXPORT)
}

/// What a person is told where such a step failed; `None` = nothing, since the first build of an application
/// finds no cache.
pub(super) fn warning(step: &str, error: &str) -> Option<String> {
    if step.starts_with(EXPORT) {
        return Some(format!("warning: the build cache was not stored in its registry: {error}"));
    }
    let is_first = error.ends_with("not found") || error.contains("manifest unknown");
    (!is_first).then(|| format!("warning: the build cache in the registry was not read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_users_application_has_a_cache_of_its_own() {
        let registry = CacheRegistry {
            name: "r:1/caches".to_owned(),
            plain_http: true,
            mode: CacheMode::AllSteps,
        };
        let of =
            |user| RemoteCache::of(&registry, &ImageReference::for_build("x", user, "shop", "c"));
        assert_eq!(of("alice").reference, "r:1/caches/alice/shop:cache");
        assert_ne!(of("alice").reference, of("bob").reference);
        let options = of("alice").options();
        assert_eq!(options.exports[0].attrs["mode"], "max");
        assert_eq!(options.imports[0].attrs["registry.insecure"], "true");
        let imports = r#"[{"Attrs":{"ref":"r:1/caches/alice/shop:cache","registry.insecure":"true"},"Type":"registry"}]"#;
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(read(&of("alice").imports()), read(imports));
    }

    #[test]
    fn a_cache_that_is_not_there_yet_is_no_news() {
        let import = "importing cache manifest from r:1/alice/shop:cache";
        assert!(is_about_cache(import) && is_about_cache("exporting cache to registry"));
        assert!(!is_about_cache("exporting to image"));
        assert_eq!(warning(import, "r:1/alice/shop:cache: not found"), None);
        assert!(warning(import, "401 Unauthorized").is_some());
        assert!(warning("exporting cache to registry", "x: not found").is_some());
    }
}
