use std::os::unix::fs::symlink;

use image_builder_actors::model::request::BuilderKind;
use tempfile::TempDir;

use super::*;

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

fn open(root: &TempDir) -> Result<Context, Fault> {
    Context::open(&plan(root.path(), "Dockerfile"), &Limits::default())
}

/// Notes what it is shown.
#[derive(Default)]
struct Shown(Vec<String>);

impl Visitor for Shown {
    fn has_left(&self) -> bool {
        false
    }

    fn directory(&mut self, path: &[u8]) -> Result<(), Unsent> {
        self.0.push(format!("{}/", String::from_utf8_lossy(path)));
        Ok(())
    }

    fn entry(&mut self, path: &[u8], _: &Path, _: &Metadata) -> Result<(), Unsent> {
        self.0.push(String::from_utf8_lossy(path).into_owned());
        Ok(())
    }
}

/// What is sent of the paths that are asked for.
fn asked(context: &Context, paths: &[&str]) -> Vec<String> {
    let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
    let mut shown = Shown::default();
    context.walk(&context.follow(&paths), &mut shown).expect("the tree is good");
    shown.0
}

fn entries(context: &Context) -> Vec<String> {
    asked(context, &[])
}

#[test]
fn what_is_ignored_is_not_sent_and_exceptions_bring_their_directories() {
    let root = tree(&[
        ("Dockerfile", ""),
        (".dockerignore", "*\n!src/keep\n!top"),
        ("top", ""),
        ("other", ""),
        ("src/keep/a", ""),
        ("src/drop/b", ""),
        ("gone/c", ""),
    ]);
    let context = open(&root).expect("good");
    // The Dockerfile goes by itself, and the ignore file was applied here.
    assert_eq!(entries(&context), ["src/", "src/keep/", "src/keep/a", "top"]);
    assert_eq!(asked(&context, &["src/keep/a"]), ["src/", "src/keep/", "src/keep/a"]);
    assert_eq!(asked(&context, &["top", "other", "nowhere"]), ["top"]);
}

#[test]
fn a_dockerfile_may_be_ignored_and_its_own_ignore_file_wins() {
    let root = tree(&[
        (".dockerignore", "app"),
        ("docker/prod/Dockerfile", "FROM scratch"),
        ("docker/prod/Dockerfile.dockerignore", "docker\nextra"),
        ("docker/other", ""),
        ("app", ""),
        ("extra", ""),
    ]);
    let plan = plan(root.path(), "./docker//prod/Dockerfile");
    let context = Context::open(&plan, &Limits::default()).expect("good");
    assert_eq!(context.dockerfile, b"FROM scratch");
    assert_eq!(entries(&context), [".dockerignore", "app"]);
}

#[test]
fn what_keeps_a_file_out_is_known_by_file_and_rule() {
    let root = tree(&[
        ("Dockerfile", ""),
        ("Dockerfile.dockerignore", "*.txt\n"),
        (".dockerignore", ""),
        ("a/b.txt", ""),
        ("f.txt", ""),
        ("f.md", ""),
    ]);
    let context = open(&root).expect("good");
    assert_eq!(context.ignoring("f.txt"), Some(("Dockerfile.dockerignore", "*.txt")));
    assert_eq!(context.ignoring("./f.txt"), Some(("Dockerfile.dockerignore", "*.txt")));
    for other in ["f.md", "a/b.txt", "gone.txt", "../f.txt"] {
        assert_eq!(context.ignoring(other), None, "{other}");
    }
}

#[test]
fn entries_are_sorted_directory_by_directory() {
    let root = tree(&[("Dockerfile", ""), ("b/z", ""), ("b/a", ""), ("b.txt", ""), ("b-c/x", "")]);
    symlink("b", root.path().join("a")).expect("a link");
    let wanted = ["Dockerfile", "a", "b/", "b/a", "b/z", "b-c/", "b-c/x", "b.txt"];
    assert_eq!(entries(&open(&root).expect("good")), wanted);
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

#[test]
fn a_dockerfile_may_be_a_link_inside_the_context() {
    let root = tree(&[("real/Dockerfile", "d"), (".dockerignore", "real\n.dockerignore")]);
    symlink("real/Dockerfile", root.path().join("Dockerfile")).expect("a link");
    let context = open(&root).expect("good");
    assert_eq!(context.dockerfile, b"d");
    assert_eq!(entries(&context), ["Dockerfile"]);
}

/// As with `docker build`: the name that is asked for decides, not the one that it links to.
#[test]
fn the_ignore_file_of_a_dockerfile_that_is_a_link_is_beside_the_link() {
    let root = tree(&[
        ("d/Web", "d"),
        ("Dockerfile.dockerignore", "one\n*dockerignore\nd\nDockerfile"),
        ("d/Web.dockerignore", "two"),
        ("one", ""),
        ("two", ""),
    ]);
    symlink("d/Web", root.path().join("Dockerfile")).expect("a link");
    assert_eq!(entries(&open(&root).expect("good")), ["two"]);
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

#[test]
fn a_file_is_read_once_for_a_build_unless_it_is_another_one_by_then() {
    let root = tree(&[("Dockerfile", "FROM scratch"), ("a", "1"), ("b", "1"), ("new", "2")]);
    let metadata = |path: &str| fs::symlink_metadata(root.path().join(path)).expect("it is there");
    let read = ReadContexts::default();
    let name = open(&root).and_then(|context| context.contents(CancellationToken::new(), &read));
    assert!(name.is_ok_and(|name| name.is_some()));
    fs::rename(root.path().join("new"), root.path().join("b")).expect("renamed");

    let mut context = open(&root).expect("it is good");
    assert_eq!(context.digest(&metadata("a")), None, "nothing is taken over yet");
    context.know(&read);
    let of = |text: &str| Some(*blake3::hash(text.as_bytes()).as_bytes());
    assert_eq!(context.digest(&metadata("a")), of("1"));
    assert_ne!(context.digest(&metadata("b")), of("1"));
    context.know(&read);
    assert_eq!(context.digest(&metadata("a")), None, "what was taken is forgotten");
}
