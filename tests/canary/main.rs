//! After all suites: no secret of theirs is in a log, a queue, an image, a layer, a volume or a store.
//!
//! Another mark is planted in each of these places first, and has to be found. Needs root, and what `stack.sh env`
//! prints. `CANARY_SINCE` = seconds since 1970: what has not changed since then is
//! of an earlier run. What notifications, dead letters and workers' directories hold is looked at by each test when it
//! ends (`tests/support/world.rs`).
//!
//! Left out is what holds credentials by contract: messages of the build queue and its lanes (a request has its token
//! in it), the test forge's repositories, and the configuration of the services.

mod files;
mod queues;

#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use self::files::{Roots, search};
use self::support::canary::{MARK, forms};
use self::support::{engine, registry, unique};

/// What all secrets of the tests look like, the services' own passwords among them.
fn needles() -> Vec<String> {
    let own =
        |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let services =
        [own("GIT_SERVER_TOKEN", "good-token"), own("AUTH_REGISTRY_PASSWORD", "builder-secret")];
    services.iter().map(String::as_str).chain([MARK]).flat_map(forms).collect()
}

/// When the run began.
fn since() -> SystemTime {
    let seconds = std::env::var("CANARY_SINCE").ok().and_then(|text| text.parse().ok());
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unwrap_or(0))
}

/// Where the engine keeps images, layers and volumes.
fn engine_root() -> PathBuf {
    engine::docker(&["info", "--format", "{{.DockerRootDir}}"]).into()
}

/// The search can fail: what is planted is found in each of the places.
#[test]
fn files_show_no_secret() {
    let plant = unique("planted");
    let directory = tempfile::tempdir().expect("a directory");
    let disguises = files::disguises(&plant);
    for (name, content) in &disguises {
        std::fs::write(directory.path().join(name), content).expect("written");
    }
    let found = search(&Roots::of(directory.path()), &forms(&plant), since());
    assert_eq!(found.places.len(), disguises.len(), "{:?}", found.places);

    let _planted = Planted::new(&plant, directory.path());
    let (root, plants) = (engine_root(), forms(&plant));
    let wanted = [needles(), plants.clone()].concat();
    let found = search(&Roots::of_the_run(&root), &wanted, since());
    eprintln!("searched {} files, {} MB", found.files, found.bytes >> 20);
    let (planted, shown): (Vec<_>, Vec<_>) =
        found.places.iter().partition(|(_, text)| plants.contains(text));
    let registry = files::state().join("registry");
    let layers = ["overlay2", "vfs", "aufs"].map(|driver| root.join(driver));
    for (what, places) in [
        ("a configuration", vec![root.join("image")]),
        ("a layer", layers.to_vec()),
        ("a volume", vec![root.join("volumes")]),
        ("the registry", vec![registry]),
    ] {
        let is_found = |place: &PathBuf| planted.iter().any(|(path, _)| path.starts_with(place));
        assert!(places.iter().any(is_found), "what is planted in {what} is not in {planted:?}");
    }
    assert!(shown.is_empty(), "secrets are in {shown:#?}");
}

/// The same of messages.
#[test]
fn queues_show_no_secret() {
    let plant = unique("planted");
    let planted = queues::Planted::new(&plant);
    let plants = forms(&plant);
    let found = queues::search(&[needles(), plants.clone()].concat());
    eprintln!("searched {} messages", found.messages);
    let (is_planted, shown): (Vec<_>, Vec<_>) =
        found.places.iter().partition(|(_, text)| plants.contains(text));
    assert_eq!(is_planted.len(), 1, "{:?}", found.places);
    assert_eq!(is_planted[0].0, planted.name);
    assert!(shown.is_empty(), "secrets are in {shown:#?}");
}

/// An image and a volume with a text in them, which are gone with this value.
struct Planted {
    image: String,
    volume: String,
}

impl Planted {
    fn new(text: &str, directory: &Path) -> Self {
        let layer = directory.join("layer.tar");
        let mut tar = tar::Builder::new(std::fs::File::create(&layer).expect("made"));
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, "file", text.as_bytes()).expect("written");
        tar.finish().expect("written");
        let image = format!("{}/canary/{}", registry::open(), unique("image"));
        let layer = layer.display().to_string();
        engine::docker(&["import", "--change", &format!("LABEL it={text}"), &layer, &image]);
        engine::docker(&["push", &image]);
        let volume = engine::docker(&["volume", "create"]);
        let place = engine::docker(&["volume", "inspect", "--format", "{{.Mountpoint}}", &volume]);
        std::fs::write(Path::new(&place).join("file"), text).expect("this test needs root");
        Self { image, volume }
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        engine::docker(&["image", "rm", &self.image]);
        engine::docker(&["volume", "rm", &self.volume]);
    }
}
