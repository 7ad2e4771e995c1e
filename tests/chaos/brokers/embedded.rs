//! The embedded queue: in the process of the one worker, which is spoken to over HTTP.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::{Broker, Leavings, Taken};
use crate::gate::Gate;
use crate::requests::Request;
use crate::support::{free_port, runtime, until};
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
            client: reqwest::Client::new(),
        }
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
            match runtime().block_on(request.send()).map(|answer| answer.status()) {
                Ok(status) if !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS => {
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
            let answer = runtime().block_on(self.client.get(&self.url).send());
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

    fn cut_off(&self) -> Box<dyn Any + '_> {
        Box::new(())
    }

    fn close_connections(&self, _worker: usize) -> usize {
        0
    }

    fn restart(&self, _kill: bool) -> bool {
        false
    }

    fn waiting(&self) -> Result<Vec<(String, u64)>, String> {
        todo!()
    }

    fn leavings(&self) -> Leavings {
        todo!()
    }
}
