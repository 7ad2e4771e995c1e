//! What the engine holds, and what of it is to go: pure functions of what the engine listed.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::engine::docker::CacheRecord;

/// A layer with all that is below it: what images share, and what goes with the last of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layer {
    chain: [u8; 32],
    bytes: u64,
}

impl Layer {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The layers of an image, of which `digests` are the contents, the lowest first, and `bytes` the
/// sizes of those that have any.
pub fn layers(digests: &[String], bytes: &[u64]) -> Vec<Layer> {
    // Nothing says which of the layers are the empty ones. Base images come first and have no empty
    // ones, so the sizes are given out from below; an empty layer weighs nothing in either place.
    let mut hash = Sha256::new();
    let sizes = bytes.iter().copied().chain(std::iter::repeat(0));
    digests
        .iter()
        .zip(sizes)
        .map(|(digest, bytes)| {
            hash.update(digest.as_bytes());
            Layer { chain: hash.clone().finalize().into(), bytes }
        })
        .collect()
}

/// An image on the engine.
#[derive(Debug, Clone)]
pub struct Image {
    pub id: String,
    /// The names to remove from it; the image goes with the last one.
    pub names: Vec<String>,
    pub whose: Whose,
    /// When somebody last built or pushed it.
    pub last_use: OffsetDateTime,
    pub layers: Vec<Layer>,
}

/// Adds to the layers of images what containerd's store keeps of them besides, where an image has any such bytes:
///
/// - Every layer packed, as it is pushed. Of these the engine tells the sum of an image, `packed`, and each layer gets
///   its part by its size. By this reckoning a layer that images share packs better in some than in others: the least
///   counts, and what is left of an image's sum goes to the layers that it alone has.
/// - What the build made of the layer. It belongs to the build cache, and cannot be pruned before the image is gone.
pub fn add_copies(images: &mut [Image], packed: &[u64]) {
    let of_others: HashSet<_> = images
        .iter()
        .filter(|image| image.whose == Whose::Others)
        .flat_map(|image| image.layers.iter().map(|layer| layer.chain))
        .collect();
    let mut parts: HashMap<[u8; 32], Part> = HashMap::new();
    for (image, packed) in images.iter().zip(packed).filter(|(_, packed)| **packed > 0) {
        let all: u128 = image.layers.iter().map(|layer| u128::from(layer.bytes)).sum();
        for layer in &image.layers {
            let bytes = u128::from(*packed) * u128::from(layer.bytes) / all.max(1);
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            let part = parts.entry(layer.chain).or_insert(Part { bytes, users: 0 });
            part.bytes = bytes.min(part.bytes);
            part.users += 1;
        }
    }
    for (image, packed) in images.iter_mut().zip(packed) {
        let mut left = *packed;
        let mut own = None;
        for layer in &mut image.layers {
            let Some(part) = parts.get(&layer.chain) else { continue };
            let built = if of_others.contains(&layer.chain) { 0 } else { layer.bytes };
            layer.bytes = layer.bytes.saturating_add(part.bytes).saturating_add(built);
            left = left.saturating_sub(part.bytes);
            if part.users == 1 {
                own = Some(layer);
            }
        }
        if let Some(own) = own {
            own.bytes = own.bytes.saturating_add(left);
        }
    }
}

/// A layer's part of what its images are packed.
struct Part {
    bytes: u64,
    /// How many images have it.
    users: usize,
}

/// Who may do away with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Not made by this service, or given a name by somebody else since: never touched.
    Others,
    /// Made by this service, and needed: by a job, a container, or so new that it may be.
    InUse,
    /// Made by this service, kept as long as there is room.
    Ours,
    /// Made by this service, and left behind without a name: nobody can find it any more.
    Left,
}

/// All that the engine holds.
#[derive(Debug, Default)]
pub struct Inventory {
    pub images: Vec<Image>,
    pub cache: Vec<CacheRecord>,
}

/// What the images that this service made and the build cache hold, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeldBytes {
    /// Layers of images made here; those that other images have as well are not counted.
    pub images: u64,
    /// Records of the build cache that are not layers of any image.
    pub cache: u64,
}

impl HeldBytes {
    pub fn total(self) -> u64 {
        self.images + self.cache
    }
}

/// What is to go.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Positions in [`Inventory::images`], the oldest use first.
    pub images: Vec<usize>,
    /// Bytes that the build cache may keep; `None` = it is left alone. Layers of the images above
    /// turn into records of the cache as these go, and count.
    pub keep_cache: Option<u64>,
}

impl Inventory {
    pub fn held(&self) -> HeldBytes {
        HeldBytes {
            images: self.bytes_without(&HashSet::new()),
            cache: self.cache.iter().filter(|record| !record.shared).map(|r| r.bytes).sum(),
        }
    }

