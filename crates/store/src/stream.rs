//! A checkpoint written where nobody can go back: into a pipe, a socket, an upload.

use std::io::{self, Write};
use std::path::Path;

use safelight_format::{HeaderPlan, Metadata, OpaqueSpec, TensorSpec};

use crate::error::StoreError;
use crate::save::SaveOptions;

/// Writes a `.safetensors` file to any [`Write`], from names, dtypes and shapes: the header at once, then the tensors one
/// after the other, strictly in the order of the file, in pieces of any size. In memory is one piece.
///
/// The bytes are those of [`crate::save`] and [`crate::Writer`] with the same options. What was written cannot be taken
/// back: after an error the output ends in the middle of a file, which every reader refuses.
///
/// ```
/// use safelight_format::{Dtype, TensorSpec};
/// use safelight_store::{Checkpoint, SaveOptions, StreamWriter};
///
/// let specs = [
///     TensorSpec { name: "a".into(), dtype: Dtype::U8, shape: vec![4] },
///     TensorSpec { name: "b".into(), dtype: Dtype::F32, shape: vec![1] },
/// ];
/// let mut pipe = Vec::new();
/// let mut writer = StreamWriter::new("a pipe", &mut pipe, &specs, None, &SaveOptions::default())?;
/// while let Some(index) = writer.next_tensor() {
///     let bytes = vec![7; writer.next_bytes() as usize]; // here `b` comes first: larger elements do
///     writer.write(index, &bytes)?;
/// }
/// writer.finish()?;
/// assert_eq!(Checkpoint::from_bytes("a pipe", pipe)?.read_bytes("a")?, [7; 4]);
/// # Ok::<(), safelight_store::StoreError>(())
/// ```
pub struct StreamWriter<W> {
    out: W,
    label: String,
    specs: Vec<TensorSpec>,
    plan: HeaderPlan,
    /// The position in the file's order of the tensor that is being written.
    position: usize,
    /// How much of it is written.
    done: u64,
    /// The output failed, and has who knows what.
    broken: bool,
}

impl<W: Write> StreamWriter<W> {
    /// Lays the file out and writes its header. `label` stands for the output in messages.
    ///
    /// # Errors
    /// [`StoreError::Write`] if the tensors contradict themselves (nothing has been written then), [`StoreError::Io`] with what
    /// the output says.
    pub fn new(
        label: impl Into<String>,
        out: W,
        specs: &[TensorSpec],
        metadata: Option<&Metadata>,
        options: &SaveOptions,
    ) -> Result<StreamWriter<W>, StoreError> {
        StreamWriter::with_opaque(label, out, specs, &[], metadata, options)
    }

    /// As [`StreamWriter::new`], with tensors of dtypes that the format does not have, as
    /// [`crate::Writer::create_with_opaque`] takes them.
    ///
    /// # Errors
    /// As [`StreamWriter::new`].
    ///
    /// # Panics
    /// If there are not as many specs as a position in `opaque` says.
    pub fn with_opaque(
        label: impl Into<String>,
        out: W,
        specs: &[TensorSpec],
        opaque: &[OpaqueSpec],
        metadata: Option<&Metadata>,
        options: &SaveOptions,
    ) -> Result<StreamWriter<W>, StoreError> {
        let label = label.into();
        let planned = HeaderPlan::with_opaque(specs, opaque, metadata, &options.plan());
        let plan = planned.map_err(|error| StoreError::Write {
            file: label.clone(),
            error,
        })?;
        let prefix = options.prefix(&plan);
        let mut writer = StreamWriter {
            out,
            label,
            specs: specs.to_vec(),
            plan,
            position: 0,
            done: 0,
            broken: false,
        };
        writer.put(&prefix)?;
        writer.skip_complete();
        Ok(writer)
    }

    /// The tensors, as given; an index counts in this list.
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// The tensors in the order of the file, in which they have to come.
    pub fn file_order(&self) -> &[usize] {
        self.plan.order()
    }

