"""Talks with a language model through the OpenAI client, unmodified: `chat_openai.py BASE_URL TOKEN MODEL`. What is wrong
fails an assertion; to stdout goes, as JSON, what the model said where a test compares it."""

import json
import sys

import openai

base_url, token, model = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key=token, max_retries=0, timeout=120)
said = {}

RIVERS = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "Name a river in France."}]
GREEDY = {"model": model, "messages": RIVERS, "temperature": 0, "max_tokens": 24}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


def refused(kind, **changes):
    """The error of a request that must be refused."""
    try:
        client.chat.completions.create(**{**GREEDY, **changes})
    except kind as error:
        return error
    raise AssertionError(f"{changes} was not refused")


def whole():
    answer = client.chat.completions.create(**GREEDY)
    [choice] = answer.choices
    assert answer.object == "chat.completion" and answer.model == model and answer.id.startswith("chatcmpl-")
    assert answer.created > 1_700_000_000
    assert choice.message.role == "assistant" and choice.message.content and choice.message.tool_calls is None
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 10 and 0 < usage.completion_tokens <= 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    said["whole"] = choice.message.content
    said["usage"] = [usage.prompt_tokens, usage.completion_tokens]
    again = client.chat.completions.create(**GREEDY)
    assert again.choices[0].message.content == choice.message.content and again.id != answer.id


def streamed():
    events = list(client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    *answers, last = events
    assert answers[0].choices[0].delta.role == "assistant"
    assert all(event.object == "chat.completion.chunk" and event.id == last.id for event in events)
    text = "".join(event.choices[0].delta.content or "" for event in answers)
    assert text == said["whole"], (text, said["whole"])
    assert [event.choices[0].finish_reason for event in answers][-1] in ("stop", "length")
    assert not last.choices and [last.usage.prompt_tokens, last.usage.completion_tokens] == said["usage"]
    assert len(answers) > 3, "it is told as it is made"


def several():
    answer = client.chat.completions.create(**{**GREEDY, "temperature": 1.2}, n=3, seed=7)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2] and len(set(texts)) > 1, texts
    again = client.chat.completions.create(**{**GREEDY, "temperature": 1.2}, n=3, seed=7)
    assert texts == [choice.message.content for choice in again.choices]
    assert answer.usage.prompt_tokens == said["usage"][0], "the prompt counts once"
    events = client.chat.completions.create(**{**GREEDY, "temperature": 1.2}, n=3, seed=7, stream=True)
    told = ["", "", ""]
    for event in events:
        for choice in event.choices:
            told[choice.index] += choice.delta.content or ""
    assert told == texts, (told, texts)


def stopped():
    text = said["whole"]
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    expected = text[: text.index(stop)]
    answer = client.chat.completions.create(**GREEDY, stop=["\x00", stop])
    assert answer.choices[0].message.content == expected and answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == said["usage"][0]
    assert answer.usage.prompt_tokens_details.cached_tokens == said["usage"][0] - 1, "the prompt was read before"
    assert answer.usage.completion_tokens <= said["usage"][1]
    events = client.chat.completions.create(**GREEDY, stop=stop, stream=True)
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == expected


def probabilities():
    answer = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == answer.choices[0].message.content
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        # Greedy: the chosen one is the first of the most likely.
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token
        assert abs(token.top_logprobs[0].logprob - token.logprob) < 1e-5
    biased = client.chat.completions.create(**GREEDY, logit_bias={"0": -100})
    assert biased.choices[0].message.content == answer.choices[0].message.content


def formats():
    schema = {
        "type": "object",
        "properties": {
            "river": {"type": "string", "maxLength": 12},
            "km": {"type": "integer", "minimum": 1, "maximum": 9999},
            "deep": {"type": "boolean"},
        },
        "required": ["river", "km", "deep"],
        "additionalProperties": False,
    }
    for seed in range(3):
        answer = client.chat.completions.create(
            **{**GREEDY, "temperature": 1.5, "max_tokens": 200},
            seed=seed,
            response_format={"type": "json_schema", "json_schema": {"name": "river", "schema": schema}},
        )
        content = answer.choices[0].message.content
        river = json.loads(content)
        assert list(river) == ["river", "km", "deep"] and isinstance(river["km"], int), content
    wrong = refused(openai.BadRequestError, response_format={"type": "xml"})
    assert "response_format" in wrong.message, wrong


