//! What workers write to each other in the ledger.

use image_builder_actors::ports::OutcomeCopy;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// One record of the ledger: a line of the stream.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub(super) enum Record {
    /// A worker has a request in hand that nobody had before.
    Begun {
        request: String,
        #[serde(with = "time::serde::rfc3339")]
        at: OffsetDateTime,
    },
    /// A worker wants to have read all before.
    Mark {
        /// Names the mark.
        id: String,
    },
    /// A notifier has a copy in hand, to tell it.
    Claim {
        /// Names the claim.
        id: String,
        #[serde(with = "time::serde::rfc3339")]
        at: OffsetDateTime,
        #[serde(flatten)]
        copy: OutcomeCopy,
    },
    /// The receiver has not taken it: a copy of the next generation is sent in its place.
    PassedOn { request: String, copy: String },
    /// The receiver has taken it. The name is that of the lines that are there already.
    #[serde(rename = "told")]
    Notified { request: String, copy: String },
}

impl Record {
    pub(super) fn line(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record has only string keys")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQ: &str = "r";

    fn at(second: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(second).expect("a time")
    }

    #[test]
    fn a_record_reads_as_it_was_written() {
        let copy = OutcomeCopy {
            request: REQ.into(),
            outcome: "one".into(),
            copy: "two".into(),
            generation: 1,
            since: Some(at(5)),
        };
        let records = [
            Record::Claim { id: "c".into(), at: at(7), copy: copy.clone() },
            Record::Claim { id: "c".into(), at: at(7), copy: OutcomeCopy { since: None, ..copy } },
            Record::PassedOn { request: REQ.into(), copy: "two".into() },
            Record::Notified { request: REQ.into(), copy: "two".into() },
            Record::Begun { request: REQ.into(), at: at(5) },
        ];
        for record in &records {
            let written = record.line();
            let read: Record = serde_json::from_slice(&written).expect("it is a record");
            assert_eq!(read.line(), written);
        }
        assert_eq!(
            String::from_utf8(records[0].line()).expect("it is JSON"),
            r#"{"step":"claim","id":"c","at":"1970-01-01T00:00:07Z","request":"r","outcome":"one","copy":"two","generation":1,"since":"1970-01-01T00:00:05Z"}"#
        );
        assert_eq!(
            String::from_utf8(records[3].line()).expect("it is JSON"),
            r#"{"step":"told","request":"r","copy":"two"}"#
        );
    }
}
