//! Which instructions this process may use: the best the CPU has, or what `SAFELIGHT_CPU` says.
//!
//! Knows CPU features, not kernels; `arch` turns a [`Level`] into code compiled for it.

use std::fmt;
use std::sync::OnceLock;

use crate::arch;

/// The environment variable that forces a level: one of [`Level::ALL`]'s names.
pub const VARIABLE: &str = "SAFELIGHT_CPU";

/// A set of instructions that kernels are compiled for, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Level {
    /// What every CPU of the architecture has. The specification of every kernel.
    Scalar,
    /// 64-bit Arm: 8 floats at a time, in two registers. Every such CPU has it.
    Neon,
    /// x86-64 with AVX2 and FMA: 8 floats at a time (Intel since 2013, AMD since 2015).
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL: 16 floats at a time.
    Avx512,
    /// [`Level::Avx512`] with VNNI: four products of bytes at a time in every lane (Intel since
    /// 2019, AMD since 2022). As [`Level::Avx512`] where nothing is int8.
    Avx512Vnni,
    /// [`Level::Avx512Vnni`] with BF16: two products of bf16 at a time in every lane (Intel servers
    /// since 2020, AMD since 2022). Without it, products of bf16 weights are those of `f32` with
    /// unrounded left rows; with it, left rows are rounded to bf16 too.
    Avx512Bf16,
    /// [`Level::Avx512Bf16`] with AMX: tiles of bf16 and of bytes, 16×16 sums at a time (Intel servers
    /// since 2023). As [`Level::Avx512Bf16`] where nothing is multiplied by a matrix of weights, except that attention
    /// stays in `f32`. Linux only.
    Amx,
}

impl Level {
    /// Every level there is, worst first.
    pub const ALL: [Level; 7] = [
        Level::Scalar,
        Level::Neon,
        Level::Avx2,
        Level::Avx512,
        Level::Avx512Vnni,
        Level::Avx512Bf16,
        Level::Amx,
    ];

    /// The name `SAFELIGHT_CPU` knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Neon => "neon",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Avx512Vnni => "avx512vnni",
            Level::Avx512Bf16 => "avx512bf16",
            Level::Amx => "amx",
        }
    }

    /// Whether this CPU (and its operating system) can run it.
    pub fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = || {
                avx2 && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            };
            let vnni = || avx512() && is_x86_feature_detected!("avx512vnni");
            let bf16 = || vnni() && is_x86_feature_detected!("avx512bf16");
            match self {
                Level::Scalar => true,
                Level::Neon => false,
                Level::Avx2 => avx2,
                Level::Avx512 => avx512(),
                Level::Avx512Vnni => vnni(),
                Level::Avx512Bf16 => bf16(),
                Level::Amx => bf16() && arch::amx::is_supported(),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Level::Scalar || self == Level::Neon && cfg!(target_arch = "aarch64")
        }
    }

    /// Whether left rows of products with bf16 weights are rounded to bf16 too, elsewhere they stay as they are.
    pub fn rounds_rows(self) -> bool {
        matches!(self, Level::Avx512Bf16 | Level::Amx)
    }

    /// The levels this CPU can run, best last; tests and benches run every one of them.
    pub fn available() -> Vec<Level> {
        Self::ALL
            .into_iter()
            .filter(|level| level.is_supported())
            .collect()
    }

    /// The best level this CPU can run: the last, but [`Level::Avx512Bf16`] only where its
    /// instructions are quicker than those they replace (on AMD's CPUs).
    pub fn best() -> Level {
        let quick = |level: &Level| *level != Level::Avx512Bf16 || arch::bf16_is_quick();
        let mut levels = Self::available().into_iter().filter(quick);
        levels.next_back().unwrap_or(Level::Scalar)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why the level asked for in [`VARIABLE`] cannot be had. The user can act: change the variable.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LevelError {
    /// The variable holds none of the known names.
    Unknown {
        /// What it holds.
        value: String,
    },
    /// The name is known, but this CPU lacks the instructions.
    Unsupported {
        /// What was asked for.
        wanted: Level,
        /// What there is.
        best: Level,
    },
}

impl fmt::Display for LevelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LevelError::Unknown { value } => write!(
                f,
                "{VARIABLE} is `{value}`; known are {}; unset it to take the best",
                Level::ALL.map(Level::name).join(", ")
            ),
            LevelError::Unsupported { wanted, best } => write!(
                f,
                "{VARIABLE} asks for `{wanted}`, which this CPU does not have; its best is `{best}`"
            ),
        }
    }
}

impl std::error::Error for LevelError {}

/// Reads [`VARIABLE`] and the CPU. A program calls this first and shows the error.
///
/// # Errors
/// If the variable holds an unknown name, or one this CPU cannot run.
pub fn detect() -> Result<Level, LevelError> {
    choose(
        std::env::var_os(VARIABLE)
            .map(|value| value.to_string_lossy().into_owned())
            .as_deref(),
    )
}

/// The level that kernels run at, chosen on the first call.
///
/// If [`detect`] refuses, this is [`Level::best`]: a library does not stop a program over a
/// variable, and never runs an instruction that the CPU lacks.
pub fn level() -> Level {
    static CHOSEN: OnceLock<Level> = OnceLock::new();
    *CHOSEN.get_or_init(|| detect().unwrap_or_else(|_| Level::best()))
}

/// `asked`: the variable's value; unset and empty both mean the best.
fn choose(asked: Option<&str>) -> Result<Level, LevelError> {
    let Some(value) = asked.filter(|value| !value.is_empty()) else {
        return Ok(Level::best());
    };
    let wanted = Level::ALL
        .into_iter()
        .find(|level| level.name() == value)
        .ok_or_else(|| LevelError::Unknown {
            value: value.to_owned(),
        })?;
    if wanted.is_supported() {
        Ok(wanted)
    } else {
        Err(LevelError::Unsupported {
            wanted,
            best: Level::best(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_and_empty_take_the_best() {
        assert_eq!(choose(None), Ok(Level::best()));
        assert_eq!(choose(Some("")), Ok(Level::best()));
    }

    #[test]
    fn every_name_is_taken_or_refused_by_what_the_cpu_has() {
        for level in Level::ALL {
            let expected = if level.is_supported() {
                Ok(level)
            } else {
                Err(LevelError::Unsupported {
                    wanted: level,
                    best: Level::best(),
                })
            };
            assert_eq!(choose(Some(level.name())), expected);
        }
        // Not a silent pass: a test run says which levels it covered.
        eprintln!("levels on this machine: {:?}", Level::available());
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones() {
        let error = choose(Some("sse9")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("`sse9`") && text.contains("scalar, neon, avx2, avx512, "),
            "{text}"
        );
    }
}
