//! The files of an image: layer by layer, as a registry has them, or as the archive of `docker save` has them,
//! where a layer is an archive within it. Some are compressed.

use std::collections::HashMap;
use std::io::{self, Cursor, Read};

use flate2::read::MultiGzDecoder;
use image_builder_actors::model::build_log::cut;
use image_builder_actors::model::secret::{Tripwire, without_escapes};
use image_builder_actors::ports::Exposed;
use serde::Deserialize;
use tar::{Archive, Entry, PaxExtensions};

use super::shown::Configuration;
use super::shown_step;

/// How much tells what a file of the archive is, in bytes.
const BEGINNING: usize = 512;
/// Longest document that is read, in bytes.
const LONGEST_DOCUMENT: u64 = 1 << 20;
/// So many documents are kept.
const MOST_DOCUMENTS: usize = 256;
/// A compressed layer is searched up to this many bytes.
const LONGEST_LAYER: u64 = 4 << 30;
/// A layer that needs more memory to be unpacked is not, as an exponent of two; builders make none that does.
const LARGEST_WINDOW: u32 = 23;
/// What stands before a file to say more of it, such as a long name, may have so many bytes: as many as engines take.
const LONGEST_EXTENSION: u64 = 1 << 20;
/// Longest path that is shown, in bytes.
const LONGEST_PATH: usize = 200;

/// What was found, and whether all could be read.
pub(crate) struct Searched {
    pub(crate) found: Option<Exposed>,
    pub(crate) read: io::Result<()>,
}

/// Which layers an image has: `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Manifest {
    config: String,
    layers: Vec<String>,
}

/// Looks for secrets in every file of every layer, up to the first one. The archive is read to its end all
/// the same, where it says which step a layer is of.
pub(crate) fn in_archive(archive: impl Read, wanted: &Tripwire) -> Searched {
    let mut documents = HashMap::new();
    let mut found: Option<(String, Exposed)> = None;
    let read = read(archive, wanted, &mut documents, &mut found);
    let found = found.map(|(layer, exposed)| match step_of(&layer, &documents) {
        Some(step) => at_step(exposed, &step),
        None => exposed,
    });
    Searched { found, read }
}

/// Looks for secrets in every file of a layer, compressed or not, that the step of this name made.
pub(crate) fn in_layer_of(layer: impl Read, step: Option<&str>, wanted: &Tripwire) -> Searched {
    let mut layer = layer;
    let mut search = || -> io::Result<Option<Exposed>> {
        let mut beginning = Vec::new();
        layer.by_ref().take(BEGINNING as u64).read_to_end(&mut beginning)?;
        let is = Kind::of(&beginning);
        let mut whole = Cursor::new(beginning).chain(&mut layer);
        match is {
            Kind::CompressedLayer => {
                in_layer(MultiGzDecoder::new(whole).take(LONGEST_LAYER), wanted)
            }
            Kind::ZstdLayer => {
                let mut layer = zstd::Decoder::new(whole)?;
                layer.window_log_max(LARGEST_WINDOW)?;
                in_layer(layer.take(LONGEST_LAYER), wanted)
            }
            Kind::Layer => in_layer(whole, wanted),
            // What stands beside images, such as where they are from.
            Kind::Document => {
                let secret = wanted.find_in(&mut whole)?;
                let place = "what is attached to it".to_owned();
                Ok(secret.map(|secret| Exposed { secret: secret.to_owned(), place }))
            }
            Kind::Other => {
                Err(io::Error::other("it is compressed in a way that is not known here"))
            }
        }
    };
    let (found, read) = match search() {
        Ok(found) => (found, Ok(())),
        Err(error) => (None, Err(error)),
    };
    let found = found.map(|exposed| match step {
        Some(step) => at_step(exposed, &shown_step(&without_escapes(step))),
        None => exposed,
    });
    Searched { found, read }
}

fn at_step(exposed: Exposed, step: &str) -> Exposed {
    Exposed { place: format!("{}, in the layer of the step `{step}`", exposed.place), ..exposed }
}

fn read(
    archive: impl Read,
    wanted: &Tripwire,
    documents: &mut HashMap<String, Vec<u8>>,
    found: &mut Option<(String, Exposed)>,
) -> io::Result<()> {
    for entry in Archive::new(archive).entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut beginning = Vec::new();
        entry.by_ref().take(BEGINNING as u64).read_to_end(&mut beginning)?;
        let is = Kind::of(&beginning);
        let mut whole = Cursor::new(beginning).chain(entry);
        match is {
            Kind::Document if documents.len() < MOST_DOCUMENTS => {
                let mut document = Vec::new();
                whole.take(LONGEST_DOCUMENT).read_to_end(&mut document)?;
                documents.insert(name, document);
            }
            Kind::Layer if found.is_none() => {
                *found = in_layer(&mut whole, wanted)?.map(|exposed| (name, exposed));
            }
            Kind::CompressedLayer if found.is_none() => {
                let layer = MultiGzDecoder::new(whole).take(LONGEST_LAYER);
                *found = in_layer(layer, wanted)?.map(|exposed| (name, exposed));
            }
            _ => {}
        }
    }
    Ok(())
}

