//! What the queue in a file of this machine's can do, beside what its disk can do.
//!
//! `DIR` (the system's temporary directory) is where the file is, `WAITING` (100000) how many requests wait. Parts are
//! `submits`, `turns`, `builds` and `churn`.

#![allow(clippy::print_stdout, reason = "its figures are for whoever runs it")]

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream;
use image_builder::broker::sqlite::{SqliteBroker, SqliteSettings};
use image_builder_actors::ports::{Broker, Load, Message, Place, Queue};

/// How long each rate is measured.
const WHILE: Duration = Duration::from_secs(5);

/// Requests that are put in at once where that is not what is measured.
const AT_ONCE: usize = 256;

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[tokio::main]
async fn main() {
    let waiting = setting("WAITING").map_or(100_000, |text| text.parse().expect("a number"));
    let parent = setting("DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(parent).expect("a directory");
    let directory = directory.path();
    // Cargo adds an option of its own.
    let wanted: Vec<_> = std::env::args().skip(1).filter(|it| !it.starts_with('-')).collect();
    let is_wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|it| it == part);
    println!("in {}\n", directory.display());
    if is_wanted("submits") {
        one_by_one(directory).await;
        submits(directory).await;
    }
    if is_wanted("turns") {
        for (text, users) in [("one user", 1), ("1,000 users", 1_000), ("a user each", waiting)] {
            turns(directory, waiting, users, text).await;
        }
    }
    if is_wanted("builds") {
        builds(directory, waiting).await;
    }
    if is_wanted("churn") {
        churn(directory).await;
    }
}

async fn open(path: PathBuf) -> SqliteBroker {
    SqliteBroker::open(SqliteSettings::new(path)).await.expect("the file can be used")
}

/// A request, as long as most are.
fn request(number: usize) -> Message {
    let body = format!(
        r#"{{"userID": "u{number}", "repo": "owner/name", "token": "ghp_0123456789abcdef0123456789abcdef0123", "type": "branch", "branch": "main", "applicationID": "shop", "buildPlan": {{"rootDirectory": "web", "buildArgs": {{"VERSION": "{number}"}}, "envs": {{"A": "{}"}}}}}}"#,
        "x".repeat(200)
    );
    Message {
        body: body.into_bytes(),
        message_id: Some(format!("00000000-0000-4000-8000-{number:012}")),
        ..Message::default()
    }
}

/// What the disk does without any queue, a write and a wait until it is durable, beside requests that are
/// submitted one by one; in turns, since other programs may use the disk as well.
async fn one_by_one(directory: &Path) {
    const ROUNDS: u32 = 10;
    const LOG_PAGES: usize = 1_000;
    let mut file = File::create(directory.join("bare")).expect("made");
    let broker = open(directory.join("one.db")).await;
    let page = [7_u8; 4096];
    file.write_all(&page.repeat(LOG_PAGES)).expect("written");
    let mut times: [Vec<Duration>; 3] = Default::default();
    for _ in 0..ROUNDS {
        during(WHILE / ROUNDS, &mut times[0], async |_| {
            file.seek(SeekFrom::End(0)).expect("found");
            file.write_all(&page).expect("written");
            file.sync_all().expect("durable");
        })
        .await;
        // As a log is written that has its room already.
        during(WHILE / ROUNDS, &mut times[1], async |number| {
            let at = (number % LOG_PAGES * page.len()) as u64;
            file.seek(SeekFrom::Start(at)).expect("found");
            file.write_all(&page).expect("written");
            file.sync_all().expect("durable");
        })
        .await;
        during(WHILE / ROUNDS, &mut times[2], async |number| {
            broker.publish(Queue::Build, request(number), Duration::ZERO).await.expect("taken");
        })
        .await;
    }
    let names = [
        "write and fsync, at the end of a file",
        "write and fsync, within a file of 4 MB",
        "submits, one by one",
    ];
    for (name, times) in names.into_iter().zip(&mut times) {
        let rate = times.len() as f64 / times.iter().sum::<Duration>().as_secs_f64();
        println!("{name:<40} {rate:>8.0} a second");
        told("", times);
    }
    broker.close().await;
}

async fn during(limit: Duration, times: &mut Vec<Duration>, mut once: impl AsyncFnMut(usize)) {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        let begun = Instant::now();
        once(times.len()).await;
        times.push(begun.elapsed());
    }
}

/// How many requests are taken in a second.
async fn submits(directory: &Path) {
    for submitters in [4, 16, 64, 256] {
        let path = directory.join(format!("submits-{submitters}.db"));
        let broker = open(path).await;
        let begun = Instant::now();
        let counts = (0..submitters).map(|_| {
            let broker = broker.clone();
            tokio::spawn(async move {
                let mut count = 0;
                while begun.elapsed() < WHILE {
                    broker
                        .publish(Queue::Build, request(count), Duration::ZERO)
                        .await
                        .expect("taken");
                    count += 1;
                }
                count
            })
        });
        let mut sum = 0;
        for count in counts.collect::<Vec<_>>() {
            sum += count.await.expect("no panic");
        }
        let rate = sum as f64 / begun.elapsed().as_secs_f64();
        println!("submits, {submitters:>3} at once                     {rate:>8.0} a second");
        broker.close().await;
    }
    println!();
}

