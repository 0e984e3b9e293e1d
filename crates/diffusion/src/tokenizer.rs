//! Text to CLIP token ids, exactly as Hugging Face's `CLIPTokenizer` gives them.
//!
//! The text is normalised (NFC, white space to one space, lower case), cut into words, digits and runs of
//! punctuation, and each piece's UTF-8 bytes are joined by byte-pair encoding. The 49,408-entry vocabulary is
//! embedded. Chunks of 75, start and end tokens, emphasis and truncation are the [`prompt`](crate::prompt) module's.

mod classes;

use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;
use std::sync::LazyLock;

use safelight_convert::layout::CLIP_MERGES;
use unicode_normalization::UnicodeNormalization;

/// Start of text: `<|startoftext|>`.
pub const BOS: u32 = 49406;
/// End of text, also CLIP-L's padding: `<|endoftext|>`.
pub const EOS: u32 = 49407;
/// A comma that ends a word, `,</w>`: where a long prompt may be cut.
pub const COMMA: u32 = 267;
/// How many ids there are; [`EOS`] is the last.
pub const VOCABULARY_COUNT: usize = 49_408;

/// Ids 0..256 are single bytes, 256..512 single bytes that end a word, then one id per merge.
const END_OF_WORD: u32 = 256;
const FIRST_MERGE: u32 = 512;
const SPECIALS: [(&str, u32); 2] = [("<|startoftext|>", BOS), ("<|endoftext|>", EOS)];
const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];

static CLIP: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::from_merges(CLIP_MERGES));

/// CLIP's byte-pair tokenizer.
pub struct Tokenizer {
    /// The two ids that merge number `i` joins into id `512 + i`.
    pairs: Vec<(u32, u32)>,
    merged: HashMap<(u32, u32), u32>,
}

impl Tokenizer {
    /// The tokenizer of every CLIP text encoder of Stable Diffusion; made at the first call.
    ///
    /// ```
    /// use safelight_diffusion::tokenizer::Tokenizer;
    /// assert_eq!(Tokenizer::clip().encode("A cat, sleeping"), [320, 2368, 267, 6982]);
    /// ```
    pub fn clip() -> &'static Tokenizer {
        &CLIP
    }

    /// `merges` holds the two little-endian `u16` ids of each merge, best first.
    fn from_merges(merges: &[u8]) -> Tokenizer {
        let id = |bytes: &[u8]| u32::from(u16::from_le_bytes([bytes[0], bytes[1]]));
        let pairs: Vec<_> = merges
            .chunks_exact(4)
            .map(|pair| (id(&pair[..2]), id(&pair[2..])))
            .collect();
        assert_eq!(
            FIRST_MERGE as usize + pairs.len() + SPECIALS.len(),
            VOCABULARY_COUNT
        );
        let merged = pairs
            .iter()
            .zip(FIRST_MERGE..)
            .map(|(&pair, id)| (pair, id))
            .collect();
        Tokenizer { pairs, merged }
    }

    /// The ids of `text`, without [`BOS`] and [`EOS`] around them, however long it is.
    ///
    /// `<|startoftext|>` and `<|endoftext|>` inside the text, so written, become those ids.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 4);
        let mut rest = text;
        while !rest.is_empty() {
            let special = SPECIALS
                .iter()
                .filter_map(|&(s, id)| Some((rest.find(s)?, s.len(), id)))
                .min();
            let (start, length, id) = special
                .map_or((rest.len(), 0, None), |(start, length, id)| {
                    (start, length, Some(id))
                });
            self.encode_ordinary(&rest[..start], &mut ids);
            ids.extend(id);
            rest = &rest[start + length..];
        }
        ids
    }

    /// Text for `ids`, as near as can be: lower-cased, one space after each word, broken UTF-8 replaced by `U+FFFD`.
    ///
    /// Ids outside the vocabulary are left out.
    ///
    /// ```
    /// use safelight_diffusion::tokenizer::Tokenizer;
    /// assert_eq!(Tokenizer::clip().decode(&[320, 2368, 267, 6982]), "a cat , sleeping");
    /// ```
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        let mut stack: Vec<u32> = ids.iter().rev().copied().collect();
        while let Some(id) = stack.pop() {
            if let Some((special, _)) = SPECIALS.iter().find(|&&(_, special)| special == id) {
                bytes.extend_from_slice(special.as_bytes());
            } else if id < FIRST_MERGE {
                bytes.push(BYTE_OF_ID[(id % END_OF_WORD) as usize]);
                bytes.extend((id >= END_OF_WORD).then_some(b' '));
            } else if let Some(&(left, right)) = self.pairs.get((id - FIRST_MERGE) as usize) {
                stack.extend([right, left]);
            }
        }
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    }

    fn encode_ordinary(&self, text: &str, ids: &mut Vec<u32>) {
        let text = normalized(text);
        for piece in pieces(&text) {
            self.encode_piece(&text.as_bytes()[piece], ids);
        }
    }

    /// Joins the best-ranked neighbours of one piece until none can be joined; among equals the leftmost goes first.
    ///
    /// A linked list and a heap, so a piece of `n` bytes costs `n log n`.
    fn encode_piece(&self, piece: &[u8], ids: &mut Vec<u32>) {
        const JOINED: u32 = u32::MAX;
        let count = piece.len();
        let mut symbols: Vec<u32> = piece
            .iter()
            .map(|&byte| ID_OF_BYTE[byte as usize])
            .collect();
        symbols[count - 1] += END_OF_WORD;
        let mut next: Vec<usize> = (1..=count).collect();
        let mut previous: Vec<usize> = (0..count).map(|idx| idx.wrapping_sub(1)).collect();
        // Ids of merges are in order of rank, so the smallest result is the best merge.
        let mut heap = BinaryHeap::new();
        let push = |heap: &mut BinaryHeap<_>, symbols: &[u32], left: usize, right: usize| {
            if let Some(&result) = symbols
                .get(right)
                .and_then(|&right| self.merged.get(&(symbols[left], right)))
            {
                heap.push(std::cmp::Reverse((result, left, right)));
            }
        };
        for left in 0..count {
            push(&mut heap, &symbols, left, left + 1);
        }
        while let Some(std::cmp::Reverse((result, left, right))) = heap.pop() {
            let current =
                symbols[left] != JOINED && next[left] == right && symbols[right] != JOINED;
            if !current || self.merged.get(&(symbols[left], symbols[right])) != Some(&result) {
                continue; // One of the two has been joined with another neighbour since.
            }
            symbols[left] = result;
            symbols[right] = JOINED;
            next[left] = next[right];
            if next[left] < count {
                previous[next[left]] = left;
                push(&mut heap, &symbols, left, next[left]);
            }
            if previous[left] < count {
                push(&mut heap, &symbols, previous[left], left);
            }
        }
        ids.extend(symbols.into_iter().filter(|&symbol| symbol != JOINED));
    }
}

