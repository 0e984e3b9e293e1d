//! Products by the tiles of AMX: sixteen rows of words times sixteen columns in one instruction.
//!
//! A panel of weights is laid out as these tiles want it: `[word][32]`, two tiles beside each other. A left tile is sixteen
//! rows, sixteen words of each, read in place where the rows lie equally far apart and copied together where they do not.
//!
//! Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18 (tiles), and volume 2
//! (`LDTILECFG`, `TILELOADD`, `TDPBF16PS`, `TDPBUSD`); Linux, Documentation/arch/x86/xstate.rst (permission).
//!
//! Written in assembly, for Rust has no stable intrinsics of AMX.

use std::arch::asm;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::tile::{Multiply, Part};
use super::{PANEL, Simd, Words};
use crate::level::Level;
use crate::precision::Precision;

/// Rows of a tile, and words of one of its rows.
const SIDE: usize = 16;

/// Bytes from one panel row to the next, and from one row of sums to the next.
const PANEL_STRIDE: usize = PANEL * size_of::<f32>();

/// Rows that are multiplied together: two tiles, each times both halves of a panel.
const BLOCK: usize = 2 * SIDE;

/// Most words of a part's run; of larger ones nothing is copied together.
const RUN_MAX: usize = 320;

/// Whether someone vouched for the instructions: see [`vouch_for_tiles`].
static VOUCHED: AtomicBool = AtomicBool::new(false);

/// Whether CPU and operating system have the tiles and lend them to this process.
pub(crate) fn is_supported() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    VOUCHED.load(Ordering::Relaxed) || *FOUND.get_or_init(|| has_instructions() && is_permitted())
}

/// Has [`Level::Amx`] on a CPU that has everything for it but the tiles.
///
/// # Safety
/// From here on, on every thread, `ldtilecfg`, `tilerelease`, `tilezero`, `tileloadd`, `tilestored`, `tdpbf16ps` and
/// `tdpbusd` do what the manual says, be it by a handler of the signal that a CPU without them sends.
#[cfg(target_os = "linux")]
pub unsafe fn vouch_for_tiles() {
    VOUCHED.store(true, Ordering::Relaxed);
}

/// AMX-TILE, AMX-BF16 and AMX-INT8.
fn has_instructions() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (BF16 | TILE | INT8) == BF16 | TILE | INT8
}

/// Asks Linux, which gives a process tiles, 8 KiB more to save for each thread, only if it asks for them.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and touches no memory of ours.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}

/// How other systems lend tiles was not tried.
#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// What `ldtilecfg` reads: the format, and of each tile its rows and the bytes of one.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight tiles whole.
static WHOLE: Config = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut idx = 0;
    while idx < 8 {
        (row_bytes[idx], rows[idx]) = (64, SIDE as u8);
        idx += 1;
    }
    Config {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes,
        rows,
    }
};

/// Left rows and ends of panels copied together, and sums on their way.
#[repr(C, align(64))]
pub(crate) struct Room {
    left: [[f32; RUN_MAX * SIDE]; 2],
    right: [[f32; PANEL]; SIDE],
    sums: [[f32; PANEL]; BLOCK],
}

/// This thread's tiles, ready for products until it is dropped.
///
/// Tiles 0 to 3 are sums (two tiles of rows, of each the panel's two halves), 4 and 5 left rows, 6 and 7 the panel's
/// halves. The compiler knows nothing of tiles and leaves them alone between one piece of assembly and the next.
pub(crate) struct MatrixTiles<'a> {
    room: &'a mut Room,
    of_this_thread: PhantomData<*const ()>,
}