    /// Chooses what goes so that at most `target` bytes are held: whatever was used the longest time
    /// ago, be it an image or a record of the cache. What is left without a name goes in any case.
    pub fn choose(&self, target: u64) -> Choice {
        enum What {
            Image(usize),
            Cache(u64),
        }
        let images = self.images.iter().enumerate().filter(|(_, image)| image.whose == Whose::Ours);
        let images = images.map(|(at, image)| (image.last_use, What::Image(at)));
        let cache = self.cache.iter().filter(|record| !record.shared && !record.in_use);
        let cache = cache.map(|record| (record.last_use(), What::Cache(record.bytes)));
        let mut oldest_first: Vec<(OffsetDateTime, What)> = images.chain(cache).collect();
        oldest_first.sort_by_key(|(last_use, _)| *last_use);

        let left = (0..self.images.len()).filter(|at| self.images[*at].whose == Whose::Left);
        let mut going: Vec<usize> = left.collect();
        let mut users = self.users();
        let mut held = self.held().total();
        for at in &going {
            held -= remove(&mut users, &self.images[*at].layers);
        }
        if held <= target {
            // The layers of what was left behind are the cache's from now on.
            return Choice { images: going, keep_cache: None };
        }
        for (_, what) in oldest_first {
            if held <= target {
                break;
            }
            match what {
                What::Cache(bytes) => held = held.saturating_sub(bytes),
                What::Image(at) => {
                    held -= remove(&mut users, &self.images[at].layers);
                    going.push(at);
                }
            }
        }
        let gone = going.iter().copied().collect();
        Choice { keep_cache: Some(target.saturating_sub(self.bytes_without(&gone))), images: going }
    }

    /// The bytes of layers that only images made here have, were those in `gone` away.
    fn bytes_without(&self, gone: &HashSet<usize>) -> u64 {
        let (mut own, mut of_others) = (HashSet::new(), HashSet::new());
        for (at, image) in self.images.iter().enumerate() {
            match image.whose {
                Whose::Others => of_others.extend(&image.layers),
                _ if gone.contains(&at) => {}
                _ => own.extend(&image.layers),
            }
        }
        own.difference(&of_others).map(|layer: &Layer| layer.bytes).sum()
    }

    /// How many images have each layer.
    fn users(&self) -> HashMap<Layer, usize> {
        let mut users = HashMap::new();
        for layer in self.images.iter().flat_map(|image| &image.layers) {
            *users.entry(*layer).or_default() += 1;
        }
        users
    }
}

