//! Stage 2 of MLflow's checks: a column has the signature's type, or one that widens to it without loss.

use super::convert::{self, Kind, Kinds};
use super::schema::ScalarType;
use crate::json::Cell;
use crate::tensor::{Array, Dtype, Sign, Values};

/// Stage 2 for a column of known type: `_enforce_mlflow_datatype`. Widening is allowed, everything else refused.
pub(crate) fn enforce_array(name: &str, array: Array, ty: ScalarType) -> Result<Array, String> {
    let (have, want) = (array.dtype, ty.dtype());
    if have == want || ty == ScalarType::String && have == Dtype::Object {
        return Ok(array);
    }
    let opaque_passes = match ty {
        ScalarType::Binary => matches!(have, Dtype::Text | Dtype::Object),
        ScalarType::Boolean => have == Dtype::Object,
        _ => false,
    };
    if opaque_passes {
        return Ok(array);
    }
    if widens(have, want) || is_zero_one(&array, want) {
        return Ok(array.widen(want));
    }
    let numpy_name = match want {
        Dtype::Text => "<U0",
        Dtype::Bytes => "|S0",
        other => other.name(),
    };
    let mut message =
        format!("Incompatible input types for column {name}. Can not safely convert {} to {numpy_name}.", have.name());
    if have == Dtype::Float64 && want.integer().is_some() && is_whole_with_gaps(&array.values) {
        message.push_str(
            " Hint: the type mismatch is likely caused by missing values. Integer columns in python can not represent \
             missing values and are therefore encoded as floats.",
        );
    }
    Err(message)
}

fn widens(have: Dtype, want: Dtype) -> bool {
    match (have.integer(), want.integer()) {
        (Some((have_bytes, have_sign)), Some((want_bytes, want_sign))) => {
            have_sign == want_sign && have_bytes <= want_bytes || have_sign == Sign::Unsigned && have_bytes < want_bytes
        }
        (Some((have_bytes, _)), None) => want == Dtype::Float64 && have_bytes <= 6,
        _ => {
            matches!((have, want), (Dtype::Float16, Dtype::Float32 | Dtype::Float64) | (Dtype::Float32, Dtype::Float64))
        }
    }
}

/// MLflow lets long integers become floats when there is nothing to lose: all are 0 or 1.
fn is_zero_one(array: &Array, want: Dtype) -> bool {
    let Values::Ints(values) = &array.values else { return false };
    array.dtype == Dtype::Int64 && want.is_float() && values.iter().all(|value| matches!(value, 0 | 1))
}

fn is_whole_with_gaps(values: &Values) -> bool {
    let Values::Floats(values) = values else { return false };
    values.iter().any(|value| value.is_nan()) && values.iter().all(|value| value.is_nan() || value.fract() == 0.0)
}

/// Stage 2 for values that have no numpy type yet.
pub(crate) fn enforce_cells<'j>(
    name: &str,
    cells: impl Iterator<Item = Cell<'j>> + Clone,
    ty: ScalarType,
) -> Result<Array, String> {
    let kinds = Kinds::of(cells.clone());
    if kinds.pandas() != Kind::Object || matches!(ty, ScalarType::String | ScalarType::Binary) {
        return enforce_array(name, convert::inferred(cells), ty);
    }
    if kinds.has_lists_or_objects() && ty != ScalarType::Boolean {
        return Err("Invalid object type at position 0".to_owned());
    }
    match ty {
        // `dtype == decimal.Decimal` is true of every object column, which MLflow then reads with `pd.to_numeric`.
        ScalarType::Double => convert::cast(cells, Dtype::Float64)
            .map_err(|_| format!("Failed to convert column {name} from type object to {}.", ty.name())),
        ScalarType::Datetime => convert::array_of_cells(&cells.collect::<Vec<_>>(), Some(Dtype::Datetime)),
        _ => enforce_array(name, convert::inferred(cells), ty),
    }
}
