//! `Strictness::Compat` against the `safetensors` crate 0.8.0 itself: the same verdict and the
//! same tensors on thousands of headers, whole, odd and broken. And the writer: the same bytes.
//!
//! `SAFELIGHT_DIFF_HEADERS` is how many headers are compared (80,000, as CI does).

mod common;

use std::collections::HashMap;

use common::{Rng, file};
use safelight_format::{
    Dtype, Header, HeaderPlan, Limits, LintOptions, Metadata, Order, Strictness, TensorView, lint,
};
use safetensors::SafeTensors;

/// Compares verdicts and views; returns whether the file is accepted.
fn agree(file: &[u8], seed: u64) -> bool {
    let ours = Header::parse(
        file,
        file.len() as u64,
        Strictness::Compat,
        &Limits::default(),
    );
    lint_agrees(file, seed);
    let theirs = SafeTensors::read_metadata(file);
    let text = || format!("seed {seed}: {}", file.escape_ascii());
    let (ours, (n, theirs)) = match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => (ours, theirs),
        (Err(_), Err(_)) => return false,
        (Ok(_), Err(error)) => panic!("we accept, they refuse ({error}): {}", text()),
        (Err(error), Ok(_)) => panic!("we refuse ({error}), they accept: {}", text()),
    };
    assert_eq!(ours.data_start(), n as u64 + 8, "{}", text());
    let tensors = theirs.tensors();
    assert_eq!(ours.tensors().len(), tensors.len(), "{}", text());
    for (name, info) in tensors {
        let tensor = ours
            .get(&name)
            .unwrap_or_else(|| panic!("{name} is missing: {}", text()));
        let shape: Vec<u64> = info.shape.iter().map(|&dim| dim as u64).collect();
        let offsets = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        assert_eq!(tensor.name, name);
        assert_eq!(
            (tensor.dtype.name(), tensor.shape, tensor.data_offsets),
            (&*info.dtype.to_string(), &shape[..], offsets),
            "{}",
            text()
        );
    }
    let metadata = theirs
        .metadata()
        .as_ref()
        .map(|map| map.clone().into_iter().collect::<Metadata>());
    assert_eq!(ours.metadata(), metadata.as_ref(), "{}", text());
    let spec = Header::parse(
        file,
        file.len() as u64,
        Strictness::Spec,
        &Limits::default(),
    );
    if let Ok(spec) = spec {
        assert_eq!(
            (spec.tensors(), spec.metadata()),
            (ours.tensors(), ours.metadata()),
            "{}",
            text()
        );
    }
    true
}

/// The linter's verdicts are the parser's, in both modes.
fn lint_agrees(file: &[u8], seed: u64) {
    let report = lint(file, file.len() as u64, &LintOptions::default()).expect("the file is whole");
    for strictness in [Strictness::Compat, Strictness::Spec] {
        let parsed = Header::parse(file, file.len() as u64, strictness, &Limits::default());
        assert_eq!(
            report.accepted_by(strictness),
            parsed.is_ok(),
            "seed {seed}, {strictness:?}: {}\n{:?}\n{:#?}",
            file.escape_ascii(),
            parsed.err(),
            report.findings
        );
    }
}

/// Writes headers, most of them right or a little odd.
struct Writer<'r> {
    rng: &'r mut Rng,
    json: String,
    /// One token in this many is odd.
    oddity: usize,
}

