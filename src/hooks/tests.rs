//! The applications file: what is wrong with one is told by its line, and nothing of it is repeated that may be a
//! secret. What comes of hooks is tested in `api/v1/tests/hooks.rs`.

use std::collections::BTreeMap;

use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::ForgeName;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::parse::Rules;

use super::*;

fn rules() -> Rules {
    Rules::new("https://github.com", Limits::default())
        .with(ForgeName::Gitlab, "https://gitlab.com")
        .with(ForgeName::Gitea, "https://git.example.com")
}

/// What is wrong with a file, without its name.
fn wrong(text: &str) -> Vec<String> {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("a.toml");
    std::fs::write(&file, text).expect("it can be written");
    let secrets = BTreeMap::from([(ForgeName::Github, Secret::new("s"))]);
    let settings = ApplicationsSettings { file: Some(file.clone()), secrets };
    let lines = settings.check(&rules()).err().unwrap_or_default();
    let name = format!("{}:", file.display());
    lines
        .into_iter()
        .map(|line| {
            line.strip_prefix(&name).unwrap_or_else(|| panic!("no place: {line}")).to_owned()
        })
        .collect()
}

const GOOD: &str = "[[application]]\nuserID = \"u\"\nrepo = \"o/n\"\n";

#[test]
fn what_is_wrong_is_told_by_its_line() {
    assert_eq!(wrong(""), [""; 0]);
    assert_eq!(wrong(GOOD), [""; 0]);
    for (more, line, word) in [
        ("brances = [\"main\"]", 4, "unknown field `brances`"),
        ("branches = \"main\"", 4, "expected a sequence"),
        ("\n\npaths = [\"a[\"]", 6, "`paths`: `a[` is no pattern"),
        ("tags = [\"\"]", 4, "`tags` has an empty pattern"),
        ("hookSecretFile = \"/nowhere/secret\"", 4, "`hookSecretFile`: the file cannot be read"),
        ("connector = \"gitlab\"", 1, "set GITLAB_HOOK_SECRET, or `hookSecretFile`"),
        (
            "connector = \"bitbucket\"",
            1,
            "`connector`: hooks come from `github`, `gitlab`, `gitea` alone",
        ),
        ("force = \"yes\"", 4, "expected a boolean"),
        ("[application.buildPlan]\nbuilder = \"make\"", 1, "`buildPlan.builder`"),
        (
            "[application.buildPlan]\nbuilder = \"nixpacks\"\nrootDir = \"x\"",
            6,
            "no field `rootDir`",
        ),
        ("tokenFile = \"hunter2\"", 4, "`tokenFile`: the file cannot be read"),
        ("token = \"hunter2\"", 4, "unknown field `token`"),
        ("x = ", 4, ""),
    ] {
        let lines = wrong(&format!("{GOOD}{more}\n"));
        let [found] = &lines[..] else { panic!("one line of {more}: {lines:?}") };
        assert!(found.starts_with(&format!("{line}: ")) && found.contains(word), "{more}: {found}");
        assert!(!found.contains("hunter2"), "{found}");
    }
    let second = format!("{GOOD}\n[[application]]\nrepo = \"o/m\"\n");
    assert!(wrong(&second)[0].starts_with("5: missing field `userID`"), "{:?}", wrong(&second));
    let both = format!("{GOOD}repo2 = 1\n");
    assert_eq!(wrong(&both).len(), 1);
    let several = "[[application]]\nuserID = \"u \"\nrepo = \"o\"\n[[application]]\nuserID = \"u\"\nrepo = \"a@b\"\n";
    let lines = wrong(several);
    assert!(
        lines.len() == 2 && lines[0].starts_with("1: ") && lines[1].starts_with("4: "),
        "{lines:?}"
    );
}

#[test]
fn the_example_is_good_and_shows_every_field() {
    let example = include_str!("../../config/applications.example.toml");
    // Its secrets are files that are nowhere.
    let (files, rest): (Vec<&str>, Vec<&str>) =
        example.lines().partition(|line| line.contains("File = "));
    assert_eq!(files.len(), 2, "{files:?}");
    let secrets = rest.join("\n");
    assert_eq!(wrong_with_all_secrets(&secrets), [""; 0]);
    for field in [
        "userID",
        "applicationID",
        "connector",
        "repo",
        "branches",
        "tags",
        "releases",
        "paths",
        "ignore",
        "hookSecretFile",
        "tokenFile",
        "tokenRef",
        "force",
        "supersede",
        "commitStatus",
        "buildPlan",
    ] {
        assert!(example.contains(field), "{field}");
    }
}

fn wrong_with_all_secrets(text: &str) -> Vec<String> {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("a.toml");
    std::fs::write(&file, text).expect("it can be written");
    let forges = [ForgeName::Github, ForgeName::Gitlab, ForgeName::Gitea];
    let secrets = forges.map(|forge| (forge, Secret::new("s"))).into();
    ApplicationsSettings { file: Some(file), secrets }.check(&rules()).err().unwrap_or_default()
}

#[test]
fn a_file_that_is_named_has_to_be_there() {
    let file = Some("/nowhere/applications.toml".into());
    let settings = ApplicationsSettings { file, ..ApplicationsSettings::default() };
    let lines = settings.check(&rules()).expect_err("it is not there");
    assert!(
        lines[0].starts_with("APPLICATIONS_FILE: /nowhere/applications.toml cannot be read"),
        "{lines:?}"
    );
}
