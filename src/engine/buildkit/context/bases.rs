//! Which images a Dockerfile begins with or copies from.

use std::collections::BTreeSet;

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

/// Whether a word of an `ADD` is, or may stand for, something that is not in the build context.
fn may_be_elsewhere(word: &str) -> bool {
    word.contains("://") || word.contains("git@") || word.contains('$')
}

/// The instructions, their lines joined; `None` = the text is read by something else than the engine's own
/// front end, or in another way.
fn instructions(text: &str) -> Option<Vec<String>> {
    let mut instructions: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in text.trim_start_matches('\u{feff}').lines() {
        let line = line.trim();
        if line.starts_with('#') {
            let said: String = line.split_whitespace().collect::<String>().to_ascii_lowercase();
            if said.starts_with("#syntax=") || said.starts_with("#escape=") {
                return None;
            }
            continue;
        }
        if line.is_empty() {
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
    Some(instructions)
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