/// Takes one image's layers out; the bytes of those that nobody else has.
fn remove(users: &mut HashMap<Layer, usize>, layers: &[Layer]) -> u64 {
    let mut freed = 0;
    for layer in layers {
        if let Some(count) = users.get_mut(layer) {
            *count -= 1;
            if *count == 0 {
                freed += layer.bytes;
            }
        }
    }
    freed
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn minute(minute: u64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::from_secs(minute * 60)
    }

    /// An image of these layers, each a digest with its bytes, last used at this minute.
    fn image(whose: Whose, used: u64, contents: &[(&str, u64)]) -> Image {
        let digests: Vec<String> = contents.iter().map(|(digest, _)| (*digest).into()).collect();
        let bytes: Vec<u64> = contents.iter().map(|(_, bytes)| *bytes).collect();
        Image {
            id: String::new(),
            names: Vec::new(),
            whose,
            last_use: minute(used),
            layers: layers(&digests, &bytes),
        }
    }

    const BASE: (&str, u64) = ("base", 100);

    #[test]
    fn what_is_shared_is_held_once_and_what_others_have_is_not_held_by_us() {
        let inventory = Inventory {
            images: vec![
                image(Whose::Others, 0, &[BASE]),
                image(Whose::Ours, 1, &[BASE, ("common", 10), ("a", 1)]),
                image(Whose::InUse, 2, &[BASE, ("common", 10), ("b", 2)]),
            ],
            cache: vec![
                CacheRecord::new(1000, minute(1)),
                CacheRecord { shared: true, ..CacheRecord::new(10, minute(1)) },
            ],
        };
        assert_eq!(inventory.held(), HeldBytes { images: 13, cache: 1000 });
    }

    #[test]
    fn the_same_content_on_another_base_is_another_layer() {
        let inventory = Inventory {
            images: vec![
                image(Whose::Ours, 1, &[("one", 5), ("app", 7)]),
                image(Whose::Ours, 1, &[("two", 5), ("app", 7)]),
            ],
            cache: Vec::new(),
        };
        assert_eq!(inventory.held().images, 24);
    }

    #[test]
    fn below_the_budget_nothing_goes_but_what_was_left_behind() {
        let inventory = Inventory {
            images: vec![
                image(Whose::Ours, 1, &[("a", 50)]),
                image(Whose::Left, 2, &[("b", 50)]),
                image(Whose::Others, 0, &[("c", 500)]),
            ],
            cache: vec![CacheRecord::new(10, minute(0))],
        };
        let choice = inventory.choose(110);
        assert_eq!(choice, Choice { images: vec![1], keep_cache: None });
    }

    #[test]
    fn the_oldest_use_goes_first_and_no_more_than_needed() {
        let inventory = Inventory {
            images: vec![
                image(Whose::Ours, 3, &[("c", 30)]),
                image(Whose::Ours, 1, &[("a", 30)]),
                image(Whose::Ours, 2, &[("b", 30)]),
            ],
            cache: Vec::new(),
        };
        assert_eq!(inventory.choose(60), Choice { images: vec![1], keep_cache: Some(0) });
        assert_eq!(inventory.choose(59), Choice { images: vec![1, 2], keep_cache: Some(29) });
        assert_eq!(inventory.choose(90), Choice::default());
    }

    #[test]
    fn images_and_cache_age_together() {
        let inventory = Inventory {
            images: vec![image(Whose::Ours, 5, &[("a", 30)])],
            cache: vec![CacheRecord::new(40, minute(4)), CacheRecord::new(50, minute(6))],
        };
        // The older record is enough.
        assert_eq!(inventory.choose(80), Choice { images: vec![], keep_cache: Some(50) });
        assert_eq!(inventory.choose(79), Choice { images: vec![0], keep_cache: Some(79) });
        // The choice says how much cache may stay beside the images that stay.
        assert_eq!(inventory.choose(10), Choice { images: vec![0], keep_cache: Some(10) });
    }

    #[test]
    fn what_is_in_use_and_what_is_not_ours_stays_however_short_room_is() {
        let busy = CacheRecord { in_use: true, ..CacheRecord::new(70, minute(0)) };
        let inventory = Inventory {
            images: vec![
                image(Whose::Others, 0, &[("a", 30)]),
                image(Whose::InUse, 0, &[("b", 30)]),
                image(Whose::Ours, 9, &[("c", 30)]),
            ],
            cache: vec![busy],
        };
        assert_eq!(inventory.choose(0), Choice { images: vec![2], keep_cache: Some(0) });
    }

    #[test]
    fn an_image_frees_only_what_no_image_that_stays_has() {
        let shared = ("common", 1000);
        let inventory = Inventory {
            images: vec![
                image(Whose::Ours, 1, &[shared, ("a", 1)]),
                image(Whose::Ours, 2, &[("b", 20)]),
                image(Whose::InUse, 3, &[shared]),
            ],
            cache: Vec::new(),
        };
        // The oldest one frees a single byte, so the next one goes as well.
        assert_eq!(inventory.choose(1010).images, [0, 1]);
    }

    #[test]
    fn what_the_store_keeps_besides_is_held_with_its_layer_and_once_where_it_is_shared() {
        let mut images = vec![
            image(Whose::Others, 0, &[("base", 1000)]),
            image(Whose::Ours, 1, &[("base", 1000), ("a", 50)]),
            image(Whose::Ours, 2, &[("base", 1000), ("b", 500)]),
            // Nothing but a configuration.
            image(Whose::Ours, 3, &[]),
        ];
        // The base packs to 400, and what is on top of it to 50 and to 1.
        add_copies(&mut images, &[400, 450, 401, 2]);
        let inventory = Inventory { images, cache: Vec::new() };
        let of = |at: usize| inventory.images[at].layers.iter().map(Layer::bytes).sum::<u64>();
        // Unpacked, packed, and what was built: the base was not.
        assert_eq!([of(1), of(2)], [1050 + 450 + 50, 1500 + 401 + 500]);
        let base = inventory.images[1].layers[0];
        assert!((1200..=1400).contains(&base.bytes), "{base:?}");
        assert_eq!([inventory.images[0].layers[0], inventory.images[2].layers[0]], [base; 2]);
        assert_eq!(inventory.held().images, of(1) + of(2) - 2 * base.bytes);
    }

    #[test]
    fn an_engine_that_keeps_nothing_besides_is_counted_by_its_layers() {
        let mut images =
            vec![image(Whose::Ours, 1, &[BASE, ("a", 1)]), image(Whose::Ours, 1, &[BASE])];
        add_copies(&mut images, &[0, 0]);
        assert_eq!(Inventory { images, cache: Vec::new() }.held().images, 101);
    }

    #[test]
    fn layers_without_bytes_do_not_shift_the_base() {
        let digests = ["base", "empty", "app"].map(str::to_owned);
        let found = layers(&digests, &[100, 7]);
        assert_eq!(found.iter().map(|layer| layer.bytes).sum::<u64>(), 107);
        assert_eq!(found[0], layers(&["base".to_owned()], &[100])[0]);
    }
}
