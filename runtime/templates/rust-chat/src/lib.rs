//! OpenAI's chat API in front of known questions and answers.

mod search;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_sdk::{Endpoint, Error, Package, Request, Response};

use crate::search::Entries;

/// What is said when there is nothing to say.
const UNKNOWN: &str = "I do not know. Please ask in other words.";

tessera_sdk::export!(Assistant);

struct Assistant {
    entries: Entries,
}

/// The part of a chat request that matters here.
#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
    #[serde(default)]
    model: String,
    #[serde(default)]
    stream: bool,
}

#[derive(Deserialize, Serialize)]
struct Message {
    role: String,
    content: String,
}

impl Endpoint for Assistant {
    /// Runs once, at deploy. The memory it leaves is what every request starts from.
    fn init(package: &Package) -> Result<Self, Error> {
        Ok(Assistant { entries: Entries::parse(&package.asset_text("answers.txt")?)? })
    }

    /// Runs for each request, in an instance that has seen no other.
    fn handle(&self, request: Request) -> Result<Response, Error> {
        if !["chat/completions", "invocations"].contains(&request.path()) {
            return Err(Error::not_found(format!("there is no '{}': this is a chat", request.path())));
        }
        let chat: Chat = request.json()?;
        let answer = self.answer(&chat.messages)?;
        // A guest has no clock, so `created` is 0.
        let head = json!({ "id": "chatcmpl-0", "created": 0, "model": chat.model });
        if chat.stream { stream(head, answer) } else { Response::json(&whole(head, answer)) }
    }
}

impl Assistant {
    /// What to say to the last question.
    fn answer(&self, messages: &[Message]) -> Result<&str, Error> {
        let question = messages.iter().rfind(|message| message.role == "user");
        let question = question.ok_or_else(|| Error::invalid_input("`messages` has no message of the role `user`"))?;
        Ok(self.entries.answer(&question.content).unwrap_or(UNKNOWN))
    }
}

/// The answer as one object.
fn whole(mut head: serde_json::Value, answer: &str) -> serde_json::Value {
    head["object"] = "chat.completion".into();
    let message = Message { role: "assistant".to_owned(), content: answer.to_owned() };
    head["choices"] = json!([{ "index": 0, "message": message, "finish_reason": "stop" }]);
    head
}

/// The answer word by word, as server-sent events.
fn stream(head: serde_json::Value, answer: &str) -> Result<Response, Error> {
    let mut response = Response::stream("text/event-stream")?;
    for delta in deltas(answer) {
        response.write(format!("data: {}\n\n", chunk(&head, json!({ "content": delta }), None)))?;
    }
    response.write(format!("data: {}\n\ndata: [DONE]\n\n", chunk(&head, json!({}), Some("stop"))))?;
    Ok(response.finish())
}

fn chunk(head: &serde_json::Value, delta: serde_json::Value, finish_reason: Option<&str>) -> serde_json::Value {
    let mut chunk = head.clone();
    chunk["object"] = "chat.completion.chunk".into();
    chunk["choices"] = json!([{ "index": 0, "delta": delta, "finish_reason": finish_reason }]);
    chunk
}

/// Words with the space after them: together they are the answer.
fn deltas(answer: &str) -> impl Iterator<Item = &str> {
    answer.split_inclusive(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assistant() -> Assistant {
        Assistant { entries: Entries::parse(include_str!("../answers.txt")).unwrap() }
    }

    #[test]
    fn the_golden_request_gets_the_golden_answer() {
        let chat: Chat = serde_json::from_str(include_str!("../golden/request.json")).unwrap();
        let answer = assistant();
        let answer = answer.answer(&chat.messages).unwrap();
        let golden: serde_json::Value = serde_json::from_str(include_str!("../golden/response.json")).unwrap();
        assert_eq!(golden["choices"][0]["message"]["content"], answer);
    }

    #[test]
    fn without_a_question_there_is_no_answer() {
        let messages = [Message { role: "system".to_owned(), content: "Be brief.".to_owned() }];
        assert!(assistant().answer(&messages).unwrap_err().message.contains("`user`"));
    }

    #[test]
    fn the_deltas_are_the_answer() {
        assert_eq!(deltas(UNKNOWN).collect::<String>(), UNKNOWN);
        assert_eq!(chunk(&json!({ "id": "x" }), json!({}), Some("stop"))["choices"][0]["finish_reason"], "stop");
    }
}
