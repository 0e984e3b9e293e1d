//! Which family a file belongs to, from its tensors' names and shapes alone.
//!
//! Only Stable Diffusion 1.x's class can be drawn with so far; everything else that is common gets its name said.

use safelight_format::TensorInfo;

use super::keys::{Part, PartKeys};

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// Stable Diffusion 1.x, or a network built like it, of any size.
    StableDiffusion1,
    /// Stable Diffusion 2.x.
    StableDiffusion2,
    /// Stable Diffusion XL.
    StableDiffusionXl,
    /// The refiner of Stable Diffusion XL.
    StableDiffusionXlRefiner,
    /// A UNet with class labels: unCLIP, or the ×4 upscaler.
    ClassConditional,
    /// Stable Diffusion 3 or 3.5.
    StableDiffusion3,
    /// Flux.1.
    Flux,
    /// Flux.2.
    Flux2,
    /// Chroma.
    Chroma,
    /// Qwen-Image.
    QwenImage,
    /// Lumina 2 or Z-Image.
    Lumina,
    /// Wan.
    Wan,
    /// PixArt, or another transformer of its kind.
    PixArt,
    /// A ControlNet or T2I adapter.
    ControlNet,
    /// A LoRA, or one of its relatives.
    Lora,
    /// A textual inversion embedding.
    Embedding,
    /// A picture upscaler, such as ESRGAN.
    Upscaler,
    /// An autoencoder alone.
    VaeOnly,
    /// A text encoder alone.
    TextEncoderOnly,
    /// Averaged training weights alone.
    EmaOnly,
    /// Nothing known.
    Unknown,
}

impl Family {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Family::StableDiffusion1 => "SD 1.x",
            Family::StableDiffusion2 => "SD 2.x",
            Family::StableDiffusionXl => "SDXL",
            Family::StableDiffusionXlRefiner => "SDXL refiner",
            Family::ClassConditional => "class-conditional UNet",
            Family::StableDiffusion3 => "SD 3",
            Family::Flux => "Flux.1",
            Family::Flux2 => "Flux.2",
            Family::Chroma => "Chroma",
            Family::QwenImage => "Qwen-Image",
            Family::Lumina => "Lumina 2",
            Family::Wan => "Wan",
            Family::PixArt => "PixArt",
            Family::ControlNet => "ControlNet",
            Family::Lora => "LoRA",
            Family::Embedding => "embedding",
            Family::Upscaler => "upscaler",
            Family::VaeOnly => "VAE",
            Family::TextEncoderOnly => "text encoder",
            Family::EmaOnly => "EMA weights",
            Family::Unknown => "unknown",
        }
    }

    /// The name in a sentence: "an SDXL checkpoint", "a LoRA".
    pub fn a_name(self) -> String {
        match self {
            Family::Lora | Family::ControlNet | Family::ClassConditional => {
                format!("a {}", self.name())
            }
            Family::Embedding => {
                "a textual inversion embedding, used from the embeddings folder".into()
            }
            Family::Upscaler => "a picture upscaler".into(),
            Family::VaeOnly => "a VAE without a UNet".into(),
            Family::TextEncoderOnly => "a text encoder without a UNet".into(),
            Family::EmaOnly => "a file of averaged training weights (EMA) alone".into(),
            Family::Unknown => "no model that is known here".into(),
            Family::Flux
            | Family::Flux2
            | Family::Chroma
            | Family::QwenImage
            | Family::Lumina
            | Family::Wan
            | Family::PixArt => {
                format!("a {} model", self.name())
            }
            _ => format!("an {} checkpoint", self.name()),
        }
    }

    /// Whether pictures can be drawn with it.
    pub fn is_supported(self) -> bool {
        self == Family::StableDiffusion1
    }

    /// The family of a file with these tensors, and what gave it away.
    pub fn of(tensors: &[TensorInfo<'_>]) -> (Family, String) {
        by_marks(tensors)
            .or_else(|| by_unet(tensors))
            .unwrap_or_else(|| by_remains(tensors))
    }
}

