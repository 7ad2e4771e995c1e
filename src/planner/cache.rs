//! Names of the cache mounts that nixpacks' builds keep between them.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use hmac::{Hmac, Mac};
use image_builder_actors::model::digest::{add_part, hex};
use image_builder_actors::model::request::BuildRequest;
use image_builder_actors::model::secret::Secret;
use sha2::Sha256;

/// The secret that cache names are made with: read from `data_dir`, and made there the first time.
///
/// Losing it costs only the caches that were named with it.
///
/// # Errors
/// When the file can be neither read nor written.
pub fn cache_secret(data_dir: &Path) -> io::Result<Secret> {
    let path = data_dir.join("cache-secret");
    match fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(Secret::new(text.trim())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let text = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    // Written beside and renamed, so that a crash leaves no half of it.
    let fresh = path.with_extension("new");
    fs::remove_file(&fresh).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?
        .write_all(text.as_bytes())?;
    fs::rename(&fresh, &path)?;
    Ok(Secret::new(text))
}

/// The name of the caches of one user's application. All builds on an engine share one name space
/// of caches, and a Dockerfile may mount any that it can name: so this cannot be guessed.
pub(super) fn cache_key(secret: &Secret, wish: &BuildRequest) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes())
        .expect("HMAC takes a key of any length");
    for part in [&wish.user_id, &wish.application_id] {
        add_part(&mut mac, part);
    }
    hex(&mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_secret_is_made_once_and_is_the_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory for the test");
        let first = cache_secret(dir.path()).expect("made");
        assert!(first.expose().len() >= 32);
        assert_eq!(cache_secret(dir.path()).expect("read"), first);
        let mode = fs::metadata(dir.path().join("cache-secret")).expect("there").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }
}