enum Kind {
    Document,
    Layer,
    CompressedLayer,
    ZstdLayer,
    Other,
}

impl Kind {
    fn of(beginning: &[u8]) -> Self {
        match beginning {
            [b'{' | b'[', ..] => Self::Document,
            [0x1f, 0x8b, ..] => Self::CompressedLayer,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::ZstdLayer,
            _ if beginning.get(257..262) == Some(b"ustar") => Self::Layer,
            _ => Self::Other,
        }
    }
}

/// What the entries before a file say of it.
#[derive(Default)]
struct Extensions {
    /// Bytes of them all.
    length: u64,
    path: Option<Vec<u8>>,
    others: Vec<Vec<u8>>,
}

impl Extensions {
    /// Takes one in; whether the entry is one. What a stranger may make as long as they like is bounded before it is
    /// read.
    fn take(&mut self, entry: &mut Entry<'_, impl Read>) -> io::Result<bool> {
        let kind = entry.header().entry_type();
        let (is_path, is_link) = (kind.is_gnu_longname(), kind.is_gnu_longlink());
        let is_pax = kind.is_pax_local_extensions() || kind.is_pax_global_extensions();
        if !(is_path || is_link || is_pax) {
            return Ok(false);
        }
        self.length = self.length.saturating_add(entry.size());
        if self.length > LONGEST_EXTENSION {
            return Err(io::Error::other("it says too much of a file"));
        }
        let mut text = Vec::new();
        entry.read_to_end(&mut text)?;
        if is_pax {
            for extension in PaxExtensions::new(&text) {
                let extension = extension?;
                let value = extension.value_bytes().to_owned();
                match extension.key_bytes() {
                    b"path" => self.path = Some(value),
                    _ => self.others.push(value),
                }
            }
        } else {
            text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
            if is_path { self.path = Some(text) } else { self.others.push(text) }
        }
        Ok(true)
    }
}

fn in_layer(layer: impl Read, wanted: &Tripwire) -> io::Result<Option<Exposed>> {
    let mut extensions = Extensions::default();
    for entry in Archive::new(layer).entries()?.raw(true) {
        let mut entry = entry?;
        if extensions.take(&mut entry)? {
            continue;
        }
        let Extensions { path, others: mut beside, .. } = std::mem::take(&mut extensions);
        let path = path.unwrap_or_else(|| entry.path_bytes().into_owned());
        beside.extend(entry.link_name_bytes().map(Into::into));
        let in_name = wanted.find(&path);
        let secret = in_name.or_else(|| beside.iter().find_map(|text| wanted.find(text)));
        if let Some(secret) =
            secret.map_or_else(|| wanted.find_in(&mut entry), |it| Ok(Some(it)))?
        {
            let path = String::from_utf8_lossy(&path);
            let place = match in_name {
                Some(_) => "the name of a file".to_owned(),
                None => format!("the file `/{}`", cut(without_escapes(&path), LONGEST_PATH)),
            };
            return Ok(Some(Exposed { secret: secret.to_owned(), place }));
        }
    }
    Ok(None)
}

