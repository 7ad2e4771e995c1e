//! Objects of repositories, kept for the next build.
//!
//! Below `DATA_DIR/git` there is a directory a user, and in it a bare repository an origin and credential. So
//! nobody gets an object by this that their own credential did not fetch, and whoever fills the cache fills
//! their own part of it: what goes first is the least used of who has most.
//!
//! An entry holds single commits with all of their trees. Each was fetched at depth 1, with those that were
//! there before named to the server, which leaves out what they have. `shallow` lists them, the last used one
//! first; a commit is written there after its pack is in place, so one that is listed is whole, and what a
//! kill leaves half is never read. Files that were made of it are kept beside it, see
//! [`unpacked`], and go before it.

mod eviction;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use hmac::{Hmac, Mac};
use image_builder_actors::model::digest::{add_part, hex};
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::scheduling::keyed_locks::{KeyedLocks, Turn};
use sha2::Sha256;

use super::files::disk_fault;
use super::objects::unpacked;

/// How many commits of a repository are named to its server.
const MOST_COMMITS: usize = 16;
/// How many packs an entry may have before it is begun anew: each costs time to look through.
const MOST_PACKS: usize = 50;
/// The commits of an entry.
const COMMITS: &str = "shallow";

/// Where and how much is kept.
#[derive(Debug, Clone)]
pub struct CacheSettings {
    pub directory: PathBuf,
    /// What all of it may hold, in bytes.
    pub budget: u64,
    /// Makes the names of entries, so that they tell nothing of a credential.
    pub secret: Secret,
}

/// All that is kept.
pub(in crate::source) struct Cache {
    settings: CacheSettings,
    turns: KeyedLocks<PathBuf>,
    /// How often entries are in use.
    in_use: Mutex<HashMap<PathBuf, usize>>,
    /// Held by who makes room.
    evicting: Mutex<()>,
}

/// By what an entry is known.
pub(super) struct Kept<'a> {
    pub(super) user: &'a str,
    /// Where the server has the repository.
    pub(super) url: &'a str,
    /// What the server was shown; `None` = nothing.
    pub(super) authorization: Option<&'a [u8]>,
}

/// An entry, in use until it is dropped.
pub(super) struct Entry {
    cache: Arc<Cache>,
    path: PathBuf,
    known: Vec<String>,
    /// The right to put something into it.
    turn: Option<Turn>,
}

impl Cache {
    /// Opens the cache, and clears what a kill left of entries that were being removed.
    pub(in crate::source) fn open(settings: CacheSettings) -> io::Result<Arc<Self>> {
        fs::create_dir_all(&settings.directory)?;
        eviction::clear(&settings.directory)?;
        Ok(Arc::new(Self {
            settings,
            turns: KeyedLocks::default(),
            in_use: Mutex::default(),
            evicting: Mutex::default(),
        }))
    }

    /// The entry of this name, once nobody else puts something into it.
    pub(super) async fn entry(self: &Arc<Self>, kept: &Kept<'_>) -> Result<Entry, Fault> {
        let path = self.path(kept);
        let turn = self.turns.lock(path.clone()).await;
        *self.counts().entry(path.clone()).or_default() += 1;
        let mut entry = Entry { cache: self.clone(), path, known: Vec::new(), turn: Some(turn) };
        entry.look().map_err(|error| disk_fault(&error, "the cache of git objects"))?;
        Ok(entry)
    }

    fn path(&self, kept: &Kept<'_>) -> PathBuf {
        let name = |parts: &[&[u8]]| {
            let mut mac = Hmac::<Sha256>::new_from_slice(self.settings.secret.expose().as_bytes())
                .expect("HMAC takes a key of any length");
            for part in parts {
                add_part(&mut mac, part);
            }
            hex(&mac.finalize().into_bytes())
        };
        let shown: &[u8] = if kept.authorization.is_some() { b"as" } else { b"as nobody" };
        let (user, url) = (kept.user.as_bytes(), kept.url.as_bytes());
        let entry = name(&[user, url, shown, kept.authorization.unwrap_or_default()]);
        self.settings.directory.join(name(&[user])).join(entry)
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, usize>> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_in_use(&self, path: &Path) -> bool {
        self.counts().contains_key(path)
    }
}

impl Entry {
    /// The bare repository.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The commits that are there.
    pub(super) fn known(&self) -> &[String] {
        &self.known
    }

    /// Reads what is there, and clears what a kill left of a pack. One that has become too long-winded is
    /// begun anew.
    fn look(&mut self) -> io::Result<()> {
        let packs = self.path.join("objects/pack");
        let mut count = 0;
        match fs::read_dir(&packs) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            files => {
                for file in files? {
                    let path = file?.path();
                    match path.extension().and_then(|extension| extension.to_str()) {
                        Some("pack") => count += 1,
                        Some("idx") => {}
                        _ => fs::remove_file(path)?,
                    }
                }
            }
        }
        // Nobody reads from one that is in use by nobody else.
        if count > MOST_PACKS && self.cache.counts().get(&self.path) == Some(&1) {
            return eviction::remove(&self.path);
        }
        self.known = match fs::read_to_string(self.path.join(COMMITS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            text => text?.lines().map(str::to_owned).collect(),
        };
        Ok(())
    }

    /// Notes that a commit is there, and is used. From now on others may work on the entry as well.
    pub(super) fn keep(&mut self, commit: &str) -> Result<(), Fault> {
        let others = self.known.iter().map(String::as_str).filter(|other| *other != commit);
        let lines: Vec<&str> = std::iter::once(commit).chain(others).take(MOST_COMMITS).collect();
        let (place, fresh) = (self.path.join(COMMITS), self.path.join("shallow.new"));
        // Written beside and renamed, so that a kill leaves no half of it.
        fs::write(&fresh, lines.join("\n") + "\n")
            .and_then(|()| fs::rename(&fresh, &place))
            .map_err(|error| disk_fault(&error, "the cache of git objects"))?;
        self.turn = None;
        Ok(())
    }

    /// Throws it away: what is in it cannot be read.
    pub(super) fn discard(&self) {
        if let Err(error) = eviction::remove(&self.path) {
            tracing::warn!(%error, "what is kept of a repository cannot be removed");
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        {
            let mut counts = self.cache.counts();
            if let Some(count) = counts.get_mut(&self.path) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&self.path);
                }
            }
        }
        let (cache, path) = (self.cache.clone(), std::mem::take(&mut self.path));
        let make_room = move || {
            if let Err(error) = unpacked::tidy(&path) {
                tracing::warn!(%error, "what is kept of a repository cannot be tidied");
            }
            eviction::make_room(&cache);
        };
        // Removing takes a while: nobody waits for it.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(make_room)),
            Err(_) => make_room(),
        }
    }
}

#[cfg(test)]
mod tests;
