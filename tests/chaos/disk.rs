//! A worker's small disk, which can be filled.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

const MB: u64 = 1_000_000;

/// All that the disk has.
const SIZE: u64 = 48 * MB;
/// What a filled one has left.
const REST: u64 = 6 * MB;

/// `DISK_LOW_WATERMARK`: more than a filled disk has. The machine's own disk has to have it as well.
pub const LOW: &str = "12MB";
/// `DISK_HIGH_WATERMARK`: less than an unfilled one has.
pub const HIGH: &str = "16MB";

/// A disk in memory. It is gone with this value.
pub struct Disk {
    at: PathBuf,
}

/// What fills a disk, until it is dropped.
pub struct Ballast(PathBuf);

impl Disk {
    /// Puts a disk at a directory, which is made.
    pub fn mount(at: &Path) -> Self {
        std::fs::create_dir(at).expect("a directory can be made");
        let size = format!("size={SIZE}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "chaos"]).arg(at).status();
        assert!(
            mounted.is_ok_and(|ended| ended.success()),
            "the chaos run gives each worker a small disk, and mounting one needs root"
        );
        Self { at: at.to_owned() }
    }

    /// Leaves less than the low watermark.
    pub fn fill(&self) -> std::io::Result<Ballast> {
        let ballast = Ballast(self.at.join("ballast"));
        let file = File::create(&ballast.0)?;
        let room = statvfs(&self.at)?;
        let bytes = (room.f_bavail * room.f_frsize).saturating_sub(REST);
        fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        Ok(ballast)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a worker that was just killed may not be gone yet.
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
