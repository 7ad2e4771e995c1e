//! Whether an engine can take a Dockerfile's stages.
//!
//! An engine builds for many at once, and some Dockerfiles end it with all that it has in hand: one
//! that has no stage, and one whose stages need each other in a circle. One whose stages lead to each
//! other in too many ways keeps it busy for ever, whether the build is cancelled or not. So these are
//! found here, before anything is sent.
//!
//! Lines are read as BuildKit reads them. Its versions differ, so each way to read has to find the
//! stages. All else that may be wrong with a Dockerfile is left to the engine, which says it well.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;

use image_builder_actors::model::build_log::cut;
use regex::{Captures, Regex};

/// A name in a message is cut to this many bytes.
const SHOWN_BYTES: usize = 100;

/// In more ways than this no stage may lead to others: engines walk each of them.
const MOST_WAYS: u64 = 1 << 22;

/// More stages than this are not taken.
const MOST_STAGES: usize = 1000;
/// A longer value of an argument is no stage's name.
const LONGEST_VALUE: usize = 4096;
/// More images than this are not shown.
const MOST_IMAGES: usize = 100;

/// What differs between the versions of BuildKit in how they split a text into instructions.
#[derive(Clone, Copy)]
struct Dialect {
    /// Whether all carriage returns at a line's end belong to the line's end, or only one.
    every_carriage_return: bool,
    /// Whether `# check=` is a directive, and any white space of Unicode may follow a `#`.
    newer_directives: bool,
    /// Whether here-documents are known. Where they are not, what stands in them is taken for instructions: that may
    /// find stages and needs too many, but in no Dockerfile of real life a circle.
    here_documents: bool,
}

const NEWEST: Dialect =
    Dialect { every_carriage_return: false, newer_directives: true, here_documents: true };

fn dialects() -> impl Iterator<Item = Dialect> {
    (0..8).map(|bits| Dialect {
        every_carriage_return: bits & 1 != 0,
        newer_directives: bits & 2 != 0,
        here_documents: bits & 4 != 0,
    })
}

/// An instruction, its lines joined.
struct Instruction {
    /// The line of the file that it begins in; the first is 1.
    line: usize,
    /// In lower case.
    name: String,
    arguments: String,
}

/// Checks the stages of the Dockerfile `text`. The error continues "the Dockerfile `x` …".
///
/// `build_args` may name another front end, as a `# syntax=` line does. Such a front end runs in a
/// container of its own, and what it reads need not be a Dockerfile. With `own_front_end` the engine's own reads
/// all, whatever that line names.
pub(super) fn check(
    text: &str,
    build_args: &BTreeMap<String, String>,
    own_front_end: bool,
) -> Result<(), String> {
    if !own_front_end && names_front_end(text) {
        return Ok(());
    }
    let other_format =
        build_args.contains_key("BUILDKIT_SYNTAX") || may_name_front_end_for_some_engines(text);
    for dialect in dialects() {
        let instructions = read(text, dialect);
        match instructions.iter().find(|instruction| instruction.name != "arg") {
            Some(first) if first.name == "from" => check_stages(&instructions, build_args)?,
            // The engine refuses it by itself, unless it knows what it is.
            Some(_) if other_format => {}
            Some(first) => return Err(begins_with_another(first)),
            None => return Err(no_stage(text)),
        }
    }
    Ok(())
}

fn shown(name: &str) -> String {
    cut(name.to_owned(), SHOWN_BYTES)
}

fn begins_with_another(first: &Instruction) -> String {
    format!(
        "has `{}` in line {} before its first `FROM`: only `ARG` and comments may stand there",
        shown(&first.name.to_uppercase()),
        first.line
    )
}

fn no_stage(text: &str) -> String {
    let mut message = "has no stage: no instruction of it is a `FROM`".to_owned();
    if text.contains('\r') && !text.contains('\n') {
        message +=
            "; its lines end with a carriage return alone (CR): save it with line feeds (LF)";
        return message;
    }
    let hidden = |line: &str| {
        line.trim_start_matches(|c: char| c == '#' || c.is_whitespace())
            .get(..5)
            .is_some_and(|word| word.eq_ignore_ascii_case("from "))
    };
    if let Some(at) = text.lines().position(hidden) {
        message += &format!(
            "; the one in line {} is part of a comment or continues the line before it",
            at + 1
        );
    }
    message
}

