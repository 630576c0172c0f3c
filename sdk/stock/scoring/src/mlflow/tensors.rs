//! Signatures of tensors: shapes and types of arrays, and arrays made of the columns of a DataFrame.

use super::Refusal;
use super::columns::{conversion_message, missing_message};
use super::convert;
use super::feed::ModelInput;
use super::frame::{Frame, Label};
use super::schema::{Tensor, python_tuple};
use super::values::{Data, Value};
use crate::json::Cell;
use crate::tensor::{Array, Dtype, Values};

/// From `inputs` or `instances`.
pub(crate) fn from_data<'j>(data: Data<'j>, tensors: &'j [Tensor]) -> Result<ModelInput<'j>, Refusal> {
    let named: Vec<(&str, &Tensor)> =
        tensors.iter().filter_map(|tensor| Some((tensor.name.as_deref()?, tensor))).collect();
    match (data, named.as_slice(), tensors) {
        (Data::One(Value::Array(array)), [], [tensor, ..]) => Ok(ModelInput::Array(enforced(array, tensor)?)),
        (data, [], _) => {
            let kind = if matches!(data, Data::ByName(_)) { "dict" } else { "list" };
            Err(Refusal::Schema(format!(
                "This model contains a tensor-based model signature with no input names, which suggests a numpy array \
                 input or a pandas dataframe input with proper column values, but an input of type <class '{kind}'> was \
                 found."
            )))
        }
        (Data::One(Value::Array(array)), [(name, tensor)], _) => {
            Ok(ModelInput::Arrays(vec![(*name, enforced(array, tensor)?)]))
        }
        (Data::ByName(values), named, _) => from_dict(values, named),
        (_, named, _) => Err(missing(named, &[])),
    }
}

fn missing(named: &[(&str, &Tensor)], given: &[Label<'_>]) -> Refusal {
    let required: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
    Refusal::Schema(missing_message(&required, given, |name| required.contains(&name)).unwrap_or_default())
}

fn from_dict<'j>(
    mut values: Vec<(&'j str, Value<'j>)>,
    named: &[(&'j str, &'j Tensor)],
) -> Result<ModelInput<'j>, Refusal> {
    let given: Vec<Label<'_>> = values.iter().map(|(name, _)| Label::Name(name)).collect();
    if named.iter().any(|(name, _)| !given.contains(&Label::Name(name))) {
        return Err(missing(named, &given));
    }
    let mut arrays = Vec::with_capacity(named.len());
    for (name, tensor) in named {
        let Some(place) = values.iter().position(|(given, _)| given == name) else { continue };
        match values.swap_remove(place).1 {
            Value::Array(array) => arrays.push((*name, enforced(array, tensor)?)),
            other => {
                return Err(Refusal::Schema(format!(
                    "This model contains a tensor-based model signature with input names, which suggests a dictionary \
                     input mapping input name to a numpy array, but a dict with value type <class '{}'> was found.",
                    other.python_type()
                )));
            }
        }
    }
    Ok(ModelInput::Arrays(arrays))
}

fn enforced(array: Array, tensor: &Tensor) -> Result<Array, Refusal> {
    enforce(array, tensor).map_err(Refusal::Schema)
}

/// MLflow's `_enforce_tensor_spec`.
fn enforce(array: Array, tensor: &Tensor) -> Result<Array, String> {
    let any_objects = tensor.dtype == Dtype::Object && tensor.shape == [None];
    let free_inside = tensor.shape.iter().skip(1).any(Option::is_none);
    let ragged = free_inside && array.shape.len() == 1 && array.dtype == Dtype::Object;
    if any_objects || ragged {
        return Ok(array);
    }
    let fits = array.shape.len() == tensor.shape.len()
        && tensor
            .shape
            .iter()
            .zip(&array.shape)
            .all(|(expected, size)| expected.is_none_or(|expected| expected == *size));
    if !fits {
        let shape = python_tuple(array.shape.iter().map(usize::to_string));
        return Err(format!("Shape of input {shape} does not match expected shape {}.", tensor.shape_text()));
    }
    if array.dtype != tensor.dtype {
        let (have, want) = (array.dtype.name(), tensor.dtype.name());
        return Err(format!("dtype of input {have} does not match expected dtype {want}"));
    }
    Ok(array)
}

/// From a DataFrame: each tensor is a column of numbers or of flat lists; a tensor without a name may also be the whole
/// table.
pub(crate) fn from_frame<'j>(frame: &Frame<'j>, tensors: &'j [Tensor]) -> Result<ModelInput<'j>, Refusal> {
    match tensors {
        [tensor] if tensor.name.is_none() => unnamed_from_frame(frame, tensor).map(ModelInput::Array),
        tensors => named_from_frame(frame, tensors).map(ModelInput::Arrays),
    }
}

fn named_from_frame<'j>(frame: &Frame<'j>, tensors: &'j [Tensor]) -> Result<Vec<(&'j str, Array)>, Refusal> {
    let named: Vec<(&str, &Tensor)> =
        tensors.iter().filter_map(|tensor| Some((tensor.name.as_deref()?, tensor))).collect();
    let mut found = Vec::with_capacity(named.len());
    for (place, (name, tensor)) in named.iter().enumerate() {
        if let Some(position) = frame.position(name, place) {
            found.push((*name, *tensor, position, numbers(frame, position, tensor.dtype)?));
        }
    }
    if found.len() < named.len() {
        return Err(missing(&named, &frame.labels));
    }
    let array = |(name, tensor, position, numbers)| {
        Ok((name, reshaped(frame, position, numbers, name, tensor).map_err(Refusal::Schema)?))
    };
    found.into_iter().map(array).collect()
}

