//! In-memory credentials.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;

use super::script::{Record, Script};
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::request::BuildRequest;
use crate::model::secret::Secret;
use crate::ports::Credentials;

/// A place in memory that makes tokens of references. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct FakeCredentials {
    known: Arc<Mutex<BTreeMap<String, Secret>>>,
    pub script: Script<Fault>,
    /// The ids of the builds that a token was asked for.
    pub calls: Record<String>,
}

impl FakeCredentials {
    /// From now on, the reference stands for this token.
    pub fn know(&self, reference: &str, token: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(reference.to_owned(), Secret::new(token));
    }
}

impl Credentials for FakeCredentials {
    fn token<'a>(
        &'a self,
        request: &'a BuildRequest,
        reference: &'a str,
    ) -> BoxFuture<'a, Result<Secret, Fault>> {
        Box::pin(async move {
            self.calls.push(request.build_id.clone());
            self.script.play().await?;
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(reference).cloned().ok_or_else(|| {
                let message = "The credential that the request names is not known.";
                Fault::new(StageName::Connector, Reason::Unauthorized, message)
            })
        })
    }
}
