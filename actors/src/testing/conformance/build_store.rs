//! What every build store does, whatever it is made of.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::model::digest::hex;
use crate::model::fault::{Reason, StageName};
use crate::model::history::Attempt;
use crate::model::identity::BuildIdentity;
use crate::model::notification::NotificationType;
use crate::ports::build_store::{
    Acceptance, BuildState, BuildStore, Change, Filter, PUBLISHED_WITHIN, Recorded, RequestedBuild,
    StoreError, StoredBuild, Tally, UserTally,
};

/// A store that nobody else uses.
pub trait World: Sync {
    /// The store as one more worker has it. It keeps what was changed in the last 30 days.
    fn worker(&self) -> Arc<dyn BuildStore>;

    /// How many bytes it may hold, as it counts them.
    fn budget(&self) -> u64;
}

/// Makes a test of each promise of a build store.
#[macro_export]
macro_rules! build_store_conformance {
    ($world:expr) => {
        $crate::conformance! {
            build_store, $world,
            a_build_is_its_users,
            a_build_that_was_accepted_is_listed_once_it_is_in_a_queue,
            what_is_recorded_is_applied_in_order,
            what_is_recorded_once_more_changes_nothing,
            a_build_that_has_ended_stays_so_until_it_is_requested_again,
            what_happens_to_a_build_that_nobody_requested_is_not_recorded,
            workers_that_record_at_once_lose_nothing,
            builds_are_listed_newest_first_and_pages_are_not_disturbed,
            builds_are_found_by_what_is_known_of_them,
            a_tally_counts_what_is_listed,
            a_log_is_what_was_appended_and_is_read_from_any_offset,
            whoever_waits_hears_of_what_is_recorded,
            what_is_too_old_goes,
            the_oldest_that_ended_go_where_all_hold_too_much,
        }
    };
}

/// How long anything may take that comes.
const PATIENCE: Duration = Duration::from_secs(20);

/// When the builds of these scenarios are made.
fn start() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_700_000_000).expect("a time")
}

fn after(seconds: u64) -> OffsetDateTime {
    start() + Duration::from_secs(seconds)
}

fn requested(user: &str, build_id: &str, seconds: u64) -> RequestedBuild {
    RequestedBuild {
        build: BuildIdentity::new(Some(user), build_id),
        request: format!("request of {build_id}"),
        application_id: Some("shop".to_owned()),
        connector: Some("github".to_owned()),
        repo: Some("owner/name".to_owned()),
        requested_at: after(seconds),
    }
}

fn new(seconds: u64) -> Acceptance {
    Acceptance::New { accepted_at: after(seconds) }
}

fn change(build: &BuildIdentity, seconds: u64, change: Change) -> Recorded {
    Recorded { build: build.clone(), at: after(seconds), change }
}

fn stage(attempt: u32, stage: StageName) -> Change {
    Change::Stage { attempt, stage, worker: "worker-1".to_owned() }
}

fn output(text: impl Into<String>) -> Change {
    Change::Output(text.into())
}

