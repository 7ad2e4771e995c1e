//! Repositories whose builds can be counted.

use super::git_server::GitRepo;
use super::turnstile::Steps;
use super::unique;
use super::worker::Worker;
use super::world::{dockerfile, repository};

/// A repository whose build has a step that no other build has.
pub struct Marked {
    pub repo: GitRepo,
    mark: String,
}

impl Marked {
    fn new(dockerfile: impl Fn(&str) -> String) -> Self {
        // With an end of its own: no mark is the beginning of another one.
        let mark = format!("{}.", unique("mark"));
        let files = [("Dockerfile", &*dockerfile(&mark)), ("file", &*mark)];
        Self { repo: repository("marked", &files), mark }
    }

    /// Its build is good, and its image of a few bytes.
    pub fn good() -> Self {
        Self::new(|mark| format!("FROM scratch\nCOPY file /{mark}\n"))
    }

    /// Its build is good, and begun once it went through the turnstile.
    pub fn held(steps: &Steps) -> Self {
        Self::new(|mark| format!("{}RUN : {mark}\n", steps.dockerfile()))
    }

    /// Its build fails.
    pub fn failing() -> Self {
        Self::new(|mark| dockerfile(&format!("RUN : {mark}; exit 3")))
    }

    /// How often these workers have built it, or begun to, whatever the engine still knew of it.
    pub fn builds(&self, workers: &[&Worker]) -> usize {
        let lines = workers.iter().flat_map(|worker| worker.lines());
        lines.filter(|line| line.contains("\"step started\"") && line.contains(&self.mark)).count()
    }
}
