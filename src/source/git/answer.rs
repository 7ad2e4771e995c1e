//! The answer to a fetch, line by line: git's framing, and what of it is the pack.

use bytes::{Bytes, BytesMut};
use git2::Oid;
use image_builder_actors::model::fault::{Fault, Reason};

use super::advertisement::Advertisement;
use super::objects::Trouble;
use crate::net::http::excerpt;
use crate::source::fault;
use crate::source::http::Body;

/// The words of git's upload-pack about an object that it does not give out.
const NOT_OURS: &str = "not our ref";

/// Commits at which the history that is sent may end: there is one for each that is wanted, or known.
const MOST_ENDS: usize = 10_000;

/// What an answer comes in.
pub(super) trait Pieces {
    /// The next piece, of whatever length; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Fault>;
}

impl Pieces for Body {
    async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        Body::next(self).await
    }
}

/// A line of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Data(Bytes),
    Flush,
    /// The answer has ended.
    End,
}

/// The answer to a fetch, line by line.
pub(super) struct Answer<'a, P> {
    /// The repository, for people.
    label: &'a str,
    pieces: P,
    buffer: BytesMut,
}

impl<'a, P: Pieces> Answer<'a, P> {
    pub(super) fn new(label: &'a str, pieces: P) -> Self {
        Self { label, pieces, buffer: BytesMut::new() }
    }

    /// The commits at which the history ends, from now on.
    pub(super) async fn ends(&mut self) -> Result<Vec<Oid>, Trouble> {
        let mut ends = Vec::new();
        loop {
            match self.line().await? {
                Line::Flush => return Ok(ends),
                Line::End => return Err(self.odd("it ends early")),
                Line::Data(line) => {
                    let text = String::from_utf8_lossy(&line);
                    if ends.len() >= MOST_ENDS {
                        return Err(self.odd("more ends of its history than there can be"));
                    }
                    if let Some(id) = text.strip_prefix("shallow ") {
                        let id = Oid::from_str(id.trim_end());
                        ends.push(id.map_err(|_| self.odd("a line without an object name"))?);
                    } else if !text.starts_with("unshallow ") {
                        return Err(self.odd("a line that is none of its kind"));
                    }
                }
            }
        }
    }

    /// Passes over what the server says that it has in common with us. Returns the line that comes after it,
    /// where it had to be read to know.
    pub(super) async fn acknowledged(
        &mut self,
        refs: &Advertisement,
    ) -> Result<Option<Line>, Trouble> {
        loop {
            match self.line().await? {
                Line::Data(line) if line.starts_with(b"NAK") || line.starts_with(b"ACK ") => {
                    // Without side bands the pack follows, which is no line.
                    if !refs.has("side-band-64k") {
                        return Ok(None);
                    }
                }
                Line::End => return Err(self.odd("it ends early")),
                line => return Ok(Some(line)),
            }
        }
    }

    /// The next part of the pack; `None` at its end.
    pub(super) async fn pack(
        &mut self,
        refs: &Advertisement,
        first: &mut Option<Line>,
    ) -> Result<Option<Bytes>, Trouble> {
        if !refs.has("side-band-64k") {
            if self.buffer.is_empty() {
                return Ok(self.pieces.next().await?);
            }
            return Ok(Some(self.buffer.split().freeze()));
        }
        loop {
            let line = match first.take() {
                Some(line) => line,
                None => self.line().await?,
            };
            let Line::Data(mut line) = line else {
                return match line {
                    Line::Flush => Ok(None),
                    _ => Err(self.odd("the pack ends early")),
                };
            };
            match (!line.is_empty()).then(|| line.split_to(1)[0]) {
                Some(1) => return Ok(Some(line)),
                // How far the server is: that it is not silent is all of interest.
                Some(2) | None => {}
                Some(3) => return Err(self.refused(&line)),
                Some(_) => return Err(self.odd("a line of no side band")),
            }
        }
    }

    /// The next line; one that is a refusal is an error.
    async fn line(&mut self) -> Result<Line, Trouble> {
        if !self.has(4).await? {
            return if self.buffer.is_empty() {
                Ok(Line::End)
            } else {
                Err(self.odd("it ends early"))
            };
        }
        let length = self.buffer.split_to(4);
        let length = std::str::from_utf8(&length).ok();
        let length = length.and_then(|digits| usize::from_str_radix(digits, 16).ok());
        let length = match length.ok_or_else(|| self.odd("a line without a length"))? {
            0 => return Ok(Line::Flush),
            length @ 4.. => length - 4,
            _ => return Err(self.odd("a line of a length that there is not")),
        };
        if !self.has(length).await? {
            return Err(self.odd("it ends early"));
        }
        let line = self.buffer.split_to(length).freeze();
        match line.strip_prefix(b"ERR ") {
            Some(refusal) => Err(self.refused(refusal)),
            None => Ok(Line::Data(line)),
        }
    }

    /// Reads on until so many bytes are there; `false` = there are no more.
    async fn has(&mut self, length: usize) -> Result<bool, Fault> {
        while self.buffer.len() < length {
            let Some(more) = self.pieces.next().await? else { return Ok(false) };
            self.buffer.extend_from_slice(&more);
        }
        Ok(true)
    }

    fn refused(&self, refusal: &[u8]) -> Trouble {
        let refusal = String::from_utf8_lossy(refusal);
        if refusal.contains(NOT_OURS) {
            return Trouble::NotOurs;
        }
        let label = self.label;
        let refusal = excerpt(&refusal);
        let message = format!("The server does not give out the {label}: {refusal}.");
        Trouble::Unreadable(fault(Reason::ForgeFailed, message))
    }

    fn odd(&self, problem: &str) -> Trouble {
        let label = self.label;
        let message = format!("The server of the {label} does not answer as git does: {problem}.");
        Trouble::Unreadable(fault(Reason::ForgeFailed, message))
    }
}
