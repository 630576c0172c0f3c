//! Points, the smallest rectangle around them, and the order in which people read.

/// Across and down, in pixels.
pub(crate) type Point = [f64; 2];

/// A rectangle that may be tilted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rectangle {
    pub(crate) centre: Point,
    /// A unit vector along its width.
    pub(crate) along: Point,
    pub(crate) width: f64,
    pub(crate) height: f64,
}

impl Rectangle {
    /// The smallest one around these points: one of its sides lies on a side of their convex hull.
    pub(crate) fn around(points: Vec<Point>) -> Option<Self> {
        let hull = convex_hull(points);
        let sides = hull.iter().zip(hull.iter().cycle().skip(1));
        let directions = sides.filter_map(|(a, b)| {
            let length = (b[0] - a[0]).hypot(b[1] - a[1]);
            (length > 0.0).then(|| [(b[0] - a[0]) / length, (b[1] - a[1]) / length])
        });
        // A single point has no sides.
        directions
            .chain([[1.0, 0.0]])
            .map(|along| Self::along(along, &hull))
            .min_by(|a, b| a.area().total_cmp(&b.area()))
    }

    fn along(along: Point, points: &[Point]) -> Self {
        let across = [-along[1], along[0]];
        let extent = |axis: Point| {
            let places = points.iter().map(|point| dot(*point, axis));
            places.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), place| (low.min(place), high.max(place)))
        };
        let ((left, right), (top, bottom)) = (extent(along), extent(across));
        let (middle, height) = ((left + right) / 2.0, (top + bottom) / 2.0);
        let centre = [along[0] * middle + across[0] * height, along[1] * middle + across[1] * height];
        Self { centre, along, width: right - left, height: bottom - top }
    }

    pub(crate) fn area(&self) -> f64 {
        self.width * self.height
    }

    /// The same rectangle with each side moved outwards.
    pub(crate) fn grown(self, by: f64) -> Self {
        Self { width: self.width + 2.0 * by, height: self.height + 2.0 * by, ..self }
    }

    pub(crate) fn contains(&self, point: Point) -> bool {
        let from_centre = [point[0] - self.centre[0], point[1] - self.centre[1]];
        let across = [-self.along[1], self.along[0]];
        dot(from_centre, self.along).abs() <= self.width / 2.0 && dot(from_centre, across).abs() <= self.height / 2.0
    }

    /// Its corners as those of a line of text: from left to right, as far as it lies that way at all.
    pub(crate) fn corners(&self) -> Quad {
        let (across, half) = ([-self.along[1], self.along[0]], [self.width / 2.0, self.height / 2.0]);
        let corner = |x: f64, y: f64| {
            let (x, y) = (x * half[0], y * half[1]);
            [self.centre[0] + self.along[0] * x + across[0] * y, self.centre[1] + self.along[1] * x + across[1] * y]
        };
        let mut corners = [corner(-1.0, -1.0), corner(1.0, -1.0), corner(1.0, 1.0), corner(-1.0, 1.0)];
        // The two to the left, then the two to the right, each from top to bottom.
        corners.sort_by(|a, b| a[0].total_cmp(&b[0]));
        let by_height = |mut pair: [Point; 2]| {
            pair.sort_by(|a, b| a[1].total_cmp(&b[1]));
            pair
        };
        let [[left_top, left_bottom], [right_top, right_bottom]] =
            [by_height([corners[0], corners[1]]), by_height([corners[2], corners[3]])];
        Quad([left_top, right_top, right_bottom, left_bottom])
    }
}

fn dot(a: Point, b: Point) -> f64 {
    a[0] * b[0] + a[1] * b[1]
}

