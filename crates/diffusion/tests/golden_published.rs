//! Slices that diffusers' own test suite asserts, reproduced from the random stream alone: numbers nobody here made.
//!
//! Source: diffusers' `tests/models/test_layers_utils.py` and `tests/models/unets/test_unet_2d_blocks.py`. Inputs are drawn
//! first, then the parameters in the order torch constructs them: every linear and convolution its weight, then its bias,
//! uniform in ±1/√fan_in; norms are ones and zeros. `tools/golden/blocks.py` checks the same slices against diffusers.

mod common;

use std::collections::BTreeMap;
use std::sync::Mutex;

use common::torch_order;
use safelight_diffusion::load::{LoadError, Problem};
use safelight_diffusion::nn::{Builder, ConvShape, Weights};
use safelight_diffusion::noise::TorchRng;
use safelight_diffusion::unet::{ResnetBlock, ResnetShape, Transformer, TransformerShape};
use safelight_format::Dtype;
use safelight_tensor::{Epilogue, Padding, Tensor, ops};

/// torch's default initialisation, drawn layer by layer in the order given, kept by name.
struct Drawn(Mutex<BTreeMap<String, Vec<f32>>>);

impl Drawn {
    /// `layers`: name, outputs, inputs times kernel size, whether there is a bias.
    fn from(rng: &mut TorchRng, layers: &[(impl AsRef<str>, usize, usize, bool)]) -> Drawn {
        let mut tensors = BTreeMap::new();
        for (name, outputs, fan_in, bias) in layers {
            let (name, outputs, fan_in) = (name.as_ref(), *outputs, *fan_in);
            let bound = 1.0 / (fan_in as f64).sqrt();
            let mut draw = |count| {
                (0..count)
                    .map(|_| ((2.0 * f64::from(rng.uniform()) - 1.0) * bound) as f32)
                    .collect()
            };
            tensors.insert(format!("block.{name}.weight"), draw(outputs * fan_in));
            if *bias {
                tensors.insert(format!("block.{name}.bias"), draw(outputs));
            }
        }
        Drawn(Mutex::new(tensors))
    }
}

impl Weights for Drawn {
    fn check(&self, _name: &str, _shapes: &[Vec<usize>]) -> Result<(), Problem> {
        Ok(())
    }

    /// Each tensor once; norms were not drawn.
    fn read(&self, name: &str, count: usize) -> Result<Vec<f32>, LoadError> {
        let is_norm = name.contains("norm");
        let value = if name.ends_with(".weight") { 1.0 } else { 0.0 };
        let values = if is_norm {
            vec![value; count]
        } else {
            self.0.lock().unwrap().remove(name).expect(name)
        };
        assert_eq!(values.len(), count, "{name}");
        Ok(values)
    }

    fn read_stored(&self, name: &str, _count: usize) -> Result<(Dtype, Vec<u8>), LoadError> {
        unreachable!("no block has a table: {name}")
    }

    fn label(&self) -> String {
        "drawn".to_owned()
    }
}

