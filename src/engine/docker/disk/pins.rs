//! Which images jobs of this worker have in hand.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use image_builder_actors::model::image::ImagePin;

/// How many pins each build key's image has. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Pins(Arc<Mutex<HashMap<String, usize>>>);

/// One pin.
struct Pin {
    pins: Pins,
    key: String,
}

impl Pins {
    /// Pins the image of a key, be it there already or about to be built.
    pub(super) fn pin(&self, key: &str) -> ImagePin {
        *self.lock().entry(key.to_owned()).or_default() += 1;
        ImagePin::new(Pin { pins: self.clone(), key: key.to_owned() })
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.lock().contains_key(key)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock();
        let Some(count) = pins.get_mut(&self.key) else { return };
        *count -= 1;
        if *count == 0 {
            pins.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_pinned_until_the_last_job_is_done_with_it() {
        let pins = Pins::default();
        let (first, second) = (pins.pin("k"), pins.pin("k"));
        let clone = first.clone();
        drop(first);
        drop(second);
        assert!(pins.has("k") && !pins.has("l"));
        drop(clone);
        assert!(!pins.has("k"));
    }
}
