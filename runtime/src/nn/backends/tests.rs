//! Both backends against the same hand-made models: right answers, the same answers, and an error instead of a panic.
//! ONNX Runtime's half is skipped, saying so, where its library is absent, and fails there in CI.

use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::nn::BatchSpec;
use crate::nn::test_models::*;
use crate::nn::{Cancel, Graph, LoadHost, NnErrorKind, SequenceSpec, Tensor, TensorType};

/// The backends to test: always tract, and ONNX Runtime where it is.
fn backends() -> Vec<Arc<dyn Backend>> {
    let backends = Backends::discover(None).unwrap();
    if let Some(reason) = backends.onnxruntime_absent() {
        assert!(std::env::var_os("CI").is_none(), "CI must test ONNX Runtime: {reason}");
        eprintln!("SKIPPED for ONNX Runtime: {reason}");
    }
    backends.available().filter(|backend| backend.id() != BackendId::Llama).collect()
}

fn onnxruntime() -> Option<Arc<dyn Backend>> {
    backends().into_iter().find(|backend| backend.id() == BackendId::OnnxRuntime)
}

fn source(file: &ModelFile) -> GraphSource {
    GraphSource {
        path: file.path(),
        external_files: vec![],
        target: ExecutionTarget::Cpu,
        converted: None,
        batch: BatchSpec::default(),
        intra_op_threads: 1,
        sequences: SequenceSpec::default(),
        host: LoadHost::default(),
    }
}

fn load(backend: &Arc<dyn Backend>, model: &[u8]) -> Result<Arc<dyn Graph>, NnError> {
    backend.load(&source(&ModelFile::new(model)))
}

