//! A real language model behind OpenAI's API: through the clients that people use, through the command line, and with a
//! chat template that its author meant ill.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Package, Server, ask_python, eventually, model, printed, python, repository, send, serving, tessera,
};

/// The demo's package.
fn smollm2() -> Package {
    let manifest = std::fs::read(repository("guest-examples/smollm2/tessera.toml")).unwrap();
    Package::of(&model("smollm2")).with("tessera.toml", manifest)
}

fn serving_smollm2() -> Server {
    let server = Server::start();
    server.deploy("smollm2", &smollm2());
    server
}

#[test]
fn the_openai_client_chats_streams_calls_tools_and_gets_json() {
    let server = serving_smollm2();
    let said = ["/v1", "/serving-endpoints"].map(|base| {
        let mut client = python("chat_openai.py");
        client.args([&server.url(base), &server.token, "smollm2"]);
        ask_python(&mut client, &Value::Null)
    });
    assert_eq!(said[0], said[1], "both addresses lead to the same answer");
}

#[test]
fn mlflow_predicts_and_streams() {
    let server = serving_smollm2();
    let mut client = python("chat_mlflow.py");
    client.arg("smollm2").env("DATABRICKS_HOST", server.url("")).env("DATABRICKS_TOKEN", &server.token);
    let said = ask_python(&mut client, &Value::Null);
    assert!(!said["content"].as_str().unwrap().is_empty());
    assert!(said["completion"].as_str().unwrap().contains("four"), "{said}");
    assert_eq!(said["refused"]["error_code"], "BAD_REQUEST");
    assert!(said["refused"]["message"].as_str().unwrap().contains("exactly one of"), "{said}");
}

#[test]
fn a_stream_is_told_in_the_framing_that_clients_read() {
    let server = serving_smollm2();
    let body = json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 4, "stream": true });
    let answer = server.invoke("smollm2", &body);
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/event-stream"));
    let text = answer.text();
    // MLflow refuses all lines but these.
    assert!(text.lines().all(|line| line.is_empty() || line.starts_with("data: ")), "{text}");
    assert!(text.ends_with("\n\ndata: [DONE]\n\n"), "{text}");
    let first: Value = serde_json::from_str(text.lines().next().unwrap().strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(first["id"], format!("chatcmpl-{}", answer.header("x-request-id")));
}

/// What the last message asks for.
const ILL: &str = "{% set deed = messages[-1].content %}\
    {% if deed == 'loop' %}{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}{% endif %}\
    {% if deed == 'repeat' %}{% for a in range(100000) %}{{ 'x' * 100000 }}{% endfor %}{% endif %}\
    {% if deed == 'recurse' %}{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}{% endif %}\
    {% if deed == 'double' %}{% set ns = namespace(text='xxxxxxxx') %}\
    {% for a in range(60) %}{% set ns.text = ns.text ~ ns.text %}{% endfor %}{% endif %}\
    {% if deed == 'python' %}{{ ''.__class__.__mro__[1].__subclasses__() }}{% endif %}\
    <|im_start|>user\n{{ deed }}<|im_end|>\n<|im_start|>assistant\n";

#[test]
fn a_template_that_means_ill_harms_its_own_request_alone() {
    // given an endpoint whose template does what the message says, and its neighbour
    let server = serving_smollm2();
    let manifest = "component = 'stock:chat'\nassets = ['chat_template.jinja']\n[graphs.model]\nfile = 'model.gguf'\n";
    server.deploy("ill", &smollm2().with("tessera.toml", manifest).with("chat_template.jinja", ILL));
    let say = |endpoint: &str, text: &str| {
        server.invoke(
            endpoint,
            &json!({ "messages": [{ "role": "user", "content": text }], "max_tokens": 4, "temperature": 0 }),
        )
    };
    let before = say("smollm2", "Hello").ok()["choices"].clone();

    // when it is told to, then the caller learns what went wrong, and that is all
    for (deed, words) in [
        ("loop", "more than 5000000 steps"),
        ("repeat", "bytes of memory"),
        ("recurse", "chat template"),
        ("double", "bytes of memory"),
        ("python", "chat template"),
    ] {
        say("ill", deed).is_error(400, "BAD_REQUEST", &[words]);
        assert_eq!(server.get("/ready").status, 200, "{deed}");
        say("ill", "Hello").ok();
        assert_eq!(say("smollm2", "Hello").ok()["choices"], before, "{deed}");
    }
}

#[test]
fn a_package_says_how_its_model_answers_where_a_request_does_not() {
    let server = Server::start();
    let manifest = |temperature: &str| {
        format!(
            "component = 'stock:chat'\n[graphs.model]\nfile = 'model.gguf'\n\
             [settings]\nmax_tokens = '5'\ntemperature = '{temperature}'\n"
        )
    };
    server.deploy("terse", &smollm2().with("tessera.toml", manifest("0")));
    let messages = json!([{ "role": "user", "content": "Tell me a story." }]);
    let said = server.invoke("terse", &json!({ "messages": messages })).ok();
    assert_eq!(said["usage"]["completion_tokens"], 5, "{said:#}");
    let asked = json!({ "messages": messages, "temperature": 0, "max_tokens": 5 });
    assert_eq!(server.invoke("terse", &asked).ok()["choices"], said["choices"]);
    let longer = server.invoke("terse", &json!({ "messages": messages, "max_tokens": 7 })).ok();
    assert_eq!(longer["usage"]["completion_tokens"], 7, "{longer:#}");

    let version = server.push("main.default.hot", &smollm2().with("tessera.toml", manifest("3")));
    server.create("hot", &serving("main.default.hot", &version)).ok();
    let endpoint = server.settled("hot");
    assert_eq!(endpoint["state"]["config_update"], "UPDATE_FAILED", "{endpoint:#}");
    assert!(endpoint.to_string().contains("setting `temperature` is 3; 0 to 2 are allowed"), "{endpoint:#}");
}

