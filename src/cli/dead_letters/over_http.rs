//! Dead letters of a service that runs, over its HTTP API.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use image_builder_actors::ports::{
    DeadLetterReading, DeadLetterStore, DeadLettersError, KeptLetter, Message,
};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use crate::cli::api::client::{Client, Failure};
use crate::dead_letters::letter::Found;
use crate::dead_letters::redrive;
use crate::net::address::encoded;

/// The dead letters of one service.
pub(in crate::cli) struct OverHttp {
    client: Arc<Client>,
}

impl OverHttp {
    /// `None` = no service answers there that would show them.
    pub(in crate::cli) async fn find(client: Client) -> Option<Self> {
        client.get::<Value>("/workers").await.ok()?;
        Some(Self { client: Arc::new(client) })
    }

    /// Of a service that is meant for certain.
    pub(in crate::cli) fn of(client: Client) -> Self {
        Self { client: Arc::new(client) }
    }
}

#[derive(Deserialize)]
struct Page {
    letters: Vec<Kept>,
    next: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    #[serde(rename = "buildID")]
    build_id: String,
    #[serde(default, with = "time::serde::rfc3339::option")]
    kept_until: Option<OffsetDateTime>,
    bytes: usize,
    letter: Option<Box<RawValue>>,
}

impl Kept {
    fn under(self, tag: u64) -> KeptLetter {
        let body = match self.letter {
            Some(letter) => letter.get().as_bytes().to_vec(),
            // Of what is no letter only the length is shown, here as well.
            None => vec![b' '; self.bytes],
        };
        let (message_id, kept_until) = (Some(self.build_id), self.kept_until);
        KeptLetter { tag, message_id, body, kept_until }
    }
}

impl DeadLetterStore for OverHttp {
    fn read(&self) -> BoxFuture<'_, Result<Box<dyn DeadLetterReading>, DeadLettersError>> {
        Box::pin(async move {
            let mut letters = Vec::new();
            let mut path = "/dead?limit=1000".to_owned();
            loop {
                let page: Page = self.client.get(&path).await.map_err(in_words)?;
                for kept in page.letters {
                    letters.push(kept.under(letters.len() as u64));
                }
                let Some(next) = page.next else { break };
                path = format!("/dead?limit=1000&cursor={}", encoded(&next));
            }
            let reading = Reading { client: self.client.clone(), letters, known: BTreeMap::new() };
            Ok(Box::new(reading) as Box<dyn DeadLetterReading>)
        })
    }
}

/// What was there when it began.
struct Reading {
    client: Arc<Client>,
    letters: Vec<KeptLetter>,
    /// Of what was read: where it is, and what was taken out of it.
    known: BTreeMap<u64, Known>,
}

struct Known {
    path: String,
    /// Whose it is, and which of the build's.
    query: String,
    removed: Vec<String>,
}

impl Known {
    fn of(kept: &KeptLetter) -> Self {
        let found = Found::of(kept.clone());
        let whose = found.user().map_or_else(String::new, |it| format!("user={}&", encoded(it)));
        Self {
            path: format!("/dead/{}", encoded(&found.id)),
            // What is no letter is not known here byte by byte.
            query: match &found.letter {
                Some(_) => format!("?{whose}letter={}", found.name()),
                None => String::new(),
            },
            removed: found.letter.map(|letter| letter.removed).unwrap_or_default(),
        }
    }
}

