//! What an image tells of itself: its configuration and its history.

use image_builder_actors::model::secret::Tripwire;
use image_builder_actors::ports::Exposed;
use serde::Deserialize;
use serde_json::Value;

/// An image's configuration, as the image specification writes it.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Configuration {
    #[serde(default)]
    pub(crate) author: Option<String>,
    #[serde(default)]
    pub(crate) comment: Option<String>,
    /// What containers of it begin with: variables, labels, command and so on.
    #[serde(default)]
    pub(crate) config: Value,
    /// The steps that it was made by, the first one first.
    #[serde(default)]
    pub(crate) history: Option<Vec<Step>>,
}

/// One step.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Step {
    #[serde(default)]
    pub(crate) created_by: String,
    #[serde(default)]
    pub(crate) comment: String,
    #[serde(default)]
    pub(crate) empty_layer: bool,
}

impl Configuration {
    pub(crate) fn read(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }

    /// The steps that made the layers, each its own.
    pub(crate) fn steps(&self) -> Vec<String> {
        let history = self.history.iter().flatten().filter(|step| !step.empty_layer);
        history.map(|step| step.created_by.clone()).collect()
    }

    /// The first secret that it shows.
    pub(crate) fn shows(&self, wanted: &Tripwire) -> Option<Exposed> {
        self.in_fields(wanted).or_else(|| self.in_history(wanted))
    }

    fn in_fields(&self, wanted: &Tripwire) -> Option<Exposed> {
        let fields = self.config.as_object().into_iter().flatten();
        fields
            .flat_map(|(field, value)| strings(value).into_iter().map(move |text| (field, text)))
            .find_map(|(field, text)| exposed(wanted, text, || place(field, &text)))
            .or_else(|| {
                let texts = [("Author", &self.author), ("Comment", &self.comment)];
                texts.into_iter().find_map(|(field, text)| {
                    let text = Text { name: None, text: text.as_deref()? };
                    exposed(wanted, text, || format!("its `{field}`"))
                })
            })
            .map(|mut found| {
                // The name itself may be the secret.
                if wanted.find(&found.place).is_some() {
                    found.place = "its configuration".to_owned();
                }
                found
            })
    }

    fn in_history(&self, wanted: &Tripwire) -> Option<Exposed> {
        let history = self.history.as_deref().unwrap_or_default();
        history.iter().enumerate().find_map(|(step, made)| {
            let place = || format!("its history, at step {} of {}", step + 1, history.len());
            [&made.created_by, &made.comment]
                .into_iter()
                .find_map(|text| exposed(wanted, Text { name: None, text }, place))
        })
    }
}

/// A text, with the name that it stands under.
#[derive(Clone, Copy)]
struct Text<'a> {
    name: Option<&'a str>,
    text: &'a str,
}

fn exposed(wanted: &Tripwire, text: Text<'_>, place: impl FnOnce() -> String) -> Option<Exposed> {
    let secret = wanted.find(text.text).or_else(|| wanted.find(text.name?))?;
    Some(Exposed { secret: secret.to_owned(), place: place() })
}

/// Every text in a value.
fn strings(value: &Value) -> Vec<Text<'_>> {
    match value {
        Value::String(text) => vec![Text { name: None, text }],
        Value::Array(items) => items.iter().flat_map(strings).collect(),
        Value::Object(map) => map
            .iter()
            .flat_map(|(name, value)| {
                let name = Some(name.as_str());
                let below = strings(value);
                let below = if below.is_empty() { vec![Text { name, text: "" }] } else { below };
                below.into_iter().map(move |text| Text { name, ..text })
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn place(field: &str, text: &Text<'_>) -> String {
    match (field, text.name) {
        ("Env", _) => {
            let name = text.text.split_once('=').map_or(text.text, |(name, _)| name);
            format!("the variable `{name}`")
        }
        ("Labels", Some(name)) => format!("the label `{name}`"),
        _ => format!("its `{field}`"),
    }
}

#[cfg(test)]
mod tests {
    use image_builder_actors::model::secret::Secret;

    use super::*;

    fn found(image: Value) -> Option<String> {
        let wanted = Tripwire::new([("it".to_owned(), Secret::new("hush-hush-hush"))]);
        let image: Configuration = serde_json::from_value(image).expect("a configuration");
        image.shows(&wanted).map(|found| found.place)
    }

    #[test]
    fn the_place_in_the_configuration_is_named() {
        for (config, place) in [
            (r#"{"Env": ["A=1", "B=x hush-hush-hush"]}"#, "the variable `B`"),
            (r#"{"Env": ["B=aHVzaC1odXNoLWh1c2g="]}"#, "the variable `B`"),
            (r#"{"Labels": {"a": "b", "c": "hush-hush-hush"}}"#, "the label `c`"),
            (r#"{"Labels": {"hush-hush-hush": "b"}}"#, "its configuration"),
            (r#"{"Cmd": ["sh", "-c", "a hush-hush-hush"]}"#, "its `Cmd`"),
            (r#"{"Healthcheck": {"Test": ["CMD", "hush-hush-hush"]}}"#, "its `Healthcheck`"),
            (r#"{"WorkingDir": "/hush-hush-hush"}"#, "its `WorkingDir`"),
            (r#"{"Volumes": {"/hush-hush-hush": {}}}"#, "its `Volumes`"),
        ] {
            let config: Value = serde_json::from_str(config).expect("JSON");
            let image = serde_json::json!({ "config": config });
            assert_eq!(found(image).as_deref(), Some(place), "{config}");
        }
        let author = serde_json::json!({"author": "hush-hush-hush"});
        assert_eq!(found(author).as_deref(), Some("its `Author`"));
        assert_eq!(found(serde_json::json!({"config": {"Env": ["A=hush"]}})), None);
        assert_eq!(found(serde_json::json!({})), None);
    }
}
