//! What an engine says of itself: its image store, what it runs on, and the time by its clock.
//!
//! To say so it runs programs, which can take it as long as a small build. So it is asked once a minute.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bollard::models::SystemInfo;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::loss::Life;

/// Long enough that it costs builds nothing, and short enough for a clock that is set.
const FRESH: Duration = Duration::from_secs(60);

/// What an engine said, and when.
#[derive(Clone)]
pub(super) struct Told {
    pub(super) info: Arc<SystemInfo>,
    /// By the engine's clock.
    time: Option<OffsetDateTime>,
    at: Instant,
}

impl Told {
    pub(super) fn new(info: SystemInfo) -> Self {
        let time = info.system_time.as_deref();
        let time = time.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        Self { info: Arc::new(info), time, at: Instant::now() }
    }

    /// The time by the engine's clock, by the worker's own where the engine tells none.
    pub(super) fn now(&self) -> OffsetDateTime {
        let passed = time::Duration::try_from(self.at.elapsed()).unwrap_or_default();
        self.time.map_or_else(OffsetDateTime::now_utc, |time| time.saturating_add(passed))
    }
}

/// What the engine said last.
#[derive(Default)]
pub(super) struct LastTold(Mutex<Option<(Life, Told)>>);

impl LastTold {
    /// What it said less than a minute ago in this life of it. Where that cannot be told from another, nothing.
    pub(super) fn get(&self, life: &Life) -> Option<Told> {
        let last = self.last();
        let (of, told) = last.as_ref()?;
        let holds = life.is_known() && of == life && told.at.elapsed() < FRESH;
        holds.then(|| told.clone())
    }

    pub(super) fn set(&self, life: Life, told: Told) {
        *self.last() = Some((life, told));
    }

    fn last(&self) -> MutexGuard<'_, Option<(Life, Told)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(time: &str, ago: Duration) -> Told {
        let info = SystemInfo { system_time: Some(time.to_owned()), ..SystemInfo::default() };
        let at = Instant::now().checked_sub(ago).expect("clocks go back some minutes");
        Told { at, ..Told::new(info) }
    }

    #[test]
    fn its_clock_goes_on_between_two_answers() {
        let now = told("2001-02-03T04:05:06Z", Duration::from_secs(10)).now();
        assert_eq!((now.year(), now.minute(), now.second()), (2001, 5, 16));
        let last = told("9999-12-31T23:59:59Z", Duration::from_secs(10)).now();
        assert_eq!(last.year(), 9999);
        let unknown = told("noon", Duration::ZERO).now();
        assert!((OffsetDateTime::now_utc() - unknown).abs() < time::Duration::seconds(5));
    }

    #[test]
    fn what_it_said_holds_for_a_minute_of_one_life() {
        let [one, other] = ["one", "other"].map(|network| Life(Some(network.to_owned())));
        let last = LastTold::default();
        assert!(last.get(&one).is_none());
        last.set(one.clone(), told("2001-02-03T04:05:06Z", FRESH / 2));
        assert!(last.get(&one).is_some());
        assert!(last.get(&other).is_none());
        last.set(one.clone(), told("2001-02-03T04:05:06Z", FRESH));
        assert!(last.get(&one).is_none());
        last.set(Life(None), told("2001-02-03T04:05:06Z", Duration::ZERO));
        assert!(last.get(&Life(None)).is_none());
    }
}
