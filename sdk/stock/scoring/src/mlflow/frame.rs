//! A table as the body writes it: the constructor of `pandas.DataFrame`, without copying a cell.

use std::collections::BTreeSet;
use std::fmt;

use crate::json::{Cell, List, Object};

/// The size up to which rows may be filled up with missing values. A few short rows beside a long one, or records that
/// share no key, would otherwise grow with the square of the body.
const PADDED_CELLS_MAX: usize = 1 << 24;

/// A table of cells that are still in the body.
#[derive(Debug)]
pub(crate) struct Frame<'j> {
    pub(crate) labels: Vec<Label<'j>>,
    pub(crate) rows: usize,
    source: Source<'j>,
}

/// The name of a column: pandas numbers the columns that have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Label<'j> {
    Name(&'j str),
    Number(i64),
}

#[derive(Debug)]
enum Source<'j> {
    Empty,
    /// One list per row.
    Rows(&'j List<'j>),
    /// One object per row.
    Records(&'j List<'j>),
    /// One value per row.
    Values(&'j List<'j>),
    /// One list per column.
    Columns(&'j Object<'j>),
}

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "'{name}'"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

impl<'j> Frame<'j> {
    /// Of `dataframe_split`: the reason says what is wrong with it.
    pub(crate) fn from_split(split: &'j Object<'j>) -> Result<Self, String> {
        let labels = match split.get("columns") {
            None | Some(Cell::Null) => None,
            Some(Cell::List(labels)) => Some(labels.iter().map(label).collect::<Result<Vec<_>, _>>()?),
            Some(other) => return Err(not_a_collection(other)),
        };
        let frame = match split.get("data") {
            None | Some(Cell::Null) => Self::empty(labels.unwrap_or_default()),
            Some(Cell::List(rows)) => Self::from_list(rows, labels)?,
            Some(Cell::Object(columns)) => Self::from_columns(columns, labels)?,
            Some(_) => return Err("DataFrame constructor not properly called!".to_owned()),
        };
        match split.get("index") {
            None | Some(Cell::Null) => Ok(frame),
            Some(Cell::List(index)) if index.len() == frame.rows => Ok(frame),
            Some(Cell::List(index)) => Err(format!(
                "Shape of passed values is ({rows}, {columns}), indices imply ({}, {columns})",
                index.len(),
                rows = frame.rows,
                columns = frame.labels.len(),
            )),
            Some(other) => Err(not_a_collection(other)),
        }
    }

    /// Of `dataframe_records`, or of the rows of a split: the first row decides how all are read.
    pub(crate) fn from_list(rows: &'j List<'j>, labels: Option<Vec<Label<'j>>>) -> Result<Self, String> {
        match rows.get(0) {
            None => Ok(Self::empty(labels.unwrap_or_default())),
            Some(Cell::List(_)) => Self::from_rows(rows, labels),
            Some(Cell::Object(_)) => Self::from_records(rows, labels),
            Some(_) => {
                let labels = checked_labels(labels, 1)?;
                Ok(Self { labels, rows: rows.len(), source: Source::Values(rows) })
            }
        }
    }

    /// One object of lists, of one length. Values that are no lists are refused: pandas would repeat them.
    pub(crate) fn from_columns(columns: &'j Object<'j>, labels: Option<Vec<Label<'j>>>) -> Result<Self, String> {
        let (mut rows, mut cells) = (None, 0usize);
        for (_, column) in columns.iter() {
            let Cell::List(column) = column else {
                return Err("If using all scalar values, you must pass an index".to_owned());
            };
            if *rows.get_or_insert(column.len()) != column.len() {
                return Err("All arrays must be of the same length".to_owned());
            }
            cells += column.len();
        }
        let rows = rows.unwrap_or(0);
        let labels = labels.unwrap_or_else(|| columns.keys().map(Label::Name).collect());
        // Labels that no list is for are columns of missing values.
        check_padding(rows, labels.len(), cells)?;
        Ok(Self { labels, rows, source: Source::Columns(columns) })
    }

    fn empty(labels: Vec<Label<'j>>) -> Self {
        Self { labels, rows: 0, source: Source::Empty }
    }

    fn from_rows(rows: &'j List<'j>, labels: Option<Vec<Label<'j>>>) -> Result<Self, String> {
        let (mut width, mut cells) = (0, 0usize);
        for row in rows.iter() {
            let Cell::List(row) = row else {
                return Err(format!("object of type '{}' has no len()", row.python_type()));
            };
            width = width.max(row.len());
            cells += row.len();
        }
        check_padding(rows.len(), width, cells)?;
        Ok(Self { labels: checked_labels(labels, width)?, rows: rows.len(), source: Source::Rows(rows) })
    }

