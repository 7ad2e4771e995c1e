//! Fills a data directory for the browser tests, by the stores' own doors: `page-seed DIRECTORY BUILDS LETTERS`.

use std::path::Path;
use std::time::Duration;

use image_builder::broker::sqlite::{SqliteBroker, SqliteSettings};
use image_builder::data_dir::DataDir;
use image_builder::store::{self, Place, StoreSettings};
use image_builder_actors::dead_letter::DeadLetter;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::history::{Attempt, History};
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::model::notification::NotificationType;
use image_builder_actors::ports::DeadLetters;
use image_builder_actors::ports::build_store::{BuildStore, Change, Recorded, RequestedBuild};
use serde_json::json;
use time::OffsetDateTime;

const USERS: [&str; 5] = ["alice", "bob", "carol", "dave", "erin"];
const APPLICATIONS: [&str; 7] =
    ["shop", "blog", "api-gateway", "mailer", "thumbnails", "landing-page", "reports"];
const DAY: u64 = 24 * 60 * 60;

#[tokio::main]
async fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [directory, builds, letters] = &arguments[..] else {
        panic!("usage: page-seed DIRECTORY BUILDS LETTERS")
    };
    let count = |text: &String| text.parse::<u64>().expect("a number");
    let data_dir = DataDir::open(Path::new(directory)).expect("nobody else has it");
    seed_builds(&data_dir, count(builds)).await;
    seed_letters(&data_dir, count(letters)).await;
}

async fn seed_builds(data_dir: &DataDir, builds: u64) {
    let settings = StoreSettings {
        place: Place::File(data_dir.history()),
        ttl: Duration::from_secs(30 * DAY),
        budget: u64::MAX,
    };
    let store = store::open(settings).expect("it can be opened");
    for number in 0..builds {
        store.record(&build(number, builds)).await.expect("recorded");
    }
}

/// The story of one build, the newest one last; most went well.
fn build(number: u64, of: u64) -> Vec<Recorded> {
    let user = USERS[((number + number / 3) % 5) as usize];
    let application = APPLICATIONS[(number * 3 % 7) as usize];
    let build = BuildIdentity::new(Some(user), &format!("{application}-{number}"));
    let requested_at = OffsetDateTime::now_utc() - Duration::from_secs((of - number) * 97);
    let hash = (u128::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_0b5d_1234_5677);
    let commit = format!("{hash:032x}{:08x}", hash >> 96);
    let repo = format!("{user}/{application}");
    let requested = RequestedBuild {
        build: build.clone(),
        request: format!("request {number}"),
        application_id: Some(application.to_owned()),
        connector: Some("github".to_owned()),
        repo: Some(repo.clone()),
        requested_at,
    };
    let mut story = vec![
        (0, Change::Requested(requested)),
        (900, stage(1, StageName::Connector)),
        (1100, Change::Commit(commit.clone())),
        (1400, stage(1, StageName::Builder)),
        (1500, Change::Output(log(number))),
    ];
    let about =
        json!({"applicationID": application, "userID": user, "repo": repo, "commit": commit});
    let ended = |kind, data: &str| {
        let mut whole = about.clone();
        let data: serde_json::Value = serde_json::from_str(data).expect("JSON");
        whole
            .as_object_mut()
            .expect("an object")
            .extend(data.as_object().expect("an object").clone());
        Change::Ended { kind, data: whole.to_string() }
    };
    match number % 12 {
        5 => {
            let step = "RUN npm ci";
            let message = format!(
                "Step `{step}` failed with exit code 1: the lock file does not fit package.json."
            );
            for attempt in 1..=2 {
                let at = i64::from(attempt) * 20_000;
                story.push((
                    at,
                    Change::Failed(failed(Reason::BuildFailed, &message, Some(step), requested_at)),
                ));
                if attempt == 1 {
                    story.push((at + 11_000, stage(2, StageName::Connector)));
                    story.push((at + 11_400, stage(2, StageName::Builder)));
                }
            }
            let data = json!({"fault": "user", "stage": "builder", "reason": "build_failed", "message": message});
            story.push((40_100, ended(NotificationType::BuildFailed, &data.to_string())));
        }
        9 if number % 24 == 9 => {
            story.push((9_000, ended(NotificationType::BuildCancelled, "{}")));
        }
        _ => {
            let at = 14_000 + (number % 9 * 2_300) as i64;
            story.push((at, stage(1, StageName::Pusher)));
            let digest = format!("sha256:{commit}{}", &commit[..24]);
            let image = json!({
                "reference": format!("registry.example/{user}/{application}:{commit}"),
                "repository": format!("registry.example/{user}/{application}"),
                "tag": commit, "digest": digest, "sizeBytes": 30_000_000 + number * 12_345,
            });
            let data = json!({"image": image, "reused": false}).to_string();
            story.push((at + 2_000, ended(NotificationType::ImageReady, &data)));
        }
    }
    let recorded = |(millis, change): (i64, Change)| Recorded {
        build: build.clone(),
        at: requested_at + time::Duration::milliseconds(millis),
        change,
    };
    story.into_iter().map(recorded).collect()
}

