//! Tensors by name, whether they lie in one file, in many, or in memory.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use safelight_format::{
    DecodeError, Header, Limits, Metadata, OpaqueTensor, ParseOptions, Strictness, TensorInfo,
    TensorView, decode_f32_into,
};

use crate::error::{StoreError, path_text};
use crate::load::{self, LoadOptions};
use crate::meant::Meant;
use crate::shards;
use crate::source::{Bytes, FileSource, ReadAt, Source};
use crate::together::{Chosen, list_label};

/// Tensors are read and decoded in pieces of this many bytes: whole elements of any size (three
/// bytes hold four of 6 bits),
/// and small enough that a piece and its `f32`s stay in the second-level cache, so that each page
/// of the result is touched once.
const PIECE_BYTES: usize = 96 * 1024;

/// How a checkpoint is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// How much the parser forgives; by default what Hugging Face's does.
    pub strictness: Strictness,
    /// How much a header may ask for.
    pub limits: Limits,
    /// Tensors of dtypes that the format does not have are listed apart, in [`Checkpoint::opaque_tensors`], instead of being
    /// an error.
    pub opaque_dtypes: bool,
}

impl OpenOptions {
    pub(crate) fn parse(&self) -> ParseOptions {
        ParseOptions {
            strictness: self.strictness,
            limits: self.limits,
            opaque_dtypes: self.opaque_dtypes,
        }
    }
}

/// The tensors of a model: one safetensors file, all shards of an index, or a buffer.
///
/// Opening reads headers only. May be shared among threads, which then read at the same time.
pub struct Checkpoint {
    label: String,
    path: Option<PathBuf>,
    files: Vec<ShardFile>,
    /// Of several files: the position in `files` of each tensor's file.
    weight_map: Option<HashMap<String, usize>>,
    warnings: Vec<String>,
}

/// Where a tensor lies.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The tensor.
    pub tensor: TensorInfo<'a>,
    /// Its file: a shard's path, or the label of a buffer.
    pub file: &'a str,
    /// The position of its first byte in that file.
    pub starts_at: u64,
}

/// Where a tensor of an unknown dtype lies.
#[derive(Clone, Copy, Debug)]
pub struct OpaquePlace<'a> {
    /// The tensor.
    pub tensor: OpaqueTensor<'a>,
    /// Its file: a shard's path, or the label of a buffer.
    pub file: &'a str,
    /// The position of its first byte in that file.
    pub starts_at: u64,
}

/// One file of a checkpoint.
pub(crate) struct ShardFile {
    pub(crate) source: FileSource,
    pub(crate) header: Header,
}

impl Checkpoint {
    /// Opens a `.safetensors` file, all shards of a `.safetensors.index.json`, a folder (its index, or all its
    /// safetensors files) or a pattern (`model-*.safetensors`) as one; [`Meant::of`] has the rules.
    ///
    /// # Errors
    /// [`StoreError`]: the system's, the file's or the index's.
    pub fn open(path: &Path) -> Result<Checkpoint, StoreError> {
        Checkpoint::open_with(path, &OpenOptions::default())
    }