#[test]
fn a_template_that_is_no_template_fails_the_deploy() {
    let server = Server::start();
    let manifest = "component = 'stock:chat'\nassets = ['chat_template.jinja']\n[graphs.model]\nfile = 'model.gguf'\n";
    let package = smollm2().with("tessera.toml", manifest).with("chat_template.jinja", "{% if %}");
    let version = server.push("main.default.broken", &package);
    server.create("broken", &serving("main.default.broken", &version)).ok();
    let endpoint = server.settled("broken");
    assert_eq!(endpoint["state"]["config_update"], "UPDATE_FAILED", "{endpoint:#}");
    assert!(endpoint.to_string().contains("is no Jinja"), "{endpoint:#}");
}

/// `tessera` as a client of this server.
fn client(server: &Server, arguments: &[&str]) -> Command {
    let mut command = tessera();
    command.args(arguments).arg("--home").arg(server.home());
    command
}

fn piped(mut command: Command, input: &str) -> std::process::Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_model_file_alone_is_pushed_deployed_and_talked_with() {
    // given a GGUF file and nothing else, pushed and deployed by the command line
    let server = Server::start();
    let file = model("smollm2").join("model.gguf");
    printed(
        client(&server, &["model", "push", file.to_str().unwrap(), "--name", "main.default.talker"]).output().unwrap(),
    );
    let create = ["endpoint", "create", "talker", "--model", "main.default.talker", "--version", "1", "--wait"];
    printed(client(&server, &create).output().unwrap());

    // when it is asked through a pipe, then stdout has the answer and nothing else
    let chat = ["chat", "talker", "--temperature", "0", "--max-tokens", "12", "--system", "Answer briefly."];
    let said = printed(piped(client(&server, &chat), "Name a river in France.\n"));
    let messages = json!([
        { "role": "system", "content": "Answer briefly." },
        { "role": "user", "content": "Name a river in France." },
    ]);
    let body = json!({ "messages": messages, "temperature": 0, "max_tokens": 12 });
    let answer = server.invoke("talker", &body).ok();
    assert_eq!(answer["choices"][0]["message"]["content"], said);
    assert_eq!(answer["model"], "talker");

    // and what is wrong is told on stderr
    for (arguments, input, words) in [
        (["chat", "nobody"], "Hi", "Endpoint with name 'nobody' does not exist"),
        (["chat", "talker"], "", "stdin is empty"),
    ] {
        let refused = piped(client(&server, &arguments), input);
        assert!(!refused.status.success());
        assert!(String::from_utf8_lossy(&refused.stderr).contains(words), "{refused:?}");
    }
}

#[test]
fn models_are_listed_to_those_who_may_see_them() {
    let server = Server::start();
    server.deploy("e", &Package::hostile(""));
    for path in ["/v1/models", "/serving-endpoints/models"] {
        let list = server.get(path).ok();
        assert_eq!((&list["object"], list["data"].as_array().unwrap().len()), (&json!("list"), 1));
        assert_eq!((&list["data"][0]["id"], &list["data"][0]["object"]), (&json!("e"), &json!("model")));
        assert_eq!(send(server.anonymous(reqwest::Method::GET, path)).status, 401);
    }
    assert_eq!(server.get("/v1/models/e").ok()["id"], "e");
    server.get("/v1/models/other").is_error(404, "RESOURCE_DOES_NOT_EXIST", &["'other'"]);
}

/// Asks for a stream, and hangs up after its first bytes if `leaves` says so. Gives what was read of the body.
fn stream(server: &Server, question: &str, leaves: bool) -> String {
    let body = json!({
        "messages": [{ "role": "user", "content": question }],
        "max_tokens": 12, "temperature": 0, "ignore_eos": true, "stream": true,
    });
    let request = server.request(Method::POST, "/serving-endpoints/smollm2/invocations").json(&body);
    let mut answer = request.send().unwrap();
    assert_eq!(answer.status(), 200);
    if leaves {
        let mut first = [0; 1];
        answer.read_exact(&mut first).unwrap();
        return String::from_utf8_lossy(&first).into_owned();
    }
    answer.text().unwrap()
}

#[test]
fn sixty_four_streams_at_once_leave_nothing_behind() {
    // given a server that has answered as many before; SOAK_ROUNDS makes it longer than a test should be
    let rounds = std::env::var("SOAK_ROUNDS").map_or(2, |rounds| rounds.parse().unwrap());
    let server = serving_smollm2();
    let round = |round: usize| {
        std::thread::scope(|scope| {
            let server = &server;
            let one = |n: usize| {
                (n, scope.spawn(move || stream(server, &format!("What is {round}{n}?"), n.is_multiple_of(3))))
            };
            let streams: Vec<_> = (0..64).map(one).collect();
            for (n, stream) in streams {
                let text = stream.join().unwrap();
                assert!(n.is_multiple_of(3) || text.ends_with("data: [DONE]\n\n"), "{text}");
            }
        });
        for metric in ["tessera_sequences", "tessera_sequences_waiting"] {
            eventually(metric, || (server.metric(metric) == 0.0).then_some(()));
        }
        server.memory_kib()
    };
    let before = round(0);

    // when it goes on so, then no sequence is left, nor memory that was taken for one
    for n in 1..=rounds {
        let now = round(n);
        assert!(now < before + (32 << 10), "{now} KiB after {n} rounds, {before} before");
    }
}
