//! `safelight convert`: from any file of tensors that is known to safetensors, shards, a diffusers folder, npz or GGUF.

use std::io::IsTerminal as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, ValueEnum, ValueHint};
use safelight_convert::layout::{FolderOptions, Layout, Model, Prediction, is_diffusers_folder};
use safelight_convert::{
    Cast, CastOptions, GgufOptions, GgufWeights, Keep, Note, NpzOptions, OpenOptions, PruneOptions,
    Report, SharedTensors, Source, UnknownObjects, WriteOptions, prune, restore_shared, write_gguf,
    write_npz, write_safetensors, write_safetensors_to, write_sharded,
};
use safelight_format::{Dtype, Order, shown};
use serde_json::json;

use crate::error::Failure;
use crate::files::{self, Outcome, Run};
use crate::lost;
use crate::progress::BytesProgress;
use crate::select::SelectArgs;
use crate::{say, scan};

pub(crate) const HELP: &str = "\
Examples:
  safelight convert model.ckpt model.safetensors
  safelight convert model.safetensors small.safetensors --dtype f16 --prune
  safelight convert model.safetensors model-folder --to diffusers
  safelight convert model-folder model.safetensors
  safelight convert big.safetensors shards --shard-size 5GB
  safelight convert model.safetensors model.gguf --quant q8_0 --architecture sd1

Nothing in a file is ever executed: pickles are read as data, and what is not on the list of what tensors need is
refused by name. What a file holds beside its tensors that other programs would run is not converted, and told on
standard error. SRC is a file of any kind known here (safetensors, PyTorch, GGUF, npz, Flax's msgpack, ONNX, Keras, HDF5), shards (*.index.json, a folder or a quoted pattern), or a diffusers folder. The
kind of DST follows from its name: .safetensors, .npz or .gguf; another name is a folder, of shards (--shard-size) or
for diffusers (--to diffusers). DST appears when it is complete. `-` as DST is standard output: safetensors, with the
report on standard error.

Tensors in nested dicts and lists are named by the keys on the way to them, joined by dots; what is in `state_dict` takes
the names it has there. A key that is neither text nor whole number stands as Python writes it: `state.(0, 'a')`. Of
tensors with the same name the later ones are `name~2`, `name~3` …, with a note each.

JSON: file, kind, files [PATH], tensor_count, tensor_bytes, seconds, notes [{at, what}], cast [{name, from, to,
elements, overflows, underflows, infinities, nans}] (tensors that lost numbers); of models whose layout changed also
family, prediction, pipeline; with --align also align {asked, data, tensors}: what positions are multiples of.";

/// The arguments of `convert`.
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// What to convert
    #[arg(value_hint = ValueHint::AnyPath)]
    src: PathBuf,
    /// Where to; - is standard output
    #[arg(value_hint = ValueHint::AnyPath)]
    dst: PathBuf,
    /// Layout or format, where the name of DST does not say it
    #[arg(long, value_name = "KIND")]
    to: Option<Kind>,
    /// Round floating-point weights to this dtype; integers stay as they are
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    dtype: Option<Dtype>,
    /// With --dtype: tensors whose names contain this stay as they are (repeatable)
    #[arg(long, value_name = "TEXT", requires = "dtype")]
    keep: Vec<String>,
    /// With --dtype: cast tensors of one dimension (norms, biases) as well, which stay by default where DTYPE has 8 bits
    #[arg(long, requires = "dtype")]
    cast_vectors: bool,
    #[command(flatten)]
    select: SelectArgs,
    /// Leave out averaged weights (EMA), optimizer and training state
    #[arg(long)]
    prune: bool,
    /// As --prune, but the averaged weights take the place of the others
    #[arg(long, conflicts_with = "prune")]
    ema: bool,
    /// Files of at most this size, such as 5GB, and an index
    #[arg(long, value_name = "SIZE", value_parser = size)]
    shard_size: Option<u64>,
    /// For safetensors: the order of tensors in the file
    #[arg(long, value_name = "ORDER")]
    order: Option<TensorOrder>,
    /// For safetensors: tensor data starts at a multiple of this, a power of two such as 4096
    #[arg(long, value_name = "SIZE", value_parser = size)]
    align: Option<u64>,
    /// For safetensors: room left in the header for metadata that is added later, such as 64KiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    reserve: Option<u64>,
    /// For GGUF: what weights become (f32, f16, bf16, q8_0); by default they stay what they are
    #[arg(long, value_name = "TYPE", value_parser = quant)]
    quant: Option<GgufWeights>,
    /// For GGUF: `general.architecture`, such as sd1, sdxl or llama
    #[arg(long, value_name = "NAME")]
    architecture: Option<String>,
    /// For npz: deflate the arrays
    #[arg(long)]
    deflate: bool,
    /// What the model predicts, where the file does not say it (SD 2.x): epsilon or v
    #[arg(long, value_name = "WHAT", value_parser = prediction)]
    prediction: Option<Prediction>,
    /// Leave out objects in pickles that are not on the list, instead of refusing the file; known attacks are always refused
    #[arg(long)]
    drop_unknown: bool,
    /// Tensors of dtypes that the format does not have come along as they are (to safetensors), instead of refusing their file
    #[arg(long)]
    unknown_dtypes: bool,
    /// Leave out tensors that nothing here reads (GGUF types, complex128, sparse or quantised ones …), instead of refusing the file
    #[arg(long)]
    skip_unsupported: bool,
    /// Tensors that have several names are written once; the metadata says which names are meant
    #[arg(long)]
    share: bool,
    /// Write tensors again under the other names that the metadata records (--share), as npz and GGUF always do
    #[arg(long, conflicts_with = "share")]
    restore_shared: bool,
    /// Replace files that are there (never a diffusers folder)
    #[arg(short, long)]
    force: bool,
    /// Wait until the bytes are on the disk
    #[arg(long)]
    sync: bool,
    /// No progress bar
    #[arg(short, long)]
    quiet: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The tensors under the names they have
    Safetensors,
    /// Stable Diffusion in a single file, as the latent-diffusion code names its tensors
    Ldm,
    /// Stable Diffusion in a folder, as diffusers loads it
    Diffusers,
    /// numpy's archive of arrays
    Npz,
    /// llama.cpp's and ggml's file
    Gguf,
}

