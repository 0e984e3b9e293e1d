use super::*;
use crate::source::InMemory;
use crate::testing::Rng;

/// The definition: a matrix for each position, packed as any other is.
fn expected(weight: &[f32], tile: Tile, position: usize) -> Vec<f32> {
    let g = tile.kernel();
    let (row, column) = (g[position / tile.inputs()], g[position % tile.inputs()]);
    let factor = |at: usize| row[at / 3] * column[at % 3];
    let transformed = |kernel: &[f32; 9]| {
        let products = kernel.iter().enumerate();
        products
            .map(|(at, &w)| f64::from(w) * factor(at))
            .sum::<f64>() as f32
    };
    weight.as_chunks::<9>().0.iter().map(transformed).collect()
}

#[test]
fn kernels_are_transformed_as_defined_at_every_level() {
    let mut rng = Rng::seeded(2);
    for (outputs, inputs) in [(1, 1), (31, 7), (33, 28), (64, 29), (40, 130)] {
        let mut weight = rng.f32s(outputs * inputs * 9);
        // Magnitudes far apart, so that sums are rounded in f64; zeros of both signs, alone and together.
        for (idx, value) in weight.iter_mut().enumerate() {
            match idx / 9 % 5 {
                0 if idx % 2 == 0 => *value *= 1e-20,
                1 => *value = -0.0,
                2 => *value = if rng.below(2) == 0 { 0.0 } else { -0.0 },
                3 if idx % 3 == 0 => *value = -0.0,
                _ => {}
            }
        }
        for tile in [Tile::Two, Tile::Four] {
            for precision in [Precision::F32, Precision::Bf16] {
                for level in Level::available() {
                    let packed = Weights::pack_at(
                        level,
                        &InMemory(&weight),
                        (outputs, inputs),
                        precision,
                        tile,
                    );
                    for (position, packed) in packed.positions.iter().enumerate() {
                        let matrix = InMemory(&expected(&weight, tile, position));
                        let expected = Panels::pack(&matrix, outputs, inputs, 1, precision);
                        let bits = |panels: &Panels| -> Vec<u32> {
                            let words = panels.panels_from(0).iter();
                            words.map(|x| x.to_bits()).collect()
                        };
                        assert!(
                            bits(packed) == bits(&expected),
                            "[{outputs}, {inputs}], {tile:?}, {position}, {precision}, {level}"
                        );
                    }
                }
            }
        }
    }
}
