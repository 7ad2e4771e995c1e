//! What a git server answers, in pkt-lines: its list of refs, and the answer to a fetch.

#![no_main]

use image_builder_fuzz::{advertisement, answer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<Vec<u8>>, bool, bool)| {
    let (pieces, with_side_bands, with_depth) = input;
    let whole = pieces.concat();
    if let Err(problem) = advertisement(&whole) {
        assert!(problem.len() <= whole.len() * 3 + 200, "{} bytes", problem.len());
    }
    // The same, however the network cuts it.
    let cut = answer(pieces, with_side_bands, with_depth);
    let at_once = answer(vec![whole.clone()], with_side_bands, with_depth);
    assert_eq!(cut, at_once);
    if let Ok(pack) = cut {
        assert!(pack.len() <= whole.len());
    }
});
