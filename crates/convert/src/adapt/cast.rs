//! A source whose floating-point tensors are rounded to another dtype on the way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use safelight_format::{CastReport as Counts, Dtype, TensorSpec, can_encode};

use super::pieces::{element_bytes, for_each_run};
use super::real::Real;
use crate::error::ConvertError;
use crate::source::{Contents, Source, refuse_opaque};

/// Elements that are decoded and encoded together: a multiple of eight, so that elements smaller than a byte fit.
const RUN_ELEMENTS: usize = 64 * 1024;

/// What a [`Cast`] does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CastOptions {
    /// The new dtype: F64, F32, F16, BF16 or a smaller float.
    pub dtype: Dtype,
    /// Tensors of one dimension or none (norms, biases) keep their dtype; usual where `dtype` has eight bits or fewer.
    pub keep_vectors: bool,
    /// Tensors whose names contain one of these keep their dtype.
    pub keep_names: Vec<String>,
}

impl CastOptions {
    /// To `dtype`; with eight bits or fewer, norms and biases stay.
    pub fn to(dtype: Dtype) -> CastOptions {
        CastOptions {
            dtype,
            keep_vectors: dtype.bits() <= 8,
            keep_names: vec![],
        }
    }

    fn wants(&self, tensor: &TensorSpec) -> bool {
        is_float(tensor.dtype)
            && tensor.dtype != self.dtype
            && element_bytes(tensor.dtype).is_some()
            && !(self.keep_vectors && tensor.shape.len() <= 1)
            && !self.keeps(&tensor.name)
    }

    fn keeps(&self, name: &str) -> bool {
        let mut parts = self.keep_names.iter();
        parts.any(|part| name.contains(part.as_str()))
    }
}

/// Numbers that a cast may round: not integers, truth values, complex numbers or bare exponents.
pub(crate) fn is_float(dtype: Dtype) -> bool {
    use Dtype::*;
    matches!(
        dtype,
        F64 | F32 | F16 | Bf16 | F8E4m3 | F8E5m2 | F8E4m3Fnuz | F8E5m2Fnuz
    )
}

/// What happened to one tensor's numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CastReport {
    /// Its name. Foreign text.
    pub name: String,
    /// What it was.
    pub from: Dtype,
    /// What it is.
    pub to: Dtype,
    /// Numbers that did not survive it; of a merge, overflows are finite numbers that became infinite.
    pub counts: Counts,
}

impl CastReport {
    /// Whether numbers were lost: overflows, underflows, infinities that became NaN. NaNs stay NaNs.
    pub fn is_lossy(&self) -> bool {
        let counts = &self.counts;
        let infinities = !matches!(
            self.to,
            Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F8E5m2
        );
        counts.overflow_count > 0
            || counts.underflow_count > 0
            || (infinities && counts.infinity_count > 0)
    }
}

/// Another source's tensors, its floats rounded to nearest (ties to even) in another dtype; the rest as they are.
///
/// Each number is rounded once, and the report is about the numbers that were there.
pub struct Cast {
    inner: Arc<dyn Source>,
    contents: Contents,
    reports: Reports,
}

/// What happened to tensors that have been read by now. Shared by the threads that read.
#[derive(Default)]
pub(crate) struct Reports(Mutex<BTreeMap<usize, CastReport>>);

impl Reports {
    pub(crate) fn put(&self, index: usize, report: CastReport) {
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reports.insert(index, report);
    }

    pub(crate) fn all(&self) -> Vec<CastReport> {
        let reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reports.values().cloned().collect()
    }
}

