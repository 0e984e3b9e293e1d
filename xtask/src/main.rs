//! What CI runs, as `cargo xtask check`, and its parts one by one.
//!
//! `check` = `fmt` + `clippy` + `test` + `tidy` + `docs`. Each part runs even if an earlier one failed, so that one run
//! tells everything; the exit code is 0 only if all passed.
#![forbid(unsafe_code)]

mod tidy;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

const HELP: &str = "\
cargo xtask <command>

  check    everything CI does: fmt, clippy, test, tidy, docs
  fmt      the sources are formatted (cargo fmt --check)
  clippy   no warnings in any target
  test     the command of the README: cargo test --workspace
  tidy     crates depend only on crates above them, unsafe code lives at its addresses, files stay readable
  docs     the documentation builds without a warning
";

fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    let parts: &[&str] = match command.as_str() {
        "check" => &["fmt", "clippy", "test", "tidy", "docs"],
        "fmt" | "clippy" | "test" | "tidy" | "docs" => &[command.as_str()],
        "" | "help" | "-h" | "--help" => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        other => {
            eprintln!("xtask: no command `{other}`\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    let failed: Vec<&str> = parts.iter().copied().filter(|part| !run(part)).collect();
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("xtask: failed: {}", failed.join(", "));
    ExitCode::FAILURE
}

/// Runs one part and says how long it took; `true` if it passed.
fn run(part: &str) -> bool {
    let start = Instant::now();
    eprintln!("xtask: {part}");
    let passed = match part {
        "fmt" => cargo(&["fmt", "--all", "--check"], &[]),
        "clippy" => cargo(
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
            &[],
        ),
        "test" => cargo(&["test", "--workspace"], &[]),
        "docs" => cargo(
            &["doc", "--workspace", "--no-deps"],
            &[("RUSTDOCFLAGS", "-D warnings")],
        ),
        _ => {
            let problems = tidy::problems(&root());
            problems
                .iter()
                .for_each(|problem| eprintln!("tidy: {problem}"));
            problems.is_empty()
        }
    };
    let verdict = if passed { "passed" } else { "FAILED" };
    eprintln!("xtask: {part} {verdict} in {:.0?}", start.elapsed());
    passed
}

fn cargo(arguments: &[&str], environment: &[(&str, &str)]) -> bool {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(root())
        .status()
        .is_ok_and(|status| status.success())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
