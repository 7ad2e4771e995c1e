//! The encodings of `working-tree-encoding`: from UTF-8 to what a file is written in.

use encoding_rs::{EncoderResult, UTF_8};

/// An encoding that is not the one that git stores text in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Encoding {
    /// As the repository calls it.
    name: String,
    form: Option<Form>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Units of two bytes, or of four.
    Utf {
        wide: bool,
        is_big_endian: bool,
        has_mark: bool,
    },
    /// One byte for each character below this one.
    Direct {
        end: u32,
    },
    Other(&'static encoding_rs::Encoding),
}

impl Encoding {
    /// `None` = there is nothing to encode.
    pub(super) fn named(name: &[u8]) -> Option<Self> {
        let name = String::from_utf8_lossy(name).into_owned();
        let upper = name.to_ascii_uppercase();
        let utf = upper.strip_prefix("UTF").map(|rest| rest.strip_prefix('-').unwrap_or(rest));
        if name.is_empty() || utf == Some("8") {
            return None;
        }
        let form = utf.map_or_else(|| by_table(&upper), utf_form);
        Some(Self { name, form })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A text in this encoding. `None` = it is no UTF-8, holds a character that this encoding has not, or the
    /// encoding is not known here.
    pub(super) fn encode(&self, text: &[u8]) -> Option<Vec<u8>> {
        let text = std::str::from_utf8(text).ok()?;
        match self.form? {
            Form::Utf { wide, is_big_endian, has_mark } => {
                let mark = has_mark.then_some('\u{feff}').into_iter();
                Some(units(mark.chain(text.chars()), wide, is_big_endian))
            }
            Form::Direct { end } => {
                let byte = |c: char| u8::try_from(c).ok().filter(|_| u32::from(c) < end);
                text.chars().map(byte).collect()
            }
            Form::Other(encoding) => encode_by_table(encoding, text),
        }
    }
}

/// Where no order of bytes is named, it is that of most machines, and a mark says so.
fn utf_form(name: &str) -> Option<Form> {
    let (name, marked) = match name {
        "16LE-BOM" => ("16LE", true),
        "16BE-BOM" => ("16BE", true),
        name => (name, false),
    };
    let (wide, order) = match name.split_at_checked(2)? {
        ("16", order) => (false, order),
        ("32", order) => (true, order),
        _ => return None,
    };
    let (is_big_endian, has_mark) = match order {
        "" => (false, true),
        "LE" => (false, marked),
        "BE" => (true, marked),
        _ => return None,
    };
    Some(Form::Utf { wide, is_big_endian, has_mark })
}

fn by_table(name: &str) -> Option<Form> {
    match name {
        "ISO-8859-1" | "ISO8859-1" | "ISO_8859-1" | "LATIN1" | "LATIN-1" | "L1" => {
            Some(Form::Direct { end: 0x100 })
        }
        "ASCII" | "US-ASCII" | "ANSI_X3.4-1968" => Some(Form::Direct { end: 0x80 }),
        // Only the Web has other names for them.
        "CP932" | "CP943" => Some(Form::Other(encoding_rs::SHIFT_JIS)),
        "CP936" => Some(Form::Other(encoding_rs::GBK)),
        "CP949" => Some(Form::Other(encoding_rs::EUC_KR)),
        "CP950" => Some(Form::Other(encoding_rs::BIG5)),
        name => {
            let encoding = encoding_rs::Encoding::for_label_no_replacement(name.as_bytes())?;
            // Of UTF-16 by another name it has no encoder.
            let has_encoder = encoding.output_encoding() == encoding && encoding != UTF_8;
            has_encoder.then_some(Form::Other(encoding))
        }
    }
}

fn units(text: impl Iterator<Item = char>, wide: bool, is_big_endian: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut pair = [0; 2];
    for c in text {
        if wide {
            let unit = u32::from(c);
            bytes.extend(if is_big_endian { unit.to_be_bytes() } else { unit.to_le_bytes() });
            continue;
        }
        for unit in c.encode_utf16(&mut pair) {
            bytes.extend(if is_big_endian { unit.to_be_bytes() } else { unit.to_le_bytes() });
        }
    }
    bytes
}

fn encode_by_table(encoding: &'static encoding_rs::Encoding, text: &str) -> Option<Vec<u8>> {
    let mut encoder = encoding.new_encoder();
    let longest = encoder.max_buffer_length_from_utf8_without_replacement(text.len())?;
    let mut bytes = Vec::with_capacity(longest);
    let (result, _) = encoder.encode_from_utf8_to_vec_without_replacement(text, &mut bytes, true);
    (result == EncoderResult::InputEmpty).then_some(bytes)
}
