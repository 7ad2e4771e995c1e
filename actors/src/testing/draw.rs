//! Numbers that look random, and are the same in every run.

/// See the module (xorshift).
#[derive(Debug)]
pub struct Draw(u64);

impl Draw {
    /// # Panics
    /// The seed is zero.
    pub fn new(seed: u64) -> Self {
        assert!(seed != 0, "nothing comes of zero");
        Self(seed)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }

    /// One of these.
    pub fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

/// A text of so many bytes that hardly compresses.
pub fn noise(length: usize) -> String {
    let mut draw = Draw::new(1);
    (0..length).map(|_| char::from(b'!' + draw.below(64) as u8)).collect()
}