/// The vocabulary lists the printable Latin-1 bytes first, then the others.
const BYTE_OF_ID: [u8; 256] = {
    let mut bytes = [0; 256];
    let (mut printable, mut other) = (0, 94 + 12 + 82);
    let mut byte = 0;
    while byte < 256 {
        let idx = if matches!(byte, 33..=126 | 161..=172 | 174..=255) {
            &mut printable
        } else {
            &mut other
        };
        bytes[*idx] = byte as u8;
        *idx += 1;
        byte += 1;
    }
    bytes
};

const ID_OF_BYTE: [u32; 256] = {
    let mut ids = [0; 256];
    let mut id = 0;
    while id < 256 {
        ids[BYTE_OF_ID[id] as usize] = id as u32;
        id += 1;
    }
    ids
};

/// NFC, each run of white space as one space, lower case (character by character: a final sigma is not special).
fn normalized(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut push = |c: char| match class(c) {
        Class::Space if out.ends_with(' ') => {}
        Class::Space => out.push(' '),
        _ if c.is_ascii() => out.push(c.to_ascii_lowercase()),
        _ => out.extend(c.to_lowercase()),
    };
    if text.is_ascii() {
        text.chars().for_each(push);
        return out;
    }
    // Hugging Face's NFC is of an older Unicode: what it does not know stands where it is and joins nothing.
    for part in text.split_inclusive(unknown_to_nfc) {
        let end = part
            .char_indices()
            .next_back()
            .filter(|&(_, c)| unknown_to_nfc(c))
            .map_or(part.len(), |(idx, _)| idx);
        part[..end]
            .nfc()
            .chain(part[end..].chars())
            .for_each(&mut push);
    }
    out
}

#[derive(Clone, Copy, PartialEq)]
enum Class {
    Space,
    Letter,
    Number,
    Other,
}

fn class(c: char) -> Class {
    match c {
        'a'..='z' | 'A'..='Z' => Class::Letter,
        '0'..='9' => Class::Number,
        ' ' | '\t'..='\r' => Class::Space,
        _ if c.is_ascii() => Class::Other,
        _ if contains(classes::LETTERS, c) => Class::Letter,
        _ if contains(classes::NUMBERS, c) => Class::Number,
        _ if contains(classes::SPACES, c) => Class::Space,
        _ => Class::Other,
    }
}

