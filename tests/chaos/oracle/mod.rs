//! Knows what image-builder promises (`docs/`) and nothing else: what was asked for, and what is there
//! afterwards. Says what of it cannot be.
//!
//! | file | what it judges |
//! |---|---|
//! | `builds.rs` | what was told of one build |
//! | `repeats.rs` | what was told more than once, and why |
//! | `rest.rs` | the registry, the dead letters, and what is left |

mod builds;
mod repeats;
mod rest;

use std::collections::{BTreeMap, BTreeSet, HashMap};

pub use self::repeats::{Cause, Kind, Repeat};
pub use self::rest::{judge_left, judge_waiting};
use crate::evidence::Evidence;
use crate::requests::Request;
use crate::support::managers::Notification;
use crate::support::request::Ending;

/// What must never be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// No manager has accepted a word of a request.
    Lost,
    /// A build was told to have ended in two ways.
    Contradictory,
    /// An outcome was made once more, and told as well.
    MadeAgain,
    /// An outcome was told again, and nothing had happened to whoever told it.
    NotifiedAgain,
    /// A build that was asked for once was told with two digests.
    TwoDigests,
    /// A build was told that nobody has asked for.
    NotAskedFor,
    /// A notification is not under the id that its build and its type have.
    OtherWebhookId,
    /// It was told to the manager that it is not for.
    OtherManager,
    /// The request may not end so.
    OtherEnding,
    /// A build was cancelled by somebody other than its user.
    CancelledUnasked,
    /// A build that was asked for when all was well again did not pass at once.
    FreshNotPassed,
    /// The registry does not have a digest that was told.
    DigestNotThere,
    /// The registry does not have the tag of an image that was told.
    TagNotThere,
    /// The registry has an image that nobody was told of.
    UnknownImage,
    /// A build was given up without a dead letter.
    NoLetter,
    /// There is a dead letter of a build that was not given up.
    OddLetter,
    /// A queue did not get empty, or a message in it was never acked.
    Waiting,
    /// A message was left in a queue.
    MessageLeft,
    WorkspaceLeft,
    /// A step of a build still runs.
    StepLeft,
    ContainerLeft,
    /// A worker did not end as it was asked to, or ended unasked.
    OddEnd,
    /// An actor panicked or died.
    ActorDied,
    /// A manager got what it cannot take: a wrong signature, or no JSON.
    BadNotification,
    /// A fault could not be done, or its end was not noticed.
    FaultWentWrong,
}

/// A finding, and what it is about.
#[derive(Debug, Clone)]
pub struct Violation {
    pub finding: Finding,
    /// The build that it is about, if it is about one.
    pub build_id: Option<String>,
    pub text: String,
}

impl Violation {
    pub fn general(finding: Finding, text: impl Into<String>) -> Self {
        Self { finding, build_id: None, text: text.into() }
    }

    fn of(finding: Finding, build_id: &str, text: impl Into<String>) -> Self {
        Self { finding, build_id: Some(build_id.to_owned()), text: text.into() }
    }
}

/// What was counted.
#[derive(Debug, Default)]
pub struct Count {
    /// Requests by how they ended.
    pub endings: BTreeMap<String, usize>,
    /// What a manager had accepted, and was told again.
    pub repeats: Vec<Repeat>,
    /// Requests without an id that were given two.
    pub two_ids: usize,
    pub violations: Vec<Violation>,
}

impl Count {
    /// How often this was found.
    pub fn found(&self, finding: Finding) -> usize {
        self.violations.iter().filter(|violation| violation.finding == finding).count()
    }
}

/// What was published, and how to find it again.
pub struct Asked {
    pub request: Request,
    /// How often the broker may have taken it.
    pub copies: usize,
    /// Whether whoever published it was told at once that it is invalid, and nobody else was.
    pub refused: bool,
}

/// What became of a request that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The broker has it; so many copies at the most.
    Copies(usize),
    /// Whoever published it was told at once that it is invalid.
    Refused,
}

/// All that was published so far.
#[derive(Default)]
pub struct Oracle {
    pub asked: Vec<Asked>,
    /// By user and id: users may have builds of one id.
    by_build: HashMap<(String, String), usize>,
    by_id: HashMap<String, usize>,
    by_application: HashMap<String, usize>,
}

