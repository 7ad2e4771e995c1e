//! Why the first step that is run was not taken from the build cache, as far as the build before tells.
//!
//! The engine only says what it has. What it would have had is known from the steps that the last build of the
//! same application was made of: the one whose like ran there is run anew for what came into it.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bollard_buildkit_proto::moby::buildkit::v1::Vertex;
use regex::Regex;

use crate::exposure::shown_step;

/// Applications whose last build is remembered.
const MOST: usize = 1_000;
/// Steps that are remembered of a build.
const MOST_STEPS: usize = 300;

/// What the last build of each application was made of, since the worker began.
#[derive(Debug, Default)]
pub(in crate::engine) struct LastBuilds(Mutex<VecDeque<(u64, Arc<Outline>)>>);

impl LastBuilds {
    /// Begins to follow a build of an application. One that takes nothing from the cache misses nothing.
    pub(super) fn begin(&self, application: &str, no_cache: bool) -> Misses {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = hash(application);
        let before = last.iter().find(|(of, _)| *of == id).map(|(_, outline)| outline.clone());
        Misses { application: id, before, told: no_cache, now: Outline::default() }
    }

    /// A build has ended, well or not.
    pub(super) fn end(&self, misses: Misses, well: bool) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = misses.application;
        last.retain(|(of, _)| *of != id);
        if last.len() == MOST {
            last.pop_front();
        }
        last.push_back((id, Arc::new(Outline { whole: well, ..misses.now })));
    }
}

/// The steps of a build's Dockerfile, as hashes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outline {
    /// Whether it came to its good end: what is not among its steps was not in the Dockerfile then.
    whole: bool,
    /// What was begun.
    steps: Vec<StepId>,
    /// The base images, begun or not: the engine tells of them in no order that could be counted on.
    bases: Vec<StepId>,
}

/// A step of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct StepId {
    stage: u64,
    instruction: u64,
}

impl Outline {
    /// The base image of a stage.
    fn base(&self, stage: u64) -> Option<u64> {
        self.bases.iter().find(|base| base.stage == stage).map(|base| base.instruction)
    }
}

/// Follows one build.
#[derive(Debug, Default)]
pub(super) struct Misses {
    application: u64,
    before: Option<Arc<Outline>>,
    now: Outline,
    /// What follows from the first miss is none of its own.
    told: bool,
}

impl Misses {
    /// The engine has told of a step that it may come to.
    pub(super) fn announced(&mut self, vertex: &Vertex) {
        let Some((step, instruction)) = of_dockerfile(&vertex.name) else { return };
        let bases = &mut self.now.bases;
        if is_base(instruction) && bases.len() < MOST_STEPS && !bases.contains(&step) {
            bases.push(step);
        }
    }

    /// What there is to say of a step that begins: once a build.
    pub(super) fn begun(&mut self, vertex: &Vertex) -> Option<String> {
        let (step, instruction) = of_dockerfile(&vertex.name).filter(|(_, of)| !is_base(of))?;
        if self.now.steps.len() < MOST_STEPS {
            self.now.steps.push(step);
        }
        if vertex.cached || self.told {
            return None;
        }
        self.told = true;
        let why = self.why(step, instruction)?;
        Some(format!("`{}` is not taken from the build cache: {why}", shown_step(&vertex.name)))
    }

    fn why(&self, step: StepId, instruction: &str) -> Option<&'static str> {
        let before = self.before.as_deref()?;
        if !before.steps.contains(&step) {
            return before.whole.then_some("it is new, or was changed, since the build before");
        }
        let bases = self.now.base(step.stage).zip(before.base(step.stage));
        if bases.is_some_and(|(now, before)| now != before) {
            return Some("the base image is another one than in the build before");
        }
        let (word, rest) = instruction.split_once(' ').unwrap_or((instruction, ""));
        Some(match word {
            "COPY" if rest.starts_with("--from=") => {
                "what it copies from another stage or image is not as in the build before"
            }
            "COPY" | "ADD" => "a file that it copies was changed since the build before",
            _ => {
                "a file that was copied before it, or a variable, an argument, a mount or a secret of it, was \
                 changed since the build before, or the cache has let go of it"
            }
        })
    }
}

/// A step with its instruction, if it is one of the Dockerfile. How many steps a stage has, and which of them it
/// is, makes no other step of it.
fn of_dockerfile(name: &str) -> Option<(StepId, &str)> {
    static STEP: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?s)^\[(?:(?<stage>.+) )?\d+/\d+\] (?<instruction>.*)$").expect("a pattern")
    });
    let step = STEP.captures(name)?;
    let stage = hash(step.name("stage").map_or("", |stage| stage.as_str()));
    let instruction = step.name("instruction")?.as_str();
    Some((StepId { stage, instruction: hash(instruction) }, instruction))
}

