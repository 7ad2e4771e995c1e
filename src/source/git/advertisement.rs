//! The refs that a server offers, as git's HTTP protocol (version 0) lists them.

use git2::Oid;

/// What a server calls that it names objects by SHA-256.
const SHA_256: &str = "object-format=sha256";

/// What a server said about a repository.
#[derive(Debug, Default)]
pub(super) struct Advertisement {
    pub(super) refs: Vec<Ref>,
    /// What the server can do, separated by spaces.
    capabilities: String,
}

/// One ref of a repository; `HEAD` is one of them.
#[derive(Debug)]
pub(super) struct Ref {
    pub(super) name: String,
    pub(super) id: Oid,
    /// For an annotated tag: what it points to in the end.
    pub(super) peeled: Option<Oid>,
}

impl Advertisement {
    /// Reads the body of an answer to `info/refs?service=git-upload-pack`.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut advertisement = Self::default();
        let mut lines = Lines { rest: bytes };
        while let Some(line) = lines.next()? {
            let Line::Data(line) = line else { continue };
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            if line.starts_with(b"#") || line.starts_with(b"version ") {
                continue;
            }
            if let Some(problem) = line.strip_prefix(b"ERR ") {
                return Err(String::from_utf8_lossy(problem).into_owned());
            }
            if line.starts_with(b"shallow ") {
                continue;
            }
            advertisement.add(line)?;
        }
        Ok(advertisement)
    }

    fn add(&mut self, line: &[u8]) -> Result<(), String> {
        let mut parts = line.splitn(2, |byte| *byte == 0);
        let pair = parts.next().unwrap_or_default();
        if let Some(capabilities) = parts.next() {
            self.capabilities = String::from_utf8_lossy(capabilities).trim().to_owned();
        }
        if self.has(SHA_256) {
            return Ok(());
        }
        let text = String::from_utf8_lossy(pair);
        let (id, name) = text.split_once(' ').ok_or("a line without a name")?;
        let id = Some(id)
            .filter(|id| id.len() == 40)
            .and_then(|id| Oid::from_str(id).ok())
            .ok_or("a line without an object name")?;
        if name == "capabilities^{}" {
            return Ok(());
        }
        match (name.strip_suffix("^{}"), self.refs.last_mut()) {
            (Some(tag), Some(last)) if last.name == tag => last.peeled = Some(id),
            _ => self.refs.push(Ref { name: name.to_owned(), id, peeled: None }),
        }
        Ok(())
    }

    /// Whether objects are named by SHA-256; the refs of such a repository are not read.
    pub(super) fn is_sha_256(&self) -> bool {
        self.has(SHA_256)
    }

    pub(super) fn find(&self, name: &str) -> Option<&Ref> {
        self.refs.iter().find(|each| each.name == name)
    }

    /// The ref that `HEAD` stands for, where the server says so.
    pub(super) fn head_target(&self) -> Option<&str> {
        self.capabilities.split(' ').find_map(|word| word.strip_prefix("symref=HEAD:"))
    }

    /// Whether the server has a capability.
    pub(super) fn has(&self, capability: &str) -> bool {
        self.capabilities.split(' ').any(|word| word == capability)
    }

    /// Whether the server says what program it is, and may be told the same.
    pub(super) fn names_agents(&self) -> bool {
        self.capabilities.split(' ').any(|word| word.starts_with("agent="))
    }
}

/// Git's framing: four hex digits of length, their own four included, then the data.
struct Lines<'a> {
    rest: &'a [u8],
}

enum Line<'a> {
    Flush,
    Data(&'a [u8]),
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<Option<Line<'a>>, String> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (length, rest) = self.rest.split_at_checked(4).ok_or("it ends early")?;
        let length = std::str::from_utf8(length)
            .ok()
            .and_then(|digits| usize::from_str_radix(digits, 16).ok())
            .ok_or("a line without a length")?;
        if length < 4 {
            self.rest = rest;
            return Ok(Some(Line::Flush));
        }
        let (line, rest) = rest.split_at_checked(length - 4).ok_or("it ends early")?;
        self.rest = rest;
        Ok(Some(Line::Data(line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "1111111111111111111111111111111111111111";
    const B: &str = "2222222222222222222222222222222222222222";

    fn advertised(lines: &[String]) -> Result<Advertisement, String> {
        let mut bytes = b"001e# service=git-upload-pack\n0000".to_vec();
        for line in lines {
            bytes.extend(format!("{:04x}{line}\n", line.len() + 5).into_bytes());
        }
        bytes.extend(b"0000");
        Advertisement::parse(&bytes)
    }

    #[test]
    fn refs_peeled_tags_and_the_head_are_read() {
        let read = advertised(&[
            format!("{A} HEAD\0multi_ack shallow symref=HEAD:refs/heads/trunk agent=git/2"),
            format!("{A} refs/heads/trunk"),
            format!("{B} refs/tags/v1"),
            format!("{A} refs/tags/v1^{{}}"),
        ])
        .expect("a good advertisement");
        assert_eq!(read.head_target(), Some("refs/heads/trunk"));
        assert!(read.has("shallow") && !read.has("shall"));
        let tag = read.find("refs/tags/v1").expect("the tag is listed");
        assert_eq!(tag.peeled.map(|id| id.to_string()).as_deref(), Some(A));
        assert_eq!(read.refs.len(), 3);
    }

    #[test]
    fn an_empty_repository_has_no_refs() {
        let zero = "0".repeat(40);
        let read = advertised(&[format!("{zero} capabilities^{{}}\0shallow")]).expect("is good");
        assert!(read.refs.is_empty());
    }

    #[test]
    fn a_repository_of_other_names_is_known_as_such() {
        let lines =
            [format!("{A}{} HEAD\0shallow {SHA_256}", &B[..24]), format!("{A} refs/heads/x")];
        let read = advertised(&lines).expect("a good advertisement");
        assert!(read.is_sha_256() && read.refs.is_empty());
        assert!(!advertised(&[format!("{A} HEAD\0shallow")]).expect("good").is_sha_256());
    }

    #[test]
    fn nonsense_is_an_error() {
        for bytes in [&b"<!doctype html>"[..], b"00ffshort", b"0009hello", b"zz"] {
            assert!(Advertisement::parse(bytes).is_err());
        }
        assert!(advertised(&["ERR access denied".to_owned()]).is_err());
    }
}
