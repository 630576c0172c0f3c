//! The batcher as a whole: answers never change, neighbours never wait long, and nobody fails for another.

use super::queue::{BatchLimit, FairQueue};
use super::*;
use crate::nn::fake::{FakeGraph, run_until_stopped, tensor_info};
use crate::nn::{ElementType, GraphInfo, NnErrorKind, TensorType};

/// What is wrong with a graph.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Each row is added to by the one before it.
    MixesRows,
    /// One output row, whatever comes in.
    Sums,
    /// Runs until it is stopped.
    Endless,
}

/// `y = 2 x + position in the row`, one output row for each input row; rows of a negative first value are refused.
fn doubled(inputs: &Inputs, fault: Fault, cancel: &Cancel) -> Result<Outputs, NnError> {
    if fault == Fault::Endless {
        return run_until_stopped(cancel);
    }
    let x = &inputs.tensors()[0];
    let width = x.dims()[1] as usize;
    let mut values = floats(x);
    if values.chunks(width).any(|row| row[0] < 0.0) {
        return Err(NnError::invalid_argument("a negative row"));
    }
    for (index, value) in values.iter_mut().enumerate() {
        *value = *value * 2.0 + (index % width) as f32;
    }
    let mut dims = x.dims().to_vec();
    match fault {
        Fault::None | Fault::Endless => {}
        Fault::MixesRows => (width..values.len()).for_each(|index| values[index] += values[index - width]),
        Fault::Sums => {
            dims[0] = 1;
            values.truncate(width);
        }
    }
    Ok(vec![("y".to_owned(), tensor(&dims, &values))])
}

fn tensor(dims: &[u32], values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::new(TensorType::Fp32, dims.to_vec(), data).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.data().chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn double(fault: Fault) -> Arc<FakeGraph> {
    double_with(fault, BatchSpec::default())
}

fn double_with(fault: Fault, spec: BatchSpec) -> Arc<FakeGraph> {
    let info = |name: &str| vec![tensor_info(name, ElementType::Fp32, 2)];
    Arc::new(FakeGraph {
        info: GraphInfo { inputs: info("x"), outputs: info("y"), ..GraphInfo::default() },
        schedule: Schedule::new(spec),
        ..FakeGraph::new(move |inputs, cancel| doubled(inputs, fault, cancel))
    })
}

/// A graph of which it is known that larger runs pay, with a bound that no measurement of a busy machine moves.
fn batching(fault: Fault) -> Arc<FakeGraph> {
    let graph = double_with(fault, BatchSpec { rows_max: Some(16), pad: None });
    graph.schedule.adopt(&Profile { batchable: true, row_ns: vec![6400, 3200, 1600, 800, 400], ..Profile::default() });
    graph
}

fn work(graph: &Arc<FakeGraph>, tenant: u64, x: &Tensor) -> (Work, oneshot::Receiver<Answer>) {
    let (tx, rx) = oneshot::channel();
    let inputs = graph.info.check(vec![("x".to_owned(), x.clone())]).unwrap();
    let (rows, deadline) = (inputs.rows(), Instant::now() + Duration::from_secs(60));
    let graph: Arc<dyn Graph> = graph.clone();
    let queued = Instant::now();
    (Work { tenant: Tenant(tenant), graph, inputs, rows, deadline, queued, cancel: Arc::default(), tx }, rx)
}

const LIMIT: BatchLimit = BatchLimit { rows: 64, run_ns: u64::MAX };

fn run_all(queue: &mut FairQueue, counters: &Counters) {
    while let Some(batch) = queue.take(LIMIT, &mut Vec::new()) {
        assert!(run(batch, Stop::WhenUnwanted, counters).is_empty());
    }
}

fn answer(mut rx: oneshot::Receiver<Answer>) -> Result<Outputs, NnError> {
    match rx.try_recv().expect("everybody is answered") {
        Answer::Done(result) => result,
        Answer::Elsewhere(_) => panic!("it was done here"),
    }
}

#[test]
fn random_interleavings_answer_what_each_request_alone_is_answered() {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let graphs = [batching(Fault::None), batching(Fault::None)];
        let mut queue = FairQueue::default();
        let mut waiting = Vec::new();
        let counters = Counters::default();
        for _ in 0..random.usize(1..60) {
            let graph = &graphs[random.usize(0..2)];
            let dims = [random.u32(1..6), random.u32(1..4)];
            let values: Vec<f32> = (0..dims[0] * dims[1]).map(|_| random.f32() * 1.2 - 0.02).collect();
            let x = tensor(&dims, &values);
            let alone = graph.run(graph.info.check(vec![("x".to_owned(), x.clone())]).unwrap(), &Cancel::default());
            let (work, answer) = work(graph, random.u64(0..3), &x);
            queue.push(work);
            waiting.push((alone, answer));
            if random.u8(0..10) == 0 {
                run_all(&mut queue, &counters);
            }
        }
        run_all(&mut queue, &counters);
        assert_eq!((queue.len(), queue.rows()), (0, 0));
        for (alone, together) in waiting {
            match (alone, answer(together)) {
                (Ok(alone), Ok(together)) => assert_eq!(alone, together, "bit for bit"),
                (Err(alone), Err(together)) => assert_eq!(alone.kind(), together.kind()),
                (alone, together) => panic!("alone {alone:?}, together {together:?}"),
            }
        }
    }
}

