//! The credentials port: what a reference to a credential stands for.

use futures_util::future::BoxFuture;

use crate::model::fault::Fault;
use crate::model::request::BuildRequest;
use crate::model::secret::Secret;

/// Makes tokens for requests that name a credential and do not bring it.
///
/// A token is asked for at each try, so that none has to last for as long as a request waits, and none rests
/// on the broker.
pub trait Credentials: Send + Sync + 'static {
    /// A token for the repository of `request`, good for long enough to fetch it.
    ///
    /// # Errors
    /// `unauthorized` where the reference stands for nothing that this request may have, `unsupported` where
    /// the service knows no references of its kind; else the service that makes tokens failed, `forge_failed`
    /// or `timeout`. No message repeats the reference, which may be a credential by mistake.
    fn token<'a>(
        &'a self,
        request: &'a BuildRequest,
        reference: &'a str,
    ) -> BoxFuture<'a, Result<Secret, Fault>>;

    /// A token that may show statuses on the commits of that repository, where that is another one.
    ///
    /// # Errors
    /// As of [`token`](Self::token).
    fn status_token<'a>(
        &'a self,
        request: &'a BuildRequest,
        reference: &'a str,
    ) -> BoxFuture<'a, Result<Secret, Fault>> {
        self.token(request, reference)
    }
}
