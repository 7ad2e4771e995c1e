//! What looks like a credential. Errs on the side of caution: what is taken out in vain costs an
//! operator a line at a redrive, what is left in stays in a queue for days.

/// Parts of names that hold credentials.
const TELLING: [&str; 19] = [
    "token",
    "secret",
    "passw",
    "passphrase",
    "pwd",
    "credential",
    "key",
    "auth",
    "dsn",
    "private",
    "cookie",
    "session",
    "jwt",
    "bearer",
    "signature",
    "webhook",
    "connection",
    "salt",
    "cert",
];

/// Words that tell only when they stand alone in a name, as in `DB_PASS`.
const TELLING_WORDS: [&str; 8] = ["pass", "pat", "pw", "pin", "otp", "sas", "cred", "creds"];

/// How well-known services begin their credentials.
const BEGINNINGS: [&str; 22] = [
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "gldt-",
    "xoxb-",
    "xoxp-",
    "xoxa-",
    "AKIA",
    "ASIA",
    "AIza",
    "sk-",
    "sk_live_",
    "rk_live_",
    "npm_",
    "hf_",
    "dop_v1_",
    "pypi-",
    "eyJ",
];

/// What follows a beginning, in bytes, before it is taken for a credential.
const SHORTEST_REST: usize = 12;

/// A run of letters and digits that is this long, in bytes, and has both, is hardly a word.
const RANDOM_RUN: usize = 20;

/// A run of letters and digits in an address that is hardly a word.
const RANDOM_IN_ADDRESS: usize = 12;

/// Whether a build argument or variable must not be kept: they are no place for credentials, but
/// people put them there.
pub fn variable(name: &str, value: &str) -> bool {
    if value.is_empty() {
        return false;
    }
    let names_an_address = || words(name).any(|word| matches!(word.as_str(), "url" | "uri"));
    names_a_credential(name)
        || text(value)
        || has_random_run(value, RANDOM_RUN)
        || (names_an_address() && !is_plain_address(value))
}

/// Whether a command must not be kept: one that is handed a credential in its line.
pub fn command(line: &str) -> bool {
    let lower = line.to_ascii_lowercase();
    let handed = |value: &str| !value.is_empty() && !value.starts_with(['$', '-']);
    let words: Vec<_> =
        line.split(|c: char| c.is_whitespace() || "\"';&|()`".contains(c)).collect();
    let assigned = words.iter().any(|word| {
        word.split_once('=').is_some_and(|(name, value)| names_a_credential(name) && handed(value))
    });
    let flagged = words.windows(2).any(|pair| {
        pair[0].starts_with('-')
            && !pair[0].contains('=')
            && names_a_credential(pair[0])
            && handed(pair[1])
    });
    text(line) || lower.contains("authorization:") || assigned || flagged
}

/// Whether any other text must not be kept.
pub fn text(text: &str) -> bool {
    without_userinfo(text) != text || text.contains("PRIVATE KEY") || has_known_beginning(text)
}

/// `text` with the user and password of every address in it replaced.
pub fn without_userinfo(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        clean.push_str(before);
        clean.push_str("://");
        let ends = |c: char| c.is_whitespace() || "/?#\"'<>`,;|\\".contains(c);
        let authority = &after[..after.find(ends).unwrap_or(after.len())];
        rest = match authority.rfind('@') {
            Some(at) => {
                clean.push_str("[secret]");
                &after[at..]
            }
            None => after,
        };
    }
    clean.push_str(rest);
    clean
}

fn names_a_credential(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    TELLING.iter().any(|part| lower.contains(part))
        || lower.ends_with("pass")
        || words(name).any(|word| TELLING_WORDS.contains(&word.as_str()))
}

fn words(name: &str) -> impl Iterator<Item = String> {
    name.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_ascii_lowercase)
}

fn has_known_beginning(text: &str) -> bool {
    let parts = text.split(|c: char| !(c.is_ascii_alphanumeric() || "_-.".contains(c)));
    let mut parts = parts.filter(|part| part.bytes().any(|byte| byte.is_ascii_digit()));
    parts.any(|part| {
        let rest = BEGINNINGS.iter().find_map(|beginning| part.strip_prefix(beginning));
        rest.is_some_and(|rest| rest.len() >= SHORTEST_REST)
    })
}

/// Whether a value can be told from a random one by no look at it.
pub fn looks_random(value: &str) -> bool {
    has_random_run(value, RANDOM_IN_ADDRESS)
}

fn has_random_run(text: &str, longest: usize) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric()).any(|run| {
        run.len() >= longest
            && run.bytes().any(|byte| byte.is_ascii_digit())
            && run.bytes().any(|byte| byte.is_ascii_alphabetic())
    })
}

/// An address of a scheme, a host and short words: no query, and nothing that looks random.
fn is_plain_address(value: &str) -> bool {
    !value.contains(['?', '#', '@']) && !has_random_run(value, RANDOM_IN_ADDRESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_hold_credentials_are_known_by_their_name_or_by_their_value() {
        for (name, value) in [
            ("NPM_TOKEN", "x"),
            ("dbPassword", "x"),
            ("DB_PASS", "x"),
            ("GITHUB_PAT", "x"),
            ("DATABASE_URL", "postgres://me:hunter2@db/x"),
            ("HOOK_URL", "https://hooks.example/T0/B0/a8Hx02jfkQ9z1"),
            ("MAIL", "smtp://me:hunter2@mail"),
            ("A", "ghp_0123456789abcdefghij"),
            ("A", "-----BEGIN RSA PRIVATE KEY-----"),
            ("A", "5f4dcc3b5aa765d61d8327deb882cf99"),
        ] {
            assert!(variable(name, value), "{name}={value}");
        }
    }

    #[test]
    fn plain_variables_are_kept() {
        for (name, value) in [
            ("NODE_ENV", "production"),
            ("PUBLIC_URL", "https://app.example.com/base"),
            ("VERSION", "1.22.3-alpine3.17"),
            ("PORT", "8080"),
            ("PATTERN", "a/b"),
            ("TOKEN", ""),
        ] {
            assert!(!variable(name, value), "{name}={value}");
        }
    }

    #[test]
    fn a_command_that_is_handed_a_credential_is_known() {
        for line in [
            "NPM_TOKEN=hunter2 npm ci",
            "npm config set //r.example/:_authToken=hunter2",
            "curl -H 'Authorization: token hunter2' x",
            "login --password hunter2",
            "git clone https://me:hunter2@example.com/x",
        ] {
            assert!(command(line), "{line}");
        }
        for line in ["npm ci && npm run build", "TOKEN=$TOKEN make", "make --with-password -j2"] {
            assert!(!command(line), "{line}");
        }
    }

    #[test]
    fn users_and_passwords_are_taken_out_of_addresses() {
        assert_eq!(
            without_userinfo("see https://a:b@c/d@e, ssh://git@f and https://g/h@i"),
            "see https://[secret]@c/d@e, ssh://[secret]@f and https://g/h@i"
        );
        assert_eq!(without_userinfo("a://b@c@d://"), "a://[secret]@d://");
    }
}
