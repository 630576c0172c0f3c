//! The converted form of a model against the model itself: the same answers, before, while and after its weights are
//! packed, and no answer lost when its file is damaged. Skipped, saying so, where ONNX Runtime is absent.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::*;
use crate::nn::backends::Backends;
use crate::nn::test_models::*;
use crate::nn::{BatchSpec, Cancel, LoadHost, SequenceSpec, Tensor, TensorType};

pub(super) fn library() -> Option<&'static Library> {
    let backends = Backends::discover(None).unwrap();
    if let Some(reason) = backends.onnxruntime_absent() {
        assert!(std::env::var_os("CI").is_none(), "CI must test ONNX Runtime: {reason}");
        eprintln!("SKIPPED for ONNX Runtime: {reason}");
    }
    LIBRARY.get()
}

/// A model, and where its converted form lies.
struct Converted {
    file: ModelFile,
    source: GraphSource,
}

impl Converted {
    fn new(library: &'static Library, model: &[u8]) -> Self {
        let file = ModelFile::new(model);
        let converted = file.path().with_extension("graph");
        let source = source(file.path(), Some(converted.clone()));
        OnnxRuntime(library).convert(&source, &converted).unwrap();
        Self { file, source }
    }

    fn path(&self) -> PathBuf {
        self.source.converted.clone().unwrap()
    }

    fn original(&self, library: &'static Library) -> Arc<dyn Graph> {
        OnnxRuntime(library).load(&source(self.file.path(), None)).unwrap()
    }

    fn load(&self, library: &'static Library) -> Arc<dyn Graph> {
        OnnxRuntime(library).load(&self.source).unwrap()
    }
}

pub(super) fn source(path: PathBuf, converted: Option<PathBuf>) -> GraphSource {
    GraphSource {
        path,
        external_files: vec![],
        target: ExecutionTarget::Cpu,
        converted,
        batch: BatchSpec::default(),
        intra_op_threads: 1,
        sequences: SequenceSpec::default(),
        host: LoadHost::default(),
    }
}

fn random_input(random: &mut fastrand::Rng, rows: u32, columns: u32) -> Tensor {
    let values: Vec<f32> = (0..rows * columns).map(|_| random.f32() * 4.0 - 2.0).collect();
    Tensor::new(TensorType::Fp32, vec![rows, columns], f32s(&values)).unwrap()
}

fn run(graph: &dyn Graph, x: &Tensor) -> Tensor {
    let inputs = graph.info().check(vec![("x".to_owned(), x.clone())]).unwrap();
    graph.run(inputs, &Cancel::default()).unwrap().remove(0).1
}

#[track_caller]
fn assert_close(one: &Tensor, other: &Tensor) {
    assert_eq!((one.ty(), one.dims()), (other.ty(), other.dims()));
    for (a, b) in one.data().chunks_exact(4).zip(other.data().chunks_exact(4)) {
        let [a, b] = [a, b].map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        assert!((a - b).abs() <= 1e-5 + 1e-4 * b.abs(), "{a} and {b}");
    }
}

#[test]
fn a_converted_model_answers_like_the_model() {
    let Some(library) = library() else { return };
    let mut random = fastrand::Rng::with_seed(4);
    let small = |op| (unary(op, FLOAT, FLOAT, &["batch", "3"], &[]), 3);
    let models = [(linear(), 3), small("Softmax"), small("Tanh"), small("Identity"), (wide(), 512)];
    for (model, columns) in models {
        let converted = Converted::new(library, &model);
        let (original, graph) = (converted.original(library), converted.load(library));
        assert_eq!(original.info(), graph.info());
        for rows in [1, 2, 7, 33] {
            let x = random_input(&mut random, rows, columns);
            assert_close(&run(&*graph, &x), &run(&*original, &x));
        }
        assert!(converted.path().exists(), "it was used");
    }
}

#[test]
fn a_run_divided_between_threads_answers_like_one_that_is_not() {
    let Some(library) = library() else { return };
    let converted = Converted::new(library, &wide());
    let x = random_input(&mut fastrand::Rng::with_seed(7), 33, 512);
    let expected = run(&*converted.original(library), &x);
    for source in [&converted.source, &source(converted.file.path(), None)] {
        let graph = OnnxRuntime(library).load(&GraphSource { intra_op_threads: 3, ..source.clone() }).unwrap();
        assert_eq!(graph.intra_op_threads(), 3);
        // Also beyond the runs after which its weights are packed.
        for _ in 0..30 {
            assert_close(&run(&*graph, &x), &expected);
        }
    }
}

