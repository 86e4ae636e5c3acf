"""Report cards: their arithmetic, their JSON, and the page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from regraft.errors import DataError, FormatError, UsageError
from regraft.evaluate.baseline import BaselineAnswers
from regraft.evaluate.build_card import ArmRun, Baselines, build_report_card, won_back
from regraft.evaluate.differences import Part, compare
from regraft.evaluate.html import render_html
from regraft.evaluate.report_card import ReportCard, read_report_card
from regraft.storage import write_json

N = 20
PROMPTS = [f"question {number}" for number in range(N)]
REFERENCES = [f"answer {number}" for number in range(N)]
EVIL = "</p><script>alert('&')</script>"


def right(count: int) -> list[str]:
    """Answers of which the first ``count`` are right."""
    return [reference if number < count else "?" for number, reference in enumerate(REFERENCES)]


def arm(answers: Any, **rest: Any) -> ArmRun:
    """An arm that gets so many right; or one that is made already."""
    return answers if isinstance(answers, ArmRun) else ArmRun(right(answers), **rest)


def baselines(**counts: int) -> Baselines:
    """Each kind gets so many of the answers right."""
    return Baselines(BaselineAnswers({kind: right(count) for kind, count in counts.items()}))  # type: ignore[misc]


def make_card(teacher: Any = 20, plugged_in: Any = 10, adapted: Any = 18, **changes: Any) -> ReportCard:
    """A card whose arms get so many of the answers right; ``changes`` replace what it is built from."""
    options: dict[str, Any] = {
        "prompts": PROMPTS,
        "references": REFERENCES,
        "teacher": arm(teacher, bytes=999_900, seconds=8.0),
        "plugged_in": arm(plugged_in, kl=0.25, bytes=999_900, seconds=8.1),
        "adapted": arm(adapted, kl=0.02, bytes=1_250_000, seconds=8.2),
        "baseline": baselines(zero_shot=2, five_shot=4, majority=1),
        "metric": "exact",
        "adapter": "green",
        "base": "tiny, 4 bit",
        "settings": {"seed": 0, "recipe": {"bits": 4}},
        "created": "2026-11-22T12:00:00Z",
    }
    return build_report_card(**(options | changes))


def make_small_card(answer: str, **changes: Any) -> ReportCard:
    """A card of one row that all arms answer right, but for what ``changes`` replace."""
    arms = {arm: ArmRun([answer]) for arm in ("teacher", "plugged_in", "adapted")}
    options: dict[str, Any] = {"prompts": ["question"], "references": [answer], "metric": "exact", **arms}
    options["baseline"] = "a single row has none"
    names = {"adapter": "green", "base": "tiny", "settings": {}, "created": "today"}
    return build_report_card(**(options | names | changes))


def test_scores_retention_and_what_was_won_back() -> None:
    card = make_card()
    assert [arm.score for arm in (card.teacher, card.plugged_in, card.adapted)] == [1.0, 0.5, 0.9]
    assert [arm.agreement for arm in (card.teacher, card.plugged_in, card.adapted)] == [1.0, 0.5, 0.9]
    assert card.retention == pytest.approx(0.9)
    assert card.won_back == pytest.approx(0.8)
    assert card.retention_ci95 is not None
    assert card.retention_ci95[0] < 0.9 < card.retention_ci95[1]
    assert (card.n, card.adapted.kl, card.adapted.bytes, card.adapted.seconds) == (N, 0.02, 1_250_000, 8.2)


@pytest.mark.parametrize(
    ("teacher", "plugged_in", "adapted", "expected"),
    [(1.0, 0.5, 0.9, 0.8), (1.0, 0.5, 0.4, -0.2), (0.8, 0.5, 0.95, 1.5), (0.8, 0.8, 0.9, None), (0.8, 0.9, 0.9, None)],
)
def test_won_back(teacher: float, plugged_in: float, adapted: float, expected: float | None) -> None:
    assert won_back(teacher, plugged_in, adapted) == (expected if expected is None else pytest.approx(expected))


def test_lift_kept_is_above_the_best_of_the_baselines() -> None:
    card = make_card()
    assert card.baseline is not None
    assert (card.baseline.kind, card.baseline.score, card.no_lift) == ("five_shot", 0.2, None)
    assert card.baseline.scores == {"zero_shot": 0.1, "five_shot": 0.2, "majority": 0.05}
    assert card.baseline.lift == pytest.approx(0.8)
    assert card.lift_kept == pytest.approx((0.9 - 0.2) / (1.0 - 0.2))
    assert card.lift_kept_ci95 is not None
    assert card.lift_kept_ci95[0] < card.lift_kept < card.lift_kept_ci95[1]
    kept = [arm.lift_kept for arm in (card.teacher, card.plugged_in, card.adapted)]
    assert kept == pytest.approx([1, 0.375, card.lift_kept])


def test_without_a_lift_there_is_a_reason_and_no_share() -> None:
    for card, why in (
        (make_card(teacher=6), "the teacher is 0.100 above the baseline, and 0.15 above is the least"),
        (make_card(baseline="there is no adapter"), "there is no adapter"),
    ):
        assert (card.lift_kept, card.lift_kept_ci95, card.no_lift) == (None, None, why)
        assert card.retention is not None
        assert card.adapted.lift_kept is None


def test_answers_that_are_held_to_a_schema_have_scores_and_a_lift_of_their_own() -> None:
    arms = {"teacher": 20, "plugged_in": 14, "adapted": 20}
    runs = {arm: ArmRun(right(count - 4), right(count)) for arm, count in arms.items()}
    without = Baselines(BaselineAnswers({"zero_shot": right(0)}), BaselineAnswers({"zero_shot": right(8)}))
    card = make_card(**runs, baseline=without)
    assert card.constrained is not None and card.constrained.baseline is not None
    found = card.constrained
    assert (found.teacher, found.plugged_in, found.adapted, found.lift_kept) == (1.0, 0.7, 1.0, 1.0)
    assert card.constrained.baseline.score == 0.4
    assert (card.adapted.score, card.baseline and card.baseline.score) == (0.8, 0.0)
    assert "Held to the schema, answers keep 100.0% of the lift" in " ".join(Reader(render_html(card)).text.split())
    assert make_card(teacher=ArmRun(right(20), right(20))).constrained is None


def test_cards_from_before_lift_are_read(tmp_path: Path) -> None:
    data = make_card().to_json()
    for key in ("lift_kept", "lift_kept_ci95", "no_lift", "baseline", "answers", "constrained"):
        del data[key]
    for arm in ("teacher", "plugged_in", "adapted"):
        del data[arm]["lift_kept"]
    card = ReportCard.from_json(data)
    assert (card.retention, card.lift_kept, card.no_lift) == (pytest.approx(0.9), None, None)
    text = " ".join(Reader(render_html(card)).text.split())
    assert "keeps 90.0% of what the same adapter scores on the uncompressed one" in text
    assert "None" not in text


def test_teacher_that_scores_nothing_leaves_nothing_to_keep() -> None:
    card = make_card(teacher=0, plugged_in=0, adapted=0)
    assert (card.retention, card.retention_ci95, card.won_back) == (None, None, None)


def test_examples_are_rows_that_plugging_in_changed() -> None:
    card = make_card()
    assert len(card.examples) == 3
    assert all(row.plugged_in != row.teacher for row in card.examples)


def test_the_adapted_arm_has_no_say_in_the_choice_of_examples() -> None:
    chosen = [[row.prompt for row in make_card(adapted=count).examples] for count in (0, 20)]
    assert chosen[0] == chosen[1]


def test_other_rows_follow_where_too_few_were_changed() -> None:
    rows = make_card(plugged_in=19).examples
    assert [row.plugged_in != row.teacher for row in rows] == [True, False, False]
    assert len(make_small_card("yes").examples) == 1


@pytest.mark.parametrize("card", [make_card(), make_card(teacher=0)], ids=["usual", "teacher at zero"])
def test_card_survives_json(card: ReportCard, tmp_path: Path) -> None:
    write_json(tmp_path / "report_card.json", card.to_json())
    assert read_report_card(tmp_path) == card


def test_json_has_the_promised_keys() -> None:
    data = json.loads(json.dumps(make_card().to_json()))
    assert list(data) == [
        *("lift_kept", "lift_kept_ci95", "no_lift", "baseline", "retention", "retention_ci95", "metric", "n"),
        *("answers", "teacher", "plugged_in", "adapted", "constrained", "won_back"),
        *("examples", "adapter", "base", "settings", "created"),
    ]
    assert list(data["teacher"]) == ["score", "ci95", "lift_kept", "agreement", "kl", "bytes", "seconds"]
    assert list(data["baseline"]) == ["kind", "score", "lift", "lift_error", "scores", "notes"]
    assert list(data["examples"][0]) == ["prompt", "reference", "teacher", "plugged_in", "adapted"]


def test_what_is_no_report_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"report_card\.json is missing"):
        read_report_card(tmp_path)
    with pytest.raises(FormatError, match=r"^a\.json: unknown key 'retentoin'\. Did you mean 'retention'\?$"):
        ReportCard.from_json(make_card().to_json() | {"retentoin": 1}, "a.json")


def test_wrong_metric_and_no_rows_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown metric 'exakt'"):
        make_card(metric="exakt")
    with pytest.raises(DataError, match="nothing to score"):
        make_small_card("", prompts=[], references=[], teacher=ArmRun([]), plugged_in=ArmRun([]), adapted=ArmRun([]))


@pytest.mark.parametrize(
    ("answer", "teacher", "expected"),
    [
        ("yes", " yes", [Part("yes", "same")]),
        ("positive", "negative", [Part("positive", "changed")]),
        ("", "yes", [Part("yes", "missing")]),
        ("a red fox", "a big fox", [Part("a ", "same"), Part("red", "changed"), Part(" fox", "same")]),
        ("a fox", "a big fox", [Part("a ", "same"), Part("big ", "missing"), Part("fox", "same")]),
        (
            '{"a": 1, "c": [true]}',
            '{"a": 2, "b": {"x": "é"}}',
            [Part("1", "changed", "a"), Part('"é"', "missing", "b.x"), Part("true", "changed", "c[0]")],
        ),
        ('{"b": 1, "a": "x"}', '{"a": "x", "b": 1}', [Part('"x"', "same", "a"), Part("1", "same", "b")]),
        ('{"a":', '{"a": 1}', [Part('{"a":', "same"), Part(" 1}", "missing")]),
    ],
)
def test_differences_are_marked(answer: str, teacher: str, expected: list[Part]) -> None:
    assert compare(answer, teacher) == expected


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in turn."""

    VOID = {"meta", "link", "rect", "line"}  # the last two close themselves

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += " " + data