impl Writer<'_> {
    fn odd(&mut self) -> bool {
        self.rng.one_in(self.oddity)
    }

    fn token(&mut self, token: &str) {
        self.json.push_str(token);
        if self.odd() {
            let space = self
                .rng
                .pick(&[" ", "\n", "\t", "\r", "  \r\n", "\u{b}", "\u{a0}", ""]);
            self.json.push_str(space);
        }
    }

    fn string(&mut self, text: &str) {
        let mut json = String::from("\"");
        for c in text.chars() {
            match c {
                '"' | '\\' => json.extend(['\\', c]),
                c if (c as u32) < 0x20 => json.push_str(&format!("\\u{:04X}", c as u32)),
                c if self.rng.one_in(8 * self.oddity) => {
                    let mut units = [0; 2];
                    let units = c.encode_utf16(&mut units);
                    json.extend(units.iter().map(|unit| format!("\\u{unit:04x}")));
                }
                c => json.push(c),
            }
        }
        json.push('"');
        self.token(&json);
    }

    fn number(&mut self, value: u64) {
        let text = if self.odd() {
            let odd = self.rng.pick(&[
                "-1",
                "-0",
                "0.0",
                "1e0",
                "1E2",
                "007",
                "18446744073709551615",
                "18446744073709551616",
                "null",
                "\"1\"",
                "[]",
                "",
            ]);
            odd.to_owned()
        } else {
            value.to_string()
        };
        self.token(&text);
    }

    /// A list of numbers; now and then with a comma too many or too few.
    fn numbers(&mut self, values: &[u64]) {
        self.token("[");
        for (count, &value) in values.iter().enumerate() {
            if count > 0 && !self.rng.one_in(20 * self.oddity) {
                self.token(",");
            }
            self.number(value);
        }
        if self.rng.one_in(20 * self.oddity) {
            self.token(",");
        }
        self.token("]");
    }

    /// Any JSON value, also ones at the edge of what parsers take.
    fn value(&mut self, depth: usize) {
        match self.rng.below(if depth > 4 { 6 } else { 9 }) {
            0 => self.token("null"),
            1 => self.token("true"),
            2 => {
                let number = self.rng.pick(&[
                    "0",
                    "-0",
                    "12",
                    "1.5e3",
                    "1e308",
                    "1e309",
                    "2e308",
                    "0.1e309",
                    "0e99999999999",
                    "1e-99999999999",
                    "1e99999999999",
                    "123456789012345678901234567890e278",
                    "123456789012345678901234567890e279",
                    "17976931348623157e292",
                    "17976931348623159e292",
                    "18446744073709551615.99999999999999999999",
                    "1.",
                    ".1",
                    "1e",
                    "01",
                    "-",
                    "+1",
                    "NaN",
                    "1.5E-400",
                    "184467440737095516159.5e290",
                    "0.00000000000000000000000000000000001e340",
                ]);
                self.token(number);
            }
            3 => self.string("text \u{1F600} \u{e9} \" \\ \n"),
            4 => {
                let text = self.rng.pick(&[
                    r#""\ud83d\ude00""#,
                    r#""\ud83d""#,
                    r#""\udc00""#,
                    r#""\x""#,
                    r#""\/\b\f""#,
                    "\"\t\"",
                    "\"\u{7f}\"",
                    r#""\u00g0""#,
                ]);
                self.token(text);
            }
            5 => {
                let depth = 120 + self.rng.below(8);
                self.token(&"[".repeat(depth));
                self.token(&"]".repeat(depth));
            }
            6 => {
                self.token("[");
                self.value(depth + 1);
                self.token(",");
                self.value(depth + 1);
                self.token("]");
            }
            _ => {
                self.token("{");
                self.string("k");
                self.token(":");
                self.value(depth + 1);
                self.token("}");
            }
        }
    }

    fn metadata(&mut self) {
        self.string("__metadata__");
        self.token(":");
        if self.odd() {
            return self.value(0);
        }
        self.token("{");
        let count = self.rng.below(4);
        for position in 0..count {
            if position > 0 {
                self.token(",");
            }
            let key = self.rng.pick(&["format", "a", "", "ä", "\u{1}"]);
            self.string(key);
            self.token(":");
            if self.odd() {
                self.value(0)
            } else {
                self.string("pt")
            }
        }
        self.token("}");
    }

    fn entry(&mut self, dtype: Dtype, shape: &[u64], offsets: (u64, u64)) {
        if self.rng.one_in(3 * self.oddity) {
            return self.value(0);
        }
        let array = self.odd();
        self.token(if array { "[" } else { "{" });
        let mut fields = vec![0, 1, 2];
        if self.odd() {
            fields.swap(0, 2);
        }
        if self.odd() {
            fields.push(3 + self.rng.below(2));
        }
        if self.rng.one_in(3 * self.oddity) {
            let again = self.rng.below(fields.len());
            fields.push(fields[again]);
        }
        if self.rng.one_in(3 * self.oddity) {
            let gone = self.rng.below(fields.len());
            fields.remove(gone);
        }
        for (count, field) in fields.into_iter().enumerate() {
            if count > 0 {
                self.token(",");
            }
            if !array {
                self.string(["dtype", "shape", "data_offsets", "extra", ""][field]);
                self.token(":");
            }
            match field {
                0 => self.dtype(dtype),
                1 => self.numbers(shape),
                2 => self.numbers(&[offsets.0, offsets.1]),
                _ => self.value(0),
            }
        }
        self.token(if array { "]" } else { "}" });
    }

    fn dtype(&mut self, dtype: Dtype) {
        if !self.odd() {
            return self.string(dtype.name());
        }
        match self.rng.below(4) {
            0 => {
                self.token("{");
                self.string(dtype.name());
                self.token(":");
                self.token("null");
                self.token("}");
            }
            1 => {
                self.token("{");
                self.string(dtype.name());
                self.token(":");
                self.value(0);
                self.token("}");
            }
            2 => {
                let wrong = self.rng.pick(&["f32", "", "F8_E4M3FN", "E8M0", "F32 "]);
                self.string(wrong);
            }
            _ => self.value(0),
        }
    }

    /// The whole header; returns how much data it describes.
    fn header(&mut self) -> u64 {
        if self.odd() {
            let before = self.rng.pick(&[" ", "\n\t", "\u{feff}", "x", "["]);
            self.json.push_str(before);
        }
        self.token("{");
        let metadata_count = if self.odd() { 2 } else { self.rng.below(2) };
        for count in 0..metadata_count {
            if count > 0 {
                self.token(",");
            }
            self.metadata();
        }
        let (entries, data_bytes) = layout(self.rng, self.oddity);
        for (count, (name, dtype, shape, offsets)) in entries.iter().enumerate() {
            if metadata_count + count > 0 {
                self.token(",");
            }
            self.string(name);
            self.token(":");
            self.entry(*dtype, shape, *offsets);
        }
        self.token("}");
        if self.odd() {
            let behind = self.rng.pick(&["    ", "\n", "\t\r", "\0", "{}", ","]);
            self.json.push_str(behind);
        }
        data_bytes
    }
}

