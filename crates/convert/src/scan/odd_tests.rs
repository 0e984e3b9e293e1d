//! Hostile and odd files that came out clean once.

use super::tests::{ATTACK, finds, is_clean, report};
use super::*;

const SUSPICIOUS: Severity = Severity::Suspicious;

#[test]
fn names_that_no_module_has() {
    for (pickle, told) in [
        (&b"cos\0\nsystem\n(S'id'\ntR."[..], "os\\u{0}.system('id')"),
        (b"cos \nsystem\n(S'id'\ntR.", "os .system('id')"),
        (b"c\n\n)R.", "would have run: .()"),
        (b"(S'id'\nios-\nsystem\n.", "os-.system('id')"),
    ] {
        for name in ["a.pkl", "notes.txt"] {
            let report = report(name, pickle);
            let found = report
                .findings
                .iter()
                .any(|finding| finding.rule == Rule::Call && finding.message.contains(told));
            assert!(found && !report.is_clean(), "{told}: {report:#?}");
        }
    }
    // A text that could be decoded for a while is none of that.
    is_clean(
        "copying.txt",
        b"contents\nof a text\nthat decodes a little\n.\n",
        "text",
    );
}

#[test]
fn persistent_ids_of_others() {
    let (rule, told) = (Rule::Oddity, "a persistent id");
    finds("a.pkl", b"Pos.system('id')\n.", SUSPICIOUS, rule, told);
    finds("a.pkl", b"\x80\x02X\x02\0\0\0idQ.", SUSPICIOUS, rule, told);
    let package = b"\x80\x02(X\x0e\0\0\0reduce_packageK\x01tQ.";
    finds("a.pkl", package, SUSPICIOUS, rule, told);
}

#[test]
fn calls_that_take_all_memory() {
    let (rule, told) = (Rule::Oddity, "a memory bomb");
    let bytearray = b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.";
    finds("a.pkl", bytearray, SUSPICIOUS, rule, told);
    let list = b"\x80\x02cbuiltins\nlist\ncbuiltins\nrange\nJ\xff\xff\xff\x7f\x85R\x85R.";
    finds("a.pkl", list, SUSPICIOUS, rule, told);
    let range = b"\x80\x02cbuiltins\nrange\nJ\xff\xff\xff\x7f\x85R.";
    is_clean("a.pkl", range, "pickle");
    is_clean(
        "a.pkl",
        b"\x80\x02cbuiltins\nbytearray\nK\x09\x85R.",
        "pickle",
    );
}

#[test]
fn functions_of_keras_that_fetch_files() {
    let (rule, layers) = (Rule::CodeLayer, |text: &str| {
        format!("{{\"config\": {{\"layers\": [{text}]}}}}")
    });
    for text in [
        r#"{"module": "keras.src.utils", "class_name": "get_file", "config": {"origin": "http://x"}}"#,
        r#"{"module": "keras.utils", "class_name": "Progbar", "config": {}}"#,
        r#"{"module": null, "class_name": "function", "config": "keras.utils.get_file"}"#,
        r#"{"module": "tensorflow.io", "class_name": "write_file"}"#,
    ] {
        finds(
            "config.json",
            layers(text).as_bytes(),
            SUSPICIOUS,
            rule,
            "a description that asks for",
        );
    }
    let dense = layers(r#"{"module": "keras.src.layers.core.dense", "class_name": "Dense"}"#);
    is_clean("config.json", dense.as_bytes(), "a JSON text");
}

#[test]
fn protocol_buffers_are_no_text() {
    for content in [
        &b"\x08\x01\x12\x06PyFunc\x12\x08ReadFile"[..],
        b"\x08\x08\x12\x07pytorch:\x03\x0a\x01a",
    ] {
        let report = report("saved_model.pb", content);
        assert!(!report.is_clean(), "{report:#?}");
    }
    is_clean("a.txt", b"a text\x0c\x1b[0m\r\n", "text");
}

#[test]
fn behind_a_zlib_stream() {
    let mut packed = Vec::new();
    let mut encoder =
        flate2::read::ZlibEncoder::new(&b"\x80\x02N."[..], flate2::Compression::default());
    std::io::Read::read_to_end(&mut encoder, &mut packed).unwrap();
    is_clean("a.joblib", &packed, "a zlib stream");
    packed.extend_from_slice(ATTACK);
    let told = finds(
        "a.joblib",
        &packed,
        SUSPICIOUS,
        Rule::TrailingData,
        "23 bytes behind the stream",
    );
    assert_eq!(told.worst(), Some(Severity::Dangerous));
}

#[test]
fn pickles_in_metadata_and_in_base64() {
    let text: String = ATTACK.iter().map(|&byte| char::from(byte)).collect();
    let in_base64 = "gAJjb3MKc3lzdGVtClgCAAAAaWSFUi4=";
    let told = "if a program loads this string in turn: would have run: os.system('id')";
    for value in [text.as_str(), in_base64] {
        let header = serde_json::json!({ "__metadata__": { "x": value } }).to_string();
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        let report = finds("a.safetensors", &file, SUSPICIOUS, Rule::Call, told);
        assert_eq!(report.findings[0].member, "metadata x");
    }
    let mut pickle = vec![0x80, 2, b'X', in_base64.len() as u8, 0, 0, 0];
    pickle.extend_from_slice(in_base64.as_bytes());
    pickle.push(b'.');
    finds("a.pkl", &pickle, SUSPICIOUS, Rule::Call, told);
    for harmless in [
        "gAAAA is no pickle, nor Base64",
        "gAJOLg==",
        "cat\nand\ndog\n",
    ] {
        let header = serde_json::json!({ "__metadata__": { "x": harmless } }).to_string();
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        is_clean("a.safetensors", &file, "safetensors");
    }
}

/// A field of protobuf with bytes in it.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    assert!(content.len() < 128);
    [&[number << 3 | 2, content.len() as u8], content].concat()
}

