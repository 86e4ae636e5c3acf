"""Text becomes the tokens that transformers makes of it, tokens the text, and conversations the prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from regraft.errors import FormatError, UsageError
from regraft.evaluate.generate import stop_ids
from regraft.formats.source import Kind, Source, locate
from regraft.formats.text.chat_template import ChatTemplate
from regraft.formats.text.tokenizer import Tokenizer, open_tokenizer
from regraft.models.load import load_base
from tests.tiny import CHAT_TEMPLATE, make_base, make_model, make_tokenizer
from tests.tiny_gguf import write_gguf

# What texts are made of: any characters, and what tokenizers treat in ways of their own.
BITS = [
    " ", "  ", "\n", "\r\n\t", "the", " quick", "it's", "I'LL", "12", " 3456", "x+=1;\n    return {}", "naïve", "東京",
    "안녕", "🧶", "👩🏽‍💻", "e\u0301", "\u200b", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<unk>", "<think>",
    "<|im_",
]  # fmt: skip
texts = st.lists(st.sampled_from(BITS) | st.text(max_size=8), max_size=12).map("".join)
CHATS = [
    [{"role": "user", "content": "hi <|im_end|> there\n"}],
    [{"role": "system", "content": "be «brief»"}, {"role": "user", "content": "東京?"}],
    [{"role": role, "content": f" {role} "} for role in ("system", "user", "assistant", "user", "assistant")],
]


def assert_same(ours: Tokenizer, theirs: Any, text: str) -> None:
    for special in (True, False):
        tokens = ours.encode(text, add_special_tokens=special)
        assert tokens == theirs.encode(text, add_special_tokens=special)
        for skip in (True, False):
            expected = theirs.decode(tokens, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(tokens, skip_special_tokens=skip) == expected


def assert_same_chats(ours: Tokenizer, theirs: Any) -> None:
    for chat in CHATS:
        for prompt in (True, False):
            text = ours.apply_chat_template(chat, add_generation_prompt=prompt)
            assert text == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
            tokens = theirs.apply_chat_template(chat, add_generation_prompt=prompt, return_dict=False)
            assert ours.encode(text, add_special_tokens=False) == tokens


# Directories


def save(folder: Path, tokenizer: Any = None, **config: Any) -> Source:
    """A directory with a tokenizer and what else says which tokens end an answer."""
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}))
    if config:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return Source("saved", folder, Kind.DENSE)


def fresh() -> Any:
    """A copy of the tiny tokenizer, to be changed."""
    made = make_tokenizer()
    copied = PreTrainedTokenizerFast(tokenizer_object=made.backend_tokenizer, **made.special_tokens_map)
    copied.chat_template = CHAT_TEMPLATE
    return copied


def starting_with_bos(tokenizer: Any) -> Any:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    return tokenizer


def with_added_tokens(tokenizer: Any) -> Any:
    tokenizer.add_tokens(["<think>", "quick"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    return tokenizer


def cutting_and_padding(tokenizer: Any) -> Any:
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=7)
    return tokenizer


VARIANTS = {
    "plain": lambda tokenizer: tokenizer,
    "bos and eos": starting_with_bos,
    "added tokens": with_added_tokens,
    "cut and padded": cutting_and_padding,
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    folder = tmp_path_factory.mktemp("tokenizer")
    source = save(folder, VARIANTS[request.param](fresh()))
    return open_tokenizer(source), AutoTokenizer.from_pretrained(folder)


@given(text=texts)
@settings(max_examples=150)
def test_directory_s_tokens_are_those_of_transformers(pair: tuple[Tokenizer, Any], text: str) -> None:
    assert_same(*pair, text)


def test_directory_s_names_and_chats_are_those_of_transformers(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.special_ids == {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    assert ours.vocabulary_size == len(theirs)
    assert ours.chat_template == theirs.chat_template
    assert_same_chats(ours, theirs)


@pytest.mark.parametrize(
    "config",
    [
        {"bos_token": {"__type": "AddedToken", "content": "<|im_start|>", "lstrip": False}},
        {"eos_token": "<|new_end|>"},
        {"added_tokens_decoder": {"320": {"content": "<think>"}, "321": {"content": "<|x|>", "special": True}}},
        {"extra_special_tokens": ["<|y|>"]},
        {"additional_special_tokens": ["<|y|>", {"__type": "AddedToken", "content": "<|z|>", "special": True}]},
        {"add_bos_token": True},
    ],
    ids=str,
)
def test_older_ways_to_state_special_tokens(tmp_path: Path, config: dict[str, Any]) -> None:
    ours = open_tokenizer(save(tmp_path, **config))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.vocabulary_size == len(theirs)
    for text in ("a<think>b <|x|> c<|y|><|z|>", "<|new_end|>", "<|im_start|>hi"):
        assert_same(ours, theirs, text)


def test_special_tokens_in_a_file_of_their_own(tmp_path: Path) -> None:
    source = save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    named = {name: config.pop(name) for name in list(config) if name in ("bos_token", "eos_token", "pad_token")}
    path.write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named | {"unk_token": {"content": "<unk>"}}))
    ours, theirs = open_tokenizer(source), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.special_tokens == theirs.special_tokens_map == {**named, "unk_token": "<unk>"}


@pytest.mark.parametrize("where", ["file", "config", "list"])
def test_template_is_found_wherever_it_stands(tmp_path: Path, where: str) -> None:
    source = save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    text = "{{ messages[0].content }}{{ eos_token }}"
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"chat_template": "an older one"}
    if where == "file":
        (tmp_path / "chat_template.jinja").write_text(text)
    else:
        named = [{"name": "tool_use", "template": "another"}, {"name": "default", "template": text}]
        config["chat_template"] = text if where == "config" else named
    path.write_text(json.dumps(config))
    ours, theirs = open_tokenizer(source), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.apply_chat_template(CHATS[0]) == "hi <|im_end|> there\n<|im_end|>"
    assert_same_chats(ours, theirs)


@pytest.mark.parametrize("eos", [None, 2, 5, [5, 2, 7]])
@pytest.mark.parametrize("stated_in", ["generation_config.json", "config.json"])
def test_answers_end_where_torch_land_ends_them(tmp_path: Path, eos: Any, stated_in: str) -> None:
    folder = make_base(tmp_path / "base")
    for name in ("generation_config.json", "config.json"):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | {"eos_token_id": eos if name == stated_in else 9}))
    if stated_in == "config.json":
        (folder / "generation_config.json").unlink()
    base = load_base(folder)
    assert list(open_tokenizer(locate(folder)).eos_ids) == stop_ids(base.model, base.tokenizer)


def edit_json(name: str, **entries: Any) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | entries))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json is missing. Save the tokenizer again"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), r"tokenizer\.json cannot be read"),
        (lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff"), r"tokenizer\.json cannot be read"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("["), r"tokenizer_config\.json is not JSON"),
        (lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff"), "cannot be read as UTF-8"),
        (edit_json("tokenizer_config.json", eos_token=3), "a special token: expected a text, found 3"),
        (edit_json("tokenizer_config.json", added_tokens_decoder=[1]), "added_tokens_decoder is not understood"),
        (edit_json("tokenizer_config.json", added_tokens_decoder={"a": 1}), "added_tokens_decoder is not understood"),
        (
            edit_json("config.json", eos_token_id="</s>"),
            r"config\.json: eos_token_id: expected token ids, found '</s>'",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, damage: Any, message: str) -> None:
    source = save(tmp_path)
    damage(tmp_path)
    with pytest.raises(FormatError, match=message):
        open_tokenizer(source)


def test_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path, chat_template=3)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(FormatError, match="chat_template: expected a text, found int"):
        open_tokenizer(source)


def test_half_a_surrogate_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="half of a surrogate pair"):
        open_tokenizer(save(tmp_path)).encode("a\ud800b")


def test_stream_of_tokens_is_their_text(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(save(tmp_path))
    text = "naïve 東京 🧶  quick"
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in [*tokenizer.encode(text), 2]]
    assert "".join(pieces) + stream.flush() == text


# GGUF files


def gguf_tokenizer() -> Any:
    """The tiny tokenizer with GPT-2's own end token, and a token of the user's."""
    tokenizer = fresh()
    tokenizer.add_tokens(["<think>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    return tokenizer


@pytest.fixture(scope="module", params=["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "ends"])
def gguf_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    more: dict[str, Any] = {"tokenizer__ggml__pre": request.param, "tokenizer__chat_template": CHAT_TEMPLATE}
    if request.param == "ends":
        ends = {"tokenizer__ggml__add_bos_token": True, "tokenizer__ggml__add_eos_token": True}
        more |= {"tokenizer__ggml__pre": "default", **ends}
    write_gguf(path, make_model("llama"), tokenizer=gguf_tokenizer(), **more)
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return open_tokenizer(locate(path)), theirs


@given(text=texts)
@settings(max_examples=150)
@example(text="<|endoftext|> <|im_start|>user")
def test_gguf_s_tokens_are_those_of_transformers(gguf_pair: tuple[Tokenizer, Any], text: str) -> None:
    assert_same(*gguf_pair, text)


def test_gguf_s_names_and_chats_are_those_of_transformers(gguf_pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = gguf_pair
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.special_ids == {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    assert ours.vocabulary_size == len(theirs)
    assert ours.eos_ids == (2,)
    assert_same_chats(ours, theirs)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"tokenizer__ggml__model": "llama"}, "expected gpt2, a byte-level BPE, found 'llama'. Convert it"),
        ({"tokenizer__ggml__pre": "deepseek-llm"}, r"tokenizer\.ggml\.pre: expected default, .*found 'deepseek-llm'"),
        ({"tokenizer__ggml__pre": 3}, r"tokenizer\.ggml\.pre: expected default, .*found 3"),
        ({"tokenizer__chat_template": 3}, "chat_template: expected a text, found int"),
        ({"tokenizer__ggml__merges": "none"}, r"has no tokenizer\.ggml\.merges"),
        ({"tokenizer__ggml__bos_token_id": 9999}, "bos_token_id: expected one of 322 tokens, found 9999"),
    ],
)
def test_gguf_tokenizers_of_other_kinds_are_refused(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", make_model(), tokenizer=gguf_tokenizer(), **metadata)
    with pytest.raises(FormatError, match=message):
        open_tokenizer(locate(path))


# Chat templates

LOOP = "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}|{% endfor %}"
NAMESPACE = "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
TEMPLATES = [
    CHAT_TEMPLATE,
    LOOP,
    NAMESPACE,
    "{% for m in messages %}\n    {% if m.role == 'user' %}\n  {{ m.content }}\n    {% endif %}\n{% endfor %}\n",
    "{{ messages | tojson }}{{ {'b': 'é<', 'a': 1} | tojson(indent=2, sort_keys=True) }}",
    "{{ bos_token }}{% generation %}{% set x = 1 %}{{ messages[0].content }}{% endgeneration %}{{ x }}",
    "{{ dict(a=1).a }}{{ tools is none }}{{ documents is none }}{{ enable_thinking }}{{ missing }}",
    "{{ strftime_now('%Y') | length }}{{ messages[0].content | trim | upper }}{{ messages[0].tool_calls is defined }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_render_as_in_transformers(template: str) -> None:
    theirs = fresh()
    theirs.chat_template = template
    ours = ChatTemplate(template, "test", theirs.special_tokens_map)
    chats = [*CHATS, [{"role": "user", "content": "x", "tool_calls": None}]]
    for chat in chats:
        expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        assert ours.render(chat, add_generation_prompt=True, enable_thinking=False) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses the conversation: roles must alternate"),
        ("{{ messages[0].content.x.y }}", "refuses the conversation"),
        ("{{ messages[5].content }}", "refuses the conversation"),
        ("{{ messages.__class__.__mro__ }}", "refuses the conversation"),
        ("{{ dict.__init__.__globals__ }}", "refuses the conversation"),
        ("{% set ns = namespace(__class__=1) %}", "must not set '__class__'"),
        ("{{ messages.append(1) }}", "refuses the conversation"),
    ],
)
def test_templates_may_refuse_and_may_not_escape(template: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ChatTemplate(template, "test", {}).render(CHATS[0], add_generation_prompt=True)


def test_conversations_that_are_none_are_refused(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(save(tmp_path))
    with pytest.raises(UsageError, match="expected at least one message"):
        tokenizer.apply_chat_template([])
    with pytest.raises(UsageError, match="refuses the conversation: Object of type Path"):
        tokenizer.apply_chat_template([{"role": "user", "content": type("Path", (), {})()}])


def test_broken_or_missing_templates_are_told_apart(tmp_path: Path) -> None:
    source = save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("line\n{% if %}")
    with pytest.raises(FormatError, match="line 2 of the chat template"):
        open_tokenizer(source).apply_chat_template(CHATS[0])
    (tmp_path / "chat_template.jinja").unlink()
    tokenizer = open_tokenizer(source)
    assert tokenizer.chat_template is None
    with pytest.raises(UsageError, match=r"has no chat template\. Give the prompt as plain text"):
        tokenizer.apply_chat_template(CHATS[0])


# The packaged model


@pytest.fixture(scope="module")
def packaged() -> tuple[Tokenizer, Any]:
    return open_tokenizer(locate("smollm2-135m")), load_base("smollm2-135m").tokenizer


@pytest.mark.slow
@given(text=texts)
@settings(max_examples=3000)
def test_packaged_tokens_are_those_of_transformers(packaged: tuple[Tokenizer, Any], text: str) -> None:
    assert_same(*packaged, text)


@pytest.mark.slow
def test_packaged_names_and_chats_are_those_of_transformers(packaged: tuple[Tokenizer, Any]) -> None:
    ours, theirs = packaged
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.special_ids == {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    assert ours.vocabulary_size == len(theirs)
    assert_same_chats(ours, theirs)


@pytest.mark.slow
@given(tokens=st.lists(st.integers(0, 49151), max_size=30))
@settings(max_examples=1000)
def test_packaged_stream_is_the_decoded_text(packaged: tuple[Tokenizer, Any], tokens: list[int]) -> None:
    stream = packaged[0].stream()
    pieces = [stream.push(token) for token in tokens]
    assert "".join(pieces) + stream.flush() == packaged[1].decode(tokens, skip_special_tokens=True)
