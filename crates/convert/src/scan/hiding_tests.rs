//! Places in which something can hide: behind arrays and storages, in files within files, under names that promise something else.

use super::tests::{ATTACK, TOLD, finds, is_clean, report};
use super::*;
use crate::bytes::Memory;
use crate::zip::tests::Builder;

fn torch_zip(pickle: &[u8]) -> Vec<u8> {
    Builder::new()
        .add("m/data.pkl", pickle, 0)
        .add("m/version", b"3\n", 0)
        .finish()
}

#[test]
fn a_data_pkl_that_is_none() {
    for (content, what) in [
        (&[0; 100][..], "named as a pickle, but no pickle"),
        (b"", "named as a pickle, but no pickle: empty"),
        (b"just some words\n", "cannot be followed any further"),
        (b"<html><body>404</body></html>", "no pickle: a web page"),
        (b"\x80\x02N", "cannot be followed any further"),
        (
            b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0",
            "named as a pickle",
        ),
    ] {
        let zip = torch_zip(content);
        let told = finds("a.pt", &zip, Severity::Suspicious, Rule::BrokenPickle, what);
        assert_eq!(told.findings[0].member, "m/data.pkl");
    }
    is_clean("a.pt", &torch_zip(b"\x80\x02}."), "PyTorch zip");
    is_clean("a.pt", &torch_zip(b"(dp0\n."), "PyTorch zip");
    // The same by the file's own name.
    for content in [&[0; 100][..], b"", b"<html></html>", b"\x89PNG\r\n\x1a\n"] {
        let rule = Rule::NotScannable;
        finds("a.pkl", content, Severity::Suspicious, rule, "`.pkl`");
        finds("a.ckpt", content, Severity::Suspicious, rule, "`.ckpt`");
    }
}

fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let len = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\0".as_slice(), &len, header.as_bytes(), data].concat()
}

fn npy_of(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n");
    npy(&header, data)
}

#[test]
fn behind_an_array() {
    for (descr, shape, size) in [
        ("'<f4'", "(3,)", 12),
        ("'<c16'", "()", 16),
        ("'|S5'", "(2, 1)", 10),
        ("'<U2'", "(1,)", 8),
        ("'<M8[s]'", "(1,)", 8),
        ("[('a', '<i4'), ('b', '|V3', (2,))]", "(2,)", 20),
    ] {
        let mut file = npy_of(descr, shape, &vec![0; size]);
        is_clean("a.npy", &file, "a NumPy array");
        file.extend_from_slice(ATTACK);
        finds("a.npy", &file, Severity::Dangerous, Rule::Call, TOLD);
        let what = format!("{} bytes behind the array's elements", ATTACK.len());
        finds(
            "a.npy",
            &file,
            Severity::Suspicious,
            Rule::TrailingData,
            &what,
        );
        let zip = Builder::new().add("x.npy", &file, 8).finish();
        finds("a.npz", &zip, Severity::Dangerous, Rule::Call, TOLD);
    }
    // A deflated array of numbers is not taken into memory, and is clean as such.
    let large = npy_of("'<f4'", "(100000,)", &[0; 400_000]);
    let zip = Builder::new().add("x.npy", &large, 8).finish();
    let small = Limits {
        memory_bytes_max: 100_000,
        ..Limits::default()
    };
    assert!(
        scan_bytes("a.npz", &Memory(zip), &small)
            .unwrap()
            .is_clean()
    );
}

#[test]
fn a_header_that_is_no_literal() {
    let call =
        "{'descr': __import__('os').system('id'), 'fortran_order': False, 'shape': (1,), }\n";
    finds(
        "a.npy",
        &npy(call, &[0; 8]),
        Severity::Dangerous,
        Rule::Text,
        "would run in readers that evaluate it: {'descr': __import__('os')",
    );
    for odd in [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2*3,), }\n",
        "[c for c in ().__class__.__base__.__subclasses__()]\n",
    ] {
        let told = finds(
            "a.npy",
            &npy(odd, &[0; 8]),
            Severity::Dangerous,
            Rule::Text,
            "would run",
        );
        assert_eq!(told.kind, "a NumPy array");
    }
    let unknown = "{'descr': '<f4', 'fortran_order': nil, 'shape': (1,), }\n";
    finds(
        "a.npy",
        &npy(unknown, &[0; 4]),
        Severity::Suspicious,
        Rule::Text,
        "literal",
    );
    finds(
        "a.npy",
        b"\x93NUMPY\x02\0\xff\xff\xff\x7f{",
        Severity::Suspicious,
        Rule::NotScannable,
        "whole header",
    );
}

