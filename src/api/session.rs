//! Sessions of the page: who showed the `API_TOKEN` there is known by a cookie for a while.
//!
//! A session is kept by its browser alone: a random name and an end, signed with a key that is made of the token.
//! So every worker of one token knows it, a restart ends none, and another token ends all.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use axum::http::HeaderMap;
use axum::http::header::COOKIE;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use image_builder_actors::model::secret::Secret;
use sha2::Sha256;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// How long a session lasts.
const LIFE: Duration = Duration::hours(12);
/// Sessions that were ended before their time are remembered until then: so many of them.
const MOST_ENDED: usize = 10_000;

/// The cookie's name. Over HTTPS browsers take one of the second name from this very host alone, and send it over
/// nothing else.
const COOKIE_NAMES: [&str; 2] = ["image-builder", "__Host-image-builder"];

/// Makes sessions, and knows them again.
#[derive(Debug)]
pub(super) struct Sessions {
    key: Secret,
    /// Ids of sessions that were ended before their time, each with its end.
    ended: Mutex<BTreeMap<Uuid, i64>>,
}

/// One who is logged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Session {
    id: Uuid,
    /// When it ends, in seconds since 1970.
    ends: i64,
}

impl Sessions {
    /// The sessions of those who know this token.
    pub(super) fn of(token: &Secret) -> Self {
        let key = mac(token.expose().as_bytes(), b"sessions of the page");
        Self {
            key: Secret::new(URL_SAFE_NO_PAD.encode(key.finalize().into_bytes())),
            ended: Mutex::default(),
        }
    }

    /// A new session, from now on.
    pub(super) fn begin(&self) -> Session {
        Session { id: Uuid::new_v4(), ends: (OffsetDateTime::now_utc() + LIFE).unix_timestamp() }
    }

    /// Ends a session at this worker; the others have it until its time is up, or its cookie is gone.
    pub(super) fn end(&self, session: Session) {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.retain(|_, ends| *ends > now);
        if ended.len() < MOST_ENDED {
            ended.insert(session.id, session.ends);
        }
    }

    /// The session that a request belongs to, if it still lasts.
    pub(super) fn of_request(&self, headers: &HeaderMap) -> Option<Session> {
        let cookies = headers.get_all(COOKIE).into_iter().filter_map(|value| value.to_str().ok());
        cookies
            .flat_map(|cookies| cookies.split(';'))
            .filter_map(|cookie| cookie.trim().split_once('='))
            .filter(|(name, _)| COOKIE_NAMES.contains(name))
            .find_map(|(_, value)| self.read(value, OffsetDateTime::now_utc().unix_timestamp()))
    }

    fn read(&self, cookie: &str, now: i64) -> Option<Session> {
        let (said, signature) = cookie.split_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        self.mac("session", said).verify_slice(&signature).ok()?;
        let (id, ends) = said.split_once('-')?;
        let session = Session { id: Uuid::try_parse(id).ok()?, ends: ends.parse().ok()? };
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        (session.ends > now && !ended.contains_key(&session.id)).then_some(session)
    }

    /// What a browser is to keep of a session: a `Set-Cookie`.
    pub(super) fn cookie(&self, session: Session, is_https: bool) -> String {
        let said = format!("{}-{}", session.id.simple(), session.ends);
        let signature = URL_SAFE_NO_PAD.encode(self.mac("session", &said).finalize().into_bytes());
        set_cookie(&format!("{said}.{signature}"), LIFE.whole_seconds(), is_https)
    }

    /// Has a browser forget its session: a `Set-Cookie`.
    pub(super) fn no_cookie(is_https: bool) -> String {
        set_cookie("", 0, is_https)
    }

    /// What a form of this session shows to be one.
    pub(super) fn form_token(&self, session: Session) -> String {
        URL_SAFE_NO_PAD.encode(self.mac("form", &session.id.to_string()).finalize().into_bytes())
    }

    /// Keyed with this service's token, for one purpose.
    fn mac(&self, purpose: &str, text: &str) -> Hmac<Sha256> {
        mac(self.key.expose().as_bytes(), format!("{purpose}\0{text}").as_bytes())
    }
}

fn mac(key: &[u8], text: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::new_from_slice(key).expect("a key of HMAC has any length");
    mac.update(text);
    mac
}

fn set_cookie(value: &str, seconds: i64, is_https: bool) -> String {
    let name = COOKIE_NAMES[usize::from(is_https)];
    let secure = if is_https { "; Secure" } else { "" };
    format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions(token: &str) -> Sessions {
        Sessions::of(&Secret::new(token))
    }

    fn value(cookie: &str) -> &str {
        let (pair, _) = cookie.split_once(';').expect("a cookie has attributes");
        pair.split_once('=').expect("a cookie has a value").1
    }

    fn request(cookies: &str) -> HeaderMap {
        [(COOKIE, cookies.parse().expect("a header's value"))].into_iter().collect()
    }

    #[test]
    fn a_session_is_known_by_its_cookie_to_all_who_have_the_token() {
        let [one, other] = [sessions("s3cret"), sessions("s3cret")];
        let session = one.begin();
        let cookie = value(&one.cookie(session, false)).to_owned();
        assert!(!cookie.contains("s3cret"));
        for name in COOKIE_NAMES {
            let headers = request(&format!("theme=dark; {name}={cookie}"));
            assert_eq!(other.of_request(&headers), Some(session));
            assert_eq!(sessions("other").of_request(&headers), None);
        }
        assert_eq!(one.form_token(session), other.form_token(session));
        assert_ne!(one.form_token(session), one.form_token(one.begin()));
    }

    #[test]
    fn what_was_not_signed_here_is_no_session() {
        let sessions = sessions("s3cret");
        let session = sessions.begin();
        let cookie = value(&sessions.cookie(session, false)).to_owned();
        let (said, signature) = cookie.split_once('.').expect("signed");
        let later = format!("{}-{}", session.id.simple(), session.ends + 1);
        let form = sessions.form_token(session);
        for wrong in [
            String::new(),
            said.to_owned(),
            format!("{said}."),
            format!("{later}.{signature}"),
            format!("{said}.{}", signature.to_lowercase()),
            format!("{said}.{form}"),
        ] {
            assert_eq!(sessions.read(&wrong, 0), None, "{wrong}");
        }
        assert_eq!(sessions.read(&cookie, session.ends - 1), Some(session));
        assert_eq!(sessions.read(&cookie, session.ends), None, "its time is up");
    }

    #[test]
    fn who_logged_out_is_not_known_any_more() {
        let sessions = sessions("s3cret");
        let [one, other] = [sessions.begin(), sessions.begin()];
        let cookies = [one, other].map(|session| sessions.cookie(session, true));
        sessions.end(one);
        let read = |cookie: &String| sessions.read(value(cookie), 0);
        assert_eq!(cookies.each_ref().map(read), [None, Some(other)]);
    }

    #[test]
    fn a_cookie_has_every_guard() {
        let sessions = sessions("s3cret");
        let cookie = sessions.cookie(sessions.begin(), true);
        assert!(cookie.starts_with("__Host-image-builder="), "{cookie}");
        assert!(cookie.ends_with("; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict; Secure"));
        let cookie = sessions.cookie(sessions.begin(), false);
        assert!(cookie.ends_with("; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict"), "{cookie}");
        assert!(Sessions::no_cookie(false).contains("image-builder=; Path=/; Max-Age=0"));
    }
}
