//! What a deploy finds out about a graph: whether its rows are independent of each other, and what a run costs.
//!
//! A graph is a candidate when the first axis of every input is free. That it may be batched is then shown by running it:
//! rows alone must equal the same rows together, in several orders and mixtures. The rows are those of the golden request
//! with changed values, and made-up ones. A graph that mixes rows only for values that none of these has would pass; a
//! package whose author knows better says `rows_max = 1`.

use std::time::{Duration, Instant};

use super::schedule::{Profile, ROWS_MAX};
use super::{Outputs, rows};
use crate::nn::{Cancel, Dim, ElementType, Graph, GraphInfo, Inputs, Tensor, TensorType};

/// Size that a made-up row gives to an axis that may have any.
const FREE_AXIS_SIZE: u32 = 6;

/// Largest made-up row, in elements.
const ROW_ELEMENTS_MAX: usize = 4 << 20;

/// Timed runs of each size; the quickest counts.
const TIMED_RUNS: usize = 3;

/// A run longer than this is not repeated at twice the size: the deploy would take too long, and the rest is learnt from
/// requests.
const TIMED_RUN_MAX: Duration = Duration::from_millis(100);

/// Differences that the order of a sum can make, relative to the larger value above 1.
fn tolerance(ty: TensorType) -> f64 {
    match ty {
        TensorType::Fp64 => 1e-9,
        TensorType::Fp32 => 1e-4,
        TensorType::Fp16 | TensorType::Bf16 => 2e-2,
        TensorType::U8 | TensorType::I32 | TensorType::I64 => 0.0,
    }
}

/// Runs the graph until it is known whether it can be batched, and what its runs cost. Blocks for a few runs. `sample`
/// holds inputs that the graph is known to take, if there are any. None when `cancel` stopped it: what a stopped run did
/// tells nothing.
pub fn probe(graph: &dyn Graph, sample: Option<&Inputs>, cancel: &Cancel) -> Option<Profile> {
    let profile = find_out(graph, sample, cancel);
    (!cancel.is_cancelled()).then_some(profile)
}

fn find_out(graph: &dyn Graph, sample: Option<&Inputs>, cancel: &Cancel) -> Profile {
    let info = graph.info();
    if graph.schedule().spec().rows_max == Some(1) {
        return timed(
            graph,
            None,
            Profile { finding: "runs alone, as its package asks".to_owned(), ..Profile::default() },
            cancel,
        );
    }
    if let Some(why) = no_candidate(info) {
        return timed(graph, None, Profile { finding: format!("runs alone: {why}"), ..Profile::default() }, cancel);
    }
    let samples = working_samples(graph, sample, cancel);
    let lead = samples.first().map(|(inputs, _)| inputs.clone());
    let profile = match compare(graph, &samples, cancel) {
        Ok(exact) => Profile {
            batchable: true,
            exact,
            finding: format!(
                "can be batched: rows alone equal rows together{}",
                if exact { " bit for bit" } else { " within rounding" }
            ),
            ..Profile::default()
        },
        Err(why) => Profile { finding: format!("runs alone: {why}"), ..Profile::default() },
    };
    timed(graph, lead, profile, cancel)
}

/// Why a graph cannot be batched, as far as its signature tells.
fn no_candidate(info: &GraphInfo) -> Option<String> {
    let mut symbol = None;
    for input in &info.inputs {
        match input.dims.as_deref() {
            Some([Dim::Free(name), ..]) => {
                if let Some(name) = name
                    && *symbol.get_or_insert(name) != name
                {
                    return Some("the first axes of its inputs have different names".to_owned());
                }
            }
            Some(_) => return Some(format!("the first axis of input {:?} is not free", input.name)),
            None => return Some(format!("input {:?} may have any number of axes", input.name)),
        }
    }
    info.inputs.is_empty().then(|| "it has no inputs".to_owned())
}

/// Inputs that the graph takes, as few rows of them as it does: the sample's, else made-up ones.
pub(in crate::nn) fn working_inputs(graph: &dyn Graph, sample: Option<&Inputs>, cancel: &Cancel) -> Option<Inputs> {
    let given = sample.and_then(first_row).into_iter().chain(sample.cloned());
    let made_up = (1..=3).filter_map(|seed| made_up(graph.info(), seed));
    given.chain(made_up).find(|inputs| graph.run(inputs.clone(), cancel).is_ok())
}

