//! Names of images: two users or applications never share one, and each is one that a registry accepts.

#![no_main]

use image_builder_actors::model::reference::ImageReference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: ((String, String), (String, String))| {
    let (one, other) = input;
    let name = |(user, application): &(String, String)| {
        ImageReference::for_build("registry.example", user, application, "tag").repository
    };
    let (first, second) = (name(&one), name(&other));
    assert_eq!(one == other, first == second, "{one:?} {other:?}");
    for part in first.split('/') {
        assert!(!part.is_empty() && part.len() <= 128, "{first}");
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        assert!(part.chars().all(good), "{first}");
        assert!(!part.starts_with(['.', '_', '-']) && !part.ends_with(['.', '_', '-']), "{first}");
    }
});
