use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use image_builder_actors::model::request::BuilderKind;
use tempfile::TempDir;

use super::*;

/// An entry of a context: path, kind and link or content, mode.
type Entry = (String, String, u32);

fn plan(context: &Path, dockerfile: &str) -> Plan {
    Plan {
        builder: BuilderKind::Dockerfile,
        context: context.to_owned(),
        dockerfile: dockerfile.to_owned(),
        target: None,
        build_args: Default::default(),
        secrets: Default::default(),
        platforms: Vec::new(),
        registry_auth: Default::default(),
        fingerprint: String::new(),
    }
}

fn tree(files: &[(&str, &str)]) -> TempDir {
    let root = TempDir::new().expect("a temporary directory");
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("a file is in a directory")).expect("a directory");
        fs::write(path, text).expect("a file");
    }
    root
}

/// The time of every entry here.
fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(1_000_000_000_012_345_678).expect("a time")
}

fn open(root: &TempDir) -> Result<Context, Fault> {
    Context::open(&plan(root.path(), "Dockerfile"), &Limits::default())
}

async fn bytes(context: Context) -> Result<Vec<u8>, Unsent> {
    let (mut chunks, task) = context.send(now());
    let mut bytes = Vec::new();
    while let Some(Ok(chunk)) = chunks.recv().await {
        bytes.extend_from_slice(&chunk);
    }
    task.await.expect("the walk does not panic").map(|()| bytes)
}

async fn entries(context: Context) -> Vec<Entry> {
    let bytes = bytes(context).await.expect("the tree is good");
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut entries = archive.entries().expect("an archive");
    let root = entries.next().expect("the context itself").expect("an entry");
    assert_eq!(root.path_bytes().as_ref(), b"./");
    let entries = entries.map(|entry| {
        let mut entry = entry.expect("an entry");
        let extensions = entry.pax_extensions().expect("extensions").expect("it has some");
        let extensions: Vec<_> = extensions
            .map(|extension| {
                let extension = extension.expect("one that can be read");
                (
                    extension.key().expect("text").to_owned(),
                    extension.value().expect("text").to_owned(),
                )
            })
            .collect();
        let time = ("mtime".to_owned(), "1000000000.012345678".to_owned());
        assert_eq!(extensions, [time]);
        assert_eq!(entry.header().mtime().ok(), Some(1_000_000_000));
        assert_eq!((entry.header().uid().ok(), entry.header().gid().ok()), (Some(0), Some(0)));
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let link = entry.link_name_bytes().map(|l| String::from_utf8_lossy(&l).into_owned());
        let mut content = String::new();
        entry.read_to_string(&mut content).expect("text");
        let content = link.map_or(content, |link| format!("-> {link}"));
        (path, content, entry.header().mode().expect("a mode"))
    });
    entries.collect()
}

fn names(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|(path, ..)| path.as_str()).collect()
}

#[tokio::test]
async fn entries_are_sorted_and_do_not_depend_on_the_machine() {
    let root = tree(&[("Dockerfile", "d"), ("b/z", "1"), ("b/a", "2"), ("run.sh", "3")]);
    let mode = |path: &str, mode| {
        fs::set_permissions(root.path().join(path), fs::Permissions::from_mode(mode))
            .expect("a mode");
    };
    mode("run.sh", 0o700);
    mode("b", 0o700);
    mode("b/a", 0o600);
    symlink("/etc/passwd", root.path().join("link")).expect("a link");
    symlink("nowhere/../x", root.path().join("b/dangling")).expect("a link");
    let got = entries(open(&root).expect("the plan is good")).await;
    let wanted = [
        ("Dockerfile", "d", 0o644),
        ("b/", "", 0o755),
        ("b/a", "2", 0o644),
        ("b/dangling", "-> nowhere/../x", 0o777),
        ("b/z", "1", 0o644),
        ("link", "-> /etc/passwd", 0o777),
        ("run.sh", "3", 0o755),
    ]
    .map(|(path, content, mode)| (path.to_owned(), content.to_owned(), mode));
    assert_eq!(got, wanted);

    let again = bytes(open(&root).expect("good")).await.expect("good");
    mode("b/a", 0o664);
    assert!(again == bytes(open(&root).expect("good")).await.expect("good"));
}

#[tokio::test]
async fn names_of_any_length_and_any_bytes_arrive_as_they_are() {
    let root = tree(&[("Dockerfile", "")]);
    let mut wanted = vec![b"Dockerfile".to_vec()];
    for length in [99, 100, 101, 155, 256, 300, 1000] {
        // Components are at most 255 bytes long.
        let mut name = "d".repeat(9) + "/";
        while name.len() < length {
            let part = (length - name.len()).min(200);
            name += &"x".repeat(part);
            if name.len() < length {
                name.pop();
                name.push('/');
            }
        }
        wanted.push(name.into_bytes());
    }
    wanted.push(b"a b\tc\nd".to_vec());
    wanted.push("ünïcödé-日本".into());
    wanted.push(b"not utf-8 \xff\xfe".to_vec());
    wanted.push([b"\xff".repeat(60), b"/".to_vec(), b"\xfe".repeat(60)].concat());
    for name in &wanted {
        let path = root.path().join(OsStr::from_bytes(name));
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(&path, "").expect("a file");
    }
    let link = "l".repeat(150);
    symlink(&link, root.path().join("long-link")).expect("a link");
    wanted.push(b"long-link".to_vec());

    let bytes = bytes(open(&root).expect("good")).await.expect("good");
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut got = Vec::new();
    for entry in archive.entries().expect("an archive") {
        let entry = entry.expect("an entry");
        let name = entry.path_bytes().into_owned();
        if name == b"long-link" {
            assert_eq!(entry.link_name_bytes().as_deref(), Some(link.as_bytes()));
        }
        if !name.ends_with(b"/") {
            got.push(name);
        }
    }
    wanted.sort();
    got.sort();
    assert_eq!(got, wanted);
}

