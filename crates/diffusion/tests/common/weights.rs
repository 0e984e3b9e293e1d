//! The weight rule: tensors that follow from name, shape and seed, and whole model files made of them.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::golden_dir;

/// A layout of `testdata/golden/layouts`: which tensors a model has, in a single file and in a diffusers folder.
pub struct Layout {
    /// LDM name to shape.
    pub tensors: BTreeMap<String, Vec<usize>>,
    /// `__metadata__` of the single file; empty for most.
    pub metadata: BTreeMap<String, String>,
    /// Folder name (`unet`, `vae`, `text_encoder`) to that part; empty where the layout has no folder form.
    pub folder: BTreeMap<String, FolderPart>,
}

/// One model of a diffusers folder.
pub struct FolderPart {
    /// Its `config.json`.
    pub config: Value,
    /// Name in the file to the LDM name the rule goes by, and the shape in the file.
    pub tensors: BTreeMap<String, (String, Vec<usize>)>,
}

impl Layout {
    /// Reads `testdata/golden/layouts/<name>.json`.
    pub fn read(name: &str) -> Layout {
        let path = golden_dir().join(format!("layouts/{name}.json"));
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let body: Value = serde_json::from_str(&text).expect("a layout is JSON");
        let tensors = object(&body["tensors"])
            .iter()
            .map(|(name, shape)| (name.clone(), shape_of(shape)))
            .collect();
        let metadata = object(&body["metadata"])
            .iter()
            .map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned()))
            .collect();
        let mut folder = BTreeMap::new();
        if let Some(parts) = body["diffusers"].as_object() {
            for (part, body) in parts {
                let tensors = object(&body["tensors"])
                    .iter()
                    .map(|(name, row)| {
                        (
                            name.clone(),
                            (row[0].as_str().unwrap().to_owned(), shape_of(&row[1])),
                        )
                    })
                    .collect();
                folder.insert(
                    part.clone(),
                    FolderPart {
                        config: body["config"].clone(),
                        tensors,
                    },
                );
            }
        }
        Layout {
            tensors,
            metadata,
            folder,
        }
    }

    /// The single-file checkpoint (LDM names, F32) under case seed `seed`, as safetensors bytes.
    pub fn single_file(&self, seed: u32) -> Vec<u8> {
        self.single_file_with(seed, |_, _| {})
    }

    /// [`Layout::single_file`] with `change(name, values)` made to each tensor.
    pub fn single_file_with(&self, seed: u32, change: impl Fn(&str, &mut [f32])) -> Vec<u8> {
        let tensors = self.tensors.iter().map(|(name, shape)| {
            let mut values = tensor(name, shape, seed);
            change(name, &mut values);
            (name.as_str(), shape.as_slice(), values)
        });
        safetensors_bytes(tensors.collect(), &self.metadata)
    }

    /// Writes the single-file checkpoint as f16, tensor by tensor: the whole of it may be larger than memory.
    ///
    /// Carries `position_ids` as the released SD 1.x files do; loaders must pass over it. Returns the bytes written.
    pub fn write_f16(&self, seed: u32, file: &mut impl Write) -> std::io::Result<usize> {
        const POSITION_IDS: &str =
            "cond_stage_model.transformer.text_model.embeddings.position_ids";
        let mut end = 77 * 8;
        let mut header = Map::new();
        header.insert(
            POSITION_IDS.into(),
            json!({"dtype": "I64", "shape": [1, 77], "data_offsets": [0, end]}),
        );
        for (name, shape) in &self.tensors {
            let start = end;
            end += 2 * shape.iter().product::<usize>();
            header.insert(
                name.clone(),
                json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]}),
            );
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        file.write_all(&(text.len() as u64).to_le_bytes())?;
        file.write_all(&text)?;
        for position in 0..77i64 {
            file.write_all(&position.to_le_bytes())?;
        }
        for (name, shape) in &self.tensors {
            file.write_all(&f16_bytes(&tensor(name, shape, seed)))?;
        }
        Ok(8 + text.len() + end)
    }

    /// Writes the diffusers folder under case seed `seed` into `root`, which must exist.
    ///
    /// Only the three models: no tokenizer files and no scheduler.
    pub fn write_folder(&self, seed: u32, root: &Path) {
        assert!(!self.folder.is_empty(), "this layout has no folder form");
        for (part, body) in &self.folder {
            let folder = root.join(part);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("config.json"), body.config.to_string()).unwrap();
            let tensors = body
                .tensors
                .iter()
                .map(|(name, (ldm, shape))| {
                    (name.as_str(), shape.as_slice(), tensor(ldm, shape, seed))
                })
                .collect();
            let file = if part == "text_encoder" {
                "model"
            } else {
                "diffusion_pytorch_model"
            };
            std::fs::write(
                folder.join(format!("{file}.safetensors")),
                safetensors_bytes(tensors, &BTreeMap::new()),
            )
            .unwrap();
        }
        let index = json!({
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"],
        });
        std::fs::write(root.join("model_index.json"), index.to_string()).unwrap();
    }
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().expect("an object")
}

