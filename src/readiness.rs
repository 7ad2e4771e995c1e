//! Whether the worker can work: what it needs, each with its state and since when.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;

/// How often each need is looked at.
const INTERVAL: Duration = Duration::from_secs(5);

/// What the worker needs, and how it stands. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    needs: Arc<Mutex<Vec<Need>>>,
}

#[derive(Debug, Clone, Serialize)]
struct Need {
    name: &'static str,
    ready: bool,
    #[serde(with = "time::serde::rfc3339")]
    since: OffsetDateTime,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

impl Readiness {
    /// Looks at a need every few seconds from now on, and writes a line on each change.
    pub fn watch<F, Fut>(&self, name: &'static str, look: F)
    where
        F: Fn() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), String>> + Send,
    {
        let not_yet = Need {
            name,
            ready: false,
            since: OffsetDateTime::now_utc(),
            detail: Some("not looked at yet".to_owned()),
        };
        self.lock().push(not_yet);
        let readiness = self.clone();
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(INTERVAL);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                interval.tick().await;
                let found = tokio::time::timeout(INTERVAL, look()).await;
                readiness.note(name, found.unwrap_or_else(|_| Err("no answer".to_owned())));
            }
        });
    }

    /// Whether all needs are met, and the report as JSON.
    pub fn report(&self) -> (bool, String) {
        let needs = self.lock().clone();
        let ready = !needs.is_empty() && needs.iter().all(|need| need.ready);
        let report = serde_json::json!({"ready": ready, "needs": needs});
        (ready, format!("{report}\n"))
    }

    fn note(&self, name: &'static str, found: Result<(), String>) {
        let mut needs = self.lock();
        let Some(need) = needs.iter_mut().find(|need| need.name == name) else { return };
        let ready = found.is_ok();
        let detail = found.err();
        if ready != need.ready {
            need.since = OffsetDateTime::now_utc();
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
