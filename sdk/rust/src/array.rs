//! Tensors from and to arrays of `ndarray`.

use ndarray::{ArrayBase, ArrayViewD, CowArray, Data, Dimension, IxDyn};

use crate::{Element, Error, Tensor};

impl<'a> Tensor<'a> {
    /// A tensor of an array's values. They are borrowed where they lie in row-major order, and copied into it otherwise.
    pub fn from_array<T, S, D>(array: &'a ArrayBase<S, D>) -> Result<Self, Error>
    where
        T: Element,
        S: Data<Elem = T>,
        D: Dimension,
    {
        let too_long =
            |_| Error::invalid_input(format!("an array of shape {:?} is too large for a tensor", array.shape()));
        let dims: Vec<u32> =
            array.shape().iter().map(|&len| u32::try_from(len)).collect::<Result<_, _>>().map_err(too_long)?;
        match array.as_slice() {
            Some(values) => Tensor::new(&dims, values),
            None => Tensor::from_vec(&dims, array.iter().copied().collect()),
        }
    }

    /// The values as an array of the tensor's shape: a view, unless the bytes are not aligned for `T`.
    pub fn as_array<T: Element>(&self) -> Result<CowArray<'_, T, IxDyn>, Error> {
        let shape = IxDyn(&self.dims().iter().map(|&len| len as usize).collect::<Vec<_>>());
        let shaped = |error| Error::model(format!("a tensor of shape {:?} is no array: {error}", self.dims()));
        Ok(match self.as_slice::<T>()? {
            std::borrow::Cow::Borrowed(values) => ArrayViewD::from_shape(shape, values).map_err(shaped)?.into(),
            std::borrow::Cow::Owned(values) => ndarray::ArrayD::from_shape_vec(shape, values).map_err(shaped)?.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Axis, arr2};

    #[test]
    fn arrays_come_back_as_they_went_in() {
        let array = arr2(&[[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0]]);
        let tensor = Tensor::from_array(&array).unwrap();
        assert_eq!(tensor.dims(), [2, 3]);
        assert_eq!(tensor.bytes().as_ptr(), array.as_ptr().cast(), "borrowed");
        let back = tensor.as_array::<f32>().unwrap();
        assert!(back.is_view());
        assert_eq!(back.sum_axis(Axis(0)).as_slice().unwrap(), [5.0, 7.0, 9.0]);
    }

    #[test]
    fn what_lies_otherwise_is_put_in_order() {
        let array = arr2(&[[1i64, 2, 3], [4, 5, 6]]);
        let transposed = array.t();
        let tensor = Tensor::from_array(&transposed).unwrap();
        assert_eq!(
            (tensor.dims(), tensor.as_slice::<i64>().unwrap().as_ref()),
            ([3, 2].as_slice(), [1, 4, 2, 5, 3, 6].as_slice())
        );
    }

    #[test]
    fn another_type_is_an_error() {
        let array = arr2(&[[1.0f32]]);
        assert!(Tensor::from_array(&array).unwrap().as_array::<i64>().is_err());
    }
}
