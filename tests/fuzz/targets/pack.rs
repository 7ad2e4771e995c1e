//! A pack, and the files of the commits in it: whatever objects a server sends, reading them ends, writes
//! nothing outside of the tree's own directory, and is nobody's fault but that of who sent it.

#![no_main]

use std::cell::RefCell;

use arbitrary::Arbitrary;
use image_builder_fuzz::Git;
use libfuzzer_sys::fuzz_target;

/// An object of the pack. Numbers stand for objects before it.
#[derive(Debug, Arbitrary)]
enum Object {
    Blob(Vec<u8>),
    Tree(Vec<(Mode, Vec<u8>, u8)>),
    Commit {
        tree: u8,
        parent: Option<u8>,
        seconds: i64,
    },
    Tag {
        of: u8,
        kind: u8,
    },
    /// Of this kind, with what should not be in one.
    Raw {
        kind: u8,
        content: Vec<u8>,
    },
    /// A delta, well-formed or not.
    Delta {
        base: u8,
        instructions: Vec<u8>,
    },
}

#[derive(Debug, Arbitrary)]
enum Mode {
    Directory,
    File,
    Program,
    Link,
    Submodule,
    Odd(u16),
}

#[derive(Debug, Arbitrary)]
struct Input {
    objects: Vec<Object>,
    /// Bytes of the pack that are something else: where, and what.
    damage: Vec<(u16, u8)>,
}

const KINDS: [&str; 4] = ["commit", "tree", "blob", "tag"];

thread_local! {
    static GIT: RefCell<Git> = RefCell::new(Git::new());
}

fuzz_target!(|input: Input| {
    let mut pack = Pack::default();
    for object in input.objects.iter().take(64) {
        pack.add(object);
    }
    let mut bytes = pack.finish();
    for (at, byte) in &input.damage {
        let at = usize::from(*at) % bytes.len();
        bytes[at] = *byte;
    }
    GIT.with_borrow_mut(|git| git.take(&bytes, &pack.names));
});

#[derive(Default)]
struct Pack {
    objects: Vec<u8>,
    names: Vec<git2::Oid>,
    kinds: Vec<git2::ObjectType>,
    contents: Vec<Vec<u8>>,
}

impl Pack {
    fn add(&mut self, object: &Object) {
        let (kind, content) = match object {
            Object::Blob(content) => (2, content.clone()),
            Object::Tree(entries) => (1, self.tree(entries)),
            Object::Commit { tree, parent, seconds } => (0, self.commit(*tree, *parent, *seconds)),
            Object::Tag { of, kind } => {
                let kind = KINDS[usize::from(kind % 4)];
                let text = format!("object {}\ntype {kind}\ntag t\n\n", self.name(*of));
                (3, text.into_bytes())
            }
            Object::Raw { kind, content } => (usize::from(kind % 4), content.clone()),
            Object::Delta { base, instructions } => return self.delta(*base, instructions),
        };
        let kinds = [
            git2::ObjectType::Commit,
            git2::ObjectType::Tree,
            git2::ObjectType::Blob,
            git2::ObjectType::Tag,
        ];
        let name = git2::Oid::hash_object(kinds[kind], &content).expect("it is hashed");
        if self.names.contains(&name) {
            return;
        }
        self.head(kind as u8 + 1, content.len());
        self.compressed(&content);
        self.names.push(name);
        self.kinds.push(kinds[kind]);
        self.contents.push(content);
    }

    fn name(&self, number: u8) -> git2::Oid {
        let number = usize::from(number) % self.names.len().max(1);
        self.names
            .get(number)
            .copied()
            .unwrap_or_else(|| git2::Oid::from_bytes(&[0; 20]).expect("20 bytes"))
    }

