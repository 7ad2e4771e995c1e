//! What every maker of tokens promises.

use std::future::Future;

use super::source;
use crate::model::fault::{Fault, Kind, Reason, StageName};
use crate::model::request::{BuildRequest, RepoName, Target};
use crate::ports::Credentials;

/// A place where references stand for tokens.
pub trait World {
    fn credentials(&self) -> &dyn Credentials;
    /// From now on, the reference that this world's requests have stands for this token.
    fn know(&self, token: &str) -> impl Future<Output = ()>;
    /// A reference as requests have it here.
    fn reference(&self) -> &'static str;
    /// From now on, what makes the tokens fails.
    fn fail(&self) -> impl Future<Output = ()>;
}

/// Makes a test of each promise, each in a world of its own.
#[macro_export]
macro_rules! credentials_conformance {
    ($world:expr) => {
        $crate::conformance! {
            credentials, $world,
            a_reference_stands_for_a_token,
            a_reference_that_stands_for_nothing_is_unauthorized,
            a_failure_is_the_service_s,
        }
    };
}

/// A request of a repository.
pub fn request() -> BuildRequest {
    let repo = RepoName { owner: "owner".to_owned(), name: "name".to_owned() };
    source::request(&repo, Target::DefaultBranch, None)
}

async fn refused(world: &impl World) -> Fault {
    let token = world.credentials().token(&request(), world.reference()).await;
    let fault = token.expect_err("there is no token");
    assert_eq!(fault.stage, StageName::Connector);
    assert!(!fault.message.contains(world.reference()), "{fault}");
    fault
}

pub async fn a_reference_stands_for_a_token(world: &impl World) {
    world.know("a-token-of-this-moment").await;
    let token = world.credentials().token(&request(), world.reference()).await;
    assert_eq!(token.expect("a token").expose(), "a-token-of-this-moment");
}

pub async fn a_reference_that_stands_for_nothing_is_unauthorized(world: &impl World) {
    assert_eq!(refused(world).await.reason, Reason::Unauthorized);
}

pub async fn a_failure_is_the_service_s(world: &impl World) {
    world.know("a-token-of-this-moment").await;
    world.fail().await;
    assert_eq!(refused(world).await.kind(), Kind::Service);
}
