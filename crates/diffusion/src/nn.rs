//! What every network here is built with: leaves that will hold packed weights, and the builder that fills them.
//!
//! A network is described once, by the code that constructs it. Constructing reads nothing: each leaf is checked against
//! the names and shapes in the file, and everything missing or misshapen is listed at once. Only [`Builder::fill`] reads,
//! one bounded wave of tensors at a time, so that packing never needs a second copy of the model.
//! The arithmetic itself is `safelight_tensor`'s; which tensor of which file a name means is [`crate::load`]'s.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::prelude::*;
use safelight_format::{Dtype, decode_f32};
use safelight_tensor::{
    Conv2d, Fetch, Geglu, InMemory, Linear, Norm, Padding, Precision, Source, Tensor, Zeros,
};

use crate::load::{LoadError, Problem, not_finite};
use crate::precision::{self, Ways};

mod random;

pub use random::{HeavyTailedWeights, RandomWeights};

/// f32 bytes that one wave of [`Builder::fill`] may hold, if the weights can't be read piece by piece: a few of the largest SD 1.5
/// tensors.
const WAVE_BYTES: usize = 192 << 20;

/// Values that are looked at together.
const LOOKED_AT_ONCE: usize = 1 << 16;

/// Values of a weight below which it always stays: fetching it would save nothing.
const FETCHED_VALUES_MIN: usize = 1 << 18;

/// Where a network's weights come from.
///
/// Names are the modules' own, which are diffusers' (`down_blocks.0.resnets.0.conv1.weight`).
pub trait Weights: Send + Sync {
    /// Whether the tensor is there, holds floats, and has one of the `shapes`.
    fn check(&self, name: &str, shapes: &[Vec<usize>]) -> Result<(), Problem>;

    /// The tensor's `count` values.
    fn read(&self, name: &str, count: usize) -> Result<Vec<f32>, LoadError>;

    /// Shows the tensor's `count` values to `see`, which packs them, and may read them only then.
    ///
    /// # Errors
    /// If they can't be read or hold NaN or infinity; what was packed is of no use then.
    fn show(
        &self,
        name: &str,
        count: usize,
        see: &mut dyn FnMut(&dyn Source),
    ) -> Result<(), LoadError> {
        let values = read_finite(self, name, count)?;
        see(&InMemory(&values));
        Ok(())
    }

    /// The tensor as it is stored; as F32 where nothing else is said.
    fn read_stored(&self, name: &str, count: usize) -> Result<(Dtype, Vec<u8>), LoadError> {
        let values = self.read(name, count)?;
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok((Dtype::F32, bytes))
    }

    /// What the file calls the tensor; the same where nothing else is said.
    fn stored_name(&self, name: &str) -> String {
        name.to_owned()
    }

    /// The file, for messages.
    fn label(&self) -> String;
}

/// A weight that is described now and read later.
///
/// # Panics
/// On use before [`Builder::fill`] succeeded: constructors hand networks out only after that.
pub struct Leaf<T>(Arc<OnceLock<T>>);

impl<T> Leaf<T> {
    fn empty() -> (Leaf<T>, Arc<OnceLock<T>>) {
        let slot = Arc::new(OnceLock::new());
        (Leaf(slot.clone()), slot)
    }
}

impl<T> Deref for Leaf<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0
            .get()
            .expect("a network is used only after its weights were read")
    }
}

/// A fully connected layer as [`Builder`] makes it; sizes are (outputs, inputs).
trait Connected: Send + Sync + Sized + 'static {
    /// Rows of the weight for each output.
    const ROWS: usize;

    fn from_source(
        weight: &dyn Source,
        sizes: (usize, usize),
        bias: Option<&[f32]>,
        precision: Precision,
    ) -> Self;

    fn fetched(
        fetch: Fetch,
        sizes: (usize, usize),
        bias: Option<&[f32]>,
        precision: Precision,
    ) -> Self;
}

