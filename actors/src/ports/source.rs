//! The source port: from what a request asks for to a tree of files.

use std::path::PathBuf;

use futures_util::future::BoxFuture;
use time::OffsetDateTime;

use crate::model::build_log::BuildLog;
use crate::model::fault::Fault;
use crate::model::request::BuildRequest;
use crate::model::scope::Scope;
use crate::model::workspace::Workspace;

/// A source tree in a workspace of its own, without any `.git` unless the request asks for one.
#[derive(Debug)]
pub struct FetchedSource {
    /// The full commit, 40 lower-case hex digits.
    pub commit: String,
    /// When the commit was made.
    pub committed_at: OffsetDateTime,
    /// What a person would call this version: the tag, release or branch, else the short commit.
    pub version: String,
    /// The repository's address for people, without a credential.
    pub url: String,
    /// The root of the tree: a directory inside `workspace`. Its files may be those of other trees as well, by
    /// hard links: they are replaced or removed, and never written into.
    pub tree: PathBuf,
    /// Dropping it removes the tree.
    pub workspace: Workspace,
}

/// Resolves what a request asks for and fetches it.
pub trait SourceConnector: Send + Sync + 'static {
    /// Fetches the source of `request` into `workspace`. With `pinned`, the full commit that an
    /// earlier try resolved, that commit is fetched whatever the ref points to by now.
    ///
    /// A capacity fault names whom it concerns: one of [`Self::scopes`], or the service where the worker
    /// itself has no room.
    ///
    /// Dropping the future ends the transfer.
    fn fetch<'a>(
        &'a self,
        request: &'a BuildRequest,
        pinned: Option<&'a str>,
        workspace: Workspace,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<FetchedSource, Fault>>;

    /// Every scope that a capacity fault of this fetch could have, beside the whole service: while one
    /// of them is held up, it is not worth beginning.
    fn scopes(&self, request: &BuildRequest, pinned: Option<&str>) -> Vec<Scope>;
}