    fn from_records(rows: &'j List<'j>, labels: Option<Vec<Label<'j>>>) -> Result<Self, String> {
        let mut names: Vec<&'j str> = Vec::new();
        let mut known: BTreeSet<&'j str> = BTreeSet::new();
        let mut cells = 0usize;
        for (number, record) in rows.iter().enumerate() {
            let Cell::Object(record) = record else {
                return Err(format!("'{}' object is not iterable", record.python_type()));
            };
            cells += record.len();
            if number == 0 {
                names.extend(record.keys());
            } else if !record.keys().eq(names.iter().copied()) {
                // Records mostly have the same keys in the same order; the set is made for the first that does not.
                if known.is_empty() {
                    known.extend(&names);
                }
                names.extend(record.keys().filter(|name| known.insert(name)));
            }
        }
        let labels = labels.unwrap_or_else(|| names.iter().map(|name| Label::Name(name)).collect());
        check_padding(rows.len(), labels.len(), cells)?;
        Ok(Self { labels, rows: rows.len(), source: Source::Records(rows) })
    }

    /// All cells, row by row, if they are floats and no row is short.
    pub(crate) fn floats(&self) -> Option<Vec<f64>> {
        let Source::Rows(rows) = self.source else { return None };
        let width = self.labels.len();
        let mut values = Vec::with_capacity(self.rows.checked_mul(width)?);
        for row in rows.iter() {
            match row {
                Cell::List(List::Floats(row)) if row.len() == width => values.extend_from_slice(row),
                _ => return None,
            }
        }
        Some(values)
    }

    /// The column of this name, looked for first at `near`: tables mostly have the signature's order.
    pub(crate) fn position(&self, name: &str, near: usize) -> Option<usize> {
        if self.labels.get(near) == Some(&Label::Name(name)) {
            return Some(near);
        }
        self.labels.iter().position(|label| *label == Label::Name(name))
    }

    /// Whether another column has the same name as this one.
    pub(crate) fn is_repeated(&self, position: usize) -> bool {
        let label = self.labels.get(position);
        // Only a split can name two columns alike; the keys of an object are distinct.
        matches!(self.source, Source::Rows(_)) && self.labels.iter().filter(|other| Some(*other) == label).count() > 1
    }

    pub(crate) fn column(&self, position: usize) -> impl Iterator<Item = Cell<'j>> + Clone {
        (0..self.rows).map(move |row| self.cell(row, position))
    }

    pub(crate) fn cell(&self, row: usize, column: usize) -> Cell<'j> {
        match self.source {
            Source::Empty => Cell::Missing,
            Source::Rows(rows) => match rows.get(row) {
                Some(Cell::List(row)) => row.get(column).unwrap_or(Cell::Null),
                _ => Cell::Null,
            },
            Source::Records(rows) => match (rows.get(row), self.labels.get(column)) {
                (Some(Cell::Object(record)), Some(Label::Name(name))) => {
                    record.get_near(name, column).unwrap_or(Cell::Missing)
                }
                _ => Cell::Missing,
            },
            Source::Values(values) => values.get(row).unwrap_or(Cell::Missing),
            Source::Columns(columns) => match self.labels.get(column) {
                Some(Label::Name(name)) => match columns.get_near(name, column) {
                    Some(Cell::List(values)) => values.get(row).unwrap_or(Cell::Missing),
                    _ => Cell::Missing,
                },
                _ => Cell::Missing,
            },
        }
    }
}

fn label(cell: Cell<'_>) -> Result<Label<'_>, String> {
    match cell {
        Cell::Text(name) => Ok(Label::Name(name)),
        Cell::Int(number) => Ok(Label::Number(number)),
        other => Err(format!("a column name must be text or an integer, got {}", other.python_type())),
    }
}

fn checked_labels(labels: Option<Vec<Label<'_>>>, width: usize) -> Result<Vec<Label<'_>>, String> {
    match labels {
        None => Ok((0..width as i64).map(Label::Number).collect()),
        Some(labels) if labels.len() == width => Ok(labels),
        Some(labels) => Err(format!("{} columns passed, passed data had {width} columns", labels.len())),
    }
}

/// Refuses a table that is mostly made up: `cells` are those that the body gives.
pub(super) fn check_padding(rows: usize, columns: usize, cells: usize) -> Result<(), String> {
    let size = rows.saturating_mul(columns);
    if size > PADDED_CELLS_MAX && size > cells {
        return Err(format!(
            "{rows} uneven rows of up to {columns} columns make a table of more than {PADDED_CELLS_MAX} cells"
        ));
    }
    Ok(())
}

fn not_a_collection(cell: Cell<'_>) -> String {
    format!("Index(...) must be called with a collection of some kind, {} was passed", cell.python_type())
}
