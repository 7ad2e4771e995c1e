//! The BuildKit session of one build: what the engine may ask back of the client while it builds.
//!
//! `POST /session` is upgraded to HTTP/2, on which the *engine* is the client: it calls the services
//! that this side offers. Those are health, the request's secrets, and the credentials for pulling
//! base images.

use std::collections::BTreeMap;
use std::pin::Pin;

use bollard::ClientVersion;
use bollard_buildkit_proto::health::health_check_response::ServingStatus;
use bollard_buildkit_proto::health::health_server::{Health, HealthServer};
use bollard_buildkit_proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::{Secrets, SecretsServer};
use bollard_buildkit_proto::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
use bollard_buildkit_proto::moby::filesync::v1::auth_server::{Auth, AuthServer};
use bollard_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse,
    GetTokenAuthorityRequest, GetTokenAuthorityResponse, VerifyTokenAuthorityRequest,
    VerifyTokenAuthorityResponse,
};
use futures_util::Stream;
use hyper::header::{CONNECTION, UPGRADE};
use hyper::server::conn::http2;
use hyper::{Method, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioExecutor;
use hyper_util::service::TowerToHyperService;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::secret::Secret;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::{Request, Status};

use super::address::Address;
use super::faults;
use super::wire::{self, Connection};
use crate::engine::credentials::PullCredentials;

/// The methods that the engine may call.
const METHODS: [&str; 5] = [
    "/grpc.health.v1.Health/Check",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    "/moby.filesync.v1.Auth/Credentials",
    "/moby.filesync.v1.Auth/FetchToken",
    "/moby.filesync.v1.Auth/GetTokenAuthority",
];

/// The id of the session that stands for the engine as a whole.
const CLAIM: &str = "image-builder-runs-alone";

/// An open session: dropping it closes it, and with it goes the engine's access to the secrets.
pub(super) struct Session {
    pub(super) id: String,
    _connection: Connection,
    _server: JoinSet<()>,
}

impl Session {
    /// Opens a session of its own for one build.
    pub(super) async fn open(
        address: &Address,
        version: ClientVersion,
        secrets: BTreeMap<String, Secret>,
        credentials: PullCredentials,
    ) -> Result<Self, Fault> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let mut connection = Connection::open(address).await?;
        let response = shake_hands(&mut connection, address, version, &id).await?;
        Self::serve(id, connection, response, secrets, credentials).await
    }

    /// Opens the session of which each engine has one at a time; `None` = somebody has it. It gives the
    /// engine nothing.
    pub(super) async fn claim(
        address: &Address,
        version: ClientVersion,
    ) -> Result<Option<Self>, Fault> {
        let mut connection = Connection::open(address).await?;
        match shake_hands(&mut connection, address, version, CLAIM).await {
            Ok(response) => {
                let (id, nothing) = (CLAIM.to_owned(), BTreeMap::new());
                Self::serve(id, connection, response, nothing, PullCredentials::default())
                    .await
                    .map(Some)
            }
            Err(fault) if fault.message.contains(&format!("session {CLAIM} already exists")) => {
                Ok(None)
            }
            Err(fault) => Err(fault),
        }
    }

    async fn serve(
        id: String,
        connection: Connection,
        response: Response<Incoming>,
        secrets: BTreeMap<String, Secret>,
        credentials: PullCredentials,
    ) -> Result<Self, Fault> {
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|error| faults::engine_broke("opening a build session", &error))?;

        let routes = Routes::new(HealthServer::new(AlwaysServing))
            .add_service(SecretsServer::new(MountedSecrets(secrets)))
            .add_service(AuthServer::new(credentials))
            .prepare();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let serving = http2::Builder::new(TokioExecutor::new())
                .serve_connection(upgraded, TowerToHyperService::new(routes));
            if let Err(error) = serving.await {
                tracing::debug!(%error, "a build session ended with an error");
            }
        });
        Ok(Self { id, _connection: connection, _server: server })
    }
}

async fn shake_hands(
    connection: &mut Connection,
    address: &Address,
    version: ClientVersion,
    id: &str,
) -> Result<Response<Incoming>, Fault> {
    let what = "opening a build session";
    let mut request = wire::request(Method::POST, address, version, "/session")
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "h2c")
        .header("X-Docker-Expose-Session-Uuid", id)
        .header("X-Docker-Expose-Session-Name", "image-builder")
        .header("X-Docker-Expose-Session-Sharedkey", "");
    for method in METHODS {
        request = request.header("X-Docker-Expose-Session-Grpc-Method", method);
    }
    let request =
        request.body(wire::no_body()).map_err(|error| faults::engine_broke(what, &error))?;
    let response = faults::in_time(super::ANSWER_TIMEOUT, what, connection.send(request))
        .await?
        .map_err(|error| faults::engine_broke(what, &error))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(faults::engine_broke(what, &wire::error_message(response).await));
    }
    Ok(response)
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

/// The secrets of the request, by id.
struct MountedSecrets(BTreeMap<String, Secret>);

#[tonic::async_trait]
impl Secrets for MountedSecrets {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<tonic::Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        // NOT_FOUND lets a step go on whose secret is not `required`.
        let secret = self.0.get(&id).ok_or_else(|| Status::not_found(format!("secret {id}")))?;
        Ok(tonic::Response::new(GetSecretResponse { data: secret.expose().as_bytes().to_vec() }))
    }
}

#[tonic::async_trait]
impl Auth for PullCredentials {
    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<tonic::Response<CredentialsResponse>, Status> {
        let known = self.of(&request.into_inner().host).await;
        // An empty answer means anonymous.
        Ok(tonic::Response::new(known.map_or_else(CredentialsResponse::default, |login| {
            CredentialsResponse {
                username: login.username,
                secret: login.password.expose().to_owned(),
            }
        })))
    }

    // Unavailable makes the engine fetch tokens itself, with the credentials from above.
    async fn fetch_token(
        &self,
        _request: Request<FetchTokenRequest>,
    ) -> Result<tonic::Response<FetchTokenResponse>, Status> {
        Err(Status::unavailable("tokens are the engine's to fetch"))
    }

    async fn get_token_authority(
        &self,
        _request: Request<GetTokenAuthorityRequest>,
    ) -> Result<tonic::Response<GetTokenAuthorityResponse>, Status> {
        Err(Status::unavailable("tokens are the engine's to fetch"))
    }

    async fn verify_token_authority(
        &self,
        _request: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<tonic::Response<VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unavailable("tokens are the engine's to fetch"))
    }
}
