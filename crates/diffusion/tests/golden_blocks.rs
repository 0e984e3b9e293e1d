//! Each kind of block alone against diffusers' module of that kind.

mod common;

use std::collections::BTreeMap;

use common::case::Case;
use common::{check, input, weights};
use safelight_diffusion::load::{LoadError, Problem};
use safelight_diffusion::nn::{Builder, ConvShape, Leaf, Weights};
use safelight_diffusion::unet::{
    ResnetBlock, ResnetShape, Transformer, TransformerShape, sinusoids,
};
use safelight_tensor::{Activation, Conv2d, Epilogue, Padding, Tensor, ops};

/// The weight rule over the shapes a case lists; every name we ask for must be among them, and begins with `block.`.
struct Ruled {
    label: String,
    shapes: BTreeMap<String, Vec<usize>>,
    seed: u32,
}

impl Ruled {
    fn of(case: &Case) -> Ruled {
        let listed = case.json("weights");
        let shape = |v: &serde_json::Value| {
            v.as_array()
                .unwrap()
                .iter()
                .map(|n| n.as_u64().unwrap() as usize)
                .collect()
        };
        let shapes = listed
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, v)| (name.clone(), shape(v)))
            .collect();
        Ruled {
            label: case.label.clone(),
            shapes,
            seed: case.seed(),
        }
    }

    fn shape(&self, name: &str) -> &[usize] {
        let short = name
            .strip_prefix("block.")
            .expect("our names begin with `block.`");
        self.shapes
            .get(short)
            .unwrap_or_else(|| panic!("{}: diffusers' block has no `{short}`", self.label))
    }
}

impl Weights for Ruled {
    fn check(&self, name: &str, shapes: &[Vec<usize>]) -> Result<(), Problem> {
        let found = self.shape(name);
        assert!(
            shapes.iter().any(|shape| shape == found),
            "{}: `{name}` is {found:?}, asked for {shapes:?}",
            self.label
        );
        Ok(())
    }

    fn read(&self, name: &str, count: usize) -> Result<Vec<f32>, LoadError> {
        let values = weights::tensor(&name["block.".len()..], self.shape(name), self.seed);
        assert_eq!(values.len(), count);
        Ok(values)
    }

    fn label(&self) -> String {
        self.label.clone()
    }
}