type Entry = (&'static str, Dtype, Vec<u64>, (u64, u64));

/// A few tensors that tile their data, in any order; now and then not quite.
fn layout(rng: &mut Rng, oddity: usize) -> (Vec<Entry>, u64) {
    let names = [
        "a",
        "b",
        "a.weight",
        "",
        "ä😀",
        "x\ny",
        "__metadata",
        "c",
        "d",
    ];
    let mut entries = Vec::new();
    let mut at = 0;
    for position in 0..rng.below(6) {
        let dtype = Dtype::ALL[rng.below(22)];
        let mut shape: Vec<u64> = (0..rng.below(4)).map(|_| rng.below(4) as u64).collect();
        if rng.one_in(2 * oddity) {
            shape.push([1 << 62, 1 << 63, u64::MAX, 0][rng.below(4)]);
        }
        let bits: u64 = shape
            .iter()
            .fold(1u64, |product, &dim| product.wrapping_mul(dim))
            .wrapping_mul(dtype.bits());
        let mut end = at + (bits / 8).min(4096);
        if rng.one_in(4 * oddity) {
            end = end.saturating_add_signed([-1, 1, 8, -8][rng.below(4)]);
        }
        let name = if rng.one_in(oddity) {
            names[rng.below(9)]
        } else {
            names[position]
        };
        entries.push((name, dtype, shape, (at, end)));
        at = end;
    }
    if entries.len() > 1 && rng.one_in(3) {
        let (i, j) = (rng.below(entries.len()), rng.below(entries.len()));
        entries.swap(i, j);
    }
    (entries, at)
}

/// One whole file: header and data, the length now and then wrong.
fn generate(seed: u64) -> Vec<u8> {
    let mut rng = Rng(seed);
    let oddity = [20, 60, 1000][rng.below(3)];
    let mut writer = Writer {
        rng: &mut rng,
        json: String::new(),
        oddity,
    };
    let data_bytes = writer.header();
    let mut file = file(&writer.json, data_bytes as usize);
    if rng.one_in(20) {
        file[0] = file[0].wrapping_add_signed([-1, 1, 2, 100][rng.below(4)]);
    }
    if rng.one_in(20) {
        file.truncate(rng.below(file.len() + 1));
    }
    file
}

/// Changes a few bytes; the length prefix follows where the header grew or shrank.
fn mutate(file: &mut Vec<u8>, rng: &mut Rng) {
    let Some(prefix) = file.first_chunk::<8>() else {
        return;
    };
    let mut header_len = u64::from_le_bytes(*prefix).min(file.len() as u64 - 8) as usize;
    for _ in 0..=rng.below(2) {
        let at = 8 + rng.below(header_len + 1);
        match rng.below(4) {
            0 if at < file.len() => {
                file[at] = *b"{}[]\":,0123456789 \\unte-.E\x00\x1f\x7f\x80\xff\xc3"[..]
                    .get(rng.below(35))
                    .unwrap_or(&b' ')
            }
            1 if at < 8 + header_len => {
                file.remove(at);
                header_len -= 1;
            }
            2 if at < 8 + header_len => {
                let bit = 1 << rng.below(8);
                file[at] ^= bit;
            }
            _ => {
                let token: &[u8] = [
                    b"{".as_slice(),
                    b"}",
                    b"\"",
                    b",",
                    b":",
                    b"0",
                    b"null",
                    b"[0,0]",
                    b"\\u0061",
                    b" ",
                    b"\"a\":",
                    b"\xc3\xa4",
                ][rng.below(12)];
                file.splice(at..at, token.iter().copied());
                header_len += token.len();
            }
        }
    }
    file[..8].copy_from_slice(&(header_len as u64).to_le_bytes());
}

#[test]
fn the_same_verdicts_and_tensors() {
    let count = std::env::var("SAFELIGHT_DIFF_HEADERS").ok();
    let count = count
        .and_then(|text| text.parse().ok())
        .unwrap_or(80_000u64);
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..count.div_ceil(4) {
        let whole = generate(seed);
        let mut rng = Rng(seed ^ 0x5eed);
        let mut file = whole.clone();
        for round in 0..4 {
            if agree(&file, seed) {
                accepted += 1
            } else {
                refused += 1
            }
            if round == 2 {
                file = whole.clone();
            }
            mutate(&mut file, &mut rng);
        }
    }
    // A generator whose files are all good or all bad would prove nothing.
    println!("{accepted} accepted, {refused} refused by both");
    let few = count / 8;
    assert!(
        accepted > few && refused > few,
        "{accepted} accepted, {refused} refused"
    );
}

#[test]
fn the_same_verdicts_on_the_edges() {
    let entry = |dtype: &str, extra: &str| {
        format!(r#"{{"a":{{"dtype":{dtype},"shape":[1],"data_offsets":[0,1]{extra}}}}}"#)
    };
    let number = |number: &str| entry("\"U8\"", &format!(",\"x\":{number}"));
    let nested = |depth: usize| number(&("[".repeat(depth) + &"]".repeat(depth)));
    let mut headers: Vec<(String, bool)> = vec![
        (entry(r#"{"U8":null}"#, ""), true),
        (entry(r#"{"\u00558":null}"#, ""), true),
        (entry(r#"{"U8":{}}"#, ""), false),
        (entry(r#"{"U8":[]}"#, ""), false),
        (entry(r#"{"U8":null,"U8":null}"#, ""), false),
        (entry(r#"{}"#, ""), false),
        (entry("4", ""), false),
        (entry("\"U8\"", r#","dtype":"U8""#), false),
        (entry("\"U8\"", r#","Dtype":"U8""#), true),
        (r#"{"a":["U8",[1],[0,1]]}"#.to_owned(), true),
        (r#"{"a":["U8",[1],[0,1],0]}"#.to_owned(), false),
        (r#"{"a":["U8",[1]]}"#.to_owned(), false),
        (r#"{"a":[{"U8":null},[1],[0,1]]}"#.to_owned(), true),
        (nested(125), true),
        (nested(126), false),
    ];
    for (text, fits) in [
        ("1e308", true),
        ("1e309", false),
        ("-1e309", false),
        ("10e308", false),
        ("0.1e309", true),
        ("0e400", true),
    ] {
        headers.push((number(text), fits));
    }
    for zeros in 285..312 {
        for digits in [
            "1",
            "9",
            "1.",
            "17976931348623157",
            "179769313486231580793728971405303415079934132710037826936173778980444968",
        ] {
            headers.push((number(&format!("{digits}{}", "0".repeat(zeros))), true)); // whatever they say
        }
    }
    for (position, (json, expected)) in headers.iter().enumerate() {
        let accepted = agree(&file(json, 1), position as u64);
        if position < 21 {
            assert_eq!(accepted, *expected, "{json}");
        }
    }
    assert!(headers.len() > 100);
}

/// Tensors as the writer takes them, owned.
type Owned = (String, Dtype, Vec<u64>, Vec<u8>);

fn random_tensors(rng: &mut Rng) -> Vec<Owned> {
    let count = rng.below(12);
    let tensor = |position: usize| {
        let dtype = Dtype::ALL[rng.below(22)];
        let mut shape: Vec<u64> = (0..rng.below(4)).map(|_| rng.below(5) as u64).collect();
        if dtype.bits() < 8 {
            shape.push(4);
        }
        let bits = shape.iter().product::<u64>() * dtype.bits();
        let stem = rng.pick(&["layer", "ä\"\\", "\u{1}\u{8}\n\u{7f}", "z"]);
        (
            format!("{stem}{position}"),
            dtype,
            shape,
            rng.bytes((bits / 8) as usize),
        )
    };
    (0..count).map(tensor).collect()
}

fn views(tensors: &[Owned]) -> Vec<TensorView<'_>> {
    tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| TensorView {
            name,
            dtype: *dtype,
            shape,
            bytes,
        })
        .collect()
}

#[test]
fn the_writer_makes_the_same_bytes() {
    let long_run = std::env::var("SAFELIGHT_DIFF_HEADERS").is_ok();
    for seed in 0..if long_run { 100_000 } else { 500 } {
        let mut rng = Rng(seed);
        let tensors = random_tensors(&mut rng);
        let metadata: Option<Metadata> = match rng.below(3) {
            0 => None,
            1 => Some(Metadata::new()),
            _ => Some(Metadata::from([(
                "format".to_owned(),
                "p\"t\u{1f}ä\u{2028}".to_owned(),
            )])),
        };
        let tensors = views(&tensors);
        if tensors.is_empty() && metadata.as_ref().is_some_and(Metadata::is_empty) {
            continue; // for this they write `{},"__metadata__":{}}`, which nobody can read
        }
        let plan = HeaderPlan::new(&tensors, metadata.as_ref(), Order::HuggingFace).unwrap();
        let theirs = tensors.iter().map(|tensor| {
            let dtype: safetensors::Dtype = their_dtype(tensor.dtype);
            let shape = tensor.shape.iter().map(|&dim| dim as usize).collect();
            (
                tensor.name,
                safetensors::tensor::TensorView::new(dtype, shape, tensor.bytes).unwrap(),
            )
        });
        let their_metadata = metadata
            .clone()
            .map(|map| map.into_iter().collect::<HashMap<_, _>>());
        let theirs = safetensors::serialize(theirs, their_metadata).unwrap();
        assert_eq!(
            plan.to_bytes(&tensors).escape_ascii().to_string(),
            theirs.escape_ascii().to_string(),
            "seed {seed}"
        );
    }
}

/// Their dtype of our name.
fn their_dtype(dtype: Dtype) -> safetensors::Dtype {
    use safetensors::Dtype as D;
    let all = [
        D::BOOL,
        D::F4,
        D::F6_E2M3,
        D::F6_E3M2,
        D::U8,
        D::I8,
        D::F8_E5M2,
        D::F8_E4M3,
        D::F8_E8M0,
        D::F8_E4M3FNUZ,
        D::F8_E5M2FNUZ,
        D::I16,
        D::U16,
        D::F16,
        D::BF16,
        D::I32,
        D::U32,
        D::F32,
        D::C64,
        D::F64,
        D::I64,
        D::U64,
    ];
    all.into_iter()
        .find(|theirs| theirs.to_string() == dtype.name())
        .expect("they have all 22")
}

#[test]
fn dtypes_have_the_same_order_and_bits() {
    for pair in Dtype::ALL.windows(2) {
        assert!(their_dtype(pair[0]) < their_dtype(pair[1]), "{pair:?}");
    }
    for dtype in Dtype::ALL {
        assert_eq!(dtype.bits(), their_dtype(dtype).bitsize() as u64, "{dtype}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    for seed in 0..500 {
        let mut rng = Rng(seed ^ 0xabcd);
        let owned = random_tensors(&mut rng);
        let tensors = views(&owned);
        let keys = (0..rng.below(5)).map(|i| (format!("k{i}\u{1}\""), "v\\\n😀".to_owned()));
        let metadata = rng.one_in(2).then(|| keys.collect::<Metadata>());
        for order in [Order::HuggingFace, Order::Insertion, Order::Name] {
            let plan = HeaderPlan::new(&tensors, metadata.as_ref(), order).unwrap();
            let file = plan.to_bytes(&tensors);
            assert_eq!(file.len() as u64, plan.file_bytes());
            let header = Header::parse(
                &file,
                file.len() as u64,
                Strictness::Spec,
                &Limits::default(),
            )
            .unwrap();
            assert_eq!(header.data_start() % 8, 0);
            assert_eq!(header.metadata(), metadata.as_ref());
            assert_eq!(header.tensors().len(), tensors.len());
            for (position, &given) in plan.order().iter().enumerate() {
                let (written, read) = (&tensors[given], header.get(tensors[given].name).unwrap());
                let start = header.data_start() as usize;
                let bytes = &file
                    [start + read.data_offsets.0 as usize..start + read.data_offsets.1 as usize];
                assert_eq!(
                    (written.dtype, written.shape, written.bytes),
                    (read.dtype, read.shape, bytes)
                );
                if !written.bytes.is_empty() {
                    let placed = header.tensors().get(position).unwrap();
                    assert_eq!(placed.name, written.name, "{order:?}");
                }
            }
            assert!(agree(&file, seed));
        }
    }
}

/// Headers of many tensors in any order, which ours sorts in a way of its own: sound, or with one thing wrong.
#[test]
fn many_tensors_in_any_order() {
    let mut accepted = 0;
    for seed in 0..60 {
        let mut rng = Rng(seed);
        let count = 200 + rng.below(3000);
        let mut end = 0;
        let mut entries: Vec<(String, u64, u64)> = (0..count)
            .map(|i| {
                let start = end;
                end += [0, 1, 2, 300, 3000][rng.below(5)];
                (format!("t{i}"), start, end)
            })
            .collect();
        for position in (1..entries.len()).rev() {
            entries.swap(position, rng.below(position + 1));
        }
        let (one, other) = (rng.below(count), rng.below(count));
        match seed % 6 {
            0 => entries[one].0 = entries[other].0.clone(),
            1 => entries[one].1 += 1,
            2 => entries[one].2 += 1,
            3 => (entries[one].1, entries[one].2) = (entries[one].2, entries[one].1),
            _ => {}
        }
        let entries = entries.iter().map(|(name, start, end)| {
            let len = end.wrapping_sub(*start);
            format!(r#""{name}":{{"dtype":"U8","shape":[{len}],"data_offsets":[{start},{end}]}}"#)
        });
        let json = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
        accepted += u32::from(agree(&file(&json, end as usize), seed));
    }
    assert!((20..60).contains(&accepted), "{accepted}");
}
