//! The commands for tensor files, and what they share: arguments, exit codes, one answer for each file.
//!
//! A command is a file of its own with a `clap::Args` struct that implements [`Run`]; it is listed in [`FileCommand`],
//! [`FileCommand::command`] and `docs/commands.md`, and nowhere else.

use std::fmt;
use std::io::{IsTerminal as _, Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Arg, ArgAction, ArgMatches, Args, Subcommand, ValueHint};
use safelight_convert::{LimitName, OpenOptions as ConvertOptions, Source};
use safelight_store::location::{self, Location};
use safelight_store::{
    Checkpoint, Meant, check_found, check_listed, matching, model_files, replace_file,
};

use crate::error::Failure;
use crate::{
    browse, cat, convert, diff, hash, interrupt, lint, ls, merge, meta, repair, say, scan, split,
    stats, verify,
};

/// Exit codes of commands that do something.
pub(crate) const CODES: &str = "\
Exit codes: 0 done; 1 the machine failed (disk full …); 2 the request is wrong;
3 a file is wrong (not found, damaged, of another kind); 130 Ctrl-C";

/// Exit codes of commands that look for something, as `diff` and linters have them.
pub(crate) const FINDING_CODES: &str = "\
Exit codes: 0 nothing found; 1 something found; 2 trouble (the request is wrong,
a file can't be read); 130 Ctrl-C";

/// What commands say that read URLs too.
const URLS: &str = "\
FILE may be a URL: https, http, s3, gs, az or hf.";

/// What the others say.
const NO_URLS: &str = "Files are on this machine; URLs are refused.";

/// What `meta` says.
const GET_URLS: &str = "`get` reads URLs too; `set` and `rm` refuse them.";

/// Help is as wide as a terminal is at least.
const HELP_COLUMNS: usize = 80;

/// What a file command does; a new one gets a line here and in [`FileCommand::command`].
#[derive(Debug, Subcommand)]
pub(crate) enum FileCommand {
    /// Convert files of tensors, models and their layouts
    #[command(after_help = help(convert::HELP, URLS, CODES))]
    Convert(convert::ConvertArgs),
    /// Compare two files of tensors, in structure and in numbers
    #[command(after_help = help(diff::HELP, URLS, FINDING_CODES))]
    Diff(diff::DiffArgs),
    /// Merge shards into one file, or models into one
    #[command(after_help = help(merge::HELP, URLS, CODES))]
    Merge(merge::MergeArgs),
    /// Show what numbers tensors hold: range, mean, NaN, zeros, sizes
    #[command(after_help = help(stats::HELP, URLS, CODES))]
    Stats(stats::StatsArgs),
    /// List the tensors of a file
    #[command(after_help = help(ls::HELP, URLS, CODES))]
    Ls(ls::LsArgs),
    /// Print a tensor's numbers, or a slice of them
    #[command(after_help = help(cat::HELP, URLS, CODES))]
    Cat(cat::CatArgs),
    /// Look around in a file: its tensors as a tree, numbers, metadata
    #[command(after_help = help(browse::HELP, URLS, CODES))]
    Browse(browse::BrowseArgs),
    /// Check that files are whole, and what numbers and checksums say
    #[command(after_help = help(verify::HELP, URLS, CODES))]
    Verify(verify::VerifyArgs),
    /// List every deviation of files from the format
    #[command(after_help = help(lint::HELP, NO_URLS, FINDING_CODES))]
    Lint(lint::LintArgs),
    /// Print files' hashes: SHA-256, AutoV1 to V3, modelspec, BLAKE3 …
    #[command(after_help = help(hash::HELP, URLS, CODES))]
    Hash(hash::HashArgs),
    /// Read, set and remove a file's metadata
    #[command(after_help = help(meta::HELP, GET_URLS, CODES))]
    Meta(meta::MetaArgs),
    /// Look for what files would run if they were loaded
    #[command(after_help = help(scan::HELP, NO_URLS, FINDING_CODES))]
    Scan(scan::ScanArgs),
    /// Divide a file into shards with an index
    #[command(after_help = help(split::HELP, URLS, CODES))]
    Split(split::SplitArgs),
    /// Rescue what is whole of a damaged file
    #[command(after_help = help(repair::HELP, NO_URLS, CODES))]
    Repair(repair::RepairArgs),
}

