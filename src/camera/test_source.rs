//! What is drawn into the test picture: a mark that programs can read, a clock for people, and ground that passes by, with as much
//! detail, motion and noise as keeps an encoder as busy as a lively scene does.
//!
//! The mark is 56 squares of 16 × 16 pixels in two rows of 28, from (16, 16): bright (luma 235) is 1, dark (16) is 0, the
//! highest bit first. 32 bits hold the low bits of the wall clock in milliseconds, 16 the number of the picture, 8 the sum of
//! the six bytes before. It survives encoding, and scaling to half the size, so a test or a page can tell which picture it sees
//! and how old it is.

use std::sync::OnceLock;

const CELL: usize = 16;
const COLUMNS: usize = 28;
const ROWS: usize = 2;
const ORIGIN: usize = 16;

const BRIGHT: u8 = 235;
const DARK: u8 = 16;
const GREY: u8 = 128;

/// What one test picture says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Low 32 bits of the milliseconds since 1970, when the picture was drawn.
    pub wall_ms: u32,
    /// Counts the pictures of one opening, from 0, and wraps.
    pub number: u16,
}

impl Mark {
    fn to_bits(self) -> u64 {
        let word = u64::from(self.wall_ms) << 16 | u64::from(self.number);
        word << 8 | u64::from(checksum(word))
    }

    fn from_bits(bits: u64) -> Option<Self> {
        let word = bits >> 8;
        let mark = Self { wall_ms: (word >> 16) as u32, number: word as u16 };
        (bits as u8 == checksum(word)).then_some(mark)
    }

    /// Reads the mark from a decoded picture's luma plane, be it as large as it was drawn or half that; `None` when there is none
    /// or it is damaged.
    pub fn read(luma: &[u8], stride: usize) -> Option<Self> {
        Self::read_at(1, luma, stride).or_else(|| Self::read_at(2, luma, stride))
    }

    /// From a picture that was made `smaller` times smaller.
    fn read_at(smaller: usize, luma: &[u8], stride: usize) -> Option<Self> {
        let mut bits = 0;
        for cell in 0..ROWS * COLUMNS {
            let (x, y) = cell_origin(cell);
            let centre = luma.get((y + CELL / 2) / smaller * stride + (x + CELL / 2) / smaller)?;
            if centre.abs_diff(GREY) < CONTRAST {
                return None;
            }
            bits = bits << 1 | u64::from(*centre >= GREY);
        }
        Self::from_bits(bits)
    }
}

/// What is nearer to grey than this is no square of a mark, however badly it was encoded.
const CONTRAST: u8 = 30;

