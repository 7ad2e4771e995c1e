//! The build context: a directory, walked in the order in which it is sent.
//!
//! Entries are sorted, owned by root, and carry one of two modes, so that the layer cache hits on
//! whatever worker the tree was cloned. What `.dockerignore` names stays behind, and so does what the
//! engine did not ask for (`follow`).

mod bases;
mod contents;
mod digests;
mod follow;
mod ignore;
mod pattern;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::limits::Limits;
use image_builder_actors::ports::Plan;
use tokio_util::sync::CancellationToken;

use contents::Contents;
use digests::Digests;
pub(super) use digests::{ReadContexts, digest_of};
pub(super) use follow::Follow;
use follow::Place;
use ignore::{IgnoreRules, Matched};

/// Why a context was not sent to its end.
#[derive(Debug)]
pub(super) enum Unsent {
    /// The engine hung up, and knows why.
    HungUp,
    /// The tree cannot be sent.
    Unusable(Fault),
}

impl From<Fault> for Unsent {
    fn from(fault: Fault) -> Self {
        Unsent::Unusable(fault)
    }
}

/// A context that was checked and can be sent.
#[derive(Debug)]
pub(in crate::engine) struct Context {
    /// The context's own directory, without a link in its path.
    root: PathBuf,
    /// The Dockerfile, which is sent by itself: it may be one that is ignored.
    pub(super) dockerfile: Vec<u8>,
    /// Whether the Dockerfile has a cache mount, as far as its text tells.
    pub(in crate::engine) mounts_caches: bool,
    rules: IgnoreRules,
    /// The file that has them.
    ignore_file: String,
    /// What is known of its files.
    digests: Digests,
}

impl Context {
    /// Checks the plan's Dockerfile and reads the ignore file that goes with it. Blocks.
    ///
    /// A Dockerfile or an ignore file that is missing, or is a link out of the context, is
    /// `invalid_plan`: what lies outside is never read.
    pub(in crate::engine) fn open(plan: &Plan, limits: &Limits) -> Result<Self, Fault> {
        let root = fs::canonicalize(&plan.context)
            .map_err(|error| unreadable("the build context", &error))?;
        let dockerfile = relative(&plan.dockerfile)
            .ok_or_else(|| leads_out("the Dockerfile", &plan.dockerfile))?;
        let target = inside(&root, &dockerfile)?.ok_or_else(|| {
            invalid(format!("The Dockerfile `{dockerfile}` is not in the build context."))
        })?;
        let text = read_file(&root.join(&target), "the Dockerfile", limits.plan_file_bytes)?;
        let mounts_caches = String::from_utf8_lossy(&text).to_lowercase().contains("type=cache");
        let (rules, ignore_file) = read_rules(&root, &dockerfile, limits)?;
        let digests = Digests::default();
        Ok(Self { root, dockerfile: text, mounts_caches, rules, ignore_file, digests })
    }

    /// Takes over what is known of its files.
    pub(super) fn know(&mut self, read: &ReadContexts) {
        self.digests = read.take(&self.root);
    }

    /// The digest of a file that was read before, and is as it was then.
    pub(super) fn digest(&self, file: &Metadata) -> Option<digests::Digest> {
        self.digests.of(file)
    }

    /// How much would be sent. Blocks.
    pub(in crate::engine) fn size(&self) -> Result<ContextSize, Fault> {
        let mut size = ContextSize { files: 0, bytes: 0 };
        match self.walk(&Follow::All, &mut size) {
            Err(Unsent::Unusable(fault)) => Err(fault),
            // Nobody hangs up on a count.
            Ok(()) | Err(Unsent::HungUp) => Ok(size),
        }
    }

    /// The text of the Dockerfile.
    pub(in crate::engine) fn dockerfile(&self) -> &[u8] {
        &self.dockerfile
    }

    /// The images that the Dockerfile names; `None` = that cannot be told.
    pub(in crate::engine) fn bases(&self) -> Option<BTreeSet<String>> {
        bases::bases(&String::from_utf8_lossy(&self.dockerfile))
    }

    /// The images that stages begin with for certain platforms, each with its platform.
    pub(in crate::engine) fn bases_with_platforms(&self, plan: &Plan) -> Vec<(String, String)> {
        let of_build: Vec<_> = plan.platforms.iter().map(|platform| platform.as_str()).collect();
        let text = String::from_utf8_lossy(&self.dockerfile);
        bases::with_platforms(&text, &plan.build_args, &of_build)
    }

