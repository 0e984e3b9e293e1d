//! Any bytes as a damaged file: what a repair writes is a file without faults, has all that readers find in the damaged one,
//! and needs no repair.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use safelight_format::Limits;
use safelight_store::repair::Repair;
use safelight_store::{Checkpoint, OpenOptions};

/// The input as a whole file, then as the JSON of a file whose length is right, with some data behind it.
pub(crate) fn run(input: &[u8]) {
    check(input);
    let data: Vec<u8> = (1..=64).collect();
    check(&[&(input.len() as u64).to_le_bytes()[..], input, &data].concat());
}

/// A file of this thread alone.
fn place(name: &str) -> PathBuf {
    let thread = format!("{:?}", std::thread::current().id());
    let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
    let name = format!("safelight-repair-{}-{thread}-{name}", std::process::id());
    std::env::temp_dir().join(name)
}

fn check(file: &[u8]) {
    let (damaged, mended) = (place("damaged"), place("mended"));
    fs::write(&damaged, file).expect("a file can be written");
    match Repair::plan(&damaged, &Limits::default()) {
        Err(error) => printable(&error.to_string()),
        Ok(repair) => {
            let said = repair.changes.iter().chain(&repair.doubts);
            said.for_each(|text| printable(text));
            let dropped = repair.dropped.iter();
            dropped.for_each(|dropped| printable(&dropped.to_string()));
            let written = repair.write(&mended, &mut |_, _| ControlFlow::Continue(()));
            written.expect("what is kept can be written");
            compare(&damaged, &mended, &repair);
            let _ = fs::remove_file(&mended);
        }
    }
    let _ = fs::remove_file(&damaged);
}

fn compare(damaged: &Path, mended: &Path, repair: &Repair) {
    let options = OpenOptions {
        opaque_dtypes: true,
        ..OpenOptions::default()
    };
    let after = Checkpoint::open_with(mended, &options).expect("a repaired file is sound");
    let count = after.tensors().count() + after.opaque_tensors().count();
    assert_eq!(count, repair.tensor_count());
    if let Ok(before) = Checkpoint::open_with(damaged, &options) {
        for tensor in before.tensors() {
            let bytes = |of: &Checkpoint| of.read_bytes(tensor.name).expect("it is there");
            assert_eq!(bytes(&before), bytes(&after), "{}", tensor.name);
        }
        assert_eq!(before.metadata(), after.metadata());
    }
    let again = Repair::plan(mended, &Limits::default()).expect("a repaired file is sound");
    assert!(
        !again.is_needed(),
        "{:?} {:?}",
        again.changes,
        again.dropped
    );
}

fn printable(text: &str) {
    assert!(!text.contains(char::is_control), "{text:?}");
}
