//! How much room a file system has.

use std::io;
use std::path::PathBuf;

use super::size::{Size, Watermark};

/// A file system with less than this part of it free is full.
const SHARE: u64 = 50;

/// A file system that builds need room on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What it is called in messages: "the engine's disk".
    pub name: &'static str,
    /// Any path on it.
    pub path: PathBuf,
}

/// The room on a place at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub place: &'static str,
    /// Bytes that may still be written, by anybody: what is reserved for root is not counted.
    pub free: u64,
    /// Bytes of the whole file system.
    pub total: u64,
}

impl Place {
    /// Whether there is no room worth the name: less is free, of bytes or of files, than any step may
    /// need.
    ///
    /// # Errors
    /// As [`Self::room`].
    pub fn is_full(&self) -> io::Result<bool> {
        let found = rustix::fs::statvfs(&self.path)?;
        // File systems that make files as they need them count none.
        let no_files = found.f_files > 0 && found.f_favail < found.f_files / SHARE;
        Ok(no_files || found.f_bavail < found.f_blocks / SHARE)
    }

    /// Asks the kernel. Blocks as long as the file system does.
    ///
    /// # Errors
    /// The path does not exist, or its file system does not answer.
    pub fn room(&self) -> io::Result<Room> {
        let found = rustix::fs::statvfs(&self.path)?;
        Ok(Room {
            place: self.name,
            free: found.f_bavail.saturating_mul(found.f_frsize),
            total: found.f_blocks.saturating_mul(found.f_frsize),
        })
    }
}

impl Room {
    /// The bytes that are missing to what `mark` asks for.
    pub fn lacks(&self, mark: &Watermark) -> u64 {
        mark.of(self.total).saturating_sub(self.free)
    }

    /// A sentence for an operator: where, how much there is, and which setting asks for more.
    pub fn complaint(&self, setting: &str, mark: &Watermark) -> String {
        format!(
            "{} has {} of {} free, less than {setting} ({})",
            self.place,
            Size(self.free),
            Size(self.total),
            Size(mark.of(self.total)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_room_and_a_missing_one_has_none() {
        let here = Place { name: "here", path: ".".into() };
        let room = here.room().expect("the kernel answers");
        assert!(room.total > 0 && room.free <= room.total);
        assert_eq!(here.is_full().expect("the kernel answers"), room.free < room.total / SHARE);
        assert!(Place { name: "x", path: "/nonexistent/x".into() }.room().is_err());
    }

    #[test]
    fn room_is_measured_against_a_watermark() {
        let room = Room { place: "the disk", free: 30, total: 1000 };
        let five = "5%".parse().expect("a watermark");
        assert_eq!(room.lacks(&five), 20);
        assert_eq!(room.lacks(&"3%".parse().expect("a watermark")), 0);
        let complaint = room.complaint("DISK_LOW_WATERMARK", &five);
        assert_eq!(
            complaint,
            "the disk has 30 B of 1.0 KB free, less than DISK_LOW_WATERMARK (50 B)"
        );
    }
}
