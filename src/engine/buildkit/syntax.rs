//! Which front end a Dockerfile asks for: `# syntax=docker/dockerfile:1` above all else.

/// The front end that the first lines name, if they do.
pub(super) fn front_end(dockerfile: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(dockerfile);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    for line in text.lines() {
        // Directives are comments at the very top; the first line that is none ends them.
        let (name, value) = line.trim_start().strip_prefix('#')?.split_once('=')?;
        let name = name.trim();
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return None;
        }
        if name.eq_ignore_ascii_case("syntax") {
            return value.split_whitespace().next().map(str::to_owned);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_front_end_is_named_at_the_very_top() {
        for text in
            ["# syntax=a/b:1\nFROM x", "#syntax = a/b:1 \r\n", "# escape=`\n# Syntax=a/b:1 x"]
        {
            assert_eq!(front_end(text.as_bytes()).as_deref(), Some("a/b:1"), "{text}");
        }
        for text in
            ["", "FROM x\n# syntax=a/b", "# a comment\n# syntax=a/b", "\n# syntax=a/b", "# syntax="]
        {
            assert_eq!(front_end(text.as_bytes()), None, "{text}");
        }
    }
}
