//! The house rules that neither rustc nor clippy checks.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A file longer than this holds two ideas.
const LINES_MAX: usize = 900;

/// Words that mean "not finished"; split so that this file does not hold them.
const UNFINISHED: [&str; 3] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("unimpl", "emented!"),
];

/// Every broken rule under `root`, each with its file and line.
pub(crate) fn problems(root: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    let manifest = read(&root.join("Cargo.toml"));
    let walk = walking_order(&manifest);
    if walk.is_empty() {
        problems.push("Cargo.toml: no members under crates/".into());
    }
    problems.extend(unexplained_dependencies(&manifest));
    for (position, name) in walk.iter().enumerate() {
        let path = root.join("crates").join(name).join("Cargo.toml");
        problems.extend(backward_dependencies(name, &read(&path), &walk[..position]));
    }
    for file in sources(root) {
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy();
        problems.extend(source_problems(&name.replace('\\', "/"), &read(&file)));
    }
    problems
}

/// The crates in the order in which the root manifest lists them.
fn walking_order(manifest: &str) -> Vec<String> {
    let names = manifest
        .lines()
        .filter_map(|line| line.trim().strip_prefix("\"crates/"));
    names
        .filter_map(|rest| rest.split('"').next())
        .map(String::from)
        .collect()
}

/// External dependencies of the workspace without a comment above that says why.
fn unexplained_dependencies(manifest: &str) -> Vec<String> {
    let section = manifest
        .split("[workspace.dependencies]")
        .nth(1)
        .unwrap_or("");
    let section = section.split("\n[").next().unwrap_or("");
    let mut problems = Vec::new();
    let mut previous = "";
    for line in section.lines().map(str::trim) {
        let external = line.contains('=') && !line.starts_with('#') && !line.contains("path =");
        if external && !previous.starts_with('#') {
            problems.push(format!("Cargo.toml: no reason given above `{line}`"));
        }
        previous = line;
    }
    problems
}

/// Dependencies of crate `name` on rooms that are not `above` it.
fn backward_dependencies(name: &str, manifest: &str, above: &[String]) -> Vec<String> {
    let section = manifest.split("[dependencies]").nth(1).unwrap_or("");
    let section = section.split("\n[").next().unwrap_or("");
    let rooms = section
        .lines()
        .filter_map(|line| line.strip_prefix("safelight-"));
    rooms
        .filter_map(|rest| rest.split(['.', ' ', '=']).next())
        .filter(|room| !above.iter().any(|known| known == room))
        .map(|room| format!("crates/{name}: depends on `{room}`, which is not above it"))
        .collect()
}

/// Rules for one source file: length, unfinished work, unsafe code away from its addresses, paths of a machine.
fn source_problems(name: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let count = text.lines().count();
    if count > LINES_MAX {
        problems.push(format!(
            "{name}: {count} lines, at most {LINES_MAX}: two ideas in one file?"
        ));
    }
    for (number, line) in text.lines().enumerate() {
        let at = format!("{name}:{}", number + 1);
        if let Some(word) = UNFINISHED.iter().find(|word| line.contains(**word)) {
            problems.push(format!("{at}: {word}"));
        }
        if is_unsafe(line) && !unsafe_is_at_home(name, line) {
            problems.push(format!(
                "{at}: unsafe code lives in store/src/map.rs, kernels/src/arch/ and kernels/tests/emulated/"
            ));
        }
        if line.contains(concat!("/ho", "me/")) || line.contains(concat!("/ro", "ot/")) {
            problems.push(format!("{at}: a machine's path"));
        }
    }
    if name.starts_with("crates/")
        && (name.ends_with("/src/lib.rs") || name.ends_with("/src/main.rs"))
    {
        let may = name.starts_with("crates/kernels/") || name.starts_with("crates/store/");
        if !may && !text.contains("#![forbid(unsafe_code)]") {
            problems.push(format!("{name}: says no `#![forbid(unsafe_code)]`"));
        }
    }
    problems
}

/// Whether a line of code (not a comment) opens something unsafe.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or("");
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
        .iter()
        .any(|word| code.contains(word))
}

fn unsafe_is_at_home(name: &str, line: &str) -> bool {
    name.starts_with("xtask/")
        || name == "crates/store/src/map.rs"
        || name.starts_with("crates/kernels/src/arch/")
        || name.starts_with("crates/kernels/tests/emulated/")
        // Whoever calls `map` must write the word.
        || (name.starts_with("crates/store/") && line.contains(" map("))
}

/// Every Rust source of the workspace.
fn sources(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.join("crates"), root.join("xtask"), root.join("fuzz")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_workspace_is_tidy() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        assert_eq!(problems(&root), Vec::<String>::new());
    }

    #[test]
    fn a_crate_may_not_look_back() {
        let above = ["format".to_string()];
        let manifest = "[dependencies]\nsafelight-format.workspace = true\nsafelight-cli = \"1\"\n[lints]\nworkspace = true\n";
        assert_eq!(
            backward_dependencies("store", manifest, &above),
            ["crates/store: depends on `cli`, which is not above it"]
        );
    }

    #[test]
    fn a_dependency_needs_a_reason() {
        let manifest =
            "[workspace.dependencies]\n# Threads.\nrayon = \"1\"\nfoo = \"2\"\n[profile.dev]\n";
        assert_eq!(
            unexplained_dependencies(manifest),
            ["Cargo.toml: no reason given above `foo = \"2\"`"]
        );
    }

    #[test]
    fn unsafe_code_has_an_address() {
        let line = "    unsafe { go() }\n";
        assert_eq!(source_problems("crates/tensor/src/ops.rs", line).len(), 1);
        assert_eq!(
            source_problems("crates/kernels/src/arch/x86.rs", line).len(),
            0
        );
        assert_eq!(
            source_problems("crates/tensor/src/ops.rs", "// unsafe { no }\n").len(),
            0
        );
    }

    #[test]
    fn long_files_are_named() {
        let text = "let x = 1;\n".repeat(LINES_MAX + 1);
        assert!(source_problems("crates/cli/src/a.rs", &text)[0].contains("901 lines"));
    }
}
