//! What each port promises, as tests that its port in memory and its adapters all pass.
//!
//! A suite has a `World` (what its scenarios need of a place), one function a promise, and a macro that
//! makes a test of each.

pub mod broker;
pub mod build_store;
pub mod builder;
pub mod commit_statuses;
pub mod credentials;
pub mod dead_letters;
pub mod notifier;
pub mod outcome_ledger;
pub mod planner;
pub mod registry;
pub mod source;

/// Makes a test of each promise of a suite, in a world of its own.
#[macro_export]
macro_rules! conformance {
    ($suite:ident, $world:expr, $($promise:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                let world = $world;
                $crate::testing::conformance::$suite::$promise(&world).await;
            }
        )*
    };
}