/// The step that made a layer, as the image tells it.
fn step_of(layer: &str, documents: &HashMap<String, Vec<u8>>) -> Option<String> {
    let manifests: Vec<Manifest> = serde_json::from_slice(documents.get("manifest.json")?).ok()?;
    let manifest = manifests.into_iter().next()?;
    let number = manifest.layers.iter().position(|name| name == layer)?;
    let steps = Configuration::read(documents.get(&manifest.config)?).ok()?.steps();
    Some(shown_step(&without_escapes(steps.get(number)?)))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use image_builder_actors::model::secret::Secret;
    use tar::{Builder, Header};

    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, path, *content).expect("in memory");
        }
        archive.into_inner().expect("in memory")
    }

    fn compressed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn found(archive: &[u8]) -> Option<String> {
        let wanted = Tripwire::new([("it".to_owned(), Secret::new("hush-hush-hush"))]);
        let searched = in_archive(archive, &wanted);
        searched.read.expect("it can be read");
        searched.found.map(|found| found.place)
    }

    const MANIFEST: &[u8] =
        br#"[{"Config": "c.json", "Layers": ["one/layer.tar", "two/layer.tar"]}]"#;
    const CONFIG: &[u8] = br#"{"history": [{"created_by": "ADD base"},
        {"created_by": "ENV A=1", "empty_layer": true}, {"created_by": "RUN copy it"}]}"#;

    fn image(first: &[u8], second: &[u8]) -> Vec<u8> {
        archive(&[
            ("c.json", CONFIG),
            ("two/VERSION", b"1.0"),
            ("two/layer.tar", second),
            ("one/layer.tar", first),
            ("manifest.json", MANIFEST),
        ])
    }

    #[test]
    fn a_file_is_named_with_the_step_of_its_layer() {
        let base = archive(&[("etc/passwd", b"root")]);
        let leaking =
            archive(&[("app/a", b"x"), ("app/.npmrc", b"//r/:_authToken=hush-hush-hush\n")]);
        let place = "the file `/app/.npmrc`, in the layer of the step `RUN copy it`";
        assert_eq!(found(&image(&base, &leaking)).as_deref(), Some(place));
        let compressed = image(&compressed(&base), &compressed(&leaking));
        assert_eq!(found(&compressed).as_deref(), Some(place));
        assert_eq!(found(&image(&base, &base)), None);
        let odd = image(&leaking, &[0; 1024]);
        let place = "the file `/app/.npmrc`, in the layer of the step `ADD base`";
        assert_eq!(found(&odd).as_deref(), Some(place));
    }

    #[test]
    fn a_layer_by_itself_is_searched_as_one_of_an_archive() {
        let wanted = Tripwire::new([("it".to_owned(), Secret::new("hush-hush-hush"))]);
        let leaking = archive(&[("app/.npmrc", b"hush-hush-hush")]);
        let zstd = zstd::encode_all(&*leaking, 3).expect("in memory");
        for layer in [leaking.clone(), compressed(&leaking), zstd] {
            let searched = in_layer_of(&*layer, Some("RUN copy it"), &wanted);
            searched.read.expect("it can be read");
            let place = "the file `/app/.npmrc`, in the layer of the step `RUN copy it`";
            assert_eq!(searched.found.map(|found| found.place).as_deref(), Some(place));
        }
        let attached = in_layer_of(&br#"{"args": "hush-hush-hush"}"#[..], None, &wanted);
        assert_eq!(attached.found.map(|it| it.place).as_deref(), Some("what is attached to it"));
        for unknown in [&b"BZh91AY&SY"[..], b"(\xb5/\xfd zstd"] {
            let unknown = in_layer_of(unknown, None, &wanted);
            assert!(unknown.read.is_err() && unknown.found.is_none());
        }
        assert!(in_layer_of(&*archive(&[("a", b"b")]), None, &wanted).found.is_none());
    }

    #[test]
    fn names_and_links_are_searched() {
        let named = archive(&[("app/hush-hush-hush", b"")]);
        let place = "the name of a file, in the layer of the step `RUN copy it`";
        assert_eq!(found(&image(&[], &named)).as_deref(), Some(place));
        let mut linked = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        linked.append_link(&mut header, "link", "hush-hush-hush").expect("in memory");
        let linked = linked.into_inner().expect("in memory");
        assert!(found(&image(&linked, &[])).is_some_and(|place| place.contains("/link")));
    }

    #[test]
    fn what_is_said_of_a_file_is_searched_and_bounded() {
        let long = format!("{}/hush-hush-hush", "d".repeat(200));
        let place = "the name of a file, in the layer of the step `RUN copy it`";
        assert_eq!(found(&image(&[], &archive(&[(&long, b"")]))).as_deref(), Some(place));
        let mut extended = Builder::new(Vec::new());
        extended.append_pax_extensions([("a", &b"hush-hush-hush"[..])]).expect("in memory");
        let mut header = Header::new_ustar();
        header.set_size(1);
        extended.append_data(&mut header, "x", &b"y"[..]).expect("in memory");
        let extended = extended.into_inner().expect("in memory");
        assert!(found(&image(&[], &extended)).is_some_and(|place| place.contains("`/x`")));

        let wanted = Tripwire::new([("it".to_owned(), Secret::new("hush-hush-hush"))]);
        for (kind, times, size) in [(b'L', 1, 4 << 30), (b'x', 1, 2 << 20), (b'K', 3, 500_000)] {
            let mut bytes = Vec::new();
            for _ in 0..times {
                let mut header = Header::new_ustar();
                header.set_entry_type(tar::EntryType::new(kind));
                header.set_size(size);
                header.set_cksum();
                bytes.extend(header.as_bytes());
                bytes
                    .resize(bytes.len() + (size.min(500_000) as usize).next_multiple_of(512), b'x');
            }
            let searched = in_layer_of(&*bytes, None, &wanted);
            let why = searched.read.expect_err("it is not read").to_string();
            assert_eq!(why, "it says too much of a file");
        }
    }

    #[test]
    fn an_archive_without_a_manifest_still_shows_the_file() {
        let leaking = archive(&[("x", b"hush-hush-hush")]);
        assert_eq!(found(&archive(&[("blobs/1", &leaking)])).as_deref(), Some("the file `/x`"));
        assert_eq!(found(&archive(&[("blobs/1", b"neither")])), None);
    }

    #[test]
    fn an_archive_that_ends_too_early_is_an_error_and_no_panic() {
        let whole = image(&archive(&[("a", &[7; 3000])]), &archive(&[("b", &[7; 3000])]));
        let wanted = Tripwire::new([("it".to_owned(), Secret::new("hush-hush-hush"))]);
        for length in (0..whole.len()).step_by(511) {
            let _ = in_archive(&whole[..length], &wanted);
        }
        assert!(in_archive(&whole[..5000], &wanted).read.is_err());
        let leaking = image(&[], &archive(&[("a", b"hush-hush-hush")]));
        let cut = in_archive(&leaking[..5000], &wanted);
        assert!(cut.read.is_err() && cut.found.is_some(), "what was found stays found");
    }
}
