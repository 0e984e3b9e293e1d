//! What is known to have slipped past picklescan, fickling and modelscan, byte by byte, and what must not be blamed.

use super::*;
use crate::bytes::Memory;
use crate::zip::tests::Builder;

pub(super) fn report(name: &str, bytes: &[u8]) -> ScanReport {
    scan_bytes(name, &Memory(bytes.to_vec()), &Limits::default()).unwrap()
}

/// Scans bytes and looks for a finding of this severity and rule whose message has this text.
#[track_caller]
pub(super) fn finds(
    name: &str,
    bytes: &[u8],
    severity: Severity,
    rule: Rule,
    text: &str,
) -> ScanReport {
    let report = report(name, bytes);
    let found = report.findings.iter().any(|finding| {
        finding.severity == severity && finding.rule == rule && finding.message.contains(text)
    });
    assert!(found, "{text}: {report:#?}");
    assert!(!report.is_clean());
    report
}

/// Finds a dangerous call with this text.
#[track_caller]
pub(super) fn runs(bytes: &[u8], text: &str) {
    finds("model.bin", bytes, Severity::Dangerous, Rule::Call, text);
}

#[track_caller]
pub(super) fn is_clean(name: &str, bytes: &[u8], kind: &str) {
    let report = report(name, bytes);
    assert!(report.is_clean(), "{report:#?}");
    assert_eq!(report.kind, kind);
}

/// `os.system('id')` in protocol 2.
pub(super) const ATTACK: &[u8] = b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.";

pub(super) const TOLD: &str = "would have run: os.system('id')";

#[test]
fn every_way_to_call() {
    runs(ATTACK, TOLD);
    runs(b"cos\nsystem\n(S'id'\ntR.", TOLD);
    runs(b"(S'id'\nios\nsystem\n.", TOLD);
    runs(b"(cos\nsystem\nS'id'\no.", TOLD);
    runs(
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.",
        TOLD,
    );
    runs(
        b"\x80\x02cos\nsystem\n)\x81.",
        "os.system.__new__(os.system)",
    );
    runs(b"\x80\x04cos\nsystem\n)}\x92.", "os.system.__new__");
    // The result thrown away, a harmless one left.
    runs(b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R0N.", TOLD);
    runs(b"\x80\x02(cos\nsystem\nX\x02\0\0\0id\x85R1N.", TOLD);
    // BUILD after REDUCE (GHSA-mhc9-48gj-9gp3).
    runs(
        b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R}X\x01\0\0\0aK\x01sb.",
        TOLD,
    );
}

