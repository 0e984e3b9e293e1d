//! The hashes by which people know model files, all in one pass over the bytes.
//!
//! One thread reads, and one for each hash takes what was read, so that a file is hashed at the speed of its
//! disk or of the slowest hash.

use std::io::Read;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use safelight_format::{FormatError, Header, Limits, Metadata, ParseOptions};
use sha2::{Digest, Sha256};

use crate::checkpoint::{OpenOptions, ShardFile};
use crate::error::StoreError;
use crate::source::FileSource;
use crate::sshs::Anew;

/// What is read at a time: small enough that all hashers find it in a cache.
const BLOCK_BYTES: u64 = 1024 * 1024;

/// Blocks that are being read or hashed at the same time.
const BLOCK_COUNT: usize = 16;

/// How far the disk reads ahead of us: one thread that reads and waits leaves most disks idle.
const AHEAD_BYTES: u64 = 16 * BLOCK_BYTES;

/// The part of a file that A1111's first kind of hash looks at.
pub(crate) const AUTOV1_START: u64 = 0x10_0000;
pub(crate) const AUTOV1_BYTES: u64 = 0x1_0000;

/// Which hashes are wanted: all by default. Each costs a thread's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashOptions {
    /// SHA-256 of the whole file.
    pub sha256: bool,
    /// SHA-256 of the tensors' bytes, which is everything behind the header.
    pub data_sha256: bool,
    /// SHA-256 of the 64 KiB from byte 0x100000 on. If it alone is wanted, nothing else is read.
    pub autov1: bool,
    /// `sshs_model_hash` of kohya's scripts: SHA-256 of the tensors in the order of the `safetensors` package. A file that has
    /// another order is read twice.
    pub sshs_model: bool,
    /// `sshs_legacy_hash` of kohya's scripts.
    pub sshs_legacy: bool,
    /// BLAKE3 of the whole file.
    pub blake3: bool,
}

impl Default for HashOptions {
    fn default() -> HashOptions {
        HashOptions {
            sha256: true,
            data_sha256: true,
            autov1: true,
            sshs_model: true,
            sshs_legacy: true,
            blake3: true,
        }
    }
}

impl HashOptions {
    /// No hash at all, to start from.
    pub const NONE: HashOptions = HashOptions {
        sha256: false,
        data_sha256: false,
        autov1: false,
        sshs_model: false,
        sshs_legacy: false,
        blake3: false,
    };

    /// Whether a header has to be read for these.
    pub(crate) fn wants_header(&self) -> bool {
        self.data_sha256 || self.sshs_model || self.sshs_legacy
    }

    /// Whether everything behind a header has to be hashed.
    fn wants_data(&self) -> bool {
        self.data_sha256 || self.sshs_model
    }
}

/// The keys of metadata under which trainers write SHA-256 of all tensors: kohya's in the order of the `safetensors` package, ModelSpec's
/// in that of the file, which an edit may change.
const RECORDED: [&str; 2] = ["sshs_model_hash", "modelspec.hash_sha256"];

/// The checksums of all tensors that metadata say, with their keys: in lower case, without `0x`. Foreign text.
pub fn recorded_hashes(metadata: &Metadata) -> Vec<(&'static str, String)> {
    let said = RECORDED.into_iter().filter_map(|key| {
        let text = metadata.get(key)?.to_lowercase();
        Some((key, text.strip_prefix("0x").unwrap_or(&text).to_owned()))
    });
    said.collect()
}

/// A file's hashes in lower-case hexadecimal; `None` for what was not wanted or makes no sense.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hashes {
    /// The size of the file.
    pub file_bytes: u64,
    /// The size of what stands behind the header; `None` if the file is no intact safetensors file.
    pub data_bytes: Option<u64>,
    /// SHA-256 of the file, 64 digits.
    pub sha256: Option<String>,
    /// SHA-256 of everything behind the header; `None` if the file is no intact safetensors file.
    pub data_sha256: Option<String>,
    /// A1111's oldest hash: eight digits of the SHA-256 of the 64 KiB at byte 0x100000.
    pub autov1: Option<String>,
    /// What kohya's scripts write as `sshs_model_hash`: SHA-256 of the tensors in the order of the `safetensors` package, 64 digits.
    /// `None` also for a pipe whose tensors have another order, and for unknown dtypes.
    pub sshs_model: Option<String>,
    /// What kohya's scripts write as `sshs_legacy_hash`: eight digits of the SHA-256 of the 64 KiB at byte 0x100000 of a file with the
    /// same tensors and no metadata but those of training (`ss_…`). `None` also if these reach to that byte and are several: their
    /// order, and so the hash, differs from run to run. (Before `safetensors` 0.3 headers were not padded, and the hash is another.)
    pub sshs_legacy: Option<String>,
    /// BLAKE3 of the file, 64 digits.
    pub blake3: Option<String>,
}

