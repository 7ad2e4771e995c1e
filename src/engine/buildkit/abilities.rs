//! What an engine's BuildKit can do: asked of it, and of its version only which holes it has.

use bollard_buildkit_proto::moby::buildkit::v1::{InfoRequest, ListWorkersRequest};
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::platform::Platform;
use tonic::Code;

use super::control::Control;
use crate::engine::faults::{engine_broke, fault};

/// BuildKit whose holes to its machine's files are mended (CVE-2024-23651, CVE-2024-23652).
const SAFE_BUILDKIT: [u32; 3] = [0, 12, 5];
/// The Docker Engines that have it, where BuildKit does not tell its version: the first one, and those of an
/// older line.
const SAFE_DOCKER: [u32; 3] = [25, 0, 2];
const SAFE_DOCKER_24: [u32; 3] = [24, 0, 9];

/// What is known of an engine's BuildKit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine) struct Abilities {
    /// Its version, where it tells one; none of a BuildKit that knows no such question, before 0.11.
    buildkit: Option<String>,
    /// Whether it has source policies, which came with the question.
    policies: bool,
}

impl Abilities {
    pub(in crate::engine) async fn of(control: &mut Control) -> Result<Self, Fault> {
        match control.client.info(InfoRequest {}).await {
            Ok(answer) => {
                let version = answer.into_inner().buildkit_version;
                Ok(Self { buildkit: version.map(|version| version.version), policies: true })
            }
            Err(status) if status.code() == Code::Unimplemented => {
                Ok(Self { buildkit: None, policies: false })
            }
            Err(status) => Err(engine_broke("asking what it can do", &status.message())),
        }
    }

    /// What it can build for: its own platform first, then those that it can emulate.
    ///
    /// # Errors
    /// `engine_failed`.
    pub(in crate::engine) async fn platforms(
        control: &mut Control,
    ) -> Result<Vec<Platform>, Fault> {
        let asked = control.client.list_workers(ListWorkersRequest::default()).await;
        let workers = asked
            .map_err(|status| engine_broke("asking for its platforms", &status.message()))?
            .into_inner()
            .record;
        let mut platforms = Vec::new();
        // The first worker is the one that builds.
        for found in workers.into_iter().next().into_iter().flat_map(|worker| worker.platforms) {
            let name = match found.variant.as_str() {
                "" => format!("{}/{}", found.os, found.architecture),
                variant => format!("{}/{}/{variant}", found.os, found.architecture),
            };
            platforms.extend(Platform::from_name(&name).filter(|one| !platforms.contains(one)));
        }
        Ok(platforms)
    }

    /// What BuildKit it is, for people.
    pub(super) fn name(&self) -> String {
        let version = self.buildkit.as_deref().filter(|version| !version.is_empty());
        format!("BuildKit {}", version.unwrap_or("of no version"))
    }

    /// Refuses an engine that cannot keep users apart. `docker` is the Docker Engine's version; `None` = it is a
    /// BuildKit of its own.
    ///
    /// # Errors
    /// `engine_down`: nothing is built there, and whoever waits is told nothing.
    pub(in crate::engine) fn keep_users_apart(&self, docker: Option<&str>) -> Result<(), Fault> {
        let buildkit = self.buildkit.as_deref().and_then(version);
        let docker_is_safe = docker.and_then(version).is_some_and(|version| {
            version >= SAFE_DOCKER || (version[0] == 24 && version >= SAFE_DOCKER_24)
        });
        let safe = buildkit.map_or(docker_is_safe, |version| version >= SAFE_BUILDKIT);
        let lacks = if !self.policies {
            "it has no source policies, and known holes through which a build reaches its machine's files"
        } else if !safe {
            "it has known holes through which a build reaches its machine's files"
        } else {
            return Ok(());
        };
        let (engine, newer) = match docker {
            Some(docker) => (format!("Docker {docker}"), "Docker 25.0.2"),
            None => (self.name(), "BuildKit 0.12.5"),
        };
        Err(fault(
            Reason::EngineDown,
            format!(
                "{engine} cannot keep users apart ({lacks}), and TENANCY is `strict`: use {newer} or later, or \
                 set TENANCY=trusted if all users may reach each other's builds."
            ),
        ))
    }
}

/// The numbers of a version such as `v0.13.2` or `26.1.5+dfsg1`; `None` = it is none, or of no release.
fn version(text: &str) -> Option<[u32; 3]> {
    let text = text.trim_start_matches('v');
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let mut parts = text[..end].split('.').map(str::parse);
    let found = [parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?];
    (found != [0; 3]).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_that_cannot_keep_users_apart_are_told_by_what_they_answer() {
        let of = |buildkit: Option<&str>, policies, docker| {
            let buildkit = buildkit.map(str::to_owned);
            Abilities { buildkit, policies }.keep_users_apart(Some(docker))
        };
        let alone = |buildkit: &str| {
            Abilities { buildkit: Some(buildkit.to_owned()), policies: true }.keep_users_apart(None)
        };
        assert_eq!(alone("v0.12.5"), Ok(()));
        for (version, shown) in [("v0.12.4", "BuildKit v0.12.4"), ("", "BuildKit of no version")] {
            let fault = alone(version).expect_err(version);
            assert!(fault.message.starts_with(shown), "{fault}");
        }
        for (buildkit, docker) in [
            (Some("v0.12.5"), "24.0.8"),
            (Some("v0.13.2"), "26.1.5+dfsg1"),
            (Some("v0.0.0+unknown"), "26.1.5+dfsg1"),
            (Some(""), "24.0.9"),
            (None, "29.0.0"),
        ] {
            assert_eq!(of(buildkit, true, docker), Ok(()), "{buildkit:?} {docker}");
        }
        for (buildkit, policies, docker) in [
            (None, false, "20.10.24+dfsg1"),
            (None, false, "29.0.0"),
            (Some("v0.12.4"), true, "25.0.2"),
            (Some("v0.0.0+unknown"), true, "25.0.1"),
            (Some(""), true, "24.0.8"),
            (None, true, "dev"),
        ] {
            let fault = of(buildkit, policies, docker).expect_err(docker);
            assert_eq!(fault.reason, Reason::EngineDown, "{fault}");
            assert!(fault.message.contains("TENANCY=trusted"), "{fault}");
        }
    }
}
