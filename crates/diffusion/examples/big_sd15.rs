//! Writes a checkpoint of SD 1.5's full size with made-up weights: 1,066,235,307 numbers in f16, LDM names, 2.1 GB.
//!
//! For checks of loading, memory and speed where no real checkpoint is at hand:
//!
//! ```text
//! cargo run --release -p safelight-diffusion --example big_sd15 -- /tmp/big_sd15.safetensors [SEED]
//! ```
//!
//! The weights follow the golden files' rule (`tools/golden/README.md`), rounded to f16, so activations stay of order 1 and
//! `tools/golden/big_sd15.py` can make the same model in torch.

#[path = "../tests/common/mod.rs"]
mod common;

use std::fs::File;
use std::io::{BufWriter, Write};

use common::weights::Layout;

/// The seed `tools/golden/big_sd15.py` uses.
const SEED: u32 = 15;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: big_sd15 PATH [SEED]")?;
    let seed = arguments.next().map_or(Ok(SEED), |text| text.parse())?;
    let mut file = BufWriter::new(File::create(&path)?);
    let bytes = Layout::read("sd15").write_f16(seed, &mut file)?;
    file.flush()?;
    println!("{path}: {bytes} bytes");
    Ok(())
}
