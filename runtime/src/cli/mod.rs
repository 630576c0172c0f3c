//! The command line. `tessera serve` is the server; most other commands are clients of its REST API and nothing more: they
//! know addresses, tokens and JSON, and none of the server's types. Those that need no server read what a server would:
//! `tessera audit` and, where none runs, `tessera usage` the files of a home; `tessera doctor` the machine; those for
//! developers (`new`, `build`, `package`, `inspect`) projects and packages. `tessera dev` is a server and its client.
//!
//! Answers go to stdout, notes and errors to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage.

mod audit;
mod build;
mod chat;
mod client;
mod dev;
pub mod doctor;
mod embedded;
mod endpoint;
mod files;
mod identity;
mod inspect;
mod invoke;
mod json;
mod key;
mod label;
mod model;
mod new;
mod oci;
mod package;
mod project;
mod pull;
mod push;
mod sign;
mod table;
mod token;
mod usage;
mod wire;
mod workspace;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::config::{DEFAULT_HOME, ServeArgs};
use audit::AuditArgs;
use build::BuildArgs;
use chat::ChatArgs;
use client::{Client, ClientError};
use dev::DevArgs;
use doctor::DoctorArgs;
use endpoint::EndpointCommand;
use identity::{GroupCommand, ServicePrincipalCommand, UserCommand};
use inspect::InspectArgs;
use invoke::{InvokeArgs, LogsArgs};
use key::KeyCommand;
use model::ModelCommand;
use new::NewArgs;
use package::PackageArgs;
use sign::SignCommand;
use token::TokenCommand;
use usage::UsageArgs;
use workspace::WorkspaceCommand;

/// Self-hosted model serving: every endpoint a WASI component, a fresh instance per request
#[derive(Debug, Parser)]
#[command(name = "tessera", version, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What a process of this binary can be.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one value in a process")]
pub enum Command {
    /// Run the server
    Serve(ServeArgs),
    /// Compile one component: the server starts this in a child process under limits.
    #[command(hide = true)]
    CompileWorker,
    /// Load one language model: the server starts this in a child process under limits.
    #[command(hide = true)]
    ModelWorker,
    /// A command for whoever writes a model's code.
    #[command(flatten)]
    Developer(DeveloperCommand),
    /// Tell what this machine can do: instances, backends, GPU, and what is missing for them
    Doctor(DoctorArgs),
    /// Check or read the audit log: who changed what, and who was denied
    Audit(AuditArgs),
    /// Sum up who used what, and print what was kept of requests and answers
    Usage(UsageArgs),
    /// A command that talks to a server.
    #[command(flatten)]
    Client(ClientCommand),
}

/// The commands for whoever writes a model's code. They need no server.
#[derive(Debug, Subcommand)]
pub enum DeveloperCommand {
    /// Make a project: a model with code of its own
    New(NewArgs),
    /// Build the component of the project in this folder
    Build(BuildArgs),
    /// Build, serve and, after each change, swap the project in this folder
    Dev(DevArgs),
    /// Pack a project or a package into one file; the same content gives the same file
    Package(PackageArgs),
    /// Tell what a package or a component is: imports against grants, graphs, sizes, limits
    Inspect(InspectArgs),
    /// Sign packages, for servers that run only what is signed
    Sign {
        /// What to do.
        #[command(subcommand)]
        command: SignCommand,
    },
    /// Print a script that completes commands and options in a shell
    Completions {
        /// The shell.
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
}

/// The commands that talk to a server.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "clap would print them; the types say it")]
pub enum ClientCommand {
    /// Register model packages
    Model {
        #[command(flatten)]
        options: ClientOptions,
        #[command(subcommand)]
        command: ModelCommand,
    },
    /// Deploy models as endpoints
    Endpoint {
        #[command(flatten)]
        options: ClientOptions,
        #[command(subcommand)]
        command: EndpointCommand,
    },
    /// People who may call: make, list, change, delete them
    User {
        #[command(flatten)]
        options: ClientOptions,
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Groups, which things can be shared with
    Group {
        #[command(flatten)]
        options: ClientOptions,
        #[command(subcommand)]
        command: GroupCommand,
    },
    /// Programs that may call, and their OAuth secrets
    ServicePrincipal {
        #[command(flatten)]
        options: ClientOptions,
        #[command(subcommand)]
        command: ServicePrincipalCommand,
    },
    /// Access tokens: one's own, and for administrators everybody's
    Token {
        #[command(flatten)]
        options: ClientOptions,
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Tenants and their quotas, for the server's administrators
    Workspace {
        #[command(flatten)]
        options: ClientOptions,
        #[command(subcommand)]
        command: WorkspaceCommand,
    },
    /// Look after the keys that seal what the server keeps
    Key {
        #[command(flatten)]
        options: ClientOptions,
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Send one request to an endpoint and print its answer
    Invoke {
        #[command(flatten)]
        args: InvokeArgs,
        #[command(flatten)]
        options: ClientOptions,
    },
    /// Talk with a language model; with a pipe, answer one message
    Chat {
        #[command(flatten)]
        args: ChatArgs,
        #[command(flatten)]
        options: ClientOptions,
    },
    /// Print what an endpoint's model logged
    Logs {
        #[command(flatten)]
        args: LogsArgs,
        #[command(flatten)]
        options: ClientOptions,
    },
}

/// Which server, as whom, and how to print. Taken by the client commands only: `serve` has its own `--home`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Client options")]
pub struct ClientOptions {
    /// Address of the server, like http://127.0.0.1:8080 or https://models.example.com [default: what DIR/address says]
    #[arg(long, global = true, value_name = "URL", env = "TESSERA_HOST", hide_env_values = true)]
    pub host: Option<String>,
    /// Access token [default: what DIR/admin.token says, if DIR is that server's]
    #[arg(long, global = true, value_name = "TOKEN", env = "TESSERA_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Certificates in PEM to trust instead of the system's, for https:// [default: the system's]
    #[arg(long, global = true, value_name = "FILE", env = "TESSERA_CA_CERT", hide_env_values = true)]
    pub ca_cert: Option<PathBuf>,
    /// Certificate in PEM for a server that asks clients for one
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "TESSERA_CLIENT_CERT",
        hide_env_values = true,
        requires = "client_key"
    )]
    pub client_cert: Option<PathBuf>,
    /// Private key of the client certificate, in PEM
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "TESSERA_CLIENT_KEY",
        hide_env_values = true,
        requires = "client_cert"
    )]
    pub client_key: Option<PathBuf>,
    /// Home of a server on this machine, to find its address and token
    #[arg(
        long, global = true, value_name = "DIR", env = "TESSERA_HOME", hide_env_values = true,
        default_value = DEFAULT_HOME
    )]
    pub home: PathBuf,
    /// Print the server's JSON; errors too, on stderr
    #[arg(long, global = true)]
    pub json: bool,
}

