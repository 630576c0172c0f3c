//! Replays every request of the MLflow comparison natively, against what the real server answered.
//!
//! `tests/goldens.jsonl` is written by `tests/python/mlflow_oracle.py --goldens`. It holds MLflow's answers and the
//! tensors that its ONNX wrapper fed and got. Here the graph is a look-up: what we feed must be what MLflow fed, and is
//! answered with what it got, so that no ONNX runtime is needed.

use std::cell::RefCell;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tessera_sdk::{ElementType, Error, GraphInfo, Request, Tensor, TensorInfo};

use crate::Scoring;
use crate::mlflow::{Flavour, Signature};
use crate::tensor::Feed;

const GOLDENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens.jsonl");

#[test]
fn answers_are_mlflows() {
    let text = std::fs::read_to_string(GOLDENS).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (models, cases): (Vec<&Value>, Vec<&Value>) = lines.iter().partition(|line| line["graph"].is_object());
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let model = models.iter().find(|model| model["name"] == case["model"]).unwrap();
            let problem = replay(&scoring(model), case).err()?;
            Some(format!("{}: {}: {problem}", case["model"].as_str().unwrap(), case["name"].as_str().unwrap()))
        })
        .collect();
    assert!(cases.len() > 1000, "only {} cases", cases.len());
    assert!(failures.is_empty(), "{} of {} cases differ:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

pub(crate) fn scoring(model: &Value) -> Scoring {
    let tensors = |role: &str| model["graph"][role].as_array().unwrap().iter().map(tensor_info).collect();
    Scoring {
        graph_name: "model".to_owned(),
        graph: GraphInfo { inputs: tensors("inputs"), outputs: tensors("outputs") },
        flavour: Flavour::default(),
        signature: Signature::parse(model["signature"]["inputs"].as_str(), model["signature"]["params"].as_str())
            .unwrap(),
    }
}

fn tensor_info(info: &Value) -> TensorInfo {
    let element = match info["type"].as_str().unwrap() {
        "tensor(float)" => ElementType::Fp32,
        "tensor(double)" => ElementType::Fp64,
        "tensor(float16)" => ElementType::Fp16,
        "tensor(uint8)" => ElementType::U8,
        "tensor(int8)" => ElementType::Int8,
        "tensor(int32)" => ElementType::I32,
        "tensor(int64)" => ElementType::I64,
        "tensor(bool)" => ElementType::Bool,
        other => panic!("{other}"),
    };
    let dimensions = info["dims"].as_array().unwrap().iter().map(|dim| dim.as_u64().map(|dim| dim as u32)).collect();
    TensorInfo { name: info["name"].as_str().unwrap().to_owned(), element, dimensions }
}

fn replay(scoring: &Scoring, case: &Value) -> Result<(), String> {
    let body = match case["body"].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => STANDARD.decode(case["body_base64"].as_str().unwrap()).unwrap(),
    };
    let request = Request::new("invocations", case["content_type"].as_str().unwrap(), body);
    let response =
        scoring.answer(&request, &|feeds| run(scoring, &case["run"], feeds)).map_err(|error| error.message)?;
    let (status, _, body) = response.parts().unwrap();
    let ours = String::from_utf8(body.to_vec()).unwrap();
    let shown: String = ours.chars().take(400).collect();
    let instead = &case["instead"];
    if instead.is_object() {
        let code = if status == 415 { Value::Null } else { parse(&ours)["error_code"].clone() };
        let as_promised = instead["status"] == status && instead["error_code"] == code;
        return if as_promised { Ok(()) } else { Err(format!("{status} {shown} instead of {instead}")) };
    }
    let theirs = case["answer"].as_str().unwrap();
    if case["status"] != status {
        return Err(format!("status {status} for {}\n   ours {shown}\n   MLflow {theirs}", case["status"]));
    }
    let agree = match status {
        200 => parse(&ours) == parse(theirs),
        415 => ours == theirs || theirs.contains("only supports the following content types"),
        _ => {
            let (ours, theirs) = (parse(&ours), parse(theirs));
            ["error_code", "error_class", "sqlstate"].iter().all(|key| ours[key] == theirs[key])
        }
    };
    if agree { Ok(()) } else { Err(format!("\n   ours   {shown}\n   MLflow {theirs}")) }
}

/// With Python's `NaN` and `Infinity` as text, which serde_json cannot read. Error messages have such words, too, but as
/// text already.
fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| {
        let text = text.replace("-Infinity", "\"-inf\"").replace("Infinity", "\"inf\"").replace("NaN", "\"nan\"");
        serde_json::from_str(&text).unwrap()
    })
}

