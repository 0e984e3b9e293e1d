//! Names and shapes of OpenCLIP's text tower (SD 2.x, XL's second encoder), beside transformers' CLIP.
//!
//! OpenCLIP keeps queries, keys and values stacked in one `in_proj`, its positions and its projection as bare parameters,
//! and the projection as `[in, out]` (`x @ P`), where a linear layer's weight is `[out, in]`.
//!
//! Source: open_clip's `TextTransformer` and transformers' `CLIPTextModel`, compared by their state dicts.

/// What becomes of a tensor of OpenCLIP's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromOpenClip {
    /// The same bytes under transformers' name.
    Same(String),
    /// Queries, keys and values, stacked along the first axis.
    Stacked([String; 3]),
    /// A matrix, to be transposed.
    Transposed(String),
    /// transformers' model has no place for it.
    Nowhere,
}

/// What a transformers' tensor is made from, or goes into, on OpenCLIP's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToOpenClip {
    /// The same bytes under OpenCLIP's name.
    Same(String),
    /// One third (0 queries, 1 keys, 2 values) of the stack of this name.
    Third(String, usize),
    /// A matrix, to be transposed.
    Transposed(String),
    /// OpenCLIP has no place for it.
    Nowhere,
}

/// Inside a layer: OpenCLIP beside transformers.
const LAYER: [(&str, &str); 5] = [
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
];

/// Outside the layers: OpenCLIP beside transformers.
const ENDS: [(&str, &str); 4] = [
    (
        "token_embedding.weight",
        "text_model.embeddings.token_embedding.weight",
    ),
    (
        "positional_embedding",
        "text_model.embeddings.position_embedding.weight",
    ),
    ("ln_final.weight", "text_model.final_layer_norm.weight"),
    ("ln_final.bias", "text_model.final_layer_norm.bias"),
];

/// OpenCLIP's projection, `[in, out]`, and transformers', `[out, in]`.
const PROJECTION: (&str, &str) = ("text_projection", "text_projection.weight");

const QKV: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// The layer's number and what stands behind it, of `transformer.resblocks.3.ln_1.bias`.
pub fn open_clip_layer(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name
        .strip_prefix("transformer.resblocks.")?
        .split_once('.')?;
    let layer = layer
        .parse()
        .ok()
        .filter(|&layer| layer < super::names::INDEX_LIMIT)?;
    Some((layer, rest))
}

/// Where OpenCLIP's tensor `name` (behind the prefix) goes.
pub fn from_open_clip(name: &str) -> FromOpenClip {
    if let Some((_, ours)) = ENDS.iter().find(|(theirs, _)| *theirs == name) {
        return FromOpenClip::Same(ours.to_string());
    }
    if name == PROJECTION.0 {
        return FromOpenClip::Transposed(PROJECTION.1.into());
    }
    if name == PROJECTION.1 {
        return FromOpenClip::Same(PROJECTION.1.into());
    }
    let Some((layer, rest)) = open_clip_layer(name) else {
        return FromOpenClip::Nowhere;
    };
    let at = |inside: &str| format!("text_model.encoder.layers.{layer}.{inside}");
    if let Some(field) = rest.strip_prefix("attn.in_proj_") {
        return match field {
            "weight" | "bias" => {
                FromOpenClip::Stacked(QKV.map(|qkv| at(&format!("self_attn.{qkv}.{field}"))))
            }
            _ => FromOpenClip::Nowhere,
        };
    }
    let inside = LAYER.iter().find_map(|(theirs, ours)| {
        let field = rest.strip_prefix(theirs)?;
        matches!(field, ".weight" | ".bias").then(|| at(&format!("{ours}{field}")))
    });
    inside.map_or(FromOpenClip::Nowhere, FromOpenClip::Same)
}

