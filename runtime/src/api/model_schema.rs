//! The OpenAPI document of an endpoint: what its models accept and answer, as their components say; of stock components from
//! the models' signatures, and from their graphs where a package has no signature.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::declared_schema;
use crate::catalog::{Endpoint, EntityConfig};
use crate::control::ControlPlane;
use crate::deploy::manifest::ComponentSource;
use crate::deploy::package::Package;
use crate::deploy::schema::{BodySchema, BodySchemas};
use crate::error::{ApiError, ErrorCode};
use crate::nn::{self, Dim, ElementType, TensorInfo};
use crate::store::blobs::Blobs;

/// Largest example that is shown.
const EXAMPLE_BYTES_MAX: u64 = 64 << 10;

/// The document. `declared` is what components say, by the names of their entities. Blocks.
///
/// # Errors
/// `BAD_REQUEST` when the endpoint serves nothing, and what is wrong with its packages.
pub(super) fn document(
    control: &ControlPlane,
    endpoint: &Endpoint,
    declared: &BTreeMap<String, BodySchemas>,
    base_url: &str,
) -> Result<Value, ApiError> {
    let record = &endpoint.record;
    let config = record.config.as_ref().filter(|_| endpoint.serving.is_some());
    let config = config.ok_or_else(|| {
        let message = format!("Endpoint '{}' is not ready, so the schema of its requests is not known.", record.name);
        ApiError::new(ErrorCode::BadRequest, message)
    })?;
    let (mut paths, mut components) = (Map::new(), Map::new());
    for entity in &config.entities {
        let package = control.registry.package(record.workspace, &entity.entity_name, entity.entity_version)?;
        let bodies = match declared.get(&entity.name) {
            Some(schemas) => of_component(schemas, example(&package, &control.host.blobs), entity, &mut components),
            None => accepted(&package, &control.host.blobs, entity)?,
        };
        let operation = json!({
            "summary": format!("{} version {}", entity.entity_name, entity.entity_version),
            "requestBody": { "required": true, "content": bodies.request },
            "responses": { "200": { "description": "Success", "content": bodies.response } },
        });
        paths.insert(format!("/served-models/{}/invocations", entity.name), json!({ "post": operation }));
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": { "title": record.name, "version": config.version.to_string() },
        "servers": [{ "url": format!("{base_url}/serving-endpoints/{}", record.name) }],
        "paths": paths,
    });
    if !components.is_empty() {
        document["components"] = json!({ "schemas": components });
    }
    Ok(document)
}

/// An entity's requests and answers: what OpenAPI calls their `content`.
struct Bodies {
    request: Value,
    response: Value,
}

impl Bodies {
    /// JSON of these schemas.
    fn json(request: Value, response: Value) -> Bodies {
        let content = |schema: Value| json!({ "application/json": { "schema": schema } });
        Bodies { request: content(request), response: content(response) }
    }

    /// Of a component that says nothing: what it reads is its own affair.
    fn unknown(example: Option<Value>) -> Bodies {
        let mut request = json!({ "description": "What the model's own component understands" });
        if let Some(example) = example {
            request["examples"] = json!([example]);
        }
        Bodies::json(request, json!({}))
    }
}

fn of_component(
    schemas: &BodySchemas,
    example: Option<Value>,
    entity: &EntityConfig,
    components: &mut Map<String, Value>,
) -> Bodies {
    let mut content = |bodies: &[BodySchema], what: &str, example: Option<&Value>| {
        let prefix = format!("{}.{what}", entity.name);
        Some(declared_schema::content(bodies, &prefix, example, components)).filter(|_| !bodies.is_empty())
    };
    let request = content(&schemas.requests, "request", example.as_ref());
    let response = content(&schemas.responses, "response", None);
    let unknown = Bodies::unknown(example);
    Bodies { request: request.unwrap_or(unknown.request), response: response.unwrap_or(unknown.response) }
}

fn accepted(package: &Package, blobs: &Blobs, entity: &EntityConfig) -> Result<Bodies, ApiError> {
    let example = example(package, blobs);
    if package.component != ComponentSource::Stock("scoring".to_owned()) {
        return Ok(Bodies::unknown(example));
    }
    let part = |name: &str| -> Option<Value> {
        serde_json::from_str(package.settings.get(&format!("mlflow.signature.{name}"))?).ok()
    };
    let columns = |part: Option<Value>| match part {
        Some(Value::Array(columns)) => Some(columns),
        _ => None,
    };
    let (mut formats, response) = match columns(part("inputs")) {
        Some(inputs) => (formats(&inputs), columns(part("outputs")).map(|outputs| predictions(&outputs))),
        None => {
            let graph = graph(package, blobs, entity)?;
            let outputs = graph.outputs.iter().map(|output| (output.name.clone(), of_tensor_info(output))).collect();
            (tensor_formats(graph.inputs.iter().map(of_input).collect()), Some(object(outputs)))
        }
    };
    let params = columns(part("params")).filter(|params| !params.is_empty()).map(|params| of_params(&params));
    for (name, format) in &mut formats {
        if let Some(params) = &params {
            format["properties"]["params"] = params.clone();
        }
        if let Some(example) = example.as_ref().filter(|example| example.get(*name).is_some()) {
            format["examples"] = json!([example]);
        }
    }
    let formats: Vec<Value> = formats.into_iter().map(|(_, format)| format).collect();
    let response = object(vec![("predictions".to_owned(), response.unwrap_or_else(|| json!({})))]);
    Ok(Bodies::json(json!({ "oneOf": formats }), response))
}