/// How a mark must lie in a name.
#[derive(Clone, Copy)]
enum Where {
    Start,
    Inside,
    End,
}

/// Names that tell, most telling first.
const MARKS: [(Family, Where, &str); 33] = {
    use Family::*;
    use Where::*;
    [
        (Lora, End, ".lora_down.weight"),
        (Lora, End, ".lora_up.weight"),
        (Lora, End, ".lora_A.weight"),
        (Lora, End, ".lora_B.weight"),
        (Lora, End, ".lora.down.weight"),
        (Lora, Inside, "_lora.down.weight"),
        (Lora, End, ".hada_w1_a"),
        (Lora, Inside, ".lokr_w"),
        (Lora, Start, "lora_unet_"),
        (Lora, Start, "lora_te"),
        (ControlNet, Start, "control_model."),
        (ControlNet, Inside, "controlnet_cond_embedding."),
        (ControlNet, Inside, "input_hint_block."),
        (ControlNet, Start, "controlnet_blocks."),
        (ControlNet, Start, "adapter.body."),
        (Embedding, Start, "emb_params"),
        (Embedding, Start, "string_to_param"),
        (Upscaler, Start, "model.1.sub."),
        (Upscaler, Inside, ".rdb1.conv1."),
        (Upscaler, Inside, ".RDB1.conv1."),
        (StableDiffusion3, Inside, "joint_blocks.0."),
        (Chroma, Inside, "distilled_guidance_layer."),
        (Flux2, Inside, "double_stream_modulation"),
        (Flux, Inside, "double_blocks.0."),
        (Flux, Start, "single_transformer_blocks.0."),
        (QwenImage, Inside, "transformer_blocks.0.img_mod.1."),
        (Lumina, Inside, "cap_embedder."),
        (Wan, Inside, "head.modulation"),
        (PixArt, Inside, "adaln_single."),
        (
            StableDiffusion3,
            Inside,
            "transformer_blocks.0.attn.add_q_proj.",
        ),
        (StableDiffusionXl, Start, "conditioner.embedders.1."),
        (
            StableDiffusionXlRefiner,
            Start,
            "conditioner.embedders.0.model.",
        ),
        (StableDiffusion2, Start, "cond_stage_model.model."),
    ]
};

