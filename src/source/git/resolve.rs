//! What a request asks for, among the refs that the server offers.

use git2::Oid;
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::request::Target;

use super::advertisement::Advertisement;
use crate::source::fault;
use crate::source::http::Address;

/// What has to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// An object that a ref points to: every server gives it out.
    Tip(Oid),
    /// A commit somewhere in the history; `branch` is where to look first.
    Commit { id: Oid, branch: Option<String> },
    /// A commit by the first digits of its name.
    Prefix { digits: String, branch: Option<String> },
}

/// A request's target, resolved as far as the list of refs allows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    pub(super) wanted: Wanted,
    /// What a person would call this version; `None` = the short commit.
    pub(super) version: Option<String>,
}

/// Resolves a target; a `pinned` commit wins over what the target points to by now.
pub(super) fn resolve(
    refs: &Advertisement,
    target: &Target,
    pinned: Option<&str>,
    address: &Address,
) -> Result<Resolved, Fault> {
    if let Some(pinned) = pinned {
        return resolve_pinned(refs, target, pinned, address);
    }
    if refs.refs.is_empty() {
        return Err(missing(format!("The {} is empty: it has no commit yet.", address.label)));
    }
    match target {
        Target::DefaultBranch => {
            let head = refs.find("HEAD").ok_or_else(|| {
                missing(format!("The default branch of the {} does not exist.", address.label))
            })?;
            Ok(Resolved { wanted: Wanted::Tip(head.id), version: default_branch(refs) })
        }
        Target::Branch(name) => named(refs, "refs/heads/", name, target, address),
        Target::Tag(name) => named(refs, "refs/tags/", name, target, address),
        // The forge has turned a release into its tag, if it knows it.
        Target::Release(_) => Err(missing(format!("The {} has no {target}.", address.label))),
        Target::Commit { id, branch } => {
            Ok(Resolved { wanted: commit(refs, id, branch.as_deref())?, version: None })
        }
    }
}

fn resolve_pinned(
    refs: &Advertisement,
    target: &Target,
    pinned: &str,
    address: &Address,
) -> Result<Resolved, Fault> {
    let id = Oid::from_str(pinned).ok().filter(|_| pinned.len() == 40).ok_or_else(|| {
        missing(format!("`{pinned}` is not the full name of a commit of the {}.", address.label))
    })?;
    let (version, branch) = match target {
        Target::DefaultBranch => (default_branch(refs), default_branch(refs)),
        Target::Branch(name) => {
            let name = short_name("refs/heads/", name).to_owned();
            (Some(name.clone()), Some(name))
        }
        Target::Tag(name) => (Some(short_name("refs/tags/", name).to_owned()), None),
        Target::Release(_) => (tag_at(refs, id), None),
        Target::Commit { branch, .. } => (None, branch.clone()),
    };
    Ok(Resolved { wanted: commit(refs, pinned, branch.as_deref())?, version })
}

/// The branch or tag of a name, which may be given in full.
fn named(
    refs: &Advertisement,
    namespace: &str,
    name: &str,
    target: &Target,
    address: &Address,
) -> Result<Resolved, Fault> {
    let name = short_name(namespace, name);
    let found = refs
        .find(&format!("{namespace}{name}"))
        .ok_or_else(|| missing(format!("The {} has no {target}.", address.label)))?;
    Ok(Resolved { wanted: Wanted::Tip(found.id), version: Some(name.to_owned()) })
}

/// A commit by its name, full or short: a tip where it is one.
fn commit(refs: &Advertisement, id: &str, branch: Option<&str>) -> Result<Wanted, Fault> {
    if !(4..=40).contains(&id.len()) || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(missing(format!("`{id}` is not the name of a commit.")));
    }
    let id = id.to_ascii_lowercase();
    let matching = || {
        refs.refs.iter().filter_map(|each| {
            let commit = each.peeled.unwrap_or(each.id);
            commit.to_string().starts_with(&id).then_some((commit, each.id))
        })
    };
    // What a ref itself points to is given out by every server.
    if let Some((commit, tip)) = matching().next()
        && matching().all(|(other, _)| other == commit)
    {
        return Ok(Wanted::Tip(tip));
    }
    let branch = branch.map(|name| short_name("refs/heads/", name).to_owned());
    match Oid::from_str(&id) {
        Ok(full) if id.len() == 40 => Ok(Wanted::Commit { id: full, branch }),
        _ => Ok(Wanted::Prefix { digits: id, branch }),
    }
}

fn short_name<'a>(namespace: &str, name: &'a str) -> &'a str {
    name.strip_prefix(namespace).unwrap_or(name)
}

/// The name of the branch that `HEAD` stands for; `None` when it is detached.
fn default_branch(refs: &Advertisement) -> Option<String> {
    refs.head_target()?.strip_prefix("refs/heads/").map(str::to_owned)
}

/// The one tag that points to a commit.
fn tag_at(refs: &Advertisement, commit: Oid) -> Option<String> {
    let mut tags = refs.refs.iter().filter_map(|each| {
        let name = each.name.strip_prefix("refs/tags/")?;
        (each.peeled.unwrap_or(each.id) == commit).then(|| name.to_owned())
    });
    let tag = tags.next()?;
    tags.next().is_none().then_some(tag)
}

fn missing(message: String) -> Fault {
    fault(Reason::RefNotFound, message)
}
