"""The server's limits, each with its unit and default."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of a server.

    Args:
        max_body_bytes: the most that a request may send.
        body_timeout_s: how long it may take over that.
        header_timeout_s: how long a connection may take over a request's headers.
        stall_timeout_s: how long a client may leave what is sent to it unread.
        request_timeout_s: how long an answer may take, waiting included.
        max_connections: open at once.
        max_answers: that wait or run at once; each of a request's choices is one.
        max_choices: answers of one request.
        max_mix: adapters of one mix.
        default_max_tokens: of an answer whose request names no limit.
        drain_s: how long answers may go on once the server was told to stop.
        template_timeout_s: how long the chat template may take.
        template_memory_bytes: how much memory it may take, interpreter included.
        template_max_chars: the longest prompt that it may write.
        poll_s: between two looks at the adapters' folder.
        max_labels: adapters that metrics know by name; the others share a label.
    """

    max_body_bytes: int = 4 << 20
    body_timeout_s: float = 30.0
    header_timeout_s: float = 15.0
    stall_timeout_s: float = 60.0
    request_timeout_s: float = 600.0
    max_connections: int = 1000
    max_answers: int = 256
    max_choices: int = 16
    max_mix: int = 8
    default_max_tokens: int = 1024
    drain_s: float = 30.0
    template_timeout_s: float = 2.0
    template_memory_bytes: int = 1 << 30
    template_max_chars: int = 8 << 20
    poll_s: float = 1.0
    max_labels: int = 100