/// Single rows that the graph answers, with their answers.
fn working_samples(graph: &dyn Graph, sample: Option<&Inputs>, cancel: &Cancel) -> Vec<(Inputs, Outputs)> {
    let mut candidates = Vec::new();
    if let Some(row) = sample.and_then(first_row) {
        candidates.extend([changed(&row, Change::Reversed), changed(&row, Change::Halved)].into_iter().flatten());
        if graph.schedule().spec().pad.is_some() {
            candidates.extend(shortened(&row, graph));
        }
        candidates.insert(0, row);
    }
    for seed in 1..=3 {
        candidates.extend(made_up(graph.info(), seed));
    }
    let run = |inputs: Inputs| Some((inputs.clone(), graph.run(inputs, cancel).ok()?));
    candidates.into_iter().filter_map(run).collect()
}

/// Compares each lead with the others in runs of two and more; whether all was equal bit for bit.
fn compare(graph: &dyn Graph, samples: &[(Inputs, Outputs)], cancel: &Cancel) -> Result<bool, String> {
    let mut exact = true;
    let mut compared = 0;
    let pad = graph.schedule().spec().pad.as_ref();
    for (index, (lead, _)) in samples.iter().enumerate() {
        // Those that can run with this one, in front of it and behind it, one of them twice.
        let fitting = |(other, _): &&(Inputs, Outputs)| rows::fit(lead, other, pad, graph.info());
        let before = samples[..index].iter().filter(fitting);
        let after = samples[index..].iter().filter(fitting);
        let together: Vec<_> = after.clone().chain(before).chain(after.take(1)).collect();
        if together.len() < 3 {
            continue;
        }
        let inputs: Vec<&Inputs> = together.iter().map(|(inputs, _)| inputs).collect();
        let (joined, layout) = rows::gather(&inputs, pad, graph.info()).map_err(|error| error.to_string())?;
        let outputs = graph
            .run(joined, cancel)
            .map_err(|error| format!("it does not take {} rows that it takes alone: {error}", inputs.len()))?;
        let answers = rows::scatter(outputs, &layout, graph.info())
            .ok_or_else(|| "its outputs do not have a row for each row of its inputs".to_owned())?;
        for ((_, alone), answer) in together.iter().zip(&answers) {
            exact &= equal(alone, answer)?;
        }
        compared += 1;
    }
    match compared {
        0 => Err("no two different rows were found that it takes; a golden request would show some".to_owned()),
        _ => Ok(exact),
    }
}

/// Whether two answers are equal bit for bit; an error when they differ by more than rounding.
fn equal(alone: &Outputs, together: &Outputs) -> Result<bool, String> {
    let mut exact = true;
    for ((name, a), (_, b)) in alone.iter().zip(together) {
        if a == b {
            continue;
        }
        exact = false;
        if a.dims() != b.dims() || a.ty() != b.ty() || !elements(a).zip(elements(b)).all(|(x, y)| close(x, y, a.ty())) {
            return Err(format!("output {name:?} of a row depends on the rows beside it"));
        }
    }
    Ok(exact)
}

fn close(a: f64, b: f64, ty: TensorType) -> bool {
    a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance(ty) * a.abs().max(b.abs()).max(1.0)
}

/// Adds what runs of 1, 2, 4, … rows cost, until a larger one would not pay or take too long.
fn timed(graph: &dyn Graph, row: Option<Inputs>, mut profile: Profile, cancel: &Cancel) -> Profile {
    let Some(row) = row.or_else(|| working_samples(graph, None, cancel).into_iter().next().map(|(row, _)| row)) else {
        return profile;
    };
    let mut size = 1;
    while size <= ROWS_MAX {
        let copies = vec![&row; size as usize];
        let Ok((joined, _)) = rows::gather(&copies, None, graph.info()) else { break };
        let mut best = Duration::MAX;
        for _ in 0..TIMED_RUNS {
            let started = Instant::now();
            if graph.run(joined.clone(), cancel).is_err() {
                return profile;
            }
            best = best.min(started.elapsed());
            if best > TIMED_RUN_MAX {
                break;
            }
        }
        let row_ns = (best.as_nanos() as u64 / u64::from(size)).max(1);
        let pays = profile.row_ns.last().is_none_or(|&before| row_ns < before);
        profile.row_ns.push(row_ns);
        if !profile.batchable || !pays || best > TIMED_RUN_MAX {
            break;
        }
        size *= 2;
    }
    profile
}

/// The first row of some inputs.
fn first_row(inputs: &Inputs) -> Option<Inputs> {
    let rows = rows::rows(inputs)? as usize;
    let tensors = inputs.tensors().iter().map(|tensor| {
        let mut dims = tensor.dims().to_vec();
        dims[0] = 1;
        Tensor::new(tensor.ty(), dims, tensor.data().slice(..tensor.data().len() / rows)).ok()
    });
    Some(Inputs { tensors: tensors.collect::<Option<_>>()? })
}

#[derive(Clone, Copy)]
enum Change {
    /// The same values in the other order.
    Reversed,
    /// Floats halved and moved a little; whole numbers stay, since they may be indexes.
    Halved,
}