    /// A name for all that would be sent: other paths, modes, link targets or contents have another one. `None`
    /// = nobody wants to know any more. What the files hold is kept in `read`. Blocks.
    pub(super) fn contents(
        &self,
        unwanted: CancellationToken,
        read: &ReadContexts,
    ) -> Result<Option<String>, Fault> {
        let mut contents = Contents::new(unwanted);
        match self.walk(&Follow::All, &mut contents) {
            Ok(()) => {
                let (name, digests) = contents.finish();
                read.keep(self.root.clone(), digests);
                Ok(Some(name))
            }
            Err(Unsent::HungUp) => Ok(None),
            Err(Unsent::Unusable(fault)) => Err(fault),
        }
    }

    /// The ignore file and the rule of it that keep out what is at this path; `None` = nothing does, or it is
    /// not there.
    pub(super) fn ignoring(&self, path: &str) -> Option<(&str, &str)> {
        let path = relative(path)?;
        let rule = self.rules.ignoring(&path)?;
        fs::symlink_metadata(self.root.join(&path)).is_ok().then_some((&self.ignore_file, rule))
    }

    /// What of the context is asked for. Blocks.
    pub(super) fn follow(&self, paths: &[String]) -> Follow {
        Follow::of(&self.root, paths)
    }

    /// Goes through all that is sent of what is asked for, in its order. Blocks.
    pub(super) fn walk(&self, asked: &Follow, visitor: &mut impl Visitor) -> Result<(), Unsent> {
        let mut stack = vec![Directory::read(&self.root, Vec::new(), Matched::default(), true)?];
        while let Some(directory) = stack.last_mut() {
            #[cfg(feature = "failpoints")]
            fail::fail_point!("builder::sending");
            if visitor.has_left() {
                return Err(Unsent::HungUp);
            }
            let Some(name) = directory.entries.pop() else {
                stack.pop();
                continue;
            };
            let path = directory.child(&name);
            let place = asked.place(&path);
            if place == Place::Beside {
                continue;
            }
            let shown = String::from_utf8_lossy(&path).into_owned();
            let matched = self.rules.matched(&shown, &directory.matched);
            let on_disk = self.on_disk(&path);
            let metadata =
                fs::symlink_metadata(&on_disk).map_err(|error| unreadable(&shown, &error))?;
            let keep = !matched.ignored && place == Place::Within;
            if metadata.is_dir() {
                // A directory that is only walked is sent once something below it is.
                if keep {
                    send_directories(&mut stack, visitor)?;
                    visitor.directory(&path)?;
                }
                if !matched.ignored || self.rules.may_keep_below(&shown) {
                    stack.push(Directory::read(&on_disk, path, matched, keep)?);
                }
            } else if keep {
                send_directories(&mut stack, visitor)?;
                visitor.entry(&path, &on_disk, &metadata)?;
            }
        }
        Ok(())
    }

    /// Where an entry of the walk is.
    pub(super) fn on_disk(&self, path: &[u8]) -> PathBuf {
        self.root.join(Path::new(std::ffi::OsStr::from_bytes(path)))
    }
}

/// Opens a file that the walk has seen: what was a file then must not have become a link to somewhere else.
pub(super) fn open_seen(on_disk: &Path, seen: (u64, u64), shown: &str) -> Result<File, Fault> {
    let file = File::open(on_disk).map_err(|error| unreadable(shown, &error))?;
    let opened = file.metadata().map_err(|error| unreadable(shown, &error))?;
    if (opened.dev(), opened.ino()) != seen {
        return Err(unreadable(shown, &"it changed while it was read"));
    }
    Ok(file)
}

/// How much a context holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextSize {
    /// Files and links.
    pub files: u64,
    /// What the files hold.
    pub bytes: u64,
}

/// Is shown all that is sent, in its order.
pub(super) trait Visitor {
    /// Whether nobody wants the rest.
    fn has_left(&self) -> bool;

    fn directory(&mut self, path: &[u8]) -> Result<(), Unsent>;

    fn entry(&mut self, path: &[u8], on_disk: &Path, metadata: &Metadata) -> Result<(), Unsent>;
}

impl Visitor for ContextSize {
    fn has_left(&self) -> bool {
        false
    }

