"""Conversations to prompts by the base's chat template, in a process of its own with a limit on time and memory."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from regraft.errors import UsageError
from regraft.formats.text.tokenizer import Tokenizer
from regraft.server.settings import Settings
from regraft.server.template_worker import LENGTH_BYTES


class Renderer:
    """Runs one template; a process that dies over a conversation is replaced for the next.

    Args:
        tokenizer: it has the template.
        settings: what a conversation may cost.
    """

    def __init__(self, tokenizer: Tokenizer, settings: Settings) -> None:
        self._settings = settings
        self._template = tokenizer.chat_template
        self._hello = {
            "template": self._template,
            "origin": "the base",
            "tokens": tokenizer.special_tokens,
            "memory_bytes": settings.template_memory_bytes,
            "max_chars": settings.template_max_chars,
        }
        self._process: asyncio.subprocess.Process | None = None
        self._one_at_a_time = asyncio.Lock()

    def mentions(self, word: str) -> bool:
        """Whether the template has a word in it, such as ``tools``."""
        return word in (self._template or "")

    async def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of a conversation, see :meth:`regraft.formats.text.tokenizer.Tokenizer.apply_chat_template`.

        Raises:
            UsageError: there is no template, it refuses the conversation, or it took too much time or memory.
        """
        if self._template is None:
            raise UsageError("the base has no chat template", hint="Use /v1/completions, which takes plain text.")
        asked = {"messages": messages, "add_generation_prompt": add_generation_prompt, "variables": variables}
        async with self._one_at_a_time:
            try:
                await self.start()
                async with asyncio.timeout(self._settings.template_timeout_s):
                    answer = await self._ask(asked)
            except (TimeoutError, asyncio.IncompleteReadError, OSError):
                await self.stop()
                limits = f"{self._settings.template_timeout_s:g} s and {self._settings.template_memory_bytes} bytes"
                raise UsageError("the base's chat template did not end", expected=f"at most {limits}") from None
            except BaseException:  # whoever asked has gone, perhaps in the middle of an answer
                await self.stop()
                raise
        if "error" in answer:
            raise UsageError(answer["error"])
        return answer["text"]

    async def start(self) -> None:
        """Have a process ready, which takes a moment that no conversation's limit is for.

        Raises:
            UsageError: it ended at once.
        """
        if self._process is None and self._template is not None:
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "regraft.server.template_worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl+C is for the server, which has streams to finish
            )
            try:
                await self._send(process, self._hello)
                await self._receive(process)
            except (asyncio.IncompleteReadError, OSError):
                await self.stop()
                raise UsageError("the process for the base's chat template does not start") from None

    async def stop(self) -> None:
        """End the process, whatever it is doing."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _ask(self, asked: Mapping[str, Any]) -> dict[str, str]:
        assert self._process is not None
        await self._send(self._process, asked)
        return await self._receive(self._process)

    @staticmethod
    async def _send(process: asyncio.subprocess.Process, frame: Mapping[str, Any]) -> None:
        assert process.stdin is not None
        data = json.dumps(frame).encode()
        process.stdin.write(len(data).to_bytes(LENGTH_BYTES) + data)
        await process.stdin.drain()

    @staticmethod
    async def _receive(process: asyncio.subprocess.Process) -> dict[str, str]:
        assert process.stdout is not None
        length = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES))
        answer: dict[str, str] = json.loads(await process.stdout.readexactly(length))
        return answer
