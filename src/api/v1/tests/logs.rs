//! Logs, as a whole and live.

use super::*;

#[tokio::test]
async fn a_log_is_read_as_a_whole_or_in_parts() {
    let world = World::start().await;
    world.submit(&request("a")).await;
    assert_eq!(world.get("/v1/builds/a/log").await.body, "");
    world.record("u", "a", [output("one\n"), output("two\n")]).await;
    let whole = world.get("/v1/builds/a/log").await;
    assert_eq!((whole.status, whole.body.as_str()), (200, "one\ntwo\n"));
    assert_eq!(whole.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(whole.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(world.get("/v1/builds/a/log?offset=4").await.body, "two\n");
    assert_eq!(world.get("/v1/builds/a/log?offset=8").await.body, "");
    assert_eq!(world.get("/v1/builds/a/log?offset=9").await.status, 416);
    assert_eq!(world.get("/v1/builds/a/log?offset=-1").await.status, 400);
    let range = world.ask("GET", "/v1/builds/a/log", &[("Range", "bytes=2-4")], "").await;
    assert_eq!((range.status, range.body.as_str()), (206, "e\nt"));
    assert_eq!(range.header("content-range"), Some("bytes 2-4/8"));
    let behind = world.ask("GET", "/v1/builds/a/log", &[("Range", "bytes=8-")], "").await;
    assert_eq!((behind.status, behind.header("content-range")), (416, Some("bytes */8")));
    let head = world.ask("HEAD", "/v1/builds/a/log", &[], "").await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("8")));
}

#[tokio::test]
async fn a_long_log_comes_as_a_whole() {
    let world = World::start().await;
    world.submit(&request("a")).await;
    let long = "a line of a long log\n".repeat(20_000);
    world.record("u", "a", [output(&long)]).await;
    assert!(world.get("/v1/builds/a/log").await.body == long);
    world.record("u", "a", [ended(NotificationType::ImageReady, &json!({}))]).await;
    let events = follow(&world, "a", &[]).await;
    let lines = events.lines().filter_map(|line| line.strip_prefix("data: "));
    let lines: Vec<_> = lines.filter(|line| !line.starts_with('{')).collect();
    assert_eq!(lines.len(), 20_000);
    assert!(lines.iter().all(|line| *line == "a line of a long log"));
}

/// All events of a build's log, to their end.
async fn follow(world: &World, id: &str, headers: &[(&str, &str)]) -> String {
    let headers = [&[("Accept", "text/event-stream")], headers].concat();
    world.ask("GET", &format!("/v1/builds/{id}/log"), &headers, "").await.body
}

/// Reads until this text has come.
async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut buffer).await.expect("it can be read");
        read.extend_from_slice(&buffer[..count]);
        let all = String::from_utf8_lossy(&read);
        if all.contains(text) {
            return all.into_owned();
        }
        assert!(count > 0, "it ended without {text}: {all}");
    }
}

#[tokio::test]
async fn a_log_is_followed_live_and_ends_with_the_outcome() {
    let world = World::start().await;
    world.submit(&request("a")).await;
    world.record("u", "a", [output("one\n")]).await;
    let accept = [("Accept", "text/event-stream")];
    let mut stream = world.open("GET", "/v1/builds/a/log", &accept, b"").await;
    let begun = read_until(&mut stream, "id: 4\ndata: one\n\n").await;
    assert!(begun.contains(": queued\n\n") && begun.contains("text/event-stream"), "{begun}");
    world.record("u", "a", [stage(StageName::Builder), output("half a")]).await;
    read_until(&mut stream, ": building\n\n").await;
    world.record("u", "a", [output(" line\nrest")]).await;
    read_until(&mut stream, "id: 16\ndata: half a line\n\n").await;
    let data = json!({"fault": "user"});
    world.record("u", "a", [ended(NotificationType::BuildFailed, &data)]).await;
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.expect("it ends");
    let events = unchunked(rest.trim_start());
    assert!(events.contains("id: 20\ndata: rest\n\n"), "{events}");
    let (_, end) = events.split_once("event: end\nid: 20\ndata: ").expect("it ends");
    let end: Value = serde_json::from_str(end.trim()).expect("JSON");
    let outcome = json!({"buildID": "a", "state": "failed", "type": "build.failed", "data": data});
    assert_eq!(end, outcome);
}

