//! Images: a PNG or JPEG file becomes pixels, and pixels become the tensor that a vision model takes.
//!
//! ```no_run
//! use tessera_sdk::image::{Filter, PixelForm};
//! # fn handle(request: tessera_sdk::Request) -> Result<(), tessera_sdk::Error> {
//! let image = request.image()?;
//! let input = PixelForm::IMAGENET.tensor(&[image.fit(224, 224, Filter::Bilinear)?])?; // [1, 3, 224, 224]
//! # Ok(())
//! # }
//! ```
//!
//! Colours are 8 bits each of red, green and blue, as in Pillow's `convert("RGB")`: alpha is dropped, grey becomes three
//! equal channels. Resizing gives what Pillow's `resize` gives. The orientation that cameras note beside the pixels is not
//! applied, as Pillow does not by itself.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_png::PngDecoder;

use crate::{Error, Request, Tensor};

/// Pixels of the largest image that [`Image::decode`] accepts: 48 MiB decoded, which fits into a guest's memory.
pub const PIXELS_MAX: usize = 1 << 24;

/// An image in memory, 8 bits each of red, green and blue. It has at least one pixel.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    width: u32,
    height: u32,
    /// Row by row from the top, three bytes each.
    pixels: Vec<u8>,
}

/// How pixels that do not lie on the new grid are computed. When an image gets smaller, both take all the pixels into
/// account that fall together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Pillow's `BILINEAR`.
    Bilinear,
    /// Pillow's `BICUBIC`.
    Bicubic,
}

/// A part of an image, in pixels from its left upper corner; edges may lie between pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Area {
    /// The left edge.
    pub left: f64,
    /// The upper edge.
    pub top: f64,
    /// To the right of `left`.
    pub width: f64,
    /// Down from `top`.
    pub height: f64,
}

impl Image {
    /// Decodes a PNG or JPEG file of at most [`PIXELS_MAX`] pixels.
    pub fn decode(file: &[u8]) -> Result<Self, Error> {
        Self::decode_within(file, PIXELS_MAX)
    }

    /// Decodes a PNG or JPEG file with a limit of one's own. The size is read before memory is taken for the pixels.
    pub fn decode_within(file: &[u8], pixels_max: usize) -> Result<Self, Error> {
        const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
        const JPEG: &[u8] = b"\xff\xd8\xff";
        match file {
            [] => Err(Error::invalid_input("the image is empty: expected a PNG or JPEG file")),
            file if file.starts_with(PNG) => decode_png(file, pixels_max),
            file if file.starts_with(JPEG) => decode_jpeg(file, pixels_max),
            file => {
                let start: Vec<String> = file.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
                let start = start.join(" ");
                Err(Error::invalid_input(format!(
                    "the image is neither PNG nor JPEG: it begins with the bytes {start}"
                )))
            }
        }
    }

    /// An image of pixels row by row from the top, three bytes each.
    pub fn from_rgb(width: u32, height: u32, pixels: Vec<u8>) -> Result<Self, Error> {
        let bytes = byte_len(width, height).filter(|&bytes| bytes > 0);
        if bytes != Some(pixels.len()) {
            let len = pixels.len();
            return Err(Error::invalid_input(format!(
                "an image of {width} by {height} pixels cannot have {len} bytes"
            )));
        }
        Ok(Self { width, height, pixels })
    }

    /// Pixels from left to right; at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Pixels from top to bottom; at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Row by row from the top, three bytes each.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The whole image at another size; its proportions change if they are not those of the size.
    pub fn resize(&self, width: u32, height: u32, filter: Filter) -> Result<Self, Error> {
        let whole = Area { left: 0.0, top: 0.0, width: self.width.into(), height: self.height.into() };
        self.resize_area(whole, width, height, filter)
    }

    /// The largest part from the middle that has the proportions of the size, at that size: Pillow's `ImageOps.fit`.
    pub fn fit(&self, width: u32, height: u32, filter: Filter) -> Result<Self, Error> {
        self.resize_area(self.centre(width, height, 1.0), width, height, filter)
    }

    /// The part from the middle with the proportions of a size, as large as the image allows and then scaled: 0.875 is
    /// what remains of a resize to 256 and a crop to 224.
    pub fn centre(&self, width: u32, height: u32, scale: f64) -> Area {
        let (own_width, own_height) = (f64::from(self.width), f64::from(self.height));
        let (width, height) = (f64::from(width.max(1)), f64::from(height.max(1)));
        let fit = (own_width / width).min(own_height / height) * scale;
        let (width, height) = (width * fit, height * fit);
        Area { left: (own_width - width) / 2.0, top: (own_height - height) / 2.0, width, height }
    }