#[test]
fn names_in_disguise() {
    runs(
        b"\x80\x04V\\u006fs\nS'\\x73ystem'\n\x93\x8c\x02id\x85R.",
        TOLD,
    );
    runs(
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940\x30h\x00h\x01\x93\x8c\x02id\x85R.",
        TOLD,
    );
    runs(b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval('1')");
    runs(b"cposix\nsystem\n(S'id'\ntR.", "posix.system('id')");
    runs(b"cnt\nsystem\n(S'id'\ntR.", "nt.system");
    // A function got by a function.
    runs(
        b"cbuiltins\ngetattr\n(cos\npath\nS'x'\ntR(S'id'\ntR.",
        "builtins.getattr(os.path, 'x')('id')",
    );
}

#[test]
fn what_denylists_forgot() {
    for (module, name) in [
        ("pip", "main"), // CVE-2025-1716
        ("pip._internal.cli.main", "main"),
        ("asyncio.unix_events", "_UnixSubprocessTransport._start"), // CVE-2025-10157
        ("logging", "FileHandler"),                                 // CVE-2026-56304
        ("uuid", "_get_command_stdout"),                            // CVE-2026-56315
        ("imaplib", "IMAP4_stream"),
        ("pkgutil", "resolve_name"),
        ("pydoc", "locate"),
        ("cProfile", "runctx"),
        ("profile", "Profile.runctx"),
        ("bdb", "Bdb.run"),
        ("timeit", "timeit"),
        ("trace", "Trace.run"),
        ("runpy", "run_path"),
        ("idlelib.run", "Executive.runcode"),
        ("lib2to3.pgen2.pgen", "ParserGenerator.make_label"),
        ("code", "InteractiveInterpreter.runcode"),
        ("doctest", "debug_script"),
        ("ensurepip", "_run_pip"),
        ("distutils.file_util", "write_file"),
        ("numpy.f2py.crackfortran", "getlincoef"),
        ("numpy.testing._private.utils", "runstring"),
        ("torch.utils._config_module", "load_config"),
        ("torch._dynamo.guards", "GuardBuilder.get"),
        ("torch.jit.unsupported_tensor_ops", "execWrapper"),
        ("torch.serialization", "load"),
        ("torch", "load"),
        ("ctypes", "CDLL"),
        ("_io", "FileIO"),
        ("marshal", "loads"),
        ("types", "FunctionType"),
        ("functools", "partial"),
        ("operator", "methodcaller"),
        ("builtins", "__import__"),
        ("collections", "OrderedDict.__init__.__globals__"),
    ] {
        let pickle = format!("c{module}\n{name}\n(S'x'\ntR.");
        finds(
            "a.pkl",
            pickle.as_bytes(),
            Severity::Dangerous,
            Rule::Global,
            name,
        );
    }
    // What nobody knows is not allowed either.
    let unknown = finds(
        "a.pkl",
        b"\x80\x02cevil_package\nrun\n)R.",
        Severity::Suspicious,
        Rule::Call,
        "evil_package.run()",
    );
    assert_eq!(unknown.worst(), Some(Severity::Suspicious));
}

#[test]
fn broken_streams_tell_what_came_before() {
    // nullifAI: the payload runs, then the stream breaks.
    let broken = [&ATTACK[..ATTACK.len() - 1], b"\xff\xff"].concat();
    runs(&broken, TOLD);
    finds(
        "a.pt",
        &broken,
        Severity::Suspicious,
        Rule::BrokenPickle,
        "no opcode is 0xff",
    );
    runs(&ATTACK[..ATTACK.len() - 1], TOLD);
    // Our machine stops; what follows is told all the same.
    let behind = b"\x80\x02h\x07cos\nsystem\n.";
    finds(
        "a.pt",
        behind,
        Severity::Dangerous,
        Rule::Global,
        "os.system",
    );
    let frame = b"\x80\x04\x95\xff\xff\0\0\0\0\0\0cos\nsystem\n.";
    finds(
        "a.pt",
        frame,
        Severity::Dangerous,
        Rule::Global,
        "os.system",
    );
    finds(
        "a.pkl",
        b"\x80\x09N.",
        Severity::Suspicious,
        Rule::BrokenPickle,
        "protocol 9",
    );
}

#[test]
fn the_name_does_not_matter() {
    for name in [
        "readme.txt",
        "model.safetensors",
        "a.json",
        "noextension",
        "a.png",
    ] {
        finds(name, ATTACK, Severity::Dangerous, Rule::Call, TOLD);
        finds(
            name,
            b"cos\nsystem\n(S'id'\ntR.",
            Severity::Dangerous,
            Rule::Call,
            TOLD,
        );
    }
}

#[test]
fn pickles_behind_pickles() {
    runs(&[b"\x80\x02N.", ATTACK].concat(), TOLD);
    let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
    let legacy = [
        magic,
        b"\x80\x02M\xe9\x03.".as_slice(),
        b"\x80\x02}.",
        ATTACK,
        b"\x80\x02].",
        &[7; 30],
    ]
    .concat();
    runs(&legacy, TOLD);
    let clean = [
        magic,
        b"\x80\x02M\xe9\x03.".as_slice(),
        b"\x80\x02}.",
        b"\x80\x02}.",
        b"\x80\x02].",
    ]
    .concat();
    is_clean("old.pth", &clean, "PyTorch file from before 1.6");
    let trailing = [b"\x80\x02N.".as_slice(), &[0; 9]].concat();
    finds(
        "a.pkl",
        &trailing,
        Severity::Suspicious,
        Rule::TrailingData,
        "9 bytes behind",
    );
}

#[test]
fn archives_in_archives() {
    let zip = Builder::new().add("archive/data.pkl", ATTACK, 0).finish();
    let report = finds("a.pt", &zip, Severity::Dangerous, Rule::Call, TOLD);
    assert_eq!(report.findings[0].member, "archive/data.pkl");
    let deflated = Builder::new().add("x/notes.txt", ATTACK, 8).finish();
    let nested = Builder::new().add("inner.zip", &deflated, 8).finish();
    let report = finds("a.zip", &nested, Severity::Dangerous, Rule::Call, TOLD);
    assert_eq!(report.findings[0].member, "inner.zip!x/notes.txt");
    let storage = Builder::new()
        .add("a/data.pkl", b"\x80\x02N.", 0)
        .add("a/data/0", ATTACK, 8)
        .finish();
    finds("a.pt", &storage, Severity::Dangerous, Rule::Call, TOLD);
    let mut gzip = flate2::read::GzEncoder::new(ATTACK, flate2::Compression::fast());
    let mut packed = Vec::new();
    std::io::Read::read_to_end(&mut gzip, &mut packed).unwrap();
    finds("a.joblib", &packed, Severity::Dangerous, Rule::Call, TOLD);
    let mut zlib = flate2::read::ZlibEncoder::new(ATTACK, flate2::Compression::default());
    packed.clear();
    std::io::Read::read_to_end(&mut zlib, &mut packed).unwrap();
    finds("a.joblib", &packed, Severity::Dangerous, Rule::Call, TOLD);
    let mut tar = vec![0; 512];
    tar[..7].copy_from_slice(b"pickle\0");
    tar[124..135].copy_from_slice(format!("{:011o}", ATTACK.len()).as_bytes());
    tar[257..262].copy_from_slice(b"ustar");
    tar.extend_from_slice(ATTACK);
    tar.resize(2048, 0);
    finds("a.tar", &tar, Severity::Dangerous, Rule::Call, TOLD);
}

#[test]
fn archives_that_lie() {
    let zip = Builder::new().add("data.pkl", ATTACK, 0).finish();
    let spoil = |at: usize, byte: u8| {
        let mut spoilt = zip.clone();
        spoilt[at] = byte;
        spoilt
    };
    // Another name in the local header (CVE-2025-1944), an encryption flag (CVE-2025-1945), a wrong checksum (CVE-2025-10156).
    for (spoilt, what) in [
        (spoil(30, b'x'), "the local header calls it"),
        (spoil(6, 1), "flags are"),
        (spoil(14, 0xaa), "checksum"),
    ] {
        finds("a.pt", &spoilt, Severity::Dangerous, Rule::Call, TOLD);
        finds("a.pt", &spoilt, Severity::Suspicious, Rule::Archive, what);
    }
    let directory = zip
        .windows(4)
        .position(|bytes| bytes == b"PK\x01\x02")
        .unwrap();
    let encrypted = spoil(directory + 8, 1);
    finds("a.pt", &encrypted, Severity::Dangerous, Rule::Call, TOLD);
    finds(
        "a.pt",
        &encrypted,
        Severity::Suspicious,
        Rule::Archive,
        "encrypted",
    );
    // A member that the directory does not list.
    let hidden = Builder::new().add("data.pkl", ATTACK, 0);
    let mut bytes = hidden.bytes;
    let clean = Builder::new().add("a.txt", b"hello", 0).finish();
    bytes.extend_from_slice(&clean);
    finds("a.pt", &bytes, Severity::Dangerous, Rule::Call, TOLD);
    // Cut off: no directory at all.
    finds(
        "a.pt",
        &zip[..zip.len() - 30],
        Severity::Dangerous,
        Rule::Call,
        TOLD,
    );
}

#[test]
fn two_kinds_at_once() {
    let mut bytes = b"\x08\0\0\0\0\0\0\0{}      ".to_vec();
    is_clean("a.safetensors", &bytes, "safetensors");
    bytes.extend_from_slice(&Builder::new().add("data.pkl", ATTACK, 0).finish());
    finds(
        "a.safetensors",
        &bytes,
        Severity::Suspicious,
        Rule::Polyglot,
        "zip archive hangs at its end",
    );
    finds(
        "a.safetensors",
        &bytes,
        Severity::Dangerous,
        Rule::Call,
        TOLD,
    );
    // A header length that is an opcode: X takes the header for a text, the pickle stands in the tensors.
    let json = format!(
        "{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{}],\"data_offsets\":[0,{}]}}}}",
        ATTACK.len(),
        ATTACK.len()
    );
    let mut header = json.into_bytes();
    header.resize(0x158, b' ');
    let mut both = (header.len() as u64).to_le_bytes().to_vec();
    both.extend_from_slice(&header);
    both.extend_from_slice(ATTACK);
    assert_eq!(both[..2], [b'X', 1]);
    // The text has 1 byte (its length is 01 00 00 00), so what follows must be no opcode: nothing runs.
    assert!(report("a.safetensors", &both).is_clean());
}

#[test]
fn what_nobody_can_look_into() {
    for (start, what) in [
        (b"7z\xbc\xaf\x27\x1c\0\x04".as_slice(), "7-Zip"),
        (b"Rar!\x1a\x07\x01\0", "RAR"),
        (b"BZh91AY&SY", "bzip2"),
        (b"\x28\xb5\x2f\xfd\0\0\0\0", "Zstandard"),
    ] {
        finds(
            "model.pt",
            start,
            Severity::Suspicious,
            Rule::NotScannable,
            what,
        );
    }
    finds(
        "model.ckpt",
        b"just some words",
        Severity::Suspicious,
        Rule::NotScannable,
        ".ckpt",
    );
    finds(
        "model",
        &[1, 2, 3, 0xff],
        Severity::Suspicious,
        Rule::NotScannable,
        "nothing here knows",
    );
    is_clean("notes.txt", b"just some words", "text");
    is_clean(
        "copying.txt",
        b"contents\nof a text\nthat decodes a little\n",
        "text",
    );
    is_clean("config.json", b"{\"a\": 1}", "a JSON text");
    is_clean("nothing", b"", "empty");
}

#[test]
fn numpy() {
    let npy = |descr: &str, data: &[u8]| {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (1,), }}\n");
        let len = (header.len() as u16).to_le_bytes();
        [b"\x93NUMPY\x01\0".as_slice(), &len, header.as_bytes(), data].concat()
    };
    is_clean("a.npy", &npy("<f4", &[0; 4]), "a NumPy array");
    finds(
        "a.npy",
        &npy("|O", ATTACK),
        Severity::Dangerous,
        Rule::Call,
        TOLD,
    );
    finds(
        "a.npy",
        &npy("|O", b"\x80\x02N."),
        Severity::Suspicious,
        Rule::Oddity,
        "objects",
    );
    let npz = Builder::new().add("x.npy", &npy("|O", ATTACK), 8).finish();
    finds("a.npz", &npz, Severity::Dangerous, Rule::Call, TOLD);
}