impl FileCommand {
    fn command(&self) -> &dyn Run {
        match self {
            FileCommand::Convert(args) => args,
            FileCommand::Diff(args) => args,
            FileCommand::Merge(args) => args,
            FileCommand::Stats(args) => args,
            FileCommand::Ls(args) => args,
            FileCommand::Cat(args) => args,
            FileCommand::Browse(args) => args,
            FileCommand::Verify(args) => args,
            FileCommand::Lint(args) => args,
            FileCommand::Hash(args) => args,
            FileCommand::Meta(args) => args,
            FileCommand::Scan(args) => args,
            FileCommand::Split(args) => args,
            FileCommand::Repair(args) => args,
        }
    }

    /// Whether the answer is read by a machine.
    pub(crate) fn wants_json(&self) -> bool {
        self.command().wants_json()
    }
}

fn help(text: &str, urls: &str, codes: &str) -> String {
    format!("{}\n\n{urls}\n\n{codes}", wrapped(text))
}

/// Paragraphs in lines of [`HELP_COLUMNS`] at most; examples, which are indented, stay as they are.
fn wrapped(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut open = false; // whether the last line may be gone on with
    for line in text.lines() {
        if line.starts_with(' ') || line.is_empty() {
            lines.push(line.to_owned());
            open = false;
            continue;
        }
        if !open {
            lines.push(String::new());
        }
        for word in line.split(' ') {
            let last = lines.last_mut().expect("one was pushed");
            if last.is_empty() {
                last.push_str(word);
            } else if last.chars().count() + 1 + word.chars().count() <= HELP_COLUMNS {
                *last += &format!(" {word}");
            } else {
                lines.push(word.to_owned());
            }
        }
        // A short line ends where its author wanted.
        open = line.chars().count() > HELP_COLUMNS;
    }
    lines.join("\n")
}

/// A command for tensor files.
pub(crate) trait Run {
    /// Whether `--json` was given.
    fn wants_json(&self) -> bool;

    /// Which exit codes the command's help promises.
    fn codes(&self) -> Codes {
        Codes::Doing
    }

    /// Does it. Ctrl-C is listened for: [`interrupt::check`] (or the progress bar) says when someone asked to end.
    fn run(&self) -> Result<Outcome, Failure>;
}

/// What exit codes mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codes {
    /// As [`CODES`] says.
    Doing,
    /// As [`FINDING_CODES`] says.
    Finding,
}

impl Codes {
    fn of(self, failure: &Failure) -> u8 {
        match (self, failure.exit_code()) {
            (Codes::Finding, 1..=4) => 2,
            (_, code) => code,
        }
    }
}

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// Done, and nothing was found that was looked for: exit code 0.
    Clean,
    /// Done, and something was found: exit code 1 ([`Codes::Finding`]) or 3 ([`Codes::Doing`]: what was found is that a
    /// file is wrong).
    Found,
}

/// Runs a file command from beginning to end.
pub(crate) fn run(command: &FileCommand) -> ExitCode {
    interrupt::listen();
    let command = command.command();
    let codes = command.codes();
    let is_text = |argument: std::ffi::OsString| argument.to_str().is_some();
    if command.wants_json() && !std::env::args_os().all(is_text) {
        say::note("note: a path is no UTF-8 text; JSON has U+FFFD in place of what is not");
    }
    match command.run() {
        Ok(Outcome::Clean) => ExitCode::SUCCESS,
        Ok(Outcome::Found) if codes == Codes::Finding => ExitCode::from(1),
        Ok(Outcome::Found) => ExitCode::from(3),
        Err(failure) => {
            let code = codes.of(&failure);
            if !matches!(failure, Failure::Told(_)) {
                say::failure(&failure, code, command.wants_json());
            }
            ExitCode::from(code)
        }
    }
}