impl Cast {
    /// A cast of all floats in `inner` that `options` does not keep.
    ///
    /// # Errors
    /// [`ConvertError::Request`] if nothing can be cast to this dtype, or for tensors of unknown dtypes that are not kept by name.
    pub fn new(inner: Arc<dyn Source>, options: &CastOptions) -> Result<Cast, ConvertError> {
        if !can_encode(options.dtype) {
            let problem =
                "weights cannot be cast to this; choose F32, F16, BF16, F8_E4M3 or F8_E5M2".into();
            return Err(ConvertError::Request {
                at: options.dtype.name().into(),
                problem,
            });
        }
        let opaque = inner.opaque().iter();
        let opaque = opaque.filter(|tensor| !options.keeps(&tensor.name));
        let instead = "keep them as they are (--keep), or leave them out (--exclude)";
        refuse_opaque(inner.label(), opaque, "a cast", instead)?;
        let cast = |tensor: &TensorSpec| {
            let dtype = if options.wants(tensor) {
                options.dtype
            } else {
                tensor.dtype
            };
            let cast = TensorSpec {
                dtype,
                ..tensor.clone()
            };
            // An odd number of halves of bytes fills no byte: such a tensor stays.
            if cast.byte_count().is_some() {
                cast
            } else {
                tensor.clone()
            }
        };
        let tensors = inner.tensors().iter().map(cast).collect();
        let contents = Contents {
            tensors,
            ..inner.contents().clone()
        };
        Ok(Cast {
            inner,
            contents,
            reports: Reports::default(),
        })
    }

    /// What happened to the tensors that were cast and have been read by now, in the source's order.
    pub fn reports(&self) -> Vec<CastReport> {
        self.reports.all()
    }

    fn read_as<R: Real>(
        &self,
        index: usize,
        from_bytes: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let tensor = &self.inner.tensors()[index];
        let (from, to) = (tensor.dtype, self.tensors()[index].dtype);
        let mut counts = Counts::default();
        let mut values = Vec::new();
        let mut encoded = vec![0; RUN_ELEMENTS / 8 * to.bits() as usize];
        let wrong =
            |what: String| ConvertError::unsupported(self.inner.label(), &tensor.name, what);
        for_each_run(&*self.inner, index, from_bytes * 8, &mut |run| {
            for run in run.chunks(RUN_ELEMENTS * from_bytes) {
                let count = run.len() / from_bytes;
                values.resize(count, R::default());
                R::decode(from, run, &mut values).map_err(|error| wrong(error.to_string()))?;
                let bytes = (count as u64 * to.bits()).div_ceil(8) as usize;
                let report = R::encode(to, &values, &mut encoded[..bytes]);
                counts.add(&report.map_err(|error| wrong(error.to_string()))?);
                out(&encoded[..bytes])?;
            }
            Ok(())
        })?;
        let report = CastReport {
            name: tensor.name.clone(),
            from,
            to,
            counts,
        };
        self.reports.put(index, report);
        Ok(())
    }
}

impl Source for Cast {
    fn contents(&self) -> &Contents {
        &self.contents
    }

