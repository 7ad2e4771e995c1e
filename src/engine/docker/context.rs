//! The build context: a directory as a tar stream, made while it is sent.
//!
//! Entries are sorted, owned by root, and carry one of two modes, so that the layer cache hits on
//! whatever worker the tree was cloned. They all have one modification time, which the layer cache does
//! not look at: the engine's own at the moment of sending. It is later than all that earlier builds have
//! left in a cache mount, so `make` and its like take no object for newer than a source that they have
//! not seen, whatever a commit says of its time. And it is never in the future, which `configure`
//! scripts and `ninja` refuse.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Component, Path, PathBuf};

use bytes::{Bytes, BytesMut};
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::limits::Limits;
use image_builder_actors::ports::Plan;
use tar::{EntryType, Header};
use time::OffsetDateTime;
use tokio::sync::mpsc;

use super::ignore::{IgnoreRules, Matched};

/// Bytes that are handed to the network at once.
const CHUNK: usize = 256 * 1024;
/// The name of an entry that only tells of the next one.
const PAX_NAME: &[u8] = b"././@PaxHeader";
/// Chunks that wait for the network at the most.
const CHUNKS_AHEAD: usize = 4;

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
pub(super) struct Context {
    /// The context's own directory, without a link in its path.
    root: PathBuf,
    /// The Dockerfile's path relative to the context, without detours.
    pub(super) dockerfile: String,
    /// Whether the Dockerfile has a cache mount, as far as its text tells.
    pub(super) mounts_caches: bool,
    rules: IgnoreRules,
    /// Paths that are sent even if they are ignored: the engine needs the Dockerfile, and looks for
    /// it in what is uploaded. (So a `COPY .` has it, too. An ignored ignore file stays behind: it
    /// is applied here.)
    always: BTreeSet<String>,
}

impl Context {
    /// Checks the plan's Dockerfile and reads the ignore file that goes with it. Blocks.
    ///
    /// A Dockerfile or an ignore file that is missing, or is a link out of the context, is
    /// `invalid_plan`: what lies outside is never read.
    pub(super) fn open(plan: &Plan, limits: &Limits) -> Result<Self, Fault> {
        let root = fs::canonicalize(&plan.context)
            .map_err(|error| unreadable("the build context", &error))?;
        let dockerfile = relative(&plan.dockerfile)
            .ok_or_else(|| leads_out("the Dockerfile", &plan.dockerfile))?;
        let target = inside(&root, &dockerfile)?.ok_or_else(|| {
            invalid(format!("The Dockerfile `{dockerfile}` is not in the build context."))
        })?;
        let text = read_file(&root.join(&target), "the Dockerfile", limits.plan_file_bytes)?;
        let mounts_caches = String::from_utf8_lossy(&text).to_lowercase().contains("type=cache");
        let rules = read_rules(&root, &dockerfile, limits)?;
        let always = BTreeSet::from([dockerfile.clone(), target]);
        Ok(Self { root, dockerfile, mounts_caches, rules, always })
    }

    /// Starts sending, with `modified` as the time of every entry: the receiver gets the tar stream,
    /// the task its end. Dropping the receiver ends the task at its next entry.
    pub(super) fn send(
        self,
        modified: OffsetDateTime,
    ) -> (mpsc::Receiver<io::Result<Bytes>>, tokio::task::JoinHandle<Result<(), Unsent>>) {
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let task = crate::blocking::begin(move || {
            let mut writer = ChunkWriter { sender, chunk: BytesMut::with_capacity(CHUNK) };
            let result = catch_unwind(AssertUnwindSafe(|| self.write_to(&mut writer, modified)));
            if !matches!(result, Ok(Ok(()))) {
                // The engine must not take half a context for a whole one.
                let cut_off = io::Error::from(io::ErrorKind::UnexpectedEof);
                let _ = writer.sender.blocking_send(Err(cut_off));
            }
            result.unwrap_or_else(|panic| resume_unwind(panic))
        });
        (receiver, task)
    }

    fn write_to(&self, writer: &mut ChunkWriter, modified: OffsetDateTime) -> Result<(), Unsent> {
        let mut tar = TarWriter { out: writer, modified };
        tar.root()?;
        self.walk(&mut tar)?;
        tar.finish()
    }

    /// How much would be sent. Blocks.
    pub(super) fn size(&self) -> Result<ContextSize, Fault> {
        let mut size = ContextSize { files: 0, bytes: 0 };
        match self.walk(&mut size) {
            Err(Unsent::Unusable(fault)) => Err(fault),
            // Nobody hangs up on a count.
            Ok(()) | Err(Unsent::HungUp) => Ok(size),
        }
    }