    /// A part of the image at another size: Pillow's `resize` with a `box`.
    pub fn resize_area(&self, area: Area, width: u32, height: u32, filter: Filter) -> Result<Self, Error> {
        let failed = |reason: &dyn std::fmt::Display| {
            Error::invalid_input(format!(
                "failed to resize an image of {} by {} pixels: {reason}",
                self.width, self.height
            ))
        };
        let bytes = byte_len(width, height).filter(|&bytes| bytes > 0);
        let bytes = bytes.ok_or_else(|| failed(&format_args!("{width} by {height} is no size")))?;
        let filter = match filter {
            Filter::Bilinear => FilterType::Bilinear,
            Filter::Bicubic => FilterType::CatmullRom,
        };
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).crop(
            area.left,
            area.top,
            area.width,
            area.height,
        );
        // Typed, because the general way would bring code for every other kind of pixel along.
        let source =
            TypedImageRef::<U8x3>::from_buffer(self.width, self.height, &self.pixels).map_err(|e| failed(&e))?;
        let mut pixels = vec![0; bytes];
        let mut resized = TypedImage::<U8x3>::from_buffer(width, height, &mut pixels).map_err(|e| failed(&e))?;
        Resizer::new().resize_typed(&source, &mut resized, &options).map_err(|error| failed(&error))?;
        Self::from_rgb(width, height, pixels)
    }
}

impl Request {
    /// The image in the body: the PNG or JPEG file itself, or in JSON as `{"image": "base64 of the file"}`.
    pub fn image(&self) -> Result<Image, Error> {
        Image::decode(&self.file("image")?)
    }
}

fn decode_png(file: &[u8], pixels_max: usize) -> Result<Image, Error> {
    let mut decoder = PngDecoder::new_with_options(ZCursor::new(file), options().png_set_strip_to_8bit(true));
    decoder.decode_headers().map_err(|error| broken("PNG", &error))?;
    let size = decoder.dimensions().unwrap_or_default();
    let (width, height) = check_size(size, pixels_max)?;
    let colours = decoder.colorspace();
    let decoded = decoder.decode_raw().map_err(|error| broken("PNG", &error))?;
    let pixels = match colours {
        Some(ColorSpace::RGB) => decoded,
        Some(ColorSpace::RGBA) => decoded.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        Some(ColorSpace::Luma) => decoded.iter().flat_map(|&grey| [grey; 3]).collect(),
        Some(ColorSpace::LumaA) => decoded.chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        other => return Err(broken("PNG", &format_args!("its colours are {other:?}"))),
    };
    Image::from_rgb(width, height, pixels)
}

fn decode_jpeg(file: &[u8], pixels_max: usize) -> Result<Image, Error> {
    let options = options().jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    decoder.decode_headers().map_err(|error| broken("JPEG", &error))?;
    let info = decoder.info().unwrap_or_default();
    let (width, height) = check_size((info.width.into(), info.height.into()), pixels_max)?;
    let pixels = decoder.decode().map_err(|error| broken("JPEG", &error))?;
    Image::from_rgb(width, height, pixels)
}

/// The sides are limited by their product, in [`check_size`].
fn options() -> DecoderOptions {
    DecoderOptions::new_safe().set_max_width(usize::MAX).set_max_height(usize::MAX)
}

fn check_size((width, height): (usize, usize), pixels_max: usize) -> Result<(u32, u32), Error> {
    let sides = u32::try_from(width).ok().zip(u32::try_from(height).ok());
    let fits = |_: &(u32, u32)| width.checked_mul(height).is_some_and(|pixels| pixels <= pixels_max);
    sides.filter(fits).ok_or_else(|| {
        Error::too_large(format!("the image has {width} by {height} pixels; at most {pixels_max} pixels are accepted"))
    })
}

fn broken(format: &str, reason: &dyn std::fmt::Display) -> Error {
    Error::invalid_input(format!("the image is no sound {format} file: {}", reason.to_string().trim()))
}

fn byte_len(width: u32, height: u32) -> Option<usize> {
    (width as usize).checked_mul(height as usize)?.checked_mul(3)
}

/// How a model wants its pixels: their order, and the numbers they become, `(value / 255 - mean) / std`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PixelForm {
    /// The order of the axes.
    pub layout: Layout,
    /// Which channels, in which order.
    pub channels: Channels,
    /// Of each channel in that order, for values from 0 to 1; of grey the first.
    pub mean: [f32; 3],
    /// Likewise.
    pub std: [f32; 3],
}

/// The order of a tensor's axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Image, channel, row, column: PyTorch's.
    Nchw,
    /// Image, row, column, channel: TensorFlow's.
    Nhwc,
}

