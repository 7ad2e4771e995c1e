//! Whether the engine died with a job in hand, or only a connection to it was lost.
//!
//! An engine that is killed, panics or is restarted says nothing: it cuts its connections, as a network
//! does. What tells is whether its socket still takes connections, and whether the engine that answers is
//! the one that took the job.

use std::io::ErrorKind::{ConnectionRefused, NotFound};
use std::time::Duration;

use bollard::errors::Error;
use bollard::query_parameters::InspectNetworkOptions;
use image_builder_actors::model::fault::{Fault, Reason};
use tokio::time::{Instant, sleep, timeout_at};

use super::address::Address;
use super::{DockerEngine, faults};

/// How long an engine that does not answer has to come back.
const PATIENCE: Duration = Duration::from_secs(20);
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// From one start of the engine to the next. Known by the default bridge network, which the engine makes
/// anew whenever it starts; `None` = it has none, or does not show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Life(Option<String>);

/// What became of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Lives,
    Died,
    /// It does not answer, dead or alive.
    OutOfReach,
}

impl DockerEngine {
    /// Asks the engine for its present life.
    ///
    /// # Errors
    /// `engine_down` or `timeout`.
    pub(super) async fn life(&self) -> Result<Life, Fault> {
        let what = "looking for its default network";
        faults::in_time(super::ANSWER_TIMEOUT, what, self.ask_for_life())
            .await?
            .map_err(|error| faults::engine_down(&self.address, &error))
    }

    async fn ask_for_life(&self) -> Result<Life, Error> {
        match self.docker().inspect_network("bridge", None::<InspectNetworkOptions>).await {
            Ok(network) => Ok(Life(network.id)),
            Err(Error::DockerResponseServerError { .. }) => Ok(Life(None)),
            Err(error) => Err(error),
        }
    }

    /// What a job failed with that was begun in this life of the engine: where that is over, the failure is
    /// nothing but its end.
    pub(super) async fn outlived(&self, life: &Life, fault: Fault) -> Fault {
        if fault.reason != Reason::EngineFailed {
            return fault;
        }
        match self.fate(life).await {
            Fate::Lives => fault,
            Fate::Died => Fault::of_dead_engine(fault.stage, fault.message),
            Fate::OutOfReach => Fault { reason: Reason::EngineDown, ..fault },
        }
    }

    async fn fate(&self, began_in: &Life) -> Fate {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // The engine may be the only one who listens, or have a proxy or systemd before it.
            let refuses = match timeout_at(deadline, self.address.open()).await {
                Ok(Err(error)) => matches!(error.kind(), ConnectionRefused | NotFound),
                Ok(Ok(_)) | Err(_) => false,
            };
            if refuses && matches!(self.address, Address::Unix(_)) {
                return Fate::Died;
            }
            match timeout_at(deadline, self.ask_for_life()).await {
                Ok(Ok(Life(Some(now)))) if began_in.0.as_ref().is_some_and(|then| *then != now) => {
                    return Fate::Died;
                }
                Ok(Ok(_)) => return Fate::Lives,
                Ok(Err(_)) | Err(_) => {}
            }
            if Instant::now() + BETWEEN_LOOKS > deadline {
                return if refuses { Fate::Died } else { Fate::OutOfReach };
            }
            sleep(BETWEEN_LOOKS).await;
        }
    }
}