impl Oracle {
    /// Notes a request before it is published: it may be told before the confirm is here.
    pub fn ask(&mut self, request: Request) {
        let index = self.asked.len();
        match &request.build_id {
            Some(id) => {
                self.by_build.insert((request.user.clone(), id.clone()), index);
                self.by_id.insert(id.clone(), index);
            }
            None => drop(self.by_application.insert(request.application.clone(), index)),
        }
        let copies = request.copies;
        self.asked.push(Asked { request, copies, refused: false });
    }

    /// Notes what became of the request that was asked for last.
    pub fn taken(&mut self, taken: &[Taken]) {
        let Some(asked) = self.asked.last_mut() else { return };
        asked.refused = taken.contains(&Taken::Refused);
        let copies = taken.iter().map(|taken| match taken {
            Taken::Copies(copies) => *copies,
            Taken::Refused => 0,
        });
        asked.copies = copies.sum();
    }

    /// The request that a notification is about.
    fn request_of(&self, told: &Notification) -> Option<usize> {
        let by_build = self.by_build.get(&build(told));
        by_build
            .or_else(|| self.by_id.get(told.build_id()))
            .or_else(|| self.by_application.get(told.text("/applicationID")))
            .copied()
    }

    /// The requests of which no manager has accepted a word.
    pub fn open(&self, told: &[Notification]) -> Vec<usize> {
        let accepted = told.iter().filter(|told| told.answered < 300);
        let ended: BTreeSet<usize> = accepted.filter_map(|told| self.request_of(told)).collect();
        let is_open = |index: &usize| !self.asked[*index].refused && !ended.contains(index);
        (0..self.asked.len()).filter(is_open).collect()
    }

    /// Judges a whole run by what is there after it.
    pub fn judge(&self, evidence: &Evidence) -> Count {
        let mut count = Count::default();
        let mut builds: BTreeMap<_, Vec<&Notification>> = BTreeMap::new();
        for told in &evidence.notifications {
            builds.entry(build(told)).or_default().push(told);
        }
        let mut ids_of: BTreeMap<usize, usize> = BTreeMap::new();
        for ((_, id), told) in &builds {
            let Some(index) = self.request_of(told[0]) else {
                let text = format!("nobody asked for this build: {}", told[0].raw);
                count.violations.push(Violation::of(Finding::NotAskedFor, id, text));
                continue;
            };
            *ids_of.entry(index).or_default() += 1;
            let asked = &self.asked[index];
            *count.endings.entry(builds::ending(told[0])).or_default() += 1;
            count.violations.extend(builds::judge(id, asked, told));
            let repeats = repeats::of(id, asked.copies, told, &evidence.journal);
            count.violations.extend(repeats.iter().filter_map(|repeat| match repeat.kind {
                Kind::MadeAgain => Some(Violation::of(Finding::MadeAgain, id, "told twice")),
                Kind::NotifiedAgain(Cause::Unknown) => {
                    Some(Violation::of(Finding::NotifiedAgain, id, "told again"))
                }
                Kind::NotifiedAgain(_) | Kind::PublishedTwice => None,
            }));
            count.repeats.extend(repeats);
        }
        count.two_ids = ids_of.values().filter(|ids| **ids > 1).count();
        for index in self.open(&evidence.notifications) {
            let request = &self.asked[index].request;
            let id = request.build_id.as_deref().unwrap_or(&request.application);
            let text = format!("no outcome: {:?} {}", request.sort, request.body);
            count.violations.push(Violation::of(Finding::Lost, id, text));
        }
        for asked in self.asked.iter().filter(|asked| asked.refused) {
            let Request { sort, body, .. } = &asked.request;
            *count.endings.entry("refused when it was published".to_owned()).or_default() += 1;
            if sort.ending() != Ending::Failed("invalid_request") {
                let text = format!("a good request was refused: {body}");
                let id = asked.request.build_id.as_deref().unwrap_or_default();
                count.violations.push(Violation::of(Finding::Lost, id, text));
            }
        }
        count.violations.extend(rest::judge(evidence));
        count
    }
}

/// The user and the id of the build that a notification is about.
fn build(told: &Notification) -> (String, String) {
    (told.text("/userID").to_owned(), told.build_id().to_owned())
}
