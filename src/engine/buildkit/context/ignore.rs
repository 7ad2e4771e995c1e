//! `.dockerignore`, with the meaning that Docker gives it (moby's `patternmatcher`): the engine does
//! not apply it to an uploaded context, so the client does.

use super::pattern::Pattern;

/// The rules of a `.dockerignore` file, in its order: the last one that matches a path decides.
#[derive(Debug, Default)]
pub(super) struct IgnoreRules(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    /// As it stands in the file.
    line: String,
    /// The pattern as it stands, cleaned, without its `!`.
    pattern: String,
    /// `!`: what matches is sent after all.
    exception: bool,
    matcher: Pattern,
}

/// Which rules matched a directory; what lies below it is matched by them too.
#[derive(Debug, Clone, Default)]
pub(super) struct Matched {
    rules: Vec<bool>,
    /// The verdict for the path itself.
    pub(super) ignored: bool,
}

impl IgnoreRules {
    /// More rules than honest files have: matching costs rules times files.
    const MOST: usize = 2_000;
    /// The same of `*`, in all rules together.
    const MOST_WILD: usize = 10_000;

    /// Reads the text of a `.dockerignore` file. The error says which line is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut rules = Vec::new();
        let mut wild = 0;
        for (number, line) in text.lines().enumerate() {
            if line.starts_with('#') {
                continue;
            }
            let line = line.trim();
            let (exception, pattern) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            if pattern.is_empty() {
                if exception {
                    return Err(format!("line {}: `!` without a pattern", number + 1));
                }
                continue;
            }
            if rules.len() == Self::MOST {
                return Err(format!("it has more than {} patterns", Self::MOST));
            }
            let cleaned = clean(pattern);
            let pattern = match cleaned.strip_prefix('/') {
                Some(rest) if !rest.is_empty() => rest.to_owned(),
                _ => cleaned,
            };
            let matcher = Pattern::parse(&pattern)
                .ok_or_else(|| format!("line {}: bad pattern `{pattern}`", number + 1))?;
            wild += matcher.wild();
            if wild > Self::MOST_WILD {
                return Err(format!("its patterns have more than {} `*`", Self::MOST_WILD));
            }
            rules.push(Rule { line: line.to_owned(), pattern, exception, matcher });
        }
        Ok(Self(rules))
    }

    /// Matches `path`, relative to the context and without a leading slash, whose directory matched
    /// as `parent` says.
    pub(super) fn matched(&self, path: &str, parent: &Matched) -> Matched {
        let mut result = Matched { rules: Vec::with_capacity(self.0.len()), ignored: false };
        for (index, rule) in self.0.iter().enumerate() {
            let by_parent = parent.rules.get(index).copied().unwrap_or(false);
            let matches = by_parent || rule.matcher.matches(path);
            result.rules.push(matches);
            if matches {
                result.ignored = !rule.exception;
            }
        }
        result
    }

    /// The rule that keeps `path` out, which is matched with all directories above it; `None` = none does.
    pub(super) fn ignoring(&self, path: &str) -> Option<&str> {
        let mut matched = Matched::default();
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        for end in ends {
            matched = self.matched(&path[..end], &matched);
        }
        let decides = matched.rules.iter().rposition(|matches| *matches)?;
        matched.ignored.then(|| self.0[decides].line.as_str())
    }

    /// Whether something below the ignored directory `path` may be sent after all.
    pub(super) fn may_keep_below(&self, path: &str) -> bool {
        self.0.iter().filter(|rule| rule.exception).any(|rule| {
            let wild = rule.pattern.contains(['*', '?', '[', '\\']);
            wild || rule.pattern.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'))
        })
    }
}