fn run(graph: &Arc<dyn Graph>, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, NnError> {
    let named = inputs.iter().map(|&(name, tensor)| (name.to_owned(), tensor.clone())).collect();
    graph.run(graph.info().check(named)?, &Cancel::default())
}

fn floats(dims: &[u32], values: &[f32]) -> Tensor {
    Tensor::new(TensorType::Fp32, dims.to_vec(), f32s(values)).unwrap()
}

/// Element types with the bytes of three elements that a conversion would change.
fn samples() -> Vec<(u64, TensorType, Vec<u8>)> {
    let i32s = [i32::MIN, -1, 7].iter().flat_map(|value| value.to_le_bytes()).collect();
    let i64s = [i64::MIN, -1, 1 << 40].iter().flat_map(|value| value.to_le_bytes()).collect();
    let f64s = [f64::MIN_POSITIVE, -1.5, 1e300].iter().flat_map(|value| value.to_le_bytes()).collect();
    vec![
        (FLOAT16, TensorType::Fp16, vec![0x00, 0x3c, 0x00, 0xc0, 0xff, 0x7b]),
        (FLOAT, TensorType::Fp32, f32s(&[f32::MIN_POSITIVE, -1.5, 3e38])),
        (DOUBLE, TensorType::Fp64, f64s),
        (BFLOAT16, TensorType::Bf16, vec![0x80, 0x3f, 0x00, 0xc0, 0x7f, 0x7f]),
        (UINT8, TensorType::U8, vec![0, 127, 255]),
        (INT8, TensorType::U8, vec![0, 127, 255]),
        (BOOL, TensorType::U8, vec![0, 1, 1]),
        (INT32, TensorType::I32, i32s),
        (INT64, TensorType::I64, i64s),
    ]
}

#[test]
fn every_element_type_passes_through_bit_for_bit() {
    for backend in backends() {
        for (element, ty, data) in samples() {
            let graph = load(&backend, &unary("Identity", element, element, &["n"], &[]));
            if element == BFLOAT16 && backend.id() == BackendId::Tract {
                assert_eq!(graph.err().unwrap().kind(), NnErrorKind::UnsupportedOperation);
                continue;
            }
            let graph = graph.unwrap();
            let input = Tensor::new(ty, vec![3], data).unwrap();
            let outputs = run(&graph, &[("x", &input)]).unwrap();
            assert_eq!(outputs, [("y".to_owned(), input)], "{} {ty:?}", backend.id().name());
        }
    }
}

#[test]
fn casts_give_the_types_that_travel_as_u8() {
    let input = floats(&[4], &[0.0, 1.0, -3.0, 100.0]);
    for backend in backends() {
        for (to, expected) in [(BOOL, vec![0, 1, 1, 1]), (INT8, vec![0, 1, 253, 100])] {
            let graph = load(&backend, &unary("Cast", FLOAT, to, &["n"], &[int_attribute("to", to)])).unwrap();
            let outputs = run(&graph, &[("x", &input)]).unwrap();
            assert_eq!(
                outputs[0].1,
                Tensor::new(TensorType::U8, vec![4], expected).unwrap(),
                "{}",
                backend.id().name()
            );
        }
    }
}

#[test]
fn a_linear_model_computes_and_initializers_are_no_inputs() {
    for backend in backends() {
        let graph = load(&backend, &linear()).unwrap();
        assert_eq!(graph.info().inputs.len(), 1);
        assert_eq!(graph.info().inputs[0].to_string(), "FP32 [batch, 3]");
        assert!(graph.memory_bytes() > 0);
        for batch in [1, 2, 17] {
            let input = floats(&[batch, 3], &vec![1.0; batch as usize * 3]);
            let expected = floats(&[batch, 2], &[9.5, 11.5].repeat(batch as usize));
            assert_eq!(run(&graph, &[("x", &input)]).unwrap()[0].1, expected, "{}", backend.id().name());
        }
    }
}

#[test]
fn backends_agree_on_random_inputs() {
    let Some(onnxruntime) = onnxruntime() else { return };
    let tract: Arc<dyn Backend> = Arc::new(tract::Tract);
    let models = [
        linear(),
        unary("Softmax", FLOAT, FLOAT, &["batch", "3"], &[int_attribute("axis", 1)]),
        unary("Tanh", FLOAT, FLOAT, &["batch", "3"], &[]),
        unary("Sigmoid", FLOAT, FLOAT, &["batch", "3"], &[]),
        unary("Exp", FLOAT, FLOAT, &["batch", "3"], &[]),
    ];
    let mut random = fastrand::Rng::with_seed(1);
    for model in models {
        let (one, other) = (load(&tract, &model).unwrap(), load(&onnxruntime, &model).unwrap());
        assert_eq!(one.info(), other.info());
        for batch in [1, 3, 8] {
            let values: Vec<f32> = (0..batch * 3).map(|_| random.f32() * 4.0 - 2.0).collect();
            let input = floats(&[batch, 3], &values);
            let (one, other) = (run(&one, &[("x", &input)]).unwrap(), run(&other, &[("x", &input)]).unwrap());
            assert_eq!((&one[0].0, one[0].1.dims()), (&other[0].0, other[0].1.dims()));
            for (a, b) in one[0].1.data().chunks_exact(4).zip(other[0].1.data().chunks_exact(4)) {
                let [a, b] = [a, b].map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
                assert!((a - b).abs() <= 1e-5 + 1e-3 * b.abs(), "{a} and {b}");
            }
        }
    }
}

#[test]
fn scalars_empty_tensors_and_misaligned_bytes_are_fine() {
    for backend in backends() {
        let scalar = load(&backend, &unary("Neg", FLOAT, FLOAT, &[], &[])).unwrap();
        for dims in [&[][..], &[1]] {
            assert_eq!(run(&scalar, &[("x", &floats(dims, &[2.0]))]).unwrap()[0].1, floats(&[], &[-2.0]));
        }

        let vector = load(&backend, &unary("Neg", FLOAT, FLOAT, &["n"], &[])).unwrap();
        assert_eq!(run(&vector, &[("x", &floats(&[0], &[]))]).unwrap()[0].1, floats(&[0], &[]));

        let mut bytes = vec![0];
        bytes.extend(f32s(&[1.0, -2.0]));
        let askew = Tensor::new(TensorType::Fp32, vec![2], Bytes::from(bytes).slice(1..)).unwrap();
        assert_eq!(run(&vector, &[("x", &askew)]).unwrap()[0].1, floats(&[2], &[-1.0, 2.0]));
    }
}

#[test]
fn outputs_outlive_graph_and_inputs_also_when_the_output_is_the_input() {
    for backend in backends() {
        // The graph's output is its input: a backend that hands out the input's memory would leave it dangling.
        let passed = model(&graph(&[], &[value("x", FLOAT, &["n"])], &[value("x", FLOAT, &["n"])], &[]));
        for (model, name) in [(passed, "x"), (unary("Neg", FLOAT, FLOAT, &["n"], &[]), "y")] {
            let Ok(graph) = load(&backend, &model) else {
                assert_eq!(name, "x", "only the odd one may be refused");
                continue;
            };
            let values: Vec<f32> = (0..10_000).map(|value| value as f32).collect();
            let input = floats(&[10_000], &values);
            let outputs = run(&graph, &[("x", &input)]).unwrap();
            drop((graph, input));
            let _reused: Vec<Vec<u8>> = (0..100).map(|_| vec![0xff; 40_000]).collect();
            let sign = if name == "y" { -1.0 } else { 1.0 };
            let expected: Vec<f32> = values.iter().map(|value| value * sign).collect();
            assert_eq!(outputs[0].1.data(), &f32s(&expected), "{} {name}", backend.id().name());
        }
    }
}

#[test]
fn sixty_four_threads_share_a_graph() {
    for backend in backends() {
        let graph = load(&backend, &linear()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..64u32 {
                let graph = &graph;
                scope.spawn(move || {
                    for turn in 0..100 {
                        let batch = 1 + (thread + turn) % 5;
                        let x = (thread * 100 + turn) as f32;
                        let input = floats(&[batch, 3], &vec![x; batch as usize * 3]);
                        let expected = [x * 9.0 + 0.5, x * 12.0 - 0.5].repeat(batch as usize);
                        assert_eq!(run(graph, &[("x", &input)]).unwrap()[0].1, floats(&[batch, 2], &expected));
                    }
                });
            }
        });
    }
}

