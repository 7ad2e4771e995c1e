//! Reading `buildPlan`.

use serde_json::Value;

use super::Faults;
use super::base_images;
use super::fields::{Fields, quote, type_name};
use crate::model::fault::Reason;
use crate::model::request::{BuilderKind, PlanRequest};
use crate::model::secret::Secret;

pub(super) fn read(value: Option<&Value>, faults: &mut Faults) -> PlanRequest {
    let map = match value {
        None | Some(Value::Null) => return PlanRequest::default(),
        Some(Value::Object(map)) => map,
        Some(other) => {
            let found = type_name(other);
            faults.add(
                Reason::InvalidRequest,
                format!("`buildPlan` must be an object; it is {found}."),
            );
            return PlanRequest::default();
        }
    };
    let mut fields = Fields::new(map, "buildPlan.");
    let builder = fields.text("builder").and_then(|name| builder(&name, faults));
    let secrets = fields.texts("secrets", false);
    let platforms = base_images::platforms(&mut fields, faults);
    let plan = PlanRequest {
        builder,
        root_directory: root(fields.text("rootDirectory")),
        dockerfile_path: fields.text("dockerfilePath"),
        nixpacks_path: fields.text("nixpacksPath"),
        target: fields.text("target"),
        keep_git_dir: fields.flag("keepGitDir"),
        envs: fields.texts("envs", true),
        build_args: fields.texts("buildArgs", false),
        secrets: secrets.into_iter().map(|(id, text)| (id, Secret::new(text))).collect(),
        registry_auth: base_images::registry_auth(&mut fields),
        platforms,
        nix_pkgs: packages(&mut fields, "nixPkgs"),
        nix_libs: packages(&mut fields, "nixLibs"),
        apt_pkgs: packages(&mut fields, "aptPkgs"),
        install_command: command(&mut fields, "installCommand"),
        build_command: command(&mut fields, "buildCommand"),
        start_command: command(&mut fields, "startCommand"),
    };
    for message in fields.faults {
        faults.add(Reason::InvalidRequest, message);
    }
    plan
}

fn builder(name: &str, faults: &mut Faults) -> Option<BuilderKind> {
    match name {
        "dockerfile" | "docker" => Some(BuilderKind::Dockerfile),
        "nixpacks" => Some(BuilderKind::Nixpacks),
        other => {
            let message = format!(
                "`buildPlan.builder` {} is not supported; `dockerfile` and `nixpacks` are.",
                quote(other)
            );
            faults.add(Reason::Unsupported, message);
            None
        }
    }
}

/// `/`, `.` and empty mean the repository's root; slashes and dots around a path say nothing.
fn root(path: Option<String>) -> String {
    let path = path.unwrap_or_default();
    let parts: Vec<_> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    parts.join("/")
}

/// Names of packages: they end up in a shell command of the generated Dockerfile, so that only
/// what names a package passes. `...` keeps what nixpacks itself would install.
fn packages(fields: &mut Fields<'_>, name: &str) -> Vec<String> {
    let packages = fields.list(name);
    let is_package = |package: &String| {
        (1..=128).contains(&package.len())
            && package.chars().all(|c| {
                c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | ':' | '=' | '~')
            })
    };
    if let Some(bad) = packages.iter().find(|package| !is_package(package)) {
        fields.fault(name, &format!("has an entry that names no package: {}", quote(bad)));
    }
    packages
}

/// A command becomes one line of the generated Dockerfile.
fn command(fields: &mut Fields<'_>, name: &str) -> Option<String> {
    let command = fields.text(name)?;
    if command.chars().any(char::is_control) {
        fields.fault(name, "must be one line; join commands with `&&`");
        return None;
    }
    Some(command)
}
