//! Sends a directory: first what is there, then the files that the engine asks for.

use std::fs::Metadata;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::{Sender, UnboundedReceiver};

use super::packet::{DIRECTORY, LINK, Packet, Stat};
use crate::engine::buildkit::context::{
    Context, Follow, Unsent, Visitor, digest_of, invalid, open_seen, unreadable,
};
use crate::engine::buildkit::times::BuildTimes;

/// Bytes of a file that are sent at once.
const CHUNK: usize = 64 * 1024;

/// The entries that were told of, by their ids.
#[derive(Debug, Default)]
pub(super) struct Listed(Mutex<Vec<Option<File>>>);

/// A file that the engine may ask for, once.
#[derive(Debug)]
enum File {
    OnDisk {
        path: Vec<u8>,
        /// Device and number.
        inode: (u64, u64),
        size: u64,
    },
    InMemory(Bytes),
}

impl Listed {
    fn add(&self, file: Option<File>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(file);
    }

    fn take(&self, id: u32) -> Option<File> {
        let mut listed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        listed.get_mut(usize::try_from(id).ok()?)?.take()
    }
}

/// Tells of the part of a context that is asked for. Blocks.
pub(super) fn list(
    context: &Context,
    asked: &Follow,
    times: &BuildTimes,
    listed: &Listed,
    says: &Sender<Packet>,
) -> Result<(), Unsent> {
    let mut list = List { context: Some(context), times, listed, says };
    context.walk(asked, &mut list)?;
    list.say(Packet::stat(None))
}

/// Tells of a directory with nothing but the Dockerfile. Blocks.
pub(super) fn list_dockerfile(
    name: String,
    text: &[u8],
    times: &BuildTimes,
    listed: &Listed,
    says: &Sender<Packet>,
) -> Result<(), Unsent> {
    let list = List { context: None, times, listed, says };
    let text = Bytes::copy_from_slice(text);
    let stat = Stat {
        path: name.into_bytes(),
        mode: 0o644,
        size: signed(text.len() as u64),
        // It is small, and sent each time.
        modified: times.now(),
        link: Vec::new(),
    };
    list.tell(stat, Some(File::InMemory(text)))?;
    list.say(Packet::stat(None))
}

/// Sends files as they are asked for, until nobody asks any more. Blocks.
pub(super) fn send_files(
    context: &Context,
    listed: &Listed,
    mut wanted: UnboundedReceiver<u32>,
    says: &Sender<Packet>,
) -> Result<(), Unsent> {
    while let Some(id) = wanted.blocking_recv() {
        match listed.take(id) {
            // No file, or asked for twice: the engine waits for its end in vain, and gives up.
            None => return Err(Unsent::HungUp),
            Some(File::InMemory(text)) => say(says, Packet::data(id, text))?,
            Some(File::OnDisk { path, inode, size }) => {
                send_file(context, id, &path, inode, size, says)?;
            }
        }
        say(says, Packet::data(id, Bytes::new()))?;
    }
    Ok(())
}

fn send_file(
    context: &Context,
    id: u32,
    path: &[u8],
    inode: (u64, u64),
    size: u64,
    says: &Sender<Packet>,
) -> Result<(), Unsent> {
    let shown = String::from_utf8_lossy(path);
    let mut file = open_seen(&context.on_disk(path), inode, &shown)?.take(size);
    let mut left = size;
    while left > 0 {
        let mut chunk = BytesMut::zeroed(CHUNK.min(usize::try_from(left).unwrap_or(CHUNK)));
        let read = file.read(&mut chunk).map_err(|error| unreadable(&shown, &error))?;
        if read == 0 {
            return Err(unreadable(&shown, &"it shrank while it was read").into());
        }
        chunk.truncate(read);
        left -= read as u64;
        say(says, Packet::data(id, chunk.freeze()))?;
    }
    Ok(())
}

/// Tells the engine of each entry that the walk shows.
struct List<'a> {
    /// What the entries are of; `None` = they are not on disk.
    context: Option<&'a Context>,
    times: &'a BuildTimes,
    listed: &'a Listed,
    says: &'a Sender<Packet>,
}

impl List<'_> {
    fn tell(&self, stat: Stat, file: Option<File>) -> Result<(), Unsent> {
        self.listed.add(file);
        self.say(Packet::stat(Some(stat)))
    }

    fn say(&self, packet: Packet) -> Result<(), Unsent> {
        say(self.says, packet)
    }

    /// The digest of a file.
    fn read(
        &self,
        on_disk: &Path,
        inode: (u64, u64),
        size: u64,
        shown: &str,
    ) -> Result<[u8; 32], Unsent> {
        let file = open_seen(on_disk, inode, shown)?;
        let digest = digest_of(file, size, || self.has_left());
        digest.map_err(|error| unreadable(shown, &error).into())
    }
}