/// Whether every engine leaves this text to the front end that its `# syntax=` line names.
fn names_front_end(text: &str) -> bool {
    let mut escape_is_set = false;
    for line in text.split('\n') {
        let Some((name, _)) = directive(line) else { return false };
        match name.as_str() {
            "syntax" => return true,
            "escape" if !escape_is_set => escape_is_set = true,
            _ => return false,
        }
    }
    false
}

/// Whether some engine may take this text for something else than a Dockerfile: newer ones know
/// `// syntax=`, a JSON object, and a first line that begins with `#!`.
fn may_name_front_end_for_some_engines(text: &str) -> bool {
    let text = without_mark(text).trim_start();
    let heads = ["#", "//"];
    text.starts_with('{')
        || text
            .lines()
            .take_while(|line| heads.iter().any(|head| line.trim_start().starts_with(head)))
            .any(|line| line.to_ascii_lowercase().contains("syntax"))
}

fn directive(line: &str) -> Option<(String, String)> {
    static DIRECTIVE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(
            r"^#[\t\n\f\r ]*([a-zA-Z][a-zA-Z0-9]*)[\t\n\f\r ]*=[\t\n\f\r ]*([^\n]+?)[\t\n\f\r ]*$",
        )
        .expect("the pattern is a constant, and a test uses it")
    });
    let found = DIRECTIVE.captures(line)?;
    Some((found[1].to_ascii_lowercase(), found[2].to_owned()))
}

/// Without the byte order mark that some editors write first.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Splits a Dockerfile into its instructions.
fn read(text: &str, dialect: Dialect) -> Vec<Instruction> {
    let mut escape = '\\';
    let mut directives = Some(BTreeSet::new());
    let mut instructions = Vec::new();
    let mut lines = without_mark(text).split('\n').enumerate();
    while let Some((at, line)) = lines.next() {
        let line = end_trimmed(line, dialect).trim_start();
        if let Some(seen) = &mut directives {
            match parser_directive(line, dialect) {
                Some((name, value)) if seen.insert(name.clone()) => {
                    if name == "escape" {
                        escape = value.chars().next().unwrap_or(escape);
                    }
                }
                _ => directives = None,
            }
        }
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let (mut joined, mut goes_on) = without_continuation(line, escape);
        while goes_on && let Some((_, next)) = lines.next() {
            let next = end_trimmed(next, dialect);
            if next.trim_start().starts_with('#') || next.trim().is_empty() {
                continue;
            }
            let more;
            (more, goes_on) = without_continuation(next, escape);
            joined += &more;
        }
        let (name, arguments) = split_name(&joined);
        if dialect.here_documents {
            for end in here_documents(&name, &arguments) {
                lines.by_ref().find(|(_, line)| end.is(line));
            }
        }
        instructions.push(Instruction { line: at + 1, name, arguments });
    }
    instructions
}

fn end_trimmed(line: &str, dialect: Dialect) -> &str {
    if dialect.every_carriage_return {
        return line.trim_end_matches('\r');
    }
    line.strip_suffix('\r').unwrap_or(line)
}

/// A directive for the parser; the first line that is none ends them.
fn parser_directive(line: &str, dialect: Dialect) -> Option<(String, String)> {
    let (line, known): (_, &[_]) = if dialect.newer_directives {
        (format!("#{}", line.strip_prefix('#')?.trim_start()), &["syntax", "escape", "check"])
    } else {
        (line.to_owned(), &["syntax", "escape"])
    };
    directive(&line).filter(|(name, _)| known.contains(&name.as_str()))
}

/// The line without the escape at its end that makes the next one part of it; whether there was one.
fn without_continuation(line: &str, escape: char) -> (String, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(before) if !before.ends_with(escape) => (before.to_owned(), true),
        _ => (line.to_owned(), false),
    }
}