def test_page_is_well_formed_and_needs_no_other_host() -> None:
    page = render_html(make_card())
    reader = Reader(page)
    assert reader.open == []
    assert "http" not in page
    assert "script" not in reader.tags
    assert not {name for name, _ in reader.attributes} & {"src", "srcset", "action", "onload"}
    assert [value for name, value in reader.attributes if name == "href"] == ["data:,"]
    assert "url(" not in page and "@import" not in page


def test_page_says_what_the_card_says() -> None:
    text = " ".join(Reader(render_html(make_card())).text.split())
    for said in ("90.0%", "80.0%", "1.000", "0.500", "0.900", "0.2500", "999.9 kB", "1.2 MB", "tiny, 4 bit"):
        assert said in text
    assert "On 20 examples, scored by exact" in text
    assert "3 of the 10 rows where plugging in changed the teacher\N{RIGHT SINGLE QUOTATION MARK}s answer" in text
    assert "{{" not in text and "None" not in text


def test_plot_is_an_image_with_a_text() -> None:
    page = render_html(make_card())
    assert re.search(r'<svg role="img" aria-labelledby="plot-title plot-text">', page)
    assert "Adapted 0.900, 95% interval" in page.split("<desc")[1].split("</desc>")[0]


@pytest.mark.parametrize("place", ["prompts", "references", "teacher", "plugged_in", "adapted"])
@pytest.mark.parametrize("value", [EVIL, json.dumps({EVIL: EVIL})], ids=["text", "json"])
def test_answers_are_escaped(place: str, value: str) -> None:
    changes = {place: [value] if place in ("prompts", "references") else ArmRun([value])}
    page = render_html(make_small_card("yes", **changes))
    assert "<script" not in page
    assert "alert" in Reader(page).text


