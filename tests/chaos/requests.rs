//! What is asked of the workers, and how each of it has to end. All of it follows from the seed.

use std::collections::HashSet;

use serde_json::json;

use crate::dice::Dice;
use crate::support::engine;
use crate::support::git_server::GitRepo;
pub use crate::support::request::{Request, Sort};
use crate::support::world::full_name;

const SORTS: [(usize, Sort); 14] = [
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
    (4, Sort::Cancelled),
    (2, Sort::CancelledUnheard),
    (3, Sort::SameId),
];

/// The repositories that requests are made of.
pub struct Repositories {
    files: Vec<(GitRepo, String)>,
    steps: (GitRepo, String),
    failing: (GitRepo, String),
}

const USERS: usize = 12;
/// So many of a hundred requests are one user's.
const FLOOD: usize = 45;
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
        let mut requests: Vec<Request> = Vec::with_capacity(count);
        let mut known = HashSet::new();
        for number in 0..count {
            let drawn = dice.weighted(&SORTS);
            let request = match requests.last() {
                // What one user cancels is another one's build as well. A third user is one too many: it may be the
                // first one again.
                Some(last)
                    if last.sort.is_cancelled()
                        || (drawn == Sort::SameId && last.sort != Sort::SameId) =>
                {
                    let request = self.request_of(Sort::SameId, run, number, &mut dice);
                    of_another_user(request, run, last)
                }
                _ => self.request_of(drawn, run, number, &mut dice),
            };
            let named = (request.user.clone(), request.build_id.clone());
            assert!(named.1.is_none() || known.insert(named), "two builds of one name");
            requests.push(request);
        }
        requests
    }

    /// One that has to end well, with an image that was not there before.
    pub fn fresh(&self, run: &str, number: usize) -> Request {
        self.request_of(Sort::Fresh, run, 1_000_000 + number, &mut Dice::new(0, "fresh"))
    }

    fn request_of(&self, sort: Sort, run: &str, number: usize, dice: &mut Dice) -> Request {
        let flooding = dice.below(100) < FLOOD;
        let user = user(run, if flooding { 0 } else { 1 + dice.below(USERS - 1) });
        let of_files = dice.below(self.files.len());
        let seconds = if sort.is_cancelled() { 2 + dice.below(3) } else { 1 };
        let application = match sort {
            // One repository an application: the commit is part of what may be reused.
            Sort::Shared | Sort::Forced => format!("shared{}", of_files % SHARED),
            _ => format!("app{number}"),
        };
        let (repo, commit) = match sort {
            Sort::Step | Sort::Cancelled | Sort::CancelledUnheard | Sort::SameId => &self.steps,
            Sort::Failing => &self.failing,
            Sort::Shared | Sort::Forced => &self.files[of_files % SHARED],
            _ => &self.files[of_files],
        };
        let id = format!("{run}-{number}");
        let arguments = json!({"MARK": id, "SECONDS": seconds.to_string()});
        let mut request = Request::new(sort, id, user, application, &full_name(repo), commit);
        match sort {
            Sort::Step
            | Sort::Cancelled
            | Sort::CancelledUnheard
            | Sort::SameId
            | Sort::Failing => {
                request.body["buildPlan"] = json!({"buildArgs": arguments});
            }
            Sort::Nested => {
                request.body["pullInfo"]["connector"] = "github".into();
                request.body["pullInfo"]["commit"] = "latest".into();
            }
            _ => {}
        }
        request
    }
}

fn user(run: &str, number: usize) -> String {
    format!("{run}-user{number}")
}

/// The request, under the id that another user's has, if that one has a `uuid`.
fn of_another_user(mut request: Request, run: &str, other: &Request) -> Request {
    if request.user == other.user {
        // The flood's user and another one.
        request.user = user(run, usize::from(other.user == user(run, 0)));
        request.body["userID"] = request.user.as_str().into();
    }
    if let Some(id) = other.body["uuid"].as_str() {
        request.body["uuid"] = id.into();
        request.build_id = Some(id.to_owned());
    }
    request
}
