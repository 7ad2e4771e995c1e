//! From an image on a real engine to a real registry: who sends what, and what is believed of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::Method;
use image_builder::engine::docker::{DockerEngine, DockerSettings, RegistryAuth};
use image_builder::engine::settings::BuildSettings;
use image_builder::registry::{RegistryClient, RegistrySettings};
use image_builder_actors::delivery::artifacts::{Artifact, Images, build_tag};
use image_builder_actors::delivery::seal::Seal;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::history::Planned;
use image_builder_actors::model::image::{
    BUILDER_LABEL, BuiltImage, ImageLocation, KEY_LABEL, REVISION_LABEL, RegistryImage,
};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::request::{BuildRequest, PlanRequest};
use image_builder_actors::model::secret::{Redactor, Secret};
use image_builder_actors::ports::Registry;
use image_builder_actors::testing::conformance::planner;

use crate::engine::{Engine, docker_engine, key};
use crate::http_server::{Answer, HttpServer, Request, answer};
use crate::registry::server::{PASSWORD, is_manifest, registry_that, scopes, token_flow};
use crate::registry::{
    CLOSED, CLOSED_PASSWORD, OPEN, client, reference_in, settings, with_password,
};
use crate::stand_in::with_immutable_tags;

/// What a worker pushes and looks with.
struct Worker {
    registry: Arc<RegistryClient>,
    images: Images,
}

impl Worker {
    fn new(settings: RegistrySettings) -> Self {
        let auth = settings.credentials.as_ref().map(|known| RegistryAuth {
            host: settings.url.server_address().to_owned(),
            username: known.username.clone(),
            password: known.password.clone(),
        });
        let push_auth = auth.map(Arc::new);
        let engine = docker_engine(BuildSettings { push_auth, ..BuildSettings::default() });
        let registry_name = settings.url.to_string();
        let registry = Arc::new(client(settings));
        let seal = Seal::new(Secret::new("key"));
        let images =
            Images { engine: Arc::new(engine), registry: registry.clone(), registry_name, seal };
        Self { registry, images }
    }

    /// Publishes an image for the request that this reference is made of.
    async fn publish(
        &self,
        image: &BuiltImage,
        reference: &ImageReference,
    ) -> Result<RegistryImage, Fault> {
        let request = request(reference);
        let progress = BuildLog::new(&request.build_id, Redactor::default());
        let artifact = Artifact {
            commit: reference.tag.clone(),
            planned: Planned { key: image.key.clone(), builder: image.builder },
            location: ImageLocation::OnEngine(image.clone()),
            reused: false,
            labelled: true,
        };
        let ready = self.images.publish(&request, artifact, &progress).await?;
        assert_eq!(ready.reference, *reference);
        Ok(ready.image)
    }
}

/// The request of a build whose image has this reference.
fn request(reference: &ImageReference) -> BuildRequest {
    let (user_id, application_id) = reference.repository.split_once('/').expect("two parts");
    BuildRequest {
        user_id: user_id.to_owned(),
        application_id: application_id.to_owned(),
        ..planner::request(PlanRequest::default())
    }
}

/// A registry, and an image on the engine that is to be pushed to it.
struct Push {
    worker: Worker,
    _engine: Engine,
    image: BuiltImage,
    reference: ImageReference,
}

impl Push {
    async fn to(settings: RegistrySettings) -> Self {
        let mut engine = Engine::connect().await;
        let (image, reference) = (engine.image().await, reference_in(&settings.url.to_string()));
        Self { worker: Worker::new(settings), _engine: engine, image, reference }
    }

    async fn publish(&self) -> Result<RegistryImage, Fault> {
        self.worker.publish(&self.image, &self.reference).await
    }

    async fn find(&self) -> Result<Option<RegistryImage>, Fault> {
        self.worker.registry.find(&self.reference).await
    }