    /// The size of the finished file.
    pub fn file_bytes(&self) -> u64 {
        self.plan.file_bytes()
    }

    /// The tensor whose bytes come next; `None` when all are written. Tensors without bytes are never next.
    pub fn next_tensor(&self) -> Option<usize> {
        self.plan.order().get(self.position).copied()
    }

    /// How many bytes of that tensor are still to come.
    pub fn next_bytes(&self) -> u64 {
        let next = self.next_tensor();
        next.map_or(0, |index| self.tensor_bytes(index) - self.done)
    }

    /// Writes the next piece of tensor `index`: little-endian elements in row-major order. The tensor is the one of
    /// [`StreamWriter::next_tensor`]; an empty piece of any tensor is nothing.
    ///
    /// # Errors
    /// [`StoreError::OutOfOrder`] if another tensor comes next, [`StoreError::OutsideTensor`] if the piece is longer than what is
    /// left of this one (nothing has been written in both cases); [`StoreError::Io`] with what the output says, after
    /// which every further call fails.
    ///
    /// # Panics
    /// If there are not that many tensors.
    pub fn write(&mut self, index: usize, bytes: &[u8]) -> Result<(), StoreError> {
        let tensor = &self.specs[index].name;
        if bytes.is_empty() {
            return Ok(());
        }
        let next = self.next_tensor();
        if next != Some(index) {
            return Err(StoreError::OutOfOrder {
                file: self.label.clone(),
                tensor: tensor.clone(),
                expected: next.map(|next| self.specs[next].name.clone()),
            });
        }
        if bytes.len() as u64 > self.next_bytes() {
            return Err(StoreError::OutsideTensor {
                file: self.label.clone(),
                tensor: tensor.clone(),
                offset: self.done,
                byte_count: bytes.len() as u64,
                tensor_bytes: self.tensor_bytes(index),
            });
        }
        self.put(bytes)?;
        self.done += bytes.len() as u64;
        self.skip_complete();
        Ok(())
    }

    /// Checks that every byte was written and flushes the output; returns it with the file's size.
    ///
    /// # Errors
    /// [`StoreError::Unwritten`] with all tensors that are not complete, [`StoreError::Io`] with what the output says.
    pub fn finish(mut self) -> Result<(W, u64), StoreError> {
        if self.broken {
            return Err(self.failed(io::ErrorKind::BrokenPipe.into()));
        }
        let left = self.plan.order().iter().skip(self.position);
        let left = left.enumerate().filter_map(|(position, &index)| {
            let done = if position == 0 { self.done } else { 0 };
            let missing = self.tensor_bytes(index) - done;
            (missing > 0).then(|| (self.specs[index].name.clone(), missing))
        });
        let tensors: Vec<(String, u64)> = left.collect();
        if !tensors.is_empty() {
            let file = self.label;
            return Err(StoreError::Unwritten { file, tensors });
        }
        let flushed = self.out.flush();
        flushed.map_err(|error| self.failed(error))?;
        Ok((self.out, self.plan.file_bytes()))
    }

    fn tensor_bytes(&self, index: usize) -> u64 {
        let (start, end) = self.plan.data_offsets(index);
        end - start
    }

    /// Goes on to the next tensor that lacks bytes.
    fn skip_complete(&mut self) {
        while self.next_tensor().is_some() && self.next_bytes() == 0 {
            (self.position, self.done) = (self.position + 1, 0);
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if self.broken {
            return Err(self.failed(io::ErrorKind::BrokenPipe.into()));
        }
        self.out.write_all(bytes).map_err(|error| {
            self.broken = true;
            self.failed(error)
        })
    }

    fn failed(&self, error: io::Error) -> StoreError {
        StoreError::io("write", Path::new(&self.label))(error)
    }
}

impl<W> std::fmt::Debug for StreamWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("StreamWriter");
        debug
            .field("label", &self.label)
            .field("tensors", &self.specs.len())
            .field("position", &self.position)
            .field("done", &self.done);
        debug.finish_non_exhaustive()
    }
}