#[test]
fn a_damaged_or_absent_converted_form_gives_way_to_the_model() {
    let Some(library) = library() else { return };
    let converted = Converted::new(library, &wide());
    let good = std::fs::read(converted.path()).unwrap();
    let x = random_input(&mut fastrand::Rng::with_seed(5), 2, 512);
    let expected = run(&*converted.original(library), &x);
    let damaged: [&[u8]; 6] =
        [b"", b"no graph", &good[..100], &good[..good.len() / 2], &good[..good.len() - 5000], &good[8..]];
    for bytes in damaged {
        std::fs::write(converted.path(), bytes).unwrap();
        assert_close(&run(&*converted.load(library), &x), &expected);
        assert!(!converted.path().exists(), "out of the way of the next conversion: {} bytes", bytes.len());
    }
    assert_close(&run(&*converted.load(library), &x), &expected);
}

#[test]
fn weights_are_packed_while_many_threads_run_the_graph() {
    let Some(library) = library() else { return };
    let converted = Converted::new(library, &wide());
    let x = random_input(&mut fastrand::Rng::with_seed(6), 3, 512);
    let expected = run(&*converted.original(library), &x);
    let info = onnx_file::inspect(&converted.file.path(), &[]).unwrap();
    let (loaded, packing) = library.open(&converted.source).unwrap();
    assert!(packing.is_some(), "too large to be packed at once");
    let graph = Session::new(library, info, loaded, packing, 0, Schedule::new(BatchSpec::default())).unwrap();

    let in_place = graph.current.load_full();
    let packed = || !Arc::ptr_eq(&graph.current.load_full(), &in_place);
    let kept = run(&graph, &x);
    let deadline = Instant::now() + Duration::from_secs(60);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while !packed() && Instant::now() < deadline {
                    assert_close(&run(&graph, &x), &expected);
                }
                for _ in 0..20 {
                    assert_close(&run(&graph, &x), &expected);
                }
            });
        }
    });
    assert!(packed());
    drop((in_place, graph, converted));
    assert_close(&kept, &expected);
}

#[test]
fn a_graph_may_be_dropped_while_it_is_packed() {
    let Some(library) = library() else { return };
    let converted = Converted::new(library, &wide());
    let x = random_input(&mut fastrand::Rng::with_seed(7), 1, 512);
    for _ in 0..20 {
        let graph = converted.load(library);
        for _ in 0..12 {
            run(&*graph, &x);
        }
    }
}

#[test]
fn the_first_model_is_one_that_the_tests_know() {
    assert_eq!(FIRST_MODEL, unary("Identity", FLOAT, FLOAT, &["n"], &[]));
}

/// Milliseconds to load a graph, run it first, and run it then; the median of several loads.
///
/// `TESSERA_MODELS=… cargo test --release -p tessera --lib cold_start_of_real_models -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn cold_start_of_real_models() {
    let (Some(library), Some(models)) = (library(), std::env::var_os("TESSERA_MODELS")) else { return };
    for name in ["iris", "filetype", "minilm"] {
        let model = PathBuf::from(&models).join(name).join("model.onnx");
        let folder = tempfile::tempdir().unwrap();
        let converted = folder.path().join("model.graph");
        OnnxRuntime(library).convert(&source(model.clone(), None), &converted).unwrap();
        for (form, converted) in [("model", None), ("converted", Some(converted))] {
            let mut figures = (0..9).map(|_| cold_start(library, &source(model.clone(), converted.clone())));
            let figures: Vec<[f64; 4]> = figures.by_ref().collect();
            let median = |column: usize| {
                let mut column: Vec<f64> = figures.iter().map(|row| row[column]).collect();
                column.sort_by(f64::total_cmp);
                column[column.len() / 2]
            };
            let [load, first, second, packed] = [0, 1, 2, 3].map(median);
            println!(
                "{name:9} {form:10} load {load:8.3}  first run {first:7.3}  second {second:7.3}  packed {packed:7.3}"
            );
        }
    }
}

fn cold_start(library: &'static Library, source: &GraphSource) -> [f64; 4] {
    let ms = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
    let begun = Instant::now();
    let graph = OnnxRuntime(library).load(source).unwrap();
    let load = ms(begun);
    let run_once = || {
        let inputs = graph.info().inputs.iter().map(|input| (input.name.clone(), zeros(input)));
        let inputs = graph.info().check(inputs.collect()).unwrap();
        let begun = Instant::now();
        graph.run(inputs, &Cancel::default()).unwrap();
        ms(begun)
    };
    let (first, second) = (run_once(), run_once());
    // Enough to be packed, which may take a while.
    for _ in 0..30 {
        run_once();
    }
    [load, first, second, run_once()]
}

/// A tensor that fits an input: 32 for what is free, but one row.
fn zeros(input: &crate::nn::TensorInfo) -> Tensor {
    use crate::nn::Dim;
    let dims = input.dims.iter().flatten().enumerate().map(|(axis, dim)| match dim {
        Dim::Fixed(size) => *size,
        Dim::Free(_) => [1, 32][axis.min(1)],
    });
    let (ty, dims) = (input.element.travels_as(), dims.collect::<Vec<u32>>());
    let bytes = dims.iter().product::<u32>() as usize * ty.size_bytes();
    Tensor::new(ty, dims, vec![0; bytes]).unwrap()
}
