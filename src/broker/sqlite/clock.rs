//! The time of day as this process counts it: set once, and then as steady as a stopwatch.
//!
//! The file has times of day, since they have to outlive the process. A clock that somebody sets while the
//! process runs moves no delay and ends no lease.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;

/// Milliseconds since 1970.
pub(super) type Millis = i64;

#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    began: Instant,
    began_at: Millis,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { began: Instant::now(), began_at: of_time(OffsetDateTime::now_utc()) }
    }

    pub(super) fn now(&self) -> Millis {
        self.began_at.saturating_add(of_duration(self.began.elapsed()))
    }

    /// When it will be so late; now, if it is already.
    pub(super) fn instant(&self, at: Millis) -> Instant {
        let left = at.saturating_sub(self.now()).max(0).unsigned_abs();
        Instant::now() + Duration::from_millis(left)
    }
}

pub(super) fn of_duration(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

pub(super) fn of_time(time: OffsetDateTime) -> Millis {
    Millis::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(Millis::MAX)
}

/// `None` = no calendar has such a time.
pub(super) fn to_time(at: Millis) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at) * 1_000_000).ok()
}
