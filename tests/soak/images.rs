//! What a run left on the engine: images that an outcome names, and no other.

use std::collections::BTreeSet;

use crate::support::engine;
use crate::support::git_server::{self, GitRepo};
use crate::support::world::full_name;

/// An image on the engine.
#[derive(Debug, PartialEq, Eq)]
pub struct Image {
    pub id: String,
    pub key: String,
    pub names: Vec<String>,
}

/// All images that were built from these repositories.
pub fn of<'a>(repositories: impl Iterator<Item = &'a GitRepo>) -> Vec<Image> {
    let mut ids = BTreeSet::new();
    for repo in repositories {
        let source = format!("{}/{}", git_server::server_url(), full_name(repo));
        for ending in ["", ".git"] {
            let label = format!("label=org.opencontainers.image.source={source}{ending}");
            let found = engine::docker(&["image", "ls", "-q", "--no-trunc", "--filter", &label]);
            ids.extend(found.lines().map(str::to_owned));
        }
    }
    if ids.is_empty() {
        return Vec::new();
    }
    let format = "{{.Id}} {{index .Config.Labels \"image-builder.build-key\"}}{{range .RepoTags}} {{.}}{{end}}";
    let arguments = ["image", "inspect", "--format", format];
    let all = ids.iter().map(String::as_str).collect::<Vec<_>>();
    let images = engine::docker(&[&arguments[..], &all].concat());
    images.lines().filter_map(read).collect()
}

fn read(line: &str) -> Option<Image> {
    let mut words = line.split(' ').map(str::to_owned);
    Some(Image { id: words.next()?, key: words.next()?, names: words.collect() })
}

/// What is wrong with these images. `told` are the ids that outcomes name; `withdrawn` are the keys of
/// builds that were cancelled, which may have come as far as an image.
pub fn leaks(images: &[Image], told: &BTreeSet<&str>, withdrawn: &BTreeSet<&str>) -> Vec<String> {
    let mut leaks = Vec::new();
    for image in images {
        let Image { id, key, names } = image;
        if !told.contains(id.as_str()) && !withdrawn.contains(key.as_str()) {
            leaks.push(format!("no outcome names the image {id}: {names:?}"));
        }
        if names.is_empty() {
            leaks.push(format!("the image {id} has no name by which it could be found again"));
        }
        let pushed = names.iter().filter(|name| !name.starts_with("image-builder.local/"));
        leaks.extend(pushed.map(|name| format!("the image {id} kept the name {name} of its push")));
    }
    leaks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(names: &[&str]) -> Image {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Image { id: "sha256:1".to_owned(), key: "k".to_owned(), names }
    }

    #[test]
    fn an_image_is_named_by_an_outcome_and_by_nothing_but_the_worker() {
        let (told, nobody) = (["sha256:1"].into(), BTreeSet::new());
        let good = image(&["image-builder.local/u/a:c0ffee-0123456789ab"]);
        assert_eq!(leaks(&[good], &told, &nobody), [""; 0]);
        let withdrawn = image(&["image-builder.local/u/a:c0ffee-0123456789ab"]);
        assert_eq!(leaks(&[withdrawn], &nobody, &["k"].into()), [""; 0]);
        for (image, told) in [
            (image(&["image-builder.local/u/a:c0ffee-0123456789ab"]), &nobody),
            (image(&[]), &told),
            (
                image(&["image-builder.local/u/a:c0ffee-0123456789ab", "localhost:5000/u/a:1"]),
                &told,
            ),
        ] {
            assert_eq!(leaks(&[image], told, &nobody).len(), 1);
        }
    }

    #[test]
    fn what_the_engine_tells_is_read() {
        let names = ["image-builder.local/u/a:c0ffee-0123456789ab", "b:1"];
        assert_eq!(
            read("sha256:1 k image-builder.local/u/a:c0ffee-0123456789ab b:1"),
            Some(image(&names))
        );
        assert_eq!(read("sha256:1 k"), Some(image(&[])));
    }
}