/// The arguments of a command that answers for each file.
#[derive(Debug, Args)]
pub(crate) struct FilesArgs {
    /// Tensor files; shards: an index (*.index.json), a folder or a quoted pattern
    #[arg(required = true, value_name = "FILE", value_hint = ValueHint::AnyPath)]
    pub(crate) files: Vec<PathBuf>,
    /// Print JSON: one object a file, each on a line
    #[arg(long)]
    pub(crate) json: bool,
}

impl FilesArgs {
    /// Whether there is more than one answer.
    pub(crate) fn are_several(&self) -> bool {
        let several = |path: &PathBuf| meant(path).is_ok_and(|files| files.len() > 1);
        self.files.len() > 1 || self.files.iter().any(several)
    }
}

/// What a FILE on the command line means: one checkpoint, so that it is itself; or files of other kinds that fit a pattern, each for
/// itself.
pub(crate) fn meant(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let ours = |path: &PathBuf| {
        let name = path.to_string_lossy();
        name.ends_with(".safetensors") || name.ends_with(".index.json")
    };
    let matching = match Location::of(path) {
        Location::Path(path) if !is_stdin(&path) => matching(&path)?,
        _ => None,
    };
    match matching {
        Some(files) if !files.iter().all(ours) => Ok(files),
        _ => Ok(vec![path.to_owned()]),
    }
}

/// As [`meant`], for what takes one checkpoint.
pub(crate) fn one(path: &Path) -> Result<PathBuf, Failure> {
    let mut files = meant(path)?;
    match files.len() {
        1 => Ok(files.remove(0)),
        count => Err(Failure::Usage(format!(
            "{}: {count} files fit this pattern, and not all are safetensors files, which alone are read as one; name one file",
            shown_path(path)
        ))),
    }
}

/// The only file that a path means, for what works on one file.
pub(crate) fn single(path: &Path) -> Result<PathBuf, Failure> {
    let path = on_disk(path)?;
    match matching(&path)?.as_deref() {
        None => Ok(path),
        Some([file]) => Ok(file.clone()),
        Some(files) => Err(Failure::Usage(format!(
            "{}: {} files fit this pattern; name one",
            shown_path(&path),
            files.len()
        ))),
    }
}

/// The files among some that are on this machine.
pub(crate) fn local(files: &[PathBuf]) -> Vec<PathBuf> {
    let local = files.iter().filter(|path| !is_stdin(path));
    local
        .filter_map(|path| Location::of(path).path().map(Path::to_owned))
        .collect()
}

/// An error if files that are listed as parts of one model are not all that their names (`-00001-of-00003`) count.
pub(crate) fn check_parts(files: &[PathBuf]) -> Result<(), Failure> {
    let mut parts = local(files);
    parts.retain(|path| matches!(Meant::of(path), Ok(Meant::File(_))));
    Ok(check_listed(&parts)?)
}

/// Answers for each file. One that fails is told at once and the others are worked on all the same; the exit code is the
/// first failure's. Ctrl-C ends at once.
pub(crate) fn each(
    args: &FilesArgs,
    codes: Codes,
    mut answer: impl FnMut(&Path) -> Result<Outcome, Failure>,
) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::Clean;
    let mut first = None;
    let mut take = |answered: Result<Outcome, Failure>| {
        match answered {
            Ok(this) => outcome = outcome.max(this),
            Err(failure @ Failure::Interrupted { .. }) => return Err(failure),
            Err(failure) => {
                if !matches!(failure, Failure::Told(_)) {
                    say::failure(&failure, codes.of(&failure), args.json);
                }
                first.get_or_insert(failure);
            }
        }
        Ok(())
    };
    for path in &args.files {
        match meant(path) {
            Ok(files) => files.iter().try_for_each(|file| take(answer(file)))?,
            Err(failure) => take(Err(failure))?,
        }
    }
    match first {
        None => Ok(outcome),
        Some(told @ Failure::Told(_)) => Err(told),
        Some(failure) => Err(Failure::Told(Box::new(failure))),
    }
}

