use std::time::SystemTime;

use super::*;

fn cache(directory: &Path, budget: u64) -> Arc<Cache> {
    let secret = Secret::new("the tests' secret");
    let settings = CacheSettings { directory: directory.to_owned(), budget, secret };
    Cache::open(settings).expect("opened")
}

fn kept<'a>(user: &'a str, url: &'a str, authorization: Option<&'a [u8]>) -> Kept<'a> {
    Kept { user, url, authorization }
}

/// Puts so many bytes of a pack into an entry.
async fn fill(cache: &Arc<Cache>, kept: &Kept<'_>, bytes: usize) -> PathBuf {
    let mut entry = cache.entry(kept).await.expect("an entry");
    let packs = entry.path().join("objects/pack");
    fs::create_dir_all(&packs).expect("made");
    fs::write(packs.join("pack-1.pack"), vec![0; bytes]).expect("written");
    entry.keep("a").expect("kept");
    let path = entry.path().to_owned();
    // What is dropped here makes room in the background, too early for the tests.
    tokio::task::spawn_blocking(move || drop(entry)).await.expect("dropped");
    path
}

/// Makes room once nobody else does: whoever has used an entry has it made in the background.
fn evict(cache: &Cache) {
    let _alone = cache.evicting.lock();
    eviction::evict(cache);
}

#[tokio::test]
async fn an_entry_is_of_one_user_one_address_and_one_credential() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = cache(directory.path(), 1000);
    let all = [
        kept("a", "b", None),
        kept("ab", "", None),
        kept("a", "b", Some(b"")),
        kept("a", "b", Some(b"token")),
        kept("a", "c", None),
        kept("b", "b", None),
        kept("b", "b", Some(b"token")),
    ];
    let paths: std::collections::HashSet<_> = all.iter().map(|kept| cache.path(kept)).collect();
    assert_eq!(paths.len(), all.len());
    let shown = format!("{paths:?}");
    assert!(!shown.contains("token"));
}

#[tokio::test]
async fn what_is_over_the_budget_goes_from_who_has_most_and_never_while_it_is_used() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = cache(directory.path(), 1000);
    let small = fill(&cache, &kept("small", "x", None), 300).await;
    let old = fill(&cache, &kept("large", "old", None), 300).await;
    let used = fill(&cache, &kept("large", "used", None), 300).await;
    for (path, seconds) in [(&small, 60), (&old, 60), (&used, 30)] {
        let past = SystemTime::now() - std::time::Duration::from_secs(seconds);
        let file = fs::File::options().write(true).open(path.join(COMMITS)).expect("opened");
        file.set_modified(past).expect("set");
    }
    let in_use = cache.entry(&kept("large", "old", None)).await.expect("an entry");
    let new = fill(&cache, &kept("large", "new", None), 300).await;
    evict(&cache);
    assert!(old.exists() && small.exists() && new.exists() && !used.exists());
    drop(in_use);
    fill(&cache, &kept("other", "x", None), 300).await;
    evict(&cache);
    assert!(small.exists() && new.exists() && !old.exists());
}

#[tokio::test]
async fn what_a_kill_left_is_cleared_and_a_long_winded_entry_is_begun_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = cache(directory.path(), 1 << 20);
    let kept = kept("a", "b", None);
    let path = fill(&cache, &kept, 10).await;
    let packs = path.join("objects/pack");
    fs::write(packs.join("pack_8xu2"), "half a pack").expect("written");
    let entry = cache.entry(&kept).await.expect("an entry");
    assert_eq!(entry.known(), ["a"]);
    assert!(!packs.join("pack_8xu2").exists() && packs.join("pack-1.pack").exists());
    drop(entry);
    for number in 0..=MOST_PACKS {
        fs::write(packs.join(format!("pack-{number}.pack")), "").expect("written");
    }
    let entry = cache.entry(&kept).await.expect("an entry");
    assert!(entry.known().is_empty() && !path.exists());
    fs::create_dir_all(path.with_extension("x.going")).expect("made");
    eviction::clear(directory.path()).expect("cleared");
    assert!(!path.with_extension("x.going").exists());
}

#[tokio::test]
async fn files_go_before_the_objects_that_they_are_made_of() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = cache(directory.path(), 1000);
    let path = fill(&cache, &kept("a", "b", None), 600).await;
    let unpacked = path.join("unpacked/boot");
    fs::create_dir_all(&unpacked).expect("made");
    fs::write(unpacked.join("held"), "300\n200\n").expect("written");
    evict(&cache);
    assert!(path.join("objects").exists() && !path.join("unpacked").exists());
}
