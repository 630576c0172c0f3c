//! llama.cpp with a real, small model: answers are the same however they are computed, nothing is shared that must not
//! be, and what is given up is freed. Skipped, saying so, where the model or the libraries are absent; they fail in CI.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant};

use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::sampling::LlamaSampler;
use serde_json::{Value, json};

use super::super::inspect;
use super::*;
use crate::nn::{LoadHost, TensorType};

/// Two tokens whose logarithms differ by less count as equally likely: what eight bits of a weight make of a sum.
const TIE: f32 = 0.3;

const FAR: Duration = Duration::from_secs(600);

/// The model that `make setup` installs.
fn model_path() -> Option<PathBuf> {
    let path = std::env::var_os("TESSERA_MODELS").map(|models| PathBuf::from(models).join("smollm2/model.gguf"));
    let there = path.filter(|path| path.exists());
    assert!(there.is_some() || std::env::var_os("CI").is_none(), "CI must test llama.cpp with its model");
    if there.is_none() {
        eprintln!("SKIPPED: TESSERA_MODELS/smollm2/model.gguf is not there (make setup)");
    }
    there
}

fn source(path: PathBuf, sequences: SequenceSpec) -> GraphSource {
    GraphSource {
        path,
        external_files: vec![],
        target: ExecutionTarget::Cpu,
        converted: None,
        batch: BatchSpec::default(),
        intra_op_threads: 1,
        sequences,
        host: LoadHost::default(),
    }
}

fn spec(context_tokens: u32, sequences: u32, cache_tokens: u32) -> SequenceSpec {
    SequenceSpec { context_tokens: Some(context_tokens), sequences: Some(sequences), cache_tokens: Some(cache_tokens) }
}

fn load(spec: SequenceSpec) -> Option<LlamaGraph> {
    Some(open().unwrap().load_graph(&source(model_path()?, spec)).unwrap())
}

fn inputs(prompt: &str, options: &Value) -> Vec<(String, Tensor)> {
    let text = |name: &str, text: &str| {
        (name.to_owned(), Tensor::new(TensorType::U8, vec![text.len() as u32], text.as_bytes().to_vec()).unwrap())
    };
    vec![text("prompt", prompt), text("options", &options.to_string())]
}

/// An answer with its end.
#[derive(Debug, Clone, PartialEq)]
struct Answer {
    begin: Value,
    tokens: Vec<i32>,
    text: String,
    /// The two most likely tokens for each, with their logarithms, where they were asked for.
    top: Vec<[(i32, f32); 2]>,
    end: Value,
}

fn deadline() -> Instant {
    Instant::now() + FAR
}

async fn rest(sequence: &mut Box<dyn Sequence>, first: Outputs) -> Result<Answer, NnError> {
    let mut answer = Answer { begin: Value::Null, tokens: vec![], text: String::new(), top: vec![], end: Value::Null };
    let (mut top_tokens, mut top_logprobs) = (Vec::new(), Vec::new());
    let mut text = Vec::new();
    let mut outputs = first;
    loop {
        for (name, tensor) in outputs {
            match name.as_str() {
                "tokens" => {
                    answer.tokens.extend(tensor.data().as_chunks::<4>().0.iter().map(|n| i32::from_le_bytes(*n)))
                }
                "text" => text.extend_from_slice(tensor.data()),
                "top_tokens" => {
                    top_tokens.extend(tensor.data().as_chunks::<4>().0.iter().map(|n| i32::from_le_bytes(*n)))
                }
                "top_logprobs" => {
                    top_logprobs.extend(tensor.data().as_chunks::<4>().0.iter().map(|n| f32::from_le_bytes(*n)))
                }
                "begin" => answer.begin = serde_json::from_slice(tensor.data()).unwrap(),
                "end" => answer.end = serde_json::from_slice(tensor.data()).unwrap(),
                _ => {}
            }
        }
        if !answer.end.is_null() {
            answer.text = String::from_utf8_lossy(&text).into_owned();
            let top: Vec<(i32, f32)> = top_tokens.into_iter().zip(top_logprobs).collect();
            answer.top = top.as_chunks::<2>().0.to_vec();
            return Ok(answer);
        }
        outputs = sequence.compute(vec![], deadline()).await?;
    }
}

async fn ask(graph: &LlamaGraph, tenant: u64, prompt: &str, options: Value) -> Result<Answer, NnError> {
    let mut sequence = graph.sequences().unwrap().open(Tenant(tenant));
    let first = sequence.compute(inputs(prompt, &options), deadline()).await?;
    rest(&mut sequence, first).await
}

