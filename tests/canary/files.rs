//! Texts in files, compressed ones as well.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
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
    pub(crate) places: Vec<PathBuf>,
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
    let mut left = roots.within.clone();
    while let Some(path) = left.pop() {
        // What is gone meanwhile holds nothing.
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if roots.without.contains(&path) {
            continue;
        }
        if metadata.is_dir() {
            left.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
        } else if metadata.is_symlink() {
            let target = std::fs::read_link(&path).unwrap_or_default();
            if any.is_match(target.as_os_str().as_encoded_bytes()) {
                found.places.push(path);
            }
        } else if metadata.is_file() && metadata.ctime() >= since {
            found.files += 1;
            found.bytes += metadata.len();
            if holds(&path, &any, longest) {
                found.places.push(path);
            }
        }
    }
    found
}

/// Whether a file holds such a text, as it is or once it is unpacked.
fn holds(path: &Path, any: &Regex, longest: usize) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    let mut head = [0; 2];
    let is_packed = file.read_exact(&mut head).is_ok() && head == [0x1f, 0x8b];
    let Ok(file) = File::open(path) else { return false };
    match is_packed {
        true => reads(MultiGzDecoder::new(file), any, longest),
        false => reads(file, any, longest),
    }
}

fn reads(mut source: impl Read, any: &Regex, longest: usize) -> bool {
    let mut buffer = vec![0; PIECE + longest];
    let mut kept = 0;
    loop {
        let read = match source.read(&mut buffer[kept..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A broken archive holds what was read of it.
            Ok(0) | Err(_) => return false,
            Ok(read) => read,
        };
        let end = kept + read;
        if any.is_match(&buffer[..end]) {
            return true;
        }
        // A text may go on in the next piece.
        kept = end.min(longest);
        buffer.copy_within(end - kept..end, 0);
    }
}

/// Files that all hold this text.
pub(crate) fn disguises(text: &str) -> Vec<(&'static str, Vec<u8>)> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    io::Write::write_all(&mut packed, text.as_bytes()).expect("into memory");
    let split = [&vec![b'x'; PIECE - 3], text.as_bytes()].concat();
    vec![
        ("plain", format!("before {text} after").into_bytes()),
        ("split", split),
        ("packed.gz", packed.finish().expect("into memory")),
        ("base64", STANDARD.encode(format!("user:{text}:")).into_bytes()),
        ("hex", text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>().into_bytes()),
    ]
}
