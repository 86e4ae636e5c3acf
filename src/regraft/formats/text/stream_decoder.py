"""Token ids to text as they come, never half a character."""

from __future__ import annotations

from collections.abc import Callable

BROKEN = "\N{REPLACEMENT CHARACTER}"


class StreamDecoder:
    """Turns tokens into text as they come, holding back characters whose bytes are not all there.

    A token is decoded together with those since the last piece but one, as some tokenizers decode a token differently
    where a text begins.

    Args:
        decode: the text of some tokens, without special ones.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._context = 0  # first token that is decoded
        self._shown = 0  # first token whose text has not been given out

    def push(self, token: int) -> str:
        """The text that is complete with this token, perhaps none."""
        self._tokens.append(token)
        piece = self._pending()
        return "" if piece.endswith(BROKEN) else self._give(piece)

    def flush(self) -> str:
        """What was held back; a character that never got all its bytes comes as U+FFFD."""
        return self._give(self._pending())

    def _pending(self) -> str:
        context = self._decode(self._tokens[self._context : self._shown])
        return self._decode(self._tokens[self._context :])[len(context) :]

    def _give(self, piece: str) -> str:
        if piece:
            self._context, self._shown = self._shown, len(self._tokens)
        return piece
