"""The errors that regraft raises on purpose.

    RegraftError                    exit code 1
    ├── UsageError             2    a command that cannot mean anything: unknown name, options at odds
    ├── ConfigError            2    a recipe or configuration file with an unknown key or a wrong value
    ├── FormatError                 a file or directory that is not what it should be
    │   └── UnsupportedBaseError    a base that may be whole, but is of a kind that the engine does not run
    ├── IncompatibleAdapterError    an adapter that cannot act on this base
    ├── DataError                   a dataset that cannot be used
    ├── CapacityError               a request that the engine's memory could never hold
    ├── ExportError                 a base or adapter that another engine's format cannot say
    ├── RequestError                a request that was begun, and failed
    └── DependencyMissingError      an optional package that this call needs

Each message is one line: what went wrong, what was expected, what was found, and what to try.
"""

from __future__ import annotations


class RegraftError(Exception):
    """An error that a user can mend; ``str()`` of it is one line.

    Args:
        what: the failure, naming the file, tensor or option.
        expected: what would have been right.
        found: what was there instead.
        hint: the next thing to try, a full sentence.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, expected: str | None = None, found: str | None = None, hint: str | None = None
    ) -> None:
        self.what, self.expected, self.found, self.hint = what, expected, found, hint
        details = [f"{label} {text}" for label, text in (("expected", expected), ("found", found)) if text]
        message = what + (": " + ", ".join(details) if details else "")
        super().__init__(" ".join((message + (f". {hint}" if hint else "")).split()))


class UsageError(RegraftError):
    """A command or call that cannot mean anything."""

    exit_code = 2


class ConfigError(RegraftError):
    """A recipe or configuration with an unknown key or a wrong value."""

    exit_code = 2


class FormatError(RegraftError):
    """A file or directory that is not what it should be."""


class UnsupportedBaseError(FormatError):
    """A base that the engine does not run; torch may."""


class IncompatibleAdapterError(RegraftError):
    """An adapter that cannot act on this base."""


class DataError(RegraftError):
    """A dataset that cannot be used."""


class CapacityError(RegraftError):
    """A demand on the engine's memory that no waiting could ever meet."""


class ExportError(RegraftError):
    """A base or an adapter that another engine's format cannot say, or that came out as another."""


class RequestError(RegraftError):
    """A request that the engine accepted and could not answer."""


class DependencyMissingError(RegraftError):
    """An optional package that this call needs is not installed."""
