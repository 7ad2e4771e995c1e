//! What an engine leaves out when it says why a build failed, and the source tells.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use image_builder_actors::model::fault::{Fault, Reason};
use regex::Regex;

use super::context::Context;
use crate::engine::faults::pattern;

/// Arguments that the engine itself gives to `FROM`.
const PLATFORM: [&str; 2] = ["BUILD", "TARGET"];
/// Flags of instructions that came after the oldest engines.
const LATER_FLAGS: [&str; 6] = ["link", "parents", "exclude", "checksum", "keep-git-dir", "unpack"];

/// The same fault with what is known of its cause besides.
pub(super) fn explained(
    fault: Fault,
    context: &Context,
    build_args: &BTreeMap<String, String>,
) -> Fault {
    let hint = match fault.reason {
        Reason::BuildFailed => ignored(&fault, context),
        Reason::InvalidPlan => valueless(&fault.message, &context.dockerfile, build_args),
        _ => None,
    };
    with(fault, hint)
}

/// The fault with one more sentence.
pub(super) fn with(fault: Fault, hint: Option<String>) -> Fault {
    match hint {
        Some(hint) => Fault { message: format!("{} {hint}", fault.message), ..fault },
        None => fault,
    }
}

/// Which rule keeps a file from the engine that a step does not find.
fn ignored(fault: &Fault, context: &Context) -> Option<String> {
    let step = fault.step.as_deref()?;
    if step.contains("--from=") {
        return None;
    }
    let missing = missing(&fault.message)?;
    // Of a path of which nothing is there, some engines name the beginning alone.
    let words =
        step.split([' ', ',', '=', '"', '[', ']']).map(|word| word.trim_start_matches(['.', '/']));
    let below =
        words.filter(|word| word.strip_prefix(missing).is_some_and(|rest| rest.starts_with('/')));
    let mut paths = [missing].into_iter().chain(below);
    let (path, (file, rule)) = paths.find_map(|path| Some((path, context.ignoring(path)?)))?;
    Some(format!(
        "The repository has `{path}`, but `{file}` keeps it out of the build context by the rule `{rule}`."
    ))
}

/// The path that the engine does not find in the build context.
fn missing(message: &str) -> Option<&str> {
    static MISSING: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r#"failed: (?:.*: )?(?:"/([^"]+)" not found|lstat /([^:]+): no such file or directory)\.$"#,
        )
    });
    let found = MISSING.captures(message)?;
    Some(found.get(1).or(found.get(2))?.as_str())
}

/// Which arguments of a `FROM` have no value, where the engine cannot make sense of one.
fn valueless(
    message: &str,
    dockerfile: &[u8],
    build_args: &BTreeMap<String, String>,
) -> Option<String> {
    static NO_NAME: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r"should not be blank|failed to parse stage name|invalid reference format|failed to parse platform|invalid platform",
        )
    });
    static VARIABLE: LazyLock<Regex> =
        LazyLock::new(|| pattern(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})"));
    if !NO_NAME.is_match(message) {
        return None;
    }
    let text = String::from_utf8_lossy(dockerfile);
    let mut declared = BTreeMap::new();
    let mut before_stages = true;
    for line in text.lines().map(str::trim) {
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if name.eq_ignore_ascii_case("from") {
            before_stages = false;
            let names = VARIABLE.captures_iter(rest);
            let names = names.filter_map(|found| found.get(1).or(found.get(2)));
            let missing = names.map(|name| name.as_str()).find(|name| {
                let given = build_args.get(*name).or(declared.get(*name));
                given.is_none_or(String::is_empty) || !declared.contains_key(*name)
            });
            let missing = missing.filter(|name| !is_of_the_engine(name));
            if let Some(missing) = missing {
                let shown = rest.trim();
                return Some(match declared.contains_key(missing) {
                    true => format!(
                        "`ARG {missing}` has no value in `FROM {shown}`: give it one in `buildArgs`, or a default \
                         in the Dockerfile."
                    ),
                    false => format!(
                        "`FROM {shown}` takes `{missing}`, which no `ARG` before the first `FROM` declares."
                    ),
                });
            }
        } else if before_stages && name.eq_ignore_ascii_case("arg") {
            for word in rest.split_whitespace() {
                let (name, default) = word.split_once('=').unwrap_or((word, ""));
                let default = default.trim_matches(['"', '\'']);
                declared.insert(name.to_owned(), default.to_owned());
            }
        }
    }
    None
}

fn is_of_the_engine(argument: &str) -> bool {
    let rest = PLATFORM.iter().find_map(|start| argument.strip_prefix(start));
    rest.is_some_and(|rest| matches!(rest, "PLATFORM" | "OS" | "ARCH" | "VARIANT"))
}