/// A golden file that torch wrote.
fn golden(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden/pickle");
    std::fs::read(folder.join(name)).unwrap()
}

#[test]
fn behind_the_storages() {
    for name in [
        "views_legacy.pth",
        "legacy_1.pt",
        "legacy_4.pt",
        "legacy_5.pt",
        "module_legacy.pt",
    ] {
        let mut file = golden(name);
        is_clean(name, &file, "PyTorch file from before 1.6");
        file.extend_from_slice(ATTACK);
        finds("a.pt", &file, Severity::Dangerous, Rule::Call, TOLD);
        let told = finds(
            "a.pt",
            &file,
            Severity::Suspicious,
            Rule::TrailingData,
            "bytes behind the last storage",
        );
        let call = told
            .findings
            .iter()
            .find(|finding| finding.rule == Rule::Call);
        assert_eq!(call.unwrap().member, "behind the storages");
    }
    // Storages that are cut off say so.
    let cut = golden("legacy_4.pt");
    let cut = &cut[..cut.len() - 1];
    finds(
        "a.pt",
        cut,
        Severity::Suspicious,
        Rule::BrokenPickle,
        "cut off",
    );
}

#[test]
fn modules_with_their_source() {
    // A class of its own: said to be one, and not what the file says about it.
    let file = golden("module_legacy.pt");
    let name = b"torch.nn.modules.linear\nLinear\n";
    let at = file
        .windows(name.len())
        .position(|bytes| bytes == name)
        .unwrap();
    let mut own = file.clone();
    own.splice(at..at + name.len(), *b"my_models\nNet\n");
    let told = report("a.pt", &own);
    assert_eq!(told.worst(), Some(Severity::Suspicious));
    let has = |rule, text: &str| {
        let found = |finding: &Finding| finding.rule == rule && finding.message.contains(text);
        assert!(told.findings.iter().any(found), "{text}: {told:#?}");
    };
    has(Rule::Global, "my_models.Net: not on the list");
    has(Rule::Call, "would have run: my_models.Net");
    let misread = |finding: &Finding| {
        finding.rule == Rule::TrailingData || finding.message.contains("stored as ('module'")
    };
    assert!(!told.findings.iter().any(misread), "{told:#?}");
}

/// `torch.storage._load_from_bytes(…)` with these bytes.
fn load(bytes: &[u8]) -> Vec<u8> {
    let mut outer = b"\x80\x03ctorch.storage\n_load_from_bytes\nB".to_vec();
    outer.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    outer.extend_from_slice(bytes);
    outer.extend_from_slice(b"\x85R.");
    outer
}

#[test]
fn files_within_pickles() {
    for name in [
        "plain_0.pkl",
        "plain_2.pkl",
        "plain_4.pkl",
        "plain_tensor.pkl",
    ] {
        let told = report(name, &golden(name));
        assert!(told.is_clean(), "{told:#?}");
        assert_eq!(told.unlisted_count, 0);
    }
    finds(
        "a.pkl",
        &load(ATTACK),
        Severity::Dangerous,
        Rule::Call,
        TOLD,
    );
    // Behind the storages of the file within, and in an archive.
    let hidden = [golden("legacy_4.pt"), ATTACK.to_vec()].concat();
    finds(
        "a.pkl",
        &load(&hidden),
        Severity::Dangerous,
        Rule::Call,
        TOLD,
    );
    finds(
        "a.pkl",
        &load(&torch_zip(ATTACK)),
        Severity::Dangerous,
        Rule::Call,
        TOLD,
    );
    finds(
        "a.pkl",
        &load(&load(&load(ATTACK))),
        Severity::Dangerous,
        Rule::Call,
        TOLD,
    );
    let rule = Rule::Oddity;
    finds(
        "a.pkl",
        &load(b"words"),
        Severity::Suspicious,
        rule,
        "torch.save never writes",
    );
    // More of them than a scanner may get tired of, the last one hostile.
    let mut many = b"\x80\x03".to_vec();
    for _ in 0..200 {
        let one = load(b"\x80\x02N.");
        many.extend_from_slice(&one[2..one.len() - 1]);
        many.push(b'0');
    }
    many.extend_from_slice(&load(ATTACK)[2..]);
    finds("a.pkl", &many, Severity::Dangerous, Rule::Call, TOLD);
    // As Latin-1 in a text.
    let text: String = ATTACK.iter().map(|&byte| char::from(byte)).collect();
    let mut outer = b"\x80\x02ctorch.storage\n_load_from_bytes\nc_codecs\nencode\nX".to_vec();
    outer.extend_from_slice(&(text.len() as u32).to_le_bytes());
    outer.extend_from_slice(text.as_bytes());
    outer.extend_from_slice(b"X\x06\0\0\0latin1\x86R\x85R.");
    finds("a.pkl", &outer, Severity::Dangerous, Rule::Call, TOLD);
}

