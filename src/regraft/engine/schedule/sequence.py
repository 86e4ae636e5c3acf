"""A request on its way through the engine: its tokens, its page table, how far it is computed."""

from __future__ import annotations

from regraft.engine.mix import Mix
from regraft.engine.request import FinishReason, Request, Tenant
from regraft.engine.schedule.residency import AdapterRef


class Sequence:
    """The state of one request. Equal only to itself; it is the owner of its KV pages.

    Args:
        request: what was asked for.
        mix: the versions of its adapters, with their weights.
        max_tokens: how many tokens may be generated, at least 1; of a prompt that is only scored, its last one.
        root_digest: what keys its pages in the prefix cache besides their tokens.
    """

    def __init__(self, request: Request, mix: Mix[AdapterRef], *, max_tokens: int, root_digest: bytes) -> None:
        self.request = request
        self.mix = mix
        self.adapters = mix.adapters
        self.tenant: Tenant = tuple(sorted(request.mix.adapters)) if request.tenant is None else request.tenant
        # The last token of a prompt that is only scored stands for one to draw: it is compared, never computed.
        self.known = request.prompt if request.max_tokens else request.prompt[:-1]
        self.tokens = list(self.known)  # and what was generated
        self.pages: list[int] = []  # page i holds the keys and values of the i-th page_tokens tokens
        self.num_computed = 0  # tokens whose keys and values are in the pages
        self.digests = [root_digest]  # then one for each page whose key was asked for
        self.cached_pages: set[int] = set()  # the first so many of ``pages``: those that the prefix cache has, too
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None  # one line, if finish_reason is ERROR
        self._max_tokens = max_tokens

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def num_generated(self) -> int:
        """Tokens after those that were known."""
        return len(self.tokens) - len(self.known)

    @property
    def num_left(self) -> int:
        """How many tokens may still be generated."""
        return self._max_tokens - self.num_generated

    @property
    def num_uncomputed(self) -> int:
        """Known tokens whose keys and values are not in the pages; 1 while decoding."""
        return len(self.tokens) - self.num_computed

    @property
    def is_prefilling(self) -> bool:
        """Whether some of the known tokens are still to be computed."""
        return self.num_computed < len(self.known)

    @property
    def num_passed(self) -> int:
        """Tokens from the first on after which no logits are wanted; the cache may have them, and they need no head."""
        scoring = self.request.scoring
        return len(self.request.prompt) - scoring.tokens - 1 if scoring else len(self.known) - 1
