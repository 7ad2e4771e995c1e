//! Reading a request: no body makes the reader panic, and no message that comes of one is long or repeats
//! the token.

#![no_main]

use image_builder_actors::model::limits::Limits;
use image_builder_actors::parse::{Rules, identity, parse};
use libfuzzer_sys::fuzz_target;

/// What the corpus has for a token.
const TOKEN: &str = "tokentokentoken7";

fuzz_target!(|body: &[u8]| {
    let rules = Rules::new("https://forge.example", Limits::default());
    let _ = identity(body, Some("message"));
    match parse(body, "id", &rules) {
        Ok(request) => assert!(!format!("{request:?}").contains(TOKEN)),
        Err(rejected) => {
            let message = &rejected.fault.message;
            assert!(message.len() < 16 * 1024, "{} bytes", message.len());
            let in_place =
                String::from_utf8_lossy(body).contains(&format!("\"token\":\"{TOKEN}\""));
            assert!(!in_place || !message.contains(TOKEN), "{message}");
        }
    }
});
