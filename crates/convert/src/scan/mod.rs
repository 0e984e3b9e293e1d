//! What a file would do if it were loaded: every global a pickle names, every call it would make, wherever it hides.
//!
//! Nothing is executed. A file is judged by its content, never by its name; archives are opened, and whatever
//! cannot be looked into is a finding itself, so that nothing passes in silence.

mod archive;
mod data;
mod pickles;
mod sarif;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use safelight_format::{FileKind, shown, sniff};
use safelight_store::ReadAt;

pub use sarif::sarif;

use crate::bytes::read_up_to;
use crate::error::ConvertError;
use crate::open::open_file;
use crate::pickle::printable;
use crate::source::Limits;

/// As many first bytes as tell every kind.
const SNIFFED_BYTES: usize = 64 * 1024;

/// Archives in archives, pickles in pickles: no deeper than this.
const DEPTH_MAX: u32 = 8;

/// Unpacked content that is in memory at a time, in archives within archives together.
const HELD_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// What is unpacked of one file altogether, and compared with checksums: so much, and so many times what the file has.
const WORK_BYTES_FREE: u64 = 512 * 1024 * 1024;
const WORK_TIMES_MAX: u64 = 16;

/// Endings of names that programs unpickle, whatever the content is.
const LOADED_AS_PICKLES: &str =
    "pkl pickle p pt pth ckpt bin dill joblib dat data pk model npy npz";

/// What is said before all that is found in byte strings that nothing in the file loads.
const ONLY_DATA: &str = "if a program loads this string in turn: ";

/// Findings beyond this many are counted only.
const FINDING_COUNT_MAX: usize = 2000;

/// How bad a finding is, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Known to be harmless: how tensors and plain data are written.
    Allowed,
    /// Unknown, broken, contradictory or impossible to look into.
    Suspicious,
    /// Known to run code, open files or reach the network.
    Dangerous,
}

impl Severity {
    /// The word for it: `allowed`, `suspicious`, `dangerous`.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Allowed => "allowed",
            Severity::Suspicious => "suspicious",
            Severity::Dangerous => "dangerous",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What a finding is about. The names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// A pickle names a class or function.
    Global,
    /// A pickle would call something.
    Call,
    /// A pickle would set the attributes of something that is no object of its own.
    Attributes,
    /// A pickle cannot be followed to its end.
    BrokenPickle,
    /// Something honest pickles do not have.
    Oddity,
    /// Bytes where a file should have ended.
    TrailingData,
    /// An archive that contradicts itself.
    Archive,
    /// A file that is two kinds of file at once.
    Polyglot,
    /// Nothing here can look into it.
    NotScannable,
    /// A safetensors file that breaks the format's rules.
    Safetensors,
    /// Text that a careless program could take for code.
    Text,
    /// A model whose layers hold code.
    CodeLayer,
    /// A model that has other files opened.
    OtherFile,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Rule; 13] = [
        Rule::Global,
        Rule::Call,
        Rule::Attributes,
        Rule::BrokenPickle,
        Rule::Oddity,
        Rule::TrailingData,
        Rule::Archive,
        Rule::Polyglot,
        Rule::NotScannable,
        Rule::Safetensors,
        Rule::Text,
        Rule::CodeLayer,
        Rule::OtherFile,
    ];

    /// Its stable name, such as `pickle-call`.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Global => "pickle-global",
            Rule::Call => "pickle-call",
            Rule::Attributes => "pickle-attributes",
            Rule::BrokenPickle => "pickle-broken",
            Rule::Oddity => "pickle-oddity",
            Rule::TrailingData => "trailing-data",
            Rule::Archive => "archive-contradiction",
            Rule::Polyglot => "two-kinds-at-once",
            Rule::NotScannable => "not-scannable",
            Rule::Safetensors => "safetensors-rule",
            Rule::Text => "text-like-code",
            Rule::CodeLayer => "code-in-model",
            Rule::OtherFile => "other-file",
        }
    }

    /// One sentence about it.
    pub fn description(self) -> &'static str {
        match self {
            Rule::Global => "A pickle names a class or function, which loading it would import.",
            Rule::Call => "Loading the pickle would call this.",
            Rule::Attributes => "Loading the pickle would change a class, function or module.",
            Rule::BrokenPickle => {
                "The pickle cannot be followed to its end; loaders run what comes before."
            }
            Rule::Oddity => "Something in the pickle that honest ones do not have.",
            Rule::TrailingData => "Bytes behind the end of the content.",
            Rule::Archive => {
                "The archive contradicts itself: two programs can see two different contents."
            }
            Rule::Polyglot => "The file is two kinds of file at once.",
            Rule::NotScannable => "Nothing here can look into it.",
            Rule::Safetensors => "The file breaks a rule of the safetensors format.",
            Rule::Text => "Metadata that a careless program could take for code.",
            Rule::CodeLayer => "The model has layers that hold code, which loading it would run.",
            Rule::OtherFile => "Loading the model opens other files.",
        }
    }
}

