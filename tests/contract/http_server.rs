//! An HTTP server inside the test, for answers that no real service gives when asked to.

use std::sync::Mutex;

use crate::stand_in::StandIn;
pub(crate) use crate::stand_in::{Answer, Asked as Request};

/// Listens on a port of its own until it is dropped, and remembers what it was asked.
pub(crate) struct HttpServer(StandIn);

impl HttpServer {
    pub(crate) async fn answering(
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self(StandIn::start(answer).await)
    }

    /// A server that takes requests and never answers.
    pub(crate) async fn silent() -> Self {
        Self::answering(|_| Answer::Later(Box::pin(std::future::pending()))).await
    }

    /// A server that gives these answers, one after the other.
    pub(crate) async fn with_answers(answers: impl IntoIterator<Item = Answer>) -> Self {
        let mut answers: Vec<_> = answers.into_iter().collect();
        answers.reverse();
        let answers = Mutex::new(answers);
        Self::answering(move |_| {
            answers.lock().expect("no panic inside").pop().expect("an answer is left")
        })
        .await
    }

    pub(crate) fn port(&self) -> u16 {
        self.0.address.port()
    }

    /// `127.0.0.1:port`.
    pub(crate) fn host(&self) -> String {
        self.0.address.to_string()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.0.url())
    }

    /// Every request so far, in order.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.0.asked()
    }

    /// Waits for a request.
    pub(crate) async fn wait_until_asked(&self) {
        self.0.wait_until_asked().await;
    }
}

/// An answer with headers and a body.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Answer {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Answer::Text { status, headers: headers.collect(), body: body.into() }
}