#[test]
fn more_input_shapes_than_tract_keeps_plans_for() {
    let graph = load(&(Arc::new(tract::Tract) as Arc<dyn Backend>), &linear()).unwrap();
    for batch in (1..=20).chain(1..=20) {
        let input = floats(&[batch, 3], &vec![0.0; batch as usize * 3]);
        assert_eq!(run(&graph, &[("x", &input)]).unwrap()[0].1.dims(), [batch, 2]);
    }
}

#[test]
fn a_run_that_fails_is_an_error_with_the_backends_message_and_the_graph_still_works() {
    let product = node("MatMul", &["x", "w"], &["y"], &[]);
    let inputs = [value("x", FLOAT, &["a", "b"]), value("w", FLOAT, &["c", "d"])];
    let product = model(&graph(&[product], &inputs, &[value("y", FLOAT, &["a", "d"])], &[]));
    for backend in backends() {
        let graph = load(&backend, &product).unwrap();
        let (wide, tall) = (floats(&[1, 3], &[1.0; 3]), floats(&[2, 1], &[1.0; 2]));
        let error = run(&graph, &[("x", &wide), ("w", &tall)]).unwrap_err();
        assert!(matches!(error.kind(), NnErrorKind::RuntimeError | NnErrorKind::InvalidArgument), "{error:?}");
        assert!(error.to_string().len() > 20, "{error}");
        assert_eq!(
            run(&graph, &[("x", &wide), ("w", &floats(&[3, 1], &[1.0; 3]))]).unwrap()[0].1,
            floats(&[1, 1], &[3.0])
        );
    }
}

#[test]
fn a_model_that_cannot_be_loaded_says_why_without_the_hosts_paths() {
    for backend in backends() {
        let kind = |model: &[u8], expected| {
            let error = load(&backend, model).err().unwrap();
            assert_eq!(error.kind(), expected, "{}: {error}", backend.id().name());
            assert!(!error.to_string().contains("model.onnx"), "{error}");
        };
        kind(b"", NnErrorKind::InvalidEncoding);
        kind(b"not a model at all", NnErrorKind::InvalidEncoding);
        kind(&linear()[..60], NnErrorKind::InvalidEncoding);
        kind(&unary("Identity", STRING, STRING, &["n"], &[]), NnErrorKind::UnsupportedOperation);
        let error = load(&backend, &unary("NoSuchOperator", FLOAT, FLOAT, &["n"], &[])).err().unwrap();
        assert!(error.to_string().contains("NoSuchOperator"), "{error}");

        let gone = GraphSource { path: "/nowhere/model.onnx".into(), ..source(&ModelFile::new(b"")) };
        assert_eq!(backend.load(&gone).err().unwrap().kind(), NnErrorKind::NotFound);
        let file = ModelFile::new(&linear());
        let gpu = GraphSource { target: ExecutionTarget::Gpu, ..source(&file) };
        assert_eq!(backend.load(&gpu).err().unwrap().kind(), NnErrorKind::UnsupportedOperation);
    }
}

