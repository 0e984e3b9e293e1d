//! A file's header, looked at for everything that is wrong or odd about it.

use std::path::Path;

use safelight_format::{LintOptions, LintReport, header_bytes};

use crate::error::StoreError;
use crate::lint_index::lint_index;
use crate::shards;
use crate::source::FileSource;

/// As many bytes as tell what a file is that is no safetensors file.
const SNIFFED_BYTES: u64 = 512;

/// Reads a file's header and hands it to [`safelight_format::lint`]; looks at an index (`*.index.json`) and whether what it says
/// of its files is true.
///
/// ```
/// use safelight_format::{LintOptions, Rule};
/// let path = std::env::temp_dir().join(format!("safelight-lint-{}.safetensors", std::process::id()));
/// std::fs::write(&path, b"\x08\0\0\0\0\0\0\0 {}     ")?;
/// let report = safelight_store::lint(&path, &LintOptions::default())?;
/// assert_eq!(report.findings[0].rule, Rule::LeadingSpace);
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// What the system says. What the file breaks is in the report.
pub fn lint(path: &Path, options: &LintOptions) -> Result<LintReport, StoreError> {
    if shards::is_index(path) {
        return lint_index(path, options);
    }
    let source = FileSource::open(path)?;
    let file_bytes = source.file_bytes;
    let mut prefix = vec![0; SNIFFED_BYTES.min(file_bytes) as usize];
    source.read_exact_at(&mut prefix, 0)?;
    // Within the limit, if it is said at all; what is wrong with it the report says.
    if let Ok(header_bytes) = header_bytes(&prefix, file_bytes, &options.limits) {
        let have = prefix.len();
        prefix.resize(have.max(8 + header_bytes as usize), 0);
        source.read_exact_at(&mut prefix[have..], have as u64)?;
    }
    let report = safelight_format::lint(&prefix, file_bytes, options);
    report.map_err(|error| StoreError::Format {
        file: source.label.clone(),
        error,
    })
}
