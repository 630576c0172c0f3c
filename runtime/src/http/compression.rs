//! Compressed bodies: gzip and deflate, both within bounds, both in pieces so that nobody else waits long.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::read::ZlibDecoder;
use flate2::write::{GzEncoder, ZlibEncoder};

use crate::error::{ApiError, ErrorCode};

/// What is worked on before the event loop may turn to others: a fraction of a millisecond.
const PIECE_BYTES: usize = 64 << 10;

/// Most files of gzip in one body.
const MEMBERS_MAX: usize = 1024;

/// How a body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// RFC 1952.
    Gzip,
    /// RFC 1950, which HTTP calls deflate.
    Deflate,
}

impl Packing {
    /// Its name in HTTP and gRPC.
    pub fn name(self) -> &'static str {
        match self {
            Packing::Gzip => "gzip",
            Packing::Deflate => "deflate",
        }
    }

    /// The packing of a `Content-Encoding`, none where there is nothing to undo.
    ///
    /// # Errors
    /// 415 for one that is not understood.
    pub fn of_body(encoding: &str) -> Result<Option<Packing>, ApiError> {
        match encoding.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(None),
            "gzip" | "x-gzip" => Ok(Some(Packing::Gzip)),
            "deflate" => Ok(Some(Packing::Deflate)),
            other => Err(ApiError::new(
                ErrorCode::BadRequest,
                format!("The body's encoding '{other}' is not understood: send gzip, deflate or identity."),
            )
            .with_status(415)),
        }
    }

    /// The first of those that an `Accept-Encoding` names and does not exclude.
    pub fn accepted(encodings: &str) -> Option<Packing> {
        encodings.split(',').find_map(|offer| {
            let (name, quality) = offer.split_once(';').unwrap_or((offer, "q=1"));
            let excluded = quality.trim().strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q == 0.0));
            let packing = match name.trim() {
                "gzip" => Packing::Gzip,
                "deflate" => Packing::Deflate,
                _ => return None,
            };
            (!excluded).then_some(packing)
        })
    }

    /// Unpacks a body; `grow` allows each piece before it is kept.
    ///
    /// # Errors
    /// 413 when it unpacks to more than `bytes_max`, 400 when it is damaged.
    pub async fn unpack(
        self,
        packed: &[u8],
        bytes_max: u64,
        mut grow: impl FnMut(u64) -> Result<(), ApiError>,
    ) -> Result<Vec<u8>, ApiError> {
        let mut whole = Vec::new();
        if self == Packing::Deflate {
            self.unpack_into(&mut whole, &mut ZlibDecoder::new(packed), bytes_max, &mut grow).await?;
            return Ok(whole);
        }
        // A body may be several files of gzip, one after the other. Empty ones give nothing that could be limited.
        let mut rest = packed;
        for _ in 0..MEMBERS_MAX {
            let mut member = GzDecoder::new(rest);
            self.unpack_into(&mut whole, &mut member, bytes_max, &mut grow).await?;
            rest = member.into_inner();
            if rest.is_empty() {
                return Ok(whole);
            }
        }
        let message = format!("The body is more than {MEMBERS_MAX} files of gzip, one after the other.");
        Err(ApiError::new(ErrorCode::BadRequest, message))
    }

    async fn unpack_into(
        self,
        whole: &mut Vec<u8>,
        reader: &mut (dyn Read + Send),
        bytes_max: u64,
        grow: &mut impl FnMut(u64) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = reader.read(&mut piece).map_err(|error| {
                ApiError::new(ErrorCode::BadRequest, format!("The body is not {} as it says: {error}.", self.name()))
            })?;
            if (whole.len() + read) as u64 > bytes_max {
                let message = format!("The request body unpacks to more than the limit of {bytes_max} bytes.");
                return Err(ApiError::new(ErrorCode::BadRequest, message).with_status(413));
            }
            grow(read as u64)?;
            whole.extend_from_slice(&piece[..read]);
            tokio::task::yield_now().await;
            if read == 0 {
                return Ok(());
            }
        }
    }

    /// Packs a body, quickly rather than tightly.
    pub async fn pack(self, body: &[u8]) -> Vec<u8> {
        let packed = Vec::with_capacity(body.len() / 2);
        match self {
            Packing::Gzip => write_all(GzEncoder::new(packed, Compression::fast()), body, GzEncoder::finish).await,
            Packing::Deflate => {
                write_all(ZlibEncoder::new(packed, Compression::fast()), body, ZlibEncoder::finish).await
            }
        }
    }
}

