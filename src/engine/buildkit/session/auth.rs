//! The service by which the engine learns the credentials that base images are pulled with.

use bollard_buildkit_proto::moby::filesync::v1::auth_server::Auth;
use bollard_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse,
    GetTokenAuthorityRequest, GetTokenAuthorityResponse, VerifyTokenAuthorityRequest,
    VerifyTokenAuthorityResponse,
};
use tonic::{Request, Status};

use crate::engine::credentials::PullCredentials;

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

#[cfg(test)]
mod tests {
    use image_builder_actors::model::secret::Secret;

    use super::*;
    use crate::engine::credentials::RegistryAuth;

    #[tokio::test]
    async fn no_token_is_bought_for_a_build_whatever_it_is_to_open() {
        let own = RegistryAuth {
            host: "own.example".to_owned(),
            username: "push".to_owned(),
            password: Secret::new("p"),
        };
        let credentials = PullCredentials { own: vec![own], ..PullCredentials::default() };
        for scope in ["repository:alice/shop:pull,push", "repository:bob/shop:pull", "registry:*"] {
            let asked = FetchTokenRequest {
                host: "own.example".to_owned(),
                realm: "https://own.example/token".to_owned(),
                scopes: vec![scope.to_owned()],
                ..FetchTokenRequest::default()
            };
            let refused = credentials.fetch_token(Request::new(asked)).await.expect_err(scope);
            assert_eq!(refused.code(), tonic::Code::Unavailable, "{scope}");
        }
    }
}
