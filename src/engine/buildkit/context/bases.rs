//! Which images a Dockerfile begins with or copies from.

use std::collections::{BTreeMap, BTreeSet};

/// More images than this are not looked up.
const MOST: usize = 20;

/// The images that a Dockerfile names, and perhaps names that are none; `None` = that cannot be told by its
/// text alone, or it fetches something else from elsewhere.
pub(super) fn bases(text: &str) -> Option<BTreeSet<String>> {
    let mut stages = BTreeSet::new();
    let mut images = BTreeSet::new();
    for instruction in instructions(text)? {
        let mut words = instruction.split_whitespace();
        let mut next = || words.next().unwrap_or_default().to_ascii_lowercase();
        let mut name = next();
        // A later stage of the same file may run it.
        while name == "onbuild" {
            name = next();
        }
        let words: Vec<&str> = words.collect();
        match name.as_str() {
            "from" => {
                let mut named = words.iter().filter(|word| !word.starts_with("--"));
                let image = named.next()?;
                images.extend(is_image(image, &stages)?.then(|| (*image).to_owned()));
                let is_named = named.next().is_some_and(|word| word.eq_ignore_ascii_case("as"));
                if is_named {
                    stages.insert(named.next()?.to_ascii_lowercase());
                }
            }
            "add" if words.iter().any(|word| may_be_elsewhere(word)) => return None,
            _ => {
                for image in sources(&words) {
                    images.extend(is_image(image, &stages)?.then(|| image.to_owned()));
                }
            }
        }
    }
    (images.len() <= MOST).then_some(images)
}

/// The images that stages begin with for certain platforms, each with its platform: that of the stage, else those that
/// the whole build is for. What only the engine knows is left out.
pub(super) fn with_platforms(
    text: &str,
    build_args: &BTreeMap<String, String>,
    of_build: &[&str],
) -> Vec<(String, String)> {
    let (mut stages, mut values) = (BTreeSet::new(), BTreeMap::new());
    let (instructions, mut found) = (joined(text), Vec::new());
    for instruction in &instructions {
        let (name, rest) = instruction.split_once(char::is_whitespace).unwrap_or_default();
        if name.eq_ignore_ascii_case("arg") && stages.is_empty() {
            let words = rest.split_whitespace();
            values.extend(words.map(|word| word.split_once('=').unwrap_or((word, ""))));
        }
        if !name.eq_ignore_ascii_case("from") {
            continue;
        }
        let value =
            |name: &str| build_args.get(name).map(String::as_str).or(values.get(name).copied());
        let mut words = rest.split_whitespace().peekable();
        let flag = words.next_if(|word| word.starts_with("--"));
        let platforms: Vec<String> = match flag.and_then(|flag| flag.strip_prefix("--platform=")) {
            Some("$TARGETPLATFORM" | "${TARGETPLATFORM}") | None => {
                of_build.iter().map(|platform| (*platform).to_owned()).collect()
            }
            Some(platform) => filled(platform, value).into_iter().collect(),
        };
        let image = words.next().and_then(|image| filled(image, value));
        let image = image.filter(|image| is_image(image, &stages) == Some(true));
        if let Some(image) = image.filter(|_| found.len() < MOST) {
            found.extend(platforms.into_iter().map(|platform| (image.clone(), platform)));
        }
        stages.insert(words.nth(1).unwrap_or_default().to_ascii_lowercase());
    }
    found
}

/// A word with the values of its variables; `None` = one has none, or more is asked of it than its value.
fn filled<'a>(word: &str, value: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
    let mut filled = String::new();
    let mut rest = word.trim_matches(['"', '\'']);
    while let Some((before, behind)) = rest.split_once('$') {
        filled.push_str(before);
        let braced = behind.strip_prefix('{').and_then(|behind| behind.split_once('}'));
        let (name, behind) = braced.unwrap_or_else(|| {
            let end = behind.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            behind.split_at(end.unwrap_or(behind.len()))
        });
        filled.push_str(value(name).filter(|value| !value.is_empty())?);
        rest = behind;
    }
    filled.push_str(rest);
    Some(filled)
}

/// Whether a word of an `ADD` is, or may stand for, something that is not in the build context.
fn may_be_elsewhere(word: &str) -> bool {
    word.contains("://") || word.contains("git@") || word.contains('$')
}