/// The order of tensors in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TensorOrder {
    /// By dtype, then by name, as Hugging Face writes
    HuggingFace,
    /// As in SRC
    Source,
    /// By name
    Name,
    /// So that as many tensors as possible start at multiples of --align
    Aligned,
}

/// A dtype by any of its usual names.
pub(crate) fn dtype(text: &str) -> Result<Dtype, String> {
    let name = match text.to_ascii_lowercase().as_str() {
        "fp64" | "float64" | "double" => "F64",
        "fp32" | "float32" | "float" => "F32",
        "fp16" | "float16" | "half" => "F16",
        "bfloat16" => "BF16",
        "fp8" | "float8" | "e4m3" | "e4m3fn" => "F8_E4M3",
        "fp8_e4m3" | "fp8_e4m3fn" | "f8_e4m3fn" | "float8_e4m3" | "float8_e4m3fn" => "F8_E4M3",
        "e5m2" | "fp8_e5m2" | "float8_e5m2" => "F8_E5M2",
        "e4m3fnuz" | "fp8_e4m3fnuz" | "float8_e4m3fnuz" => "F8_E4M3FNUZ",
        "e5m2fnuz" | "fp8_e5m2fnuz" | "float8_e5m2fnuz" => "F8_E5M2FNUZ",
        other => {
            return Dtype::from_name(&other.to_ascii_uppercase())
                .ok_or_else(|| "expected f32, f16, bf16, f8_e4m3 or f8_e5m2".into());
        }
    };
    Ok(Dtype::from_name(name).expect("these are names of dtypes"))
}