/// The longest header that is read, if the command line says one; set once, before a command runs.
static HEADER_BYTES_MAX: OnceLock<u64> = OnceLock::new();

/// `--max-header`, which every command has that reads headers.
pub(crate) fn max_header() -> Arg {
    Arg::new("max-header")
        .long("max-header")
        .value_name("SIZE")
        .value_parser(header_size)
        .global(true) // `meta` has commands of its own
        .help("Read headers of at most this size, such as 200MB [default: 100MB]")
}

/// A size that headers can have.
fn header_size(text: &str) -> Result<u64, String> {
    let bytes = convert::size(text)?;
    match bytes <= u64::from(u32::MAX) {
        true => Ok(bytes),
        false => Err(format!(
            "{bytes} bytes is more than any header is read of: at most {} (4 GiB less one byte)",
            u32::MAX
        )),
    }
}

/// Commands that read no header of the kind, and so have no `--max-header`.
pub(crate) const WITHOUT_MAX_HEADER: [&str; 1] = ["hash"];

/// Other limits that the command line says; set once, before a command runs.
static LIMITS: OnceLock<Vec<(LimitName, u64)>> = OnceLock::new();

/// Commands that read files of other kinds, and so have `--limit`.
pub(crate) const WITH_LIMIT: [&str; 6] = ["convert", "diff", "merge", "stats", "ls", "browse"];

/// `--limit`.
pub(crate) fn limit() -> Arg {
    Arg::new("limit")
        .long("limit")
        .value_name("NAME=NUMBER")
        .value_parser(named_limit)
        .action(ArgAction::Append)
        .help(
            "Let a file that is no safetensors file ask for more, or less, of memory, pickle, views (sizes such as 2GiB), \
             tensors, depth or ratio (repeatable)",
        )
}

/// `memory=2GiB` and its like.
fn named_limit(text: &str) -> Result<(LimitName, u64), String> {
    let names = LimitName::ALL.map(LimitName::name).join(", ");
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("expected NAME=NUMBER with one of {names}"))?;
    let mut all = LimitName::ALL.into_iter();
    let name = all
        .find(|known| known.name() == name)
        .ok_or_else(|| format!("there is no such limit; expected one of {names}"))?;
    let value = match name.is_bytes() {
        true => convert::size(value)?,
        false => value
            .parse()
            .map_err(|_| "expected a whole number behind `=`".to_owned())?,
    };
    Ok((name, value))
}

/// Takes `--max-header` and `--limit` from what was typed.
pub(crate) fn set_limits(matches: &ArgMatches) {
    let Some((_, matches)) = matches.subcommand() else {
        return;
    };
    if let Ok(Some(bytes)) = matches.try_get_one::<u64>("max-header") {
        HEADER_BYTES_MAX.get_or_init(|| *bytes);
    }
    if let Ok(Some(limits)) = matches.try_get_many::<(LimitName, u64)>("limit") {
        LIMITS.get_or_init(|| limits.copied().collect());
    }
    set_limits(matches);
}

/// How much a safetensors file may ask for.
pub(crate) fn limits() -> safelight_format::Limits {
    let mut limits = safelight_format::Limits::default();
    if let Some(bytes) = HEADER_BYTES_MAX.get() {
        limits.header_bytes_max = *bytes;
    }
    limits
}

/// How much any file may ask for.
pub(crate) fn all_limits() -> safelight_convert::Limits {
    let mut all = safelight_convert::Limits {
        header: limits(),
        ..Default::default()
    };
    for (name, value) in LIMITS.get().into_iter().flatten() {
        all.set(*name, *value);
    }
    all
}

/// What standard input is called in messages.
const STDIN: &str = "standard input";

/// Whether a path stands for standard input.
pub(crate) fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Refuses `-` where a command has no use for it.
pub(crate) fn no_stdin(path: &Path) -> Result<(), Failure> {
    if is_stdin(path) {
        return Err(Failure::Usage(
            "`-`: this command does not read standard input; save it to a file first (one of this name: ./-)"
                .into(),
        ));
    }
    Ok(())
}

