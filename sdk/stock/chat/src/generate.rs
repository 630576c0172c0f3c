//! Runs the sequences of a request side by side, and says what each of them adds to its answer.

use std::collections::VecDeque;

use tessera_sdk::{Begin, Chunk, Error, FinishReason, Graph, Options, Prompt, Sequence, Token};

use crate::calls::{Call, Listener};
use crate::stops::Stops;

/// Where sequences come from.
pub(crate) trait Model {
    /// A new one.
    fn sequence(&self) -> Result<Sequence, Error>;
}

impl Model for Graph<'_> {
    fn sequence(&self) -> Result<Sequence, Error> {
        Graph::sequence(self)
    }
}

/// All that decides the answers to a request.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) prompts: Vec<PromptText>,
    /// Answers to each prompt.
    pub(crate) n: usize,
    pub(crate) options: Options,
    pub(crate) stops: Stops,
    pub(crate) listener: Listener,
    /// Most calls in one answer.
    pub(crate) calls_max: usize,
}

/// A prompt that somebody owns.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PromptText {
    Text(String),
    Tokens(Vec<i32>),
}

impl PromptText {
    fn as_prompt(&self) -> Prompt<'_> {
        match self {
            Self::Text(text) => Prompt::Text(text),
            Self::Tokens(tokens) => Prompt::Tokens(tokens),
        }
    }
}

/// What an answer grows by.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Delta {
    /// Which answer.
    pub(crate) index: usize,
    pub(crate) text: String,
    pub(crate) calls: Vec<Call>,
    /// The tokens of the text, where their probabilities were asked for.
    pub(crate) tokens: Vec<Token>,
    pub(crate) finish: Option<Finish>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Finish {
    Stop,
    Length,
    ToolCalls,
}

/// Tokens of the whole request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u32,
    pub(crate) cached_tokens: u32,
    pub(crate) completion_tokens: u32,
}

/// The answers to a request, on their way.
pub(crate) struct Answers {
    plan: Plan,
    choices: Vec<Choice>,
    /// What was said before anybody asked.
    ready: VecDeque<Delta>,
    /// Whose turn it is.
    turn: usize,
    /// Of each prompt, as its first sequence says.
    read: Vec<Option<Begin>>,
}

impl Answers {
    /// Starts all sequences; returns when each has said something. What is wrong with a prompt is told here.
    pub(crate) fn start(model: &impl Model, plan: Plan) -> Result<Self, Error> {
        let read = vec![None; plan.prompts.len()];
        let mut answers = Self { plan, choices: Vec::new(), ready: VecDeque::new(), turn: 0, read };
        for index in 0..answers.plan.prompts.len() * answers.plan.n {
            let plan = &answers.plan;
            let prompt = plan.prompts[index / plan.n].as_prompt();
            // The answers to one prompt are to differ.
            let seed = plan.options.seed.map(|seed| seed.wrapping_add((index % plan.n) as u32));
            let mut sequence = model.sequence()?;
            let chunk = sequence.start(prompt, &Options { seed, ..plan.options.clone() })?;
            answers.choices.push(Choice::new(index, sequence, plan));
            let delta = answers.hear(index, chunk);
            answers.ready.push_back(delta);
        }
        Ok(answers)
    }

    /// How many answers there are.
    pub(crate) fn len(&self) -> usize {
        self.choices.len()
    }

    /// What comes next; none when all answers have ended.
    pub(crate) fn next(&mut self) -> Result<Option<Delta>, Error> {
        if let Some(delta) = self.ready.pop_front() {
            return Ok(Some(delta));
        }
        // Side by side: each has its turn, and those that wait go on being computed.
        let count = self.choices.len();
        let turns = (0..count).map(|step| (self.turn + step) % count);
        let Some(index) = turns.into_iter().find(|&index| self.choices[index].sequence.is_some()) else {
            return Ok(None);
        };
        self.turn = index + 1;
        let chunk = self.choices[index].sequence.as_mut().map(Sequence::next).transpose()?;
        Ok(chunk.map(|chunk| self.hear(index, chunk)))
    }

    fn hear(&mut self, index: usize, chunk: Chunk) -> Delta {
        if let Some(begin) = chunk.begin {
            self.read[index / self.plan.n].get_or_insert(begin);
        }
        self.choices[index].hear(chunk)
    }

