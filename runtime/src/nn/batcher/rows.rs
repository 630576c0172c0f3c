//! Several requests' tensors as one, and one run's outputs as several requests'.
//!
//! Axis 0 is the batch. Inputs are copied once into the run's own memory; outputs are not copied at all, each request
//! gets its slice, except where padding must be cut off.

use bytes::Bytes;

use super::spec::Padding;
use crate::nn::tensor::size_bytes;
use crate::nn::{Dim, GraphInfo, Inputs, NnError, RANK_MAX, Tensor, TensorInfo, TensorType};

/// Rows that a request brings to a run: the size of axis 0, the same in all its inputs and not 0; otherwise none.
pub(super) fn rows(inputs: &Inputs) -> Option<u32> {
    let mut sizes = inputs.tensors().iter().map(|tensor| tensor.dims().first().copied());
    let first = sizes.next()??;
    (first > 0 && sizes.all(|size| size == Some(first))).then_some(first)
}

/// Whether two requests' inputs may share a run: equal but for the rows, and for lengths of one bucket.
pub(super) fn fit(a: &Inputs, b: &Inputs, padding: Option<&Padding>, info: &GraphInfo) -> bool {
    let pairs = a.tensors().iter().zip(b.tensors()).zip(&info.inputs);
    pairs.into_iter().all(|((a, b), info)| match (a.dims(), b.dims()) {
        ([_, a @ ..], [_, b @ ..]) if a == b => true,
        ([_, a, a_rest @ ..], [_, b, b_rest @ ..]) if a_rest == b_rest => {
            padding.is_some_and(|pad| pad.values.contains_key(&info.name) && pad.bucket(*a) == pad.bucket(*b))
        }
        _ => false,
    })
}

/// One request's part of a run.
#[derive(Debug, Clone, Copy)]
struct Part {
    rows: usize,
    /// Its own length of axis 1, where the run is padded.
    length: usize,
}

/// Where each request's rows are in a run.
#[derive(Debug)]
pub(super) struct Layout {
    parts: Vec<Part>,
    /// Length of axis 1 of the padded inputs, and the model's symbol for it; none when nothing is padded.
    padded: Option<(usize, String)>,
}

/// Puts inputs that [`fit`] each other into one.
///
/// # Errors
/// When they together are larger than this machine can address, or the model does not name the axis that is padded.
pub(super) fn gather(
    requests: &[&Inputs],
    padding: Option<&Padding>,
    info: &GraphInfo,
) -> Result<(Inputs, Layout), NnError> {
    let mut layout = Layout {
        parts: requests.iter().map(|inputs| Part { rows: rows(inputs).unwrap_or(0) as usize, length: 0 }).collect(),
        padded: None,
    };
    let mut tensors = Vec::with_capacity(info.inputs.len());
    for (index, input) in info.inputs.iter().enumerate() {
        let column = || requests.iter().map(|inputs| &inputs.tensors()[index]);
        let longest = column().filter_map(|tensor| tensor.dims().get(1)).max().copied();
        let uneven = column().any(|tensor| tensor.dims().get(1).copied() != longest);
        let fill = padding.and_then(|pad| pad.values.get(&input.name)).filter(|_| uneven);
        if let (Some(_), Some(longest)) = (fill, longest) {
            layout.padded = Some((longest as usize, axis_symbol(input)?));
            for (part, tensor) in layout.parts.iter_mut().zip(column()) {
                part.length = tensor.dims()[1] as usize;
            }
        }
        tensors.push(join(column(), longest, fill.copied())?);
    }
    Ok((Inputs { tensors }, layout))
}

fn axis_symbol(input: &TensorInfo) -> Result<String, NnError> {
    match input.dims.as_deref() {
        Some([_, Dim::Free(Some(symbol)), ..]) => Ok(symbol.clone()),
        _ => Err(NnError::unsupported(format!(
            "input {:?} cannot be padded: the model gives its axis 1 no name",
            input.name
        ))),
    }
}