/// Polls once; none when the future is not done.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    futures_util::future::poll_fn(|context| {
        Poll::Ready(match Pin::new(&mut *future).poll(context) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

fn chat(question: &str) -> String {
    format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
}

fn greedy(max_tokens: u32) -> Value {
    json!({ "temperature": 0, "max_tokens": max_tokens })
}

#[tokio::test]
async fn an_answer_makes_sense_ends_and_is_counted() {
    let Some(graph) = load(spec(512, 4, 1024)) else { return };
    let answer = ask(&graph, 1, &chat("What is the capital of France?"), greedy(64)).await.unwrap();
    assert!(answer.text.contains("Paris"), "{answer:?}");
    assert_eq!(answer.end["finish_reason"], "stop");
    assert_eq!(answer.end["completion_tokens"], answer.tokens.len());
    assert_eq!(answer.begin, json!({ "prompt_tokens": answer.end["prompt_tokens"], "cached_tokens": 0 }));
    let short = ask(&graph, 1, &chat("What is the capital of France?"), greedy(3)).await.unwrap();
    assert_eq!(short.end["finish_reason"], "length");
    assert_eq!(short.tokens, answer.tokens[..3]);
}

/// Answers as llama.cpp's own examples make them: a context for each, the whole prompt in a step, then token by token.
fn by_llama_cpp_alone(graph: &LlamaGraph, prompt: &str, tokens_max: usize) -> Vec<i32> {
    let model = &graph.shared.model;
    let threads = i32::try_from(graph.threads).unwrap();
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(512))
        .with_n_threads(threads)
        .with_n_threads_batch(threads);
    let mut context = model.new_context(&library().unwrap().backend, params).unwrap();
    let prompt = model.vocab().tokenize(prompt.as_bytes(), true, true);
    let mut batch = LlamaBatch::new(512, 1);
    batch.add_sequence(&prompt, 0, false).unwrap();
    let mut sampler = LlamaSampler::greedy();
    let mut tokens = Vec::new();
    for place in i32::try_from(prompt.len()).unwrap().. {
        context.decode(&mut batch).unwrap();
        let token = sampler.sample(&context, batch.n_tokens() - 1);
        if model.vocab().is_eog(token) {
            break;
        }
        tokens.push(token.0);
        if tokens.len() == tokens_max {
            break;
        }
        batch.clear();
        batch.add(token, place, &[0], true).unwrap();
    }
    tokens
}

#[tokio::test]
async fn greedy_answers_are_llama_cpps_token_for_token() {
    let Some(graph) = load(spec(512, 16, 2048)) else { return };
    let subjects =
        ["the sea", "bread", "a mosaic", "winter", "the number seven", "trains", "a cat", "iron", "tea", "maps"];
    let asks = ["What is {}?", "Translate '{}' into French.", "List facts about {}.", "Joke about {}.", "Praise {}."];
    let options = json!({ "temperature": 0, "max_tokens": 16, "cache": false });
    for prompt in subjects.iter().flat_map(|subject| asks.map(|ask| chat(&ask.replace("{}", subject)))) {
        let answer = ask(&graph, 1, &prompt, options.clone()).await.unwrap();
        assert_eq!(answer.tokens, by_llama_cpp_alone(&graph, &prompt, 16), "{prompt}");
    }
}

#[tokio::test]
async fn sixteen_answers_at_once_are_those_that_come_alone() {
    let Some(graph) = load(spec(512, 16, 4096)) else { return };
    let questions: Vec<String> = (0..16).map(|n| chat(&format!("Tell me something about the number {n}."))).collect();
    let options = json!({ "temperature": 0, "max_tokens": 24, "logprobs": 2 });
    let mut alone = Vec::new();
    for (tenant, question) in questions.iter().enumerate() {
        alone.push(ask(&graph, tenant as u64, question, options.clone()).await.unwrap());
    }
    // Other workspaces, so that nothing of the first answers is used again.
    let ask_too = |(tenant, question)| ask(&graph, 100 + tenant as u64, question, options.clone());
    let together = futures_util::future::join_all(questions.iter().map(String::as_str).enumerate().map(ask_too)).await;
    for (alone, together) in alone.iter().zip(together) {
        // Sums are added up in another order when more is computed together: where two tokens are almost equally likely, the
        // other may win, and what follows is another answer.
        let together = together.unwrap();
        let differs = alone.tokens.iter().zip(&together.tokens).position(|(alone, together)| alone != together);
        let Some(first) = differs else { continue };
        let (likely, second) = (alone.top[first][0], alone.top[first][1]);
        assert_eq!(together.tokens[first], second.0, "{alone:?} {together:?}");
        assert!(likely.1 - second.1 < TIE, "{} and {} of {:?}", likely.1, second.1, alone.text);
    }
}

