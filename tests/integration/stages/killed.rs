//! The worker is killed once, at each named point of a job's way, and another one takes over, on the
//! dead one's directory.
//!
//! Whatever the point, there is one kind of outcome, and an image is built once and has one digest.
//! Only where the kill falls between a notification and the note that it was taken is it repeated, under
//! the same `webhook-id`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use image_builder::kill_points::POINTS;
use image_builder_actors::delivery::envelope::Envelope;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::history::History;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;
use time::OffsetDateTime;

use super::finish;
use crate::support::managers::Notification;
use crate::support::marked::Marked;
use crate::support::stand_in::{Answer, StandIn};
use crate::support::turnstile::Steps;
use crate::support::worker::Worker;
use crate::support::world::{World, held_repository};
use crate::support::{registry, runtime, until};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    /// Without any id; its build is good.
    Plain,
    /// The same, with a `uuid`.
    Named,
    /// The same; the manager refuses its notification once, so that the request is acked for long
    /// when it is told.
    Refused,
    /// Without any id; its build fails at the same step each time.
    Failing,
    /// In the fail queue, with one try that the registry failed; its build is good.
    Failed,
    /// In the fail queue, with all tries used up.
    UsedUp,
}

/// How a worker is killed, and what the managers hear of the request.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    request: Request,
    /// What is written into the file that `KILL_AT` names: the point, and at which passing it is.
    at: &'static str,
    /// What is held up in the worker that dies. Nobody who consumes a queue waits for the ack of what
    /// the message was made from.
    held: &'static str,
    /// How many build ids the managers hear of.
    ids: usize,
    /// How many notifications they accept.
    posts: usize,
    /// How many dead letters there are, at the most, where there are any.
    dead: usize,
}

macro_rules! rows {
    ($($test:ident: $request:ident $at:literal $held:literal => $ids:literal $posts:literal $dead:literal;)*) => {
        /// Every row there is.
        const ROWS: &[Row] = &[$(rows!(@row $request $at $held $ids $posts $dead)),*];

        $(
            #[test]
            fn $test() {
                rows!(@row $request $at $held $ids $posts $dead).holds();
            }
        )*
    };
    (@row $request:ident $at:literal $held:literal $ids:literal $posts:literal $dead:literal) => {
        Row {
            request: Request::$request,
            at: $at,
            held: $held,
            ids: $ids,
            posts: $posts,
            dead: $dead,
        }
    };
}

// The listener meets a request twice: once to put it in the backlog, which makes a new message and gives
// it an id where it has none, and once to begin it.
rows! {
    //                             request at                   held             => ids posts dead
    before_it_is_given_an_id:        Plain "listener::handle"   ""                => 1 1 0;
    while_it_is_given_an_id:         Plain "listener::work"     ""                => 1 1 0;
    // The one hop that can give a request two ids: the copy that has one is published, and the
    // request itself is not acked.
    when_it_was_given_an_id:         Plain "settlement::settle"       ""                => 2 2 0;
    on_its_way_to_the_listener:      Plain "listener::handle 2" ""                => 1 1 0;
    in_the_listener:                 Plain "listener::work 2"   ""                => 1 1 0;
    on_its_way_to_the_connector:     Plain "connector::handle"  ""                => 1 1 0;
    in_the_connector:                Plain "connector::work"    ""                => 1 1 0;
    when_it_is_fetched:              Plain "connector::fetched" ""                => 1 1 0;
    on_its_way_to_the_builder:       Plain "builder::handle"    ""                => 1 1 0;
    in_the_builder:                  Plain "builder::work"      ""                => 1 1 0;
    when_it_is_built:                Plain "builder::built"     ""                => 1 1 0;
    on_its_way_to_the_pusher:        Plain "pusher::handle"     ""                => 1 1 0;
    in_the_pusher:                   Plain "pusher::work"       ""                => 1 1 0;
    when_it_is_pushed:               Plain "pusher::pushed"     ""                => 1 1 0;
    // The outcome is published, and the request is not acked: what it ends in once more is not told.
    when_its_image_is_an_outcome:    Plain "settlement::settle 2"     "notifier::handle" => 1 1 0;

    with_a_uuid_on_its_way_to_the_listener: Named "listener::handle" ""           => 1 1 0;
    with_a_uuid_in_the_listener:     Named "listener::work"     ""                => 1 1 0;
    // It is in the backlog, and the request itself is not acked: two of it, of which one is told.
    with_a_uuid_when_it_is_in_the_backlog: Named "settlement::settle" ""          => 1 1 0;
    with_a_uuid_when_it_is_an_outcome: Named "settlement::settle 2"   "notifier::handle" => 1 1 0;

    on_its_way_to_the_notifier:    Refused "notifier::handle 2" ""                => 1 1 0;
    in_the_notifier:               Refused "notifier::work 2"   ""                => 1 1 0;
    // The outcome is on its ladder, and not acked: two of it, of which one is told.
    when_it_was_refused:           Refused "settlement::settle 3"     ""                => 1 1 0;
    // The manager has it, and the outcome is not acked.
    when_it_is_told:               Refused "notifier::told"     ""                => 1 2 0;

    // The failed try is published, and the request is not acked: there are two of it from here on,
    // and the first to end is told.
    when_its_failure_is_published: Failing "settlement::settle 2"     "retry::handle"   => 1 1 2;

    on_its_way_to_retry:            Failed "retry::handle"      ""                => 1 1 0;
    in_retry:                       Failed "retry::work"        ""                => 1 1 0;
    // It is on the ladder, and the failed try is not acked: two of it, as above.
    when_it_is_on_the_ladder:       Failed "settlement::settle"       ""                => 1 1 0;

    about_to_be_given_up:           UsedUp "retry::handle"      ""                => 1 1 1;
    while_it_is_given_up:           UsedUp "retry::work"        ""                => 1 1 1;
    // The outcome and the dead letter are published, and the failed try is not acked.
    when_its_failure_is_an_outcome: UsedUp "settlement::settle"       "notifier::handle" => 1 1 2;
}