#[test]
fn weights_in_another_file_are_read_only_from_files_that_are_allowed() {
    let add = |location| {
        let graph = graph(
            &[node("Add", &["x", "w"], &["y"], &[])],
            &[value("x", FLOAT, &["2"])],
            &[value("y", FLOAT, &["2"])],
            &[external_tensor("w", &[2], location)],
        );
        ModelFile::new(&model(&graph))
    };
    for backend in backends() {
        let file = add("weights.bin");
        file.beside("weights.bin", &f32s(&[10.0, 20.0]));
        assert_eq!(backend.load(&source(&file)).err().unwrap().kind(), NnErrorKind::Security);
        let allowed = GraphSource { external_files: vec!["weights.bin".into()], ..source(&file) };
        let graph = backend.load(&allowed).unwrap();
        assert_eq!(run(&graph, &[("x", &floats(&[2], &[1.0, 2.0]))]).unwrap()[0].1, floats(&[2], &[11.0, 22.0]));

        for location in ["../weights.bin", "/etc/passwd", "a/b", "..", ""] {
            let allowed = GraphSource { external_files: vec![location.into()], ..source(&add(location)) };
            let file = add(location);
            let allowed = GraphSource { path: file.path(), ..allowed };
            assert_eq!(backend.load(&allowed).err().unwrap().kind(), NnErrorKind::Security, "{location}");
        }
    }
}

#[test]
fn an_endless_loop_stops_when_cancelled() {
    let Some(backend) = onnxruntime() else { return };
    let body = graph(
        &[node("Identity", &["go"], &["go_on"], &[]), node("Neg", &["v"], &["w"], &[])],
        &[value("i", INT64, &[]), value("go", BOOL, &[]), value("v", FLOAT, &["n"])],
        &[value("go_on", BOOL, &[]), value("w", FLOAT, &["n"])],
        &[],
    );
    let endless = graph(
        &[node("Loop", &["", "go", "x"], &["y"], &[graph_attribute("body", &body)])],
        &[value("go", BOOL, &[]), value("x", FLOAT, &["n"])],
        &[value("y", FLOAT, &["n"])],
        &[],
    );
    let graph = load(&backend, &model(&endless)).unwrap();
    let inputs = vec![
        ("go".to_owned(), Tensor::new(TensorType::U8, vec![], vec![1]).unwrap()),
        ("x".to_owned(), floats(&[1], &[1.0])),
    ];
    let inputs = graph.info().check(inputs).unwrap();
    let cancel = Cancel::default();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| graph.run(inputs.clone(), &cancel));
        std::thread::yield_now();
        cancel.cancel();
        assert_eq!(running.join().unwrap().unwrap_err().kind(), NnErrorKind::Timeout);
    });
    assert_eq!(graph.run(inputs, &cancel).unwrap_err().kind(), NnErrorKind::Timeout, "also before it starts");
}

#[test]
fn a_mutated_model_never_panics_tract() {
    let backend: Arc<dyn Backend> = Arc::new(tract::Tract);
    let file = ModelFile::new(&linear());
    let mut random = fastrand::Rng::with_seed(2);
    for _ in 0..300 {
        let mut bytes = linear();
        // Behind the weights' dimensions: a dimension of 2^60 would only test the allocator.
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..bytes.len() / 3);
            bytes[at] = random.u8(..);
        }
        file.beside("model.onnx", &bytes);
        if let Ok(graph) = backend.load(&source(&file)) {
            let _ = run(&graph, &[("x", &floats(&[1, 3], &[1.0; 3]))]);
        }
    }
}