/// The rows of all tensors under each other, each filled up to the longest.
fn join<'a>(
    column: impl Iterator<Item = &'a Tensor> + Clone,
    longest: Option<u32>,
    fill: Option<i32>,
) -> Result<Tensor, NnError> {
    let too_large =
        || NnError::unsupported("the requests of one run are larger together than this machine can address");
    let Some(first) = column.clone().next() else { return Err(NnError::runtime("a run of no requests")) };
    let mut dims = first.dims().to_vec();
    dims[0] = column.clone().try_fold(0u32, |rows, tensor| rows.checked_add(tensor.dims()[0])).ok_or_else(too_large)?;
    if let (Some(length), Some(longest)) = (dims.get_mut(1), longest) {
        *length = longest;
    }
    let ty = first.ty();
    let mut data = Vec::with_capacity(size_bytes(ty, &dims).ok_or_else(too_large)?);
    for tensor in column {
        match fill {
            Some(fill) if tensor.dims()[1] != dims[1] => {
                let row_bytes = tensor.data().len() / tensor.dims()[0] as usize;
                let inner: usize = dims[2..].iter().map(|&dim| dim as usize).product();
                let missing = (dims[1] - tensor.dims()[1]) as usize * inner;
                for row in 0..tensor.dims()[0] as usize {
                    data.extend_from_slice(&tensor.data()[row * row_bytes..(row + 1) * row_bytes]);
                    fill_with(&mut data, ty, fill, missing);
                }
            }
            _ => data.extend_from_slice(tensor.data()),
        }
    }
    Tensor::new(ty, dims, data)
}

fn fill_with(data: &mut Vec<u8>, ty: TensorType, value: i32, count: usize) {
    let bytes: ([u8; 8], usize) = match ty {
        TensorType::U8 => ([value as u8, 0, 0, 0, 0, 0, 0, 0], 1),
        TensorType::I32 => (pad_bytes(&value.to_le_bytes()), 4),
        TensorType::I64 => (i64::from(value).to_le_bytes(), 8),
        TensorType::Fp32 => (pad_bytes(&(value as f32).to_le_bytes()), 4),
        TensorType::Fp64 => (f64::from(value).to_le_bytes(), 8),
        TensorType::Bf16 => (pad_bytes(&half::bf16::from_f32(value as f32).to_le_bytes()), 2),
        TensorType::Fp16 => (pad_bytes(&half::f16::from_f32(value as f32).to_le_bytes()), 2),
    };
    for _ in 0..count {
        data.extend_from_slice(&bytes.0[..bytes.1]);
    }
}

fn pad_bytes(bytes: &[u8]) -> [u8; 8] {
    let mut padded = [0; 8];
    padded[..bytes.len()].copy_from_slice(bytes);
    padded
}

/// Cuts a run's outputs into those of each request; `None` when an output is not made of the run's rows.
pub(super) fn scatter(
    outputs: Vec<(String, Tensor)>,
    layout: &Layout,
    info: &GraphInfo,
) -> Option<Vec<Vec<(String, Tensor)>>> {
    let total: usize = layout.parts.iter().map(|part| part.rows).sum();
    let mut answers: Vec<Vec<(String, Tensor)>> =
        layout.parts.iter().map(|_| Vec::with_capacity(outputs.len())).collect();
    for ((name, tensor), output) in outputs.into_iter().zip(&info.outputs) {
        if tensor.dims().first().map(|&rows| rows as usize) != Some(total) || tensor.dims().len() > RANK_MAX {
            return None;
        }
        let row_bytes = tensor.data().len() / total.max(1);
        let cut = layout.padded.as_ref().filter(|(_, symbol)| has_symbol(output, symbol)).map(|(length, _)| *length);
        let mut start = 0;
        for (part, answer) in layout.parts.iter().zip(&mut answers) {
            let bytes = tensor.data().slice(start..start + part.rows * row_bytes);
            start += part.rows * row_bytes;
            let mut dims = tensor.dims().to_vec();
            dims[0] = part.rows as u32;
            let bytes = match cut {
                Some(length) if part.length < length && dims.get(1) == Some(&(length as u32)) => {
                    dims[1] = part.length as u32;
                    shorten(&bytes, row_bytes, row_bytes / length * part.length)
                }
                _ => bytes,
            };
            answer.push((name.clone(), Tensor::new(tensor.ty(), dims, bytes).ok()?));
        }
    }
    Some(answers)
}

/// Whether an output's axis 1 is the one that the inputs were padded along.
fn has_symbol(output: &TensorInfo, symbol: &str) -> bool {
    matches!(output.dims.as_deref(), Some([_, Dim::Free(Some(name)), ..]) if name == symbol)
}

