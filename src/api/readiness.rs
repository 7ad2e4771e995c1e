//! Whether the worker can work: what it needs, each with its state and since when.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;

/// How often a need that is met is looked at, and longest wait for what is found.
const INTERVAL: Duration = Duration::from_secs(5);
/// Pause between looks at a need that is not met.
const SOON: Duration = Duration::from_millis(500);

/// How long a worker that starts may lack something before the log says so.
const START: Duration = Duration::from_secs(8);

/// What the worker needs, and how it stands. Clones share it.
#[derive(Debug, Clone)]
pub struct Readiness {
    needs: Arc<Mutex<Vec<Need>>>,
}

/// Something that the worker needs.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Need {
    pub(super) name: &'static str,
    /// Whether the worker cannot work without it.
    pub(super) required: bool,
    pub(super) ready: bool,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) since: OffsetDateTime,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<String>,
    /// What the log last said of it.
    #[serde(skip)]
    said: Option<bool>,
}

impl Need {
    fn new(name: &'static str, required: bool) -> Self {
        Self {
            name,
            required,
            ready: false,
            since: OffsetDateTime::now_utc(),
            detail: Some("not looked at yet".to_owned()),
            said: None,
        }
    }
}

impl Readiness {
    /// Of these needs, none of which is known to be met: a need that nobody watches yet keeps the
    /// worker from being ready.
    pub fn of(needs: &[&'static str]) -> Self {
        let needs = needs.iter().map(|name| Need::new(name, true)).collect();
        Self { needs: Arc::new(Mutex::new(needs)) }
    }

    /// The same, and this one that is wanted: while it is not met, that is told, and the worker is ready.
    pub fn wanting(self, name: &'static str) -> Self {
        self.lock().push(Need::new(name, false));
        self
    }

    /// The same for a need whose name was made.
    pub fn watch_named<F, Fut>(&self, name: &str, look: F)
    where
        F: Fn() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), String>> + Send,
    {
        let known = self.lock().iter().map(|need| need.name).find(|known| *known == name);
        if let Some(name) = known {
            self.watch(name, look);
        }
    }

    /// Looks at a need again and again from now on, and writes a line on each change.
    pub fn watch<F, Fut>(&self, name: &'static str, look: F)
    where
        F: Fn() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), String>> + Send,
    {
        let readiness = self.clone();
        tokio::spawn(async move {
            loop {
                let found = tokio::time::timeout(INTERVAL, look()).await;
                let found = found.unwrap_or_else(|_| Err("no answer".to_owned()));
                let pause = if found.is_ok() { INTERVAL } else { SOON };
                readiness.note(name, found);
                tokio::time::sleep(pause).await;
            }
        });
    }

    /// Whether the worker takes work and all needs are met, and the report as JSON.
    pub fn report(&self, draining: bool) -> (bool, String) {
        let needs = self.lock().clone();
        let ready =
            !draining && !needs.is_empty() && needs.iter().all(|need| need.ready || !need.required);
        let report = serde_json::json!({"ready": ready, "draining": draining, "needs": needs});
        (ready, format!("{report}\n"))
    }

    /// Each need, and whether it is met.
    pub fn states(&self) -> Vec<(&'static str, bool)> {
        self.lock().iter().map(|need| (need.name, need.ready)).collect()
    }

    /// Each need, as it stands.
    pub(super) fn needs(&self) -> Vec<Need> {
        self.lock().clone()
    }

    fn note(&self, name: &'static str, found: Result<(), String>) {
        let mut needs = self.lock();
        let Some(need) = needs.iter_mut().find(|need| need.name == name) else { return };
        let ready = found.is_ok();
        let detail = found.err();
        let now = OffsetDateTime::now_utc();
        if ready != need.ready {
            need.since = now;
        }
        let is_news = need.said.map_or(ready || need.since <= now - START, |said| said != ready);
        if is_news {
            need.said = Some(ready);
            match &detail {
                None => tracing::info!(need = name, "{name} is ready"),
                Some(detail) => tracing::warn!(need = name, detail, "{name} is not ready"),
            }
        }
        need.ready = ready;
        need.detail = detail;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Need>> {
        self.needs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn report(readiness: &Readiness) -> (bool, Value) {
        let (ready, report) = readiness.report(false);
        (ready, serde_json::from_str(&report).expect("the report is JSON"))
    }

    #[test]
    fn the_worker_is_ready_once_every_need_is_met() {
        let readiness = Readiness::of(&["broker", "disk"]);
        readiness.note("broker", Ok(()));
        let (ready, half) = report(&readiness);
        assert!(!ready);
        assert_eq!(half["needs"][0]["ready"], true);
        assert_eq!(half["needs"][1]["detail"], "not looked at yet");
        readiness.note("disk", Ok(()));
        assert!(report(&readiness).0);
        let (ready, report) = readiness.report(true);
        assert!(!ready && report.contains("\"draining\":true"), "{report}");
    }

    #[test]
    fn what_is_only_wanted_is_told_of_and_keeps_nobody_from_being_ready() {
        let readiness = Readiness::of(&["broker"]).wanting("history");
        readiness.note("broker", Ok(()));
        readiness.note("history", Err("away".to_owned()));
        let (ready, report) = report(&readiness);
        assert!(ready);
        let history = &report["needs"][1];
        assert_eq!((&history["name"], &history["ready"]), (&"history".into(), &false.into()));
        assert_eq!((&history["required"], &history["detail"]), (&false.into(), &"away".into()));
    }

    #[test]
    fn since_is_the_moment_of_the_last_change() {
        let readiness = Readiness::of(&["disk"]);
        let since = |readiness: &Readiness| report(readiness).1["needs"][0]["since"].clone();
        readiness.note("disk", Ok(()));
        let ready_since = since(&readiness);
        readiness.note("disk", Ok(()));
        assert_eq!(since(&readiness), ready_since);
        readiness.note("disk", Err("full".to_owned()));
        assert_ne!(since(&readiness), ready_since);
        let lost_since = since(&readiness);
        readiness.note("disk", Err("fuller".to_owned()));
        let (ready, now) = report(&readiness);
        assert!(!ready);
        assert_eq!(now["needs"][0]["since"], lost_since);
        assert_eq!(now["needs"][0]["detail"], "fuller");
    }
}
