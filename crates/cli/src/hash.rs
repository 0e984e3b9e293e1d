//! `safelight hash`: the hashes by which people know model files, all in one pass.

use std::io::IsTerminal as _;
use std::ops::ControlFlow;
use std::path::Path;

use clap::{Args, ValueEnum};
use safelight_store::location::{self, Location};
use safelight_store::{HashOptions, Hashes, hash_reader};
use serde_json::json;

use crate::error::Failure;
use crate::files::{self, FilesArgs, Outcome, Run, shown_path};
use crate::progress::BytesProgress;
use crate::{interrupt, say};

pub(crate) const HELP: &str = "\
With one --kind lines are those of sha256sum (`HASH  FILE`), which `sha256sum -c` reads. `-` as FILE is standard
input (`./-` a file of that name).

Examples:
  safelight hash model.safetensors
  safelight hash models/*.safetensors --kind sha256 > SHA256SUMS
  curl -L https://example.com/model.safetensors | safelight hash -

JSON, one object a file: {file, bytes, sha256, autov1, autov2, autov3, modelspec, sshs_model_hash, sshs_legacy_hash, blake3};
null where there is none: autov3, modelspec and the sshs_… are hashes of tensors, which only safetensors files have.
The sshs_… are what kohya's scripts would write for these tensors: they have an order of their own, and no metadata but
ss_…. Of a file with another order sshs_model_hash needs a second pass (and is null for standard input); sshs_legacy_hash is null
where it depends on the order of more than 1 MiB of metadata.";

/// What stands for standard input.
const STDIN: &str = "-";

/// The arguments of `hash`.
#[derive(Debug, Args)]
pub(crate) struct HashArgs {
    #[command(flatten)]
    files: FilesArgs,
    /// Only this hash (repeatable)
    #[arg(short, long, value_name = "KIND")]
    kind: Vec<Kind>,
}

/// A hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// SHA-256 of the whole file
    Sha256,
    /// A1111's oldest: 8 digits of the SHA-256 of 64 KiB at 1 MiB
    Autov1,
    /// A1111's and Civitai's: 10 digits of the file's SHA-256
    Autov2,
    /// 12 digits of the SHA-256 of the tensors, which stays when metadata change
    Autov3,
    /// modelspec.hash_sha256: SHA-256 of the tensors
    Modelspec,
    /// sshs_model_hash of kohya's scripts: SHA-256 of the tensors in their order
    SshsModelHash,
    /// sshs_legacy_hash of kohya's scripts: as AutoV1, of the tensors and `ss_…` metadata alone
    SshsLegacyHash,
    /// BLAKE3 of the whole file
    Blake3,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Sha256 => "sha256",
            Kind::Autov1 => "autov1",
            Kind::Autov2 => "autov2",
            Kind::Autov3 => "autov3",
            Kind::Modelspec => "modelspec",
            Kind::SshsModelHash => "sshs_model_hash",
            Kind::SshsLegacyHash => "sshs_legacy_hash",
            Kind::Blake3 => "blake3",
        }
    }

    fn of(self, hashes: &Hashes) -> Option<String> {
        match self {
            Kind::Sha256 => hashes.sha256.clone(),
            Kind::Autov1 => hashes.autov1.clone(),
            Kind::Autov2 => hashes.autov2().map(str::to_owned),
            Kind::Autov3 => hashes.autov3().map(str::to_owned),
            Kind::Modelspec => hashes.modelspec(),
            Kind::SshsModelHash => hashes.sshs_model.clone(),
            Kind::SshsLegacyHash => hashes.sshs_legacy.clone(),
            Kind::Blake3 => hashes.blake3.clone(),
        }
    }
}

impl Run for HashArgs {
    fn wants_json(&self) -> bool {
        self.files.json
    }

    fn run(&self) -> Result<Outcome, Failure> {
        files::each(&self.files, self.codes(), |path| {
            if path.as_os_str() == STDIN {
                let go_on = &mut |_: u64| match interrupt::asked() {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                };
                let mut input = std::io::stdin().lock();
                let hashes = hash_reader("standard input", &mut input, &self.options(), go_on);
                self.tell(path, &hashes?)?;
                return Ok(Outcome::Clean);
            }
            for file in files::readable(path)? {
                self.hash(&file)?;
            }
            Ok(Outcome::Clean)
        })
    }
}

impl HashArgs {
    fn hash(&self, path: &Path) -> Result<(), Failure> {
        let hashes = {
            let progress = BytesProgress::new(false, &files::name(path), 0);
            location::hash(path, &self.options(), &mut |done, all| {
                progress.at(done, all)
            })?
        };
        self.tell(path, &hashes)
    }

    fn tell(&self, path: &Path, hashes: &Hashes) -> Result<(), Failure> {
        let wanted = match &self.kind[..] {
            [] => Kind::value_variants(),
            kinds => kinds,
        };
        if self.files.json {
            let mut answer = json!({ "file": files::name(path), "bytes": hashes.file_bytes });
            for kind in wanted {
                answer[kind.name()] = kind.of(hashes).into();
            }
            return say::answer_json_line(&answer);
        }
        if let [only] = self.kind[..] {
            let hash = only.of(hashes).ok_or_else(|| {
                let (file, kind) = (shown_path(path), only.name());
                let why = none(only, hashes);
                Failure::Model(format!("{file}: it has no {kind}: {why}"))
            })?;
            let line = sum_line(&hash, &name_bytes(path));
            // What reads a pipe needs the name as it is; a terminal must not be commanded by it.
            return match std::io::stdout().is_terminal() {
                true => {
                    let line = String::from_utf8_lossy(&line);
                    say::answer(&format!("{}\n", say::tame(&line, usize::MAX)))
                }
                false => say::answer_bytes(&[&line[..], b"\n"].concat()),
            };
        }
        let mut text = format!("{}\n", shown_path(path));
        for kind in wanted {
            let hash = kind
                .of(hashes)
                .unwrap_or_else(|| format!("none: {}", none(*kind, hashes)));
            text += &format!("  {:<16}  {hash}\n", kind.name());
        }
        say::answer(&text)
    }

    /// What has to be computed.
    fn options(&self) -> HashOptions {
        if self.kind.is_empty() {
            return HashOptions::default();
        }
        let wants = |kinds: &[Kind]| self.kind.iter().any(|kind| kinds.contains(kind));
        HashOptions {
            sha256: wants(&[Kind::Sha256, Kind::Autov2]),
            data_sha256: wants(&[Kind::Autov3, Kind::Modelspec]),
            autov1: wants(&[Kind::Autov1]),
            sshs_model: wants(&[Kind::SshsModelHash]),
            sshs_legacy: wants(&[Kind::SshsLegacyHash]),
            blake3: wants(&[Kind::Blake3]),
        }
    }
}

/// Why there is no such hash.
fn none(kind: Kind, hashes: &Hashes) -> &'static str {
    match kind {
        Kind::SshsModelHash if hashes.data_bytes.is_some() => {
            "its tensors have unknown dtypes, or another order than kohya's scripts, and come through a pipe"
        }
        Kind::SshsLegacyHash if hashes.data_bytes.is_some() => {
            "its tensors have unknown dtypes, or more than 1 MiB of training metadata, whose order is not fixed"
        }
        _ => "no intact safetensors file",
    }
}

/// A path as the system has it, which need not be text; a URL without its secrets.
fn name_bytes(path: &Path) -> Vec<u8> {
    #[cfg(unix)]
    if let Location::Path(path) = Location::of(path) {
        use std::os::unix::ffi::OsStrExt as _;
        return path.as_os_str().as_bytes().to_vec();
    }
    files::name(path).into_bytes()
}

/// A line of sha256sum; as there, a backslash in front of it says that the name's backslashes and line ends are escaped.
fn sum_line(hash: &str, name: &[u8]) -> Vec<u8> {
    let escaped: Vec<u8> = name
        .iter()
        .flat_map(|byte| match byte {
            b'\\' => b"\\\\".to_vec(),
            b'\n' => b"\\n".to_vec(),
            b'\r' => b"\\r".to_vec(),
            byte => vec![*byte],
        })
        .collect();
    let mark: &[u8] = if escaped == name { b"" } else { b"\\" };
    [mark, hash.as_bytes(), b"  ", &escaped].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_sha256sum() {
        assert_eq!(sum_line("ab", b"a b.bin"), b"ab  a b.bin");
        assert_eq!(sum_line("ab", b"b\\c"), b"\\ab  b\\\\c");
        assert_eq!(sum_line("ab", b"b\nc\r"), b"\\ab  b\\nc\\r");
        assert_eq!(sum_line("ab", b"\xff"), b"ab  \xff");
    }
}
