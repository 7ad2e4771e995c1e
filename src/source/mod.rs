//! From a request to a tree of files.

pub mod git;
