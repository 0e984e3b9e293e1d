//! Checkpoints as they come: both layouts, every dtype, and broken in the ways files break.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::weights::{Layout, safetensors_bytes, tensor};
use safelight_diffusion::load::{
    self, Family, LoadError, LoadOptions, Model, ModelInfo, Naming, Part, Problem, Task,
};
use safelight_diffusion::schedule::Prediction;
use safelight_format::Dtype;
use safelight_store::Checkpoint;
use safelight_tensor::Tensor;

/// The single file of a layout, changed by `change` before it is opened.
fn checkpoint(
    layout: &str,
    change: impl FnOnce(&mut BTreeMap<String, (Vec<usize>, Vec<f32>)>),
) -> Checkpoint {
    let layout = Layout::read(layout);
    let with_values = |(name, shape): (String, Vec<usize>)| {
        (name.clone(), (shape.clone(), tensor(&name, &shape, 7)))
    };
    let mut tensors: BTreeMap<_, _> = layout.tensors.into_iter().map(with_values).collect();
    change(&mut tensors);
    let rows = tensors
        .iter()
        .map(|(name, (shape, values))| (name.as_str(), shape.as_slice(), values.clone()));
    let bytes = safetensors_bytes(rows.collect(), &layout.metadata);
    Checkpoint::from_bytes("test.safetensors", bytes).expect("a valid file")
}

fn latent(channels: usize) -> Tensor {
    let values: Vec<f32> = (0..7 * 9 * channels)
        .map(|i| (i as f32 * 0.7).sin())
        .collect();
    Tensor::from_slice(&[1, 7, 9, channels], &values)
}

fn problems(checkpoint: &Checkpoint) -> Vec<Problem> {
    match Model::from_checkpoint(checkpoint, &LoadOptions::default()) {
        Err(LoadError::Weights { problems, .. }) => problems,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("it loaded"),
    }
}

const CONV: &str = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight";

#[test]
fn a_single_file_and_its_folder_are_the_same_model() {
    let layout = Layout::read("sd");
    let file = Checkpoint::from_bytes("sd.safetensors", layout.single_file(7)).unwrap();
    let file = Model::from_checkpoint(&file, &LoadOptions::default()).unwrap();
    let root = std::env::temp_dir().join(format!("safelight-folder-{}", std::process::id()));
    std::fs::create_dir_all(&root).unwrap();
    layout.write_folder(7, &root);
    let folder = Model::load(&root, &LoadOptions::default());
    std::fs::remove_dir_all(&root).unwrap();
    let folder = folder.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(file.info.part(Part::UNet).unwrap().naming, Naming::Ldm);
    assert_eq!(
        folder.info.part(Part::UNet).unwrap().naming,
        Naming::Diffusers
    );
    let draw = |model: &Model| {
        let text = model.text.forward(&[49406, 320, 1125, 49407], 1);
        let noise = model.unet.forward(&latent(4), &[500.0], &text);
        let moments = model.vae.encode(&model.vae.decode(&noise));
        [text, noise, moments.mean, moments.log_variance].map(|tensor| tensor.to_vec())
    };
    assert_eq!(draw(&file), draw(&folder));
}

#[test]
fn what_a_file_is_shows_without_reading_weights() {
    let info = load::describe(&checkpoint("sd", |_| {}));
    assert_eq!(
        (info.family, info.task, info.problems.len()),
        (Family::StableDiffusion1, Task::TextToImage, 0)
    );
    assert_eq!(info.parts.len(), 3);
    let info = load::describe(&checkpoint("sd_inpaint", |_| {}));
    assert_eq!((info.task, info.problems), (Task::Inpaint, vec![]));
}

#[test]
fn every_layout_describes_and_runs() {
    for name in [
        "unet_s1",
        "unet_s2",
        "unet_m1",
        "unet_linear",
        "unet_groups",
        "unet_inpaint",
    ] {
        let unet = load::load_unet(&checkpoint(name, |_| {}))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let context = Tensor::zeros(&[1, 5, unet.config().context_channels]);
        let out = unet.forward(&latent(unet.config().in_channels), &[10.0], &context);
        assert_eq!(out.shape(), [1, 7, 9, 4], "{name}");
        assert!(out.data().iter().all(|x| x.is_finite()), "{name}");
    }
    for name in ["vae_s1", "vae_m2", "vae_groups"] {
        let vae = load::load_vae(&checkpoint(name, |_| {}))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let picture = vae.decode(&latent(4));
        let scale = vae.config().downscale();
        assert_eq!(picture.shape(), [1, 7 * scale, 9 * scale, 3], "{name}");
        assert_eq!(vae.encode(&picture).mean.shape(), [1, 7, 9, 4], "{name}");
    }
    for name in ["text64x2", "text64x5", "text128x3"] {
        let text = load::load_text(&checkpoint(name, |_| {}))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(
            text.forward(&[49406, 1, 49407], 2).shape(),
            [1, 3, text.config().width],
            "{name}"
        );
    }
}

