"""Request bodies: OpenAI's fields, fields that its clients send along and the server ignores, and our own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from regraft.engine.request import MAX_LOGPROBS, MAX_TOKEN_ID

Text = Annotated[str, Field(max_length=4 << 20)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
Prompts = (
    Text
    | Annotated[list[TokenId], Field(min_length=1)]
    | Annotated[list[Text], Field(min_length=1, max_length=128)]
    | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=128)]
)
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Body(BaseModel):
    """JSON of the right types, without unknown fields or numbers that are none."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    """What streams are to say besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="Ignored.")
    continuous_usage_stats: bool | None = Field(None, description="Ignored.")


class Target(Body):
    """Who answers."""

    model: Annotated[str, Field(max_length=1000)] = Field(
        "", description="The base, an adapter, or a mix such as addresses*0.7+names*0.3; empty for the base."
    )
    adapters: dict[str, float] | None = Field(
        None, description="Ours: a mix as an object, adapter to weight; model is then the base or empty."
    )


class Generation(Target):
    """What completions and chat have in common."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="1 by default; 0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = Field(None, description="-1 or 0: all tokens.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = Field(None, description="Not supported.")
    timeout_s: Annotated[float, Field(gt=0)] | None = Field(None, description="Ours: give up after so many seconds.")
    # What clients send and nothing here depends on.
    user: str | None = Field(None, description="Ignored.")
    metadata: dict[str, Any] | None = Field(None, description="Ignored.")
    store: bool | None = Field(None, description="Ignored.")
    service_tier: str | None = Field(None, description="Ignored.")
    safety_identifier: str | None = Field(None, description="Ignored.")
    prompt_cache_key: str | None = Field(None, description="Ignored: equal beginnings are always shared.")
    prompt_cache_retention: str | None = Field(None, description="Ignored.")


class CompletionRequest(Generation):
    """``POST /v1/completions``."""

    prompt: Prompts
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: Literal[False] | None = Field(None, description="True is not supported.")
    suffix: Literal[""] | None = Field(None, description="Not supported.")
    best_of: Literal[1] | None = Field(None, description="More than 1 is not supported.")


class EmbeddingRequest(Target):
    """``POST /v1/embeddings``."""

    input: Prompts
    dimensions: Annotated[int, Field(ge=1)] | None = Field(None, description="Only the first so many.")
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = Field(None, description="Ignored.")


class TextPart(Body):
    """A part of a message; images and sound are not understood."""

    type: Literal["text"]
    text: Text


class CalledFunction(Body):
    """Which function an answer has called."""

    name: str
    arguments: Text


class ToolCall(Body):
    """A call in an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class Message(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Annotated[list[TextPart], Field(max_length=1000)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = Field(None, description="The old form of tool_calls.")
    refusal: str | None = Field(None, description="Ignored, as are the fields below, which answers have.")
    annotations: list[Any] | None = None
    audio: None = None


class Function(Body):
    """A function that an answer may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="Ignored.")


class Tool(Body):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class JsonSchema(Body):
    """A schema that the answer keeps to."""

    name: str
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = Field(None, description="Ignored: answers always keep to the schema.")


class ResponseFormat(Body):
    """What an answer looks like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(Generation):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto"] | None = Field(None, description="Calls cannot be forced.")
    parallel_tool_calls: bool | None = Field(None, description="Ignored.")
    functions: Annotated[list[Function], Field(max_length=128)] | None = Field(
        None, description="The old form of tools; left out."
    )
    function_call: Literal["none", "auto"] | None = Field(None, description="Calls cannot be forced.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Variables for the chat template, as in vLLM: enable_thinking."
    )
    reasoning_effort: str | None = Field(None, description="Ignored.")
    verbosity: str | None = Field(None, description="Ignored.")
    modalities: list[Literal["text"]] | None = None
    prediction: dict[str, Any] | None = Field(None, description="Ignored.")


class TokenizeRequest(Target):
    """``POST /tokenize``: a prompt, or messages."""

    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None


class LoadRequest(Body):
    """``POST /v1/load_lora_adapter``, as in vLLM."""

    lora_name: str
    lora_path: str
    load_inplace: bool | None = Field(None, description="Replace the adapter of that name.")


class UnloadRequest(Body):
    """``POST /v1/unload_lora_adapter``, as in vLLM."""

    lora_name: str
    lora_int_id: int | None = Field(None, description="Ignored.")
