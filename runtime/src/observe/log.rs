//! The server's own log: lines for a person on a terminal, JSON for everything else, on stderr.

use std::io::IsTerminal;

use serde::Deserialize;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    Auto,
    /// One line of text for each event.
    Human,
    /// One JSON object for each event.
    Json,
}

/// The least severe line that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What failed.
    Error,
    /// What may fail soon.
    Warn,
    /// What an operator wants to know has happened.
    Info,
    /// What a developer of Tessera wants to know.
    Debug,
    /// Everything.
    Trace,
}

/// The process has its log already.
#[derive(Debug, thiserror::Error)]
#[error("failed to start the log")]
pub struct LogError(#[source] tracing_subscriber::util::TryInitError);

/// Starts the log of this process. A second call is refused and changes nothing.
pub fn init(format: LogFormat, level: LogLevel) -> Result<(), LogError> {
    let on_terminal = std::io::stderr().is_terminal();
    let human = match format {
        LogFormat::Auto => on_terminal,
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    // A closed stderr must not take the server down: the layer would report the failed write with `eprintln!`, which
    // panics.
    let layer = fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let layer = if human {
        let colours = on_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        layer.with_ansi(colours).boxed()
    } else {
        layer.json().flatten_event(true).boxed()
    };
    tracing_subscriber::registry().with(filter(level)).with(layer).try_init().map_err(LogError)
}

/// Our own events down to `level`; of the libraries only what is wrong, for their debug lines name every frame and
/// tensor.
fn filter(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("tessera", level)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn a_second_log_is_an_error_and_no_panic() {
        let _ = init(LogFormat::Auto, LogLevel::Error); // another test of this process may have been first
        assert_eq!(init(LogFormat::Json, LogLevel::Info).unwrap_err().to_string(), "failed to start the log");
    }

    #[test]
    fn libraries_are_quieter_than_we_are() {
        let debug = filter(LogLevel::Debug);
        assert!(debug.would_enable("tessera::sandbox", &Level::DEBUG));
        assert!(!debug.would_enable("hyper", &Level::INFO));
        assert!(!filter(LogLevel::Error).would_enable("hyper", &Level::WARN));
    }
}
