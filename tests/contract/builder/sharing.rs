//! Builds that share their steps on the engine.

use std::time::Duration;

use futures_util::future::join_all;
use image_builder_actors::model::build_log::BuildLog;
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