/// Something found in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// What it is about.
    pub rule: Rule,
    /// Where in the file: members of archives, one within the other, joined by `!`; empty for the file itself. Foreign text.
    pub member: String,
    /// The byte within the member.
    pub at_byte: u64,
    /// What, such as ``would have run: os.system('id')``. Foreign text in part.
    pub message: String,
    /// How often (globals are told once).
    pub count: u64,
}

/// What a file is and what was found in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanReport {
    /// The file's path.
    pub file: String,
    /// What the file is, in words.
    pub kind: String,
    /// All findings, the worst first.
    pub findings: Vec<Finding>,
    /// How many more findings there were than are listed.
    pub unlisted_count: u64,
}

impl ScanReport {
    /// How bad the worst finding is; `None` without any.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    /// Whether nothing worse than allowed was found.
    pub fn is_clean(&self) -> bool {
        self.worst() <= Some(Severity::Allowed)
    }
}

/// Scans a file. The limits bound what is unpacked and remembered; what goes beyond is a finding.
///
/// # Errors
/// [`ConvertError::Io`] if the file cannot be read, or if another program writes to it meanwhile: what was seen of it then is
/// neither the old file nor the new one.
pub fn scan(path: &Path, limits: &Limits) -> Result<ScanReport, ConvertError> {
    // Asked before it is opened: opening a pipe waits for a writer.
    let metadata = std::fs::metadata(path).map_err(ConvertError::io("open", path))?;
    if !metadata.is_file() {
        let what = "a folder, device or pipe, where a file is expected";
        return Err(ConvertError::unsupported(&path.to_string_lossy(), "", what));
    }
    let file = open_file(path)?;
    scan_at(&path.to_string_lossy(), &file, limits, Some(path))
}

/// As [`scan`], of anything that can be read at positions. `label` is its name, whose ending counts only where the
/// content says nothing.
///
/// # Errors
/// As [`scan`].
pub fn scan_bytes(
    label: &str,
    bytes: &dyn ReadAt,
    limits: &Limits,
) -> Result<ScanReport, ConvertError> {
    scan_at(label, bytes, limits, None)
}

/// `path` is where the file lies, if it is one: what lies beside it can explain it.
fn scan_at(
    label: &str,
    bytes: &dyn ReadAt,
    limits: &Limits,
    path: Option<&Path>,
) -> Result<ScanReport, ConvertError> {
    let bytes = Watched::new(bytes);
    let mut scanner = Scanner::new(limits, &bytes);
    scanner.path = path.map(Path::to_owned);
    let kind = scanner.blob(&bytes, label, "", 0);
    if let Some(error) = bytes.ended().or(scanner.error) {
        let (doing, file) = ("read", label.to_owned());
        return Err(ConvertError::Io { doing, file, error });
    }
    let mut findings = scanner.findings;
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(ScanReport {
        file: label.to_owned(),
        kind,
        findings,
        unlisted_count: scanner.unlisted_count,
    })
}

/// What in a file would run, change or deceive if other programs loaded it, the worst first: for those who convert it here, where
/// nothing of it runs. Quicker than [`scan`]: checksums are not compared, and what is told is only what an attack needs.
///
/// # Errors
/// As [`scan`].
pub fn warnings(path: &Path, limits: &Limits) -> Result<Vec<Finding>, ConvertError> {
    let file = open_file(path)?;
    let bytes = Watched::new(&file);
    let mut scanner = Scanner::new(limits, &bytes);
    scanner.is_quick = true;
    scanner.blob(&bytes, &path.to_string_lossy(), "", 0);
    if let Some(error) = bytes.ended().or(scanner.error) {
        return Err(ConvertError::io("read", path)(error));
    }
    let mut findings = scanner.findings;
    findings.retain(|finding| {
        let is_attack = !matches!(
            finding.rule,
            Rule::NotScannable | Rule::Safetensors | Rule::CodeLayer
        );
        is_attack && finding.severity > Severity::Allowed
    });
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(findings)
}

