//! Elements copied to where they don't lie byte by byte: bit streams, and runs turned around.

/// Copies `count` bits from bit `from` of `source` to bit `to` of `out`, whose bits there are 0
/// unless all three are whole bytes.
///
/// # Panics
/// If either slice ends before that.
pub(super) fn copy_bits(source: &[u8], from: u64, out: &mut [u8], to: u64, count: u64) {
    if (from | to | count).is_multiple_of(8) {
        let (from, to, count) = (from as usize / 8, to as usize / 8, count as usize / 8);
        out[to..to + count].copy_from_slice(&source[from..from + count]);
        return;
    }
    let mut done = 0;
    while done < count {
        // Up to the end of the byte that is written.
        let (at, shift) = (((to + done) / 8) as usize, (to + done) % 8);
        let take = (8 - shift).min(count - done);
        out[at] |= bits_at(source, from + done, take) << shift;
        done += take;
    }
}

/// Copies `count` elements of `bits` bits, the last one first.
pub(super) fn reverse_elements(
    source: &[u8],
    from: u64,
    out: &mut [u8],
    to: u64,
    count: u64,
    bits: u64,
) {
    match bits {
        8 => reverse::<1>(source, from, out, to, count),
        16 => reverse::<2>(source, from, out, to, count),
        32 => reverse::<4>(source, from, out, to, count),
        64 => reverse::<8>(source, from, out, to, count),
        _ => (0..count).for_each(|element| {
            let from = from + (count - 1 - element) * bits;
            copy_bits(source, from, out, to + element * bits, bits);
        }),
    }
}

fn reverse<const N: usize>(source: &[u8], from: u64, out: &mut [u8], to: u64, count: u64) {
    let (from, to, len) = (from as usize / 8, to as usize / 8, count as usize * N);
    let (source, _) = source[from..from + len].as_chunks::<N>();
    let (out, _) = out[to..to + len].as_chunks_mut::<N>();
    for (out, element) in out.iter_mut().zip(source.iter().rev()) {
        *out = *element;
    }
}

/// `take` (1 to 8) bits from bit `at` on, in the low bits.
fn bits_at(source: &[u8], at: u64, take: u64) -> u8 {
    let (byte, shift) = ((at / 8) as usize, at % 8);
    let low = source[byte] >> shift;
    let high = if shift + take > 8 {
        source[byte + 1] << (8 - shift)
    } else {
        0
    };
    (low | high) & (0xff >> (8 - take))
}
