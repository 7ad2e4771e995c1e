//! The embedded queue: in the process of the one worker, which is spoken to over HTTP.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use image_builder::broker::sqlite::queues::waiting_by_queue;
use image_builder::broker::sqlite::{SqliteBroker, SqliteSettings};
use image_builder_actors::ports::{Broker as _, DeadLetterStore};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::{Broker, Leavings, Silence, Taken};
use crate::gate::Gate;
use crate::requests::Request;
use crate::support::{client, free_port, runtime, until};
use crate::world;

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(20);
/// After this long the worker counts as gone for good: restarts take their time.
const PATIENCE: Duration = Duration::from_secs(180);

pub struct Embedded {
    url: String,
    port: u16,
    /// The worker's file.
    file: PathBuf,
    client: reqwest::Client,
}

impl Embedded {
    pub fn start(home: &Path) -> Self {
        let port = free_port();
        Self {
            url: format!("http://127.0.0.1:{port}/v1/builds"),
            port,
            file: home.join(world::name_of_worker(0)).join("queue.db"),
            // The runtime comes first: it chooses who speaks TLS.
            client: runtime().block_on(async { client() }),
        }
    }

    /// The bodies of the dead letters, read once the worker has ended.
    async fn letters(&self) -> Vec<String> {
        let broker = SqliteBroker::open(SqliteSettings::new(self.file.clone())).await;
        let broker = broker.expect("the worker has let go of its file");
        let mut reading = broker.read().await.expect("nobody else reads");
        let mut letters = Vec::new();
        while let Some(batch) = reading.next().await.expect("the file can be read") {
            letters.extend(batch.iter().map(|it| String::from_utf8_lossy(&it.body).into_owned()));
        }
        reading.close().await.expect("the file can be read");
        broker.close().await;
        letters
    }

    /// Asks until there is an answer that stands; returns it, and how often it was asked.
    fn ask(&self, method: &Method, url: &str, body: Option<&Value>) -> (StatusCode, usize) {
        let deadline = Instant::now() + PATIENCE;
        let mut asked = 0;
        while Instant::now() < deadline {
            let request = self.client.request(method.clone(), url).timeout(ATTEMPT);
            let request = match body {
                Some(body) => request.json(body),
                None => request,
            };
            asked += 1;
            let answer = runtime().block_on(async { request.send().await });
            match answer.map(|answer| answer.status()) {
                Ok(status)
                    if !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS =>
                {
                    return (status, asked);
                }
                // It may be ended at the moment, or not have its disk.
                Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(300)),
            }
        }
        panic!("{method} {url}: no answer that stands within {PATIENCE:?}");
    }
}

impl Broker for Embedded {
    fn workers(&self) -> usize {
        1
    }

    fn settings(&self, _worker: usize) -> Vec<(&'static str, String)> {
        vec![("HTTP_ADDR", format!("127.0.0.1:{}", self.port))]
    }

    fn gates(&self, _worker: Option<usize>) -> Vec<&Mutex<Gate>> {
        Vec::new()
    }

    fn until_ready(&self) {
        until("the worker answers", || {
            let answer = runtime().block_on(async { self.client.get(&self.url).send().await });
            answer.is_ok_and(|answer| answer.status().is_success()).then_some(())
        });
    }

    fn publish(&self, request: &Request) -> Taken {
        let mut body = request.body.clone();
        if let Some(id) = &request.message_id {
            // There is no message beside the body here.
            body["uuid"] = id.as_str().into();
        }
        let (status, asked) = self.ask(&Method::POST, &self.url, Some(&body));
        match status {
            StatusCode::ACCEPTED | StatusCode::OK => {
                // Whoever names it is answered for the one build, however often it was asked.
                Taken::Copies(if request.build_id.is_some() { 1 } else { asked })
            }
            StatusCode::BAD_REQUEST => Taken::Refused,
            odd => panic!("{odd} for {body}"),
        }
    }

    fn cancel(&self, user: &str, build_id: &str) {
        let url = format!("{}/{build_id}?user={user}", self.url);
        let (status, _) = self.ask(&Method::DELETE, &url, None);
        assert_eq!(status, StatusCode::ACCEPTED, "DELETE {url}");
    }

    fn cut_off(&self) -> Box<dyn Silence + '_> {
        Box::new(StillThere)
    }

    fn close_connections(&self, _worker: usize) -> usize {
        0
    }

    fn restart(&self, _kill: bool) -> bool {
        false
    }

    fn waiting(&self) -> Result<Vec<(String, u64)>, String> {
        let counted = runtime().block_on(waiting_by_queue(&self.file));
        let counted = counted.map_err(|error| error.to_string())?;
        let queues = counted.into_iter().filter(|counted| counted.queue != "dead");
        Ok(queues.map(|it| (it.queue.to_owned(), it.waiting + it.delayed + it.in_hand)).collect())
    }

    fn leavings(&self) -> Leavings {
        let left = self.waiting().expect("the file can be read").into_iter();
        let left = left.filter(|(_, count)| *count > 0);
        Leavings {
            letters: runtime().block_on(self.letters()),
            messages: left.map(|(queue, count)| (queue, format!("{count} messages"))).collect(),
        }
    }
}

/// Whoever cancels speaks to the worker: it cannot be kept from hearing.
struct StillThere;

impl Silence for StillThere {}