/// Standard input as a file that can be read at any place: a temporary one without a name, gone when it is closed.
pub(crate) fn spooled() -> Result<std::fs::File, Failure> {
    static READ: AtomicBool = AtomicBool::new(false);
    if READ.swap(true, Ordering::Relaxed) {
        return Err(Failure::Usage(
            "`-` is standard input, which can be read once only; save it to a file first".into(),
        ));
    }
    let failed = |error: std::io::Error| {
        Failure::Machine(format!(
            "standard input can't be kept in a temporary file (the variable TMPDIR says where): {error}"
        ))
    };
    if std::io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "`-` is standard input, and nothing is piped into it; name a file (one of this name: ./-)".into(),
        ));
    }
    let mut file = tempfile::tempfile().map_err(failed)?;
    let (mut input, mut piece) = (std::io::stdin().lock(), vec![0; 1 << 20]);
    loop {
        interrupt::check()?;
        match input.read(&mut piece) {
            Ok(0) => return Ok(file),
            Ok(count) => file.write_all(&piece[..count]).map_err(failed)?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Any file of tensors that is known, with the limits of the command line; standard input as well.
pub(crate) fn source(path: &Path, options: &ConvertOptions) -> Result<Box<dyn Source>, Failure> {
    let options = ConvertOptions {
        limits: all_limits(),
        ..*options
    };
    if !is_stdin(path) {
        return Ok(safelight_convert::open_with(&one(path)?, &options)?);
    }
    let file = Box::new(spooled()?);
    Ok(safelight_convert::open_reader(STDIN, file, &options)?)
}

/// Opens a safetensors file, an index with its shards (both may be URLs), a folder or a pattern of files; tensors of unknown
/// dtypes are no error if `unknown_dtypes` says so.
pub(crate) fn open_with(path: &Path, unknown_dtypes: bool) -> Result<Checkpoint, Failure> {
    let options = safelight_store::OpenOptions {
        opaque_dtypes: unknown_dtypes,
        limits: limits(),
        ..Default::default()
    };
    if is_stdin(path) {
        let file = spooled()?;
        let opened = Checkpoint::from_reader(STDIN, Box::new(file), &options);
        return Ok(opened?);
    }
    let opened = location::open_with(path, &options)?;
    for problem in opened.disagreements() {
        say::note(&format!(
            "note: {problem}; what the index does not name is left out"
        ));
    }
    Ok(opened)
}

/// As [`members`], of which none may be missing by their names.
pub(crate) fn whole(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let path = on_disk(path)?;
    let meant = Meant::of(&path)?;
    if let Meant::Files(files) = &meant {
        check_found(&name(&path), files)?;
    }
    members(&path)
}

/// The files that a path stands for, sound or not: itself, the shards of an index, the safetensors files of a folder, or those that
/// fit a pattern.
pub(crate) fn members(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    match Location::of(path) {
        Location::Url(_) => Err(on_disk(path).expect_err("a URL")),
        Location::Path(path) => Ok(model_files(&on_disk(&path)?)?),
    }
}

/// The path of something on this machine; URLs are refused, without their secrets in the message.
pub(crate) fn on_disk(path: &Path) -> Result<PathBuf, Failure> {
    match Location::of(path) {
        Location::Path(path) => no_stdin(&path).map(|()| path),
        Location::Url(_) => Err(Failure::Usage(format!(
            "{}: this command reads no URLs; download the file first",
            shown_path(path)
        ))),
    }
}

/// Writes one line of a streamed answer.
pub(crate) fn line(out: &mut dyn Write, text: fmt::Arguments<'_>) -> Result<(), Failure> {
    writeln!(out, "{text}").map_err(unwritable)
}

/// Writes a piece of a streamed answer.
pub(crate) fn text(out: &mut dyn Write, text: &str) -> Result<(), Failure> {
    out.write_all(text.as_bytes()).map_err(unwritable)
}

/// Writes bytes of a streamed answer.
pub(crate) fn bytes(out: &mut dyn Write, bytes: &[u8]) -> Result<(), Failure> {
    out.write_all(bytes).map_err(unwritable)
}

/// Writes a file that replaces what was there when it is whole.
pub(crate) fn replace(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut failed = None;
    let written = replace_file(path, false, |file| {
        write(file).map_err(|failure| {
            failed = Some(failure);
            std::io::Error::other("stopped")
        })
    });
    match (failed, written) {
        // What the disk said is told by `written`, with the file's name.
        (Some(failure), _) if !matches!(failure, Failure::Machine(_)) => Err(failure),
        (Some(Failure::Machine(message)), _) => {
            Err(Failure::Machine(format!("{}: {message}", shown_path(path))))
        }
        (_, written) => Ok(written?),
    }
}

/// An error if what is written would replace what is read.
pub(crate) fn check_other(written: &Path, read: &Path) -> Result<(), Failure> {
    match (written.canonicalize(), read.canonicalize()) {
        (Ok(written), Ok(read)) if written == read => Err(Failure::Usage(format!(
            "{}: would be replaced while it is read; name another file",
            shown_path(&read)
        ))),
        _ => Ok(()),
    }
}

/// An error if what is written would replace something, unless that was asked for: one rule for all commands.
pub(crate) fn check_free(written: &Path, force: bool) -> Result<(), Failure> {
    // What is no file, the writer refuses whatever is asked for.
    if force || written.as_os_str() == "-" || !written.is_file() {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "{} is there already; replace it with --force",
        shown_path(written)
    )))
}

