//! What a repair makes of files that were damaged in many ways: the numbers that were there, or nothing.

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use common::Folder;
use safelight_format::Limits;
use safelight_store::repair::Repair;
use safelight_store::{Checkpoint, StoreError};

/// A sound file, and the tensors in it.
struct Sound {
    bytes: Vec<u8>,
    data_start: usize,
    tensors: BTreeMap<String, Vec<u8>>,
}

/// Numbers like those of weights, never 0: the same in every run.
fn weights(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        f64::from(state) / f64::from(u32::MAX)
    };
    let number = |_| ((next() + next() - 1.0) * 0.1 + 1e-4) as f32;
    (0..count).map(number).collect()
}

/// `spaces` behind the header's JSON, beyond those to the next multiple of 8.
fn sound(spaces: usize) -> Sound {
    sound_of([40, 64, 20, 90], spaces)
}

/// Of tensors with so many rows of 16 numbers.
fn sound_of(rows: [usize; 4], spaces: usize) -> Sound {
    let mut data = Vec::new();
    let mut tensors = BTreeMap::new();
    let mut entries = vec![r#""__metadata__":{"format":"pt"}"#.to_owned()];
    for (index, rows) in rows.into_iter().enumerate() {
        let numbers = weights(index as u32 + 1, rows * 16);
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        if index == 0 {
            bytes[..16].fill(0); // what padding could be taken for
        }
        let (start, end) = (data.len(), data.len() + bytes.len());
        entries.push(format!(
            r#""layer.{index}":{{"dtype":"F32","shape":[{rows},16],"data_offsets":[{start},{end}]}}"#
        ));
        data.extend(&bytes);
        tensors.insert(format!("layer.{index}"), bytes);
    }
    let mut json = format!("{{{}}}", entries.join(","));
    let padded = json.len().next_multiple_of(8) + spaces;
    json += &" ".repeat(padded - json.len());
    let prefix = (json.len() as u64).to_le_bytes();
    Sound {
        data_start: 8 + json.len(),
        bytes: [&prefix, json.as_bytes(), &data].concat(),
        tensors,
    }
}

impl Sound {
    fn with_prefix(&self, length: u64) -> Vec<u8> {
        [&length.to_le_bytes(), &self.bytes[8..]].concat()
    }

    fn header_bytes(&self) -> u64 {
        self.data_start as u64 - 8
    }

    /// All tensors come out as they were, and the repair says this of it.
    fn mended(&self, name: &str, damaged: &[u8], says: &str) {
        self.left(name, damaged, says, self.tensors.len());
    }

    /// So many tensors come out as they were, no other does, and the repair says this of it.
    fn left(&self, name: &str, damaged: &[u8], says: &str, count: usize) {
        let folder = Folder::new();
        let path = folder.write("damaged", damaged);
        let repair =
            Repair::plan(&path, &Limits::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let dropped: Vec<String> = repair.dropped.iter().map(ToString::to_string).collect();
        let said = format!("{:?} {dropped:?}", repair.changes);
        assert!(said.contains(says), "{name}: {said}");
        assert!(repair.doubts.is_empty(), "{name}: {:?}", repair.doubts);
        let target = folder.join("mended");
        let written = repair.write(&target, &mut |_, _| ControlFlow::Continue(()));
        written.unwrap().unwrap();
        let mended = Checkpoint::open(&target).unwrap();
        assert_eq!(mended.len(), count, "{name}: {said}");
        for tensor in mended.names() {
            assert!(
                mended.read_bytes(tensor).unwrap() == self.tensors[tensor],
                "{name}: {tensor}"
            );
        }
    }
}

/// Nothing can be told from this file, for this reason.
fn refused(name: &str, damaged: &[u8], says: &str) {
    let folder = Folder::new();
    let path = folder.write("damaged", damaged);
    match Repair::plan(&path, &Limits::default()) {
        Ok(repair) => panic!("{name}: {repair:?}"),
        Err(error) => {
            let kind = matches!(
                error,
                StoreError::Contradictory { .. } | StoreError::Format { .. }
            );
            assert!(kind && error.to_string().contains(says), "{name}: {error}");
        }
    }
}

/// What is left of this file may be wrong, for this reason.
fn doubted(name: &str, damaged: &[u8], says: &str) {
    let folder = Folder::new();
    let path = folder.write("damaged", damaged);
    let repair = Repair::plan(&path, &Limits::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let doubts = repair.doubts.join("; ");
    assert!(
        doubts.contains(says),
        "{name}: {doubts:?} {:?}",
        repair.changes
    );
}

#[test]
fn a_wrong_length_prefix_moves_no_number() {
    for spaces in [0, 8, 64] {
        let file = sound(spaces);
        for wrong in [-17, -9, -8, -7, -2, -1, 1, 2, 3, 7, 9, 16, 300] {
            let name = format!("{spaces} spaces, {wrong:+}");
            let length = file.header_bytes().checked_add_signed(wrong).unwrap();
            file.mended(&name, &file.with_prefix(length), "the length prefix");
        }
        let swapped = file.with_prefix(file.header_bytes().swap_bytes());
        file.mended("swapped", &swapped, "bytes in the wrong order");
        for length in [0, 3, u64::MAX, 1 << 40] {
            file.mended("nonsense", &file.with_prefix(length), "the length prefix");
        }
    }
}

#[test]
fn a_wrong_length_prefix_of_a_cut_file_can_not_be_told() {
    let file = sound(0);
    let cut = file.bytes.len() - 700;
    for wrong in [-3, 1, 2, 3, 4, 9] {
        let length = file.header_bytes().checked_add_signed(wrong).unwrap();
        let damaged = &file.with_prefix(length)[..cut];
        refused(
            &format!("{wrong:+}"),
            damaged,
            "every number would be a guess",
        );
    }
    // Two things that agree are enough.
    let swapped = &file.with_prefix(file.header_bytes().swap_bytes())[..cut];
    file.left("swapped", swapped, "bytes in the wrong order", 3);
}

#[test]
fn files_that_are_cut_keep_what_is_whole() {
    for spaces in [0, 8, 64] {
        let file = sound(spaces);
        for (lost, count) in [
            (1, 3),
            (3, 3),
            (4, 3),
            (8, 3),
            (64, 3),
            (5800, 2),
            (8000, 1),
        ] {
            let cut = &file.bytes[..file.bytes.len() - lost];
            file.left(&format!("cut by {lost}"), cut, "it ends at byte", count);
        }
    }
}

#[test]
fn what_stands_around_a_file_is_left_out() {
    let file = sound(0);
    let behind = |more: &[u8]| [&file.bytes, more].concat();
    for junk in [
        &b"\n"[..],
        b"\0\0\0\0",
        b"</html>\n",
        &[0; 5000],
        &file.bytes,
    ] {
        file.mended("behind", &behind(junk), "belong to no tensor");
    }
    let front = |more: &[u8]| [more, &file.bytes].concat();
    file.mended(
        "BOM",
        &front(b"\xef\xbb\xbf"),
        "3 bytes in front of the file",
    );
    file.mended(
        "HTTP",
        &front(b"HTTP/1.1 200 OK\r\n\r\n"),
        "19 bytes in front of the file",
    );
    file.mended(
        "no prefix",
        &file.bytes[8..],
        "the length prefix is not there",
    );
    file.mended(
        "half a prefix",
        &file.bytes[5..],
        "the length prefix is not there",
    );
}

#[test]
fn bytes_inserted_or_lost_in_the_middle_are_noticed() {
    let file = sound(0);
    for place in [
        file.data_start,
        file.data_start + 1000,
        file.bytes.len() - 3000,
    ] {
        let (front, back) = file.bytes.split_at(place);
        for more in [&b"x"[..], b"\r\n", b"abc", b"abcdefghi"] {
            let damaged = [front, more, back].concat();
            doubted("inserted", &damaged, "seem to be inserted");
        }
        let damaged = [front, b"12345678", back].concat();
        doubted("numbers", &damaged, "look like more numbers");
    }
    for lost in [1, 2, 3, 5] {
        let (front, back) = file.bytes.split_at(file.data_start + 500);
        doubted("lost", &[front, &back[lost..]].concat(), "seem to be lost");
    }
}

#[test]
fn files_that_went_through_a_program_for_text_are_noticed() {
    let file = sound(0);
    let mut damaged = Vec::new();
    for byte in &file.bytes {
        if *byte == b'\n' {
            damaged.push(b'\r');
        }
        damaged.push(*byte);
    }
    doubted("CRLF", &damaged, "program for text");
    let text = String::from_utf8_lossy(&file.bytes).into_owned();
    doubted("lossy", text.as_bytes(), "program for text");
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    refused("UTF-16", &wide, "");
}

#[test]
fn zeros_that_a_download_left_are_noticed() {
    let file = sound(0);
    let mut damaged = file.bytes.clone();
    let from = damaged.len() - 6001;
    damaged[from..].fill(0);
    doubted("zeros", &damaged, "are zeros (6001 bytes)");
    // Unused rows of a table are no damage.
    let mut rows = file.bytes.clone();
    let from = rows.len() - 80 * 64;
    rows[from..].fill(0);
    let folder = Folder::new();
    let path = folder.write("rows", rows);
    let repair = Repair::plan(&path, &Limits::default()).unwrap();
    assert!(
        repair.doubts.is_empty() && !repair.is_needed(),
        "{repair:?}"
    );
}

#[test]
fn a_tensor_that_the_header_moved_is_noticed() {
    let file = sound(0);
    for by in [1, 4, 20, 500] {
        let moved = format!("[{},{}]", 2560 - by, 6656 - by);
        let text = String::from_utf8_lossy(&file.bytes[..file.data_start]).into_owned();
        assert!(text.contains("[2560,6656]"), "{text}");
        let header = text.as_bytes();
        let at = text.find("[2560,6656]").unwrap();
        let damaged = [
            &header[..at],
            moved.as_bytes(),
            &header[at + 11..],
            &file.bytes[file.data_start..],
        ]
        .concat();
        assert_eq!(damaged.len(), file.bytes.len());
        doubted(
            &format!("moved by {by}"),
            &damaged,
            "belong to no tensor, and as many to two",
        );
    }
}

#[test]
fn a_piece_that_never_came_is_noticed_between_tensors() {
    let file = sound_of([600, 700, 500, 800], 0);
    let border = file.data_start + 600 * 64;
    let mut damaged = file.bytes.clone();
    damaged[border - 6000..border + 6000].fill(0);
    doubted(
        "zeros across a border",
        &damaged,
        "of which a piece never came",
    );
    // Zeros that begin with a tensor are its own.
    let mut rows = file.bytes.clone();
    rows[border..border + 6000].fill(0);
    let folder = Folder::new();
    let repair = Repair::plan(&folder.write("rows", &rows), &Limits::default()).unwrap();
    assert!(repair.doubts.is_empty(), "{:?}", repair.doubts);
}

#[test]
fn headers_that_are_damaged_themselves_are_no_guesses() {
    let file = sound(0);
    let mut damaged = file.bytes.clone();
    damaged[file.data_start - 30..file.data_start].fill(0);
    refused("holes", &damaged, "");
    refused("cut", &file.bytes[..file.data_start - 9], "");
    let other = sound(64);
    // The header of another file: longer by 64 bytes than this one's data know of.
    let mixed = [
        &other.bytes[..other.data_start],
        &file.bytes[file.data_start - 32..],
    ]
    .concat();
    doubted("mixed", &mixed, "look like more numbers");
}

/// Replaces `"format":"pt"` of a sound file by a checksum.
fn with_checksum(key: &str, sha256: &str) -> Vec<u8> {
    let mut sound = sound(0);
    let json = &sound.bytes[8..sound.data_start];
    let json = String::from_utf8(json.to_vec()).unwrap();
    let json = json.trim_end();
    let json = json.replace(r#""format":"pt""#, &format!(r#""{key}":"{sha256}""#));
    let data = sound.bytes.split_off(sound.data_start);
    [
        &(json.len() as u64).to_le_bytes()[..],
        json.as_bytes(),
        &data,
    ]
    .concat()
}

#[test]
fn a_checksum_in_the_metadata_is_evidence() {
    // SHA-256 of the numbers of `sound(0)`, by Python's hashlib (they lie in the order that the `safetensors` package writes).
    let right = "314e488eebf0232d4b7740a71e9368285ae66380ba1bad673220d62a57acb9a5";
    for key in ["sshs_model_hash", "modelspec.hash_sha256"] {
        let fine = with_checksum(key, right);
        let behind = [&fine[..], b"<!-- appended -->"].concat();
        let folder = Folder::new();
        let plan = |bytes: &[u8]| {
            let path = folder.write("damaged", bytes);
            Repair::plan(&path, &Limits::default()).unwrap()
        };
        let repair = plan(&behind);
        assert!(repair.doubts.is_empty(), "{:?}", repair.doubts);
        let told = format!("every number is as `{key}` in the metadata says");
        assert!(repair.changes.contains(&told), "{:?}", repair.changes);
        let wrong = with_checksum(key, &format!("0x{}", right.replace('0', "1")));
        assert!(
            !plan(&wrong).is_needed() && plan(&wrong).doubts.is_empty(),
            "an old checksum is no damage"
        );
        let repair = plan(&[&wrong[..], b"<!-- appended -->"].concat());
        assert!(
            repair.doubts[0].contains("the checksum of other numbers"),
            "{:?}",
            repair.doubts
        );
        // A cut file lacks numbers: no checksum says anything.
        assert!(plan(&fine[..fine.len() - 8]).doubts.is_empty());
    }
}
