//! The source in memory.

use std::sync::atomic::{AtomicUsize, Ordering};

use image_builder_actors::model::request::RepoName;
use image_builder_actors::ports::SourceConnector;
use image_builder_actors::testing::conformance::source::World;
use image_builder_actors::testing::source::{FakeRepository, FakeSource};

struct InMemory {
    source: FakeSource,
    published: AtomicUsize,
}

impl InMemory {
    fn start() -> Self {
        let source = FakeSource::default();
        source.only_known();
        Self { source, published: AtomicUsize::new(0) }
    }
}

impl World for InMemory {
    fn connector(&self) -> &dyn SourceConnector {
        &self.source
    }

    async fn publish(&self, repository: FakeRepository) -> (RepoName, Vec<String>) {
        let number = self.published.fetch_add(1, Ordering::Relaxed);
        let repo = RepoName { owner: "o".to_owned(), name: format!("r{number}") };
        let commits = repository.commits.iter().map(|commit| commit.id.clone()).collect();
        self.source.add(repo.clone(), repository);
        (repo, commits)
    }

    fn token(&self) -> &'static str {
        "the right token"
    }
}

image_builder_actors::source_conformance!(InMemory::start());
