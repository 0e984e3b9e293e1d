//! CLIP's vocabulary: the merges that text is encoded with, and the files a diffusers folder keeps it in.

use serde_json::{Map, Value, json};

/// CLIP's merges, best first: two little-endian `u16` ids each; merge number `i` makes id `512 + i`.
///
/// Ids 0 to 255 are single bytes, printable Latin-1 first; 256 to 511 are the same bytes at the end of a word. The last
/// two of all 49,408 are the marks of beginning and end.
pub const CLIP_MERGES: &[u8] = include_bytes!("../../assets/clip_merges.bin");

/// Beginning and end of a text; the end is what CLIP-L pads with.
const BEGIN: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// What OpenCLIP's tokens are padded with: the token of id 0.
const OPEN_CLIP_PAD: &str = "!";

/// The files of a diffusers `tokenizer` folder by name, for texts of `positions` tokens.
pub(crate) fn files(open_clip: bool, positions: u64) -> Vec<(&'static str, Vec<u8>)> {
    let (tokens, merges) = vocabulary();
    let pad = if open_clip { OPEN_CLIP_PAD } else { END };
    let ids: Map<String, Value> = tokens
        .into_iter()
        .zip(0..)
        .map(|(token, id): (String, u32)| (token, json!(id)))
        .collect();
    let special = json!({"bos_token": BEGIN, "eos_token": END, "pad_token": pad, "unk_token": END});
    let mut config = special.clone();
    config["tokenizer_class"] = json!("CLIPTokenizer");
    config["model_max_length"] = json!(positions);
    config["do_lower_case"] = json!(true);
    config["add_prefix_space"] = json!(false);
    config["errors"] = json!("replace");
    vec![
        ("vocab.json", Value::Object(ids).to_string().into_bytes()),
        ("merges.txt", merges.into_bytes()),
        ("special_tokens_map.json", pretty(&special)),
        ("tokenizer_config.json", pretty(&config)),
    ]
}

/// A JSON file as people expect one.
pub(crate) fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// Every token by id, as the byte-level code writes bytes, and the list of merges.
fn vocabulary() -> (Vec<String>, String) {
    let bytes = characters();
    let ends = bytes.iter().map(|token| format!("{token}</w>"));
    let mut tokens: Vec<String> = bytes.iter().cloned().chain(ends).collect();
    let mut merges = String::from("#version: 0.2\n");
    for pair in CLIP_MERGES.as_chunks::<4>().0 {
        let [left, right] =
            [[pair[0], pair[1]], [pair[2], pair[3]]].map(|id| usize::from(u16::from_le_bytes(id)));
        let (left, right) = (&tokens[left], &tokens[right]);
        merges.push_str(&format!("{left} {right}\n"));
        tokens.push(format!("{left}{right}"));
    }
    tokens.extend([BEGIN.into(), END.into()]);
    (tokens, merges)
}

/// Ids 0 to 255: bytes that print stand for themselves, the others for characters from 256 on.
fn characters() -> Vec<String> {
    let prints = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let printable = (0..=255u8).filter(prints).map(char::from);
    let others = (256..)
        .filter_map(char::from_u32)
        .take((0..=255u8).filter(|byte| !prints(byte)).count());
    printable.chain(others).map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_published_vocabulary() {
        let (tokens, merges) = vocabulary();
        assert_eq!(tokens.len(), 49_408);
        for (id, token) in [
            (0, "!"),
            (188, "\u{100}"),
            (256, "!</w>"),
            (267, ",</w>"),
            (320, "a</w>"),
            (512, "in"),
            (2368, "cat</w>"),
            (49_407, END),
        ] {
            assert_eq!(tokens[id], token, "id {id}");
        }
        assert!(
            merges.starts_with("#version: 0.2\ni n\nt h\na n\n"),
            "{}",
            &merges[..40]
        );
        assert_eq!(merges.lines().count(), 1 + 48_894);
    }

    #[test]
    fn padding_follows_the_encoder() {
        for (open_clip, pad) in [(false, END), (true, "!")] {
            let files = files(open_clip, 77);
            let (_, config) = files
                .iter()
                .find(|(name, _)| *name == "tokenizer_config.json")
                .unwrap();
            let config: Value = serde_json::from_slice(config).unwrap();
            assert_eq!(
                (&config["pad_token"], &config["model_max_length"]),
                (&json!(pad), &json!(77))
            );
        }
    }
}
