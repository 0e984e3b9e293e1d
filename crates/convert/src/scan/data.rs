//! Files that hold data alone, if they are what they seem: numpy arrays, safetensors, Keras models.

use std::path::{Path, PathBuf};

use safelight_format::{
    Header, LintOptions, Severity as LintSeverity, Strictness, header_bytes, lint, shown,
};
use safelight_store::ReadAt;

use super::{Rule, Scanner, Severity};
use crate::bytes::{Memory, Part, read_exact_at, read_up_to};
use crate::error::ConvertError;
use crate::flax;
use crate::hdf5;
use crate::npy;
use crate::onnx::{self, is_onnx};
use crate::open::open_file;
use crate::pickle::printable;

/// What is searched at once.
const WINDOW_BYTES: usize = 1024 * 1024;

/// What windows have in common, so that nothing of interest lies half in one and half in the next.
const DESCRIPTION_OVERLAP_BYTES: usize = 1024;

/// Longer templates are searched in parts.
const TEMPLATE_OVERLAP_BYTES: usize = 64 * 1024;

/// As far as a model file is searched for templates, which stand before the tensors.
const TEMPLATES_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// So many files of a folder, and so many models among them of at most such a size (the graph alone), are asked whether another file's
/// content is theirs.
const NEIGHBOURS_MAX: usize = 10_000;
const MODELS_MAX: usize = 4;
const MODEL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// As far as a model file is searched for layers.
const SEARCHED_BYTES_MAX: u64 = 256 * 1024 * 1024;

impl Scanner<'_> {
    /// A numpy array: one of objects is a pickle behind the header. What follows the elements is looked into as well.
    pub(super) fn npy(&mut self, bytes: &dyn ReadAt, start: &[u8], member: &str, depth: u32) {
        let header_end = npy::header_end(start);
        let Some(text) = npy::header_text(start) else {
            let why = match header_end {
                Err(why) => why,
                Ok(_) => "its header is cut off".into(),
            };
            let message = format!("a numpy array without a whole header: {why}");
            self.suspicious(Rule::NotScannable, member, 0, message);
            self.hidden_pickle(bytes, member, depth + 1);
            return;
        };
        let header = npy::parse(start);
        if let Err(why) = &header {
            let shown = printable(&text.chars().take(200).collect::<String>());
            let (severity, what) = match is_expression(&text) {
                true => (Severity::Dangerous, "would run in readers that evaluate it"),
                false => (Severity::Suspicious, "readers refuse it or differ"),
            };
            let message = format!("{why}; it {what}: {}", shown.trim());
            self.find(severity, Rule::Text, member, 0, message);
        }
        let end = header_end.ok().flatten().unwrap_or(start.len()) as u64;
        let byte_count = bytes.byte_count().unwrap_or(0);
        let part = |at: u64| Part {
            of: bytes,
            at,
            len: byte_count.saturating_sub(at),
        };
        let holds_objects = text.contains("|O") || text.contains("'O'") || text.contains("\"O\"");
        if holds_objects {
            let message = "a numpy array of objects: loading it with `allow_pickle` unpickles it";
            self.suspicious(Rule::Oddity, member, 0, message);
            self.pickle_file(&part(end), member, depth + 1);
            return;
        }
        self.hidden_pickle(&part(end), member, depth + 1);
        let Ok(header) = header else {
            return;
        };
        match header.data_bytes().and_then(|len| len.checked_add(end)) {
            Some(data_end) if data_end < byte_count => {
                let behind = byte_count - data_end;
                let message = format!("{behind} bytes behind the array's elements");
                self.suspicious(Rule::TrailingData, member, data_end, message);
                let inner = super::archive::join(member, "behind the array");
                self.blob(&part(data_end), "", &inner, depth + 1);
            }
            Some(_) => {}
            None => {
                let message = "elements of a size that nothing here knows: what follows them was not looked at";
                self.suspicious(Rule::NotScannable, member, 0, message);
            }
        }
    }

    /// A safetensors file: the format's rules, and metadata that looks like code.
    pub(super) fn safetensors(&mut self, bytes: &dyn ReadAt, start: &[u8], member: &str) {
        let file_bytes = bytes.byte_count().unwrap_or(0);
        let limits = self.limits.header;
        // Within the limit, if it is said at all; what is wrong with it the linter says.
        let mut prefix = start.to_vec();
        if let Ok(len) = header_bytes(start, file_bytes, &limits) {
            prefix.resize((len + 8) as usize, 0);
            if read_exact_at(bytes, &mut prefix, 0).is_err() {
                prefix = start.to_vec();
            }
        }
        let options = LintOptions {
            limits,
            ..LintOptions::default()
        };
        match lint(&prefix, file_bytes, &options) {
            Err(error) => self.suspicious(Rule::Safetensors, member, 0, error.to_string()),
            Ok(report) => {
                for finding in &report.findings {
                    let (severity, who) = match finding.rule.severity() {
                        LintSeverity::Error => (Severity::Suspicious, "no reader takes it"),
                        LintSeverity::Warning => (
                            Severity::Suspicious,
                            "readers that follow the format refuse it",
                        ),
                        LintSeverity::Note => (Severity::Allowed, "worth knowing"),
                    };
                    let message = format!("{who}: {} ({})", finding.explanation, finding.rule.id());
                    self.find(
                        severity,
                        Rule::Safetensors,
                        member,
                        finding.at_byte,
                        message,
                    );
                }
                self.unlisted_count += report.left_out as u64;
            }
        }
        let header = Header::parse(&prefix, file_bytes, Strictness::Compat, &limits);
        for (key, value) in header.iter().filter_map(Header::metadata).flatten() {
            if let Some(sign) = code_sign(key).or_else(|| code_sign(value)) {
                let message = format!("metadata `{}` contains `{sign}`", shown(key));
                self.suspicious(Rule::Text, member, 8, message);
            }
            let latin1: Option<Vec<u8>> = value
                .chars()
                .map(|c| u8::try_from(u32::from(c)).ok())
                .collect();
            if let Some(content) = latin1.filter(|content| content.len() > 5) {
                let inner = super::archive::join(member, &format!("metadata {key}"));
                self.only_data += 1;
                self.packed_content(&Memory(content), &inner, 1);
                self.only_data -= 1;
            }
        }
    }

    /// Keras keeps the code of some layers in the model's description, and imports what that names.
    pub(super) fn code_layers(&mut self, bytes: &dyn ReadAt, member: &str) {
        let mut window = vec![0; WINDOW_BYTES];
        let mut at = 0u64;
        while at < SEARCHED_BYTES_MAX {
            let len = read_up_to(bytes, &mut window, at).unwrap_or(0);
            if let Some((found, message)) = code_in_description(&window[..len]) {
                self.suspicious(Rule::CodeLayer, member, at + found as u64, message);
                return;
            }
            if len < window.len() {
                return;
            }
            at += (len - DESCRIPTION_OVERLAP_BYTES) as u64;
        }
        let message =
            format!("only its first {SEARCHED_BYTES_MAX} bytes were searched for layers with code");
        self.find(Severity::Allowed, Rule::CodeLayer, member, at, message);
    }
}

