//! Room in the cache: what is removed from it, and how.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{COMMITS, Cache};
use crate::source::git::files::{GOING, remove_beside};
use crate::source::git::objects::unpacked;

/// The cache never holds more than this part of what would be free without it.
const PART_OF_DISK: u64 = 4;

/// An entry as it is on disk.
struct Stored {
    path: PathBuf,
    /// What its objects hold, in bytes.
    objects: u64,
    /// What the files hold that were made of them, in bytes.
    unpacked: u64,
    used: SystemTime,
}

/// Makes room, unless somebody does so already.
pub(super) fn make_room(cache: &Cache) {
    if let Ok(_alone) = cache.evicting.try_lock() {
        evict(cache);
    }
}

/// Removes what is over the budget and in use by nobody: the least used of the user who has most.
pub(super) fn evict(cache: &Cache) {
    // What was in use then may have changed since it was looked at, though nobody uses it any more.
    let in_use: HashSet<PathBuf> = cache.counts().keys().cloned().collect();
    let mut users = match stored(&cache.settings.directory) {
        Ok(users) => users,
        Err(error) => {
            tracing::warn!(%error, "the cache of git objects cannot be looked through");
            return;
        }
    };
    let held = |entries: &[Stored]| {
        entries.iter().map(|entry| entry.objects + entry.unpacked).sum::<u64>()
    };
    let mut total: u64 = users.values().map(|entries| held(entries)).sum();
    let budget = budget(cache, total);
    while total > budget {
        users.retain(|_, entries| {
            entries.retain(|Stored { path, .. }| !in_use.contains(path) && !cache.is_in_use(path));
            !entries.is_empty()
        });
        let Some(entries) = users.values_mut().max_by_key(|entries| held(entries)) else { return };
        let least = entries.iter().enumerate().min_by_key(|(_, entry)| entry.used);
        let Some(index) = least.map(|(index, _)| index) else { return };
        // What can be made again without the server goes first.
        let entry = &mut entries[index];
        let (removed, freed) = if entry.unpacked > 0 {
            (unpacked::remove_all(&entry.path), std::mem::take(&mut entry.unpacked))
        } else {
            let entry = entries.swap_remove(index);
            (remove(&entry.path), entry.objects)
        };
        if let Err(error) = removed {
            tracing::warn!(%error, "what is kept of a repository cannot be removed");
        }
        total -= freed;
    }
}

/// What the cache may hold, as long as it holds `total`.
fn budget(cache: &Cache, total: u64) -> u64 {
    let settings = &cache.settings;
    let free = rustix::fs::statvfs(&settings.directory)
        .map_or(u64::MAX / 2, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    settings.budget.min(free.saturating_add(total) / PART_OF_DISK)
}

/// Removes an entry: at once for whoever looks for it, then from disk.
pub(super) fn remove(entry: &Path) -> io::Result<()> {
    remove_beside(entry, entry)
}

/// Removes what a kill left of entries that were being removed, and users without any.
pub(super) fn clear(directory: &Path) -> io::Result<()> {
    for user in fs::read_dir(directory)? {
        let user = user?.path();
        for entry in fs::read_dir(&user)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == GOING) {
                fs::remove_dir_all(path)?;
            }
        }
        // One that is not empty stays.
        let _ = fs::remove_dir(user);
    }
    Ok(())
}

/// What is there, by user.
fn stored(directory: &Path) -> io::Result<HashMap<PathBuf, Vec<Stored>>> {
    let mut users = HashMap::new();
    for user in fs::read_dir(directory)? {
        let user = user?.path();
        let mut entries = Vec::new();
        for entry in fs::read_dir(&user)? {
            let path = entry?.path();
            if path.extension().is_none() {
                entries.push(look(path));
            }
        }
        users.insert(user, entries);
    }
    Ok(users)
}

/// One whose size cannot be read is perhaps just going: it counts for nothing.
fn look(path: PathBuf) -> Stored {
    let files = fs::read_dir(path.join("objects/pack")).into_iter().flatten().flatten();
    let objects = files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum();
    let unpacked = unpacked::held(&path);
    let used = fs::metadata(path.join(COMMITS)).and_then(|file| file.modified());
    Stored { objects, unpacked, used: used.unwrap_or(SystemTime::UNIX_EPOCH), path }
}