#[test]
fn no_point_is_forgotten() {
    let point = |row: &Row| row.at.split(' ').next().unwrap_or_default();
    let tested: BTreeSet<&str> = ROWS.iter().map(point).collect();
    assert_eq!(tested, BTreeSet::from(POINTS));
}

/// Its last try has failed and is published, and the request is not acked: what is given up on the one
/// hand succeeds on the other.
#[test]
fn when_its_last_failure_is_published_and_it_goes_well_after_all_one_of_the_two_is_told() {
    let fails = Arc::new(AtomicBool::new(true));
    let failing = fails.clone();
    // The look at what was pushed fails.
    let registry = runtime().block_on(StandIn::start(move |asked| {
        let looks = asked.method == "GET" && asked.path.contains("/manifests/sha256:");
        match looks && failing.load(Ordering::Relaxed) {
            true => Answer::status(500),
            false => Answer::From(format!("http://{}", registry::open())),
        }
    }));
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let kill_at = home.path().join("kill");
    // Its second passing: at the first it was put in the backlog.
    std::fs::write(&kill_at, "settlement::settle 2").expect("the file can be written");
    let world = World::new()
        .with("REGISTRY_URL", registry.url().trim_start_matches("http://"))
        .with("RETRY_MAX_ATTEMPTS", "1")
        .with("KILL_AT", &kill_at.display().to_string());
    let mut settings = world.settings();
    settings.insert("FAILPOINTS".to_owned(), "retry::handle=pause".to_owned());
    let first = Worker::start(&settings);
    let source = Marked::good();
    let id = world.publish(&world.request(&source.repo));
    assert_eq!(first.wait(), -1);
    assert!(!kill_at.exists(), "it died somewhere else");
    fails.store(false, Ordering::Relaxed);

    let second = world.worker();
    second.wait_for_line("the repetition is dropped");
    world.outcome(&id);
    let (told, _) = finish(&world, &[&second]);
    assert_eq!(told.len(), 1, "{told:?}");
}

/// The hop into the backlog was done, and not acked: there are two of the request, which are built at once,
/// each on a worker of its own.
#[test]
fn when_it_is_in_two_lanes_and_on_two_workers_one_of_the_two_is_told() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let kill_at = home.path().join("kill");
    std::fs::write(&kill_at, "settlement::settle").expect("the file can be written");
    let world = World::new()
        .with("BUILDER_CONCURRENCY", "1")
        .with("LISTENER_CONCURRENCY", "1")
        .with("KILL_AT", &kill_at.display().to_string());
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let first = world.worker();
    let id = world.publish(&world.held_request(&repo, &world.user));
    assert_eq!(first.wait(), -1);
    assert!(!kill_at.exists(), "it died somewhere else");

    let workers = [(); 2].map(|()| world.worker());
    for worker in &workers {
        worker.wait_for_line_where("it has one of the two", |line| {
            line.contains("\"job accepted\"") && line.contains(&id)
        });
    }
    steps.turnstile.let_all_go();
    world.outcome(&id).ready();
    let (told, dead) = finish(&world, &workers.each_ref());
    assert_eq!((told.len(), dead), (1, 0), "{told:?}");
}

/// A build id may be used again: the new request is no repetition of the one that was told, though the
/// delivery after the kill says nothing of when it came.
#[test]
fn a_request_under_an_id_that_was_told_before_is_told_whatever_kills_its_worker() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let kill_at = home.path().join("kill");
    let world = World::new().with("KILL_AT", &kill_at.display().to_string());
    let source = Marked::good();
    let mut request = world.request(&source.repo);
    request["force"] = true.into();
    let first = world.worker();
    world.build(&request).ready();
    std::fs::write(&kill_at, "builder::work").expect("the file can be written");
    let id = world.publish(&request);
    assert_eq!(first.wait(), -1);
    let second = world.worker();
    until("it is told again", || (world.managers.of(&id).len() == 2).then_some(()));
    let (told, dead) = finish(&world, &[&second]);
    assert_eq!((told.len(), dead), (2, 0), "{told:?}");
    check_images(&told, 1);
}