fn stage(attempt: u32, stage: StageName) -> Change {
    Change::Stage { attempt, stage, worker: "builder-1:8080".to_owned() }
}

fn failed(reason: Reason, message: &str, step: Option<&str>, at: OffsetDateTime) -> Attempt {
    Attempt {
        at,
        stage: StageName::Builder,
        reason,
        message: message.to_owned(),
        step: step.map(str::to_owned),
        counted: true,
        retry_after: None,
        engine_died: false,
    }
}

/// What a build writes: the first one a lot, so that it has to be paged through.
fn log(number: u64) -> String {
    let mut log =
        String::from("fetching the default branch\n=> [1/3] FROM docker.io/library/node:22-slim\n");
    let lines = if number == 0 { 20_000 } else { 62 };
    for line in 1..=lines {
        match line % 9 {
            3 => log.push_str("\u{1b}[33mnpm warn\u{1b}[0m deprecated inflight@1.0.6: it leaks memory\n"),
            7 => log.push_str("\u{1b}[32m✓\u{1b}[0m \u{1b}[2msrc/cart/\u{1b}[0mtotals.test.ts \u{1b}[90m(12 tests)\u{1b}[39m\n"),
            8 if line == lines => log.push_str("\u{1b}[1;31merror\u{1b}[0m <script>alert(1)</script>\n"),
            _ => log.push_str(&format!("transforming ({line}) src/components/Item{line}.tsx\n")),
        }
    }
    log
}

async fn seed_letters(data_dir: &DataDir, letters: u64) {
    let broker =
        SqliteBroker::open(SqliteSettings::new(data_dir.queue())).await.expect("it can be opened");
    for number in 0..letters {
        let (user, application) =
            (USERS[(number % 5) as usize], APPLICATIONS[(number % 7) as usize]);
        let request = json!({
            "userID": user, "repo": format!("{user}/{application}"), "applicationID": application,
            "token": "ghp_0123456789", "buildPlan": {"secrets": {"npm": "s3cret"}},
        });
        let (reason, message) = match number % 3 {
            0 => (
                Reason::Unauthorized,
                "The forge refused the token: give one that reads this repository.",
            ),
            1 => (
                Reason::BuildFailed,
                "Step `RUN npm ci` failed with exit code 1: the lock file does not fit package.json.",
            ),
            _ => (
                Reason::RegistryRefused,
                "The registry refused the push: its credential may not write there.",
            ),
        };
        let fault = Fault::new(StageName::Builder, reason, message);
        let history = History::new(OffsetDateTime::now_utc());
        let id = format!("{application}-letter-{number}");
        let letter = DeadLetter::new(&id, request.to_string().as_bytes(), &history, &fault);
        broker.keep(&letter).await.expect("kept");
    }
}
