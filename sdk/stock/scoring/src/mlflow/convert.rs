//! numpy's and pandas' conversions of Python values, in their lossy way.
//!
//! Two rules exist for one value. Through `inputs` and `instances` it goes by numpy's `np.array(data, dtype)`, which
//! refuses integers out of range. Through a DataFrame it goes by pandas: the column's own type is inferred first, then
//! cast with `astype`, which lets integers wrap. MLflow's answers depend on the difference, so it is kept.

use super::dates;
use super::schema::python_tuple;
use crate::json::{Cell, List};
use crate::tensor::{Array, Dtype, Sign, Values, int_to_float, narrow_float};

/// numpy has no arrays of more axes.
const AXES_MAX: usize = 64;

/// `np.array(data, dtype)`; without a type, numpy chooses one.
pub(crate) fn array(data: Cell<'_>, dtype: Option<Dtype>) -> Result<Array, String> {
    let mut shape = Vec::new();
    let mut first = data;
    while let Cell::List(list) = first {
        shape.push(list.len());
        match list.get(0) {
            Some(inner) if shape.len() < AXES_MAX => first = inner,
            _ => break,
        }
    }
    let dtype = dtype.unwrap_or_else(|| {
        let mut kinds = Kinds::default();
        kinds.add_leaves(data);
        kinds.numpy()
    });
    let mut elements = Elements::new(dtype, shape.iter().fold(1, |size, axis| size.saturating_mul(*axis)));
    match elements.add(data, &shape) {
        Ok(()) => Ok(Array { dtype, shape, values: elements.values }),
        // Lists of different length are objects to numpy, when objects were asked for.
        Err(Mismatch::Ragged { .. }) if dtype == Dtype::Object => {
            let count = shape.first().copied().unwrap_or(1);
            Ok(Array::column(dtype, Values::Opaque(count)))
        }
        Err(Mismatch::Ragged { axes_left }) => Err(ragged(&shape, shape.len() - axes_left)),
        Err(Mismatch::Value(reason)) => Err(reason),
    }
}

