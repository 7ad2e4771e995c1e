//! Knows the contract and nothing else: what was asked for, what the managers were told, and what the
//! registry has. Says what of it cannot be.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::requests::{Ending, Request, Sort};
use crate::support::managers::Told;
use crate::support::registry;

/// Something that must never be.
#[derive(Debug)]
pub struct Violation {
    /// The build that it is about, if it is about one.
    pub build_id: Option<String>,
    pub text: String,
}

impl Violation {
    pub fn general(text: impl Into<String>) -> Self {
        Self { build_id: None, text: text.into() }
    }

    fn of(build_id: &str, text: impl Into<String>) -> Self {
        Self { build_id: Some(build_id.to_owned()), text: text.into() }
    }
}

/// What was counted.
#[derive(Debug, Default)]
pub struct Count {
    /// Requests by how they ended.
    pub endings: BTreeMap<String, usize>,
    pub lost: usize,
    pub contradictions: usize,
    /// Notifications that a manager had accepted before, of the very same outcome.
    pub told_again: usize,
    /// Outcomes that were made a second time, from one request.
    pub made_again: usize,
    /// The same, from the second copy of a request that was published twice.
    pub second_copies: usize,
    /// Builds whose repeated outcomes have different digests.
    pub other_digests: usize,
    /// Requests without an id that were given two.
    pub two_ids: usize,
    pub violations: Vec<Violation>,
}

/// What was published, and how to find it again.
pub struct Asked {
    pub request: Request,
    /// How often the broker may have taken it.
    pub copies: usize,
}

/// All that was published so far.
#[derive(Default)]
pub struct Oracle {
    pub asked: Vec<Asked>,
    by_id: HashMap<String, usize>,
    by_application: HashMap<String, usize>,
}

impl Oracle {
    /// Notes a request before it is published: it may be told before the confirm is here.
    pub fn ask(&mut self, request: Request) {
        let index = self.asked.len();
        match &request.build_id {
            Some(id) => drop(self.by_id.insert(id.clone(), index)),
            None => drop(self.by_application.insert(request.application.clone(), index)),
        }
        let copies = request.copies;
        self.asked.push(Asked { request, copies });
    }

    /// The request that a notification is about.
    fn request_of(&self, told: &Told) -> Option<usize> {
        let by_id = self.by_id.get(told.build_id());
        by_id.or_else(|| self.by_application.get(told.text("/applicationID"))).copied()
    }

    /// The requests of which no manager has accepted a word.
    pub fn open(&self, told: &[Told]) -> Vec<usize> {
        let accepted = told.iter().filter(|told| told.answered < 300);
        let ended: BTreeSet<usize> = accepted.filter_map(|told| self.request_of(told)).collect();
        (0..self.asked.len()).filter(|index| !ended.contains(index)).collect()
    }

    /// Judges all that was told.
    pub fn judge(&self, told: &[Told]) -> Count {
        let mut count = Count::default();
        let mut builds: BTreeMap<&str, Vec<&Told>> = BTreeMap::new();
        for told in told {
            builds.entry(told.build_id()).or_default().push(told);
        }
        let mut ids_of: BTreeMap<usize, usize> = BTreeMap::new();
        for (id, told) in &builds {
            let Some(index) = self.request_of(told[0]) else {
                let text = format!("nobody asked for this build: {}", told[0].raw);
                count.violations.push(Violation::of(id, text));
                continue;
            };
            *ids_of.entry(index).or_default() += 1;
            judge_build(id, &self.asked[index], told, &mut count);
        }
        count.two_ids = ids_of.values().filter(|ids| **ids > 1).count();
        for index in self.open(told) {
            let request = &self.asked[index].request;
            count.lost += 1;
            let id = request.build_id.as_deref().unwrap_or(&request.application);
            let text = format!("no outcome: {:?} {}", request.sort, request.body);
            count.violations.push(Violation::of(id, text));
        }
        count
    }
}