/// A number of bytes such as `500MB` or `2GiB`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024f64.powi(2),
        "gib" => 1024f64.powi(3),
        "tib" => 1024f64.powi(4),
        _ => {
            let units = "the unit is kB, MB, GB, TB, KiB, MiB, GiB or TiB";
            return Err(format!(
                "expected a size such as 500MB, 5GB or 2GiB; {units}"
            ));
        }
    };
    let bytes = number
        .parse::<f64>()
        .map_err(|_| "expected a number before the unit, such as 5GB".to_string())?
        * factor;
    if (1.0..9e18).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err("expected at least one byte".into())
    }
}

fn quant(text: &str) -> Result<GgufWeights, String> {
    match text.to_ascii_lowercase().as_str() {
        "f32" => Ok(GgufWeights::F32),
        "f16" => Ok(GgufWeights::F16),
        "bf16" => Ok(GgufWeights::Bf16),
        "q8_0" => Ok(GgufWeights::Q8_0),
        _ => Err("expected f32, f16, bf16 or q8_0".into()),
    }
}

fn prediction(text: &str) -> Result<Prediction, String> {
    Prediction::from_name(text).ok_or_else(|| "expected epsilon or v".into())
}

impl Run for ConvertArgs {
    fn wants_json(&self) -> bool {
        self.json
    }

    fn run(&self) -> Result<Outcome, Failure> {
        let started = Instant::now();
        let kind = self.kind()?;
        for path in self.targets(kind) {
            files::check_free(&path, self.force)?;
        }
        let unknown_objects = if self.drop_unknown {
            UnknownObjects::Drop
        } else {
            UnknownObjects::Refuse
        };
        let shared = if self.share {
            SharedTensors::Once
        } else {
            SharedTensors::Copies
        };
        let options = OpenOptions {
            unknown_objects,
            shared,
            opaque_dtypes: self.unknown_dtypes,
            // Whether one of them is asked for is seen below.
            skip_unsupported: true,
            ..OpenOptions::default()
        };
        let src = files::one(&self.src)?;
        let mut source: Arc<dyn Source> = files::source(&src, &options)?.into();
        self.check_skipped(&*source)?;
        some_tensors(&*source)?;
        if self.restore_shared || matches!(kind, Kind::Npz | Kind::Gguf) {
            source = Arc::new(restore_shared(source)?);
        }
        source = self.select.of(source)?;
        if self.prune || self.ema {
            source = self.pruned(source)?;
        }
        let mut cast = None;
        if let Some(dtype) = self.dtype {
            let mut options = CastOptions::to(dtype);
            options.keep_vectors &= !self.cast_vectors;
            options.keep_names = self.keep.clone();
            let adapter = Arc::new(Cast::new(source, &options)?);
            source = adapter.clone();
            cast = Some(adapter);
        }
        // Asked before DST appears, which can be SRC.
        let beside = scan::not_converted(&src);
        let mut written = self.write(kind, source)?;
        let reports = cast.map(|cast| cast.reports()).unwrap_or_default();
        written.cast = lost::lossy(reports);
        let warned = scan::warn(&src, &beside);
        if self.json {
            written.report.notes.extend(warned);
        }
        written.alignment = self.alignment(&written)?;
        self.tell(kind, &written, started)?;
        lost::warn(&written.cast);
        Ok(Outcome::Clean)
    }
}

impl ConvertArgs {
    /// An error if a tensor that nothing here reads should be written.
    fn check_skipped(&self, source: &dyn Source) -> Result<(), Failure> {
        let mut skipped = source.contents().skipped.iter();
        let asked = skipped.find(|note| !self.skip_unsupported && self.select.wants(&note.at));
        asked.map_or(Ok(()), |note| {
            Err(Failure::Model(format!(
                "{}: `{}`: {}; --exclude leaves it out, --skip-unsupported all such tensors",
                shown(source.label()),
                shown(&note.at),
                shown(&note.what)
            )))
        })
    }
}