/// `np.array([cells], dtype)`, for values that come from different places of the body.
pub(crate) fn array_of_cells(cells: &[Cell<'_>], dtype: Option<Dtype>) -> Result<Array, String> {
    let dtype = dtype.unwrap_or_else(|| {
        let mut kinds = Kinds::default();
        cells.iter().for_each(|cell| kinds.add_leaves(*cell));
        kinds.numpy()
    });
    let mut stacked = Array { dtype, shape: vec![0], values: Elements::new(dtype, cells.len()).values };
    for cell in cells {
        let Array { shape, values, .. } = array(*cell, Some(dtype))?;
        if stacked.shape.first() == Some(&0) {
            stacked.shape.extend(&shape);
        } else if stacked.shape.get(1..) != Some(&shape) {
            return Err(ragged(&[cells.len()], 1));
        }
        if let Some(count) = stacked.shape.first_mut() {
            *count += 1;
        }
        match (&mut stacked.values, values) {
            (Values::Ints(all), Values::Ints(more)) => all.extend(more),
            (Values::Floats(all), Values::Floats(more)) => all.extend(more),
            (Values::Texts(all), Values::Texts(more)) => all.extend(more),
            (Values::Opaque(all), more) => *all += more.len(),
            (Values::Ints(_) | Values::Floats(_) | Values::Texts(_), _) => {
                return Err("values of different types".to_owned());
            }
        }
    }
    Ok(stacked)
}

fn ragged(shape: &[usize], axes: usize) -> String {
    let detected = python_tuple(shape.iter().take(axes).map(usize::to_string));
    format!(
        "setting an array element with a sequence. The requested array has an inhomogeneous shape after {axes} \
         dimensions. The detected shape was {detected} + inhomogeneous part."
    )
}

/// The elements of an array while it is filled.
struct Elements {
    dtype: Dtype,
    values: Values,
}

enum Mismatch {
    /// A list of another length than its sisters, or a value where a list should be.
    Ragged {
        axes_left: usize,
    },
    Value(String),
}

impl Elements {
    /// The size is a hint, and a claim of the body until it is read to its end: lists of lists may disagree.
    fn new(dtype: Dtype, size_hint: usize) -> Self {
        const RESERVED_MAX: usize = 1 << 20;
        let size_hint = size_hint.min(RESERVED_MAX);
        let values = if dtype.is_float() {
            Values::Floats(Vec::with_capacity(size_hint))
        } else if dtype.integer().is_some() || dtype == Dtype::Bool {
            Values::Ints(Vec::with_capacity(size_hint))
        } else if dtype == Dtype::Text {
            Values::Texts(Vec::with_capacity(size_hint.min(1 << 16)))
        } else {
            Values::Opaque(0)
        };
        Self { dtype, values }
    }

    /// Adds all leaves of `data`, which must have this shape. As deep as the body, whose depth is bounded.
    fn add(&mut self, data: Cell<'_>, shape: &[usize]) -> Result<(), Mismatch> {
        match (data, shape.split_first()) {
            (Cell::List(list), Some((size, inner))) if list.len() == *size => self.add_list(list, inner),
            (Cell::List(_), _) | (_, Some(_)) => Err(Mismatch::Ragged { axes_left: shape.len() }),
            (leaf, None) => self.push(leaf).map_err(Mismatch::Value),
        }
    }

    fn add_list(&mut self, list: &List<'_>, shape: &[usize]) -> Result<(), Mismatch> {
        if let (List::Floats(floats), Values::Floats(values), []) = (list, &mut self.values, shape) {
            let dtype = self.dtype;
            values.extend(floats.iter().map(|value| narrow_float(*value, dtype)));
            return Ok(());
        }
        list.iter().try_for_each(|item| self.add(item, shape))
    }

    fn push(&mut self, leaf: Cell<'_>) -> Result<(), String> {
        match &mut self.values {
            Values::Floats(values) => values.push(narrow_float(python_float(leaf)?, self.dtype)),
            Values::Ints(values) if self.dtype == Dtype::Bool => values.push(i64::from(is_truthy(leaf))),
            Values::Ints(values) => values.push(in_range(python_int(leaf)?, self.dtype)?),
            Values::Texts(values) => values.push(text(leaf)),
            Values::Opaque(count) => {
                check_opaque(leaf, self.dtype)?;
                *count += 1;
            }
        }
        Ok(())
    }
}

/// A column of text, with gaps where something else stands.
pub(crate) fn texts<'j>(cells: impl Iterator<Item = Cell<'j>>) -> Values {
    Values::Texts(cells.map(|cell| if let Cell::Text(text) = cell { Some(text.to_owned()) } else { None }).collect())
}

/// `np.str_(value)`, as far as it can be a category.
fn text(cell: Cell<'_>) -> Option<String> {
    match cell {
        Cell::Text(text) => Some(text.to_owned()),
        Cell::Int(value) => Some(value.to_string()),
        Cell::Bool(value) => Some(if value { "True" } else { "False" }.to_owned()),
        _ => None,
    }
}

/// Whether numpy can make an element of a type that is not numeric.
fn check_opaque(leaf: Cell<'_>, dtype: Dtype) -> Result<(), String> {
    match (dtype, leaf) {
        (Dtype::Bytes, Cell::Text(text)) if !text.is_ascii() => {
            Err("'ascii' codec can't encode character: ordinal not in range(128)".to_owned())
        }
        (Dtype::Datetime, Cell::Text(text)) => match dates::numpy_date(text) {
            true => Ok(()),
            false => Err(format!("Error parsing datetime string \"{}\" at position 0", excerpt(text))),
        },
        (Dtype::Datetime, Cell::Float(_) | Cell::Missing | Cell::Big(_) | Cell::Object(_)) => {
            Err("Could not convert object to NumPy datetime".to_owned())
        }
        _ => Ok(()),
    }
}

