//! A header's text, taken apart and put together with room to spare.
//!
//! Spare room is spaces: behind the metadata entry if there is one (white space between entries is
//! plain JSON), so that metadata can grow without moving anything, else at the header's end. The
//! first two bytes stay `{"`, which some readers insist on.

use std::ops::Range;

use safelight_format::{HeaderPlan, Metadata, Order, TensorSpec, WriteError};

/// The key of the entry that is no tensor.
const METADATA_KEY: &str = "__metadata__";

/// The length prefix in front of the text.
pub(super) const LENGTH_BYTES: usize = 8;

/// Headers are padded to a multiple of this.
const ALIGN_BYTES: usize = 8;

/// Copies keep the data's place within a page, so that file systems can share blocks and
/// alignment stays what it was.
const PAGE_BYTES: usize = 4096;

/// A planned header with its spare room where metadata can grow into it.
pub(crate) fn spread(prefix: Vec<u8>) -> Vec<u8> {
    let json = &prefix[LENGTH_BYTES..];
    let spread = Entries::of_json(json).and_then(|entries| entries.filling(json.len()));
    match spread {
        Some(json) => [&prefix[..LENGTH_BYTES], &json].concat(),
        None => prefix,
    }
}

/// A header's entries as text, without braces, spare room, and commas at the ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entries {
    /// `"__metadata__":{…}`, or empty.
    pub(super) metadata: Vec<u8>,
    /// `"name":{…},"name":{…}`, or empty.
    pub(super) tensors: Vec<u8>,
}

impl Entries {
    /// Of a plan's text.
    pub(super) fn of_specs(
        specs: &[TensorSpec],
        metadata: Option<&Metadata>,
    ) -> Result<Entries, WriteError> {
        let options = safelight_format::PlanOptions {
            order: Order::Insertion,
            ..Default::default()
        };
        let plan = HeaderPlan::from_specs(specs, metadata, &options)?;
        let json = &plan.prefix()[LENGTH_BYTES..];
        Ok(Entries::of_json(json).expect("a plan's header is an object"))
    }

    /// Only the metadata's entry.
    pub(super) fn metadata_entry(metadata: &Metadata) -> Result<Vec<u8>, WriteError> {
        Ok(Entries::of_specs(&[], Some(metadata))?.metadata)
    }

    /// Of a header that has been parsed before; `None` if it cannot be taken apart after all.
    pub(super) fn of_json(json: &[u8]) -> Option<Entries> {
        let mut entries = Entries {
            metadata: Vec::new(),
            tensors: Vec::new(),
        };
        for entry in find_entries(json)? {
            let text = &json[entry.range];
            if entry.is_metadata {
                entries.metadata = text.to_vec();
                continue;
            }
            if !entries.tensors.is_empty() {
                entries.tensors.push(b',');
            }
            entries.tensors.extend_from_slice(text);
        }
        Some(entries)
    }

    /// How many bytes a header with these entries has at least.
    pub(super) fn least_bytes(&self) -> usize {
        let comma = !self.metadata.is_empty() && !self.tensors.is_empty();
        self.metadata.len() + self.tensors.len() + usize::from(comma) + 2
    }

    /// The header's text, exactly `header_bytes` long; `None` if that is too short.
    pub(super) fn filling(&self, header_bytes: usize) -> Option<Vec<u8>> {
        let spare = header_bytes.checked_sub(self.least_bytes())?;
        let mut json = Vec::with_capacity(header_bytes);
        json.push(b'{');
        json.extend_from_slice(&self.metadata);
        if !self.metadata.is_empty() && !self.tensors.is_empty() {
            json.push(b',');
            json.resize(json.len() + spare, b' ');
        }
        json.extend_from_slice(&self.tensors);
        json.push(b'}');
        json.resize(header_bytes, b' ');
        Some(json)
    }

    /// A length with room for these entries and `reserve_bytes` more, such that the data's place
    /// within a page stays what it was behind a header of `old_header_bytes`.
    pub(super) fn roomy_bytes(&self, old_header_bytes: usize, reserve_bytes: usize) -> usize {
        let least = (self.least_bytes() + reserve_bytes).next_multiple_of(ALIGN_BYTES);
        let old_place = old_header_bytes % PAGE_BYTES;
        let shortfall = (old_place + PAGE_BYTES - least % PAGE_BYTES) % PAGE_BYTES;
        // A file whose data was not aligned becomes aligned.
        let shortfall = shortfall.next_multiple_of(ALIGN_BYTES);
        least + shortfall
    }
}

