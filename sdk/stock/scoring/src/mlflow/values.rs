//! The `inputs` and `instances` fields, converted by the signature as MLflow's parser does it.

use super::Refusal;
use super::convert;
use super::nested::{self, Need};
use super::schema::{Column, Schema, Tensor, Type};
use crate::json::{Cell, List};
use crate::tensor::{Array, Dtype, Values};

/// What came out of the field, before the signature is enforced.
#[derive(Debug)]
pub(crate) enum Data<'j> {
    One(Value<'j>),
    ByName(Vec<(&'j str, Value<'j>)>),
    Records(Vec<Vec<(&'j str, Value<'j>)>>),
}

/// One converted value.
#[derive(Debug)]
pub(crate) enum Value<'j> {
    /// A numpy scalar: of one element and one axis here, for want of a better place.
    Scalar(Array),
    Array(Array),
    /// Left as it was: objects, maps, and everything of a request for a language model.
    Cell(Cell<'j>),
}

/// What the signature says of one input.
#[derive(Debug, Clone, Copy)]
enum Spec<'j> {
    None,
    Column(&'j Column),
    Tensor(&'j Tensor),
}

impl<'j> Spec<'j> {
    fn of(schema: Option<&'j Schema>, name: &str) -> Self {
        let named = |candidate: &Option<String>| candidate.as_deref() == Some(name);
        match schema {
            None => Self::None,
            Some(Schema::Columns(columns)) => {
                columns.iter().find(|column| named(&column.name)).map_or(Self::None, Self::Column)
            }
            Some(Schema::Tensors(tensors)) => {
                tensors.iter().find(|tensor| named(&tensor.name)).map_or(Self::None, Self::Tensor)
            }
        }
    }

    fn first(schema: Option<&'j Schema>) -> Self {
        match schema {
            None => Self::None,
            Some(Schema::Columns(columns)) => columns.first().map_or(Self::None, Self::Column),
            Some(Schema::Tensors(tensors)) => tensors.first().map_or(Self::None, Self::Tensor),
        }
    }
}

/// The `inputs` field.
pub(crate) fn inputs<'j>(field: Cell<'j>, schema: Option<&'j Schema>) -> Result<Data<'j>, Refusal> {
    let is_object = |cell| matches!(cell, Cell::Object(_));
    if let Some(schema) = schema {
        match (schema.names().next().flatten(), field) {
            // A list for a model of one named input needs no name.
            (Some(name), Cell::List(list)) if schema.len() == 1 && !list.iter().any(is_object) => {
                return Ok(Data::ByName(vec![(name, converted(field, Spec::first(Some(schema)))?)]));
            }
            (None, Cell::Object(_) | Cell::Null) => {
                return Err(Refusal::Invalid(format!(
                    "Failed to parse input data. This model contains an un-named  model signature which expects a \
                     single n-dimensional array or a single value as input, however, an input of type <class '{}'> was \
                     found.",
                    field.python_type()
                )));
            }
            _ => {}
        }
    }
    match field {
        Cell::Object(object) => {
            let named = object.iter().map(|(name, value)| Ok((name, converted(value, Spec::of(schema, name))?)));
            Ok(Data::ByName(named.collect::<Result<_, Refusal>>()?))
        }
        Cell::List(list) if list.iter().all(is_object) => Ok(Data::Records(records(list, schema)?)),
        Cell::List(_) => Ok(Data::One(converted(field, Spec::first(schema))?)),
        scalar => converted(scalar, Spec::first(schema)).map(Data::One).map_err(|_| {
            let spec = match Spec::first(schema) {
                Spec::None => "None".to_owned(),
                Spec::Column(column) => column.to_string(),
                Spec::Tensor(tensor) => tensor.to_string(),
            };
            let shown = nested::shown(scalar);
            Refusal::Invalid(format!(
                "Failed to convert data `{shown}` to type `{spec}` defined in the model signature."
            ))
        }),
    }
}

/// The `instances` field: rows, which become columns.
pub(crate) fn instances<'j>(field: Cell<'j>, schema: Option<&'j Schema>) -> Result<Data<'j>, Refusal> {
    let data = match field {
        Cell::List(list) if matches!(list.get(0), Some(Cell::Object(_))) => Data::ByName(stacked(list, schema)?),
        field => inputs(field, schema)?,
    };
    if let Data::ByName(columns) = &data {
        check_lengths(columns, schema)?;
    }
    Ok(data)
}

fn records<'j>(list: &'j List<'j>, schema: Option<&'j Schema>) -> Result<Vec<Vec<(&'j str, Value<'j>)>>, Refusal> {
    let mut records = Vec::with_capacity(list.len());
    for record in list.iter() {
        let Cell::Object(record) = record else { continue };
        let fields = record.iter().map(|(name, value)| Ok((name, converted(value, Spec::of(schema, name))?)));
        records.push(fields.collect::<Result<_, Refusal>>()?);
    }
    Ok(records)
}