/// Which channels a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red: OpenCV's.
    Bgr,
    /// One channel of brightness, computed as Pillow's `convert("L")` does.
    Grey,
}

impl PixelForm {
    /// From 0 to 1, in PyTorch's order.
    pub const UNIT: Self = Self { layout: Layout::Nchw, channels: Channels::Rgb, mean: [0.0; 3], std: [1.0; 3] };
    /// From -1 to 1, in PyTorch's order.
    pub const SIGNED: Self = Self { mean: [0.5; 3], std: [0.5; 3], ..Self::UNIT };
    /// By the mean and deviation of ImageNet, in PyTorch's order: what torchvision's models take.
    pub const IMAGENET: Self = Self { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], ..Self::UNIT };

    /// A tensor of images, which must all have the same size: `[N, C, H, W]` or `[N, H, W, C]`.
    pub fn tensor(&self, images: &[Image]) -> Result<Tensor<'static>, Error> {
        let Some(first) = images.first() else { return Err(Error::invalid_input("there is no image")) };
        let (width, height) = (first.width, first.height);
        if let Some(other) = images.iter().find(|image| (image.width, image.height) != (width, height)) {
            return Err(Error::invalid_input(format!(
                "images of one tensor must have one size: there are {width} by {height} and {} by {} pixels",
                other.width, other.height
            )));
        }
        // The channels by where their byte lies in a pixel.
        let places: &[usize] = match self.channels {
            Channels::Rgb => &[0, 1, 2],
            Channels::Bgr => &[2, 1, 0],
            Channels::Grey => &[0],
        };
        let mut values = Vec::with_capacity(images.len() * places.len() * width as usize * height as usize);
        let tables: Vec<[f32; 256]> = (0..places.len()).map(|channel| self.table(channel)).collect();
        for image in images {
            let grey = (self.channels == Channels::Grey).then(|| image.grey());
            let (bytes, step) = grey.as_deref().map_or((image.pixels.as_slice(), 3), |grey| (grey, 1));
            match self.layout {
                Layout::Nchw => places.iter().zip(&tables).for_each(|(&place, table)| {
                    values.extend(bytes.chunks_exact(step).map(|pixel| table[usize::from(pixel[place])]));
                }),
                Layout::Nhwc => bytes.chunks_exact(step).for_each(|pixel| {
                    values.extend(places.iter().zip(&tables).map(|(&place, table)| table[usize::from(pixel[place])]));
                }),
            }
        }
        let (count, channels) = (images.len() as u32, places.len() as u32);
        match self.layout {
            Layout::Nchw => Tensor::from_vec(&[count, channels, height, width], values),
            Layout::Nhwc => Tensor::from_vec(&[count, height, width, channels], values),
        }
    }

    /// What each value of a channel becomes: a look-up instead of a division.
    fn table(&self, channel: usize) -> [f32; 256] {
        let (mean, std) = (self.mean[channel], self.std[channel]);
        std::array::from_fn(|value| (value as f32 / 255.0 - mean) / std)
    }
}

