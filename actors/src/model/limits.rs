//! Every bound on what a stranger's request and repository may cost, in one place.

use std::time::Duration;

/// Bounds on one build. All are generous for honest use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Longest body of a request, in bytes.
    pub request_bytes: usize,
    /// What a clone may transfer, in bytes, submodules and LFS files included.
    pub transfer_bytes: u64,
    /// What a source tree may hold, in bytes.
    pub source_bytes: u64,
    /// Longest file that git itself stores, in bytes; it is held in memory while it is written.
    /// Git LFS files are streamed, and bounded by `source_bytes` alone.
    pub source_file_bytes: u64,
    /// What a source tree may hold, in files and directories.
    pub source_entries: u64,
    /// Memory of its own that git may use on one repository, in bytes: a file as large as is allowed, and
    /// what goes with it.
    pub git_memory_bytes: u64,
    /// Processor time that git may spend on one repository.
    pub git_cpu_time: Duration,
    /// How many submodules a repository may have, nested ones included.
    pub submodules: usize,
    /// Longest Dockerfile, `.dockerignore` or plan file, in bytes.
    pub plan_file_bytes: u64,
    /// A longer file of the source is not shown to nixpacks, in bytes.
    pub planner_file_bytes: u64,
    /// Processor time that nixpacks may spend on one source.
    pub planner_cpu_time: Duration,
    /// Address space that nixpacks may use on one source, in bytes.
    pub planner_memory_bytes: u64,
    /// What a build may write to its log, in bytes; what goes past it is dropped, with one line that
    /// says so.
    pub output_bytes: u64,
    /// The files of a larger image are not searched for secrets, in bytes.
    pub searched_image_bytes: u64,
    /// How long the files of an image are searched for secrets.
    pub search_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_bytes: 512 * 1024,
            transfer_bytes: 2 << 30,
            source_bytes: 4 << 30,
            source_file_bytes: 512 << 20,
            source_entries: 500_000,
            git_memory_bytes: 640 << 20,
            git_cpu_time: Duration::from_secs(90),
            submodules: 64,
            plan_file_bytes: 1 << 20,
            planner_file_bytes: 64 << 20,
            planner_cpu_time: Duration::from_secs(60),
            planner_memory_bytes: 1 << 30,
            output_bytes: 16 << 20,
            searched_image_bytes: 1 << 30,
            search_time: Duration::from_secs(120),
        }
    }
}