impl<'a> MatrixTiles<'a> {
    /// Those for products of `precision` at `level`; none where vectors do them. One at a time on a thread.
    pub(crate) fn of(
        level: Level,
        precision: Precision,
        room: &'a mut Option<Box<Room>>,
    ) -> Option<MatrixTiles<'a>> {
        if level != Level::Amx || precision == Precision::F32 || !is_supported() {
            return None;
        }
        let room = room.get_or_insert_with(|| {
            Box::new(Room {
                left: [[0.0; RUN_MAX * SIDE]; 2],
                right: [[0.0; PANEL]; SIDE],
                sums: [[0.0; PANEL]; BLOCK],
            })
        });
        // SAFETY: `is_supported` has just found the instruction; it reads 64 bytes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(nostack, readonly, preserves_flags));
        }
        Some(MatrixTiles {
            room,
            of_this_thread: PhantomData,
        })
    }

    /// `steps` times the products of two left tiles with a panel's two, and nothing else; gives how many pairs of words that were.
    pub(crate) fn multiply_only<W: Words>(&mut self, steps: usize) -> usize {
        zero::<true>();
        let left = Left {
            first: self.room.left[0].as_ptr(),
            stride: 0,
        };
        for _ in 0..steps {
            // SAFETY: one step reads 16 words of a left row, here always the same, and 16 rows of a panel.
            unsafe { dot::<W, true>([left; 2], self.room.right.as_ptr().cast(), 1) };
        }
        steps * 4 * SIDE * SIDE * SIDE
    }

    /// [`Multiply::rows`] for the `count` rows from tile `tile` on, all columns of the panel.
    #[inline(always)]
    pub(super) fn rows<W: Words, S: Simd>(
        &mut self,
        simd: S,
        multiply: &Multiply<'_>,
        tile: usize,
        count: usize,
        sums: &mut [f32],
    ) {
        assert!(W::PRECISION != Precision::F32 && W::LEFT == 1);
        assert!(W::SCALED == (S::BYTE_OFFSET != 0));
        let runs = multiply.runs;
        assert!(SIDE.is_multiple_of(runs.tile_rows()) && multiply.part.len <= RUN_MAX);
        let mut first = 0;
        while first < count {
            // Rows of a tile that is not there are zeros in `left`, and their sums go nowhere.
            let sums = &mut sums[first * PANEL..];
            let here = sums.len().min(BLOCK * PANEL);
            let block = tile + first / runs.tile_rows();
            multiply.fetch_next(simd, block..block + here / PANEL / runs.tile_rows());
            let sums = &mut sums[..here];
            if count - first > SIDE {
                self.block::<W, S, true>(simd, multiply, block, sums);
            } else {
                self.block::<W, S, false>(simd, multiply, block, sums);
            }
            first += BLOCK;
        }
    }

    /// Up to 32 rows from tile `tile` on, with `TWO` at least 17; `sums` are theirs.
    #[inline(always)]
    fn block<W: Words, S: Simd, const TWO: bool>(
        &mut self,
        simd: S,
        multiply: &Multiply<'_>,
        tile: usize,
        sums: &mut [f32],
    ) {
        let (part, tile_rows) = (multiply.part, multiply.runs.tile_rows());
        let rows_of_run = part.len + if W::SCALED { 2 } else { 0 };
        let whole = if TWO { BLOCK } else { SIDE } * PANEL;
        let in_place = sums.len() >= whole;
        if W::SCALED && multiply.fresh {
            sums.fill(0.0);
        } else if !W::SCALED {
            if multiply.fresh {
                zero::<TWO>();
            } else if in_place {
                load::<TWO>(&sums[..whole]);
            } else {
                let room = self.room.sums.as_flattened_mut();
                room[..sums.len()].copy_from_slice(sums);
                load::<TWO>(&room[..whole]);
            }
        }
        for run in 0..part.taps {
            let tap = part.tap + run;
            let tiles = tile..tile + sums.len() / PANEL / tile_rows;
            if !multiply.runs.any_live(tiles.clone(), tap) {
                continue;
            }
            let panel = &multiply.weights[run * rows_of_run * PANEL..][..rows_of_run * PANEL];
            let Room { left, right, .. } = &mut *self.room;
            let [left_0, left_1] = left;
            let middle = tiles.end.min(tiles.start + SIDE / tile_rows);
            let lefts = [
                Left::of(multiply, tiles.start..middle, tap, left_0),
                if TWO {
                    Left::of(multiply, middle..tiles.end, tap, left_1)
                } else {
                    Left::NONE
                },
            ];
            if W::SCALED {
                start::<TWO>(
                    panel[(part.len + 1) * PANEL..]
                        .first_chunk()
                        .expect("a row"),
                );
            }
            let (steps, rest) = (part.len / SIDE, part.len % SIDE);
            // SAFETY: left rows are of `part.len` words at least, and the panel has as many rows.
            unsafe { dot::<W, TWO>(lefts, panel.as_ptr(), steps) };
            if rest > 0 {
                let (rows, zeros) = right.split_at_mut(rest);
                let end = &panel[steps * SIDE * PANEL..][..rest * PANEL];
                rows.as_flattened_mut().copy_from_slice(end);
                zeros.as_flattened_mut().fill(0.0);
                let lefts = lefts.map(|left| Left {
                    first: left.first.wrapping_add(steps * SIDE),
                    ..left
                });
                // SAFETY: left rows that end within a step were copied to `room` with zeros behind them; the panel's too.
                unsafe { dot::<W, TWO>(lefts, right.as_ptr().cast(), 1) };
            }
            if W::SCALED {
                let whole_sums = self.room.sums.as_flattened_mut();
                store::<TWO>(&mut whole_sums[..whole]);
                let scales = &panel[part.len * PANEL..][..PANEL];
                let rows = sums.as_chunks_mut::<PANEL>().0;
                let with_scale = Part {
                    len: part.len + 1,
                    ..part
                };
                for (idx, (sums, whole)) in rows.iter_mut().zip(&self.room.sums).enumerate() {
                    let (tile, row) = (tile + idx / tile_rows, idx % tile_rows);
                    let left = multiply.runs.part_of(tile, row, tap, with_scale);
                    let scale_of_row = simd.splat(left[part.len]);
                    for at in (0..PANEL).step_by(S::LANES) {
                        let scale = simd.mul(scale_of_row, simd.load(&scales[at..]));
                        let whole = simd.whole_to_float(simd.load(&whole[at..]));
                        let sums = &mut sums[at..];
                        simd.store(simd.mul_add(whole, scale, simd.load(sums)), sums);
                    }
                }
            }
        }
        if !W::SCALED {
            if in_place {
                store::<TWO>(&mut sums[..whole]);
            } else {
                let room = self.room.sums.as_flattened_mut();
                store::<TWO>(&mut room[..whole]);
                sums.copy_from_slice(&room[..sums.len()]);
            }
        }
    }
}

