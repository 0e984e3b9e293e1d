//! The weight rule in Rust gives the bits it gives in Python.

mod common;

use common::weights::{Layout, crc32, f16_bytes, safetensors_bytes, tensor};
use serde_json::Value;

#[test]
fn crc_is_zlibs() {
    assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    assert_eq!(crc32(b""), 0);
}

#[test]
fn the_rule_gives_pythons_bits() {
    let text = std::fs::read_to_string(common::golden_dir().join("layouts/rule.json")).unwrap();
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(rows.len() >= 8);
    for row in rows {
        let name = row["name"].as_str().unwrap();
        let shape: Vec<usize> = row["shape"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_u64().unwrap() as usize)
            .collect();
        let values = tensor(name, &shape, row["seed"].as_u64().unwrap() as u32);
        let bits: Vec<u64> = values.iter().map(|v| u64::from(v.to_bits())).collect();
        let first: Vec<u64> = row["first_bits"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_u64().unwrap())
            .collect();
        assert_eq!(bits[..4], first[..], "{name}");
        assert_eq!(
            *bits.last().unwrap(),
            row["last_bits"].as_u64().unwrap(),
            "{name}"
        );
        assert_eq!(
            bits.iter().sum::<u64>(),
            row["bits_sum"].as_u64().unwrap(),
            "{name}"
        );
    }
}

#[test]
fn a_layout_becomes_a_file() {
    let layout = Layout::read("unet_groups");
    let bytes = layout.single_file(1);
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
    assert_eq!(header.as_object().unwrap().len(), layout.tensors.len() + 1);
    assert_eq!(
        header["__metadata__"]["safelight.unet.norm_num_groups"],
        "16"
    );
    let values: usize = layout
        .tensors
        .values()
        .map(|shape| shape.iter().product::<usize>())
        .sum();
    assert_eq!(bytes.len(), 8 + header_bytes + 4 * values);
    assert_eq!(safetensors_bytes(vec![], &Default::default()).len(), 16);
}

#[test]
fn a_folder_has_the_same_values_under_other_names() {
    let layout = Layout::read("sd");
    let in_folder: usize = layout.folder.values().map(|part| part.tensors.len()).sum();
    assert_eq!(in_folder, layout.tensors.len());
    for (ldm, shape) in layout
        .folder
        .values()
        .flat_map(|part| part.tensors.values())
    {
        assert_eq!(
            shape.iter().product::<usize>(),
            layout.tensors[ldm].iter().product::<usize>(),
            "{ldm}"
        );
    }
}

#[test]
fn f16_rounds_to_even_and_comes_back() {
    // Every finite f16 that is not the largest, decoded by the engine and encoded again.
    let all: Vec<u8> = (0..0x7BFFu16).flat_map(u16::to_le_bytes).collect();
    let decoded = safelight_format::decode_f32(safelight_format::Dtype::F16, &all).unwrap();
    assert_eq!(f16_bytes(&decoded), all);
    let halfway = [
        1.0 + 2f32.powi(-11),
        1.0 + 3.0 * 2f32.powi(-11),
        -(2f32.powi(-25)),
        3.0 * 2f32.powi(-25),
    ];
    let expected = [0x3C00u16, 0x3C02, 0x8000, 0x0002];
    assert_eq!(f16_bytes(&halfway), expected.map(u16::to_le_bytes).concat());
}