fn by_marks(tensors: &[TensorInfo<'_>]) -> Option<(Family, String)> {
    MARKS.iter().find_map(|&(family, place, mark)| {
        let tensor = tensors.iter().find(|tensor| match place {
            Where::Start => tensor.name.starts_with(mark),
            Where::Inside => tensor.name.contains(mark),
            Where::End => tensor.name.ends_with(mark),
        })?;
        Some((family, format!("`{}`", tensor.name)))
    })
}

/// Context width of SD 2.x, whose UNet otherwise differs from SD 1.x's only in linear projections.
const SD2_CONTEXT: u64 = 1024;

fn by_unet(tensors: &[TensorInfo<'_>]) -> Option<(Family, String)> {
    let unet = PartKeys::find(Part::UNet, tensors)?;
    let saw = |stored: &super::keys::Stored| format!("`{}` {:?}", stored.name, stored.shape);
    if let Some(stored) = unet.get("add_embedding.linear_1.weight") {
        let family = match stored.shape.last() {
            Some(2816) => Family::StableDiffusionXl,
            Some(2560) => Family::StableDiffusionXlRefiner,
            _ => Family::ClassConditional,
        };
        return Some((family, saw(stored)));
    }
    if let Some((_, stored)) = unet
        .tensors()
        .find(|(name, _)| name.starts_with("class_embedding."))
    {
        return Some((Family::ClassConditional, saw(stored)));
    }
    let ending = |end: &str| {
        unet.tensors()
            .find(|(name, _)| name.ends_with(end))
            .map(|(_, stored)| stored)
    };
    let linear = ending(".proj_in.weight").is_some_and(|stored| stored.shape.len() == 2);
    let context = ending(".attn2.to_k.weight");
    if let Some(stored) =
        context.filter(|stored| linear && stored.shape.last() == Some(&SD2_CONTEXT))
    {
        return Some((Family::StableDiffusion2, saw(stored)));
    }
    let seen = context.or_else(|| unet.get("conv_in.weight")).map(saw);
    Some((
        Family::StableDiffusion1,
        seen.unwrap_or_else(|| "the names of its UNet".into()),
    ))
}

/// Tensors of a textual inversion: a few vectors and nothing else.
const EMBEDDING_TENSORS_MAX: usize = 4;

fn by_remains(tensors: &[TensorInfo<'_>]) -> (Family, String) {
    let first = |start: &str| {
        tensors
            .iter()
            .find(|t| t.name.starts_with(start))
            .map(|t| format!("`{}`", t.name))
    };
    let part = |part, family| {
        PartKeys::find(part, tensors).map(|_| (family, format!("{} tensors", tensors.len())))
    };
    if let Some(saw) = first("model_ema.") {
        return (Family::EmaOnly, saw);
    }
    if let Some(found) = part(Part::Vae, Family::VaeOnly)
        .or_else(|| part(Part::TextEncoder, Family::TextEncoderOnly))
    {
        return found;
    }
    let names = tensors
        .iter()
        .take(3)
        .map(|t| format!("`{}` {:?}", t.name, t.shape))
        .collect::<Vec<_>>()
        .join(", ");
    let few = (1..=EMBEDDING_TENSORS_MAX).contains(&tensors.len());
    if few
        && tensors.iter().all(|t| {
            t.shape.len() <= 2
                && t.shape
                    .last()
                    .is_some_and(|&width| (512..=4096).contains(&width))
        })
    {
        return (Family::Embedding, names);
    }
    match tensors.len() {
        0 => (Family::Unknown, "it holds no tensors".into()),
        count => (
            Family::Unknown,
            format!("{count} tensors, the first: {names}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safelight_format::Dtype;

    fn check(tensors: &[(&str, &[u64])], expected: Family) {
        let tensors = tensors.iter().map(|&(name, shape)| TensorInfo {
            name,
            dtype: Dtype::F16,
            shape,
            data_offsets: (0, 0),
        });
        let tensors: Vec<TensorInfo<'_>> = tensors.collect();
        let (family, saw) = Family::of(&tensors);
        assert_eq!(family, expected, "saw {saw}");
    }

    #[test]
    fn families_by_name() {
        let unet = "model.diffusion_model.";
        let conv_in = (
            &*format!("{unet}input_blocks.0.0.weight"),
            &[320, 4, 3, 3][..],
        );
        let label = &*format!("{unet}label_emb.0.0.weight");
        check(&[conv_in], Family::StableDiffusion1);
        check(
            &[conv_in, (label, &[1280, 2816])],
            Family::StableDiffusionXl,
        );
        check(
            &[conv_in, (label, &[1536, 2560])],
            Family::StableDiffusionXlRefiner,
        );
        check(
            &[conv_in, ("cond_stage_model.model.ln_final.bias", &[1024])],
            Family::StableDiffusion2,
        );
        check(
            &[(
                "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
                &[1, 1],
            )],
            Family::StableDiffusion3,
        );
        check(
            &[("double_blocks.0.img_attn.norm.key_norm.scale", &[128])],
            Family::Flux,
        );
        check(
            &[("lora_unet_down_blocks_0.lora_down.weight", &[4, 320])],
            Family::Lora,
        );
        check(
            &[("control_model.input_blocks.0.0.weight", &[320, 4, 3, 3])],
            Family::ControlNet,
        );
        check(&[("emb_params", &[2, 768])], Family::Embedding);
        check(
            &[
                ("decoder.conv_in.weight", &[512, 4, 3, 3]),
                ("decoder.up.0.block.0.norm1.bias", &[1]),
            ],
            Family::VaeOnly,
        );
        check(
            &[("text_model.encoder.layers.0.mlp.fc1.bias", &[3072])],
            Family::TextEncoderOnly,
        );
        check(
            &[("model_ema.diffusion_modelout2bias", &[4])],
            Family::EmaOnly,
        );
        check(&[("something", &[3])], Family::Unknown);
        check(&[], Family::Unknown);
    }
}
