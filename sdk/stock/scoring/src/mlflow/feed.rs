//! What MLflow's ONNX flavour does with the input it is handed: feeds for the graph, and the form of the answer.

use tessera_sdk::{ElementType, Error, GraphInfo, Tensor, TensorInfo};

use super::flavour::{Answer, Flavour};
use super::frame::Label;
use crate::numbers::{push_joined, push_nested, push_scalar, push_text};
use crate::tensor::{Array, Dtype, Feed, Output, Values, bytes_of, fits};

/// The input as it reaches the model.
#[derive(Debug)]
pub(crate) enum ModelInput<'j> {
    Table(Table<'j>),
    /// A table of floats, row by row, for a graph that takes it as one array.
    Rows(Array),
    Array(Array),
    Arrays(Vec<(&'j str, Array)>),
    /// Something the ONNX flavour cannot use, and why.
    Unfit(String),
}

/// A DataFrame: columns of one length.
#[derive(Debug)]
pub(crate) struct Table<'j> {
    pub(crate) rows: usize,
    pub(crate) columns: Vec<(Label<'j>, Array)>,
}

/// The form of the answer follows that of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnswerForm {
    /// One object per row, with every output as a flat column.
    Records,
    /// One nested list per output.
    Outputs,
    /// The one output as a nested list.
    Array,
}

impl ModelInput<'_> {
    pub(crate) fn answer_form(&self, flavour: &Flavour) -> AnswerForm {
        match (self, flavour.answer) {
            (_, Answer::Array) => AnswerForm::Array,
            (Self::Table(_) | Self::Rows(_), Answer::Outputs) => AnswerForm::Records,
            (_, Answer::Outputs) => AnswerForm::Outputs,
        }
    }

    /// The tensors for the graph; the reason says why it does not take them.
    pub(crate) fn feeds<'g>(self, graph: &'g GraphInfo, flavour: &Flavour) -> Result<Vec<Feed<'g>>, String> {
        let feed = |input: &'g TensorInfo, array| feed(input, flavour.suited(input, array));
        match (self, graph.inputs.as_slice()) {
            (Self::Unfit(reason), _) => Err(reason),
            (Self::Table(table), [input]) if !flavour.has_categories(input) => {
                let table = Table {
                    rows: table.rows,
                    columns: table
                        .columns
                        .into_iter()
                        .map(|(label, array)| (label, flavour.suited(input, array)))
                        .collect(),
                };
                Ok(vec![feed(input, table.into_array()?)?])
            }
            (Self::Table(table), inputs) => {
                let column = |input: &'g TensorInfo| {
                    let array = table.columns.iter().find(|(label, _)| *label == Label::Name(&input.name));
                    let (_, array) = array.ok_or_else(|| format!("the model needs a column '{}'", input.name))?;
                    feed(input, column_for(input, flavour.encoded(input, array)?))
                };
                inputs.iter().map(column).collect()
            }
            (Self::Rows(array) | Self::Array(array), [input]) => Ok(vec![feed(input, array)?]),
            (Self::Rows(_) | Self::Array(_), inputs) => Err(format!(
                "Unable to map numpy array input to the expected model input. Numpy arrays can only be used as input for \
                 MLflow ONNX models that have a single input. This model requires {} inputs. Please pass in data as \
                 either a dictionary or a DataFrame.",
                inputs.len()
            )),
            (Self::Arrays(arrays), inputs) => feeds_by_name(arrays, inputs, feed),
        }
    }
}

fn feeds_by_name<'g>(
    arrays: Vec<(&str, Array)>,
    inputs: &'g [TensorInfo],
    feed: impl Fn(&'g TensorInfo, Array) -> Result<Feed<'g>, String>,
) -> Result<Vec<Feed<'g>>, String> {
    if let Some(missing) = inputs.iter().find(|input| !arrays.iter().any(|(name, _)| *name == input.name)) {
        return Err(format!("required input '{}' is missing", missing.name));
    }
    let by_name = |(name, array): (&str, Array)| {
        let input = inputs.iter().find(|input| input.name == name);
        feed(input.ok_or_else(|| format!("the model has no input '{name}'"))?, array)
    };
    arrays.into_iter().map(by_name).collect()
}

