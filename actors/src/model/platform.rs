//! What machines an image is for.

use std::fmt;

/// The machines that images are built for, as `linux/<architecture>`, with a variant where there is one.
const KNOWN: [&str; 8] = [
    "linux/amd64",
    "linux/arm64",
    "linux/arm/v7",
    "linux/arm/v6",
    "linux/386",
    "linux/ppc64le",
    "linux/s390x",
    "linux/riscv64",
];

/// Other names of the same, as engines and systems have them.
const ALIASES: [(&str, &str); 7] = [
    ("linux/x86_64", "linux/amd64"),
    ("linux/aarch64", "linux/arm64"),
    ("linux/arm64/v8", "linux/arm64"),
    ("linux/arm", "linux/arm/v7"),
    ("linux/armhf", "linux/arm/v7"),
    ("linux/armv7l", "linux/arm/v7"),
    ("linux/i386", "linux/386"),
];

/// A kind of machine, such as `linux/amd64`: one of those that are known, under its usual name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform(&'static str);

impl Platform {
    /// The one that this names; case does not matter. `None` = it is none that images are built for.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.trim().to_ascii_lowercase();
        let alias = ALIASES.iter().find(|(alias, _)| *alias == name);
        let name = alias.map_or(name.as_str(), |(_, usual)| usual);
        KNOWN.into_iter().find(|known| *known == name).map(Self)
    }

    /// Every one that is known, for messages.
    pub fn all() -> impl Iterator<Item = Self> {
        KNOWN.into_iter().map(Self)
    }

    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Names of platforms in a message: "`linux/amd64`, `linux/arm64`".
pub fn list(platforms: impl IntoIterator<Item = Platform>) -> String {
    platforms.into_iter().map(|one| format!("`{one}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_has_one_name_however_it_is_written() {
        for (name, usual) in [
            ("linux/amd64", "linux/amd64"),
            (" Linux/X86_64 ", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
        ] {
            assert_eq!(Platform::from_name(name).map(Platform::as_str), Some(usual), "{name}");
        }
        for name in ["", "amd64", "windows/amd64", "linux/", "linux/mips", "linux/amd64/v9"] {
            assert_eq!(Platform::from_name(name), None, "{name}");
        }
        for (_, usual) in ALIASES {
            assert!(KNOWN.contains(&usual), "{usual}");
        }
    }
}