#[tokio::test]
async fn a_beginning_is_used_again_in_its_own_workspace_only() {
    let Some(graph) = load(spec(512, 2, 1024)) else { return };
    let system = "You are a helpful assistant who answers in one short sentence. ".repeat(4);
    let prompt = |question: &str| chat(&format!("{system}{question}"));
    let cached = |answer: &Answer| {
        assert_eq!(answer.begin["cached_tokens"], answer.end["cached_tokens"]);
        answer.end["cached_tokens"].as_u64().unwrap()
    };
    let first = ask(&graph, 1, &prompt("Who are you?"), greedy(8)).await.unwrap();
    assert_eq!(cached(&first), 0);
    let other = ask(&graph, 2, &prompt("Who are you?"), greedy(8)).await.unwrap();
    assert_eq!(cached(&other), 0, "another workspace's is not used");
    let again = ask(&graph, 1, &prompt("Who are you?"), greedy(8)).await.unwrap();
    assert_eq!(cached(&again), again.end["prompt_tokens"].as_u64().unwrap() - 1, "all but the last");
    assert_eq!(again.tokens, first.tokens);
    let partly = ask(&graph, 1, &prompt("What is a tile?"), greedy(8)).await.unwrap();
    assert!(cached(&partly) > 40 && cached(&partly) < cached(&again), "{partly:?}");
    // Unless it is not wanted.
    let unshared = json!({ "temperature": 0, "max_tokens": 8, "cache": false });
    for prompt in [&prompt("Who are you?"), "One, two, three, four, five, six, seven, eight, nine, ten,"] {
        assert_eq!(cached(&ask(&graph, 1, prompt, unshared.clone()).await.unwrap()), 0);
    }
    let after = ask(&graph, 1, "One, two, three, four, five, six, seven, eight, nine, ten,", greedy(8)).await.unwrap();
    assert_eq!(cached(&after), 0);
}

#[tokio::test]
async fn a_sequence_goes_on_after_its_answer() {
    let Some(graph) = load(spec(512, 2, 1024)) else { return };
    let mut sequence = graph.sequences().unwrap().open(Tenant(1));
    let first = sequence.compute(inputs(&chat("My name is Ada. Who am I?"), &greedy(32)), deadline()).await.unwrap();
    let first = rest(&mut sequence, first).await.unwrap();
    let error = sequence.compute(vec![], deadline()).await.unwrap_err();
    assert_eq!(error.kind(), NnErrorKind::InvalidArgument);
    let more = format!("<|im_end|>\n{}", chat("Repeat my name."));
    let second = sequence.compute(inputs(&more, &greedy(32)), deadline()).await.unwrap();
    let second = rest(&mut sequence, second).await.unwrap();
    let before = first.end["prompt_tokens"].as_u64().unwrap() + first.tokens.len() as u64;
    assert!(second.end["prompt_tokens"].as_u64().unwrap() > before);
    assert!(second.end["cached_tokens"].as_u64().unwrap() >= before - 1, "{second:?} after {first:?}");
    let whole = format!("{}{}{more}", chat("My name is Ada. Who am I?"), first.text);
    let at_once = ask(&graph, 2, &whole, greedy(32)).await.unwrap();
    assert_eq!(at_once.tokens, second.tokens);
}

#[tokio::test]
async fn what_is_given_up_is_freed_at_every_stage() {
    let Some(path) = model_path() else { return };
    let host = LoadHost::default();
    let source = GraphSource { host: host.clone(), ..source(path, spec(2048, 1, 2048)) };
    let graph = open().unwrap().load_graph(&source).unwrap();
    let counters = &host.sequences;
    let sequence = || graph.sequences().unwrap().open(Tenant(1));
    let long = json!({ "temperature": 0, "ignore_eos": true });
    let counts = || (counters.waiting.load(Relaxed), counters.live.load(Relaxed));
    let settled = |wanted: (i64, i64)| async move {
        let until = deadline();
        while counts() != wanted {
            assert!(Instant::now() < until, "{:?} instead of {wanted:?}", counts());
            tokio::task::yield_now().await;
        }
    };
    // While it answers; and one behind it while it waits.
    let mut answering = sequence();
    answering.compute(inputs(&chat("Count."), &long), deadline()).await.unwrap();
    let mut waiting = sequence();
    let mut begun = waiting.compute(inputs(&chat("Count."), &long), deadline());
    assert!(poll_once(&mut begun).await.is_none());
    settled((1, 1)).await;
    drop(begun);
    drop(waiting);
    settled((0, 1)).await;
    drop(answering);
    settled((0, 0)).await;
    // While its prompt is computed: longer than one step.
    let mut reading = sequence();
    let given = inputs(&"one two three four five six seven eight ".repeat(100), &long);
    let reading = tokio::spawn(async move { reading.compute(given, deadline()).await.map(drop) });
    settled((0, 1)).await;
    let steps = counters.steps.load(Relaxed);
    reading.abort();
    assert!(reading.await.unwrap_err().is_cancelled(), "given up before its prompt was computed");
    settled((0, 0)).await;
    assert!(counters.steps.load(Relaxed) <= steps + 2, "the step that ran, and no more");
    // While its guest does not fetch, after as much as the engine computes ahead.
    let mut stalled = sequence();
    stalled.compute(inputs(&chat("Count."), &long), deadline()).await.unwrap();
    let steps = || counters.steps.load(Relaxed);
    let (mut before, until) = (steps(), deadline());
    // It has stopped when others are computed, and it is not.
    while before != steps() {
        assert!(Instant::now() < until);
        before = steps();
        tokio::task::yield_now().await;
    }
    drop(stalled);
    settled((0, 0)).await;
    // When its guest does not fetch: the engine stops, and begins again when it does.
    let mut stalled = sequence();
    let first = stalled.compute(
        inputs(&chat("Count."), &json!({"temperature": 0, "ignore_eos": true, "max_tokens": 600})),
        deadline(),
    );
    let first = first.await.unwrap();
    let fetched = rest(&mut stalled, first).await.unwrap();
    assert_eq!(fetched.tokens.len(), 600);
}