/// What was written.
#[derive(Default)]
struct Written {
    report: Report,
    files: Vec<PathBuf>,
    model: Option<(&'static str, &'static str)>,
    pipeline: Option<&'static str>,
    cast: Vec<safelight_convert::CastReport>,
    /// What `--align` came to.
    alignment: Option<Alignment>,
}

/// What the positions of tensors in their files are multiples of.
#[derive(Clone, Copy, Debug)]
struct Alignment {
    /// The first byte of tensor data.
    data: u64,
    /// Every tensor.
    tensors: u64,
}

impl ConvertArgs {
    /// How well the tensors lie in what was written with `--align`.
    fn alignment(&self, written: &Written) -> Result<Option<Alignment>, Failure> {
        if self.align.is_none() || self.to_stdout() {
            return Ok(None);
        }
        let (mut data, mut tensors) = (0u64, 0u64); // of all positions together, the bits that are set
        for path in written.files.iter().filter(|path| {
            path.extension()
                .is_some_and(|ending| ending == "safetensors")
        }) {
            let file = files::open_with(path, self.unknown_dtypes)?;
            let known = file
                .places()
                .map(|place| (place.starts_at, place.tensor.byte_count()));
            let opaque = file
                .opaque_tensors()
                .map(|place| (place.starts_at, place.tensor.byte_count()));
            let all = known.chain(opaque).filter(|(_, bytes)| *bytes > 0);
            let starts: Vec<u64> = all.map(|(start, _)| start).collect();
            data |= starts.iter().min().unwrap_or(&0);
            tensors |= starts.iter().fold(0, |all, start| all | start);
        }
        let multiple = |bits: u64| 1u64.checked_shl(bits.trailing_zeros()).unwrap_or(0);
        Ok((tensors > 0).then(|| Alignment {
            data: multiple(data),
            tensors: multiple(tensors),
        }))
    }

    /// What to write, by `--to` and the name.
    fn kind(&self) -> Result<Kind, Failure> {
        let ending = self
            .dst
            .extension()
            .map(|ending| ending.to_string_lossy().to_ascii_lowercase())
            .unwrap_or_default();
        let by_name = match ending.as_str() {
            "safetensors" if is_diffusers_folder(&self.src) => Some(Kind::Ldm),
            "safetensors" => Some(Kind::Safetensors),
            "npz" => Some(Kind::Npz),
            "gguf" => Some(Kind::Gguf),
            _ if self.to_stdout() => self.stdout_kind()?,
            _ => self.shard_size.map(|_| Kind::Safetensors),
        };
        let shown = shown(&self.dst.to_string_lossy()).to_string();
        let Some(kind) = self.to.or(by_name) else {
            return Err(Failure::Usage(format!(
                "{shown}: the name does not say what to write; end it with .safetensors, .npz or .gguf, or add \
                 --to diffusers or --shard-size 5GB for a folder"
            )));
        };
        let wrong = |what: &str| Err(Failure::Usage(format!("{shown}: {what}")));
        let is_named = ["npz", "gguf", "safetensors"].contains(&ending.as_str());
        let is_single = |kind| matches!(kind, Kind::Safetensors | Kind::Ldm);
        let agrees = |by_name| kind == by_name || (is_single(kind) && is_single(by_name));
        if is_named && kind != Kind::Diffusers && !by_name.is_some_and(agrees) {
            return wrong("the name says another kind than --to; leave one of them away");
        }
        if let Some(align) = self
            .align
            .filter(|align| !align.is_power_of_two() || *align < 8)
        {
            let what = format!("--align {align} is no power of two, 8 or more");
            return Err(Failure::Usage(what));
        }
        match kind {
            Kind::Diffusers
                if by_name.is_some_and(|by_name| {
                    by_name != Kind::Safetensors || ending == "safetensors"
                }) =>
            {
                wrong("--to diffusers writes a folder; leave the ending away")
            }
            Kind::Npz | Kind::Gguf if self.shard_size.is_some() => {
                wrong("--shard-size is for safetensors")
            }
            kind if kind != Kind::Gguf && (self.quant.is_some() || self.architecture.is_some()) => {
                wrong(
                    "--quant and --architecture are for GGUF; --dtype casts weights of other files",
                )
            }
            kind if kind != Kind::Npz && self.deflate => wrong("--deflate is for npz"),
            Kind::Npz | Kind::Gguf
                if self.order.is_some() || self.align.is_some() || self.reserve.is_some() =>
            {
                wrong("--order, --align and --reserve are for safetensors")
            }
            kind => Ok(kind),
        }
    }