impl Row {
    #[track_caller]
    fn holds(&self) {
        let home = tempfile::tempdir().expect("a temporary directory can be made");
        let (data, kill_at) = (home.path().join("data"), home.path().join("kill"));
        let world = World::new()
            // What a delivery becomes a message of is delivered when it is acked, and not before.
            .with("LISTENER_CONCURRENCY", "1")
            .with("DATA_DIR", &data.display().to_string())
            .with("KILL_AT", &kill_at.display().to_string());
        let first = self.worker_that_dies(&world);
        std::fs::write(&kill_at, self.at).expect("the file can be written");
        let source = match self.request {
            Request::Failing => Marked::failing(),
            _ => Marked::good(),
        };
        let uuid = self.publish(&world, world.request(&source.repo));
        assert_eq!(first.wait(), -1, "{self:?}");
        assert!(!kill_at.exists(), "{self:?}: it died somewhere else");
        if self.dies_with_a_workspace() {
            assert_eq!(workspaces(&data), 1, "{self:?}");
        }

        let second = world.worker();
        let accepted = || world.managers.all().iter().filter(|told| told.answered < 300).count();
        until("all that is told", || (accepted() >= self.posts).then_some(()));
        let (told, dead) = finish(&world, &[&second]);
        assert_eq!(told.len(), self.posts, "{self:?}: {told:?}");
        assert!((self.dead.min(1)..=self.dead).contains(&dead), "{self:?}: {dead}");
        self.check_ids(&told, uuid.as_deref());
        match self.request {
            Request::Failing => check_failures(&told, "build_failed", 2),
            Request::UsedUp => check_failures(&told, "registry_failed", 5),
            _ => {
                check_images(&told, if self.request == Request::Failed { 2 } else { 1 });
                // The last lines of the one that was killed may be lost with it.
                assert!(source.builds(&[&first, &second]) <= 1, "{self:?}: it was built once");
            }
        }
        assert_eq!(workspaces(&data), 0, "{self:?}");
    }

    fn worker_that_dies(&self, world: &World) -> Worker {
        let mut settings = world.settings();
        if !self.held.is_empty() {
            settings.insert("FAILPOINTS".to_owned(), format!("{}=pause", self.held));
        }
        Worker::start(&settings)
    }

    /// Puts the request where it is to be; returns its `uuid` where it has one.
    fn publish(&self, world: &World, mut request: Value) -> Option<String> {
        match self.request {
            Request::Named | Request::Refused => {
                let uuid = request["uuid"].as_str().expect("it has one");
                if self.request == Request::Refused {
                    world.managers.refuse(uuid, &[(500, None)]);
                }
                return Some(world.publish(&request));
            }
            Request::Plain | Request::Failing => {
                request.as_object_mut().expect("it is an object").remove("uuid");
                world.publish(&request);
                return None;
            }
            Request::Failed | Request::UsedUp => {}
        }
        let tries = if self.request == Request::UsedUp { 5 } else { 1 };
        let failed = Fault::new(StageName::Pusher, Reason::RegistryFailed, "the registry failed");
        let mut past = History::new(OffsetDateTime::now_utc());
        (0..tries).for_each(|_| past.record(&failed, true));
        let mut headers = FieldTable::default();
        let envelope = Envelope { history: Some(past), ..Envelope::default() }.encode();
        headers.insert("x-image-builder-envelope".into(), AMQPValue::LongString(envelope.into()));
        let properties = BasicProperties::default().with_headers(headers);
        let body = request.to_string();
        world.broker.publish(&world.settings["FAIL_QUEUE"], body.as_bytes(), properties);
        request["uuid"].as_str().map(str::to_owned)
    }

    fn dies_with_a_workspace(&self) -> bool {
        ["connector::fetched", "builder::handle", "builder::work"].contains(&self.at)
    }

    #[track_caller]
    fn check_ids(&self, told: &[Notification], uuid: Option<&str>) {
        let ids: BTreeSet<&str> = told.iter().map(Notification::build_id).collect();
        assert_eq!(ids.len(), self.ids, "{self:?}: {ids:?}");
        if let Some(uuid) = uuid {
            assert!(ids.contains(uuid), "{self:?}: {ids:?}");
        }
        for told in told {
            assert_eq!(told.webhook_id, told.own_id());
        }
    }
}

#[track_caller]
fn check_failures(told: &[Notification], reason: &str, attempts: u64) {
    for told in told {
        told.clone().failed(reason).after(attempts);
    }
}

/// All are told of the one image that the registry has.
#[track_caller]
fn check_images(told: &[Notification], attempts: u64) {
    for told in told {
        let told = told.clone().ready().after(attempts);
        let repository = told.text("/image/repository");
        let (_, repository) = repository.split_once('/').expect("the registry, and a path");
        let digest = registry::digest(repository, told.text("/image/tag"));
        assert_eq!(digest.as_deref(), Some(told.text("/image/digest")), "{}", told.raw);
    }
}

fn workspaces(data: &Path) -> usize {
    std::fs::read_dir(data.join("work")).expect("the worker has made it").count()
}
