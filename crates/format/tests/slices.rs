//! Index expressions against numpy (`testdata/golden/slice/numpy.txt`), for every element size.

use safelight_format::{Index, SliceError, SliceOptions, SlicePlan, parse_index};

const GOLDEN: &str = include_str!("../../../testdata/golden/slice/numpy.txt");

/// `2x3` as a shape, nothing as no dimensions.
fn shape_of(text: &str) -> Vec<u64> {
    let sizes = text.split('x').filter(|size| !size.is_empty());
    sizes.map(|size| size.parse().unwrap()).collect()
}

/// Elements of `bits` bits, least significant bit first, one behind the other.
fn pack(elements: impl IntoIterator<Item = u64>, bits: u64) -> Vec<u8> {
    let mut stream = Vec::new();
    for element in elements {
        // Different elements differ in their low bits as far as there is room.
        stream.extend(
            (0..bits).map(|bit| element.wrapping_mul(0x9e3779b97f4a7c15) >> (63 - bit) & 1),
        );
    }
    let bytes = stream.chunks(8);
    bytes
        .map(|bits| {
            bits.iter()
                .rev()
                .fold(0, |byte, bit| byte << 1 | *bit as u8)
        })
        .collect()
}

/// The slice as a reader gets it, with the bytes read and those needed.
fn read(plan: &SlicePlan, tensor: &[u8], options: &SliceOptions) -> (Vec<u8>, u64) {
    let mut out = Vec::new();
    let mut moved = 0;
    for batch in plan.batches(options) {
        let bytes = batch.out_bytes();
        assert_eq!(bytes.start, out.len() as u64, "batches follow each other");
        out.resize(bytes.end as usize, 0);
        let part = &mut out[bytes.start as usize..];
        for read in batch.reads() {
            let source = &tensor[read.bytes.start as usize..read.bytes.end as usize];
            match batch.direct(read) {
                Some(range) => part[range].copy_from_slice(source),
                None => batch.scatter(read, source, part),
            }
        }
        moved += batch.read_bytes();
    }
    (out, moved)
}

fn elements_of(shape: &[u64]) -> u64 {
    shape.iter().product()
}

#[test]
fn every_expression_means_what_numpy_says() {
    let (mut count, mut errors) = (0, 0);
    for line in GOLDEN.lines().skip(1) {
        let fields: Vec<&str> = line.split('|').collect();
        let [shape, text, expected] = fields[..] else {
            panic!("{line}")
        };
        let shape = shape_of(shape);
        let index = parse_index(&format!("[{text}]")).unwrap_or_else(|error| panic!("{error}"));
        count += 1;
        if expected == "error" {
            assert!(SlicePlan::new(8, &shape, &index).is_err(), "{line}");
            errors += 1;
            continue;
        }
        let (out_shape, elements) = expected.split_once(':').unwrap();
        let elements: Vec<u64> = elements
            .split_whitespace()
            .map(|e| e.parse().unwrap())
            .collect();
        for bits in [4, 6, 8, 16, 32, 64] {
            let plan = SlicePlan::new(bits, &shape, &index)
                .unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!(plan.shape(), shape_of(out_shape), "{line}");
            assert_eq!(plan.element_count(), elements.len() as u64, "{line}");
            let tensor = pack(0..elements_of(&shape), bits);
            let expected = pack(elements.iter().copied(), bits);
            assert_eq!(plan.gather(&tensor), expected, "{line}, {bits} bits");
            for (over_read_percent, batch_bytes) in [(0, 1), (20, 16), (20, 1 << 20), (1000, 64)] {
                let options = SliceOptions {
                    over_read_percent,
                    batch_bytes,
                };
                let (out, _) = read(&plan, &tensor, &options);
                assert_eq!(out, expected, "{line}, {bits} bits, {options:?}");
            }
        }
    }
    assert!(
        count >= 600 && errors >= 50,
        "{count} lines, {errors} errors"
    );
}

/// Every distinct byte that holds a needed element.
fn needed_bytes(plan: &SlicePlan, bits: u64, elements: u64) -> u64 {
    // Number the elements, slice the numbers, and count the bytes they lie in.
    let numbers: Vec<u8> = (0..elements).flat_map(u64::to_le_bytes).collect();
    assert_eq!(plan.bits(), 64);
    let picked = plan.gather(&numbers);
    let mut bytes: Vec<u64> = picked
        .as_chunks::<8>()
        .0
        .iter()
        .map(|element| u64::from_le_bytes(*element))
        .flat_map(|element| element * bits / 8..((element + 1) * bits).div_ceil(8))
        .collect();
    bytes.sort_unstable();
    bytes.dedup();
    bytes.len() as u64
}

#[test]
fn reads_move_at_most_a_fifth_more_than_needed() {
    let shape = [60, 50, 40];
    let elements = elements_of(&shape);
    for text in [
        "[:]",
        "[::2]",
        "[..., ::2]",
        "[..., ::-1]",
        "[:, 3:47]",
        "[:, :45]",
        "[:, :, 1:39]",
        "[:, :, :33]",
        "[:, :, 0]",
        "[::-3, ::7, ::5]",
        "[[3, 1, 4, 1, 5, 9, 2, 6]]",
        "[:, [0, 1, 2, 4, 6, 7, 8, 9]]",
        "[-1, -1, -1]",
    ] {
        let index = parse_index(text).unwrap();
        let numbered = SlicePlan::new(64, &shape, &index).unwrap();
        for bits in [4, 6, 8, 16, 32, 64] {
            let needed = needed_bytes(&numbered, bits, elements);
            let plan = SlicePlan::new(bits, &shape, &index).unwrap();
            let (_, moved) = read(&plan, &pack(0..elements, bits), &SliceOptions::default());
            assert!(
                moved >= needed && moved * 10 <= needed * 12,
                "{text}, {bits} bits: {moved} bytes read, {needed} needed"
            );
        }
    }
}