    /// As [`Checkpoint::open`], more strictly or with other limits.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_with(path: &Path, options: &OpenOptions) -> Result<Checkpoint, StoreError> {
        let path = match Meant::of(path)? {
            Meant::Index(index) => return shards::open(&index, options),
            Meant::Files(files) => {
                let folder = path.is_dir().then(|| path.to_owned());
                return shards::open_files(path_text(path), folder, &files, Chosen::Found, options);
            }
            Meant::File(path) => path,
        };
        let file = ShardFile::open(&path, options)?;
        Ok(Checkpoint::new(
            file.source.label.clone(),
            Some(path),
            vec![file],
            None,
        ))
    }

    /// Opens several files as one. A tensor that is in two of them is an error that names both; where names count the files
    /// (`model-00002-of-00003.safetensors`), all must be listed.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`StoreError::ShardsMissing`] names all files that are not there.
    pub fn open_files(
        paths: &[impl AsRef<Path>],
        options: &OpenOptions,
    ) -> Result<Checkpoint, StoreError> {
        let paths: Vec<PathBuf> = paths.iter().map(|path| path.as_ref().to_owned()).collect();
        shards::open_files(list_label(&paths), None, &paths, Chosen::Named, options)
    }

    /// A checkpoint that is in memory already; `label` stands for it in messages.
    ///
    /// ```
    /// use safelight_store::Checkpoint;
    /// let empty = Checkpoint::from_bytes("nothing", b"\x08\0\0\0\0\0\0\0{}      ")?;
    /// assert!(empty.is_empty());
    /// # Ok::<(), safelight_store::StoreError>(())
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Format`].
    pub fn from_bytes(
        label: impl Into<String>,
        bytes: impl Into<Bytes>,
    ) -> Result<Checkpoint, StoreError> {
        Checkpoint::from_bytes_with(label, bytes, &OpenOptions::default())
    }

    /// As [`Checkpoint::from_bytes`], more strictly or with other limits.
    ///
    /// # Errors
    /// [`StoreError::Format`].
    pub fn from_bytes_with(
        label: impl Into<String>,
        bytes: impl Into<Bytes>,
        options: &OpenOptions,
    ) -> Result<Checkpoint, StoreError> {
        let source = Source::Memory(bytes.into());
        let mut source = FileSource {
            label: label.into(),
            source,
            file_bytes: 0,
            stamp: None,
        };
        source.file_bytes = source.memory().map_or(0, |bytes| bytes.len() as u64);
        Checkpoint::of_source(source, options)
    }

    /// A checkpoint that is read through `reader`; `label` stands for it in messages.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_reader(
        label: impl Into<String>,
        reader: Box<dyn ReadAt>,
        options: &OpenOptions,
    ) -> Result<Checkpoint, StoreError> {
        let label = label.into();
        let sized = reader.byte_count();
        let file_bytes = sized.map_err(|error| StoreError::Io {
            doing: "read the size of",
            file: label.clone(),
            error,
        })?;
        Checkpoint::of_source(
            FileSource {
                label,
                source: Source::Reader(reader),
                file_bytes,
                stamp: None,
            },
            options,
        )
    }

    fn of_source(source: FileSource, options: &OpenOptions) -> Result<Checkpoint, StoreError> {
        let file = ShardFile::of_source(source, options)?;
        Ok(Checkpoint::new(
            file.source.label.clone(),
            None,
            vec![file],
            None,
        ))
    }

    pub(crate) fn new(
        label: String,
        path: Option<PathBuf>,
        files: Vec<ShardFile>,
        weight_map: Option<HashMap<String, usize>>,
    ) -> Checkpoint {
        Checkpoint {
            label,
            path,
            files,
            weight_map,
            warnings: Vec::new(),
        }
    }

    pub(crate) fn warn(&mut self, problem: String) {
        self.warnings.push(problem);
    }

    /// What is odd about it, but no reason to refuse it: an index whose `total_size` is wrong.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Where the index and its shards disagree, though every tensor that it lists can be read: tensors in two shards, tensors
    /// that it does not list.
    pub fn disagreements(&self) -> Vec<StoreError> {
        let Some(weight_map) = &self.weight_map else {
            return Vec::new();
        };
        let (mut unlisted, mut twice) = (Vec::new(), Vec::new());
        for (position, file) in self.files.iter().enumerate() {
            let label = |position: usize| self.files[position].source.label.clone();
            for tensor in file.header.tensors().iter() {
                match weight_map.get(tensor.name) {
                    None => unlisted.push((tensor.name.to_owned(), label(position))),
                    Some(&given) if given != position => {
                        twice.push((tensor.name.to_owned(), label(given), label(position)));
                    }
                    Some(_) => {}
                }
            }
        }
        let file = || self.label.clone();
        let mut problems = Vec::new();
        if !unlisted.is_empty() {
            problems.push(StoreError::NotInIndex {
                file: file(),
                tensors: unlisted,
            });
        }
        if !twice.is_empty() {
            problems.push(StoreError::InTwoFiles {
                file: file(),
                tensors: twice,
            });
        }
        problems
    }

    pub(crate) fn shard_files(&self) -> &[ShardFile] {
        &self.files
    }

    /// All tensors with the positions of their files, in the order of [`Checkpoint::tensors`].
    pub(crate) fn listed(&self) -> impl Iterator<Item = (usize, TensorInfo<'_>)> {
        let files = self.files.iter().enumerate();
        let all = files.flat_map(|(position, file)| {
            let tensors = file.header.tensors().iter();
            tensors.map(move |tensor| (position, tensor))
        });
        all.filter(|(position, tensor)| match &self.weight_map {
            Some(weight_map) => weight_map.get(tensor.name) == Some(position),
            None => true,
        })
    }

    pub(crate) fn files_mut(&mut self) -> &mut [ShardFile] {
        &mut self.files
    }

    /// What to call this checkpoint in messages: its path, or the label it was given.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The path it was opened by, an index's if there is one; `None` for buffers.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The size of all its files together (without the index).
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.source.file_bytes).sum()
    }

    /// How many files its tensors lie in.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// The paths of all its files (without the index), or the label of a buffer.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| file.source.label.as_str())
    }

    /// The free-form text in the (first) file, `None` if it has none.
    pub fn metadata(&self) -> Option<&Metadata> {
        self.files.first().and_then(|file| file.header.metadata())
    }

    /// The metadata of each file, with the file's name.
    pub fn file_metadata(&self) -> impl Iterator<Item = (&str, Option<&Metadata>)> {
        let files = self.files.iter();
        files.map(|file| (file.source.label.as_str(), file.header.metadata()))
    }

    /// The metadata of all files together; where two files differ, the first one's word stands.
    pub fn merged_metadata(&self) -> Metadata {
        let mut merged = Metadata::new();
        for (_, metadata) in self.file_metadata() {
            for (key, value) in metadata.into_iter().flatten() {
                merged.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        merged
    }

    /// All tensors, in the order of their bytes, file by file.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        let listed = move |position: usize, tensor: &TensorInfo| match &self.weight_map {
            Some(weight_map) => weight_map.get(tensor.name) == Some(&position),
            None => true,
        };
        let files = self.files.iter().enumerate();
        files.flat_map(move |(position, file)| {
            file.header
                .tensors()
                .iter()
                .filter(move |tensor| listed(position, tensor))
        })
    }

    /// All tensors with where they lie, in the order of [`Checkpoint::tensors`].
    pub fn places(&self) -> impl Iterator<Item = Place<'_>> {
        let listed = move |position: usize, tensor: &TensorInfo| match &self.weight_map {
            Some(weight_map) => weight_map.get(tensor.name) == Some(&position),
            None => true,
        };
        let files = self.files.iter().enumerate();
        files.flat_map(move |(position, file)| {
            let tensors = file.header.tensors().iter();
            tensors
                .filter(move |tensor| listed(position, tensor))
                .map(move |tensor| Place {
                    tensor,
                    file: &file.source.label,
                    starts_at: file.header.data_start() + tensor.data_offsets.0,
                })
        })
    }

    /// The tensors of unknown dtypes, file by file: none unless [`OpenOptions::opaque_dtypes`] asked for them. They are not among
    /// [`Checkpoint::tensors`].
    ///
    /// ```
    /// use safelight_store::{Checkpoint, OpenOptions};
    /// let json = br#"{"a":{"dtype":"Q1","shape":[9],"data_offsets":[0,2]}}"#;
    /// let file = [&(json.len() as u64).to_le_bytes()[..], json, b"xy"].concat();
    /// let options = OpenOptions { opaque_dtypes: true, ..OpenOptions::default() };
    /// let checkpoint = Checkpoint::from_bytes_with("odd", file, &options)?;
    /// let place = checkpoint.opaque_tensors().next().unwrap();
    /// assert_eq!((place.tensor.dtype, checkpoint.len()), ("Q1", 0));
    /// let mut bytes = [0; 2];
    /// checkpoint.read_opaque_at("a", 0, &mut bytes)?;
    /// assert_eq!(&bytes, b"xy");
    /// # Ok::<(), safelight_store::StoreError>(())
    /// ```
    pub fn opaque_tensors(&self) -> impl Iterator<Item = OpaquePlace<'_>> {
        self.files.iter().flat_map(|file| {
            file.header.opaque_tensors().map(|tensor| OpaquePlace {
                tensor,
                file: &file.source.label,
                starts_at: file.header.data_start() + tensor.data_offsets.0,
            })
        })
    }

    /// Fills `out` with the bytes of a tensor of an unknown dtype that start at `offset` within it.
    ///
    /// # Errors
    /// As [`Checkpoint::read_bytes`].
    ///
    /// # Panics
    /// If `offset` and `out` reach beyond the tensor.
    pub fn read_opaque_at(
        &self,
        name: &str,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), StoreError> {
        let (file, tensor) = self.find_opaque(name)?;
        let end = offset.checked_add(out.len() as u64);
        assert!(
            end.is_some_and(|end| end <= tensor.byte_count()),
            "{} bytes from {offset} of a tensor of {} bytes",
            out.len(),
            tensor.byte_count()
        );
        let start = file.header.data_start() + tensor.data_offsets.0;
        file.source.read_exact_at(out, start + offset)
    }

    fn find_opaque(&self, name: &str) -> Result<(&ShardFile, OpaqueTensor<'_>), StoreError> {
        let mut places = self.files.iter().filter_map(|file| {
            let mut opaque = file.header.opaque_tensors();
            Some((file, opaque.find(|tensor| tensor.name == name)?))
        });
        places.next().ok_or_else(|| StoreError::NoSuchTensor {
            file: self.label.clone(),
            tensor: name.to_owned(),
        })
    }

    /// Where a tensor's bytes are, whatever its dtype: from the first byte of tensor data of its file.
    fn find_bytes(&self, name: &str) -> Result<(&ShardFile, (u64, u64)), StoreError> {
        match self.locate(name) {
            Some((file, tensor)) => Ok((file, tensor.data_offsets)),
            None => self
                .find_opaque(name)
                .map(|(file, tensor)| (file, tensor.data_offsets)),
        }
    }

    /// The names of all tensors, in the order of [`Checkpoint::tensors`].
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors().map(|tensor| tensor.name)
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        match &self.weight_map {
            Some(weight_map) => weight_map.len(),
            None => self
                .files
                .iter()
                .map(|file| file.header.tensors().len())
                .sum(),
        }
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tensor of this name, without its bytes.
    pub fn get(&self, name: &str) -> Option<TensorInfo<'_>> {
        self.locate(name).map(|(_, tensor)| tensor)
    }

    fn locate(&self, name: &str) -> Option<(&ShardFile, TensorInfo<'_>)> {
        let file = match &self.weight_map {
            Some(weight_map) => &self.files[*weight_map.get(name)?],
            None => self.files.first()?,
        };
        file.header.get(name).map(|tensor| (file, tensor))
    }

    pub(crate) fn find(&self, name: &str) -> Result<(&ShardFile, TensorInfo<'_>), StoreError> {
        let missing = || StoreError::NoSuchTensor {
            file: self.label.clone(),
            tensor: name.to_owned(),
        };
        self.locate(name).ok_or_else(missing)
    }

    /// Reads a tensor as the file has it.
    ///
    /// # Errors
    /// No such tensor, the system's errors, a file that shrank, memory.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let (file, tensor) = self.find(name)?;
        let mut bytes = file.reserve(tensor.name, tensor.byte_count())?;
        file.for_each_piece(&tensor, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Fills `out` with the bytes of a tensor that start at `offset` within it.
    ///
    /// # Errors
    /// As [`Checkpoint::read_bytes`].
    ///
    /// # Panics
    /// If `offset` and `out` reach beyond the tensor.
    pub fn read_bytes_at(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let (file, tensor) = self.find(name)?;
        let end = offset.checked_add(out.len() as u64);
        assert!(
            end.is_some_and(|end| end <= tensor.byte_count()),
            "{} bytes from {offset} of a tensor of {} bytes",
            out.len(),
            tensor.byte_count()
        );
        let start = file.header.data_start() + tensor.data_offsets.0;
        file.source.read_exact_at(out, start + offset)
    }

    /// Reads a tensor as `f32`s, whatever number type the file has. Memory: the result and less than 1 MiB.
    ///
    /// # Errors
    /// As [`Checkpoint::read_bytes`], and [`StoreError::Decode`] for complex numbers.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, StoreError> {
        let (file, tensor) = self.find(name)?;
        file.check_readable(&tensor)?;
        let mut values = file.reserve(tensor.name, tensor.element_count())?;
        let piece_bytes = tensor.byte_count().min(PIECE_BYTES as u64) as usize;
        let mut decoded = vec![0.0; elements_in(&tensor, piece_bytes)];
        file.for_each_piece(&tensor, |piece| {
            let count = elements_in(&tensor, piece.len());
            decode_f32_into(tensor.dtype, piece, &mut decoded[..count])?;
            values.extend_from_slice(&decoded[..count]);
            Ok(())
        })?;
        Ok(values)
    }

    /// As [`Checkpoint::read_f32`], into memory that is there already.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`], and [`StoreError::Decode`] if `out` has another length.
    pub fn read_f32_into(&self, name: &str, out: &mut [f32]) -> Result<(), StoreError> {
        let (file, tensor) = self.find(name)?;
        file.check_readable(&tensor)?;
        if out.len() as u64 != tensor.element_count() {
            let byte_count = usize::try_from(tensor.byte_count()).unwrap_or(usize::MAX);
            let (dtype, element_count) = (tensor.dtype, out.len());
            let error = DecodeError::WrongLength {
                dtype,
                byte_count,
                element_count,
            };
            return Err(file.undecodable(&tensor, error));
        }
        let mut done = 0;
        file.for_each_piece(&tensor, |piece| {
            let next = done + elements_in(&tensor, piece.len());
            decode_f32_into(tensor.dtype, piece, &mut out[done..next])?;
            done = next;
            Ok(())
        })
    }

    /// Copies all files into memory of their own, in parallel, after which [`Checkpoint::view`] gives tensors
    /// without a copy and the files are not needed any more.
    ///
    /// # Errors
    /// As [`Checkpoint::read_bytes`].
    pub fn load(mut self, options: &LoadOptions) -> Result<Checkpoint, StoreError> {
        for file in &mut self.files {
            if file.source.memory().is_none() {
                let loaded = load::load(&file.source, options)?;
                file.source.unchanged()?;
                file.source.source = Source::Loaded(loaded);
            }
        }
        Ok(self)
    }

    /// An error if another program wrote to one of the files since they were opened, as far as the system can tell by size and
    /// times. Whoever reads more than one piece asks when all is read: the pieces may be of two files. What lies in memory or
    /// behind a URL is never changed.
    ///
    /// [`Checkpoint::load`], [`crate::hash()`] and [`crate::verify()`] ask by themselves.
    ///
    /// # Errors
    /// [`StoreError::ChangedMeanwhile`]; [`StoreError::Shrank`] if a file became shorter.
    pub fn unchanged(&self) -> Result<(), StoreError> {
        let mut files = self.files.iter();
        files.try_for_each(|file| file.source.unchanged())
    }

    /// As [`Checkpoint::unchanged`], of the file that a tensor (of an unknown dtype too) lies in.
    ///
    /// # Errors
    /// As there, and [`StoreError::NoSuchTensor`].
    pub fn unchanged_around(&self, name: &str) -> Result<(), StoreError> {
        let (file, _) = self.find_bytes(name)?;
        file.source.unchanged()
    }

    /// Copies a piece of a tensor, `byte_count` bytes that start at `offset` within it, to the same place in tensor `index` of a file
    /// that is being written: in the kernel where that is possible. The tensor may be one of an unknown dtype.
    ///
    /// # Errors
    /// As [`Checkpoint::read_bytes`], [`Checkpoint::unchanged`] and [`crate::Writer::write_at`].
    ///
    /// # Panics
    /// If `offset` and `byte_count` reach beyond the tensor.
    pub fn copy_to(
        &self,
        name: &str,
        (offset, byte_count): (u64, u64),
        writer: &crate::Writer,
        index: usize,
    ) -> Result<(), StoreError> {
        let (file, (start, tensor_end)) = self.find_bytes(name)?;
        let end = offset.checked_add(byte_count);
        assert!(
            end.is_some_and(|end| end <= tensor_end - start),
            "{byte_count} bytes from {offset} of a tensor of {} bytes",
            tensor_end - start
        );
        let from_offset = file.header.data_start() + start + offset;
        let copied = match &file.source.source {
            Source::File(from) => writer.copy_at(index, offset, from, from_offset, byte_count),
            _ => {
                let mut piece = vec![0; byte_count as usize];
                file.source.read_exact_at(&mut piece, from_offset)?;
                writer.write_at(index, offset, &piece)
            }
        };
        // That the source ends early is no fault of the file that is written.
        file.source.unchanged()?;
        copied
    }

    /// Makes every page of [`crate::map`]ped files present, several threads at a time, so that looking at tensors waits for
    /// nothing any more. Nothing is copied; files that are not mapped are left as they are.
    ///
    /// The system may still take pages back when memory becomes short.
    ///
    /// # Errors
    /// [`StoreError::Io`] and [`StoreError::Shrank`] for what can't be read (on Linux before 5.14 and on other systems
    /// a file that shrinks meanwhile gives a signal, as mapped files do).
    pub fn prefault(&self) -> Result<(), StoreError> {
        let sources = self.files.iter().map(|file| &file.source);
        sources.into_iter().try_for_each(load::prefault)
    }

    /// A tensor's bytes where they lie, without a copy: for buffers and for [`crate::map`]ped files.
    ///
    /// # Errors
    /// No such tensor, or [`StoreError::NotInMemory`].
    pub fn view(&self, name: &str) -> Result<TensorView<'_>, StoreError> {
        let (file, tensor) = self.find(name)?;
        let not_there = || StoreError::NotInMemory {
            file: file.source.label.clone(),
            tensor: name.to_owned(),
        };
        let bytes = file.view(&tensor).ok_or_else(not_there)?;
        Ok(TensorView {
            name: tensor.name,
            dtype: tensor.dtype,
            shape: tensor.shape,
            bytes,
        })
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Checkpoint");
        debug
            .field("label", &self.label)
            .field("files", &self.files.len())
            .field("tensors", &self.len());
        debug.finish_non_exhaustive()
    }
}