#[test]
fn a_library_that_is_no_onnx_runtime_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libonnxruntime.so");
    assert!(Backends::discover(Some(&file)).err().unwrap().to_string().contains("libonnxruntime.so"), "absent");
    std::fs::write(&file, "not a library").unwrap();
    assert_eq!(Backends::discover(Some(&file)).err().unwrap().kind(), NnErrorKind::RuntimeError, "text");
    // A real library without ONNX Runtime's entry point: this test's own loader.
    if let Some(other) = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6", "/lib64/libm.so.6"]
        .iter()
        .map(Path::new)
        .find(|path| path.exists())
    {
        assert!(Backends::discover(Some(other)).is_err(), "another library");
    }
}

#[test]
fn the_place_of_the_library_is_chosen_in_order() {
    let cache = || Some(PathBuf::from("/home/x/.cache"));
    let choose = OnnxRuntimePlace::choose;
    assert_eq!(choose(Some(Path::new("/a")), Some("/b".into()), cache()), OnnxRuntimePlace::Named("/a".into()));
    assert_eq!(choose(None, Some("/b".into()), cache()), OnnxRuntimePlace::Named("/b".into()));
    let expected = PathBuf::from("/home/x/.cache/tessera/onnxruntime").join(LIBRARY);
    assert_eq!(choose(None, None, cache()), OnnxRuntimePlace::Cache(expected));
    assert_eq!(choose(None, None, None), OnnxRuntimePlace::Nowhere);
}

#[test]
fn a_choice_or_target_that_is_not_there_is_an_error_and_auto_takes_what_is() {
    let without = Backends {
        tract: Arc::new(tract::Tract),
        onnxruntime: Err("no library".into()),
        llama: Err("no library".into()),
    };
    let id = |choice| without.select(choice, ExecutionTarget::Cpu).map(|backend| backend.id());
    assert_eq!(id(BackendChoice::Auto).unwrap(), BackendId::Tract);
    assert_eq!(id(BackendChoice::Tract).unwrap(), BackendId::Tract);
    let error = id(BackendChoice::OnnxRuntime).unwrap_err();
    assert_eq!(error.kind(), NnErrorKind::UnsupportedOperation);
    assert!(error.to_string().contains("no library"));
    for (target, name) in [(ExecutionTarget::Gpu, "gpu"), (ExecutionTarget::Tpu, "tpu")] {
        let error = without.select(BackendChoice::Auto, target).err().unwrap();
        assert_eq!(error.kind(), NnErrorKind::UnsupportedOperation);
        assert!(error.to_string().contains(name), "{error}");
    }
    let error = without.select(BackendChoice::Tract, ExecutionTarget::Gpu).err().unwrap();
    assert_eq!(error.to_string(), "backend tract has no execution target gpu");
    if onnxruntime().is_some() {
        let with = Backends::discover(None).unwrap();
        let chosen = with.select(BackendChoice::Auto, ExecutionTarget::Cpu).unwrap();
        assert_eq!(chosen.id(), BackendId::OnnxRuntime);
        assert!(chosen.version().starts_with("1."));
    }
}

#[test]
fn a_gpu_that_is_asked_for_and_absent_is_an_error_that_says_what_is_missing() {
    let Some(onnxruntime) = onnxruntime() else { return };
    let parts = Backends::discover(None).unwrap().gpu();
    let missing = match (&parts.provider, &parts.driver) {
        (Err(reason), _) => reason.as_str(),
        (Ok(_), Err(reason)) => reason,
        (Ok(_), Ok(_)) => return eprintln!("SKIPPED: this machine has a GPU"),
    };
    let file = ModelFile::new(&linear());
    let gpu = GraphSource { target: ExecutionTarget::Gpu, ..source(&file) };
    for error in [onnxruntime.check_target(ExecutionTarget::Gpu).unwrap_err(), onnxruntime.load(&gpu).err().unwrap()] {
        assert_eq!(error.kind(), NnErrorKind::UnsupportedOperation);
        assert!(error.to_string().contains("gpu") && error.to_string().contains(missing), "{error}");
    }
    if parts.provider.is_err() {
        assert!(missing.contains("libonnxruntime_providers_cuda.so"), "{missing}");
    }
}