fn shape_of(value: &Value) -> Vec<usize> {
    value
        .as_array()
        .expect("a shape")
        .iter()
        .map(|n| n.as_u64().expect("a size") as usize)
        .collect()
}

/// Safetensors bytes of F32 tensors `(name, shape, values)`, in the order given.
pub fn safetensors_bytes(
    tensors: Vec<(&str, &[usize], Vec<f32>)>,
    metadata: &BTreeMap<String, String>,
) -> Vec<u8> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut end = 0;
    for (name, shape, values) in &tensors {
        let start = end;
        end += values.len() * 4;
        header.insert(
            (*name).into(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}),
        );
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = Vec::with_capacity(8 + text.len() + end);
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text);
    for (_, _, values) in &tensors {
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    bytes
}

/// The weight called `name` (an LDM name) of shape `shape` under case seed `seed`.
///
/// Source: the weight rule of `tools/golden/README.md`; twin of `weights.tensor` there.
pub fn tensor(name: &str, shape: &[usize], seed: u32) -> Vec<f32> {
    let mut rng = Mt19937::seeded(crc32(name.as_bytes()) ^ seed);
    let count = shape.iter().product();
    let signed = std::iter::repeat_with(|| 2.0 * rng.uniform() - 1.0).take(count);
    match shape.len() {
        1 if name.ends_with(".weight") => signed.map(|s| 1.0 + s * 0.1).collect(),
        1 => signed.map(|s| s * 0.1).collect(),
        _ => {
            let amplitude = amplitude(name, shape);
            signed.map(|s| s * amplitude).collect()
        }
    }
}

/// Values rounded to f16, nearest and ties to even, little-endian.
///
/// # Panics
/// If a value is not finite or too large for f16: the rule makes none.
pub fn f16_bytes(values: &[f32]) -> Vec<u8> {
    let bits = |value: f32| {
        let sign = (value.to_bits() >> 16) as u16 & 0x8000;
        let size = value.abs();
        assert!(size < 65_504.0, "{value} does not fit f16");
        if size < f32::from_bits(0x3880_0000) {
            // Below 2^-14 steps are 2^-24: adding 2^-1, whose own steps those are, rounds in hardware.
            return sign | ((size + 0.5).to_bits() - 0.5f32.to_bits()) as u16;
        }
        // 13 bits go; half of what they can count, and one if the bit above is odd, carries as rounding must.
        let rebased = size.to_bits() - (112 << 23);
        sign | ((rebased + 0xFFF + ((rebased >> 13) & 1)) >> 13) as u16
    };
    values
        .iter()
        .flat_map(|&value| bits(value).to_le_bytes())
        .collect()
}

/// Suffixes of the names with a gain other than 1, and the gain.
const GAINS: [(&[&str], f64); 4] = [
    (
        &[
            "to_q.weight",
            "to_k.weight",
            "q_proj.weight",
            "k_proj.weight",
            "attn_1.q.weight",
            "attn_1.k.weight",
        ],
        1.5,
    ),
    (&["emb_layers.1.weight"], 2.0),
    (&["first_stage_model.quant_conv.weight"], 4.0),
    (&["first_stage_model.post_quant_conv.weight"], 0.25),
];

fn amplitude(name: &str, shape: &[usize]) -> f32 {
    if name.ends_with("embedding.weight") {
        return (0.5 * 3f64.sqrt()) as f32;
    }
    let fan_in: usize = shape[1..].iter().product();
    let gain = GAINS
        .iter()
        .find(|(suffixes, _)| suffixes.iter().any(|s| name.ends_with(s)))
        .map_or(1.0, |row| row.1);
    ((3.0 / fan_in as f64).sqrt() * gain) as f32
}

/// CRC-32 (IEEE 802.3, reflected), as zlib's.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// The Mersenne Twister, for 24-bit uniforms only.
///
/// Source: Matsumoto and Nishimura 1998, `mt19937ar`'s `init_genrand` and `genrand_int32`.
pub struct Mt19937 {
    state: Vec<u32>,
    idx: usize,
}

impl Mt19937 {
    pub fn seeded(seed: u32) -> Mt19937 {
        let mut state = vec![seed; 624];
        for i in 1..624 {
            state[i] = 1_812_433_253u32
                .wrapping_mul(state[i - 1] ^ (state[i - 1] >> 30))
                .wrapping_add(i as u32);
        }
        Mt19937 { state, idx: 624 }
    }

    pub fn next_u32(&mut self) -> u32 {
        if self.idx == 624 {
            for i in 0..624 {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7FFF_FFFF);
                let twist = (y & 1).wrapping_neg() & 0x9908_B0DF;
                self.state[i] = self.state[(i + 397) % 624] ^ (y >> 1) ^ twist;
            }
            self.idx = 0;
        }
        let mut y = self.state[self.idx];
        self.idx += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9D2C_5680;
        y ^= (y << 15) & 0xEFC6_0000;
        y ^ (y >> 18)
    }

    /// A multiple of 2⁻²⁴ in [0, 1), as `torch.rand` in float32.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u32() & 0xFF_FFFF) as f32 / 16_777_216.0
    }
}