/// The corners of the smallest convex polygon around these points (Andrew's monotone chain).
fn convex_hull(mut points: Vec<Point>) -> Vec<Point> {
    points.sort_by(|a, b| a[0].total_cmp(&b[0]).then(a[1].total_cmp(&b[1])));
    points.dedup();
    if points.len() < 3 {
        return points;
    }
    let turns_left = |a: Point, b: Point, c: Point| (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]) > 0.0;
    let chain = |points: &mut dyn Iterator<Item = Point>| {
        let mut chain: Vec<Point> = Vec::new();
        for point in points {
            while let [.., a, b] = chain[..]
                && !turns_left(a, b, point)
            {
                chain.pop();
            }
            chain.push(point);
        }
        chain.pop(); // the first of the other chain
        chain
    };
    let mut hull = chain(&mut points.iter().copied());
    hull.extend(chain(&mut points.iter().rev().copied()));
    hull
}

/// The corners of a line of text: beginning and end of its upper edge, end and beginning of its lower edge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Quad(pub(crate) [Point; 4]);

impl Quad {
    pub(crate) fn scaled(self, (x, y): (f64, f64)) -> Self {
        Self(self.0.map(|point| [point[0] * x, point[1] * y]))
    }

    pub(crate) fn clamped(self, width: u32, height: u32) -> Self {
        let clamp = |point: Point| [point[0].clamp(0.0, width.into()), point[1].clamp(0.0, height.into())];
        Self(self.0.map(clamp))
    }

    pub(crate) fn rounded(&self) -> [[i32; 2]; 4] {
        self.0.map(|point| point.map(|value| value.round() as i32))
    }

    /// The lengths of its upper and its left edge.
    pub(crate) fn size(&self) -> (f64, f64) {
        let [left_top, right_top, _, left_bottom] = self.0;
        let length = |a: Point, b: Point| (b[0] - a[0]).hypot(b[1] - a[1]);
        (length(left_top, right_top), length(left_top, left_bottom))
    }

    /// The same with a margin on all sides, as a part of its height.
    pub(crate) fn widened(&self, part: f64) -> Self {
        let (width, height) = self.size();
        let [left_top, right_top, right_bottom, left_bottom] = self.0;
        let margin = height * part;
        let step = |from: Point, to: Point, length: f64| {
            [(to[0] - from[0]) / length.max(1.0) * margin, (to[1] - from[1]) / length.max(1.0) * margin]
        };
        let (right, down) = (step(left_top, right_top, width), step(left_top, left_bottom, height));
        let moved = |point: Point, x: f64, y: f64| {
            [point[0] + right[0] * x + down[0] * y, point[1] + right[1] * x + down[1] * y]
        };
        Self([
            moved(left_top, -1.0, -1.0),
            moved(right_top, 1.0, -1.0),
            moved(right_bottom, 1.0, 1.0),
            moved(left_bottom, -1.0, 1.0),
        ])
    }

    /// The direction of its upper edge, in radians.
    fn tilt(&self) -> f64 {
        let [left_top, right_top, ..] = self.0;
        (right_top[1] - left_top[1]).atan2(right_top[0] - left_top[0])
    }

    fn middle(&self) -> Point {
        let sum = self.0.iter().fold([0.0, 0.0], |sum, point| [sum[0] + point[0], sum[1] + point[1]]);
        sum.map(|value| value / 4.0)
    }
}

