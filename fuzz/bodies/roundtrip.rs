//! Any tensors: written and read back they are the same; what cannot be written is refused.

use safelight_format::Strictness;
use safelight_format::{Dtype, HeaderPlan, Metadata, Order, TensorView, WriteError, decode_f32};
use safelight_store::{Checkpoint, OpenOptions};

/// A tensor as the input describes it.
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

/// The input is a recipe: tensors and metadata, see [`Recipe`].
pub(crate) fn run(input: &[u8]) {
    let mut recipe = Recipe(input);
    let order = [Order::HuggingFace, Order::Insertion, Order::Name][usize::from(recipe.byte() % 3)];
    let metadata = match recipe.byte() % 4 {
        0 => None,
        count => Some(
            (1..count)
                .map(|_| (recipe.text(), recipe.text()))
                .collect::<Metadata>(),
        ),
    };
    let mut owned = Vec::new();
    while !recipe.0.is_empty() && owned.len() < 64 {
        owned.push(recipe.tensor());
    }
    let views = owned.iter().map(|tensor| TensorView {
        name: &tensor.name,
        dtype: tensor.dtype,
        shape: &tensor.shape,
        bytes: &tensor.bytes,
    });
    let tensors: Vec<TensorView<'_>> = views.collect();
    match HeaderPlan::new(&tensors, metadata.as_ref(), order) {
        Ok(plan) => same_when_read(plan, &tensors, metadata.as_ref()),
        Err(error) => refused_for_a_reason(&error, &tensors),
    }
}

fn same_when_read(plan: HeaderPlan, tensors: &[TensorView<'_>], metadata: Option<&Metadata>) {
    let file = plan.to_bytes(tensors);
    assert_eq!(file.len() as u64, plan.file_bytes());
    let options = OpenOptions {
        strictness: Strictness::Spec,
        ..OpenOptions::default()
    };
    let checkpoint = Checkpoint::from_bytes_with("fuzz", file, &options)
        .expect("what we write is strictly right");
    assert_eq!(
        (checkpoint.len(), checkpoint.metadata()),
        (tensors.len(), metadata)
    );
    for tensor in tensors {
        assert_eq!(
            checkpoint.view(tensor.name).expect("it was written"),
            *tensor
        );
        assert_eq!(
            checkpoint.read_bytes(tensor.name).expect("it was written"),
            tensor.bytes
        );
        match (
            checkpoint.read_f32(tensor.name),
            decode_f32(tensor.dtype, tensor.bytes),
        ) {
            (Ok(read), Ok(decoded)) => {
                assert_eq!(read.len() as u64, tensor.shape.iter().product::<u64>());
                assert!(
                    read.iter()
                        .zip(&decoded)
                        .all(|(a, b)| a.to_bits() == b.to_bits())
                );
            }
            (Err(_), Err(_)) => {}
            (read, decoded) => panic!("{} {read:?} {decoded:?}", tensor.dtype),
        }
    }
}

/// The writer's complaint must be true.
fn refused_for_a_reason(error: &WriteError, tensors: &[TensorView<'_>]) {
    let count = |name: &str| tensors.iter().filter(|tensor| tensor.name == name).count();
    match error {
        WriteError::DuplicateName { tensor } => assert!(count(tensor) > 1),
        WriteError::ReservedName => assert!(count("__metadata__") > 0),
        WriteError::WrongLength {
            tensor,
            expected_bits,
            byte_count,
            ..
        } => {
            assert!(count(tensor) > 0 && *expected_bits != byte_count.checked_mul(8));
        }
        other => panic!("{other}"),
    }
}

/// Bytes taken from the front; zeros when there are none left.
struct Recipe<'a>(&'a [u8]);

impl Recipe<'_> {
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn take(&mut self, len: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn text(&mut self) -> String {
        let len = usize::from(self.byte() % 16);
        String::from_utf8_lossy(self.take(len)).into_owned()
    }

    /// A name, a dtype, up to three small dimensions, and mostly as many bytes as they need.
    fn tensor(&mut self) -> Tensor {
        let name = self.text();
        let dtype = Dtype::ALL[usize::from(self.byte()) % Dtype::ALL.len()];
        let rank = self.byte() % 4;
        let mut shape: Vec<u64> = (0..rank).map(|_| u64::from(self.byte() % 9)).collect();
        let twist = self.byte();
        if twist == 0xff {
            shape.push(u64::MAX >> (self.byte() % 64));
        }
        let bits = shape
            .iter()
            .fold(dtype.bits(), |bits, &dim| bits.wrapping_mul(dim));
        let len = (bits / 8).min(4096) as usize + usize::from(twist == 0xfe);
        let mut bytes = self.take(len).to_vec();
        bytes.resize(len, 0x5a);
        Tensor {
            name,
            dtype,
            shape,
            bytes,
        }
    }
}