/// How long it takes to take a request out of the backlog, and to settle it.
async fn turns(directory: &Path, waiting: usize, users: usize, text: &str) {
    let path = directory.join(format!("turns-{users}.db"));
    let broker = open(path.clone()).await;
    let begun = Instant::now();
    stream::iter(0..waiting)
        .for_each_concurrent(AT_ONCE, |number| {
            let place = Place { user_id: format!("user-{}", number % users), returned: false };
            let broker = &broker;
            async move { broker.enqueue(request(number), place).await.expect("taken") }
        })
        .await;
    let filled = begun.elapsed().as_secs_f64();
    let size = size_of(&path);
    println!("{waiting} wait, of {text}: put in within {filled:.1} s, {size:.1} MB");
    broker.close().await;
    let begun = Instant::now();
    let broker = open(path.clone()).await;
    println!("  open           {:>8.2} ms", millis(begun.elapsed()));
    let mut backlog = broker.backlog().await.expect("opened");
    let mut times = [Vec::new(), Vec::new()];
    let mut load = Load { builds: Default::default(), most_per_user: usize::MAX, at_hand: false };
    for _ in 0..1_000 {
        let begun = Instant::now();
        let turn = backlog.taker.take(&load).await.expect("open").expect("one waits");
        times[0].push(begun.elapsed());
        // Some builds are in hand, as in a worker.
        if load.builds.len() < 8 {
            load.builds.insert(turn.user_id, 1);
        }
        let begun = Instant::now();
        backlog.acks.ack(turn.delivery.tag).await.expect("settled");
        times[1].push(begun.elapsed());
    }
    told("take", &mut times[0]);
    told("settle", &mut times[1]);
    let begun = Instant::now();
    broker.waiting().await.expect("counted");
    println!("  count          {:>8.2} ms", millis(begun.elapsed()));
    broker.close().await;
    std::fs::remove_file(path).expect("removed");
}

/// How fast the build queue is read, with a window of 1 and as a worker reads it.
async fn builds(directory: &Path, waiting: usize) {
    let path = directory.join("builds.db");
    let broker = open(path.clone()).await;
    stream::iter(0..waiting)
        .for_each_concurrent(AT_ONCE, |number| {
            let broker = &broker;
            async move {
                broker.publish(Queue::Build, request(number), Duration::ZERO).await.expect("taken");
            }
        })
        .await;
    println!("{waiting} wait in the build queue");
    let mut one = broker.consume(Queue::Build, 1).await.expect("subscribed");
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..1_000 {
        let begun = Instant::now();
        let delivery = one.deliveries.recv().await.expect("it goes on");
        times[0].push(begun.elapsed());
        let begun = Instant::now();
        one.acks.ack(delivery.tag).await.expect("settled");
        times[1].push(begun.elapsed());
    }
    told("take", &mut times[0]);
    told("settle", &mut times[1]);
    drop(one);
    let mut many = broker.consume(Queue::Build, 256).await.expect("subscribed");
    let (begun, count) = (Instant::now(), waiting.min(20_000) / 2);
    let mut acks = Vec::new();
    for _ in 0..count {
        let delivery = many.deliveries.recv().await.expect("it goes on");
        let acker = many.acks.clone();
        acks.push(tokio::spawn(async move { acker.ack(delivery.tag).await }));
    }
    for ack in acks {
        ack.await.expect("no panic").expect("settled");
    }
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    println!("  take and settle, 256 in hand                {rate:>8.0} a second\n");
    broker.close().await;
    std::fs::remove_file(path).expect("removed");
}

/// How large the file is while requests come and go, and after that.
async fn churn(directory: &Path) {
    const ROUND: usize = 20_000;
    let path = directory.join("churn.db");
    // What is free is given back with every heartbeat.
    let heartbeat = Duration::from_secs(1);
    let settings = SqliteSettings { heartbeat, ..SqliteSettings::new(path.clone()) };
    let broker = SqliteBroker::open(settings).await.expect("the file can be used");
    let mut longest = Duration::ZERO;
    let mut sizes = Vec::new();
    for _ in 0..5 {
        stream::iter(0..ROUND)
            .for_each_concurrent(AT_ONCE, |number| {
                let broker = &broker;
                async move {
                    let put = broker.publish(Queue::Build, request(number), Duration::ZERO);
                    put.await.expect("taken");
                }
            })
            .await;
        let full = size_of(&path);
        let mut builds = broker.consume(Queue::Build, 256).await.expect("subscribed");
        let mut acks = Vec::new();
        for _ in 0..ROUND {
            let delivery = builds.deliveries.recv().await.expect("it goes on");
            let acker = builds.acks.clone();
            acks.push(tokio::spawn(async move { acker.ack(delivery.tag).await }));
        }
        for ack in acks {
            ack.await.expect("no panic").expect("settled");
        }
        sizes.push(format!("{full:.1}/{:.1}", size_of(&path)));
    }
    println!("{ROUND} come and go, five times: {} MB full/empty", sizes.join(", "));
    let begun = Instant::now();
    let before = size_of(&path);
    while begun.elapsed() < Duration::from_secs(20) {
        let begun = Instant::now();
        broker.publish(Queue::Fail, request(0), Duration::ZERO).await.expect("taken");
        longest = longest.max(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!(
        "  after 20 s of little to do: {before:.1} -> {:.1} MB; the longest submit took {:.1} ms",
        size_of(&path),
        millis(longest)
    );
    broker.close().await;
}

/// With its log, in megabytes.
fn size_of(path: &Path) -> f64 {
    let log = path.with_extension("db-wal");
    let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
    (bytes(path) + bytes(&log)) as f64 / 1e6
}

fn told(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |part: usize| millis(times[(times.len() - 1) * part / 100]);
    println!(
        "  {what:<6} median {:>8.2} ms, 99 % {:.2} ms, longest {:.2} ms",
        at(50),
        at(99),
        at(100)
    );
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