impl Drop for MatrixTiles<'_> {
    fn drop(&mut self) {
        // SAFETY: `of` found the instruction; nothing in the tiles is needed any more.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }
}

/// Sixteen left rows.
#[derive(Clone, Copy)]
struct Left {
    first: *const f32,
    /// Bytes from a row to the next.
    stride: usize,
}

impl Left {
    const NONE: Left = Left {
        first: std::ptr::null(),
        stride: 0,
    };

    /// The rows of `tiles`, sixteen at most, under `tap`: where they lie, or in `room`, zeros behind each row and after the last.
    #[inline(always)]
    fn of(multiply: &Multiply<'_>, tiles: Range<usize>, tap: usize, room: &mut [f32]) -> Left {
        let Multiply { runs, part, .. } = multiply;
        let whole = part.len.is_multiple_of(SIDE) && tiles.len() * runs.tile_rows() == SIDE;
        let evenly = runs.evenly(tiles.clone(), tap).filter(|_| whole);
        if let Some((first, stride)) = evenly {
            let first = first.wrapping_add(part.skip);
            return Left { first, stride };
        }
        let width = part.len.next_multiple_of(SIDE);
        let rows = room[..SIDE * width].chunks_exact_mut(width);
        for (idx, row) in rows.enumerate() {
            let (words, zeros) = row.split_at_mut(part.len);
            let tile = tiles.start + idx / runs.tile_rows();
            if tiles.contains(&tile) {
                words.copy_from_slice(runs.part_of(tile, idx % runs.tile_rows(), tap, *part));
            } else {
                words.fill(0.0);
            }
            zeros.fill(0.0);
        }
        let (first, stride) = (room.as_ptr(), width * size_of::<f32>());
        Left { first, stride }
    }
}

/// Zeros in the sums.
#[inline(always)]
fn zero<const TWO: bool>() {
    // SAFETY: where this is called, [`MatrixTiles`] proves the instructions.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            options(nostack, nomem, preserves_flags)
        );
        if TWO {
            asm!(
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, nomem, preserves_flags)
            );
        }
    }
}

/// The same panel row in every row of the sums.
#[inline(always)]
fn start<const TWO: bool>(row: &[f32; PANEL]) {
    // SAFETY: where this is called, [`MatrixTiles`] proves the instructions; a stride of 0 reads one row, 64 bytes of each half.
    unsafe {
        load_tiles::<TWO>(row.as_ptr(), 0);
    }
}

/// Sums from memory, `[16 or 32][PANEL]`.
#[inline(always)]
fn load<const TWO: bool>(sums: &[f32]) {
    assert!(sums.len() == if TWO { BLOCK } else { SIDE } * PANEL);
    // SAFETY: as just checked there are as many rows; where this is called, [`MatrixTiles`] proves the instructions.
    unsafe { load_tiles::<TWO>(sums.as_ptr(), PANEL_STRIDE) }
}