/// Builds something from a case's weights.
fn build<T>(case: &Case, make: impl FnOnce(&mut Builder<'_>) -> T) -> T {
    let ruled = Ruled::of(case);
    let mut builder = Builder::new(&ruled);
    let made = make(&mut builder);
    builder.fill().unwrap();
    made
}

/// SiLU of the time embedding, as blocks take it.
fn time(case: &Case) -> Option<Tensor> {
    case.has("in.temb")
        .then(|| ops::silu(&input(case, "in.temb")))
}

fn resnet(
    builder: &mut Builder<'_>,
    name: &str,
    shape: (usize, usize),
    groups: usize,
    temb: bool,
) -> ResnetBlock {
    let shape = ResnetShape {
        inputs: shape.0,
        outputs: shape.1,
        time_embedding: temb.then_some(128),
        norm_num_groups: groups,
        norm_eps: if temb { 1e-5 } else { 1e-6 },
    };
    ResnetBlock::new(builder, &format!("block.{name}"), shape)
}

fn transformer(builder: &mut Builder<'_>, idx: usize) -> Transformer {
    let shape = TransformerShape {
        channels: 64,
        depth: 1,
        heads: 8,
        context: 64,
        norm_num_groups: 32,
    };
    Transformer::new(builder, &format!("block.attentions.{idx}"), shape)
}

#[test]
fn residual_blocks() {
    for name in [
        "resnet_same",
        "resnet_shortcut",
        "resnet_small",
        "resnet_vae",
        "resnet_vae_small",
    ] {
        let case = Case::read(&format!("blocks/{name}"));
        let number = |key| case.number(key) as usize;
        let shape = ResnetShape {
            inputs: number("inputs"),
            outputs: number("outputs"),
            time_embedding: case.has("in.temb").then_some(128),
            norm_num_groups: number("groups"),
            norm_eps: case.number("eps") as f32,
        };
        let block = build(&case, |builder| ResnetBlock::new(builder, "block", shape));
        check(
            &case,
            "out.y",
            &block.forward(&input(&case, "in.x"), time(&case).as_ref()),
        );
    }
}

#[test]
fn transformers() {
    for name in [
        "transformer_conv",
        "transformer_linear",
        "transformer_small",
        "transformer_deep",
    ] {
        let case = Case::read(&format!("blocks/{name}"));
        let number = |key| case.number(key) as usize;
        let context = input(&case, "in.context");
        let shape = TransformerShape {
            channels: number("channels"),
            depth: number("depth"),
            heads: number("heads"),
            context: context.last_dim(),
            norm_num_groups: 32,
        };
        let block = build(&case, |builder| Transformer::new(builder, "block", shape));
        check(
            &case,
            "out.y",
            &block.forward(&input(&case, "in.x"), &block.text(&context)),
        );
    }
}

#[test]
fn downsamplers() {
    let corner = Padding {
        top: 0,
        left: 0,
        bottom: 1,
        right: 1,
    };
    for (kind, shape) in [
        ("downsample", ConvShape::same(32, 32).halving()),
        (
            "downsample_vae",
            ConvShape::same(32, 32).halving().padded(corner),
        ),
    ] {
        for size in ["even", "odd"] {
            let case = Case::read(&format!("blocks/{kind}_{size}"));
            let conv = build(&case, |builder| builder.conv("block.conv", shape));
            check(
                &case,
                "out.y",
                &ops::conv2d(&input(&case, "in.x"), &conv, Epilogue::default()),
            );
        }
    }
}

#[test]
fn upsamplers() {
    for name in ["upsample_double", "upsample_odd", "upsample_one"] {
        let case = Case::read(&format!("blocks/{name}"));
        let conv = build(&case, |builder| {
            builder.conv("block.conv", ConvShape::same(32, 32))
        });
        let (h, w) = (case.shape("out.y")[2], case.shape("out.y")[3]);
        check(
            &case,
            "out.y",
            &ops::conv2d_upsampled(&input(&case, "in.x"), &conv, h, w),
        );
    }
}

#[test]
fn time_embedding() {
    let case = Case::read("blocks/time_embedding");
    let waves = sinusoids(&case.f32s("in.t"), 64);
    // Angles reach 999, where an ulp of f32 is 6e-5: so far may cosines of two correct programs be apart, seldom are.
    println!(
        "waves {:.1e}",
        case.check_within("out.waves", waves.data(), 2e-5)
    );
    let [first, second] = build(&case, |builder| {
        [
            builder.linear("block.linear_1", 256, 64, true),
            builder.linear("block.linear_2", 256, 256, true),
        ]
    });
    let silu = Epilogue {
        activation: Activation::Silu,
        ..Epilogue::default()
    };
    check(
        &case,
        "out.y",
        &ops::linear(
            &ops::linear(&waves, &first, silu),
            &second,
            Epilogue::default(),
        ),
    );
}

#[test]
fn levels_on_the_way_down() {
    for (name, attend) in [("cross_attn_down", true), ("down", false)] {
        let case = Case::read(&format!("blocks/{name}"));
        let (resnets, attentions, conv) = build(&case, |builder| {
            let resnets = [
                resnet(builder, "resnets.0", (32, 64), 32, true),
                resnet(builder, "resnets.1", (64, 64), 32, true),
            ];
            let attentions = if attend {
                vec![transformer(builder, 0), transformer(builder, 1)]
            } else {
                vec![]
            };
            (
                resnets,
                attentions,
                builder.conv(
                    "block.downsamplers.0.conv",
                    ConvShape::same(64, 64).halving(),
                ),
            )
        });
        let mut x = input(&case, "in.x");
        for (idx, resnet) in resnets.iter().enumerate() {
            x = resnet.forward(&x, time(&case).as_ref());
            x = attended(&case, &attentions, idx, x);
            check(&case, &format!("out.skip{idx}"), &x);
        }
        check(&case, "out.y", &ops::conv2d(&x, &conv, Epilogue::default()));
    }
}

#[test]
fn the_middle() {
    let case = Case::read("blocks/mid");
    let (resnets, attention) = build(&case, |builder| {
        let resnets =
            ["resnets.0", "resnets.1"].map(|name| resnet(builder, name, (64, 64), 32, true));
        (resnets, vec![transformer(builder, 0)])
    });
    let x = resnets[0].forward(&input(&case, "in.x"), time(&case).as_ref());
    let x = attended(&case, &attention, 0, x);
    check(
        &case,
        "out.y",
        &resnets[1].forward(&x, time(&case).as_ref()),
    );
}

#[test]
fn levels_on_the_way_up() {
    for (name, attend) in [("cross_attn_up", true), ("up", false)] {
        let case = Case::read(&format!("blocks/{name}"));
        let (resnets, attentions, conv) = build(&case, |builder| {
            let resnets = [
                resnet(builder, "resnets.0", (128, 64), 32, true),
                resnet(builder, "resnets.1", (96, 64), 32, true),
            ];
            let attentions = if attend {
                vec![transformer(builder, 0), transformer(builder, 1)]
            } else {
                vec![]
            };
            (
                resnets,
                attentions,
                builder.conv("block.upsamplers.0.conv", ConvShape::same(64, 64)),
            )
        });
        let mut x = input(&case, "in.x");
        for (idx, resnet) in resnets.iter().enumerate() {
            let both = ops::concat_channels(&x, &input(&case, &format!("in.skip{idx}")));
            x = attended(
                &case,
                &attentions,
                idx,
                resnet.forward(&both, time(&case).as_ref()),
            );
        }
        check(&case, "out.y", &doubled(&case, &x, &conv));
    }
}

#[test]
fn levels_of_the_autoencoder() {
    let corner = Padding {
        top: 0,
        left: 0,
        bottom: 1,
        right: 1,
    };
    for (name, sampler, shape) in [
        (
            "vae_down",
            "downsamplers",
            ConvShape::same(48, 48).halving().padded(corner),
        ),
        ("vae_up", "upsamplers", ConvShape::same(48, 48)),
    ] {
        let case = Case::read(&format!("blocks/{name}"));
        let (resnets, conv) = build(&case, |builder| {
            let resnets = [
                resnet(builder, "resnets.0", (32, 48), 16, false),
                resnet(builder, "resnets.1", (48, 48), 16, false),
            ];
            (
                resnets,
                builder.conv(&format!("block.{sampler}.0.conv"), shape),
            )
        });
        let x = resnets
            .iter()
            .fold(input(&case, "in.x"), |x, resnet| resnet.forward(&x, None));
        let down = sampler == "downsamplers";
        let y = if down {
            ops::conv2d(&x, &conv, Epilogue::default())
        } else {
            doubled(&case, &x, &conv)
        };
        check(&case, "out.y", &y);
    }
}

fn doubled(case: &Case, x: &Tensor, conv: &Leaf<Conv2d>) -> Tensor {
    let shape = case.shape("out.y");
    ops::conv2d_upsampled(x, conv, shape[2], shape[3])
}

fn attended(case: &Case, attentions: &[Transformer], idx: usize, x: Tensor) -> Tensor {
    match attentions.get(idx) {
        Some(attention) => attention.forward(&x, &attention.text(&input(case, "in.context"))),
        None => x,
    }
}
