//! How much memory a request will need.

use super::denoise::LATENT_CHANNELS;
use super::request::{GenerateError, Request};
use super::text::{ChunkCounts, chunk_counts};
use crate::load::{LEAN_RESIDENT_BYTES, ModelInfo, Part, PartInfo};
use crate::precision::{Precision, Ways};
use crate::prompt::CHUNK_IDS;

const BYTES: u64 = std::mem::size_of::<f32>() as u64;

/// Which networks are in memory at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residence {
    /// All: a [`crate::load::Model`].
    All,
    /// Those that a drawing needs at the time: [`crate::load::ModelFiles`].
    Staged,
}

/// The memory that drawing `request` with the described model, loaded in these `ways`, takes at its peak, weights included, in bytes.
///
/// An estimate from shapes, meant to be too high rather than too low: packed weights, what reading them takes for a moment, and
/// what the UNet (one picture, with guidance two) and the VAE work with. Long prompts count: their embeddings, and their keys
/// and values in every cross-attention.
///
/// # Errors
/// If the request's size is impossible in itself, or a prompt longer than any may be.
pub fn memory_bytes(
    info: &ModelInfo,
    request: &Request,
    ways: impl Into<Ways>,
    residence: Residence,
) -> Result<u64, GenerateError> {
    let factor = info.downscale();
    let (width, height) = super::canvas::drawn_size(request, factor)?;
    let (latent_w, latent_h) = (
        width.div_ceil(factor) as u64,
        height.div_ceil(factor) as u64,
    );
    let ways = ways.into();
    let packed = |part| info.part(part).map_or(0, |info| packed_bytes(info, ways));
    let [text, unet, vae] = Part::ALL.map(packed);
    let pictures = request.batch as u64
        * (3 * (width * height) as u64 + LATENT_CHANNELS as u64 * latent_w * latent_h * BYTES);
    let kept = request.shortcuts.cache_interval > 1;
    let steps = unet_bytes(info, latent_w * latent_h, kept);
    let coding = vae_bytes(info, (width * height) as u64);
    let values: u64 = info.parts.iter().map(|part| part.parameters * BYTES).sum();
    let reading = READING_BYTES.min(values);
    let networks = match residence {
        Residence::All => text + unet + vae + steps.max(coding).max(reading),
        Residence::Staged => {
            let fetched = if ways.lean {
                unet.saturating_sub(LEAN_RESIDENT_BYTES as u64)
            } else {
                0
            };
            let unet = unet - fetched + fetched.min(FETCHING_BYTES);
            let both = request.batch > 1 && !ways.lean;
            let beside = |bytes| if both { bytes } else { 0 };
            (text + reading)
                .max(unet + steps.max(reading) + beside(vae))
                .max(vae + coding.max(reading) + beside(unet))
        }
    };
    let prompts = text_bytes(info, &chunk_counts(request)?);
    Ok(networks + networks / 16 + pictures + prompts)
}

/// What reading takes beside packed weights: for each thread a panel's rows as they are stored, 3 MB at most in Stable
/// Diffusion 1.x, for as many threads as large machines have.
const READING_BYTES: u64 = 250 << 20;
/// What the largest fetched weight of Stable Diffusion 1.x takes for a moment, packed, and what reading it takes.
const FETCHING_BYTES: u64 = 250 << 20;

/// The packed weights of a part.
fn packed_bytes(info: &PartInfo, ways: Ways) -> u64 {
    info.parameters * eighths(info.part, ways) * BYTES / 8
}

/// Eighths of an `f32` that a weight takes on average: of int8 nearly three with the scales, the last words that are not
/// full, and the layers that stay finer. Transformed weights of 3×3 convolutions take 16/9 or 4 times as much: in SD 1.x's
/// UNet that makes 1.45 times all of them in f32, 1.2 in bf16; in its VAE, which has hardly any others, up to 4 and 1.75.
fn eighths(part: Part, ways: Ways) -> u64 {
    let precision = ways.of_part(part).precision;
    let plain = match precision {
        Precision::F32 => 8,
        Precision::Bf16 => 4,
        Precision::Int8 => 3,
    };
    match (part, precision) {
        _ if ways.lean => plain,
        (Part::UNet, Precision::F32) => 12,
        (Part::UNet, Precision::Bf16) => 5,
        (Part::Vae, Precision::F32) => 30,
        (Part::Vae, Precision::Bf16) => 7,
        _ => plain,
    }
}

/// Embeddings of every wording, and keys and values of the longest, positive and negative. The way up has a block more
/// than the way down on each level: three times the way down is more than both and the middle.
fn text_bytes(info: &ModelInfo, chunks: &ChunkCounts) -> u64 {
    let Some(unet) = &info.unet else { return 0 };
    let tokens = |chunks: usize| (chunks * CHUNK_IDS) as u64;
    let channels: usize = unet
        .down
        .iter()
        .map(|level| level.channels * level.depths.iter().sum::<usize>())
        .sum();
    let embeddings = tokens(chunks.all) * unet.context_channels as u64;
    let keys_and_values = 2 * 2 * tokens(chunks.longest) * 3 * channels as u64;
    BYTES * (embeddings + keys_and_values)
}

/// Skips of every level, and 22 working tensors of the widest one: the gated feed-forward takes twelve, and recycled buffers
/// are larger than what they serve for. What step caching keeps is one more, of a level's size but the next one's channels:
/// twice is enough.
fn unet_bytes(info: &ModelInfo, pixels: u64, kept: bool) -> u64 {
    let Some(unet) = &info.unet else { return 0 };
    let mut skips = 0;
    let mut working = 0;
    for (level, block) in unet.down.iter().enumerate() {
        let level_pixels = pixels >> (2 * level);
        let tensor = level_pixels * block.channels as u64;
        skips += (block.depths.len() as u64 + 1) * tensor;
        working = working.max((22 + 2 * u64::from(kept)) * tensor);
    }
    2 * BYTES * (skips + working)
}

/// Input, normed input, output and column buffer where the decoder is widest for its size.
fn vae_bytes(info: &ModelInfo, pixels: u64) -> u64 {
    let Some(vae) = &info.vae else { return 0 };
    let channels = &vae.decoder.channels;
    let level = |idx: usize| {
        let shrunk = 2 * (channels.len() - 1 - idx);
        let before = channels[idx.saturating_sub(1)];
        (pixels >> shrunk) * (2 * before + 3 * channels[idx]) as u64
    };
    BYTES * (0..channels.len()).map(level).max().unwrap_or(0)
}