/// # Safety
/// From `sums` on there are sixteen rows, `stride` bytes apart, or 32 with `TWO`, each of [`PANEL`] words.
#[inline(always)]
unsafe fn load_tiles<const TWO: bool>(sums: *const f32, stride: usize) {
    // SAFETY: the caller vouches for the memory.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {stride}*1]",
            "tileloadd tmm1, [{sums} + {stride}*1 + 64]",
            sums = in(reg) sums,
            stride = in(reg) stride,
            options(nostack, readonly, preserves_flags)
        );
        if TWO {
            asm!(
                "tileloadd tmm2, [{sums} + {stride}*1]",
                "tileloadd tmm3, [{sums} + {stride}*1 + 64]",
                sums = in(reg) sums.wrapping_byte_add(SIDE * stride),
                stride = in(reg) stride,
                options(nostack, readonly, preserves_flags)
            );
        }
    }
}

/// Sums to memory, `[16 or 32][PANEL]`.
#[inline(always)]
fn store<const TWO: bool>(sums: &mut [f32]) {
    assert!(sums.len() == if TWO { BLOCK } else { SIDE } * PANEL);
    // SAFETY: as just checked there are as many rows; where this is called, [`MatrixTiles`] proves the instructions.
    unsafe {
        asm!(
            "tilestored [{sums} + {stride}*1], tmm0",
            "tilestored [{sums} + {stride}*1 + 64], tmm1",
            sums = in(reg) sums.as_mut_ptr(),
            stride = in(reg) PANEL_STRIDE,
            options(nostack, preserves_flags)
        );
        if TWO {
            asm!(
                "tilestored [{sums} + {stride}*1], tmm2",
                "tilestored [{sums} + {stride}*1 + 64], tmm3",
                sums = in(reg) sums.as_mut_ptr().add(SIDE * PANEL),
                stride = in(reg) PANEL_STRIDE,
                options(nostack, preserves_flags)
            );
        }
    }
}

/// Adds the products of `steps` times sixteen words of the left rows and as many panel rows to the sums.
///
/// # Safety
/// The left rows, the second sixteen with `TWO` only, and the panel from `right` on are as long.
#[inline(always)]
unsafe fn dot<W: Words, const TWO: bool>(lefts: [Left; 2], right: *const f32, steps: usize) {
    macro_rules! steps {
        ($dot:literal, one) => {
            asm!(
                "2:",
                "tileloadd tmm4, [{first} + {stride}*1]",
                "tileloadd tmm6, [{right} + {right_stride}*1]",
                "tileloadd tmm7, [{right} + {right_stride}*1 + 64]",
                concat!($dot, " tmm0, tmm4, tmm6"),
                concat!($dot, " tmm1, tmm4, tmm7"),
                "add {first}, 64",
                "add {right}, 2048", // sixteen rows of a panel
                "dec {steps}",
                "jnz 2b",
                first = inout(reg) lefts[0].first => _,
                stride = in(reg) lefts[0].stride,
                right = inout(reg) right => _,
                right_stride = in(reg) PANEL_STRIDE,
                steps = inout(reg) steps => _,
                options(nostack, readonly)
            )
        };
        ($dot:literal, two) => {
            asm!(
                "2:",
                "tileloadd tmm4, [{first} + {stride}*1]",
                "tileloadd tmm6, [{right} + {right_stride}*1]",
                "tileloadd tmm7, [{right} + {right_stride}*1 + 64]",
                concat!($dot, " tmm0, tmm4, tmm6"),
                "tileloadd tmm5, [{second} + {second_stride}*1]",
                concat!($dot, " tmm1, tmm4, tmm7"),
                concat!($dot, " tmm2, tmm5, tmm6"),
                concat!($dot, " tmm3, tmm5, tmm7"),
                "add {first}, 64",
                "add {second}, 64",
                "add {right}, 2048",
                "dec {steps}",
                "jnz 2b",
                first = inout(reg) lefts[0].first => _,
                stride = in(reg) lefts[0].stride,
                second = inout(reg) lefts[1].first => _,
                second_stride = in(reg) lefts[1].stride,
                right = inout(reg) right => _,
                right_stride = in(reg) PANEL_STRIDE,
                steps = inout(reg) steps => _,
                options(nostack, readonly)
            )
        };
    }
    if steps == 0 {
        return;
    }
    // SAFETY: the caller vouches for the memory; [`MatrixTiles`] proves the instructions.
    unsafe {
        match (W::SCALED, TWO) {
            (false, false) => steps!("tdpbf16ps", one),
            (false, true) => steps!("tdpbf16ps", two),
            (true, false) => steps!("tdpbusd", one),
            (true, true) => steps!("tdpbusd", two),
        }
    }
}
