//! What a build request is, for machines: the rules of `actors/src/parse` as far as a schema can say them.

use image_builder_actors::model::platform::Platform;
use serde_json::{Value, json};
use utoipa::ToSchema;

/// A build request: stands for [`request()`], which says more than can be derived.
#[derive(ToSchema)]
#[schema(as = BuildRequest)]
pub(super) struct Request {}

/// What `actors/src/parse` reads, in the shape that is written today.
pub(super) fn request() -> Value {
    let name = json!({
        "type": "string", "minLength": 1, "maxLength": 256,
        "pattern": r"^[^\s\x00-\x1f\x7f-\x9f]([^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f])?$",
    });
    let described = |mut schema: Value, description: &str| {
        schema["description"] = json!(description);
        schema
    };
    let or_none = |schema: &Value| json!({"anyOf": [schema, {"enum": ["", null]}]});
    let line = json!({"type": ["string", "null"], "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$"});
    let text = json!({"type": ["string", "null"]});
    let value = json!({"type": ["string", "number", "boolean"], "pattern": r"^[^\x00]*$"});
    let values = json!({
        "type": ["object", "null"], "additionalProperties": false,
        "patternProperties": {r"^[A-Za-z_][A-Za-z0-9_.-]{0,127}$": value},
    });
    let variable = json!({"type": "string", "pattern": r"^[A-Za-z_][A-Za-z0-9_.-]{0,127}$"});
    let pairs = json!({"type": "array", "items": {
        "type": "object", "required": ["key", "value"], "properties": {"key": variable, "value": value},
    }});
    let packages = json!({"type": ["array", "null"], "items": {
        "type": "string", "pattern": r"^[A-Za-z0-9._+:=~-]{1,128}$",
    }});
    let login = json!({
        "type": "object", "required": ["username", "password"],
        "properties": {
            "username": {"type": "string", "pattern": r"^[^\x00-\x1f\x7f-\x9f:]{1,256}$"},
            "password": {"type": "string", "pattern": r"^[^\x00]{1,16384}$"},
        },
    });
    let logins = json!({
        "type": ["object", "null"], "additionalProperties": false, "maxProperties": 16,
        "patternProperties": {r"^[A-Za-z0-9.:/\[\]-]{1,256}$": login},
    });
    let platforms = json!({"type": ["array", "null"], "maxItems": 4, "items": {
        "enum": Platform::all().map(Platform::as_str).collect::<Vec<_>>(),
    }});
    let reference = json!({"type": "string", "pattern": r"^[A-Za-z0-9_]+([./-][A-Za-z0-9_]+)*$", "maxLength": 200});
    let commit = json!({"type": "string", "pattern": "^[0-9A-Fa-f]{4,40}$"});
    let some_text = json!({"type": "string", "minLength": 1});
    let of_type = |kind: &str, schema: &Value| json!({"required": ["type", kind], "properties": {"type": {"const": kind}, kind: schema}});
    json!({
        "type": "object",
        "description": "A build request, as it can be put on the build queue as well. Fields that are not described \
            are ignored. An empty text and null count as absent.",
        "required": ["userID", "repo"],
        "properties": {
            "userID": described(name.clone(), "Whose build it is: the namespace of its image."),
            "repo": {
                "type": "string", "minLength": 3, "pattern": "^[^\\x00-\\x20\\x7f]*/[^\\x00-\\x20\\x7f]*$",
                "description": "`owner/name`, at GitLab with all its groups before it, at `git` with its server; its \
                    address at the forge is taken as well.",
            },
            "token": {
                "type": ["string", "null"], "maxLength": 4096, "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$",
                "description": "A credential for the forge.",
            },
            "type": {
                "enum": ["repo", "branch", "tag", "release", "commit", "", null],
                "description": "What is built: the default branch's head (`repo`), or what the field of this name says.",
            },
            "tokenRef": {
                "type": ["string", "null"], "maxLength": 1024, "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$",
                "description": "A credential by its name, in the place of `token`.",
            },
            "connector": {
                "enum": ["github", "gitlab", "gitea", "bitbucket", "git", "", null],
                "description": "Which forge; `gitea` and `git` where the service knows one.",
            },
            "applicationID": described(
                or_none(&name), "The application that the image is for; else the repository's name."
            ),
            "uuid": {
                "type": ["string", "null"], "maxLength": 255,
                "description": "The client's own id of this request: the build's id.",
            },
            "force": {
                "type": ["boolean", "null"],
                "description": "Build even where the registry has an image of the same inputs.",
            },
            "supersede": {
                "type": ["boolean", "null"],
                "description": "Take the place of older requests for the same application and ref that do not build yet.",
            },
            "commitStatus": {
                "type": ["boolean", "null"],
                "description": "Have the forge show on the commit how the build stands.",
            },
            "buildPlan": {
                "type": ["object", "null"],
                "description": "How it is built.",
                "properties": {
                    "builder": {"enum": ["dockerfile", "docker", "nixpacks", "", null]},
                    "rootDirectory": text, "dockerfilePath": text, "nixpacksPath": text, "target": text,
                    "keepGitDir": {"type": ["boolean", "null"]},
                    "envs": {"anyOf": [values, pairs]}, "buildArgs": values, "secrets": values,
                    "registryAuth": logins, "platforms": platforms,
                    "nixPkgs": packages, "nixLibs": packages, "aptPkgs": packages,
                    "installCommand": line, "buildCommand": line, "startCommand": line,
                },
            },
        },
        "not": {
            "required": ["token", "tokenRef"],
            "properties": {"token": some_text, "tokenRef": some_text},
        },
        "anyOf": [
            {"properties": {"type": {"enum": ["repo", "", null]}}},
            of_type("branch", &reference),
            of_type("tag", &reference),
            of_type("release", &reference),
            of_type("commit", &commit),
        ],
    })
}
