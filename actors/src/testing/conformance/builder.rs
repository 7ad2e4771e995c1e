//! What every builder promises.

use std::time::Duration;

use futures_util::FutureExt;

use crate::model::build_log::BuildLog;
use crate::model::fault::{Kind, Reason, StageName};
use crate::model::image::{BuiltImage, RegistryImage, is_digest};
use crate::model::reference::ImageReference;
use crate::model::secret::{Redactor, Secret, Tripwire};
use crate::ports::{BuildOrder, ImageBuilder};
use crate::testing::builder::on_engine;

/// Longer than a build takes to begin on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A builder that leaves images on its engine, a registry that it pushes to, and things to build.
pub trait World {
    fn builder(&self) -> &dyn ImageBuilder;
    /// A builder whose engine is out of reach.
    fn downed(&self) -> &dyn ImageBuilder;
    /// A build that works.
    fn good(&self) -> BuildOrder;
    /// A build that works, of an image that is soon pushed.
    fn small(&self) -> BuildOrder;
    /// A build that has `secret`, and writes `the secret is <it>`.
    fn babbling(&self, secret: &str) -> BuildOrder;
    /// A build that writes `last words` and then fails in a step with `exit 3`.
    fn failing(&self) -> BuildOrder;
    /// A build that can never work.
    fn senseless(&self) -> BuildOrder;
    /// A build that does not end.
    fn endless(&self) -> BuildOrder;
    fn until_running(&self, order: &BuildOrder) -> impl Future<Output = ()> + Send;
    fn until_stopped(&self, order: &BuildOrder) -> impl Future<Output = ()> + Send;
    /// The engine no longer has this image.
    fn lose(&self, image: &BuiltImage) -> impl Future<Output = ()> + Send;
    /// A reference in a repository that has nothing yet.
    fn reference(&self) -> ImageReference;
    /// What the registry has under a reference.
    fn stored(
        &self,
        reference: &ImageReference,
    ) -> impl Future<Output = Option<RegistryImage>> + Send;
    /// A reference in a registry that is out of reach from now on.
    fn reference_out_of_reach(&self) -> ImageReference;
}

/// Makes a test of each promise, each in a world of its own.
#[macro_export]
macro_rules! builder_conformance {
    ($world:expr) => {
        $crate::conformance! {
            builder, $world,
            a_build_gives_an_image_of_the_orders_key_and_builder,
            the_same_order_twice_gives_the_same_image,
            an_image_is_found_by_its_key_once_it_is_built,
            an_image_of_somebody_else_is_not_found,
            what_a_build_writes_is_told_without_its_secrets,
            it_is_told_when_only_the_image_is_left_to_be_stored,
            a_failing_step_is_a_build_fault_that_names_it,
            the_same_failure_has_the_same_step_and_message_each_time,
            a_plan_that_can_never_work_is_the_users_fault,
            an_engine_that_is_out_of_reach_is_a_capacity_fault,
            dropping_a_build_stops_it,
            an_engine_is_claimed_by_one_at_a_time,
            a_failing_build_does_not_disturb_another,
            a_pushed_image_is_in_the_registry_under_the_digest_that_is_told,
            an_image_that_is_pushed_twice_keeps_its_digest,
            an_image_that_the_engine_has_lost_cannot_be_pushed,
            a_secret_that_an_image_shows_is_found_and_its_place_named,
            an_image_that_the_engine_has_lost_is_not_taken_for_a_searched_one,
            a_push_to_a_registry_out_of_reach_is_a_capacity_fault,
        }
    };
}

fn progress(order: &BuildOrder) -> BuildLog {
    BuildLog::new(&order.build_id, Redactor::default())
}

async fn built(world: &impl World, order: &BuildOrder) -> BuiltImage {
    let location = world.builder().build(order, &progress(order)).await;
    on_engine(location.expect("the build is good"))
}

pub async fn a_build_gives_an_image_of_the_orders_key_and_builder(world: &impl World) {
    let order = world.good();
    let image = built(world, &order).await;
    assert_eq!((&image.key, image.builder), (&order.key, order.plan.builder));
    assert!(is_digest(&image.id), "{}", image.id);
}

pub async fn the_same_order_twice_gives_the_same_image(world: &impl World) {
    let order = world.good();
    let first = built(world, &order).await;
    assert_eq!(built(world, &order).await, first);
}

