//! Layouts against what diffusers makes of the same models: names, shapes and bytes of every tensor, both ways.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use safelight_convert::layout::{Family, FolderOptions, Layout, Model};
use safelight_convert::{Contents, ConvertError, Limits, Source, open};
use safelight_format::{Dtype, TensorSpec, encode_f32};
use serde_json::Value;

/// Name, shape, crc32 of the bytes.
type Listed = BTreeMap<String, (Vec<u64>, u32)>;

const MEMORY: u64 = 1 << 30;

/// The remainders of all bytes.
const CRCS: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (crc >> 8) ^ CRCS[usize::from(crc as u8 ^ byte)]
    })
}

/// The rule of `tools/golden/checkpoint_layouts.py`.
fn by_rule(name: &str, shape: &[u64]) -> Vec<u8> {
    let (start, count) = (crc32(name.as_bytes()), shape.iter().product::<u64>() as u32);
    let value = |i: u32| {
        (start.wrapping_add(i.wrapping_mul(2_654_435_761)) >> 8) as f32 / 16_777_216.0 - 0.5
    };
    encode_f32(&(0..count).map(value).collect::<Vec<f32>>())
}

/// Tensors in memory.
#[derive(Default)]
struct Memory {
    contents: Contents,
    bytes: Vec<Vec<u8>>,
}

impl Memory {
    fn add(&mut self, name: &str, dtype: Dtype, shape: &[u64], bytes: Vec<u8>) {
        self.contents.tensors.push(TensorSpec {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
        });
        self.bytes.push(bytes);
    }

    /// Every tensor of a golden list by the rule, names behind a prefix.
    fn add_listed(&mut self, prefix: &str, list: &Value) {
        for entry in list.as_array().unwrap() {
            let name = format!("{prefix}{}", entry[0].as_str().unwrap());
            let shape: Vec<u64> = serde_json::from_value(entry[1].clone()).unwrap();
            let bytes = by_rule(&name, &shape);
            self.add(&name, Dtype::F32, &shape, bytes);
        }
    }
}

impl Source for Memory {
    fn contents(&self) -> &Contents {
        &self.contents
    }
    fn read(
        &self,
        index: usize,
        out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        self.bytes[index].chunks(1000).try_for_each(out)
    }
}

fn golden(family: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!(
        "../../testdata/golden/convert/layout_{family}.json"
    ));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn folder_source(golden: &Value) -> Memory {
    let mut memory = Memory::default();
    for (part, list) in golden["folder"].as_object().unwrap() {
        memory.add_listed(&format!("{part}."), list);
    }
    memory
}

fn expected(prefix: &str, list: &Value) -> Listed {
    let entry = |entry: &Value| {
        let shape = serde_json::from_value(entry[1].clone()).unwrap();
        (
            format!("{prefix}{}", entry[0].as_str().unwrap()),
            (shape, entry[2].as_u64().unwrap() as u32),
        )
    };
    list.as_array().unwrap().iter().map(entry).collect()
}