fn checksum(word: u64) -> u8 {
    word.to_le_bytes()[..6].iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

fn cell_origin(cell: usize) -> (usize, usize) {
    (ORIGIN + cell % COLUMNS * CELL, ORIGIN + cell / COLUMNS * CELL)
}

/// An I420 picture that can be drawn on.
pub(super) struct Canvas<'a> {
    pub(super) luma: &'a mut [u8],
    pub(super) chroma: [&'a mut [u8]; 2],
    pub(super) luma_stride: usize,
    pub(super) chroma_stride: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

impl Canvas<'_> {
    /// Draws all there is to draw, as far as the picture is large enough for it.
    ///
    /// `wall_ms` is the time since 1970; the clock shows it as hours, minutes, seconds and milliseconds of UTC.
    pub(super) fn draw(&mut self, wall_ms: u64, number: u16) {
        self.draw_ground(number);
        if self.width >= ORIGIN + COLUMNS * CELL && self.height >= ORIGIN + ROWS * CELL {
            self.draw_mark(Mark { wall_ms: wall_ms as u32, number });
        }
        let clock_y = ORIGIN + ROWS * CELL + CELL;
        if self.width >= ORIGIN + CLOCK_WIDTH && self.height >= clock_y + DIGIT_HEIGHT + 2 * PEN {
            self.draw_clock(ORIGIN, clock_y, wall_ms);
        }
        self.draw_runner(wall_ms);
    }

    /// The lower third: bands of a texture that pass by, the nearer the faster.
    fn draw_ground(&mut self, number: u16) {
        let number = usize::from(number);
        let texture = &textures()[number % TEXTURES];
        let top = self.height * 2 / 3;
        self.fill_colour(0, top, self.width, self.height - top);
        for y in top..self.height {
            let band = (y - top) * 3 * BANDS / self.height.max(1);
            let row = &texture[y % SIDE * SIDE..][..SIDE];
            let mut at = number * (2 * band + 1) % SIDE;
            let mut line = &mut self.luma[y * self.luma_stride..][..self.width];
            while !line.is_empty() {
                let (piece, rest) = line.split_at_mut(line.len().min(SIDE - at));
                piece.copy_from_slice(&row[at..at + piece.len()]);
                (line, at) = (rest, 0);
            }
        }
    }

    fn draw_mark(&mut self, mark: Mark) {
        let bits = mark.to_bits();
        for cell in 0..ROWS * COLUMNS {
            let (x, y) = cell_origin(cell);
            let is_one = bits >> (ROWS * COLUMNS - 1 - cell) & 1 == 1;
            self.fill(x, y, CELL, CELL, if is_one { BRIGHT } else { DARK });
        }
    }

    fn draw_clock(&mut self, x: usize, y: usize, wall_ms: u64) {
        let (seconds, ms) = (wall_ms / 1000 % 86_400, wall_ms % 1000);
        let text = format!("{:02}:{:02}:{:02}.{ms:03}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        self.fill(x, y, CLOCK_WIDTH, DIGIT_HEIGHT + 2 * PEN, DARK);
        let mut at = x + PEN;
        for glyph in text.bytes() {
            match glyph {
                b'0'..=b'9' => {
                    self.draw_digit(at, y + PEN, SEGMENTS[usize::from(glyph - b'0')]);
                    at += DIGIT_WIDTH + PEN;
                }
                _ => {
                    let dot = |n| y + PEN + DIGIT_HEIGHT * n / 4;
                    self.fill(at, dot(3), PEN, PEN, BRIGHT);
                    if glyph == b':' {
                        self.fill(at, dot(1), PEN, PEN, BRIGHT);
                    }
                    at += 2 * PEN;
                }
            }
        }
    }

    fn draw_digit(&mut self, x: usize, y: usize, segments: u8) {
        let half = (DIGIT_HEIGHT - PEN) / 2;
        let right = x + DIGIT_WIDTH - PEN;
        let strokes = [
            (x, y, DIGIT_WIDTH, PEN),
            (right, y, PEN, half + PEN),
            (right, y + half, PEN, half + PEN),
            (x, y + 2 * half, DIGIT_WIDTH, PEN),
            (x, y + half, PEN, half + PEN),
            (x, y, PEN, half + PEN),
            (x, y + half, DIGIT_WIDTH, PEN),
        ];
        for (stroke, (x, y, width, height)) in strokes.into_iter().enumerate() {
            if segments >> stroke & 1 == 1 {
                self.fill(x, y, width, height, BRIGHT);
            }
        }
    }

    /// A block that crosses the picture's lower edge once in two seconds: it stutters when the picture does.
    fn draw_runner(&mut self, wall_ms: u64) {
        if self.width < 2 * CELL || self.height < 2 * CELL {
            return;
        }
        let y = self.height - CELL;
        self.fill(0, y, self.width, CELL, DARK);
        let x = (wall_ms % 2000) as usize * (self.width - CELL) / 2000;
        self.fill(x, y, CELL, CELL, BRIGHT);
    }

    /// Fills a rectangle with a shade of grey. It must lie within the picture.
    fn fill(&mut self, x: usize, y: usize, width: usize, height: usize, shade: u8) {
        for row in y..y + height {
            self.luma[row * self.luma_stride + x..][..width].fill(shade);
        }
        self.fill_colour(x, y, width, height);
    }

    /// Takes the colour from a rectangle.
    fn fill_colour(&mut self, x: usize, y: usize, width: usize, height: usize) {
        let (left, right) = (x / 2, (x + width).div_ceil(2).min(self.width.div_ceil(2)));
        for row in y / 2..(y + height).div_ceil(2) {
            for plane in &mut self.chroma {
                plane[row * self.chroma_stride..][left..right].fill(GREY);
            }
        }
    }
}

const BANDS: usize = 4;
/// Each has the same texture and noise of its own, as no two pictures of a lens are alike.
const TEXTURES: usize = 4;
/// Of a texture, which repeats; a divisor of the 65536 picture numbers, so that it goes on where they wrap.
const SIDE: usize = 128;

/// Made once, in about a millisecond.
fn textures() -> &'static [Vec<u8>; TEXTURES] {
    static MADE: OnceLock<[Vec<u8>; TEXTURES]> = OnceLock::new();
    MADE.get_or_init(|| {
        let mut random = Random(1);
        let ground = ground(&mut random);
        std::array::from_fn(|_| {
            ground.iter().map(|&shade| (shade + random.up_to(NOISE)).clamp(16, 235) as u8).collect()
        })
    })
}

const NOISE: i32 = 5;

/// Noise in several sizes, the larger the stronger, as nature has it.
fn ground(random: &mut Random) -> Vec<i32> {
    let mut ground = vec![i32::from(GREY); SIDE * SIDE];
    for (cell, strength) in [(32, 30), (16, 22), (8, 16), (4, 11), (2, 7)] {
        let across = SIDE / cell;
        let corners: Vec<i32> = (0..across * across).map(|_| random.up_to(strength)).collect();
        for (at, shade) in ground.iter_mut().enumerate() {
            let (x, y) = (at % SIDE, at / SIDE);
            let corner = |dx, dy| corners[(y / cell + dy) % across * across + (x / cell + dx) % across];
            let mix = |a: i32, b: i32, part: usize| a * (cell - part) as i32 + b * part as i32;
            let [above, below] = [0, 1].map(|dy| mix(corner(0, dy), corner(1, dy), x % cell));
            *shade += mix(above, below, y % cell) / (cell * cell) as i32;
        }
    }
    ground
}

/// The same numbers each time (xorshift, by George Marsaglia).
struct Random(u32);

impl Random {
    /// From `-most` to `most`.
    fn up_to(&mut self, most: i32) -> i32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        (self.0 >> 1) as i32 % (2 * most + 1) - most
    }
}

