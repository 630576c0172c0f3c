//! The model's signature: the JSON strings of an `MLmodel` file, parsed once at deploy.

use std::fmt;

use crate::json::{self, Cell};
use crate::tensor::Dtype;

/// What a model takes. None of it when the model has no signature.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Signature {
    pub(crate) inputs: Option<Schema>,
    pub(crate) params: Option<Vec<Param>>,
}

/// The inputs: columns of a table, or tensors.
#[derive(Debug, PartialEq)]
pub(crate) enum Schema {
    Columns(Vec<Column>),
    Tensors(Vec<Tensor>),
}

#[derive(Debug, PartialEq)]
pub(crate) struct Column {
    pub(crate) name: Option<String>,
    pub(crate) ty: Type,
    pub(crate) required: bool,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) name: Option<String>,
    pub(crate) dtype: Dtype,
    /// The size of each axis; none where it is free.
    pub(crate) shape: Vec<Option<usize>>,
}

/// The type of a column or of a part of one.
#[derive(Debug, PartialEq)]
pub(crate) enum Type {
    Scalar(ScalarType),
    Array(Box<Type>),
    Object(Vec<Property>),
    Map(Box<Type>),
    Any,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Property {
    pub(crate) name: String,
    pub(crate) ty: Type,
    pub(crate) required: bool,
}

/// MLflow's `DataType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScalarType {
    Boolean,
    Integer,
    Long,
    Float,
    Double,
    String,
    Binary,
    Datetime,
}

/// A parameter of the model.
#[derive(Debug, PartialEq)]
pub(crate) struct Param {
    pub(crate) name: String,
    pub(crate) ty: Type,
    pub(crate) list: bool,
}

impl Signature {
    /// From the JSON strings of the signature's `inputs` and `params`.
    pub(crate) fn parse(inputs: Option<&str>, params: Option<&str>) -> Result<Self, String> {
        Ok(Self {
            inputs: parse_present(inputs, "inputs", schema)?.filter(|schema| schema.len() > 0),
            params: parse_present(params, "params", |cell| list(cell)?.map(param).collect())?,
        })
    }
}

/// MLmodel writes `null` for a part that a signature does not have.
fn parse_present<T>(
    text: Option<&str>,
    part: &str,
    read: impl FnOnce(Cell<'_>) -> Result<T, String>,
) -> Result<Option<T>, String> {
    let Some(text) = text.filter(|text| !matches!(text.trim(), "" | "null")) else { return Ok(None) };
    let failed = |reason| format!("failed to read the signature's {part}: {reason}");
    let value = json::parse(text).map_err(|error| failed(error.to_string()))?;
    read(value.cell()).map(Some).map_err(failed)
}

impl Schema {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Columns(columns) => columns.len(),
            Self::Tensors(tensors) => tensors.len(),
        }
    }

    /// Whether the inputs have names; MLflow allows either all or none.
    pub(crate) fn is_named(&self) -> bool {
        self.names().next().flatten().is_some()
    }

    pub(crate) fn names(&self) -> Box<dyn Iterator<Item = Option<&str>> + '_> {
        match self {
            Self::Columns(columns) => Box::new(columns.iter().map(|column| column.name.as_deref())),
            Self::Tensors(tensors) => Box::new(tensors.iter().map(|tensor| tensor.name.as_deref())),
        }
    }
}

impl ScalarType {
    const ALL: [(Self, &'static str); 8] = [
        (Self::Boolean, "boolean"),
        (Self::Integer, "integer"),
        (Self::Long, "long"),
        (Self::Float, "float"),
        (Self::Double, "double"),
        (Self::String, "string"),
        (Self::Binary, "binary"),
        (Self::Datetime, "datetime"),
    ];

    pub(crate) fn dtype(self) -> Dtype {
        match self {
            Self::Boolean => Dtype::Bool,
            Self::Integer => Dtype::Int32,
            Self::Long => Dtype::Int64,
            Self::Float => Dtype::Float32,
            Self::Double => Dtype::Float64,
            Self::String => Dtype::Text,
            Self::Binary => Dtype::Bytes,
            Self::Datetime => Dtype::Datetime,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(ty, _)| *ty == self).map_or("", |(_, name)| name)
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(ty, _)| *ty)
    }
}

fn schema(cell: Cell<'_>) -> Result<Schema, String> {
    let tensors = list(cell)?.any(|spec| text_of(spec, "type") == Some("tensor"));
    Ok(if tensors {
        Schema::Tensors(list(cell)?.map(tensor).collect::<Result<_, _>>()?)
    } else {
        Schema::Columns(list(cell)?.map(column).collect::<Result<_, _>>()?)
    })
}

fn list(cell: Cell<'_>) -> Result<impl Iterator<Item = Cell<'_>>, String> {
    let Cell::List(list) = cell else { return Err(format!("expected a list, got a {}", cell.python_type())) };
    Ok(list.iter())
}

fn field<'j>(cell: Cell<'j>, key: &str) -> Option<Cell<'j>> {
    let Cell::Object(object) = cell else { return None };
    object.get(key).filter(|value| *value != Cell::Null)
}

fn text_of<'j>(cell: Cell<'j>, key: &str) -> Option<&'j str> {
    let Some(Cell::Text(text)) = field(cell, key) else { return None };
    Some(text)
}

fn name_of(cell: Cell<'_>) -> Option<String> {
    text_of(cell, "name").map(str::to_owned)
}

/// `required` is left out by MLflow before 2.6, where every column was; `optional` is its older opposite.
fn is_required(cell: Cell<'_>) -> bool {
    field(cell, "required") != Some(Cell::Bool(false)) && field(cell, "optional") != Some(Cell::Bool(true))
}