macro_rules! connected {
    ($layer:ty, $rows:literal) => {
        impl Connected for $layer {
            const ROWS: usize = $rows;

            fn from_source(
                weight: &dyn Source,
                (outputs, inputs): (usize, usize),
                bias: Option<&[f32]>,
                precision: Precision,
            ) -> Self {
                <$layer>::from_source(weight, outputs, inputs, bias, precision)
            }

            fn fetched(
                fetch: Fetch,
                (outputs, inputs): (usize, usize),
                bias: Option<&[f32]>,
                precision: Precision,
            ) -> Self {
                <$layer>::fetched(fetch, outputs, inputs, bias, precision)
            }
        }
    };
}

connected!(Linear, 1);
connected!(Geglu, 2);

/// An embedding table `[rows, width]`, kept in the file's own dtype: only the rows asked for are decoded.
pub struct Table {
    dtype: Dtype,
    bytes: Vec<u8>,
    width: usize,
}

impl Table {
    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.bytes.len() / self.row_bytes()
    }

    /// How many values a row has.
    pub fn width(&self) -> usize {
        self.width
    }

    /// One row, decoded.
    ///
    /// # Panics
    /// If `row >= self.rows()`.
    pub fn row(&self, row: usize) -> Vec<f32> {
        let bytes = self.row_bytes();
        decode_f32(self.dtype, &self.bytes[row * bytes..][..bytes])
            .expect("`check` let only float dtypes in")
    }

    fn row_bytes(&self) -> usize {
        self.width * self.dtype.bits() as usize / 8
    }
}

/// Fills a leaf; given a lender, with a layer that fetches its weight from there.
type Fill = Box<dyn FnOnce(&dyn Weights, Option<&Arc<Lender>>) -> Result<(), LoadError> + Send>;

/// One leaf to fill.
struct Job {
    /// Values it is made of.
    count: usize,
    /// What a layer takes that can be fetched instead.
    packed_bytes: Option<usize>,
    fill: Fill,
}

/// Where weights that don't stay in memory are read from, again for every use.
struct Lender {
    weights: Arc<dyn Weights>,
    failure: Mutex<Option<LoadError>>,
}

impl Lender {
    fn fetch(self: &Arc<Self>, name: String, count: usize) -> Fetch {
        let lender = self.clone();
        Box::new(move |see| {
            if let Err(error) = lender.weights.show(&name, count, see) {
                see(&Zeros(count));
                locked(&lender.failure).get_or_insert(error);
            }
        })
    }
}

/// What a network with fetched weights could not read while it ran.
pub struct Failures(Arc<Lender>);