/// Runs a client command and prints its answer or its error.
pub fn run(command: ClientCommand) -> ExitCode {
    let format = Format::new(command.options().json);
    exit(execute(command, format, &mut io::stdout().lock()).map(|()| ExitCode::SUCCESS), format)
}

/// Runs a command of developers.
pub fn develop(command: DeveloperCommand) -> ExitCode {
    let out = &mut io::stdout();
    let outcome = match command {
        DeveloperCommand::New(args) => new::run(&args),
        DeveloperCommand::Build(args) => build::run(&args),
        DeveloperCommand::Dev(args) => dev::run(&args, out),
        DeveloperCommand::Package(args) => package::run(&args, out),
        DeveloperCommand::Inspect(args) => inspect::run(&args, out),
        DeveloperCommand::Sign { command } => sign::run(&command, out),
        DeveloperCommand::Completions { shell } => completions(shell, out),
    };
    exit(outcome.map(|()| ExitCode::SUCCESS), Format::Human)
}

fn completions(shell: Shell, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tessera", &mut script);
    print_bytes(out, &script)
}

/// Runs `tessera audit`.
pub fn audit(args: AuditArgs) -> ExitCode {
    let format = Format::new(args.json);
    exit(audit::run(&args, format, &mut io::stdout().lock()), format)
}

/// Runs `tessera usage`.
pub fn usage(args: UsageArgs) -> ExitCode {
    let format = Format::new(args.options.json);
    exit(usage::run(args, format, &mut io::stdout().lock()).map(|()| ExitCode::SUCCESS), format)
}

/// Prints the error, if there is one.
fn exit(outcome: anyhow::Result<ExitCode>, format: Format) -> ExitCode {
    match outcome {
        Ok(code) => code,
        // `tessera endpoint list | head -1` has all it wanted.
        Err(error) if error.is::<StdoutClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            note(&render_error(&error, format));
            ExitCode::FAILURE
        }
    }
}

fn execute(command: ClientCommand, format: Format, out: &mut dyn Write) -> anyhow::Result<()> {
    if let ClientCommand::Model { command, options } = &command
        && let Some(done) = model::run_without_server(command, options, format, out)
    {
        return done;
    }
    let client = Client::new(command.options())?;
    let mut session = Session { client, format, out };
    match command {
        ClientCommand::Model { command, options } => model::run(&mut session, command, &options),
        ClientCommand::Endpoint { command, .. } => endpoint::run(&mut session, command),
        ClientCommand::Key { command, .. } => key::run(&mut session, command),
        ClientCommand::User { command, .. } => identity::users(&mut session, command),
        ClientCommand::Group { command, .. } => identity::groups(&mut session, command),
        ClientCommand::ServicePrincipal { command, .. } => identity::service_principals(&mut session, command),
        ClientCommand::Token { command, .. } => token::run(&mut session, command),
        ClientCommand::Workspace { command, .. } => workspace::run(&mut session, command),
        ClientCommand::Invoke { args, .. } => invoke::invoke(&mut session, args),
        ClientCommand::Chat { args, .. } => chat::run(&mut session, args),
        ClientCommand::Logs { args, .. } => invoke::logs(&mut session, args),
    }
}

