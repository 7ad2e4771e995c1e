//! Taking secrets out of text: whatever the secret and the text are, the secret is not left in it.

#![no_main]

use image_builder_actors::model::build_log::{BuildEvent, BuildLog};
use image_builder_actors::model::secret::{Redactor, Secret, Tripwire, with_colours, without_escapes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (String, String)| {
    let (secret, text) = input;
    let redactor = Redactor::new([Secret::new(secret.clone())]);
    let secret = secret.trim();
    let around = format!("{text}{secret}{text}");
    let clean = redactor.redact(&around);
    if secret.len() >= 8 && secret.chars().all(|c| c.is_ascii_alphanumeric()) {
        assert!(!clean.contains(secret), "{clean:?}");
        assert!(!without_escapes(&clean).contains(secret), "{clean:?}");
        assert_eq!(without_escapes(&with_colours(&clean, usize::MAX)), without_escapes(&clean));
        let wire = Tripwire::new([("it".to_owned(), Secret::new(secret))]);
        assert!(wire.is_empty() || wire.find(&around).is_some(), "{around:?}");
    }
    let _ = redactor.unfinished(&around);
    let log = BuildLog::new("b", redactor);
    for line in around.lines() {
        log.tell(BuildEvent::Output(line.to_owned()));
    }
    if secret.len() >= 8 && secret.chars().all(|c| c.is_ascii_alphanumeric()) {
        let tail = log.tail();
        assert!(!tail.iter().any(|line| line.contains(secret)), "{tail:?}");
    }
});