/// Python's `int(value)`. Wider than any element type: the range is checked where the type is known.
fn python_int(cell: Cell<'_>) -> Result<i128, String> {
    const TOO_LARGE: &str = "Python int too large to convert to C long";
    match cell {
        Cell::Bool(value) => Ok(i128::from(value)),
        Cell::Int(value) => Ok(i128::from(value)),
        Cell::Big(digits) => digits.parse().map_err(|_| TOO_LARGE.to_owned()),
        Cell::Missing => Err("cannot convert float NaN to integer".to_owned()),
        Cell::Float(value) if value.is_nan() => Err("cannot convert float NaN to integer".to_owned()),
        Cell::Float(value) if value.is_infinite() => Err("cannot convert float infinity to integer".to_owned()),
        Cell::Float(value) if value.abs() >= 1e38 => Err(TOO_LARGE.to_owned()),
        Cell::Float(value) => Ok(value as i128),
        Cell::Text(text) => without_underscores(text.trim())
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| format!("invalid literal for int() with base 10: '{}'", excerpt(text))),
        Cell::Null | Cell::List(_) | Cell::Object(_) => Err(format!(
            "int() argument must be a string, a bytes-like object or a real number, not '{}'",
            cell.python_type()
        )),
    }
}

/// Python's `float(value)`, and numpy's NaN for `None`.
fn python_float(cell: Cell<'_>) -> Result<f64, String> {
    match cell {
        Cell::Bool(value) => Ok(f64::from(u8::from(value))),
        Cell::Int(value) => Ok(value as f64),
        Cell::Float(value) => Ok(value),
        Cell::Null | Cell::Missing => Ok(f64::NAN),
        Cell::Big(digits) => match digits.parse() {
            Ok(value) if f64::is_finite(value) => Ok(value),
            _ => Err("int too large to convert to float".to_owned()),
        },
        Cell::Text(text) => without_underscores(text.trim())
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| format!("could not convert string to float: '{}'", excerpt(text))),
        Cell::List(_) => Err("setting an array element with a sequence.".to_owned()),
        Cell::Object(_) => Err("float() argument must be a string or a real number, not 'dict'".to_owned()),
    }
}

/// Python allows `1_000`: an underscore between two digits.
fn without_underscores(text: &str) -> Option<std::borrow::Cow<'_, str>> {
    if !text.contains('_') {
        return Some(text.into());
    }
    let pieces: Vec<&str> = text.split('_').collect();
    let between_digits = pieces.windows(2).all(|pair| match pair {
        [left, right] => {
            left.ends_with(|c: char| c.is_ascii_digit()) && right.starts_with(|c: char| c.is_ascii_digit())
        }
        _ => false,
    });
    between_digits.then(|| pieces.concat().into())
}

/// Python's `bool(value)`.
fn is_truthy(cell: Cell<'_>) -> bool {
    match cell {
        Cell::Null => false,
        Cell::Missing | Cell::Big(_) => true,
        Cell::Bool(value) => value,
        Cell::Int(value) => value != 0,
        Cell::Float(value) => value != 0.0,
        Cell::Text(text) => !text.is_empty(),
        Cell::List(list) => list.len() > 0,
        Cell::Object(object) => object.len() > 0,
    }
}

fn in_range(value: i128, dtype: Dtype) -> Result<i64, String> {
    let (bytes, sign) = dtype.integer().unwrap_or((8, Sign::Signed));
    let bits = bytes * 8;
    let range = match sign {
        Sign::Signed => -(1i128 << (bits - 1))..1i128 << (bits - 1),
        Sign::Unsigned => 0..1i128 << bits,
    };
    if range.contains(&value) {
        // The bits of an unsigned 64-bit value beyond the signed ones are kept as they are.
        return Ok(value as i64);
    }
    if i64::try_from(value).is_err() {
        return Err("Python int too large to convert to C long".to_owned());
    }
    Err(format!("Python integer {value} out of bounds for {}", dtype.name()))
}

/// A piece of what the caller sent, for a message: short, and whole characters.
pub(crate) fn excerpt(text: &str) -> &str {
    const EXCERPT_MAX: usize = 100;
    text.char_indices().nth(EXCERPT_MAX).map_or(text, |(end, _)| text.get(..end).unwrap_or(""))
}

/// Which kinds of Python values occur, to infer a common type.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Kinds {
    bools: bool,
    ints: bool,
    negatives: bool,
    /// Integers that need unsigned 64 bits, and those that need more.
    unsigned: bool,
    huge: bool,
    floats: bool,
    texts: bool,
    nulls: bool,
    others: bool,
}