impl Visitor for List<'_> {
    fn has_left(&self) -> bool {
        self.says.is_closed()
    }

    fn directory(&mut self, path: &[u8]) -> Result<(), Unsent> {
        let modified = self.times.of(identity(path, DIRECTORY, |_| Ok(()))?);
        let mode = DIRECTORY | 0o755;
        let stat = Stat { path: path.to_vec(), mode, modified, ..Stat::default() };
        self.tell(stat, None)
    }

    fn entry(&mut self, path: &[u8], on_disk: &Path, metadata: &Metadata) -> Result<(), Unsent> {
        let shown = String::from_utf8_lossy(path);
        if metadata.is_symlink() {
            let link = std::fs::read_link(on_disk).map_err(|error| unreadable(&shown, &error))?;
            let link = link.as_os_str().as_bytes().to_vec();
            let identity = identity(path, LINK, |hash| {
                hash.update(&link);
                Ok(())
            })?;
            let stat = Stat {
                path: path.to_vec(),
                mode: LINK | 0o777,
                size: signed(link.len() as u64),
                modified: self.times.of(identity),
                link,
            };
            return self.tell(stat, None);
        }
        if !metadata.is_file() {
            return Err(invalid(format!(
                "`{shown}` is neither a file, a directory nor a link: remove it, or name it in \
                 `.dockerignore`."
            ))
            .into());
        }
        let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
        let (inode, size) = ((metadata.dev(), metadata.ino()), metadata.len());
        let known = self.context.and_then(|context| context.digest(metadata));
        let identity = identity(path, mode, |hash| {
            hash.update(match known {
                Some(digest) => digest,
                None => self.read(on_disk, inode, size, &shown)?,
            });
            Ok(())
        })?;
        let stat = Stat {
            path: path.to_vec(),
            mode,
            size: signed(size),
            modified: self.times.of(identity),
            link: Vec::new(),
        };
        self.tell(stat, Some(File::OnDisk { path: path.to_vec(), inode, size }))
    }
}

fn say(says: &Sender<Packet>, packet: Packet) -> Result<(), Unsent> {
    says.blocking_send(packet).map_err(|_| Unsent::HungUp)
}

