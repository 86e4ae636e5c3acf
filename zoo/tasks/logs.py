"""Log lines of eight formats → JSON, from a seeded generator."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from zoo.rows import Row
from zoo.tasks.dates import MONTHS

NUM_ROWS = 4000
SYSTEM = "Turn the log line into JSON."
LEVELS = {"debug": "DEBUG", "info": "INFO", "warning": "WARN", "error": "ERROR", "critical": "FATAL"}
MODULES = (
    *("auth", "billing", "cache", "gateway", "indexer", "mailer", "orders", "payments", "queue", "scheduler"),
    *("search", "session", "storage", "sync", "uploads", "users", "webhook", "worker"),
)
# {i} address, {n} a number, {u} a user, {p} a path; each is asked for under its name.
MESSAGES = (
    *("connection refused by {i}", "user {u} logged in", "retry {n} of 5", "disk is {n}% full", "cannot open {p}"),
    *("login failed for {u} from {i}", "{n} rows written", "took {n} ms", "timeout after {n} s", "file {p} not found"),
    *("{u} has no right to {p}", "cache miss for {p}", "heartbeat lost: {i}", "{n} jobs left", "evicted {n} keys"),
    *("certificate of {i} expires", "checksum differs: {p}", "session of {u} ended", "{u} deleted {p}"),
    *("restarting with {n} threads", "queue length {n}", "client {i} too slow", "saved {p} in {n} ms", "out of memory"),
    *("configuration reloaded", "shutting down", "no route to {i}", "token of {u} expired", "upload of {p} by {u}"),
    *("{i} sent {n} bytes", "rate limit reached by {u}", "lock on {p} held", "migration {n} applied", "ready"),
)
FORMATS = {
    "syslog": "{mon} {day} {time} host {module}: {level}: {message}",
    "python": "{iso} {time} {LEVEL} {module} - {message}",
    "java": "{time}.{ms} [{module}] {LEVEL}  {message}",
    "bracket": "[{iso} {time}] [{level}] ({module}) {message}",
    "logfmt": 'ts={iso}T{time}Z level={level} svc={module} msg="{message}"',
    "klog": "{letter}{mmdd} {time} {module}.go] {message}",
    "pipe": "{time} | {LEVEL} | {module} | {message}",
    "plain": "{LEVEL}: {message} ({module}, {time})",
}
USERS = ("anna", "bob", "chen", "dora", "emil", "fatima", "george", "hana", "ivan", "julia", "kofi", "lena")
PATHS = ("/etc/app.conf", "/tmp/a.lock", "/var/db/main", "/srv/img/7.png", "/opt/x/notes.md", "/data/part-3.csv")


def logs(packages: Path) -> Iterator[Row]:
    """A log line → ``{"time", "level", "module", …}`` with the values that its message names."""
    rng = random.Random("logs")
    for _ in range(NUM_ROWS):
        name, message = rng.choice(list(FORMATS)), rng.choice(MESSAGES)
        level, module = rng.choice(list(LEVELS)), rng.choice(MODULES)
        values = {
            "ip": f"{rng.randrange(1, 224)}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}",
            "number": rng.randrange(1, 2000) if "%" not in message else rng.randrange(50, 100),
            "user": rng.choice(USERS),
            "path": rng.choice(PATHS),
        }
        time = f"{rng.randrange(24):02}:{rng.randrange(60):02}:{rng.randrange(60):02}"
        text = FORMATS[name].format(
            **_stamps(rng),
            **{"time": time, "level": level, "LEVEL": LEVELS[level], "letter": LEVELS[level][0], "module": module},
            message=message.format(i=values["ip"], n=values["number"], u=values["user"], p=values["path"]),
        )
        named = {key: values[key] for key in values if f"{{{key[0]}}}" in message}
        answer = json.dumps({"time": time, "level": level, "module": module, **named})
        yield Row(text, answer, text, (f"{name} {message}",), SYSTEM)


def _stamps(rng: random.Random) -> dict[str, str]:
    month, day = rng.randrange(1, 13), rng.randrange(1, 29)
    return {
        "mon": MONTHS[month - 1][:3],
        "day": f"{day:2}",
        "iso": f"20{rng.randrange(18, 27)}-{month:02}-{day:02}",
        "mmdd": f"{month:02}{day:02}",
        "ms": f"{rng.randrange(1000):03}",
    }