/// What of a Dockerfile came after the engine that refuses it, as far as its words tell.
pub(super) fn newer_feature(fault: &Fault, dockerfile: &[u8]) -> Option<String> {
    static REFUSED: LazyLock<Regex> = LazyLock::new(|| {
        pattern(r"(?i)parse error (?:on )?line (\d+): unknown (flag: ([\w-]+)|instruction: )")
    });
    if fault.reason != Reason::InvalidPlan {
        return None;
    }
    let refused = REFUSED.captures(&fault.message)?;
    if let Some(flag) = refused.get(3) {
        let is_later = LATER_FLAGS.contains(&flag.as_str());
        return is_later.then(|| format!("`--{}`", flag.as_str()));
    }
    let line: usize = refused[1].parse().ok()?;
    let text = String::from_utf8_lossy(dockerfile);
    is_in_here_document(&text, line).then(|| "here-documents (`<<`)".to_owned())
}

/// Whether this line, counted from 1, is between the beginning of a here-document and its end.
fn is_in_here_document(text: &str, line: usize) -> bool {
    static BEGIN: LazyLock<Regex> = LazyLock::new(|| {
        pattern(r#"(?i)^\s*(?:onbuild\s+)?(?:run|copy|add)\s.*?<<-?["']?([A-Za-z_][\w.-]*)"#)
    });
    let mut lines = text.lines().zip(1..);
    while let Some((begin, at)) = lines.next() {
        let Some(found) = BEGIN.captures(begin) else { continue };
        let end = lines.by_ref().find(|(text, _)| text.trim() == &found[1]);
        if (at + 1..=end.map_or(usize::MAX, |(_, end)| end)).contains(&line) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::faults::fault;

    fn args(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_a_step_does_not_find_is_read_of_what_engines_say() {
        for (message, path) in [
            ("Step `COPY f /` failed: \"/d/f.txt\" not found.", Some("d/f.txt")),
            (
                "Step `COPY d/f /` failed: failed to walk /d: lstat /d: no such file or directory.",
                Some("d"),
            ),
            ("Step `RUN x` failed with exit code 1.", None),
            ("Base image `a`, which was not found in its registry.", None),
        ] {
            assert_eq!(missing(message), path, "{message}");
        }
    }

    #[test]
    fn the_argument_that_leaves_a_base_without_a_name_is_named() {
        let blank = "The Dockerfile cannot be built: base name ($BASE) should not be blank.";
        let bad = "The Dockerfile cannot be built: failed to parse stage name \"alpine:\": invalid reference format.";
        for (message, text, given, told) in [
            (blank, "ARG BASE\nFROM $BASE\n", args(&[]), Some("`ARG BASE` has no value")),
            (blank, "arg A=1 BASE=\nfrom ${BASE} as x\n", args(&[]), Some("`ARG BASE`")),
            (
                bad,
                "ARG TAG\nFROM scratch\nFROM alpine:${TAG}\n",
                args(&[("TAG", "")]),
                Some("`ARG TAG`"),
            ),
            (
                bad,
                "FROM a\nARG TAG=1\nFROM alpine:$TAG\n",
                args(&[]),
                Some("takes `TAG`, which no"),
            ),
            (bad, "ARG TAG\nFROM alpine:$TAG\n", args(&[("TAG", "A B")]), None),
            (bad, "ARG TAG=1\nFROM --platform=$BUILDPLATFORM Alpine:$TAG\n", args(&[]), None),
            ("The Dockerfile cannot be built: x.", "ARG BASE\nFROM $BASE\n", args(&[]), None),
        ] {
            let hint = valueless(message, text.as_bytes(), &given);
            match told {
                Some(told) => {
                    assert!(hint.as_ref().is_some_and(|hint| hint.contains(told)), "{hint:?}");
                }
                None => assert_eq!(hint, None, "{text}"),
            }
        }
    }

    #[test]
    fn what_an_older_engine_does_not_know_is_told_from_what_none_knows() {
        let text =
            "FROM a\nRUN <<EOF\nset -e\nEOF\nRUNN x\nCOPY <<-\"end.txt\" /x\n\thello\n\tend.txt\n";
        for (cause, feature) in [
            (
                "dockerfile parse error line 3: unknown instruction: SET",
                Some("here-documents (`<<`)"),
            ),
            (
                "dockerfile parse error on line 7: unknown instruction: HELLO",
                Some("here-documents (`<<`)"),
            ),
            ("dockerfile parse error line 5: unknown instruction: RUNN", None),
            ("dockerfile parse error line 2: Unknown flag: link", Some("`--link`")),
            ("dockerfile parse error line 2: unknown flag: lnik", None),
            ("something else", None),
        ] {
            let message = format!("The Dockerfile cannot be built: {cause}.");
            let found = newer_feature(&fault(Reason::InvalidPlan, message), text.as_bytes());
            assert_eq!(found.as_deref(), feature, "{cause}");
        }
    }
}
