//! Says from pixels alone what a picture of the embedded model shows, as `tools/demo-model/judge.py` does: sky and ground by a median
//! colour, sun or moon by discs of its colour, things by laying every sprite over the picture.
//!
//! `testdata/demo/sprites.safetensors` has the sprites, written by `judge.py --sprites`.

use std::ops::Range;
use std::path::Path;

use safelight_diffusion::pipeline::RgbImage;
use safelight_store::Checkpoint;
use serde_json::Value;

/// Largest difference of a channel, in 255ths, of a pixel of the sun or moon.
const ORB_TOLERANCE: f32 = 60.0;
/// Mean absolute error of a found thing's pixels, in 255ths.
const THING_LIMIT: f32 = 36.0;
const PLACES: [&str; 3] = ["left", "middle", "right"];

/// What a picture shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) sky: &'static str,
    pub(crate) ground: &'static str,
    pub(crate) orb_place: Option<&'static str>,
    pub(crate) thing: String,
    pub(crate) colour: Option<String>,
    pub(crate) place: Option<String>,
}

impl Verdict {
    /// What of a caption's entry is shown otherwise: its keys.
    pub(crate) fn wrong(&self, entry: &Value) -> Vec<&'static str> {
        let seen = [
            ("sky", Some(self.sky)),
            ("ground", Some(self.ground)),
            ("orb_place", self.orb_place),
            ("thing", Some(self.thing.as_str())),
            ("colour", self.colour.as_deref()),
            ("place", self.place.as_deref()),
        ];
        let asked = seen.into_iter().filter(|(key, _)| !entry[key].is_null());
        let wrong = asked.filter(|(key, seen)| entry[key].as_str() != *seen);
        wrong.map(|(key, _)| key).collect()
    }
}

/// A thing at a place, cut to its box.
struct Sprite {
    thing: String,
    colour: Option<String>,
    place: String,
    at: (usize, usize),
    shape: (usize, usize),
    /// Red, green, blue and 255 where it covers.
    rgba: Vec<u8>,
}

/// All sprites, and drawn scenes with what the other judge says of them.
pub(crate) struct Judge {
    sprites: Vec<Sprite>,
    pub(crate) judged: Vec<(RgbImage, Value)>,
}

impl Judge {
    pub(crate) fn new() -> Judge {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/demo/sprites.safetensors");
        let file = Checkpoint::open(&path).unwrap();
        let boxes: Value = serde_json::from_str(&file.metadata().unwrap()["boxes"]).unwrap();
        let (mut sprites, mut judged) = (Vec::new(), Vec::new());
        let verdicts: Value = serde_json::from_str(&file.metadata().unwrap()["verdicts"]).unwrap();
        for tensor in file.tensors() {
            if let Some(number) = tensor.name.strip_prefix("scene.") {
                let picture = RgbImage::new(128, 128, file.read_bytes(tensor.name).unwrap());
                judged.push((picture, verdicts[number.parse::<usize>().unwrap()].clone()));
                continue;
            }
            let (thing, colour) = match tensor.name.split_once(' ') {
                Some((thing, colour)) => (thing, Some(colour.to_owned())),
                None => (tensor.name, None),
            };
            let rgba = file.read_bytes(tensor.name).unwrap();
            for at in boxes[tensor.name].as_array().unwrap() {
                let number = |idx: usize| at[idx].as_u64().unwrap() as usize;
                sprites.push(Sprite {
                    thing: thing.to_owned(),
                    colour: colour.clone(),
                    place: at[0].as_str().unwrap().to_owned(),
                    at: (number(1), number(2)),
                    shape: (tensor.shape[0] as usize, tensor.shape[1] as usize),
                    rgba: rgba.clone(),
                });
            }
        }
        assert_eq!(sprites.len(), 504, "28 sprites at 18 places");
        Judge { sprites, judged }
    }

    /// Judges a picture of 128 × 128.
    pub(crate) fn of(&self, picture: &RgbImage) -> Verdict {
        assert_eq!((picture.width(), picture.height()), (128, 128));
        let sky = sky(picture);
        let found = self.thing(picture);
        let covered =
            |row: usize, column: usize| found.is_some_and(|sprite| sprite.covers(row, column));
        Verdict {
            sky,
            ground: ground(picture),
            orb_place: orb_place(picture, sky, &covered),
            thing: found.map_or("none", |sprite| &sprite.thing).to_owned(),
            colour: found.and_then(|sprite| sprite.colour.clone()),
            place: found.map(|sprite| sprite.place.clone()),
        }
    }