impl Image {
    /// The brightness of each pixel, by ITU-R 601 in Pillow's fixed-point arithmetic.
    pub fn grey(&self) -> Vec<u8> {
        let weighted = |p: &[u8]| u32::from(p[0]) * 19595 + u32::from(p[1]) * 38470 + u32::from(p[2]) * 7471;
        self.pixels.chunks_exact(3).map(|pixel| ((weighted(pixel) + 0x8000) >> 16) as u8).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    /// Two by two pixels: red and green above blue and white.
    const PIXELS: [u8; 12] = [255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255];

    /// The same as a PNG file, by Pillow.
    const PNG: &[u8] = include_bytes!("../tests/four.png");
    /// 16 by 8 pixels of one colour as a JPEG file, by Pillow.
    const JPEG: &[u8] = include_bytes!("../tests/orange.jpg");

    fn four() -> Image {
        Image::from_rgb(2, 2, PIXELS.to_vec()).unwrap()
    }

    fn values(form: PixelForm) -> (Vec<u32>, Vec<f32>) {
        let tensor = form.tensor(&[four()]).unwrap();
        (tensor.dims().to_vec(), tensor.as_slice().unwrap().into_owned())
    }

    #[test]
    fn both_formats_are_decoded() {
        assert_eq!(Image::decode(PNG).unwrap(), four());
        let orange = Image::decode(JPEG).unwrap();
        assert_eq!((orange.width(), orange.height()), (16, 8));
        let near = |pixel: &[u8]| pixel.iter().zip([255, 128, 0]).all(|(&got, want)| got.abs_diff(want) <= 3);
        assert!(orange.pixels().chunks(3).all(near), "{:?}", &orange.pixels()[..3]);
    }

    #[test]
    fn what_is_no_image_is_told_apart() {
        let refused = |file: &[u8]| Image::decode(file).unwrap_err();
        assert!(refused(b"").message.contains("is empty"));
        assert_eq!(
            refused(b"GIF89a").message,
            "the image is neither PNG nor JPEG: it begins with the bytes 47 49 46 38 39 61"
        );
        assert!(refused(&PNG[..40]).message.contains("no sound PNG"));
        assert!(refused(&JPEG[..40]).message.contains("no sound JPEG"));
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_an_image_or_an_error() {
        for file in [PNG, JPEG] {
            for at in 0..file.len() {
                let _ = Image::decode(&file[..at]);
                let mut flipped = file.to_vec();
                flipped[at] ^= 0xff;
                let _ = Image::decode_within(&flipped, 1 << 12);
            }
        }
    }

    #[test]
    fn an_image_over_the_limit_is_refused_by_its_header() {
        for file in [PNG, JPEG] {
            let error = Image::decode_within(file, 3).unwrap_err();
            assert_eq!(error.kind, ErrorKind::TooLarge);
            assert!(error.message.ends_with("at most 3 pixels are accepted"), "{error}");
        }
        // 65,500 by 65,500 pixels in a header, and nothing behind it.
        let mut bomb = PNG[..33].to_vec();
        bomb[16..24].copy_from_slice(&[0, 0, 0xff, 0xdc, 0, 0, 0xff, 0xdc]);
        assert!(Image::decode(&bomb).is_err());
    }

    #[test]
    fn pixels_become_numbers_in_the_order_and_the_range_asked_for() {
        let planes = vec![1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0];
        assert_eq!(values(PixelForm::UNIT), (vec![1, 3, 2, 2], planes));
        let signed = PixelForm { layout: Layout::Nhwc, channels: Channels::Bgr, ..PixelForm::SIGNED };
        let pixels = vec![-1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, -1.0, 1.0, 1.0, 1.0];
        assert_eq!(values(signed), (vec![1, 2, 2, 3], pixels));
        let grey = PixelForm { channels: Channels::Grey, ..PixelForm::UNIT };
        assert_eq!(values(grey), (vec![1, 1, 2, 2], [76.0, 150.0, 29.0, 255.0].map(|v| v / 255.0).to_vec()));
    }

    #[test]
    fn images_of_one_tensor_have_one_size() {
        let error = PixelForm::UNIT.tensor(&[four(), four().resize(1, 2, Filter::Bilinear).unwrap()]).unwrap_err();
        assert!(error.message.contains("2 by 2 and 1 by 2"), "{error}");
        assert!(PixelForm::UNIT.tensor(&[]).is_err());
        assert_eq!(PixelForm::UNIT.tensor(&[four(), four()]).unwrap().dims(), [2, 3, 2, 2]);
    }

    #[test]
    fn a_smaller_image_is_the_mean_of_what_falls_together() {
        let one = four().resize(1, 1, Filter::Bilinear).unwrap();
        assert_eq!(one.pixels(), [128, 128, 128]);
        assert!(four().resize(0, 1, Filter::Bicubic).unwrap_err().message.contains("0 by 1 is no size"));
        let outside = Area { left: 1.0, top: 0.0, width: 2.0, height: 2.0 };
        assert!(four().resize_area(outside, 1, 1, Filter::Bilinear).is_err());
    }

    #[test]
    fn the_middle_has_the_proportions_asked_for() {
        let wide = Image::from_rgb(8, 4, vec![0; 96]).unwrap();
        assert_eq!(wide.centre(2, 2, 1.0), Area { left: 2.0, top: 0.0, width: 4.0, height: 4.0 });
        assert_eq!(wide.centre(2, 2, 0.5), Area { left: 3.0, top: 1.0, width: 2.0, height: 2.0 });
        assert_eq!(wide.centre(8, 2, 1.0), Area { left: 0.0, top: 1.0, width: 8.0, height: 2.0 });
    }

    #[test]
    fn a_body_is_the_file_or_json_with_it() {
        let request = Request::new("invocations", "image/png", PNG);
        assert_eq!(request.image().unwrap(), four());
        use base64::Engine as _;
        let encoded = base64::engine::general_purpose::STANDARD.encode(PNG);
        let json = |body: String| Request::new("invocations", "application/json", body).image();
        assert_eq!(json(format!(r#"{{"image": "{encoded}"}}"#)).unwrap(), four());
        assert!(json(r#"{"image": "?"}"#.to_owned()).unwrap_err().message.starts_with("`image` is not base64"));
        assert!(json(r#"{"picture": ""}"#.to_owned()).unwrap_err().message.contains("no text `image`"));
    }
}