impl ClientCommand {
    fn options(&self) -> &ClientOptions {
        match self {
            Self::Model { options, .. }
            | Self::Endpoint { options, .. }
            | Self::Key { options, .. }
            | Self::User { options, .. }
            | Self::Group { options, .. }
            | Self::ServicePrincipal { options, .. }
            | Self::Token { options, .. }
            | Self::Workspace { options, .. }
            | Self::Invoke { options, .. }
            | Self::Chat { options, .. }
            | Self::Logs { options, .. } => options,
        }
    }
}

/// How answers and errors are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Human,
    Json,
}

impl Format {
    fn new(json: bool) -> Format {
        if json { Format::Json } else { Format::Human }
    }
}

/// What every client command works with.
struct Session<'a> {
    client: Client,
    format: Format,
    out: &'a mut dyn Write,
}

impl Session<'_> {
    /// Prints an answer of the API: its JSON as it came, or what `human` makes of it.
    fn answer(&mut self, answer: &str, human: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<()> {
        match self.format {
            Format::Json => self.print(&json::pretty(answer)),
            Format::Human => self.print(&human()?),
        }
    }

    fn print(&mut self, text: &str) -> anyhow::Result<()> {
        self.print_bytes(text.as_bytes())?;
        if text.ends_with('\n') { Ok(()) } else { self.print_bytes(b"\n") }
    }

    fn print_bytes(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        print_bytes(self.out, bytes)
    }
}

/// Never `println!`: it panics when the reader of a pipe has gone.
fn print_bytes(out: &mut dyn Write, bytes: &[u8]) -> anyhow::Result<()> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        written => written.context("failed to write to stdout"),
    }
}

/// The reader of our stdout has gone: an end, not a failure.
#[derive(Debug, thiserror::Error)]
#[error("stdout is closed")]
struct StdoutClosed;

/// A line for the person, beside the answer. With stderr closed nobody is there to read it.
fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn render_error(error: &anyhow::Error, format: Format) -> String {
    match (format, error.downcast_ref::<ClientError>()) {
        (Format::Human, _) => format!("error: {}", table::printable(&format!("{error:#}"))),
        (Format::Json, Some(ClientError::Api { body, .. })) => json::pretty(body),
        (Format::Json, _) => json::pretty(
            &serde_json::json!({"error_code": "CLIENT_ERROR", "message": format!("{error:#}")}).to_string(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_readme_has_every_command() {
        let (_, readme) = include_str!("../../../README.md").split_once("## Commands").unwrap();
        let table = readme.split("\n## ").next().unwrap();
        let words: Vec<&str> = table.split(|c: char| !c.is_alphanumeric() && c != '-').collect();
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            assert!(words.contains(&command.get_name()), "{}", command.get_name());
        }
    }

    #[test]
    fn client_options_stand_before_or_after_the_verb() {
        for line in ["tessera endpoint --json list --home /h", "tessera endpoint list --json --home /h"] {
            let Command::Client(command) = parse(line).unwrap().command else { panic!("{line}") };
            assert!(command.options().json && command.options().home.as_os_str() == "/h", "{line}");
        }
    }

    #[test]
    fn wrong_usage_is_refused_before_a_server_is_asked() {
        for line in [
            "tessera model push . --name iris",
            "tessera model push . --name a.b/c.d",
            "tessera model push .",
            "tessera model push . iris:1",
            "tessera model push . oci://localhost:5000/iris --name a.b.c",
            "tessera model push . oci://localhost:5000/iris --username ann",
            "tessera model pull oci://localhost:5000/iris",
            "tessera model pull oci://localhost:5000/iris --to iris --as a.b.c",
            "tessera model pull oci://iris --to iris",
            "tessera endpoint get ../x",
            "tessera endpoint create iris",
            "tessera endpoint create iris --model a.b.c",
            "tessera endpoint create iris --model a.b.c --version one",
            "tessera endpoint create iris --file c.json --model a.b.c",
            "tessera endpoint list --client-cert c.pem",
            "tessera serve --tensor-bytes-max 1MB",
        ] {
            assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
        }
    }

    /// A pipe whose reader has gone.
    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_stdout_ends_the_command_quietly() {
        let mut session =
            Session { client: client::for_tests("http://127.0.0.1:1"), format: Format::Human, out: &mut Closed };
        assert!(session.print("text").unwrap_err().is::<StdoutClosed>());
    }
}