/// The instructions, their lines joined; `None` = the text is read by something else than the engine's own
/// front end, or in another way.
fn instructions(text: &str) -> Option<Vec<String>> {
    let is_directive = |line: &str| {
        let said: String = line.split_whitespace().collect::<String>().to_ascii_lowercase();
        said.starts_with("#syntax=") || said.starts_with("#escape=")
    };
    let text = text.trim_start_matches('\u{feff}');
    (!text.lines().any(is_directive)).then(|| joined(text))
}

/// The instructions, their lines joined, without comments.
fn joined(text: &str) -> Vec<String> {
    let mut instructions: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in text.trim_start_matches('\u{feff}').lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (part, more) = match line.strip_suffix('\\') {
            Some(part) => (part, true),
            None => (line, false),
        };
        match instructions.last_mut().filter(|_| goes_on) {
            Some(last) => last.extend([" ", part]),
            None => instructions.push(part.to_owned()),
        }
        goes_on = more;
    }
    instructions
}

/// What `COPY --from=`, or `from=` of a mount, names.
fn sources<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let flags = words.iter().take_while(|word| word.starts_with("--"));
    let parts = flags.flat_map(|flag| flag.trim_start_matches("--mount=").split(','));
    parts.filter_map(|part| part.trim_start_matches("--").strip_prefix("from=")).collect()
}

/// Whether a name is that of an image, and not of an earlier stage; `None` = that is for the engine to say.
fn is_image(name: &str, stages: &BTreeSet<String>) -> Option<bool> {
    if name.contains(['$', '"', '\'', '\\']) {
        return None;
    }
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
    let is_stage = is_number || stages.contains(&name.to_ascii_lowercase());
    Some(!is_stage && !name.eq_ignore_ascii_case("scratch"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_platform_of_a_base_is_that_of_its_stage_else_that_of_the_build() {
        let text = "# syntax=docker/dockerfile:1\nARG P=linux/arm64 TAG\nFROM --platform=$P a:${TAG} AS One\n\
                    FROM --platform=$BUILDPLATFORM b\nFROM --platform=linux/386 scratch\nFROM one\n\
                    FROM --platform=$TARGETPLATFORM c\nFROM \\\n  d:1 as x\nFROM e:$NONE\n";
        let args = BTreeMap::from([("TAG".to_owned(), "7".to_owned())]);
        let of = |of_build: &[&str]| {
            let found = with_platforms(text, &args, of_build).into_iter();
            found.map(|(image, platform)| format!("{image} {platform}")).collect::<Vec<_>>()
        };
        assert_eq!(of(&[]), ["a:7 linux/arm64"]);
        assert_eq!(
            of(&["linux/amd64", "linux/arm/v7"])[1..],
            ["c linux/amd64", "c linux/arm/v7", "d:1 linux/amd64", "d:1 linux/arm/v7"]
        );
    }

    #[test]
    fn images_are_told_from_stages_and_what_cannot_be_told_is_not() {
        let of = |text| bases(text).map(|images| images.into_iter().collect::<Vec<_>>());
        let text = "# a comment\nARG X=1\nFROM --platform=linux/amd64 golang:1.22 AS Build\n\
                    RUN --mount=type=bind,from=tools:1,target=/t \\\n  # between\n  make\n\
                    FROM scratch\nCOPY --chown=1 --from=build /a /b\nCOPY --from=0 /a /b\n\
                    COPY --from=reg.test:5000/x/y@sha256:00 /a /b\nFROM build\n";
        let named = ["golang:1.22", "reg.test:5000/x/y@sha256:00", "tools:1"];
        assert_eq!(of(text), Some(named.map(str::to_owned).to_vec()));
        for text in [
            "ARG V=1\nFROM a:$V",
            "FROM a:${V}",
            "# syntax=docker/dockerfile:1\nFROM a",
            "#  escape = `\nFROM a",
            "FROM a\nADD https://x.test/y /z",
            "FROM a\nADD --keep-git-dir git@x.test:y /z",
            "ARG URL=https://x.test/y\nFROM a\nADD $URL /z",
            "FROM a AS b\nONBUILD ADD https://x.test/y /z\nFROM b",
            "FROM a\nCOPY --from=$X /a /b",
            "FROM",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
        let many: String = (0..=MOST).map(|n| format!("FROM a:{n}\n")).collect();
        assert_eq!(of(&many), None);
    }
}