    /// What was read and written; to be asked at the end.
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.read.iter().flatten().map(|read| read.prompt_tokens).sum(),
            cached_tokens: self.read.iter().flatten().map(|read| read.cached_tokens).sum(),
            completion_tokens: self.choices.iter().map(|choice| choice.completion_tokens).sum(),
        }
    }
}

/// One answer.
struct Choice {
    index: usize,
    /// None when it has ended, so that the host computes it no longer.
    sequence: Option<Sequence>,
    stops: Stops,
    listener: Listener,
    calls_left: usize,
    called: bool,
    completion_tokens: u32,
    /// Tokens whose text is held back, each with where it begins; empty unless probabilities were asked for.
    waiting: VecDeque<(usize, Token)>,
    /// Length of the text that was heard, and of what was let through of it, in bytes.
    heard_bytes: usize,
    told_bytes: usize,
}

impl Choice {
    fn new(index: usize, sequence: Sequence, plan: &Plan) -> Self {
        Self {
            index,
            sequence: Some(sequence),
            stops: plan.stops.clone(),
            listener: plan.listener.clone(),
            calls_left: plan.calls_max,
            called: false,
            completion_tokens: 0,
            waiting: VecDeque::new(),
            heard_bytes: 0,
            told_bytes: 0,
        }
    }

    fn hear(&mut self, chunk: Chunk) -> Delta {
        let mut text = String::new();
        for token in chunk.tokens {
            // Those after a stop string were written in vain.
            if self.stops.stopped() {
                break;
            }
            self.completion_tokens += 1;
            text.push_str(&self.stops.hear(&token.text));
            let begins = self.heard_bytes;
            self.heard_bytes += token.text.len();
            if token.logprobs.is_some() {
                self.waiting.push_back((begins, token));
            }
        }
        let finish = match chunk.end {
            _ if self.stops.stopped() => Some(Finish::Stop),
            Some(end) => {
                text.push_str(&self.stops.end());
                Some(if end.finish_reason == FinishReason::Stop { Finish::Stop } else { Finish::Length })
            }
            None => None,
        };
        self.told_bytes += text.len();
        let tokens = self.told_tokens(finish.is_some());
        let mut heard = self.listener.hear(text);
        if finish.is_some() {
            self.sequence = None;
            let rest = self.listener.end();
            heard.content.push_str(&rest.content);
            heard.calls.extend(rest.calls);
        }
        heard.calls.truncate(self.calls_left);
        self.calls_left -= heard.calls.len();
        self.called |= !heard.calls.is_empty();
        let finish =
            finish.map(|finish| if self.called && finish == Finish::Stop { Finish::ToolCalls } else { finish });
        Delta { index: self.index, text: heard.content, calls: heard.calls, tokens, finish }
    }