    fn check(&self, indices: &[usize]) -> Result<(), ConvertError> {
        self.inner.check(indices)
    }

    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let Some(tensor) = self.inner.tensors().get(index) else {
            return self.inner.read(index, out); // of an unknown dtype, kept
        };
        let (from, to) = (tensor.dtype, self.tensors()[index].dtype);
        let Some(from_bytes) = element_bytes(from).filter(|_| from != to) else {
            return self.inner.read(index, out);
        };
        match from {
            Dtype::F64 => self.read_as::<f64>(index, from_bytes, out),
            _ => self.read_as::<f32>(index, from_bytes, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Memory;

    fn cast(options: CastOptions, tensors: Vec<(&str, Dtype, Vec<u64>, Vec<u8>)>) -> Cast {
        Cast::new(Arc::new(Memory::new(tensors)), &options).unwrap()
    }

    fn read(source: &dyn Source, index: usize) -> Vec<u8> {
        super::super::arrange::read_whole(source, index, 1 << 20).unwrap()
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        safelight_format::encode_f32(values)
    }

    #[test]
    fn numbers_are_rounded_and_losses_counted() {
        let values = [1.0, -0.5, 1e-9, 1e6, f32::NAN];
        let source = cast(
            CastOptions::to(Dtype::F16),
            vec![("w", Dtype::F32, vec![5, 1], f32s(&values))],
        );
        assert_eq!(
            (source.tensors()[0].dtype, &source.tensors()[0].shape[..]),
            (Dtype::F16, &[5, 1][..])
        );
        assert_eq!(
            read(&source, 0),
            [0x00, 0x3c, 0x00, 0xb8, 0x00, 0x00, 0x00, 0x7c, 0x00, 0x7e]
        );
        let report = &source.reports()[0];
        let counts = report.counts;
        assert_eq!(
            (
                counts.overflow_count,
                counts.underflow_count,
                counts.nan_count
            ),
            (1, 1, 1)
        );
        assert!(report.is_lossy());
    }

    /// What is beyond F32 is beyond F16 as well, and no infinity of the source's.
    #[test]
    fn wide_numbers_are_rounded_once_and_counted_as_they_are() {
        let above_a_half = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        let values = [1e50, -1e-60, f64::INFINITY, above_a_half];
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        for (dtype, expected) in [
            (
                Dtype::F32,
                &[0, 0, 0x80, 0x7f, 0, 0, 0, 0x80, 0, 0, 0x80, 0x7f][..],
            ),
            (Dtype::F16, &[0, 0x7c, 0, 0x80, 0, 0x7c, 0x01, 0x3c][..]),
        ] {
            let wide = [("w", Dtype::F64, vec![4], bytes.clone())];
            let source = cast(CastOptions::to(dtype), wide.to_vec());
            assert_eq!(read(&source, 0)[..expected.len()], *expected, "{dtype}");
            let report = &source.reports()[0];
            let found = [
                report.counts.overflow_count,
                report.counts.underflow_count,
                report.counts.infinity_count,
            ];
            assert!(
                found == [1, 1, 1] && report.is_lossy(),
                "{dtype}: {found:?}"
            );
        }
    }

    #[test]
    fn integers_vectors_and_names_stay_as_they_are() {
        let options = CastOptions {
            keep_names: vec!["time_embed".into()],
            ..CastOptions::to(Dtype::F8E4m3)
        };
        let source = cast(
            options,
            vec![
                ("ids", Dtype::I64, vec![1, 1], vec![7, 0, 0, 0, 0, 0, 0, 0]),
                ("bias", Dtype::F32, vec![1], f32s(&[1.0])),
                ("time_embed.0", Dtype::F32, vec![1, 1], f32s(&[1.0])),
                (
                    "weight",
                    Dtype::Bf16,
                    vec![1, 2],
                    vec![0x80, 0x3f, 0x00, 0xc0],
                ),
            ],
        );
        let dtypes: Vec<Dtype> = source.tensors().iter().map(|tensor| tensor.dtype).collect();
        assert_eq!(dtypes, [Dtype::I64, Dtype::F32, Dtype::F32, Dtype::F8E4m3]);
        assert_eq!(read(&source, 0)[0], 7);
        assert_eq!(read(&source, 3), [0x38, 0xc0]);
        assert_eq!(source.reports().len(), 1);
    }

    #[test]
    fn pieces_of_any_size_give_the_same_numbers() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) / 7.0).collect();
        let whole = cast(
            CastOptions::to(Dtype::Bf16),
            vec![("w", Dtype::F32, vec![10, 100], f32s(&values))],
        );
        let expected = read(&whole, 0);
        for piece in [1, 3, 5, 33, 1001] {
            let memory =
                Memory::new(vec![("w", Dtype::F32, vec![10, 100], f32s(&values))]).in_pieces(piece);
            let source = Cast::new(Arc::new(memory), &CastOptions::to(Dtype::Bf16)).unwrap();
            assert_eq!(read(&source, 0), expected, "pieces of {piece}");
        }
    }

    #[test]
    fn what_weights_cannot_be_is_refused() {
        let refused = Cast::new(Arc::new(Memory::new(vec![])), &CastOptions::to(Dtype::I8));
        assert!(matches!(refused, Err(ConvertError::Request { .. })));
    }
}
