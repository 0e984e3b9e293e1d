//! Decoding and encoding against torch and ml_dtypes (`tools/golden/casts.py`).

use safelight_format::{
    Dtype, Header, Limits, Strictness, decode_f32, decode_f32_into, encode, encode_into,
};

const GOLDEN: &[u8] = include_bytes!("../../../testdata/golden/casts/casts.safetensors");

fn golden(name: &str) -> &'static [u8] {
    let size = GOLDEN.len() as u64;
    let header = Header::parse(GOLDEN, size, Strictness::Spec, &Limits::default()).unwrap();
    let (start, end) = header.get(name).unwrap().data_offsets;
    let data = &GOLDEN[header.data_start() as usize..];
    &data[start as usize..end as usize]
}

/// Bits of numbers, all NaNs alike.
fn bits_of(value: f32) -> u32 {
    if value.is_nan() {
        0x7fc0_0000
    } else {
        value.to_bits()
    }
}

const SMALL: [Dtype; 8] = [
    Dtype::F8E4m3,
    Dtype::F8E5m2,
    Dtype::F8E4m3Fnuz,
    Dtype::F8E5m2Fnuz,
    Dtype::F8E8m0,
    Dtype::F4,
    Dtype::F6E2m3,
    Dtype::F6E3m2,
];

/// Codes of `dtype`, one to a byte or two, as the stream of bits a file has.
fn pack(dtype: Dtype, codes: &[u8]) -> Vec<u8> {
    let bits = dtype.bits() as usize;
    if bits >= 8 {
        return codes.to_vec();
    }
    let groups = codes.chunks(8).map(|codes| {
        let codes = codes.iter().enumerate();
        let stream = codes.fold(0u64, |stream, (at, code)| {
            stream | u64::from(*code) << (at * bits)
        });
        stream.to_le_bytes()[..bits].to_vec()
    });
    let mut bytes = groups.collect::<Vec<_>>().concat();
    bytes.truncate((codes.len() * bits).div_ceil(8));
    bytes
}

#[test]
fn every_code_decodes_as_there() {
    for dtype in SMALL {
        let expected = decode_f32(Dtype::F32, golden(&format!("decode.{dtype}"))).unwrap();
        let codes: Vec<u8> = (0..expected.len()).map(|code| code as u8).collect();
        let values = decode_f32(dtype, &pack(dtype, &codes)).unwrap();
        assert_eq!(values.len(), 1 << dtype.bits());
        for (code, (value, expected)) in values.iter().zip(&expected).enumerate() {
            assert_eq!(bits_of(*value), bits_of(*expected), "{dtype} {code:#x}");
        }
    }
}

#[test]
fn every_number_encodes_as_there() {
    let values = decode_f32(Dtype::F32, golden("values")).unwrap();
    assert!(values.len() > 5000);
    for dtype in SMALL.into_iter().chain([Dtype::F16, Dtype::Bf16]) {
        let expected = pack(dtype, golden(&format!("encode.{dtype}")));
        let (bytes, report) = encode(dtype, &values).unwrap();
        assert_eq!(report.element_count, values.len() as u64);
        assert_eq!((report.infinity_count, report.nan_count), (2, 1));
        if bytes == expected {
            continue;
        }
        let mut ours = vec![0.0; values.len()];
        let mut theirs = ours.clone();
        decode_f32_into(dtype, &bytes, &mut ours).unwrap();
        decode_f32_into(dtype, &expected, &mut theirs).unwrap();
        for (value, (ours, theirs)) in values.iter().zip(ours.iter().zip(&theirs)) {
            assert_eq!(
                bits_of(*ours),
                bits_of(*theirs),
                "{dtype} {value:e}: {ours} {theirs}"
            );
        }
    }
}

#[test]
fn the_counts_are_those_of_a_slow_count() {
    let values = decode_f32(Dtype::F32, golden("values")).unwrap();
    for dtype in SMALL.into_iter().chain([Dtype::F16, Dtype::Bf16]) {
        let max = (0..=u16::MAX).filter_map(|code| {
            let bytes = code.to_le_bytes();
            let value = decode_f32(dtype, &bytes[..dtype.bits().div_ceil(8) as usize]).unwrap()[0];
            value.is_finite().then_some(value)
        });
        let max = max.fold(0.0, f32::max);
        let mut out = vec![0; (values.len() * dtype.bits() as usize).div_ceil(8)];
        let report = encode_into(dtype, &values, &mut out).unwrap();
        let mut back = vec![0.0; values.len()];
        decode_f32_into(dtype, &out, &mut back).unwrap();
        let pairs = || {
            values
                .iter()
                .zip(&back)
                .filter(|(value, _)| value.is_finite())
        };
        let zeros = pairs().filter(|(value, back)| **value != 0.0 && **back == 0.0);
        assert_eq!(report.underflow_count, zeros.count() as u64, "{dtype}");
        // Beyond the range: more than half a step above the largest number, however that ends.
        let lost = pairs().filter(|(_, back)| !back.is_finite()).count() as u64;
        let clamped = pairs().filter(|(value, back)| back.abs() == max && value.abs() > max * 1.2);
        assert!(
            report.overflow_count >= lost.max(clamped.count() as u64),
            "{dtype}"
        );
        assert!(
            report.overflow_count > 0 || dtype == Dtype::F8E8m0,
            "{dtype}"
        );
        let inside = values.iter().filter(|value| value.abs() <= max).count() as u64;
        let finite = pairs().count() as u64;
        assert!(report.overflow_count <= finite - inside, "{dtype}");
    }
}