    /// Goes through all that is sent, in its order.
    fn walk(&self, visitor: &mut impl Visitor) -> Result<(), Unsent> {
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
            let shown = String::from_utf8_lossy(&path).into_owned();
            let matched = self.rules.matched(&shown, &directory.matched);
            let on_disk = self.root.join(Path::new(std::ffi::OsStr::from_bytes(&path)));
            let metadata =
                fs::symlink_metadata(&on_disk).map_err(|error| unreadable(&shown, &error))?;
            let keep = !matched.ignored || self.always.contains(&shown);
            if metadata.is_dir() {
                if keep || self.walks_below(&shown) {
                    // A directory that is only walked is sent once something below it is.
                    if keep {
                        send_directories(&mut stack, visitor)?;
                        visitor.directory(&path)?;
                    }
                    stack.push(Directory::read(&on_disk, path, matched, keep)?);
                }
                continue;
            }
            if !keep {
                continue;
            }
            send_directories(&mut stack, visitor)?;
            visitor.entry(&path, &on_disk, &metadata)?;
        }
        Ok(())
    }

    fn walks_below(&self, directory: &str) -> bool {
        let forced =
            |path: &String| path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'));
        self.rules.may_keep_below(directory) || self.always.iter().any(forced)
    }
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
trait Visitor {
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

/// Writes tar entries. Names are written byte by byte as they are on disk, in GNU's long form where
/// they are long.
struct TarWriter<'a> {
    out: &'a mut ChunkWriter,
    modified: OffsetDateTime,
}

impl Visitor for TarWriter<'_> {
    fn has_left(&self) -> bool {
        self.out.sender.is_closed()
    }

    fn directory(&mut self, path: &[u8]) -> Result<(), Unsent> {
        let mut name = path.to_vec();
        name.push(b'/');
        let mut header = self.header(EntryType::Directory, 0o755, 0);
        self.put_header(&mut header, &name, b"").map_err(hung_up)
    }

    fn entry(&mut self, path: &[u8], on_disk: &Path, metadata: &Metadata) -> Result<(), Unsent> {
        let shown = String::from_utf8_lossy(path);
        if metadata.is_symlink() {
            let target = fs::read_link(on_disk).map_err(|error| unreadable(&shown, &error))?;
            let mut header = self.header(EntryType::Symlink, 0o777, 0);
            return self
                .put_header(&mut header, path, target.as_os_str().as_bytes())
                .map_err(hung_up);
        }
        if !metadata.is_file() {
            return Err(invalid(format!(
                "`{shown}` is neither a file, a directory nor a link: remove it, or name it in \
                 `.dockerignore`."
            ))
            .into());
        }
        let file = File::open(on_disk).map_err(|error| unreadable(&shown, &error))?;
        let opened = file.metadata().map_err(|error| unreadable(&shown, &error))?;
        // What was a file a moment ago must not have become a link to somewhere else.
        if (opened.dev(), opened.ino()) != (metadata.dev(), metadata.ino()) {
            return Err(unreadable(&shown, &"it changed while it was read").into());
        }
        let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
        let mut header = self.header(EntryType::Regular, mode, opened.len());
        self.put_header(&mut header, path, b"").map_err(hung_up)?;
        self.put_file(file, opened.len(), &shown)
    }
}