fn unnamed_from_frame(frame: &Frame<'_>, tensor: &Tensor) -> Result<Array, Refusal> {
    let width = frame.labels.len();
    let columns: Vec<Option<Array>> =
        (0..width).map(|position| numbers(frame, position, tensor.dtype)).collect::<Result<_, _>>()?;
    match columns.as_slice() {
        [] => Err(Refusal::Schema("Input DataFrame is empty.".to_owned())),
        [numbers] => reshaped(frame, 0, numbers.clone(), "None", tensor).map_err(Refusal::Schema),
        columns if tensor.shape == [None, Some(width)] => {
            let values = interleaved(columns, frame.rows)
                .ok_or_else(|| Refusal::Schema("dtype of input object does not match expected dtype".to_owned()))?;
            Ok(Array { dtype: tensor.dtype, shape: vec![frame.rows, width], values })
        }
        _ => Err(Refusal::Schema(format!(
            "This model contains a model signature with an unnamed input. Since the input data is a pandas DataFrame \
             containing multiple columns, the input shape must be of the structure (-1, number_of_dataframe_columns). \
             Instead, the input DataFrame passed had {width} columns and an input shape of {} with all values within the \
             DataFrame of scalar type. Please adjust the passed in DataFrame to match the expected structure",
            tensor.shape_text()
        ))),
    }
}

/// The columns of one type as the rows of one array.
fn interleaved(columns: &[Option<Array>], rows: usize) -> Option<Values> {
    let columns: Vec<&Array> = columns.iter().map(Option::as_ref).collect::<Option<_>>()?;
    super::feed::interleave(&columns, rows)
}

/// Stage 1: a column of numbers is cast to the tensor's type; none for a column of lists, which stage 2 looks at.
fn numbers(frame: &Frame<'_>, position: usize, dtype: Dtype) -> Result<Option<Array>, Refusal> {
    let failed = |reason: &str| {
        let name = frame.labels.get(position).map_or(String::new(), Label::to_string);
        Refusal::Invalid(conversion_message(name.trim_matches('\''), dtype.name(), reason))
    };
    if frame.rows == 0 {
        return Err(failed("single positional indexer is out-of-bounds"));
    }
    match frame.cell(0, position) {
        Cell::List(_) => Ok(None),
        _ => convert::cast(frame.column(position), dtype).map(Some).map_err(|reason| failed(&reason)),
    }
}

/// MLflow's `_reshape_and_cast_pandas_column_values`: one column as a tensor.
fn reshaped(
    frame: &Frame<'_>,
    position: usize,
    numbers: Option<Array>,
    name: &str,
    tensor: &Tensor,
) -> Result<Array, String> {
    let sizes: Option<Vec<usize>> = tensor.shape.iter().skip(1).copied().collect();
    let (Some(None), Some(sizes)) = (tensor.shape.first(), sizes) else {
        return Err(format!(
            "For pandas dataframe input, the first dimension of shape must be a variable dimension and other dimensions \
             must be fixed, but in model signature the shape of input {name} is {}.",
            tensor.shape_text()
        ));
    };
    if let Some(column) = numbers {
        if sizes.is_empty() || sizes == [1] {
            let shape = std::iter::once(frame.rows).chain(sizes).collect();
            return Ok(Array { shape, ..column });
        }
        return Err(format!(
            "The input pandas dataframe column '{name}' contains scalar values, which requires the shape to be (-1,) or \
             (-1, 1), but got tensor spec shape of {}.",
            tensor.shape_text()
        ));
    }
    let Cell::List(first) = frame.cell(0, position) else { return Err("expected a column of lists".to_owned()) };
    match first.get(0) {
        None => return Err("list index out of range".to_owned()),
        Some(Cell::List(_) | Cell::Object(_) | Cell::Null) => {
            return Err(
                "Because the model signature requires tensor spec input, the input pandas dataframe values should \
                        be either scalar value, python list containing scalar values or numpy array containing scalar \
                        values, other types are not supported."
                    .to_owned(),
            );
        }
        Some(_) => {}
    }
    let rows: Vec<Cell<'_>> = frame.column(position).collect();
    let array = flat_lists(&rows, tensor.dtype).filter(|array| array.shape.get(1) == Some(&sizes.iter().product()));
    array.map(|array| Array { shape: std::iter::once(frame.rows).chain(sizes).collect(), ..array }).ok_or_else(|| {
        format!(
            "The value in the Input DataFrame column '{name}' could not be converted to the expected shape of: '{}'. \
             Ensure that each of the input list elements are of uniform length and that the data can be coerced to the \
             tensor type '{}'",
            tensor.shape_text(),
            tensor.dtype.name()
        )
    })
}

/// Lists of one length as an array of two axes; numbers are cast only after numpy has chosen their type.
fn flat_lists(rows: &[Cell<'_>], dtype: Dtype) -> Option<Array> {
    let array = convert::array_of_cells(rows, None).ok().filter(|array| array.shape.len() == 2)?;
    if matches!(array.values, Values::Texts(_) | Values::Opaque(_)) {
        return convert::array_of_cells(rows, Some(dtype)).ok();
    }
    if array.dtype == dtype {
        Some(array)
    } else {
        convert::astype(Array { ..array }, dtype).ok().map(|a| Array { dtype, ..a })
    }
}