/// The type that pandas gives a column, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    Int,
    Unsigned,
    Float,
    Text,
    Object,
}

impl Kinds {
    pub(crate) fn of<'j>(cells: impl Iterator<Item = Cell<'j>>) -> Self {
        let mut kinds = Self::default();
        cells.for_each(|cell| kinds.add(cell));
        kinds
    }

    fn add(&mut self, cell: Cell<'_>) {
        match cell {
            Cell::Null | Cell::Missing => self.nulls = true,
            Cell::Bool(_) => self.bools = true,
            Cell::Int(value) => {
                self.ints = true;
                self.negatives |= value < 0;
            }
            Cell::Big(digits) => match digits.parse::<u64>() {
                Ok(_) => self.unsigned = true,
                Err(_) => self.huge = true,
            },
            Cell::Float(_) => self.floats = true,
            Cell::Text(_) => self.texts = true,
            Cell::List(_) | Cell::Object(_) => self.others = true,
        }
    }

    /// As deep as the body, whose depth is bounded.
    fn add_leaves(&mut self, cell: Cell<'_>) {
        match cell {
            Cell::List(List::Floats(_)) => self.floats = true,
            Cell::List(list) => list.iter().for_each(|item| self.add_leaves(item)),
            leaf => self.add(leaf),
        }
    }

    fn numpy(self) -> Dtype {
        if self.others || self.nulls || self.huge {
            Dtype::Object
        } else if self.texts {
            Dtype::Text
        } else if self.floats || self.unsigned && self.negatives {
            Dtype::Float64
        } else if self.unsigned {
            Dtype::Uint64
        } else if self.ints {
            Dtype::Int64
        } else if self.bools {
            Dtype::Bool
        } else {
            Dtype::Float64
        }
    }

    pub(crate) fn pandas(self) -> Kind {
        let numbers = self.ints || self.floats || self.unsigned || self.huge;
        if self.others || self.huge || self.unsigned && (self.negatives || self.nulls) {
            return Kind::Object;
        }
        match (self.texts, self.bools, numbers) {
            (true, false, false) => Kind::Text,
            (false, true, false) if !self.nulls => Kind::Bool,
            (false, false, true) if self.floats || self.nulls => Kind::Float,
            (false, false, true) if self.unsigned => Kind::Unsigned,
            (false, false, true) => Kind::Int,
            _ => Kind::Object,
        }
    }

    pub(crate) fn has_lists_or_objects(self) -> bool {
        self.others
    }
}

impl Kind {
    pub(crate) fn dtype(self) -> Dtype {
        match self {
            Self::Bool => Dtype::Bool,
            Self::Int => Dtype::Int64,
            Self::Unsigned => Dtype::Uint64,
            Self::Float => Dtype::Float64,
            Self::Text => Dtype::Text,
            Self::Object => Dtype::Object,
        }
    }
}

/// A column as pandas infers it, without a signature.
pub(crate) fn inferred<'j>(cells: impl Iterator<Item = Cell<'j>> + Clone) -> Array {
    let kind = Kinds::of(cells.clone()).pandas();
    let values = match kind {
        Kind::Float => Values::Floats(cells.map(|cell| python_float(cell).unwrap_or(f64::NAN)).collect()),
        Kind::Bool | Kind::Int | Kind::Unsigned => Values::Ints(cells.map(wrapped_int).collect()),
        Kind::Text => texts(cells),
        Kind::Object => Values::Opaque(cells.count()),
    };
    Array::column(kind.dtype(), values)
}

