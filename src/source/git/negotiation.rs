//! One fetch: what is asked of the server.
//!
//! It takes one request. All that is there already is named at once, with `done` behind it: what is kept of a
//! repository are single commits, and there is nothing to find out step by step.

use git2::Oid;

use super::advertisement::Advertisement;
use super::answer::Answer;
use super::objects::{Objects, Trouble};
use super::remote::{self, Connection};
use crate::source::session::size;

/// What servers call that they leave out objects that are not wanted.
const FILTER: &str = "filter";

/// What is wanted, and what is there.
pub(super) struct Wish<'a> {
    pub(super) wanted: &'a [Oid],
    /// How many commits of history; `None` = all.
    pub(super) depth: Option<u32>,
    /// The commits that are there, without their history.
    pub(super) known: &'a [Oid],
    /// Whether it is about commits and their tags: of files nothing is sent, where the server can leave them out.
    pub(super) commits_alone: bool,
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
        let of_commits = ["include-tag", FILTER].into_iter().filter(|_| self.commits_alone);
        capabilities.extend(of_commits.filter(|capability| refs.has(capability)));
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
        if self.commits_alone && refs.has(FILTER) {
            put_line(&mut body, "filter tree:0\n");
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
        let mut answer = Answer::new(&connection.address.label, body);
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
        let wish = Wish { wanted: &[id(A)], depth: Some(1), known: &[id(B)], commits_alone: false };
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

    #[test]
    fn of_a_history_its_files_are_left_out_where_the_server_can() {
        for (capabilities, asked, filter) in [
            ("include-tag filter", "include-tag filter", "0012filter tree:0\n0000"),
            ("include-tag", "include-tag", "\n0000"),
        ] {
            let listed = format!("{A} HEAD\0{capabilities}");
            let listed = format!("{:04x}{listed}0000", listed.len() + 4);
            let refs = Advertisement::parse(listed.as_bytes()).expect("a good advertisement");
            let wanted = [Oid::from_str(A).expect("an object name")];
            let wish = Wish { wanted: &wanted, depth: None, known: &[], commits_alone: true };
            let body = String::from_utf8(wish.body(&refs)).expect("text");
            assert!(body.contains(&format!("want {A} {asked}\n")), "{body}");
            assert!(body.contains(&format!("{filter}0009done")), "{body}");
        }
    }
}