impl ShardFile {
    /// What it is called, and its header.
    pub(crate) fn named_header(&self) -> (&str, &Header) {
        (&self.source.label, &self.header)
    }

    pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<ShardFile, StoreError> {
        ShardFile::of_source(FileSource::open(path)?, options)
    }

    /// Reads and checks the header.
    pub(crate) fn of_source(
        source: FileSource,
        options: &OpenOptions,
    ) -> Result<ShardFile, StoreError> {
        let prefix = source.read_prefix(options)?;
        let header = Header::parse_with(&prefix, source.file_bytes, &options.parse());
        let header = header.map_err(|error| source.not_safetensors(error))?;
        drop(prefix);
        Ok(ShardFile { source, header })
    }

    /// An empty vector with room for `count` elements, or an error where a plain allocation would
    /// end the program.
    pub(crate) fn reserve<T>(&self, tensor: &str, count: u64) -> Result<Vec<T>, StoreError> {
        let mut vec = Vec::new();
        let len = usize::try_from(count).ok();
        if len.is_some_and(|len| vec.try_reserve_exact(len).is_ok()) {
            return Ok(vec);
        }
        let (file, what) = (self.source.label.clone(), format!("tensor `{tensor}`"));
        let byte_count = count.saturating_mul(size_of::<T>() as u64);
        Err(StoreError::OutOfMemory {
            file,
            what,
            byte_count,
        })
    }

