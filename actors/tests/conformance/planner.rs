//! The planner in memory.

use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::request::{BuilderKind, PlanRequest};
use image_builder_actors::testing::conformance::planner::{Source, plan, refusal};
use image_builder_actors::testing::planner::FakePlanner;

image_builder_actors::planner_conformance!(FakePlanner::new());

#[tokio::test(flavor = "multi_thread")]
async fn the_planner_in_memory_fails_waits_and_panics_as_it_is_told() {
    let planner = FakePlanner::new();
    let source = Source::of(&[("Dockerfile", "FROM scratch\n")]);
    let fault = Fault::new(StageName::Builder, Reason::DiskLow, "the disk is nearly full");
    planner.fail(2, fault.clone());
    for _ in 0..2 {
        assert_eq!(refusal(&planner, &source, PlanRequest::default()).await, fault);
    }

    let gate = planner.hold();
    let waiting = plan(&planner, &source, PlanRequest::default());
    let ((), held) = tokio::join!(
        async {
            gate.reached().await;
            assert_eq!(planner.wait_for_calls(3).await.len(), 3);
            gate.open();
        },
        waiting
    );
    assert_eq!(held.builder, BuilderKind::Dockerfile);

    planner.panic();
    let told = planner.clone();
    let panicking = tokio::spawn(async move {
        let source = Source::of(&[("Dockerfile", "FROM scratch\n")]);
        plan(&told, &source, PlanRequest::default()).await
    });
    assert!(panicking.await.expect_err("it was told to panic").is_panic());
    assert_eq!(planner.calls().len(), 4);
    assert!(planner.calls().iter().all(|call| call.build_id == "build"));
}