    /// What is looked for before anything is written: the file, or those by which shards are found. A diffusers folder is never
    /// written over another, which its writer says.
    fn targets(&self, kind: Kind) -> Vec<PathBuf> {
        if self.to_stdout() || kind == Kind::Diffusers {
            return Vec::new();
        }
        if self.shard_size.is_none() {
            return vec![self.dst.clone()];
        }
        let (folder, base) = self.shards();
        let endings = [".safetensors", ".safetensors.index.json"];
        let named = endings.map(|ending| folder.join(format!("{base}{ending}")));
        named.to_vec()
    }

    /// The folder of shards, and what their names begin with: `shards/model.safetensors` names the shards, `shards` alone leaves
    /// them their usual name.
    fn shards(&self) -> (&Path, String) {
        match self.dst.extension() {
            Some(ending) if ending == "safetensors" => {
                let folder = self.dst.parent();
                let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
                let base = self.dst.file_stem().unwrap_or_default();
                let base = base.to_string_lossy().into_owned();
                (folder.unwrap_or(Path::new(".")), base)
            }
            _ => (&self.dst, "model".to_owned()),
        }
    }

    /// Whether the result goes to standard output.
    fn to_stdout(&self) -> bool {
        self.dst.as_os_str() == "-"
    }

    /// What can be written to standard output, where nobody can go back: one safetensors file.
    fn stdout_kind(&self) -> Result<Option<Kind>, Failure> {
        let wrong = |what: &str| Err(Failure::Usage(format!("standard output: {what}")));
        if matches!(self.to, Some(Kind::Npz | Kind::Gguf | Kind::Diffusers))
            || self.shard_size.is_some()
        {
            return wrong("only one safetensors file can be written there; name a file or folder");
        }
        if self.json {
            return wrong("the tensors are written there, so --json has no place; name a file");
        }
        if std::io::stdout().is_terminal() {
            return wrong("tensors are not for a terminal; name a file, or a pipe");
        }
        Ok(Some(match is_diffusers_folder(&self.src) {
            true => Kind::Ldm,
            false => Kind::Safetensors,
        }))
    }

    /// What training needs is left out; that must not be all there is.
    fn pruned(&self, source: Arc<dyn Source>) -> Result<Arc<dyn Source>, Failure> {
        let keep = if self.ema {
            Keep::Averaged
        } else {
            Keep::Trained
        };
        let pruned = prune(source.clone(), &PruneOptions { keep })?;
        if pruned.contents().tensor_count() == 0 {
            let option = if self.ema { "--ema" } else { "--prune" };
            return Err(Failure::Usage(format!(
                "{}: {option} would leave out all of its {}; leave {option} away to convert them",
                shown(source.label()),
                say::plural(source.contents().tensor_count() as u64, "tensor")
            )));
        }
        Ok(Arc::new(pruned))
    }

