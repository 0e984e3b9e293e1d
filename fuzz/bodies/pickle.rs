//! Any bytes as a pickle or a legacy PyTorch file: scanned and opened. Both end, and what opens can be read as it says.

use std::io;

use safelight_convert::scan::scan_bytes;
use safelight_convert::{Limits, OpenOptions, Source, open_torch};
use safelight_store::ReadAt;

struct Memory(Vec<u8>);

impl ReadAt for Memory {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let there = self.0.get(offset as usize..).unwrap_or_default();
        let len = there.len().min(buffer.len());
        buffer[..len].copy_from_slice(&there[..len]);
        Ok(len)
    }

    fn byte_count(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
}

pub(crate) fn run(input: &[u8]) {
    let limits = Limits {
        memory_bytes_max: 4 * 1024 * 1024,
        ..Limits::default()
    };
    let report = scan_bytes("input.pkl", &Memory(input.to_vec()), &limits).unwrap();
    assert!(
        report
            .findings
            .is_sorted_by_key(|finding| std::cmp::Reverse(finding.severity))
    );
    for finding in &report.findings {
        let hides = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
        assert!(!finding.message.contains(hides), "{}", finding.message);
    }
    let options = OpenOptions {
        limits,
        values_to_metadata: true,
        ..OpenOptions::default()
    };
    let Ok(source) = open_torch("input.pkl", Box::new(Memory(input.to_vec())), &options) else {
        return;
    };
    read_all(&*source);
    if input.starts_with(b"PK") {
        // What opens, no scanner would call contradictory.
        let contradicts = [
            "local header",
            "directory",
            "two members",
            "belong to no member",
        ];
        let told = report.findings.iter().find(|finding| {
            !finding.member.contains('!')
                && contradicts
                    .iter()
                    .any(|what| finding.message.contains(what))
        });
        assert_eq!(told, None);
    }
}

/// Names are unique, sizes are as said, no piece is empty or too long.
fn read_all(source: &dyn Source) {
    let mut names = std::collections::HashSet::new();
    for (index, tensor) in source.tensors().iter().enumerate() {
        assert!(names.insert(&tensor.name), "{}", tensor.name);
        let expected = tensor.byte_count().expect("a checked size");
        if expected > 1 << 20 {
            continue;
        }
        let mut count = 0;
        let read = source.read(index, &mut |piece| {
            assert!(!piece.is_empty() && piece.len() <= 16 << 20);
            count += piece.len() as u64;
            Ok(())
        });
        if read.is_ok() {
            assert_eq!(count, expected, "{}", tensor.name);
        }
    }
}
