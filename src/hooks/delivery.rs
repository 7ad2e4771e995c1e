//! The headers of a hook: which delivery of which event it is, and whether its sender knows the secret.
//!
//! | forge | what proves it |
//! |---|---|
//! | GitHub | `X-Hub-Signature-256`: HMAC-SHA256 of the body |
//! | Gitea, Forgejo | `X-Forgejo-Signature`, or else `X-Gitea-Signature`: the same |
//! | GitLab | `webhook-signature`, as Standard Webhooks say; or `X-Gitlab-Token`: the secret itself |

use hmac::{Hmac, Mac};
use image_builder_actors::model::request::ForgeName;
use image_builder_actors::model::secret::Secret;
use reqwest::header::HeaderMap;
use sha2::Sha256;

use crate::net::signature::{SigningKeys, is_same};

/// Longest id of a delivery, and longest name of an event, in bytes.
const LONGEST_NAME: usize = 200;
/// A signature over a time that is further away than this, in seconds, is a replay, or of a clock that is wrong.
const TOLERANCE: u64 = 5 * 60;

/// One delivery of a hook, before anything of its body is believed.
#[derive(Debug)]
pub struct Delivery {
    /// The forge gives it, and gives it again where it delivers once more.
    pub id: String,
    /// The event, in the forge's own words.
    pub event: String,
    proofs: Vec<Proof>,
}

#[derive(Debug)]
enum Proof {
    Hmac([u8; 32]),
    Token(Secret),
    Standard { id: String, timestamp: u64, signatures: String },
}

/// Why a delivery is not looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It says nothing of who sent it, or nothing that can be understood.
    #[error("{0}")]
    Unsigned(String),
    /// It does not say which delivery of which event it is.
    #[error("{0}")]
    Malformed(String),
}

impl Delivery {
    /// Reads what the headers say.
    ///
    /// # Errors
    /// Something is missing.
    pub fn read(forge: ForgeName, headers: &HeaderMap) -> Result<Self, Refusal> {
        let text = |name: &str| one(headers, name);
        let first = |names: &[&str]| names.iter().find_map(|name| text(name));
        let (signed_by, events, ids): (&str, &[&str], &[&str]) = match forge {
            ForgeName::Gitlab => (
                "X-Gitlab-Token",
                &["x-gitlab-event"],
                &["webhook-id", "idempotency-key", "x-gitlab-event-uuid"],
            ),
            ForgeName::Gitea => (
                "X-Gitea-Signature",
                &["x-gitea-event", "x-forgejo-event"],
                &["x-gitea-delivery", "x-forgejo-delivery"],
            ),
            _ => ("X-Hub-Signature-256", &["x-github-event"], &["x-github-delivery"]),
        };
        let proofs: Vec<_> = match forge {
            ForgeName::Gitlab => {
                let token = text("x-gitlab-token").map(|token| Proof::Token(Secret::new(token)));
                [token, standard(headers)].into_iter().flatten().collect()
            }
            ForgeName::Gitea => {
                // Where there are both, the forge's own counts.
                let signature = first(&["x-forgejo-signature", "x-gitea-signature"]);
                signature.and_then(hex).map(Proof::Hmac).into_iter().collect()
            }
            _ => {
                let signature = text("x-hub-signature-256");
                let signature = signature.and_then(|it| hex(it.strip_prefix("sha256=")?));
                signature.map(Proof::Hmac).into_iter().collect()
            }
        };
        if proofs.is_empty() {
            let what = format!(
                "The hook is not signed ({signed_by}): give it the secret that this service has."
            );
            return Err(Refusal::Unsigned(what));
        }
        let named = |names: &[&str], what: &str| {
            first(names).filter(|name| name.len() <= LONGEST_NAME).map(str::to_owned).ok_or_else(
                || Refusal::Malformed(format!("The hook does not say {what} ({}).", names[0])),
            )
        };
        let event = named(events, "which event it is of")?;
        Ok(Self { id: named(ids, "which delivery it is")?, event, proofs })
    }

    /// Whether whoever sent it knows this secret. It takes a time that says nothing of the secret.
    pub fn is_of(&self, secret: &Secret, body: &[u8], now: u64) -> bool {
        self.proofs.iter().any(|proof| match proof {
            Proof::Hmac(signature) => {
                let key = secret.expose().as_bytes();
                let mac = Hmac::<Sha256>::new_from_slice(key);
                let mac = mac.expect("HMAC takes a key of any length").chain_update(body);
                mac.verify_slice(signature).is_ok()
            }
            Proof::Token(shown) => is_same(shown.expose(), secret.expose()),
            Proof::Standard { id, timestamp, signatures } => {
                now.abs_diff(*timestamp) <= TOLERANCE
                    && SigningKeys::parse(secret)
                        .is_ok_and(|keys| keys.signed(signatures, id, *timestamp, body))
            }
        })
    }
}

/// A header that is there once, and is text.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    (values.next().is_none() && !value.is_empty()).then_some(value)
}

fn standard(headers: &HeaderMap) -> Option<Proof> {
    let timestamp = one(headers, "webhook-timestamp")?.parse().ok()?;
    let [id, signatures] =
        ["webhook-id", "webhook-signature"].map(|name| one(headers, name).map(str::to_owned));
    Some(Proof::Standard { id: id?, timestamp, signatures: signatures? })
}

fn hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}