fn shorten(rows: &Bytes, row_bytes: usize, kept_bytes: usize) -> Bytes {
    let mut kept = Vec::with_capacity(rows.len() / row_bytes.max(1) * kept_bytes);
    for row in rows.chunks_exact(row_bytes.max(1)) {
        kept.extend_from_slice(&row[..kept_bytes]);
    }
    kept.into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::nn::ElementType;

    fn info(dims: &[Dim]) -> GraphInfo {
        let tensor =
            |name: &str| TensorInfo { name: name.into(), element: ElementType::I32, dims: Some(dims.to_vec()) };
        GraphInfo { inputs: vec![tensor("x")], outputs: vec![tensor("y")], ..GraphInfo::default() }
    }

    fn free(symbol: &str) -> Dim {
        Dim::Free(Some(symbol.into()))
    }

    fn ints(dims: &[u32], values: &[i32]) -> Inputs {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Inputs { tensors: vec![Tensor::new(TensorType::I32, dims.to_vec(), data).unwrap()] }
    }

    fn values(tensor: &Tensor) -> Vec<i32> {
        tensor.data().chunks(4).map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    #[test]
    fn rows_go_together_and_come_apart_without_a_copy() {
        let info = info(&[free("n"), Dim::Fixed(2)]);
        let (a, b) = (ints(&[1, 2], &[1, 2]), ints(&[2, 2], &[3, 4, 5, 6]));
        assert!(fit(&a, &b, None, &info));
        let (joined, layout) = gather(&[&a, &b], None, &info).unwrap();
        assert_eq!((joined.tensors()[0].dims(), values(&joined.tensors()[0])), (&[3, 2][..], vec![1, 2, 3, 4, 5, 6]));

        let output = joined.tensors()[0].clone();
        let address = output.data().as_ptr();
        let answers = scatter(vec![("y".into(), output)], &layout, &info).unwrap();
        assert_eq!(answers[0][0].1.data().as_ptr(), address, "a slice of the run's output");
        assert_eq!(values(&answers[1][0].1), [3, 4, 5, 6]);
        assert_eq!(answers[1][0].1.dims(), [2, 2]);
    }

    #[test]
    fn an_output_that_is_not_made_of_rows_is_told() {
        let info = info(&[free("n"), Dim::Fixed(1)]);
        let (a, b) = (ints(&[1, 1], &[1]), ints(&[1, 1], &[2]));
        let (_, layout) = gather(&[&a, &b], None, &info).unwrap();
        let sum = Tensor::new(TensorType::I32, vec![1, 1], vec![0; 4]).unwrap();
        assert!(scatter(vec![("y".into(), sum)], &layout, &info).is_none());
    }

    #[test]
    fn sequences_of_one_bucket_are_filled_up_and_cut_again() {
        let info = info(&[free("n"), free("length")]);
        let pad = Padding { buckets: vec![2, 4], values: BTreeMap::from([("x".to_owned(), -1)]) };
        let (a, b) = (ints(&[2, 3], &[1, 2, 3, 4, 5, 6]), ints(&[1, 4], &[7, 8, 9, 10]));
        assert!(fit(&a, &b, Some(&pad), &info) && !fit(&a, &b, None, &info));
        assert!(!fit(&a, &ints(&[1, 2], &[1, 2]), Some(&pad), &info), "another bucket");
        let (joined, layout) = gather(&[&a, &b], Some(&pad), &info).unwrap();
        assert_eq!(values(&joined.tensors()[0]), [1, 2, 3, -1, 4, 5, 6, -1, 7, 8, 9, 10]);

        let answers = scatter(vec![("y".into(), joined.tensors()[0].clone())], &layout, &info).unwrap();
        assert_eq!((answers[0][0].1.dims(), values(&answers[0][0].1)), (&[2, 3][..], vec![1, 2, 3, 4, 5, 6]));
        assert_eq!(values(&answers[1][0].1), [7, 8, 9, 10]);
    }

    #[test]
    fn padding_is_right_in_every_element_type() {
        let filled = |ty| {
            let mut data = Vec::new();
            fill_with(&mut data, ty, -3, 2);
            data
        };
        assert_eq!(filled(TensorType::I64), [(-3i64).to_le_bytes(), (-3i64).to_le_bytes()].concat());
        assert_eq!(filled(TensorType::Fp32), [(-3f32).to_le_bytes(), (-3f32).to_le_bytes()].concat());
        assert_eq!(filled(TensorType::Fp16), [0x00, 0xc2, 0x00, 0xc2]);
        assert_eq!(filled(TensorType::Bf16), [0x40, 0xc0, 0x40, 0xc0]);
    }

    #[test]
    fn requests_without_rows_of_their_own_have_none() {
        assert_eq!(rows(&ints(&[3, 1], &[1, 2, 3])), Some(3));
        assert_eq!(rows(&ints(&[0, 1], &[])), None);
        assert_eq!(rows(&ints(&[], &[1])), None);
        let mixed = Inputs { tensors: [ints(&[2], &[1, 2]).tensors, ints(&[1], &[1]).tensors].concat() };
        assert_eq!(rows(&mixed), None);
    }
}