impl Failures {
    /// The first failure since the last call. Layers count as zeros since then: what came out means nothing.
    pub fn take(&self) -> Option<LoadError> {
        locked(&self.0.failure).take()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Describes a network's leaves, then fills them.
pub struct Builder<'w> {
    weights: &'w dyn Weights,
    /// Weights that are fetched, and how many bytes of packed ones may stay.
    lender: Option<(Arc<Lender>, usize)>,
    jobs: Vec<Job>,
    /// Every tensor and how many values it has.
    tensors: Vec<(String, usize)>,
    problems: Vec<Problem>,
    parameter_count: u64,
    ways: Ways,
    /// Pixels of the maps that convolutions to come usually see.
    map_pixels: usize,
    /// Beginnings of names of layers that are finer.
    at_least: Vec<(String, Precision)>,
}

impl<'w> Builder<'w> {
    /// A builder that will read from `weights`, for products in `f32`.
    pub fn new(weights: &'w dyn Weights) -> Builder<'w> {
        Builder::with_ways(weights, Precision::F32)
    }

    /// The same for products in another precision, or finer where [`precision::of_layer`] says so, and other ways.
    pub fn with_ways(weights: &'w dyn Weights, ways: impl Into<Ways>) -> Builder<'w> {
        Builder {
            weights,
            ways: ways.into(),
            map_pixels: 0,
            at_least: Vec::new(),
            lender: None,
            jobs: Vec::new(),
            tensors: Vec::new(),
            problems: Vec::new(),
            parameter_count: 0,
        }
    }

    /// The same for a network that keeps about `resident_bytes` of packed weights, the largest, and fetches all others
    /// whenever it uses them. What can't be read then is told by the [`Failures`].
    pub fn fetching(
        weights: &'w Arc<dyn Weights>,
        ways: impl Into<Ways>,
        resident_bytes: usize,
    ) -> (Builder<'w>, Failures) {
        let lender = Arc::new(Lender {
            weights: weights.clone(),
            failure: Mutex::default(),
        });
        let builder = Builder {
            lender: Some((lender.clone(), resident_bytes)),
            ..Builder::with_ways(&**weights, ways)
        };
        (builder, Failures(lender))
    }

    /// Says how large the maps of the convolutions to come usually are, `side` × `side` pixels: the fastest way to compute
    /// them depends on it. Any other size works as well.
    pub fn maps_of(&mut self, side: usize) {
        self.map_pixels = side * side;
    }

    /// Keeps layers to come whose names begin so at least as fine as said.
    pub fn at_least(&mut self, beginning: &str, precision: Precision) {
        self.at_least.push((beginning.to_string(), precision));
    }

    /// What the products of layer `name` are to be computed in.
    fn precision_of(&self, name: &str) -> Precision {
        let rules = self.at_least.iter();
        let rules = rules.filter(|(beginning, _)| name.starts_with(beginning));
        let asked = precision::of_layer(name, self.ways.precision);
        rules.fold(asked, |precision, (_, least)| precision.max(*least))
    }

    /// `y = x · Wᵀ + b`, also where the file stores it as a 1×1 convolution `[outputs, inputs, 1, 1]`.
    pub fn linear(
        &mut self,
        name: &str,
        outputs: usize,
        inputs: usize,
        bias: bool,
    ) -> Leaf<Linear> {
        self.connected(name, (outputs, inputs), bias)
    }

    /// `y = (x·Vᵀ + b)·gelu(x·Gᵀ + c)`, stored as one layer of `2 · outputs`, V and b first.
    pub fn geglu(&mut self, name: &str, outputs: usize, inputs: usize) -> Leaf<Geglu> {
        self.connected(name, (outputs, inputs), true)
    }

    /// A fully connected layer of either kind.
    fn connected<T: Connected>(
        &mut self,
        name: &str,
        (outputs, inputs): (usize, usize),
        bias: bool,
    ) -> Leaf<T> {
        let (precision, rows) = (self.precision_of(name), T::ROWS * outputs);
        let (weight, bias) = (
            format!("{name}.weight"),
            bias.then(|| format!("{name}.bias")),
        );
        self.expect(
            &weight,
            &[
                vec![rows, inputs],
                vec![rows, inputs, 1, 1],
                vec![rows, inputs, 1],
            ],
        );
        self.expect_bias(bias.as_deref(), rows);
        let (leaf, slot) = Leaf::empty();
        let (count, packed) = (rows * inputs, precision.for_layer(inputs, outputs));
        self.job(count, Some(packed), move |weights, lender| {
            let bias = Bias::read(weights, bias.as_deref(), rows);
            let (sizes, given) = ((outputs, inputs), bias.values());
            if let Some(lender) = lender {
                let fetch = lender.fetch(weight, count);
                let _ = slot.set(T::fetched(fetch, sizes, given, precision));
                return bias.finish();
            }
            weights.show(&weight, count, &mut |source| {
                let _ = slot.set(T::from_source(source, sizes, given, precision));
            })?;
            bias.finish()
        });
        leaf
    }

    /// A square convolution with weight `[outputs, inputs, kernel, kernel]` and, unless it has none, a bias.
    pub fn conv(&mut self, name: &str, shape: ConvShape) -> Leaf<Conv2d> {
        let ConvShape {
            outputs,
            inputs,
            kernel,
            stride,
            padding,
            bias,
        } = shape;
        let precision = self.precision_of(name);
        let (weight, bias) = (
            format!("{name}.weight"),
            bias.then(|| format!("{name}.bias")),
        );
        let pixels = if self.ways.lean { 0 } else { self.map_pixels };
        let dims = [outputs, inputs, kernel, kernel];
        let count: usize = dims.iter().product();
        self.expect(&weight, &[dims.to_vec()]);
        self.expect_bias(bias.as_deref(), outputs);
        let (leaf, slot) = Leaf::empty();
        let packed = precision.for_layer(inputs, outputs);
        self.job(count, Some(packed), move |weights, lender| {
            let bias = Bias::read(weights, bias.as_deref(), outputs);
            let (given, way) = (bias.values(), (precision, pixels));
            if let Some(lender) = lender {
                let fetch = lender.fetch(weight, count);
                let _ = slot.set(Conv2d::fetched(fetch, dims, given, stride, padding, way));
                return bias.finish();
            }
            weights.show(&weight, count, &mut |source| {
                let _ = slot.set(Conv2d::from_source(
                    source, dims, given, stride, padding, way,
                ));
            })?;
            bias.finish()
        });
        leaf
    }

    /// The scale and shift of a group or layer norm over `channels`.
    pub fn norm(&mut self, name: &str, channels: usize, eps: f32) -> Leaf<Norm> {
        let (gamma, beta) = (format!("{name}.weight"), format!("{name}.bias"));
        self.expect(&gamma, &[vec![channels]]);
        self.expect(&beta, &[vec![channels]]);
        let (leaf, slot) = Leaf::empty();
        self.job(channels, None, move |weights, _| {
            let gamma = read_finite(weights, &gamma, channels)?;
            let beta = read_finite(weights, &beta, channels)?;
            let _ = slot.set(Norm { gamma, beta, eps });
            Ok(())
        });
        leaf
    }

    /// An embedding table `[rows, width]`.
    pub fn table(&mut self, name: &str, rows: usize, width: usize) -> Leaf<Table> {
        let name = format!("{name}.weight");
        self.expect(&name, &[vec![rows, width]]);
        let (leaf, slot) = Leaf::empty();
        self.job(rows * width, None, move |weights, _| {
            let (dtype, bytes) = weights.read_stored(&name, rows * width)?;
            let table = Table {
                dtype,
                bytes,
                width,
            };
            let bad = (0..rows).map(|row| not_finite(&table.row(row))).sum();
            finite_of(weights, &name, rows * width, bad)?;
            let _ = slot.set(table);
            Ok(())
        });
        leaf
    }

    /// Notes something the file cannot be used with.
    pub fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// What was found wrong so far: every missing and misshapen tensor.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How many numbers the network is made of.
    pub fn parameter_count(&self) -> u64 {
        self.parameter_count
    }

    /// Reads and packs every leaf, in waves of at most `WAVE_BYTES` (or one tensor) of values.
    ///
    /// # Errors
    /// If anything was missing or misshapen (nothing is read then), if reading fails, and, all at once, for tensors that
    /// hold NaN or infinity.
    pub fn fill(self) -> Result<(), LoadError> {
        if !self.problems.is_empty() {
            return Err(LoadError::Weights {
                label: self.weights.label(),
                problems: self.problems,
            });
        }
        let (weights, fetched) = (self.weights, self.fetched());
        let lender = self.lender.map(|(lender, _)| lender);
        let mut not_finite = Vec::new();
        let mut jobs = self.jobs.into_iter().zip(fetched).peekable();
        while jobs.peek().is_some() {
            let (mut wave, mut wave_bytes) = (Vec::new(), 0);
            let fits = |wave_bytes: usize, (job, fetched): &(Job, bool)| {
                *fetched || wave_bytes == 0 || wave_bytes + job.read_bytes() <= WAVE_BYTES
            };
            while let Some((job, fetched)) = jobs.next_if(|next| fits(wave_bytes, next)) {
                wave_bytes += if fetched { 0 } else { job.read_bytes() };
                wave.push((job.fill, lender.as_ref().filter(|_| fetched)));
            }
            let fill = |(fill, lender): (Fill, Option<&Arc<Lender>>)| fill(weights, lender);
            let results: Vec<_> = wave.into_par_iter().map(fill).collect();
            for result in results {
                match result {
                    Err(LoadError::Weights { problems, .. }) => not_finite.extend(problems),
                    other => other?,
                }
            }
        }
        finite(weights, not_finite)
    }

    /// Reads every tensor, keeps none, and tells which hold NaN or infinity.
    ///
    /// # Errors
    /// As [`Builder::fill`].
    pub fn check_values(&self) -> Result<(), LoadError> {
        let weights = self.weights;
        let check =
            |(name, count): &(String, usize)| weights.show(name, *count, &mut look_at).err();
        let mut not_finite = Vec::new();
        for error in self
            .tensors
            .par_iter()
            .filter_map(check)
            .collect::<Vec<_>>()
        {
            match error {
                LoadError::Weights { problems, .. } => not_finite.extend(problems),
                other => return Err(other),
            }
        }
        finite(weights, not_finite)
    }

    /// Which jobs leave their weight where it is: the smaller ones that are worth it, so that the rest fits.
    fn fetched(&self) -> Vec<bool> {
        let mut fetched = vec![false; self.jobs.len()];
        let Some((_, resident_bytes)) = self.lender else {
            return fetched;
        };
        let bytes = |idx: &usize| self.jobs[*idx].packed_bytes.unwrap_or(0);
        let mut by_size: Vec<usize> = (0..self.jobs.len()).collect();
        by_size.sort_by_key(|idx| std::cmp::Reverse(bytes(idx)));
        let mut left_bytes = resident_bytes;
        for idx in by_size {
            let fits = bytes(&idx) <= left_bytes;
            fetched[idx] = !fits && self.jobs[idx].count >= FETCHED_VALUES_MIN;
            if !fetched[idx] {
                left_bytes = left_bytes.saturating_sub(bytes(&idx));
            }
        }
        fetched
    }

    fn expect(&mut self, name: &str, shapes: &[Vec<usize>]) {
        self.parameter_count += shapes[0].iter().map(|&dim| dim as u64).product::<u64>();
        if let Err(problem) = self.weights.check(name, shapes) {
            self.problems.push(problem);
        }
        let count = shapes[0].iter().product();
        self.tensors.push((name.to_owned(), count));
    }

    fn expect_bias(&mut self, name: Option<&str>, outputs: usize) {
        if let Some(name) = name {
            self.expect(name, &[vec![outputs]]);
        }
    }

    /// `packed`: what a layer's weight is packed in, if there is one that could be fetched instead.
    fn job(
        &mut self,
        count: usize,
        packed: Option<Precision>,
        fill: impl FnOnce(&dyn Weights, Option<&Arc<Lender>>) -> Result<(), LoadError> + Send + 'static,
    ) {
        let bytes = |precision| match precision {
            Precision::F32 => 4 * count,
            Precision::Bf16 => 2 * count,
            Precision::Int8 => count + count / 16,
        };
        self.jobs.push(Job {
            count,
            packed_bytes: packed.map(bytes),
            fill: Box::new(fill),
        });
    }
}

impl Job {
    /// What its values take before they are packed.
    fn read_bytes(&self) -> usize {
        self.count.saturating_mul(size_of::<f32>())
    }
}

/// What a convolution is, beside its name.
#[derive(Clone, Copy, Debug)]
pub struct ConvShape {
    /// Output channels.
    pub outputs: usize,
    /// Input channels.
    pub inputs: usize,
    /// Kernel height and width.
    pub kernel: usize,
    /// Step between output pixels.
    pub stride: usize,
    /// Zeros around the picture.
    pub padding: Padding,
    /// Whether there is a bias.
    pub bias: bool,
}

impl ConvShape {
    /// A 3×3 convolution that keeps height and width.
    pub fn same(outputs: usize, inputs: usize) -> ConvShape {
        ConvShape {
            outputs,
            inputs,
            kernel: 3,
            stride: 1,
            padding: Padding {
                top: 1,
                left: 1,
                bottom: 1,
                right: 1,
            },
            bias: true,
        }
    }

    /// The same convolution, at every second pixel.
    pub fn halving(self) -> ConvShape {
        ConvShape { stride: 2, ..self }
    }

    /// The same convolution without a bias.
    pub fn unbiased(self) -> ConvShape {
        ConvShape {
            bias: false,
            ..self
        }
    }

    /// The same convolution with other padding.
    pub fn padded(self, padding: Padding) -> ConvShape {
        ConvShape { padding, ..self }
    }
}

/// A layer's bias, if it has one: read before the weight, which is packed with it, but what is wrong with the weight is told
/// first.
struct Bias(Result<Option<Vec<f32>>, LoadError>);

impl Bias {
    fn read(weights: &dyn Weights, name: Option<&str>, count: usize) -> Bias {
        let bias = name.map(|name| read_finite(weights, name, count));
        Bias(bias.transpose())
    }

    fn values(&self) -> Option<&[f32]> {
        self.0.as_ref().ok()?.as_deref()
    }

    fn finish(self) -> Result<(), LoadError> {
        self.0.map(drop)
    }
}

fn read_finite<W: Weights + ?Sized>(
    weights: &W,
    name: &str,
    count: usize,
) -> Result<Vec<f32>, LoadError> {
    let values = weights.read(name, count)?;
    assert_eq!(values.len(), count, "`check` compared the shape of {name}");
    finite_of(weights, name, count, not_finite(&values))?;
    Ok(values)
}

/// Reads all values and keeps none.
fn look_at(source: &dyn Source) {
    let pieces = (0..source.count()).into_par_iter().step_by(LOOKED_AT_ONCE);
    pieces.for_each_init(Default::default, |(room, values), first| {
        let count = LOOKED_AT_ONCE.min(source.count() - first);
        let values: &mut Vec<f32> = values;
        values.resize(count, 0.0);
        source.show(first, count, room, &mut |piece| piece.decode(0, values));
    });
}

/// An error that lists what is `not_finite`, if anything is.
fn finite(weights: &dyn Weights, not_finite: Vec<Problem>) -> Result<(), LoadError> {
    if not_finite.is_empty() {
        return Ok(());
    }
    Err(LoadError::Weights {
        label: weights.label(),
        problems: not_finite,
    })
}

/// An error if `bad` of a tensor's `of` values are NaN or infinite.
pub(crate) fn finite_of<W: Weights + ?Sized>(
    weights: &W,
    name: &str,
    of: usize,
    bad: usize,
) -> Result<(), LoadError> {
    if bad == 0 {
        return Ok(());
    }
    let tensor = weights.stored_name(name);
    Err(LoadError::Weights {
        label: weights.label(),
        problems: vec![Problem::NotFinite { tensor, bad, of }],
    })
}

/// Sees the tensors between blocks: tests compare them, a benchmark reads the clock.
pub struct Trace<'a>(Option<&'a mut See<'a>>);

/// What is called with a block's name and output.
type See<'a> = dyn FnMut(&str, &Tensor) + 'a;

impl<'a> Trace<'a> {
    /// Sees nothing and costs nothing.
    pub fn off() -> Trace<'a> {
        Trace(None)
    }

    /// Calls `see(name, output)` after each block, in the order of computation.
    pub fn to(see: &'a mut See<'a>) -> Trace<'a> {
        Trace(Some(see))
    }

