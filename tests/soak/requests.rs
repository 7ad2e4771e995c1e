//! What is asked of the worker, and how each of it has to end. All of it follows from its number.

use serde_json::json;

use crate::dice::Dice;
use crate::support::engine;
use crate::support::git_server::{GOOD_TOKEN, GitRepo, PRIVATE};
pub use crate::support::request::{Request, Sort};
use crate::support::world::full_name;

const SORTS: [(usize, Sort); 15] = [
    (52, Sort::Files),
    (12, Sort::Shared),
    (3, Sort::Forced),
    (3, Sort::Step),
    (3, Sort::Secret),
    (5, Sort::Private),
    (3, Sort::MessageId),
    (2, Sort::NoId),
    (2, Sort::Nested),
    (3, Sort::Failing),
    (3, Sort::Missing),
    (2, Sort::NoRef),
    (2, Sort::NoPlan),
    (2, Sort::Malformed),
    (3, Sort::Cancelled),
];

/// The secret that some builds are given.
pub const SECRET: &str = "canary-4b7d-of-the-soak";

const USERS: usize = 12;
const OWN: usize = 4;
const SHARED: usize = 4;

/// A repository and its commits.
type Source = (GitRepo, Vec<String>);

/// The repositories that requests are made of.
pub struct Repositories {
    run: String,
    own: Vec<Source>,
    shared: Vec<Source>,
    steps: Source,
    secret: Source,
    private: Source,
    failing: Source,
    plain: Source,
}

impl Repositories {
    /// For so many requests. `run` is in every step's command line.
    pub fn create(run: &str, count: usize) -> Self {
        let base = engine::BASE;
        let make = |owner: &str, name: &str, files: &[(&str, &str)]| {
            let repo = GitRepo::create(owner, name);
            let commit = repo.commit(files);
            (repo, vec![commit])
        };
        let file = |owner: &str, name: &str| {
            let text = format!("{name} of {run}");
            make(owner, name, &[("Dockerfile", "FROM scratch\nCOPY text /\n"), ("text", &text)])
        };
        let step = |name: &str, step: &str| {
            let dockerfile = format!(
                "FROM {base} AS work\nARG MARK\n{step}\nFROM scratch\nCOPY --from=work /text /\n"
            );
            make("soak", name, &[("Dockerfile", &dockerfile)])
        };
        Self {
            own: (0..OWN).map(|number| history(run, number, count.div_ceil(OWN))).collect(),
            shared: (0..SHARED).map(|number| file("soak", &format!("shared{number}"))).collect(),
            steps: step("steps", &format!("RUN echo \"$MARK of {run}\" >/text; sleep 1")),
            secret: step(
                "secret",
                &format!(
                    "RUN --mount=type=secret,id=key,required=true \
                     echo \"$MARK of {run}\" | cat - /run/secrets/key | md5sum >/text"
                ),
            ),
            private: file(PRIVATE, "private"),
            failing: step("failing", &format!("RUN echo \"$MARK of {run}\"; exit 3")),
            plain: make("soak", "plain", &[("notes", "nothing to build")]),
            run: run.to_owned(),
        }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &GitRepo> {
        let others = [&self.steps, &self.secret, &self.private, &self.failing, &self.plain];
        self.own.iter().chain(&self.shared).chain(others).map(|(repo, _)| repo)
    }

    /// The request of this number.
    pub fn request(&self, number: usize) -> Request {
        let dice = &mut Dice::new(number as u64, "soak");
        let (run, sort) = (&self.run, dice.weighted(&SORTS));
        let (shared, own) = (dice.below(SHARED), &self.own[number % OWN]);
        let (source, commit) = match sort {
            Sort::Shared | Sort::Forced => (&self.shared[shared], 0),
            Sort::Step | Sort::Cancelled => (&self.steps, 0),
            Sort::Secret => (&self.secret, 0),
            Sort::Private => (&self.private, 0),
            Sort::Failing => (&self.failing, 0),
            Sort::NoPlan => (&self.plain, 0),
            _ => (own, number / OWN),
        };
        let commit = &source.1[commit];
        let user = format!("{run}-user{}", dice.below(USERS));
        let application = match sort {
            Sort::Files => format!("app{}", number % OWN),
            Sort::Shared | Sort::Forced => format!("shared{shared}"),
            _ => format!("app-of-{number}"),
        };
        let id = format!("{run}-{number}");
        let mark = json!({"MARK": id});
        let mut request = Request::new(sort, id, user, application, &full_name(&source.0), commit);
        let body = &mut request.body;
        match sort {
            Sort::Files | Sort::MessageId | Sort::NoId => {
                body["type"] = "commit".into();
                body["commit"] = commit.as_str().into();
            }
            Sort::Step | Sort::Cancelled | Sort::Failing => {
                body["buildPlan"] = json!({"buildArgs": mark});
            }
            Sort::Secret => {
                body["buildPlan"] = json!({"buildArgs": mark, "secrets": {"key": SECRET}});
            }
            Sort::Private => body["token"] = GOOD_TOKEN.into(),
            Sort::NoRef => {
                body["type"] = "branch".into();
                body["branch"] = "no-such-branch".into();
            }
            _ => {}
        }
        request
    }
}

/// A repository of so many commits, each with a file that nothing else has.
fn history(run: &str, number: usize, commits: usize) -> Source {
    let repo = GitRepo::create("soak", "own");
    let dockerfile = "FROM scratch\nCOPY text /\n";
    let mut stream = String::new();
    for commit in 0..commits {
        let text = format!("commit {commit} of repository {number} of {run}\n").repeat(32);
        stream += &format!(
            "commit refs/heads/main\ncommitter A Tester <tester@example.invalid> {} +0000\ndata 0\n\
             M 100644 inline Dockerfile\ndata {}\n{dockerfile}\nM 100644 inline text\ndata {}\n{text}\n",
            1_700_000_000 + commit,
            dockerfile.len(),
            text.len(),
        );
    }
    repo.git_with_input(&["fast-import", "--quiet"], stream.as_bytes());
    repo.git(&["push", "-q", &repo.bare_path(), "main"]);
    let commits = repo.git(&["rev-list", "--reverse", "main"]);
    (repo, commits.lines().map(str::to_owned).collect())
}