/// Where transformers' tensor `name` (with `text_model.`) goes.
pub fn to_open_clip(name: &str) -> ToOpenClip {
    if let Some((theirs, _)) = ENDS.iter().find(|(_, ours)| *ours == name) {
        return ToOpenClip::Same(theirs.to_string());
    }
    if name == PROJECTION.1 {
        return ToOpenClip::Transposed(PROJECTION.0.into());
    }
    let parsed = name
        .strip_prefix("text_model.encoder.layers.")
        .and_then(|rest| rest.split_once('.'));
    let Some((layer, rest)) = parsed.filter(|(layer, _)| {
        layer
            .parse::<usize>()
            .is_ok_and(|layer| layer < super::names::INDEX_LIMIT)
    }) else {
        return ToOpenClip::Nowhere;
    };
    let at = |inside: &str| format!("transformer.resblocks.{layer}.{inside}");
    for (third, qkv) in QKV.iter().enumerate() {
        let field = rest
            .strip_prefix("self_attn.")
            .and_then(|rest| rest.strip_prefix(qkv));
        if let Some(field @ (".weight" | ".bias")) = field {
            return ToOpenClip::Third(at(&format!("attn.in_proj_{}", &field[1..])), third);
        }
    }
    let inside = LAYER.iter().find_map(|(theirs, ours)| {
        let field = rest.strip_prefix(ours)?;
        matches!(field, ".weight" | ".bias").then(|| at(&format!("{theirs}{field}")))
    });
    inside.map_or(ToOpenClip::Nowhere, ToOpenClip::Same)
}

/// transformers' name with `text_model.`, which its version 5 leaves out where the model has no projection.
pub fn with_text_model(name: &str) -> String {
    let bare = ["embeddings.", "encoder.", "final_layer_norm."];
    if bare.iter().any(|start| name.starts_with(start)) {
        format!("text_model.{name}")
    } else {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(theirs: &str, ours: &str) {
        assert_eq!(from_open_clip(theirs), FromOpenClip::Same(ours.into()));
        assert_eq!(to_open_clip(ours), ToOpenClip::Same(theirs.into()));
    }

    #[test]
    fn names_both_ways() {
        check(
            "positional_embedding",
            "text_model.embeddings.position_embedding.weight",
        );
        check("ln_final.bias", "text_model.final_layer_norm.bias");
        check(
            "transformer.resblocks.7.ln_2.weight",
            "text_model.encoder.layers.7.layer_norm2.weight",
        );
        check(
            "transformer.resblocks.0.mlp.c_proj.bias",
            "text_model.encoder.layers.0.mlp.fc2.bias",
        );
        check(
            "transformer.resblocks.31.attn.out_proj.weight",
            "text_model.encoder.layers.31.self_attn.out_proj.weight",
        );
    }

    #[test]
    fn what_is_stacked_or_transposed() {
        let layer = "text_model.encoder.layers.2.self_attn";
        let thirds = QKV.map(|qkv| format!("{layer}.{qkv}.bias"));
        assert_eq!(
            from_open_clip("transformer.resblocks.2.attn.in_proj_bias"),
            FromOpenClip::Stacked(thirds.clone())
        );
        for (third, ours) in thirds.iter().enumerate() {
            let stack = "transformer.resblocks.2.attn.in_proj_bias".to_string();
            assert_eq!(to_open_clip(ours), ToOpenClip::Third(stack, third));
        }
        assert_eq!(
            from_open_clip("text_projection"),
            FromOpenClip::Transposed("text_projection.weight".into())
        );
        assert_eq!(
            to_open_clip("text_projection.weight"),
            ToOpenClip::Transposed("text_projection".into())
        );
    }

    #[test]
    fn what_has_no_place() {
        for theirs in [
            "logit_scale",
            "attn_mask",
            "transformer.resblocks.x.ln_1.bias",
            "transformer.resblocks.1.ln_3.bias",
            "transformer.resblocks.1.ln_1.bias.more",
            "transformer.resblocks.99999.ln_1.bias",
        ] {
            assert_eq!(from_open_clip(theirs), FromOpenClip::Nowhere, "{theirs}");
        }
        for ours in [
            "text_model.embeddings.position_ids",
            "text_model.encoder.layers.1.self_attn.o_proj.bias",
            "visual_projection.weight",
        ] {
            assert_eq!(to_open_clip(ours), ToOpenClip::Nowhere, "{ours}");
        }
    }

    #[test]
    fn bare_names_get_their_prefix() {
        assert_eq!(
            with_text_model("encoder.layers.0.mlp.fc1.bias"),
            "text_model.encoder.layers.0.mlp.fc1.bias"
        );
        assert_eq!(
            with_text_model("text_model.final_layer_norm.bias"),
            "text_model.final_layer_norm.bias"
        );
        assert_eq!(
            with_text_model("text_projection.weight"),
            "text_projection.weight"
        );
    }
}
