//! The builder port.

mod docker;
mod proxy;
mod world;

use std::time::Duration;

use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Kind, Reason, StageName};
use image_builder_actors::model::secret::{Redactor, Secret};
use image_builder_actors::testing::builder::on_engine;

use world::{FakeWorld, RealWorld, World};

/// Longer than any of these builds takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

async fn a_build_gives_an_image_of_the_orders_key_and_builder(world: &impl World) {
    let order = world.good();
    let built = world.builder().build(&order, &progress(&order)).await;
    let image = on_engine(built.expect("the build is good"));
    assert_eq!((&image.key, image.builder), (&order.key, order.plan.builder));
    let digits = image.id.strip_prefix("sha256:").expect("an engine's id");
    assert!(digits.len() == 64 && digits.chars().all(|c| c.is_ascii_hexdigit()), "{digits}");
}

async fn the_same_order_twice_gives_the_same_image(world: &impl World) {
    let order = world.good();
    let first = world.builder().build(&order, &progress(&order)).await.expect("the build is good");
    let second = world.builder().build(&order, &progress(&order)).await.expect("it is good again");
    assert_eq!(first, second);
}

async fn what_a_build_writes_is_told_without_its_secrets(world: &impl World) {
    let order = world.babbling("hush-hush-hush");
    let progress = BuildLog::new(&order.build_id, Redactor::new([Secret::new("hush-hush-hush")]));
    world.builder().build(&order, &progress).await.expect("the build is good");
    let tail = progress.tail().join("\n");
    assert!(tail.contains("the secret is [secret]"), "{tail}");
    assert!(!tail.contains("hush"), "{tail}");
}

async fn a_failing_step_is_a_build_fault_that_names_it(world: &impl World) {
    let order = world.failing();
    let progress = progress(&order);
    let fault = world.builder().build(&order, &progress).await.expect_err("the step fails");
    assert_eq!((fault.stage, fault.reason), (StageName::Builder, Reason::BuildFailed));
    assert!(fault.message.contains("exit code 3"), "{}", fault.message);
    assert!(fault.step.is_some_and(|step| step.contains("exit 3")));
    assert!(progress.tail().contains(&"last words".to_owned()), "{:?}", progress.tail());
}

async fn the_same_failure_has_the_same_step_and_message_each_time(world: &impl World) {
    let order = world.failing();
    let first = world.builder().build(&order, &progress(&order)).await.expect_err("it fails");
    let second = world.builder().build(&order, &progress(&order)).await.expect_err("again");
    assert_eq!(first, second);
}

async fn a_plan_that_can_never_work_is_the_users_fault(world: &impl World) {
    let order = world.senseless();
    let fault =
        world.builder().build(&order, &progress(&order)).await.expect_err("it is senseless");
    assert_eq!((fault.stage, fault.reason), (StageName::Builder, Reason::InvalidPlan));
    assert_eq!(fault.kind(), Kind::User);
}

async fn an_engine_that_is_out_of_reach_is_a_capacity_fault(world: &impl World) {
    let order = world.good();
    let fault = world.downed().build(&order, &progress(&order)).await.expect_err("it is down");
    assert_eq!((fault.stage, fault.reason), (StageName::Builder, Reason::EngineDown));
}

async fn dropping_a_build_stops_it(world: &impl World) {
    let order = world.endless();
    let progress = progress(&order);
    {
        let build = world.builder().build(&order, &progress);
        tokio::select! {
            ended = build => panic!("an endless build ended: {ended:?}"),
            () = world.until_running(&order) => {}
        }
    }
    tokio::time::timeout(Duration::from_secs(10), world.until_stopped(&order))
        .await
        .expect("a dropped build stops within seconds");
}

async fn a_failing_build_does_not_disturb_another(world: &impl World) {
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

fn progress(order: &image_builder_actors::ports::BuildOrder) -> BuildLog {
    BuildLog::new(&order.build_id, Redactor::default())
}

/// Each behaviour, on the port in memory and on the real engine.
macro_rules! on_both {
    ($($behaviour:ident),* $(,)?) => {
        mod fake {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $behaviour() {
                let world = super::FakeWorld::new();
                let test = super::$behaviour(&world);
                tokio::time::timeout(super::PATIENCE, test).await.expect("the test ends in time");
            })*
        }
        mod real {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $behaviour() {
                let world = super::RealWorld::new().await;
                let test = super::$behaviour(&world);
                tokio::time::timeout(super::PATIENCE, test).await.expect("the test ends in time");
            })*
        }
    };
}

on_both!(
    a_build_gives_an_image_of_the_orders_key_and_builder,
    the_same_order_twice_gives_the_same_image,
    what_a_build_writes_is_told_without_its_secrets,
    a_failing_step_is_a_build_fault_that_names_it,
    the_same_failure_has_the_same_step_and_message_each_time,
    a_plan_that_can_never_work_is_the_users_fault,
    an_engine_that_is_out_of_reach_is_a_capacity_fault,
    dropping_a_build_stops_it,
    a_failing_build_does_not_disturb_another,
);