impl Scanner<'_> {
    /// ONNX and Flax models, which no first bytes tell: they must be sound up to their end. Which of them it is.
    pub(super) fn model_without_magic(
        &mut self,
        bytes: &dyn ReadAt,
        start: &[u8],
        member: &str,
    ) -> Option<&'static str> {
        if is_onnx(bytes) {
            match onnx::survey(member, bytes, self.limits) {
                Ok(survey) => self.asked_by_onnx(&survey, member),
                Err(error) => self.half_read("ONNX", &error, member),
            }
            return Some("ONNX");
        }
        if !flax::is_flax(start) {
            return None;
        }
        match flax::count_arrays(member, bytes, self.limits) {
            Ok(1..) => Some("Flax msgpack"),
            // Many things begin as a dictionary does; a name that says so is no array.
            Ok(0) | Err(ConvertError::Malformed { .. }) => None,
            Err(error) => {
                self.half_read("Flax msgpack", &error, member);
                Some("Flax msgpack")
            }
        }
    }

    /// An HDF5 file has others opened where its links and datasets say so, whichever those are.
    pub(super) fn content_elsewhere(&mut self, bytes: &dyn ReadAt, member: &str) {
        // What is wrong with the file itself, opening it says.
        for name in hdf5::elsewhere(member, bytes, self.limits).unwrap_or_default() {
            let name = shown(&name);
            let message = format!("`{name}` is content of another file, which reading it opens");
            self.suspicious(Rule::OtherFile, member, 0, message);
        }
    }

    /// A model that begins as one and cannot be read to its end.
    fn half_read(&mut self, kind: &str, error: &ConvertError, member: &str) {
        let message = format!("{kind} that cannot be read: {error}");
        self.suspicious(Rule::NotScannable, member, 0, message);
    }

    /// The ONNX model beside this file that says that its tensors lie in it.
    pub(super) fn model_that_names_this(&self) -> Option<String> {
        let path = self.path.as_deref()?;
        let folder = match path.parent()? {
            folder if folder.as_os_str().is_empty() => Path::new("."),
            folder => folder,
        };
        let own_name = path.file_name()?.to_str()?;
        let entries = std::fs::read_dir(folder).ok()?.take(NEIGHBOURS_MAX);
        let is_small = |path: &PathBuf| {
            let size = path.metadata().map(|metadata| metadata.len());
            size.is_ok_and(|size| size <= MODEL_BYTES_MAX)
        };
        let is_model = |path: &PathBuf| {
            path.extension().is_some_and(|ending| ending == "onnx") && is_small(path)
        };
        let models = entries.filter_map(|entry| Some(entry.ok()?.path()));
        models.filter(is_model).take(MODELS_MAX).find_map(|model| {
            let file = open_file(&model).ok()?;
            let survey = onnx::survey("", &file, self.limits).ok()?;
            let named = survey.files.contains_key(own_name);
            named.then(|| Some(model.file_name()?.to_string_lossy().into_owned()))?
        })
    }

    /// What an ONNX model has programs open and run.
    fn asked_by_onnx(&mut self, survey: &onnx::Survey, member: &str) {
        for (location, is_outside) in &survey.files {
            let location = shown(location);
            let (severity, rule, message) = match is_outside {
                true => (
                    Severity::Dangerous,
                    Rule::OtherFile,
                    format!("has `{location}` opened, which is outside of the model's folder"),
                ),
                false => (
                    Severity::Allowed,
                    Rule::OtherFile,
                    format!("has its tensors in `{location}`, beside it: scan that as well"),
                ),
            };
            self.find(severity, rule, member, 0, message);
        }
        for (domain, operator) in &survey.operators {
            let (severity, what) = match operator.as_str() {
                "PyOp" | "PythonOp" | "PythonOpGrad" | "ATen" => {
                    (Severity::Suspicious, "calls functions of Python or PyTorch")
                }
                _ => (
                    Severity::Allowed,
                    "is no operator of ONNX: whoever runs the model needs a library for it",
                ),
            };
            let message = format!("`{}` of `{}` {what}", shown(operator), shown(domain));
            self.find(severity, Rule::CodeLayer, member, 0, message);
        }
    }
}