#[test]
fn loading_handed_on() {
    // What is loaded is computed, or something else does the loading.
    finds(
        "a.pkl",
        b"\x80\x03ctorch.storage\n_load_from_bytes\ncbuiltins\nbytes\n)R\x85R.",
        Severity::Dangerous,
        Rule::Call,
        "would have loaded a file",
    );
    let mut other =
        b"\x80\x03ctorch._tensor\n_rebuild_from_type_v2\n(ctorch.storage\n_load_from_bytes\n\
        ctorch\nTensor\nC"
            .to_vec();
    other.push(ATTACK.len() as u8);
    other.extend_from_slice(ATTACK);
    other.extend_from_slice(b"\x85}tR.");
    finds(
        "a.pkl",
        &other,
        Severity::Dangerous,
        Rule::Call,
        "to something else",
    );
}

#[test]
fn the_worst_is_told_however_much_there_is() {
    let mut pickle = b"\x80\x02".to_vec();
    for count in 0..60_000 {
        pickle.extend_from_slice(format!("cm{count}\nf\n)R0").as_bytes());
    }
    pickle.extend_from_slice(&ATTACK[2..]);
    let told = finds("a.pkl", &pickle, Severity::Dangerous, Rule::Call, TOLD);
    assert!(told.findings.len() <= FINDING_COUNT_MAX && told.unlisted_count > 60_000);
}

#[test]
fn unpacking_ends() {
    let limits = Limits {
        memory_bytes_max: 1_000_000,
        ..Limits::default()
    };
    // Members that are not large each, but all together.
    let zeros = vec![0; 900_000];
    let mut zip = Builder::new();
    for name in ["a", "b", "c"] {
        zip = zip.add(name, &zeros, 8);
    }
    let zip = Memory(zip.finish());
    let mut scanner = Scanner::new(&limits, &zip);
    assert!(scanner.work_left >= WORK_BYTES_FREE);
    scanner.work_left = 2_000_000;
    scanner.blob(&zip, "a.zip", "", 0);
    let told: Vec<_> = scanner
        .findings
        .iter()
        .map(|finding| (&*finding.member, &*finding.message))
        .collect();
    let what = "all members together unpack to too much; the rest was not looked at";
    assert_eq!(told, [("c", what)]);
    // Archives in archives share one limit.
    let inner = Builder::new()
        .add("pad", &vec![0; 600_000], 0)
        .add("x", &vec![0; 500_000], 8)
        .finish();
    let both = Builder::new().add("y.zip", &inner, 8).finish();
    let told = scan_bytes("a.zip", &Memory(both), &limits).unwrap();
    let [finding] = &told.findings[..] else {
        panic!("{told:#?}");
    };
    assert_eq!(finding.member, "y.zip!x");
    assert!(
        finding.message.starts_with("unpacks to more than 3"),
        "{finding:?}"
    );
    let alone = scan_bytes("y.zip", &Memory(inner), &limits).unwrap();
    assert!(alone.is_clean());
}

#[test]
fn messages_show_what_is_hidden() {
    let names = "\u{202e}\u{200b}\u{1b}[31m";
    let text = format!("o{names}s");
    let mut pickle = b"\x80\x04".to_vec();
    for word in [text.as_str(), "system", "a\u{202e}b"] {
        pickle.extend_from_slice(&[0x8c, word.len() as u8]);
        pickle.extend_from_slice(word.as_bytes());
        if word == "system" {
            pickle.push(0x93);
        }
    }
    pickle.extend_from_slice(b"\x85R.");
    let zip = Builder::new().add("x\u{202e}y", &pickle, 0).finish();
    let told = report("a.zip", &zip);
    assert!(!told.is_clean());
    let log = sarif(std::slice::from_ref(&told));
    let texts = log["runs"][0]["results"].as_array().unwrap().iter();
    let texts = texts.map(|result| result["message"]["text"].as_str().unwrap().to_owned());
    let messages = told.findings.iter().map(|finding| finding.message.clone());
    for message in texts.chain(messages) {
        assert!(
            !message.contains(['\u{202e}', '\u{200b}', '\u{1b}']),
            "{message:?}"
        );
    }
    assert!(told.findings.iter().any(|finding| {
        finding
            .message
            .contains("o\\u{202e}\\u{200b}\\u{1b}[31ms.system")
    }));
}

