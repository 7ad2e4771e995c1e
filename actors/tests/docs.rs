//! The pages for people: the README stays short, and no link leads nowhere.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Component, Path, PathBuf};

use image_builder_actors::model::fault::{Kind, Reason};
use image_builder_actors::model::notification::Culprit;

const README_LINES: usize = 200;

/// From these a reader finds every other page.
const ENTRANCES: [&str; 2] = ["README.md", "docs/architecture.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate has a parent")
}

/// The README and all pages in `docs/`, by path from the repository's root.
fn pages() -> BTreeMap<PathBuf, String> {
    let docs = fs::read_dir(root().join("docs")).expect("there is a directory docs");
    docs.map(|entry| Path::new("docs").join(entry.expect("readable").file_name()))
        .filter(|page| page.extension().is_some_and(|extension| extension == "md"))
        .chain([PathBuf::from("README.md")])
        .map(|page| {
            let text = fs::read_to_string(root().join(&page)).expect("a page is text");
            (page, text)
        })
        .collect()
}

/// The lines outside of code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !in_code && !fence
    })
}

/// The line without what stands in backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// The targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let prose: String = prose(text).map(without_code).collect::<Vec<_>>().join("\n");
    let targets = prose.split("](").skip(1);
    targets.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

/// Where a link of a page leads, as a path from the root and an anchor; `None` = out of the repository.
fn target(page: &Path, link: &str) -> Option<(PathBuf, String)> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let mut found = if path.is_empty() { page.to_owned() } else { PathBuf::new() };
    if !path.is_empty() {
        for part in page.parent().expect("a page is in a directory").join(path).components() {
            match part {
                Component::ParentDir => assert!(found.pop(), "{link} leaves the repository"),
                part => found.push(part),
            }
        }
    }
    Some((found, anchor.to_owned()))
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
            let before = seen.entry(anchor.clone()).or_default();
            *before += 1;
            if *before == 1 { anchor } else { format!("{anchor}-{}", *before - 1) }
        })
        .collect()
}

#[test]
fn the_readme_is_read_in_ten_minutes() {
    let lines = pages()[Path::new("README.md")].lines().count();
    assert!(lines <= README_LINES, "the README has {lines} lines; move something to docs/");
}

#[test]
fn every_link_leads_to_a_file_and_a_heading_that_exist() {
    let pages = pages();
    let mut checked = 0;
    let mut broken = Vec::new();
    for (page, text) in &pages {
        for link in links(text) {
            let Some((path, anchor)) = target(page, &link) else { continue };
            checked += 1;
            let is_there = root().join(&path).exists();
            let is_found = || pages.get(&path).is_some_and(|text| anchors(text).contains(&anchor));
            if !is_there || !(anchor.is_empty() || is_found()) {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert_eq!(broken, [""; 0]);
    assert!(checked > 30, "the pages were read");
}

#[test]
fn every_page_is_found_from_the_readme_or_the_architecture() {
    let pages = pages();
    let linked: BTreeSet<_> = ENTRANCES
        .iter()
        .map(Path::new)
        .flat_map(|page| links(&pages[page]).into_iter().filter_map(|link| target(page, &link)))
        .map(|(path, _)| path)
        .collect();
    let entrances = ENTRANCES.map(PathBuf::from);
    let lost: Vec<_> = pages
        .keys()
        .filter(|page| !linked.contains(*page) && !entrances.contains(page))
        .map(|page| page.display().to_string())
        .collect();
    assert_eq!(lost, [""; 0]);
}

#[test]
fn every_reason_is_explained_with_whose_fault_it_is() {
    let page = &pages()[Path::new("docs/requests-and-notifications.md")];
    for reason in Reason::ALL {
        let fault = match (reason.kind(), Culprit::of(*reason)) {
            (Kind::Capacity, _) | (_, None) => "–".to_owned(),
            (_, Some(culprit)) => format!("`{}`", culprit.as_str()),
        };
        let is_row = |line: &&str| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let names = cells.next().unwrap_or_default();
            names.split(", ").any(|name| name == format!("`{reason}`"))
                && cells.next() == Some(&fault)
        };
        assert_eq!(page.lines().filter(is_row).count(), 1, "the row of `{reason}`, {fault}");
    }
}

#[test]
fn links_in_code_are_none_and_headings_become_anchors_as_on_github() {
    let text = "# A `b`, c\n## A b c\n[x](y.md#z) `[n](one)`\n```\n[n](one)\n# no\n```\n";
    assert_eq!(links(text), ["y.md#z"]);
    assert_eq!(anchors(text), ["a-b-c", "a-b-c-1"].map(str::to_owned).into());
    let found = target(Path::new("docs/a.md"), "../README.md#run");
    assert_eq!(found, Some((PathBuf::from("README.md"), "run".to_owned())));
}

#[test]
fn every_source_that_a_page_names_exists() {
    let mut named = 0;
    for (page, text) in pages() {
        let code = prose(&text).flat_map(|line| line.split('`').skip(1).step_by(2));
        for path in code.filter(|code| {
            let of_ours = ["actors/", "src/", "tests/", ".devcontainer/"];
            of_ours.iter().any(|start| code.starts_with(start)) && !code.contains(['<', ' '])
        }) {
            named += 1;
            assert!(root().join(path).exists(), "{}: there is no {path}", page.display());
        }
    }
    assert!(named > 50, "the pages were read");
}
