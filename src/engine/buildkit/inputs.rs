//! What a build sees beside its plan, by name.

use std::collections::BTreeSet;
use std::sync::Arc;

use image_builder_actors::model::digest::{add_part, hex};
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::limits::Limits;
use image_builder_actors::ports::Plan;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::times::FileTimes;
use crate::blocking::blocking;

/// Names the front end that reads the Dockerfile, in place of a line in it.
const FRONT_END: &str = "BUILDKIT_SYNTAX";

/// A name for all that a build by this plan sees; `None` = it cannot be told. `ask` says what is known of each of
/// its base images, which the Dockerfile names, while what it is sent is read.
///
/// # Errors
/// The context cannot be sent.
pub(in crate::engine) async fn name<F>(
    plan: &Plan,
    limits: &Limits,
    times: &Arc<FileTimes>,
    ask: impl FnOnce(BTreeSet<String>) -> F,
) -> Result<Option<String>, Fault>
where
    F: Future<Output = Vec<Option<Now>>>,
{
    if plan.build_args.contains_key(FRONT_END) {
        return Ok(None);
    }
    let (plan, limits) = (plan.clone(), limits.clone());
    let opened = blocking(move || {
        let context = Context::open(&plan, &limits)?;
        Ok(context.bases().map(|bases| (context, bases)))
    });
    let Some((context, bases)) = opened.await? else { return Ok(None) };
    let unwanted = CancellationToken::new();
    let _end = unwanted.clone().drop_guard();
    let times = times.clone();
    let contents = blocking(move || context.contents(unwanted, &times.read));
    let (contents, known) = tokio::join!(contents, ask(bases.clone()));
    let Some(contents) = contents? else { return Ok(None) };
    let mut hash = Sha256::new();
    add_part(&mut hash, contents);
    for (base, now) in bases.iter().zip(known) {
        let Some(now) = now else {
            tracing::debug!(base, "what this base image is now cannot be told");
            return Ok(None);
        };
        add_part(&mut hash, base);
        add_part(&mut hash, now.here);
        add_part(&mut hash, now.at_its_registry);
    }
    Ok(Some(format!("inputs:{}", hex(&hash.finalize()))))
}

/// What an image is. Engines differ in which of both they take, so both count.
#[derive(Debug, Default)]
pub(in crate::engine) struct Now {
    /// The engine's id of it; empty = the engine has none of this name.
    pub(in crate::engine) here: String,
    /// Its digest; empty = the registry does not say.
    pub(in crate::engine) at_its_registry: String,
}

impl Now {
    /// Of an image that is named with its digest.
    pub(in crate::engine) fn by_digest(base: &str) -> Option<Self> {
        let (_, digest) = base.split_once('@')?;
        Some(Self { at_its_registry: digest.to_owned(), ..Self::default() })
    }
}
