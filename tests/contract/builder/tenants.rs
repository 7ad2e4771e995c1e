//! What users of one engine have of each other's builds.

use image_builder::engine::docker::{DockerEngine, DockerSettings, Tenancy};
use image_builder::engine::settings::BuildSettings;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::secret::{Redactor, Secret};
use image_builder_actors::ports::ImageBuilder;

use super::world::{BASE, RealWorld};
use crate::registry::{OPEN, unique};

/// A world that keeps users apart; `None` = this engine cannot, and says so when it is to build.
async fn strict() -> Option<RealWorld> {
    let host = std::env::var("DOCKER_HOST").unwrap_or(DockerSettings::default().host);
    let settings = DockerSettings {
        host,
        builds: BuildSettings { tenancy: Tenancy::Strict, ..BuildSettings::default() },
        ..DockerSettings::default()
    };
    let engine = DockerEngine::connect(settings).expect("good settings");
    let mut world = RealWorld::new().await;
    let Err(fault) = engine.ping().await else {
        world.engine = engine;
        return Some(world);
    };
    assert_eq!(fault.reason, Reason::EngineDown, "{fault}");
    let order = world.small_order();
    let progress = BuildLog::new(&order.build_id, Redactor::default());
    let refused = engine.build(&order, &progress).await.expect_err("it keeps nobody apart");
    assert_eq!(refused, fault);
    for part in ["cannot keep users apart", "TENANCY=trusted"] {
        assert!(fault.message.contains(part), "{fault}");
    }
    None
}