fn ended(kind: NotificationType) -> Change {
    Change::Ended { kind, data: format!(r#"{{"commit":"c0ffee","is":"{}"}}"#, kind.as_str()) }
}

fn failed() -> Attempt {
    Attempt {
        at: after(3),
        stage: StageName::Builder,
        reason: Reason::BuildFailed,
        message: "it does not compile: „é“".to_owned(),
        step: Some("RUN make".to_owned()),
        counted: true,
        retry_after: None,
        engine_died: false,
    }
}

/// Records that a request is in a queue, at the time of the request.
async fn request(store: &dyn BuildStore, requested: &RequestedBuild) {
    let recorded = Recorded {
        build: requested.build.clone(),
        at: requested.requested_at,
        change: Change::Requested(requested.clone()),
    };
    store.record(&[recorded]).await.expect("recorded");
}

async fn record(store: &dyn BuildStore, build: &BuildIdentity, changes: Vec<(u64, Change)>) {
    let changes: Vec<_> =
        changes.into_iter().map(|(seconds, what)| change(build, seconds, what)).collect();
    store.record(&changes).await.expect("recorded");
}

/// The one build of this id.
async fn one(store: &dyn BuildStore, build_id: &str) -> StoredBuild {
    let mut builds = store.builds_of_id(build_id).await.expect("read");
    assert_eq!(builds.len(), 1, "{builds:?}");
    builds.remove(0)
}

async fn log(store: &dyn BuildStore, build: &BuildIdentity) -> String {
    let part = store.log(build, 0, usize::MAX).await.expect("read").expect("known");
    assert_eq!(part.bytes.len() as u64, part.total);
    String::from_utf8(part.bytes).expect("text")
}

async fn ids(store: &dyn BuildStore, filter: &Filter) -> Vec<String> {
    let page = store.list(filter, None, 100).await.expect("read");
    page.builds.into_iter().map(|build| build.requested.build.build_id).collect()
}

/// Text that is not compressed to much less than half its length.
fn noise(seed: &str, bytes: usize) -> String {
    let mut text = String::new();
    let mut hash = Sha256::digest(seed.as_bytes());
    while text.len() < bytes {
        text.push_str(&hex(&hash));
        text.push('\n');
        hash = Sha256::digest(hash);
    }
    text
}

pub async fn a_build_is_its_users(world: &impl World) {
    let store = world.worker();
    let [ann, bob] = ["ann", "bob"].map(|user| requested(user, "b", 0));
    let nobody = RequestedBuild { build: BuildIdentity::new(None, "b"), ..requested("", "b", 0) };
    for build in [&ann, &bob, &nobody] {
        request(&*store, build).await;
    }
    record(&*store, &ann.build, vec![(1, output("Ann's\n")), (2, stage(1, StageName::Builder))])
        .await;
    let mut builds = store.builds_of_id("b").await.expect("read");
    builds.sort_by_key(|build| build.requested.build.user_id.clone());
    let owners: Vec<_> =
        builds.iter().map(|build| build.requested.build.user_id.as_deref()).collect();
    assert_eq!(owners, [None, Some("ann"), Some("bob")]);
    let states: Vec<_> = builds.iter().map(|build| build.state).collect();
    assert_eq!(states, [BuildState::Queued, BuildState::Building, BuildState::Queued]);
    assert_eq!(log(&*store, &ann.build).await, "Ann's\n");
    assert_eq!(log(&*store, &bob.build).await, "");
    let other = RequestedBuild { request: "another".to_owned(), ..ann.clone() };
    assert_eq!(store.accept(&other).await, Ok(Acceptance::OtherRequest));
    let carol = requested("carol", "b", 0);
    assert_eq!(store.accept(&carol).await, Ok(new(0)));
}

pub async fn a_build_that_was_accepted_is_listed_once_it_is_in_a_queue(world: &impl World) {
    let store = world.worker();
    let build = requested("ann", "b", 0);
    assert_eq!(store.accept(&build).await, Ok(new(0)));
    let again = RequestedBuild { requested_at: after(7), ..build.clone() };
    assert_eq!(store.accept(&again).await, Ok(new(0)), "nobody says it was published");
    assert_eq!(store.builds_of_id("b").await, Ok(Vec::new()));
    assert_eq!(ids(&*store, &Filter::default()).await, [""; 0]);
    assert_eq!(store.log(&build.build, 0, 10).await, Ok(None));

    let other = RequestedBuild { request: "another".to_owned(), ..build.clone() };
    assert_eq!(store.accept(&other).await, Ok(Acceptance::OtherRequest));
    // Whoever was answered that it could not be published asks for something else under this id.
    let late = PUBLISHED_WITHIN.as_secs() + 1;
    let later = RequestedBuild { requested_at: after(late), ..other };
    assert_eq!(store.accept(&later).await, Ok(new(late)));
    assert_eq!(store.accept(&later).await, Ok(new(late)), "it is the one that is known");
    assert_eq!(store.accept(&build).await, Ok(Acceptance::OtherRequest));
    assert_eq!(store.builds_of_id("b").await, Ok(Vec::new()));
    request(&*store, &build).await;
    assert_eq!(world.worker().accept(&build).await, Ok(Acceptance::Known));
    assert_eq!(one(&*store, "b").await, StoredBuild::of(build.clone(), after(0)));
    record(&*store, &build.build, vec![(1, ended(NotificationType::ImageReady))]).await;
    assert_eq!(store.accept(&build).await, Ok(Acceptance::Known));
    assert_eq!(store.accept(&later).await, Ok(Acceptance::OtherRequest), "it was in a queue");
}

pub async fn what_is_recorded_is_applied_in_order(world: &impl World) {
    let store = world.worker();
    let build = requested("ann", "b", 0);
    request(&*store, &build).await;
    let changes = vec![
        (1, stage(1, StageName::Connector)),
        (1, Change::Commit("c0ffee".to_owned())),
        (2, stage(1, StageName::Builder)),
        (3, Change::Failed(failed())),
        (4, stage(2, StageName::Connector)),
        (5, Change::Waiting),
        (6, stage(2, StageName::Connector)),
        (7, stage(2, StageName::Builder)),
    ];
    let mut expected = StoredBuild::of(build.clone(), after(0));
    for (seconds, what) in &changes {
        expected.apply(after(*seconds), what);
    }
    record(&*store, &build.build, changes).await;
    let known = one(&*world.worker(), "b").await;
    assert_eq!(known, expected);
    assert_eq!((known.state, known.commit.as_deref()), (BuildState::Building, Some("c0ffee")));
    assert_eq!((known.updated_at, known.ended_at), (after(7), None));
    let numbers: Vec<_> = known.attempts.iter().map(|attempt| attempt.number).collect();
    assert_eq!(numbers, [1, 2, 2]);
    let first = &known.attempts[0];
    assert_eq!(first.stages, [(StageName::Connector, after(1)), (StageName::Builder, after(2))]);
    assert_eq!((first.ended_at, &first.fault), (Some(after(3)), &Some(failed())));

    record(&*store, &build.build, vec![(8, ended(NotificationType::ImageReady))]).await;
    let known = one(&*store, "b").await;
    assert_eq!((known.state, known.ended_at), (BuildState::Ready, Some(after(8))));
    assert!(known.outcome.expect("an outcome").contains("image.ready"));
    assert!(known.attempts.iter().all(|attempt| attempt.ended_at.is_some()));
}

pub async fn what_is_recorded_once_more_changes_nothing(world: &impl World) {
    let store = world.worker();
    let build = requested("ann", "b", 0);
    request(&*store, &build).await;
    let changes = [
        change(&build.build, 1, output("same\n")),
        change(&build.build, 1, output("same\n")),
        change(&build.build, 2, stage(1, StageName::Builder)),
    ];
    for _ in 0..3 {
        world.worker().record(&changes).await.expect("recorded");
    }
    assert_eq!(log(&*store, &build.build).await, "same\nsame\n");
    assert_eq!(one(&*store, "b").await.attempts.len(), 1);
    // The same again is another thing where it happens at another time.
    let again = [change(&build.build, 3, output("same\n"))];
    store.record(&again).await.expect("recorded");
    assert_eq!(log(&*store, &build.build).await, "same\nsame\nsame\n");
}

pub async fn a_build_that_has_ended_stays_so_until_it_is_requested_again(world: &impl World) {
    let store = world.worker();
    let build = requested("ann", "b", 0);
    request(&*store, &build).await;
    let changes = vec![
        (1, stage(1, StageName::Builder)),
        (2, output("before\n")),
        (3, ended(NotificationType::BuildFailed)),
        // What another worker is late with.
        (4, output("late\n")),
        (4, stage(1, StageName::Pusher)),
        (5, Change::Waiting),
        (6, ended(NotificationType::ImageReady)),
    ];
    record(&*store, &build.build, changes).await;
    request(&*store, &build).await;
    let known = one(&*store, "b").await;
    assert_eq!((known.state, known.ended_at), (BuildState::Failed, Some(after(3))));
    assert!(known.outcome.expect("an outcome").contains("build.failed"));
    assert!(known.attempts.iter().all(|attempt| attempt.ended_at == Some(after(3))));
    assert_eq!(log(&*store, &build.build).await, "before\nlate\n");

    let again = requested("ann", "b", 100);
    request(&*store, &again).await;
    let known = one(&*store, "b").await;
    let log_bytes = known.log_bytes;
    assert_eq!(known, StoredBuild { log_bytes, ..StoredBuild::of(again.clone(), after(100)) });
    // The first one's outcome is notified once more.
    let data = format!(r#"{{"requestedAt":"{}"}}"#, "2023-11-14T22:13:20Z");
    let late = Change::Ended { kind: NotificationType::BuildFailed, data };
    record(&*store, &build.build, vec![(101, output("again\n")), (101, late)]).await;
    assert_eq!(one(&*store, "b").await.state, BuildState::Queued);
    assert_eq!(log(&*store, &build.build).await, "before\nlate\nagain\n");

    let other = RequestedBuild { request: "another".to_owned(), ..again };
    record(&*store, &build.build, vec![(102, ended(NotificationType::ImageReady))]).await;
    request(&*store, &other).await;
    let known = one(&*store, "b").await;
    assert_eq!((known.state, known.requested), (BuildState::Queued, other));
}

pub async fn what_happens_to_a_build_that_nobody_requested_is_not_recorded(world: &impl World) {
    let store = world.worker();
    let known = requested("ann", "known", 0);
    let unknown = BuildIdentity::new(Some("ann"), "unknown");
    let changes = [
        change(&unknown, 1, output("text\n")),
        change(&unknown, 1, ended(NotificationType::ImageReady)),
        change(&known.build, 1, Change::Requested(known.clone())),
    ];
    store.record(&changes).await.expect("recorded");
    assert_eq!(ids(&*store, &Filter::default()).await, ["known"]);
    assert_eq!(store.log(&unknown, 0, 10).await, Ok(None));
}

pub async fn workers_that_record_at_once_lose_nothing(world: &impl World) {
    const LINES: u64 = 30;
    let build = requested("ann", "b", 0);
    request(&*world.worker(), &build).await;
    let writers = (0..4).map(|number| {
        let (store, build) = (world.worker(), build.build.clone());
        async move {
            for line in 0..LINES {
                let text = format!("{number} {line}\n");
                let own = requested("ann", &format!("{number}-{line}"), line);
                let own = change(&own.build.clone(), line, Change::Requested(own));
                let said = change(&build, line, output(text));
                // In either order: two that change the same builds never wait for each other for ever.
                let both = if number % 2 == 0 { [own, said] } else { [said, own] };
                store.record(&both).await.expect("recorded");
            }
        }
    });
    let all = futures_util::future::join_all(writers);
    tokio::time::timeout(3 * PATIENCE, all).await.expect("in time");
    let log = log(&*world.worker(), &build.build).await;
    assert_eq!(log.lines().count() as u64, 4 * LINES);
    for number in 0..4 {
        let own = log.lines().filter(|line| line.starts_with(&number.to_string()));
        let expected: Vec<_> = (0..LINES).map(|line| format!("{number} {line}")).collect();
        assert_eq!(own.collect::<Vec<_>>(), expected);
    }
    let page = world.worker().list(&Filter::default(), None, 1000).await.expect("read");
    assert_eq!(page.builds.len() as u64, 4 * LINES + 1);
}

pub async fn builds_are_listed_newest_first_and_pages_are_not_disturbed(world: &impl World) {
    let store = world.worker();
    // Two at each moment.
    for number in 0..10 {
        request(&*store, &requested("ann", &number.to_string(), number / 2)).await;
    }
    let all = Filter::default();
    let whole = store.list(&all, None, 100).await.expect("read");
    assert_eq!((whole.builds.len(), whole.next), (10, None));
    let times: Vec<_> = whole.builds.iter().map(|build| build.requested.requested_at).collect();
    assert!(times.is_sorted_by(|newer, older| newer >= older), "{times:?}");

    let (mut listed, mut cursor) = (Vec::new(), None);
    for page_number in 0..4 {
        let page = store.list(&all, cursor.as_deref(), 3).await.expect("read");
        let last_page = page_number == 3;
        assert_eq!(
            (page.builds.len(), page.next.is_none()),
            (if last_page { 1 } else { 3 }, last_page)
        );
        listed.extend(page.builds.into_iter().map(|build| build.requested));
        cursor = page.next;
        request(&*store, &requested("ann", &format!("new {page_number}"), 1000)).await;
        let moved = BuildIdentity::new(Some("ann"), &page_number.to_string());
        record(&*store, &moved, vec![(2000 + page_number, Change::Waiting)]).await;
    }
    let expected: Vec<_> = whole.builds.into_iter().map(|build| build.requested).collect();
    assert_eq!(listed, expected);
    for of_nobody in ["", "1", "x-y", "9-'; DROP TABLE builds"] {
        let refused = store.list(&all, Some(of_nobody), 3).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{of_nobody}: {refused:?}");
    }
}

pub async fn builds_are_found_by_what_is_known_of_them(world: &impl World) {
    let store = world.worker();
    let one = requested("ann", "1", 1);
    let two = RequestedBuild { application_id: None, ..requested("bob", "2", 2) };
    let three = RequestedBuild { repo: Some("other/%".to_owned()), ..requested("ann", "3", 3) };
    for build in [&one, &two, &three] {
        request(&*store, build).await;
    }
    record(&*store, &one.build, vec![(4, Change::Commit("c0ffee00".to_owned()))]).await;
    record(&*store, &two.build, vec![(4, ended(NotificationType::BuildCancelled))]).await;
    let found = async |filter: Filter| ids(&*store, &filter).await;
    let text = |text: &str| Some(text.to_owned());
    let all = Filter::default;
    assert_eq!(found(all()).await, ["3", "2", "1"]);
    assert_eq!(found(Filter { user_id: text("ann"), ..all() }).await, ["3", "1"]);
    assert_eq!(found(Filter { state: Some(BuildState::Cancelled), ..all() }).await, ["2"]);
    assert_eq!(found(Filter { application_id: text("shop"), ..all() }).await, ["3", "1"]);
    assert_eq!(found(Filter { repo: text("other/%"), ..all() }).await, ["3"]);
    assert_eq!(found(Filter { repo: text("%"), ..all() }).await, [""; 0]);
    assert_eq!(found(Filter { build_id: text("2"), ..all() }).await, ["2"]);
    assert_eq!(found(Filter { commit: text("c0ffee"), ..all() }).await, ["2", "1"]);
    assert_eq!(found(Filter { commit: text("c0ffee00"), ..all() }).await, ["1"]);
    assert_eq!(found(Filter { commit: text("c0ff_e"), ..all() }).await, [""; 0]);
    let both = Filter { user_id: text("bob"), commit: text("c0"), ..all() };
    assert_eq!(found(both).await, ["2"]);
    for (search, ids) in [
        ("ann", &["3", "1"][..]),
        ("bob", &["2"]),
        ("shop", &["3", "1"]),
        ("other/%", &["3"]),
        ("c0ffee00", &["1"]),
        ("3", &["3"]),
        ("%", &[]),
        ("sho", &[]),
    ] {
        assert_eq!(found(Filter { search: text(search), ..all() }).await, ids, "{search}");
    }
    let anns = Filter { search: text("c0ffee"), user_id: text("ann"), ..all() };
    assert_eq!(found(anns).await, ["1"]);
}

pub async fn a_tally_counts_what_is_listed(world: &impl World) {
    let store = world.worker();
    assert_eq!(store.tally().await.expect("read"), Tally::default());
    let [one, two, three, four] = [("ann", "1"), ("bob", "2"), ("bob", "3"), ("bob", "4")]
        .map(|(user, id)| requested(user, id, 1));
    for build in [&one, &two, &three, &four] {
        request(&*store, build).await;
    }
    store.accept(&requested("ann", "in no queue yet", 1)).await.expect("accepted");
    record(&*store, &two.build, vec![(2, stage(1, StageName::Builder))]).await;
    record(&*store, &four.build, vec![(2, ended(NotificationType::ImageReady))]).await;
    let tally = store.tally().await.expect("read");
    let count = |state| tally.of(state);
    assert_eq!(
        [BuildState::Queued, BuildState::Building, BuildState::Ready, BuildState::Failed]
            .map(count),
        [2, 1, 1, 0]
    );
    let user =
        |id: &str, waiting, in_hand| UserTally { user_id: Some(id.to_owned()), waiting, in_hand };
    assert_eq!(tally.users, [user("bob", 1, 1), user("ann", 1, 0)]);
}

pub async fn a_log_is_what_was_appended_and_is_read_from_any_offset(world: &impl World) {
    let store = world.worker();
    let build = requested("ann", "b", 0);
    request(&*store, &build).await;
    let mut whole = String::new();
    for number in 0..60 {
        let text = match number {
            20 => noise("long", 300_000),
            // Also what is not compressed, and what is cut in a character.
            number => format!("{number} → é {}\n", "x".repeat(number as usize)),
        };
        whole.push_str(&text);
        record(&*store, &build.build, vec![(number, output(text))]).await;
    }
    let bytes = whole.as_bytes();
    assert_eq!(log(&*store, &build.build).await, whole);
    assert_eq!(one(&*store, "b").await.log_bytes, bytes.len() as u64);
    let offsets = [0, 1, 3, 777, 100_000, bytes.len() - 1, bytes.len(), bytes.len() + 10];
    for offset in offsets {
        for most in [0, 1, 100, 70_000, usize::MAX] {
            let part = store.log(&build.build, offset as u64, most).await;
            let part = part.expect("read").expect("known");
            let from = offset.min(bytes.len());
            let to = from.saturating_add(most).min(bytes.len());
            assert_eq!(part.total, bytes.len() as u64);
            assert!(part.bytes == bytes[from..to], "from {offset}, {most} at the most");
        }
    }
}

pub async fn whoever_waits_hears_of_what_is_recorded(world: &impl World) {
    let (reader, writer) = (world.worker(), world.worker());
    let build = requested("ann", "b", 0);
    let known = async {
        loop {
            // It may return early, and what it is told of is looked up; it listens from its first poll on.
            let mut changed = pin!(reader.changed());
            tokio::select! {
                biased;
                () = &mut changed => continue,
                builds = reader.builds_of_id("b") => {
                    if !builds.expect("read").is_empty() {
                        return;
                    }
                }
            }
            changed.await;
        }
    };
    let written = request(&*writer, &build);
    let heard = async { tokio::join!(known, written) };
    tokio::time::timeout(PATIENCE, heard).await.expect("it is heard of");
}

pub async fn what_is_too_old_goes(world: &impl World) {
    const DAY: u64 = 24 * 60 * 60;
    let store = world.worker();
    let [old, ended_long_ago, changed, accepted] =
        ["old", "ended", "changed", "accepted"].map(|id| requested("ann", id, 0));
    for build in [&old, &ended_long_ago, &changed] {
        request(&*store, build).await;
        record(&*store, &build.build, vec![(1, output("text\n"))]).await;
    }
    record(&*store, &ended_long_ago.build, vec![(2, ended(NotificationType::ImageReady))]).await;
    record(&*store, &changed.build, vec![(DAY, Change::Waiting)]).await;
    assert_eq!(store.accept(&accepted).await, Ok(new(0)));
    store.tidy(after(30 * DAY - 10)).await.expect("tidied");
    assert_eq!(ids(&*store, &Filter::default()).await.len(), 3);
    store.tidy(after(30 * DAY + 10)).await.expect("tidied");
    assert_eq!(ids(&*store, &Filter::default()).await, ["changed"]);
    assert_eq!(store.log(&old.build, 0, 10).await, Ok(None));
    assert_eq!(log(&*store, &changed.build).await, "text\n");
    let other = RequestedBuild { request: "another".to_owned(), ..accepted };
    assert_eq!(store.accept(&other).await, Ok(new(0)));
}

pub async fn the_oldest_that_ended_go_where_all_hold_too_much(world: &impl World) {
    let store = world.worker();
    // Half of it at the most is saved by compressing it: all ten hold at least twice what they may.
    let each = usize::try_from(world.budget() * 4 / 10).expect("a length");
    for number in 0..10_u64 {
        let build = requested("ann", &number.to_string(), number);
        request(&*store, &build).await;
        let text = noise(&number.to_string(), each);
        record(&*store, &build.build, vec![(number, output(text))]).await;
        if number != 0 {
            let end = ended(NotificationType::ImageReady);
            record(&*store, &build.build, vec![(100 + number, end)]).await;
        }
    }
    store.tidy(after(1000)).await.expect("tidied");
    let left = ids(&*store, &Filter::default()).await;
    assert!(left.contains(&"0".to_owned()), "it has not ended: {left:?}");
    assert!(left.contains(&"9".to_owned()), "the newest fits: {left:?}");
    assert!((2..=6).contains(&left.len()), "{left:?}");
    // Those that are left are the newest.
    let newest: Vec<_> = (1..10).rev().take(left.len() - 1).chain([0]).collect();
    let newest: Vec<_> = newest.iter().map(u64::to_string).collect();
    assert_eq!(left, newest);
    let nothing_more = store.tidy(after(1001)).await;
    assert_eq!(nothing_more, Ok(()));
    assert_eq!(ids(&*store, &Filter::default()).await, left);
}