#[test]
fn pickles_in_arguments() {
    let mut outer = b"\x80\x03ctorch.storage\n_load_from_bytes\nB".to_vec();
    outer.extend_from_slice(&(ATTACK.len() as u32).to_le_bytes());
    outer.extend_from_slice(ATTACK);
    outer.extend_from_slice(b"\x85R.");
    let report = finds("a.pkl", &outer, Severity::Dangerous, Rule::Call, TOLD);
    assert!(
        report
            .findings
            .iter()
            .any(|finding| finding.member.starts_with("bytes at ")),
        "{report:#?}"
    );
}

#[test]
fn attributes_and_oddities() {
    finds(
        "a.pkl",
        b"\x80\x02cos\nenviron\n}X\x01\0\0\0aK\x01sb.",
        Severity::Dangerous,
        Rule::Attributes,
        "os.environ",
    );
    finds(
        "a.pkl",
        b"\x80\x02ccollections\nOrderedDict\n}b.",
        Severity::Suspicious,
        Rule::Attributes,
        "collections.OrderedDict",
    );
    finds(
        "a.pkl",
        b"\x80\x02\x82\x05.",
        Severity::Suspicious,
        Rule::Oddity,
        "extension code",
    );
    finds(
        "a.pkl",
        b"\x80\x05\x97.",
        Severity::Suspicious,
        Rule::Oddity,
        "out-of-band",
    );
    finds(
        "a.pkl",
        b"\x80\x02N)R.",
        Severity::Suspicious,
        Rule::Call,
        "None()",
    );
}

