//! Reading a Dockerfile's stages: nothing makes the reader panic or take long, no message is long, and one
//! without a stage, which is what ends engines, is never let through.

#![no_main]

use std::collections::BTreeMap;

use image_builder_fuzz::dockerfile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (String, BTreeMap<String, String>)| {
    let (text, build_args) = input;
    match dockerfile(&text, &build_args) {
        Ok(()) => {
            let lower = text.to_lowercase();
            let other_format = lower.contains("syntax")
                || text.trim_start_matches('\u{feff}').trim_start().starts_with('{')
                || build_args.contains_key("BUILDKIT_SYNTAX");
            assert!(other_format || lower.contains('f'), "no FROM is in {text:?}");
        }
        Err(problem) => assert!(problem.len() < 2048, "{} bytes", problem.len()),
    }
});
