//! A guest that prints the text of the request to stdout and stderr, through WASI 0.2, and during `init` as well.
//!
//! Apart from `hostile`, so that that one stays free of WASI imports.

use tessera_sdk::{Endpoint, Error, Package, Request, Response};
use wasip2::cli::{stderr::get_stderr, stdout::get_stdout};
use wasip2::io::streams::OutputStream;

tessera_sdk::export!(Printer);

/// The most that one call of the stream takes, by its specification.
const WRITE_BYTES_MAX: usize = 4096;

struct Printer;

impl Endpoint for Printer {
    fn init(_package: &Package) -> Result<Self, Error> {
        print(&get_stdout(), "stdout of init\n")?;
        Ok(Self)
    }

    fn handle(&self, request: Request) -> Result<Response, Error> {
        let text = request.text()?;
        print(&get_stdout(), text)?;
        print(&get_stderr(), text)?;
        Ok(Response::text(format!("printed {} bytes", text.len())))
    }
}

fn print(stream: &OutputStream, text: &str) -> Result<(), Error> {
    for chunk in text.as_bytes().chunks(WRITE_BYTES_MAX) {
        let written = stream.blocking_write_and_flush(chunk);
        written.map_err(|error| Error::model(format!("failed to print: {error}")))?;
    }
    Ok(())
}