/// MLflow feeds a column as an array of one axis, which a graph that wants `[N, 1]` refuses. Such graphs, one input per
/// column, are what converters make of tables: we give them the axis. Nothing that MLflow answers changes by it.
fn column_for(input: &TensorInfo, mut column: Array) -> Array {
    if matches!(input.dimensions.as_slice(), [_, Some(1)]) && column.shape.len() == 1 {
        column.shape.push(1);
    }
    column
}

/// One input: the types must agree, but for double precision where the graph wants single, which MLflow casts, and for
/// bfloat16, which no signature can name.
fn feed(input: &TensorInfo, array: Array) -> Result<Feed<'_>, String> {
    let agrees = matches!(
        (array.dtype, input.element),
        (Dtype::Float64 | Dtype::Float32, ElementType::Fp32 | ElementType::Bf16)
            | (Dtype::Float64, ElementType::Fp64)
            | (Dtype::Float16, ElementType::Fp16)
            | (Dtype::Int64, ElementType::I64)
            | (Dtype::Int32, ElementType::I32)
            | (Dtype::Uint8, ElementType::U8)
            | (Dtype::Int8, ElementType::Int8)
            | (Dtype::Bool, ElementType::Bool)
    );
    if !agrees {
        let wants = crate::oip::datatype(input.element);
        return Err(format!("input '{}' takes {wants}, but the data is {}", input.name, array.dtype.name()));
    }
    if !fits(&input.dimensions, &array.shape) {
        return Err(format!(
            "input '{}' takes the shape {}, but the data has {:?}",
            input.name,
            crate::oip::shape_text(&input.dimensions),
            array.shape
        ));
    }
    let dims = array.shape.iter().map(|size| u32::try_from(*size)).collect::<Result<Vec<u32>, _>>();
    let dims = dims.map_err(|_| format!("input '{}' is larger than a tensor can be", input.name))?;
    let tensor = Tensor::from_bytes(&dims, input.element.tensor_type(), bytes_of(&array.values, input.element));
    Ok(Feed { name: &input.name, tensor: tensor.map_err(|error| error.message)? })
}

impl Table<'_> {
    /// `DataFrame.values`: all columns as one array of their common type.
    fn into_array(self) -> Result<Array, String> {
        let mut dtype = self.columns.first().map_or(Dtype::Float64, |(_, column)| column.dtype);
        for (_, column) in &self.columns {
            dtype = common(dtype, column.dtype);
        }
        if dtype == Dtype::Object {
            return Err("the columns are not all numbers, so that they make no tensor".to_owned());
        }
        let shape = vec![self.rows, self.columns.len()];
        let columns: Vec<Array> = self.columns.into_iter().map(|(_, column)| column.widen(dtype)).collect();
        let values = interleave(&columns.iter().collect::<Vec<_>>(), self.rows);
        Ok(Array { dtype, shape, values: values.ok_or("the columns are not all numbers")? })
    }
}

/// The type that holds both, by pandas' rules: a boolean is no number, and there is none for text and dates.
fn common(a: Dtype, b: Dtype) -> Dtype {
    let rank = |dtype: Dtype| dtype.integer().map(|(bytes, _)| bytes);
    match (rank(a), rank(b)) {
        _ if a == b && (a == Dtype::Bool || rank(a).is_some() || a.is_float()) => a,
        (Some(_), Some(_)) if a == Dtype::Uint64 || b == Dtype::Uint64 => Dtype::Float64,
        (Some(a_bytes), Some(b_bytes)) => {
            if a_bytes >= b_bytes {
                a
            } else {
                b
            }
        }
        (Some(_), None) if b.is_float() => Dtype::Float64,
        (None, Some(_)) if a.is_float() => Dtype::Float64,
        (None, None) if a.is_float() && b.is_float() => Dtype::Float64,
        _ => Dtype::Object,
    }
}

