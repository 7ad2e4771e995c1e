//! The commit status port: each forge says how its API is asked.

use futures_util::future::BoxFuture;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::{CommitStatus, CommitStatuses, StatusError};
use reqwest::StatusCode;
use reqwest::header::AUTHORIZATION;

use super::GitConnector;
use super::forge::StatusCall;
use crate::net::http::{causes, excerpt, read_at_most, retry_after};

/// Longest text that is read of a refusal, in bytes.
const LONGEST_REFUSAL: usize = 4 << 10;

impl CommitStatuses for GitConnector {
    fn show<'a>(
        &'a self,
        status: &'a CommitStatus,
        token: &'a Secret,
    ) -> BoxFuture<'a, Result<(), StatusError>> {
        Box::pin(async move {
            let never = |message: &str| StatusError {
                message: message.to_owned(),
                passes: false,
                retry_after: None,
            };
            let forge = self.forges.find(status.forge, &status.repo);
            let forge =
                forge.ok_or_else(|| never("the service does not know the forge any more"))?;
            let StatusCall { url, headers, body } =
                forge.status(status).ok_or_else(|| never("the forge shows no statuses"))?;
            let authorization = forge.api_authorization(token);
            let authorization = authorization
                .ok_or_else(|| never("the token has characters that no header holds"))?;
            let asked =
                self.clients.post(url).headers(headers).header(AUTHORIZATION, authorization);
            let mut response = asked.json(&body).send().await.map_err(|error| StatusError {
                message: format!("the forge cannot be asked: {}", causes(error)),
                passes: true,
                retry_after: None,
            })?;
            let code = response.status();
            if code.is_success() {
                return Ok(());
            }
            let (said, _) = read_at_most(&mut response, LONGEST_REFUSAL).await.unwrap_or_default();
            let said = excerpt(&String::from_utf8_lossy(&said)).replace(token.expose(), "[secret]");
            let headers = response.headers();
            let patience = retry_after(headers).or_else(|| forge.rate_limit().wait(headers));
            let passes = patience.is_some()
                || code.is_server_error()
                || matches!(code, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
            let message = format!("the forge answered {code}: {said}");
            Err(StatusError { message, passes, retry_after: patience })
        })
    }
}
