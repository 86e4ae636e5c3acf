"""The ``openai`` package against a real server."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.server.running import MESSAGES, Running


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return server.client()


def ask(client: OpenAI, model: str = "base", **options: Any) -> Any:
    return client.chat.completions.create(
        **{"model": model, "messages": MESSAGES, "max_tokens": 12, "temperature": 0, **options}
    )


def answer(client: OpenAI, model: str = "base", **options: Any) -> str:
    return str(ask(client, model, **options).choices[0].message.content)


def test_chat_answers_as_the_engine_does(server: Running, client: OpenAI) -> None:
    done = ask(client)
    own = server.service.engine.generate(MESSAGES, max_tokens=12)
    choice = done.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", own.text)
    assert choice.finish_reason == str(own.finish_reason)
    assert done.usage.prompt_tokens == own.num_prompt_tokens
    assert done.usage.completion_tokens == len(own.tokens)
    assert done.usage.total_tokens == own.num_prompt_tokens + len(own.tokens)
    assert done.model == "base" and done.object == "chat.completion"


def test_a_stream_joins_to_the_answer_and_ends_with_usage(client: OpenAI) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer(client)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("adapter", ["lora0", "lora1", "lora2"])
def test_the_model_is_the_adapter(server: Running, client: OpenAI, adapter: str) -> None:
    own = server.service.engine.generate(MESSAGES, adapter, max_tokens=12).text
    assert answer(client, adapter) == own != answer(client)


@pytest.mark.parametrize(
    ("model", "adapters"),
    [
        ("lora0*0.7+lora1*0.3", None),
        (" lora0 * 0.7 + lora1*.3", None),
        ("base", {"lora0": 0.7, "lora1": 0.3}),
        ("", {"lora0": 0.7, "lora1": 0.3}),
    ],
)
def test_a_mix_is_a_string_or_an_object(server: Running, client: OpenAI, model: str, adapters: Any) -> None:
    own = server.service.engine.generate(MESSAGES, {"lora0": 0.7, "lora1": 0.3}, max_tokens=12).text
    assert answer(client, model, extra_body={"adapters": adapters}) == own


@pytest.mark.parametrize("text", ["lora0+", "lora0*x", "lora0*1e9", "lora0*nan", "lora0+lora0", "lora0*1000", "*0.5"])
def test_a_mix_that_means_nothing_is_refused(client: OpenAI, text: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        answer(client, text)
    assert refused.value.param == "model"


def test_choices_differ_and_a_seed_repeats_them(client: OpenAI) -> None:
    first, again = (ask(client, n=4, temperature=1.5, seed=-5) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3] and len(set(texts)) > 1
    assert texts == [choice.message.content for choice in again.choices]
    assert texts != [choice.message.content for choice in ask(client, n=4, temperature=1.5, seed=6).choices]


def test_streamed_choices_are_told_apart(client: OpenAI) -> None:
    whole = [choice.message.content for choice in ask(client, n=3, temperature=1.5, seed=1).choices]
    texts = ["", "", ""]
    for chunk in ask(client, n=3, temperature=1.5, seed=1, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == whole


def test_a_stop_string_ends_the_answer(client: OpenAI) -> None:
    whole = answer(client, max_tokens=24)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    done = ask(client, max_tokens=24, stop=[stop, "never there"])
    assert done.choices[0].message.content == whole[: whole.index(stop)]
    assert done.choices[0].finish_reason == "stop"


def test_logprobs_are_those_of_the_tokens(client: OpenAI) -> None:
    done = ask(client, logprobs=True, top_logprobs=2)
    content = done.choices[0].logprobs.content
    assert len(content) == done.usage.completion_tokens
    for token in content:
        assert token.logprob == token.top_logprobs[0].logprob  # greedy
        assert bytes(token.bytes).decode(errors="replace") == token.token
    streamed = [
        token.logprob
        for chunk in ask(client, logprobs=True, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert streamed == [token.logprob for token in content]


def test_completions_continue_texts_and_tokens(server: Running, client: OpenAI) -> None:
    tokens = server.service.engine.base.tokenizer.encode("the lazy dog")
    prompts: list[Any] = ["the lazy dog", ["the lazy dog", "the quick"], tokens, [tokens, [5, 6]]]
    done = [
        client.completions.create(model="lora0", prompt=prompt, max_tokens=8, temperature=0, logprobs=1)
        for prompt in prompts
    ]
    assert [len(each.choices) for each in done] == [1, 2, 1, 2]
    assert len({each.choices[0].text for each in done}) == 1
    assert done[1].usage is not None and done[1].usage.prompt_tokens == len(tokens) + len(
        server.service.engine.base.tokenizer.encode("the quick")
    )
    logprobs: Any = done[0].choices[0].logprobs
    assert (
        len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset)
    )


def test_a_completions_stream_joins_to_the_answer(client: OpenAI) -> None:
    options: Any = {"model": "base", "prompt": "the lazy", "max_tokens": 8, "temperature": 0}
    text = "".join(chunk.choices[0].text for chunk in client.completions.create(stream=True, **options))
    assert text == client.completions.create(**options).choices[0].text


def test_an_answer_keeps_to_a_schema(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"size": {"enum": ["small", "large"]}, "count": {"type": "integer", "maximum": 9, "minimum": 0}},
        "required": ["size", "count"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "order", "schema": schema, "strict": True}}
    done = ask(client, n=4, temperature=1.5, seed=3, max_tokens=200, response_format=wanted)
    said = [json.loads(choice.message.content) for choice in done.choices]
    assert all(set(each) == {"size", "count"} and each["size"] in ("small", "large") for each in said)
    assert all(choice.finish_reason == "stop" for choice in done.choices)


def test_models_name_their_parent_and_no_path(server: Running, client: OpenAI, made: Any) -> None:
    models = {model.id: model.model_dump() for model in client.models.list()}
    assert list(models) == ["base", "lora0", "lora1", "lora2"]
    assert models["base"]["parent"] is None and models["lora1"]["parent"] == "base"
    assert models["lora1"]["root"] == "lora1"
    assert str(made) not in server.send("GET", "/v1/models").data.decode()
    assert client.models.retrieve("lora2").id == "lora2"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("lora9")


@pytest.mark.parametrize(
    ("options", "kind", "param", "says"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model", "does not exist"),
        ({"model": "base+lora0"}, openai.NotFoundError, "model", "does not exist"),
        ({"temperature": 3}, openai.BadRequestError, "temperature", "less than or equal to 2"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens", "greater than or equal to 1"),
        ({"n": 17}, openai.BadRequestError, "n", "at most 16"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "temprature", "Did you mean 'temperature'"),
        ({"messages": []}, openai.BadRequestError, "messages", "at least 1"),
        ({"logit_bias": {"5": 1}}, openai.BadRequestError, "logit_bias", "at most 0"),
        ({"tool_choice": "required"}, openai.BadRequestError, "tool_choice", "'none' or 'auto', not 'required'"),
        ({"function_call": {"name": "f"}}, openai.BadRequestError, "function_call", "'none' or 'auto'"),
        ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs", "logprobs: true"),
        ({"stream_options": {"include_usage": True}}, openai.BadRequestError, "stream_options", "stream: true"),
        ({"stop": [""]}, openai.BadRequestError, "stop.0", "at least 1 character"),
        ({"messages": [{"role": "user", "content": "the " * 2000}]}, openai.BadRequestError, None, "context"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "odd"}}}},
         openai.BadRequestError, None, "schema is not understood"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://a.invalid/b"}}}},
         openai.BadRequestError, None, "does not fetch"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a.invalid"}}]}]},
         openai.BadRequestError, "messages.0.content.0.type", "'text'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_field(
    client: OpenAI, options: dict[str, Any], kind: Any, param: str | None, says: str
) -> None:
    with pytest.raises(kind, match=says) as refused:
        ask(client, **options)
    assert refused.value.param == param


def test_what_openai_clients_send_along_is_taken(client: OpenAI) -> None:
    assert ask(client, user="u", metadata={"a": "b"}, store=False, service_tier="auto", parallel_tool_calls=True)
    parts: Any = [
        {"role": "developer", "content": "x"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
    ]
    assert ask(client, messages=parts, max_completion_tokens=3).usage.completion_tokens <= 3


def test_an_answer_that_comes_too_late_is_an_error(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as late:
        ask(client, max_tokens=400, extra_body={"timeout_s": 0.01})
    assert late.value.status_code == 504


def test_tokenize_counts_what_chat_is_charged(server: Running, client: OpenAI) -> None:
    told = server.post("/tokenize", {"messages": MESSAGES}).json
    assert told["count"] == len(told["tokens"]) == ask(client).usage.prompt_tokens
    assert told["max_model_len"] == 512
    plain = server.post("/tokenize", {"prompt": "the lazy dog", "model": "lora0"}).json
    assert plain["tokens"] == server.service.engine.base.tokenizer.encode("the lazy dog")
    assert server.post("/tokenize", {}).error["param"] == "prompt"


def test_metrics_count_by_adapter_and_have_the_gateways_gauge(server: Running, client: OpenAI) -> None:
    def count() -> float:
        lines = server.send("GET", "/metrics").data.decode().splitlines()
        return sum(
            float(line.split()[-1])
            for line in lines
            if line.startswith("regraft_request_success_total{") and '"lora2"' in line
        )

    before = count()
    ask(client, "lora2")
    assert count() == before + 1
    text = server.send("GET", "/metrics").data.decode()
    assert 'vllm:lora_requests_info{max_lora="3",running_lora_adapters="",waiting_lora_adapters=""}' in text
    assert "regraft_adapters 3.0" in text


def test_the_openapi_document_has_every_route(server: Running) -> None:
    document = server.send("GET", "/openapi.json").json
    assert set(document["paths"]) == {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}", "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter", "/v1/embeddings", "/tokenize", "/health", "/metrics",
        "/page/adapters", "/page/state",
    }  # fmt: skip
    text = json.dumps(document)
    references = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert references <= set(document["components"]["schemas"])