/// The package's own example of a request.
fn example(package: &Package, blobs: &Blobs) -> Option<Value> {
    let golden = package.golden.as_ref()?;
    let file = package.files.get(&golden.request).filter(|file| file.bytes <= EXAMPLE_BYTES_MAX)?;
    serde_json::from_slice(&blobs.read(&file.digest).ok()?).ok()
}

fn graph(package: &Package, blobs: &Blobs, entity: &EntityConfig) -> Result<nn::GraphInfo, ApiError> {
    let name = package.settings.get("graph").map_or("model", String::as_str);
    let spec = package.graphs.get(name);
    let file = spec
        .and_then(|spec| package.files.get(&spec.file))
        .ok_or_else(|| ApiError::new(ErrorCode::BadRequest, format!("'{}' has no graph '{name}'", entity.name)))?;
    let weights = package.weights.get(name).map(Vec::as_slice).unwrap_or_default();
    let model = blobs.reader(&file.digest)?;
    let end = model.length();
    nn::backends::inspect_reader(Box::new(model), end, weights)
        .map_err(|error| ApiError::internal("read a graph's signature", &error))
}

/// One object per form of request, by the key that names the form.
type Formats = Vec<(&'static str, Value)>;

/// A property that the object must have, and what describes it.
fn format(key: &'static str, schema: Value) -> (&'static str, Value) {
    (key, json!({ "type": "object", "required": [key], "properties": { key: schema } }))
}

fn object(properties: Vec<(String, Value)>) -> Value {
    json!({ "type": "object", "properties": properties.into_iter().collect::<Map<_, _>>() })
}

fn formats(inputs: &[Value]) -> Formats {
    if inputs.iter().any(|input| input["type"] == "tensor") {
        let named = |input: &Value| (input["name"].as_str().map(str::to_owned), of_column(input));
        return tensor_formats(inputs.iter().map(named).collect());
    }
    let names: Option<Vec<&str>> = inputs.iter().map(|column| column["name"].as_str()).collect();
    let types: Vec<Value> = inputs.iter().map(of_column).collect();
    let mut split = json!({
        "type": "object",
        "required": ["data"],
        "properties": {
            "index": { "type": "array", "items": { "type": "integer" } },
            "columns": { "type": "array", "items": { "type": "string" } },
            "data": { "type": "array", "items": { "type": "array", "prefixItems": types } },
        },
    });
    let Some(names) = names else { return vec![format("dataframe_split", split)] };
    let is_required = |column: &&Value| column["required"] != false;
    let required: Vec<&str> = inputs.iter().filter(is_required).filter_map(|column| column["name"].as_str()).collect();
    split["properties"]["columns"]["items"]["enum"] = json!(names);
    split["properties"]["columns"]["description"] = json!(format!("required fields: {}", required.join(", ")));
    let mut record = object(names.iter().map(|name| (*name).to_owned()).zip(types).collect());
    record["required"] = json!(required);
    vec![format("dataframe_split", split), format("dataframe_records", json!({ "type": "array", "items": record }))]
}

/// Tensors by name, or the only one without.
fn tensor_formats(mut inputs: Vec<(Option<String>, Value)>) -> Formats {
    if let [(None, _)] = inputs.as_slice() {
        let (_, tensor) = inputs.remove(0);
        return vec![format("inputs", tensor.clone()), format("instances", tensor)];
    }
    let tensors: Vec<(String, Value)> =
        inputs.into_iter().map(|(name, tensor)| (name.unwrap_or_default(), tensor)).collect();
    // Of an instance each tensor has one row.
    let row = |(name, tensor): &(String, Value)| (name.clone(), tensor.get("items").unwrap_or(tensor).clone());
    let instance = object(tensors.iter().map(row).collect());
    vec![format("inputs", object(tensors)), format("instances", json!({ "type": "array", "items": instance }))]
}

fn predictions(outputs: &[Value]) -> Value {
    let names: Option<Vec<String>> = outputs.iter().map(|output| Some(output["name"].as_str()?.to_owned())).collect();
    let types = outputs.iter().map(of_column);
    let is_tensor = outputs.iter().any(|output| output["type"] == "tensor");
    match (names, outputs) {
        (Some(names), _) if is_tensor => object(names.into_iter().zip(types).collect()),
        (Some(names), _) => json!({ "type": "array", "items": object(names.into_iter().zip(types).collect()) }),
        (None, [only]) if is_tensor => of_column(only),
        (None, [only]) => json!({ "type": "array", "items": of_column(only) }),
        (None, _) => json!({ "type": "array" }),
    }
}

/// The parameters of a signature. Their defaults are text, as the real service writes them.
fn of_params(params: &[Value]) -> Value {
    let param = |param: &Value| {
        let mut schema = match param["shape"].as_array() {
            Some(_) => json!({ "type": "array", "items": of_type(param["type"].as_str().unwrap_or_default()) }),
            None => of_type(param["type"].as_str().unwrap_or_default()),
        };
        schema["default"] = match &param["default"] {
            Value::String(text) => json!(text),
            other => json!(other.to_string()),
        };
        Some((param["name"].as_str()?.to_owned(), schema))
    };
    object(params.iter().filter_map(param).collect())
}

/// A column of MLflow's signatures: a type, or a list, object, map or tensor of types.
fn of_column(column: &Value) -> Value {
    match column["type"].as_str().unwrap_or_default() {
        "tensor" => of_tensor(&column["tensor-spec"]),
        "array" => json!({ "type": "array", "items": of_column(&column["items"]) }),
        "map" => json!({ "type": "object", "additionalProperties": of_column(&column["values"]) }),
        "object" => {
            let properties = column["properties"].as_object();
            let of_property = |(name, property): (&String, &Value)| (name.clone(), of_column(property));
            object(properties.into_iter().flatten().map(of_property).collect())
        }
        name => of_type(name),
    }
}

fn of_type(name: &str) -> Value {
    match name {
        "integer" => json!({ "type": "integer", "format": "int32" }),
        "long" => json!({ "type": "integer", "format": "int64" }),
        "float" => json!({ "type": "number", "format": "float" }),
        "double" => json!({ "type": "number", "format": "double" }),
        "boolean" => json!({ "type": "boolean" }),
        "string" => json!({ "type": "string" }),
        "binary" => json!({ "type": "string", "format": "byte" }),
        "datetime" => json!({ "type": "string", "format": "date-time" }),
        _ => json!({}),
    }
}

fn of_tensor(spec: &Value) -> Value {
    let element = match spec["dtype"].as_str().unwrap_or_default() {
        "float16" | "float32" => of_type("float"),
        "float64" => of_type("double"),
        "int64" | "uint64" | "uint32" => of_type("long"),
        name if name.starts_with("int") || name.starts_with("uint") => of_type("integer"),
        "bool" => of_type("boolean"),
        "str" | "object" => of_type("string"),
        _ => json!({}),
    };
    let sizes = spec["shape"].as_array().into_iter().flatten();
    nested(element, sizes.map(Value::as_u64).collect())
}

fn of_input(input: &TensorInfo) -> (Option<String>, Value) {
    (Some(input.name.clone()), of_tensor_info(input))
}

fn of_tensor_info(tensor: &TensorInfo) -> Value {
    let element = match tensor.element {
        ElementType::Fp16 | ElementType::Bf16 | ElementType::Fp32 => of_type("float"),
        ElementType::Fp64 => of_type("double"),
        ElementType::I64 => of_type("long"),
        ElementType::Bool => of_type("boolean"),
        _ => of_type("integer"),
    };
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => Some(u64::from(*size)),
        Dim::Free(_) => None,
    };
    match &tensor.dims {
        Some(dims) => nested(element, dims.iter().map(size).collect()),
        None => json!({}),
    }
}