    fn write(&self, kind: Kind, source: Arc<dyn Source>) -> Result<Written, Failure> {
        let mut options = WriteOptions::default();
        options.save.sync = self.sync;
        options.save.order = match self.order {
            None | Some(TensorOrder::HuggingFace) => Order::HuggingFace,
            Some(TensorOrder::Source) => Order::Insertion,
            Some(TensorOrder::Name) => Order::Name,
            Some(TensorOrder::Aligned) => Order::Aligned,
        };
        options.save.align_bytes = self.align.unwrap_or(options.save.align_bytes);
        options.save.reserve_header_bytes = self.reserve.unwrap_or(0);
        let all = source.contents().all_bytes();
        let bar = BytesProgress::new(self.quiet || self.json, "converting", all);
        let mut progress = |done, all| bar.at(done, all);
        if kind == Kind::Safetensors {
            return self.write_tensors(&*source, &options, &mut progress);
        }
        if kind == Kind::Npz {
            let options = NpzOptions {
                deflate: self.deflate,
                sync: self.sync,
            };
            let report = write_npz(&*source, &self.dst, &options, &mut progress)?;
            return Ok(self.one_file(report));
        }
        if kind == Kind::Gguf {
            let (weights, architecture) =
                (self.quant.unwrap_or_default(), self.architecture.clone());
            let options = GgufOptions {
                weights,
                architecture,
                sync: self.sync,
            };
            let report = write_gguf(&*source, &self.dst, &options, &mut progress)?;
            return Ok(self.one_file(report));
        }
        let model = Model::find(
            source,
            self.prediction,
            files::all_limits().memory_bytes_max,
        )?;
        let mut written = match kind {
            Kind::Diffusers => {
                let options = FolderOptions {
                    write: options,
                    shard_bytes_max: self.shard_size,
                };
                let folder = model.to_folder(&self.dst, &options, &mut progress)?;
                let files = folder
                    .files
                    .iter()
                    .map(|file| self.dst.join(file))
                    .collect();
                Written {
                    report: folder.report,
                    files,
                    pipeline: Some(folder.pipeline),
                    ..Written::default()
                }
            }
            _ => self.write_tensors(&model.to_ldm()?, &options, &mut progress)?,
        };
        written.model = Some((model.family.name(), model.prediction.modelspec_name()));
        if kind == Kind::Ldm && model.layout == Layout::Ldm {
            written.report.notes.push(Note::new(
                "",
                "the model was a single file already: no name was changed",
            ));
        }
        Ok(written)
    }

    fn one_file(&self, report: Report) -> Written {
        Written {
            report,
            files: vec![self.dst.clone()],
            ..Written::default()
        }
    }

