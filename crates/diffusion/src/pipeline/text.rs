//! Prompts as the UNet takes them, at each of its calls.

use std::collections::HashMap;

use safelight_tensor::Tensor;

use super::request::{GenerateError, Request, Traced, refused};
use crate::prompt::schedule::{Scheduled, Steps, parse_schedule};
use crate::prompt::{
    CHUNK_TOKENS, CHUNKS_MAX, Chunk, PROMPT_BYTES_MAX, PromptStyle, emphasize, encode,
};
use crate::sampler::{Flavour, calls_per_step};
use crate::text::TextEncoder;

/// What one prompt is over the steps: its wordings, each in chunks.
struct Wordings {
    /// The chunks of every different wording.
    chunks: Vec<Vec<Chunk>>,
    /// The last call (from 1) and the wording used up to it, in order.
    until: Vec<(usize, usize)>,
}

impl Wordings {
    /// Reads `text` by the rules of the request's flavour; `field` is its name in errors.
    fn new(field: &'static str, text: &str, request: &Request) -> Result<Wordings, GenerateError> {
        if text.len() > PROMPT_BYTES_MAX {
            let value = format!("{} bytes long", text.len());
            return Err(refused(
                field,
                value,
                format!("at most {PROMPT_BYTES_MAX} bytes"),
            ));
        }
        let (style, scheduled) = match request.flavour {
            Flavour::Diffusers => {
                let until_step = usize::MAX;
                let text = text.to_owned();
                (PromptStyle::Plain, vec![Scheduled { until_step, text }])
            }
            Flavour::A1111 => {
                // A1111 counts calls of the network.
                let steps = Steps::new(calls_per_step(request.sampler) * request.steps);
                (PromptStyle::A1111, parse_schedule(text, steps))
            }
        };
        let mut known: HashMap<String, usize> = HashMap::new();
        let mut wordings = Wordings {
            chunks: Vec::new(),
            until: Vec::new(),
        };
        for Scheduled { until_step, text } in scheduled {
            let idx = match known.get(&text) {
                Some(&idx) => idx,
                None => {
                    let chunks = encode(&text, style);
                    if chunks.len() > CHUNKS_MAX {
                        let value = format!("{} chunks of {CHUNK_TOKENS} tokens", chunks.len());
                        return Err(refused(
                            field,
                            value,
                            format!("at most {CHUNKS_MAX} chunks"),
                        ));
                    }
                    wordings.chunks.push(chunks);
                    known.insert(text, wordings.chunks.len() - 1);
                    wordings.chunks.len() - 1
                }
            };
            wordings.until.push((until_step, idx));
        }
        Ok(wordings)
    }
}

/// How long a request's prompts are, in chunks.
pub(super) struct ChunkCounts {
    /// Of all wordings of both prompts together.
    pub(super) all: usize,
    /// Of the longest wording.
    pub(super) longest: usize,
}

/// Counts the chunks that a request's prompts have.
///
/// # Errors
/// [`GenerateError::Field`] if a prompt is too long.
pub(super) fn chunk_counts(request: &Request) -> Result<ChunkCounts, GenerateError> {
    let prompts = [
        Wordings::new("prompt", &request.prompt, request)?,
        Wordings::new("negative prompt", &request.negative_prompt, request)?,
    ];
    let lengths = prompts
        .iter()
        .flat_map(|prompt| &prompt.chunks)
        .map(Vec::len);
    Ok(ChunkCounts {
        all: lengths.clone().sum(),
        longest: lengths.max().unwrap_or(1),
    })
}

/// A prompt's embeddings over the steps.
pub(super) struct Prompts {
    /// `[1, T, D]` each.
    embeddings: Vec<Tensor>,
    /// The last call (from 1) and the embedding used up to it, in order.
    until: Vec<(usize, usize)>,
}

/// Asked before each chunk whether to go on.
pub(super) type GoOn<'a> = &'a mut dyn FnMut() -> Result<(), GenerateError>;

impl Prompts {
    /// Encodes the prompt, once for each wording it has over the steps.
    pub(super) fn positive(
        encoder: &TextEncoder,
        request: &Request,
        go_on: GoOn<'_>,
    ) -> Result<Prompts, GenerateError> {
        let wordings = Wordings::new("prompt", &request.prompt, request)?;
        Self::encode(encoder, wordings, request.clip_skip, request.seed, go_on)
    }

    /// Encodes the negative prompt likewise. Diffusers does not skip layers for it.
    pub(super) fn negative(
        encoder: &TextEncoder,
        request: &Request,
        go_on: GoOn<'_>,
    ) -> Result<Prompts, GenerateError> {
        let clip_skip = if request.flavour == Flavour::Diffusers {
            1
        } else {
            request.clip_skip
        };
        let wordings = Wordings::new("negative prompt", &request.negative_prompt, request)?;
        Self::encode(encoder, wordings, clip_skip, request.seed, go_on)
    }

    fn encode(
        encoder: &TextEncoder,
        wordings: Wordings,
        clip_skip: usize,
        seed: u64,
        go_on: GoOn<'_>,
    ) -> Result<Prompts, GenerateError> {
        let embedding =
            |chunks: &Vec<Chunk>| embedding_of(encoder, chunks, clip_skip, seed, &mut *go_on);
        Ok(Prompts {
            embeddings: wordings
                .chunks
                .iter()
                .map(embedding)
                .collect::<Result<_, _>>()?,
            until: wordings.until,
        })
    }

    /// Which embedding call number `call` (from 1) takes.
    pub(super) fn idx_at(&self, call: usize) -> usize {
        let now = self.until.iter().find(|(until, _)| call <= *until);
        now.or(self.until.last()).map_or(0, |&(_, idx)| idx)
    }

    /// Embedding `idx`, `[1, T, D]`.
    pub(super) fn get(&self, idx: usize) -> &Tensor {
        &self.embeddings[idx]
    }

    /// The first embedding by name.
    pub(super) fn traced(&self, name: &str) -> Traced {
        let first = &self.embeddings[0];
        Traced {
            name: name.to_owned(),
            shape: first.shape().to_vec(),
            values: first.data().to_vec(),
        }
    }
}

/// Encodes chunks one by one and joins them along the tokens.
fn embedding_of(
    encoder: &TextEncoder,
    chunks: &[Chunk],
    clip_skip: usize,
    seed: u64,
    go_on: GoOn<'_>,
) -> Result<Tensor, GenerateError> {
    let mut joined = Vec::new();
    let mut width = 0;
    for chunk in chunks {
        go_on()?;
        let mut encoded = encoder.forward(&chunk.ids, clip_skip);
        width = encoded.last_dim();
        emphasize(encoded.data_mut(), &chunk.weights);
        joined.extend_from_slice(encoded.data());
    }
    if joined.iter().any(|value: &f32| !value.is_finite()) {
        return Err(GenerateError::NotFinite {
            place: "the text encoder".into(),
            seed,
        });
    }
    Ok(Tensor::from_slice(
        &[1, joined.len() / width, width],
        &joined,
    ))
}
