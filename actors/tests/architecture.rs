//! The house rules that the compiler does not keep: what knows what.
//!
//! Read off the sources of both crates. A rule that no longer fits the house is changed here, in the
//! same commit as the house.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The rooms of the inside: each may know those before it, and itself.
const INSIDE: [&str; 10] = [
    "model",
    "parse",
    "dead_letter",
    "ports",
    "scheduling",
    "telemetry",
    "delivery",
    "supervision",
    "pipeline",
    "testing",
];

/// What every room of the outside may know.
const SHARED: [&str; 4] = ["net", "blocking", "child", "exposure"];

/// The rooms of the outside that are adapters: they never know each other.
const ADAPTERS: [&str; 9] = [
    "broker",
    "credentials",
    "engine",
    "hooks",
    "notify",
    "planner",
    "registry",
    "source",
    "store",
];

/// Modules by path, such as `["model", "fault"]`, with their code.
type Modules = BTreeMap<Vec<String>, String>;

fn modules(source: &Path) -> Modules {
    let mut found = Modules::new();
    let mut directories = vec![source.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("the sources are there") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let module = module_of(path.strip_prefix(source).expect("below it"));
                if module.last().is_some_and(|name| name != "tests") {
                    found.insert(module, code(&path));
                }
            }
        }
    }
    found
}

/// `model/fault.rs` is `model::fault`, `model/mod.rs` is `model`; the crate's own files are no module.
fn module_of(file: &Path) -> Vec<String> {
    let mut parts: Vec<_> =
        file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        parts.pop();
    }
    parts
}

/// The file without comments and without its unit tests, which may reach further.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("readable");
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The modules that a module names with `crate::`, in `use` lines or anywhere else, and siblings that it
/// names with `super::`.
fn known(module: &[String], code: &str, all: &Modules) -> BTreeSet<Vec<String>> {
    let parent = &module[..module.len() - 1];
    let from_root = code.split("crate::").skip(1).map(|rest| (Vec::new(), rest));
    let siblings = code.split("super::").skip(1).map(|rest| (parent.to_vec(), rest));
    let mut known = BTreeSet::new();
    for (base, rest) in from_root.chain(siblings) {
        for path in paths(rest) {
            let mut path: Vec<_> = base.iter().cloned().chain(path).collect();
            while !path.is_empty() && !all.contains_key(&path) {
                path.pop();
            }
            if !path.is_empty() && path != module {
                known.insert(path);
            }
        }
    }
    known
}

/// The paths that begin here: `a::b` is one, `a::{b::c, d}` are two.
fn paths(text: &str) -> Vec<Vec<String>> {
    let word = |text: &str| {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
    };
    let (mut head, mut rest) = (Vec::new(), text);
    loop {
        if let Some(group) = rest.strip_prefix('{') {
            let end = group.find('}').unwrap_or(group.len());
            let names = group[..end].split(',').map(|name| {
                let first = word(name.trim());
                head.iter().cloned().chain([first]).collect()
            });
            return names.collect();
        }
        let name = word(rest);
        rest = &rest[name.len()..];
        head.push(name);
        match rest.strip_prefix("::") {
            Some(more) => rest = more,
            None => return vec![head],
        }
    }
}

fn source(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of)
}

/// What each module knows.
fn edges(all: &Modules) -> Vec<(&Vec<String>, Vec<String>)> {
    all.iter()
        .filter(|(module, _)| !module.is_empty())
        .flat_map(|(module, code)| known(module, code, all).into_iter().map(move |to| (module, to)))
        .collect()
}

#[test]
fn a_room_of_the_inside_knows_only_those_below_it() {
    let all = modules(&source("src"));
    let rank = |module: &[String]| {
        let room = &module[0];
        let found = INSIDE.iter().position(|known| known == room);
        found.unwrap_or_else(|| panic!("the room `{room}` has no place in the order"))
    };
    let upwards: Vec<_> = edges(&all)
        .into_iter()
        .filter(|(module, to)| rank(to) > rank(module))
        .map(|(module, to)| format!("{} knows {}", module.join("::"), to.join("::")))
        .collect();
    assert_eq!(upwards, [""; 0]);
    assert!(edges(&all).len() > 100, "the sources were read");
}

#[test]
fn adapters_never_know_each_other() {
    let all = modules(&source("../src"));
    let wrong: Vec<_> = edges(&all)
        .into_iter()
        .filter(|(module, to)| {
            ADAPTERS.contains(&module[0].as_str())
                && module[0] != to[0]
                && !SHARED.contains(&to[0].as_str())
        })
        .map(|(module, to)| format!("{} knows {}", module.join("::"), to.join("::")))
        .collect();
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn no_modules_know_each_other_in_a_circle() {
    for tree in ["src", "../src"] {
        let all = modules(&source(tree));
        let mut left: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (module, to) in edges(&all) {
            // A room's own file puts its modules together, and they may use what it declares.
            if !module.starts_with(&to) && !to.starts_with(module) {
                left.entry(module.clone()).or_default().insert(to);
            }
        }
        // Whoever knows nobody that is left, or is known by nobody, is in no circle.
        loop {
            let known: BTreeSet<_> = left.values().flatten().cloned().collect();
            let free: Vec<_> = left
                .iter()
                .filter(|(module, to)| {
                    !known.contains(*module) || to.iter().all(|to| !left.contains_key(to))
                })
                .map(|(module, _)| module.clone())
                .collect();
            if free.is_empty() {
                break;
            }
            left.retain(|module, _| !free.contains(module));
        }
        let circle: Vec<_> = left.keys().map(|module| module.join("::")).collect();
        assert_eq!(circle, [""; 0], "{tree}");
    }
}

#[test]
fn the_git_protocol_knows_no_forge() {
    let all = modules(&source("../src"));
    let in_room = |module: &[String], room: [&str; 2]| module.starts_with(&room.map(str::to_owned));
    let edges = edges(&all);
    let git = edges.iter().filter(|(module, _)| in_room(module, ["source", "git"]));
    let forges: Vec<_> = git.filter(|(_, to)| in_room(to, ["source", "forge"])).collect();
    assert!(forges.is_empty(), "{forges:?}");
    assert!(edges.iter().any(|(_, to)| in_room(to, ["source", "forge"])), "there are forges");
}

#[test]
fn the_inside_depends_on_no_broker_engine_git_or_http() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "-p", "image-builder-actors", "-e", "normal"])
        .args(["--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let crates: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains(&"actix"), "the tree was read: {tree}");
    for outside in [
        "lapin",
        "bollard",
        "git2",
        "reqwest",
        "hyper",
        "axum",
        "sqlx",
        "nixpacks",
        "image-builder",
    ] {
        assert!(!crates.contains(&outside), "the inside depends on {outside}:\n{tree}");
    }
}