/// A pickle of one string: bytes, a text, or bytes as protocols before 3 write them.
fn strings(content: &[u8]) -> [Vec<u8>; 3] {
    let latin1: String = content.iter().map(|&byte| char::from(byte)).collect();
    let long =
        |op: u8, bytes: &[u8]| [&[op], &(bytes.len() as u32).to_le_bytes()[..], bytes].concat();
    let text = long(b'X', latin1.as_bytes());
    [
        [b"\x80\x03}X\x01\0\0\0a", &long(b'B', content)[..], b"s."].concat(),
        [b"\x80\x02]", &text[..], b"a."].concat(),
        [
            b"\x80\x02c_codecs\nencode\n",
            &text[..],
            b"X\x06\0\0\0latin1\x86R.",
        ]
        .concat(),
    ]
}

#[test]
fn strings_that_are_pickles() {
    let in_turn = "if a program loads this string in turn: would have run: os.system('id')";
    let (severity, rule) = (Severity::Suspicious, Rule::Call);
    let text = b"cos\nsystem\n(S'id'\ntR.";
    let stack = b"\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.";
    let zip = Builder::new().add("m/data.pkl", ATTACK, 8).finish();
    let mut zlib = Vec::new();
    let mut encoder = flate2::read::ZlibEncoder::new(ATTACK, flate2::Compression::default());
    std::io::Read::read_to_end(&mut encoder, &mut zlib).unwrap();
    for content in [ATTACK, text, stack, &zip, &zlib] {
        for pickle in strings(content) {
            let told = finds("a.pkl", &pickle, severity, rule, in_turn);
            let place = |finding: &Finding| finding.member.starts_with("bytes at ");
            assert!(told.findings.iter().any(place), "{told:#?}");
            // A string in a string in a string.
            for outer in strings(&pickle).iter().flat_map(|pickle| strings(pickle)) {
                finds(
                    "a.pkl",
                    &outer,
                    severity,
                    rule,
                    "would have run: os.system('id')",
                );
            }
        }
    }
    // Behind more strings than anyone would look at one by one; and what a call takes is told as before.
    let mut many = b"\x80\x03(".to_vec();
    for _ in 0..5000 {
        many.extend_from_slice(b"C\x0a]\n\nnothing");
    }
    many.extend_from_slice(&strings(ATTACK)[0][2..]);
    finds("a.pkl", &many, severity, rule, in_turn);
    for harmless in [
        &b"\x80\x02N."[..],
        b"cat\nand\ndog\n",
        b"(I1\nI2\nt.",
        &[0x80, 2, 0xff, 9, 9, 9],
        b"x = 1 + 2 # and so on",
    ] {
        for pickle in strings(harmless) {
            let told = report("a.pkl", &pickle);
            assert!(told.is_clean(), "{told:#?}");
        }
    }
    let tensors = b"\x80\x02ccollections\nOrderedDict\n)R.";
    for pickle in strings(tensors) {
        assert!(report("a.pkl", &pickle).is_clean());
    }
}

#[test]
fn strings_in_strings_end() {
    let mut pickle = ATTACK.to_vec();
    for _ in 0..2000 {
        pickle = [
            b"\x80\x03B",
            &(pickle.len() as u32).to_le_bytes()[..],
            &pickle,
            b".",
        ]
        .concat();
    }
    let what = "strings in strings, too many or too deep";
    finds(
        "a.pkl",
        &pickle,
        Severity::Suspicious,
        Rule::NotScannable,
        what,
    );
}

/// Bytes of which one read fails, the others before and after it not.
struct Failing {
    bytes: Memory,
    read_count: std::sync::atomic::AtomicU64,
    fails_at: u64,
}

impl Failing {
    fn new(bytes: &[u8], fails_at: u64) -> Failing {
        Failing {
            bytes: Memory(bytes.to_vec()),
            read_count: 0.into(),
            fails_at,
        }
    }
}

impl ReadAt for Failing {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = self
            .read_count
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if count == self.fails_at {
            return Err(io::Error::other("the disk is tired"));
        }
        self.bytes.read_at(buffer, offset)
    }

    fn byte_count(&self) -> io::Result<u64> {
        self.bytes.byte_count()
    }
}

