//! The `tessera` program: the server, and the command line that is a client of it.

use std::process::ExitCode;

use clap::Parser;
use tessera::cli::{self, Cli, Command};
use tessera::config::ServeArgs;
use tessera::{deploy, memory, observe, server};

// Small blocks from many threads are what requests allocate; glibc's allocator costs 5 to 20 % of the throughput here.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => report(serve(args)),
        Command::CompileWorker => deploy::worker::main(),
        Command::ModelWorker => deploy::trial::main(),
        Command::Developer(command) => cli::develop(command),
        Command::Doctor(args) => cli::doctor::run(args),
        Command::Audit(args) => cli::audit(args),
        Command::Usage(args) => cli::usage(args),
        Command::Client(command) => cli::run(command),
    }
}

fn serve(args: ServeArgs) -> anyhow::Result<()> {
    memory::large_blocks_from_the_system();
    let config = args.resolve()?;
    observe::log::init(config.log_format, config.log_level)?;
    server::serve(&config, |_| {})
}

fn report(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tessera: {error:#}");
            ExitCode::FAILURE
        }
    }
}