/// A path in a message, without what could command a terminal.
pub(crate) fn shown_path(path: &Path) -> String {
    safelight_format::shown(&name(path)).to_string()
}

/// A path or URL as text; of a URL without its secrets.
pub(crate) fn name(path: &Path) -> String {
    Location::of(path).shown()
}

/// The files that a path stands for, as [`members`]; a URL stands for itself.
pub(crate) fn readable(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    match Location::of(path) {
        Location::Url(_) => Ok(vec![path.to_owned()]),
        Location::Path(path) => members(&path),
    }
}

fn unwritable(error: std::io::Error) -> Failure {
    Failure::Machine(format!("can't write the answer: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_fits_80_columns() {
        for command in crate::args::command().get_subcommands() {
            let Some(help) = command.get_after_help() else {
                continue;
            };
            for line in help
                .to_string()
                .lines()
                .filter(|line| !line.starts_with(' '))
            {
                let name = command.get_name();
                assert!(line.chars().count() <= HELP_COLUMNS, "{name}: {line}");
            }
        }
        assert_eq!(wrapped("a\nb\n\n  c"), "a\nb\n\n  c");
        let long = ["word"; 40].join(" ");
        assert_eq!(wrapped(&long).lines().count(), 3);
    }

    #[test]
    fn limits_by_name() {
        assert_eq!(named_limit("memory=2GiB"), Ok((LimitName::Memory, 2 << 30)));
        assert_eq!(named_limit("depth=7"), Ok((LimitName::Depth, 7)));
        for wrong in ["memory", "memory=", "depth=1k", "speed=1", "=1"] {
            assert!(named_limit(wrong).is_err(), "{wrong}");
        }
        let subcommands = crate::args::command();
        for name in WITH_LIMIT {
            assert!(subcommands.find_subcommand(name).is_some(), "{name}");
        }
    }

    #[test]
    fn exit_codes() {
        for (failure, doing, finding) in [
            (Failure::Machine(String::new()), 1, 2),
            (Failure::Usage(String::new()), 2, 2),
            (Failure::Model(String::new()), 3, 2),
            (Failure::Interrupted { saved: 0 }, 130, 130),
        ] {
            assert_eq!(Codes::Doing.of(&failure), doing);
            assert_eq!(Codes::Finding.of(&failure), finding);
            let told = Failure::Told(Box::new(failure));
            assert_eq!(Codes::Doing.of(&told), doing);
        }
    }
}