fn split_name(line: &str) -> (String, String) {
    let line = line.trim();
    let (name, arguments) =
        line.split_once(['\t', '\u{b}', '\u{c}', '\r', ' ']).unwrap_or((line, ""));
    (name.to_lowercase(), arguments.to_owned())
}

/// The line that ends a here-document.
struct End {
    text: String,
    /// Whether tabs may stand before it.
    indented: bool,
}

impl End {
    fn is(&self, line: &str) -> bool {
        let line = line.trim_end_matches('\r');
        let line = if self.indented { line.trim_start_matches('\t') } else { line };
        line == self.text
    }
}

/// The here-documents that follow an instruction, as BuildKit finds them.
fn here_documents(name: &str, arguments: &str) -> Vec<End> {
    static BEGIN: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new("^[0-9]*<<(-?)([^<]+)$").expect("the pattern is a constant, and a test uses it")
    });
    let (name, arguments) = match name {
        "onbuild" => split_name(arguments),
        _ => (name.to_owned(), arguments.to_owned()),
    };
    let is_list = |text: &str| serde_json::from_str::<Vec<String>>(text).is_ok();
    if !matches!(&*name, "add" | "copy" | "run") || is_list(flags(&arguments).1) {
        return Vec::new();
    }
    let end = |Word { written, plain }: Word| {
        let found = BEGIN.captures(&written)?;
        // What stands before its name has no quotes.
        let text = plain[found.get(2)?.start()..].to_owned();
        Some(End { text, indented: !found[1].is_empty() })
    };
    words(&arguments).into_iter().filter_map(end).collect()
}

/// A word, and what it is without its quotes and escapes.
#[derive(Default)]
struct Word {
    written: String,
    plain: String,
}

/// Splits a text where white space stands outside of quotes.
fn words(text: &str) -> Vec<Word> {
    let (mut words, mut word) = (Vec::new(), Word::default());
    let (mut quote, mut chars) = (None, text.chars());
    while let Some(char) = chars.next() {
        if quote.is_none() && char.is_whitespace() {
            words.push(std::mem::take(&mut word));
            continue;
        }
        word.written.push(char);
        match char {
            '\\' if quote != Some('\'') => {
                let Some(next) = chars.next() else { break };
                word.written.push(next);
                // Within quotes only these have a meaning to be taken away.
                if quote.is_some() && !matches!(next, '"' | '$' | '\\') {
                    word.plain.push(char);
                }
                word.plain.push(next);
            }
            _ if quote == Some(char) => quote = None,
            '"' | '\'' if quote.is_none() => quote = Some(char),
            _ => word.plain.push(char),
        }
    }
    words.push(word);
    words
}

/// Checks that the stages need each other in no circle, and not in too many ways.
fn check_stages(
    instructions: &[Instruction],
    build_args: &BTreeMap<String, String>,
) -> Result<(), String> {
    let count = instructions.iter().filter(|instruction| instruction.name == "from").count();
    if count > MOST_STAGES {
        return Err(format!("has {count} stages, more than {MOST_STAGES}"));
    }
    let stages = Stages::of(instructions, build_args);
    let mut ways = vec![None; stages.needs.len()];
    for stage in 0..stages.needs.len() {
        stages.count(stage, &mut ways)?;
    }
    Ok(())
}

/// The arguments that the Dockerfile `text` declares, for whichever stage, and for images that are built on it.
pub(super) fn declared(text: &str) -> BTreeSet<String> {
    let arguments =
        read(text, NEWEST).into_iter().filter_map(|instruction| match instruction.name.as_str() {
            "arg" => Some(instruction.arguments),
            "onbuild" => {
                let (name, arguments) = split_name(&instruction.arguments);
                (name == "arg").then_some(arguments)
            }
            _ => None,
        });
    let mut declared = BTreeSet::new();
    for arguments in arguments {
        let names = arguments.split_whitespace().filter_map(|word| word.split('=').next());
        declared.extend(names.map(str::to_owned));
    }
    declared
}

