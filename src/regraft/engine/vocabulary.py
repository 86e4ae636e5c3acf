"""The vocabulary as bytes, and the tokens that a JSON schema lets come next.

Grammars are llguidance's (Microsoft, MIT licence): no network, and limits on what a schema may cost.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from regraft.engine.constraint import ConstraintError
from regraft.errors import UsageError
from regraft.formats.text.tokenizer import Tokenizer

# As much whitespace between two tokens of JSON as indentation wants; without a bound small models write nothing else.
_WHITESPACE = r"[ \n\t]{1,16}"
_LIMITS = LLParserLimits(max_lexer_states=20_000, max_grammar_size=100_000)  # a state takes about 2 kB


class Vocabulary:
    """A tokenizer's tokens. Making the table takes most of a second for 50,000 of them, and is put off until needed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._table: LLTokenizer | None = None
        self._making = threading.Lock()

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for; of a special one, its name's."""
        return bytes(self._made().decode_bytes([token]))

    def json_constraint(self, schema: Mapping[str, Any]) -> JsonConstraint:
        """What keeps an answer to a JSON schema.

        Raises:
            UsageError: the schema is wrong, too big, or the base has no token that ends an answer.
        """
        if not self._tokenizer.eos_ids:
            raise UsageError("the base has no end-of-sequence token", hint="Answers cannot be held to a schema.")
        try:
            options = {"whitespace_pattern": _WHITESPACE}
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)  # type: ignore[arg-type]
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the schema is not understood: {error}") from None
        matcher = LLMatcher(self._made(), grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise UsageError(f"the schema is not understood: {matcher.get_error()[:300]}")
        return JsonConstraint(matcher)

    def _made(self) -> LLTokenizer:
        with self._making:
            if self._table is None:
                eos = list(self._tokenizer.eos_ids) or None
                size = self._tokenizer.vocabulary_size
                self._table = LLTokenizer(self._tokenizer.to_json(), n_vocab=size, eos_token=eos)
            return self._table


class JsonConstraint:
    """One answer on its way through a grammar, see :class:`regraft.engine.constraint.Constraint`."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def another(self) -> JsonConstraint:
        """The same for another answer."""
        return JsonConstraint(self._matcher.deep_copy())

    def allowed(self) -> NDArray[np.bool_]:
        """The tokens that may come next; nothing but the end once the JSON is complete."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(mask, bitorder="little").view(np.bool_)

    def accept(self, token: int) -> None:
        """Go on."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(f"the schema is too much for this answer: {self._matcher.get_error()[:200]}")
