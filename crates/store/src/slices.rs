//! Parts of tensors: only the bytes that a slice needs are read, and few more.

use safelight_format::{Batch, Dtype, Index, SliceOptions, SlicePlan, TensorInfo, decode_f32_into};

use crate::checkpoint::{Checkpoint, ShardFile};
use crate::error::StoreError;

/// A slice of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceRead<T> {
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its elements, row by row: the file's bytes, or numbers. Elements of less than a byte are packed as in a file.
    pub elements: Vec<T>,
    /// How many bytes were read for it.
    pub read_bytes: u64,
}

/// What takes a slice in pieces: the tensor's dtype, the bytes of some elements and how many these are.
pub type EachPiece<'a> = &'a mut dyn FnMut(Dtype, &[u8], usize) -> Result<(), StoreError>;

/// As [`EachPiece`], where the dtype is known.
type EachBatch<'a> = &'a mut dyn FnMut(&[u8], usize) -> Result<(), StoreError>;

impl Checkpoint {
    /// Reads the part of a tensor that an index means, as numpy does; [`safelight_format::parse_index`] makes indices
    /// of text.
    ///
    /// ```
    /// use safelight_format::parse_index;
    /// use safelight_store::Checkpoint;
    ///
    /// let json = br#"{"a":{"dtype":"U8","shape":[2,3],"data_offsets":[0,6]}}"#;
    /// let file = [&(json.len() as u64).to_le_bytes()[..], json, &[0, 1, 2, 3, 4, 5]].concat();
    /// let checkpoint = Checkpoint::from_bytes("buffer", file)?;
    ///
    /// let slice = checkpoint.read_slice("a", &parse_index("[:, ::-2]")?)?;
    /// assert_eq!((slice.shape, slice.elements), (vec![2, 2], vec![2, 0, 5, 3]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Slice`], and as [`Checkpoint::read_bytes`].
    pub fn read_slice(&self, name: &str, index: &[Index]) -> Result<SliceRead<u8>, StoreError> {
        let (file, tensor) = self.find(name)?;
        let plan = plan(file, &tensor, index)?;
        let mut elements: Vec<u8> = file.reserve(tensor.name, plan.byte_count())?;
        let read_bytes = read_batches(file, &tensor, &plan, &mut |bytes, _| {
            elements.extend_from_slice(bytes);
            Ok(())
        })?;
        let shape = plan.shape().to_vec();
        Ok(SliceRead {
            shape,
            elements,
            read_bytes,
        })
    }

    /// As [`Checkpoint::read_slice`], as `f32`s.
    ///
    /// # Errors
    /// As [`Checkpoint::read_slice`], and [`StoreError::Decode`] for complex numbers.
    pub fn read_slice_f32(
        &self,
        name: &str,
        index: &[Index],
    ) -> Result<SliceRead<f32>, StoreError> {
        let (file, tensor) = self.find(name)?;
        file.check_readable(&tensor)?;
        let plan = plan(file, &tensor, index)?;
        let mut elements: Vec<f32> = file.reserve(tensor.name, plan.element_count())?;
        let read_bytes = read_batches(file, &tensor, &plan, &mut |bytes, count| {
            let done = elements.len();
            elements.resize(done + count, 0.0);
            decode_f32_into(tensor.dtype, bytes, &mut elements[done..])
                .map_err(|error| file.undecodable(&tensor, error))
        })?;
        let shape = plan.shape().to_vec();
        Ok(SliceRead {
            shape,
            elements,
            read_bytes,
        })
    }

    /// As [`Checkpoint::read_slice`], a piece of some megabytes at a time, which are handed to `each` in order together with
    /// the number of their elements. Returns the shape. Memory does not grow with the slice.
    ///
    /// # Errors
    /// As [`Checkpoint::read_slice`], and what `each` returns.
    pub fn read_slice_in_pieces(
        &self,
        name: &str,
        index: &[Index],
        each: EachPiece<'_>,
    ) -> Result<Vec<u64>, StoreError> {
        let (file, tensor) = self.find(name)?;
        let plan = plan(file, &tensor, index)?;
        read_batches(file, &tensor, &plan, &mut |bytes, count| {
            each(tensor.dtype, bytes, count)
        })?;
        Ok(plan.shape().to_vec())
    }
}

fn plan(
    file: &ShardFile,
    tensor: &TensorInfo<'_>,
    index: &[Index],
) -> Result<SlicePlan, StoreError> {
    SlicePlan::new(tensor.dtype.bits(), tensor.shape, index).map_err(|error| {
        let (file, tensor) = (file.source.label.clone(), tensor.name.to_owned());
        StoreError::Slice {
            file,
            tensor,
            error,
        }
    })
}

/// Reads all batches of a slice and hands each on, with the number of its elements; returns the bytes read.
fn read_batches(
    file: &ShardFile,
    tensor: &TensorInfo<'_>,
    plan: &SlicePlan,
    each: EachBatch<'_>,
) -> Result<u64, StoreError> {
    let start = file.header.data_start() + tensor.data_offsets.0;
    let (mut out, mut scratch) = (Vec::new(), Vec::new());
    let mut read_bytes = 0;
    for batch in plan.batches(&SliceOptions::default()) {
        let bytes = batch.out_bytes();
        out.clear();
        out.resize((bytes.end - bytes.start) as usize, 0);
        match file.view(tensor) {
            Some(tensor) => gather(&batch, tensor, &mut out),
            None => read(file, start, &batch, &mut out, &mut scratch)?,
        }
        read_bytes += batch.read_bytes();
        each(&out, batch.element_count())?;
    }
    Ok(read_bytes)
}

/// Fills a batch from a tensor in memory.
fn gather(batch: &Batch, tensor: &[u8], out: &mut [u8]) {
    for read in batch.reads() {
        let source = &tensor[read.bytes.start as usize..read.bytes.end as usize];
        batch.scatter(read, source, out);
    }
}

/// Fills a batch from a file.
fn read(
    file: &ShardFile,
    start: u64,
    batch: &Batch,
    out: &mut [u8],
    scratch: &mut Vec<u8>,
) -> Result<(), StoreError> {
    let ranges = batch
        .reads()
        .iter()
        .map(|read| (start + read.bytes.start, start + read.bytes.end));
    file.source.will_read(&ranges.collect::<Vec<_>>());
    for read in batch.reads() {
        let offset = start + read.bytes.start;
        if let Some(range) = batch.direct(read) {
            file.source.read_exact_at(&mut out[range], offset)?;
            continue;
        }
        let len = (read.bytes.end - read.bytes.start) as usize;
        if scratch.len() < len {
            scratch.resize(len, 0);
        }
        file.source.read_exact_at(&mut scratch[..len], offset)?;
        batch.scatter(read, &scratch[..len], out);
    }
    Ok(())
}