#[tokio::test]
async fn a_guest_that_does_not_fetch_leaves_its_sequence_to_others() {
    // With one sequence; and with two, but room for one and a quarter.
    for (spec, tokens) in [(spec(512, 1, 512), 8), (spec(512, 2, 640), 480)] {
        let Some(graph) = load(spec) else { return };
        let options = |tokens: u32| json!({ "temperature": 0, "ignore_eos": true, "max_tokens": tokens });
        let mut slow = graph.sequences().unwrap().open(Tenant(1));
        let first = slow.compute(inputs(&chat("Count."), &options(400)), deadline()).await.unwrap();
        // Its guest waits for another answer before it fetches more: that one comes, and then the rest of its own.
        let other = ask(&graph, 2, &chat("Tell me a story."), options(tokens)).await.unwrap();
        assert_eq!(other.tokens.len(), tokens as usize);
        let slow = rest(&mut slow, first).await.unwrap();
        assert_eq!((slow.tokens.len(), &slow.end["finish_reason"]), (400, &json!("length")));
        let alone = ask(&graph, 3, &chat("Count."), options(40)).await.unwrap();
        assert_eq!(slow.tokens[..20], alone.tokens[..20]);
    }
}

#[tokio::test]
async fn a_grammar_that_means_ill_costs_its_own_answer_only() {
    let Some(graph) = load(spec(512, 2, 1024)) else { return };
    // Each letter, and each bracket, doubles the ways to go on: who follows them one by one never ends.
    let grammar = "root ::= s\ns ::= \"a\" s \"b\" | \"a\" s \"c\" | \"a\"";
    let lists = json!({ "type": "array", "items": { "anyOf": [{ "$ref": "#/$defs/a" }, { "$ref": "#/$defs/b" }] } });
    let schema = json!({ "$defs": { "a": lists, "b": lists }, "$ref": "#/$defs/a" });
    let repeated = format!("root ::= {}[a-z]{}", "(".repeat(20), "{1,9999})".repeat(20));
    for ill in [json!({ "grammar": grammar }), json!({ "grammar": repeated }), json!({ "json_schema": schema })] {
        let mut options = json!({ "temperature": 0, "max_tokens": 64, "ignore_eos": true });
        options.as_object_mut().unwrap().extend(ill.as_object().unwrap().clone());
        let (ill, well) = (chat("Write as many letters a and brackets as you can."), chat("Who are you?"));
        let (ill, well) = tokio::join!(ask(&graph, 1, &ill, options), ask(&graph, 2, &well, greedy(8)));
        assert!(ill.map_or_else(|error| error.kind() == NnErrorKind::InvalidArgument, |ill| !ill.tokens.is_empty()));
        assert_eq!(well.unwrap().tokens.len(), 8);
    }
}

#[tokio::test]
async fn sequences_that_do_not_fit_together_take_turns() {
    // Room for one and a half: the younger is put back, and goes on when the other has ended.
    let Some(graph) = load(spec(256, 2, 384)) else { return };
    let options = json!({ "temperature": 0, "ignore_eos": true, "max_tokens": 200 });
    let alone = ask(&graph, 9, &chat("Tell me a story."), options.clone()).await.unwrap();
    let story = chat("Tell me a story.");
    let both = (1..3).map(|tenant| ask(&graph, tenant, &story, options.clone()));
    for answer in futures_util::future::join_all(both).await {
        let answer = answer.unwrap();
        assert_eq!(answer.tokens.len(), 200);
        assert_eq!(answer.tokens[..20], alone.tokens[..20]);
    }
}

#[tokio::test]
async fn too_much_is_refused_and_says_what() {
    let Some(graph) = load(spec(64, 1, 64)) else { return };
    let refused = |error: NnError, kind, says: &str| {
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().contains(says), "{error}");
    };
    let long = "word ".repeat(100);
    let error = ask(&graph, 1, &long, greedy(1)).await.unwrap_err();
    refused(error, NnErrorKind::InvalidArgument, "tokens, the context 64");
    let error = ask(&graph, 1, &"x".repeat(1 << 20), greedy(1)).await.unwrap_err();
    refused(error, NnErrorKind::InvalidArgument, "the prompt has at least");
    refused(ask(&graph, 1, "", greedy(1)).await.unwrap_err(), NnErrorKind::InvalidArgument, "empty");
    let unknown = Tensor::new(TensorType::I32, vec![1], (1i32 << 30).to_le_bytes().to_vec()).unwrap();
    let mut sequence = graph.sequences().unwrap().open(Tenant(1));
    let error = sequence.compute(vec![("tokens".to_owned(), unknown)], deadline()).await.unwrap_err();
    refused(error, NnErrorKind::InvalidArgument, "token 1073741824");
    for (options, says) in [
        (json!({ "grammar": "root ::= (" }), "line 1: expected ')'"),
        (json!({ "grammar": "rule ::= \"a\"" }), "no rule 'root'"),
        (json!({ "grammar": "root ::= root \"a\"" }), "cannot be followed"),
        (json!({ "grammar": "root ::= \"a\"{1000000000}" }), "0 to 10000"),
        (json!({ "json_schema": { "type": "nonsense" } }), "json_schema"),
        (json!({ "logit_bias": { "999999": 1 } }), "logit_bias names token 999999"),
    ] {
        let error = ask(&graph, 1, "x", options).await.unwrap_err();
        refused(error, NnErrorKind::InvalidArgument, says);
    }
    let deadline_passed = sequence.compute(inputs("x", &greedy(1)), Instant::now() - Duration::from_secs(1)).await;
    refused(deadline_passed.unwrap_err(), NnErrorKind::Timeout, "deadline");
}