#[test]
fn a_read_that_fails_is_an_error_wherever_it_happens() {
    let zip = Builder::new()
        .add("a.npy", &npy_of("'<f4'", "(3,)", &[0; 12]), 0)
        .add("b.txt", b"words", 8)
        .finish();
    let mut tar = vec![0; 512];
    tar[..2].copy_from_slice(b"a\0");
    tar[124..135].copy_from_slice(b"00000000005");
    tar[257..262].copy_from_slice(b"ustar");
    tar.resize(2048, 0);
    let files = [
        zip[..zip.len() - 30].to_vec(),
        zip,
        tar,
        b"GGUF\x03\0\0\0".to_vec(),
        golden("legacy_4.pt"),
        golden("plain_2.pkl"),
        golden("views.pt"),
        b"words".to_vec(),
    ];
    for bytes in files {
        let sound = Failing::new(&bytes, u64::MAX);
        scan_bytes("a", &sound, &Limits::default()).unwrap();
        let read_count = sound.read_count.into_inner();
        for fails_at in (0..read_count).step_by(1 + read_count as usize / 40) {
            let failing = Failing::new(&bytes, fails_at);
            let error = scan_bytes("a", &failing, &Limits::default()).unwrap_err();
            assert!(error.to_string().contains("the disk is tired"), "{error}");
        }
    }
}

#[test]
fn a_file_that_changes_meanwhile_is_never_clean() {
    /// Another program, which writes to the file after the first read.
    struct Meddled<R> {
        file: R,
        path: std::path::PathBuf,
        is_done: std::sync::atomic::AtomicBool,
    }
    impl<R: ReadAt> ReadAt for Meddled<R> {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let read = self.file.read_at(buffer, offset);
            if !self
                .is_done
                .swap(true, std::sync::atomic::Ordering::Relaxed)
            {
                let mut file = std::fs::OpenOptions::new().append(true).open(&self.path)?;
                std::io::Write::write_all(&mut file, ATTACK)?;
            }
            read
        }
        fn byte_count(&self) -> io::Result<u64> {
            self.file.byte_count()
        }
    }
    let folder =
        std::env::temp_dir().join(format!("safelight-scan-changes-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("a.pkl");
    std::fs::write(&path, b"\x80\x02N.").unwrap();
    let file = open_file(&path).unwrap();
    let is_done = false.into();
    let meddled = Meddled {
        file,
        path: path.clone(),
        is_done,
    };
    let error = scan_bytes("a.pkl", &meddled, &Limits::default()).unwrap_err();
    std::fs::remove_dir_all(&folder).unwrap();
    let said = error.to_string();
    assert!(said.contains("a.pkl") && said.contains("changed"), "{said}");
}

#[test]
fn templates_packages_and_bare_streams() {
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let gguf = |template: &str| {
        let head = [&b"GGUF\x03\0\0\0"[..], &[0; 8], &1u64.to_le_bytes()].concat();
        [
            head,
            string("tokenizer.chat_template"),
            8u32.to_le_bytes().to_vec(),
            string(template),
        ]
        .concat()
    };
    let hostile = "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}";
    let (severity, rule) = (Severity::Suspicious, Rule::Text);
    let json = format!("{{\"chat_template\": \"{hostile}\"}}");
    finds(
        "a.gguf",
        &gguf(hostile),
        severity,
        rule,
        "reaches into Python's objects with `__class__`",
    );
    finds(
        "tokenizer_config.json",
        json.as_bytes(),
        severity,
        rule,
        "`__class__`",
    );
    let honest = "{% for message in messages %}{{ message['content'] }}{% endfor %}";
    let with_vocabulary = [gguf(honest), string("__class__"), string("__init__")].concat();
    is_clean("a.gguf", &with_vocabulary, "a GGUF/GGML model");
    let package = Builder::new()
        .add("p/.data/extern_modules", b"os\n", 0)
        .add("p/evil/__init__.py", b"import os\n", 0)
        .finish();
    finds(
        "a.pt",
        &package,
        severity,
        Rule::CodeLayer,
        "PackageImporter",
    );
    // LZMA as joblib writes it, where an archive hides it.
    let lzma = [&[0x5d, 0, 0, 0x80, 0][..], &[0xff; 8], &[0, 1, 2, 3]].concat();
    let zip = Builder::new().add("model.bin", &lzma, 0).finish();
    finds("a.zip", &zip, severity, Rule::NotScannable, "LZMA");
}
