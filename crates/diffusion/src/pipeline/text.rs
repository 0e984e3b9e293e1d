//! Prompts as the UNet takes them, at each of its calls.

use std::collections::HashMap;

use safelight_tensor::Tensor;

use super::request::{GenerateError, Request, Traced};
use crate::prompt::schedule::{Scheduled, Steps, parse_schedule};
use crate::prompt::{Chunk, PromptStyle, emphasize, encode};
use crate::sampler::{Flavour, Sampler};
use crate::text::TextEncoder;

/// A prompt's embeddings over the steps.
pub(super) struct Prompts {
    /// `[1, T, D]` each.
    embeddings: Vec<Tensor>,
    /// The last call (from 1) each is used in.
    until: Vec<usize>,
}

impl Prompts {
    /// Encodes the prompt, once for each wording it has over the steps.
    pub(super) fn positive(
        encoder: &TextEncoder,
        request: &Request,
    ) -> Result<Prompts, GenerateError> {
        Self::encode(encoder, &request.prompt, request.clip_skip, request)
    }

    /// Encodes the negative prompt likewise. Diffusers does not skip layers for it.
    pub(super) fn negative(
        encoder: &TextEncoder,
        request: &Request,
    ) -> Result<Prompts, GenerateError> {
        let clip_skip = if request.flavour == Flavour::Diffusers {
            1
        } else {
            request.clip_skip
        };
        Self::encode(encoder, &request.negative_prompt, clip_skip, request)
    }

    fn encode(
        encoder: &TextEncoder,
        text: &str,
        clip_skip: usize,
        request: &Request,
    ) -> Result<Prompts, GenerateError> {
        let (style, wordings) = match request.flavour {
            Flavour::Diffusers => {
                let text = text.to_owned();
                (
                    PromptStyle::Plain,
                    vec![Scheduled {
                        until_step: usize::MAX,
                        text,
                    }],
                )
            }
            Flavour::A1111 => {
                // Heun calls the network twice a step, and A1111 counts calls.
                let calls = if request.sampler == Sampler::Heun {
                    2
                } else {
                    1
                };
                (
                    PromptStyle::A1111,
                    parse_schedule(text, Steps::new(calls * request.steps)),
                )
            }
        };
        let mut known: HashMap<String, Tensor> = HashMap::new();
        let mut prompts = Prompts {
            embeddings: Vec::new(),
            until: Vec::new(),
        };
        for Scheduled { until_step, text } in wordings {
            let embedding = match known.get(&text) {
                Some(embedding) => embedding.clone(),
                None => embedding_of(encoder, &encode(&text, style), clip_skip, request.seed)?,
            };
            known.insert(text, embedding.clone());
            prompts.embeddings.push(embedding);
            prompts.until.push(until_step);
        }
        Ok(prompts)
    }

    /// Which embedding call number `call` (from 1) takes.
    pub(super) fn idx_at(&self, call: usize) -> usize {
        self.until
            .iter()
            .position(|&until| call <= until)
            .unwrap_or(self.until.len() - 1)
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
) -> Result<Tensor, GenerateError> {
    let mut joined = Vec::new();
    let mut width = 0;
    for chunk in chunks {
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
    Ok(Tensor::from_vec(&[1, joined.len() / width, width], joined))
}