pub async fn an_image_is_found_by_its_key_once_it_is_built(world: &impl World) {
    let order = world.good();
    let find = || world.builder().find(&order.key, &order.reference);
    assert_eq!(find().await, Ok(None));
    let image = built(world, &order).await;
    assert_eq!(find().await, Ok(Some(image)));
}

pub async fn an_image_of_somebody_else_is_not_found(world: &impl World) {
    let order = world.good();
    built(world, &order).await;
    let repository = format!("{}-and-more", order.reference.repository);
    let elsewhere = ImageReference { repository, ..order.reference };
    assert_eq!(world.builder().find(&order.key, &elsewhere).await, Ok(None));
}

pub async fn what_a_build_writes_is_told_without_its_secrets(world: &impl World) {
    let order = world.babbling("hush-hush-hush");
    let progress = BuildLog::new(&order.build_id, Redactor::new([Secret::new("hush-hush-hush")]));
    world.builder().build(&order, &progress).await.expect("the build is good");
    let tail = progress.tail().join("\n");
    assert!(tail.contains("the secret is [secret]"), "{tail}");
    assert!(!tail.contains("hush"), "{tail}");
}

pub async fn it_is_told_when_only_the_image_is_left_to_be_stored(world: &impl World) {
    let told = |progress: &BuildLog| progress.until_storing().now_or_never().is_some();
    let (good, failing) = (world.good(), world.failing());
    let (of_good, of_failing) = (progress(&good), progress(&failing));
    assert!(!told(&of_good));
    world.builder().build(&good, &of_good).await.expect("the build is good");
    assert!(told(&of_good));
    world.builder().build(&failing, &of_failing).await.expect_err("it fails");
    assert!(!told(&of_failing));
}

pub async fn a_failing_step_is_a_build_fault_that_names_it(world: &impl World) {
    let order = world.failing();
    let progress = progress(&order);
    let fault = world.builder().build(&order, &progress).await.expect_err("the step fails");
    assert_eq!((fault.stage, fault.reason), (StageName::Builder, Reason::BuildFailed));
    assert!(fault.message.contains("exit code 3"), "{}", fault.message);
    assert!(fault.step.is_some_and(|step| step.contains("exit 3")));
    assert!(progress.tail().contains(&"last words".to_owned()), "{:?}", progress.tail());
}

pub async fn the_same_failure_has_the_same_step_and_message_each_time(world: &impl World) {
    let order = world.failing();
    let first = world.builder().build(&order, &progress(&order)).await.expect_err("it fails");
    let second = world.builder().build(&order, &progress(&order)).await.expect_err("again");
    assert_eq!(first, second);
}

pub async fn a_plan_that_can_never_work_is_the_users_fault(world: &impl World) {
    let order = world.senseless();
    let built = world.builder().build(&order, &progress(&order)).await;
    let fault = built.expect_err("it is senseless");
    assert_eq!((fault.stage, fault.reason), (StageName::Builder, Reason::InvalidPlan));
    assert_eq!(fault.kind(), Kind::User);
}

pub async fn an_engine_that_is_out_of_reach_is_a_capacity_fault(world: &impl World) {
    let order = world.good();
    let fault = world.downed().build(&order, &progress(&order)).await.expect_err("it is down");
    assert_eq!((fault.stage, fault.reason), (StageName::Builder, Reason::EngineDown));
}