/// Bytes whose first error is kept, so that it ends the scan even where whoever read took it for the end of the bytes.
struct Watched<'a> {
    of: &'a dyn ReadAt,
    error: Mutex<Option<io::Error>>,
}

impl<'a> Watched<'a> {
    fn new(of: &'a dyn ReadAt) -> Watched<'a> {
        let error = Mutex::new(None);
        Watched { of, error }
    }

    fn keep<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            let told = io::Error::new(error.kind(), error.to_string());
            if error.kind() != io::ErrorKind::Interrupted {
                let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert(error);
            }
            told
        })
    }

    /// The first error. Reads once more, which is when a file says that it changed since the last time.
    fn ended(self) -> Option<io::Error> {
        let _ = read_up_to(&self, &mut [0], 0);
        self.error
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadAt for Watched<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.keep(self.of.read_at(buffer, offset))
    }

    fn byte_count(&self) -> io::Result<u64> {
        self.keep(self.of.byte_count())
    }
}

/// Collects findings, however deep they lie.
struct Scanner<'l> {
    limits: &'l Limits,
    /// Where the file lies, if it is one.
    path: Option<PathBuf>,
    findings: Vec<Finding>,
    unlisted_count: u64,
    /// With so many findings listed, none of them is milder than this.
    full_below: Severity,
    error: Option<io::Error>,
    /// Bytes of unpacked content that are in memory now.
    held_bytes: u64,
    /// Bytes that may still be unpacked or compared.
    work_left: u64,
    /// Leaves out what takes long and is no sign of an attack.
    is_quick: bool,
    /// How many byte strings this one lies in that nothing in the file loads: what it would run, it would run only if another
    /// program loaded it.
    only_data: u32,
    /// How many storages with files of their own this one lies in: what is allowed is not told again for each of them.
    nested: u32,
}

impl<'l> Scanner<'l> {
    fn new(limits: &'l Limits, bytes: &dyn ReadAt) -> Scanner<'l> {
        let byte_count = bytes.byte_count().unwrap_or(0);
        Scanner {
            limits,
            path: None,
            findings: Vec::new(),
            unlisted_count: 0,
            full_below: Severity::Allowed,
            error: None,
            held_bytes: 0,
            work_left: byte_count
                .saturating_mul(WORK_TIMES_MAX)
                .saturating_add(WORK_BYTES_FREE),
            is_quick: false,
            only_data: 0,
            nested: 0,
        }
    }
}

/// Whether a name ends as those of files that programs unpickle; which ending.
fn loaded_as_pickle(name: &str) -> Option<String> {
    let extension = Path::new(name).extension()?;
    let extension = extension.to_string_lossy().to_ascii_lowercase();
    LOADED_AS_PICKLES
        .split(' ')
        .any(|listed| listed == extension)
        .then_some(extension)
}

/// Whether a member of an archive is one that loaders unpickle: `data.pkl`.
fn is_pickle_member(name: &str, depth: u32) -> bool {
    depth > 0 && name.to_ascii_lowercase().ends_with(".pkl")
}

impl Scanner<'_> {
    fn find(
        &mut self,
        severity: Severity,
        rule: Rule,
        member: &str,
        at_byte: u64,
        message: impl Into<String>,
    ) {
        self.add(Finding {
            severity,
            rule,
            member: member.to_owned(),
            at_byte,
            message: message.into(),
            count: 1,
        });
    }

