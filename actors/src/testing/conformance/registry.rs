//! What every registry promises.

use std::collections::BTreeMap;

use crate::model::build_log::BuildLog;
use crate::model::fault::{Reason, StageName};
use crate::model::image::{RegistryImage, digest_of};
use crate::model::reference::ImageReference;
use crate::model::secret::{Redactor, Secret, Tripwire};
use crate::ports::Registry;

/// A registry, and a way to fill it.
pub trait World {
    fn registry(&self) -> &dyn Registry;
    /// A reference in a repository that has nothing yet.
    fn reference(&self) -> ImageReference;
    /// Puts an image there that has a content of its own and these labels.
    fn store(
        &self,
        reference: &ImageReference,
        labels: BTreeMap<String, String>,
    ) -> impl Future<Output = RegistryImage> + Send;
    /// The same registry where it moves no tag, and its name there.
    fn with_immutable_tags(&self) -> impl Future<Output = (Box<dyn Registry>, String)> + Send;
    /// A registry out of reach, and a reference in it.
    fn out_of_reach(&self) -> (Box<dyn Registry>, ImageReference);
}

/// Makes a test of each promise, each in a world of its own.
#[macro_export]
macro_rules! registry_conformance {
    ($world:expr) => {
        $crate::conformance! {
            registry, $world,
            what_was_never_stored_is_not_found,
            an_image_is_found_by_tag_and_by_digest,
            a_further_tag_is_put_on_an_image_that_is_there_and_on_no_other,
            the_labels_of_an_image_are_told,
            a_secret_that_an_image_shows_is_found_and_its_place_named,
            an_image_of_one_repository_is_not_found_in_another,
            a_tag_follows_the_last_image_and_the_digest_stays,
            an_immutable_tag_is_put_where_it_stands_and_moved_nowhere,
            a_registry_out_of_reach_is_down,
        }
    };
}

fn no_labels() -> BTreeMap<String, String> {
    BTreeMap::new()
}

pub async fn what_was_never_stored_is_not_found(world: &impl World) {
    let reference = world.reference();
    assert_eq!(world.registry().find(&reference).await, Ok(None));
    let digest = digest_of(b"of nothing in particular");
    assert_eq!(world.registry().find(&reference.with_tag(&digest)).await, Ok(None));
}

pub async fn an_image_is_found_by_tag_and_by_digest(world: &impl World) {
    let reference = world.reference();
    let stored = world.store(&reference, no_labels()).await;
    assert!(stored.size_bytes > 0);
    for tag in [&reference.tag, &stored.digest] {
        let found = world.registry().find(&reference.with_tag(tag)).await;
        assert_eq!(found, Ok(Some(stored.clone())), "{tag}");
    }
    assert_eq!(world.registry().find(&reference.with_tag("other")).await, Ok(None));
}

pub async fn a_further_tag_is_put_on_an_image_that_is_there_and_on_no_other(world: &impl World) {
    let reference = world.reference();
    let stored = world.store(&reference, no_labels()).await;
    let tags = ["other".to_owned(), "further".to_owned()];
    let refused = world.registry().tag(&stored, &reference, &tags).await;
    assert_eq!(refused, Ok(Vec::new()));
    for tag in &tags {
        let found = world.registry().find(&reference.with_tag(tag)).await;
        assert_eq!(found, Ok(Some(stored.clone())), "{tag}");
    }

    let elsewhere = world.reference();
    let refused = world.registry().tag(&stored, &elsewhere, &tags).await;
    let refused = refused.expect("it can be asked").into_iter().map(|refused| refused.tag);
    assert_eq!(refused.collect::<Vec<_>>(), tags);
    assert_eq!(world.registry().find(&elsewhere.with_tag(&tags[0])).await, Ok(None));
}

pub async fn the_labels_of_an_image_are_told(world: &impl World) {
    let reference = world.reference();
    let labels = BTreeMap::from([("a.b/c".to_owned(), "d \"e\" ä".to_owned())]);
    let stored = world.store(&reference, labels.clone()).await;
    assert_eq!(world.registry().labels(&reference, &stored).await, Ok(labels));

    let missing = digest_of(b"of nothing in particular");
    let missing = RegistryImage { digest: missing.clone(), image_id: missing, ..stored };
    let fault = world.registry().labels(&reference, &missing).await;
    assert_eq!(fault.expect_err("there is none").reason, Reason::RegistryFailed);
}

pub async fn a_secret_that_an_image_shows_is_found_and_its_place_named(world: &impl World) {
    let reference = world.reference();
    let labels = BTreeMap::from([("npm".to_owned(), "_authToken=hush-hush-hush".to_owned())]);
    let stored = world.store(&reference, labels).await;
    let progress = BuildLog::new("a build", Redactor::default());
    for (secret, place) in [("hush-hush-hush", Some("the label `npm`")), ("quite-another", None)] {
        let wanted = Tripwire::new([("it".to_owned(), Secret::new(secret))]);
        let found = world.registry().search(&stored, &reference, &wanted, false, &progress).await;
        let found = found.expect("it can be asked").map(|found| (found.secret, found.place));
        assert_eq!(found, place.map(|place| ("it".to_owned(), place.to_owned())), "{secret}");
    }
}

pub async fn an_image_of_one_repository_is_not_found_in_another(world: &impl World) {
    let reference = world.reference();
    world.store(&reference, no_labels()).await;
    let repository = world.reference().repository;
    let elsewhere = ImageReference { repository, ..reference };
    assert_eq!(world.registry().find(&elsewhere).await, Ok(None));
}

pub async fn a_tag_follows_the_last_image_and_the_digest_stays(world: &impl World) {
    let reference = world.reference();
    let old = world.store(&reference, no_labels()).await;
    let new = world.store(&reference, no_labels()).await;
    assert_ne!(old.digest, new.digest);
    assert_eq!(world.registry().find(&reference).await, Ok(Some(new)));
    let by_digest = reference.with_tag(&old.digest);
    assert_eq!(world.registry().find(&by_digest).await, Ok(Some(old)));
}

pub async fn an_immutable_tag_is_put_where_it_stands_and_moved_nowhere(world: &impl World) {
    let reference = world.reference();
    let old = world.store(&reference, no_labels()).await;
    let new = world.store(&reference.with_tag("other"), no_labels()).await;
    let (registry, name) = world.with_immutable_tags().await;
    let there = ImageReference { registry: name, ..reference.clone() };
    let tag = [reference.tag.clone()];
    assert_eq!(registry.tag(&old, &there, &tag).await, Ok(Vec::new()));
    let fault = registry.tag(&new, &there, &tag).await.expect_err("it stands for another");
    assert_eq!(fault.reason, Reason::RegistryRefused, "{fault}");
    assert!(fault.message.contains("immutable"), "{fault}");
    assert_eq!(world.registry().find(&reference).await, Ok(Some(old)));
}

pub async fn a_registry_out_of_reach_is_down(world: &impl World) {
    let (registry, reference) = world.out_of_reach();
    let fault = registry.find(&reference).await.expect_err("nothing is there");
    assert_eq!((fault.stage, fault.reason), (StageName::Pusher, Reason::RegistryDown), "{fault}");
}
