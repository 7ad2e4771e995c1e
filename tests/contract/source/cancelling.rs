//! A fetch that nobody wants any more ends: its connection, its thread and its workspace.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use image_builder::source::{GitSettings, GithubSettings};
use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::request::{RepoName, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::git::{at, name, plain, settings, with};
use super::git_server::{GitRepo, server_url};
use super::stand_in::{Answer, StandIn};
use super::{empties, fetch_into, list, refused, request, scratch};

/// Far below the silence after which a server is given up anyway.
const SOON: Duration = Duration::from_secs(5);

/// A server that treats its one connection so, and the moment at which the client closed it.
async fn server<F, W>(treat: F) -> (String, oneshot::Receiver<()>, oneshot::Receiver<Instant>)
where
    F: FnOnce(TcpStream, oneshot::Sender<()>) -> W + Send + 'static,
    W: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a local port is free");
    let url = format!("http://{}", listener.local_addr().expect("the port is known"));
    let (at_work, is_at_work) = oneshot::channel();
    let (closed, is_closed) = oneshot::channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("the connector connects");
        treat(stream, at_work).await;
        let _ = closed.send(Instant::now());
    });
    (url, is_at_work, is_closed)
}

/// Takes the request and says nothing, until the client goes.
async fn silent(mut stream: TcpStream, at_work: oneshot::Sender<()>) {
    let mut buffer = [0; 4096];
    let _ = stream.read(&mut buffer).await;
    let _ = at_work.send(());
    while !matches!(stream.read(&mut buffer).await, Ok(0) | Err(_)) {}
}

/// Begins a good answer, and goes on with a byte at a time, until the client goes.
async fn slow(mut stream: TcpStream, at_work: oneshot::Sender<()>) {
    let mut buffer = [0; 4096];
    let _ = stream.read(&mut buffer).await;
    let head = "HTTP/1.1 200 OK\r\n\
                content-type: application/x-git-upload-pack-advertisement\r\n\
                content-length: 1000000\r\n\r\n001e# service=git-upload-pack\n";
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = at_work.send(());
    let (mut read, mut write) = stream.into_split();
    let talk = async {
        while write.write_all(b"0").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = talk => {}
        _ = read.read(&mut buffer) => {}
    }
}

/// Fetches from a server until it is at work, drops the future, and checks that all of it ends.
async fn cancel_at_work(
    url: String,
    is_at_work: oneshot::Receiver<()>,
    is_closed: oneshot::Receiver<Instant>,
) {
    let connector = at(&url);
    let repo = RepoName { owner: "some".to_owned(), name: "where".to_owned() };
    let request = request(&repo, Target::DefaultBranch, None);
    let scratch = scratch();
    let fetch = fetch_into(&scratch, &connector, &request, None);
    tokio::select! {
        result = fetch => panic!("the fetch ended by itself: {:?}", result.err()),
        at_work = is_at_work => at_work.expect("the server is at work"),
    }
    let dropped = Instant::now();
    let closed = tokio::time::timeout(SOON, is_closed).await;
    let closed = closed.expect("the connection is closed soon").expect("the server tells");
    assert!(closed.duration_since(dropped) < SOON);
    empties(scratch.path()).await;
    assert!(dropped.elapsed() < SOON, "the thread and the workspace took {:?}", dropped.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_from_a_silent_server_ends_when_it_is_dropped() {
    let (url, is_at_work, is_closed) = server(silent).await;
    cancel_at_work(url, is_at_work, is_closed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_from_a_slow_server_ends_when_it_is_dropped() {
    let (url, is_at_work, is_closed) = server(slow).await;
    cancel_at_work(url, is_at_work, is_closed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_ends_when_it_is_dropped_in_the_middle_of_a_pack() {
    let repo = GitRepo::create("contract", "midway");
    repo.commit(&[("a", "1")]);
    // The pack never ends: progress on the side band, for ever.
    let began = Arc::new(tokio::sync::Notify::new());
    let tell = began.clone();
    let forge = StandIn::start(move |asked| {
        if !asked.path.ends_with("/git-upload-pack") {
            return Answer::From(server_url());
        }
        let body = String::from_utf8_lossy(&asked.body);
        if !body.contains("0009done") {
            return Answer::From(server_url());
        }
        tell.notify_one();
        let first = b"00000008NAK\n".to_vec();
        Answer::Endless { headers: Vec::new(), first, piece: b"0006\x02.".to_vec() }
            .with("content-type", "application/x-git-upload-pack-result")
    })
    .await;
    let connector = at(&forge.url());
    let request = request(&name(&repo), Target::DefaultBranch, None);
    let scratch = scratch();
    {
        let fetch = fetch_into(&scratch, &connector, &request, None);
        tokio::select! {
            result = fetch => panic!("the fetch ended by itself: {:?}", result.err()),
            () = began.notified() => {}
        }
    }
    let dropped = Instant::now();
    empties(scratch.path()).await;
    assert!(dropped.elapsed() < SOON, "the thread and the workspace took {:?}", dropped.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_silent_is_given_up_after_a_while() {
    let (url, _is_at_work, is_closed) = server(silent).await;
    let silence = Duration::from_secs(1);
    let connector = with(GitSettings {
        github: GithubSettings { url, ..GithubSettings::default() },
        silence,
        ..settings()
    });
    let repo = RepoName { owner: "some".to_owned(), name: "where".to_owned() };
    let request = request(&repo, Target::DefaultBranch, None);
    let fault = refused(&connector, &request, Reason::Timeout, "silent for 1 seconds").await;
    assert!(fault.message.contains("some/where"), "{}", fault.message);
    let closed = tokio::time::timeout(SOON, is_closed).await;
    closed.expect("the connection is closed soon").expect("the server tells");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_dropped_before_it_began_leaves_nothing() {
    let repo = GitRepo::create("contract", "early");
    repo.commit(&[("a", "1")]);
    let scratch = scratch();
    let connector = plain();
    let request = request(&name(&repo), Target::DefaultBranch, None);
    let fetch = fetch_into(&scratch, &connector, &request, None);
    assert!(futures_util::FutureExt::now_or_never(fetch).is_none());
    empties(scratch.path()).await;
    assert_eq!(list(scratch.path()).len(), 0);
}
