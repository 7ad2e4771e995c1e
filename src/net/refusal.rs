//! What a registry's refusal means, whoever it was given to: the worker itself, or the engine that
//! pushes for it.

use image_builder_actors::model::fault::Reason;

/// How registries say that a tag is taken for good, in lower case. ECR, Harbor, Quay, GitLab, Docker Hub
/// and Artifact Registry say "immutable" in their messages; ECR's code, Azure's and Nexus's messages do
/// not have the word.
const IMMUTABLE: &[&str] = &[
    "immutab",
    "tagalreadyexists",
    "tag_already_exists",
    "cannot be overwritten",
    "cannot overwrite",
    "not allow overwriting",
    "not allow updating assets",
    "disallowed on this registry, repository or image",
];

/// What a status means for the job.
pub(crate) fn reason_of(status: u16) -> Reason {
    match status {
        408 => Reason::Timeout,
        429 => Reason::RateLimited,
        400..500 => Reason::RegistryRefused,
        // A success or a redirect that holds no answer comes from something before the registry.
        _ => Reason::RegistryFailed,
    }
}

/// Whether an answer says that the tag may never stand for another image.
pub(crate) fn says_immutable(status: Option<u16>, text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    matches!(status, Some(409 | 412)) || IMMUTABLE.iter().any(|words| text.contains(words))
}

/// What an operator does about a refusal.
pub(crate) fn advice(status: Option<u16>, text: &str) -> Option<&'static str> {
    if says_immutable(status, text) {
        return Some(
            "the registry's tags are immutable, and this one is taken; allow the tags of images to be \
             moved, or leave out `force`",
        );
    }
    Some(match status? {
        401 | 403 => "check REGISTRY_USERNAME, REGISTRY_PASSWORD and what they may do",
        413 => {
            "it takes no upload of this size; raise the limit of the registry or of the proxy before \
             it, such as nginx's client_max_body_size"
        }
        404 => {
            "check that REGISTRY_URL is the address of a registry, and that it has the repository"
        }
        405 => {
            "it takes no pushes; check that REGISTRY_URL is the address of a registry that is neither \
             a mirror nor read-only"
        }
        200..=399 => "check that REGISTRY_URL is the address of a registry",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_say_that_a_tag_is_taken_for_good_is_known() {
        for (status, text) in [
            (None, "ImageTagAlreadyExistsException: The image tag 'v1' already exists"),
            (
                None,
                "unknown: The image tag 'v1' already exists in the 'a' repository and cannot be \
                    overwritten because the tag is immutable.",
            ),
            (Some(412), ""),
            (None, "unknown: Failed to process request due to 'a:v1' configured as immutable."),
            (Some(409), "TAG_IMMUTABLE"),
            (None, "manifest invalid: The repository has enabled tag immutability"),
            (Some(405), "The operation is disallowed on this registry, repository or image."),
            (None, "unknown: Repository does not allow updating assets: docker"),
            (Some(403), "DENIED: cannot overwrite immutable tag"),
        ] {
            assert!(says_immutable(status, text), "{status:?} {text}");
            let advice = advice(status, text).expect("there is something to do");
            assert!(advice.contains("immutable"), "{advice}");
        }
        for (status, text) in
            [(Some(403), "DENIED"), (Some(400), "MANIFEST_INVALID"), (None, "EOF")]
        {
            assert!(!says_immutable(status, text), "{status:?} {text}");
        }
    }

    #[test]
    fn a_status_says_what_happens_next_and_what_to_do() {
        for (status, reason, part) in [
            (200, Reason::RegistryFailed, "REGISTRY_URL"),
            (301, Reason::RegistryFailed, "REGISTRY_URL"),
            (401, Reason::RegistryRefused, "REGISTRY_PASSWORD"),
            (404, Reason::RegistryRefused, "REGISTRY_URL"),
            (405, Reason::RegistryRefused, "takes no pushes"),
            (412, Reason::RegistryRefused, "immutable"),
            (413, Reason::RegistryRefused, "client_max_body_size"),
        ] {
            assert_eq!(reason_of(status), reason, "{status}");
            let advice = advice(Some(status), "").expect("there is something to do");
            assert!(advice.contains(part), "{status}: {advice}");
        }
        for (status, reason) in
            [(408, Reason::Timeout), (429, Reason::RateLimited), (502, Reason::RegistryFailed)]
        {
            assert_eq!((reason_of(status), advice(Some(status), "")), (reason, None));
        }
    }
}
