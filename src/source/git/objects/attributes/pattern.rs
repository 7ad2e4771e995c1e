//! The patterns of a `.gitattributes` file.

use crate::source::git::objects::glob::Glob;

/// Which paths a rule is for.
#[derive(Debug)]
pub(super) struct Pattern {
    /// Whether only the last name of a path counts.
    of_names: bool,
    /// What a path begins with.
    prefix: Vec<u8>,
    rest: Rest,
}

/// What comes after the prefix of a pattern.
#[derive(Debug)]
enum Rest {
    Nothing,
    /// `*`, and these bytes without a wildcard.
    EndsWith(Vec<u8>),
    Glob(Glob),
}

impl Pattern {
    /// `None` = it matches no file: what ends with a slash is for directories, which have no attributes here.
    pub(super) fn new(pattern: &[u8]) -> Option<Self> {
        if pattern.starts_with(b"!") || pattern.ends_with(b"/") {
            return None;
        }
        let of_names = !pattern.contains(&b'/');
        let pattern = pattern.strip_prefix(b"/").unwrap_or(pattern);
        let special = |byte: &u8| b"*?[\\".contains(byte);
        let plain = pattern.iter().position(special).unwrap_or(pattern.len());
        let (prefix, rest) = pattern.split_at(plain);
        let whole_rest = match rest {
            [] => Rest::Nothing,
            [b'*', end @ ..] if of_names && prefix.is_empty() && !end.iter().any(special) => {
                Rest::EndsWith(end.to_vec())
            }
            rest => Rest::Glob(Glob::new(rest)?),
        };
        Some(Self { of_names, prefix: prefix.to_vec(), rest: whole_rest })
    }

    /// Whether a path is meant, which is below the directory of the rule.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        let subject = match self.of_names {
            true => path.rsplit(|&byte| byte == b'/').next().unwrap_or_default(),
            false => path,
        };
        let Some(rest) = subject.strip_prefix(&self.prefix[..]) else { return false };
        match &self.rest {
            Rest::Nothing => rest.is_empty(),
            Rest::EndsWith(end) => rest.ends_with(end),
            Rest::Glob(glob) => glob.matches(rest),
        }
    }
}