pub async fn an_engine_is_claimed_by_one_at_a_time(world: &impl World) {
    let claimed = async || world.builder().claim().await.expect("the engine is up");
    // Other tests of the same engine may have it.
    let claim = async || {
        loop {
            match claimed().await {
                Some(claim) => return claim,
                // Nothing tells when it is given up.
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let first = tokio::time::timeout(PATIENCE, claim()).await.expect("it is free in time");
    assert!(claimed().await.is_none());
    drop(first);
    tokio::time::timeout(PATIENCE, claim()).await.expect("it is free again in time");
    let order = world.good();
    let _claim = tokio::time::timeout(PATIENCE, claim()).await.expect("it is free in time");
    built(world, &order).await;
}

pub async fn dropping_a_build_stops_it(world: &impl World) {
    let order = world.endless();
    let progress = progress(&order);
    {
        let build = world.builder().build(&order, &progress);
        tokio::select! {
            ended = build => panic!("an endless build ended: {ended:?}"),
            running = tokio::time::timeout(PATIENCE, world.until_running(&order)) => {
                running.expect("the build begins in time");
            }
        }
    }
    tokio::time::timeout(Duration::from_secs(10), world.until_stopped(&order))
        .await
        .expect("a dropped build stops within seconds");
}

pub async fn a_failing_build_does_not_disturb_another(world: &impl World) {
    let (good, failing) = (world.good(), world.failing());
    let (good_progress, failing_progress) = (progress(&good), progress(&failing));
    let (good, failing) = tokio::join!(
        world.builder().build(&good, &good_progress),
        world.builder().build(&failing, &failing_progress),
    );
    assert!(good.is_ok(), "{good:?}");
    assert_eq!(failing.map_err(|fault| fault.reason), Err(Reason::BuildFailed));
    assert!(!good_progress.tail().contains(&"last words".to_owned()));
}

pub async fn a_pushed_image_is_in_the_registry_under_the_digest_that_is_told(world: &impl World) {
    let (order, reference) = (world.small(), world.reference());
    let image = built(world, &order).await;
    let pushed = world.builder().push(&image, &reference, &progress(&order)).await;
    let digest = pushed.expect("the push is good");
    let stored = world.stored(&reference).await.expect("it is there");
    assert_eq!(stored.digest, digest);
    assert!([&stored.image_id, &stored.digest].contains(&&image.id), "{stored:?} is not {image:?}");
    assert_eq!(world.stored(&reference.with_tag(&digest)).await, Some(stored));
}

pub async fn an_image_that_is_pushed_twice_keeps_its_digest(world: &impl World) {
    let (order, reference) = (world.small(), world.reference());
    let image = built(world, &order).await;
    let first = world.builder().push(&image, &reference, &progress(&order)).await;
    assert!(first.is_ok(), "{first:?}");
    let second = world.builder().push(&image, &reference.with_tag("2"), &progress(&order)).await;
    assert_eq!(first, second);
}

pub async fn an_image_that_the_engine_has_lost_cannot_be_pushed(world: &impl World) {
    let (order, reference) = (world.small(), world.reference());
    let image = built(world, &order).await;
    world.lose(&image).await;
    let pushed = world.builder().push(&image, &reference, &progress(&order)).await;
    let fault = pushed.expect_err("there is none");
    assert_eq!((fault.stage, fault.reason), (StageName::Pusher, Reason::EngineFailed), "{fault}");
    assert_eq!(world.stored(&reference).await, None);
}

fn tripwire(secret: &str) -> Tripwire {
    Tripwire::new([("its name".to_owned(), Secret::new(secret))])
}

pub async fn a_secret_that_an_image_shows_is_found_and_its_place_named(world: &impl World) {
    let mut order = world.small();
    order.labels.insert("note".to_owned(), "it is hush-hush-hush!".to_owned());
    let (image, log) = (built(world, &order).await, progress(&order));
    for files in [false, true] {
        let search = async |secret: &str| {
            let found = world.builder().search(&image, &tripwire(secret), files, &log).await;
            found.expect("the engine has it")
        };
        let found = search("hush-hush-hush").await.expect("it is there");
        assert_eq!(found.secret, "its name");
        assert!(found.place.contains("note") && !found.place.contains("hush"), "{found:?}");
        assert_eq!(search("another-secret").await, None);
    }
}

pub async fn an_image_that_the_engine_has_lost_is_not_taken_for_a_searched_one(world: &impl World) {
    let mut order = world.small();
    order.labels.insert("note".to_owned(), "hush-hush-hush".to_owned());
    let image = built(world, &order).await;
    world.lose(&image).await;
    let wanted = tripwire("hush-hush-hush");
    let found = world.builder().search(&image, &wanted, true, &progress(&order)).await;
    let fault = found.expect_err("there is none");
    assert_eq!((fault.stage, fault.reason), (StageName::Pusher, Reason::EngineFailed), "{fault}");
}

pub async fn a_push_to_a_registry_out_of_reach_is_a_capacity_fault(world: &impl World) {
    let order = world.small();
    let image = built(world, &order).await;
    let reference = world.reference_out_of_reach();
    let pushed = world.builder().push(&image, &reference, &progress(&order)).await;
    let fault = pushed.expect_err("nothing is there");
    assert_eq!((fault.stage, fault.reason), (StageName::Pusher, Reason::RegistryDown), "{fault}");
}
