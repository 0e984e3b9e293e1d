//! The miniature Stable Diffusion that is part of the program.

use std::io::Read;
use std::sync::{Arc, OnceLock};

use flate2::read::ZlibDecoder;
use safelight_store::{Checkpoint, StoreError};

/// What the embedded model answers to.
pub const DEMO_NAME: &str = "demo";

/// A standard safetensors file, zlib-compressed.
const COMPRESSED: &[u8] = include_bytes!("../assets/demo.safetensors.zz");
/// What stands for the embedded file in messages.
const LABEL: &str = "demo (embedded)";

/// The embedded model, opened like any other file; unpacked at the first call.
///
/// ```
/// let demo = safelight_catalog::demo()?;
/// assert!(demo.len() > 100);
/// # Ok::<(), safelight_store::StoreError>(())
/// ```
///
/// # Errors
/// [`StoreError`] only if the program was built around something that is no safetensors file.
pub fn demo() -> Result<Checkpoint, StoreError> {
    Checkpoint::from_bytes(LABEL, demo_bytes())
}

/// The embedded model's bytes: an ordinary single-file checkpoint in safetensors format, as other programs read it too.
pub fn demo_bytes() -> Arc<[u8]> {
    static BYTES: OnceLock<Arc<[u8]>> = OnceLock::new();
    let unpack = || {
        let mut bytes = Vec::new();
        ZlibDecoder::new(COMPRESSED)
            .read_to_end(&mut bytes)
            .expect("the embedded model is a whole zlib stream");
        bytes.into()
    };
    BYTES.get_or_init(unpack).clone()
}
