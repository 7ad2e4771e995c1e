//! What the `.gitattributes` files of a commit say of its files, as far as it matters to how they are written.
//!
//! libgit2 would read them too, but knows no patterns in quotes, takes files of 100 MB, and looks up each directory
//! above a file again for every file.
//!
//! | file | does |
//! |---|---|
//! | `lines` | what a line says |
//! | `pattern` | which paths it says it of |

mod lines;
mod pattern;

use std::collections::HashMap;

use git2::{Oid, Repository};
use image_builder_actors::model::fault::{Fault, Reason};

use self::lines::{Line, Subject, Value, lines};
use self::pattern::Pattern;
use super::conversion::{Conversion, LineEnds};
use super::repository::git_fault;
use crate::source::fault;
use crate::source::session::size;

/// The name of the files.
const NAME: &[u8] = b".gitattributes";
/// How long those of a commit may be in all, in bytes.
const LONGEST_IN_ALL: u64 = 4 << 20;

/// The attributes that matter, by what they are called in `.gitattributes`.
const NAMES: [&[u8]; 6] = [b"text", b"crlf", b"eol", b"ident", b"working-tree-encoding", b"filter"];
/// Where they stand in that list.
const TEXT: usize = 0;
const CRLF: usize = 1;
const EOL: usize = 2;
const IDENT: usize = 3;
const ENCODING: usize = 4;
const FILTER: usize = 5;

/// One of the files.
#[derive(Debug)]
pub(super) struct File {
    /// Where it is, below the root; empty for the root itself.
    directory: Vec<u8>,
    id: Oid,
    /// In bytes.
    size: u64,
}

impl File {
    /// `None` = the file at this path is another one.
    pub(super) fn at(path: &[u8], id: Oid, size: u64) -> Option<Self> {
        let directory = match path.strip_suffix(NAME)? {
            [] => &[],
            [directory @ .., b'/'] => directory,
            _ => return None,
        };
        Some(Self { directory: directory.to_vec(), id, size })
    }
}

/// How a file is to be written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Treatment {
    /// `None` = as it is stored.
    pub(super) conversion: Option<Conversion>,
    /// Whether it is for Git LFS to fill in.
    pub(super) is_lfs: bool,
}

/// What all the files say.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    /// By directory.
    rules: HashMap<Vec<u8>, Vec<Rule>>,
    /// By attribute: what else is set where it is.
    macros: Vec<Option<Vec<State>>>,
}

/// What is said of the paths that match a pattern.
#[derive(Debug)]
struct Rule {
    pattern: Pattern,
    states: Vec<State>,
}

/// An attribute, as an index, and what it is.
type State = (usize, Value);

impl Attributes {
    /// Reads the files of a commit.
    pub(super) fn read(repository: &Repository, files: &[File]) -> Result<Self, Fault> {
        if files.iter().map(|file| file.size).sum::<u64>() > LONGEST_IN_ALL {
            let limit = size(LONGEST_IN_ALL);
            let message = format!("The files `.gitattributes` have more than {limit} in all.");
            return Err(fault(Reason::TooLarge, message));
        }
        let mut texts = Vec::new();
        for File { directory, id, .. } in files {
            let blob = repository.find_blob(*id).map_err(|error| git_fault(&error))?;
            texts.push((directory.clone(), blob.content().to_vec()));
        }
        Ok(Self::parse(&texts))
    }

