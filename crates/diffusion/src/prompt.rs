//! A prompt's way from text to the text encoder's input: chunks of 77 token ids and as many weights.
//!
//! Two traditions live here. A1111's reads `(emphasis:1.2)` and `BREAK` and takes prompts of any length, in chunks of
//! 75 tokens; diffusers' takes every character as text and cuts after 75 tokens. [`schedule`] is a step before both:
//! prompts that change while the picture is made. Running the text encoder is the `text` module's.

mod attention;
pub mod schedule;

pub use attention::{Span, Weighted, parse_attention};

use crate::tokenizer::{BOS, COMMA, EOS, Tokenizer};

/// Ids in a chunk: start, 75 tokens, end.
pub const CHUNK_IDS: usize = 77;
/// Tokens of the prompt in a chunk.
pub const CHUNK_TOKENS: usize = CHUNK_IDS - 2;
/// Most chunks of one prompt that a request may have: 4800 tokens, far beyond what anyone writes.
pub const CHUNKS_MAX: usize = 64;
/// Longest prompt of a request in bytes, brackets and all.
pub const PROMPT_BYTES_MAX: usize = 64 << 10;
/// How far back from a full chunk's end a comma may stand for the text after it to move to the next chunk.
const COMMA_BACKTRACK: usize = 20;

/// Whose rules a prompt is read by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptStyle {
    /// A1111: `(emphasis:1.2)`, `BREAK`, and as many chunks as the text needs.
    #[default]
    A1111,
    /// diffusers: every character is text, and what comes after 75 tokens is cut off ([`cut_off`] tells what).
    Plain,
}

/// What the text encoder gets at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// [`BOS`], up to 75 tokens, then [`EOS`] to the end.
    pub ids: [u32; CHUNK_IDS],
    /// What each position's output is multiplied by ([`emphasize`]); 1 at start, end and padding.
    pub weights: [f32; CHUNK_IDS],
}

impl Chunk {
    /// The chunk of an empty prompt.
    pub fn empty() -> Chunk {
        Chunk::new(&[])
    }

    fn new(tokens: &[(u32, f32)]) -> Chunk {
        assert!(tokens.len() <= CHUNK_TOKENS);
        let mut chunk = Chunk {
            ids: [EOS; CHUNK_IDS],
            weights: [1.0; CHUNK_IDS],
        };
        chunk.ids[0] = BOS;
        for (idx, &(id, weight)) in tokens.iter().enumerate() {
            (chunk.ids[idx + 1], chunk.weights[idx + 1]) = (id, weight);
        }
        chunk
    }
}

/// Reads `text` by the rules of `style`; at least one chunk, exactly one when plain.
///
/// Each chunk is encoded on its own, then [`emphasize`]d, and the results are joined along the tokens.
///
/// ```
/// use safelight_diffusion::prompt::{PromptStyle, encode};
/// let chunks = encode("a (red:1.5) cat", PromptStyle::A1111);
/// assert_eq!(chunks.len(), 1);
/// assert_eq!(chunks[0].ids[..5], [49406, 320, 736, 2368, 49407]);
/// assert_eq!(chunks[0].weights[..5], [1.0, 1.0, 1.5, 1.0, 1.0]);
/// ```
pub fn encode(text: &str, style: PromptStyle) -> Vec<Chunk> {
    match style {
        PromptStyle::A1111 => Chunker::chunks(&parse_attention(text)),
        PromptStyle::Plain => {
            let ids = Tokenizer::clip().encode(text);
            let tokens: Vec<_> = ids
                .into_iter()
                .take(CHUNK_TOKENS)
                .map(|id| (id, 1.0))
                .collect();
            vec![Chunk::new(&tokens)]
        }
    }
}

/// A positive and a negative prompt in equally many chunks, the shorter one filled up with empty ones.
pub fn encode_pair(positive: &str, negative: &str, style: PromptStyle) -> (Vec<Chunk>, Vec<Chunk>) {
    let mut pair = (encode(positive, style), encode(negative, style));
    let count = pair.0.len().max(pair.1.len());
    pair.0.resize_with(count, Chunk::empty);
    pair.1.resize_with(count, Chunk::empty);
    pair
}

