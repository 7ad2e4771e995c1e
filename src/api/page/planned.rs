//! Plans that were shown, kept with their requests until they are built or forgotten: a request may have credentials,
//! which are shown to nobody again.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use image_builder_actors::model::secret::Secret;
use uuid::Uuid;

use crate::api::session::Session;

/// How long one is kept.
const LIFE: Duration = Duration::from_secs(10 * 60);
/// So many of one login, and of all. A request is bounded as well.
const MOST_OF_ONE: usize = 4;
const MOST: usize = 32;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Planned(Mutex<VecDeque<Kept>>);

#[derive(Debug)]
struct Kept {
    id: String,
    request: Secret,
    /// Whose it is; `None` = of whoever asks without a login.
    login: Option<Session>,
    since: Instant,
}

impl Planned {
    /// Keeps what builds a plan, and returns what it is kept by. The oldest make room.
    pub(super) fn keep(&self, request: Secret, login: Option<Session>) -> String {
        let id = Uuid::new_v4().to_string();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|it| it.since.elapsed() < LIFE);
        let own = || kept.iter().filter(|it| it.login == login);
        if own().count() >= MOST_OF_ONE {
            let oldest = kept.iter().position(|it| it.login == login);
            oldest.map(|at| kept.remove(at));
        } else if kept.len() >= MOST {
            kept.pop_front();
        }
        kept.push_back(Kept { id: id.clone(), request, login, since: Instant::now() });
        id
    }

    /// The request of a plan. It stays, so that a form that is sent twice is one build.
    pub(super) fn request(&self, id: &str, login: Option<Session>) -> Option<Secret> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().find(|it| it.id == id && it.login == login);
        found.filter(|it| it.since.elapsed() < LIFE).map(|it| it.request.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::session::Sessions;

    #[test]
    fn a_plan_is_its_logins_alone_and_none_takes_the_room_of_others() {
        let planned = Planned::default();
        let sessions = Sessions::of(&Secret::new("t"));
        let [one, other] = [(); 2].map(|()| Some(sessions.begin()));
        let first = planned.keep(Secret::new("first"), one);
        assert!(planned.request(&first, one).is_some_and(|it| it.expose() == "first"));
        assert!(
            planned.request(&first, other).is_none() && planned.request(&first, None).is_none()
        );
        for _ in 0..2 * MOST {
            planned.keep(Secret::new("more"), other);
        }
        assert!(planned.request(&first, one).is_some());
        for _ in 0..MOST {
            planned.keep(Secret::new("more"), Some(sessions.begin()));
        }
        assert!(planned.request(&first, one).is_none(), "the oldest made room");
        assert_eq!(planned.0.lock().expect("nobody panics with it").len(), MOST);
    }
}