    /// Reads texts, each with the directory that it is of.
    fn parse(texts: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let lines = |text| lines(text).filter_map(Line::parse);
        // Macros are of the root alone. `binary` is git's own.
        let root = texts.iter().find(|(directory, _)| directory.is_empty());
        let defined = lines(b"[attr]binary -diff -merge -text");
        let defined = defined.chain(lines(root.map_or(&[][..], |(_, text)| text)));
        let defined: Vec<_> = defined
            .filter_map(|line| match line.subject {
                Subject::Macro(name) => Some((name, line.states)),
                Subject::Paths(_) => None,
            })
            .collect();
        let mut names: HashMap<&[u8], usize> =
            NAMES.iter().enumerate().map(|(index, name)| (*name, index)).collect();
        for (name, _) in &defined {
            let index = names.len();
            names.entry(name).or_insert(index);
        }
        let known = |states: &[(&[u8], Value)]| -> Vec<State> {
            let known = states.iter();
            known.filter_map(|(name, value)| Some((*names.get(name)?, value.clone()))).collect()
        };
        let mut macros = vec![None; names.len()];
        for (name, states) in &defined {
            macros[names[&name[..]]] = Some(known(states));
        }
        let mut rules = HashMap::new();
        for (directory, text) in texts {
            let said: Vec<_> = lines(text)
                .filter_map(|line| {
                    let Subject::Paths(pattern) = line.subject else { return None };
                    let states = known(&line.states);
                    let pattern = Pattern::new(&pattern)?;
                    (!states.is_empty()).then_some(Rule { pattern, states })
                })
                .collect();
            if !said.is_empty() {
                rules.insert(directory.clone(), said);
            }
        }
        Self { rules, macros }
    }

    /// How the file of this path is to be written.
    pub(super) fn of(&self, path: &[u8]) -> Treatment {
        if self.rules.is_empty() {
            return Treatment::default();
        }
        let mut found = vec![None; self.macros.len()];
        // What is nearer says more, and of one file what is further below.
        let slashes = (0..path.len()).rev().filter(|&at| path[at] == b'/');
        for (directory, below) in
            slashes.map(|slash| (&path[..slash], slash + 1)).chain([(&[][..], 0)])
        {
            for rule in self.rules.get(directory).into_iter().flatten().rev() {
                if rule.pattern.matches(&path[below..]) {
                    self.take(&rule.states, &mut found);
                }
            }
        }
        treatment(&found)
    }

    /// Takes what is said over where nothing is known yet. The last word counts, and a macro where it is set.
    fn take<'a>(&'a self, states: &'a [State], found: &mut [Option<&'a Value>]) {
        let mut open = vec![states.iter().rev()];
        while let Some(states) = open.last_mut() {
            let Some((attribute, value)) = states.next() else {
                open.pop();
                continue;
            };
            if found[*attribute].is_some() {
                continue;
            }
            found[*attribute] = Some(value);
            if *value == Value::Set
                && let Some(states) = &self.macros[*attribute]
            {
                open.push(states.iter().rev());
            }
        }
    }
}

/// What the attributes of a file come to, where nothing else is configured.
fn treatment(found: &[Option<&Value>]) -> Treatment {
    let is = |attribute: usize, text: &[u8]| matches!(found[attribute], Some(Value::Text(value)) if value == text);
    let line_ends = |attribute: usize| match found[attribute] {
        Some(Value::Set) => Some(LineEnds::Text),
        Some(Value::Unset) => Some(LineEnds::Binary),
        Some(Value::Text(value)) if value == b"input" => Some(LineEnds::Text),
        Some(Value::Text(value)) if value == b"auto" => Some(LineEnds::Auto),
        _ => None,
    };
    let line_ends = line_ends(TEXT).or_else(|| line_ends(CRLF));
    let line_ends = match (is(EOL, b"lf"), is(EOL, b"crlf"), line_ends) {
        (_, _, Some(LineEnds::Binary)) => LineEnds::Binary,
        (_, true, Some(LineEnds::Auto)) => LineEnds::AutoCrlf,
        (_, true, _) => LineEnds::Crlf,
        (true, _, _) => LineEnds::Text,
        (_, _, given) => given.unwrap_or(LineEnds::Binary),
    };
    let encoding = match found[ENCODING] {
        None | Some(Value::Unspecified) => None,
        Some(Value::Set) => Some(&b"true"[..]),
        Some(Value::Unset) => Some(&b"false"[..]),
        Some(Value::Text(name)) => Some(&name[..]),
    };
    let is_lfs = is(FILTER, b"lfs");
    let ident = found[IDENT] == Some(&Value::Set);
    Treatment { conversion: Conversion::new(line_ends, ident, encoding, is_lfs), is_lfs }
}
