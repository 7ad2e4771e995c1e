//! What the images that were built here are called on the engine: `image-builder.local/<user>/<application>:
//! <short commit>-<random>`.
//!
//! People read these names. Builds must not guess them: one that says `FROM` another user's image would get
//! it. So they are drawn by lot, and an image is found again by the label with its build key. As a build has
//! its say in the labels of its image, the user and the application are taken from the name, which the worker
//! alone gives.

use bollard::query_parameters::TagImageOptionsBuilder;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::image::{BUILDER_LABEL, BuildKey, KEY_LABEL};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::request::BuilderKind;
use time::OffsetDateTime;

use super::{ANSWER_TIMEOUT, DockerEngine, faults};

/// What the names of all images that were built here begin with, on the engine alone: no registry is called
/// that.
pub const LOCAL_REGISTRY: &str = "image-builder.local";

/// As many digits of a commit as forges show.
const COMMIT_DIGITS: usize = 7;
/// Hexadecimal digits that nobody can guess (48 bits).
const RANDOM_DIGITS: usize = 12;

/// An image that was built here.
#[derive(Debug)]
pub struct LocalImage {
    pub id: String,
    /// `repository:tag`.
    pub name: String,
    pub(super) builder: Option<BuilderKind>,
    last_use: OffsetDateTime,
}

/// Whether an image of this name was built here.
pub(super) fn is_local(name: &str) -> bool {
    name.strip_prefix(LOCAL_REGISTRY).is_some_and(|rest| rest.starts_with('/'))
}

/// A new name for an image that the registry is to call `reference`.
pub(super) fn new_name(reference: &ImageReference) -> String {
    let commit = reference.tag.get(..COMMIT_DIGITS).unwrap_or(&reference.tag);
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{}{commit}-{}", prefix(reference), &random[..RANDOM_DIGITS])
}

/// What the names of all images of an application begin with.
fn prefix(reference: &ImageReference) -> String {
    format!("{LOCAL_REGISTRY}/{}:", reference.repository)
}

impl DockerEngine {
    /// The image of a key that was built here in the repository of `reference`; of several the one that was
    /// used last.
    ///
    /// # Errors
    /// `engine_down`, `engine_failed` or `timeout`.
    pub async fn local_image(
        &self,
        key: &BuildKey,
        reference: &ImageReference,
    ) -> Result<Option<LocalImage>, Fault> {
        let prefix = prefix(reference);
        let mut last: Option<LocalImage> = None;
        for image in self.images_with(KEY_LABEL, key.as_str()).await? {
            let ours = image.names().into_iter().find(|name| name.starts_with(&prefix));
            let Some(name) = ours else { continue };
            // Gone since the engine listed it.
            let Some(detail) = self.image_detail(&image.id).await? else { continue };
            if last.as_ref().is_some_and(|last| last.last_use >= detail.last_use) {
                continue;
            }
            let builder = image.label(BUILDER_LABEL).and_then(BuilderKind::from_name);
            last = Some(LocalImage { id: image.id, name, builder, last_use: detail.last_use });
        }
        Ok(last)
    }

    /// Gives an image that was built here these names (`repository:tag`), in place of the one that it got when
    /// it was built: from then on it is its owner's to keep or to remove.
    ///
    /// # Errors
    /// `engine_down`, `engine_failed` or `timeout`.
    pub async fn rename(
        &self,
        id: &str,
        reference: &ImageReference,
        names: &[String],
    ) -> Result<(), Fault> {
        let what = "naming an image";
        for name in names {
            let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
            let options = TagImageOptionsBuilder::new().repo(repository).tag(tag).build();
            faults::in_time(ANSWER_TIMEOUT, what, self.docker.tag_image(id, Some(options)))
                .await?
                .map_err(|error| faults::of_client(&self.address, what, &error))?;
        }
        for name in self.local_names(id, reference).await? {
            self.remove_image(&name).await?;
        }
        Ok(())
    }

    /// The names that builds of this application gave to an image.
    ///
    /// # Errors
    /// `engine_down`, `engine_failed` or `timeout`.
    pub async fn local_names(
        &self,
        id: &str,
        reference: &ImageReference,
    ) -> Result<Vec<String>, Fault> {
        let what = "looking at the names of an image";
        let names = self.inspect(id, what).await?.and_then(|image| image.repo_tags);
        let prefix = prefix(reference);
        let ours = names.into_iter().flatten().filter(|name| name.starts_with(&prefix));
        let mut ours: Vec<String> = ours.collect();
        ours.sort();
        Ok(ours)
    }

    /// Notes that an image is used now, for whoever looks for the oldest: the engine keeps the time at which
    /// an image was last given a name, be it one that it has.
    pub(super) async fn touch(&self, name: &str) {
        let Some((repository, tag)) = name.rsplit_once(':') else { return };
        let options = TagImageOptionsBuilder::new().repo(repository).tag(tag).build();
        if let Err(error) = self.docker.tag_image(name, Some(options)).await {
            tracing::debug!(%error, "cannot note that an image is used");
        }
    }

    /// Removes all names but one that builds of this application gave to an image: a build that makes the
    /// same image once more gives it another name. Workers who do so at once keep the same one.
    pub(super) async fn keep_one_name(&self, id: &str, reference: &ImageReference) {
        if let Err(fault) = self.remove_spare_names(id, reference).await {
            // They go with the image.
            tracing::debug!(%fault, "cannot remove the spare names of an image");
        }
    }

    async fn remove_spare_names(&self, id: &str, reference: &ImageReference) -> Result<(), Fault> {
        let ours = self.local_names(id, reference).await?;
        let Some((kept, spare)) = ours.split_first() else { return Ok(()) };
        for name in spare {
            self.remove_image(name).await?;
        }
        if !spare.is_empty() {
            self.touch(kept).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(user: &str, application: &str) -> ImageReference {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        ImageReference::for_build("registry:5000", user, application, commit)
    }

    #[test]
    fn a_name_tells_people_whose_image_it_is_and_of_which_commit() {
        let name = new_name(&reference("alice", "shop"));
        let random = name.strip_prefix("image-builder.local/alice/shop:0123456-");
        let random = random.unwrap_or_else(|| panic!("{name}"));
        assert!(random.len() == RANDOM_DIGITS && random.bytes().all(|b| b.is_ascii_hexdigit()));
        assert!(is_local(&name));
    }

    #[test]
    fn no_two_names_are_the_same() {
        let reference = reference("alice", "shop");
        let names: std::collections::HashSet<_> = (0..1000).map(|_| new_name(&reference)).collect();
        assert_eq!(names.len(), 1000);
    }

    #[test]
    fn names_of_users_and_applications_are_those_of_the_registry() {
        for (user, application) in [("Alice B", "a/b"), ("日本", "x:y"), ("", "-")] {
            let reference = reference(user, application);
            let name = new_name(&reference);
            let (repository, _) = name.rsplit_once(':').expect("a tag");
            assert_eq!(repository, format!("{LOCAL_REGISTRY}/{}", reference.repository));
        }
    }

    #[test]
    fn a_registry_whose_name_begins_alike_is_another_one() {
        for name in
            ["image-builder.localhost/a/b:c", "image-builder.local", "a/image-builder.local/b"]
        {
            assert!(!is_local(name), "{name}");
        }
    }
}
