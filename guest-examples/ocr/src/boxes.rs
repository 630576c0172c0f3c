//! The detector's map becomes rectangles ("differentiable binarization", with the settings of RapidOCR).

use crate::geometry::{Quad, Rectangle};

/// From this value on a pixel may belong to text.
const PIXEL_MIN: f32 = 0.3;

/// The mean that a rectangle must have.
const MEAN_MIN: f32 = 0.5;

/// The detector is trained on text that is shrunk by its outline; this brings its extent back.
const GROWTH: f64 = 1.6;

/// Shorter sides, in pixels of the map, are specks: before growing and after.
const SIDE_MIN: f64 = 3.0;
const SIDE_GROWN_MIN: f64 = 5.0;

/// Lines of one picture.
const LINES_MAX: usize = 500;

/// Where there is text, in pixels of the map; a map has as many rows as its length gives.
pub(crate) fn find(map: &[f32], width: usize) -> Vec<Quad> {
    let mut mask = mask(map, width);
    let islands = (0..mask.len()).filter_map(|start| match mask[start] {
        true => Some(Island::take(&mut mask, width, start)),
        false => None,
    });
    islands.filter_map(|island| text_box(&island, map, width)).take(LINES_MAX).collect()
}

/// The pixels that may belong to text, each with its neighbours to the right and below, so that hairlines do not part a word.
fn mask(map: &[f32], width: usize) -> Vec<bool> {
    let mut mask = vec![false; map.len()];
    for at in (0..map.len()).filter(|&at| map[at] > PIXEL_MIN) {
        let (right, down) = (at % width + 1 < width, at + width < map.len());
        mask[at] = true;
        if right {
            mask[at + 1] = true;
        }
        if down {
            mask[at + width] = true;
        }
        if right && down {
            mask[at + width + 1] = true;
        }
    }
    mask
}

/// Pixels that touch: of each row the first and the last.
struct Island {
    /// Row, first and last column. Rows may come more than once.
    rows: Vec<(usize, usize, usize)>,
}

impl Island {
    /// The island of a pixel, which is taken out of the mask, run by run.
    fn take(mask: &mut [bool], width: usize, start: usize) -> Self {
        let mut rows = Vec::new();
        let mut todo = vec![start];
        while let Some(at) = todo.pop() {
            if !mask[at] {
                continue;
            }
            let row = at / width;
            let line = row * width..(row + 1) * width;
            let first = (line.start..at).rev().take_while(|&left| mask[left]).last().unwrap_or(at);
            let last = (at + 1..line.end).take_while(|&right| mask[right]).last().unwrap_or(at);
            mask[first..=last].fill(false);
            rows.push((row, first - line.start, last - line.start));
            // What touches it in the rows above and below, corners included.
            let (from, to) = ((first - line.start).saturating_sub(1), (last - line.start + 1).min(width - 1));
            let neighbours = [row.checked_sub(1), Some(row + 1).filter(|row| (row + 1) * width <= mask.len())];
            for neighbour in neighbours.into_iter().flatten() {
                todo.extend((neighbour * width + from..=neighbour * width + to).filter(|&at| mask[at]));
            }
        }
        Self { rows }
    }
}

fn text_box(island: &Island, map: &[f32], width: usize) -> Option<Quad> {
    let ends =
        island.rows.iter().flat_map(|&(row, first, last)| [[first as f64, row as f64], [last as f64, row as f64]]);
    let rectangle = Rectangle::around(ends.collect())?;
    if rectangle.width.min(rectangle.height) < SIDE_MIN || mean(&rectangle, map, width) < MEAN_MIN {
        return None;
    }
    let grown = rectangle.grown(rectangle.area() * GROWTH / (2.0 * (rectangle.width + rectangle.height)));
    (grown.width.min(grown.height) >= SIDE_GROWN_MIN).then(|| grown.corners())
}

/// The mean of the map within a rectangle.
fn mean(rectangle: &Rectangle, map: &[f32], width: usize) -> f32 {
    let Quad(corners) = rectangle.corners();
    let range = |axis: usize, len: usize| {
        let values = corners.iter().map(|corner| corner[axis]);
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        low.floor().max(0.0) as usize..(high.ceil() as usize + 1).min(len)
    };
    let (mut sum, mut count) = (0.0, 0);
    for row in range(1, map.len() / width) {
        for column in range(0, width).filter(|&column| rectangle.contains([column as f64, row as f64])) {
            sum += map[row * width + column];
            count += 1;
        }
    }
    if count == 0 { 0.0 } else { sum / count as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 64;

    /// A map of 64 by 48 pixels with rectangles of one value: left, top, right, bottom.
    fn map(parts: &[([usize; 4], f32)]) -> Vec<f32> {
        let mut map = vec![0.0; WIDTH * 48];
        for &([left, top, right, bottom], value) in parts {
            (top..bottom).for_each(|row| map[row * WIDTH + left..row * WIDTH + right].fill(value));
        }
        map
    }

    fn islands(map: &[f32]) -> usize {
        let mut mask = mask(map, WIDTH);
        (0..mask.len()).filter(|&start| mask[start] && !Island::take(&mut mask, WIDTH, start).rows.is_empty()).count()
    }

    #[test]
    fn islands_become_boxes_that_are_grown_back() {
        let found = find(&map(&[([10, 10, 40, 20], 0.9), ([10, 30, 20, 36], 0.8)]), WIDTH);
        assert_eq!(found.len(), 2);
        // 30 by 10 pixels; one more to the right and below by the mask; grown by 300 · 1.6 / 80.
        let [[left, top], _, [right, bottom], _] = found[0].0;
        assert_eq!([left, top, right, bottom].map(f64::round), [4.0, 4.0, 46.0, 26.0]);
    }

    #[test]
    fn specks_and_doubts_are_none() {
        assert!(find(&map(&[([10, 10, 12, 12], 0.9)]), WIDTH).is_empty());
        assert!(find(&map(&[([10, 10, 40, 20], 0.4)]), WIDTH).is_empty());
        assert!(find(&map(&[([10, 10, 40, 20], 0.2)]), WIDTH).is_empty());
        assert!(find(&[], WIDTH).is_empty());
    }

    #[test]
    fn a_hairline_does_not_part_a_word_and_corners_touch() {
        assert_eq!(find(&map(&[([10, 10, 20, 20], 0.9), ([21, 10, 40, 20], 0.9)]), WIDTH).len(), 1);
        assert_eq!(islands(&map(&[([10, 10, 20, 20], 0.9), ([21, 21, 30, 30], 0.9)])), 1);
        assert_eq!(find(&map(&[([10, 10, 20, 20], 0.9), ([23, 10, 40, 20], 0.9)]), WIDTH).len(), 2);
    }

    #[test]
    fn a_map_that_is_all_text_is_one_box() {
        let found = find(&map(&[([0, 0, 64, 48], 0.9)]), WIDTH);
        assert_eq!(found.len(), 1);
    }
}