/// The end of `text` that [`PromptStyle::Plain`] does not see, as the tokenizer reads it; `None` when all fits.
pub fn cut_off(text: &str) -> Option<String> {
    let ids = Tokenizer::clip().encode(text);
    Some(Tokenizer::clip().decode(ids.get(CHUNK_TOKENS..)?)).filter(|rest| !rest.is_empty())
}

/// Multiplies each position of a chunk's encoding by its weight, then everything so that the mean stays what it was.
///
/// `encoding` is `[T, D]` with T = 77. Where all weights are 1, nothing changes. A mean that cannot be kept (the
/// weighted one is zero, or a number overflows) is let go.
///
/// # Panics
/// If the length is no multiple of 77.
///
/// Source: A1111's emphasis mode "Original".
pub fn emphasize(encoding: &mut [f32], weights: &[f32; CHUNK_IDS]) {
    assert!(
        encoding.len().is_multiple_of(CHUNK_IDS),
        "{} values are no whole number of 77 rows",
        encoding.len()
    );
    if encoding.is_empty() || weights.iter().all(|&weight| weight == 1.0) {
        return;
    }
    let sum = |values: &[f32]| values.iter().map(|&value| f64::from(value)).sum::<f64>();
    let before = sum(encoding);
    for (row, &weight) in encoding
        .chunks_exact_mut(encoding.len() / CHUNK_IDS)
        .zip(weights)
    {
        row.iter_mut().for_each(|value| *value *= weight);
    }
    let restore = (before / sum(encoding)) as f32;
    if restore.is_finite() {
        encoding.iter_mut().for_each(|value| *value *= restore);
    }
}

/// Fills chunks token by token.
struct Chunker {
    done: Vec<Chunk>,
    tokens: Vec<(u32, f32)>,
    /// Where the last comma of the chunk being filled stands.
    comma_idx: Option<usize>,
}

impl Chunker {
    fn chunks(spans: &[Weighted]) -> Vec<Chunk> {
        let mut chunker = Chunker {
            done: Vec::new(),
            tokens: Vec::new(),
            comma_idx: None,
        };
        for Weighted { span, weight } in spans {
            match span {
                Span::Break => chunker.finish_chunk(),
                Span::Text(text) => {
                    for id in Tokenizer::clip().encode(text) {
                        chunker.push(id, *weight as f32);
                    }
                }
            }
        }
        if !chunker.tokens.is_empty() || chunker.done.is_empty() {
            chunker.finish_chunk();
        }
        chunker.done
    }

    fn push(&mut self, id: u32, weight: f32) {
        let full = self.tokens.len() == CHUNK_TOKENS;
        if id == COMMA {
            self.comma_idx = Some(self.tokens.len());
        } else if let Some(comma_idx) = self
            .comma_idx
            .filter(|idx| full && CHUNK_TOKENS - idx <= COMMA_BACKTRACK)
        {
            let moved = self.tokens.split_off(comma_idx + 1);
            self.finish_chunk();
            self.tokens = moved;
        }
        if self.tokens.len() == CHUNK_TOKENS {
            self.finish_chunk();
        }
        self.tokens.push((id, weight));
    }

