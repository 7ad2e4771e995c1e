//! The BuildKit session of one build: what the engine may ask back of the client while it builds.
//!
//! A connection is turned round: it carries HTTP/2 on which the *engine* is the client, and calls the services
//! that this side offers. Those are health, the files that are built, the request's secrets, and the
//! credentials for pulling base images. A Docker Engine upgrades `POST /session` to it; a BuildKit of its own
//! has it within a call of the control API ([`tunnel`]).

mod auth;
mod file_sync;
mod packet;
mod secrets;
mod sender;
mod tunnel;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use bollard_buildkit_proto::health::health_check_response::ServingStatus;
use bollard_buildkit_proto::health::health_server::{Health, HealthServer};
use bollard_buildkit_proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::SecretsServer;
use bollard_buildkit_proto::moby::filesync::v1::auth_server::AuthServer;
use futures_util::Stream;
use hyper::rt::{Read, Write};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::secret::Secret;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::{Request, Status};

use file_sync::FileSync;
pub(in crate::engine) use file_sync::Files;
use secrets::MountedSecrets;

use super::control::{Control, Door, Endpoint, Upgrade, upgrade};
use crate::engine::credentials::PullCredentials;

/// Under which name the engine looks for the Dockerfile.
pub(super) const DOCKERFILE_NAME: &str = "Dockerfile";

/// The methods that the engine may call.
const METHODS: [&str; 6] = [
    "/grpc.health.v1.Health/Check",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    "/moby.filesync.v1.Auth/Credentials",
    "/moby.filesync.v1.Auth/FetchToken",
    "/moby.filesync.v1.Auth/GetTokenAuthority",
    file_sync::DIFF_COPY,
];

/// What a session gives the engine.
#[derive(Default)]
pub(in crate::engine) struct Offer {
    pub(in crate::engine) files: Option<Arc<Files>>,
    /// By which the engine knows the last context of the same application; empty = it has none.
    pub(in crate::engine) shared_key: String,
    pub(in crate::engine) secrets: BTreeMap<String, Secret>,
    pub(in crate::engine) credentials: PullCredentials,
}

/// What workers claim of an engine: the id of a session, of which each engine has one at a time.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) enum Claimed {
    /// The engine, for a job that it may die of.
    Whole,
    /// Its disk, to find out which build fills it.
    Disk,
}

impl Claimed {
    fn session(self) -> &'static str {
        match self {
            Claimed::Whole => "image-builder-runs-alone",
            Claimed::Disk => "image-builder-watches-the-disk",
        }
    }
}

/// An open session: dropping it closes it, and with it goes the engine's access to the secrets.
pub(in crate::engine) struct Session {
    pub(super) id: String,
    _server: JoinSet<()>,
}

impl Session {
    /// Opens a session of its own for one build.
    pub(super) async fn open(endpoint: &Endpoint, offer: Offer) -> Result<Self, Fault> {
        Self::named(endpoint, uuid::Uuid::new_v4().simple().to_string(), offer).await
    }

    /// Opens the session that stands for a claim; `None` = somebody has it. It gives the engine nothing.
    pub(in crate::engine) async fn claim(
        endpoint: &Endpoint,
        claimed: Claimed,
    ) -> Result<Option<Self>, Fault> {
        let id = claimed.session();
        match Self::named(endpoint, id.to_owned(), Offer::default()).await {
            Ok(session) => Ok(Some(session)),
            Err(fault) if fault.message.contains(&format!("session {id} already exists")) => {
                Ok(None)
            }
            Err(fault) => Err(fault),
        }
    }

    async fn named(endpoint: &Endpoint, id: String, offer: Offer) -> Result<Self, Fault> {
        let shared_key = offer.shared_key.clone();
        let mut headers = vec![
            ("X-Docker-Expose-Session-Uuid", id.as_str()),
            ("X-Docker-Expose-Session-Name", "image-builder"),
            ("X-Docker-Expose-Session-Sharedkey", &shared_key),
        ];
        headers.extend(METHODS.map(|method| ("X-Docker-Expose-Session-Grpc-Method", method)));
        let what = "opening a build session";
        let mut server = JoinSet::new();
        match endpoint.door {
            Door::Docker(version) => {
                let upgraded = Upgrade { path: "/session", headers: &headers, what };
                let stream = upgrade(&endpoint.address, version, upgraded).await?;
                server.spawn(serve(stream, offer));
            }
            Door::Open => {
                let control = Control::open(endpoint).await?;
                let (stream, carrying) = tunnel::open(control, &headers, what).await?;
                server.spawn(carrying);
                server.spawn(serve(TokioIo::new(stream), offer));
            }
        }
        Ok(Self { id, _server: server })
    }
}

/// Answers the engine until it hangs up.
async fn serve(stream: impl Read + Write + Send + Unpin + 'static, offer: Offer) {
    let mut routes = Routes::new(HealthServer::new(AlwaysServing))
        .add_service(SecretsServer::new(MountedSecrets(offer.secrets)))
        .add_service(AuthServer::new(offer.credentials));
    if let Some(files) = offer.files {
        routes = routes.add_service(FileSync(files));
    }
    let serving = http2::Builder::new(TokioExecutor::new())
        .serve_connection(stream, TowerToHyperService::new(routes.prepare()));
    if let Err(error) = serving.await {
        tracing::debug!(%error, "a build session ended with an error");
    }
}

/// The engine ends a session that does not answer its health checks.
struct AlwaysServing;

#[tonic::async_trait]
impl Health for AlwaysServing {
    type WatchStream =
        Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static>>;

    async fn check(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        Ok(tonic::Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    async fn list(
        &self,
        _request: Request<HealthListRequest>,
    ) -> Result<tonic::Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("list"))
    }

    async fn watch(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watch"))
    }
}