#[tokio::test]
async fn a_full_queue_refuses_and_empties() {
    let Some(graph) = load(spec(64, 1, 64)) else { return };
    let answers = (0..40).map(|tenant| ask(&graph, tenant, "Once upon a time", greedy(4)));
    let answers = futures_util::future::join_all(answers).await;
    let refused = answers.iter().filter_map(|answer| answer.as_ref().err()).collect::<Vec<_>>();
    assert!(!refused.is_empty() && refused.iter().all(|error| error.kind() == NnErrorKind::Overloaded), "{refused:?}");
    assert!(answers.iter().filter(|answer| answer.is_ok()).count() >= WAITING_PER_SEQUENCE);
    assert!(ask(&graph, 1, "Once upon a time", greedy(4)).await.is_ok());
}

#[tokio::test]
async fn one_workspace_leaves_half_of_the_queue_to_others() {
    let Some(graph) = load(spec(64, 1, 64)) else { return };
    let asked = |tenant| ask(&graph, tenant, "Once upon a time", greedy(4));
    let greedy_one = (0..WAITING_PER_SEQUENCE).map(|_| asked(1));
    let others = (0..WAITING_PER_SEQUENCE as u64 / 2).map(|tenant| asked(2 + tenant));
    let answers = futures_util::future::join_all(greedy_one.chain(others)).await;
    let (its_own, others) = answers.split_at(WAITING_PER_SEQUENCE);
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    let refused = its_own.iter().filter_map(|answer| answer.as_ref().err()).collect::<Vec<_>>();
    assert!(!refused.is_empty() && refused.iter().all(|error| error.kind() == NnErrorKind::Overloaded), "{refused:?}");
}

#[tokio::test]
async fn options_shape_the_answer() {
    let Some(graph) = load(spec(512, 4, 1024)) else { return };
    let prompt = chat("Name a colour.");
    let schema =
        json!({ "type": "object", "properties": { "colour": { "enum": ["red", "blue"] } }, "required": ["colour"] });
    let answer =
        ask(&graph, 1, &prompt, json!({ "temperature": 0, "json_schema": schema, "max_tokens": 64 })).await.unwrap();
    let parsed: Value = serde_json::from_str(&answer.text).unwrap();
    assert!(parsed["colour"] == "red" || parsed["colour"] == "blue", "{answer:?}");
    let answer =
        ask(&graph, 1, &prompt, json!({ "grammar": "root ::= \"yes\" | \"no\"", "temperature": 0 })).await.unwrap();
    assert!(["yes", "no"].contains(&answer.text.as_str()), "{answer:?}");
    // As stock:chat makes it of tools whose schemas have definitions of one name.
    let tool = |number: u32| {
        json!({ "properties": { "p": { "$ref": format!("#/$defs/tool_{number}/$defs/p") } },
        "type": "object", "required": ["p"], "additionalProperties": false, "$defs": { "p": { "const": number } } })
    };
    let schema = json!({ "anyOf": [{ "$ref": "#/$defs/tool_1" }], "$defs": { "tool_0": tool(0), "tool_1": tool(1) } });
    let answer = ask(&graph, 1, &prompt, json!({ "temperature": 0, "json_schema": schema })).await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&answer.text).unwrap(), json!({ "p": 1 }), "{answer:?}");

    let seeded = |seed: u32| ask(&graph, 1, &prompt, json!({ "seed": seed, "temperature": 1.5, "max_tokens": 16 }));
    let (first, again, other) = (seeded(7).await.unwrap(), seeded(7).await.unwrap(), seeded(8).await.unwrap());
    assert_eq!(first.tokens, again.tokens);
    assert_ne!(first.tokens, other.tokens);

    let plain = ask(&graph, 1, &prompt, greedy(1)).await.unwrap();
    let banned = json!({ "temperature": 0, "max_tokens": 1, "logit_bias": { plain.tokens[0].to_string(): -100 } });
    assert_ne!(ask(&graph, 1, &prompt, banned).await.unwrap().tokens, plain.tokens);
}

