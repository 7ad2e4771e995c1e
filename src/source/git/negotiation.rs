//! One fetch: what is asked of the server, and what of its answer is the pack.
//!
//! It takes one request. All that is there already is named at once, with `done` behind it: what is kept of a
//! repository are single commits, and there is nothing to find out step by step.

use bytes::{Bytes, BytesMut};
use git2::Oid;
use image_builder_actors::model::fault::{Fault, Reason};

use super::advertisement::Advertisement;
use super::objects::{Objects, Trouble};
use super::remote::{self, Connection};
use crate::net::http::excerpt;
use crate::source::fault;
use crate::source::http::Body;
use crate::source::session::size;

/// The words of git's upload-pack about an object that it does not give out.
const NOT_OURS: &str = "not our ref";

/// Commits at which the history that is sent may end: there is one for each that is wanted, or known.
const MOST_ENDS: usize = 10_000;

/// What is wanted, and what is there.
pub(super) struct Wish<'a> {
    pub(super) wanted: &'a [Oid],
    /// How many commits of history; `None` = all.
    pub(super) depth: Option<u32>,
    /// The commits that are there, without their history.
    pub(super) known: &'a [Oid],
}

impl Wish<'_> {
    /// The body of the request.
    fn body(&self, refs: &Advertisement) -> Vec<u8> {
        let agent = concat!("agent=git/2-image-builder-", env!("CARGO_PKG_VERSION"));
        let mut capabilities: Vec<&str> = ["side-band-64k", "ofs-delta"]
            .into_iter()
            .filter(|capability| refs.has(capability))
            .collect();
        if self.depth.is_some() {
            capabilities.push("shallow");
        }
        // Servers leave out what single commits hold only where they may build on it.
        if !self.known.is_empty() && refs.has("thin-pack") {
            capabilities.push("thin-pack");
        }
        if refs.names_agents() {
            capabilities.push(agent);
        }
        let mut body = Vec::new();
        for (index, id) in self.wanted.iter().enumerate() {
            match index {
                0 => put_line(&mut body, &format!("want {id} {}\n", capabilities.join(" "))),
                _ => put_line(&mut body, &format!("want {id}\n")),
            }
        }
        for id in self.known {
            put_line(&mut body, &format!("shallow {id}\n"));
        }
        if let Some(depth) = self.depth {
            put_line(&mut body, &format!("deepen {depth}\n"));
        }
        body.extend(b"0000");
        for id in self.known {
            put_line(&mut body, &format!("have {id}\n"));
        }
        put_line(&mut body, "done\n");
        body
    }
}

fn put_line(body: &mut Vec<u8>, line: &str) {
    body.extend(format!("{:04x}{line}", line.len() + 4).into_bytes());
}

/// Fetches what is wanted into `objects`; returns the commits at which the history that was sent ends.
pub(super) fn fetch(
    connection: &Connection,
    refs: &Advertisement,
    wish: &Wish<'_>,
    objects: &mut Objects,
) -> Result<Vec<Oid>, Trouble> {
    connection.http.session.runtime.block_on(async {
        let body = remote::upload_pack(connection, wish.body(refs)).await?;
        let mut answer = Answer { connection, body, buffer: BytesMut::new() };
        let ends = if wish.depth.is_some() { answer.ends().await? } else { Vec::new() };
        let mut first = answer.acknowledged(refs).await?;
        objects.begin_pack().await?;
        let mut received = 0;
        while let Some(piece) = answer.pack(refs, &mut first).await? {
            received += piece.len() as u64;
            connection.http.session.note_now_and_then(|| format!("received {}", size(received)));
            objects.pack(&piece).await?;
        }
        objects.end_pack().await?;
        Ok(ends)
    })
}

/// A line of an answer.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Data(Bytes),
    Flush,
    /// The answer has ended.
    End,
}

/// The answer to a fetch, line by line.
struct Answer<'a> {
    connection: &'a Connection,
    body: Body,
    buffer: BytesMut,
}

impl Answer<'_> {
    /// The commits at which the history ends, from now on.
    async fn ends(&mut self) -> Result<Vec<Oid>, Trouble> {
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
    async fn acknowledged(&mut self, refs: &Advertisement) -> Result<Option<Line>, Trouble> {
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
    async fn pack(
        &mut self,
        refs: &Advertisement,
        first: &mut Option<Line>,
    ) -> Result<Option<Bytes>, Trouble> {
        if !refs.has("side-band-64k") {
            if self.buffer.is_empty() {
                return Ok(self.body.next().await?);
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
            let Some(more) = self.body.next().await? else { return Ok(false) };
            self.buffer.extend_from_slice(&more);
        }
        Ok(true)
    }

    fn refused(&self, refusal: &[u8]) -> Trouble {
        let refusal = String::from_utf8_lossy(refusal);
        if refusal.contains(NOT_OURS) {
            return Trouble::NotOurs;
        }
        let label = &self.connection.address.label;
        let refusal = excerpt(&refusal);
        let message = format!("The server does not give out the {label}: {refusal}.");
        Trouble::Unreadable(fault(Reason::ForgeFailed, message))
    }

    fn odd(&self, problem: &str) -> Trouble {
        let label = &self.connection.address.label;
        let message = format!("The server of the {label} does not answer as git does: {problem}.");
        Trouble::Unreadable(fault(Reason::ForgeFailed, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "1111111111111111111111111111111111111111";
    const B: &str = "2222222222222222222222222222222222222222";

    #[test]
    fn a_request_names_what_is_wanted_and_what_is_there_in_one_go() {
        let listed = format!("{A} HEAD\0shallow side-band-64k thin-pack multi_ack agent=git/2");
        let listed = format!("{:04x}{listed}0000", listed.len() + 4);
        let refs = Advertisement::parse(listed.as_bytes()).expect("a good advertisement");
        let id = |text| Oid::from_str(text).expect("an object name");
        let wish = Wish { wanted: &[id(A)], depth: Some(1), known: &[id(B)] };
        let body = String::from_utf8(wish.body(&refs)).expect("text");
        let agent = concat!("agent=git/2-image-builder-", env!("CARGO_PKG_VERSION"));
        let lines: Vec<&str> = body.split('\n').collect();
        assert!(
            lines[0].ends_with(&format!("want {A} side-band-64k shallow thin-pack {agent}")),
            "{body}"
        );
        assert_eq!(lines[1], format!("0035shallow {B}"));
        assert_eq!(lines[2], "000ddeepen 1");
        assert_eq!(lines[3], format!("00000032have {B}"));
        assert_eq!(lines[4], "0009done");
    }
}
