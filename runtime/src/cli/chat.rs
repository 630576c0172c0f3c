//! `tessera chat`: talk with a language model. In a terminal it is a conversation; with a pipe, one message and its answer.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::endpoint::endpoint_name;
use super::{Format, Session, StdoutClosed, json, note, render_error, table};

/// Longest event of a stream that is read.
const EVENT_BYTES_MAX: usize = 16 << 20;

/// With whom, and how.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Name of the endpoint
    #[arg(value_name = "NAME", value_parser = endpoint_name)]
    name: String,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of an answer [default: what fits]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// How varied answers are: 0 always takes the most likely word [default: 1]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
}

/// What was said, and how the model is asked.
struct Conversation {
    args: ChatArgs,
    messages: Vec<Value>,
}

/// Runs the conversation to its end.
pub(super) fn run(session: &mut Session, args: ChatArgs) -> anyhow::Result<()> {
    let mut conversation = Conversation::new(args);
    if io::stdin().is_terminal() && session.format == Format::Human {
        return talk(session, &mut conversation);
    }
    let mut message = String::new();
    io::stdin().lock().read_to_string(&mut message).context("failed to read stdin")?;
    let message = message.trim_end_matches(['\r', '\n']);
    if message.is_empty() {
        bail!("nothing to say: stdin is empty");
    }
    match session.format {
        Format::Human => {
            // What a program reads is what the model wrote.
            conversation.ask(session, message, str::to_owned)?;
            if io::stdout().is_terminal() { session.print_bytes(b"\n") } else { Ok(()) }
        }
        Format::Json => {
            let body = conversation.body(message, false);
            let mut answer = Vec::new();
            session.client.post(&conversation.path(), "application/json", body.to_string().into(), |piece| {
                answer.extend_from_slice(piece);
                Ok(())
            })?;
            session.print(&json::pretty(&String::from_utf8_lossy(&answer)))
        }
    }
}

/// Reads a message, prints its answer, and so on until Ctrl-D.
fn talk(session: &mut Session, conversation: &mut Conversation) -> anyhow::Result<()> {
    note("Ctrl-C stops an answer, Ctrl-D ends the conversation.");
    while let Some(message) = read_message(session)? {
        if message.trim().is_empty() {
            continue;
        }
        let answered = conversation.ask(session, &message, table::printable);
        match answered {
            Ok(answer) => {
                session.print_bytes(b"\n")?;
                note(&answer.summary());
            }
            Err(error) if error.is::<StdoutClosed>() => return Err(error),
            // Said again, or otherwise, it may do.
            Err(error) => note(&render_error(&error, Format::Human)),
        }
    }
    session.print_bytes(b"\n")
}

/// The next line that is typed; none at the end.
fn read_message(session: &mut Session) -> anyhow::Result<Option<String>> {
    let read = || {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map(|bytes| (bytes > 0).then_some(line))
    };
    let mut reading = None;
    loop {
        session.print_bytes(b"> ")?;
        // What is being typed when Ctrl-C comes is gone from the terminal; the thread goes on reading.
        let line = session
            .client
            .until_interrupt(async { reading.get_or_insert_with(|| tokio::task::spawn_blocking(read)).await })?;
        match line {
            Some(line) => return line.context("failed to read stdin")?.context("failed to read stdin"),
            None => session.print_bytes(b"\n")?,
        }
    }
}

impl Conversation {
    fn new(args: ChatArgs) -> Conversation {
        let system = args.system.iter().map(|text| json!({ "role": "system", "content": text }));
        Conversation { messages: system.collect(), args }
    }

    fn path(&self) -> [&str; 3] {
        ["serving-endpoints", &self.args.name, "invocations"]
    }

    fn body(&self, message: &str, stream: bool) -> Value {
        let mut messages = self.messages.clone();
        messages.push(json!({ "role": "user", "content": message }));
        let mut body = json!({ "messages": messages });
        if stream {
            body["stream"] = true.into();
            body["stream_options"] = json!({ "include_usage": true });
        }
        if let Some(max_tokens) = self.args.max_tokens {
            body["max_tokens"] = max_tokens.into();
        }
        if let Some(temperature) = self.args.temperature {
            body["temperature"] = temperature.into();
        }
        body
    }

    /// Prints the answer to a message as it comes, as `shown`, and remembers both. What was stopped is remembered as far
    /// as it came.
    fn ask(&mut self, session: &mut Session, message: &str, shown: impl Fn(&str) -> String) -> anyhow::Result<Heard> {
        let mut heard = Heard::new();
        let body = self.body(message, true);
        let Session { client, out, .. } = session;
        heard.whole = client.post_until_interrupt(&self.path(), &body, |piece| {
            heard.hear(piece, |text| super::print_bytes(*out, shown(text).as_bytes()))
        })?;
        if heard.whole && !heard.done {
            bail!("the answer was broken off; `tessera logs {}` may say why", self.args.name);
        }
        self.messages.push(json!({ "role": "user", "content": message }));
        self.messages.push(json!({ "role": "assistant", "content": heard.text }));
        Ok(heard)
    }
}

/// An answer, as it is heard.
struct Heard {
    text: String,
    /// The begun line of the stream.
    line: Vec<u8>,
    asked: Instant,
    first: Option<Instant>,
    last: Instant,
    usage: Option<Usage>,
    /// Whether the stream said that it is over.
    done: bool,
    /// Whether nobody stopped it.
    whole: bool,
}

