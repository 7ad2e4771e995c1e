//! The planner in memory.

use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::request::{BuilderKind, PlanRequest};
use image_builder_actors::testing::conformance::planner::{Source, plan, refusal};
use image_builder_actors::testing::planner::FakePlanner;

image_builder_actors::planner_conformance!(FakePlanner::default());

#[tokio::test(flavor = "multi_thread")]
async fn the_planner_in_memory_fails_waits_and_panics_as_its_script_says() {
    let planner = FakePlanner::default();
    let source = Source::of(&[("Dockerfile", "FROM scratch\n")]);
    let fault = Fault::new(StageName::Builder, Reason::DiskLow, "the disk is nearly full");
    planner.script.fail(2, fault.clone());
    for _ in 0..2 {
        assert_eq!(refusal(&planner, &source, PlanRequest::default()).await, fault);
    }

    let gate = planner.script.wait();
    let waiting = plan(&planner, &source, PlanRequest::default());
    let ((), held) = tokio::join!(
        async {
            gate.reached().await;
            assert_eq!(planner.calls.wait_for(3).await.len(), 3);
            gate.open();
        },
        waiting
    );
    assert_eq!(held.builder, BuilderKind::Dockerfile);

    planner.script.panic();
    let clone = planner.clone();
    let panicking = tokio::spawn(async move {
        let source = Source::of(&[("Dockerfile", "FROM scratch\n")]);
        plan(&clone, &source, PlanRequest::default()).await
    });
    assert!(panicking.await.expect_err("its script says so").is_panic());
    assert_eq!(planner.calls.all(), ["build"; 4]);
}
