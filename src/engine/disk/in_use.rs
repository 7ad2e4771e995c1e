//! Which images jobs of this worker have in hand.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The build keys of images that a job has in hand. Clones share it.
///
/// A claim is handed over inside a job, from whoever built or found the image to whoever pushes it.
/// A job that ends between the two tells nobody here: no job outlasts its time limit, and after that
/// a claim counts no longer.
#[derive(Debug, Clone)]
pub(super) struct InUse {
    claims: Arc<Mutex<HashMap<String, Vec<Instant>>>>,
    /// The longest that a job lasts.
    longest: Duration,
}

/// One job's claim on an image. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Claim {
    in_use: InUse,
    key: Option<String>,
}

impl InUse {
    pub(super) fn new(longest: Duration) -> Self {
        Self { claims: Arc::default(), longest }
    }

    /// A job has the image of `key`, or is about to.
    pub(super) fn claim(&self, key: &str) -> Claim {
        let mut claims = self.lock();
        for since in claims.values_mut() {
            since.retain(|since| since.elapsed() < self.longest);
        }
        claims.retain(|_, since| !since.is_empty());
        claims.entry(key.to_owned()).or_default().push(Instant::now());
        drop(claims);
        self.take_over(key)
    }

    /// A claim that was [kept](Claim::keep) before.
    pub(super) fn take_over(&self, key: &str) -> Claim {
        Claim { in_use: self.clone(), key: Some(key.to_owned()) }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        let claims = self.lock();
        let since = claims.get(key).map(Vec::as_slice).unwrap_or_default();
        since.iter().any(|since| since.elapsed() < self.longest)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Vec<Instant>>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// Leaves the claim standing for whoever [takes it over](InUse::take_over).
    pub(super) fn keep(mut self) {
        self.key = None;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        let mut claims = self.in_use.lock();
        let Some(since) = claims.get_mut(&key) else { return };
        since.pop();
        if since.is_empty() {
            claims.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_in_use_until_the_last_job_is_done_with_it() {
        let in_use = InUse::new(Duration::from_secs(60));
        in_use.claim("k").keep();
        let second = in_use.claim("k");
        drop(in_use.take_over("k"));
        assert!(in_use.has("k") && !in_use.has("l"));
        drop(second);
        assert!(!in_use.has("k"));
        drop(in_use.take_over("k"));
        assert!(!in_use.has("k"));
    }

    #[test]
    fn a_claim_ends_with_the_longest_job() {
        let in_use = InUse::new(Duration::ZERO);
        in_use.claim("k").keep();
        assert!(!in_use.has("k"));
        let _other = in_use.claim("l");
        assert_eq!(in_use.lock().len(), 1);
    }
}
