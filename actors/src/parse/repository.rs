//! Reading `repo`: which repository is meant, and whether it is at its forge.

use super::Rules;
use super::fields::quote;
use crate::model::fault::Reason;
use crate::model::request::{ForgeName, RepoName};

/// Most parts of a repository's path.
const MOST_PARTS: usize = 20;

/// The repository that a text names.
///
/// # Errors
/// It names none, or one elsewhere: the reason, and a sentence that repeats no credential.
pub(super) fn read(
    text: &str,
    forge: ForgeName,
    rules: &Rules,
) -> Result<RepoName, (Reason, String)> {
    if text.contains('@') {
        let message = "`repo` must hold no credential and no SSH address: give `owner/name`.";
        return Err((Reason::InvalidRequest, message.to_owned()));
    }
    // A query may be a credential.
    let address = text.split(['?', '#']).next().unwrap_or_default();
    let urls = rules.urls(forge);
    let Some(path) = path_at_forge(text, forge, urls) else {
        let message = format!("`repo` {} is not at {}.", quote(address), urls.join(", "));
        return Err((Reason::ForbiddenSource, message));
    };
    name(&path, forge).ok_or_else(|| {
        let form = match forge {
            ForgeName::Git => "the address of a repository",
            ForgeName::Gitlab => "`group/name`, with all groups",
            _ => "`owner/name`",
        };
        (Reason::InvalidRequest, format!("`repo` must be {form}; it is {}.", quote(address)))
    })
}

/// A path without what git repositories often end in.
pub(super) fn without_git(path: &str) -> &str {
    path.strip_suffix(".git").unwrap_or(path)
}

/// The path in a repository's address, which must be at the forge; a name is its own path, but at git servers
/// of no kind, where the path begins with the server.
fn path_at_forge(text: &str, forge: ForgeName, urls: &[String]) -> Option<String> {
    if forge == ForgeName::Git {
        return urls.iter().find_map(|server| {
            let path = strip_prefix_ignoring_case(text, server)?.strip_prefix('/')?;
            Some(format!("{}/{path}", without_scheme(server)))
        });
    }
    let Some((_, address)) = text.split_once("://") else { return Some(text.to_owned()) };
    let forge = without_scheme(urls.first()?);
    Some(strip_prefix_ignoring_case(address, forge)?.strip_prefix('/')?.to_owned())
}

/// The repository of a path. Git servers of no kind want it exactly as it was given.
fn name(path: &str, forge: ForgeName) -> Option<RepoName> {
    let path = path.trim_end_matches('/');
    let path = if forge == ForgeName::Git { path } else { without_git(path) };
    let has_groups = matches!(forge, ForgeName::Git | ForgeName::Gitlab);
    let (owner, name) = if has_groups { path.rsplit_once('/') } else { path.split_once('/') }?;
    // A server has dots and a port, and was found in the settings.
    let server = usize::from(forge == ForgeName::Git);
    let is_good = owner.split('/').count() < MOST_PARTS
        && owner.split('/').skip(server).all(|part| is_part(part, forge))
        && is_part(name, forge)
        && !without_git(name).is_empty();
    is_good.then(|| RepoName { owner: owner.to_owned(), name: name.to_owned() })
}

fn is_part(part: &str, forge: ForgeName) -> bool {
    let allowed = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'_' | b'.')
            // Some servers call users' directories so.
            || (byte == b'~' && forge == ForgeName::Git)
    };
    (1..=100).contains(&part.len())
        && part.bytes().all(allowed)
        && !matches!(part, "." | "..")
        && !part.starts_with('-')
}

fn without_scheme(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, address)| address)
}

fn strip_prefix_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}