fn column(cell: Cell<'_>) -> Result<Column, String> {
    Ok(Column { name: name_of(cell), ty: ty(cell)?, required: is_required(cell) })
}

fn ty(cell: Cell<'_>) -> Result<Type, String> {
    let part = |key: &str| field(cell, key).ok_or_else(|| format!("a type lacks its `{key}`"));
    Ok(match text_of(cell, "type").ok_or("an input lacks its `type`")? {
        "array" => Type::Array(Box::new(ty(part("items")?)?)),
        "map" => Type::Map(Box::new(ty(part("values")?)?)),
        "any" => Type::Any,
        "object" => {
            let Cell::Object(properties) = part("properties")? else { return Err("`properties` is no object".into()) };
            let property = |(name, cell): (&str, Cell<'_>)| {
                Ok::<_, String>(Property { name: name.to_owned(), ty: ty(cell)?, required: is_required(cell) })
            };
            Type::Object(properties.iter().map(property).collect::<Result<_, _>>()?)
        }
        // A Spark vector travels as a list of doubles.
        "sparkml_vector" => Type::Array(Box::new(Type::Scalar(ScalarType::Double))),
        name => Type::Scalar(ScalarType::from_name(name).ok_or_else(|| format!("unknown type `{name}`"))?),
    })
}

fn tensor(cell: Cell<'_>) -> Result<Tensor, String> {
    let spec = field(cell, "tensor-spec").ok_or("a tensor lacks its `tensor-spec`")?;
    let axis = |cell| match cell {
        Cell::Int(-1) => Ok(None),
        Cell::Int(size) => usize::try_from(size).map(Some).map_err(|_| format!("an axis of size {size}")),
        other => Err(format!("an axis that is a {}", other.python_type())),
    };
    Ok(Tensor {
        name: name_of(cell),
        dtype: Dtype::from_name(text_of(spec, "dtype").ok_or("a tensor lacks its `dtype`")?),
        shape: list(field(spec, "shape").ok_or("a tensor lacks its `shape`")?)?.map(axis).collect::<Result<_, _>>()?,
    })
}

fn param(cell: Cell<'_>) -> Result<Param, String> {
    let name = name_of(cell).ok_or("a parameter lacks its `name`")?;
    // Before MLflow 2.11 the type was called `dtype`.
    let ty = match text_of(cell, "dtype") {
        Some(name) => Type::Scalar(ScalarType::from_name(name).ok_or_else(|| format!("unknown type `{name}`"))?),
        None => ty(cell)?,
    };
    Ok(Param { name, ty, list: field(cell, "shape").is_some() })
}

/// As MLflow prints it: `['sl': double (required), 'arr': Array(double) (optional)]`.
impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let specs: Vec<String> = match self {
            Self::Columns(columns) => columns.iter().map(Column::to_string).collect(),
            Self::Tensors(tensors) => tensors.iter().map(Tensor::to_string).collect(),
        };
        write!(f, "[{}]", specs.join(", "))
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "'{name}': ")?;
        }
        write!(f, "{} ({})", self.ty, if self.required { "required" } else { "optional" })
    }
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "'{name}': ")?;
        }
        write!(f, "Tensor('{}', {})", self.dtype.name(), self.shape_text())
    }
}

impl Tensor {
    /// The shape as a Python tuple with -1 for free axes.
    pub(crate) fn shape_text(&self) -> String {
        python_tuple(self.shape.iter().map(|size| size.map_or("-1".to_owned(), |size| size.to_string())))
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scalar(ty) => f.write_str(ty.name()),
            Self::Array(items) => write!(f, "Array({items})"),
            Self::Map(values) => write!(f, "Map(str -> {values})"),
            Self::Any => f.write_str("any"),
            Self::Object(properties) => {
                let kind = |required| if required { "required" } else { "optional" };
                let text = properties.iter().map(|p| format!("{}: {} ({})", p.name, p.ty, kind(p.required)));
                write!(f, "{{{}}}", text.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// `(2,)`, `(2, 3)`, `()`.
pub(crate) fn python_tuple(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.collect();
    match items.as_slice() {
        [one] => format!("({one},)"),
        items => format!("({})", items.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_print_as_mlflow_prints_them() {
        let inputs = r#"[{"type": "double", "name": "sl", "required": true},
            {"type": "array", "items": {"type": "long"}, "name": "ids", "required": false},
            {"type": "object", "properties": {"k": {"type": "string", "required": true}}, "name": "o"},
            {"type": "map", "values": {"type": "any"}, "name": "m"}]"#;
        let schema = Signature::parse(Some(inputs), Some("null")).unwrap().inputs.unwrap();
        let expected = "['sl': double (required), 'ids': Array(long) (optional), 'o': {k: string (required)} (required), \
                        'm': Map(str -> any) (required)]";
        assert_eq!(schema.to_string(), expected);
        let tensors = r#"[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 2]}}]"#;
        let schema = Signature::parse(Some(tensors), None).unwrap().inputs.unwrap();
        assert_eq!(schema.to_string(), "[Tensor('float32', (-1, 2))]");
        assert!(!schema.is_named());
    }

    #[test]
    fn what_is_no_signature_says_why() {
        for (text, reason) in [
            ("{", "Expecting property name"),
            ("{}", "expected a list"),
            (r#"[{"name": "a"}]"#, "lacks its `type`"),
            (r#"[{"type": "decimal"}]"#, "unknown type `decimal`"),
            (r#"[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-2]}}]"#, "an axis of size -2"),
        ] {
            let error = Signature::parse(Some(text), None).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