/// A column cast to the signature's type: `astype`, as stage 1 of MLflow's parsing does it.
pub(crate) fn cast<'j>(cells: impl Iterator<Item = Cell<'j>> + Clone, dtype: Dtype) -> Result<Array, String> {
    let values = if dtype.is_float() {
        let narrowed = |cell| python_float(cell).map(|value| narrow_float(value, dtype));
        Values::Floats(cells.map(narrowed).collect::<Result<_, _>>()?)
    } else if dtype == Dtype::Bool {
        // A gap in a column of numbers or text is NaN, which is true; in any other it is None, which is not.
        let gap = matches!(Kinds::of(cells.clone()).pandas(), Kind::Float | Kind::Text);
        let truth = |cell| i64::from(if cell == Cell::Null { gap } else { is_truthy(cell) });
        Values::Ints(cells.map(truth).collect())
    } else if dtype.integer().is_some() {
        Values::Ints(cast_to_int(cells, dtype)?)
    } else {
        Values::Opaque(cells.count())
    };
    Ok(Array::column(dtype, values))
}

fn cast_to_int<'j>(cells: impl Iterator<Item = Cell<'j>> + Clone, dtype: Dtype) -> Result<Vec<i64>, String> {
    match Kinds::of(cells.clone()).pandas() {
        Kind::Bool | Kind::Int | Kind::Unsigned => Ok(cells.map(|cell| wrap(wrapped_int(cell), dtype)).collect()),
        Kind::Float => cells.map(|cell| truncated(python_float(cell)?, dtype)).collect(),
        Kind::Text | Kind::Object => cells.map(|cell| in_range(python_int(cell)?, dtype)).collect(),
    }
}

/// A float cut to an integer. One that does not fit becomes the type's smallest value: what the processors that MLflow
/// runs on do, though C leaves it open.
fn truncated(value: f64, dtype: Dtype) -> Result<i64, String> {
    if !value.is_finite() {
        return Err("Cannot convert non-finite values (NA or inf) to integer. Replace or remove non-finite values or \
                    cast to an integer type that supports these values (e.g. 'Int64')"
            .to_owned());
    }
    let smallest = if dtype == Dtype::Int32 { i64::from(i32::MIN) } else { i64::MIN };
    let whole = value as i128;
    Ok(match in_range(whole, dtype) {
        Ok(fitting) => fitting,
        Err(_) if matches!(dtype, Dtype::Int32 | Dtype::Int64) => smallest,
        Err(_) => wrap(whole as i64, dtype),
    })
}

/// The low 64 bits of an integer that is known to be one.
fn wrapped_int(cell: Cell<'_>) -> i64 {
    python_int(cell).map_or(0, |value| value as i64)
}

/// The low bits of an integer, as a cast between integer types keeps them.
fn wrap(value: i64, dtype: Dtype) -> i64 {
    match dtype {
        Dtype::Int8 => i64::from(value as i8),
        Dtype::Int16 => i64::from(value as i16),
        Dtype::Int32 => i64::from(value as i32),
        Dtype::Uint8 => i64::from(value as u8),
        Dtype::Uint16 => i64::from(value as u16),
        Dtype::Uint32 => i64::from(value as u32),
        _ => value,
    }
}

/// Numbers in an array that numpy has chosen the type of, as another type: `astype` of an array.
pub(crate) fn astype(array: Array, dtype: Dtype) -> Result<Array, String> {
    let values = match array.values {
        Values::Ints(values) if dtype.is_float() => {
            let float = |value| narrow_float(int_to_float(value, array.dtype), dtype);
            Values::Floats(values.into_iter().map(float).collect())
        }
        Values::Ints(values) if dtype == Dtype::Bool => {
            Values::Ints(values.into_iter().map(|value| i64::from(value != 0)).collect())
        }
        Values::Ints(values) => Values::Ints(values.into_iter().map(|value| wrap(value, dtype)).collect()),
        Values::Floats(values) if dtype.is_float() => {
            Values::Floats(values.into_iter().map(|value| narrow_float(value, dtype)).collect())
        }
        Values::Floats(values) if dtype == Dtype::Bool => {
            Values::Ints(values.into_iter().map(|value| i64::from(value != 0.0)).collect())
        }
        Values::Floats(values) => {
            Values::Ints(values.into_iter().map(|value| truncated(value, dtype)).collect::<Result<_, _>>()?)
        }
        Values::Texts(_) | Values::Opaque(_) => {
            return Err(format!("values of type {} cannot be numbers", array.dtype.name()));
        }
    };
    Ok(Array { dtype, shape: array.shape, values })
}
