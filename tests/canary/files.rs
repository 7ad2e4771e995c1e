//! Texts in files, compressed ones as well.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use regex::bytes::Regex;

/// What is read at once, in bytes.
const PIECE: usize = 1 << 20;

/// Where is searched, and what below it is not.
#[derive(Debug)]
pub(crate) struct Roots {
    within: Vec<PathBuf>,
    without: Vec<PathBuf>,
}

/// Where the services of the development stack keep what they have.
pub(crate) fn state() -> PathBuf {
    let state = std::env::var_os("IMAGE_BUILDER_STATE");
    state.map_or_else(|| PathBuf::from("/var/lib/image-builder-dev"), PathBuf::from)
}

impl Roots {
    pub(crate) fn of(directory: &Path) -> Self {
        Self { within: vec![directory.to_owned()], without: Vec::new() }
    }

    /// What a run of the suites leaves: on the engines, in the registries, in PostgreSQL, in logs.
    pub(crate) fn of_the_run(engine: &Path) -> Self {
        let state = state();
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in target");
        let logs = ["test.log", "chaos", "soak"].map(|name| target.join(name));
        let within = logs.into_iter().chain([engine.to_owned(), state.clone()]).collect();
        // The test forge with its tokens, configurations, and programs; a broker is asked for its messages, but for
        // those of streams, since it does not give those out one by one.
        let mut without =
            ["git", "etc", "run", "tools", "manifests"].map(|name| state.join(name)).to_vec();
        for node in
            [state.join("rabbitmq")].into_iter().chain(below(&state.join("newer"), "rabbitmq"))
        {
            without.extend(below(&node, "quorum"));
            without.extend(below(&node, "msg_stores"));
        }
        without.extend(below(&state.join("newer"), "root"));
        Self { within, without }
    }
}

/// The directories of this name, at most four levels down.
fn below(directory: &Path, name: &str) -> Vec<PathBuf> {
    fn walk(directory: &Path, name: &str, levels: u32, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            match entry.file_name() == name {
                true => found.push(entry.path()),
                false if levels > 0 => walk(&entry.path(), name, levels - 1, found),
                false => {}
            }
        }
    }
    let mut found = Vec::new();
    walk(directory, name, 4, &mut found);
    found
}

/// What a search came to.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// With the text that is in each.
    pub(crate) places: Vec<(PathBuf, String)>,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// The files that hold one of these texts, of those that were changed since.
pub(crate) fn search(roots: &Roots, texts: &[String], since: SystemTime) -> Found {
    let any = texts.iter().map(|text| regex::escape(text)).collect::<Vec<_>>().join("|");
    let any = Regex::new(&any).expect("a pattern of plain texts");
    let longest = texts.iter().map(String::len).max().unwrap_or(0);
    let since = since.duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64;
    let mut found = Found::default();
    let (mut plain, mut packed) = (Vec::new(), Vec::new());
    let mut left = roots.within.clone();
    while let Some(path) = left.pop() {
        // What is gone meanwhile holds nothing.
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.is_dir() {
            if roots.without.contains(&path) {
                continue;
            }
            left.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
        } else if metadata.is_symlink() {
            let target = std::fs::read_link(&path).unwrap_or_default();
            let text = first(&any, target.as_os_str().as_encoded_bytes());
            found.places.extend(text.map(|text| (path, text)));
        } else if metadata.is_file() && metadata.ctime() >= since {
            found.files += 1;
            found.bytes += metadata.len();
            if is_packed(&path) { packed.push(path) } else { plain.push(path) }
        }
    }
    for path in holding(&plain, &packed, texts) {
        found.places.extend(in_file(&path, &any, longest).map(|text| (path, text)));
    }
    found
}

fn is_packed(path: &Path) -> bool {
    let mut head = [0; 2];
    File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head == [0x1f, 0x8b]
}

/// Those of the files that hold one of these texts: found by grep, which reads a gigabyte in a second, on every core.
fn holding(plain: &[PathBuf], packed: &[PathBuf], texts: &[String]) -> Vec<PathBuf> {
    const UNPACKED: &str = r#"for file; do
        gzip -dcq <"$file" 2>/dev/null | grep -qaF -f "$0" && printf '%s\0' "$file"
    done; true"#;
    let mut wanted = tempfile::NamedTempFile::new().expect("a file");
    writeln!(wanted, "{}", texts.join("\n")).expect("written");
    let plain = plain.chunks(500).map(|some| ("grep", &["-laFZ", "-f"][..], some));
    let packed = packed.chunks(500).map(|some| ("sh", &["-c", UNPACKED][..], some));
    let left = Mutex::new(plain.chain(packed));
    let search = || {
        let mut holding = Vec::new();
        loop {
            let next = left.lock().expect("nobody panicked").next();
            let Some((program, arguments, some)) = next else { return holding };
            let mut command = Command::new(program);
            command.args(arguments).arg(wanted.path()).args(some).env("LC_ALL", "C");
            let output = command.output().expect("it starts");
            let paths = output.stdout.split(|byte| *byte == 0).filter(|path| !path.is_empty());
            holding.extend(paths.map(|path| PathBuf::from(OsStr::from_bytes(path))));
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let searches: Vec<_> = (0..cores).map(|_| scope.spawn(search)).collect();
        searches.into_iter().flat_map(|it| it.join().expect("it ends")).collect()
    })
}

/// The first such text in these bytes.
fn first(any: &Regex, bytes: &[u8]) -> Option<String> {
    any.find(bytes).map(|found| String::from_utf8_lossy(found.as_bytes()).into_owned())
}

/// The first such text in a file, as it is or once it is unpacked.
fn in_file(path: &Path, any: &Regex, longest: usize) -> Option<String> {
    let file = File::open(path).ok()?;
    match is_packed(path) {
        true => in_stream(MultiGzDecoder::new(file), any, longest),
        false => in_stream(file, any, longest),
    }
}

fn in_stream(mut source: impl Read, any: &Regex, longest: usize) -> Option<String> {
    let mut buffer = vec![0; PIECE + longest];
    let mut kept = 0;
    loop {
        let read = match source.read(&mut buffer[kept..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A broken archive holds what was read of it.
            Ok(0) | Err(_) => return None,
            Ok(read) => read,
        };
        let end = kept + read;
        let found = first(any, &buffer[..end]);
        if found.is_some() {
            return found;
        }
        // A text may go on in the next piece.
        kept = end.min(longest);
        buffer.copy_within(end - kept..end, 0);
    }
}

/// Files that all hold this text.
pub(crate) fn disguises(text: &str) -> Vec<(&'static str, Vec<u8>)> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(text.as_bytes()).expect("into memory");
    let split = [&vec![b'x'; PIECE - 3], text.as_bytes()].concat();
    vec![
        ("plain", format!("before {text} after").into_bytes()),
        ("split", split),
        ("packed.gz", packed.finish().expect("into memory")),
        ("base64", STANDARD.encode(format!("user:{text}:")).into_bytes()),
        ("hex", text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>().into_bytes()),
    ]
}
