//! Any text: the ids are CLIP's, and neither white space around it nor ASCII capitals (without combining marks) matter.

use safelight_diffusion::tokenizer::{Tokenizer, VOCABULARY_COUNT};

/// The input is a text; what is not UTF-8 becomes U+FFFD.
pub(crate) fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let tokenizer = Tokenizer::clip();
    let ids = tokenizer.encode(&text);
    assert!(
        ids.iter().all(|&id| (id as usize) < VOCABULARY_COUNT),
        "{text:?}"
    );
    // Every token stands for a byte at least; characters can grow when their case changes.
    assert!(ids.len() <= 3 * text.len(), "{text:?}");
    assert_eq!(ids, tokenizer.encode(&format!(" \n{text}\t ")), "{text:?}");
    // Special tokens are only those in lower case; and some marks melt with a small letter and not with a capital, of which there is
    // no such character (t and U+0308 are U+1E97).
    let may_melt = text.contains(|c| ('\u{300}'..='\u{36f}').contains(&c));
    if !may_melt && !text.to_ascii_lowercase().contains("text|>") {
        assert_eq!(
            ids,
            tokenizer.encode(&text.to_ascii_uppercase()),
            "{text:?}"
        );
    }
    tokenizer.decode(&ids);
}