#[derive(Debug, Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// An event of the stream: what is read of it.
#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<EventError>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Delta,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
}

#[derive(Deserialize)]
struct EventError {
    message: String,
}

impl Heard {
    fn new() -> Heard {
        let now = Instant::now();
        let (text, line) = Default::default();
        Heard { text, line, asked: now, first: None, last: now, usage: None, done: false, whole: false }
    }

    /// The next piece of the stream, which may end anywhere; `print` gets the text in it.
    fn hear(&mut self, piece: &[u8], mut print: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() > EVENT_BYTES_MAX {
                bail!("an event of the answer is longer than {EVENT_BYTES_MAX} bytes");
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.event(line.trim_ascii(), &mut print)?;
            }
        }
        Ok(())
    }

    fn event(&mut self, line: &[u8], print: &mut impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let Some(data) = line.strip_prefix(b"data:") else { return Ok(()) };
        if data.trim_ascii() == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let event: Event = serde_json::from_slice(data)
            .context("the endpoint streams something else than a chat: is its model a language model?")?;
        if let Some(error) = event.error {
            bail!("the answer was broken off: {}", error.message);
        }
        self.usage = event.usage.or(self.usage.take());
        for text in event.choices.into_iter().filter_map(|choice| choice.delta.content).filter(|text| !text.is_empty())
        {
            self.last = Instant::now();
            self.first.get_or_insert(self.last);
            print(&text)?;
            self.text.push_str(&text);
        }
        Ok(())
    }

    /// Tokens, and how fast they came.
    fn summary(&self) -> String {
        let first = self.first.map_or(Duration::ZERO, |first| first - self.asked);
        let Some(Usage { prompt_tokens, completion_tokens }) = self.usage else { return "(stopped)".to_owned() };
        let rest = self.first.map_or(Duration::ZERO, |first| self.last - first).as_secs_f64();
        // Those that came with the first one took no time that could be measured.
        let speed = match completion_tokens {
            2.. if rest > 0.0 => format!(", {:.1} tokens/s", (completion_tokens - 1) as f64 / rest),
            _ => String::new(),
        };
        format!("({completion_tokens} tokens{speed}, the first after {} ms; prompt {prompt_tokens})", first.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::{self, tests::Script};
    use super::*;

    fn args() -> ChatArgs {
        ChatArgs { name: "smollm2".into(), system: Some("Be brief.".into()), max_tokens: Some(9), temperature: None }
    }

    const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"Hé\"}}]}\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"\\u001b[2Jllo\"}}]}\n\ndata: {\"choices\":[{\"delta\":{}}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3,\"total_tokens\":10}}\n\ndata: [DONE]\n\n";

    #[test]
    fn an_answer_is_printed_as_it_comes_and_remembered() {
        let script = Script::start(&[(200, STREAM), (200, STREAM)]);
        let mut out = Vec::new();
        let mut session = Session { client: client::for_tests(&script.address), format: Format::Human, out: &mut out };
        let mut conversation = Conversation::new(args());
        let heard = conversation.ask(&mut session, "Hi", table::printable).unwrap();
        assert!(
            heard.summary().starts_with("(3 tokens") && heard.summary().ends_with("prompt 7)"),
            "{}",
            heard.summary()
        );
        conversation.ask(&mut session, "Again", str::to_owned).unwrap();
        // The terminal is not driven by the model.
        assert_eq!(String::from_utf8(out).unwrap(), "Hé\u{fffd}[2JlloHé\u{1b}[2Jllo");
        let asked = script.asked();
        assert_eq!(asked[0].line, "POST /serving-endpoints/smollm2/invocations");
        let body: Value = serde_json::from_str(&asked[1].body).unwrap();
        let said: Vec<&str> =
            body["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
        assert_eq!(said, ["system", "user", "assistant", "user"]);
        assert_eq!((&body["max_tokens"], &body["stream"], body.get("temperature")), (&json!(9), &json!(true), None));
    }

    #[test]
    fn a_stream_may_be_cut_anywhere() {
        for bytes in 1..STREAM.len() {
            let mut heard = Heard::new();
            let mut printed = String::new();
            for piece in STREAM.as_bytes().chunks(bytes) {
                heard
                    .hear(piece, |text| {
                        printed.push_str(text);
                        Ok(())
                    })
                    .unwrap();
            }
            assert!(heard.done && printed == "Hé\u{1b}[2Jllo", "pieces of {bytes}");
        }
    }

    #[test]
    fn an_answer_that_breaks_off_is_no_answer() {
        let error = r#"data: {"error":{"message":"time ran out","type":"server_error"}}"#;
        for (stream, words) in [
            (format!("{error}\n\n"), "the answer was broken off: time ran out"),
            ("data: {\"choices\":[]}\n\n".to_owned(), "`tessera logs smollm2` may say why"),
            ("data: [1.0]\n\n".to_owned(), "is its model a language model?"),
        ] {
            let script = Script::start(&[(200, &stream)]);
            let mut out = Vec::new();
            let mut session =
                Session { client: client::for_tests(&script.address), format: Format::Human, out: &mut out };
            let mut conversation = Conversation::new(args());
            let refused = conversation.ask(&mut session, "Hi", str::to_owned).map(drop).unwrap_err();
            assert!(format!("{refused:#}").contains(words), "{refused:#}");
            assert_eq!(conversation.messages.len(), 1, "what was not answered is not remembered");
        }
    }
}
