//! AMQP's fields, read as far as is needed to know whether the library can read them.

/// Tables and lists in each other that are read. The library reads them by recursion, on a stack that a
/// message of the longest size could use up; the broker's own headers have three.
const DEEPEST: usize = 32;

/// Bytes that were not read yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a>(&'a [u8]);

/// What the library would make of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    Readable,
    /// Tables are nested too deeply. What is in the deepest ones was not looked at.
    TooDeep,
}

/// One header.
pub(super) struct Entry<'a> {
    pub(super) name: &'a str,
    /// Name and value, as they were sent.
    pub(super) bytes: &'a [u8],
    pub(super) depth: Depth,
}

/// `None` throughout: the library cannot read it.
impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes were not read yet.
    pub(super) fn left(&self) -> usize {
        self.0.len()
    }

    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    pub(super) fn short_uint(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    pub(super) fn long_uint(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    /// The bytes of a short string, whether they are UTF-8 or not.
    pub(super) fn short_bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.byte()?;
        self.take(length.into())
    }

    pub(super) fn short_string(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.short_bytes()?).ok()
    }

    /// What a length of four bytes says how long it is: a long string, a table, a list.
    pub(super) fn long(&mut self) -> Option<Fields<'a>> {
        let length = self.long_uint()?;
        self.take(usize::try_from(length).ok()?).map(Fields)
    }

    /// The next entry of a table.
    pub(super) fn entry(&mut self) -> Option<Entry<'a>> {
        let whole = self.0;
        let name = self.short_string()?;
        let depth = self.value(DEEPEST)?;
        Some(Entry { name, bytes: &whole[..whole.len() - self.left()], depth })
    }

    /// A value of any type, in which `deeper` further tables and lists may be in each other.
    fn value(&mut self, deeper: usize) -> Option<Depth> {
        // The types as RabbitMQ has them, and with it the library.
        let length = match self.byte()? {
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'L' | b'l' | b'd' | b'T' => 8,
            b'S' | b'x' => return self.long().map(|_| Depth::Readable),
            b'F' => {
                return self.long()?.all(deeper, |table, deeper| {
                    table.short_string()?;
                    table.value(deeper)
                });
            }
            b'A' => return self.long()?.all(deeper, Self::value),
            _ => return None,
        };
        self.take(length).map(|_| Depth::Readable)
    }

    /// All that is in a table or a list.
    fn all(
        mut self,
        deeper: usize,
        next: impl Fn(&mut Self, usize) -> Option<Depth>,
    ) -> Option<Depth> {
        let Some(deeper) = deeper.checked_sub(1) else { return Some(Depth::TooDeep) };
        let mut depth = Depth::Readable;
        while !self.is_empty() {
            if next(&mut self, deeper)? == Depth::TooDeep {
                depth = Depth::TooDeep;
            }
        }
        Some(depth)
    }
}