impl Hashes {
    /// A1111's second hash: the first ten digits of the file's SHA-256.
    pub fn autov2(&self) -> Option<&str> {
        self.sha256.as_deref().map(|hash| &hash[..10])
    }

    /// The first twelve digits of the SHA-256 of the tensors, which stays when metadata change.
    pub fn autov3(&self) -> Option<&str> {
        self.data_sha256.as_deref().map(|hash| &hash[..12])
    }

    /// What `modelspec.hash_sha256` should say: `0x` and the SHA-256 of the tensors.
    pub fn modelspec(&self) -> Option<String> {
        self.data_sha256.as_ref().map(|hash| format!("0x{hash}"))
    }
}

/// SHA-256 in lower-case hexadecimal.
///
/// ```
/// assert!(safelight_store::sha256_hex(b"abc").starts_with("ba7816bf8f01cfea"));
/// ```
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hashes one file, safetensors or not.
///
/// `progress` gets the bytes that are read and all bytes; [`ControlFlow::Break`] ends it.
///
/// ```
/// use std::ops::ControlFlow;
/// use safelight_store::{HashOptions, hash};
///
/// let path = std::env::temp_dir().join(format!("safelight-hash-{}", std::process::id()));
/// std::fs::write(&path, "abc")?;
/// let hashes = hash(&path, &HashOptions::default(), &mut |_, _| ControlFlow::Continue(()))?;
/// assert_eq!(hashes.autov2(), Some("ba7816bf8f"));
/// assert_eq!(hashes.autov3(), None); // no safetensors file
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// What the system says, [`StoreError::Shrank`], [`StoreError::ChangedMeanwhile`], [`StoreError::Stopped`].
pub fn hash(
    path: &Path,
    options: &HashOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Hashes, StoreError> {
    let source = FileSource::open(path)?;
    let mut header = None;
    if options.wants_header() {
        // Only to know where data lie: a file that is no safetensors file has none.
        let options = OpenOptions {
            opaque_dtypes: true,
            ..OpenOptions::default()
        };
        match ShardFile::open(path, &options) {
            Ok(file) => header = Some(file.header),
            Err(StoreError::Format { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    hash_source(&source, header.as_ref(), options, progress)
}

/// As [`hash`], of an open file and its header.
pub(crate) fn hash_source(
    source: &FileSource,
    header: Option<&Header>,
    options: &HashOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Hashes, StoreError> {
    let data_start = header.map(Header::data_start);
    let file_bytes = source.file_bytes;
    let mut hashes = Hashes {
        file_bytes,
        data_bytes: data_start
            .filter(|_| options.wants_data())
            .map(|start| file_bytes - start),
        ..Default::default()
    };
    if options.autov1 {
        let start = AUTOV1_START.min(file_bytes);
        let mut part = vec![0; AUTOV1_BYTES.min(file_bytes - start) as usize];
        source.read_exact_at(&mut part, start)?;
        hashes.autov1 = Some(sha256_hex(&part)[..8].to_owned());
    }
    let anew = header.and_then(Anew::of);
    if let Some(mut window) = anew
        .as_ref()
        .filter(|_| options.sshs_legacy)
        .and_then(Anew::window)
    {
        source.will_read(
            &window
                .ranges()
                .map(|r| (r.start, r.end))
                .collect::<Vec<_>>(),
        );
        let ranges: Vec<Range<u64>> = window.ranges().collect();
        for range in ranges {
            let mut part = vec![0; (range.end - range.start) as usize];
            source.read_exact_at(&mut part, range.start)?;
            window.take(range.start, &part);
        }
        hashes.sshs_legacy = Some(sha256_hex(&window.bytes)[..8].to_owned());
    }
    if !options.sha256 && !options.blake3 && (!options.wants_data() || data_start.is_none()) {
        source.unchanged()?;
        return Ok(hashes);
    }
    hash_blocks(&mut hashes, data_start, options, &mut |at, bytes| {
        bytes.resize(BLOCK_BYTES.min(file_bytes - at) as usize, 0);
        if at.is_multiple_of(AHEAD_BYTES) {
            // The stretch behind the one that is read now.
            let first = if at == 0 { 0 } else { at + AHEAD_BYTES };
            source.read_soon(first, at + 2 * AHEAD_BYTES - first);
        }
        source.read_exact_at(bytes, at)?;
        match progress(at + bytes.len() as u64, file_bytes) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(source.stopped()),
        }
    })?;
    if let Some(anew) = anew.filter(|_| options.sshs_model) {
        hashes.sshs_model = match anew.is_same_order() {
            true => hashes.data_sha256.clone(),
            false => Some(hash_ranges(source, anew.tensors(), progress)?),
        };
    }
    if !options.data_sha256 {
        hashes.data_sha256 = None;
    }
    source.unchanged()?;
    Ok(hashes)
}

/// SHA-256 of parts of a file, one after another.
pub(crate) fn hash_ranges(
    source: &FileSource,
    ranges: &[Range<u64>],
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<String, StoreError> {
    source.will_read(&ranges.iter().map(|r| (r.start, r.end)).collect::<Vec<_>>());
    let mut state = Sha256::new();
    let mut block = Vec::new();
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            block.resize(BLOCK_BYTES.min(range.end - at) as usize, 0);
            source.read_exact_at(&mut block, at)?;
            state.update(&block);
            at += block.len() as u64;
            // All was read once already.
            if progress(source.file_bytes, source.file_bytes).is_break() {
                return Err(source.stopped());
            }
        }
    }
    Ok(hex(&state.finalize()))
}

/// As [`hash`], of what comes out of a pipe: read once, to its end, in little memory. `label` stands for it in messages.
///
/// `progress` gets the bytes that were read; nobody knows of how many.
///
/// ```
/// use std::ops::ControlFlow;
/// use safelight_store::{HashOptions, hash_reader};
/// let go_on = &mut |_: u64| ControlFlow::Continue(());
/// let hashes = hash_reader("a pipe", &mut &b"abc"[..], &HashOptions::default(), go_on)?;
/// assert_eq!((hashes.file_bytes, hashes.autov2()), (3, Some("ba7816bf8f")));
/// # Ok::<(), safelight_store::StoreError>(())
/// ```
///
/// # Errors
/// What the pipe says, [`StoreError::Stopped`].
pub fn hash_reader(
    label: &str,
    reader: &mut dyn Read,
    options: &HashOptions,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Hashes, StoreError> {
    let failed = |error| StoreError::io("read", Path::new(label))(error);
    // Memory grows with what comes, not with what the first bytes promise.
    let mut prefix = Vec::new();
    Read::take(&mut *reader, 8)
        .read_to_end(&mut prefix)
        .map_err(failed)?;
    let length = prefix
        .first_chunk::<8>()
        .map(|bytes| u64::from_le_bytes(*bytes));
    let length = length.filter(|length| *length <= Limits::default().header_bytes_max);
    if let (true, Some(length)) = (options.wants_header(), length) {
        Read::take(&mut *reader, length)
            .read_to_end(&mut prefix)
            .map_err(failed)?;
    }
    let data_start = length
        .map(|length| 8 + length)
        .filter(|_| options.wants_data());
    let anew = header_of(&prefix).as_ref().and_then(Anew::of);
    let mut window = anew
        .as_ref()
        .filter(|_| options.sshs_legacy)
        .and_then(Anew::window);
    let (mut hashes, mut autov1, mut file_bytes) = (Hashes::default(), Vec::new(), 0);
    let mut all = (&prefix[..]).chain(reader);
    hash_blocks(&mut hashes, data_start, options, &mut |at, bytes| {
        bytes.clear();
        let block = Read::take(&mut all, BLOCK_BYTES).read_to_end(bytes);
        block.map_err(failed)?;
        file_bytes = at + bytes.len() as u64;
        let from = (AUTOV1_START.max(at) - at).min(bytes.len() as u64) as usize;
        let to = (AUTOV1_START + AUTOV1_BYTES).clamp(at, file_bytes) - at;
        autov1.extend_from_slice(bytes.get(from..to as usize).unwrap_or_default());
        if let Some(window) = &mut window {
            window.take(at, bytes);
        }
        match progress(file_bytes) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(StoreError::Stopped {
                file: label.to_owned(),
            }),
        }
    })?;
    hashes.file_bytes = file_bytes;
    let header = Header::parse_with(&prefix, file_bytes, &lenient());
    match header.ok().filter(|_| options.wants_header()) {
        Some(header) => {
            let data_bytes = file_bytes - header.data_start();
            hashes.data_bytes = Some(data_bytes).filter(|_| options.wants_data());
            hashes.sshs_legacy = window.map(|window| sha256_hex(&window.bytes)[..8].to_owned());
            let known = anew.filter(|anew| options.sshs_model && anew.is_same_order());
            hashes.sshs_model = known.and_then(|_| hashes.data_sha256.clone());
        }
        None => hashes.data_sha256 = None, // it looked like a safetensors file at first
    }
    if !options.data_sha256 {
        hashes.data_sha256 = None;
    }
    hashes.autov1 = options.autov1.then(|| sha256_hex(&autov1)[..8].to_owned());
    Ok(hashes)
}

/// What is read of headers to know where data lie.
fn lenient() -> ParseOptions {
    ParseOptions {
        opaque_dtypes: true,
        ..ParseOptions::default()
    }
}

/// The header of a file whose size is not known yet.
fn header_of(prefix: &[u8]) -> Option<Header> {
    // No file is that long; the error says how long this one should be.
    match Header::parse_with(prefix, i64::MAX as u64, &lenient()) {
        Err(FormatError::FileTooLong { expected_bytes, .. }) => {
            Header::parse_with(prefix, expected_bytes, &lenient()).ok()
        }
        parsed => parsed.ok(),
    }
}

/// Hands all blocks to the hashers of what is wanted. `fill` puts the bytes from a position on into a block, none at the end.
fn hash_blocks(
    hashes: &mut Hashes,
    data_start: Option<u64>,
    options: &HashOptions,
    fill: &mut Fill<'_>,
) -> Result<(), StoreError> {
    let (free, freed) = channel();
    thread::scope(|scope| {
        let mut hashers = Vec::new();
        let mut start = |wanted: bool, hasher: fn(u64) -> Box<dyn Hasher>, from: u64| {
            wanted.then(|| {
                let (blocks, incoming) = sync_channel(BLOCK_COUNT);
                hashers.push(blocks);
                let free = free.clone();
                scope.spawn(move || run(hasher(from), &incoming, &free))
            })
        };
        let sha256 = start(options.sha256, new_sha256, 0);
        let data = data_start.filter(|_| options.wants_data());
        let data_sha256 = start(data.is_some(), new_sha256, data.unwrap_or(0));
        let blake3 = start(options.blake3, new_blake3, 0);
        read_blocks(&hashers, &freed, &free, fill)?;
        drop(hashers);
        let finished = |thread: Option<thread::ScopedJoinHandle<'_, String>>| {
            thread.map(|thread| thread.join().expect("hashing does not panic"))
        };
        hashes.sha256 = finished(sha256);
        hashes.data_sha256 = finished(data_sha256);
        hashes.blake3 = finished(blake3);
        Ok(())
    })
}

/// Part of a file.
struct Block {
    at: u64,
    bytes: Vec<u8>,
}

/// Puts the bytes from a position on into a block.
type Fill<'a> = dyn FnMut(u64, &mut Vec<u8>) -> Result<(), StoreError> + 'a;

/// Reads everything once, and gives each block to all hashers.
fn read_blocks(
    hashers: &[SyncSender<Arc<Block>>],
    freed: &Receiver<Vec<u8>>,
    free: &Sender<Vec<u8>>,
    fill: &mut Fill<'_>,
) -> Result<(), StoreError> {
    (0..BLOCK_COUNT).for_each(|_| {
        let _ = free.send(Vec::new());
    });
    let mut at = 0;
    loop {
        let mut bytes = freed.recv().expect("we hold a sender ourselves");
        fill(at, &mut bytes)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let next = at + bytes.len() as u64;
        let block = Arc::new(Block { at, bytes });
        for hasher in hashers {
            // Fails only if the hasher panicked, which its join will tell.
            let _ = hasher.send(block.clone());
        }
        give_back(block, free);
        at = next;
    }
}

/// Whoever is last returns the block's memory.
fn give_back(block: Arc<Block>, free: &Sender<Vec<u8>>) {
    if let Some(block) = Arc::into_inner(block) {
        let _ = free.send(block.bytes);
    }
}

/// Hashes what comes in until nothing does.
fn run(
    mut hasher: Box<dyn Hasher>,
    incoming: &Receiver<Arc<Block>>,
    free: &Sender<Vec<u8>>,
) -> String {
    for block in incoming {
        hasher.update(&block);
        give_back(block, free);
    }
    hasher.finish()
}

trait Hasher {
    fn update(&mut self, block: &Block);
    fn finish(self: Box<Self>) -> String;
}

/// SHA-256 of everything from byte `from` on.
struct Sha {
    from: u64,
    state: Sha256,
}

fn new_sha256(from: u64) -> Box<dyn Hasher> {
    let state = Sha256::new();
    Box::new(Sha { from, state })
}

fn new_blake3(_: u64) -> Box<dyn Hasher> {
    Box::new(blake3::Hasher::new())
}

impl Hasher for Sha {
    fn update(&mut self, block: &Block) {
        let skip = self.from.saturating_sub(block.at);
        let part = usize::try_from(skip)
            .ok()
            .and_then(|skip| block.bytes.get(skip..));
        self.state.update(part.unwrap_or_default());
    }

    fn finish(self: Box<Self>) -> String {
        hex(&self.state.finalize())
    }
}

impl Hasher for blake3::Hasher {
    fn update(&mut self, block: &Block) {
        blake3::Hasher::update(self, &block.bytes);
    }

    fn finish(self: Box<Self>) -> String {
        self.finalize().to_hex().to_string()
    }
}
