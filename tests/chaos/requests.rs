//! What is asked of the workers, and how each of it has to end. All of it follows from the seed.

use serde_json::json;

use crate::dice::Dice;
use crate::support::engine;
use crate::support::git_server::GitRepo;
use crate::support::request::{self, Ending, Expected};

/// What kind of request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sort {
    /// An application of its own, files only.
    Files,
    /// The same, with a step that runs.
    Step,
    /// An application that others build as well, so that an image may be there already.
    Shared,
    /// The same, to be built in any case.
    Forced,
    /// Published twice under one id.
    Twice,
    /// With the message's id for its only one.
    MessageId,
    /// Without any id.
    NoId,
    /// In the older, nested shape.
    Nested,
    /// A step fails each time.
    Failing,
    /// There is no such repository.
    Missing,
    /// Not a request that can be understood.
    Malformed,
    /// Taken back soon after.
    Cancelled,
    /// Like `Files`, when nothing is wrong any longer.
    Fresh,
}

const SORTS: [(usize, Sort); 12] = [
    (30, Sort::Files),
    (14, Sort::Step),
    (12, Sort::Shared),
    (5, Sort::Forced),
    (6, Sort::Twice),
    (7, Sort::MessageId),
    (6, Sort::NoId),
    (4, Sort::Nested),
    (6, Sort::Failing),
    (4, Sort::Missing),
    (3, Sort::Malformed),
    (3, Sort::Cancelled),
];

pub type Request = request::Request<Sort>;

impl Expected for Sort {
    fn ending(self) -> Ending {
        match self {
            Self::Failing => Ending::Failed("build_failed"),
            Self::Missing => Ending::Failed("repository_not_found"),
            Self::Malformed => Ending::Failed("invalid_request"),
            Self::Cancelled => Ending::ImageOrCancelled,
            _ => Ending::Image,
        }
    }

    fn may_be_reused(self) -> bool {
        self != Self::Forced
    }

    fn passes_at_once(self) -> bool {
        self == Self::Fresh
    }
}

/// The repositories that requests are made of.
pub struct Repositories {
    files: Vec<(GitRepo, String)>,
    steps: (GitRepo, String),
    failing: (GitRepo, String),
}

const USERS: usize = 5;
const SHARED: usize = 3;

impl Repositories {
    /// `run` is in every step's command line.
    pub fn create(run: &str) -> Self {
        let make = |name: &str, files: &[(&str, &str)]| {
            let repo = GitRepo::create("chaos", name);
            let commit = repo.commit(files);
            (repo, commit)
        };
        let files = (0..6)
            .map(|n| {
                let text = format!("{n} of {run}");
                make("files", &[("Dockerfile", "FROM scratch\nCOPY text /\n"), ("text", &text)])
            })
            .collect();
        let base = engine::BASE;
        let steps = format!(
            "FROM {base} AS work\nARG MARK SECONDS\n\
             RUN echo \"$MARK of {run}\" >/text; sleep $SECONDS\n\
             FROM scratch\nCOPY --from=work /text /\n"
        );
        let failing = format!("FROM {base}\nARG MARK\nRUN echo \"$MARK of {run}\"; exit 3\n");
        Self {
            files,
            steps: make("steps", &[("Dockerfile", &steps)]),
            failing: make("failing", &[("Dockerfile", &failing)]),
        }
    }

    /// So many requests, in the order in which they are published.
    pub fn requests(&self, run: &str, seed: u64, count: usize) -> Vec<Request> {
        let mut dice = Dice::new(seed, "requests");
        (0..count).map(|number| self.request(run, number, &mut dice)).collect()
    }

    /// One that has to end well, with an image that was not there before.
    pub fn fresh(&self, run: &str, number: usize) -> Request {
        self.request_of(Sort::Fresh, run, 1_000_000 + number, &mut Dice::new(0, "fresh"))
    }

    fn request(&self, run: &str, number: usize, dice: &mut Dice) -> Request {
        let sort = dice.weighted(&SORTS);
        self.request_of(sort, run, number, dice)
    }

    fn request_of(&self, sort: Sort, run: &str, number: usize, dice: &mut Dice) -> Request {
        let user = format!("{run}-user{}", dice.below(USERS));
        let of_files = dice.below(self.files.len());
        let seconds = if sort == Sort::Cancelled { 2 + dice.below(3) } else { 1 };
        let application = match sort {
            // One repository an application: the commit is part of what may be reused.
            Sort::Shared | Sort::Forced => format!("shared{}", of_files % SHARED),
            _ => format!("app{number}"),
        };
        let (repo, commit) = match sort {
            Sort::Step | Sort::Cancelled => &self.steps,
            Sort::Failing => &self.failing,
            Sort::Shared | Sort::Forced => &self.files[of_files % SHARED],
            _ => &self.files[of_files],
        };
        let repo = match sort {
            Sort::Missing => format!("chaos/missing-{run}-{number}"),
            Sort::Malformed => "this names no repository".to_owned(),
            _ => path(repo),
        };
        let id = format!("{run}-{number}");
        let mut body = json!({"userID": user, "applicationID": application, "repo": repo});
        if matches!(sort, Sort::Step | Sort::Cancelled | Sort::Failing) {
            body["buildPlan"] = json!({"buildArgs": {"MARK": id, "SECONDS": seconds.to_string()}});
        }
        if sort == Sort::Forced {
            body["force"] = true.into();
        }
        let (mut build_id, mut message_id) = (Some(id.clone()), None);
        match sort {
            Sort::MessageId => message_id = Some(id),
            Sort::NoId => build_id = None,
            Sort::Nested => {
                body = json!({
                    "uuid": id,
                    "applicationID": application,
                    "pullInfo": {"userID": user, "repo": repo, "connector": "github", "commit": "latest"},
                });
            }
            _ => body["uuid"] = id.into(),
        }
        Request {
            sort,
            build_id,
            message_id,
            application,
            user,
            commit: (sort != Sort::Missing && sort != Sort::Malformed).then(|| commit.clone()),
            body,
            copies: if sort == Sort::Twice { 2 } else { 1 },
        }
    }
}

fn path(repo: &GitRepo) -> String {
    format!("{}/{}", repo.owner, repo.name)
}