impl DeadLetterReading for Reading {
    fn warning(&self) -> Option<&str> {
        None
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<KeptLetter>>, DeadLettersError>> {
        Box::pin(async move {
            let letters = std::mem::take(&mut self.letters);
            self.known.extend(letters.iter().map(|kept| (kept.tag, Known::of(kept))));
            Ok((!letters.is_empty()).then_some(letters))
        })
    }

    fn remove<'a>(&'a mut self, tags: &'a [u64]) -> BoxFuture<'a, Result<(), DeadLettersError>> {
        Box::pin(async move {
            let known = tags.iter().filter_map(|tag| self.known.get(tag));
            let paths: BTreeSet<_> = known.map(|it| format!("{}{}", it.path, it.query)).collect();
            for path in paths {
                match self.client.delete(&path).await {
                    // Copies of a letter go at once.
                    Ok(_) | Err(Failure::Refused { status: 404, .. }) => {}
                    Err(failure) => return Err(in_words(failure)),
                }
            }
            Ok(())
        })
    }

    fn redrive<'a>(
        &'a mut self,
        request: Message,
        tags: &'a [u64],
    ) -> BoxFuture<'a, Result<(), DeadLettersError>> {
        Box::pin(async move {
            // All are letters of one build, and the request is made of the last.
            let Some((newest, others)) = tags.split_last() else { return Ok(()) };
            let Some(known) = self.known.get(newest) else { return Ok(()) };
            let given = redrive::given_in(&request.body, &known.removed).to_string();
            let path = format!("{}/redrive{}", known.path, known.query);
            self.client.post(&path, given.into_bytes()).await.map_err(in_words)?;
            self.remove(others).await
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<(), DeadLettersError>> {
        Box::pin(async move { Ok(()) })
    }
}

fn in_words(failure: Failure) -> DeadLettersError {
    let text = failure.to_string();
    match failure {
        Failure::Refused { status: 503, .. } => DeadLettersError::Busy(text),
        Failure::Refused { .. } => DeadLettersError::Refused(text),
        Failure::Unreachable(_) | Failure::Lost(_) => DeadLettersError::Unavailable(text),
    }
}

#[cfg(test)]
mod tests {
    use image_builder_actors::model::secret::Secret;
    use serde_json::json;

    use super::*;
    use crate::api::v1::tests::World;
    use crate::config::ApiConfig;
    use crate::dead_letters::redrive::{Given, Token, message, new_id, request};

    async fn read(service: &OverHttp) -> (Box<dyn DeadLetterReading>, Vec<KeptLetter>) {
        let mut reading = service.read().await.expect("it answers");
        let mut letters = Vec::new();
        while let Some(batch) = reading.next().await.expect("it answers") {
            letters.extend(batch);
        }
        (reading, letters)
    }

    #[tokio::test]
    async fn letters_are_read_removed_and_redriven_as_they_are_on_the_broker() {
        crate::cli::choose_tls();
        let world = World::start().await;
        let plan = json!({"secrets": {"npm": "s0"}});
        for id in ["a", "b", "c"] {
            let request = json!({"userID": "u", "repo": "o/n", "token": "t0", "buildPlan": plan});
            world.keep_letter(id, &request).await;
        }
        let config = ApiConfig { address: world.address.clone(), token: None, url: None };
        let service = OverHttp::find(Client::new(&config)).await.expect("a service answers");
        let (mut reading, letters) = read(&service).await;
        let bodies: Vec<_> = letters.iter().map(|letter| letter.body.clone()).collect();
        assert_eq!(bodies, world.letters(), "byte by byte: ids are made of them");
        reading.remove(&[letters[1].tag]).await.expect("it answers");
        let found = Found::of(letters[0].clone());
        let given = Given {
            token: Some(Secret::new("t1")),
            secrets: [("npm".to_owned(), Secret::new("s1"))].into(),
            ..Given::default()
        };
        let id = new_id(&found);
        let body = request(&found, &given, Token::Always, &id).expect("all is given");
        reading.redrive(message(body.clone(), &id), &[letters[0].tag]).await.expect("it answers");
        reading.close().await.expect("it was all");
        let [published] = &world.requests()[..] else { panic!("one request") };
        assert_eq!(published.message_id.as_deref(), Some(id.as_str()));
        let as_json = |body: &[u8]| serde_json::from_slice::<Value>(body).expect("JSON");
        assert_eq!(as_json(&published.body), as_json(&body));
        let (_, left) = read(&service).await;
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].message_id.as_deref(), Some("c"));
    }

    #[tokio::test]
    async fn one_letter_of_a_build_that_has_several_is_meant_alone() {
        crate::cli::choose_tls();
        let world = World::start().await;
        for repo in ["o/one", "o/two", "o/three"] {
            world.keep_letter("a", &json!({"userID": "u", "repo": repo})).await;
        }
        let config = ApiConfig { address: world.address.clone(), token: None, url: None };
        let service = OverHttp::of(Client::new(&config));
        let (mut reading, letters) = read(&service).await;
        let found = Found::of(letters[1].clone());
        let id = new_id(&found);
        let body =
            request(&found, &Given::default(), Token::Always, &id).expect("it lacks nothing");
        reading.redrive(message(body, &id), &[found.tag]).await.expect("it answers");
        let [published] = &world.requests()[..] else { panic!("one request") };
        assert_eq!(published.message_id.as_deref(), Some(id.as_str()), "the id that is told");
        reading.remove(&[letters[0].tag]).await.expect("it answers");
        assert_eq!(world.letters(), [letters[2].body.clone()]);
    }

    #[tokio::test]
    async fn where_nobody_answers_there_is_no_service() {
        crate::cli::choose_tls();
        let config = ApiConfig { address: "127.0.0.1:1".to_owned(), token: None, url: None };
        assert!(OverHttp::find(Client::new(&config)).await.is_none());
    }
}
