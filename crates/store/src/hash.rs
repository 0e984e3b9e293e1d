//! The hashes by which people know model files, all in one pass over the bytes.
//!
//! One thread reads, and one for each hash takes what was read, so that a file is hashed at the speed of its
//! disk or of the slowest hash.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use safelight_format::{Header, Limits, ParseOptions};
use sha2::{Digest, Sha256};

use crate::checkpoint::{OpenOptions, ShardFile};
use crate::error::StoreError;
use crate::source::FileSource;

/// What is read at a time: small enough that all hashers find it in a cache.
const BLOCK_BYTES: u64 = 1024 * 1024;

/// Blocks that are being read or hashed at the same time.
const BLOCK_COUNT: usize = 16;

/// How far the disk reads ahead of us: one thread that reads and waits leaves most disks idle.
const AHEAD_BYTES: u64 = 16 * BLOCK_BYTES;

/// The part of a file that A1111's first kind of hash looks at.
const AUTOV1_START: u64 = 0x10_0000;
const AUTOV1_BYTES: u64 = 0x1_0000;

/// Which hashes are wanted: all by default. Each costs a thread's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashOptions {
    /// SHA-256 of the whole file.
    pub sha256: bool,
    /// SHA-256 of the tensors' bytes, which is everything behind the header.
    pub data_sha256: bool,
    /// SHA-256 of the 64 KiB from byte 0x100000 on. If it alone is wanted, nothing else is read.
    pub autov1: bool,
    /// BLAKE3 of the whole file.
    pub blake3: bool,
}

impl Default for HashOptions {
    fn default() -> HashOptions {
        HashOptions {
            sha256: true,
            data_sha256: true,
            autov1: true,
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
        blake3: false,
    };
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

    /// What `sshs_model_hash` of kohya's scripts should say: the SHA-256 of the tensors.
    pub fn sshs(&self) -> Option<&str> {
        self.data_sha256.as_deref()
    }

    /// The hash of `sshs_legacy_hash`'s kind, of the file as it is: that of [`Hashes::autov1`]. (kohya's
    /// scripts compute it before they add the last metadata, so what a file says may differ.)
    pub fn sshs_legacy(&self) -> Option<&str> {
        self.autov1.as_deref()
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
    let mut data_start = None;
    if options.data_sha256 {
        // Only to know where data starts: a file that is no safetensors file has none.
        let options = OpenOptions {
            opaque_dtypes: true,
            ..OpenOptions::default()
        };
        match ShardFile::open(path, &options) {
            Ok(file) => data_start = Some(file.header.data_start()),
            Err(StoreError::Format { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    hash_source(&source, data_start, options, progress)
}

/// As [`hash`], of an open file whose data start at `data_start`.
pub(crate) fn hash_source(
    source: &FileSource,
    data_start: Option<u64>,
    options: &HashOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Hashes, StoreError> {
    let file_bytes = source.file_bytes;
    let mut hashes = Hashes {
        file_bytes,
        data_bytes: data_start.map(|start| file_bytes - start),
        ..Default::default()
    };
    if options.autov1 {
        let start = AUTOV1_START.min(file_bytes);
        let mut part = vec![0; AUTOV1_BYTES.min(file_bytes - start) as usize];
        source.read_exact_at(&mut part, start)?;
        hashes.autov1 = Some(sha256_hex(&part)[..8].to_owned());
    }
    if !options.sha256 && !options.blake3 && (!options.data_sha256 || data_start.is_none()) {
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
    source.unchanged()?;
    Ok(hashes)
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
    if let (true, Some(length)) = (options.data_sha256, length) {
        Read::take(&mut *reader, length)
            .read_to_end(&mut prefix)
            .map_err(failed)?;
    }
    let data_start = length
        .map(|length| 8 + length)
        .filter(|_| options.data_sha256);
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
        match progress(file_bytes) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(StoreError::Stopped {
                file: label.to_owned(),
            }),
        }
    })?;
    hashes.file_bytes = file_bytes;
    let parse = ParseOptions {
        opaque_dtypes: true,
        ..ParseOptions::default()
    };
    let header = Header::parse_with(&prefix, file_bytes, &parse);
    match header.ok().filter(|_| options.data_sha256) {
        Some(header) => hashes.data_bytes = Some(file_bytes - header.data_start()),
        None => hashes.data_sha256 = None, // it looked like a safetensors file at first
    }
    hashes.autov1 = options.autov1.then(|| sha256_hex(&autov1)[..8].to_owned());
    Ok(hashes)
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
        let data = data_start.filter(|_| options.data_sha256);
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
