//! What is known to have slipped past picklescan, fickling and torch's own checks, each by its number: found by `scan`, and refused by
//! name where it is to be converted.

use std::io;

use safelight_convert::scan::{Rule, ScanReport, Severity, scan_bytes};
use safelight_convert::{ConvertError, Limits, OpenOptions, UnknownObjects, open_torch};
use safelight_store::ReadAt;

struct Memory(Vec<u8>);

impl ReadAt for Memory {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let there = self.0.get(offset as usize..).unwrap_or_default();
        let len = there.len().min(buffer.len());
        buffer[..len].copy_from_slice(&there[..len]);
        Ok(len)
    }

    fn byte_count(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
}

fn report(name: &str, pickle: &[u8]) -> ScanReport {
    scan_bytes(name, &Memory(pickle.to_vec()), &Limits::default()).unwrap()
}

/// A scan tells the call as dangerous; converting is refused with the global's name, even where unknown objects are dropped.
#[track_caller]
fn is_caught(file: &str, pickle: &[u8], global: &str) {
    let told = report(file, pickle);
    let call = |text: &str| {
        told.findings.iter().any(|finding| {
            finding.severity == Severity::Dangerous
                && finding.rule == Rule::Call
                && finding.message.contains(text)
        })
    };
    assert!(call(global), "{file}: no call of {global} in {told:#?}");
    for unknown_objects in [UnknownObjects::Refuse, UnknownObjects::Drop] {
        let options = OpenOptions {
            unknown_objects,
            ..OpenOptions::default()
        };
        match open_torch(file, Box::new(Memory(pickle.to_vec())), &options) {
            Err(ConvertError::RefusedGlobal {
                global: named,
                dangerous,
                ..
            }) => assert!(dangerous && named == global, "{named} instead of {global}"),
            Err(error) => panic!("{global}: {error}"),
            Ok(_) => panic!("{global}: opened"),
        }
    }
}

/// `module.name('id')` in every way that pickles can say it.
fn calls(module: &str, name: &str) -> Vec<Vec<u8>> {
    let short = |text: &str| [&[0x8c, text.len() as u8], text.as_bytes()].concat();
    let global = format!("c{module}\n{name}\n");
    let argument = b"X\x02\0\0\0id";
    vec![
        [b"\x80\x02", global.as_bytes(), argument, b"\x85R."].concat(),
        // Without a mark, as text.
        format!("{global}(S'id'\ntR.").into_bytes(),
        format!("(S'id'\ni{module}\n{name}\n.").into_bytes(),
        [b"\x80\x02(", global.as_bytes(), argument, b"o."].concat(),
        // The name from the stack, and by way of the memo.
        [
            b"\x80\x04",
            &short(module)[..],
            &short(name),
            b"\x93",
            argument,
            b"\x85R.",
        ]
        .concat(),
        [
            b"\x80\x04",
            &short(name)[..],
            b"\x940",
            &short(module),
            b"h\x00\x93",
            argument,
            b"\x85R.",
        ]
        .concat(),
        // The result is thrown away (fickling: POP hides calls).
        [b"\x80\x02", global.as_bytes(), argument, b"\x85R0N."].concat(),
        [b"\x80\x02(", global.as_bytes(), argument, b"\x85R1N."].concat(),
        // BUILD after REDUCE (GHSA-mhc9-48gj-9gp3).
        [
            b"\x80\x02",
            global.as_bytes(),
            argument,
            b"\x85R}X\x01\0\0\0aK\x01sb.",
        ]
        .concat(),
        // The stream breaks when the call is made (nullifAI).
        [b"\x80\x02", global.as_bytes(), argument, b"\x85R\xff\xff"].concat(),
        [b"\x80\x02", global.as_bytes(), argument, b"\x85R"].concat(),
        // Instructions before it that do nothing.
        [
            b"\x80\x02N0]0}0(1K\x010",
            global.as_bytes(),
            argument,
            b"\x85R.",
        ]
        .concat(),
    ]
}

