//! The service by which the engine mounts the request's secrets.

use std::collections::BTreeMap;

use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::Secrets;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
use image_builder_actors::model::secret::Secret;
use tonic::{Request, Response, Status};

/// The secrets of the request, by id.
pub(super) struct MountedSecrets(pub(super) BTreeMap<String, Secret>);

#[tonic::async_trait]
impl Secrets for MountedSecrets {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        // NOT_FOUND lets a step go on whose secret is not `required`.
        let secret = self.0.get(&id).ok_or_else(|| Status::not_found(format!("secret {id}")))?;
        Ok(Response::new(GetSecretResponse { data: secret.expose().as_bytes().to_vec() }))
    }
}
