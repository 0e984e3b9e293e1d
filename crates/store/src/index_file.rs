//! The text of an index: JSON of one form, in which nothing may stand twice.

use std::collections::HashSet;
use std::fmt;

use safelight_format::shown;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Longer than the index of any model: 10⁶ tensors with names of 200 bytes.
pub(crate) const INDEX_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// What an index says.
pub(crate) struct IndexText {
    /// Each tensor and the name of its shard, sorted.
    pub(crate) weight_map: Vec<(String, String)>,
    /// The bytes of all tensors, if it says so.
    pub(crate) total_size: Option<u64>,
    /// It has a `total_size` that is no number of bytes.
    pub(crate) size_is_odd: bool,
}

/// Reads an index; the error says what is wrong with it.
pub(crate) fn parse(text: &[u8]) -> Result<IndexText, String> {
    if text.len() as u64 > INDEX_BYTES_MAX {
        return Err(format!("it has more than {INDEX_BYTES_MAX} bytes"));
    }
    if text.starts_with(b"\xef\xbb\xbf") {
        let problem = "it begins with a byte order mark, which JSON does not allow; save it as UTF-8 without one";
        return Err(problem.to_owned());
    }
    let json: Json = serde_json::from_slice(text).map_err(|error| format!("not JSON: {error}"))?;
    let Json::Object(members) = json else {
        return Err("it has no object `weight_map`".to_owned());
    };
    let mut weight_map = None;
    let mut total_size = None;
    let mut size_is_odd = false;
    let mut seen = HashSet::new();
    for (key, value) in members {
        if !seen.insert(key.clone()) {
            return Err(format!("it has the key `{}` twice", shown(&key)));
        }
        match (key.as_str(), value) {
            ("weight_map", Json::Object(tensors)) => weight_map = Some(tensors),
            ("metadata", Json::Object(metadata)) => {
                total_size = size(&metadata);
                size_is_odd =
                    total_size.is_none() && metadata.iter().any(|(key, _)| key == "total_size");
            }
            _ => {}
        }
    }
    let weight_map = weight_map.ok_or("it has no object `weight_map`")?;
    Ok(IndexText {
        weight_map: pairs(weight_map)?,
        total_size,
        size_is_odd,
    })
}

/// A shard's name without the parts that mean nothing: `./a//b` is `a/b`.
fn plain(shard: &str) -> String {
    if shard.contains("://") {
        return shard.to_owned(); // a URL: its slashes mean something, and who asks for shards refuses it
    }
    let parts = shard.split('/').enumerate();
    let parts = parts.filter(|(at, part)| *part != "." && (*at == 0 || !part.is_empty()));
    let parts: Vec<&str> = parts.map(|(_, part)| part).collect();
    parts.join("/")
}

fn size(metadata: &[(String, Json)]) -> Option<u64> {
    metadata.iter().find_map(|(key, value)| match value {
        Json::Integer(size) if key == "total_size" => Some(*size),
        _ => None,
    })
}

fn pairs(tensors: Vec<(String, Json)>) -> Result<Vec<(String, String)>, String> {
    let mut listed = Vec::with_capacity(tensors.len());
    let mut seen = HashSet::with_capacity(tensors.len());
    for (tensor, shard) in tensors {
        let Json::Text(shard) = shard else {
            return Err(format!(
                "`weight_map` gives tensor `{}` no file name",
                shown(&tensor)
            ));
        };
        if !seen.insert(tensor.clone()) {
            return Err(format!(
                "`weight_map` has tensor `{}` twice",
                shown(&tensor)
            ));
        }
        listed.push((tensor, plain(&shard)));
    }
    listed.sort_unstable();
    Ok(listed)
}

/// As much of JSON as an index needs; unlike `serde_json::Value` it keeps members that stand twice.
enum Json {
    Object(Vec<(String, Json)>),
    Text(String),
    Integer(u64),
    Other,
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Json::Object(members))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Json::Other)
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Integer(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
        // Some programs write `1024.0`; an f64 has all integers up to 2^53.
        let whole = number.fract() == 0.0 && (0.0..9e15).contains(&number);
        Ok(if whole {
            Json::Integer(number as u64)
        } else {
            Json::Other
        })
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_pairs() {
        let index = parse(
            br#"{"metadata":{"total_size":1024.0,"x":[1,{}]},"weight_map":{"b":"1","a":"2"}}"#,
        );
        let index = index.unwrap();
        assert_eq!(index.total_size, Some(1024));
        let pairs = [("a", "2"), ("b", "1")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(index.weight_map, pairs);
        for size in ["-1", "1.5", "\"9\"", "true", "null"] {
            let text = format!(r#"{{"weight_map":{{}},"metadata":{{"total_size":{size}}}}}"#);
            let index = parse(text.as_bytes()).unwrap();
            assert_eq!((index.total_size, index.size_is_odd), (None, true));
        }
    }

    #[test]
    fn names_without_what_means_nothing() {
        for (shard, name) in [
            ("./b.safetensors", "b.safetensors"),
            ("././a/.//b", "a/b"),
            ("/etc/passwd", "/etc/passwd"),
            ("../a", "../a"),
            ("http://other/a", "http://other/a"),
            (".", ""),
            ("", ""),
        ] {
            assert_eq!(plain(shard), name, "{shard}");
        }
        let marked = parse(b"\xef\xbb\xbf{\"weight_map\":{}}").err().unwrap();
        assert!(marked.contains("byte order mark"), "{marked}");
    }

    #[track_caller]
    fn refused(text: &str, problem: &str) {
        assert_eq!(parse(text.as_bytes()).err().as_deref(), Some(problem));
    }

    #[test]
    fn nothing_stands_twice() {
        refused(
            r#"{"weight_map":{"a":"1","a":"1"}}"#,
            "`weight_map` has tensor `a` twice",
        );
        refused(
            r#"{"weight_map":{"a":"1","\u0061":"2"}}"#,
            "`weight_map` has tensor `a` twice",
        );
        refused(
            r#"{"weight_map":{},"weight_map":{}}"#,
            "it has the key `weight_map` twice",
        );
        refused(r#"{"weight_map":[]}"#, "it has no object `weight_map`");
        refused("[]", "it has no object `weight_map`");
        assert!(parse(b"{").is_err() && parse(&[b'['; 100_000]).is_err());
    }
}
