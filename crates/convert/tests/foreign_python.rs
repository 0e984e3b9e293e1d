//! What we write, read by the libraries that own the formats. Needs a Python with numpy and gguf, named by
//! `SAFELIGHT_PYTHON` (default `python3`); says so where there is none.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use safelight_convert::{
    GgufOptions, GgufWeights, Limits, NpzOptions, open, write_gguf, write_npz,
};
use safelight_format::{Dtype, TensorView, encode, encode_f32};

/// Compares every array of a file with the numbers in `f32.bin`; prints `fine`.
const SCRIPT: &str = r#"
import json, sys
import numpy as np, gguf
folder = sys.argv[1]
numbers = np.fromfile(f"{folder}/f32.bin", "<f4").reshape(6, 64)
for name in ["stored", "deflated"]:
    with np.load(f"{folder}/{name}.npz") as npz:
        assert set(npz.files) == {"a.f32", "b/f16", "bf16", "ids", "e4m3", "e5m2", "__metadata__"}, npz.files
        assert (npz["a.f32"] == numbers).all()
        assert (npz["b/f16"] == numbers.astype("f2")).all() and npz["b/f16"].dtype == "f2"
        bf16 = (npz["bf16"].view("<u2").astype("u4") << 16).view("f4")
        assert (abs(bf16 - numbers) <= abs(numbers) / 256).all() and bf16.shape == (6, 64)
        assert npz["ids"].tolist() == [-1, 2**40]
        metadata = json.loads(str(npz["__metadata__"]))
        assert metadata["näme"] == "wert" and json.loads(metadata["npz.dtypes"]) == {
            "bf16": "BF16", "e4m3": "F8_E4M3", "e5m2": "F8_E5M2"}
        assert npz["e4m3"].view("u1").tolist() == npz["e5m2"].view("u1").tolist() == [1, 2, 250]
for name in ["q8_0", "f16"]:
    reader = gguf.GGUFReader(f"{folder}/{name}.gguf")
    assert reader.get_field("general.architecture").contents() == "sd1"
    assert reader.get_field("näme").contents() == "wert"
    tensors = {t.name: t for t in reader.tensors}
    kind = gguf.GGMLQuantizationType[name.upper()]
    for tensor in ["a.f32", "b/f16", "bf16"]:
        t = tensors[tensor]
        assert t.tensor_type == kind and list(reversed(t.shape.tolist())) == [6, 64], (tensor, t.tensor_type, t.shape)
    a = tensors["a.f32"]
    expected = gguf.quants.quantize(numbers, kind)
    assert a.data.tobytes() == expected.tobytes()
    assert tensors["ids"].data.tolist() == [-1, 2**40]
    assert all(t.data_offset % 32 == 0 for t in reader.tensors)
print("fine")
"#;

#[test]
fn numpy_and_gguf_read_what_we_write() {
    let python = std::env::var("SAFELIGHT_PYTHON").unwrap_or_else(|_| "python3".into());
    let there = Command::new(&python)
        .args(["-c", "import numpy, gguf"])
        .output();
    if !there.is_ok_and(|output| output.status.success()) {
        println!("skipped: no {python} with numpy and gguf");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    write_all(folder.path());
    let output = Command::new(&python)
        .args(["-c", SCRIPT])
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.stdout, b"fine\n", "{said}");
}

/// One set of tensors in each form.
fn write_all(folder: &Path) {
    let numbers: Vec<f32> = (0..384).map(|i| (i as f32 * 0.7).sin()).collect();
    let f32s = encode_f32(&numbers);
    std::fs::write(folder.join("f32.bin"), &f32s).unwrap();
    let (f16s, _) = encode(Dtype::F16, &numbers).unwrap();
    let (bf16s, _) = encode(Dtype::Bf16, &numbers).unwrap();
    let ids = [(-1i64).to_le_bytes(), (1i64 << 40).to_le_bytes()].concat();
    let tensor = |name, dtype, shape, bytes| TensorView {
        name,
        dtype,
        shape,
        bytes,
    };
    let tensors = [
        tensor("a.f32", Dtype::F32, &[6, 64], &f32s),
        tensor("b/f16", Dtype::F16, &[6, 64], &f16s),
        tensor("bf16", Dtype::Bf16, &[6, 64], &bf16s),
        tensor("ids", Dtype::I64, &[2], &ids),
        tensor("e4m3", Dtype::F8E4m3, &[3], &[1, 2, 250]),
        tensor("e5m2", Dtype::F8E5m2, &[3], &[1, 2, 250]),
    ];
    let metadata = [("näme".to_owned(), "wert".to_owned())].into();
    let path = folder.join("a.safetensors");
    safelight_store::save(&path, &tensors, Some(&metadata), &Default::default()).unwrap();
    let source = open(&path, &Limits::default()).unwrap();
    let mut go_on = |_, _| ControlFlow::Continue(());
    for (name, deflate) in [("stored", false), ("deflated", true)] {
        let options = NpzOptions {
            deflate,
            ..NpzOptions::default()
        };
        let path = folder.join(format!("{name}.npz"));
        write_npz(&*source, &path, &options, &mut go_on).unwrap();
    }
    for (name, weights) in [("q8_0", GgufWeights::Q8_0), ("f16", GgufWeights::F16)] {
        let options = GgufOptions {
            weights,
            architecture: Some("sd1".into()),
            ..GgufOptions::default()
        };
        let path = folder.join(format!("{name}.gguf"));
        write_gguf(&*source, &path, &options, &mut go_on).unwrap();
    }
}
