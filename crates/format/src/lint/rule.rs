//! The rules, what they are called and how bad it is to break them.

use std::fmt;

use crate::error::FormatError;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Allowed, but a reader may trip over it or should know.
    Note,
    /// Against the format's description, though Hugging Face's reader accepts it:
    /// [`crate::Strictness::Spec`] refuses it.
    Warning,
    /// Every reader should refuse the file: [`crate::Strictness::Compat`] does.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

/// Declares the rules: variant, identifier, severity and what it is about.
macro_rules! rules {
    ($($rule:ident $id:literal $severity:ident $summary:literal)*) => {
        /// What can be wrong or odd.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Rule {
            $(#[doc = $summary] $rule,)*
        }

        impl Rule {
            /// Every rule.
            pub const ALL: [Rule; [$($id),*].len()] = [$(Rule::$rule),*];

            /// Its name in reports, which stays the same: `not-json`.
            pub const fn id(self) -> &'static str {
                match self { $(Rule::$rule => $id),* }
            }

            /// How bad it is.
            pub const fn severity(self) -> Severity {
                match self { $(Rule::$rule => Severity::$severity),* }
            }

            /// What it is about, in one sentence.
            pub const fn summary(self) -> &'static str {
                match self { $(Rule::$rule => $summary),* }
            }
        }
    };
}

rules! {
    FileTooSmall "file-too-small" Error "A file has at least the eight bytes of the header's length."
    OtherFormat "other-format" Error "The bytes are those of another format."
    HeaderTooLong "header-too-long" Error "The header is longer than the limit (100,000,000 bytes unless set)."
    HeaderCutOff "header-cut-off" Error "The header goes on behind the file's end."
    NotUtf8 "not-utf8" Error "The header is UTF-8."
    NotJson "not-json" Error "The header is one JSON object and nothing else."
    TooDeep "too-deep" Error "Arrays and objects nest at most 127 deep."
    NumberOutOfRange "number-out-of-range" Error "Numbers fit into 64-bit floats."
    WrongType "wrong-type" Error "Values have the type that the format asks for; integers are plain digits below 2^64."
    MissingField "missing-field" Error "An entry has dtype, shape and data_offsets."
    DuplicateField "duplicate-field" Error "An entry has each field once."
    UnknownDtype "unknown-dtype" Error "The dtype is one of the 22 of the format, in capitals."
    DuplicateMetadata "duplicate-metadata" Error "There is one `__metadata__`."
    EndsBeforeStart "ends-before-start" Error "A tensor's end lies at or behind its start."
    Overlap "overlap" Error "No two tensors share bytes."
    Hole "hole" Error "Every byte of the data belongs to a tensor."
    SizeOverflow "size-overflow" Error "Sizes are below 2^64 bits."
    NotWholeBytes "not-whole-bytes" Error "Elements of 4 and 6 bits fill their last byte."
    WrongSize "wrong-size" Error "data_offsets span just what dtype and shape need."
    FileTooShort "file-too-short" Error "All tensors lie within the file."
    FileTooLong "file-too-long" Error "Nothing follows the last tensor."
    BadIndex "bad-index" Error "An index is one JSON object with an object `weight_map` of texts, in which nothing stands twice."
    IndexPath "index-path" Error "An index names only files in or below its own folder."
    IndexFileMissing "index-file-missing" Error "The files that an index names are there."
    IndexTensorMissing "index-tensor-missing" Error "A tensor is in the file that the index names."
    ShardMissing "shard-missing" Error "Of shards whose names count them (`-00001-of-00003`), all are there."
    ShardsMixed "shards-mixed" Error "Files that are opened as one are of one set of shards."
    TensorInTwoFiles "tensor-in-two-files" Error "A tensor is in one file only of those that are opened as one without an index."
    LimitExceeded "limit-exceeded" Error "Counts and lengths stay within the limits that were set."
    LeadingSpace "leading-space" Warning "The header's first byte is `{`."
    PaddingNotSpaces "padding-not-spaces" Warning "The header is padded with spaces only."
    NullMetadata "null-metadata" Warning "`__metadata__` is an object."
    DuplicateMetadataKey "duplicate-metadata-key" Warning "Keys of the metadata are unique."
    DuplicateTensor "duplicate-tensor" Warning "Names are unique; of two tensors with one name readers may take either."
    ArrayEntry "array-entry" Warning "An entry is an object."
    UnknownField "unknown-field" Warning "An entry has no fields but dtype, shape and data_offsets."
    WrappedDtype "wrapped-dtype" Warning "A dtype is a text."
    IndexEmpty "index-empty" Warning "An index lists tensors."
    IndexUnlisted "index-unlisted" Warning "An index lists every tensor of its files."
    IndexTwice "index-twice" Warning "A tensor is in one file of an index only."
    IndexTotalSize "index-total-size" Warning "An index's `total_size` is the number of bytes of its tensors."
    HeaderUnaligned "header-unaligned" Note "Tensor data starts at a multiple of 8, so that it can be used in place."
    LargePadding "large-padding" Note "Padding beyond the alignment is room for edits, or a place to hide in."
    OutOfOrder "out-of-order" Note "Entries stand in the order of their bytes."
    MisalignedTensor "misaligned-tensor" Note "A tensor starts at a multiple of its element's size, so that it can be used in place."
    LargeInteger "large-integer" Note "Integers stay below 2^53, above which readers in JavaScript round."
    HighRank "high-rank" Note "Tensors have at most 64 dimensions, numpy's limit."
    EscapedName "escaped-name" Note "Names spell printable ASCII as it is, not as \\u escapes that hide it from a search."
    PathInName "path-in-name" Note "Names do not look like paths that lead out of a folder."
    ControlInName "control-in-name" Note "Names have no control characters, NUL least of all."
    InvisibleInName "invisible-in-name" Note "Names have no invisible characters and none that turn the writing direction."
    OddName "odd-name" Note "Names are not empty, overlong, or with spaces at their ends."
    LongMetadata "long-metadata" Note "Metadata is short; a value of more than 64 KiB may hide something."
    ControlInMetadata "control-in-metadata" Note "Metadata has no control characters but line ends and tabs, and nothing that turns the writing direction."
    CodeInMetadata "code-in-metadata" Note "Metadata does not look like program code or commands."
    MarkupInMetadata "markup-in-metadata" Note "Metadata does not look like active HTML."
    PathInMetadata "path-in-metadata" Note "Metadata names no paths that lead out of a folder or into a system."
    CredentialInMetadata "credential-in-metadata" Note "Metadata carries no keys, tokens or passwords."
}