fn is_base(instruction: &str) -> bool {
    instruction.starts_with("FROM ")
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A build of these steps, of which those with a `!` are not cached; what is said of it.
    fn build(builds: &LastBuilds, steps: &[&str], well: bool) -> Option<String> {
        let mut misses = builds.begin("alice/shop", false);
        let vertex = |step: &&str| {
            let (cached, name) = step.strip_prefix('!').map_or((true, *step), |name| (false, name));
            Vertex { name: name.to_owned(), cached, ..Vertex::default() }
        };
        let vertexes: Vec<_> = steps.iter().map(vertex).collect();
        vertexes.iter().for_each(|vertex| misses.announced(vertex));
        let said: Vec<_> = vertexes.iter().filter_map(|vertex| misses.begun(vertex)).collect();
        builds.end(misses, well);
        assert!(said.len() <= 1, "{said:?}");
        said.into_iter().next()
    }

    #[test]
    fn the_first_miss_is_told_of_with_what_can_be_known_of_it() {
        let base = "![1/4] FROM docker.io/library/node@sha256:1";
        let first = [base, "![2/4] COPY package.json .", "![3/4] RUN npm ci", "![4/4] COPY . ."];
        for (now, said) in [
            (&[base, "[2/4] COPY package.json .", "[3/4] RUN npm ci", "[4/4] COPY . ."][..], ""),
            (&[base, "[2/4] COPY package.json .", "[3/4] RUN npm ci", "![4/4] COPY . ."], "a file"),
            (
                &[base, "![2/4] COPY package.json .", "![3/4] RUN npm ci"],
                "`COPY package.json .` is",
            ),
            (&[base, "[2/5] COPY package.json .", "![3/5] RUN npm ci"], "a variable"),
            (&[base, "[2/5] COPY package.json .", "![3/5] RUN npm install"], "it is new"),
            (
                &["[internal] load build context", "![1/4] FROM node@2", "![2/4] RUN npm ci"],
                "the base image",
            ),
            (&["![1/4] FROM node@2", "![2/4] COPY package.json ."], "the base image"),
            (&["![2/4] COPY package.json .", base], "a file"),
            (&["![2/4] COPY package.json .", "![1/4] FROM node@2"], "the base image"),
            (&["![2/4] COPY package.json ."], "a file"),
            (&[base, "![x 2/4] COPY . ."], "it is new"),
        ] {
            let builds = LastBuilds::default();
            assert_eq!(build(&builds, &first, true), None, "there was none before");
            let told = build(&builds, now, true).unwrap_or_default();
            assert!(told.contains(said) && told.is_empty() == said.is_empty(), "{now:?}: {told}");
        }
    }

    #[test]
    fn of_a_build_that_failed_only_what_ran_is_known() {
        let builds = LastBuilds::default();
        build(&builds, &["[1/3] FROM a", "![2/3] COPY . ."], false);
        assert_eq!(build(&builds, &["[1/3] FROM a", "![3/3] RUN b"], true), None);
        let copied = "![2/3] COPY --from=b . .";
        build(&builds, &["[1/3] FROM a", copied], true);
        let told = build(&builds, &["[1/3] FROM a", copied], true).expect("it is known");
        assert!(told.contains("another stage"), "{told}");
    }

    #[test]
    fn what_takes_nothing_from_the_cache_misses_nothing_and_what_is_kept_is_bounded() {
        let builds = LastBuilds::default();
        build(&builds, &["![1/1] COPY . ."], true);
        let mut misses = builds.begin("alice/shop", true);
        let step = Vertex { name: "[1/1] COPY . .".to_owned(), ..Vertex::default() };
        assert_eq!(misses.begun(&step), None);
        (0..2 * MOST_STEPS).for_each(|_| _ = misses.begun(&step));
        (0..2 * MOST_STEPS).for_each(|n| {
            let name = format!("[{n} 1/2] FROM node");
            misses.announced(&Vertex { name, ..Vertex::default() });
        });
        assert_eq!((misses.now.steps.len(), misses.now.bases.len()), (MOST_STEPS, MOST_STEPS));
        for other in 0..2 * MOST {
            builds.end(builds.begin(&other.to_string(), false), true);
        }
        assert_eq!(builds.0.lock().expect("whole").len(), MOST);
        assert_eq!(builds.begin("alice/shop", false).before, None);
    }
}