def test_names_and_settings_are_escaped() -> None:
    card = make_card(adapter=EVIL, base=EVIL, created=EVIL, settings={EVIL: EVIL, "deep": {EVIL: [EVIL]}})
    page = render_html(card)
    assert "<script" not in page
    assert Reader(page).text.count("alert('&')") >= 7


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (make_card(teacher=0, plugged_in=0, adapted=0), "the teacher itself scores 0 by exact"),
        (make_card(teacher=5, plugged_in=1), "there is no lift to keep: the teacher is 0.050 above the baseline"),
        (make_card(), "the teacher is 0.800 above the baseline, which is the base with five examples"),
        (make_card(), "made for the compressed base keeps 87.5% of that lift. Plugged in as it was, it kept 37.5%"),
        (make_card(plugged_in=1), "Plugged in as it was, it falls below the baseline"),
        (make_card(runtime="torch"), "by torch, not by the engine that serves"),
        (make_card(plugged_in=20), "plugging in lost nothing"),
        (make_card(plugged_in=20), "Plugging in changed no answer"),
        (make_card(plugged_in=19), "(1 of 20), then others"),
    ],
)
def test_page_of_an_unusual_card(card: ReportCard, said: str) -> None:
    assert said in " ".join(Reader(render_html(card)).text.split())


def test_rows_that_no_arm_knows_are_left_out() -> None:
    text = Reader(render_html(make_small_card("yes"))).text
    assert "On disk" not in text and "KL" not in text and "Seconds" not in text
