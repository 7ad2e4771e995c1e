//! Several hosts: which of them builds, and what it costs that one dies.

use std::time::{Duration, Instant};

use image_builder_actors::model::fault::Reason;

use crate::world::{Build, builds, fleet, hosts, own_hosts, unique, until_running};

/// A build that does not end, and what its process has in its command line.
fn endless() -> (Build, String) {
    let mark = unique();
    (Build::from_base(&format!("RUN sh -c 'sleep 600; : {mark}'")), mark)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_dies_costs_its_build_a_try_and_the_next_one_goes_elsewhere() {
    let all = hosts().await;
    let fleet = fleet(&[&all[0], &all[1]], builds());
    let mut hosts = all.map(Some);
    let (build, mark) = endless();
    let dying = async {
        until_running(&mark).await;
        let in_hand = fleet.in_hand();
        let busy = in_hand.iter().position(|(_, builds)| *builds == 1).expect("one has it");
        hosts[busy] = None;
        (busy, Instant::now())
    };
    let ((built, log), (busy, died)) = tokio::join!(build.on(&fleet), dying);
    let fault = built.expect_err("its host is gone");
    assert!(fault.engine_died && fault.reason == Reason::EngineDown, "{fault}\n{log}");
    assert!(died.elapsed() < Duration::from_secs(10), "{:?}", died.elapsed());

    let again = Build::from_base(&format!("RUN echo {}", unique())).in_place_of(&build);
    again.digest(&fleet).await;
    assert!(fleet.look().await.is_ok(), "one of both is enough");
    let names = fleet.hosts();
    assert!(fleet.look_at(&names[busy]).await.is_err());
    assert!(fleet.look_at(&names[1 - busy]).await.is_ok());

    // Where both are gone nothing is built, and no build is blamed.
    let mut last = hosts[1 - busy].take().expect("it was there");
    let address = last.bridge.address;
    last.bridge.cut().await;
    let (built, _) = again.on(&fleet).await;
    let fault = built.expect_err("there is no host");
    assert!(fault.reason == Reason::EngineDown && !fault.engine_died, "{fault}");
    assert!(fleet.look().await.is_err());

    // One that is there again is asked again.
    last.come_back(address).await;
    again.digest(&fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_stays_where_its_cache_is_unless_that_host_has_enough_to_do() {
    // With another build on its base image beside it, an engine may do a step again (moby/buildkit#6954).
    let [one, other] = own_hosts().await;
    let fleet = fleet(&[&one, &other], builds());
    for _ in 0..3 {
        let build = Build::from_base(&format!("RUN echo {}", unique()));
        build.digest(&fleet).await;
        let (_, log) = build.digest(&fleet).await;
        assert!(log.contains("CACHED [2/2] RUN"), "{log}");
    }

    let ((first, at_first), (second, at_second)) = (endless(), endless());
    let second = second.in_place_of(&first);
    let both_run = async {
        until_running(&at_first).await;
        until_running(&at_second).await;
        assert!(fleet.in_hand().iter().all(|(_, builds)| *builds == 1), "each has one");
    };
    tokio::select! {
        ended = async { tokio::join!(first.on(&fleet), second.on(&fleet)) } => panic!("{ended:?}"),
        () = both_run => {}
    }
    assert!(fleet.in_hand().iter().all(|(_, builds)| *builds == 0), "both were let go");
}
