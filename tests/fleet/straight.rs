//! Images that BuildKit pushes by itself.

use std::sync::Arc;

use image_builder::engine::docker::{DockerEngine, DockerSettings, RegistryAuth, Tenancy};
use image_builder::engine::settings::{
    BuildSettings, Compression, Provenance, PushedImages, StraightPush,
};
use image_builder::registry::{RegistryClient, RegistryCredentials, RegistrySettings, RegistryUrl};
use image_builder_actors::delivery::artifacts::{Artifact, Images, Ready};
use image_builder_actors::delivery::seal::Seal;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::history::Planned;
use image_builder_actors::model::image::{ImageLocation, REVISION_LABEL, SOURCE_LABEL};
use image_builder_actors::model::platform::Platform;
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::request::{BuildRequest, PlanRequest};
use image_builder_actors::model::secret::{Redactor, Secret};
use image_builder_actors::ports::{ImageBuilder, Registry};
use image_builder_actors::testing::conformance::planner;

use crate::support::engine::BASE;
use crate::support::worker::{BINARY, Ended};
use crate::world::{Build, REGISTRY, builds, fleet, hosts, own_hosts, registry, stored, unique};

/// A registry that wants a password, and the credential for it.
const CLOSED: &str = "localhost:5001";
const USER: &str = "builder";
const PASSWORD: &str = "builder-secret";