impl Rule {
    /// The rule that the parser's error is about.
    pub fn of(error: &FormatError) -> Rule {
        use FormatError as E;
        match error {
            E::OtherKind { .. } => Rule::OtherFormat,
            E::TooSmall { .. } | E::PrefixTooShort { .. } => Rule::FileTooSmall,
            E::HeaderTooLong { .. } | E::HeaderOverLimit { .. } => Rule::HeaderTooLong,
            E::HeaderCutOff { .. } => Rule::HeaderCutOff,
            E::NotUtf8 { .. } => Rule::NotUtf8,
            E::NotJson { .. } => Rule::NotJson,
            E::TooDeep { .. } => Rule::TooDeep,
            E::NumberOutOfRange { .. } => Rule::NumberOutOfRange,
            E::WrongType { .. } => Rule::WrongType,
            E::MissingField { .. } => Rule::MissingField,
            E::DuplicateField { .. } => Rule::DuplicateField,
            E::UnknownField { .. } => Rule::UnknownField,
            E::UnknownDtype { .. } => Rule::UnknownDtype,
            E::DuplicateTensor { .. } => Rule::DuplicateTensor,
            E::DuplicateMetadata { key: None } => Rule::DuplicateMetadata,
            E::DuplicateMetadata { key: Some(_) } => Rule::DuplicateMetadataKey,
            E::TextBeforeHeader { .. } => Rule::LeadingSpace,
            E::PaddingNotSpaces { .. } => Rule::PaddingNotSpaces,
            E::EndsBeforeStart { .. } => Rule::EndsBeforeStart,
            E::NotContiguous {
                starts_at,
                expected_at,
                ..
            } if starts_at < expected_at => Rule::Overlap,
            E::NotContiguous { .. } => Rule::Hole,
            E::SizeOverflow { .. } => Rule::SizeOverflow,
            E::NotWholeBytes { .. } => Rule::NotWholeBytes,
            E::WrongSize { .. } => Rule::WrongSize,
            E::FileTooShort { .. } => Rule::FileTooShort,
            E::FileTooLong { .. } => Rule::FileTooLong,
            E::TooManyTensors { .. }
            | E::RankTooHigh { .. }
            | E::NameTooLong { .. }
            | E::MetadataTooLong { .. } => Rule::LimitExceeded,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_severities_go_down() {
        for pair in Rule::ALL.windows(2) {
            assert!(pair[0].severity() >= pair[1].severity(), "{pair:?}");
        }
        for (position, rule) in Rule::ALL.iter().enumerate() {
            assert_eq!(*rule as usize, position);
            assert!(
                !Rule::ALL[..position]
                    .iter()
                    .any(|earlier| earlier.id() == rule.id())
            );
            assert!(rule.summary().ends_with('.'));
        }
    }
}