#[test]
fn one_run_answers_all_that_fit_and_mixed_shapes_do_not_break_it_up() {
    let graph = batching(Fault::None);
    let mut queue = FairQueue::default();
    let mut answers = Vec::new();
    for index in 0..16 {
        let (work, rx) = work(&graph, 1, &tensor(&[1, 1 + index % 2], &[1.0, 1.0][..1 + index as usize % 2]));
        queue.push(work);
        answers.push(rx);
    }
    run_all(&mut queue, &Counters::default());
    assert_eq!(graph.rows(), [8, 8]);
    answers.into_iter().for_each(|rx| drop(answer(rx).unwrap()));
}

#[test]
fn a_workspace_at_fifty_times_the_rate_delays_another_by_one_run_at_most() {
    let graph = batching(Fault::None);
    let mut queue = FairQueue::default();
    let x = tensor(&[1, 1], &[1.0]);
    let mut greedy = Vec::new();
    let mut waited = Vec::new();
    for _ in 0..200 {
        for _ in 0..50 {
            let (work, rx) = work(&graph, 1, &x);
            queue.push(work);
            greedy.push(rx);
        }
        let (polite, mut rx) = work(&graph, 2, &x);
        queue.push(polite);
        // The backend is a little slower than the load, so the queue of the first grows without end.
        let mut runs = 0;
        for _ in 0..2 {
            let batch = queue.take(LIMIT, &mut Vec::new()).unwrap();
            assert!(run(batch, Stop::WhenUnwanted, &Counters::default()).is_empty());
            runs += 1;
            if rx.try_recv().is_ok() {
                waited.push(runs);
                break;
            }
        }
    }
    assert!(queue.len() > 2000, "the first one is overloaded");
    assert_eq!(waited, [1; 200], "answered by the first run after it came");
}

#[test]
fn time_is_shared_evenly_between_workspaces_of_different_models() {
    let (quick, slow) = (double(Fault::None), double(Fault::None));
    quick.schedule.adopt(&Profile { row_ns: vec![1_000], ..Profile::default() });
    slow.schedule.adopt(&Profile { row_ns: vec![10_000], ..Profile::default() });
    let mut queue = FairQueue::default();
    let x = tensor(&[1, 1], &[1.0]);
    let mut kept = Vec::new();
    for _ in 0..1000 {
        for (graph, tenant) in [(&quick, 1), (&slow, 2)] {
            let (work, rx) = work(graph, tenant, &x);
            queue.push(work);
            kept.push(rx);
        }
    }
    let mut taken = [0, 0];
    for _ in 0..220 {
        let batch = queue.take(LIMIT, &mut Vec::new()).unwrap();
        taken[batch[0].tenant.0 as usize - 1] += 1;
    }
    assert_eq!(taken, [200, 20]);
}

/// The workspace of the next batch, and what ends it, when it is known how long it took.
fn take_one(queue: &mut FairQueue) -> (u64, impl FnOnce(&mut FairQueue, u64) + use<>) {
    let batch = queue.take(LIMIT, &mut Vec::new()).unwrap();
    let charged = batch.iter().map(|work| (work.tenant, queue::charge(work))).collect::<Vec<_>>();
    queue.hold(&charged);
    (batch[0].tenant.0, move |queue, took_ns| queue.settle(&charged, took_ns))
}

#[test]
fn a_run_costs_what_it_took_whatever_was_expected_of_it() {
    // One graph of which nothing is known, since it never succeeds, and one that is known.
    let graphs = [double(Fault::None), batching(Fault::None)];
    graphs[1].schedule.adopt(&Profile { row_ns: vec![10_000], ..Profile::default() });
    let mut queue = FairQueue::default();
    let mut kept = Vec::new();
    let mut push = |queue: &mut FairQueue, tenant: usize| {
        let (work, rx) = work(&graphs[tenant - 1], tenant as u64, &tensor(&[1, 1], &[1.0]));
        queue.push(work);
        kept.push(rx);
    };

    // The first has never more than one that waits, and the second runs beside it for as long.
    push(&mut queue, 1);
    (0..200).for_each(|_| push(&mut queue, 2));
    let (first, end) = take_one(&mut queue);
    assert_eq!(first, 1);
    for _ in 0..100 {
        let (next, end) = take_one(&mut queue);
        assert_eq!(next, 2);
        end(&mut queue, 10_000);
    }
    end(&mut queue, 995_000);
    push(&mut queue, 1);
    let (next, end) = take_one(&mut queue);
    assert_eq!(next, 1, "it has had as much");

    // It has had twice as much now, and waits for as long.
    end(&mut queue, 300_000);
    push(&mut queue, 1);
    for _ in 0..29 {
        let (next, end) = take_one(&mut queue);
        assert_eq!(next, 2);
        end(&mut queue, 10_000);
    }
}

