//! `.dockerignore`: any rules are read or refused, and what is decided about a path does not depend on how a
//! walk comes to it.

#![no_main]

use image_builder_fuzz::is_ignored;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (String, String)| {
    let (rules, path) = input;
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() || path.len() > 4096 {
        return;
    }
    let path = parts.join("/");
    match is_ignored(&rules, &path) {
        Ok(ignored) => {
            // What comes last counts.
            let all = is_ignored(&format!("{rules}\n**"), &path);
            assert_eq!(all.unwrap_or(true), true, "{path:?} in spite of {rules:?} and `**`");
            let twice = is_ignored(&format!("{rules}\n{rules}"), &path);
            assert_eq!(twice.unwrap_or(ignored), ignored, "{path:?} by {rules:?}, twice");
        }
        Err(problem) => assert!(problem.len() < rules.len() + 200, "{problem}"),
    }
});
