//! The parameters of a request against those of the signature.
//!
//! A graph takes no parameters: MLflow's ONNX flavour checks them and passes them on to nobody, and so do we.

use super::Refusal;
use super::dates;
use super::nested::{self, Need};
use super::schema::{Param, ScalarType, Type};
use crate::json::Cell;

/// Checks `params` of a request; without a schema they are ignored, whatever they are.
pub(crate) fn check(schema: Option<&[Param]>, params: Option<Cell<'_>>) -> Result<(), Refusal> {
    let Some(schema) = schema else { return Ok(()) };
    let params = match params {
        None | Some(Cell::Null) => return Ok(()),
        Some(Cell::Object(params)) => params,
        Some(other) => {
            let message = format!("Parameters must be a dictionary. Got type '{}'.", other.python_type());
            return Err(Refusal::Params(message));
        }
    };
    let given = schema.iter().filter_map(|param| Some((param, params.get(&param.name)?)));
    check_each(given)
}

/// Checks parameters that were found among the other keys of a request.
pub(crate) fn check_each<'j>(given: impl Iterator<Item = (&'j Param, Cell<'j>)>) -> Result<(), Refusal> {
    let mut invalid = Vec::new();
    for (param, value) in given {
        if let Err(reason) = check_one(param, value)? {
            invalid.push(format!("('{}', \"{reason}\")", param.name));
        }
    }
    if invalid.is_empty() {
        return Ok(());
    }
    Err(Refusal::Params(format!("Invalid parameters found: {{{}}}", invalid.join(", "))))
}

/// The inner result says whether the value is valid; the outer error is for lists that numpy cannot even look at.
fn check_one(param: &Param, value: Cell<'_>) -> Result<Result<(), String>, Refusal> {
    let kind = format!("'{}': {}", param.name, param.ty);
    if !param.list {
        return Ok(check_value(&param.ty, value)
            .map_err(|reason| format!("Failed to validate type and shape for {kind}, error: {reason}")));
    }
    let Cell::List(list) = value else {
        let received = value.python_type();
        let reason =
            format!("Value must be a 1D array with shape (-1,) for param {kind}, received {received} with ndim 0");
        return Ok(Err(reason));
    };
    let lists = list.iter().filter(|item| matches!(item, Cell::List(_))).count();
    if lists > 0 && lists < list.len() {
        return Err(Refusal::Model(format!("the list given for parameter '{}' is uneven", param.name)));
    }
    if lists > 0 {
        let reason = format!("Value must be a 1D array with shape (-1,) for param {kind}, received list with ndim 2");
        return Ok(Err(reason));
    }
    Ok(list
        .iter()
        .try_for_each(|item| check_value(&param.ty, item))
        .map_err(|reason| format!("Failed to validate type and shape for {kind} (shape: (-1,)), error: {reason}")))
}

/// MLflow's `_enforce_param_datatype`: the type itself, or one that widens to it.
fn check_value(ty: &Type, value: Cell<'_>) -> Result<(), String> {
    let Type::Scalar(scalar) = ty else { return nested::check(value, ty, Need::Required) };
    let dtype = format!("DataType.{}", scalar.name());
    let fits = match (*scalar, value) {
        (_, Cell::Null) => true,
        (_, Cell::List(_) | Cell::Object(_)) => {
            return Err(format!("Value must be a scalar for type `{dtype}`, got `{}`", nested::shown(value)));
        }
        (ScalarType::Datetime, Cell::Text(text)) if dates::numpy_date(text) => true,
        (ScalarType::Datetime, _) => {
            let (shown, kind) = (nested::shown(value), value.python_type());
            return Err(format!("Failed to convert value `{shown}` from type `<class '{kind}'>` to `{dtype}`"));
        }
        (ScalarType::Boolean, Cell::Bool(_)) | (ScalarType::String, Cell::Text(_)) => true,
        (ScalarType::Integer | ScalarType::Long, Cell::Int(_) | Cell::Big(_)) => true,
        (ScalarType::Float | ScalarType::Double, Cell::Int(_) | Cell::Big(_) | Cell::Float(_)) => true,
        _ => false,
    };
    if fits {
        return Ok(());
    }
    let (kind, shown) = (value.python_type(), nested::shown(value));
    Err(format!("Can not safely convert `<class '{kind}'>` to `{dtype}` for value `{shown}`"))
}