    /// The tokens whose text has been let through; at the end, those of which a part has.
    fn told_tokens(&mut self, ended: bool) -> Vec<Token> {
        let mut told = Vec::new();
        while let Some((begins, token)) = self.waiting.front() {
            let ends = begins + token.text.len();
            if ends > self.told_bytes && !(ended && *begins < self.told_bytes) {
                break;
            }
            told.extend(self.waiting.pop_front().map(|(_, token)| token));
        }
        told
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;

    use tessera_sdk::{End, Logprobs};

    use super::*;
    use crate::calls::Syntax;

    /// A model whose sequences are written down before; a prompt has a token per byte.
    pub(crate) struct Script(RefCell<VecDeque<Vec<Chunk>>>);

    impl Script {
        /// One sequence per list; each text is a token, and each list a chunk of its own.
        pub(crate) fn new(sequences: &[&[&[&str]]]) -> Self {
            let sequence = |chunks: &&[&[&str]]| {
                let mut chunks: Vec<Chunk> = chunks.iter().map(|tokens| chunk(tokens)).collect();
                let completion_tokens = chunks.iter().map(|chunk| chunk.tokens.len() as u32).sum();
                if let Some(last) = chunks.last_mut() {
                    let finish_reason = FinishReason::Stop;
                    last.end = Some(End { finish_reason, prompt_tokens: 5, completion_tokens, cached_tokens: 2 });
                }
                if let Some(first) = chunks.first_mut() {
                    first.begin = Some(Begin { prompt_tokens: 5, cached_tokens: 2 });
                }
                chunks
            };
            Self(RefCell::new(sequences.iter().map(sequence).collect()))
        }
    }

    fn chunk(tokens: &[&str]) -> Chunk {
        let token = |text: &&str| Token {
            id: 1,
            text: (*text).to_owned(),
            bytes: text.as_bytes().to_vec(),
            logprobs: Some(Logprobs { chosen: -0.5, top: vec![(b"x".to_vec(), f32::NEG_INFINITY)] }),
        };
        Chunk { begin: None, tokens: tokens.iter().map(token).collect(), end: None }
    }

    impl Model for Script {
        fn sequence(&self) -> Result<Sequence, Error> {
            let chunks = self.0.borrow_mut().pop_front();
            chunks.map(Sequence::scripted).ok_or_else(|| Error::model("the script has ended"))
        }
    }

    fn plan(n: usize, stops: &[&str]) -> Plan {
        Plan {
            prompts: vec![PromptText::Text("Hello, you!".to_owned())],
            n,
            options: Options::default(),
            stops: Stops::new(stops.iter().map(|stop| (*stop).to_owned()).collect()),
            listener: Listener::Deaf,
            calls_max: usize::MAX,
        }
    }

    fn all(script: &Script, plan: Plan) -> (Vec<Delta>, Usage) {
        let mut answers = Answers::start(script, plan).unwrap();
        let deltas = std::iter::from_fn(|| answers.next().unwrap()).collect();
        (deltas, answers.usage())
    }

    #[test]
    fn answers_go_on_side_by_side() {
        let script = Script::new(&[&[&["a"], &["b"], &["c"]], &[&["x", "y"]]]);
        let (deltas, usage) = all(&script, plan(2, &[]));
        let said: Vec<(usize, &str)> = deltas.iter().map(|delta| (delta.index, delta.text.as_str())).collect();
        assert_eq!(said, [(0, "a"), (1, "xy"), (0, "b"), (0, "c")]);
        assert_eq!(deltas.iter().filter(|delta| delta.finish == Some(Finish::Stop)).count(), 2);
        // The prompt counts once.
        assert_eq!(usage, Usage { prompt_tokens: 5, cached_tokens: 2, completion_tokens: 5 });
    }

    #[test]
    fn a_stop_string_ends_the_sequence_and_the_count() {
        let script = Script::new(&[&[&["a", "E"], &["N", "D", "b", "c"], &["never"]]]);
        let (deltas, usage) = all(&script, plan(1, &["END"]));
        assert_eq!(deltas.iter().map(|delta| delta.text.as_str()).collect::<String>(), "a");
        assert_eq!(deltas.last().unwrap().finish, Some(Finish::Stop));
        // Its four tokens, and the prompt's, of which the beginning of the answer told.
        assert_eq!(usage, Usage { prompt_tokens: 5, cached_tokens: 2, completion_tokens: 4 });
    }

    #[test]
    fn tokens_are_told_with_their_text() {
        let script = Script::new(&[&[&["a", "E"], &["x"], &["b", "EN", "D."]]]);
        let (deltas, _) = all(&script, plan(1, &["END"]));
        let told: Vec<(&str, Vec<&str>)> = deltas
            .iter()
            .map(|delta| (delta.text.as_str(), delta.tokens.iter().map(|token| token.text.as_str()).collect()))
            .collect();
        assert_eq!(told, [("a", vec!["a"]), ("Ex", vec!["E", "x"]), ("b", vec!["b"])]);
    }

    #[test]
    fn calls_are_told_whole_and_name_the_end() {
        let script = || {
            Script::new(&[&[
                &["So <tool", "_call>{\"name\": \"f\"}"],
                &["</tool_call><tool_call>{\"name\": \"g\"}</tool_call>"],
            ]])
        };
        let plan = |calls_max| Plan { listener: Listener::open(Syntax::Tags, Vec::new()), calls_max, ..plan(1, &[]) };
        let (deltas, _) = all(&script(), plan(9));
        assert_eq!((deltas[0].text.as_str(), deltas[0].calls.len()), ("So", 0));
        assert_eq!((deltas[1].calls.len(), deltas[1].finish), (2, Some(Finish::ToolCalls)));
        let (deltas, _) = all(&script(), plan(1));
        assert_eq!(deltas[1].calls.len(), 1);
    }

    #[test]
    fn several_prompts_have_answers_of_their_own() {
        let script = Script::new(&[&[&["a"]], &[&["b"]], &[&["c"]], &[&["d"]]]);
        let prompts = ["one", "two"].map(|text| PromptText::Text(text.to_owned())).to_vec();
        let (deltas, usage) = all(&script, Plan { prompts, ..plan(2, &[]) });
        assert_eq!(deltas.iter().map(|delta| delta.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(usage.prompt_tokens, 10);
    }
}