fn bytes_of(source: &dyn Source, index: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    source
        .read(index, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
    bytes
}

fn found(source: &dyn Source) -> Listed {
    let tensors = source.tensors().iter().enumerate();
    tensors
        .map(|(index, tensor)| {
            (
                tensor.name.clone(),
                (tensor.shape.clone(), crc32(&bytes_of(source, index))),
            )
        })
        .collect()
}

#[track_caller]
fn assert_same(found: &Listed, expected: &Listed) {
    let missing: Vec<_> = expected
        .keys()
        .filter(|name| !found.contains_key(*name))
        .collect();
    let more: Vec<_> = found
        .keys()
        .filter(|name| !expected.contains_key(*name))
        .collect();
    assert!(
        missing.is_empty() && more.is_empty(),
        "missing {missing:?}, too many {more:?}"
    );
    for (name, expected) in expected {
        assert_eq!(&found[name], expected, "{name}");
    }
}

fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn family(name: &str) -> Family {
    match name {
        "sd1" => Family::Sd1,
        "sd2" => Family::Sd2,
        _ => Family::Xl,
    }
}

#[test]
fn a_folder_becomes_the_single_file_that_diffusers_makes() {
    for name in ["sd1", "sd2", "xl"] {
        let golden = golden(name);
        let model = Model::find(Arc::new(folder_source(&golden)), None, MEMORY).unwrap();
        assert_eq!(
            (model.layout, model.family),
            (Layout::Diffusers, family(name))
        );
        assert_same(
            &found(&model.to_ldm().unwrap()),
            &expected("", &golden["single"]),
        );
    }
}

#[test]
fn a_single_file_becomes_the_folder_that_diffusers_makes() {
    for name in ["sd1", "sd2", "xl"] {
        let golden = golden(name);
        let mut memory = Memory::default();
        memory.add_listed("", &golden["single"]);
        let model = Model::find(Arc::new(memory), None, MEMORY).unwrap();
        assert_eq!((model.layout, model.family), (Layout::Ldm, family(name)));
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("model");
        let report = model
            .to_folder(&folder, &FolderOptions::default(), &mut go_on)
            .unwrap();
        assert!(
            report.files.contains(&"model_index.json".into())
                && report.files.contains(&"tokenizer/vocab.json".into())
        );
        let written = open(&folder, &Limits::default()).unwrap();
        let parts = golden["from_single"].as_object().unwrap();
        let all = parts
            .iter()
            .flat_map(|(part, list)| expected(&format!("{part}."), list))
            .collect();
        assert_same(&found(&*written), &all);
    }
}

/// A single file with everything that has no place in a folder.
fn whole_single(name: &str) -> Memory {
    let mut memory = Memory {
        contents: Contents {
            label: "memory".into(),
            metadata: BTreeMap::from([("modelspec.title".into(), "Whole".into())]),
            ..Contents::default()
        },
        ..Memory::default()
    };
    memory.add_listed("", &golden(name)["single"]);
    let layer = "cond_stage_model.model.transformer.resblocks.3";
    match name {
        "sd1" => memory.add(
            "cond_stage_model.transformer.text_model.embeddings.position_ids",
            Dtype::I64,
            &[1, 2],
            vec![1; 16],
        ),
        "sd2" => {
            memory.add(
                "cond_stage_model.model.text_projection",
                Dtype::F32,
                &[32, 32],
                vec![2; 4096],
            );
            for (field, shape) in [("attn.in_proj_weight", &[96, 32][..]), ("ln_1.bias", &[32])] {
                memory.add(
                    &format!("{layer}.{field}"),
                    Dtype::F32,
                    shape,
                    by_rule(field, shape),
                );
            }
            memory
                .contents
                .metadata
                .insert("modelspec.prediction_type".into(), "v".into());
        }
        _ => {
            memory.add(
                "conditioner.embedders.1.model.logit_scale",
                Dtype::F32,
                &[],
                vec![3; 4],
            );
            memory.add("v_pred", Dtype::F32, &[0], vec![]);
        }
    }
    memory.add("alphas_cumprod", Dtype::F32, &[2], vec![9; 8]);
    memory
}

#[test]
fn there_and_back_nothing_is_lost() {
    for name in ["sd1", "sd2", "xl"] {
        let single: Arc<dyn Source> = Arc::new(whole_single(name));
        let before = found(&*single);
        let place = tempfile::tempdir().unwrap();
        for (index, shards) in [None, Some(100_000)].into_iter().enumerate() {
            let model = Model::find(single.clone(), None, MEMORY).unwrap();
            let folder = place.path().join(index.to_string());
            let options = FolderOptions {
                shard_bytes_max: shards,
                ..FolderOptions::default()
            };
            model.to_folder(&folder, &options, &mut go_on).unwrap();
            let back = Model::find(
                open(&folder, &Limits::default()).unwrap().into(),
                None,
                MEMORY,
            )
            .unwrap();
            assert_eq!(
                (back.layout, back.prediction),
                (Layout::Diffusers, model.prediction)
            );
            let back = back.to_ldm().unwrap();
            assert_same(&found(&back), &before);
            assert_eq!(
                back.metadata().get("modelspec.title").map(String::as_str),
                Some("Whole")
            );
        }
    }
}

#[test]
fn a_folder_is_not_written_over_another_and_leaves_nothing_when_stopped() {
    let model = Model::find(Arc::new(whole_single("sd1")), None, MEMORY).unwrap();
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("model");
    let stopped = model.to_folder(&folder, &FolderOptions::default(), &mut |done, _| {
        if done > 10_000 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert!(matches!(stopped, Err(ConvertError::Cancelled)));
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    std::fs::create_dir(&folder).unwrap();
    model
        .to_folder(&folder, &FolderOptions::default(), &mut go_on)
        .unwrap();
    let taken = model.to_folder(&folder, &FolderOptions::default(), &mut go_on);
    assert!(matches!(taken, Err(ConvertError::Request { .. })));
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
}

#[test]
fn what_is_no_whole_model_is_refused_by_its_missing_parts() {
    let check = |memory: Memory, says: &str| {
        let error = Model::find(Arc::new(memory), None, MEMORY)
            .err()
            .expect("refused")
            .to_string();
        assert!(error.contains(says), "{error}");
    };
    check(Memory::default(), "text_encoder, unet, vae missing");
    let without = |start: &str| {
        let mut memory = whole_single("xl");
        let keep: Vec<bool> = memory
            .contents
            .tensors
            .iter()
            .map(|tensor| !tensor.name.starts_with(start))
            .collect();
        let mut kept = keep.iter();
        memory.bytes.retain(|_| *kept.next().unwrap());
        memory
            .contents
            .tensors
            .retain(|tensor| !tensor.name.starts_with(start));
        memory
    };
    check(without("first_stage_model."), "vae missing");
    check(without("conditioner.embedders.1."), "second encoder");
}
