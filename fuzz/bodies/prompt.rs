//! Any text as a prompt and as a picture's parameters.

use safelight_diffusion::infotext::Infotext;
use safelight_diffusion::prompt::schedule::{Steps, parse_schedule};
use safelight_diffusion::prompt::{PromptStyle, encode, parse_attention};
use safelight_diffusion::tokenizer::{BOS, EOS};

/// The input is a text; what is not UTF-8 becomes U+FFFD.
pub(crate) fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    assert!(!parse_attention(&text).is_empty(), "{text:?}");
    for style in [PromptStyle::A1111, PromptStyle::Plain] {
        let chunks = encode(&text, style);
        assert!(!chunks.is_empty(), "{text:?}");
        assert!(
            chunks
                .iter()
                .all(|chunk| chunk.ids[0] == BOS && chunk.ids[76] == EOS),
            "{text:?}"
        );
        assert!(
            chunks
                .iter()
                .all(|chunk| chunk.weights[0] == 1.0 && chunk.weights[76] == 1.0),
            "{text:?}"
        );
    }
    scheduled(&text);
    let info = Infotext::parse(&text);
    // Without fields the last line is a prompt's, and may look like fields once it stands behind `Negative prompt: `, in A1111 too.
    if !info.fields.is_empty() {
        assert_eq!(Infotext::parse(&info.to_string()), info, "{text:?}");
    }
}

/// The prompts cover every step once, and a text without brackets is itself.
fn scheduled(text: &str) {
    let prompts = parse_schedule(text, Steps::new(7));
    assert!(
        prompts
            .windows(2)
            .all(|pair| pair[0].until_step < pair[1].until_step),
        "{text:?}"
    );
    assert_eq!(
        prompts.last().map(|last| last.until_step),
        Some(7),
        "{text:?}"
    );
    if !text.contains('[') {
        assert_eq!(prompts.len(), 1, "{text:?}");
        assert_eq!(prompts[0].text, text);
    }
}
