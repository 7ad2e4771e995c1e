//! Makes what the broker sends readable for the library.
//!
//! AMQP wants short strings to be UTF-8, and so does lapin: what it cannot decode costs the connection, with
//! all that is in hand on it, and the message comes again. RabbitMQ takes and hands on any bytes. So between
//! the two stands [`Frames`], which lets through what lapin can read, byte for byte, and rewrites the rest:
//!
//! | what the broker sends | what the library gets |
//! |---|---|
//! | properties with a text that is no UTF-8, or of a shape that it does not know | the header [`UNREADABLE`] alone |
//! | a delivery whose exchange or routing key is no UTF-8 | the same, with `?` in place of each bad byte there |
//! | a refusal, or a return, with a text that is no UTF-8 | the text with `?` in place of each bad byte |
//! | headers nested so deeply that reading them costs the stack | the others |
//! | properties longer than a frame may be, which the broker's own headers can make of long ones | the headers that are read here, and the other properties |
//!
//! The message's body is never touched.

mod fields;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use self::fields::{Depth, Entry, Fields};

/// The header of a message whose own properties could not be read. It has no others.
pub(super) const UNREADABLE: &str = "x-image-builder-unreadable";

/// Type, channel and length of the payload.
const HEAD: usize = 7;
/// What a frame has besides its payload: the head, and the mark of its end.
const AROUND: usize = HEAD + 1;
const FRAME_END: u8 = 0xCE;

const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// Class, weight and the body's length: what stands before the properties of a content header.
const BEFORE_PROPERTIES: usize = 12;

/// `connection.tune`, which says how long a frame may be.
const TUNE: (u16, u16) = (10, 30);
/// `basic.deliver`
const DELIVER: (u16, u16) = (60, 60);

/// A field of a method.
#[derive(Clone, Copy)]
enum Field {
    Short,
    Bytes(usize),
}
use Field::{Bytes, Short};

/// The methods that hand on texts which are neither the worker's nor the broker's own, with their fields up to
/// the last such text.
const METHODS: [((u16, u16), &[Field]); 5] = [
    // The text of a refusal quotes names, and is cut where it is too long.
    ((10, 50), &[Bytes(2), Short]),
    ((10, 60), &[Short]),
    ((20, 40), &[Bytes(2), Short]),
    // `basic.return`: code and text, exchange, routing key.
    ((60, 50), &[Bytes(2), Short, Short, Short]),
    // Consumer, delivery tag and whether it is a redelivery, exchange, routing key.
    (DELIVER, &[Short, Bytes(9), Short, Short]),
];

/// The properties of a message, in the order in which they are sent; the first is the highest bit of the flags.
const PROPERTIES: [Property; 14] = {
    use Property::{Fixed, Headers, Text};
    [
        // Content type and encoding.
        Text,
        Text,
        Headers,
        // Delivery mode, priority.
        Fixed(1),
        Fixed(1),
        // Correlation id, reply to, expiration, message id.
        Text,
        Text,
        Text,
        Text,
        // Timestamp.
        Fixed(8),
        // Type, user id, app id, cluster id.
        Text,
        Text,
        Text,
        Text,
    ]
};

#[derive(Clone, Copy)]
enum Property {
    Text,
    Headers,
    Fixed(usize),
}

/// What the broker sends on one connection, as it comes.
pub(super) struct Frames {
    /// The headers that are read here.
    known: &'static [&'static str],
    /// The beginning of a frame that has to be seen as a whole.
    held: Vec<u8>,
    /// What is left of a frame that is let through unseen.
    unseen: usize,
    /// The longest frame, in bytes, once the two sides have agreed on it.
    longest: usize,
    /// Channels whose next content header is that of a delivery that cannot be read.
    unreadable: BTreeSet<[u8; 2]>,
    /// What comes is no AMQP. To say so is for the library.
    gave_up: bool,
}