    pub(crate) fn view(&self, tensor: &TensorInfo) -> Option<&[u8]> {
        let start = usize::try_from(self.header.data_start() + tensor.data_offsets.0).ok()?;
        let end = usize::try_from(self.header.data_start() + tensor.data_offsets.1).ok()?;
        self.source.memory()?.get(start..end)
    }

    /// Hands the tensor's bytes to `each`, in order, at most [`PIECE_BYTES`] at a time and whole
    /// elements only.
    fn for_each_piece(
        &self,
        tensor: &TensorInfo,
        mut each: impl FnMut(&[u8]) -> Result<(), DecodeError>,
    ) -> Result<(), StoreError> {
        let undecodable = |error| self.undecodable(tensor, error);
        if let Some(bytes) = self.view(tensor) {
            return bytes
                .chunks(PIECE_BYTES)
                .try_for_each(|piece| each(piece).map_err(undecodable));
        }
        let start = self.header.data_start();
        let (mut offset, end) = (start + tensor.data_offsets.0, start + tensor.data_offsets.1);
        self.source.will_read(&[(offset, end)]);
        let mut buffer = vec![0; tensor.byte_count().min(PIECE_BYTES as u64) as usize];
        while offset < end {
            let len = (end - offset).min(PIECE_BYTES as u64) as usize;
            self.source.read_exact_at(&mut buffer[..len], offset)?;
            each(&buffer[..len]).map_err(undecodable)?;
            offset += len as u64;
        }
        Ok(())
    }

    /// Whether the dtype can be read as `f32`s at all; asked before anything is reserved or read.
    pub(crate) fn check_readable(&self, tensor: &TensorInfo) -> Result<(), StoreError> {
        decode_f32_into(tensor.dtype, &[], &mut []).map_err(|error| self.undecodable(tensor, error))
    }

    pub(crate) fn undecodable(&self, tensor: &TensorInfo, error: DecodeError) -> StoreError {
        let (file, tensor) = (self.source.label.clone(), tensor.name.to_owned());
        StoreError::Decode {
            file,
            tensor,
            error,
        }
    }
}

/// How many elements fill so many bytes.
fn elements_in(tensor: &TensorInfo, byte_count: usize) -> usize {
    byte_count * 8 / tensor.dtype.bits() as usize
}
