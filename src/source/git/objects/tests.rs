//! Files are written as `git clone` writes them, and git is asked how.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use image_builder_actors::model::fault::{Fault, Reason};
use tempfile::TempDir;

use super::wire::{Answer, CheckOut, CheckedOut};
use super::{child, repository};
use crate::source::session::Room;

type Files = BTreeMap<Vec<u8>, Vec<u8>>;

/// Runs git, away from the configuration of the machine and the user.
fn git(directory: &Path, arguments: &[&str], input: &[u8]) -> String {
    let mut child = Command::new("git")
        .arg("-C")
        .arg(directory)
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("git is installed");
    let mut stdin = child.stdin.take().expect("the input is a pipe");
    stdin.write_all(input).expect("git reads its input");
    drop(stdin);
    let output = child.wait_with_output().expect("git ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {arguments:?} failed: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A repository with one commit.
struct Repo {
    place: TempDir,
    commit: String,
}

impl Repo {
    /// Stores these files as they are. A path that ends with `@` is that of a link.
    fn of(files: &Files) -> Self {
        let place = TempDir::new().expect("a directory");
        git(place.path(), &["init", "-q", "--bare", "--initial-branch=main", "r.git"], b"");
        let mut input =
            b"commit refs/heads/main\ncommitter A <a@example.invalid> 0 +0000\n".to_vec();
        input.extend(b"data 0\n");
        for (path, content) in files {
            let (mode, path) = match path.strip_suffix(b"@") {
                Some(path) => ("120000", path),
                None => ("100644", &path[..]),
            };
            input.extend(format!("M {mode} inline \"").as_bytes());
            input.extend(path.iter().flat_map(|byte| format!("\\{byte:03o}").into_bytes()));
            input.extend(format!("\"\ndata {}\n", content.len()).as_bytes());
            input.extend(content);
            input.push(b'\n');
        }
        let bare = place.path().join("r.git");
        git(&bare, &["fast-import", "--quiet"], &input);
        let commit = git(&bare, &["rev-parse", "main"], b"");
        Self { place, commit }
    }

    /// What git writes.
    fn cloned(&self) -> Files {
        git(self.place.path(), &["clone", "-q", "r.git", "by-git"], b"");
        let tree = self.place.path().join("by-git");
        fs::remove_dir_all(tree.join(".git")).expect("it is there");
        read_all(&tree)
    }

    fn check_out(&self, name: &str, keeps: bool, room: Room) -> Result<CheckedOut, Fault> {
        let repository = repository::open(&self.place.path().join("r.git")).expect("a repository");
        let directory = self.place.path().join(name);
        let wish = CheckOut { commit: self.commit.clone(), directory, keeps, room };
        match child::check_out(&repository, &wish)? {
            Answer::CheckedOut(done) => Ok(*done),
            other => panic!("{other:?}"),
        }
    }

    /// What is written here.
    fn written(&self) -> (Files, CheckedOut) {
        let done = self.check_out("by-us", false, plenty()).expect("it is written");
        (read_all(&self.place.path().join("by-us")), done)
    }

    /// Asserts that all is written as git writes it.
    fn assert_as_git(&self) {
        let (by_git, (by_us, _)) = (self.cloned(), self.written());
        assert_eq!(by_git.len(), by_us.len());
        let stored = |path: &[u8]| {
            let attributes = [
                &path[..path.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1)],
                b".gitattributes",
            ]
            .concat();
            by_git.get(&attributes).map(|text| shown(text)).unwrap_or_default()
        };
        let differing: Vec<_> = by_git
            .iter()
            .filter(|(path, content)| by_us.get(*path) != Some(content))
            .map(|(path, content)| {
                let ours = by_us.get(path).map(|content| shown(content));
                format!("{} ({}): git {}, here {ours:?}", shown(path), stored(path), shown(content))
            })
            .collect();
        assert!(differing.is_empty(), "{} differ:\n{}", differing.len(), differing.join("\n"));
    }
}

fn shown(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    text.chars().take(300).collect()
}

fn plenty() -> Room {
    Room::new(1 << 30, 1 << 30, 100_000)
}

fn read_all(tree: &Path) -> Files {
    let mut files = Files::new();
    let mut directories = vec![tree.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("it is there") {
            let path = entry.expect("it is read").path();
            let name = path.strip_prefix(tree).expect("below").as_os_str().as_bytes().to_vec();
            if path.is_symlink() {
                let target = fs::read_link(&path).expect("a link");
                files.insert(name, target.as_os_str().as_bytes().to_vec());
            } else if path.is_dir() {
                directories.push(path);
            } else {
                files.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    files
}

fn files<'a>(all: impl IntoIterator<Item = (&'a str, &'a str)>) -> Files {
    let bytes = |text: &str| text.as_bytes().to_vec();
    all.into_iter().map(|(path, content)| (bytes(path), bytes(content))).collect()
}

/// What files may hold, by kinds that matter to some conversion.
fn contents() -> Vec<Vec<u8>> {
    let text: [&[u8]; _] = [
        b"",
        b"one\ntwo\n",
        b"one\ntwo",
        b"one\r\ntwo\r\n",
        b"one\r\ntwo\n",
        b"one\rtwo\n",
        b"one\r\r\n\n\r\ntwo\n\r",
        b"\n",
        b"\r",
        b"\n\n\r\n",
        b"zero\0\n",
        b"bell\x07\n",
        b"tab\t\x08\x1b\x0c\n",
        b"dos\n\x1a",
        b"\x1a\n",
        b"delete\x7f\n",
        "ä €\n".as_bytes(),
        "\u{feff}mark\n".as_bytes(),
        "日本語\nテキスト\n".as_bytes(),
        "😀\n".as_bytes(),
        b"not \xff UTF-8\n",
        b"cut off \xe2\x82",
        b"surrogate \xed\xa0\x80\n",
        b"$Id$",
        b"$Id$\n$Id$ $Id$\n",
        b"$Id: 0123 $\nafter\n",
        b"$Id: a b $\n",
        b"$Id:x$ $Id:$ $Id: $\n",
        b"$Id: x y$ z$\n",
        b"$Id: broken\n$ $Id$\n",
        b"$Id: no end\n",
        b"$$Id$ $I$Id$ $Id",
        b"$Idx$Id: foo$ $Id y\n",
        b"$Id\0$Id$\n",
        b"$Id: tab\tin it $ $Id:\tx$\n",
        b"$Id:  two $ $Id: x\0 y $\n",
        b"$ID$ $id$ $Id $\n",
        b"\r\n$Id$\r\n",
    ];
    let mut contents: Vec<Vec<u8>> = text.iter().map(|text| text.to_vec()).collect();
    // Around what git takes for binary, and more than its buffers hold.
    for printable in [126, 127, 128, 129, 255, 256] {
        contents.push([&vec![b'x'; printable][..], b"\x01\n"].concat());
    }
    contents.push("line\n".repeat(20_000).into_bytes());
    contents.push([&vec![b'x'; 16_383][..], b"\r\n$Id$\n\r"].concat());
    contents.push([&vec![b'\n'; 8_192][..], &vec![b'\r'; 8_193], b"\n"].concat());
    contents
}

#[test]
fn every_combination_of_attributes_writes_every_content_as_git_does() {
    let attributes = [
        "",
        "text",
        "-text",
        "!text",
        "text=auto",
        "text=input",
        "text=anything",
        "crlf",
        "-crlf",
        "crlf=input",
        "crlf=auto",
        "eol=lf",
        "eol=crlf",
        "eol=cr",
        "eol",
        "text eol=crlf",
        "text eol=lf",
        "-text eol=crlf",
        "!text eol=crlf",
        "text=auto eol=crlf",
        "text=auto eol=lf",
        "text=input eol=crlf",
        "crlf=auto eol=crlf",
        "-crlf eol=crlf",
        "text -crlf eol=crlf",
        "binary",
        "binary eol=crlf",
        "eol=crlf binary",
        "binary text eol=crlf",
        "-binary text eol=crlf",
        "ident",
        "-ident",
        "ident=yes",
        "ident text",
        "ident text=auto",
        "ident text=auto eol=lf",
        "ident eol=crlf",
        "ident text=auto eol=crlf",
        "ident working-tree-encoding=UTF-16",
        "filter=unknown ident eol=crlf",
        "working-tree-encoding=UTF-8",
        "working-tree-encoding=utf8",
        "working-tree-encoding=",
        "working-tree-encoding=UTF-16",
        "working-tree-encoding=utf16",
        "working-tree-encoding=UTF-16LE",
        "working-tree-encoding=UTF-16BE",
        "working-tree-encoding=UTF-16LE-BOM",
        "working-tree-encoding=utf-16be-bom",
        "working-tree-encoding=UTF-32",
        "working-tree-encoding=UTF-32LE",
        "working-tree-encoding=UTF-32BE",
        "working-tree-encoding=UTF-32LE-BOM",
        "working-tree-encoding=ISO-8859-1",
        "working-tree-encoding=latin1",
        "working-tree-encoding=latin-1",
        "working-tree-encoding=ISO-8859-15",
        "working-tree-encoding=US-ASCII",
        "working-tree-encoding=windows-1252",
        "working-tree-encoding=CP1252",
        "working-tree-encoding=SHIFT-JIS",
        "working-tree-encoding=CP932",
        "working-tree-encoding=EUC-JP",
        "working-tree-encoding=GB18030",
        "working-tree-encoding=nothing-known",
        "text eol=crlf working-tree-encoding=UTF-16LE-BOM",
        "text=auto eol=crlf working-tree-encoding=windows-1252",
        "text -text working-tree-encoding=UTF-16",
    ];
    let mut all = Files::new();
    for (row, attributes) in attributes.iter().enumerate() {
        let directory = format!("{row}");
        let path = format!("{directory}/.gitattributes");
        all.insert(path.into_bytes(), format!("[0-9]* {attributes}\n").into_bytes());
        for (column, content) in contents().into_iter().enumerate() {
            all.insert(format!("{directory}/{column}").into_bytes(), content);
        }
    }
    Repo::of(&all).assert_as_git();
}

#[test]
fn patterns_match_the_paths_that_git_says() {
    let patterns = [
        "*",
        "**",
        "a",
        "b",
        "a/b",
        "/a",
        "/b",
        "/a/b",
        "a/",
        "a/*",
        "a/**",
        "**/b",
        "/**/b",
        "a/**/b",
        "*/b",
        "*b",
        "?",
        "??",
        "[ab]",
        "[!a]",
        "[^a]",
        "[a-c]",
        "[c-a]",
        "[]x]",
        "[a",
        "[[:alpha:]]",
        "[[:nope:]]",
        "[[:]",
        "[\\a]",
        "\\a",
        "\\*",
        "\\",
        "a\\",
        "a*b",
        "a**b",
        "a**/b",
        "**a",
        "a**",
        "*.txt",
        "x.*",
        "*.tx?",
        "*.*.txt",
        "\"a b\"",
        "a b",
        "\"\\141\"",
        "\"\\303\\244\"",
        "ä",
        "\"a",
        "!a",
        "\\!a",
        "#a",
        "\\#a",
        "**/**/b",
        "a/*/b",
        "a/?/b",
        "a?b",
        "a[/]b",
        "A",
        "*a*",
        "*/**",
        "**/a/**",
        "./a",
        "a//b",
        "//a",
        "é*",
        "[^é]",
        "x[!.]txt",
        "[[:punct:]]a",
        "[[:space:]]",
        "\"a\\tb\"",
        "[attr]",
        "\"[attr]x\"",
        "**/",
        "\\**",
        "*\\*",
    ];
    let paths = [
        "a",
        "b",
        "c",
        "ab",
        "axb",
        "a b",
        "a\tb",
        "]",
        "x.txt",
        "x.y.txt",
        ".txt",
        "*",
        "\\",
        "!a",
        "#a",
        "ä",
        "-",
        "A",
        "d/a/b",
        "d/b",
        "d/ab/b",
        "a1/b",
        "a1/x/b",
        "a1/x/y/b",
        "sub/a",
        "sub/b",
        "sub/ab",
        "sub/x.txt",
        "sub/deep/a",
        "sub/deep/b",
        "aa/aa/b",
        "[a",
        "[attr]",
        "\"a",
        "**",
    ];
    let mut all = Files::new();
    for (row, pattern) in patterns.iter().enumerate() {
        for nested in ["", "/n"] {
            let line = format!("{pattern} text eol=crlf\n");
            all.insert(format!("{row}{nested}/.gitattributes").into_bytes(), line.into_bytes());
            for path in paths.iter().chain(&["q/b", "q/p/b"]) {
                let path = format!("{row}{nested}/{}", path.replacen("q/", "a2/", 1));
                all.insert(path.into_bytes(), b"line\n".to_vec());
            }
        }
    }
    for (row, pattern) in ["a/b", "a/**", "/a", "a/*/b", "a**/b", "**/a/b"].iter().enumerate() {
        let line = format!("{pattern} text eol=crlf\n");
        all.insert(format!("t{row}/.gitattributes").into_bytes(), line.into_bytes());
        for path in ["a/b", "a/x/b", "a/x/y/b", "x/a/b", "ab/b"] {
            all.insert(format!("t{row}/{path}").into_bytes(), b"line\n".to_vec());
        }
    }
    Repo::of(&all).assert_as_git();
}

#[test]
fn lines_are_read_as_git_reads_them() {
    let long = |length: usize| format!("{} text eol=crlf\n", "*".repeat(length));
    let texts = [
        "* text eol=crlf".to_owned(),
        "*\ttext\teol=crlf\r\n".to_owned(),
        "  * text eol=crlf\n".to_owned(),
        " # * text eol=crlf\n".to_owned(),
        "\u{feff}* text eol=crlf\n".to_owned(),
        "* text eol=crlf\0\n* -text\n".to_owned(),
        "*\n* text eol=crlf\n* other\n".to_owned(),
        "* text eol=crlf -\n".to_owned(),
        "* text eol=crlf --a\n".to_owned(),
        "* text eol=crlf a/b\n".to_owned(),
        "* text eol=crlf builtin_a\n".to_owned(),
        "* text eol=crlf =\n".to_owned(),
        "* text eol=crlf ä\n".to_owned(),
        "* text eol=crlf # comment\n".to_owned(),
        "* text eol=lf eol=crlf\n".to_owned(),
        "* text eol=crlf eol=lf\n".to_owned(),
        "* text eol=crlf !eol\n".to_owned(),
        "* text eol=crlf\n* !eol\n".to_owned(),
        "* text eol=crlf\nx -text\n".to_owned(),
        "x -text\n* text eol=crlf\n".to_owned(),
        "* -eol=crlf text\n".to_owned(),
        "* text eol=crlf=lf\n".to_owned(),
        "\"*\"text eol=crlf\n".to_owned(),
        "\"*\" text eol=crlf\n".to_owned(),
        "\"\\x\" text eol=crlf\n".to_owned(),
        "[attr]windows text eol=crlf\n* windows\n".to_owned(),
        long(2048 - " text eol=crlf".len() - 1),
        long(2048 - " text eol=crlf".len()),
    ];
    let mut all = Files::new();
    for (row, text) in texts.iter().enumerate() {
        all.insert(format!("{row}/.gitattributes").into_bytes(), text.clone().into_bytes());
        all.insert(format!("{row}/x").into_bytes(), b"line\n".to_vec());
        all.insert(format!("{row}/below/x").into_bytes(), b"line\n".to_vec());
    }
    Repo::of(&all).assert_as_git();
}

#[test]
fn macros_levels_and_links_are_as_git_has_them() {
    let roots = [
        "[attr]windows text eol=crlf\n*.bat windows\n*.one windows -text\n*.two -windows\n*.three !windows\n",
        "*.bat windows\n[attr]windows text eol=crlf\n[attr]windows -text\n",
        "[attr]windows other\n[attr]other text eol=crlf\n*.bat windows\n",
        "[attr]windows other text\n[attr]other windows eol=crlf\n*.bat other\n",
        "[attr]binary text eol=crlf\n*.bat binary\n",
        "[attr]text eol=crlf\n*.bat text\n",
        "[attr]windows eol=crlf\n* windows\n*.bat text -windows\n",
        "[attr] windows eol=crlf\n*.bat windows\n",
        "[attr]windows\n*.bat windows text\n",
        "[attr]wind/ows eol=crlf\n*.bat wind/ows\n",
        "\"[attr]windows\" eol=crlf\n*.bat windows\n",
        "* text=auto\n*.bat eol=crlf\n*.txt text eol=crlf\n/sub/*.txt -text\n",
        "sub/** text eol=crlf\n",
    ];
    for root in roots {
        let repo = Repo::of(&files([
            (".gitattributes", root),
            (
                "sub/.gitattributes",
                "*.txt -text\n*.one windows\n[attr]nested eol=crlf\n*.two nested\n",
            ),
            ("sub/deep/.gitattributes", "*.txt !text\n*.bat !eol\n"),
            ("a.bat", "line\n"),
            ("a.one", "line\n"),
            ("a.two", "line\n"),
            ("a.three", "line\n"),
            ("a.txt", "line\n"),
            ("!before", "line\n"),
            ("sub/a.bat", "line\n"),
            ("sub/a.one", "line\n"),
            ("sub/a.two", "line\n"),
            ("sub/a.txt", "line\n"),
            ("sub/deep/a.bat", "line\n"),
            ("sub/deep/a.txt", "line\n"),
            ("sub/deep/link.txt@", "line\n"),
            ("linked/.gitattributes@", "* text eol=crlf"),
            ("linked/file", "line\n"),
            ("directory/.gitattributes/file", "line\n"),
            ("directory/file", "line\n"),
            ("named.gitattributes", "* text eol=crlf\n"),
        ]));
        repo.assert_as_git();
    }
}

#[test]
fn what_cannot_be_encoded_is_noted() {
    let repo = Repo::of(&files([
        (
            ".gitattributes",
            "*.txt working-tree-encoding=klingon\n*.set working-tree-encoding\n*.l1 working-tree-encoding=latin1",
        ),
        ("a.txt", "a"),
        ("empty.txt", ""),
        ("b.set", "b"),
        ("c.l1", "€"),
        ("d.l1", "ä"),
    ]));
    let (written, done) = repo.written();
    assert_eq!(done.notes.len(), 3, "{:?}", done.notes);
    assert!(done.notes[0].contains("`a.txt`") && done.notes[0].contains("`klingon`"));
    assert_eq!(written[&b"c.l1"[..]], "€".as_bytes());
    assert_eq!(written[&b"d.l1"[..]], b"\xe4");
}

#[test]
fn what_a_conversion_adds_counts_against_the_limits() {
    let repo = Repo::of(&files([
        (".gitattributes", "* working-tree-encoding=UTF-32BE\n.git* !working-tree-encoding\n"),
        ("a", &"0".repeat(30)),
        ("b", &"0".repeat(30)),
    ]));
    let stored = 60 + 62;
    let of = |file, all| repo.check_out(&format!("{file}-{all}"), false, Room::new(file, all, 10));
    assert_eq!(of(120, stored + 179).expect_err("too much").reason, Reason::TooLarge);
    assert!(of(119, 1_000).expect_err("too much").message.contains("has 120 bytes"));
    of(120, stored + 180).expect("it is just enough");
}

#[test]
fn long_attributes_are_refused() {
    let text = "* text\n".repeat(1 << 18);
    let repo = Repo::of(&files([("a/.gitattributes", text.as_str()), ("b", "")]));
    repo.check_out("one", false, plenty()).expect("they are long, but not too long");
    let all =
        (0..3).map(|n| (format!("{n}/.gitattributes").into_bytes(), text.clone().into_bytes()));
    let fault = Repo::of(&all.collect()).check_out("three", false, plenty()).expect_err("too long");
    assert_eq!(fault.reason, Reason::TooLarge);
}

fn pointer(digit: char) -> String {
    let oid = digit.to_string().repeat(64);
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 12\n")
}

#[test]
fn the_same_blob_is_written_and_kept_by_what_its_path_says() {
    let (pointer, text) = (pointer('a'), "line\n$Id$\n");
    let repo = Repo::of(&files([
        ("lfs/.gitattributes", "* filter=lfs -text\n"),
        ("lfs/a", &pointer),
        ("lfs/b", text),
        ("plain/a", &pointer),
        ("plain/b", text),
        ("crlf/.gitattributes", "* text eol=crlf\n"),
        ("crlf/a", &pointer),
        ("crlf/b", text),
        ("ident/.gitattributes", "* ident\n"),
        ("ident/b", text),
    ]));
    for round in ["first", "second", "third"] {
        let done = repo.check_out(round, true, plenty()).expect("it is written");
        let found: Vec<_> = done.pointers.iter().map(|found| shown(&found.path)).collect();
        assert_eq!(found, ["lfs/a"], "{round}");
        let written = read_all(&repo.place.path().join(round));
        let is = |path: &str, content: &str| written[path.as_bytes()] == content.as_bytes();
        assert!(is("lfs/b", text) && is("plain/b", text) && is("plain/a", &pointer), "{round}");
        assert!(is("crlf/b", "line\r\n$Id$\r\n"), "{round}");
        assert!(is("crlf/a", &pointer.replace('\n', "\r\n")), "{round}");
        assert!(!is("ident/b", text), "{round}");
    }
    let file = |path: &str| fs::metadata(repo.place.path().join(path)).expect("it is there");
    assert_eq!(file("second/plain/b").ino(), file("third/plain/b").ino());
    for path in ["third/crlf/b", "third/ident/b", "third/lfs/a"] {
        assert_eq!(file(path).nlink(), 1, "{path}");
    }
}

#[test]
fn what_lfsconfig_excludes_is_no_pointer_to_fill_in() {
    let (one, two) = (pointer('a'), pointer('b'));
    let repo = Repo::of(&files([
        (".gitattributes", "*.bin filter=lfs text eol=crlf\nother.bin filter=LFS\n"),
        (".lfsconfig", "[lfs]\n\tfetchinclude = assets, other.bin\n\tfetchexclude = *.big.bin\n"),
        ("assets/a.bin", &one),
        ("assets/a.big.bin", &two),
        ("assets/no-pointer.bin", "line\n"),
        ("b.bin", &one),
        ("other.bin", &one),
    ]));
    let (written, done) = repo.written();
    let found: Vec<_> = done.pointers.iter().map(|found| shown(&found.path)).collect();
    assert_eq!(found, ["assets/a.bin"]);
    assert!(done.notes[0].starts_with("2 of 3 Git LFS files stay pointers"), "{:?}", done.notes);
    assert_eq!(written[&b"assets/a.big.bin"[..]], two.as_bytes());
    assert_eq!(written[&b"b.bin"[..]], one.as_bytes());
    assert_eq!(written[&b"assets/no-pointer.bin"[..]], b"line\r\n");
}