impl Frames {
    /// `known` are the headers that are kept where there are too many.
    pub(super) fn new(known: &'static [&'static str]) -> Self {
        Self {
            known,
            held: Vec::new(),
            unseen: 0,
            longest: usize::MAX,
            unreadable: BTreeSet::new(),
            gave_up: false,
        }
    }

    /// Takes the next bytes in, and appends what the library may have to `out`.
    pub(super) fn take_in(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            if self.gave_up {
                return out.extend_from_slice(bytes);
            }
            if self.unseen > 0 {
                let (seen, rest) = bytes.split_at(self.unseen.min(bytes.len()));
                out.extend_from_slice(seen);
                self.unseen -= seen.len();
                bytes = rest;
                continue;
            }
            let Some(length) = self.length() else {
                self.hold(&mut bytes, HEAD);
                continue;
            };
            match self.held[0] {
                METHOD | CONTENT_HEADER => {
                    self.hold(&mut bytes, length);
                    if self.held.len() == length {
                        self.let_through(out);
                    }
                }
                BODY | HEARTBEAT => {
                    self.unseen = length - HEAD;
                    out.append(&mut self.held);
                }
                _ => {
                    self.gave_up = true;
                    out.append(&mut self.held);
                }
            }
        }
    }

    /// The length of the frame that has begun, once its head is there.
    fn length(&self) -> Option<usize> {
        let size: [u8; 4] = self.held.get(3..HEAD)?.try_into().ok()?;
        Some(u32::from_be_bytes(size) as usize + AROUND)
    }

    /// Holds back as much of `bytes` as is missing to `length`.
    fn hold(&mut self, bytes: &mut &[u8], length: usize) {
        let (held, rest) = bytes.split_at(bytes.len().min(length - self.held.len()));
        self.held.extend_from_slice(held);
        *bytes = rest;
    }

    /// Lets through the frame that is held as a whole, as it is or as the library can read it.
    fn let_through(&mut self, out: &mut Vec<u8>) {
        let mut frame = std::mem::take(&mut self.held);
        match frame[0] {
            METHOD => self.method(&mut frame),
            _ => self.content_header(&mut frame),
        }
        out.append(&mut frame);
        // Kept for its room.
        self.held = frame;
    }

    fn method(&mut self, frame: &mut [u8]) {
        let payload = HEAD..frame.len() - 1;
        let mut fields = Fields::new(&frame[payload.clone()]);
        let (Some(class), Some(method)) = (fields.short_uint(), fields.short_uint()) else {
            return;
        };
        let name = (class, method);
        if name == TUNE {
            self.longest = longest_frame(fields).unwrap_or(usize::MAX);
        }
        let Some((_, layout)) = METHODS.iter().find(|(known, _)| *known == name) else { return };
        let bad = bad_bytes(fields, layout, payload.end);
        if !bad.is_empty() && name == DELIVER {
            self.unreadable.insert(channel(frame));
        }
        for at in bad {
            frame[at] = b'?';
        }
    }

    fn content_header(&mut self, frame: &mut Vec<u8>) {
        let is_unreadable = self.unreadable.remove(&channel(frame));
        let payload = &frame[HEAD..frame.len() - 1];
        // It holds less than that only where the other side is no broker.
        let Some((before, properties)) = payload.split_at_checked(BEFORE_PROPERTIES) else {
            return;
        };
        let readable = match is_unreadable {
            true => None,
            false => self.readable(properties, frame.len()),
        };
        let properties = match readable {
            Some(Readable::AsItIs) => return,
            Some(Readable::Without(properties)) => properties,
            None => marked(),
        };
        let payload = [before, &properties].concat();
        frame.truncate(3);
        // Never longer than what it was made of, but for the mark.
        frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        frame.extend_from_slice(&payload);
        frame.push(FRAME_END);
    }

    /// How the library can read these properties, of a frame of this length; `None` = not at all.
    fn readable(&self, properties: &[u8], frame: usize) -> Option<Readable> {
        let mut fields = Fields::new(properties);
        let flags = fields.short_uint()?;
        let is_there = |index| flags & (1u16 << (15 - index)) != 0;
        let is_too_long = frame > self.longest;
        let mut headers = None;
        for (_, property) in PROPERTIES.iter().enumerate().filter(|(index, _)| is_there(*index)) {
            match property {
                Property::Text => {
                    fields.short_string()?;
                }
                Property::Fixed(length) => {
                    fields.take(*length)?;
                }
                Property::Headers => {
                    let begin = properties.len() - fields.left();
                    let kept = self.kept(fields.long()?, is_too_long)?;
                    headers = kept.map(|kept| (begin..properties.len() - fields.left(), kept));
                }
            }
        }
        if !fields.is_empty() {
            return None;
        }
        let Some((range, kept)) = headers else {
            return (!is_too_long).then_some(Readable::AsItIs);
        };
        let length = (kept.len() as u32).to_be_bytes();
        let (before, after) = (&properties[..range.start], &properties[range.end..]);
        let shorter = [before, &length, &kept, after].concat();
        let fits = frame - properties.len() + shorter.len() <= self.longest;
        fits.then_some(Readable::Without(shorter))
    }

    /// The headers without those that are left out; an inner `None` = none is left out.
    fn kept(&self, mut table: Fields<'_>, is_too_long: bool) -> Option<Option<Vec<u8>>> {
        let (mut kept, mut left_out) = (Vec::new(), false);
        while !table.is_empty() {
            let Entry { name, bytes, depth } = table.entry()?;
            if depth == Depth::TooDeep || (is_too_long && !self.known.contains(&name)) {
                left_out = true;
            } else {
                kept.extend_from_slice(bytes);
            }
        }
        Some(left_out.then_some(kept))
    }
}

/// Properties that the library can read.
enum Readable {
    AsItIs,
    /// These, which leave headers out.
    Without(Vec<u8>),
}

/// The properties of a message whose own cannot be read.
fn marked() -> Vec<u8> {
    let mut table = vec![UNREADABLE.len() as u8];
    table.extend_from_slice(UNREADABLE.as_bytes());
    table.push(b'V');
    let flags = 1u16 << 13;
    [&flags.to_be_bytes()[..], &(table.len() as u32).to_be_bytes(), &table].concat()
}

/// The channel of a frame, as it is sent.
fn channel(frame: &[u8]) -> [u8; 2] {
    [frame[1], frame[2]]
}

/// What `connection.tune` offers; the library takes it as it is.
fn longest_frame(mut fields: Fields<'_>) -> Option<usize> {
    let _channels = fields.short_uint()?;
    // Nought is no limit.
    usize::try_from(fields.long_uint()?).ok().filter(|longest| *longest > 0)
}

/// Where in a frame the bytes are that are no UTF-8, in texts of a method whose payload ends at `end`.
fn bad_bytes(mut fields: Fields<'_>, layout: &[Field], end: usize) -> Vec<usize> {
    let mut bad = Vec::new();
    for field in layout {
        match field {
            Bytes(length) => {
                fields.take(*length);
            }
            Short => {
                let Some(text) = fields.short_bytes() else { break };
                let mut at = end - fields.left() - text.len();
                for chunk in text.utf8_chunks() {
                    at += chunk.valid().len();
                    bad.extend(at..at + chunk.invalid().len());
                    at += chunk.invalid().len();
                }
            }
        }
    }
    bad
}
