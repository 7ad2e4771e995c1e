//! Sources to plan, and planners to plan them.

use std::fs;
use std::path::{Path, PathBuf};

use image_builder::planner::{ExplainedPlan, PlannerSettings, SourcePlanner};
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::PlanRequest;
use image_builder_actors::model::secret::Secret;
pub(super) use image_builder_actors::testing::conformance::planner::{
    Source, plan, refusal, request, try_plan,
};

/// The settings of [`real`].
pub(super) fn settings() -> PlannerSettings {
    PlannerSettings {
        // The tests' own program is not the worker.
        program: env!("CARGO_BIN_EXE_image-builder").into(),
        ..PlannerSettings::new(Limits::default(), Secret::new("the tests' cache secret"))
    }
}

/// The planner that a worker has.
pub(super) fn real() -> SourcePlanner {
    SourcePlanner::new(settings())
}

/// A source that is a copy of `tests/fixtures/apps/<name>`.
pub(super) fn source_of_fixture(name: &str) -> Source {
    let source = Source::empty();
    copy(&fixture(name), source.tree());
    source
}

/// The directory of a fixture.
pub(super) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/apps").join(name)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory to copy to");
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.expect("an entry to copy");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a kind of entry").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copied file");
        }
    }
}

/// The real planner's plan, with nixpacks' own beside it.
pub(super) async fn explain(source: &Source, wish: PlanRequest) -> ExplainedPlan {
    let request = request(wish);
    let progress = BuildLog::new(&request.build_id, request.redactor());
    real()
        .explain(&source.fetched, &request, &progress)
        .await
        .unwrap_or_else(|fault| panic!("no plan: {fault}"))
}