fn said(output: &[String], start: &str) -> Option<String> {
    output.iter().find_map(|line| line.strip_prefix(start)).map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_ran_for_one_user_runs_again_for_another() {
    let world = RealWorld::new().await;
    let step = format!("RUN : {}; echo drawn $(tr -dc a-z < /dev/urandom | head -c 20)", unique());
    let (alice, bob) = (unique(), unique());
    let drawn = |user: &str| {
        let order = world.of(user, world.dockerfile(&step));
        let world = &world;
        async move { said(&world.output(&order).await, "drawn ") }
    };
    let first = drawn(&alice).await.expect("it ran");
    assert_eq!(drawn(&alice).await, None, "it was cached");
    assert_ne!(drawn(&bob).await.expect("it ran again"), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_runs_again_with_another_secret() {
    let world = RealWorld::new().await;
    let user = unique();
    let step = format!(
        "RUN --mount=type=secret,id=it : {}; echo ran with $(cat /run/secrets/it 2>/dev/null | wc -c)",
        unique()
    );
    let ran = |secret: Option<&str>| {
        let mut order = world.of(&user, world.dockerfile(&step));
        if let Some(secret) = secret {
            order.plan.secrets.insert("it".to_owned(), Secret::new(secret));
        }
        let world = &world;
        async move { said(&world.output(&order).await, "ran with ") }
    };
    assert_eq!(ran(Some("one-secret")).await.as_deref(), Some("10"));
    assert_eq!(ran(Some("one-secret")).await, None, "it was cached");
    assert_eq!(ran(Some("other-secret")).await.as_deref(), Some("12"));
    assert_eq!(ran(None).await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_mount_is_its_users_own_whatever_a_request_asks_for() {
    let world = RealWorld::new().await;
    let (cache, alice, bob) = (unique(), unique(), unique());
    let kept = |user: &str, name_space: Option<&str>| {
        let mut order = world.of(
            user,
            world.dockerfile(&format!(
                "RUN --mount=type=cache,id={cache},target=/c : {}; echo has $(ls /c | wc -l); touch /c/kept",
                unique()
            )),
        );
        if let Some(name_space) = name_space {
            let argument = "BUILDKIT_CACHE_MOUNT_NS".to_owned();
            order.plan.build_args.insert(argument, name_space.to_owned());
        }
        let world = &world;
        async move { said(&world.output(&order).await, "has ").expect("it ran") }
    };
    assert_eq!(kept(&alice, None).await, "0");
    assert_eq!(kept(&alice, None).await, "1");
    assert_eq!(kept(&bob, None).await, "0");
    assert_eq!(kept(&alice, Some("elsewhere")).await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_keeps_nothing_of_what_tells_users_apart() {
    let world = RealWorld::new().await;
    let order = world.dockerfile(&format!("RUN : {}; cat /etc/hosts", unique()));
    let (built, progress) = world.build(&order).await;
    let image = built.expect("the build is good");
    let seen = progress.tail().join("\n");
    assert!(seen.contains(".image-builder.invalid"), "{seen}");
    let docker = world.engine.docker();
    let history = docker.image_history(&image.id).await.expect("a history");
    let config = docker.inspect_image(&image.id).await.expect("it is there");
    let kept = format!("{history:?} {config:?}");
    assert!(!kept.contains("image-builder.invalid"), "{kept}");
    let run = ["run", "--rm", "--network", "none", &image.id, "cat", "/etc/hosts"];
    let ran = std::process::Command::new("/usr/bin/docker").args(run).output();
    let hosts = String::from_utf8(ran.expect("docker is installed").stdout).expect("text");
    assert!(!hosts.contains("image-builder.invalid"), "{hosts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_another_user_are_out_of_reach() {
    let Some(world) = strict().await else { return };
    let (alice, bob) = (unique(), unique());
    let order = world.of(&alice, world.small_order());
    let image = world.build(&order).await.0.expect("the build is good");
    let progress = BuildLog::new(&order.build_id, Redactor::default());
    let pushed = world.engine.push(&image, &order.reference, &progress).await;
    pushed.expect("the registry takes it");
    let local = super::world::names_of(&world.engine, &image.id).await.swap_remove(0);
    let elsewhere = order.reference.to_string().replace("localhost", "127.0.0.1");
    for name in [order.reference.to_string(), local, elsewhere] {
        for text in
            [format!("FROM {name}\nENV a=1\n"), format!("FROM scratch\nCOPY --from={name} / /\n")]
        {
            let fault = world.fault(&world.of(&bob, world.order(&[("Dockerfile", &text)]))).await;
            assert_eq!(fault.reason, Reason::ForbiddenSource, "{text}: {fault}");
            assert!(fault.message.contains(&name), "{text}: {fault}");
        }
    }
    let own = format!("FROM {}\nENV a=1\n", order.reference);
    world.output(&world.of(&alice, world.order(&[("Dockerfile", &own)]))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_of_the_engines_machine_are_no_source() {
    let Some(world) = strict().await else { return };
    let registry = format!("http://{OPEN}/v2/_catalog");
    // Names that lead to this machine, by their own choice or by a redirect, are not looked up at all.
    for address in [
        registry.as_str(),
        "http://2130706433:5000/v2/",
        "http://registry:5000/v2/",
        "http://127.0.0.1.nip.example:5000/v2/",
        "https://93.184.216.34/redirect",
        "https://example.com/x.git",
    ] {
        let text = format!("FROM scratch\nADD {address} /x\n");
        let fault = world.fault(&world.order(&[("Dockerfile", &text)])).await;
        assert_eq!(fault.reason, Reason::ForbiddenSource, "{address}: {fault}");
        let shown = address.trim_start_matches("https://").trim_start_matches("http://");
        assert!(fault.message.contains(shown), "{fault}");
        assert!(fault.message.contains("BUILDER_ALLOW_HOSTS"), "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_engines_own_front_end_reads_a_dockerfile() {
    let Some(world) = strict().await else { return };
    let text = |front_end: &str| format!("# syntax={front_end}\nFROM {BASE}\nRUN : {}\n", unique());
    let mut order = world.order(&[("Dockerfile", &text("docker/dockerfile:1"))]);
    for (name, value) in [("BUILDKIT_SYNTAX", "evil.example/frontend"), ("https_proxy", "http://x")]
    {
        order.plan.build_args.insert(name.to_owned(), value.to_owned());
    }
    world.output(&order).await;
    let fault = world.fault(&world.order(&[("Dockerfile", &text("evil.example/frontend"))])).await;
    assert_eq!(fault.reason, Reason::InvalidPlan, "{fault}");
    assert!(fault.message.contains("`evil.example/frontend`"), "{fault}");
}