    fn finish_chunk(&mut self) {
        self.done.push(Chunk::new(&self.tokens));
        self.tokens.clear();
        self.comma_idx = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The prompt's own ids in each chunk.
    fn tokens(text: &str, style: PromptStyle) -> Vec<Vec<u32>> {
        let inside = |chunk: &Chunk| {
            chunk.ids[1..76]
                .iter()
                .copied()
                .take_while(|&id| id != EOS)
                .collect()
        };
        encode(text, style).iter().map(inside).collect()
    }

    fn lengths(text: &str) -> Vec<usize> {
        tokens(text, PromptStyle::A1111)
            .iter()
            .map(Vec::len)
            .collect()
    }

    #[test]
    fn an_empty_prompt_is_one_empty_chunk() {
        for style in [PromptStyle::A1111, PromptStyle::Plain] {
            let chunks = encode("", style);
            assert_eq!(chunks, [Chunk::empty()]);
            assert_eq!(chunks[0].ids[0], BOS);
            assert!(chunks[0].ids[1..].iter().all(|&id| id == EOS));
        }
    }

    #[test]
    fn chunks_hold_75_tokens() {
        assert_eq!(lengths(&"cat ".repeat(75)), [75]);
        assert_eq!(lengths(&"cat ".repeat(76)), [75, 1]);
        assert_eq!(lengths(&"cat ".repeat(160)), [75, 75, 10]);
    }

    #[test]
    fn a_late_comma_moves_what_follows_it() {
        let prompt =
            |before: usize, after: usize| "cat ".repeat(before) + ", " + &"dog ".repeat(after);
        assert_eq!(lengths(&prompt(60, 14)), [75]);
        assert_eq!(lengths(&prompt(60, 15)), [61, 15]);
        assert_eq!(lengths(&prompt(55, 20)), [56, 20]); // 20 back: the farthest.
        assert_eq!(lengths(&prompt(54, 21)), [75, 1]); // 21 back: too far.
        assert_eq!(lengths(&prompt(74, 3)), [75, 3]); // The comma is the last token.
        assert_eq!(lengths(&prompt(75, 3)), [75, 4]); // The comma itself goes over.
    }

    #[test]
    fn break_ends_a_chunk_and_keeps_weights_apart() {
        let chunks = encode("a cat BREAK (a dog:1.5)", PromptStyle::A1111);
        assert_eq!(chunks.len(), 2);
        assert_eq!(chunks[0].ids[..4], [BOS, 320, 2368, EOS]);
        assert_eq!(chunks[1].ids[..4], [BOS, 320, 1929, EOS]);
        assert_eq!(chunks[1].weights[..4], [1.0, 1.5, 1.5, 1.0]);
        assert_eq!(lengths("BREAK BREAK"), [0, 0]);
        assert_eq!(lengths("cat BREAK"), [1]);
    }

    #[test]
    fn plain_takes_brackets_as_text_and_cuts() {
        assert_eq!(
            tokens("(cat:1.2)", PromptStyle::Plain),
            [Tokenizer::clip().encode("(cat:1.2)")]
        );
        let long = "cat ".repeat(75) + "red dog";
        assert_eq!(tokens(&long, PromptStyle::Plain)[0].len(), 75);
        assert_eq!(cut_off(&long).as_deref(), Some("red dog"));
        assert_eq!(cut_off(&"cat ".repeat(75)), None);
    }

    #[test]
    fn pairs_have_equally_many_chunks() {
        let (positive, negative) = encode_pair("cat", &"dog ".repeat(200), PromptStyle::A1111);
        assert_eq!((positive.len(), negative.len()), (3, 3));
        assert_eq!(positive[1..], [Chunk::empty(), Chunk::empty()]);
    }

    #[test]
    fn emphasis_scales_rows_and_keeps_the_mean() {
        let mut weights = [1.0; CHUNK_IDS];
        weights[3] = 2.0;
        let mut encoding: Vec<f32> = (0..CHUNK_IDS * 4).map(|i| 1.0 + (i % 7) as f32).collect();
        let before = encoding.clone();
        emphasize(&mut encoding, &weights);
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
        assert!((mean(&encoding) - mean(&before)).abs() < 1e-5 * mean(&before));
        let factor = |idx: usize| encoding[idx] / before[idx];
        assert!((factor(12) / factor(0) - 2.0).abs() < 1e-6);

        let mut unweighted = before.clone();
        emphasize(&mut unweighted, &[1.0; CHUNK_IDS]);
        assert_eq!(unweighted, before);
        let mut zeros = vec![0.0; CHUNK_IDS];
        emphasize(&mut zeros, &weights);
        assert!(zeros.iter().all(|&value| value == 0.0));
    }
}