    fn directory(&mut self, _: &[u8]) -> Result<(), Unsent> {
        Ok(())
    }

    fn entry(&mut self, _: &[u8], _: &Path, metadata: &Metadata) -> Result<(), Unsent> {
        self.files += 1;
        self.bytes += if metadata.is_file() { metadata.len() } else { 0 };
        Ok(())
    }
}

/// A directory that is being walked.
struct Directory {
    /// Relative to the context; empty = the context itself.
    path: Vec<u8>,
    /// What is left of its entries, the next one last.
    entries: Vec<OsString>,
    matched: Matched,
    /// Whether its own entry was sent.
    sent: bool,
}

impl Directory {
    fn read(on_disk: &Path, path: Vec<u8>, matched: Matched, sent: bool) -> Result<Self, Fault> {
        let names = || -> io::Result<Vec<OsString>> {
            fs::read_dir(on_disk)?.map(|entry| Ok(entry?.file_name())).collect()
        };
        let mut entries =
            names().map_err(|error| unreadable(&String::from_utf8_lossy(&path), &error))?;
        entries.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Self { path, entries, matched, sent })
    }

    fn child(&self, name: &OsString) -> Vec<u8> {
        let mut path = self.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        path
    }
}

/// Sends the ignored directories above an entry that is sent after all.
fn send_directories(stack: &mut [Directory], visitor: &mut impl Visitor) -> Result<(), Unsent> {
    for directory in stack.iter_mut().filter(|directory| !directory.sent) {
        visitor.directory(&directory.path)?;
        directory.sent = true;
    }
    Ok(())
}

/// The rules of the ignore file that goes with the Dockerfile, and its name: its own, else the context's.
fn read_rules(
    root: &Path,
    dockerfile: &str,
    limits: &Limits,
) -> Result<(IgnoreRules, String), Fault> {
    for name in [format!("{dockerfile}.dockerignore"), ".dockerignore".to_owned()] {
        let Some(target) = inside(root, &name)? else { continue };
        let text = read_file(&root.join(target), &name, limits.plan_file_bytes)?;
        let rules = IgnoreRules::parse(&String::from_utf8_lossy(&text))
            .map_err(|why| invalid(format!("`{name}` cannot be used: {why}.")))?;
        return Ok((rules, name));
    }
    Ok(Default::default())
}

/// Reads a plain file of at most `longest` bytes.
fn read_file(path: &Path, shown: &str, longest: u64) -> Result<Vec<u8>, Fault> {
    let metadata = fs::symlink_metadata(path).map_err(|error| unreadable(shown, &error))?;
    if !metadata.is_file() {
        return Err(invalid(format!("{} is not a file.", capital(shown))));
    }
    if metadata.len() > longest {
        let message = format!("{} has more than {longest} bytes.", capital(shown));
        return Err(Fault::new(StageName::Builder, Reason::TooLarge, message));
    }
    fs::read(path).map_err(|error| unreadable(shown, &error))
}

/// Where `path` really is, relative to `root`; `None` = nowhere. A link out of `root` is an error.
fn inside(root: &Path, path: &str) -> Result<Option<String>, Fault> {
    let on_disk = root.join(path);
    let Ok(real) = fs::canonicalize(&on_disk) else {
        // A link to nothing says the same as one that leads out: nothing is said of what is outside.
        return match fs::symlink_metadata(&on_disk) {
            Ok(metadata) if metadata.is_symlink() => Err(leads_out("the file", path)),
            _ => Ok(None),
        };
    };
    let real = real.strip_prefix(root).map_err(|_| leads_out("the file", path))?;
    Ok(Some(real.to_string_lossy().into_owned()))
}

/// `path` without `.` and doubled slashes; `None` = it leaves the directory that it is relative to.
fn relative(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir => drop(parts.pop()?),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

pub(super) fn invalid(message: String) -> Fault {
    Fault::new(StageName::Builder, Reason::InvalidPlan, message)
}

fn leads_out(what: &str, path: &str) -> Fault {
    invalid(format!("{} `{path}` leads out of the build context.", capital(what)))
}

pub(super) fn unreadable(what: &str, why: &dyn std::fmt::Display) -> Fault {
    let message = format!("Cannot read `{what}` of the source tree: {why}.");
    Fault::new(StageName::Builder, Reason::EngineFailed, message)
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests;