#[test]
fn every_missing_tensor_is_named_at_once() {
    let gone = [
        CONV,
        "first_stage_model.decoder.conv_in.weight",
        "model.diffusion_model.input_blocks.0.0.weight",
    ];
    let found = problems(&checkpoint("sd", |tensors| {
        gone.iter().for_each(|name| drop(tensors.remove(*name)))
    }));
    let mut found: Vec<String> = found.iter().map(ToString::to_string).collect();
    found.sort();
    let mut expected = gone.map(|name| format!("`{name}` is missing"));
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn a_missing_layer_is_missed() {
    let layer = "cond_stage_model.transformer.text_model.encoder.layers.0.";
    let found = problems(&checkpoint("sd", |tensors| {
        tensors.retain(|name, _| !name.starts_with(layer))
    }));
    assert_eq!(found.len(), 16, "{found:?}");
    let middle = "model.diffusion_model.middle_block.";
    let found = problems(&checkpoint("sd", |tensors| {
        tensors.retain(|name, _| !name.starts_with(middle))
    }));
    assert!(found.len() > 10, "{found:?}");
}

/// A file of these names and shapes and of zeros: enough to describe.
fn header(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>();
        let row =
            serde_json::json!({"dtype": "F8_E4M3", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), row);
    }
    let text = serde_json::Value::Object(header).to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.resize(bytes.len() + end, 0);
    bytes
}

/// Modules of a file, by the beginnings of names that end at a dot: all that hold others, and of those with nothing but
/// weight and bias every seventh.
fn units(tensors: &[(String, Vec<usize>)]) -> BTreeSet<&str> {
    let beginnings = tensors.iter().flat_map(|(name, _)| {
        let dots = name.match_indices('.');
        dots.map(move |(dot, _)| &name[..=dot])
    });
    let all: BTreeSet<&str> = beginnings.collect();
    let holds_others = |unit: &str| {
        all.iter()
            .any(|other| other.len() > unit.len() && other.starts_with(unit))
    };
    let (blocks, leaves): (BTreeSet<&str>, BTreeSet<&str>) =
        all.iter().partition(|unit| holds_others(unit));
    blocks
        .into_iter()
        .chain(leaves.into_iter().step_by(7))
        .collect()
}

