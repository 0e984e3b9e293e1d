//! Any bytes as a header: the linter's verdict is the parser's, with and without tight limits, and
//! every finding lies in the file and can be printed.

use safelight_format::{
    FormatError, Header, Limits, LintOptions, ParseOptions, Severity, Strictness, lint,
};

/// The input as a whole file, then as the JSON of a file whose length is right.
pub(crate) fn run(input: &[u8]) {
    check(input);
    let mut file = (input.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(input);
    check(&file);
}

fn check(file: &[u8]) {
    let tight = Limits {
        header_bytes_max: 1000,
        tensor_count_max: 2,
        rank_max: 2,
        name_bytes_max: 4,
        metadata_bytes_max: 6,
    };
    for limits in [Limits::default(), tight] {
        let verdict = |file_bytes, strictness| {
            let options = ParseOptions {
                strictness,
                limits,
                opaque_dtypes: false,
            };
            Header::parse_with(file, file_bytes, &options).map(drop)
        };
        let mut sizes = vec![file.len() as u64];
        // Too short: then this is the size it should have.
        if let Err(FormatError::FileTooShort { expected_bytes, .. }) =
            verdict(sizes[0], Strictness::Compat)
        {
            sizes.push(expected_bytes);
        }
        for file_bytes in sizes {
            agrees(file, file_bytes, limits, |strictness| {
                verdict(file_bytes, strictness).is_ok()
            });
        }
    }
}

fn agrees(file: &[u8], file_bytes: u64, limits: Limits, accepted: impl Fn(Strictness) -> bool) {
    let options = LintOptions {
        limits,
        ..LintOptions::default()
    };
    let report = lint(file, file_bytes, &options).expect("the header is all there");
    for strictness in [Strictness::Compat, Strictness::Spec] {
        assert_eq!(report.accepted_by(strictness), accepted(strictness));
    }
    assert!(report.findings.is_sorted_by_key(|finding| finding.at_byte));
    for finding in &report.findings {
        let line = finding.to_string();
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(finding.at_byte <= file_bytes, "{line}");
    }
    let listed = |severity| {
        let of_it = |finding: &&safelight_format::Finding| finding.rule.severity() == severity;
        report.findings.iter().filter(of_it).count()
    };
    if report.left_out == 0 {
        for severity in [Severity::Note, Severity::Warning, Severity::Error] {
            assert_eq!(report.count(severity), listed(severity));
        }
    }
}
