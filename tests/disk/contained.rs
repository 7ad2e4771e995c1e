//! Workers that do not see the engine's data directory: one in a container, as it is shipped, and
//! one whose engine is elsewhere.

use std::path::Path;
use std::sync::Arc;

use image_builder::engine::docker::disk::DiskGuard;
use image_builder::engine::docker::disk::size::Size;
use image_builder::engine::docker::{DockerEngine, DockerSettings, Tenancy};
use image_builder::engine::settings::BuildSettings;
use tokio::net::{TcpListener, UnixStream};

use crate::engine::SmallEngine;
use crate::orders::{MB, Order, guard, has, prune_for_room};
use crate::support::engine::DEBIAN;

async fn guard_of(host: String, data_dir: &Path) -> DiskGuard {
    let settings = DockerSettings {
        host,
        builds: BuildSettings { tenancy: Tenancy::Trusted, ..BuildSettings::default() },
        ..DockerSettings::default()
    };
    let engine = DockerEngine::connect(settings).expect("good settings");
    engine.ping().await.expect("the engine answers");
    guard(&Arc::new(engine), data_dir, prune_for_room)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_in_a_container_prunes_for_the_disk_that_its_volume_is_on() {
    let small = SmallEngine::start(1200).await;
    small.own.load(DEBIAN);
    let old = Order::of_bytes(200 * MB);
    old.build(&*small.engine).await.expect("the build is good");
    small.has_let_go().await;
    small.fill_up_to(100 * MB);

    // The worker is this test's own program, from where the engine sees it.
    let directory = tempfile::tempdir().expect("a directory");
    let (program, copy) = (std::env::current_exe(), directory.path().join("worker"));
    std::fs::copy(program.expect("a test knows its program"), &copy).expect("there is room");
    let program = format!("{}:/worker:ro", copy.display());
    let socket = format!("{}:/var/run/docker.sock", small.own.socket().display());
    let mut arguments = vec!["run", "--rm", "--network", "none", "--volume", "data:/data"];
    arguments.extend(["--volume", &program, "--volume", &socket, DEBIAN, "/worker"]);
    arguments.extend(["--exact", "contained::worker_in_a_container", "--ignored", "--nocapture"]);
    let output = small.own.docker(&arguments);
    assert!(output.contains("1 passed"), "{output}");
    assert!(!has(&small, &old).await);
    assert!(small.room().free > 450 * MB, "{} are free", Size(small.room().free));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs in a container"]
async fn worker_in_a_container() {
    let guard = guard_of(DockerSettings::default().host, Path::new("/data")).await;
    let complaint = guard.look().await.expect_err("the disk is nearly full");
    assert!(complaint.starts_with("the disk of DATA_DIR"), "{complaint}");
    assert_eq!(guard.rooms().await.len(), 1, "one disk is looked at once");
    assert_eq!(guard.make_room().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_elsewhere_is_not_pruned_for_room_here() {
    let small = SmallEngine::start(600).await;
    let old = Order::of_bytes(50 * MB);
    old.build(&*small.engine).await.expect("the build is good");
    small.fill_up_to(100 * MB);

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let host = format!("tcp://{}", listener.local_addr().expect("bound"));
    let socket = small.own.socket();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut engine = UnixStream::connect(&socket).await.expect("the engine listens");
            tokio::spawn(
                async move { tokio::io::copy_bidirectional(&mut client, &mut engine).await },
            );
        }
    });
    let guard = guard_of(host, small.disk()).await;
    assert!(guard.make_room().await.is_err(), "nothing here can be pruned");
    assert!(has(&small, &old).await);
}
