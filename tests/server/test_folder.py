"""Adapters come, change and go while the server runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.processes import until
from tests.server.running import LONG, MESSAGES, Running, running


def answer(server: Running, model: str) -> str:
    options: Any = {"model": model, "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    return str(server.client().chat.completions.create(**options).choices[0].message.content)


def edit(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_new_directory_is_a_new_adapter_and_one_that_goes_is_none(made: Path, loras: Path) -> None:
    with running(made / "base", loras) as server:
        shutil.copytree(loras / "lora1", loras / "more")
        until(lambda: "more" in server.models())
        assert answer(server, "more") == answer(server, "lora1")
        shutil.rmtree(loras / "more")
        until(lambda: "more" not in server.models())


def test_an_adapter_that_has_gone_is_none_before_the_folder_is_looked_at(made: Path, loras: Path) -> None:
    with running(made / "base", loras) as server:
        shutil.rmtree(loras / "lora0")  # nobody has asked for it, so it is not in memory
        for options in ({}, {"stream": True}):
            with pytest.raises(openai.NotFoundError) as caught:
                server.client().completions.create(model="lora0", prompt="the", max_tokens=2, **options)
            assert caught.value.code == "model_not_found"


def test_new_content_under_an_old_name_is_a_new_version(made: Path, loras: Path) -> None:
    with running(made / "base", loras) as server:
        first, other = answer(server, "lora0"), answer(server, "lora2")
        assert first != other
        # Over the old file, not beside it: what is loaded must not notice.
        (loras / "lora0" / "adapter_model.safetensors").write_bytes(
            (loras / "lora2" / "adapter_model.safetensors").read_bytes()
        )
        until(lambda: answer(server, "lora0") == other)


def test_another_scale_alone_is_a_new_version(made: Path, loras: Path) -> None:
    with running(made / "base", loras) as server:
        before = answer(server, "lora0")
        edit(loras / "lora0" / "adapter_config.json", lora_alpha=48)
        until(lambda: answer(server, "lora0") != before)


def test_a_change_does_not_touch_what_is_under_way(made: Path, loras: Path) -> None:
    options: Any = {"model": "lora0", "messages": MESSAGES, "temperature": 0, "response_format": LONG}

    def text(stream: Any) -> str:
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with running(made / "base", loras) as server:
        client = server.client()
        whole = text(client.chat.completions.create(stream=True, **options))
        stream = client.chat.completions.create(stream=True, **options)
        first = next(iter(stream))
        server.service.catalogue.put("lora0", loras / "lora2", "lora2")  # at once, where the folder takes two looks
        assert (first.choices[0].delta.content or "") + text(stream) == whole
        server.service.catalogue.drop("lora0")
        assert "lora0" not in server.models()


def test_a_bad_one_is_reported_left_out_and_tried_again(made: Path, loras: Path) -> None:
    edit(loras / "lora1" / "adapter_config.json", use_dora=True)
    (loras / "lora 3").mkdir()
    (loras / "lora 3" / "adapter_config.json").write_text("{}")
    (loras / "notes").mkdir()
    with running(made / "base", loras) as server:
        assert server.models() == ["base", "lora0", "lora2"]
        assert server.service.folder is not None
        assert set(server.service.folder.rejected) == {"lora1", "lora 3"}
        assert "regraft_adapters_rejected 2.0" in server.send("GET", "/metrics").data.decode()
        edit(loras / "lora1" / "adapter_config.json", use_dora=False)
        until(lambda: "lora1" in server.models())
        (loras / "lora2" / "adapter_model.safetensors").write_bytes(b"cut")
        until(lambda: "lora2" not in server.models())
        assert answer(server, "lora1")
