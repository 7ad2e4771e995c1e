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

use super::{DockerEngine, faults};
use crate::engine::address::Address;

/// How long an engine that does not answer has to come back.
const PATIENCE: Duration = Duration::from_secs(20);
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// From one start of the engine to the next. Known by the default bridge network, which the engine makes
/// anew whenever it starts; `None` = it has none, or does not show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Life(pub(super) Option<String>);

impl Life {
    /// Whether it can be told from another one.
    pub(super) fn is_known(&self) -> bool {
        self.0.is_some()
    }
}

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
        match self.fate(life, PATIENCE).await {
            Fate::Lives => fault,
            Fate::Died => Fault::of_dead_engine(fault.stage, fault.message),
            Fate::OutOfReach => Fault { reason: Reason::EngineDown, ..fault },
        }
    }

    async fn fate(&self, began_in: &Life, patience: Duration) -> Fate {
        let deadline = Instant::now() + patience;
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use image_builder_actors::model::fault::StageName;
    use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
    use tokio::net::{TcpListener, UnixListener};

    use super::super::DockerSettings;
    use super::*;

    /// The next answers of an engine, one a connection: a network's id, or a status.
    type Answers = Arc<Mutex<Vec<Result<&'static str, u16>>>>;

    fn answers(all: &[Result<&'static str, u16>]) -> Answers {
        Arc::new(Mutex::new(all.iter().rev().copied().collect()))
    }

    /// Answers what is asked on a connection. One on which nothing is asked is no answer less.
    async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, answers: Answers) {
        let (asks, mut says) = tokio::io::split(stream);
        let mut lines = BufReader::new(asks).lines();
        let Ok(Some(asked)) = lines.next_line().await else { return };
        assert!(asked.contains("/networks/bridge "), "{asked}");
        while lines.next_line().await.is_ok_and(|line| line.is_some_and(|line| !line.is_empty())) {}
        let (status, body) = match answers.lock().expect("whole").pop() {
            Some(Ok(id)) => (200, format!(r#"{{"Id":"{id}"}}"#)),
            Some(Err(status)) => (status, r#"{"message":"no"}"#.to_owned()),
            // The connection is cut.
            None => return,
        };
        let length = body.len();
        let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n");
        let text = format!("{head}content-length: {length}\r\n\r\n{body}");
        let _ = says.write_all(text.as_bytes()).await;
    }

    fn engine(host: String) -> DockerEngine {
        DockerEngine::connect(DockerSettings { host, ..DockerSettings::default() }).expect("valid")
    }

    async fn at_tcp(answers: Answers) -> DockerEngine {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, answers.clone()));
            }
        });
        engine(format!("tcp://{address}"))
    }

    fn broke() -> Fault {
        faults::engine_broke("building", &"connection closed")
    }

    #[tokio::test]
    async fn a_connection_that_is_cut_is_no_death_of_an_engine_that_goes_on() {
        for answered in [[Ok("one"), Ok("one")], [Err(404), Err(404)], [Ok("one"), Err(403)]] {
            let engine = at_tcp(answers(&answered)).await;
            let life = engine.life().await.expect("it answers");
            assert_eq!(engine.outlived(&life, broke()).await, broke(), "{answered:?}");
        }
    }

    #[tokio::test]
    async fn an_engine_that_was_started_again_has_died() {
        let engine = at_tcp(answers(&[Ok("one"), Ok("two")])).await;
        let life = engine.life().await.expect("it answers");
        let died = Fault::of_dead_engine(StageName::Builder, broke().message);
        assert_eq!(engine.outlived(&life, broke()).await, died);
    }

    #[tokio::test]
    async fn an_engine_whose_socket_nobody_listens_on_has_died() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("engine.sock");
        let engine = engine(format!("unix://{}", path.display()));
        let listener = UnixListener::bind(&path).expect("a socket");
        let (life, ()) = tokio::join!(engine.life(), async {
            let (stream, _) = listener.accept().await.expect("a connection");
            answer(stream, answers(&[Ok("one")])).await;
        });
        drop(listener);
        let fault = engine.outlived(&life.expect("it answers"), broke()).await;
        assert_eq!((fault.reason, fault.engine_died), (Reason::EngineDown, true));
    }

    #[tokio::test]
    async fn a_network_that_carries_nothing_says_nothing_of_the_engine() {
        let engine = at_tcp(answers(&[Ok("one")])).await;
        let life = engine.life().await.expect("it answers");
        assert_eq!(engine.fate(&life, Duration::from_millis(100)).await, Fate::OutOfReach);
    }

    #[tokio::test]
    async fn what_a_build_itself_failed_with_is_left_alone() {
        let engine = at_tcp(answers(&[Ok("one")])).await;
        let life = engine.life().await.expect("it answers");
        let fault = Fault::new(StageName::Builder, Reason::BuildFailed, "exit code 1");
        assert_eq!(engine.outlived(&life, fault.clone()).await, fault);
    }
}