#[tokio::test]
async fn whoever_comes_back_goes_on_behind_the_last_event() {
    let world = World::start().await;
    world.submit(&request("a")).await;
    let changes = [output("one\ntwo\n"), ended(NotificationType::ImageReady, &json!({}))];
    world.record("u", "a", changes).await;
    let events = follow(&world, "a", &[("Last-Event-ID", "4")]).await;
    assert!(events.contains("id: 8\ndata: two\n\n") && !events.contains("one"), "{events}");
    let events = follow(&world, "a", &[("Last-Event-ID", "8")]).await;
    assert!(!events.contains("data: two") && events.contains("event: end\nid: 8\n"), "{events}");
    // The log was begun anew meanwhile.
    let events = follow(&world, "a", &[("Last-Event-ID", "99")]).await;
    assert!(events.contains("data: one\ndata: two\n"), "{events}");
}

#[tokio::test]
async fn whoever_follows_a_silent_build_hears_that_the_service_is_there() {
    let (backend, parts) = backend(None);
    let build = BuildIdentity::new(Some("u"), "a");
    let request = parse::parse(request("a").to_string().as_bytes(), "a", &backend.rules);
    let requested = crate::api::v1::builds::requested(&request.expect("a good request"), b"");
    let change = Change::Requested(requested);
    let recorded = Recorded { build: build.clone(), at: OffsetDateTime::now_utc(), change };
    parts.store.record(&[recorded]).await.expect("it is up");
    let keep_alive = Duration::from_millis(200);
    let api = Arc::new(Api { keep_alive, ..Api::new(backend, observed()) });
    let connection = Connection::of(([127, 0, 0, 1], 1).into());
    let reader = api.reader(&connection).expect("there is room");
    let mut body = events::answer(api, reader, build, 0).into_body();
    let begun = std::time::Instant::now();
    for expected in ["retry: 1000\n\n", ": queued\n\n", ": queued\n\n", ": queued\n\n"] {
        let frame = body.frame().await.expect("it goes on").expect("it cannot fail");
        assert_eq!(frame.into_data().expect("data"), expected);
    }
    assert!(begun.elapsed() >= 2 * keep_alive);
}

#[tokio::test]
async fn so_many_readers_leave_room_for_others() {
    let world = World::start().await;
    world.submit(&request("a")).await;
    let accept = [("Accept", "text/event-stream")];
    let mut readers = Vec::new();
    for _ in 0..MOST_READERS {
        let mut stream = world.open("GET", "/v1/builds/a/log", &accept, b"").await;
        read_until(&mut stream, ": queued").await;
        readers.push(stream);
    }
    let refused = world.ask("GET", "/v1/builds/a/log", &accept, b"").await;
    assert_eq!(refused.status, 503);
    assert_eq!(world.get("/v1/builds/a").await.status, 200);
    // Whoever leaves makes room: the service notices it when it has something to send.
    readers.truncate(MOST_READERS - 1);
    world.record("u", "a", [output("one\n")]).await;
    let found = async {
        while world.ask("GET", "/v1/builds/a/log", &[], "").await.status == 503 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), found).await.expect("there is room again");
}

#[tokio::test]
async fn a_stream_of_events_outlives_the_age_of_its_connection_and_other_answers_do_not() {
    let bounds = Bounds {
        connection: Duration::from_millis(200),
        last_answer: Duration::from_millis(200),
        ..Bounds::default()
    };
    let world = World::with(None, bounds).await;
    world.connect();
    world.submit(&request("a")).await;
    let accept = [("Accept", "text/event-stream")];
    let mut stream = world.open("GET", "/v1/builds/a/log", &accept, b"").await;
    read_until(&mut stream, ": queued").await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    world.record("u", "a", [output("one\n")]).await;
    read_until(&mut stream, "data: one\n\n").await;
    // A body that never comes.
    let mut slow = TcpStream::connect(&world.address).await.expect("it listens");
    let head = format!(
        "POST /v1/builds HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n",
        world.address
    );
    slow.write_all(head.as_bytes()).await.expect("it reads");
    let mut rest = Vec::new();
    let gone = tokio::time::timeout(Duration::from_secs(5), slow.read_to_end(&mut rest)).await;
    assert!(gone.is_ok(), "it is sent away");
}

#[tokio::test]
async fn whoever_reads_nothing_of_a_log_is_sent_away() {
    let unread = Duration::from_millis(500);
    let world = World::with(None, Bounds { unread, connections: 1, ..Bounds::default() }).await;
    world.connect();
    world.submit(&request("a")).await;
    // More than the system's buffers take.
    world.record("u", "a", [output(&"x".repeat(64 << 20))]).await;
    let _stream = world.open("GET", "/v1/builds/a/log", &[], b"").await;
    let next = tokio::time::timeout(Duration::from_secs(20), world.get("/v1/workers")).await;
    assert_eq!(next.expect("there is room again").status, 200);
}