/// The images that `target`, else the last stage, is made of: those that the stages which it needs begin with or
/// take files from, each once. Where only the engine knows a name it stands as it is written.
pub(crate) fn images(
    text: &str,
    build_args: &BTreeMap<String, String>,
    target: Option<&str>,
) -> Vec<String> {
    let stages = Stages::of(&read(text, NEWEST), build_args);
    let mut wanted = stages.numbered(target).map_or_else(
        || (0..stages.names.len()).rev().take(1).collect(),
        |target| BTreeSet::from([target]),
    );
    let mut left: Vec<usize> = wanted.iter().copied().collect();
    while let Some(stage) = left.pop() {
        left.extend(stages.needs[stage].iter().copied().filter(|need| wanted.insert(*need)));
    }
    let mut images: Vec<String> = Vec::new();
    for image in wanted.into_iter().flat_map(|stage| &stages.images[stage]) {
        if !images.contains(image) && images.len() < MOST_IMAGES {
            images.push(image.clone());
        }
    }
    images
}

/// The stages, numbered as they come.
struct Stages {
    names: Vec<String>,
    /// What each one takes that is no stage.
    images: Vec<Vec<String>>,
    /// The stages that each one needs, once for each way that an engine follows: as its base, or as
    /// a source of its files.
    needs: Vec<Vec<usize>>,
}

impl Stages {
    fn of(instructions: &[Instruction], build_args: &BTreeMap<String, String>) -> Self {
        let mut stages = Self { names: Vec::new(), images: Vec::new(), needs: Vec::new() };
        let mut by_name = HashMap::new();
        let mut arguments = HashMap::new();
        // A name may be that of a later stage: looked up when all are known.
        let mut sources: Vec<BTreeSet<String>> = Vec::new();
        for instruction in instructions {
            let (flags, rest) = flags(&instruction.arguments);
            match instruction.name.as_str() {
                "arg" if stages.names.is_empty() => {
                    for word in rest.split_whitespace() {
                        let (name, default) = word.split_once('=').unwrap_or((word, ""));
                        let value = build_args.get(name).map_or(default, String::as_str);
                        arguments.insert(name.to_owned(), expand(value, &arguments));
                    }
                }
                "from" => {
                    let mut words = rest.split_whitespace();
                    let written = words.next().unwrap_or_default();
                    let base = expand(written, &arguments);
                    let number = stages.names.len();
                    let name = words.nth(1).map(str::to_lowercase);
                    stages.names.push(name.clone().unwrap_or_else(|| number.to_string()));
                    let named = base.as_ref().map(|base| by_name.get(&base.to_lowercase()));
                    let image = base.as_deref().unwrap_or(written);
                    let is_image = named.is_none_or(|stage| stage.is_none()) && !is_scratch(image);
                    stages.images.push(is_image.then(|| image.to_owned()).into_iter().collect());
                    stages.needs.push(match named {
                        Some(stage) => stage.copied().into_iter().collect(),
                        None => (0..number).collect(),
                    });
                    sources.push(BTreeSet::new());
                    if let Some(name) = name {
                        by_name.insert(name, number);
                    }
                }
                "copy" | "run" | "add" => {
                    if let Some(sources) = sources.last_mut() {
                        sources.extend(flags.iter().filter_map(|flag| source_of(flag)));
                    }
                }
                _ => {}
            }
        }
        let count = stages.names.len();
        let all = stages.needs.iter_mut().zip(&mut stages.images);
        for ((needs, images), sources) in all.zip(sources) {
            let numbered = |name: &String| name.parse().ok().filter(|number| *number < count);
            let mut found = BTreeSet::new();
            for name in sources {
                match by_name.get(&name).copied().or_else(|| numbered(&name)) {
                    Some(stage) => drop(found.insert(stage)),
                    None if is_scratch(&name) => {}
                    None => images.push(name),
                }
            }
            needs.extend(found);
        }
        stages
    }

    /// The stage that a request means by this name; `None` = none.
    fn numbered(&self, target: Option<&str>) -> Option<usize> {
        let target = target?.to_lowercase();
        let number = target.parse().ok().filter(|number| *number < self.names.len());
        self.names.iter().rposition(|name| *name == target).or(number)
    }

