//! What a component says that it takes and answers, in its endpoint's OpenAPI document. A validator of JSON Schema is asked
//! about the bodies that the endpoint is sent: they must agree.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Package, Server, guest, repository, serving, serving_with};

const OPENAPI: &str = "/api/2.0/serving-endpoints/iris/openapi";

/// The example with typed rows.
fn iris() -> Package {
    let folder = repository("guest-examples/iris-rust");
    let file = |name: &str| fs::read(folder.join(name)).unwrap();
    ["tessera.toml", "model.onnx", "labels.txt", "golden/request.json", "golden/response.json"]
        .into_iter()
        .fold(Package::default(), |package, name| package.with(name, file(name)))
        .with("component.wasm", guest("iris-rust"))
}

/// The validator of a schema that lies at `place` in a document, and may refer to other parts of it.
fn validator(document: &Value, place: &str) -> jsonschema::Validator {
    assert!(document.pointer(place).is_some(), "there is no {place} in {document:#}");
    let schema = json!({ "$ref": format!("#/document{place}"), "document": moved(document) });
    jsonschema::draft202012::new(&schema).unwrap()
}

/// The document where its references are to `/document`.
fn moved(part: &Value) -> Value {
    let of_field = |(name, value): (&String, &Value)| match value.as_str() {
        Some(reference) if name == "$ref" => (name.clone(), json!(reference.replacen('#', "#/document", 1))),
        _ => (name.clone(), moved(value)),
    };
    match part {
        Value::Object(fields) => Value::Object(fields.iter().map(of_field).collect()),
        Value::Array(items) => Value::Array(items.iter().map(moved).collect()),
        other => other.clone(),
    }
}

const JSON_BODY: &str = "content/application~1json";

#[test]
fn the_document_describes_what_is_accepted_and_answered() {
    // given an endpoint whose types describe themselves
    let server = Server::start();
    server.deploy("iris", &iris());
    assert!(server.build_log("iris").contains("says what it takes and answers"), "{}", server.build_log("iris"));
    let document = server.get(OPENAPI).ok();
    let post = "/paths/~1served-models~1iris-1~1invocations/post";
    let request = validator(&document, &format!("{post}/requestBody/{JSON_BODY}/schema"));
    let answer = validator(&document, &format!("{post}/responses/200/{JSON_BODY}/schema"));

    // then it has the golden request as its example, and what the doc comments say
    let example = document.pointer(&format!("{post}/requestBody/{JSON_BODY}/example")).unwrap();
    assert!(request.is_valid(example), "{example}");
    let flower = &document["components"]["schemas"]["iris-1.request.0"]["$defs"]["Flower"];
    assert_eq!(flower["description"], "The measures of a flower.");
    assert_eq!(flower["properties"]["sepal_length"], json!({ "type": "number", "format": "float", "minimum": 0.0 }));

    // when bodies in all forms are sent, then what the schema allows is accepted, and answered as the schema says
    let names = json!(["unit", "petal_width", "petal_length", "sepal_width", "sepal_length", "weight"]);
    let rows = [json!(["cm", 0.2, 1.4, 3.5, 5.1, 7]), json!([null, 2.2, 5.8, 3, 6.5, 8])];
    let record = |row: &Value| -> Value {
        let cells = names.as_array().unwrap().iter().zip(row.as_array().unwrap());
        Value::Object(cells.map(|(name, cell)| (name.as_str().unwrap().to_owned(), cell.clone())).collect())
    };
    let records: Vec<Value> = rows.iter().map(record).collect();
    let column = |place: usize| -> Vec<&Value> { rows.iter().map(|row| &row[place]).collect() };
    let columns = json!({
        "unit": column(0), "petal_width": column(1), "petal_length": column(2), "sepal_width": column(3),
        "sepal_length": column(4),
    });
    for body in [
        json!({ "dataframe_split": { "columns": names, "data": rows } }),
        json!({ "dataframe_records": records }),
        json!({ "instances": records, "params": {} }),
        json!({ "inputs": columns }),
    ] {
        assert!(request.is_valid(&body), "{body}: {:?}", request.validate(&body));
        let got = server.invoke("iris", &body).ok();
        assert!(answer.is_valid(&got), "{got}: {:?}", answer.validate(&got));
        let species: Vec<&Value> =
            got["predictions"].as_array().unwrap().iter().map(|prediction| &prediction["species"]).collect();
        assert_eq!(species, ["setosa", "virginica"], "{body}");
    }

    // and what it does not allow is refused, with the row and the column
    let broken = |change: &dyn Fn(&mut Value)| {
        let mut records = records.clone();
        change(&mut records[1]);
        json!({ "dataframe_records": records })
    };
    for (body, words) in [
        (broken(&|row| row["sepal_width"] = json!("wide")), ["row 1, column `sepal_width`", "invalid type: string"]),
        (broken(&|row| row["sepal_width"] = json!(null)), ["row 1, column `sepal_width`", "invalid type: null"]),
        (broken(&|row| row["unit"] = json!("ell")), ["row 1, column `unit`", "unknown variant `ell`"]),
        (
            broken(&|row| drop(row.as_object_mut().unwrap().remove("sepal_width"))),
            ["row 1", "missing column `sepal_width`"],
        ),
        (broken(&|row| row["sepal_width"] = json!(-1)), ["below 0", "-1"]),
        (json!({ "dataframe_split": { "columns": ["unit"], "data": [["cm"]] } }), ["row 0", "missing column"]),
        (json!({ "instances": records, "inputs": columns }), ["`inputs`", "both given"]),
        (json!({ "rows": records }), ["the body has none of", "dataframe_split"]),
    ] {
        assert!(!request.is_valid(&body), "{body}");
        server.invoke("iris", &body).is_error(400, "BAD_REQUEST", &words);
    }
}