#[test]
fn one_that_comes_back_has_no_credit_for_its_absence() {
    let graph = batching(Fault::None);
    graph.schedule.adopt(&Profile { row_ns: vec![1_000], ..Profile::default() });
    let mut queue = FairQueue::default();
    let x = tensor(&[1, 1], &[1.0]);
    let mut kept = Vec::new();
    let mut push = |queue: &mut FairQueue, tenant| {
        let (work, rx) = work(&graph, tenant, &x);
        queue.push(work);
        kept.push(rx);
    };
    (0..100).for_each(|_| push(&mut queue, 1));
    (0..50).for_each(|_| drop(queue.take(LIMIT, &mut Vec::new())));
    (0..100).for_each(|_| push(&mut queue, 2));
    let mut next = || queue.take(LIMIT, &mut Vec::new()).unwrap()[0].tenant.0;
    let order: Vec<u64> = (0..20).map(|_| next()).collect();
    assert_eq!(order.iter().filter(|&&tenant| tenant == 2).count(), 10, "{order:?}");
}

#[test]
fn a_row_that_fails_fails_nobody_else() {
    let graph = batching(Fault::None);
    let mut queue = FairQueue::default();
    let rows = [1.0, -1.0, 3.0].map(|value| work(&graph, 1, &tensor(&[1, 1], &[value])));
    let answers = rows.map(|(work, rx)| {
        queue.push(work);
        rx
    });
    run_all(&mut queue, &Counters::default());
    let [first, second, third] = answers.map(answer);
    assert_eq!(floats(&first.unwrap()[0].1), [2.0]);
    assert_eq!(second.unwrap_err().kind(), NnErrorKind::InvalidArgument);
    assert_eq!(floats(&third.unwrap()[0].1), [6.0]);
}

#[test]
fn what_nobody_waits_for_never_runs() {
    let graph = batching(Fault::None);
    let mut queue = FairQueue::default();
    let x = tensor(&[1, 1], &[1.0]);
    let (gone, rx) = work(&graph, 1, &x);
    drop(rx);
    let (expired, _late) = work(&graph, 1, &x);
    let (wanted, rx) = work(&graph, 1, &x);
    queue.push(gone);
    queue.push(Work { deadline: Instant::now(), ..expired });
    queue.push(wanted);
    let mut dropped = Vec::new();
    let batch = queue.take(LIMIT, &mut dropped).unwrap();
    assert_eq!((batch.len(), dropped.len()), (1, 2));
    assert!(run(batch, Stop::WhenUnwanted, &Counters::default()).is_empty());
    answer(rx).unwrap();
    assert_eq!(graph.rows(), [1]);
}

#[test]
fn a_graph_that_turns_out_to_mix_rows_answers_alone_from_then_on() {
    let graph = batching(Fault::Sums);
    let mut queue = FairQueue::default();
    let x = tensor(&[1, 1], &[1.0]);
    let answers: Vec<_> = (0..4)
        .map(|_| {
            let (work, rx) = work(&graph, 1, &x);
            queue.push(work);
            rx
        })
        .collect();
    run_all(&mut queue, &Counters::default());
    assert_eq!(graph.rows(), [4, 1, 1, 1, 1]);
    answers.into_iter().for_each(|rx| assert_eq!(floats(&answer(rx).unwrap()[0].1), [2.0]));
    assert!(!graph.schedule.batchable());
}

#[test]
fn a_deploy_proves_independent_rows_and_finds_dependent_ones() {
    let profile = probe(&*double(Fault::None), None, &Cancel::default()).unwrap();
    assert!(profile.batchable && profile.exact, "{profile:?}");
    assert!(!profile.row_ns.is_empty());
    let mixes = probe(&*double(Fault::MixesRows), None, &Cancel::default()).unwrap();
    assert!(!mixes.batchable && mixes.finding.contains("depends on the rows beside it"), "{mixes:?}");
    let sums = probe(&*double(Fault::Sums), None, &Cancel::default()).unwrap();
    assert!(!sums.batchable && sums.finding.contains("a row for each row"), "{sums:?}");
}

#[test]
fn a_graph_that_runs_for_ever_does_not_hold_up_its_deploy() {
    let cancel = Cancel::default();
    std::thread::scope(|scope| {
        let probing = scope.spawn(|| probe(&*double(Fault::Endless), None, &cancel));
        cancel.cancel();
        assert_eq!(probing.join().unwrap(), None, "nothing is known of it");
    });
}

#[test]
fn a_sample_shows_what_made_up_rows_cannot() {
    // Takes nothing that begins with a negative number, which made-up rows do half of the time.
    let graph = double(Fault::None);
    let sample = graph.info.check(vec![("x".to_owned(), tensor(&[2, 3], &[0.5, -0.1, 0.7, 1.0, 2.0, 3.0]))]).unwrap();
    let profile = probe(&*graph, Some(&sample), &Cancel::default()).unwrap();
    assert!(profile.batchable, "{profile:?}");
    let widths: Vec<usize> = graph.rows().into_iter().map(|rows| rows as usize).collect();
    assert!(widths.contains(&3) || widths.contains(&4), "rows ran together: {widths:?}");
}