impl TarWriter<'_> {
    /// The context itself. The engine looks at the first 1024 bytes to tell an archive from a
    /// Dockerfile, so the archive must not begin with an entry that needs more than one block.
    fn root(&mut self) -> Result<(), Unsent> {
        let mut header = self.header(EntryType::Directory, 0o755, 0);
        header.as_old_mut().name[..2].copy_from_slice(b"./");
        header.set_cksum();
        self.out.write_all(header.as_bytes()).map_err(hung_up)
    }

    fn header(&self, kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.modified.unix_timestamp().max(0).unsigned_abs());
        header.set_size(size);
        header
    }

    fn put_header(&mut self, header: &mut Header, name: &[u8], link: &[u8]) -> io::Result<()> {
        let short = header.as_old_mut();
        let (name_fits, link_fits) =
            (name.len() <= short.name.len(), link.len() <= short.linkname.len());
        let name_end = name.len().min(short.name.len());
        short.name[..name_end].copy_from_slice(&name[..name_end]);
        let link_end = link.len().min(short.linkname.len());
        short.linkname[..link_end].copy_from_slice(&link[..link_end]);
        header.set_cksum();
        self.put_time()?;
        if !name_fits {
            self.put_long(EntryType::GNULongName, name)?;
        }
        if !link_fits {
            self.put_long(EntryType::GNULongLink, link)?;
        }
        self.out.write_all(header.as_bytes())
    }

    /// The next entry's time with its fraction of a second, in an entry of its own (`pax`): a header has
    /// whole seconds only, and an earlier build may have ended within this one.
    fn put_time(&mut self) -> io::Result<()> {
        let (seconds, fraction) = (self.modified.unix_timestamp(), self.modified.nanosecond());
        let field = format!(" mtime={seconds}.{fraction:09}\n");
        // A record begins with its length, which counts itself: two digits.
        let record = format!("{}{field}", field.len() + 2);
        let size = record.len() as u64;
        let mut header = self.header(EntryType::XHeader, 0o644, size);
        header.as_old_mut().name[..PAX_NAME.len()].copy_from_slice(PAX_NAME);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(record.as_bytes())?;
        self.pad(size)
    }

    /// GNU's way to a name of more than 100 bytes: an entry of its own whose content it is.
    fn put_long(&mut self, kind: EntryType, text: &[u8]) -> io::Result<()> {
        const NAME: &[u8] = b"././@LongLink";
        let size = text.len() as u64 + 1;
        let mut header = self.header(kind, 0o644, size);
        header.as_old_mut().name[..NAME.len()].copy_from_slice(NAME);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(text)?;
        self.out.write_all(&[0])?;
        self.pad(size)
    }

    fn put_file(&mut self, file: File, size: u64, shown: &str) -> Result<(), Unsent> {
        let mut left = size;
        let mut file = file.take(size);
        while left > 0 {
            let read = self.out.fill_from(&mut file).map_err(|error| unreadable(shown, &error))?;
            if read == 0 {
                return Err(unreadable(shown, &"it shrank while it was read").into());
            }
            left -= read as u64;
            self.out.send_if_full().map_err(hung_up)?;
        }
        self.pad(size).map_err(hung_up)
    }

    /// Fills the last block of an entry of `size` bytes.
    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = (size % 512) as usize;
        if over == 0 { Ok(()) } else { self.out.write_all(&[0; 512][over..]) }
    }

    /// The two empty blocks that end an archive.
    fn finish(&mut self) -> Result<(), Unsent> {
        self.out.write_all(&[0; 1024]).and_then(|()| self.out.flush()).map_err(hung_up)
    }
}

/// Gathers what is written into chunks for the network, and waits while too many are under way.
struct ChunkWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    chunk: BytesMut,
}

impl ChunkWriter {
    /// Reads once from `source` straight into the chunk; 0 = its end.
    fn fill_from(&mut self, source: &mut impl Read) -> io::Result<usize> {
        let start = self.chunk.len();
        self.chunk.resize(CHUNK.max(start + 1), 0);
        let read = source.read(&mut self.chunk[start..]);
        self.chunk.truncate(start + *read.as_ref().unwrap_or(&0));
        read
    }

    fn send_if_full(&mut self) -> io::Result<()> {
        if self.chunk.len() < CHUNK { Ok(()) } else { self.flush() }
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.chunk.extend_from_slice(data);
        self.send_if_full()?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let full = std::mem::replace(&mut self.chunk, BytesMut::with_capacity(CHUNK));
        if full.is_empty() {
            return Ok(());
        }
        self.sender
            .blocking_send(Ok(full.freeze()))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

/// The ignore file that goes with the Dockerfile: its own, else the context's.
fn read_rules(root: &Path, dockerfile: &str, limits: &Limits) -> Result<IgnoreRules, Fault> {
    for name in [format!("{dockerfile}.dockerignore"), ".dockerignore".to_owned()] {
        let Some(target) = inside(root, &name)? else { continue };
        let text = read_file(&root.join(target), &name, limits.plan_file_bytes)?;
        return IgnoreRules::parse(&String::from_utf8_lossy(&text))
            .map_err(|why| invalid(format!("`{name}` cannot be used: {why}.")));
    }
    Ok(IgnoreRules::default())
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

fn invalid(message: String) -> Fault {
    Fault::new(StageName::Builder, Reason::InvalidPlan, message)
}

fn leads_out(what: &str, path: &str) -> Fault {
    invalid(format!("{} `{path}` leads out of the build context.", capital(what)))
}

fn unreadable(what: &str, why: &dyn std::fmt::Display) -> Fault {
    let message = format!("Cannot read `{what}` of the source tree: {why}.");
    Fault::new(StageName::Builder, Reason::EngineFailed, message)
}

/// Writing fails only where nobody reads any more.
fn hung_up(_error: io::Error) -> Unsent {
    Unsent::HungUp
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests;