#[tokio::test]
async fn logprobs_say_how_likely_tokens_were() {
    let Some(graph) = load(spec(512, 4, 1024)) else { return };
    let mut sequence = graph.sequences().unwrap().open(Tenant(1));
    let options = json!({ "temperature": 0, "max_tokens": 1, "logprobs": 3 });
    let outputs = sequence.compute(inputs(&chat("Hi"), &options), deadline()).await.unwrap();
    let output = |name: &str| outputs.iter().find(|output| output.0 == name).map(|output| &output.1).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        output(name).data().as_chunks::<4>().0.iter().map(|n| f32::from_le_bytes(*n)).collect()
    };
    let (chosen, top) = (floats("logprobs"), floats("top_logprobs"));
    assert_eq!(output("top_tokens").dims(), [1, 3]);
    assert_eq!(chosen[0], top[0], "the most likely was chosen");
    assert!(top.is_sorted_by(|a, b| a >= b) && top.iter().map(|top| top.exp()).sum::<f32>() <= 1.0001);
    assert_eq!(output("top_tokens").data()[..4], output("tokens").data()[..]);
}

#[test]
fn what_a_package_asks_is_within_what_the_model_can() {
    let Some(path) = model_path() else { return };
    let gguf = gguf_file::read(&path).unwrap();
    let facts = inspect(&path, &[]).unwrap().metadata;
    assert_eq!(facts.get("general.architecture").map(String::as_str), Some("llama"));
    assert_eq!(facts.get("tokenizer.eos_token").map(String::as_str), Some("<|im_end|>"));
    assert!(facts.get("tokenizer.chat_template").is_some_and(|template| template.contains("im_start")));
    let trained = gguf.number("context_length").unwrap();
    let error = Limits::of(&gguf, &spec(trained as u32 + 1, 1, 1 << 20)).unwrap_err();
    assert!(error.to_string().contains(&trained.to_string()), "{error}");
    let limits = Limits::of(&gguf, &spec(1024, 1, 1024)).unwrap();
    let weights = 7;
    // The context for vectors has room for a text as long as a sequence.
    assert!(limits.memory_bytes(&gguf, weights) > weights + gguf.kv_bytes_per_token() * (1024 + 1024));
    let source = source(path, spec(64, 1, 64));
    let host = LoadHost { memory_bytes_max: 1 << 20, ..LoadHost::default() };
    let error = open().unwrap().load(&GraphSource { host, ..source.clone() }).err().unwrap();
    assert_eq!(error.kind(), NnErrorKind::TooLarge);
    assert!(error.to_string().contains("cache_tokens"), "{error}");
    if gpus().is_empty() {
        let error = open().unwrap().load(&GraphSource { target: ExecutionTarget::Gpu, ..source }).err().unwrap();
        assert_eq!(error.kind(), NnErrorKind::UnsupportedOperation);
    }
}

#[tokio::test]
async fn many_texts_take_many_steps() {
    let Some(path) = model_path() else { return };
    let host = LoadHost::default();
    let source = GraphSource { host: host.clone(), ..source(path, spec(512, 4, 512)) };
    let graph = open().unwrap().load_graph(&source).unwrap();
    let text = "word ".repeat(60);
    let ends: Vec<u8> = (1..=8).flat_map(|count| (count * text.len() as i32).to_le_bytes()).collect();
    let mut given = inputs(&text.repeat(8), &json!({ "task": "embed" }));
    given.push(("offsets".to_owned(), Tensor::new(TensorType::I32, vec![8], ends).unwrap()));
    let outputs = graph.sequences().unwrap().open(Tenant(1)).compute(given, deadline()).await.unwrap();
    assert_eq!(outputs[0].1.dims(), [8, 576]);
    // All would fit one; the first has fewer, since nobody knows yet how long a step takes.
    assert!(host.sequences.steps.load(Relaxed) >= 2);
}

#[tokio::test]
async fn any_number_of_sequences_makes_vectors() {
    for (context_tokens, sequences) in [(512, 3), (250, 7), (64, 16)] {
        let Some(graph) = load(spec(context_tokens, sequences, 512)) else { return };
        let given = inputs("A tile.", &json!({ "task": "embed" }));
        let outputs = graph.sequences().unwrap().open(Tenant(1)).compute(given, deadline()).await.unwrap();
        assert_eq!(outputs[0].1.dims(), [1, 576]);
    }
}

#[tokio::test]
async fn texts_that_cannot_be_computed_end_their_own_request_only() {
    let Some(graph) = load(spec(256, 2, 512)) else { return };
    let one_at_a_time =
        ContextSpec { purpose: Purpose::Answers, cache_tokens: 512, ids: 1, batch_tokens: 256, threads: 1, gpu: false };
    let mut embedder = Embedder::new(&graph.shared.model, one_at_a_time.for_vectors(256, false));
    let mut ask = |tenant, token| {
        let stream = Arc::<Stream>::default();
        let ticket = Ticket::take(&graph.shared.waiting, Tenant(tenant)).unwrap();
        embedder.push(Texts::new(Tenant(tenant), Arc::clone(&stream), vec![vec![token]], ticket));
        stream
    };
    // The model does not have the first token.
    let (wrong, right) = (ask(1, i32::MAX), ask(2, 1));
    let mut served = fair::Served::default();
    embedder.step(1, &mut served);
    assert!(wrong.next().await.is_err());
    assert!(!embedder.is_idle(), "the other waits as before");
    embedder.step(1, &mut served);
    let (chunk, _) = right.next().await.unwrap();
    assert!(matches!(chunk.end, Some(stream::Ended::Vectors(_))), "{chunk:?}");
}