    pub(crate) fn see(&mut self, name: fmt::Arguments<'_>, tensor: &Tensor) {
        if let Some(see) = &mut self.0 {
            see(&name.to_string(), tensor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One value everywhere; `broken` is absent.
    struct Constant {
        value: f32,
        broken: &'static str,
    }

    impl Weights for Constant {
        fn check(&self, name: &str, _shapes: &[Vec<usize>]) -> Result<(), Problem> {
            let tensor = self.stored_name(name);
            if name == self.broken {
                Err(Problem::Missing { tensor })
            } else {
                Ok(())
            }
        }

        fn read(&self, _name: &str, count: usize) -> Result<Vec<f32>, LoadError> {
            Ok(vec![self.value; count])
        }

        fn read_stored(&self, _name: &str, count: usize) -> Result<(Dtype, Vec<u8>), LoadError> {
            // 1.5 in binary16.
            Ok((Dtype::F16, 0x3E00_u16.to_le_bytes().repeat(count)))
        }

        fn stored_name(&self, name: &str) -> String {
            format!("file.{name}")
        }

        fn label(&self) -> String {
            "constant".into()
        }
    }

    fn problems(weights: &Constant) -> Vec<Problem> {
        let mut builder = Builder::new(weights);
        let _linear = builder.linear("a", 3, 2, true);
        let _norm = builder.norm("b", 4, 1e-5);
        assert_eq!(builder.parameter_count(), 3 * 2 + 3 + 2 * 4);
        match builder.fill() {
            Err(LoadError::Weights { problems, .. }) => problems,
            Err(other) => panic!("{other}"),
            Ok(()) => Vec::new(),
        }
    }

    #[test]
    fn what_is_missing_is_said_before_anything_is_read() {
        let expected = [Problem::Missing {
            tensor: "file.b.bias".into(),
        }];
        assert_eq!(
            problems(&Constant {
                value: f32::NAN,
                broken: "b.bias"
            }),
            expected
        );
        assert_eq!(
            problems(&Constant {
                value: 1.0,
                broken: ""
            }),
            []
        );
    }

    #[test]
    fn nan_and_both_infinities_are_found() {
        for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            // One for each layer: its first tensor that is broken.
            let found = problems(&Constant { value, broken: "" });
            let expected = |name: &str, of| Problem::NotFinite {
                tensor: format!("file.{name}"),
                bad: of,
                of,
            };
            assert_eq!(found, [expected("a.weight", 6), expected("b.weight", 4)]);
        }
        assert_eq!(
            problems(&Constant {
                value: f32::MAX,
                broken: ""
            }),
            []
        );
    }

    #[test]
    fn a_table_decodes_its_rows() {
        let weights = Constant {
            value: 0.0,
            broken: "",
        };
        let mut builder = Builder::new(&weights);
        let table = builder.table("t", 5, 3);
        builder.fill().unwrap();
        assert_eq!(
            (table.rows(), table.width(), table.row(4)),
            (5, 3, vec![1.5; 3])
        );
    }

    #[test]
    fn layers_are_as_fine_as_asked_and_as_the_rules_say() {
        let weights = Constant {
            value: 1.0,
            broken: "",
        };
        let mut builder = Builder::with_ways(&weights, Precision::Int8);
        builder.at_least("last.", Precision::Bf16);
        let names = [
            "first.conv1",
            "last.conv1",
            "time_embedding.linear_1",
            "small",
        ];
        let layers = names.map(|name| {
            let inputs = if name == "small" { 8 } else { 64 };
            builder.linear(name, 64, inputs, true)
        });
        builder.fill().unwrap();
        let expected = [
            Precision::Int8,
            Precision::Bf16,
            Precision::F32,
            Precision::F32,
        ];
        assert_eq!(layers.map(|layer| layer.precision()), expected);
    }
}