fn judge_build(id: &str, asked: &Asked, told: &[&Told], count: &mut Count) {
    let request = &asked.request;
    let mut wrong = |text: String| count.violations.push(Violation::of(id, text));
    let kinds: BTreeSet<&str> = told.iter().map(|told| told.kind()).collect();
    if kinds.len() > 1 {
        count.contradictions += 1;
        wrong(format!("told as {kinds:?}"));
    }
    for told in told {
        if told.webhook_id != format!("{id}.{}", told.kind()) {
            wrong(format!("told under `{}`", told.webhook_id));
        }
        if told.to != if told.kind() == "image.ready" { "/container" } else { "/connector" } {
            wrong(format!("{} was told to {}", told.kind(), told.to));
        }
        if let Err(text) = judge_one(request, told) {
            wrong(format!("{text}: {}", told.raw));
        }
    }

    let first = told[0];
    let ending = match first.kind() {
        "build.failed" => format!("build.failed {}", first.text("/reason")),
        kind => kind.to_owned(),
    };
    *count.endings.entry(ending).or_default() += 1;
    let accepted: Vec<&&Told> = told.iter().filter(|told| told.answered < 300).collect();
    let made: BTreeSet<&str> =
        accepted.iter().filter_map(|told| told.body["timestamp"].as_str()).collect();
    count.told_again += accepted.len() - made.len();
    let second_copies = made.len().min(asked.copies).saturating_sub(1);
    count.second_copies += second_copies;
    count.made_again += made.len().saturating_sub(1 + second_copies);
    let digests: BTreeSet<&str> = told.iter().map(|told| told.text("/image/digest")).collect();
    count.other_digests += usize::from(digests.len() > 1);
}

/// Whether this is a way in which the request may end.
fn judge_one(request: &Request, told: &Told) -> Result<(), String> {
    if told.text("/reason") == "crashed" {
        // Workers are killed, but by no request: none may be taken for one that kills.
        return Err("taken for a request that kills its workers".to_owned());
    }
    if told.kind() == "build.failed" && told.text("/fault") == "service" {
        return Ok(());
    }
    if told.text("/userID") != request.user {
        return Err("told of another user".to_owned());
    }
    match (request.ending(), told.kind()) {
        (Ending::Image | Ending::ImageOrCancelled, "image.ready") => judge_image(request, told),
        (Ending::ImageOrCancelled, "build.cancelled") => Ok(()),
        (Ending::Failed(reason), "build.failed") if told.text("/reason") == reason => Ok(()),
        (ending, _) => {
            Err(format!("a request of the sort {:?} has to end in {ending:?}", request.sort))
        }
    }
}

fn judge_image(request: &Request, told: &Told) -> Result<(), String> {
    if request.commit.as_deref() != Some(told.text("/commit")) {
        return Err(format!("the image is not of {:?}", request.commit));
    }
    if told.text("/image/tag") != told.text("/commit") {
        return Err("the tag is not the commit".to_owned());
    }
    let path = format!("/{}/{}", request.user, request.application);
    if !told.text("/image/repository").ends_with(&path) {
        return Err(format!("the image is not {path}"));
    }
    if request.sort == Sort::Forced && told.data()["reused"] == true {
        return Err("what was to be built in any case was reused".to_owned());
    }
    Ok(())
}

/// What is wrong with the registry: digests that were told and are not there, images that nobody was
/// told of. `name` is the registry's name in references; the run's users begin with `run`.
pub fn judge_registry(told: &[Told], name: &str, run: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut known = BTreeSet::new();
    let mut looked = BTreeSet::new();
    for told in told.iter().filter(|told| told.kind() == "image.ready") {
        let repository = told.text("/image/repository");
        let repository = repository.strip_prefix(name).unwrap_or(repository).trim_matches('/');
        let (tag, digest) = (told.text("/image/tag"), told.text("/image/digest"));
        known.insert((repository.to_owned(), tag.to_owned()));
        if looked.insert((repository, digest))
            && registry::digest(repository, digest).as_deref() != Some(digest)
        {
            let text = format!("the registry has no {repository}@{digest}");
            violations.push(Violation::of(told.build_id(), text));
        }
    }
    for repository in registry::repositories(run) {
        for tag in registry::tags(&repository) {
            if !tag.starts_with("key-") && !known.contains(&(repository.clone(), tag.clone())) {
                let text = format!("nobody was told of {repository}:{tag}");
                violations.push(Violation::general(text));
            }
        }
    }
    violations
}