/// Lists in lists, of known sizes where there is one.
fn nested(element: Value, sizes: Vec<Option<u64>>) -> Value {
    sizes.into_iter().rev().fold(element, |items, size| match size {
        Some(size) => json!({ "type": "array", "items": items, "minItems": size, "maxItems": size }),
        None => json!({ "type": "array", "items": items }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_and_tensors_are_described_in_the_forms_that_carry_them() {
        let columns = json!([
            { "type": "double", "name": "a", "required": true },
            { "type": "array", "items": { "type": "string" }, "name": "b", "required": false },
        ]);
        let columns = formats(columns.as_array().unwrap());
        assert_eq!(columns.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["dataframe_split", "dataframe_records"]);
        let split = &columns[0].1["properties"]["dataframe_split"]["properties"];
        assert_eq!(split["columns"]["items"]["enum"], json!(["a", "b"]));
        assert_eq!(split["columns"]["description"], "required fields: a");
        assert_eq!(split["data"]["items"]["prefixItems"][0], json!({ "type": "number", "format": "double" }));
        let record = &columns[1].1["properties"]["dataframe_records"]["items"];
        assert_eq!(record["properties"]["b"]["items"]["type"], "string");
        assert_eq!(record["required"], json!(["a"]));

        let tensor = json!([{ "type": "tensor", "tensor-spec": { "dtype": "float32", "shape": [-1, 2] } }]);
        let tensor = formats(tensor.as_array().unwrap());
        let inputs = &tensor[0].1["properties"]["inputs"];
        assert_eq!((&inputs["type"], &inputs["items"]["maxItems"]), (&json!("array"), &json!(2)));
        assert!(inputs.get("maxItems").is_none(), "{inputs}");
    }

    #[test]
    fn parameters_have_their_defaults_as_text() {
        let params = json!([{ "name": "n", "type": "long", "default": 3, "shape": null }]);
        let schema = of_params(params.as_array().unwrap());
        assert_eq!(schema["properties"]["n"], json!({ "type": "integer", "format": "int64", "default": "3" }));
    }
}