fn build<T>(drawn: &Drawn, make: impl FnOnce(&mut Builder<'_>) -> T) -> T {
    let mut builder = Builder::new(drawn);
    let made = make(&mut builder);
    builder.fill().unwrap();
    assert!(
        drawn.0.lock().unwrap().is_empty(),
        "a drawn tensor was not used"
    );
    made
}

fn draw(rng: &mut TorchRng, shape: &[usize]) -> Tensor {
    let mut values = vec![0.0; shape.iter().product()];
    rng.randn(&mut values);
    match *shape {
        [b, c, h, w] => Tensor::from_nchw(&[b, c, h, w], &values),
        _ => Tensor::from_slice(shape, &values),
    }
}

/// Compares the lower right 3×3 of the first picture's last channel; the published digits are four.
fn check(found: &Tensor, expected: [f32; 9]) {
    let (c, h, w) = (found.dim(3), found.dim(1), found.dim(2));
    let values = torch_order(found);
    for (idx, expected) in expected.into_iter().enumerate() {
        let (y, x) = (h - 3 + idx / 3, w - 3 + idx % 3);
        let found = values[((c - 1) * h + y) * w + x];
        assert!(
            (found - expected).abs() < 1e-4,
            "value {idx}: {found}, published {expected}"
        );
    }
}

/// The layers of a residual block of 32 channels in torch's order.
fn resnet_layers(name: &str, temb: bool) -> Vec<(String, usize, usize, bool)> {
    let mut layers = vec![(format!("{name}conv1"), 32, 32 * 9, true)];
    if temb {
        layers.push((format!("{name}time_emb_proj"), 32, 128, true));
    }
    layers.push((format!("{name}conv2"), 32, 32 * 9, true));
    layers
}

fn resnet_shape(temb: bool) -> ResnetShape {
    ResnetShape {
        inputs: 32,
        outputs: 32,
        time_embedding: temb.then_some(128),
        norm_num_groups: 32,
        norm_eps: 1e-6,
    }
}

#[test]
fn upsample() {
    let mut rng = TorchRng::seeded(0);
    let x = draw(&mut rng, &[1, 32, 32, 32]);
    let drawn = Drawn::from(&mut rng, &[("conv", 32, 288, true)]);
    let conv = build(&drawn, |builder| {
        builder.conv("block.conv", ConvShape::same(32, 32))
    });
    let found = ops::conv2d_upsampled(&x, &conv, 64, 64);
    check(
        &found,
        [
            0.7145, 1.3773, 0.3492, 0.8448, 1.0839, -0.3341, 0.5956, 0.1250, -0.4841,
        ],
    );
}

#[test]
fn downsample() {
    let mut rng = TorchRng::seeded(0);
    let x = draw(&mut rng, &[1, 32, 64, 64]);
    let drawn = Drawn::from(&mut rng, &[("conv", 32, 288, true)]);
    let conv = build(&drawn, |builder| {
        builder.conv("block.conv", ConvShape::same(32, 32).halving())
    });
    let found = ops::conv2d(&x, &conv, Epilogue::default());
    check(
        &found,
        [
            0.9267, 0.5878, 0.3337, 1.2321, -0.1191, -0.3984, -0.7532, -0.0715, -0.3913,
        ],
    );
}

#[test]
fn residual_block() {
    let mut rng = TorchRng::seeded(0);
    let (x, temb) = (draw(&mut rng, &[1, 32, 64, 64]), draw(&mut rng, &[1, 128]));
    let layers = resnet_layers("", true);
    let drawn = Drawn::from(&mut rng, &layers);
    let block = build(&drawn, |builder| {
        ResnetBlock::new(builder, "block", resnet_shape(true))
    });
    let found = block.forward(&x, Some(&ops::silu(&temb)));
    check(
        &found,
        [
            -1.9010, -0.2974, -0.8245, -1.3533, 0.8742, -0.9645, -2.0584, 1.3387, -0.4746,
        ],
    );
}

#[test]
fn transformer() {
    let mut rng = TorchRng::seeded(0);
    let x = draw(&mut rng, &[1, 64, 64, 64]);
    let names = ["to_q", "to_k", "to_v", "to_out.0"];
    let attention = |which: &str| names.map(|name| format!("transformer_blocks.0.{which}.{name}"));
    let (attn1, attn2) = (attention("attn1"), attention("attn2"));
    let mut layers = vec![("proj_in", 64, 64, true)];
    layers.extend(
        attn1
            .iter()
            .map(|name| (name.as_str(), 64, 64, name.ends_with(".0"))),
    );
    layers.extend(
        attn2
            .iter()
            .map(|name| (name.as_str(), 64, 64, name.ends_with(".0"))),
    );
    layers.push(("transformer_blocks.0.ff.net.0.proj", 512, 64, true));
    layers.push(("transformer_blocks.0.ff.net.2", 64, 256, true));
    layers.push(("proj_out", 64, 64, true));
    let drawn = Drawn::from(&mut rng, &layers);
    let context = draw(&mut rng, &[1, 4, 64]);
    let shape = TransformerShape {
        channels: 64,
        depth: 1,
        heads: 2,
        context: 64,
        norm_num_groups: 32,
    };
    let block = build(&drawn, |builder| Transformer::new(builder, "block", shape));
    let found = block.forward(&x, &block.text(&context));
    check(
        &found,
        [
            0.0143, -0.6909, -2.1547, -1.8893, 1.4097, 0.1359, -0.2521, -1.3359, 0.2598,
        ],
    );
}

#[test]
fn level_on_the_way_down() {
    let mut rng = TorchRng::seeded(0);
    let (x, temb) = (draw(&mut rng, &[4, 32, 32, 32]), draw(&mut rng, &[4, 128]));
    let mut layers = resnet_layers("resnets.0.", true);
    layers.push(("downsamplers.0.conv".into(), 32, 288, true));
    let drawn = Drawn::from(&mut rng, &layers);
    let (resnet, conv) = build(&drawn, |builder| {
        let resnet = ResnetBlock::new(builder, "block.resnets.0", resnet_shape(true));
        (
            resnet,
            builder.conv(
                "block.downsamplers.0.conv",
                ConvShape::same(32, 32).halving(),
            ),
        )
    });
    let found = ops::conv2d(
        &resnet.forward(&x, Some(&ops::silu(&temb))),
        &conv,
        Epilogue::default(),
    );
    check(
        &found,
        [
            -0.0232, -0.9869, 0.8054, -0.0637, -0.1688, -1.4264, 0.4470, -1.3394, 0.0904,
        ],
    );
}

#[test]
fn level_of_the_encoder() {
    let mut rng = TorchRng::seeded(0);
    let x = draw(&mut rng, &[4, 32, 32, 32]);
    let mut layers = resnet_layers("resnets.0.", false);
    layers.push(("downsamplers.0.conv".into(), 32, 288, true));
    let drawn = Drawn::from(&mut rng, &layers);
    let (resnet, conv) = build(&drawn, |builder| {
        let resnet = ResnetBlock::new(builder, "block.resnets.0", resnet_shape(false));
        // This block's own default is padding on every side; AutoencoderKL asks for the lower right only.
        let every_side = Padding {
            top: 1,
            left: 1,
            bottom: 1,
            right: 1,
        };
        (
            resnet,
            builder.conv(
                "block.downsamplers.0.conv",
                ConvShape::same(32, 32).halving().padded(every_side),
            ),
        )
    });
    let found = ops::conv2d(&resnet.forward(&x, None), &conv, Epilogue::default());
    check(
        &found,
        [
            1.1102, 0.5302, 0.4872, -0.0023, -0.8042, 0.0483, -0.3489, -0.5632, 0.7626,
        ],
    );
}