    /// The sprite that fits best; `None` when even that fits badly or plain background fits better.
    fn thing(&self, picture: &RgbImage) -> Option<&Sprite> {
        let rows: Vec<[f32; 3]> = (0..128).map(|row| median(picture, row..row + 1)).collect();
        let (mut best, mut least) = (None, THING_LIMIT);
        for sprite in &self.sprites {
            let (mut error, mut empty, mut count) = (0.0, 0.0, 0.0);
            for row in 0..sprite.shape.0 {
                for column in 0..sprite.shape.1 {
                    let at = 4 * (row * sprite.shape.1 + column);
                    let drawn = &sprite.rgba[at..at + 4];
                    if drawn[3] == 0 {
                        continue;
                    }
                    let y = sprite.at.0 + row;
                    let pixel = pixel(picture, y, sprite.at.1 + column);
                    for channel in 0..3 {
                        error += (pixel[channel] - f32::from(drawn[channel])).abs();
                        empty += (pixel[channel] - rows[y][channel]).abs();
                    }
                    count += 3.0;
                }
            }
            if error / count < least && error < empty {
                (best, least) = (Some(sprite), error / count);
            }
        }
        best
    }
}

impl Sprite {
    fn covers(&self, row: usize, column: usize) -> bool {
        let inside = row
            .checked_sub(self.at.0)
            .zip(column.checked_sub(self.at.1));
        inside.is_some_and(|(row, column)| {
            row < self.shape.0
                && column < self.shape.1
                && self.rgba[4 * (row * self.shape.1 + column) + 3] > 0
        })
    }
}

fn pixel(picture: &RgbImage, row: usize, column: usize) -> [f32; 3] {
    let at = 3 * (row * picture.width() + column);
    [0, 1, 2].map(|channel| f32::from(picture.bytes()[at + channel]))
}

/// What the sky is, from the median colour of rows 2 to 33.
fn sky(picture: &RgbImage) -> &'static str {
    match median(picture, 2..34) {
        [r, g, b] if r + g + b < 240.0 => "night",
        [r, g, b] if b > r + 25.0 && g > r + 10.0 => "day",
        _ => "sunset",
    }
}

/// What the ground is, from the median colour of rows 104 to 125.
fn ground(picture: &RgbImage) -> &'static str {
    match median(picture, 104..126) {
        [r, g, b] if b > g && b > r => match r > 0.55 * b {
            true => "mountains",
            false => "sea",
        },
        [r, g, _] if g > 1.12 * r => "hills",
        _ => "desert",
    }
}

/// Where the sun (by night the moon) stands; `None` when there is none, or more than one. Pixels `covered` by a thing don't count: a red
/// balloon is no sun.
fn orb_place(
    picture: &RgbImage,
    sky: &str,
    covered: &dyn Fn(usize, usize) -> bool,
) -> Option<&'static str> {
    let (colour, y, radius, share) = match sky {
        "day" => ([255.0, 226.0, 64.0], 24.0, 12.0, 0.35),
        "sunset" => ([255.0, 84.0, 48.0], 48.0, 14.0, 0.35),
        _ => ([248.0, 244.0, 214.0], 24.0, 12.0, 0.2),
    };
    let alike = |row: usize, column: usize| {
        let pixel = pixel(picture, row, column);
        let near = (0..3).all(|channel| (pixel[channel] - colour[channel]).abs() < ORB_TOLERANCE);
        near && !covered(row, column)
    };
    let part = |x: f32, within: &dyn Fn(f32, usize) -> bool| {
        let (mut count, mut hits) = (0.0f32, 0.0f32);
        for row in 0..128usize {
            for column in 0..128usize {
                let distance = (row as f32 - y + 0.5).hypot(column as f32 - x + 0.5);
                if within(distance, row) {
                    count += 1.0;
                    hits += f32::from(u8::from(alike(row, column)));
                }
            }
        }
        hits / count
    };
    let most = |x: f32| {
        let tried = [-8.0, -4.0, 0.0, 4.0, 8.0].map(|dx| {
            let disc = part(x + dx, &|distance, _| distance < radius - 1.0);
            let ring = part(x + dx, &|distance, row| {
                distance > radius + 2.0 && distance < radius + 7.0 && row < 72
            });
            disc - ring
        });
        tried.into_iter().fold(f32::MIN, f32::max)
    };
    let found = PLACES.into_iter().zip([24.0, 64.0, 104.0]);
    let mut found = found.filter(|(_, x)| most(*x) > share);
    match (found.next(), found.next()) {
        (Some((only, _)), None) => Some(only),
        _ => None,
    }
}

/// The median of each channel over whole rows: of an even count, half of the two in the middle.
fn median(picture: &RgbImage, rows: Range<usize>) -> [f32; 3] {
    let row_bytes = 3 * picture.width();
    let pixels = &picture.bytes()[rows.start * row_bytes..rows.end * row_bytes];
    [0, 1, 2].map(|channel| {
        let mut values: Vec<u8> = pixels.iter().skip(channel).step_by(3).copied().collect();
        values.sort_unstable();
        let middle = values.len() / 2;
        (f32::from(values[middle - 1]) + f32::from(values[middle])) / 2.0
    })
}
