//! What is said while files are synchronised: `fsutil`'s packets, with names as the bytes that they are
//! on disk and contents that are not copied.

use bytes::Bytes;

/// Go's bit of a mode that says directory.
pub(super) const DIRECTORY: u32 = 1 << 31;
/// Go's bit of a mode that says symbolic link.
pub(super) const LINK: u32 = 1 << 27;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Packet {
    #[prost(enumeration = "Kind", tag = "1")]
    pub(super) kind: i32,
    /// None in a packet of [`Kind::Stat`] = that was the last one.
    #[prost(message, optional, tag = "2")]
    pub(super) stat: Option<Stat>,
    /// Of the entry that is asked for or sent: its place among all that were told, from 0.
    #[prost(uint32, tag = "3")]
    pub(super) id: u32,
    /// A part of a file, none = that was the last one; or what went wrong.
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) data: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Kind {
    Stat = 0,
    Request = 1,
    Data = 2,
    End = 3,
    Error = 4,
}

/// An entry. Its owner is 0:0.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Stat {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) path: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub(super) mode: u32,
    /// In bytes.
    #[prost(int64, tag = "5")]
    pub(super) size: i64,
    /// In nanoseconds since 1970.
    #[prost(int64, tag = "6")]
    pub(super) modified: i64,
    #[prost(bytes = "vec", tag = "7")]
    pub(super) link: Vec<u8>,
}

impl Packet {
    pub(super) fn stat(stat: Option<Stat>) -> Self {
        Self { kind: Kind::Stat.into(), stat, ..Self::default() }
    }

    pub(super) fn data(id: u32, data: Bytes) -> Self {
        Self { kind: Kind::Data.into(), id, data, ..Self::default() }
    }

    pub(super) fn end() -> Self {
        Self { kind: Kind::End.into(), ..Self::default() }
    }

    pub(super) fn error(message: String) -> Self {
        Self { kind: Kind::Error.into(), data: message.into(), ..Self::default() }
    }
}
