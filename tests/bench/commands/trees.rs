//! Repositories of a given size, made on the git server without a work tree.

use crate::support::git_server::GitRepo;
use crate::support::unique;

/// What is built of a repository with its dependencies in `deps/` and its sources in `src/`, as the Dockerfiles of
/// many are: the dependencies first.
const WITH_DEPENDENCIES: &str = "FROM debian:bookworm-slim\nCOPY salt /salt\nCOPY deps /deps\n\
    RUN cat /deps/*/* | sha256sum > /deps.sum\nCOPY src /src\nRUN cat /src/* | sha256sum > /src.sum\n";
/// What is built of one with a large context of which little changes.
const OF_DATA: &str = "FROM scratch\nCOPY data /data\nCOPY src /src\n";

/// A repository whose image is one file and a step.
pub(crate) fn small() -> GitRepo {
    let repo = GitRepo::create("bench", "small");
    let mut stream = Stream::default();
    stream.commit(Branch::New);
    stream.file(
        "Dockerfile",
        b"FROM debian:bookworm-slim\nCOPY salt src /app/\nRUN sha256sum /app/* > /sums\n",
    );
    stream.file("salt", unique("salt").as_bytes());
    stream.file("src/main", b"one");
    stream.send(&repo);
    repo
}

/// 5,000 files, and 100 MB of history that no file is left of.
pub(crate) fn large() -> GitRepo {
    let repo = GitRepo::create("bench", "large");
    let mut noise = Noise(1);
    let mut stream = Stream::default();
    for _ in 0..10 {
        stream.commit(Branch::New);
        stream.file("history", &noise.bytes(10_000_000));
    }
    stream.commit(Branch::New);
    stream.removed("history");
    stream.file("Dockerfile", WITH_DEPENDENCIES.as_bytes());
    stream.file("salt", unique("salt").as_bytes());
    for number in 0..5_000 {
        stream.file(&format!("deps/{}/{number}", number % 40), &noise.bytes(2_000));
    }
    for number in 0..20 {
        stream.file(&format!("src/{number}"), &noise.bytes(2_000));
    }
    stream.send(&repo);
    repo
}

/// So many megabytes in files of at most one.
pub(crate) fn data(megabytes: usize) -> GitRepo {
    let repo = GitRepo::create("bench", "data");
    let mut noise = Noise(megabytes as u64 + 7);
    let mut stream = Stream::default();
    stream.commit(Branch::New);
    stream.file("Dockerfile", OF_DATA.as_bytes());
    stream.file("src/main", unique("main").as_bytes());
    for number in 0..megabytes {
        stream.file(&format!("data/{number}"), &noise.bytes(1_000_000));
    }
    stream.send(&repo);
    repo
}

/// A repository of the same content under a name of its own. Its history is shared with the first on the disk.
pub(crate) fn copy(of: &GitRepo) -> GitRepo {
    let repo = GitRepo::create("bench", "copy");
    repo.git_on_server(&["fetch", "-q", &of.bare_path(), "main:main"]);
    repo
}

/// Commits a new content of one file to the default branch.
pub(crate) fn change(repo: &GitRepo, path: &str) {
    let mut stream = Stream::default();
    stream.commit(Branch::Known);
    stream.file(path, unique("changed").as_bytes());
    stream.send(repo);
}

/// Whether the default branch was made by this stream, or is on the server.
enum Branch {
    New,
    Known,
}

/// What `git fast-import` reads.
#[derive(Default)]
struct Stream(Vec<u8>);

impl Stream {
    /// A commit to the default branch.
    fn commit(&mut self, branch: Branch) {
        self.0.extend_from_slice(
            b"commit refs/heads/main\ncommitter A Tester <tester@example.invalid> 1700000000 +0000\ndata 1\nx\n",
        );
        if matches!(branch, Branch::Known) {
            self.0.extend_from_slice(b"from refs/heads/main^0\n");
        }
    }

    fn file(&mut self, path: &str, content: &[u8]) {
        let head = format!("M 100644 inline {path}\ndata {}\n", content.len());
        self.0.extend([head.as_bytes(), content, b"\n"].concat());
    }

    fn removed(&mut self, path: &str) {
        self.0.extend_from_slice(format!("D {path}\n").as_bytes());
    }

    fn send(self, repo: &GitRepo) {
        let bare = repo.bare_path();
        repo.git_with_input(&["--git-dir", &bare, "fast-import", "--quiet"], &self.0);
    }
}

/// Bytes that do not compress.
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let mixed = (self.0 ^ (self.0 >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
            (mixed ^ (mixed >> 29)).to_le_bytes()
        });
        words.flatten().take(count).collect()
    }
}
