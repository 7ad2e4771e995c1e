//! Sizes as people write them.

use std::fmt;
use std::str::FromStr;

/// Units from the largest to the smallest, as [`Size`] is written in.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// A number of bytes. Written like `500MB`, `1.5GiB` or `0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A text that is no size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no size; write it like {0}")]
pub struct BadSize(&'static str);

impl FromStr for Size {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let bad = BadSize("500MB, 20GB or 2GiB");
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let unit = unit.trim();
        let number: f64 = number.parse().map_err(|_| BadSize(bad.0))?;
        let factor = match UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
            Some((_, factor)) => *factor,
            None if unit.is_empty() => 1,
            None => return Err(bad),
        };
        let bytes = number * factor as f64;
        if bytes > i64::MAX as f64 {
            return Err(bad);
        }
        Ok(Self(bytes as u64))
    }
}

/// For people: rounded, in a decimal unit.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimal = UNITS.iter().filter(|(name, _)| !name.contains('i'));
        match decimal.clone().find(|(_, factor)| self.0 >= *factor) {
            Some((name, factor)) if *factor > 1 => {
                write!(f, "{:.1} {name}", self.0 as f64 / *factor as f64)
            }
            _ => write!(f, "{} B", self.0),
        }
    }
}

/// How much of a disk has to be free: bytes, a share of it (`5%`), or the smaller of two
/// (`5%,2GB`), so that one setting fits small disks and large ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Watermark(Vec<Mark>);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mark {
    Bytes(Size),
    Percent(f64),
}

impl Watermark {
    /// The bytes that this is on a disk of `total` bytes.
    pub fn of(&self, total: u64) -> u64 {
        let bytes = self.0.iter().map(|mark| match mark {
            Mark::Bytes(Size(bytes)) => *bytes,
            Mark::Percent(percent) => (total as f64 / 100.0 * percent) as u64,
        });
        bytes.min().unwrap_or(0)
    }

    /// Whether this can be below `other` on any disk: the same kinds of marks, each the smaller one.
    /// Of different kinds nothing is known without a disk.
    pub fn may_be_below(&self, other: &Self) -> bool {
        if self.0.len() != other.0.len() {
            return true;
        }
        self.0.iter().zip(&other.0).all(|marks| match marks {
            (Mark::Bytes(low), Mark::Bytes(high)) => low < high,
            (Mark::Percent(low), Mark::Percent(high)) => low < high,
            _ => true,
        })
    }
}

impl FromStr for Watermark {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let bad = |_| BadSize("5%, 2GB, or 5%,2GB for the smaller of the two");
        text.split(',').map(|part| part.parse().map_err(bad)).collect::<Result<_, _>>().map(Self)
    }
}

impl FromStr for Mark {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let Some(percent) = text.trim().strip_suffix('%') else {
            return text.parse().map(Mark::Bytes);
        };
        match percent.trim_end().parse() {
            Ok(percent) if (0.0..100.0).contains(&percent) => Ok(Mark::Percent(percent)),
            _ => Err(BadSize("5%")),
        }
    }
}

impl fmt::Display for Watermark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, mark) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            match mark {
                Mark::Bytes(size) => write!(f, "{comma}{size}")?,
                Mark::Percent(percent) => write!(f, "{comma}{percent}%")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("42", 42),
            ("42 B", 42),
            ("5GB", 5_000_000_000),
            ("1.5 gb", 1_500_000_000),
            ("2GiB", 2 << 30),
            ("512kib", 512 << 10),
            ("1TB", 1_000_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "GB", "-1GB", "5G", "5 GBs", "1.2.3GB", "nan", "inf", "9999999TB", "5%"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_rounded() {
        for (bytes, text) in [(0, "0 B"), (999, "999 B"), (1_550, "1.6 KB"), (2 << 30, "2.1 GB")] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    #[test]
    fn a_watermark_is_the_smallest_of_its_parts_on_a_disk() {
        let of = |text: &str, total| text.parse::<Watermark>().expect("a watermark").of(total);
        assert_eq!(of("5%", 1000), 50);
        assert_eq!(of("2GB", 1000), 2_000_000_000);
        assert_eq!(of("5%, 2GB", 10_000_000_000), 500_000_000);
        assert_eq!(of("5%,2GB", 1_000_000_000_000), 2_000_000_000);
        for text in ["", "5%,", "100%", "-1%", "x%", "5GB%", "NaN%"] {
            assert!(text.parse::<Watermark>().is_err(), "{text}");
        }
    }

    #[test]
    fn watermarks_are_compared_where_no_disk_is_needed_for_it() {
        let below = |low: &str, high: &str| {
            let parse = |text: &str| text.parse::<Watermark>().expect("a watermark");
            parse(low).may_be_below(&parse(high))
        };
        assert!(below("5%", "10%") && below("5%,2GB", "10%,4GB") && below("1GB", "10%"));
        assert!(!below("10%", "10%") && !below("2GB", "1GB") && !below("5%,4GB", "10%,2GB"));
    }
}