#[tokio::test]
async fn texts_become_vectors_that_tell_how_alike_they_are() {
    let Some(graph) = load(spec(256, 4, 1024)) else { return };
    let texts = ["The cat sits on the mat.", "A cat is sitting on a mat.", "Interest rates rose by a quarter point."];
    let mut end = 0;
    let ends: Vec<u8> = texts
        .iter()
        .flat_map(|text| {
            end += text.len() as i32;
            end.to_le_bytes()
        })
        .collect();
    let mut given = inputs(&texts.concat(), &json!({ "task": "embed" }));
    given.push(("offsets".to_owned(), Tensor::new(TensorType::I32, vec![3], ends).unwrap()));
    let mut sequence = graph.sequences().unwrap().open(Tenant(1));
    let outputs = sequence.compute(given, deadline()).await.unwrap();
    let vectors = &outputs.iter().find(|output| output.0 == "embedding").unwrap().1;
    assert_eq!(vectors.dims(), [3, 576]);
    let values: Vec<f32> = vectors.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let rows: Vec<&[f32]> = values.chunks(576).collect();
    let alike = |a: usize, b: usize| rows[a].iter().zip(rows[b]).map(|(a, b)| a * b).sum::<f32>();
    assert!((alike(0, 0) - 1.0).abs() < 1e-5);
    assert!(alike(0, 1) > alike(0, 2), "{} and {}", alike(0, 1), alike(0, 2));

    // One alone is the same, and the sequence can go on to other things.
    let alone = sequence.compute(inputs(texts[0], &json!({ "task": "embed" })), deadline()).await.unwrap();
    let alone: Vec<f32> = alone[0].1.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    assert!(alone.iter().zip(rows[0]).all(|(alone, together)| (alone - together).abs() < 1e-2));
    let error =
        sequence.compute(inputs(&"word ".repeat(300), &json!({ "task": "embed" })), deadline()).await.unwrap_err();
    assert!(error.to_string().contains("tokens, the context 256"), "{error}");
}

/// The small model's file with another `tokenizer.ggml.pre`. Without its weights, which are zeros then, where `whole` is
/// false: enough for its vocabulary.
fn model_divided_as(pre: &str, whole: bool) -> Option<tempfile::NamedTempFile> {
    let path = model_path()?;
    let mut file = std::fs::File::open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(&mut file, if whole { length } else { 4 << 20 }), &mut bytes)
        .unwrap();
    // Where a text's length and its bytes are.
    let text = |bytes: &[u8], key: &str| {
        let at = bytes.windows(key.len()).position(|window| window == key.as_bytes()).unwrap() + key.len() + 4;
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        (at, at + 8, at + 8 + length)
    };
    let (at, begin, end) = text(&bytes, "tokenizer.ggml.pre");
    let longer = pre.len().cast_signed() - (end - begin).cast_signed();
    bytes.splice(at..end, [&(pre.len() as u64).to_le_bytes()[..], pre.as_bytes()].concat());
    // The template of its prompts, which nobody reads here, gets longer or shorter by as much: all else stays in its place.
    let (at, begin, end) = text(&bytes, "tokenizer.chat_template");
    let template = vec![b' '; (end - begin).checked_add_signed(-longer).unwrap()];
    bytes.splice(at..end, [&(template.len() as u64).to_le_bytes()[..], &template].concat());
    let mut changed = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut changed, &bytes).unwrap();
    changed.as_file().set_len(length).unwrap();
    Some(changed)
}