/// The header's text with other metadata, all else where it was: in the place of the old
/// metadata, or behind the last entry if there is none; `None` if there is too little room.
pub(super) fn replace_in_slot(json: &[u8], metadata_entry: &[u8]) -> Option<Vec<u8>> {
    let entries = find_entries(json)?;
    let position = entries.iter().position(|entry| entry.is_metadata);
    let next = position.and_then(|position| entries.get(position + 1));
    let (separator, end) = match next {
        Some(next) => (b',', next.range.start),
        None => (b'}', json.len()),
    };
    let (start, comma) = match (position, entries.last()) {
        (Some(position), _) => (entries[position].range.start, &b""[..]),
        (None, Some(last)) => (last.range.end, &b","[..]),
        (None, None) => return None, // the general way knows what to do
    };
    let spare = (end - start).checked_sub(comma.len() + metadata_entry.len() + 1)?;
    let mut new = Vec::with_capacity(json.len());
    new.extend_from_slice(&json[..start]);
    new.extend_from_slice(comma);
    new.extend_from_slice(metadata_entry);
    new.push(separator);
    new.resize(new.len() + spare, b' ');
    new.extend_from_slice(&json[end..]);
    Some(new)
}

/// The range in which two texts of one length differ; `None` if they do not.
pub(super) fn difference(old: &[u8], new: &[u8]) -> Option<Range<usize>> {
    assert_eq!(old.len(), new.len());
    let start = old.iter().zip(new).position(|(old, new)| old != new)?;
    let same_behind = old.iter().rev().zip(new.iter().rev());
    let same_behind = same_behind.take_while(|(old, new)| old == new).count();
    Some(start..old.len() - same_behind)
}

struct Entry {
    /// From the key's quote to behind the value.
    range: Range<usize>,
    is_metadata: bool,
}

/// Where the entries of the outermost object are. The text is JSON (a parser has seen it), so this
/// only has to tell strings and nesting apart; anything odd gives `None`.
fn find_entries(json: &[u8]) -> Option<Vec<Entry>> {
    let mut at = skip_white(json, 0);
    let mut entries = Vec::new();
    if json.get(at) != Some(&b'{') {
        return None;
    }
    at = skip_white(json, at + 1);
    if json.get(at) == Some(&b'}') {
        return Some(entries);
    }
    loop {
        let start = at;
        let key_end = skip_string(json, start)?;
        at = skip_white(json, key_end);
        if json.get(at) != Some(&b':') {
            return None;
        }
        at = skip_value(json, skip_white(json, at + 1))?;
        let is_metadata = is_metadata(&json[start..key_end]);
        entries.push(Entry {
            range: start..at,
            is_metadata,
        });
        at = skip_white(json, at);
        match json.get(at)? {
            b',' => at = skip_white(json, at + 1),
            b'}' => return Some(entries),
            _ => return None,
        }
    }
}

fn is_metadata(key: &[u8]) -> bool {
    let plain = &key[1..key.len() - 1];
    plain == METADATA_KEY.as_bytes()
        || (plain.contains(&b'\\')
            && serde_json::from_slice::<String>(key).is_ok_and(|key| key == METADATA_KEY))
}