/// Columns of one type in row-major order; none when they are not numbers.
pub(crate) fn interleave(columns: &[&Array], rows: usize) -> Option<Values> {
    if columns.iter().all(|column| matches!(column.values, Values::Floats(_))) {
        let columns = columns.iter().filter_map(|column| match &column.values {
            Values::Floats(values) => Some(values.as_slice()),
            _ => None,
        });
        return Some(Values::Floats(rows_of(&columns.collect::<Vec<_>>(), rows)));
    }
    let ints = columns.iter().map(|column| match &column.values {
        Values::Ints(values) => Some(values.as_slice()),
        _ => None,
    });
    Some(Values::Ints(rows_of(&ints.collect::<Option<Vec<_>>>()?, rows)))
}

fn rows_of<T: Copy>(columns: &[&[T]], rows: usize) -> Vec<T> {
    let mut values = Vec::with_capacity(rows * columns.len());
    for row in 0..rows {
        values.extend(columns.iter().filter_map(|column| column.get(row)));
    }
    values
}

/// The value of `predictions`; the reason says why a table cannot be made of the outputs.
pub(crate) fn push_predictions(
    out: &mut Vec<u8>,
    outputs: &[Output<'_>],
    form: AnswerForm,
    flavour: &Flavour,
) -> Result<(), String> {
    match form {
        AnswerForm::Records => push_records(out, outputs),
        AnswerForm::Array => {
            let [output] = outputs else {
                return Err(format!("a model that answers with an array has one output, not {}", outputs.len()));
            };
            flavour.push_array(out, output)
        }
        AnswerForm::Outputs => {
            out.push(b'{');
            push_joined(out, outputs, |out, output| {
                push_text(out, output.name);
                out.push(b':');
                push_nested(out, output);
            });
            out.push(b'}');
            Ok(())
        }
    }
}

fn push_records(out: &mut Vec<u8>, outputs: &[Output<'_>]) -> Result<(), String> {
    let rows = outputs.first().map_or(0, |output| output.tensor.len());
    if outputs.iter().any(|output| output.tensor.len() != rows) {
        return Err(
            "All arrays must be of the same length: the model's outputs differ in their number of values, so that \
                    they make no table; send the input as `inputs` with a tensor signature"
                .to_owned(),
        );
    }
    let mut columns: Vec<_> = outputs.iter().map(|output| (key(output.name), output.scalars())).collect();
    out.push(b'[');
    for row in 0..rows {
        out.extend_from_slice(if row > 0 { b",{" } else { b"{" });
        for (position, (key, scalars)) in columns.iter_mut().enumerate() {
            if position > 0 {
                out.push(b',');
            }
            out.extend_from_slice(key);
            if let Some(scalar) = scalars.next() {
                push_scalar(out, scalar);
            }
        }
        out.push(b'}');
    }
    out.push(b']');
    Ok(())
}

/// A name as the key of an object, made once for all rows.
fn key(name: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.len() + 3);
    push_text(&mut key, name);
    key.push(b':');
    key
}

/// What the graph gave, under the names and types of its description.
pub(crate) fn outputs<'g>(graph: &'g GraphInfo, tensors: &'g [Tensor<'static>]) -> Result<Vec<Output<'g>>, Error> {
    if tensors.len() != graph.outputs.len() {
        let (gave, wanted) = (tensors.len(), graph.outputs.len());
        return Err(Error::model(format!("the graph gave {gave} outputs instead of {wanted}")));
    }
    let output = |(info, tensor): (&'g TensorInfo, &'g Tensor<'static>)| {
        let element = crate::tensor::element_of(info, tensor.ty());
        Output { name: &info.name, element, tensor }
    };
    Ok(graph.outputs.iter().zip(tensors).map(output).collect())
}
