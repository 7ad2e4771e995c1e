//! Signatures by the Standard Webhooks specification (symmetric, `v1`), and secrets that are compared.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use image_builder_actors::model::secret::Secret;
use sha2::{Digest, Sha256};

const PREFIX: &str = "whsec_";
/// How long a key may be, in bytes, by the specification.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The keys that requests to the platform are signed with: one, or the new and the old one while the secret is
/// being changed.
#[derive(Clone)]
pub struct SigningKeys(Vec<Vec<u8>>);

/// Why a text holds no keys. Never repeats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SigningKeysError {
    #[error("it is empty; write whsec_ and 24 to 64 random bytes in base64")]
    Empty,
    #[error("a secret begins with whsec_; write whsec_ and 24 to 64 random bytes in base64")]
    Prefix,
    #[error("what follows whsec_ is not base64; write 24 to 64 random bytes in base64")]
    Base64,
    #[error("a secret of {0} bytes: 24 to 64 are needed")]
    Length(usize),
}

impl SigningKeys {
    /// Reads `whsec_<base64>`, or several of them with spaces between.
    pub fn parse(text: &Secret) -> Result<Self, SigningKeysError> {
        let keys: Vec<_> =
            text.expose().split_whitespace().map(key).collect::<Result<_, SigningKeysError>>()?;
        if keys.is_empty() { Err(SigningKeysError::Empty) } else { Ok(Self(keys)) }
    }

    /// The `webhook-signature`: one signature a key, with spaces between.
    pub(crate) fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let signed = self.macs(id, timestamp, body);
        let signatures: Vec<_> = signed
            .map(|mac| format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
            .collect();
        signatures.join(" ")
    }

    /// Whether one of these `webhook-signature`s is by one of the keys.
    pub(crate) fn signed(&self, signatures: &str, id: &str, timestamp: u64, body: &[u8]) -> bool {
        let shown = signatures.split(' ').filter_map(|one| one.strip_prefix("v1,"));
        let shown: Vec<_> = shown.filter_map(|one| STANDARD.decode(one).ok()).collect();
        self.macs(id, timestamp, body)
            .any(|mac| shown.iter().any(|shown| mac.clone().verify_slice(shown).is_ok()))
    }

    fn macs(&self, id: &str, timestamp: u64, body: &[u8]) -> impl Iterator<Item = Hmac<Sha256>> {
        self.0.iter().map(move |key| {
            let mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
            mac.chain_update(format!("{id}.{timestamp}.")).chain_update(body)
        })
    }
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKeys({})", self.0.len())
    }
}

/// Compares in a time that says nothing of what differs, nor of how long the one that is right is.
pub(crate) fn is_same(shown: &str, right: &str) -> bool {
    let [shown, right] = [shown, right].map(Sha256::digest);
    shown.iter().zip(right).fold(0, |differ, (one, other)| differ | (one ^ other)) == 0
}

fn key(text: &str) -> Result<Vec<u8>, SigningKeysError> {
    let encoded = text.strip_prefix(PREFIX).ok_or(SigningKeysError::Prefix)?;
    let key = STANDARD.decode(encoded).map_err(|_| SigningKeysError::Base64)?;
    if KEY_BYTES.contains(&key.len()) { Ok(key) } else { Err(SigningKeysError::Length(key.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example that the specification's own libraries are tested with.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn signed(secret: &str) -> String {
        let keys = SigningKeys::parse(&Secret::new(secret)).expect("keys");
        keys.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#)
    }

    #[test]
    fn the_published_example_is_signed_as_published() {
        assert_eq!(signed(SECRET), SIGNATURE);
    }

    #[test]
    fn what_is_signed_is_known_again_and_nothing_else_is() {
        let keys = SigningKeys::parse(&Secret::new(SECRET)).expect("keys");
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        let of = |signatures: &str, body: &[u8]| keys.signed(signatures, id, 1_614_265_330, body);
        let body = br#"{"test": 2432232314}"#;
        assert!(of(SIGNATURE, body) && of(&format!("v1,AAAA v2,x {SIGNATURE}"), body));
        assert!(!of(SIGNATURE, b"{}") && !of("", body) && !of(&SIGNATURE[3..], body));
        assert!(!keys.signed(SIGNATURE, id, 1_614_265_331, body));
    }

    #[test]
    fn while_a_secret_is_being_changed_both_sign() {
        let other = format!("whsec_{}", STANDARD.encode([7; 32]));
        assert_eq!(
            signed(&format!("{other}  {SECRET}\n")),
            format!("{} {SIGNATURE}", signed(&other))
        );
    }

    #[test]
    fn a_bad_secret_is_refused_and_not_repeated() {
        let of = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![b'k'; bytes]));
        for (text, error) in [
            (" ".to_owned(), SigningKeysError::Empty),
            ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(), SigningKeysError::Prefix),
            ("whsec_not base64".to_owned(), SigningKeysError::Base64),
            (of(23), SigningKeysError::Length(23)),
            (of(65), SigningKeysError::Length(65)),
            (format!("{SECRET} {}", of(0)), SigningKeysError::Length(0)),
        ] {
            let refused = SigningKeys::parse(&Secret::new(text.clone())).map(|_| ());
            assert_eq!(refused, Err(error), "{text}");
        }
        for bytes in [24, 64] {
            assert!(SigningKeys::parse(&Secret::new(of(bytes))).is_ok());
        }
    }
}