fn skip_white(json: &[u8], mut at: usize) -> usize {
    while matches!(json.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// The byte behind a string that starts at `at`.
fn skip_string(json: &[u8], at: usize) -> Option<usize> {
    if json.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    loop {
        match json.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// The byte behind a value that starts at `at`.
fn skip_value(json: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0usize;
    loop {
        match json.get(at)? {
            b'"' => at = skip_string(json, at)?,
            b'{' | b'[' => (depth, at) = (depth + 1, at + 1),
            b'}' | b']' if depth > 0 => (depth, at) = (depth - 1, at + 1),
            b'}' | b',' if depth == 0 => return Some(at), // behind a number or `null`
            _ => {
                at += 1;
                continue;
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = r#"{"__metadata__":{"k":"}\",{"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":[1,"]"]}  "#;

    #[test]
    fn taken_apart_and_put_together() {
        let entries = Entries::of_json(HEADER.as_bytes()).unwrap();
        assert_eq!(entries.metadata, br#""__metadata__":{"k":"}\",{"}"#);
        let trimmed = HEADER.trim_end();
        assert_eq!(entries.least_bytes(), trimmed.len());
        let least = entries.filling(trimmed.len()).unwrap();
        assert_eq!(String::from_utf8(least).unwrap(), trimmed);
        assert_eq!(entries.filling(trimmed.len() - 1), None);
        let roomy = entries.filling(trimmed.len() + 3).unwrap();
        let expected = trimmed.replace(r#"},"a""#, r#"},   "a""#);
        assert_eq!(String::from_utf8(roomy).unwrap(), expected);
    }

    #[test]
    fn odd_texts() {
        let tensors = |json: &str| {
            let entries = Entries::of_json(json.as_bytes())?;
            Some(String::from_utf8(entries.tensors).unwrap())
        };
        assert_eq!(tensors("{}").as_deref(), Some(""));
        assert_eq!(tensors(" { \n} ").as_deref(), Some(""));
        assert_eq!(
            tensors(r#"{"a" : 1 , "b":null}"#).as_deref(),
            Some(r#""a" : 1 ,"b":null"#)
        );
        assert_eq!(
            tensors(r#"{"\u005f_metadata__":null}"#).as_deref(),
            Some("")
        );
        for broken in [
            "",
            "[",
            "{",
            r#"{"a"#,
            r#"{"a""#,
            r#"{"a":"#,
            r#"{"a":1"#,
            r#"{"a":{}"#,
            r#"{a:1}"#,
            r#"{"a":1]"#,
        ] {
            assert_eq!(tensors(broken), None, "{broken}");
        }
    }

    #[test]
    fn metadata_in_its_slot() {
        let check = |json: &str, entry: &str, expected: Option<&str>| {
            let new = replace_in_slot(json.as_bytes(), entry.as_bytes());
            assert_eq!(
                new.map(|new| String::from_utf8(new).unwrap()).as_deref(),
                expected
            );
        };
        check(
            r#"{"__metadata__":{"k":"vv"},"a":1} "#,
            r#""__metadata__":{}"#,
            Some(r#"{"__metadata__":{},        "a":1} "#),
        );
        check(
            r#"{"__metadata__":{},  "a":1}"#,
            r#""__metadata__":{12}"#,
            Some(r#"{"__metadata__":{12},"a":1}"#),
        );
        check(
            r#"{"__metadata__":{},  "a":1}"#,
            r#""__metadata__":{123}"#,
            None,
        );
        check(
            r#"{"a":1,"__metadata__":{}}  "#,
            r#""__metadata__":{12}"#,
            Some(r#"{"a":1,"__metadata__":{12}}"#),
        );
        check(
            r#"{"a":1}                  "#,
            r#""__metadata__":{}"#,
            Some(r#"{"a":1,"__metadata__":{}}"#),
        );
        check(r#"{"a":1}                 "#, r#""__metadata__":{}"#, None);
        check("{}                       ", r#""__metadata__":{}"#, None);
    }

    #[test]
    fn lengths_keep_the_place_within_a_page() {
        let entries = Entries::of_json(HEADER.as_bytes()).unwrap();
        for (old, reserve) in [(96, 0), (4088, 0), (4088, 4096), (56, 10_000), (10_000, 1)] {
            let new = entries.roomy_bytes(old, reserve);
            assert!(
                new >= entries.least_bytes() + reserve,
                "{old} {reserve} {new}"
            );
            assert_eq!(new % PAGE_BYTES, old % PAGE_BYTES, "{old} {reserve} {new}");
            assert!(new < entries.least_bytes() + reserve + 2 * PAGE_BYTES);
        }
        assert_eq!(
            entries.roomy_bytes(101, 0) % 8,
            0,
            "an odd old length is mended"
        );
    }

    #[test]
    fn differences() {
        assert_eq!(difference(b"abc", b"abc"), None);
        assert_eq!(difference(b"abcde", b"aXcYe"), Some(1..4));
        assert_eq!(difference(b"aa", b"ab"), Some(1..2));
        assert_eq!(difference(b"aaaa", b"abaa"), Some(1..2));
    }
}
