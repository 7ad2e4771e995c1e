//! Whether an answer is one that the API's own description has.

use serde_json::Value;

use super::super::openapi::DOCUMENT;

/// The description.
pub(super) fn document() -> Value {
    serde_json::from_str(&DOCUMENT).expect("it is JSON")
}

/// Checks that the description has this answer. `content` is its media type, if it has a body.
#[track_caller]
pub(super) fn assert_described(method: &str, path: &str, status: u16, content: &str, body: &str) {
    let document = document();
    let paths = document["paths"].as_object().expect("paths");
    let Some((_, route)) = paths.iter().find(|(template, _)| fits(template, path)) else {
        assert_eq!(status, 404, "{path} is described nowhere");
        return;
    };
    let method = if method == "HEAD" { "GET" } else { method };
    let operation = &route[method.to_lowercase()];
    if operation.is_null() {
        assert_eq!(status, 405, "{method} {path} is described nowhere");
        return;
    }
    let answer = &operation["responses"][status.to_string()];
    assert!(answer.is_object(), "{method} {path} does not describe {status}: {body}");
    let kind = content.split(';').next().unwrap_or_default();
    let described = &answer["content"][kind];
    assert!(kind.is_empty() || described.is_object(), "{method} {path} {status}: {kind}");
    if kind.ends_with("json") {
        let value: Value = serde_json::from_str(body).expect("it is JSON");
        check(&document, &described["schema"], &value, &format!("{method} {path} {status}"));
    }
}

fn fits(template: &str, path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    let (template, path): (Vec<_>, Vec<_>) =
        (template.split('/').collect(), path.split('/').collect());
    template.len() == path.len()
        && template.iter().zip(path).all(|(part, of)| part.starts_with('{') || *part == of)
}

/// Checks what of JSON schema this description uses.
#[track_caller]
fn check(document: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.strip_prefix('#').expect("it is in the document");
        let schema =
            document.pointer(name).unwrap_or_else(|| panic!("{name} is described nowhere"));
        return check(document, schema, value, at);
    }
    if let Some(values) = schema["enum"].as_array() {
        assert!(values.contains(value), "{at}: {value} is none of {values:?}");
    }
    if let Some(of) = schema.get("type") {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let types = of.as_array().cloned().unwrap_or_else(|| vec![of.clone()]);
        assert!(types.iter().any(|kind| kind == found), "{at}: {value} is no {types:?}");
    }
    if let (Some(fields), Some(properties)) = (value.as_object(), schema["properties"].as_object())
    {
        for name in schema["required"].as_array().into_iter().flatten() {
            let name = name.as_str().expect("a name");
            assert!(fields.contains_key(name), "{at}: there is no {name}");
        }
        for (name, value) in fields {
            let schema = properties.get(name);
            let schema = schema.unwrap_or_else(|| panic!("{at}: {name} is described nowhere"));
            check(document, schema, value, &format!("{at}.{name}"));
        }
    }
    for (number, item) in value.as_array().into_iter().flatten().enumerate() {
        check(document, &schema["items"], item, &format!("{at}[{number}]"));
    }
}