/// A row of other values, which the graph may or may not take.
fn changed(row: &Inputs, change: Change) -> Option<Inputs> {
    let tensors = row.tensors().iter().map(|tensor| {
        let size = tensor.ty().size_bytes();
        let mut data = Vec::with_capacity(tensor.data().len());
        match (change, tensor.ty()) {
            (Change::Reversed, _) => tensor.data().rchunks(size).for_each(|element| data.extend_from_slice(element)),
            (Change::Halved, ty) => {
                for (bytes, value) in tensor.data().chunks(size).zip(elements(tensor)) {
                    match ty {
                        TensorType::Fp32 => data.extend_from_slice(&(value as f32 / 2.0 + 0.1).to_le_bytes()),
                        TensorType::Fp64 => data.extend_from_slice(&(value / 2.0 + 0.1).to_le_bytes()),
                        _ => data.extend_from_slice(bytes),
                    }
                }
            }
        }
        Tensor::new(tensor.ty(), tensor.dims().to_vec(), data).ok()
    });
    Some(Inputs { tensors: tensors.collect::<Option<_>>()? })
}

/// The row with half the length where the package says that it may be padded.
fn shortened(row: &Inputs, graph: &dyn Graph) -> Option<Inputs> {
    let pad = graph.schedule().spec().pad.as_ref()?;
    let tensors = row.tensors().iter().zip(&graph.info().inputs).map(|(tensor, info)| match tensor.dims() {
        [rows, length, rest @ ..] if pad.values.contains_key(&info.name) => {
            let kept = length.div_ceil(2).max(1);
            let dims = [&[*rows, kept], rest].concat();
            let bytes = tensor.data().len() / *length as usize * kept as usize;
            Tensor::new(tensor.ty(), dims, tensor.data().slice(..bytes)).ok()
        }
        _ => Some(tensor.clone()),
    });
    Some(Inputs { tensors: tensors.collect::<Option<_>>()? })
}

/// A row of made-up values: small numbers around zero, and only 0 and 1 where they may be indexes or flags.
fn made_up(info: &GraphInfo, seed: u64) -> Option<Inputs> {
    let mut random = fastrand::Rng::with_seed(seed);
    let tensors = info.inputs.iter().map(|input| {
        let size = |dim: &Dim| match dim {
            Dim::Fixed(size) => *size,
            Dim::Free(_) => FREE_AXIS_SIZE,
        };
        let mut dims: Vec<u32> = input.dims.as_deref()?.iter().map(size).collect();
        *dims.first_mut()? = 1;
        let count = dims.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim as usize))?;
        let ty = input.element.travels_as();
        if count > ROW_ELEMENTS_MAX {
            return None;
        }
        let mut data = Vec::with_capacity(count * ty.size_bytes());
        for _ in 0..count {
            let value = random.f32() * 2.0 - 1.0;
            let flag = random.bool();
            match (input.element, ty) {
                (ElementType::Bool | ElementType::Int8, _) | (_, TensorType::U8) => data.push(u8::from(flag)),
                (_, TensorType::I32) => data.extend_from_slice(&i32::from(flag).to_le_bytes()),
                (_, TensorType::I64) => data.extend_from_slice(&i64::from(flag).to_le_bytes()),
                (_, TensorType::Fp64) => data.extend_from_slice(&f64::from(value).to_le_bytes()),
                (_, TensorType::Fp32) => data.extend_from_slice(&value.to_le_bytes()),
                (_, TensorType::Bf16) => data.extend_from_slice(&value.to_le_bytes()[2..]),
                // 1.0 or -1.0.
                (_, TensorType::Fp16) => data.extend_from_slice(&(if flag { 0x3c00u16 } else { 0xbc00 }).to_le_bytes()),
            }
        }
        Tensor::new(ty, dims, data).ok()
    });
    Some(Inputs { tensors: tensors.collect::<Option<_>>()? })
}

/// The elements as numbers, for comparing.
fn elements(tensor: &Tensor) -> impl Iterator<Item = f64> + '_ {
    let ty = tensor.ty();
    tensor.data().chunks_exact(ty.size_bytes()).map(move |bytes| number(ty, bytes))
}

fn number(ty: TensorType, bytes: &[u8]) -> f64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let bits = u64::from_le_bytes(wide);
    match ty {
        TensorType::U8 => bits as f64,
        TensorType::I32 => f64::from(bits as u32 as i32),
        TensorType::I64 => bits as i64 as f64,
        TensorType::Fp32 => f64::from(f32::from_bits(bits as u32)),
        TensorType::Fp64 => f64::from_bits(bits),
        TensorType::Bf16 => half::bf16::from_bits(bits as u16).to_f64(),
        TensorType::Fp16 => half::f16::from_bits(bits as u16).to_f64(),
    }
}