/// What an entry is: two of the same path that differ in anything that is sent are not the same.
fn identity(
    path: &[u8],
    mode: u32,
    content: impl FnOnce(&mut Sha256) -> Result<(), Unsent>,
) -> Result<u64, Unsent> {
    let mut hash = Sha256::new();
    hash.update((path.len() as u64).to_be_bytes());
    hash.update(path);
    hash.update(mode.to_be_bytes());
    content(&mut hash)?;
    let digest = hash.finalize();
    Ok(digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use image_builder_actors::model::fault::Reason;
    use image_builder_actors::model::limits::Limits;
    use image_builder_actors::model::request::BuilderKind;
    use image_builder_actors::ports::Plan;
    use tempfile::TempDir;
    use time::OffsetDateTime;
    use tokio::sync::mpsc::{channel, unbounded_channel};

    use super::super::packet::Kind;
    use super::*;
    use crate::engine::buildkit::times::FileTimes;

    fn context(root: &TempDir) -> Context {
        let plan = Plan {
            builder: BuilderKind::Dockerfile,
            context: root.path().to_owned(),
            dockerfile: "Dockerfile".to_owned(),
            target: None,
            build_args: Default::default(),
            secrets: Default::default(),
            platforms: Vec::new(),
            registry_auth: Default::default(),
            fingerprint: String::new(),
        };
        fs::write(root.path().join("Dockerfile"), "d").expect("a file");
        Context::open(&plan, &Limits::default()).expect("good")
    }

    /// Lists a context, with times that end in `now`.
    fn listed(context: &Context, times: &FileTimes, now: i64) -> Result<Vec<Stat>, Unsent> {
        let (says, mut said) = channel(1000);
        let now = OffsetDateTime::from_unix_timestamp(now).expect("a time");
        let build = times.begin("key", now, false);
        list(context, &Follow::All, &build, &Listed::default(), &says)?;
        times.end("key", &build);
        let mut stats = Vec::new();
        while let Ok(packet) = said.try_recv() {
            assert_eq!(packet.kind, i32::from(Kind::Stat));
            stats.extend(packet.stat);
        }
        Ok(stats)
    }

    #[test]
    fn entries_do_not_depend_on_the_machine() {
        let root = TempDir::new().expect("a directory");
        let context = context(&root);
        fs::create_dir(root.path().join("b")).expect("a directory");
        fs::write(root.path().join("run.sh"), "3").expect("a file");
        let mode = |path: &str, mode| {
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(root.path().join(path), mode).expect("a mode");
        };
        mode("run.sh", 0o700);
        mode("b", 0o700);
        mode("Dockerfile", 0o600);
        symlink("nowhere/../x", root.path().join("link")).expect("a link");
        let times = FileTimes::default();
        let got = listed(&context, &times, 1).expect("good");
        let shown: Vec<_> = got
            .iter()
            .map(|stat| (String::from_utf8_lossy(&stat.path), stat.mode, stat.size, stat.modified))
            .collect();
        let time = 1_000_000_000;
        assert_eq!(
            shown,
            [
                ("Dockerfile".into(), 0o644, 1, time),
                ("b".into(), DIRECTORY | 0o755, 0, time),
                ("link".into(), LINK | 0o777, 12, time),
                ("run.sh".into(), 0o755, 1, time),
            ]
        );
        assert_eq!(got[2].link, b"nowhere/../x");

        mode("Dockerfile", 0o664);
        assert_eq!(listed(&context, &times, 2).expect("good"), got, "nothing is new");
        fs::write(root.path().join("run.sh"), "4").expect("a file");
        mode("Dockerfile", 0o744);
        let later = listed(&context, &times, 3).expect("good");
        let changed: Vec<_> = later.iter().filter(|stat| stat.modified == 3_000_000_000).collect();
        assert_eq!(changed, [&later[0], &later[3]]);
    }

    #[test]
    fn names_of_any_bytes_are_told_as_they_are() {
        let root = TempDir::new().expect("a directory");
        let context = context(&root);
        let names: [&[u8]; 3] = [b"a b\tc\nd", "ünïcödé-日本".as_bytes(), b"\xff\xfe not utf-8"];
        for name in names {
            fs::write(root.path().join(OsStr::from_bytes(name)), "").expect("a file");
        }
        let got = listed(&context, &FileTimes::default(), 1).expect("good");
        let got: Vec<_> = got.iter().map(|stat| stat.path.as_slice()).collect();
        assert_eq!(got, [b"Dockerfile", names[0], names[1], names[2]]);
    }

    #[test]
    fn what_is_no_file_directory_or_link_is_refused_by_name_unless_ignored() {
        let root = TempDir::new().expect("a directory");
        let _socket = UnixListener::bind(root.path().join("sock")).expect("a socket");
        match listed(&context(&root), &FileTimes::default(), 1) {
            Err(Unsent::Unusable(fault)) => {
                assert_eq!(fault.reason, Reason::InvalidPlan);
                assert!(fault.message.contains("`sock`"), "{}", fault.message);
            }
            other => panic!("a socket was sent: {other:?}"),
        }
        fs::write(root.path().join(".dockerignore"), "sock\n.dockerignore").expect("a file");
        let got = listed(&context(&root), &FileTimes::default(), 1).expect("good");
        assert_eq!(got.len(), 1, "{got:?}");
    }

    #[tokio::test]
    async fn files_are_sent_whole_once_they_are_asked_for() {
        let root = TempDir::new().expect("a directory");
        let context = context(&root);
        let content: Vec<u8> = (0..5_000_001_u32).map(|n| (n % 251) as u8).collect();
        fs::write(root.path().join("big"), &content).expect("a file");
        let (says, mut said) = channel(4);
        let (ids, asked) = unbounded_channel();
        let sending = tokio::task::spawn_blocking(move || {
            let times = FileTimes::default().begin("key", OffsetDateTime::UNIX_EPOCH, true);
            let listed = Listed::default();
            list(&context, &Follow::All, &times, &listed, &says)?;
            send_files(&context, &listed, asked, &says)
        });
        ids.send(1).expect("it listens");
        ids.send(1).expect("it listens");
        let mut got = Vec::new();
        while let Some(packet) = said.recv().await {
            if packet.kind == i32::from(Kind::Data) {
                assert_eq!(packet.id, 1);
                got.extend_from_slice(&packet.data);
            }
        }
        assert!(got == content);
        let twice = sending.await.expect("no panic");
        assert!(matches!(twice, Err(Unsent::HungUp)), "{twice:?}");
    }
}