fn unknown_to_nfc(c: char) -> bool {
    !c.is_ascii() && contains(classes::UNKNOWN_TO_NFC, c)
}

fn contains(ranges: &[(u32, u32)], c: char) -> bool {
    let after = ranges.partition_point(|&(first, _)| first <= c as u32);
    after > 0 && c as u32 <= ranges[after - 1].1
}

/// Cuts normalised text: a contraction's ending, a run of letters, one digit, or a run of anything else but space.
fn pieces(text: &str) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    let mut start = 0;
    while let Some(first) = text[start..].chars().next() {
        let rest = &text[start..];
        let mut add = |length: usize| {
            pieces.push(start..start + length);
            start += length;
        };
        // A special token that was not written in lower case is kept together, then cut by a second expression.
        if let Some((special, _)) = SPECIALS
            .iter()
            .find(|(special, _)| rest.starts_with(special))
        {
            [2, special.len() - 4, 2].into_iter().for_each(add);
            continue;
        }
        if let Some(ending) = CONTRACTIONS
            .iter()
            .find(|ending| rest.starts_with(**ending))
        {
            add(ending.len());
            continue;
        }
        let kind = class(first);
        let run = || rest.find(|c| class(c) != kind).unwrap_or(rest.len());
        match kind {
            Class::Space => start += first.len_utf8(),
            Class::Number => add(first.len_utf8()),
            Class::Letter | Class::Other => add(run()),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[u32]) {
        assert_eq!(Tokenizer::clip().encode(text), expected, "{text:?}");
    }

    #[test]
    fn equals_hugging_face() {
        let golden = include_str!("../../../testdata/golden/tokenizer/clip.jsonl");
        let mut count = 0;
        for line in golden.lines().skip(1) {
            let case: serde_json::Value = serde_json::from_str(line).unwrap();
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            check(case["text"].as_str().unwrap(), &ids);
            count += 1;
        }
        assert!(count >= 300, "only {count} golden cases");
    }

    #[test]
    fn named_ids_are_what_they_say() {
        check(",", &[COMMA]);
        check("<|startoftext|><|endoftext|>", &[BOS, EOS]);
        check("", &[]);
        assert!(Tokenizer::clip().merged.len() == VOCABULARY_COUNT - 514);
    }

    #[test]
    fn every_id_decodes_and_words_come_back() {
        let tokenizer = Tokenizer::clip();
        for id in 0..VOCABULARY_COUNT as u32 + 10 {
            tokenizer.decode(&[id]);
        }
        assert_eq!(
            tokenizer.decode(&tokenizer.encode("Un café à Zürich 日本")),
            "un café à zürich 日本"
        );
    }

    /// Whatever the text: no panic, ids in range, normalising again changes nothing, and no piece is lost.
    #[test]
    fn any_text_keeps_the_rules() {
        let pools = [
            "aàßИ日😀\u{301}\u{345}",
            "'stmdrevl ",
            "<|>endofxt",
            "0٣½²",
            "\u{0}\u{85}\u{200b}\u{feff}\n",
            "İΣ\u{1f88}\u{ac00}\u{11a8}",
        ];
        let pools: Vec<Vec<char>> = pools.iter().map(|pool| pool.chars().collect()).collect();
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as usize % below
        };
        for _ in 0..2000 {
            let length = random(40);
            let text: String = (0..length)
                .map(|_| match random(8) {
                    pool @ 0..6 => pools[pool][random(pools[pool].len())],
                    _ => char::from_u32(random(0x11_0000) as u32).unwrap_or('x'),
                })
                .collect();
            let ids = Tokenizer::clip().encode(&text);
            assert!(
                ids.iter().all(|&id| (id as usize) < VOCABULARY_COUNT),
                "{text:?}"
            );
            let once = normalized(&text);
            let kept: usize = pieces(&once).into_iter().map(|piece| piece.len()).sum();
            assert_eq!(
                kept,
                once.chars()
                    .filter(|&c| class(c) != Class::Space)
                    .map(char::len_utf8)
                    .sum::<usize>(),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_million_bytes_are_no_square() {
        // Seconds; quadratic work on one of these would take hours.
        for unit in [
            "a",
            "ab",
            "!",
            "é",
            "1",
            "'s",
            "<|endoftext|>",
            "<|",
            "\u{301}",
            " ",
            "a ",
        ] {
            Tokenizer::clip().encode(&unit.repeat(1_000_000 / unit.len()));
        }
    }
}