#[test]
fn a_description_outlives_a_restart_and_the_cache() {
    let mut server = Server::start();
    server.deploy("iris", &iris());
    let document = server.get(OPENAPI).ok();
    let cache = server.home().join("cache");
    for removed in [None, Some(cache.join("artifacts")), Some(cache)] {
        server.terminate();
        assert!(server.wait().success(), "{}", server.log());
        if let Some(folder) = removed {
            fs::remove_dir_all(folder).unwrap();
        }
        server.start_again();
        let mut again = server.get(OPENAPI).ok();
        // The port is another one.
        again["servers"] = document["servers"].clone();
        assert_eq!(again, document);
    }
}

#[test]
fn a_wrong_description_fails_the_deploy_with_the_reason() {
    // given an endpoint whose component describes nothing, which is told so
    let server = Server::start();
    server.deploy("e", &Package::hostile(""));
    let (model, path) = ("main.default.e", "/api/2.0/serving-endpoints/e/openapi");
    let undescribed = server.get(path).ok();
    let schema =
        "/paths/~1served-models~1e-1~1invocations/post/requestBody/content/application~1json/schema/description";
    assert!(undescribed.pointer(schema).is_some(), "{undescribed:#}");
    assert!(undescribed.get("components").is_none());

    // when it is updated to a config whose description is wrong, then the state says why, and the old one serves on
    for (describe, reason) in [
        ("not_json", "it is not JSON of the form that wit/endpoint.wit shows: EOF"),
        ("remote", "a $ref to 'https://example.com/schema.json', which is not in it"),
        ("huge", "it has 300000 bytes; it may have 262144"),
        ("media", "a response has the media type 'nonsense'"),
        ("many", "it has 1000 responses; it may have 16"),
        ("trap", "the component's describe trapped"),
        ("loop", "the component's describe took longer than 10000 ms"),
        ("memory", "the component's describe needed more than"),
    ] {
        server.update("e", &serving_with(model, "1", ("describe", describe))).ok();
        let endpoint = server.settled("e");
        assert_eq!(endpoint["state"], json!({ "ready": "READY", "config_update": "UPDATE_FAILED" }), "{endpoint:#}");
        let state = &endpoint["pending_config"]["served_entities"][0]["state"];
        let message = state["deployment_state_message"].as_str().unwrap();
        assert!(message.contains(reason), "'{reason}' is not in: {message}");
        assert!(server.build_log("e").contains(reason), "{}", server.build_log("e"));
        assert_eq!(server.get(path).ok(), undescribed);
    }

    // and one that is right is shown: pictures in, a stream out
    server.update("e", &serving_with(model, "1", ("describe", "stream"))).ok();
    assert_eq!(server.settled("e")["state"], json!({ "ready": "READY", "config_update": "NOT_UPDATING" }));
    let document = server.get(path).ok();
    let post = &document["paths"]["/served-models/e-1/invocations"]["post"];
    assert_eq!(post["requestBody"]["content"], json!({ "image/png": {}, "image/jpeg": {} }));
    let event = &post["responses"]["200"]["content"]["text/event-stream"]["x-itemSchema"]["$ref"];
    let event = validator(&document, event.as_str().unwrap().strip_prefix('#').unwrap());
    assert!(event.is_valid(&json!({ "token": "a" })) && !event.is_valid(&json!({ "token": 1 })));

    // until it is replaced by one that says nothing
    server.update("e", &serving(model, "1")).ok();
    server.settled("e");
    assert!(server.get(path).ok().get("components").is_none());
}
