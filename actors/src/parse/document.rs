//! A body as JSON that says each thing once.
//!
//! Readers of JSON do not agree on which of two values counts where an object has a name twice, so a body
//! that has is no request: what one reader checks another one would not build.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::fields::quote;
use crate::model::build_log::cut;

/// As many doubled names are listed in a message.
const LISTED: usize = 3;

/// A value, with all that it says twice.
#[derive(Debug)]
pub(crate) struct Document {
    /// Where a name has two values that differ, it has `null`.
    pub(crate) value: Value,
    doubled: Doubled,
}

/// The names that objects have more than once.
#[derive(Debug, Default)]
struct Doubled {
    count: usize,
    /// The first of them, by their place.
    listed: Vec<String>,
    /// Whether it is doubtful whose the request is.
    owner: bool,
}

impl Document {
    /// # Errors
    /// The text is not JSON, or nested too deeply.
    pub(crate) fn read(text: &[u8]) -> Result<Self, serde_json::Error> {
        let mut doubled = Doubled::default();
        let mut reader = serde_json::Deserializer::from_slice(text);
        let value = Reader { doubled: &mut doubled, place: None }.deserialize(&mut reader)?;
        reader.end()?;
        Ok(Self { value, doubled })
    }

    /// What is wrong with a document that says something twice.
    pub(crate) fn ambiguity(&self) -> Option<String> {
        let Doubled { count, listed, .. } = &self.doubled;
        if *count == 0 {
            return None;
        }
        let mut names = listed.join(", ");
        if *count > listed.len() {
            names.push_str(&format!(" and {} more", count - listed.len()));
        }
        Some(format!("The build request has a name more than once: {names}. Give each name once."))
    }

    /// Whether the names that say whose the request is are given twice, and differ.
    pub(super) fn doubts_its_owner(&self) -> bool {
        self.doubled.owner
    }
}

/// Where in a document something is.
#[derive(Clone, Copy)]
struct Place<'a> {
    around: Option<&'a Place<'a>>,
    name: &'a str,
}

impl Place<'_> {
    fn is(&self, path: &[&str]) -> bool {
        match (path.split_last(), self.around) {
            (Some((last, [])), None) => *last == self.name,
            (Some((last, before)), Some(around)) => *last == self.name && around.is(before),
            _ => false,
        }
    }

    /// The names on the way, of which a stranger may have made any number: so only the last two.
    fn text(&self) -> String {
        match self.around {
            None => quote(self.name),
            Some(around) => quote(&format!("{}.{}", cut(around.name.to_owned(), 40), self.name)),
        }
    }
}

impl Doubled {
    fn add(&mut self, place: &Place<'_>, differ: bool) {
        self.count += 1;
        if self.listed.len() < LISTED {
            self.listed.push(place.text());
        }
        let owner: [&[&str]; 3] = [&["userID"], &["pullInfo"], &["pullInfo", "userID"]];
        self.owner |= differ && owner.iter().any(|path| place.is(path));
    }
}

/// Reads one value.
struct Reader<'a> {
    doubled: &'a mut Doubled,
    /// The name that has the value.
    place: Option<&'a Place<'a>>,
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        Ok(Number::from_f64(number).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::from(text))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let Self { doubled, place } = self;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Reader { doubled: &mut *doubled, place })? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let Self { doubled, place: around } = self;
        let mut map = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            let place = Place { around, name: &name };
            let reader = Reader { doubled: &mut *doubled, place: Some(&place) };
            let value = entries.next_value_seed(reader)?;
            let value = match map.get(&name) {
                None => value,
                Some(before) => {
                    doubled.add(&place, *before != value);
                    if *before == value { value } else { Value::Null }
                }
            };
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Document {
        Document::read(text.as_bytes()).expect("JSON")
    }

    #[test]
    fn what_says_each_thing_once_reads_as_any_reader_reads_it() {
        let text =
            r#"{"a":[1,-1,1.5,true,null,{"a":"x\n\u00e9"}],"b":{"a":{}},"c":18446744073709551615}"#;
        let document = read(text);
        assert_eq!(document.value, serde_json::from_str::<Value>(text).expect("JSON"));
        assert_eq!(document.ambiguity(), None);
        assert_eq!(read(" [7] ").value, json!([7]));
    }

    #[test]
    fn a_name_that_stands_twice_is_found_wherever_and_however_it_is_written() {
        for (text, named) in [
            (r#"{"a":1,"a":2}"#, "`a`"),
            (r#"{"a":1,"a":1}"#, "`a`"),
            (r#"{"userID":"v","\u0075serID":"w"}"#, "`userID`"),
            (r#"{"buildPlan":{"envs":{"A":"1","B":"2","A":"3"}}}"#, "`envs.A`"),
            (r#"{"buildPlan":{"envs":[{"key":"A","key":"B"}]}}"#, "`envs.key`"),
            (r#"{"not known":[[{"x":1,"x":1}]]}"#, "`not known.x`"),
            (r#"{"a":1,"a":2,"a":3,"b":1,"b":1,"c":1,"c":1}"#, "`a`, `a`, `b` and 1 more"),
        ] {
            let ambiguity = read(text).ambiguity().expect(text);
            assert!(ambiguity.contains(&format!(": {named}.")), "{text}: {ambiguity}");
        }
        for text in [r#"{"a":{"b":1},"b":1}"#, r#"[{"a":1},{"a":2}]"#, r#"{"userID":1,"userId":2}"#]
        {
            assert_eq!(read(text).ambiguity(), None, "{text}");
        }
    }

    #[test]
    fn two_values_that_differ_are_none() {
        assert_eq!(read(r#"{"a":1,"a":2,"b":1,"b":1}"#).value, json!({"a": null, "b": 1}));
        assert_eq!(read(r#"{"a":1,"a":2,"a":2}"#).value, json!({"a": null}));
    }

    #[test]
    fn whose_a_request_is_is_doubtful_only_where_two_are_named() {
        for (text, doubts) in [
            (r#"{"userID":"v","userID":"w"}"#, true),
            (r#"{"userID":"v","userID":"v"}"#, false),
            (r#"{"pullInfo":{"userID":"v"},"pullInfo":{"userID":"w"}}"#, true),
            (r#"{"pullInfo":{"userID":"v","userID":"w"}}"#, true),
            (r#"{"other":{"userID":"v","userID":"w"}}"#, false),
            (r#"{"repo":"v","repo":"w"}"#, false),
        ] {
            assert_eq!(read(text).doubts_its_owner(), doubts, "{text}");
        }
    }

    #[test]
    fn what_is_nested_or_written_without_bounds_is_no_document_and_messages_stay_short() {
        assert!(Document::read("[".repeat(100_000).as_bytes()).is_err());
        assert!(Document::read(r#"{"a":"#.repeat(100_000).as_bytes()).is_err());
        assert!(Document::read(b"1e999").is_err());
        assert!(Document::read(br#"{"a":1} x"#).is_err());
        let long = "x".repeat(100_000);
        let text = format!(r#"{{"{long}":{{"{long}":1,"{long}":2}},"{long}":1}}"#);
        assert!(read(&text).ambiguity().expect("twice").len() < 500);
    }
}
