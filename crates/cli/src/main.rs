//! The `safelight` command: arguments in; text, JSON, pictures and exit codes out.
//!
//! The only room that prints. What a command does is in the file of its name; arithmetic is all in `diffusion`.
#![forbid(unsafe_code)]

mod args;
mod array_text;
mod bench;
mod browse;
mod cat;
mod choose;
mod convert;
mod diff;
mod error;
mod exif;
mod files;
mod generate;
mod hash;
mod inspect;
mod interrupt;
mod lint;
mod lost;
mod ls;
mod machine;
mod merge;
mod meta;
mod models;
mod numbers;
mod opened;
mod output;
mod pattern;
mod picture;
mod progress;
mod repair;
mod say;
mod scan;
mod select;
mod shortcuts;
mod split;
mod stats;
mod trace;
mod verify;

use std::process::ExitCode;

use clap::FromArgMatches as _;
use serde_json::json;

use args::{Cli, Command};
use error::Failure;

fn main() -> ExitCode {
    interrupt::outlive_file_size_limit();
    let matches = args::command().try_get_matches();
    let cli = match matches.and_then(|matches| {
        files::set_limits(&matches);
        Cli::from_arg_matches(&matches)
    }) {
        Ok(cli) => cli,
        Err(error) => {
            return not_a_command(&error);
        }
    };
    if let Some(folder) = cli.cache_dir {
        // Nothing was chosen before: these are the program's only arguments.
        let _ = safelight_store::remote::choose_cache(folder);
    }
    let wants_json = cli.command.wants_json();
    if let Command::File(command) = &cli.command {
        return files::run(command);
    }
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let code = failure.exit_code();
            say::note(&say::harmless(&format!("error: {failure}")));
            if wants_json {
                let error = json!({ "kind": failure.kind(), "message": failure.to_string(), "exit_code": code });
                let pictures: Vec<_> = failure
                    .saved()
                    .iter()
                    .map(|path| path.to_string_lossy())
                    .collect();
                let _ = say::answer_json_line(&match pictures.is_empty() {
                    true => json!({ "error": error }),
                    false => json!({ "error": error, "written": pictures }),
                });
            } else {
                let paths = failure.saved().iter();
                let lines: String = paths.map(|path| format!("{}\n", path.display())).collect();
                let _ = say::answer(&lines);
            }
            ExitCode::from(code)
        }
    }
}

/// Says what clap has to say: help, the version, or what is wrong with the arguments.
fn not_a_command(error: &clap::Error) -> ExitCode {
    // Help and version are no errors; clap knows which stream each belongs to.
    if error.use_stderr() {
        // Arguments may be names that someone else gave to files.
        say::note(say::harmless(&error.to_string()).trim_end());
    } else {
        let printed = error.print();
        let failed = printed.is_err_and(|error| error.kind() != std::io::ErrorKind::BrokenPipe);
        return ExitCode::from(u8::from(failed));
    }
    // Arguments that can't be read may still say that a machine is listening.
    if std::env::args_os().any(|argument| argument == "--json") {
        let message = error.to_string();
        let message = message.strip_prefix("error: ").unwrap_or(&message);
        let error = json!({ "kind": "usage", "message": message.trim_end(), "exit_code": 2 });
        let _ = say::answer_json_line(&json!({ "error": error }));
    }
    ExitCode::from(2)
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Txt2img(args) => generate::txt2img(&args),
        Command::Img2img(args) => generate::img2img(&args),
        Command::Inpaint(args) => generate::inpaint(&args),
        Command::Outpaint(args) => generate::outpaint(&args),
        Command::Models(args) => models::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut args::command(), "safelight", &mut text);
            say::answer(&String::from_utf8_lossy(&text))
        }
        Command::File(_) => unreachable!("file commands were run above"),
    }
}
