//! Bodies of the Open Inference Protocol: JSON, and behind it the bytes of the tensors that the JSON does not spell out.
//!
//! Clients say in the header `Inference-Header-Content-Length` where the JSON ends. Between host and guest the content
//! type says so, both ways: `application/octet-stream; inference-header-content-length=N`. What arrives over gRPC is in
//! this form too, and is to be answered in it.

use crate::{Error, Request, Response};

const LENGTH: &str = "inference-header-content-length";

/// The tensors behind the JSON, to be taken in its order.
#[derive(Debug, Clone, Copy)]
pub struct TensorBytes<'a>(&'a [u8]);

impl<'a> TensorBytes<'a> {
    /// The bytes of the next tensor; none where fewer are left.
    pub fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    /// The bytes that are left.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether all were taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Request {
    /// The JSON of the request, and the tensors behind it: none in the form that is JSON alone.
    pub fn inference(&self) -> Result<(&[u8], TensorBytes<'_>), Error> {
        let body = self.bytes()?;
        let Some(length) = json_length(self.content_type())? else { return Ok((body, TensorBytes(&[]))) };
        let (json, tensors) = body.split_at_checked(length).ok_or_else(|| {
            let bytes = body.len();
            Error::invalid_input(format!("Inference-Header-Content-Length is {length}, but the body has {bytes} bytes"))
        })?;
        Ok((json, TensorBytes(tensors)))
    }
}

fn json_length(content_type: &str) -> Result<Option<usize>, Error> {
    let parameters = content_type.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    let mut lengths = parameters.filter(|(name, _)| name.trim().eq_ignore_ascii_case(LENGTH));
    let Some((_, length)) = lengths.next() else { return Ok(None) };
    let length = length.trim();
    length.parse().map(Some).map_err(|_| {
        Error::invalid_input(format!("Inference-Header-Content-Length is '{length}'; it must be a number of bytes"))
    })
}

impl Response {
    /// A response whose JSON is followed by tensors, each as long as its `binary_data_size` in the JSON.
    pub fn inference(json: Vec<u8>, tensors: &[u8]) -> Self {
        let content_type = format!("application/octet-stream; {LENGTH}={}", json.len());
        let mut body = json;
        body.extend_from_slice(tensors);
        Self::bytes(content_type, body)
    }
}

/// The elements of a tensor of type BYTES: each has its length in front of it, in four bytes, little-endian.
pub fn bytes_elements(tensor: &[u8]) -> Result<Vec<&[u8]>, Error> {
    let mut elements = Vec::new();
    let mut rest = TensorBytes(tensor);
    while !rest.is_empty() {
        let place = tensor.len() - rest.len();
        let length = rest.take(4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes).ok_or_else(|| {
            Error::invalid_input(format!("at byte {place} of a BYTES tensor, the length of an element is cut off"))
        })?;
        let element = rest.take(length as usize).ok_or_else(|| {
            let left = rest.len();
            Error::invalid_input(format!(
                "at byte {place} of a BYTES tensor, an element says it has {length} bytes, but {left} are left"
            ))
        })?;
        elements.push(element);
    }
    Ok(elements)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(content_type: &str, body: &[u8]) -> Request {
        Request::new("v2/infer", content_type, body)
    }

    #[test]
    fn tensors_lie_behind_the_json() {
        let request = request("application/octet-stream; Inference-Header-Content-Length=2", b"{}abcde");
        let (json, mut tensors) = request.inference().unwrap();
        assert_eq!((json, tensors.take(2), tensors.take(4)), (b"{}".as_slice(), Some(b"ab".as_slice()), None));
        assert_eq!((tensors.take(3), tensors.is_empty()), (Some(b"cde".as_slice()), true));
    }

    #[test]
    fn without_a_length_all_is_json() {
        for content_type in ["", "application/json", "application/octet-stream; charset=utf-8"] {
            let request = request(content_type, b"{}");
            let (json, tensors) = request.inference().unwrap();
            assert_eq!((json, tensors.len()), (b"{}".as_slice(), 0));
        }
    }

    #[test]
    fn a_length_that_is_none_is_refused() {
        for (length, reason) in [
            ("8", "is 8, but the body has 7 bytes"),
            ("-1", "is '-1'; it must be a number of bytes"),
            ("", "is ''; it must be"),
            ("99999999999999999999", "it must be a number of bytes"),
        ] {
            let content_type = format!("application/octet-stream;inference-header-content-length={length}");
            let error = request(&content_type, b"{}abcde").inference().unwrap_err();
            assert!(error.message.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_response_can_be_read_as_a_request() {
        let response = Response::inference(b"{\"a\":1}".to_vec(), b"xyz");
        let (status, content_type, body) = response.parts().unwrap();
        let request = request(content_type, body);
        let (json, mut tensors) = request.inference().unwrap();
        assert_eq!((status, json, tensors.take(3)), (200, b"{\"a\":1}".as_slice(), Some(b"xyz".as_slice())));
    }

    #[test]
    fn elements_have_their_lengths_in_front() {
        let tensor = b"\x02\0\0\0ab\0\0\0\0\x01\0\0\0\xff";
        assert_eq!(bytes_elements(tensor).unwrap(), [b"ab".as_slice(), b"", b"\xff"]);
        assert!(bytes_elements(b"").unwrap().is_empty());
        for cut in 1..tensor.len() {
            // Between two elements it is whole again.
            assert_eq!(bytes_elements(&tensor[..cut]).is_ok(), matches!(cut, 6 | 10), "{cut}");
        }
        let error = bytes_elements(b"\xff\xff\xff\xffabc").unwrap_err();
        assert_eq!(
            error.message,
            "at byte 0 of a BYTES tensor, an element says it has 4294967295 bytes, but 3 are left"
        );
    }
}