/// An ONNX model of one node and one tensor of four bytes, which lies in another file if one is named.
fn onnx(operator: &str, domain: &str, location: Option<&str>) -> Vec<u8> {
    let node = [field(4, operator.as_bytes()), field(7, domain.as_bytes())].concat();
    let kind = [1 << 3, 1, 2 << 3, 1].to_vec(); // one element of F32
    let data = match location {
        None => field(9, &[0; 4]),
        Some(location) => {
            let pair = [field(1, b"location"), field(2, location.as_bytes())].concat();
            [field(13, &pair), vec![14 << 3, 1]].concat()
        }
    };
    let tensor = [kind, field(8, b"w"), data].concat();
    let graph = [field(1, &node), field(2, b"g"), field(5, &tensor)].concat();
    [vec![1 << 3, 9], field(7, &graph)].concat()
}

#[test]
fn onnx_models_are_read_for_what_they_ask_for() {
    is_clean("a.onnx", &onnx("MatMul", "", None), "ONNX");
    is_clean("a.onnx", &onnx("MatMul", "ai.onnx.ml", None), "ONNX");
    let beside = onnx("MatMul", "", Some("part/a.bin"));
    is_clean("a.onnx", &beside, "ONNX");
    assert!(
        report("a.onnx", &beside).findings[0]
            .message
            .contains("`part/a.bin`, beside it")
    );
    for outside in [
        "../a.bin",
        "/etc/passwd",
        "a/../../b",
        "C:\\a",
        "..\\a",
        "\\\\host\\a",
    ] {
        let told = format!("`{}` opened, which is outside", shown(outside));
        let file = onnx("MatMul", "", Some(outside));
        finds("a.onnx", &file, Severity::Dangerous, Rule::OtherFile, &told);
    }
    is_clean("a.onnx", &onnx("Gelu", "com.microsoft", None), "ONNX");
    let python = onnx("PyOp", "ai.onnx.contrib", None);
    finds(
        "a.onnx",
        &python,
        SUSPICIOUS,
        Rule::CodeLayer,
        "calls functions of Python",
    );
    let whole = onnx("MatMul", "", None);
    let cut = &whole[..whole.len() - 2];
    finds(
        "a.onnx",
        cut,
        SUSPICIOUS,
        Rule::NotScannable,
        "ONNX that cannot be read",
    );
    // Programs unpickle what is called so.
    finds(
        "a.pkl",
        &whole,
        SUSPICIOUS,
        Rule::NotScannable,
        "but ONNX, although",
    );
}

#[test]
fn data_beside_an_onnx_model_is_explained_by_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("w.bin");
    std::fs::write(&data, [0xc3, 0x28, 0, 1, 0xff, 0xfe, 9, 9]).unwrap();
    let scan = || scan(&data, &Limits::default()).unwrap();
    assert!(!scan().is_clean());
    std::fs::write(
        folder.path().join("m.onnx"),
        onnx("MatMul", "", Some("w.bin")),
    )
    .unwrap();
    let report = scan();
    assert!(report.is_clean(), "{report:#?}");
    assert_eq!(report.kind, "ONNX external data");
    assert!(
        report.findings[0]
            .message
            .contains("the tensors of `m.onnx`")
    );
    // What a program would unpickle stays what it is.
    std::fs::write(&data, ATTACK).unwrap();
    assert_eq!(scan().worst(), Some(Severity::Dangerous));
}

#[test]
fn flax_checkpoints_are_known() {
    let array = [
        &[0x93, 0x91, 1, 0xa7][..],
        b"float32",
        &[0xc4, 4, 0, 0, 0, 0],
    ]
    .concat();
    let array = [&[0xc7, array.len() as u8, 1][..], &array].concat();
    let file = [&[0x81, 0xa6][..], b"kernel", &array].concat();
    is_clean("a.msgpack", &file, "Flax msgpack");
    finds(
        "a.msgpack",
        &file[..file.len() - 1],
        SUSPICIOUS,
        Rule::NotScannable,
        "nothing here knows",
    );
}
