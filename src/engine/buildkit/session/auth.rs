//! The service by which the engine learns the credentials that base images are pulled with.

use std::sync::Arc;

use bollard_buildkit_proto::moby::filesync::v1::auth_server::Auth;
use bollard_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse,
    GetTokenAuthorityRequest, GetTokenAuthorityResponse, VerifyTokenAuthorityRequest,
    VerifyTokenAuthorityResponse,
};
use tonic::{Request, Status};

use crate::engine::docker::RegistryAuth;

/// The credential for pulling base images from one registry.
pub(super) struct PullCredentials(pub(super) Option<Arc<RegistryAuth>>);

#[tonic::async_trait]
impl Auth for PullCredentials {
    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<tonic::Response<CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        let known = self.0.as_ref().filter(|auth| registry(&auth.host) == registry(&host));
        // An empty answer means anonymous.
        Ok(tonic::Response::new(known.map_or_else(CredentialsResponse::default, |auth| {
            CredentialsResponse {
                username: auth.username.clone(),
                secret: auth.password.expose().to_owned(),
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

/// One name for each registry: Docker Hub has several.
fn registry(host: &str) -> &str {
    let host = host.trim_start_matches("https://").trim_start_matches("http://");
    match host.split('/').next().unwrap_or(host) {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use image_builder_actors::model::secret::Secret;

    use super::*;

    async fn username(known: &str, asked: &str) -> String {
        let auth = RegistryAuth {
            host: known.to_owned(),
            username: "user".to_owned(),
            password: Secret::new("password"),
        };
        let request = Request::new(CredentialsRequest { host: asked.to_owned() });
        let answer = PullCredentials(Some(Arc::new(auth))).credentials(request).await;
        let answer = answer.expect("an answer").into_inner();
        assert_eq!(answer.username.is_empty(), answer.secret.is_empty());
        answer.username
    }

    #[tokio::test]
    async fn a_credential_is_given_to_its_own_registry_alone() {
        for (known, asked) in [
            ("registry.example:5000", "registry.example:5000"),
            ("docker.io", "registry-1.docker.io"),
            ("https://index.docker.io/v1/", "registry-1.docker.io"),
        ] {
            assert_eq!(username(known, asked).await, "user", "{known} {asked}");
        }
        for (known, asked) in [
            ("registry.example:5000", "registry.example"),
            ("registry.example", "registry.example.evil.example"),
            ("registry.example", "evil.example/registry.example"),
            ("docker.io", "evil.example"),
            ("docker.io", ""),
        ] {
            assert_eq!(username(known, asked).await, "", "{known} {asked}");
        }
    }
}