const PEN: usize = 4;
const DIGIT_WIDTH: usize = 20;
const DIGIT_HEIGHT: usize = 36;
/// Nine digits, two colons, a point.
const CLOCK_WIDTH: usize = PEN + 9 * (DIGIT_WIDTH + PEN) + 3 * 2 * PEN;

/// The strokes of a seven-segment digit, from the top clockwise, the middle one last; lowest bit first.
const SEGMENTS: [u8; 10] = [0x3f, 0x06, 0x5b, 0x4f, 0x66, 0x6d, 0x7d, 0x07, 0x7f, 0x6f];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_layout_is_the_one_browsers_read() {
        // The page's reader, in its own terms: squares of 16 from (16, 16), their centres at 24 + 16 n.
        let picture = Picture::drawn(640, 480, 0x0123_4567_89ab, 0xcdef);
        let mut bits = 0u64;
        for i in 0..56 {
            let luma = picture.luma[(24 + i / 28 * 16) * 640 + 24 + i % 28 * 16];
            assert!(luma == 235 || luma == 16);
            bits = bits << 1 | u64::from(luma > 128);
        }
        let sum = 0x45u8.wrapping_add(0x67).wrapping_add(0x89).wrapping_add(0xab).wrapping_add(0xcd).wrapping_add(0xef);
        assert_eq!(bits, 0x4567_89ab_cdef << 8 | u64::from(sum));
    }

    #[test]
    fn a_damaged_mark_is_not_read() {
        let mut picture = Picture::drawn(640, 480, 1_700_000_000_000, 7);
        let square = (24 * 640) + 24;
        picture.luma[square] = if picture.luma[square] == BRIGHT { DARK } else { BRIGHT };
        assert_eq!(Mark::read(&picture.luma, 640), None);
        assert_eq!(Mark::read(&[], 640), None);
    }

    #[test]
    fn the_marks_ground_is_colourless() {
        let picture = Picture::drawn(640, 480, 1_700_000_000_000, 7);
        assert_eq!(picture.chroma[0][(20 * 320) + 20], GREY);
        assert_eq!(picture.chroma[1][(100 * 320) + 200], 17);
    }

    proptest! {
        #[test]
        fn what_is_drawn_can_be_read(wall_ms in any::<u64>(), number in any::<u16>()) {
            let picture = Picture::drawn(640, 360, wall_ms, number);
            prop_assert_eq!(Mark::read(&picture.luma, 640), Some(Mark { wall_ms: wall_ms as u32, number }));
        }

        #[test]
        fn a_picture_of_any_size_can_be_drawn_on(width in 1usize..700, height in 1usize..200, wall_ms in any::<u64>()) {
            Picture::drawn(width, height, wall_ms, 1);
        }
    }

    struct Picture {
        luma: Vec<u8>,
        chroma: [Vec<u8>; 2],
    }

    impl Picture {
        fn drawn(width: usize, height: usize, wall_ms: u64, number: u16) -> Self {
            let (chroma_width, chroma_height) = (width.div_ceil(2), height.div_ceil(2));
            let mut picture = Self {
                luma: vec![77; width * height],
                chroma: [vec![200; chroma_width * chroma_height], vec![17; chroma_width * chroma_height]],
            };
            let [u, v] = &mut picture.chroma;
            let mut canvas = Canvas {
                luma: &mut picture.luma,
                chroma: [u, v],
                luma_stride: width,
                chroma_stride: chroma_width,
                width,
                height,
            };
            canvas.draw(wall_ms, number);
            picture
        }
    }
}
