//! Room for builds: on this machine's disk, and in the hosts' caches.

use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::{DiskUsageRequest, PruneRequest};
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::shutdown::{Shutdown, ShutdownPhase};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::host::Host;
use super::{BETWEEN_TIDYINGS, Fleet};
use crate::engine::buildkit::control::Control;
use crate::engine::docker::disk::size::Size;
use crate::engine::faults::{self, engine_broke};

/// A record that was used so lately may be a build's that is just beginning.
const YOUNG: Duration = Duration::from_secs(60);
/// How long a host may take to count, and to prune.
const TIMEOUT: Duration = Duration::from_secs(10 * 60);

impl Fleet {
    /// Whether `DATA_DIR` has more room than the low watermark.
    ///
    /// # Errors
    /// It has not: a sentence for an operator.
    pub async fn look_at_disk(&self) -> Result<(), String> {
        let (place, low) = (self.inner.data_dir.clone(), self.inner.settings.low.clone());
        let room = crate::blocking::blocking(move || place.room().ok()).await;
        match room {
            Some(room) if room.lacks(&low) > 0 => Err(room.complaint("DISK_LOW_WATERMARK", &low)),
            _ => Ok(()),
        }
    }

    /// What the caches of all hosts held when they were last counted, in bytes.
    pub fn held(&self) -> watch::Receiver<u64> {
        self.inner.held.subscribe()
    }

    /// Prunes each host down to its budget, again and again until the worker drains.
    pub async fn run(self, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(BETWEEN_TIDYINGS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.reached(ShutdownPhase::Draining) => return,
                _ = ticks.tick() => {}
            }
            tokio::select! {
                () = shutdown.reached(ShutdownPhase::Draining) => return,
                () = self.tidy() => {}
            }
        }
    }

    /// Prunes each host down to its budget, and counts what is left.
    pub async fn tidy(&self) {
        let mut held = 0;
        for host in &self.inner.hosts {
            let tidied = async {
                host.prune(self.inner.settings.budget).await?;
                host.held().await
            };
            match tidied.await {
                Ok(bytes) => held += bytes,
                Err(fault) => tracing::warn!(host = host.name, "cannot prune: {}", fault.message),
            }
        }
        self.inner.held.send_replace(held);
    }

    /// What is told of a build in which a host had no room left. Half of its cache goes. That a build says so
    /// proves nothing, since a stranger can make it: so the try is counted, and nobody else waits.
    pub(super) async fn ran_full(&self, host: &Host) -> Fault {
        let pruned = async {
            let held = host.held().await?;
            host.prune(Size(held / 2)).await
        };
        if let Err(fault) = pruned.await {
            tracing::warn!(host = host.name, "cannot make room: {}", fault.message);
        }
        let message = format!("The build host {} had no space left on its disk.", host.name);
        Fault::new(StageName::Builder, Reason::EngineFailed, message)
    }
}

impl Host {
    /// What its cache holds, in bytes.
    async fn held(&self) -> Result<u64, Fault> {
        let what = "counting its cache";
        let asked = async {
            let mut control = Control::open(&self.endpoint).await?;
            let usage = control.client.disk_usage(DiskUsageRequest::default()).await;
            let usage = usage.map_err(|status| engine_broke(what, &status.message()))?.into_inner();
            let sizes = usage.record.iter().map(|record| u64::try_from(record.size).unwrap_or(0));
            Ok(sizes.sum())
        };
        faults::in_time(TIMEOUT, what, asked).await?
    }

    /// Removes what was used longest ago, down to so much.
    async fn prune(&self, Size(budget): Size) -> Result<(), Fault> {
        let what = "pruning its cache";
        let keep = i64::try_from(budget).unwrap_or(i64::MAX);
        let request = PruneRequest {
            all: true,
            keep_duration: i64::try_from(YOUNG.as_nanos()).unwrap_or(i64::MAX),
            // The first is how BuildKit before 0.17 knows it, the second how those since then do.
            reserved_space: keep,
            max_used_space: keep,
            ..PruneRequest::default()
        };
        let asked = async {
            let mut control = Control::open(&self.endpoint).await?;
            let broke = |status: tonic::Status| engine_broke(what, &status.message());
            let mut gone = control.client.prune(request).await.map_err(broke)?.into_inner();
            while gone.message().await.map_err(broke)?.is_some() {}
            Ok(())
        };
        faults::in_time(TIMEOUT, what, asked).await?
    }
}