/// Takes each unit out in turn, and expects that exactly its tensors are missed.
fn every_unit_is_missed(
    tensors: &[(String, Vec<usize>)],
    unseen: &[&str],
    describe: impl Fn(&[(String, Vec<usize>)]) -> ModelInfo,
) {
    assert_eq!(describe(tensors).problems, []);
    let (mut wrong, mut count) = (Vec::new(), 0);
    for unit in units(tensors) {
        if unseen.contains(&unit) {
            continue;
        }
        let (gone, left): (Vec<_>, Vec<_>) = tensors
            .iter()
            .cloned()
            .partition(|(name, _)| name.starts_with(unit));
        let found: BTreeSet<String> = describe(&left)
            .problems
            .iter()
            .map(ToString::to_string)
            .collect();
        let expected = gone.iter().map(|(name, _)| format!("`{name}` is missing"));
        let expected: BTreeSet<String> = expected.collect();
        count += 1;
        if found != expected {
            let unnamed = expected.difference(&found).next();
            let other = found.difference(&expected).next();
            wrong.push(format!(
                "{unit}: {} gone, {} found; e.g. not named: {unnamed:?}, not gone: {other:?}",
                expected.len(),
                found.len()
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {count}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// Parts are missed as parts; and how many layers there are of text, nothing else in a single file tells.
fn unseen_in_a_file(text_layers: usize) -> Vec<String> {
    let mut unseen = vec![
        "model.".into(),
        "model.diffusion_model.".into(),
        "first_stage_model.".into(),
    ];
    let mut name = String::new();
    for piece in [
        "cond_stage_model",
        "transformer",
        "text_model",
        "encoder",
        "layers",
    ] {
        name = format!("{name}{piece}.");
        unseen.push(name.clone());
    }
    unseen.push(format!("{name}{}.", text_layers - 1));
    unseen
}

#[test]
fn every_unit_missing_from_a_file_is_named_in_full() {
    for (names, text_layers) in [(&["sd"][..], 3), (&["text128x3", "unet_s2", "vae_m2"], 3)] {
        let layouts = names.iter().flat_map(|name| Layout::read(name).tensors);
        let tensors: Vec<_> = layouts.collect();
        let unseen = unseen_in_a_file(text_layers);
        let unseen: Vec<&str> = unseen.iter().map(String::as_str).collect();
        every_unit_is_missed(&tensors, &unseen, |left| {
            load::describe(&Checkpoint::from_bytes("test", header(left)).expect("a valid file"))
        });
    }
}

/// With JSON beside the weights there is nothing that is not missed.
#[test]
fn every_unit_missing_from_a_folder_is_named_in_full() {
    let root = std::env::temp_dir().join(format!("safelight-units-{}", std::process::id()));
    std::fs::create_dir_all(&root).unwrap();
    let layout = Layout::read("sd");
    layout.write_folder(7, &root);
    for (part, body) in &layout.folder {
        let stem = if part == "text_encoder" {
            "model"
        } else {
            "diffusion_pytorch_model"
        };
        let file = root.join(part).join(format!("{stem}.safetensors"));
        let tensors: Vec<_> = body
            .tensors
            .iter()
            .map(|(name, (_, shape))| (name.clone(), shape.clone()))
            .collect();
        every_unit_is_missed(&tensors, &["text_model."], |left| {
            std::fs::write(&file, header(left)).unwrap();
            load::describe_path(&root).unwrap_or_else(|error| panic!("{error}"))
        });
        std::fs::write(&file, header(&tensors)).unwrap();
    }
    std::fs::remove_dir_all(&root).unwrap();
}

/// Without its transformers a UNet still says what is lost, and nothing is run that would not fit.
#[test]
fn every_transformer_gone_at_once_is_named() {
    for inside in [".transformer_blocks.", ".attn2."] {
        let mut tensors: Vec<_> = Layout::read("sd").tensors.into_iter().collect();
        let count = tensors.len();
        tensors.retain(|(name, _)| !name.contains(inside));
        let found = problems(&Checkpoint::from_bytes("test", header(&tensors)).unwrap());
        assert_eq!(found.len(), count - tensors.len(), "{found:?}");
        assert!(
            found.iter().all(|p| matches!(p, Problem::Missing { .. })),
            "{found:?}"
        );
    }
}

/// Networks that were made smaller are whole as they are.
#[test]
fn a_network_without_some_attention_is_whole() {
    let unet = "model.diffusion_model.";
    let attention = |name: &str, block: &str| {
        name.strip_prefix(unet)
            .is_some_and(|name| name.starts_with(block))
    };
    // No attention at the largest size, on neither way.
    let level = [
        "input_blocks.1.1.",
        "output_blocks.6.1.",
        "output_blocks.7.1.",
    ];
    let info = load::describe(&checkpoint("sd", |tensors| {
        tensors.retain(|name, _| !level.iter().any(|block| attention(name, block)));
    }));
    assert_eq!(
        (info.problems, &info.unet.unwrap().down[0].depths[..]),
        (vec![], &[0][..])
    );
    // None in the middle, whose second residual block then counts 1.
    let pruned = |lost: &str| {
        checkpoint("sd", |tensors| {
            let old = std::mem::take(tensors).into_iter();
            let kept = old.filter(|(name, _)| !attention(name, "middle_block.1."));
            let renamed = kept
                .map(|(name, value)| (name.replace("middle_block.2.", "middle_block.1."), value));
            tensors.extend(renamed);
            tensors.remove(lost);
        })
    };
    let info = load::describe(&pruned(""));
    assert_eq!(
        (info.problems, info.unet.unwrap().mid_depth),
        (vec![], Some(0))
    );
    let lost = "model.diffusion_model.middle_block.1.in_layers.2.bias";
    let found = load::describe(&pruned(lost)).problems;
    assert_eq!(
        found,
        [Problem::Missing {
            tensor: lost.into()
        }]
    );
}

/// A UNet that looks at no text draws beside any text encoder.
#[test]
fn a_network_without_attention_draws() {
    let unet = "model.diffusion_model.";
    let checkpoint = checkpoint("sd", |tensors| {
        let old = std::mem::take(tensors).into_iter();
        let attention = |name: &str| {
            let inside = name.strip_prefix(unet).unwrap_or("");
            let inside = inside.split('.').collect::<Vec<_>>();
            matches!(
                inside[..],
                [
                    "input_blocks" | "output_blocks" | "middle_block",
                    _,
                    "1",
                    ..
                ] | ["middle_block", "1", ..]
            ) && !name.contains(".conv.")
        };
        let kept = old.filter(|(name, _)| !attention(name));
        tensors.extend(
            kept.map(|(name, value)| (name.replace("middle_block.2.", "middle_block.1."), value)),
        );
    });
    let model = Model::from_checkpoint(&checkpoint, &LoadOptions::default());
    let model = model.unwrap_or_else(|error| panic!("{error}"));
    let text = model.text.forward(&[49406, 320, 49407], 1);
    let out = model.unet.forward(&latent(4), &[500.0], &text);
    assert!(out.data().iter().all(|x| x.is_finite()));
}

#[test]
fn a_wrong_shape_is_said_with_the_right_one() {
    for name in [
        CONV,
        "model.diffusion_model.input_blocks.1.0.in_layers.0.weight",
    ] {
        let found = problems(&checkpoint("sd", |tensors| {
            let (shape, values) = tensors.get_mut(name).unwrap();
            let half = values.len() / shape[0] * (shape[0] / 2);
            shape[0] /= 2;
            values.truncate(half);
        }));
        let [
            Problem::WrongShape {
                tensor,
                actual,
                expected,
            },
        ] = &found[..]
        else {
            panic!("{found:?}")
        };
        assert_eq!(
            (tensor.as_str(), actual[0] as usize * 2),
            (name, expected[0])
        );
    }
}

#[test]
fn every_tensor_with_nan_is_named() {
    let spoiled = [
        CONV,
        "first_stage_model.decoder.conv_in.bias",
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    ];
    let found = problems(&checkpoint("sd", |tensors| {
        for (name, value) in spoiled
            .iter()
            .zip([f32::NAN, f32::INFINITY, f32::NEG_INFINITY])
        {
            *tensors.get_mut(*name).unwrap().1.last_mut().unwrap() = value;
        }
    }));
    for name in spoiled {
        assert!(
            found
                .iter()
                .any(|p| matches!(p, Problem::NotFinite { tensor, bad: 1, .. } if tensor == name)),
            "{found:?}"
        );
    }
    assert_eq!(found.len(), 3);
}

#[test]
fn a_part_that_is_not_there_is_named() {
    let found = problems(&checkpoint("sd", |tensors| {
        tensors.retain(|name, _| !name.starts_with("first_stage_model."))
    }));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].to_string().contains("no VAE"), "{}", found[0]);
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let wide = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight";
    let found = problems(&checkpoint("sd", |tensors| {
        let (shape, values) = tensors.get_mut(wide).unwrap();
        values.truncate(1000 * shape[1]);
        shape[0] = 1000;
    }));
    assert!(found[0].to_string().contains("1000 tokens"), "{found:?}");
}

#[test]
fn another_family_is_refused_by_name() {
    let label = "model.diffusion_model.label_emb.0.0.weight";
    let xl = checkpoint("sd", |tensors| {
        tensors.insert(label.into(), (vec![2, 2816], vec![0.0; 2 * 2816]));
    });
    let error = Model::from_checkpoint(&xl, &LoadOptions::default())
        .err()
        .expect("refused")
        .to_string();
    assert!(
        error.contains("an SDXL checkpoint") && error.contains("2816"),
        "{error}"
    );
}

#[test]
fn ema_copies_and_other_extras_are_ignored() {
    let extra = checkpoint("sd", |tensors| {
        tensors.insert(
            "model_ema.diffusion_modelinput_blocks00weight".into(),
            (vec![3], vec![0.0; 3]),
        );
        tensors.insert(
            "cond_stage_model.transformer.text_model.embeddings.position_ids".into(),
            (vec![1, 77], vec![0.0; 77]),
        );
        tensors.insert("alphas_cumprod".into(), (vec![1000], vec![0.0; 1000]));
    });
    let model = Model::from_checkpoint(&extra, &LoadOptions::default())
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(model.info.ignored_tensors, 3);
}

#[test]
fn names_without_text_model_will_do() {
    let renamed = checkpoint("sd", |tensors| {
        *tensors = std::mem::take(tensors)
            .into_iter()
            .map(|(name, value)| {
                (
                    name.replace("transformer.text_model.", "transformer."),
                    value,
                )
            })
            .collect();
    });
    let model = Model::from_checkpoint(&renamed, &LoadOptions::default())
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        model.info.part(Part::TextEncoder).unwrap().naming,
        Naming::Bare
    );
}

/// The same tensors, each stored in `dtype`.
fn stored_as(layout: &str, dtype: Dtype) -> Checkpoint {
    let layout = Layout::read(layout);
    let encode = |value: f32| match dtype {
        Dtype::F64 => f64::from(value).to_le_bytes().to_vec(),
        Dtype::Bf16 => value.to_bits().to_le_bytes()[2..].to_vec(),
        // 0.5 and -1.5 alone, so that no rounding has to be written here.
        Dtype::F16 => if value > 0.0 { 0x3800_u16 } else { 0xBE00 }
            .to_le_bytes()
            .to_vec(),
        Dtype::F8E4m3 => vec![if value > 0.0 { 0x30 } else { 0xBC }],
        Dtype::F8E5m2 => vec![if value > 0.0 { 0x38 } else { 0xBE }],
        other => panic!("{other} is not tested"),
    };
    let rows: Vec<_> = layout
        .tensors
        .iter()
        .map(|(name, shape)| {
            let bytes: Vec<u8> = tensor(name, shape, 7)
                .into_iter()
                .flat_map(encode)
                .collect();
            (
                name,
                shape.iter().map(|&dim| dim as u64).collect::<Vec<_>>(),
                bytes,
            )
        })
        .collect();
    let mut header = serde_json::Map::new();
    let (mut end, mut data) = (0, Vec::new());
    for (name, shape, bytes) in rows {
        let start = end;
        end += bytes.len();
        let offsets = [start, end];
        let row =
            serde_json::json!({"dtype": dtype.name(), "shape": shape, "data_offsets": offsets});
        header.insert(name.clone(), row);
        data.extend(bytes);
    }
    let text = serde_json::Value::Object(header).to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.extend(data);
    Checkpoint::from_bytes("stored.safetensors", bytes).expect("a valid file")
}

#[test]
fn every_float_dtype_loads() {
    for dtype in [
        Dtype::F64,
        Dtype::Bf16,
        Dtype::F16,
        Dtype::F8E4m3,
        Dtype::F8E5m2,
    ] {
        let checkpoint = stored_as("unet_s1", dtype);
        let info = load::describe(&checkpoint);
        assert_eq!(info.part(Part::UNet).unwrap().dtypes[0].0, dtype);
        let unet = load::load_unet(&checkpoint).unwrap_or_else(|error| panic!("{dtype}: {error}"));
        let context = Tensor::zeros(&[1, 5, unet.config().context_channels]);
        let out = unet.forward(&latent(4), &[10.0], &context).to_vec();
        assert!(out.iter().all(|x| x.is_finite()), "{dtype}");
        if dtype == Dtype::F64 {
            let same = load::load_unet(&checkpoint_of("unet_s1")).unwrap();
            assert_eq!(out, same.forward(&latent(4), &[10.0], &context).to_vec());
        }
    }
}

fn checkpoint_of(layout: &str) -> Checkpoint {
    checkpoint(layout, |_| {})
}

#[test]
fn what_the_unet_predicts_is_read_from_key_and_metadata() {
    assert_eq!(
        load::describe(&checkpoint_of("sd")).prediction,
        Prediction::Epsilon
    );
    let info = load::describe(&checkpoint("sd", |tensors| {
        for name in ["v_pred", "ztsnr"] {
            tensors.insert(name.into(), (vec![0], vec![]));
        }
    }));
    assert_eq!(
        (info.prediction, info.zero_terminal_snr),
        (Prediction::V, true)
    );
    let mut layout = Layout::read("sd");
    layout
        .metadata
        .insert("modelspec.prediction_type".into(), "v".into());
    layout.tensors.retain(|name, _| name.ends_with("bias"));
    let file = Checkpoint::from_bytes("x", layout.single_file(1)).unwrap();
    assert_eq!(load::describe(&file).prediction, Prediction::V);
}

/// A folder of the layout `sd`, changed by `change`, then described.
fn folder(name: &str, change: impl FnOnce(&Path)) -> Result<ModelInfo, LoadError> {
    let root = std::env::temp_dir().join(format!("safelight-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&root).unwrap();
    Layout::read("sd").write_folder(7, &root);
    change(&root);
    let info = load::describe_path(&root);
    std::fs::remove_dir_all(&root).unwrap();
    info
}

/// Changes one field of a JSON file.
fn set(path: &Path, key: &str, value: serde_json::Value) {
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    json[key] = value;
    std::fs::write(path, json.to_string()).unwrap();
}

#[test]
fn a_folders_json_is_believed() {
    let info = folder("json", |root| {
        std::fs::create_dir_all(root.join("scheduler")).unwrap();
        let scheduler = r#"{"prediction_type": "v_prediction", "beta_schedule": "linear", "beta_start": 0.001, "beta_end": 0.02, "lambda_min_clipped": -Infinity}"#;
        std::fs::write(root.join("scheduler/scheduler_config.json"), scheduler).unwrap();
        set(&root.join("vae/config.json"), "scaling_factor", 0.5.into());
        set(&root.join("unet/config.json"), "attention_head_dim", 4.into());
        let whole = root.join("unet/diffusion_pytorch_model.safetensors");
        std::fs::rename(whole, root.join("unet/diffusion_pytorch_model.fp16.safetensors")).unwrap();
    })
    .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(info.problems, []);
    assert_eq!((info.prediction, info.betas.start), (Prediction::V, 0.001));
    assert_eq!(info.vae.unwrap().scale_factor, 0.5);
    assert_eq!(info.unet.unwrap().heads.count(0, 64), 4);
}

#[test]
fn a_folders_faults_are_named() {
    let unet = |root: &Path| root.join("unet/config.json");
    let refused = |name, key: &str, value: serde_json::Value| {
        let error = folder(name, |root| set(&unet(root), key, value))
            .expect_err("refused")
            .to_string();
        assert!(
            error.contains(key) && error.contains("config.json"),
            "{error}"
        );
    };
    refused("act", "act_fn", "mish".into());
    refused("class", "class_embed_type", "timestep".into());
    refused("layers", "layers_per_block", 1_000_000_000_u64.into());
    refused("widths", "block_out_channels", "many".into());
    let info = folder("gone", |root| {
        let weights = root.join("text_encoder/model.safetensors");
        std::fs::rename(weights, root.join("text_encoder/pytorch_model.bin")).unwrap();
    });
    let problems = info.unwrap_or_else(|error| panic!("{error}")).problems;
    assert!(
        problems.len() == 1 && problems[0].to_string().contains("a pickle"),
        "{problems:?}"
    );
    let error = folder("index", |root| {
        std::fs::write(root.join("model_index.json"), "{").unwrap()
    });
    assert!(error.expect_err("refused").to_string().contains("not JSON"));
    let xl = |root: &Path| {
        set(
            &root.join("model_index.json"),
            "_class_name",
            "StableDiffusionXLPipeline".into(),
        )
    };
    assert!(matches!(
        folder("xl", xl),
        Err(LoadError::Family {
            family: Family::StableDiffusionXl,
            ..
        })
    ));
}

#[test]
fn no_header_is_too_strange() {
    let mut random = common::weights::Mt19937::seeded(1);
    let mut below = |end: usize| random.next_u32() as usize % end;
    let sizes = [0, 1, 3, 7, 32];
    for _ in 0..20 {
        let mut layout = Layout::read("sd");
        let mut names: Vec<String> = layout.tensors.keys().cloned().collect();
        for _ in 0..40 {
            let name = names.swap_remove(below(names.len()));
            let shape = layout.tensors.remove(&name).unwrap();
            let digit = char::from(b'0' + below(10) as u8);
            match below(3) {
                0 => {}
                1 => drop(layout.tensors.insert(
                    name.replacen(|c: char| c.is_ascii_digit(), &digit.to_string(), 1),
                    shape,
                )),
                _ => {
                    let mut shape: Vec<usize> =
                        shape.iter().map(|_| sizes[below(sizes.len())]).collect();
                    // No data: the header alone may say what it likes.
                    let large = below(shape.len());
                    shape[large] = 1 << (10 * below(5));
                    let empty = below(shape.len());
                    shape[empty] = 0;
                    layout.tensors.insert(name, shape);
                }
            }
        }
        let info =
            load::describe(&Checkpoint::from_bytes("strange", layout.single_file(1)).unwrap());
        assert!(!info.problems.is_empty() || !info.family.is_supported());
    }
}
