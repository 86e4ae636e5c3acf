"""All that handlers need: the engine, and what stands around it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request

from regraft.engine.engine import Engine
from regraft.engine.vocabulary import Vocabulary
from regraft.server.answers import Answers
from regraft.server.catalogue import Catalogue
from regraft.server.errors import bad_request
from regraft.server.folder import Folder
from regraft.server.gate import Gate
from regraft.server.keys import Caller, Keys
from regraft.server.metrics import Labels, Metrics
from regraft.server.page_files import Page
from regraft.server.renderer import Renderer
from regraft.server.schema import Generation
from regraft.server.settings import Settings


class Service:
    """One base and its adapters, as served.

    Args:
        engine: it knows no adapters yet.
        adapters: a folder of them, which is watched.
        base_name: what requests call the base; by default what the engine calls it.
        keys: who may call.
        load_root: where adapters may be loaded from while running; with ``admin_token``, or not at all.
        admin_token: for that.
        settings: limits.
    """

    def __init__(
        self,
        engine: Engine,
        adapters: Path | None = None,
        *,
        base_name: str | None = None,
        keys: Keys | None = None,
        load_root: Path | None = None,
        admin_token: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.engine, self.settings, self.keys = engine, settings or Settings(), keys or Keys()
        self.load_root, self.admin_token = load_root, admin_token
        self.catalogue = Catalogue(engine, base_name or engine.base.name, max_mix=self.settings.max_mix)
        self.folder = Folder(adapters, self.catalogue) if adapters else None
        self.page = Page()
        self.gate = Gate(self.settings.max_answers)
        self.answers = Answers(engine)
        self.renderer = Renderer(engine.base.tokenizer, self.settings)
        self.vocabulary = Vocabulary(engine.base.tokenizer)
        labels = Labels(self.catalogue.base_name, self.keys.private, self.settings.max_labels)
        self.metrics = Metrics(engine, labels, self._num_adapters)

    @property
    def context_tokens(self) -> int:
        """The most tokens of prompt and answer together."""
        return self.engine.base.architecture.max_positions

    def caller(self, request: Request) -> Caller:
        """Who sends a request; raises as :meth:`regraft.server.keys.Keys.identify` does."""
        return self.keys.identify(request.headers.get("authorization"))

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The tokens of a text."""
        tokenizer = self.engine.base.tokenizer
        return tuple(await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens))

    def options(self, body: Generation, max_tokens: int | None, num_prompt_tokens: int) -> Mapping[str, Any]:
        """A request's fields as the engine's options.

        Raises:
            ApiError: the prompt leaves no room in the context.
        """
        self.check_room(num_prompt_tokens)
        timeout_s = min(body.timeout_s or self.settings.request_timeout_s, self.settings.request_timeout_s)
        eos = self.engine.base.tokenizer.eos_ids
        given = {
            "max_tokens": max_tokens or self.settings.default_max_tokens,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k if body.top_k and body.top_k > 0 else None,
            "min_p": body.min_p,
            "frequency_penalty": body.frequency_penalty,
            "presence_penalty": body.presence_penalty,
            "repetition_penalty": body.repetition_penalty,
            "stop": body.stop,
            "stop_token_ids": frozenset([*eos, *(body.stop_token_ids or ())]),
            "timeout_s": timeout_s,
        }
        return {name: value for name, value in given.items() if value is not None}

    def check_room(self, num_prompt_tokens: int) -> None:
        """Refuse a prompt that leaves no room in the context; raises ApiError."""
        if num_prompt_tokens >= self.context_tokens:
            message = f"The prompt has {num_prompt_tokens} tokens, and the context {self.context_tokens}."
            raise bad_request(message, code="context_length_exceeded")

    def _num_adapters(self) -> tuple[int, int]:
        return len(self.catalogue), len(self.folder.rejected) if self.folder else 0


def seed_of(body: Generation, choice: int) -> dict[str, int]:
    """Each choice draws otherwise, and the same again for the same seed; OpenAI's seeds may be negative."""
    return {} if body.seed is None else {"seed": (body.seed + choice) % 2**63}
