//! Secrets that a real build leaves in its image.

use std::sync::Arc;
use std::time::{Duration, Instant};

use image_builder::engine::settings::BuildSettings;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::secret::{Redactor, Secret, Tripwire};
use image_builder_actors::ports::{BuildOrder, Exposed, ImageBuilder};

use super::world::{Notes, RealWorld};
use crate::registry::unique;

/// The step that makes a layer with a secret, and the one that takes it out again.
fn leaking(copy: &str) -> String {
    format!("RUN --mount=type=secret,id=it : {}; {copy}\nRUN rm -rf /leak", unique())
}

struct Build {
    order: BuildOrder,
    secret: String,
}

impl Build {
    fn of(world: &RealWorld, steps: &str) -> Self {
        let secret = format!("s3cr3t/{}", unique());
        let mut order = world.dockerfile(&steps.replace("SECRET", &secret));
        order.plan.secrets.insert("it".to_owned(), Secret::new(secret.clone()));
        Self { order, secret }
    }

    async fn searched(&self, world: &RealWorld, files: bool) -> (Option<Exposed>, Vec<String>) {
        let (image, _) = world.build(&self.order).await;
        let image = image.expect("the build is good");
        let wanted = Tripwire::new([("it".to_owned(), Secret::new(self.secret.clone()))]);
        let notes = Arc::new(Notes::default());
        let log = BuildLog::new("b", Redactor::default()).with_listener(notes.clone());
        let found = world.engine.search(&image, &wanted, files, &log).await;
        (found.expect("the engine has it"), notes.all())
    }

    async fn place(&self, world: &RealWorld, files: bool) -> Option<String> {
        let (found, _) = self.searched(world, files).await;
        found.map(|found| found.place)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_a_step_copies_is_found_though_a_later_step_removes_it() {
    let world = RealWorld::new().await;
    for (copy, file) in [
        ("mkdir /leak; cp /run/secrets/it /leak/copy", "`/leak/copy`"),
        ("mkdir /leak; base64 -w0 /run/secrets/it > /leak/encoded", "`/leak/encoded`"),
        (
            "mkdir /leak; { head -c 200000 /dev/zero; cat /run/secrets/it; } > /leak/deep",
            "/leak/deep",
        ),
        ("mkdir /leak; ln -s \"$(cat /run/secrets/it)\" /leak/link", "`/leak/link`"),
    ] {
        let build = Build::of(&world, &leaking(copy));
        let place = build.place(&world, true).await.unwrap_or_else(|| panic!("not found: {copy}"));
        assert!(place.contains(file) && place.contains("the step `"), "{place}");
        assert!(!place.contains(&build.secret), "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_what_an_image_tells_of_itself_is_found_without_its_files() {
    let world = RealWorld::new().await;
    for (steps, place) in [
        ("ENV KEY=SECRET", "the variable `KEY`"),
        ("LABEL note=SECRET", "the label `note`"),
        ("CMD [\"sh\", \"-c\", \"echo SECRET\"]", "its `Cmd`"),
        ("ARG KEY=SECRET\nRUN echo 1", "its history, at step "),
    ] {
        let build = Build::of(&world, steps);
        let found =
            build.place(&world, false).await.unwrap_or_else(|| panic!("not found: {steps}"));
        assert!(found.starts_with(place) && !found.contains(&build.secret), "{found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_only_mounted_is_found_nowhere() {
    let world = RealWorld::new().await;
    let step = format!("RUN --mount=type=secret,id=it : {}; cat /run/secrets/it | wc -c", unique());
    let started = Instant::now();
    let (found, notes) = Build::of(&world, &step).searched(&world, true).await;
    assert_eq!((found, notes), (None, vec![]), "after {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_or_takes_too_long_is_not_searched_and_the_log_says_so() {
    for (limits, why) in [
        (Limits { searched_image_bytes: 1 << 20, ..Limits::default() }, "more than 1 MiB"),
        (Limits { search_time: Duration::ZERO, ..Limits::default() }, "longer than 0 s"),
    ] {
        let settings = BuildSettings { limits, ..BuildSettings::default() };
        let world = RealWorld::with(settings).await;
        let build = Build::of(&world, &leaking("mkdir /leak; cp /run/secrets/it /leak/copy"));
        let (found, notes) = build.searched(&world, true).await;
        assert_eq!(found, None);
        assert!(notes.len() == 1 && notes[0].contains(why), "{notes:?}");
    }
}
