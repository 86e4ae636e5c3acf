"""Chat templates, rendered by Jinja in the sandbox that ``transformers`` uses (``utils/chat_template_utils.py``).

A template comes with a model, so it is code from elsewhere: it sees plain data only, and nothing with an underscore.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from regraft.errors import FormatError, UsageError

Message = Mapping[str, Any]


class ChatTemplate:
    """One model's template.

    Args:
        text: its source.
        origin: where it comes from, for errors.
        tokens: special tokens by name (``bos_token``), which templates may write.
    """

    def __init__(self, text: str, origin: str, tokens: Mapping[str, str]) -> None:
        self.text, self._origin, self._tokens = text, origin, tokens

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool, **variables: Any) -> str:
        """The text of a conversation.

        Args:
            messages: at least one, each with ``role`` and ``content``; entries that are None are left out.
            add_generation_prompt: whether the start of an answer follows.
            variables: what else the template asks for (``tools``, ``enable_thinking``).

        Raises:
            FormatError: the template cannot be parsed.
            UsageError: it refuses the conversation.
        """
        if not messages:
            raise UsageError("a conversation", expected="at least one message", found="none")
        given = {"tools": None, "documents": None, **self._tokens, **variables}
        chat = [{key: value for key, value in message.items() if value is not None} for message in messages]
        try:
            plain = json.loads(json.dumps({**given, "messages": chat}))
            return self._template.render(**plain, add_generation_prompt=add_generation_prompt)
        except FormatError:
            raise
        except Exception as error:  # templates raise what they like: roles out of turn, no system role
            reason = str(error) or type(error).__name__
            raise UsageError(f"the base's chat template refuses the conversation: {reason}") from None

    @cached_property
    def _template(self) -> Template:
        try:
            return _environment().from_string(self.text)
        except TemplateSyntaxError as error:
            raise FormatError(f"{self._origin}: line {error.lineno} of the chat template: {error}") from None


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": _PublicNamespace,
    }
    return environment


class _Generation(Extension):
    """``{% generation %}`` marks what a model is trained on, and renders as what it holds."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter would escape what HTML needs escaped."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


class _Dict:
    """``dict`` without the attributes of a class."""

    def __call__(self, *args: Any, **entries: Any) -> dict[Any, Any]:
        return dict(*args, **entries)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _PublicNamespace(Namespace):
    # Without a parameter named self, as a template may set an entry of that name.
    def __init__(*args: Any, **entries: Any) -> None:
        self, args = args[0], args[1:]
        Namespace.__init__(self, {_public(name): value for name, value in dict(*args, **entries).items()})

    def __setitem__(self, name: str, value: Any) -> None:
        Namespace.__setitem__(self, _public(name), value)


def _public(name: Any) -> Any:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template must not set {name!r}")
    return name