#[test]
fn safetensors_and_models() {
    let file = |header: &str| [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    is_clean(
        "a",
        &file("{\"__metadata__\":{\"format\":\"pt\"}} "),
        "safetensors",
    );
    let script = file("{\"__metadata__\":{\"a\":\"<script>alert(1)</script>\"}}");
    finds("a", &script, Severity::Suspicious, Rule::Text, "<script");
    finds(
        "a",
        &file(" {}"),
        Severity::Suspicious,
        Rule::NotScannable,
        "",
    );
    finds(
        "a",
        &file("{} \n"),
        Severity::Suspicious,
        Rule::Safetensors,
        "",
    );
    finds(
        "a",
        &file("{\"a\":1}"),
        Severity::Suspicious,
        Rule::Safetensors,
        "",
    );
    let lambda = b"{\"config\": {\"layers\": [{\"class_name\": \"Lambda\"}]}}";
    finds(
        "config.json",
        lambda,
        Severity::Suspicious,
        Rule::CodeLayer,
        "Lambda",
    );
}

#[test]
fn what_a_keras_model_runs_on_loading_is_found() {
    let layer = |text: &str| format!("{{\"config\": {{\"layers\": [{text}]}}}}").into_bytes();
    for (text, word) in [
        (r#"{"class_name":"L\u0061mbda"}"#, "escapes"),
        (r#"{"cl\u0061ss_name": "x"}"#, "escapes"),
        (
            r#"{"module":"os","class_name":"system","config":"id"}"#,
            "`os`",
        ),
        (r#"{"module" : "a.b", "class_name": "C"}"#, "`a.b`"),
        (
            r#"{"module":"builtins","class_name":"function","config":"exec"}"#,
            "`exec`",
        ),
        (
            r#"{"module":"keras.layers","class_name":"TorchModuleWrapper"}"#,
            "TorchModuleWrapper",
        ),
    ] {
        let (severity, rule) = (Severity::Suspicious, Rule::CodeLayer);
        finds("config.json", &layer(text), severity, rule, word);
    }
    for text in [
        r#"{"module": "keras.layers", "class_name": "Dense", "config": {"name": "caf\u00e9 \"x\\"}}"#,
        r#"{"module": "builtins", "class_name": "function", "config": "relu"}"#,
        r#"{"module": null, "class_name": "Dense"}"#,
    ] {
        let report = report("config.json", &layer(text));
        assert!(report.is_clean(), "{text}: {report:#?}");
    }
}

#[test]
fn what_torch_writes_is_clean() {
    let folder =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden/pickle");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let report = scan(&path, &Limits::default()).unwrap();
        let is_script = path.ends_with("script.pt");
        assert_eq!(report.is_clean(), !is_script, "{report:#?}");
        let told = |finding: &Finding| finding.rule == Rule::CodeLayer;
        assert_eq!(report.findings.iter().any(told), is_script, "{report:#?}");
        count += 1;
    }
    assert!(count > 30);
}

#[test]
fn bombs_end() {
    // Ever doubling lists, a memo that asks for the sky, a number of two gigabytes, a million marks.
    let mut lists = b"\x80\x02]q\0".to_vec();
    for idx in 0u8..100 {
        lists.extend_from_slice(&[b']', b'q', idx + 1, b'h', idx, b'a', b'h', idx, b'a']);
    }
    lists.push(b'.');
    assert!(report("a.pkl", &lists).is_clean());
    finds(
        "a.pkl",
        b"\x80\x02Nr\xff\xff\xff\xffcos\nsystem\n.",
        Severity::Suspicious,
        Rule::Oddity,
        "Python's unpickler would take 68719476720 bytes",
    );
    finds(
        "a.pkl",
        b"\x80\x02\x8b\xff\xff\xff\x7f",
        Severity::Suspicious,
        Rule::BrokenPickle,
        "2147483647",
    );
    let small = Limits {
        memory_bytes_max: 100_000,
        ..Limits::default()
    };
    let marks = [b"\x80\x02".as_slice(), &[b'('; 1_000_000]].concat();
    let report = scan_bytes("a.pkl", &Memory(marks), &small).unwrap();
    assert!(
        report.findings[0].message.contains("limit 100000"),
        "{report:?}"
    );
    let zeros = Builder::new()
        .add("data.pkl", &vec![0; 5_000_000], 8)
        .finish();
    let report = scan_bytes("a.pt", &Memory(zeros), &small).unwrap();
    assert!(
        report
            .findings
            .iter()
            .any(|finding| finding.message.contains("more than 100000")),
        "{report:?}"
    );
    // A zip of itself, many times over.
    let mut nested = ATTACK.to_vec();
    for _ in 0..12 {
        nested = Builder::new().add("a", &nested, 8).finish();
    }
    finds(
        "a.zip",
        &nested,
        Severity::Suspicious,
        Rule::NotScannable,
        "not looked into",
    );
}

#[test]
fn sarif_logs() {
    let report = report("models/a b.pt", ATTACK);
    let log = sarif(&[report]);
    assert_eq!(log["version"], "2.1.0");
    let result = &log["runs"][0]["results"][0];
    assert_eq!(result["level"], "error");
    assert_eq!(
        result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"],
        "models/a%20b.pt"
    );
    let rule = result["ruleIndex"].as_u64().unwrap() as usize;
    assert_eq!(
        log["runs"][0]["tool"]["driver"]["rules"][rule]["id"],
        result["ruleId"]
    );
}