/// Publishes what a build has pushed, for a request with these secrets.
async fn publish(
    build: &Build,
    builder: Arc<dyn ImageBuilder>,
    digest: String,
) -> Result<Ready, Fault> {
    let order = &build.order;
    let (user_id, application_id) = order.reference.repository.split_once('/').expect("two parts");
    let plan = PlanRequest { secrets: order.plan.secrets.clone(), ..PlanRequest::default() };
    let request = BuildRequest {
        user_id: user_id.to_owned(),
        application_id: application_id.to_owned(),
        ..planner::request(plan)
    };
    let images = Images {
        engine: builder,
        registry: Arc::new(registry()),
        registry_name: REGISTRY.to_owned(),
        seal: Seal::new(Secret::new("key")),
    };
    let artifact = Artifact {
        commit: order.reference.tag.clone(),
        planned: Planned { key: order.key.clone(), builder: order.plan.builder },
        location: ImageLocation::Pushed { digest },
        reused: false,
        labelled: true,
    };
    images.publish(&request, artifact, &BuildLog::new("a build", Redactor::default())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pushed_by_its_digest_read_back_and_only_then_tagged() {
    let [host, _] = own_hosts().await;
    let fleet = fleet(&[&host], builds());
    let build = Build::from_base(&format!("RUN echo {} > /made", unique()));
    let (digest, _) = build.digest(&fleet).await;
    let reference = &build.order.reference;
    assert_eq!(stored(reference, &reference.tag).await, None, "nobody has looked at it yet");
    let pushed = stored(reference, &digest).await.expect("it is there");

    let ready = publish(&build, Arc::new(fleet.clone()), digest.clone()).await.expect("published");
    assert_eq!(ready.image, pushed);
    assert_eq!(stored(reference, &reference.tag).await, Some(pushed));

    let (again, log) = build.digest(&fleet).await;
    assert_eq!(again, digest);
    assert!(log.contains("CACHED [2/2] RUN"), "{log}");
    let images = host.engine().docker(&["image", "ls", "--quiet", "--no-trunc"]);
    assert_eq!(images.lines().count(), 1, "the base image, and nothing that was built: {images}");

    fleet.tidy().await;
    assert!(*fleet.held().borrow() > 0, "it has something in its cache");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_shows_a_secret_is_never_tagged() {
    let [host, _] = hosts().await;
    let fleet = fleet(&[&host], builds());
    let (secret, mount) = (format!("s3cr3t-{}", unique()), "--mount=type=secret,id=it");
    let leaks = [
        (format!("RUN {mount} cp /run/secrets/it /leak && true"), "the file `/leak`"),
        (format!("RUN {mount} true\nENV LEAK={secret}"), "the variable `LEAK`"),
    ];
    for (steps, place) in leaks {
        let mut build = Build::from_base(&steps);
        build.order.plan.secrets.insert("it".to_owned(), Secret::new(secret.as_str()));
        let (digest, _) = build.digest(&fleet).await;
        let fault = publish(&build, Arc::new(fleet.clone()), digest).await.expect_err("it leaks");
        assert_eq!(fault.reason, Reason::SecretInImage, "{fault}");
        assert!(fault.message.contains(place) && !fault.message.contains(&secret), "{fault}");
        let reference = &build.order.reference;
        assert_eq!(stored(reference, &reference.tag).await, None);
    }
    let mut build = Build::from_base(&format!("RUN {mount} wc -c < /run/secrets/it > /length"));
    build.order.plan.secrets.insert("it".to_owned(), Secret::new(secret.as_str()));
    let (digest, _) = build.digest(&fleet).await;
    publish(&build, Arc::new(fleet), digest).await.expect("it shows nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_a_password_gets_it_by_the_session() {
    let [host, _] = hosts().await;
    let mut build = Build::of(&[("Dockerfile", "FROM scratch\nCOPY mark /\n"), ("mark", "x")]);
    build.order.reference = ImageReference { registry: CLOSED.to_owned(), ..build.order.reference };
    let auth = |password: &str| {
        let (host, username) = (CLOSED.to_owned(), USER.to_owned());
        Some(Arc::new(RegistryAuth { host, username, password: Secret::new(password) }))
    };
    let with = |push_auth| fleet(&[&host], BuildSettings { push_auth, ..builds() });

    let (digest, _) = build.digest(&with(auth(PASSWORD))).await;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let credentials =
        RegistryCredentials { username: USER.to_owned(), password: Secret::new(PASSWORD) };
    let url = RegistryUrl::parse(CLOSED).expect("an address");
    let settings =
        RegistrySettings { credentials: Some(credentials), ..RegistrySettings::new(url) };
    let client = RegistryClient::new(settings).expect("a client");
    let found = client.find(&build.order.reference.with_tag(&digest)).await;
    assert!(found.expect("the registry answers").is_some());

    for (push_auth, what) in [(auth("wrong-password"), "a wrong one"), (None, "none")] {
        let (built, _) = build.on(&with(push_auth)).await;
        let fault = built.expect_err(what);
        assert_eq!(fault.reason, Reason::RegistryRefused, "{what}: {fault}");
        assert!(!fault.message.contains("wrong-password"), "{fault}");
    }

    build.order.reference =
        ImageReference { registry: "localhost:1".to_owned(), ..build.order.reference };
    let (built, _) = build.on(&with(None)).await;
    let fault = built.expect_err("nobody listens there");
    assert_eq!(fault.reason, Reason::RegistryDown, "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_index_has_the_images_of_all_platforms() {
    let [host, _] = hosts().await;
    let fleet = fleet(&[&host], builds());
    let dockerfile = "FROM scratch\nARG TARGETARCH\nCOPY mark /$TARGETARCH\n";
    let mut build = Build::of(&[("Dockerfile", dockerfile), ("mark", &unique())]);
    let platform = |name| Platform::from_name(name).expect("a known one");
    build.order.plan.platforms = vec![platform("linux/amd64"), platform("linux/arm64")];
    let (digest, log) = build.digest(&fleet).await;
    assert!(log.contains("warning: the engine") && log.contains("`linux/arm64`"), "{log}");
    let index = manifest(&build.order.reference, &digest).await;
    let all = index["manifests"].as_array().expect("it is an index").iter();
    let mut architectures: Vec<_> =
        all.filter_map(|entry| entry["platform"]["architecture"].as_str()).collect();
    architectures.sort_unstable();
    assert_eq!(architectures, ["amd64", "arm64"]);
}

/// Builds whose images have all that only BuildKit gives them.
fn with_all() -> BuildSettings {
    let pushed = PushedImages {
        compression: Compression::Zstd,
        provenance: Some(Provenance::All),
        ..PushedImages::default()
    };
    BuildSettings { pushed, ..builds() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_has_zstd_layers_and_a_record_of_its_build_where_that_is_asked_for() {
    let [host, _] = hosts().await;
    let fleet = fleet(&[&host], with_all());
    let mut build = Build::of(&[
        ("Dockerfile", "FROM scratch\nARG COLOUR\nCOPY mark /mark\n"),
        ("mark", &unique()),
    ]);
    let colour = unique();
    build.order.plan.build_args.insert("COLOUR".to_owned(), colour.clone());
    for (label, value) in [(SOURCE_LABEL, "https://forge.example/a/b"), (REVISION_LABEL, "c0ffee")]
    {
        build.order.labels.insert(label.to_owned(), value.to_owned());
    }
    let (digest, _) = build.digest(&fleet).await;
    let reference = &build.order.reference;
    let index = manifest(reference, &digest).await;
    let [image, record] = index["manifests"].as_array().expect("an index").as_slice() else {
        panic!("an image and what is attached to it: {index}")
    };
    assert_eq!(record["annotations"]["vnd.docker.reference.digest"], image["digest"]);
    let image = manifest(reference, image["digest"].as_str().expect("a digest")).await;
    let layer = &image["layers"][0];
    assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+zstd", "{image}");

    let record = manifest(reference, record["digest"].as_str().expect("a digest")).await;
    let record = blob(reference, record["layers"][0]["digest"].as_str().expect("a digest")).await;
    for told in [&colour, "https://forge.example/a/b", "c0ffee"] {
        assert!(record.contains(told), "{told}: {record}");
    }
    let ready = publish(&build, Arc::new(fleet.clone()), digest.clone()).await.expect("published");
    assert_eq!(ready.image.digest, digest);
}

/// It is found in a layer that is compressed with zstd, and in a record of the build.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_attached_to_an_image_shows_no_secret_either() {
    let [host, _] = hosts().await;
    let fleet = fleet(&[&host], with_all());
    let secret = format!("hush-{}", unique());
    let dockerfile = "FROM scratch\nARG A\nCOPY mark /mark\n";
    for (mark, argument, place) in
        [(&secret, "plain", "the file `/mark`"), (&unique(), &*secret, "what is attached to it")]
    {
        let mut build = Build::of(&[("Dockerfile", dockerfile), ("mark", mark)]);
        build.order.plan.build_args.insert("A".to_owned(), argument.to_owned());
        build.order.plan.secrets.insert("it".to_owned(), Secret::new(secret.clone()));
        let (digest, _) = build.digest(&fleet).await;
        let refused = publish(&build, Arc::new(fleet.clone()), digest).await;
        let fault = refused.expect_err("it shows a secret");
        assert_eq!(fault.reason, Reason::SecretInImage, "{fault}");
        assert!(fault.message.contains(place), "{fault}");
    }
}

async fn manifest(reference: &ImageReference, digest: &str) -> serde_json::Value {
    let found = stored(reference, digest).await.expect("it is there");
    serde_json::from_slice(&found.manifest.bytes).expect("a manifest is JSON")
}

async fn blob(reference: &ImageReference, digest: &str) -> String {
    let url = format!("http://{REGISTRY}/v2/{}/blobs/{digest}", reference.repository);
    let asked = reqwest::get(url).await.expect("the registry answers");
    asked.text().await.expect("it is text")
}

/// A Docker Engine has the same within it, and needs to keep no image for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_docker_engine_with_containerds_store_pushes_straight_as_well() {
    let [host, _] = hosts().await;
    let settings = DockerSettings {
        host: host.engine().host(),
        builds: BuildSettings {
            tenancy: Tenancy::Trusted,
            network: Some("none".to_owned()),
            straight: Some(StraightPush { plain_http: false }),
            ..BuildSettings::default()
        },
        ..DockerSettings::default()
    };
    let engine = DockerEngine::connect(settings).expect("good settings");
    let build = Build::from_base(&format!("RUN echo {}", unique()));
    let (digest, _) = build.digest(&engine).await;
    publish(&build, Arc::new(engine), digest).await.expect("it is there");
    let images = host.engine().docker(&["image", "ls", "--quiet"]);
    assert_eq!(images.lines().count(), 1, "{images}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_builds_there_and_tags_what_was_pushed() {
    let [host, _] = hosts().await;
    let folder = tempfile::tempdir().expect("a temporary directory");
    let dockerfile = format!("FROM {BASE}\nRUN echo {} > /made\n", unique());
    std::fs::write(folder.path().join("Dockerfile"), dockerfile).expect("the directory is ours");
    let repository = format!("fleet-tests/{}", unique());
    let build = async |arguments: &[&str]| {
        let mut command = std::process::Command::new(BINARY);
        command
            .args(["build", "."].iter().chain(arguments))
            .current_dir(folder.path())
            .env_clear()
            .env("HOME", folder.path().join(".home"))
            .env("REGISTRY_URL", REGISTRY)
            .env("BUILDKIT_HOST", host.bridge.host())
            .env("BUILDER_NETWORK", "none")
            // Nobody listens there.
            .env("DOCKER_HOST", "unix:///nowhere/docker.sock");
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("it ends");
        Ended::from(output.expect("the program starts"))
    };
    let push = format!("--push={repository}:v1");
    let ended = build(&[push.as_str(), "--quiet"]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let reference = ImageReference {
        registry: REGISTRY.to_owned(),
        repository: repository.clone(),
        tag: "v1".to_owned(),
    };
    let pushed = stored(&reference, "v1").await.expect("it has its tag");
    assert_eq!(ended.stdout.trim(), format!("{REGISTRY}/{repository}@{}", pushed.digest));
    // These keep nothing that could have a name.
    for arguments in [&[][..], &["--tag", "shop:dev", push.as_str()]] {
        let ended = build(arguments).await;
        assert!(ended.code == 64 && ended.stderr.contains("BUILDKIT_HOST"), "{ended:?}");
    }
}
