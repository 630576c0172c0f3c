//! A computation by `wasi:nn`, through bindings of its own.

use serde_json::{Value, json};

use self::bindings::wasi::nn::errors::Error;
use self::bindings::wasi::nn::graph::load_by_name;
use self::bindings::wasi::nn::tensor::{Tensor, TensorType};

mod bindings {
    #![allow(missing_docs, reason = "generated code")]
    wit_bindgen::generate!({ path: "../../../wit/deps/wasi-nn", world: "ml", generate_all });
}

/// The graph `model` on ones, in one row of four.
pub(crate) fn compute() -> Value {
    run().unwrap_or_else(|error| json!({ "code": format!("{:?}", error.code()), "error": error.data() }))
}

fn run() -> Result<Value, Error> {
    let context = load_by_name("model")?.init_execution_context()?;
    let ones: Vec<u8> = [1f32; 4].iter().flat_map(|value| value.to_le_bytes()).collect();
    let input = Tensor::new(&[1, 4], TensorType::Fp32, &ones);
    let outputs = context.compute(vec![("x".to_owned(), input)])?;
    let values = |output: &Tensor| -> Vec<f32> {
        output.data().chunks_exact(4).filter_map(|bytes| Some(f32::from_le_bytes(bytes.try_into().ok()?))).collect()
    };
    Ok(outputs.iter().map(|(name, output)| (name.clone(), json!(values(output)))).collect())
}
