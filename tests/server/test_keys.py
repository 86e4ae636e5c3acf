"""API keys, and adapters that only some of them see."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from regraft.errors import FormatError, RegraftError, UsageError
from regraft.server.keys import read_keys, read_token
from tests.server.running import MESSAGES, Running, running

READER, ALICE, OWNER = "sk-reader-0123456789", "sk-alice-0123456789", "sk-owner-0123456789"


@pytest.fixture(scope="module")
def locked(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# who may call\n{READER}\n\n{ALICE} lora1  # hers\n{OWNER} *\n")
    with running(made / "base", made / "loras", keys=read_keys(path)) as each:
        yield each


@pytest.mark.parametrize("key", ["wrong", READER + "x", READER[:-1], ""])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/models/base", "/v1/completions", "/tokenize"])
def test_nothing_is_done_without_a_key(locked: Running, key: str, path: str) -> None:
    method = "GET" if path.startswith(("/v1/models", "/metrics")) else "POST"
    for header in ({"Authorization": f"Bearer {key}"}, {}, {"Authorization": f"Basic {READER}"}):
        reply = locked.send(method, path, headers=header)
        assert reply.status == 401 and reply.error["code"] == "invalid_api_key"
    assert locked.send("GET", "/health").status == 200


def test_a_private_adapter_is_there_for_its_keys_only(locked: Running) -> None:
    assert locked.models(READER) == ["base", "lora0", "lora2"]
    assert locked.models(ALICE) == locked.models(OWNER) == ["base", "lora0", "lora1", "lora2"]
    for key in (ALICE, OWNER):
        assert locked.client(key).models.retrieve("lora1")
        assert locked.client(key).completions.create(model="lora1*0.5+lora0", prompt="a", max_tokens=1)


@pytest.mark.parametrize("model", ["lora1", "lora0*0.5+lora1*0.5"])
def test_to_others_it_is_as_if_there_were_none(locked: Running, model: str) -> None:
    client = locked.client(READER)
    messages = []
    for asked in (model, model.replace("lora1", "lora9")):
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(model=asked, messages=MESSAGES, max_tokens=1)
        messages.append(refused.value.message.replace("lora9", "lora1"))
    assert messages[0] == messages[1]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("lora1")


def test_metrics_do_not_name_it(locked: Running) -> None:
    locked.client(ALICE).completions.create(model="lora1", prompt="a", max_tokens=1)
    text = locked.send("GET", "/metrics", headers={"Authorization": f"Bearer {READER}"}).data.decode()
    assert 'model_name="private"' in text and "lora1" not in text


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("", UsageError, "has no keys"),
        ("# none\n", UsageError, "has no keys"),
        ("short\n", FormatError, "line 1.*at least 16"),
        (f"{READER}\n{READER} lora1\n", FormatError, "line 2.*twice"),
        ("sk-ключ-0123456789\n", FormatError, "ASCII"),
    ],
)
def test_a_wrong_key_file_is_refused(tmp_path: Path, text: str, error: type[RegraftError], says: str) -> None:
    (tmp_path / "keys").write_text(text, encoding="utf-8")
    with pytest.raises(error, match=says):
        read_keys(tmp_path / "keys")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_keys(tmp_path / "nowhere")
    (tmp_path / "token").write_text("two words-0123456789")
    with pytest.raises(FormatError, match="none a space"):
        read_token(tmp_path / "token")