impl Scanner<'_> {
    /// Chat templates (Jinja) that reach into Python's objects, as CVE-2024-34359 did: they are rendered with each prompt.
    pub(super) fn templates(&mut self, bytes: &dyn ReadAt, member: &str) {
        let mut window = vec![0; WINDOW_BYTES];
        let mut at = 0u64;
        while at < TEMPLATES_BYTES_MAX {
            let len = read_up_to(bytes, &mut window, at).unwrap_or(0);
            if let Some((found, word)) = escape_in_template(&window[..len]) {
                let message =
                    format!("a chat template that reaches into Python's objects with `{word}`");
                self.suspicious(Rule::Text, member, at + found as u64, message);
                return;
            }
            if len < window.len() {
                return;
            }
            at += (len - TEMPLATE_OVERLAP_BYTES) as u64;
        }
    }
}

/// Where in `text` a Jinja template begins that has a word which no honest one needs, and that word. Strings of GGUF stand apart by
/// zero bytes of their lengths, so that a vocabulary with such words is no template.
fn escape_in_template(text: &[u8]) -> Option<(usize, &'static str)> {
    const WORDS: [&str; 10] = [
        "__class__",
        "__subclasses__",
        "__mro__",
        "__base__",
        "__bases__",
        "__globals__",
        "__builtins__",
        "__import__",
        "__init__",
        "__getattribute__",
    ];
    let has = |part: &[u8], word: &str| {
        part.windows(word.len())
            .any(|window| window == word.as_bytes())
    };
    let mut at = 0;
    for part in text.split(|byte| *byte == 0) {
        let start = at;
        at += part.len() + 1;
        if part.len() < 8 || !(has(part, "{{") || has(part, "{%")) || !has(part, "__") {
            continue;
        }
        if let Some(word) = WORDS.iter().find(|word| has(part, word)) {
            return Some((start, word));
        }
    }
    None
}