    /// One file, or shards in a folder.
    fn write_tensors(
        &self,
        source: &dyn Source,
        options: &WriteOptions,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Written, Failure> {
        if self.to_stdout() {
            let mut report = None;
            say::stream(|out| {
                let label = "standard output";
                let written = write_safetensors_to(source, label, out, options, progress)?;
                report = Some(written);
                Ok(())
            })?;
            let Some(report) = report else {
                // Who reads has seen enough.
                return Err(Failure::Machine("standard output was closed early".into()));
            };
            return Ok(self.one_file(report));
        }
        let Some(shard_bytes) = self.shard_size else {
            let report = write_safetensors(source, &self.dst, options, progress)?;
            return Ok(self.one_file(report));
        };
        let (folder, base) = self.shards();
        let sharded = write_sharded(source, folder, &base, shard_bytes, options, progress)?;
        Ok(Written {
            report: sharded.report,
            files: sharded.files,
            ..Written::default()
        })
    }

    fn tell(&self, kind: Kind, written: &Written, started: Instant) -> Result<(), Failure> {
        let (report, seconds) = (&written.report, started.elapsed().as_secs_f64());
        if self.json {
            let kind = kind
                .to_possible_value()
                .map(|value| value.get_name().to_owned());
            let mut answer = json!({
                "file": self.dst.to_string_lossy(), "kind": kind,
                "files": written.files.iter().map(|file| file.to_string_lossy()).collect::<Vec<_>>(),
                "tensor_count": report.tensor_count, "tensor_bytes": report.tensor_bytes, "seconds": seconds,
                "notes": report.notes.iter().map(|note| json!({"at": note.at, "what": note.what})).collect::<Vec<_>>(),
                "cast": lost::to_json(&written.cast),
            });
            if let Some(Alignment { data, tensors }) = written.alignment {
                answer["align"] = json!({ "asked": self.align, "data": data, "tensors": tensors });
            }
            if let Some((family, prediction)) = written.model {
                (answer["family"], answer["prediction"]) = (json!(family), json!(prediction));
                answer["pipeline"] = json!(written.pipeline);
            }
            return say::answer_json_line(&answer);
        }
        let mut text = String::new();
        for note in report.notes.iter().take(NOTES_SHOWN) {
            let at = if note.at.is_empty() {
                String::new()
            } else {
                format!("{}: ", shown(&note.at))
            };
            text += &format!("{at}{}\n", shown(&note.what));
        }
        if let Some(more) = report
            .notes
            .len()
            .checked_sub(NOTES_SHOWN)
            .filter(|&more| more > 0)
        {
            text += &format!("… and {more} notes more; --json lists them all\n");
        }
        text += &lost::to_text(&written.cast, "cast");
        if let Some(Alignment { data, tensors }) = written.alignment {
            text += &format!(
                "tensor data starts at a multiple of {data} bytes, every tensor at one of {tensors}\n"
            );
        }
        if let Some((family, prediction)) = written.model {
            let pipeline = written
                .pipeline
                .map(|name| format!(", {name}"))
                .unwrap_or_default();
            text += &format!("{family}, predicts {prediction}{pipeline}\n");
        }
        let rate = say::bytes((report.tensor_bytes as f64 / seconds.max(1e-9)) as u64);
        text += &format!(
            "{}: {}, {} in {seconds:.1} s ({rate}/s)\n",
            shown(&self.dst.to_string_lossy()),
            say::plural(report.tensor_count, "tensor"),
            say::bytes(report.tensor_bytes)
        );
        if self.to_stdout() {
            say::note(text.trim_end());
            return Ok(());
        }
        say::answer(&text)
    }
}

/// Notes that are printed for people.
const NOTES_SHOWN: usize = 20;

/// A source without tensors is no model: what it has instead, the notes tell.
pub(crate) fn some_tensors(source: &dyn Source) -> Result<(), Failure> {
    if source.contents().tensor_count() > 0 {
        return Ok(());
    }
    let notes = source
        .notes()
        .iter()
        .take(3)
        .map(|note| match note.at.as_str() {
            "" => shown(&note.what).to_string(),
            at => format!("{}: {}", shown(at), shown(&note.what)),
        });
    let notes: Vec<String> = notes.collect();
    let what = match notes.is_empty() {
        true => String::new(),
        false => format!(" ({})", notes.join("; ")),
    };
    let file = shown(source.label());
    Err(Failure::Model(format!(
        "{file}: there is no tensor in it, so nothing was written{what}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("5GB", 5_000_000_000),
            ("2GiB", 2 << 30),
            ("1.5k", 1500),
            ("1.5 GiB", 1_610_612_736),
            ("800000", 800_000),
            ("2TB", 2_000_000_000_000),
            ("1b", 1),
            ("7", 7),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in [
            "",
            "GB",
            "0",
            "0.1",
            "-1GB",
            "-5GB",
            "1.2.3MB",
            "5 parsecs",
            "5XB",
            "1e3",
            "inf",
            "nanGB",
            "99999999999GB",
        ] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn dtypes_by_their_many_names() {
        for (text, expected) in [
            ("fp16", Dtype::F16),
            ("f16", Dtype::F16),
            ("half", Dtype::F16),
            ("bfloat16", Dtype::Bf16),
            ("fp8", Dtype::F8E4m3),
            ("e4m3fn", Dtype::F8E4m3),
            ("fp8_e4m3fn", Dtype::F8E4m3),
            ("e5m2", Dtype::F8E5m2),
            ("float8_e5m2fnuz", Dtype::F8E5m2Fnuz),
            ("BF16", Dtype::Bf16),
            ("f8_e4m3", Dtype::F8E4m3),
            ("float8_e5m2", Dtype::F8E5m2),
            ("F32", Dtype::F32),
        ] {
            assert_eq!(dtype(text), Ok(expected));
        }
        assert!(dtype("f12").is_err());
    }
}