    /// Adds a finding; whatever of the file is in its message can be printed after this.
    fn add(&mut self, mut finding: Finding) {
        if finding.severity == Severity::Allowed && self.nested + self.only_data > 0 {
            return;
        }
        finding.message = printable(&finding.message);
        if self.only_data > 0 {
            finding.severity = finding.severity.min(Severity::Suspicious);
            finding.message.insert_str(0, ONLY_DATA);
        }
        // What is worse is never left out for what is not.
        let room = match finding.severity {
            Severity::Allowed => FINDING_COUNT_MAX / 2,
            _ => FINDING_COUNT_MAX,
        };
        if self.findings.len() < room {
            self.findings.push(finding);
            return;
        }
        self.unlisted_count += 1;
        // Whoever is left out once leaves no room for others that are as mild.
        if self.full_below >= finding.severity {
            return;
        }
        let milder = |listed: &Finding| listed.severity < finding.severity;
        match self.findings.iter().position(milder) {
            Some(position) => self.findings[position] = finding,
            None => self.full_below = finding.severity,
        }
    }

    fn suspicious(&mut self, rule: Rule, member: &str, at_byte: u64, message: impl Into<String>) {
        self.find(Severity::Suspicious, rule, member, at_byte, message);
    }

    /// Looks into some bytes, whatever they are; says what they are.
    fn blob(&mut self, bytes: &dyn ReadAt, name: &str, member: &str, depth: u32) -> String {
        let kind = self.look(bytes, name, member, depth);
        let is_pickle = kind.contains("pickle") || kind.starts_with("PyTorch");
        if is_pickle_member(name, depth) && !is_pickle {
            let message = format!(
                "named as a pickle, but no pickle: {kind}; loaders fail on it, or it hides something"
            );
            self.suspicious(Rule::BrokenPickle, member, 0, message);
        }
        kind
    }

    fn look(&mut self, bytes: &dyn ReadAt, name: &str, member: &str, depth: u32) -> String {
        let mut start = vec![0; SNIFFED_BYTES];
        let len = match read_up_to(bytes, &mut start, 0) {
            Ok(len) => len,
            Err(error) => {
                self.error.get_or_insert(error);
                return "unreadable".into();
            }
        };
        start.truncate(len);
        if depth > DEPTH_MAX {
            let message = format!("packed {DEPTH_MAX} times in one another: not looked into");
            self.suspicious(Rule::NotScannable, member, 0, message);
            return "packed too deep".into();
        }
        if start.is_empty() {
            self.misnamed(name, "empty", member, depth);
            return "empty".into();
        }
        let is_safetensors = start.get(8) == Some(&b'{') && start[4..8] == [0; 4];
        let kind = if is_safetensors { None } else { sniff(&start) };
        let is_zip = matches!(kind, Some(FileKind::TorchZip | FileKind::Zip));
        let holds_zip = archive::ends_as_zip(bytes);
        if holds_zip && !is_zip {
            let message = "a zip archive hangs at its end: programs that look for one will find it";
            self.suspicious(Rule::Polyglot, member, 0, message);
        }
        if is_zip || holds_zip {
            self.zip(bytes, member, depth);
        }
        match kind {
            _ if is_safetensors => {
                self.hidden_pickle(bytes, member, depth);
                self.safetensors(bytes, &start, member);
                "safetensors".into()
            }
            Some(FileKind::TorchZip) => "PyTorch zip".into(),
            Some(FileKind::Zip) => "zip archive".into(),
            Some(FileKind::Pickle) => self.pickle_file(bytes, member, depth),
            Some(kind) => self.known(kind, bytes, &start, (name, member, depth)),
            None => self.unknown(bytes, &start, (name, member, depth)),
        }
    }