/// What in the JSON of a Keras model, wherever in `text` it stands, would run code when the model is loaded: where it is,
/// and what to say.
///
/// Layers that hold code; modules other than Keras' own, which loading imports (CVE-2025-1550); functions of Python that run
/// text, and of Keras that fetch files (CVE-2025-8747); and letters written as escapes, which no writer needs and which hide all those.
fn code_in_description(text: &[u8]) -> Option<(usize, String)> {
    const LAYERS: [&str; 2] = ["Lambda", "TorchModuleWrapper"];
    const MODULES: [&str; 5] = ["keras", "tf_keras", "tensorflow", "builtins", ""];
    const FUNCTIONS: [&str; 8] = [
        "eval",
        "exec",
        "compile",
        "__import__",
        "getattr",
        "open",
        "get_file",
        "load_model",
    ];
    // Parts of Keras and TensorFlow that no layer lies in, and that read, write and fetch files.
    const PARTS: [&str; 6] = ["utils", "saving", "export", "datasets", "io", "io_ops"];
    let mut at = 0;
    while let Some(found) = text[at..].iter().position(|byte| b"\"\\".contains(byte)) {
        let start = at + found;
        let after = &text[start + 1..];
        at = start + 1;
        if text[start] == b'\\' {
            let letter = after.strip_prefix(b"u00").and_then(|hex| hex.get(..2));
            let letter = letter.and_then(|hex| str::from_utf8(hex).ok());
            let letter = letter.and_then(|hex| u8::from_str_radix(hex, 16).ok());
            if letter.is_some_and(|letter| letter.is_ascii_alphanumeric() || letter == b'_') {
                let message = "a description with letters written as escapes, which hides names";
                return Some((start, message.into()));
            }
            at += 1; // a backslash or a quote that is part of a text
            at = at.min(text.len());
            continue;
        }
        let word = |word: &str| after.strip_prefix(word.as_bytes())?.strip_prefix(b"\"");
        if let Some(layer) = LAYERS.iter().find(|layer| word(layer).is_some()) {
            return Some((start, format!("a Keras {layer} layer, which holds code")));
        }
        if let Some(module) = word("module").and_then(json_text) {
            let root = module.split('.').next().unwrap_or_default();
            if !MODULES.contains(&root) && !root.starts_with("keras_") {
                let module = printable(&module);
                let message = format!("a description that has `{module}` imported on loading");
                return Some((start, message));
            }
            if module.split('.').any(|part| PARTS.contains(&part)) {
                let module = printable(&module);
                let message = format!("a description that asks for a function of `{module}`");
                return Some((start, message));
            }
        }
        let named = ["config", "class_name", "registered_name"];
        for function in named.iter().filter_map(|key| json_text(word(key)?)) {
            let last = function.rsplit('.').next().unwrap_or_default();
            if FUNCTIONS.contains(&last) {
                let message = format!("a description that asks for the function `{last}`");
                return Some((start, message));
            }
        }
    }
    None
}

/// The text after `: "`, up to its closing quote, if it is short.
fn json_text(after: &[u8]) -> Option<String> {
    let value = after.trim_ascii_start().strip_prefix(b":")?;
    let value = value.trim_ascii_start().strip_prefix(b"\"")?;
    let len = value.iter().take(256).position(|&byte| byte == b'"')?;
    Some(String::from_utf8_lossy(&value[..len]).into_owned())
}

/// Whether a file that begins so is an array of numbers up to its end, so that no more of it needs a look.
pub(super) fn is_whole_npy(start: &[u8], byte_count: u64) -> bool {
    let Ok(header) = npy::parse(start) else {
        return false;
    };
    let end = header
        .data_bytes()
        .and_then(|len| len.checked_add(header.data_at as u64));
    end == Some(byte_count)
}

/// Whether a text has a call or an operator in it, outside of quotes: no literal.
fn is_expression(text: &str) -> bool {
    let mut quote = None;
    let mut before = ' ';
    for c in text.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == '(' && (before.is_alphanumeric() || "_)]".contains(before)) => {
                return true;
            }
            None if "+*/%@;=".contains(c) => return true,
            None => {}
        }
        if !c.is_whitespace() {
            before = c;
        }
    }
    false
}

/// A sign of code in a text that should describe a model.
fn code_sign(text: &str) -> Option<&'static str> {
    const SIGNS: &[&str] = &[
        "<script",
        "javascript:",
        "onerror=",
        "__import__(",
        "os.system(",
        "subprocess.",
        "eval(",
        "exec(",
        "pickle.loads",
        "__reduce__",
        "{{config",
        "__class__.__mro__",
        "__subclasses__",
        "data:text/html",
        "powershell ",
        "/bin/sh",
        "/bin/bash",
    ];
    let lower = text.to_ascii_lowercase();
    SIGNS.iter().copied().find(|sign| lower.contains(sign))
}