    /// Has the registry tag what it holds already, for another build.
    async fn publish_by_tagging(&self, image: &RegistryImage) -> Result<RegistryImage, Fault> {
        let request = BuildRequest { build_id: "another".to_owned(), ..request(&self.reference) };
        let progress = BuildLog::new(&request.build_id, Redactor::default());
        let artifact = Artifact {
            commit: self.reference.tag.clone(),
            planned: Planned { key: self.image.key.clone(), builder: self.image.builder },
            location: ImageLocation::InRegistry(image.clone()),
            reused: true,
            labelled: true,
        };
        let ready = self.worker.images.publish(&request, artifact, &progress).await?;
        Ok(ready.image)
    }

    /// What the registry has under the tag of the image's key.
    async fn find_by_key(&self) -> Result<Option<RegistryImage>, Fault> {
        self.worker.registry.find(&self.reference.with_tag(&key().tag())).await
    }
}

/// Engines with containerd's image store know an image by the digest of its manifest, and others by that of its
/// configuration.
fn stands_for(stored: &RegistryImage, image: &BuiltImage) -> bool {
    [&stored.image_id, &stored.digest].contains(&&image.id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_published_image_is_found_by_all_its_names() {
    let mut engine = Engine::connect().await;
    for settings in [settings(OPEN), with_password(settings(CLOSED), CLOSED_PASSWORD)] {
        let reference = reference_in(&settings.url.to_string());
        let label = format!("LABEL {REVISION_LABEL}={} {BUILDER_LABEL}=dockerfile", reference.tag);
        let image = engine.labelled_image(&label).await;
        let worker = Worker::new(settings);
        let published = worker.publish(&image, &reference).await.expect("it succeeds");
        assert!(stands_for(&published, &image), "{published:?} {image:?}");
        for tag in [&reference.tag, &key().tag(), &published.digest] {
            let found = worker.registry.find(&reference.with_tag(tag)).await;
            assert_eq!(found, Ok(Some(published.clone())), "{tag}");
        }
        let of_build = worker.images.of_build(&request(&reference), None).await;
        let of_build = of_build.expect("it can be asked").expect("it is there");
        assert_eq!((of_build.image, of_build.commit), (published, reference.tag));
    }
}

/// As if the worker had died while it put the tags.
#[tokio::test]
async fn an_image_that_is_found_by_its_build_gets_the_commits_tag_that_it_lacks() {
    let (real, alive) = (format!("http://{OPEN}"), Arc::new(AtomicBool::new(false)));
    let (reference, lives) = (reference_in(OPEN), alive.clone());
    let by_commit = format!("/manifests/{}", reference.tag);
    let server = HttpServer::answering(move |request| {
        let is_put = request.method == Method::PUT && request.path.ends_with(&by_commit);
        match is_put && !lives.load(Ordering::SeqCst) {
            true => answer(201, &[], ""),
            false => Answer::From(real.clone()),
        }
    })
    .await;
    let reference = ImageReference { registry: server.host(), ..reference };
    let mut engine = Engine::connect().await;
    let label = format!("LABEL {REVISION_LABEL}={} {BUILDER_LABEL}=dockerfile", reference.tag);
    let image = engine.labelled_image(&label).await;
    let worker = Worker::new(settings(&server.host()));
    let progress = BuildLog::new("pushed", Redactor::default());
    let pushed = reference.with_tag("pushed-by-the-engine");
    let digest = worker.images.engine.push(&image, &pushed, &progress).await.expect("it is taken");

    let request = request(&reference);
    let artifact = Artifact {
        commit: reference.tag.clone(),
        planned: Planned { key: image.key.clone(), builder: image.builder },
        location: ImageLocation::Pushed { digest },
        reused: false,
        labelled: true,
    };
    let published = worker.images.publish(&request, artifact, &progress).await;
    let image = published.expect("the registry says that it took all").image;
    assert_eq!(worker.registry.find(&reference).await, Ok(None));

    alive.store(true, Ordering::SeqCst);
    let ready = worker.images.of_build(&request, None).await.expect("it can be asked");
    assert_eq!(ready.map(|ready| ready.image), Some(image.clone()));
    assert_eq!(worker.registry.find(&reference).await, Ok(Some(image)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_that_are_pushed_under_one_name_at_once_each_get_their_own_digest() {
    let mut engine = Engine::connect().await;
    let reference = reference_in(OPEN);
    let worker = Worker::new(settings(OPEN));
    let images = [engine.image().await, engine.image().await, engine.image().await];
    let pushes = images.iter().map(|image| worker.publish(image, &reference));
    let pushed = futures_util::future::join_all(pushes).await;
    for (image, pushed) in images.iter().zip(pushed) {
        let pushed = pushed.expect("it succeeds");
        assert!(stands_for(&pushed, image), "{pushed:?} {image:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_that_somebody_moved_to_an_image_of_other_inputs_is_not_believed() {
    let mut engine = Engine::connect().await;
    let (reference, worker) = (reference_in(OPEN), Worker::new(settings(OPEN)));
    let labelled = |key: &str| format!("LABEL {KEY_LABEL}={key}");
    let own = engine.labelled_image(&labelled(key().as_str())).await;
    let own = worker.publish(&own, &reference).await.expect("it succeeds");
    let by_key = async || worker.images.of_key(&request(&reference), &key()).await;
    assert_eq!(by_key().await.map(|found| found.map(|(image, _)| image)), Ok(Some(own)));
    // The registry takes pushes from anybody.
    let theirs = engine.labelled_image(&labelled("another")).await;
    let progress = BuildLog::new("theirs", Redactor::default());
    let moved = reference.with_tag(&key().tag());
    worker.images.engine.push(&theirs, &moved, &progress).await.expect("it succeeds");
    assert_eq!(by_key().await, Ok(None));
}

/// Whoever may push can copy all that is public of an image: its labels, and the names of its tags.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_somebody_else_pushed_with_copied_labels_and_tags_is_not_believed() {
    let mut engine = Engine::connect().await;
    let (reference, worker) = (reference_in(OPEN), Worker::new(settings(OPEN)));
    let (key, commit) = (key(), &reference.tag);
    let label = format!(
        "LABEL {KEY_LABEL}={} {REVISION_LABEL}={commit} {BUILDER_LABEL}=dockerfile",
        key.as_str()
    );
    let own = engine.labelled_image(&label).await;
    let own = worker.publish(&own, &reference).await.expect("it succeeds");
    let by_key = async || worker.images.of_key(&request(&reference), &key).await;
    let by_build = async || worker.images.of_build(&request(&reference), None).await;
    assert!(by_key().await.expect("asked").is_some_and(|(image, _)| image == own));
    assert!(by_build().await.expect("asked").is_some_and(|ready| ready.image == own));

    let theirs = engine.labelled_image(&format!("{label} evil=1")).await;
    let progress = BuildLog::new("theirs", Redactor::default());
    // All names that the registry lists.
    let seal = |tag: &str| worker.images.seal.of(&reference.with_tag(tag), &own.digest);
    let build = build_tag(&request(&reference));
    let tags = [key.tag(), seal(&key.tag()), seal(&build), build];
    for tag in tags {
        let moved = reference.with_tag(&tag);
        worker.images.engine.push(&theirs, &moved, &progress).await.expect("anybody may push");
    }
    assert_eq!(by_key().await, Ok(None));
    assert!(by_build().await.expect("asked").is_none());
    // A worker of another installation is nobody in particular.
    let mut other = Worker::new(settings(OPEN));
    other.images.seal = Seal::new(Secret::new("another key"));
    assert_eq!(other.images.of_key(&request(&reference), &key).await, Ok(None));
}

#[tokio::test]
async fn an_image_of_the_same_inputs_costs_three_looks_and_a_manifest_a_tag_and_nothing_of_the_engine()
 {
    let server = registry_that(|_| None).await;
    let mut engine = Engine::connect().await;
    let reference = reference_in(&server.host());
    let (key, commit) = (key(), reference.tag.clone());
    let label = format!("LABEL {KEY_LABEL}={} {REVISION_LABEL}={commit}", key.as_str());
    let image = engine.labelled_image(&label).await;
    let mut worker = Worker::new(settings(&server.host()));
    let pushed = worker.publish(&image, &reference).await.expect("it succeeds");

    let nowhere = DockerSettings { host: "unix:///nowhere".to_owned(), ..Default::default() };
    worker.images.engine = Arc::new(DockerEngine::connect(nowhere).expect("an address"));
    let request = BuildRequest { build_id: "another".to_owned(), ..request(&reference) };
    let before = server.requests().len();
    let found = worker.images.of_key(&request, &key).await.expect("it answers");
    assert_eq!(found, Some((pushed.clone(), Some(commit.clone()))));
    let artifact = Artifact {
        commit,
        planned: Planned { key, builder: image.builder },
        location: ImageLocation::InRegistry(pushed),
        reused: true,
        labelled: true,
    };
    let progress = BuildLog::new(&request.build_id, Redactor::default());
    worker.images.publish(&request, artifact, &progress).await.expect("it succeeds");
    let asked = server.requests().split_off(before);
    let asked: Vec<_> = asked.iter().map(|asked| asked.method.clone()).collect();
    let (get, put) = (Method::GET, Method::PUT);
    // The key's tag, its seal and the labels; the build's seal and its tag, and that of the commit.
    assert_eq!(asked, [get.clone(), get.clone(), get, put.clone(), put.clone(), put]);
}

#[tokio::test]
async fn a_registry_with_a_path_before_its_repositories_works() {
    let push = Push::to(settings(&format!("{OPEN}/team/images"))).await;
    let pushed = push.publish().await.expect("it succeeds");

    let whole = reference_in(OPEN);
    let whole = ImageReference {
        repository: format!("team/images/{}", push.reference.repository),
        ..whole
    };
    let found = client(settings(OPEN)).find(&whole.with_tag(&push.reference.tag)).await;
    assert_eq!(found, Ok(Some(pushed)));
}

#[tokio::test]
async fn a_wrong_password_and_none_are_refusals_and_the_password_is_not_told() {
    for settings in [settings(CLOSED), with_password(settings(CLOSED), "wrong-password")] {
        assert!(!format!("{settings:?}").contains("wrong-password"));
        let push = Push::to(settings).await;
        let found = push.find().await.expect_err("it is refused");
        let pushed = push.publish().await.expect_err("it is refused");
        for fault in [found, pushed] {
            assert_eq!(fault.reason, Reason::RegistryRefused, "{fault}");
            assert!(!fault.message.contains("wrong-password"), "{fault}");
        }
    }
}

#[tokio::test]
async fn a_registry_that_answers_with_an_error_has_failed() {
    let server = registry_that(|request| {
        let about_a_manifest =
            is_manifest(request, Method::PUT) || is_manifest(request, Method::GET);
        about_a_manifest.then(|| answer(500, &[], "boom"))
    })
    .await;
    let push = Push::to(settings(&server.host())).await;
    let found = push.find().await.expect_err("it fails");
    let pushed = push.publish().await.expect_err("it fails");
    for fault in [found, pushed] {
        assert_eq!(fault.reason, Reason::RegistryFailed, "{fault}");
        assert!(fault.message.contains("500"), "{fault}");
    }
}

#[tokio::test]
async fn a_registry_that_refuses_is_told_by_its_status_and_what_to_do_whoever_was_refused() {
    for (status, parts) in [
        (400, ["400 Bad Request", "400"]),
        (403, ["403 Forbidden", "REGISTRY_PASSWORD"]),
        (404, ["404 Not Found", "REGISTRY_URL"]),
        (405, ["405 Method Not Allowed", "takes no pushes"]),
        (412, ["412 Precondition Failed", "immutable"]),
        (413, ["413 Payload Too Large", "client_max_body_size"]),
    ] {
        let refusing = Arc::new(AtomicBool::new(false));
        let refuses = refusing.clone();
        let server = registry_that(move |request| {
            let refused = refuses.load(Ordering::SeqCst) && is_manifest(request, Method::PUT);
            let page = format!("<html><head><title>{status} timeout, denied</title></head></html>");
            refused.then(|| answer(status, &[("content-type", "text/html")], page))
        })
        .await;
        let push = Push::to(settings(&server.host())).await;
        let published = push.publish().await.expect("it succeeds");
        refusing.store(true, Ordering::SeqCst);

        let by_the_worker = push.publish_by_tagging(&published).await;
        // Another repository, so that no tag of it stands for the image already.
        let elsewhere = reference_in(&server.host());
        let by_the_engine = push.worker.publish(&push.image, &elsewhere).await;
        for fault in [by_the_worker, by_the_engine].map(|it| it.expect_err("it is refused")) {
            assert_eq!(fault.reason, Reason::RegistryRefused, "{status}: {fault}");
            for part in parts {
                assert!(fault.message.contains(part), "{status}: {fault}");
            }
            for noise in ["invalid character", "<html>"] {
                assert!(!fault.message.contains(noise), "{status}: {fault}");
            }
        }
    }
}

#[tokio::test]
async fn a_registry_that_sends_a_web_page_is_told_as_such() {
    let page = "\n<!DOCTYPE html><html>welcome</html>";
    let server =
        registry_that(move |request| (request.path != "/v2/").then(|| answer(200, &[], page)))
            .await;
    let push = Push::to(settings(&server.host())).await;
    let found = push.find().await.expect_err("it is no manifest");
    assert_eq!(found.reason, Reason::RegistryFailed, "{found}");
    assert!(found.message.contains("200 OK (a web page); check that REGISTRY_URL"), "{found}");
}

/// Ways in which registries say that a tag is taken for good: status and body.
const IMMUTABLE: &[(u16, &str)] = &[
    (
        400,
        r#"{"errors":[{"code":"ImageTagAlreadyExistsException","message":"The image tag 'v1' already exists in the 'a' repository and cannot be overwritten because the tag is immutable."}]}"#,
    ),
    (
        412,
        r#"{"errors":[{"code":"PRECONDITION","message":"Failed to process request due to 'v1' configured as immutable."}]}"#,
    ),
    (412, ""),
    (409, r#"{"errors":[{"code":"TAG_IMMUTABLE","message":"tag is immutable"}]}"#),
    (403, r#"{"errors":[{"code":"DENIED","message":"Cannot overwrite an immutable tag"}]}"#),
    (
        405,
        r#"{"errors":[{"code":"UNSUPPORTED","message":"The operation is disallowed on this registry, repository or image."}]}"#,
    ),
    (
        400,
        r#"{"errors":[{"code":"UNKNOWN","message":"Repository does not allow updating assets: docker"}]}"#,
    ),
];

#[tokio::test]
async fn an_immutable_tag_that_stands_for_the_image_is_fine_and_any_other_is_refused_for_good() {
    let mut engine = Engine::connect().await;
    for (status, body) in IMMUTABLE {
        let real = format!("http://{OPEN}");
        let server = HttpServer::answering(move |request| {
            with_immutable_tags(request, &real, || answer(*status, &[], *body))
        })
        .await;
        let (worker, reference) =
            (Worker::new(settings(&server.host())), reference_in(&server.host()));
        let image = engine.image().await;
        let first = worker.publish(&image, &reference).await.expect("no tag is there");
        let again = worker.publish(&image, &reference).await;
        assert_eq!(again, Ok(first.clone()), "{status} {body}");

        let other = engine.image().await;
        let fault = worker.publish(&other, &reference).await.expect_err("the tag is taken");
        assert_eq!(fault.reason, Reason::RegistryRefused, "{status} {body}: {fault}");
        for part in ["immutable", &first.digest] {
            assert!(fault.message.contains(part), "{status} {body}: {fault}");
        }
        assert_eq!(worker.registry.find(&reference).await, Ok(Some(first)));
    }
}

#[tokio::test]
async fn a_registry_that_asks_for_patience_is_heard() {
    let server = registry_that(|request| {
        let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
        (request.path != "/v2/").then(|| answer(429, &[("retry-after", "7")], body))
    })
    .await;
    let push = Push::to(settings(&server.host())).await;
    let found = push.find().await.expect_err("it refuses");
    assert_eq!(found.reason, Reason::RateLimited, "{found}");
    assert_eq!(found.retry_after, Some(Duration::from_secs(7)));
    assert!(found.message.contains("TOOMANYREQUESTS: slow down"), "{found}");
    // The engine keeps the header to itself.
    let pushed = push.publish().await.expect_err("it refuses");
    assert_eq!(pushed.reason, Reason::RateLimited, "{pushed}");
}

#[tokio::test]
async fn a_registry_that_returns_another_manifest_than_it_took_has_failed() {
    let server = registry_that(|request| {
        let other = r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json",
            "config":{"digest":"sha256:0","size":1},"layers":[]}"#;
        is_manifest(request, Method::GET).then(|| answer(200, &[], other))
    })
    .await;
    let push = Push::to(settings(&server.host())).await;
    let fault = push.publish().await.expect_err("it is not the same");
    assert_eq!(fault.reason, Reason::RegistryFailed, "{fault}");
    assert!(fault.message.contains("in place of sha256:"), "{fault}");
}

#[tokio::test]
async fn a_registry_that_forgets_what_it_took_has_failed() {
    let server =
        registry_that(|request| is_manifest(request, Method::GET).then(|| answer(404, &[], "")))
            .await;
    let push = Push::to(settings(&server.host())).await;
    let fault = push.publish().await.expect_err("it is gone");
    assert_eq!(fault.reason, Reason::RegistryFailed, "{fault}");
}

#[tokio::test]
async fn where_the_registry_takes_no_tag_from_the_worker_the_engine_pushes_it() {
    let server = registry_that(|request| {
        let by_the_worker = request.header("user-agent").starts_with("image-builder/");
        (by_the_worker && is_manifest(request, Method::PUT)).then(|| answer(405, &[], ""))
    })
    .await;
    let push = Push::to(settings(&server.host())).await;
    let pushed = push.publish().await.expect("it succeeds");
    assert_eq!(push.find_by_key().await, Ok(Some(pushed)));
}

#[tokio::test]
async fn a_registry_that_wants_tokens_gets_them_and_each_is_used_until_it_is_refused() {
    let server = registry_that(token_flow()).await;
    let bought = || {
        let requests = server.requests();
        let by_the_worker = |r: &&_| Request::header(r, "user-agent").starts_with("image-b");
        requests.iter().filter(by_the_worker).filter(|r| r.target().0 == "/token").count()
    };
    let push = Push::to(with_password(settings(&server.host()), PASSWORD)).await;
    for _ in 0..3 {
        assert_eq!(push.find().await, Ok(None));
    }
    assert_eq!(bought(), 1, "the token is kept");
    // The engine buys a token for itself, and the worker's is no longer good.
    let pushed = push.publish().await.expect("it succeeds");
    assert_eq!(push.find_by_key().await, Ok(Some(pushed)));

    let requests = server.requests();
    let token =
        requests.iter().find(|request| request.target().0 == "/token").expect("one was bought");
    let scope =
        format!("scope=repository%3A{}%3Apull", push.reference.repository.replace('/', "%2F"));
    assert_eq!(token.target().1, format!("service=the+tests&{scope}"));

    // Neither the worker nor the engine ever asks for more than the one repository of this build.
    let own = format!("repository:{}:", push.reference.repository);
    let asked: Vec<String> = requests.iter().flat_map(scopes).collect();
    assert!(asked.contains(&format!("{own}pull")), "{asked:?}");
    assert!(asked.iter().any(|scope| scope.ends_with("push") || scope.ends_with("push,pull")));
    for scope in &asked {
        let actions = scope.strip_prefix(&own).unwrap_or_else(|| panic!("{scope}: {asked:?}"));
        assert!(actions.split(',').all(|action| ["pull", "push"].contains(&action)), "{asked:?}");
    }
}
