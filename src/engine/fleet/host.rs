//! One `buildkitd`: how it stands, and the builds on it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::image::ImageLocation;
use image_builder_actors::ports::BuildOrder;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, timeout_at};

use crate::engine::address::Address;
use crate::engine::buildkit::abilities::Abilities;
use crate::engine::buildkit::build::Builds;
use crate::engine::buildkit::control::{Control, Door, Endpoint};
use crate::engine::buildkit::solve::{Known, Output};
use crate::engine::buildkit::tenancy::Tenancy;
use crate::engine::buildkit::times::FileTimes;
use crate::engine::faults::{self, redacted};
use crate::engine::platforms;
use crate::engine::settings::{BuildSettings, StraightPush};

/// How long a host may take to say what it can do.
const REACH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a host whose connections broke has to answer again before it counts as dead.
const PATIENCE: Duration = Duration::from_secs(3);
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);
/// How long a host that failed once is passed over, and at the most.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// One host.
pub(super) struct Host {
    /// As `BUILDKIT_HOST` has it.
    pub(super) name: String,
    /// Whether no build begins there any more.
    pub(super) drains: bool,
    pub(super) endpoint: Endpoint,
    builds: Builds,
    in_hand: Arc<AtomicUsize>,
    failures: Mutex<Failures>,
}

/// What went wrong with a host since it last did well.
#[derive(Debug, Default)]
struct Failures {
    in_a_row: u32,
    out_until: Option<Instant>,
}

impl Failures {
    fn one_more(&mut self, now: Instant) {
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.in_a_row.min(10));
        self.in_a_row += 1;
        self.out_until = Some(now + doubled.min(LONGEST_PAUSE));
    }
}

/// A build that a host has in hand, until it is dropped.
pub(super) struct Turn(Arc<AtomicUsize>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Host {
    pub(super) fn new(
        name: String,
        address: Address,
        drains: bool,
        builds: BuildSettings,
        times: Arc<FileTimes>,
    ) -> Self {
        Self {
            name,
            drains,
            endpoint: Endpoint { address, door: Door::Open },
            builds: Builds::new(builds, times),
            in_hand: Arc::default(),
            failures: Mutex::default(),
        }
    }

    pub(super) fn in_hand(&self) -> usize {
        self.in_hand.load(Ordering::Relaxed)
    }

    /// Counts a build that is to go there.
    pub(super) fn take(&self) -> Turn {
        self.in_hand.fetch_add(1, Ordering::Relaxed);
        Turn(self.in_hand.clone())
    }

    /// Whether it failed, and its pause is not over.
    pub(super) fn is_out(&self) -> bool {
        self.failures().out_until.is_some_and(|until| Instant::now() < until)
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it answers, and keeps users apart where it has to.
    ///
    /// # Errors
    /// `engine_down`, `engine_failed` or `timeout`.
    pub(super) async fn look(&self) -> Result<(), Fault> {
        let what = format!("looking at {}", self.endpoint.address);
        let asked = async {
            let mut control = Control::open(&self.endpoint).await?;
            let abilities = Abilities::of(&mut control).await?;
            match self.builds.settings.tenancy {
                Tenancy::Strict => abilities.keep_users_apart(None),
                Tenancy::Trusted => Ok(()),
            }
        };
        faults::in_time(REACH_TIMEOUT, &what, asked).await?
    }

    /// The same, for a build that is to go there: a host that is not reached is passed over for a while.
    pub(super) async fn reach(&self) -> Result<(), Fault> {
        let reached = self.look().await;
        if reached.is_err() {
            self.failures().one_more(Instant::now());
        }
        // A host that cannot be asked builds nothing, whatever it says.
        reached.map_err(|fault| Fault { reason: Reason::EngineDown, ..fault })
    }

    /// Builds an image, which goes to the registry.
    pub(super) async fn build(
        &self,
        order: &BuildOrder,
        progress: &BuildLog,
    ) -> Result<ImageLocation, Fault> {
        let wanted = &order.plan.platforms;
        if !wanted.is_empty() {
            let mut control = Control::open(&self.endpoint).await?;
            let platforms = Abilities::platforms(&mut control).await?;
            let warning =
                platforms::check(wanted, &platforms::Abilities { platforms, several: true })?;
            warning.into_iter().for_each(|warning| progress.note(warning));
        }
        let push = self.builds.settings.straight.unwrap_or(StraightPush { plain_http: false });
        let output = Output::straight(order, push);
        // It has no way to tell its clock.
        let known = Known { now: OffsetDateTime::now_utc(), name: None, has_other_bases: false };
        match self.builds.build(&self.endpoint, &known, order, &output, progress).await {
            Ok(digest) => {
                *self.failures() = Failures::default();
                Ok(ImageLocation::Pushed { digest })
            }
            Err(fault) => Err(redacted(self.outlived(fault).await, progress)),
        }
    }

    /// What a build failed with: where the host is gone, the failure is nothing but its end.
    async fn outlived(&self, fault: Fault) -> Fault {
        if !matches!(fault.reason, Reason::EngineFailed | Reason::EngineDown) {
            *self.failures() = Failures::default();
            return fault;
        }
        self.failures().one_more(Instant::now());
        match self.answers_again(PATIENCE).await {
            true => fault,
            false => {
                let address = &self.endpoint.address;
                let message = format!(
                    "The build host {address} went away with the build in hand: {}",
                    fault.message
                );
                Fault::of_dead_engine(StageName::Builder, message)
            }
        }
    }

    async fn answers_again(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            if matches!(timeout_at(deadline, self.look()).await, Ok(Ok(()))) {
                return true;
            }
            if Instant::now() + BETWEEN_LOOKS > deadline {
                return false;
            }
            sleep(BETWEEN_LOOKS).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_fails_again_and_again_is_passed_over_for_longer() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..12 {
            failures.one_more(now);
            pauses.push(failures.out_until.expect("it is out") - now);
        }
        assert_eq!(pauses[..3], [5, 10, 20].map(Duration::from_secs));
        assert_eq!(pauses[11], LONGEST_PAUSE);
    }
}