#[test]
fn names_that_denylists_lacked() {
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("pip", "main"),                                            // CVE-2025-1716
        ("pip._internal.cli.main", "main"),                         // CVE-2025-1716
        ("asyncio.unix_events", "_UnixSubprocessTransport._start"), // CVE-2025-10157
        ("asyncio.base_subprocess", "BaseSubprocessTransport"),     // CVE-2025-10157
        ("logging", "FileHandler"),                                 // CVE-2026-56304
        ("uuid", "_get_command_stdout"),                            // CVE-2026-56315
        ("imaplib", "IMAP4_stream"),                                // CVE-2026-56315
        ("_osx_support", "_read_output"),
        ("pkgutil", "resolve_name"),
        ("torch.jit", "load"), // what torch's own list left open
        ("torch.hub", "load"),
        ("torch", "load"),
    ] {
        let global = format!("{module}.{name}");
        for pickle in calls(module, name) {
            is_caught("model.pkl", &pickle, &global);
        }
    }
}

#[test]
fn any_name_by_its_name() {
    // `pkgutil.resolve_name('os:system')('id')`: no list of names helps, as the last one is a text.
    let chain = b"\x80\x02cpkgutil\nresolve_name\nX\x09\0\0\0os:system\x85RX\x02\0\0\0id\x85R.";
    is_caught("model.pkl", chain, "pkgutil.resolve_name");
    let told = report("model.pkl", chain);
    let last = "pkgutil.resolve_name('os:system')('id')";
    assert!(
        told.findings
            .iter()
            .any(|finding| finding.message.contains(last))
    );
}

#[test]
fn endings_of_names() {
    // CVE-2025-1889, CVE-2025-10155: a pickle in a name for which another reader was chosen, or none.
    let pickle = &calls("os", "system")[0];
    for name in [
        "model.bin",
        "model.pt",
        "model.pth",
        "model.ckpt",
        "model.safetensors",
        "model.json",
        "model.txt",
        "config",
        "model.zip",
        "model.npy",
        "model.7z",
        "model.h5",
        "..",
        "",
    ] {
        is_caught(name, pickle, "os.system");
    }
}

#[test]
fn containers_nobody_opens() {
    // nullifAI: 7-Zip in place of zip; torch.load fails on it, another loader does not.
    for name in ["model.pt", "model.bin", "archive"] {
        let told = report(name, b"7z\xbc\xaf\x27\x1c\0\x04\x01\x02\x03\x04");
        assert_eq!(told.worst(), Some(Severity::Suspicious), "{told:#?}");
        assert_eq!(told.findings[0].rule, Rule::NotScannable);
    }
}

#[test]
fn what_is_on_no_list_is_not_allowed() {
    // fickling's MLAllowlist was never asked (≤ 0.1.11); here what is not on the list is never let through.
    for (module, name) in [
        ("some_package", "run"),
        ("torch.nn.modules.container", "Sequential.forward"),
        ("torch.nn.modules", "os"),
        ("collections", "OrderedDict.fromkeys"),
        ("numpy", "core.multiarray"),
    ] {
        let pickle = &calls(module, name)[0];
        let told = report("model.pkl", pickle);
        assert!(!told.is_clean(), "{module}.{name}: {told:#?}");
        let opened = open_torch(
            "model.pkl",
            Box::new(Memory(pickle.clone())),
            &OpenOptions::default(),
        );
        assert!(
            matches!(opened, Err(ConvertError::RefusedGlobal { .. })),
            "{module}.{name}"
        );
    }
}

/// `torch.storage._load_from_bytes` is let through for storages alone: a hostile file within is refused by what it asks for.
#[test]
fn files_within_are_no_way_around() {
    for inner in calls("os", "system") {
        let mut outer =
            b"\x80\x03ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\nB"
                .to_vec();
        outer.extend_from_slice(&(inner.len() as u32).to_le_bytes());
        outer.extend_from_slice(&inner);
        outer.extend_from_slice(b"\x85RK\0K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR.");
        is_caught("model.pkl", &outer, "os.system");
    }
}

/// A dict that holds itself ends at the depth's limit, and the message does not name a thousand keys.
#[test]
fn endless_paths_are_cut() {
    let tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(NtR";
    let pickle = [
        b"\x80\x02}q\0X\x04\0\0\0selfh\0sX\x01\0\0\0t",
        &tensor[..],
        b"s.",
    ]
    .concat();
    let reader = Box::new(Memory(pickle));
    let Err(error) = open_torch("model.pkl", reader, &OpenOptions::default()) else {
        panic!("it opened");
    };
    let text = error.to_string();
    assert!(
        text.contains("`self.self.self.….self.self.self (1001 parts)`"),
        "{text}"
    );
    assert!(
        text.contains("the limit is 1000") && text.len() < 300,
        "{text}"
    );
}