#[tokio::test]
async fn what_is_ignored_is_not_sent_and_exceptions_bring_their_directories() {
    let root = tree(&[
        ("Dockerfile", ""),
        (".dockerignore", "*\n!src/keep\n!top"),
        ("top", ""),
        ("other", ""),
        ("src/keep/a", ""),
        ("src/drop/b", ""),
        ("gone/c", ""),
    ]);
    let got = entries(open(&root).expect("good")).await;
    // The Dockerfile is needed by the engine; the ignore file is not, it was applied here.
    assert_eq!(names(&got), ["Dockerfile", "src/", "src/keep/", "src/keep/a", "top"]);
}

#[tokio::test]
async fn a_dockerfile_in_an_ignored_directory_is_sent_and_its_own_ignore_file_wins() {
    let root = tree(&[
        (".dockerignore", "app"),
        ("docker/prod/Dockerfile", ""),
        ("docker/prod/Dockerfile.dockerignore", "docker\nextra"),
        ("docker/other", ""),
        ("app", ""),
        ("extra", ""),
    ]);
    let plan = plan(root.path(), "./docker//prod/Dockerfile");
    let context = Context::open(&plan, &Limits::default()).expect("good");
    let got = entries(context).await;
    assert_eq!(
        names(&got),
        [".dockerignore", "app", "docker/", "docker/prod/", "docker/prod/Dockerfile"]
    );
}

#[tokio::test]
async fn a_large_file_is_sent_whole_through_a_small_buffer() {
    let root = tree(&[("Dockerfile", "")]);
    let content: Vec<u8> = (0..5_000_001_u32).map(|n| (n % 251) as u8).collect();
    fs::write(root.path().join("big"), &content).expect("a file");
    let bytes = bytes(open(&root).expect("good")).await.expect("good");
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut big = archive.entries().expect("an archive").nth(2).expect("three").expect("an entry");
    let mut got = Vec::new();
    big.read_to_end(&mut got).expect("its content");
    assert!(got == content);
}

#[tokio::test]
async fn what_is_no_file_directory_or_link_is_refused_by_name_unless_ignored() {
    let root = tree(&[("Dockerfile", ""), ("dir/x", "")]);
    let _socket = UnixListener::bind(root.path().join("dir/sock")).expect("a socket");
    match bytes(open(&root).expect("good")).await {
        Err(Unsent::Unusable(fault)) => {
            assert_eq!(fault.reason, Reason::InvalidPlan);
            assert!(fault.message.contains("`dir/sock`"), "{}", fault.message);
        }
        other => panic!("a socket was sent: {other:?}"),
    }
    fs::write(root.path().join(".dockerignore"), "dir/sock\n.dockerignore").expect("a file");
    assert_eq!(names(&entries(open(&root).expect("good")).await), ["Dockerfile", "dir/", "dir/x"]);
}

#[test]
fn what_leads_out_of_the_context_is_refused() {
    for (link, to) in [
        ("Dockerfile", "/etc/passwd"),
        ("Dockerfile", "/nonexistent/file"),
        (".dockerignore", "/etc/passwd"),
        ("Dockerfile.dockerignore", "../../../../../../etc/passwd"),
    ] {
        let root = tree(&[("x", "")]);
        if link != "Dockerfile" {
            fs::write(root.path().join("Dockerfile"), "").expect("a file");
        }
        symlink(to, root.path().join(link)).expect("a link");
        let fault = open(&root).expect_err(link);
        assert_eq!(fault.reason, Reason::InvalidPlan, "{link}");
        assert!(fault.message.contains("leads out"), "{}", fault.message);
    }
    let root = tree(&[("Dockerfile", ""), ("dir/x", "")]);
    symlink("/etc", root.path().join("out")).expect("a link");
    for path in ["../Dockerfile", "/etc/passwd", "dir/../../x", "out/passwd", "", "dir", "no"] {
        let fault = Context::open(&plan(root.path(), path), &Limits::default()).expect_err(path);
        assert_eq!(fault.reason, Reason::InvalidPlan, "{path}: {}", fault.message);
    }
}

#[tokio::test]
async fn a_dockerfile_may_be_a_link_inside_the_context() {
    let root = tree(&[("real/Dockerfile", "d"), (".dockerignore", "real\n.dockerignore")]);
    symlink("real/Dockerfile", root.path().join("Dockerfile")).expect("a link");
    let got = entries(open(&root).expect("good")).await;
    assert_eq!(names(&got), ["Dockerfile", "real/", "real/Dockerfile"]);
}

#[test]
fn plan_files_are_bounded() {
    let root = tree(&[("Dockerfile", "12345")]);
    let limits = Limits { plan_file_bytes: 4, ..Limits::default() };
    let fault = Context::open(&plan(root.path(), "Dockerfile"), &limits).expect_err("too long");
    assert_eq!(fault.reason, Reason::TooLarge);
    let root = tree(&[("Dockerfile", ""), (".dockerignore", "a\n[")]);
    let fault = open(&root).expect_err("a bad pattern");
    assert_eq!(fault.reason, Reason::InvalidPlan);
    assert!(fault.message.contains("line 2"), "{}", fault.message);
}

#[tokio::test]
async fn the_walk_ends_when_nobody_reads_any_more() {
    let root = tree(&[("Dockerfile", "")]);
    fs::write(root.path().join("big"), vec![0; 8 << 20]).expect("a file");
    let (chunks, task) = open(&root).expect("good").send(now());
    drop(chunks);
    assert!(matches!(task.await.expect("no panic"), Err(Unsent::HungUp)));
}