/// From top to bottom; what stands side by side from left to right. A page that lies askew is read as if it lay straight.
pub(crate) fn in_reading_order(quads: Vec<Quad>) -> Vec<Quad> {
    let mut tilts: Vec<f64> = quads.iter().map(Quad::tilt).collect();
    tilts.sort_by(f64::total_cmp);
    let (sin, cos) = tilts.get(tilts.len() / 2).map_or((0.0, 1.0), |tilt| tilt.sin_cos());
    let place = |quad: &Quad| {
        let [x, y] = quad.middle();
        [x * cos + y * sin, y * cos - x * sin]
    };
    let mut placed: Vec<(Point, Quad)> = quads.into_iter().map(|quad| (place(&quad), quad)).collect();
    placed.sort_by(|(a, _), (b, _)| a[1].total_cmp(&b[1]));
    let mut ordered: Vec<(Point, Quad)> = Vec::with_capacity(placed.len());
    let mut row_start = 0;
    for (place, quad) in placed {
        // Its middle is below the lower half of what the row begins with.
        let begins_row = ordered.get(row_start).is_none_or(|(first_place, first)| {
            let height = first.size().1.min(quad.size().1);
            place[1] - first_place[1] > height / 2.0
        });
        if begins_row {
            row_start = ordered.len();
        }
        let index = row_start + ordered[row_start..].partition_point(|(other, _)| other[0] <= place[0]);
        ordered.insert(index, (place, quad));
    }
    ordered.into_iter().map(|(_, quad)| quad).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(got: Point, want: Point) -> bool {
        (got[0] - want[0]).abs() < 1e-9 && (got[1] - want[1]).abs() < 1e-9
    }

    #[test]
    fn the_hull_leaves_out_what_lies_within() {
        let square = [[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [0.0, 4.0]];
        let mut points = square.to_vec();
        points.extend([[2.0, 2.0], [1.0, 3.0], [2.0, 0.0], [4.0, 4.0]]);
        let hull = convex_hull(points);
        assert_eq!(hull.len(), 4);
        assert!(square.iter().all(|corner| hull.contains(corner)));
        assert_eq!(convex_hull(vec![[1.0, 1.0]; 3]), [[1.0, 1.0]]);
    }

    #[test]
    fn the_smallest_rectangle_follows_the_tilt() {
        let (sin, cos) = (30f64).to_radians().sin_cos();
        let turned = |x: f64, y: f64| [10.0 + x * cos - y * sin, 20.0 + x * sin + y * cos];
        let points = vec![turned(-8.0, -2.0), turned(8.0, -2.0), turned(8.0, 2.0), turned(-8.0, 2.0), turned(0.0, 1.0)];
        let rectangle = Rectangle::around(points).unwrap();
        assert!(near(rectangle.centre, [10.0, 20.0]) && (rectangle.area() - 64.0).abs() < 1e-9, "{rectangle:?}");
        assert!(rectangle.contains(turned(7.9, 1.9)) && !rectangle.contains(turned(8.1, 0.0)));
        assert!(rectangle.grown(1.0).contains(turned(8.9, 2.9)));
        let Quad([left_top, right_top, ..]) = rectangle.corners();
        assert!(near(left_top, turned(-8.0, -2.0)) && near(right_top, turned(8.0, -2.0)));
        assert_eq!(Rectangle::around(vec![[3.0, 4.0]]).unwrap().area(), 0.0);
    }

    fn quad(left: f64, top: f64) -> Quad {
        Quad([[left, top], [left + 30.0, top], [left + 30.0, top + 10.0], [left, top + 10.0]])
    }

    #[test]
    fn a_margin_is_a_part_of_the_height_on_every_side() {
        let wide = Quad([[8.0, 8.0], [42.0, 8.0], [42.0, 22.0], [8.0, 22.0]]);
        assert_eq!(quad(10.0, 10.0).widened(0.2), wide);
    }

    #[test]
    fn lines_are_read_row_by_row() {
        let quads = vec![quad(50.0, 21.0), quad(5.0, 40.0), quad(100.0, 18.0), quad(0.0, 20.0), quad(0.0, 0.0)];
        let order: Vec<f64> = in_reading_order(quads).iter().map(|quad| quad.0[0][0]).collect();
        assert_eq!(order, [0.0, 0.0, 50.0, 100.0, 5.0]);
        assert!(in_reading_order(vec![]).is_empty());

        // On a page turned against the clock, what is on the right of a row stands higher than its beginning.
        let (sin, cos) = (-10f64).to_radians().sin_cos();
        let turned = |quad: Quad| Quad(quad.0.map(|[x, y]| [x * cos - y * sin, x * sin + y * cos]));
        let quads = [quad(200.0, 20.0), quad(0.0, 40.0), quad(0.0, 20.0)].map(turned);
        assert_eq!(in_reading_order(quads.to_vec()), [quads[2], quads[0], quads[1]]);
    }
}
