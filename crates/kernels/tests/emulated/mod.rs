//! The levels that tests run: those of this machine, and AMX by emulation where only the tiles are missing.
//!
//! A CPU without tiles raises SIGILL at their instructions. The handler here reads the instruction, does what Intel's manual
//! says (Software Developer's Manual, volume 2) in plain arithmetic, and goes on behind it: what runs are the kernels' own
//! instructions, byte by byte. It knows no others, and forgives nothing: a tile that was not configured, or a shape that does
//! not fit, ends the process, as on a real CPU.

use safelight_kernels::Level;

/// Every level that can be run here, best last.
pub(crate) fn levels() -> Vec<Level> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    tiles::emulate_where_missing();
    Level::available()
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles {
    use std::cell::UnsafeCell;
    use std::sync::Once;

    use safelight_kernels::{Level, testing};

    pub(super) fn emulate_where_missing() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            if Level::Avx512Bf16.is_supported() && !Level::Amx.is_supported() {
                eprintln!("this CPU has no AMX: its instructions are emulated");
                // SAFETY: the handler fits the flags; from here on the instructions do what they should.
                unsafe {
                    let mut action: libc::sigaction = std::mem::zeroed();
                    action.sa_sigaction = handle as *const () as usize;
                    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
                    let done = libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut());
                    assert_eq!(done, 0, "a handler for SIGILL");
                    testing::vouch_for_tiles();
                }
            }
        });
    }

    /// A sum of products: left words, right rows, the column of the right, and what the sum was.
    type Products = fn(&[[u8; 4]], &[[u8; 64]; 16], usize, [u8; 4]) -> [u8; 4];

    /// A thread's tiles.
    struct State {
        configured: bool,
        rows: [usize; 8],
        row_bytes: [usize; 8],
        tiles: [[[u8; 64]; 16]; 8],
    }

    thread_local! {
        static STATE: UnsafeCell<State> = const {
            UnsafeCell::new(State {
                configured: false,
                rows: [0; 8],
                row_bytes: [0; 8],
                tiles: [[[0; 64]; 16]; 8],
            })
        };
    }

    extern "C" fn handle(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        let context = context.cast::<libc::ucontext_t>();
        // SAFETY: the system hands the thread's registers over; what they point at is the kernel's own to answer for. The
        // thread is in one instruction at a time, so nothing else borrows its state.
        unsafe {
            let registers = &mut (*context).uc_mcontext.gregs;
            let len = STATE.with(|state| execute(&mut *state.get(), registers));
            registers[libc::REG_RIP as usize] += len as i64;
        }
    }

    fn give_up(why: &str) -> ! {
        // Not `eprintln`, whose lock the thread may hold.
        // SAFETY: writes `why.len()` bytes of `why`.
        unsafe {
            libc::write(2, why.as_ptr().cast(), why.len());
            libc::abort()
        }
    }

    fn check(holds: bool, why: &str) {
        if !holds {
            give_up(why);
        }
    }

    /// Number `number` of the sixteen general registers, as instructions count them.
    fn register(registers: &[i64; 23], number: u8) -> usize {
        const ORDER: [i32; 16] = [
            libc::REG_RAX,
            libc::REG_RCX,
            libc::REG_RDX,
            libc::REG_RBX,
            libc::REG_RSP,
            libc::REG_RBP,
            libc::REG_RSI,
            libc::REG_RDI,
            libc::REG_R8,
            libc::REG_R9,
            libc::REG_R10,
            libc::REG_R11,
            libc::REG_R12,
            libc::REG_R13,
            libc::REG_R14,
            libc::REG_R15,
        ];
        registers[ORDER[usize::from(number)] as usize] as usize
    }

    /// An operand in memory: where it starts, and what the index register adds.
    struct Memory {
        start: usize,
        index: usize,
    }

    /// Does the instruction at RIP and gives its length.
    ///
    /// # Safety
    /// RIP points at an instruction whose operands may be used.
    unsafe fn execute(state: &mut State, registers: &[i64; 23]) -> usize {
        let rip = registers[libc::REG_RIP as usize] as *const u8;
        // SAFETY: no instruction of ours is longer than eleven bytes, and a `ret` follows within the page's rest.
        let byte = |at: usize| unsafe { *rip.add(at) };
        // VEX of three bytes, map 0F 38, W 0, L 0.
        let (first, second) = (byte(1), byte(2));
        check(
            byte(0) == 0xC4 && first & 0x1F == 2 && second & 0x84 == 0,
            "SIGILL: not an instruction of AMX\n",
        );
        let (prefix, third) = (second & 3, usize::from(!second >> 3 & 0xF));
        let extended = |bit: u8| (!first >> bit & 1) << 3;
        let (opcode, modrm) = (byte(3), byte(4));
        let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), modrm & 7);
        let mut len = 5;
        let memory = if mode == 3 {
            None
        } else {
            let (mut base, mut index) = (rm | extended(5), 0);
            if rm == 4 {
                let sib = byte(len);
                len += 1;
                base = sib & 7 | extended(5);
                let number = sib >> 3 & 7 | extended(6);
                if number != 4 {
                    index = register(registers, number) << (sib >> 6);
                }
            }
            check(mode != 0 || base & 7 != 5, "an address without a base\n");
            let mut start = register(registers, base);
            let displacement = match mode {
                1 => i64::from(byte(len) as i8),
                2 => i64::from(i32::from_le_bytes(std::array::from_fn(|idx| {
                    byte(len + idx)
                }))),
                _ => 0,
            };
            len += [0, 1, 4][usize::from(mode)];
            start = start.wrapping_add(displacement as usize);
            Some(Memory { start, index })
        };
        match (opcode, prefix, memory) {
            // SAFETY: the kernel vouches for the 64 bytes.
            (0x49, 0, Some(memory)) => unsafe { state.configure(memory.start + memory.index) },
            (0x49, 0, None) => state.configured = false,
            (0x49, 3, None) => {
                state.shape(reg);
                state.tiles[reg] = [[0; 64]; 16];
            }
            (0x4B, 3, Some(memory)) => {
                let (rows, bytes) = state.shape(reg);
                state.tiles[reg] = [[0; 64]; 16];
                for (row, tile) in state.tiles[reg][..rows].iter_mut().enumerate() {
                    let from = memory.start.wrapping_add(row * memory.index) as *const u8;
                    // SAFETY: the kernel vouches for the rows it loads.
                    unsafe { std::ptr::copy_nonoverlapping(from, tile.as_mut_ptr(), bytes) };
                }
            }
            (0x4B, 2, Some(memory)) => {
                let (rows, bytes) = state.shape(reg);
                for (row, tile) in state.tiles[reg][..rows].iter().enumerate() {
                    let to = memory.start.wrapping_add(row * memory.index) as *mut u8;
                    // SAFETY: the kernel vouches for the rows it stores to.
                    unsafe { std::ptr::copy_nonoverlapping(tile.as_ptr(), to, bytes) };
                }
            }
            (0x5C, 2, None) => state.dot(reg, usize::from(rm), third, bf16_products),
            (0x5E, 1, None) => state.dot(reg, usize::from(rm), third, byte_products),
            _ => give_up("SIGILL: an instruction of AMX that is not emulated\n"),
        }
        len
    }

    impl State {
        /// LDTILECFG.
        ///
        /// # Safety
        /// At `start` are 64 bytes.
        unsafe fn configure(&mut self, start: usize) {
            // SAFETY: the caller vouches.
            let bytes = unsafe { *(start as *const [u8; 64]) };
            check(
                bytes[0] == 1 && bytes[1] == 0,
                "ldtilecfg: palette, start row\n",
            );
            check(bytes[2..16] == [0; 14], "ldtilecfg: reserved bytes\n");
            check(
                bytes[32..48] == [0; 16] && bytes[56..] == [0; 8],
                "ldtilecfg: a ninth tile\n",
            );
            for idx in 0..8 {
                let at = 16 + 2 * idx;
                self.row_bytes[idx] = usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
                self.rows[idx] = usize::from(bytes[48 + idx]);
                check(
                    self.row_bytes[idx] <= 64 && self.rows[idx] <= 16,
                    "ldtilecfg: a tile is too large\n",
                );
            }
            self.tiles = [[[0; 64]; 16]; 8];
            self.configured = true;
        }

        /// Rows of a tile and bytes of each.
        fn shape(&self, tile: usize) -> (usize, usize) {
            check(
                self.configured && self.rows[tile] > 0 && self.row_bytes[tile] > 0,
                "a tile that was not configured\n",
            );
            (self.rows[tile], self.row_bytes[tile])
        }

        /// `sums` + `left` · `right`, words at a time.
        fn dot(&mut self, sums: usize, left: usize, right: usize, products: Products) {
            let ((rows, bytes), (left_rows, left_bytes)) = (self.shape(sums), self.shape(left));
            let (right_rows, right_bytes) = self.shape(right);
            check(
                rows == left_rows && bytes == right_bytes && left_bytes == 4 * right_rows,
                "a product of tiles that do not fit\n",
            );
            check(
                sums != left && sums != right && left != right,
                "a product of a tile with itself\n",
            );
            let right = self.tiles[right];
            for row in 0..rows {
                let left = self.tiles[left][row];
                let left = &left.as_chunks::<4>().0[..left_bytes / 4];
                let sums = self.tiles[sums][row].as_chunks_mut::<4>().0;
                for (column, sum) in sums[..bytes / 4].iter_mut().enumerate() {
                    *sum = products(left, &right, column, *sum);
                }
            }
        }
    }

    /// TDPBF16PS: the products of lower and of upper halves are summed up apart; numbers below 2⁻¹²⁶ are 0.
    fn bf16_products(
        left: &[[u8; 4]],
        right: &[[u8; 64]; 16],
        column: usize,
        sum: [u8; 4],
    ) -> [u8; 4] {
        let flushed = |x: f32| if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x };
        let half = |word: &[u8], idx: usize| {
            let bits = [0, 0, word[2 * idx], word[2 * idx + 1]];
            flushed(f32::from_le_bytes(bits))
        };
        let mut sums = [0.0f32; 2];
        for (left, right) in left.iter().zip(right) {
            let right = &right[4 * column..][..4];
            for (idx, sum) in sums.iter_mut().enumerate() {
                *sum = flushed(half(left, idx).mul_add(half(right, idx), *sum));
            }
        }
        let sum = flushed(f32::from_le_bytes(sum));
        flushed(sum + flushed(sums[0] + sums[1])).to_le_bytes()
    }

    /// TDPBUSD: unsigned bytes by signed ones, added up without saturation.
    fn byte_products(
        left: &[[u8; 4]],
        right: &[[u8; 64]; 16],
        column: usize,
        sum: [u8; 4],
    ) -> [u8; 4] {
        let mut sum = i32::from_le_bytes(sum);
        for (left, right) in left.iter().zip(right) {
            for (left, right) in left.iter().zip(&right[4 * column..][..4]) {
                sum = sum.wrapping_add(i32::from(*left) * i32::from(*right as i8));
            }
        }
        sum.to_le_bytes()
    }
}