    /// A kind of file that is neither zip nor pickle.
    fn known(
        &mut self,
        kind: FileKind,
        bytes: &dyn ReadAt,
        start: &[u8],
        at: (&str, &str, u32),
    ) -> String {
        let (name, member, depth) = at;
        match kind {
            FileKind::Zeros
            | FileKind::Html
            | FileKind::Xml
            | FileKind::Json
            | FileKind::Png
            | FileKind::Jpeg
            | FileKind::Webp
            | FileKind::Pdf => self.misnamed(name, &kind.to_string(), member, depth),
            _ => {}
        }
        match kind {
            FileKind::Gzip => self.compressed(bytes, archive::Packing::Gzip, member, depth),
            FileKind::Tar => self.tar(bytes, member, depth),
            FileKind::Npy => self.npy(bytes, start, member, depth),
            FileKind::SevenZip | FileKind::Rar | FileKind::Xz | FileKind::Zstd => {
                let message = format!(
                    "{kind}: nothing here can look into it; unpack it and scan what is inside"
                );
                self.suspicious(Rule::NotScannable, member, 0, message);
            }
            FileKind::Executable => {
                let message = "an executable program among model files";
                self.suspicious(Rule::NotScannable, member, 0, message);
            }
            FileKind::Hdf5 if !self.is_quick => {
                self.code_layers(bytes, member);
                self.content_elsewhere(bytes, member);
            }
            FileKind::Json if !self.is_quick => {
                self.code_layers(bytes, member);
                self.templates(bytes, member);
            }
            FileKind::Gguf => self.templates(bytes, member),
            _ => {}
        }
        if !matches!(kind, FileKind::Gzip | FileKind::Tar | FileKind::Npy) {
            self.hidden_pickle(bytes, member, depth);
        }
        kind.to_string()
    }

    /// Content that no first bytes tell: pickles of protocols 0 and 1, streams of zlib, text.
    fn unknown(&mut self, bytes: &dyn ReadAt, start: &[u8], at: (&str, &str, u32)) -> String {
        let (name, member, depth) = at;
        if start.starts_with(b"BZh")
            || start.starts_with(b"\x04\x22\x4d\x18")
            || archive::is_bare_lzma(start)
        {
            let message = "a bzip2, lz4 or LZMA stream: nothing here can look into it; unpack it and scan what is inside";
            self.suspicious(Rule::NotScannable, member, 0, message);
            return "a compressed stream".into();
        }
        let announces = matches!(start, [0x80, protocol, ..] if depth == 0 || *protocol <= 5)
            || start.starts_with(pickles::TORCH_MAGIC_TEXT)
            || is_pickle_member(name, depth);
        if announces && !archive::is_storage(name) {
            return self.pickle_file(bytes, member, depth);
        }
        if archive::is_zlib(start) && self.unpacks(bytes) {
            self.compressed(bytes, archive::Packing::Zlib, member, depth);
            return "a zlib stream".into();
        }
        if self.hidden_pickle(bytes, member, depth) {
            return "a pickle".into();
        }
        if let Some(kind) = self.model_without_magic(bytes, start, member) {
            self.misnamed(name, kind, member, depth);
            return kind.into();
        }
        let is_text = match std::str::from_utf8(start) {
            // Protocol buffers can be short enough to have no zero byte; other control characters they have.
            Ok(text) => {
                !text.contains(|c: char| c.is_control() && !"\t\n\r\u{c}\u{1b}".contains(c))
            }
            Err(error) => error.error_len().is_none() && start.len() == SNIFFED_BYTES,
        };
        if depth == 0
            && !is_text
            && let Some(model) = self.model_that_names_this()
        {
            let message = format!("the tensors of `{}`, which names this file", shown(&model));
            self.find(Severity::Allowed, Rule::OtherFile, member, 0, message);
            return "ONNX external data".into();
        }
        if depth == 0 && loaded_as_pickle(name).is_some() {
            let kind = match is_text {
                true => "a text".to_owned(),
                false => {
                    let bytes = start.iter().take(8).map(|byte| format!(" {byte:02x}"));
                    let bytes: String = bytes.collect();
                    format!("something unknown that begins with the bytes{bytes}")
                }
            };
            self.misnamed(name, &kind, member, depth);
        } else if depth == 0 && !is_text {
            self.suspicious(
                Rule::NotScannable,
                member,
                0,
                "content of a kind that nothing here knows",
            );
        }
        if is_text {
            "text".into()
        } else {
            "unknown".into()
        }
    }

    /// Tells of a file whose name has programs unpickle it, although it is of another kind.
    fn misnamed(&mut self, name: &str, kind: &str, member: &str, depth: u32) {
        let ending = loaded_as_pickle(name).filter(|_| depth == 0);
        if let Some(ending) = ending {
            let message = format!(
                "neither a pickle nor an archive but {kind}, although its name ends in `.{ending}`"
            );
            self.suspicious(Rule::NotScannable, member, 0, message);
        }
    }
}

#[cfg(test)]
mod hiding_tests;
#[cfg(test)]
mod odd_tests;
#[cfg(test)]
mod tests;