async fn write_all<W: Write>(mut writer: W, body: &[u8], finish: fn(W) -> std::io::Result<Vec<u8>>) -> Vec<u8> {
    for piece in body.chunks(PIECE_BYTES) {
        // Writing to memory cannot fail.
        let _ = writer.write_all(piece);
        tokio::task::yield_now().await;
    }
    finish(writer).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Packing; 2] = [Packing::Gzip, Packing::Deflate];

    fn body() -> Vec<u8> {
        (0..200_000u32).flat_map(|number| (number / 7).to_le_bytes()).collect()
    }

    #[tokio::test]
    async fn a_body_may_be_some_files_of_gzip_but_not_any_number() {
        let unpack = async |packed: Vec<u8>| Packing::Gzip.unpack(&packed, 100, |_| Ok(())).await;
        let (one, none) = (Packing::Gzip.pack(b"one").await, Packing::Gzip.pack(b"").await);
        assert_eq!(unpack([one.clone(), none.clone(), one].concat()).await.unwrap(), b"oneone");
        assert_eq!(unpack(none.repeat(MEMBERS_MAX)).await.unwrap(), b"");
        assert_eq!(unpack(none.repeat(MEMBERS_MAX + 1)).await.unwrap_err().status, 400);
    }

    #[tokio::test]
    async fn what_is_packed_comes_back() {
        for packing in BOTH {
            let packed = packing.pack(&body()).await;
            assert!(packed.len() < body().len() / 2, "{}", packed.len());
            let mut grown = 0;
            let whole = packing.unpack(&packed, 800_000, |bytes| {
                grown += bytes;
                Ok(())
            });
            assert_eq!(whole.await.unwrap(), body());
            assert_eq!(grown, 800_000);
        }
    }

    #[tokio::test]
    async fn a_bomb_is_refused_before_it_has_grown() {
        for packing in BOTH {
            let bomb = packing.pack(&vec![0; 20 << 20]).await;
            assert!(bomb.len() < 200 << 10);
            let mut grown = 0;
            let refused = packing.unpack(&bomb, 1 << 20, |bytes| {
                grown += bytes;
                Ok(())
            });
            assert_eq!(refused.await.unwrap_err().status, 413);
            assert!(grown <= 1 << 20, "{grown}");
            let no_room = || ApiError::new(ErrorCode::ResourceExhausted, "full");
            assert_eq!(packing.unpack(&bomb, u64::MAX, |_| Err(no_room())).await.unwrap_err().status, 429);
        }
    }

    #[tokio::test]
    async fn what_is_damaged_or_something_else_is_refused() {
        for packing in BOTH {
            let packed = packing.pack(&body()).await;
            let mut damaged = packed.clone();
            damaged[packed.len() / 2] ^= 0xff;
            for body in [&packed[..packed.len() - 5], &damaged, b"{}", b"\x1f\x8b"] {
                let error = packing.unpack(body, 1 << 20, |_| Ok(())).await.unwrap_err();
                assert!(error.status == 400 && error.message.contains(packing.name()), "{error}");
            }
        }
    }

    #[test]
    fn names_are_understood() {
        assert_eq!(Packing::of_body("GZIP").unwrap(), Some(Packing::Gzip));
        assert_eq!(Packing::of_body("identity").unwrap(), None);
        assert_eq!(Packing::of_body("br").unwrap_err().status, 415);
        assert_eq!(Packing::accepted("br, deflate;q=0.5, gzip"), Some(Packing::Deflate));
        assert_eq!(Packing::accepted("gzip;q=0, deflate"), Some(Packing::Deflate));
        assert_eq!(Packing::accepted("identity"), None);
    }
}
