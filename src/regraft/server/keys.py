"""API keys: who calls, and which adapters only some may see.

A key file has one key a line, and after it the adapters that are private to the keys that name them; ``*`` is all:

    # anyone with a key uses the public adapters
    sk-reader-0123456789
    sk-alice-0123456789   names addresses
    sk-owner-0123456789   *
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path

from regraft.errors import FormatError, UsageError
from regraft.server.errors import ApiError

MIN_KEY_LENGTH = 16
_EVERY = "*"


@dataclass(frozen=True)
class Caller:
    """Who sends a request.

    Attributes:
        private: adapters that only some may see.
        granted: those of them that this one may.
    """

    private: frozenset[str] = frozenset()
    granted: frozenset[str] = frozenset()

    def may_use(self, adapter: str) -> bool:
        """Whether the adapter exists for this caller."""
        return adapter not in self.private or adapter in self.granted or _EVERY in self.granted


class Keys:
    """The keys of a server, of which only hashes are kept.

    Args:
        granted: key → adapters that it may use besides the public ones. None: no keys, everybody may use everything.
    """

    def __init__(self, granted: dict[str, frozenset[str]] | None = None) -> None:
        self._salt = secrets.token_bytes(16)
        self.are_needed = granted is not None
        self.private = frozenset(name for names in (granted or {}).values() for name in names if name != _EVERY)
        self._callers = {self._hash(key): Caller(self.private, names) for key, names in (granted or {}).items()}

    def identify(self, authorization: str | None) -> Caller:
        """Who sent this ``Authorization`` header; takes the same time for any wrong key.

        Raises:
            ApiError: 401: no key, or none of ours.
        """
        if not self.are_needed:
            return Caller()
        given = self._hash(_bearer(authorization))
        found = [caller for key, caller in self._callers.items() if hmac.compare_digest(key, given)]
        if not found:
            raise _unauthorised("API key")
        return found[0]

    def _hash(self, key: str) -> bytes:
        return _digest(key, self._salt)


def check_token(token: str, authorization: str | None) -> None:
    """Hold the header against the token of whoever runs the server.

    Raises:
        ApiError: 401: it is another, or none.
    """
    given, right = _digest(_bearer(authorization)), _digest(token)
    if not hmac.compare_digest(given, right):
        raise _unauthorised("admin token")


def read_keys(path: Path) -> Keys:
    """Read a key file.

    Raises:
        UsageError: it cannot be read, or has no keys.
        FormatError: a key is short or there twice.
    """
    granted: dict[str, frozenset[str]] = {}
    for number, line in enumerate(_read(path).splitlines(), 1):
        words = line.partition("#")[0].split()
        if words:
            _check_key(words[0], f"{path}: line {number}")
            if words[0] in granted:
                raise FormatError(f"{path}: line {number}: the key is there twice")
            granted[words[0]] = frozenset(words[1:])
    if not granted:
        raise UsageError(f"{path} has no keys", hint="One key a line, and after it the adapters private to it.")
    return Keys(granted)


def read_token(path: Path) -> str:
    """Read the one token of a file; raises what :func:`read_keys` does."""
    token = _read(path).strip()
    _check_key(token, str(path))
    return token


def _check_key(key: str, where: str) -> None:
    if len(key) < MIN_KEY_LENGTH or not key.isascii() or any(c.isspace() for c in key):
        raise FormatError(f"{where}", expected=f"a key of at least {MIN_KEY_LENGTH} ASCII characters, none a space")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UsageError(f"{path} cannot be read: {reason}") from None


def _digest(text: str, salt: bytes = b"") -> bytes:
    """Of one length for all texts, so that comparing takes one time for all."""
    return hashlib.sha256(salt + text.encode("utf-8", "surrogateescape")).digest()


def _bearer(authorization: str | None) -> str:
    scheme, _, credentials = (authorization or "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else ""


def _unauthorised(what: str) -> ApiError:
    message = f"Wrong or missing {what}. Send it as: Authorization: Bearer KEY"
    return ApiError(401, message, code="invalid_api_key")
