//! Columns of arrays, objects and maps. No graph takes them, so that they are only checked.

use super::convert::excerpt;
use super::enforce;
use super::schema::{Property, Type};
use crate::json::{Cell, Object};

/// Whether a gap is allowed where the value should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Required,
    Optional,
}

impl Need {
    pub(crate) fn new(required: bool) -> Self {
        if required { Self::Required } else { Self::Optional }
    }
}

/// MLflow's `_enforce_type`. As deep as the signature.
pub(crate) fn check(cell: Cell<'_>, ty: &Type, need: Need) -> Result<(), String> {
    match ty {
        Type::Any => Ok(()),
        Type::Scalar(_) if need == Need::Optional && is_gap(cell) => Ok(()),
        Type::Scalar(scalar) => match cell {
            Cell::Null | Cell::List(_) | Cell::Object(_) => {
                Err(format!("Expected data to be scalar, got {}", cell.python_type()))
            }
            cell => enforce::enforce_cells("", std::iter::once(cell), *scalar).map(|_| ()).map_err(|_| {
                format!("Failed to enforce schema of data `{}` with dtype `{}`", shown(cell), scalar.name())
            }),
        },
        Type::Array(items) => check_array(cell, items, need),
        Type::Object(properties) => check_object(cell, ty, properties, need),
        Type::Map(values) => check_map(cell, values, need),
    }
}

fn check_array(cell: Cell<'_>, items: &Type, need: Need) -> Result<(), String> {
    let list = match cell {
        Cell::Null if need == Need::Optional || *items == Type::Any => return Ok(()),
        Cell::List(list) => list,
        other => return Err(format!("Expected data to be list or numpy array, got {}", other.python_type())),
    };
    match items {
        Type::Scalar(scalar) if list.len() > 0 => enforce::enforce_cells("", list.iter(), *scalar).map(|_| ()),
        Type::Scalar(_) => Ok(()),
        items => list.iter().try_for_each(|item| check(item, items, need)),
    }
}

fn check_object(cell: Cell<'_>, ty: &Type, properties: &[Property], need: Need) -> Result<(), String> {
    let object = match cell {
        Cell::Null if need == Need::Optional => return Ok(()),
        Cell::Object(object) if need == Need::Optional && object.len() == 0 => return Ok(()),
        Cell::Object(object) => object,
        other => {
            let (shown, kind) = (shown(other), other.python_type());
            return Err(format!(
                "Failed to enforce schema of '{shown}' with type '{ty}'. Expected data to be dictionary, got {kind}"
            ));
        }
    };
    let is_absent = |property: &&Property| property.required && object.get(&property.name).is_none();
    if let Some(missing) = properties.iter().find(is_absent) {
        return Err(format!("Missing required properties: {{'{}'}}", missing.name));
    }
    check_properties(object, properties)
}

fn check_properties(object: &Object<'_>, properties: &[Property]) -> Result<(), String> {
    for (name, value) in object.iter() {
        let property = properties
            .iter()
            .find(|property| property.name == name)
            .ok_or_else(|| format!("Invalid properties not defined in the schema found: {{'{}'}}", excerpt(name)))?;
        check(value, &property.ty, Need::new(property.required)).map_err(|_| {
            let received = value.python_type();
            format!(
                "Failed to enforce schema for key `{name}`. Expected type {}, received type {received}",
                property.ty
            )
        })?;
    }
    Ok(())
}

fn check_map(cell: Cell<'_>, values: &Type, need: Need) -> Result<(), String> {
    match cell {
        Cell::Null if need == Need::Optional || *values == Type::Any => Ok(()),
        Cell::Object(map) => map.iter().try_for_each(|(_, value)| check(value, values, need)),
        other => Err(format!("Expected data to be a dict, got {}", other.python_type())),
    }
}

/// MLflow's `_is_none_or_nan`.
fn is_gap(cell: Cell<'_>) -> bool {
    match cell {
        Cell::Null | Cell::Missing => true,
        Cell::Float(value) => value.is_nan(),
        _ => false,
    }
}

/// A value in a message, if it is short enough to be of use there.
pub(crate) fn shown(cell: Cell<'_>) -> String {
    match cell {
        Cell::Missing => "nan".to_owned(),
        Cell::Null => "None".to_owned(),
        Cell::Bool(true) => "True".to_owned(),
        Cell::Bool(false) => "False".to_owned(),
        Cell::Int(value) => value.to_string(),
        Cell::Float(value) => value.to_string(),
        Cell::Big(text) | Cell::Text(text) => excerpt(text).to_owned(),
        Cell::List(list) => format!("a list of {}", list.len()),
        Cell::Object(object) => format!("a dictionary of {}", object.len()),
    }
}