def tools():
    ask = {**GREEDY, "messages": [{"role": "user", "content": "How warm is it in Ulm?"}], "max_tokens": 200}
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        answer = client.chat.completions.create(**ask, tools=[WEATHER], tool_choice=choice)
        message, finish = answer.choices[0].message, answer.choices[0].finish_reason
        [call] = message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "get_weather" and set(arguments) == {"city", "unit"}, call
        assert arguments["unit"] in ("celsius", "fahrenheit")
        assert message.content is None and finish == "tool_calls" and call.id
    events = list(client.chat.completions.create(**ask, tools=[WEATHER], tool_choice="required", stream=True))
    deltas = [delta for event in events for choice in event.choices for delta in choice.delta.tool_calls or []]
    assert json.loads("".join(delta.function.arguments or "" for delta in deltas)) == arguments
    assert deltas[0].function.name == "get_weather" and deltas[0].index == 0 and deltas[0].id
    assert [event.choices[0].finish_reason for event in events if event.choices][-1] == "tool_calls"
    # The result goes back to the model, which answers in words.
    history = ask["messages"] + [
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"},
    ]
    answer = client.chat.completions.create(**{**ask, "messages": history, "max_tokens": 20}, tools=[WEATHER], tool_choice="none")
    assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls
    unknown = refused(openai.BadRequestError, tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "x"}})
    assert "tool_choice" in unknown.message


def completions():
    answer = client.completions.create(model=model, prompt="One, two, three,", max_tokens=5, temperature=0, logprobs=2)
    [choice] = answer.choices
    assert answer.object == "text_completion" and "four" in choice.text, choice.text
    assert choice.finish_reason == "length" and answer.usage.completion_tokens == 5
    assert "".join(choice.logprobs.tokens) == choice.text and len(choice.logprobs.top_logprobs[0]) == 2
    both = client.completions.create(model=model, prompt=["One, two,", "A, B,"], max_tokens=3, temperature=0)
    assert [choice.index for choice in both.choices] == [0, 1]
    told = client.completions.create(model=model, prompt="One, two, three,", max_tokens=5, temperature=0, stream=True)
    assert "".join(event.choices[0].text for event in told if event.choices) == choice.text


def embeddings():
    texts = ["The cat sits on the mat.", "A cat is sitting on a mat.", "Interest rates rose by a quarter point."]
    answer = client.embeddings.create(model=model, input=texts)
    cat, sitting, rates = [entry.embedding for entry in answer.data]
    alike = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert abs(alike(cat, cat) - 1) < 1e-4 and alike(cat, sitting) > alike(cat, rates)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 15
    alone = client.embeddings.create(model=model, input=texts[0], encoding_format="float")
    assert alike(alone.data[0].embedding, cat) > 0.999


def errors():
    long = refused(openai.BadRequestError, messages=[{"role": "user", "content": "word " * 20_000}])
    assert long.code == "context_length_exceeded" and "maximum context length" in long.message, long
    streamed = refused(openai.BadRequestError, messages=[{"role": "user", "content": "word " * 20_000}], stream=True)
    assert streamed.code == "context_length_exceeded", "before its first byte a stream has a status"
    for changes, name in (
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]"),
        ({"temperature": 3}, "temperature"),
        ({"n": 100}, "`n`"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"top_logprobs": 3}, "logprobs"),
        ({"extra_body": {"reasoning_effort": "high"}}, "reasoning_effort"),
    ):
        assert name in refused(openai.BadRequestError, **changes).message
    refused(openai.NotFoundError, model="no-such-endpoint")


def models():
    assert model in [entry.id for entry in client.models.list()]
    if base_url.endswith("/v1"):
        assert client.models.retrieve(model).object == "model"


whole()
for check in (streamed, several, stopped, probabilities, formats, tools, completions, embeddings, errors, models):
    check()
print(json.dumps(said))
