//! `/livez` and `/readyz`, and clients that mean no good.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Idle;
use crate::support::until;
use crate::support::worker::Worker;
use crate::support::world::World;

fn address(worker: &Worker) -> String {
    let line = worker.wait_for_line("\"starting\"");
    let line: Value = serde_json::from_str(&line).expect("log lines are JSON");
    line["http"].as_str().expect("the address is logged").to_owned()
}

/// Sends this and reads until the server closes.
fn exchange(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the worker listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time limit can be set");
    stream.write_all(request.as_bytes()).expect("the worker reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the worker closes in time");
    answer
}

fn readiness(worker: &Worker) -> (u16, Value) {
    let (status, report) = worker.get("/readyz");
    (status, serde_json::from_str(&report).expect("the report is JSON"))
}

fn need<'a>(report: &'a Value, name: &str) -> &'a Value {
    let needs = report["needs"].as_array().expect("a list of needs");
    needs.iter().find(|need| need["name"] == name).unwrap_or_else(|| panic!("{name}: {report}"))
}

#[test]
fn a_worker_with_all_that_it_needs_is_ready_and_says_since_when() {
    let started = OffsetDateTime::now_utc();
    let world = World::new();
    let worker = world.worker();
    let report = until("the worker is ready", || {
        let (status, report) = readiness(&worker);
        (status == 200).then_some(report)
    });
    assert_eq!(report["ready"], true);
    for name in ["broker", "engine", "registry"] {
        let need = need(&report, name);
        assert_eq!(need["ready"], true);
        let since = need["since"].as_str().expect("a moment");
        let since = OffsetDateTime::parse(since, &Rfc3339).expect("RFC 3339");
        assert!(started <= since && since <= OffsetDateTime::now_utc());
    }
}

#[test]
fn a_worker_without_its_broker_lives_and_is_not_ready() {
    let idle = Idle::start();
    let report = until("the engine has been looked at", || {
        let (status, report) = readiness(&idle.worker);
        assert_eq!(status, 503);
        (need(&report, "engine")["ready"] == true).then_some(report)
    });
    assert_eq!(report["ready"], false);
    assert_eq!(need(&report, "broker")["ready"], false);
    assert!(need(&report, "broker")["detail"].is_string());
    assert_eq!(idle.worker.get("/livez"), (200, "ok\n".to_owned()));
}

#[test]
fn only_reading_is_allowed_and_a_head_has_no_body() {
    let idle = Idle::start();
    let address = address(&idle.worker);
    let ask = |method, path| {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        exchange(&address, &head)
    };
    let head = ask("HEAD", "/metrics");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    let post = ask("POST", "/metrics");
    assert!(post.starts_with("HTTP/1.1 405"), "{post}");
    assert!(post.to_lowercase().contains("allow: get, head"), "{post}");
    assert!(ask("GET", "/nowhere").starts_with("HTTP/1.1 404"));
}

#[test]
fn clients_that_never_finish_asking_are_sent_away_and_hold_up_nobody() {
    let idle = Idle::start();
    let address = address(&idle.worker);
    let slow: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = TcpStream::connect(&address).expect("the worker listens");
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost:").expect("half a head can be sent");
            stream
        })
        .collect();
    let asked = Instant::now();
    let answer = exchange(&address, "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Before the first of them is sent away.
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    for mut stream in slow {
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time limit can be set");
        let mut answer = Vec::new();
        // Some are reset rather than closed: either way they are gone.
        let ended = stream.read_to_end(&mut answer);
        let in_time =
            ended.map_or_else(|e| e.kind() == std::io::ErrorKind::ConnectionReset, |_| true);
        assert!(in_time, "a connection is still open");
    }
}