    fn tree(&self, entries: &[(Mode, Vec<u8>, u8)]) -> Vec<u8> {
        let mut content = Vec::new();
        for (mode, name, object) in entries {
            let mode = match mode {
                Mode::Directory => "40000".to_owned(),
                Mode::File => "100644".to_owned(),
                Mode::Program => "100755".to_owned(),
                Mode::Link => "120000".to_owned(),
                Mode::Submodule => "160000".to_owned(),
                Mode::Odd(mode) => format!("{mode:o}"),
            };
            content.extend(mode.as_bytes());
            content.push(b' ');
            content.extend(name);
            content.push(0);
            content.extend(self.name(*object).as_bytes());
        }
        content
    }

    fn commit(&self, tree: u8, parent: Option<u8>, seconds: i64) -> Vec<u8> {
        let parent = parent.map(|number| format!("parent {}\n", self.name(number)));
        let who = format!("A <a@b> {seconds} +0000");
        let tree = self.name(tree);
        let parent = parent.unwrap_or_default();
        format!("tree {tree}\n{parent}author {who}\ncommitter {who}\n\nm\n").into_bytes()
    }

    /// A delta against an object by its name. One that makes an object which is there already is left out: libgit2
    /// does not end with it, see the test `a_pack_that_git_would_read_for_ever_is_too_large`.
    fn delta(&mut self, base: u8, instructions: &[u8]) {
        if self.names.is_empty() {
            return;
        }
        let number = usize::from(base) % self.names.len();
        let (source, kind) = (&self.contents[number], self.kinds[number]);
        let target = patched(source, instructions);
        let mut content = Vec::new();
        let length = target.as_ref().map_or(instructions.len(), Vec::len);
        for mut length in [source.len(), length] {
            while length >= 0x80 {
                content.push(length as u8 | 0x80);
                length >>= 7;
            }
            content.push(length as u8);
        }
        content.extend(instructions);
        let target = target.unwrap_or_default();
        let name = git2::Oid::hash_object(kind, &target).expect("it is hashed");
        if self.names.contains(&name) {
            return;
        }
        self.head(7, content.len());
        let base = self.names[number];
        self.objects.extend(base.as_bytes());
        self.compressed(&content);
        self.names.push(name);
        self.kinds.push(kind);
        self.contents.push(target);
    }

    fn head(&mut self, kind: u8, mut length: usize) {
        let mut byte = kind << 4 | (length & 0xf) as u8;
        length >>= 4;
        while length > 0 {
            self.objects.push(byte | 0x80);
            byte = (length & 0x7f) as u8;
            length >>= 7;
        }
        self.objects.push(byte);
    }

    fn compressed(&mut self, content: &[u8]) {
        use std::io::Write;
        let mut zlib =
            flate2::write::ZlibEncoder::new(&mut self.objects, flate2::Compression::fast());
        zlib.write_all(content).expect("into memory");
        zlib.finish().expect("into memory");
    }

    fn finish(&self) -> Vec<u8> {
        use sha1::Digest;
        let mut pack = b"PACK\0\0\0\x02".to_vec();
        pack.extend((self.names.len() as u32).to_be_bytes());
        pack.extend(&self.objects);
        let sum = sha1::Sha1::digest(&pack);
        pack.extend(sum);
        pack
    }
}

/// What a delta's instructions make of an object; `None` = they are wrong.
fn patched(source: &[u8], instructions: &[u8]) -> Option<Vec<u8>> {
    let mut target = Vec::new();
    let mut rest = instructions.iter().copied();
    while let Some(instruction) = rest.next() {
        if instruction & 0x80 == 0 {
            let length = usize::from(instruction);
            let literal: Vec<u8> = rest.by_ref().take(length).collect();
            if length == 0 || literal.len() < length {
                return None;
            }
            target.extend(literal);
            continue;
        }
        let mut number = |bits: u8, bytes: u8| {
            (0..bytes).try_fold(0, |number, byte| {
                let part = if bits & 1 << byte != 0 { rest.next()? } else { 0 };
                Some(number | usize::from(part) << (8 * byte))
            })
        };
        let (offset, length) = (number(instruction, 4)?, number(instruction >> 4, 3)?);
        let length = if length == 0 { 0x10000 } else { length };
        target.extend(source.get(offset..offset.checked_add(length)?)?);
    }
    Some(target)
}
