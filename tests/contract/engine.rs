//! Images on the engine of this machine, and the engine as a worker has it.

use std::collections::HashMap;
use std::time::Duration;

use bollard::Docker;
use bollard::models::EventMessage;
use bollard::query_parameters::{
    CreateImageOptionsBuilder, EventsOptionsBuilder, RemoveImageOptionsBuilder,
    TagImageOptionsBuilder,
};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use image_builder::engine::docker::{DockerEngine, DockerSettings, Tenancy};
use image_builder::engine::settings::BuildSettings;
use image_builder_actors::model::image::{BuildKey, BuiltImage, digest_of};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::request::BuilderKind;
use time::OffsetDateTime;

use crate::registry::unique;

pub(crate) fn key() -> BuildKey {
    serde_json::from_str(r#""0123456789abcdef""#).expect("a key is a text")
}

/// An image that no engine has.
pub(crate) fn any_image() -> BuiltImage {
    let id = digest_of(unique().as_bytes());
    BuiltImage::new(id, BuilderKind::Dockerfile, key())
}

/// Which tenancy the tests have: old engines know no other than this one, unless `TENANCY` says so.
pub(crate) fn tenancy() -> Tenancy {
    match std::env::var("TENANCY").as_deref() {
        Ok("strict") => Tenancy::Strict,
        _ => Tenancy::Trusted,
    }
}

/// The engine of this machine, as a worker has it with these settings.
pub(crate) fn docker_engine(builds: BuildSettings) -> DockerEngine {
    let usual = DockerSettings::default();
    let host = std::env::var("DOCKER_HOST").unwrap_or(usual.host.clone());
    let builds = BuildSettings { tenancy: tenancy(), ..builds };
    DockerEngine::connect(DockerSettings { host, builds, ..usual }).expect("good settings")
}

/// The engine of this machine. What a test made on it goes with this value.
pub(crate) struct Engine {
    docker: Docker,
    names: Vec<String>,
}

impl Engine {
    pub(crate) async fn connect() -> Self {
        let docker = Docker::connect_with_defaults().expect("an engine's address");
        match docker.negotiate_version().await {
            Ok(docker) => Self { docker, names: Vec::new() },
            Err(error) => panic!(
                "this test needs a Docker Engine, such as that of .devcontainer/stack.sh: {error}"
            ),
        }
    }

    /// Makes an image of one small file.
    pub(crate) async fn image(&mut self) -> BuiltImage {
        self.labelled_image("LABEL of=the-tests").await
    }

    /// Makes an image of one small file, with what this instruction says.
    pub(crate) async fn labelled_image(&mut self, label: &str) -> BuiltImage {
        let mut root = tar::Builder::new(Vec::new());
        let content = unique();
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        root.append_data(&mut header, "content", content.as_bytes()).expect("a tar in memory");
        let root = root.into_inner().expect("a tar in memory");

        let repository = format!("image-builder-tests-{}", unique());
        let name = format!("{repository}:local");
        let options = CreateImageOptionsBuilder::new()
            .from_src("-")
            .repo(&repository)
            .tag("local")
            .changes(vec![label.to_owned()])
            .build();
        self.docker
            .create_image(Some(options), Some(bollard::body_full(root.into())), None)
            .try_collect::<Vec<_>>()
            .await
            .expect("the engine imports the image");
        self.names.push(name.clone());
        let id = self.id_of(&name).await.expect("the engine has what it imported");
        BuiltImage::new(id, BuilderKind::Dockerfile, key())
    }

    /// The names of an image.
    pub(crate) async fn names_of(&self, image: &str) -> Vec<String> {
        let image = self.docker.inspect_image(image).await.expect("the image is there");
        image.repo_tags.unwrap_or_default()
    }

    pub(crate) async fn id_of(&self, name: &str) -> Option<String> {
        self.docker.inspect_image(name).await.ok()?.id
    }

    /// Names an image, as somebody else would.
    pub(crate) async fn tag(&mut self, image: &str, reference: &ImageReference) {
        let options =
            TagImageOptionsBuilder::new().repo(&reference.name()).tag(&reference.tag).build();
        self.docker.tag_image(image, Some(options)).await.expect("the engine names the image");
        self.names.push(reference.to_string());
    }

    /// An image that no name stands for any more: what a build leaves that nobody has named yet.
    pub(crate) async fn nameless_image(&mut self) -> BuiltImage {
        let image = self.image().await;
        let other = self.image().await;
        let name = self.names[self.names.len() - 2].clone();
        // Moving an image's only name to another image leaves it without one.
        let (repository, tag) = name.rsplit_once(':').expect("it has a tag");
        let options = TagImageOptionsBuilder::new().repo(repository).tag(tag).build();
        self.docker.tag_image(&other.id, Some(options)).await.expect("the engine names the image");
        self.names.push(image.id.clone());
        image
    }

    /// From now on, listens for a name being taken off the image.
    pub(crate) fn watch_names(&self, image: &str) -> NameWatch {
        let filters = HashMap::from([("event", vec!["untag"]), ("image", vec![image])]);
        // The stream only connects when it is first waited for: ask for what was before that, too.
        let since = OffsetDateTime::now_utc().unix_timestamp().to_string();
        let options = EventsOptionsBuilder::new().since(&since).filters(&filters).build();
        NameWatch(self.docker.events(Some(options)).boxed())
    }
}

/// Listens for a name being taken off an image.
pub(crate) struct NameWatch(BoxStream<'static, Result<EventMessage, bollard::errors::Error>>);

impl NameWatch {
    pub(crate) async fn name_taken_off(&mut self) {
        let event = tokio::time::timeout(Duration::from_secs(20), self.0.next()).await;
        event
            .expect("the name is taken off within 20 s")
            .expect("the engine goes on telling")
            .expect("the engine tells no error");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let (docker, names) = (self.docker.clone(), std::mem::take(&mut self.names));
        let remove = async move {
            for name in names {
                let options = RemoveImageOptionsBuilder::new().force(true).build();
                // A test may have removed it itself.
                docker.remove_image(&name, Some(options), None).await.ok();
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let thread = std::thread::spawn(move || runtime.expect("a runtime").block_on(remove));
        thread.join().ok();
    }
}
