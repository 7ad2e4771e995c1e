//! What one host knows, and another one that never built it.

use image_builder::engine::settings::{BuildSettings, CacheMode, CacheRegistry, PushedImages};
use image_builder_actors::model::reference::ImageReference;

use crate::support::engine::BASE;
use crate::world::{Build, REGISTRY, builds, fleet, own_hosts, stored, unique};

#[tokio::test(flavor = "multi_thread")]
async fn a_host_takes_from_the_registry_what_another_one_has_built() {
    let [one, other] = own_hosts().await;
    let prefix = format!("caches-{}", unique());
    let cache = |mode| {
        let name = format!("{REGISTRY}/{prefix}");
        let cache = Some(CacheRegistry { name, plain_http: false, mode });
        BuildSettings { cache, ..builds() }
    };
    let mark = unique();
    let build = Build::of(&[(
        "Dockerfile",
        &format!(
            "FROM {BASE} AS made\nRUN echo {mark} > /made\n\
             FROM {BASE}\nCOPY --from=made /made /\nRUN cat /made\n"
        ),
    )]);
    let (digest, log) = build.digest(&fleet(&[&one], cache(CacheMode::AllSteps))).await;
    assert!(!log.contains("warning"), "that there is no cache yet is no news: {log}");
    let kept = ImageReference {
        repository: format!("{prefix}/{}", build.order.reference.repository),
        ..build.order.reference.clone()
    };
    assert!(stored(&kept, "cache").await.is_some());

    let (again, log) = build.digest(&fleet(&[&other], cache(CacheMode::AllSteps))).await;
    for step in ["RUN echo", "RUN cat"] {
        let cached = log.lines().any(|line| line.starts_with("CACHED") && line.contains(step));
        assert!(cached, "{step}: {log}");
    }
    assert_eq!(again, digest);

    // A registry that cannot be read is a line in the log, and no more.
    let nowhere = CacheRegistry {
        name: "localhost:1/caches".to_owned(),
        plain_http: false,
        mode: CacheMode::Image,
    };
    let nowhere = BuildSettings { cache: Some(nowhere), ..builds() };
    let (_, log) = build.digest(&fleet(&[&one], nowhere)).await;
    assert!(log.contains("warning: the build cache"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_has_the_same_digest_on_hosts_that_know_nothing_of_each_other() {
    let [one, other] = own_hosts().await;
    let reproducible = || BuildSettings {
        pushed: PushedImages { reproducible: true, ..PushedImages::default() },
        ..builds()
    };
    let steps = format!(
        "COPY app /srv/app\nRUN mkdir /made && date +%s%N > /dev/null && echo {} > /made/it",
        unique()
    );
    let dockerfile = format!("FROM {BASE}\n{steps}\n");
    let build = Build::of(&[("Dockerfile", &dockerfile), ("app", "x")]);
    let (first, _) = build.digest(&fleet(&[&one], reproducible())).await;
    let (second, log) = build.digest(&fleet(&[&other], reproducible())).await;
    assert!(!log.contains("CACHED [3/3]"), "it has built it itself: {log}");
    assert_eq!(first, second);

    // Without it they differ, by their times.
    let (third, _) = build.digest(&fleet(&[&other], builds())).await;
    assert_ne!(third, second);
}