/// The values of each key over all rows, as one array per key.
fn stacked<'j>(list: &'j List<'j>, schema: Option<&'j Schema>) -> Result<Vec<(&'j str, Value<'j>)>, Refusal> {
    let mut columns: Vec<(&str, Vec<Cell<'_>>)> = Vec::new();
    for (number, row) in list.iter().enumerate() {
        let Cell::Object(row) = row else {
            let kind = row.python_type();
            return Err(not_valid_json(format!("AttributeError(\"'{kind}' object has no attribute 'items'\")")));
        };
        for (position, (name, value)) in row.iter().enumerate() {
            let near = columns.get(position).is_some_and(|(known, _)| *known == name).then_some(position);
            let place = near.or_else(|| columns.iter().position(|(known, _)| *known == name));
            if place.is_none() && columns.len() == NAMES_MAX {
                return Err(Refusal::Invalid(format!("row {number} is over the limit of {NAMES_MAX} names")));
            }
            match place.and_then(|place| columns.get_mut(place)) {
                Some((_, cells)) => cells.push(value),
                // A key that comes late has fewer values, which is noticed when lengths are compared.
                None => columns.push((name, vec![value])),
            }
        }
    }
    columns.into_iter().map(|(name, cells)| Ok((name, Value::Array(stack(&cells, Spec::of(schema, name))?)))).collect()
}

/// Different names over all records or instances together; looking one up takes a comparison with each.
pub(crate) const NAMES_MAX: usize = 4096;

fn stack(cells: &[Cell<'_>], spec: Spec<'_>) -> Result<Array, Refusal> {
    let dtype = match spec {
        Spec::None => None,
        Spec::Tensor(tensor) => Some(tensor.dtype),
        Spec::Column(Column { ty: Type::Scalar(scalar), .. }) => Some(scalar.dtype()),
        Spec::Column(column) => {
            let need = Need::new(column.required);
            let is_array = matches!(column.ty, Type::Array(_));
            for cell in cells {
                nested::check(*cell, &column.ty, need).map_err(Refusal::Invalid)?;
                if is_array {
                    convert::array(*cell, None).map_err(Refusal::Invalid)?;
                }
            }
            if column.ty == Type::Any { None } else { Some(Dtype::Object) }
        }
    };
    convert::array_of_cells(cells, dtype).map_err(|reason| not_valid_json(format!("ValueError('{reason}')")))
}

/// MLflow's words for anything that goes wrong here, though the JSON is valid.
fn not_valid_json(error: String) -> Refusal {
    Refusal::Invalid(format!("Ensure that the input is a valid JSON-formatted string.\nError: {error}"))
}

/// All inputs must have as many rows; with a signature only those that it requires, and arrays are exempt.
fn check_lengths(columns: &[(&str, Value<'_>)], schema: Option<&Schema>) -> Result<(), Refusal> {
    let is_checked = |name: &str| match Spec::of(schema, name) {
        Spec::None => !schema.is_some_and(Schema::is_named),
        Spec::Tensor(_) => true,
        Spec::Column(column) => column.required && !matches!(column.ty, Type::Array(_)),
    };
    let mut expected = None;
    for (name, value) in columns {
        let length = match value {
            Value::Array(array) if is_checked(name) => match array.shape.first() {
                Some(length) => *length,
                None => return Err(not_valid_json("TypeError('len() of unsized object')".to_owned())),
            },
            _ => continue,
        };
        if *expected.get_or_insert(length) != length {
            return Err(Refusal::Invalid(
                "The length of values for each input/column name are not the same".to_owned(),
            ));
        }
    }
    Ok(())
}

/// MLflow's `convert_data_type`.
fn converted<'j>(cell: Cell<'j>, spec: Spec<'j>) -> Result<Value<'j>, Refusal> {
    convert_cell(cell, spec).map_err(Refusal::Invalid)
}

fn convert_cell<'j>(cell: Cell<'j>, spec: Spec<'j>) -> Result<Value<'j>, String> {
    let column = match spec {
        Spec::None => return convert::array(cell, None).map(Value::Array),
        Spec::Tensor(tensor) => return convert::array(cell, Some(tensor.dtype)).map(Value::Array),
        Spec::Column(column) => column,
    };
    let need = Need::new(column.required);
    match (&column.ty, cell) {
        (Type::Scalar(scalar), Cell::List(_)) => convert::array(cell, Some(scalar.dtype())).map(Value::Array),
        (Type::Scalar(scalar), cell) => convert::array_of_cells(&[cell], Some(scalar.dtype())).map(Value::Scalar),
        (Type::Array(_), Cell::List(_)) => {
            nested::check(cell, &column.ty, need)?;
            // Looked at by numpy for its own sake: lists of lists must be even.
            convert::array(cell, None).map(|array| Value::Array(Array { dtype: Dtype::Object, ..array }))
        }
        (ty, cell) => nested::check(cell, ty, need).map(|()| Value::Cell(cell)),
    }
}

/// The body of a request for a language model, which no signature converts.
pub(crate) fn unconverted<'j>(entries: impl Iterator<Item = (&'j str, Cell<'j>)>) -> Data<'j> {
    Data::ByName(entries.map(|(name, cell)| (name, Value::Cell(cell))).collect())
}

impl Value<'_> {
    /// Whether the constructor of a DataFrame sees one value rather than a column of them.
    pub(crate) fn is_single(&self) -> bool {
        match self {
            Self::Scalar(_) => true,
            Self::Array(array) => array.shape.is_empty(),
            Self::Cell(cell) => !matches!(cell, Cell::List(_) | Cell::Object(_)),
        }
    }

    pub(crate) fn python_type(&self) -> &'static str {
        match self {
            Self::Scalar(_) => "numpy.generic",
            Self::Array(_) => "numpy.ndarray",
            Self::Cell(cell) => cell.python_type(),
        }
    }
}

/// A column cut out of an array of two axes.
pub(crate) fn array_column(array: &Array, column: usize, columns: usize) -> Array {
    let values = match &array.values {
        Values::Ints(values) => Values::Ints(values.iter().skip(column).step_by(columns).copied().collect()),
        Values::Floats(values) => Values::Floats(values.iter().skip(column).step_by(columns).copied().collect()),
        Values::Texts(values) => Values::Texts(values.iter().skip(column).step_by(columns).cloned().collect()),
        Values::Opaque(count) => Values::Opaque(count / columns.max(1)),
    };
    Array::column(array.dtype, values)
}
