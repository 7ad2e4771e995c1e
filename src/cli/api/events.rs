//! Follows a build over its service's server-sent events, through every loss of the connection.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{Client, Failure, build_path};

/// Pauses before the service is asked again: the first, and the longest.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a service may be away until nobody waits for it any more.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// What happens to a build that is followed.
#[derive(Debug, PartialEq)]
pub(in crate::cli) enum Followed<'a> {
    /// A line of its log.
    Line(&'a str),
    /// How far it is.
    State(&'a str),
    /// The service is away, for this reason; it is asked again and again.
    Away(&'a str),
}

/// Follows a build until it has ended; returns the outcome. `was_there` = the service answered before: then it is
/// waited for from the beginning.
///
/// # Errors
///
/// The service refuses, is not there, or was away for too long.
pub(in crate::cli) async fn follow(
    client: &Client,
    id: &str,
    user: Option<&str>,
    mut was_there: bool,
    mut hear: impl FnMut(Followed<'_>),
) -> Result<Value, Failure> {
    let path = build_path(id, "/log", user);
    let mut parser = Parser::default();
    let (mut pause, mut heard, mut is_away) = (PAUSE, Instant::now(), false);
    loop {
        let failure = match once(client, &path, &mut parser, &mut hear).await {
            Ok(Ended::WithOutcome(outcome)) => return Ok(outcome),
            Ok(Ended::Early { heard_of_it }) => {
                was_there = true;
                if heard_of_it {
                    (pause, heard, is_away) = (PAUSE, Instant::now(), false);
                }
                Failure::Lost("the service ended the connection".to_owned())
            }
            Err(failure) => failure,
        };
        if !failure.is_passing() || !was_there || heard.elapsed() > PATIENCE {
            return Err(failure);
        }
        if !std::mem::replace(&mut is_away, true) {
            hear(Followed::Away(&failure.to_string()));
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// How one connection ended.
enum Ended {
    WithOutcome(Value),
    Early { heard_of_it: bool },
}

async fn once(
    client: &Client,
    path: &str,
    parser: &mut Parser,
    hear: &mut impl FnMut(Followed<'_>),
) -> Result<Ended, Failure> {
    let mut headers = vec![("accept", "text/event-stream".to_owned())];
    if let Some(id) = &parser.last_id {
        headers.push(("last-event-id", id.clone()));
    }
    let mut answer = client.open(path, &headers).await?;
    parser.begin();
    let mut heard_of_it = false;
    loop {
        let Ok(Some(bytes)) = answer.chunk().await else {
            return Ok(Ended::Early { heard_of_it });
        };
        heard_of_it = true;
        for event in parser.feed(&bytes) {
            match event {
                Event::Comment(state) => hear(Followed::State(&state)),
                Event::Named { name, data } if name == "end" => {
                    return Ok(Ended::WithOutcome(serde_json::from_str(&data).unwrap_or_default()));
                }
                Event::Named { name, data } if name.is_empty() => {
                    data.split('\n').for_each(|line| hear(Followed::Line(line)));
                }
                // Of a later version.
                Event::Named { .. } => {}
            }
        }
    }
}

/// What a stream of events holds.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Comment(String),
    /// The name is empty where none was given.
    Named {
        name: String,
        data: String,
    },
}

/// Reads server-sent events, as the HTML standard writes them; this service ends lines with line feeds.
#[derive(Debug, Default)]
struct Parser {
    /// What has come of a line.
    line: Vec<u8>,
    name: String,
    data: String,
    id: Option<String>,
    /// The id of the last event that came as a whole.
    last_id: Option<String>,
}

impl Parser {
    /// A new connection: what had come of an event comes again.
    fn begin(&mut self) {
        *self = Self { last_id: self.last_id.take(), ..Self::default() };
    }

    /// The events that these bytes complete.
    fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            events.extend(self.read(String::from_utf8_lossy(&line).trim_end_matches('\r')));
        }
        events
    }

    fn read(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            if let Some(id) = self.id.take() {
                self.last_id = Some(id);
            }
            let (name, mut data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
            // Each line of data has left its line feed.
            return data.pop().map(|_| Event::Named { name, data });
        }
        if let Some(comment) = line.strip_prefix(':') {
            return Some(Event::Comment(comment.trim().to_owned()));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" => self.id = Some(value.to_owned()),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use image_builder_actors::model::notification::NotificationType;
    use serde_json::json;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::Notify;
    use tokio::task::JoinSet;

    use super::*;
    use crate::api::v1::tests::{World, ended, output, request};
    use crate::config::ApiConfig;

    /// A way to a service, which ends all connections when it is dropped.
    async fn way(at: &str, to: &str) -> (JoinSet<()>, String) {
        let listener = TcpListener::bind(at).await.expect("the port is free");
        let (address, to) =
            (listener.local_addr().expect("it is bound").to_string(), to.to_owned());
        let mut way = JoinSet::new();
        way.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let to = to.clone();
                connections.spawn(async move {
                    let mut far = TcpStream::connect(to).await.expect("the service listens");
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        (way, address)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_build_is_followed_though_its_service_is_away_for_a_while() {
        crate::cli::choose_tls();
        let world = World::start().await;
        assert_eq!(world.submit(&request("a")).await.status, 202);
        world.record("u", "a", [output("one\n")]).await;
        let (way_there, address) = way("127.0.0.1:0", &world.address).await;
        let config = ApiConfig { address: address.clone(), token: None, url: None };
        let (heard, news) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
        let until = async |text: &str| {
            while !heard.lock().expect("no panic").iter().any(|it: &String| it.starts_with(text)) {
                news.notified().await;
            }
        };
        let followed = tokio::spawn({
            let (heard, news) = (heard.clone(), news.clone());
            async move {
                let client = Client::new(&config);
                let hear = |it: Followed<'_>| {
                    heard.lock().expect("no panic").push(format!("{it:?}"));
                    news.notify_one();
                };
                follow(&client, "a", None, false, hear).await
            }
        });
        until("Line(\"one\")").await;
        drop(way_there);
        world.record("u", "a", [output("two\n")]).await;
        until("Away(").await;
        let (_way_there, _) = way(&address, &world.address).await;
        until("Line(\"two\")").await;
        world.record("u", "a", [ended(NotificationType::ImageReady, &json!({"a": 1}))]).await;
        let outcome = followed.await.expect("no panic").expect("it ends");
        assert_eq!((&outcome["state"], &outcome["data"]), (&json!("ready"), &json!({"a": 1})));
        let heard = heard.lock().expect("no panic");
        let lines: Vec<_> = heard.iter().filter(|it| it.starts_with("Line")).collect();
        assert_eq!(lines, ["Line(\"one\")", "Line(\"two\")"], "each of them once");
    }

    fn named(name: &str, data: &str) -> Event {
        Event::Named { name: name.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn events_are_read_however_they_are_cut() {
        let text = "retry: 1000\n\n: building\n\nid: 5\ndata: a\ndata: \ndata: é\n\nevent: end\nid: 5\ndata: {}\n\n";
        for size in [1, 2, 7, 1000] {
            let mut parser = Parser::default();
            let events: Vec<_> =
                text.as_bytes().chunks(size).flat_map(|bytes| parser.feed(bytes)).collect();
            let comment = Event::Comment("building".to_owned());
            assert_eq!(events, [comment, named("", "a\n\né"), named("end", "{}")], "{size}");
            assert_eq!(parser.last_id.as_deref(), Some("5"));
        }
    }

    #[test]
    fn an_event_that_did_not_come_as_a_whole_counts_for_nothing() {
        let mut parser = Parser::default();
        assert_eq!(parser.feed(b"id: 1\ndata: a\n\nid: 2\ndata: b"), [named("", "a")]);
        parser.begin();
        assert_eq!(parser.last_id.as_deref(), Some("1"));
        assert_eq!(parser.feed(b"id: 2\ndata: b\n\n"), [named("", "b")]);
    }
}
