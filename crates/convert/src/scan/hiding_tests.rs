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
