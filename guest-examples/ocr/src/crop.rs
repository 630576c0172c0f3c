//! Lines are cut out of the picture and turned level.

use tessera_sdk::Error;
use tessera_sdk::image::Image;

use crate::geometry::Quad;

/// So much higher than wide, a box holds a line that runs up or down.
const UPRIGHT_MIN: f64 = 1.5;

/// The part of a picture within four corners, level; a line that runs up or down is laid on its side.
pub(crate) fn level(picture: &Image, quad: &Quad) -> Result<Image, Error> {
    let (width, height) = quad.size();
    let (width, height) = (width.max(1.0) as u32, height.max(1.0) as u32);
    let Quad([origin, end, _, below]) = *quad;
    let step = |to: [f64; 2], len: u32| [(to[0] - origin[0]) / f64::from(len), (to[1] - origin[1]) / f64::from(len)];
    let (right, down) = (step(end, width), step(below, height));
    let mut pixels = Vec::with_capacity(width as usize * height as usize * 3);
    for row in 0..height {
        for column in 0..width {
            let (column, row) = (f64::from(column), f64::from(row));
            let x = origin[0] + right[0] * column + down[0] * row;
            let y = origin[1] + right[1] * column + down[1] * row;
            pixels.extend(sample(picture, x, y));
        }
    }
    let level = Image::from_rgb(width, height, pixels)?;
    if f64::from(height) / f64::from(width) >= UPRIGHT_MIN { on_its_side(&level) } else { Ok(level) }
}

/// The colour between four pixels; beyond the edge that of the edge.
fn sample(picture: &Image, x: f64, y: f64) -> [u8; 3] {
    let (last_column, last_row) = (picture.width() as usize - 1, picture.height() as usize - 1);
    let (x, y) = (x.clamp(0.0, last_column as f64), y.clamp(0.0, last_row as f64));
    let (left, top) = (x as usize, y as usize);
    let (right, bottom) = ((left + 1).min(last_column), (top + 1).min(last_row));
    let (x, y) = (x - left as f64, y - top as f64);
    let value = |column: usize, row: usize, channel: usize| {
        f64::from(picture.pixels()[(row * picture.width() as usize + column) * 3 + channel])
    };
    std::array::from_fn(|channel| {
        let upper = value(left, top, channel) * (1.0 - x) + value(right, top, channel) * x;
        let lower = value(left, bottom, channel) * (1.0 - x) + value(right, bottom, channel) * x;
        (upper * (1.0 - y) + lower * y).round() as u8
    })
}

/// A quarter turn against the clock.
fn on_its_side(image: &Image) -> Result<Image, Error> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let pixel = |at: usize| {
        let (row, column) = (at / height, at % height);
        let from = (column * width + (width - 1 - row)) * 3;
        [image.pixels()[from], image.pixels()[from + 1], image.pixels()[from + 2]]
    };
    Image::from_rgb(image.height(), image.width(), (0..width * height).flat_map(pixel).collect())
}

/// Half a turn.
pub(crate) fn upside_down(image: &Image) -> Result<Image, Error> {
    let pixels = image.pixels().chunks_exact(3).rev().flatten().copied().collect();
    Image::from_rgb(image.width(), image.height(), pixels)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pixels of grey, by their values.
    fn grey(width: u32, values: &[u8]) -> Image {
        let height = values.len() as u32 / width;
        Image::from_rgb(width, height, values.iter().flat_map(|&value| [value; 3]).collect()).unwrap()
    }

    #[test]
    fn the_part_within_the_corners_is_cut_out() {
        let picture = grey(4, &[0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]);
        let quad = Quad([[1.0, 1.0], [3.0, 1.0], [3.0, 3.0], [1.0, 3.0]]);
        assert_eq!(level(&picture, &quad).unwrap(), grey(2, &[11, 12, 21, 22]));
    }

    #[test]
    fn a_tilted_part_is_turned_level() {
        // A quarter turn: what runs downwards in the picture runs to the right in the line.
        let picture = grey(3, &[0, 1, 2, 10, 11, 12, 20, 21, 22]);
        let quad = Quad([[2.0, 0.0], [2.0, 3.0], [0.0, 3.0], [0.0, 0.0]]);
        assert_eq!(level(&picture, &quad).unwrap(), grey(3, &[2, 12, 22, 1, 11, 21]));
    }

    #[test]
    fn an_upright_line_is_laid_on_its_side() {
        let picture = grey(2, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let quad = Quad([[0.0, 0.0], [2.0, 0.0], [2.0, 4.0], [0.0, 4.0]]);
        assert_eq!(level(&picture, &quad).unwrap(), grey(4, &[2, 4, 6, 8, 1, 3, 5, 7]));
    }

    #[test]
    fn corners_outside_and_no_area_give_a_pixel_at_least() {
        let picture = grey(1, &[7]);
        let quad = Quad([[5.0, 5.0]; 4]);
        assert_eq!(level(&picture, &quad).unwrap(), grey(1, &[7]));
    }

    #[test]
    fn half_a_turn_is_its_own_way_back() {
        let image = grey(3, &[1, 2, 3, 4, 5, 6]);
        let turned = upside_down(&image).unwrap();
        assert_eq!(turned, grey(3, &[6, 5, 4, 3, 2, 1]));
        assert_eq!(upside_down(&turned).unwrap(), image);
    }
}