/// Go's `filepath.Clean`: the shortest path that means the same, by its text alone.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of `path` when its directories are walked from the top.
    fn ignored(rules: &str, path: &str) -> bool {
        let rules = IgnoreRules::parse(rules).expect("the rules are good");
        let mut matched = Matched::default();
        let mut upto = String::new();
        for part in path.split('/') {
            if !upto.is_empty() {
                upto.push('/');
            }
            upto.push_str(part);
            matched = rules.matched(&upto, &matched);
        }
        matched.ignored
    }

    #[test]
    fn patterns_mean_what_docker_makes_of_them() {
        // Rules, path, ignored. Taken from moby's own table and Docker's documentation.
        let table: &[(&str, &str, bool)] = &[
            ("", "a", false),
            ("a", "a", true),
            ("a", "b/a", false),
            ("/a", "a", true),
            ("a/", "a/b/c", true),
            ("./a/../b", "b", true),
            ("#a", "#a", false),
            (" #a", "#a", true),
            ("\\#a", "#a", true),
            ("  a  ", "a", true),
            ("*", "a/b", true),
            ("*", ".hidden", true),
            ("*/temp*", "somedir/temporary.txt", true),
            ("*/temp*", "a/b/temp", false),
            ("*/*/temp*", "a/b/temp", true),
            ("temp?", "tempa", true),
            ("temp?", "temp", false),
            ("temp?", "temp/", false),
            ("**", "a/b/c", true),
            ("**/", "a/b/c", true),
            ("**/*.go", "a.go", true),
            ("**/*.go", "a/b/c.go", true),
            ("**/*.go", "a/b/c.gox", false),
            ("**/foo", "foo", true),
            ("**/foo", "a/foo/bar", true),
            ("**/foo", "afoo", false),
            ("**foo", "a/barfoo", true),
            ("**.py[co]", "a/x.pyc", false),
            ("a/**", "a", false),
            ("a/**", "a/b", true),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("a/**/b", "a/x/yb", false),
            ("abc/def**", "abc/def/x", true),
            ("a.c", "abc", false),
            ("a+b$(c){d}|e", "a+b$(c){d}|e", true),
            ("a^b*", "a^bc", true),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[^a]x", "bx", true),
            ("[^a]x", "ax", false),
            ("[\\]]x", "]x", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("*.md\n!README.md", "README.md", false),
            ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", true),
            ("*.md\nREADME-secret.md\n!README*.md", "README-secret.md", false),
            ("*\n!src", "src/a/b.rs", false),
            ("*\n!src/a", "src/b", true),
            ("*\n! src", "src", false),
            ("node_modules\n!node_modules/keep", "node_modules/keep/x", false),
            ("node_modules\n!node_modules/keep", "node_modules/other", true),
            ("!a\na", "a", true),
            ("a\n!**/keep", "a/b/keep", false),
            ("日本*", "日本語", true),
            ("日?語", "日本語", true),
            ("a\r\nb\r\n", "a", true),
            ("\u{feff}a", "a", true),
            ("../a", "a", false),
            ("/", "a", false),
            (".", "a", false),
            ("x*y", "x\ny", true),
        ];
        for (rules, path, expected) in table {
            assert_eq!(ignored(rules, path), *expected, "{rules:?} on {path:?}");
        }
    }

    #[test]
    fn a_bad_pattern_is_an_error_that_names_its_line() {
        for (rules, line) in
            [("a\n[", "line 2"), ("!", "line 1"), ("a\\", "line 1"), ("[]a]", "line 1")]
        {
            let error = IgnoreRules::parse(rules).expect_err(rules);
            assert!(error.contains(line), "{rules:?}: {error}");
        }
        let many = "a\n".repeat(IgnoreRules::MOST + 1);
        assert!(IgnoreRules::parse(&many).expect_err("too many").contains("patterns"));
    }

    #[test]
    fn the_rule_that_keeps_a_file_out_is_the_last_one_that_matches() {
        let rules =
            IgnoreRules::parse("# all\n*\n!src\n/src/secret/\n").expect("the rules are good");
        for (path, rule) in [
            ("f.txt", Some("*")),
            ("d/f.txt", Some("*")),
            ("src/f.txt", None),
            ("src/secret/f.txt", Some("/src/secret/")),
        ] {
            assert_eq!(rules.ignoring(path), rule, "{path}");
        }
        assert_eq!(IgnoreRules::default().ignoring("f.txt"), None);
    }

    #[test]
    fn an_ignored_directory_is_walked_only_where_an_exception_may_be_below() {
        let rules = IgnoreRules::parse("a\nb\n!b/keep").expect("the rules are good");
        assert!(!rules.may_keep_below("a"));
        assert!(rules.may_keep_below("b"));
        assert!(!rules.may_keep_below("b/keep"));
        let rules = IgnoreRules::parse("a\n!**/keep").expect("the rules are good");
        assert!(rules.may_keep_below("a"));
    }
}