#[test]
fn runs_become_few_reads() {
    let reads = |shape: &[u64], text: &str| {
        let plan = SlicePlan::new(16, shape, &parse_index(text).unwrap()).unwrap();
        let batches = plan.batches(&SliceOptions::default());
        batches.map(|batch| batch.reads().len()).sum::<usize>()
    };
    assert_eq!(reads(&[1000, 1000], "[:]"), 1);
    assert_eq!(reads(&[1000, 1000], "[10:20]"), 1);
    assert_eq!(reads(&[1000, 1000], "[::-1, ::-1]"), 1);
    assert_eq!(reads(&[1000, 1000], "[::-1]"), 1);
    assert_eq!(reads(&[1000, 1000], "[:, :900]"), 1);
    assert_eq!(reads(&[1000, 1000], "[:, :500]"), 1000);
    assert_eq!(reads(&[1000, 1000], "[[5, 3, 4]]"), 1);
    // 40 MB: five batches of 8 MiB.
    assert_eq!(reads(&[20_000_000], "[:]"), 5);
}

#[test]
fn a_plan_needs_no_memory_for_its_runs() {
    // 2^50 runs of one element: only the first batches are made.
    let index = parse_index("[:, ::2]").unwrap();
    let plan = SlicePlan::new(16, &[1 << 40, 1 << 11], &index).unwrap();
    assert_eq!(plan.byte_count(), 1 << 51);
    let batch = plan.batches(&SliceOptions::default()).next().unwrap();
    assert_eq!(batch.out_bytes(), 0..1 << 17);
    assert_eq!(batch.reads().len(), 1 << 16);
}

#[track_caller]
fn refused(shape: &[u64], text: &str, expected: &str) {
    let index = parse_index(text).unwrap();
    let error = SlicePlan::new(32, shape, &index).unwrap_err();
    assert_eq!(error.to_string(), expected);
}

#[test]
fn errors_name_the_numbers() {
    refused(
        &[4, 5],
        "[0, 1, 2]",
        "3 indices for a tensor of 2 dimensions, [4, 5]",
    );
    refused(
        &[4, 5],
        "[..., 5]",
        "position 5 is outside dimension 1, which has size 5: -5 to 4 are inside",
    );
    refused(
        &[4, 5],
        "[[0, -5]]",
        "position -5 is outside dimension 0, which has size 4: -4 to 3 are inside",
    );
    refused(&[0], "[0]", "position 0 in dimension 0, which has size 0");
    refused(
        &[4, 5],
        "[..., ...]",
        "`...` stands in the index twice; once says all",
    );
    refused(
        &[4, 5],
        "[:, ::0]",
        "the step in dimension 1 is 0; 1 takes every element",
    );
    refused(
        &[3],
        "[[True, False]]",
        "the mask has 2 values for dimension 0, which has size 3",
    );
    refused(
        &[4, 5],
        "[[0, 1], [0, 1, 2]]",
        "the lists have shapes that don't go together: [2] [3]",
    );
    refused(
        &[3],
        "True",
        "`True` or `False` alone is no index here; a mask has a value for each position: `[True, False]`",
    );
    let list = Index::List {
        shape: vec![3],
        values: vec![0],
    };
    let error = SlicePlan::new(8, &[3], &[list]).unwrap_err().to_string();
    assert_eq!(error, "a list of shape [3] has 1 values");
}

#[test]
fn huge_shapes_are_sliced_or_refused() {
    let all = [Index::ALL];
    let plan = SlicePlan::new(8, &[1 << 63, 4, 0], &all).unwrap();
    assert_eq!((plan.shape(), plan.byte_count()), (&[1 << 63, 4, 0][..], 0));
    assert!(matches!(
        SlicePlan::new(8, &[u64::MAX, u64::MAX], &all),
        Err(SliceError::TooLarge { .. })
    ));
    let last = SlicePlan::new(4, &[(1 << 62) - 2], &[Index::At(-1)]).unwrap();
    let batch = last.batches(&SliceOptions::default()).next().unwrap();
    assert_eq!(batch.reads()[0].bytes, (1 << 61) - 2..(1 << 61) - 1);
    for bound in [i64::MIN, i64::MAX] {
        let range = Index::Range {
            start: Some(bound),
            stop: Some(-bound.max(-i64::MAX)),
            step: bound,
        };
        let plan = SlicePlan::new(8, &[7], &[range]).unwrap();
        assert!(plan.element_count() <= 1);
        assert!(SlicePlan::new(8, &[7], &[Index::At(bound)]).is_err());
    }
    // Four lists of a thousand, each in its own dimension: 10^12 positions are more than memory.
    let wide: Vec<Index> = (0..4)
        .map(|axis| {
            let mut shape = vec![1; 4];
            shape[axis] = 30_000;
            Index::List {
                shape,
                values: vec![0; 30_000],
            }
        })
        .collect();
    let error = SlicePlan::new(8, &[1, 1, 1, 1], &wide).unwrap_err();
    assert!(matches!(error, SliceError::TooLarge { .. }), "{error}");
}