    /// Counts in how many ways a stage leads to others, itself included. `ways` remembers them; zero
    /// marks one that is being counted.
    fn count(&self, stage: usize, ways: &mut [Option<u64>]) -> Result<u64, String> {
        // A stack of its own: a stranger decides how deep this goes.
        let mut path = vec![(stage, 0)];
        while let Some((stage, next)) = path.last_mut() {
            let stage = *stage;
            if ways[stage].is_some_and(|known| known > 0) {
                path.pop();
                continue;
            }
            ways[stage] = Some(0);
            let Some(need) = self.needs[stage].get(*next).copied() else {
                let below = self.needs[stage].iter().map(|need| ways[*need].unwrap_or_default());
                let all = below.fold(1, u64::saturating_add);
                if all > MOST_WAYS {
                    return Err(format!(
                        "has too many ways in which stage `{}` needs the other stages: take each \
                         stage's files from fewer stages",
                        shown(&self.names[stage])
                    ));
                }
                ways[stage] = Some(all);
                continue;
            };
            *next += 1;
            if ways[need] == Some(0) {
                return Err(format!(
                    "has stages that need each other in a circle: `{}` needs `{}`, which needs it",
                    shown(&self.names[stage]),
                    shown(&self.names[need])
                ));
            }
            path.push((need, 0));
        }
        Ok(ways[stage].unwrap_or_default())
    }
}

/// Whether a name stands for no image at all.
fn is_scratch(name: &str) -> bool {
    name.is_empty() || name.eq_ignore_ascii_case("scratch")
}

/// The stage or image that a flag of `COPY` or `RUN` takes files from, in lower case.
fn source_of(flag: &str) -> Option<String> {
    let (name, value) = flag.strip_prefix("--")?.split_once('=')?;
    match name.to_lowercase().as_str() {
        "from" => Some(value.to_lowercase()),
        "mount" => value.replace('"', "").split(',').find_map(|field| {
            let (key, value) = field.split_once('=')?;
            (key.trim().eq_ignore_ascii_case("from")).then(|| value.trim().to_lowercase())
        }),
        _ => None,
    }
}

/// The flags that an instruction begins with, without their quotes and escapes, and what follows.
fn flags(arguments: &str) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = arguments.trim_start();
    while rest.starts_with("--") {
        let mut flag = String::new();
        let mut quote = None;
        let mut end = rest.len();
        let mut chars = rest.char_indices();
        while let Some((at, char)) = chars.next() {
            match char {
                '\\' => flag.extend(chars.next().map(|(_, escaped)| escaped)),
                _ if quote == Some(char) => quote = None,
                '"' | '\'' if quote.is_none() => quote = Some(char),
                _ if quote.is_none() && char.is_whitespace() => {
                    end = at;
                    break;
                }
                _ => flag.push(char),
            }
        }
        rest = rest[end..].trim_start();
        if flag == "--" {
            break;
        }
        flags.push(flag);
    }
    (flags, rest)
}

/// Puts values in place of `$NAME`, `${NAME}` and `${NAME:-default}`, and takes quotes away; `None` where
/// only the engine knows the value.
fn expand(word: &str, arguments: &HashMap<String, Option<String>>) -> Option<String> {
    static VARIABLE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\$(?:(\w+)|\{(\w+)(?::?([-+])([^${}]*))?\})")
            .expect("the pattern is a constant, and a test uses it")
    });
    let word = word.replace(['"', '\'', '\\'], "");
    let mut known = true;
    let expanded = VARIABLE.replace_all(&word, |found: &Captures<'_>| {
        let name = found.get(1).or(found.get(2)).map_or("", |name| name.as_str());
        let Some(Some(value)) = arguments.get(name) else {
            known = false;
            return String::new();
        };
        let other = found.get(4).map_or("", |other| other.as_str());
        match found.get(3).map(|sign| sign.as_str()) {
            Some("+") if !value.is_empty() => other.to_owned(),
            Some("-") if value.is_empty() => other.to_owned(),
            _ => value.clone(),
        }
    });
    let known = known && expanded.len() <= LONGEST_VALUE;
    (known && !VARIABLE.replace_all(&word, "").contains('$')).then(|| expanded.into_owned())
}

#[cfg(test)]
mod tests;
