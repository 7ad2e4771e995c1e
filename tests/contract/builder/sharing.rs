//! Builds that share their steps on the engine.

use std::time::Duration;

use futures_util::future::join_all;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::secret::Redactor;
use image_builder_actors::ports::ImageBuilder;

use super::world::RealWorld;
use crate::registry::unique;

/// The engine does a step once for all who ask for it. Whichever of them goes away meanwhile, and at whichever
/// moment: the others have their image.
#[tokio::test(flavor = "multi_thread")]
async fn a_build_goes_on_when_another_with_the_same_steps_is_stopped() {
    const ROUNDS: u32 = 20;
    let world = &RealWorld::new().await;
    let round = |number: u32| async move {
        let step = format!("COPY . /src\nRUN : {}; sleep 0.4", unique());
        let user = unique();
        let order = || world.of(&user, world.dockerfile(&step));
        let (stopped, wanted) = (order(), order());
        let build = |order| async move {
            let progress = BuildLog::new("b", Redactor::default());
            world.engine.build(order, &progress).await
        };
        let some_time = Duration::from_millis(u64::from(40 * number));
        let stop = tokio::time::timeout(some_time, build(&stopped));
        let (_, built) = tokio::join!(stop, build(&wanted));
        built.err().map(|fault| format!("stopped after {some_time:?}: {fault}"))
    };
    let mut failed = Vec::new();
    for rounds in (0..ROUNDS).collect::<Vec<_>>().chunks(4) {
        failed.extend(join_all(rounds.iter().copied().map(round)).await.into_iter().flatten());
    }
    assert_eq!(failed, Vec::<String>::new());
}

/// It tells one of them what the step wrote; each of the others asks again.
#[tokio::test(flavor = "multi_thread")]
async fn builds_that_fail_at_the_same_step_are_each_told_what_it_wrote() {
    let world = &RealWorld::new().await;
    let user = unique();
    let step = format!("RUN : {}; echo the cause >&2; sleep 1; exit 7", unique());
    let orders: Vec<_> = (0..3).map(|_| world.of(&user, world.dockerfile(&step))).collect();
    for (result, progress) in join_all(orders.iter().map(|order| world.build(order))).await {
        let fault = result.expect_err("the step fails");
        assert_eq!(fault.reason, Reason::BuildFailed, "{fault}");
        assert!(fault.message.contains("exit code 7"), "{fault}");
        assert!(fault.step.is_some_and(|step| step.contains("RUN")));
        assert!(progress.tail().contains(&"the cause".to_owned()), "{:?}", progress.tail());
    }
}

/// What they make is one image, which engines with containerd's store refuse to keep twice at once.
#[tokio::test(flavor = "multi_thread")]
async fn equal_builds_at_once_all_have_their_image() {
    let world = &RealWorld::new().await;
    let user = unique();
    let step = format!("RUN : {}; echo made > /made; sleep 0.3", unique());
    let orders: Vec<_> = (0..4).map(|_| world.of(&user, world.dockerfile(&step))).collect();
    for (result, _) in join_all(orders.iter().map(|order| world.build(order))).await {
        result.expect("each of them is built");
    }
}