/// Kilobytes that this thread's stack has in memory: as much as was ever used of it.
fn stack_resident_kb() -> usize {
    let here = 0u8;
    let at = (&raw const here).addr();
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = maps.lines().skip_while(|line| {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let range = range.map(|(from, to)| (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16)));
        !matches!(range, Some((Ok(from), Ok(to))) if (from..to).contains(&at))
    });
    let resident = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
    resident.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn no_text_takes_more_stack_than_it_is_given() {
    open().unwrap();
    let params = LlamaModelParams::default().with_vocab_only(true);
    let texts =
        ["a", "A", "é", "漢", "1", " ", "\n", ".", "'s", "aB", " a", "\u{3000}", "(/"].map(|part| part.repeat(4000));
    let resident_kb = |pre: &str, stack_bytes: &dyn Fn(Splitter, &str) -> usize| {
        let file = model_divided_as(pre, false)?;
        let splitter = Splitter::of(&gguf_file::read(file.path()).unwrap());
        let model = LlamaModel::load_from_file(&library().unwrap().backend, file.path(), &params).unwrap();
        let of_text = |text: &String| {
            let work = || {
                model.vocab().tokenize(text.as_bytes(), true, true);
                stack_resident_kb()
            };
            let builder = Builder::new().stack_size(stack_bytes(splitter, text));
            std::thread::scope(|scope| builder.spawn_scoped(scope, work).unwrap().join().unwrap())
        };
        texts.iter().map(of_text).max()
    };
    for pre in splitter::LOOPS {
        let Some(kb) = resident_kb(pre, &|splitter, text| {
            assert_eq!(splitter.stack_bytes(text).unwrap(), None);
            256 << 10
        }) else {
            return;
        };
        assert!(kb < 64, "{pre}: {kb} kB");
    }
    let hungry = [
        "default",
        "jais-2",
        "deepseek-llm",
        "deepseek-v3",
        "hunyuan-dense",
        "spark2_5",
        "youtu",
        "deepseek-coder",
        "falcon",
        "bloom",
        "viking",
        "tekken",
        "chameleon",
        "gpt-4o",
        "llama4",
        "minimax-m2",
        "granite-embed-multi-97m",
        "tiny_aya",
        "superbpe",
        "bailingmoe",
        "seed-coder",
        "ufakzeka",
        "afmoe",
        "exaone-moe",
        "minicpm5",
    ];
    for pre in hungry {
        let kb = resident_kb(pre, &|splitter, text| splitter.stack_bytes(text).unwrap().unwrap()).unwrap();
        println!("{pre}: {} bytes for each character", (kb << 10) / 4000);
        // Parts of two characters are 8000.
        assert!(kb < 512 + 4000, "{pre}: {kb} kB");
    }
}

#[tokio::test]
async fn a_long_word_is_answered_or_refused_whatever_divides_it() {
    let Some(file) = model_divided_as("tekken", true) else { return };
    let graph = open().unwrap().load_graph(&source(file.path().to_owned(), spec(2048, 1, 2048))).unwrap();
    for (chars, says) in [(60_000, "tokens, the context 2048"), (100_000, "this model's tokenizer takes 65536")] {
        let error = ask(&graph, 1, &"k".repeat(chars), greedy(1)).await.unwrap_err();
        assert_eq!(error.kind(), NnErrorKind::InvalidArgument);
        assert!(error.to_string().contains(says), "{error}");
    }
    let answer = ask(&graph, 1, &chat("Count."), greedy(2)).await.unwrap();
    assert_eq!(answer.tokens.len(), 2);
}

#[test]
fn tokens_that_the_model_does_not_have_end_the_request() {
    if model_path().is_none() {
        return;
    }
    open().unwrap();
    // A vocabulary without a token for what it does not know: llama.cpp gives -1.
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let key = |name: &str, value: &str| [text(name), 8u32.to_le_bytes().to_vec(), text(value)].concat();
    let file = [
        [&b"GGUF"[..], &3u32.to_le_bytes(), &0u64.to_le_bytes(), &3u64.to_le_bytes()].concat(),
        [key("general.architecture", "bert"), key("tokenizer.ggml.model", "bert")].concat(),
        [text("tokenizer.ggml.tokens"), 9u32.to_le_bytes().to_vec(), 8u32.to_le_bytes().to_vec()].concat(),
        [2u64.to_le_bytes().to_vec(), text("\u{2581}a"), text("b"), vec![0; 64]].concat(),
    ];
    let mut path = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut path, &file.concat()).unwrap();
    let splitter = Splitter::of(&gguf_file::read(path.path()).unwrap());
    let params = LlamaModelParams::default().with_vocab_only(true);
    let model = LlamaModel::load_from_file(&library().unwrap().backend, path.path(), &params).unwrap();
    let vocabulary = Vocabulary::new(&Arc::new(model), splitter);
    let tokens = |text: &str| vocabulary.extend(vec![], &Prompt::Text(text.into()), false, 8);
    assert_eq!(tokens("ab a").unwrap(), [0, 1, 0]);
    let error = tokens("ab zz").unwrap_err();
    assert_eq!(error.kind(), NnErrorKind::RuntimeError);
    assert!(error.to_string().contains("token -1; the model has 0 to 1"), "{error}");
}

#[tokio::test]
async fn a_prompt_that_is_not_utf_8_is_answered() {
    let Some(graph) = load(spec(64, 1, 64)) else { return };
    // Characters behind the last of Unicode, half ones, and none at all.
    for prompt in [b"a\xf7\xbf\xbf\xbfb".as_slice(), b"\xf4\x90\x80\x80", b"\xed\xa0\x80", b"\x80\xffa\xc3"] {
        let prompt = Tensor::new(TensorType::U8, vec![prompt.len() as u32], prompt.to_vec()).unwrap();
        let mut given = inputs("", &greedy(1));
        given[0].1 = prompt;
        let mut sequence = graph.sequences().unwrap().open(Tenant(1));
        let first = sequence.compute(given, deadline()).await.unwrap();
        assert_eq!(rest(&mut sequence, first).await.unwrap().tokens.len(), 1);
    }
}