fn run(scoring: &Scoring, recorded: &Value, feeds: &[Feed<'_>]) -> Result<Vec<Tensor<'static>>, Error> {
    let Some(expected) = recorded["feeds"].as_object() else {
        // MLflow did not get this far, or ONNX Runtime refused; an endpoint that differs on purpose still needs outputs.
        return scoring.graph.outputs.iter().map(|output| zeros(output, feeds)).collect();
    };
    assert_eq!(feeds.len(), expected.len());
    for feed in feeds {
        let expected = decoded(&expected[feed.name], &scoring.graph.input(feed.name).unwrap().element);
        if !same(&feed.tensor, &expected) {
            return Err(Error::timeout(format!(
                "fed {:?} to `{}`, MLflow {expected:?}",
                feed.tensor.bytes(),
                feed.name
            )));
        }
    }
    let outputs = scoring.graph.outputs.iter();
    Ok(outputs.map(|output| decoded(&recorded["outputs"][&output.name], &output.element)).collect())
}

fn zeros(output: &TensorInfo, feeds: &[Feed<'_>]) -> Result<Tensor<'static>, Error> {
    let rows = feeds.first().and_then(|feed| feed.tensor.dims().first().copied()).unwrap_or(1);
    let dims: Vec<u32> = output.dimensions.iter().map(|dim| dim.unwrap_or(rows)).collect();
    let size = dims.iter().product::<u32>() as usize;
    Tensor::from_bytes(
        &dims,
        output.element.tensor_type(),
        crate::tensor::bytes_of(&crate::tensor::Values::Ints(vec![0; size]), output.element),
    )
}

/// Bit for bit, but for the many ways to write NaN.
fn same(ours: &Tensor<'_>, theirs: &Tensor<'_>) -> bool {
    let bits = |tensor: &Tensor<'_>| match tensor.as_slice::<f32>() {
        Ok(values) => values.iter().map(|value| if value.is_nan() { 0x7fc0_0000 } else { value.to_bits() }).collect(),
        Err(_) => vec![],
    };
    let doubles = |tensor: &Tensor<'_>| match tensor.as_slice::<f64>() {
        Ok(values) => values.iter().map(|value| if value.is_nan() { 1 } else { value.to_bits() }).collect(),
        Err(_) => vec![],
    };
    let halves = ours.ty() == tessera_sdk::TensorType::Fp16;
    let plain = ours.as_slice::<f32>().is_err() && ours.as_slice::<f64>().is_err() && !halves;
    ours.dims() == theirs.dims()
        && ours.ty() == theirs.ty()
        && bits(ours) == bits(theirs)
        && doubles(ours) == doubles(theirs)
        && (!plain || ours.bytes() == theirs.bytes())
        && (!halves || same_halves(ours.bytes(), theirs.bytes()))
}

fn same_halves(ours: &[u8], theirs: &[u8]) -> bool {
    let halves = |bytes: &[u8]| -> Vec<half::f16> {
        bytes.chunks_exact(2).map(|pair| half::f16::from_le_bytes([pair[0], pair[1]])).collect()
    };
    halves(ours).iter().zip(halves(theirs)).all(|(a, b)| *a == b || a.is_nan() && b.is_nan())
}

fn decoded(tensor: &Value, element: &ElementType) -> Tensor<'static> {
    let dims: Vec<u32> = tensor["shape"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap() as u32).collect();
    let bytes = STANDARD.decode(tensor["data"].as_str().unwrap()).unwrap();
    Tensor::from_bytes(&dims, element.tensor_type(), bytes).unwrap()
}

/// Every request of the comparison, cut off, garbled and repeated: whatever comes, the answer is not a server error.
#[test]
fn mutilated_requests_are_answered() {
    let text = std::fs::read_to_string(GOLDENS).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (models, cases): (Vec<&Value>, Vec<&Value>) = lines.iter().partition(|line| line["graph"].is_object());
    let scorings: Vec<Scoring> = models.iter().map(|model| scoring(model)).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for case in cases.iter().filter(|case| case["body"].is_string()) {
        let body = case["body"].as_str().unwrap().as_bytes();
        for _ in 0..4 {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let body = mutilated(body, random);
            // Any model and path may get any body.
            let scoring = &scorings[(random >> 40) as usize % scorings.len()];
            for path in ["invocations", "v2/infer"] {
                let request = Request::new(path, case["content_type"].as_str().unwrap(), body.clone());
                let compute =
                    |feeds: &[Feed<'_>]| scoring.graph.outputs.iter().map(|info| zeros(info, feeds)).collect();
                let response = scoring.answer(&request, &compute).unwrap();
                let (status, _, answer) = response.parts().unwrap();
                assert!(matches!(status, 200 | 400 | 415), "{status}");
                assert!(std::str::from_utf8(answer).is_ok());
            }
        }
    }
}

fn mutilated(body: &[u8], random: u64) -> Vec<u8> {
    const PIECES: [&[u8]; 12] =
        [b"null", b"[", b"]", b"{", b"}", b"\"", b",", b":", b"1e999", b"-", b"\\ud800", b"99999999999999999999"];
    let mut body = body.to_vec();
    let at = (random >> 8) as usize % (body.len() + 1);
    match random % 4 {
        0 => body.truncate(at),
        1 => drop(body.splice(at..at, PIECES[(random >> 32) as usize % PIECES.len()].iter().copied())),
        2 => drop(
            body.splice(at..(at + 3).min(body.len()), PIECES[(random >> 32) as usize % PIECES.len()].iter().copied()),
        ),
        _ => drop(body.splice(at..at, body.clone())),
    }
    body
}

#[test]
fn integers_beyond_63_bits_are_fed_as_the_floats_they_are() {
    let text = std::fs::read_to_string(GOLDENS).unwrap();
    let models: Vec<Value> = text.lines().map_while(|line| serde_json::from_str(line).ok()).collect();
    let model = |name: &str| scoring(models.iter().find(|model| model["name"] == name).unwrap());
    let array = Flavour::parse(|name| (name == "predictions").then(|| "array".to_owned())).unwrap();
    for (scoring, body) in [
        // A table without a signature, lists in a column, and an array for a model that answers with arrays.
        (model("bare"), r#"{"dataframe_split": {"data": [[18446744073709551615, 1.5], [9223372036854775808, -2.0]]}}"#),
        (
            model("tensor_rows"),
            r#"{"dataframe_split": {"columns": ["x"], "data": [[[18446744073709551615, 1]], [[9223372036854775808, 2]]]}}"#,
        ),
        (
            Scoring { flavour: array, ..model("bare") },
            r#"{"inputs": [[18446744073709551615, 1], [9223372036854775808, 2]]}"#,
        ),
    ] {
        let fed = RefCell::new(Vec::new());
        let compute = |feeds: &[Feed<'_>]| {
            fed.borrow_mut().extend(feeds[0].tensor.as_slice::<f32>()?.iter().step_by(2).copied());
            scoring.graph.outputs.iter().map(|info| zeros(info, feeds)).collect()
        };
        let response = scoring.answer(&Request::new("invocations", "application/json", body), &compute).unwrap();
        let (status, _, answer) = response.parts().unwrap();
        assert_eq!(status, 200, "{body}\n{}", String::from_utf8_lossy(answer));
        assert_eq!(*fed.borrow(), [18446744073709551615.0, 9223372036854775808.0], "{body}");
    }
}

#[test]
fn tables_that_would_outgrow_their_body_are_refused() {
    let text = std::fs::read_to_string(GOLDENS).unwrap();
    let models: Vec<Value> = text.lines().map_while(|line| serde_json::from_str(line).ok()).collect();
    let bare = scoring(models.iter().find(|model| model["name"] == "bare").unwrap());
    let rows: Vec<String> = (0..6000).map(|row| format!("{{\"k{row}\": 1.5}}")).collect();
    let records = |field: &str| format!("{{\"{field}\": [{}]}}", rows.join(","));
    let lists =
        format!("{{\"dataframe_split\": {{\"data\": [[{}1], {}[1]]}}}}", "1,".repeat(6000), "[1],".repeat(6000));
    let names: Vec<String> = (0..6000).map(|name| format!("\"k{name}\"")).collect();
    let named = format!(
        "{{\"dataframe_split\": {{\"columns\": [{}], \"data\": {{\"k0\": [{}1]}}}}}}",
        names.join(","),
        "1,".repeat(5999)
    );
    for body in [records("dataframe_records"), lists, named] {
        let request = Request::new("invocations", "application/json", body);
        let response = bare.answer(&request, &|_| panic!("computed")).unwrap();
        let (status, _, answer) = response.parts().unwrap();
        assert!(status == 400 && String::from_utf8_lossy(answer).contains("cells"));
    }
    let iris = scoring(models.iter().find(|model| model["name"] == "iris").unwrap());
    for field in ["inputs", "instances"] {
        let response =
            iris.answer(&Request::new("invocations", "application/json", records(field)), &|_| panic!("computed"));
        let (status, _, answer) = response.as_ref().unwrap().parts().unwrap();
        assert!(status == 400 && String::from_utf8_lossy(answer).contains("over the limit of 4096 names"));
    }
}

#[test]
fn other_paths_are_not_found_and_the_host_s_failures_stay_its_own() {
    let text = std::fs::read_to_string(GOLDENS).unwrap();
    let model: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let scoring = scoring(&model);
    let request =
        |path| Request::new(path, "application/json", r#"{"inputs": {"sl": [1.0], "sw": [1], "pl": [1], "pw": [1]}}"#);
    let error = scoring.answer(&request("chat/completions"), &|_| panic!("computed")).unwrap_err();
    assert_eq!(error.kind, tessera_sdk::ErrorKind::NotFound);
    let error = scoring.answer(&request("invocations"), &|_| Err(Error::timeout("late"))).unwrap_err();
    assert_eq!(error.kind, tessera_sdk::ErrorKind::Timeout);
    let response = scoring.answer(&request("invocations"), &|_| Err(Error::model("bad op"))).unwrap();
    let (status, _, body) = response.parts().unwrap();
    assert!(status == 400 && String::from_utf8_lossy(body).contains("Encountered an unexpected error"));
}
