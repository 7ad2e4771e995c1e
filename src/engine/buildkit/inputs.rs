//! What a build sees beside its plan, by name.

use std::collections::BTreeSet;

use image_builder_actors::model::digest::{add_part, hex};
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::limits::Limits;
use image_builder_actors::ports::Plan;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use crate::blocking::blocking;

/// Names the front end that reads the Dockerfile, in place of a line in it.
const FRONT_END: &str = "BUILDKIT_SYNTAX";

/// What a build sees.
#[derive(Debug)]
pub(in crate::engine) struct Seen {
    /// Its base images, as the Dockerfile names them.
    pub(in crate::engine) bases: BTreeSet<String>,
    /// The digest of what it is sent.
    contents: String,
}

impl Seen {
    /// What a build by this plan sees; `None` = it cannot be told.
    ///
    /// # Errors
    /// The context cannot be sent.
    pub(in crate::engine) async fn of(plan: &Plan, limits: &Limits) -> Result<Option<Self>, Fault> {
        if plan.build_args.contains_key(FRONT_END) {
            return Ok(None);
        }
        let unwanted = CancellationToken::new();
        let _end = unwanted.clone().drop_guard();
        let (plan, limits) = (plan.clone(), limits.clone());
        let seen = blocking(move || {
            let context = Context::open(&plan, &limits)?;
            let Some(bases) = context.bases() else { return Ok(None) };
            Ok(context.contents(unwanted)?.map(|contents| Self { bases, contents }))
        });
        seen.await
    }

    /// Its name, with what is known of each base image; `None` = of one of them nothing is known.
    pub(in crate::engine) fn name(&self, known: Vec<Option<Now>>) -> Option<String> {
        let mut hash = Sha256::new();
        add_part(&mut hash, &self.contents);
        for (base, now) in self.bases.iter().zip(known) {
            let Some(now) = now else {
                tracing::debug!(base, "what this base image is now cannot be told");
                return None;
            };
            add_part(&mut hash, base);
            add_part(&mut hash, now.here);
            add_part(&mut hash, now.at_its_registry);
        }
        Some(format!("inputs:{}", hex(&hash.finalize())))
    }
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
