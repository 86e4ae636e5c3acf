"""The page in a real browser, walked as a person would."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regraft.server.keys import Keys
from regraft.server.settings import Settings
from tests.server.running import Running, running

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
VIEWS = ["chat", "compare", "adapters", "machine"]
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def carded(loras: Path) -> Path:
    """Adapters, of which one has a report card that tries to be markup."""
    arm = {"score": 0.5, "ci95": [0.4, 0.6], "agreement": 0.8, "bytes": 1000}
    row = {name: EVIL for name in ("reference", "teacher", "plugged_in", "adapted")}
    card = {
        "metric": "exact", "n": 3, "teacher": arm, "plugged_in": {**arm, "score": 0.45}, "adapted": arm,
        "retention": 0.98, "retention_ci95": [0.9, 1.0], "won_back": 0.5,
        "examples": [{"prompt": "the quick brown fox", **row}],
        "adapter": "lora0", "base": "base", "settings": {}, "created": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    (loras / "lora0" / "report_card.json").write_text(json.dumps(card))
    return loras


@pytest.fixture
def served(made: Path, carded: Path) -> Iterator[Running]:
    with running(made / "base", carded) as each:
        yield each


@pytest.fixture
def page(browser: Any, served: Running) -> Iterator[Any]:
    """A page that must log no error, and ask no other host for anything."""
    with opened(browser, served) as each:
        yield each


class opened:  # noqa: N801
    def __init__(self, browser: Any, served: Running, **options: Any) -> None:
        options = {"viewport": {"width": 1200, "height": 800}, **options}
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add("/".join(request.url.split("/")[:3])))
        self.url = served.url
        self.page.goto(served.url)

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.context.close()
        if kind is None:
            assert self.errors == []
            assert self.hosts <= {self.url, "data:"}


def visit(page: Any, view: str) -> None:
    page.get_by_role("link", name=view.capitalize(), exact=True).click()
    page.get_by_role("heading", name=view.capitalize(), level=1).wait_for()


def say(page: Any, text: str) -> str:
    """Ask, and wait for the whole answer."""
    count = page.locator("article.turn").count()
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")
    turn = page.locator("article.turn").nth(count)
    turn.locator(".said:not(.busy)").wait_for(state="attached")
    return str(turn.locator(".said").inner_text())


def test_chat_switch_and_mix(page: Any) -> None:
    page.get_by_text("Nothing said yet").wait_for()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill("12")
    base = say(page, "the quick brown fox")
    page.get_by_role("button", name="New conversation").click()
    page.get_by_label("Who answers").select_option("lora1")
    assert say(page, "the quick brown fox") != base
    page.get_by_role("button", name="New conversation").click()
    page.get_by_label("Who answers").select_option("A mix…")
    page.get_by_label("Weight of lora0").fill("0.5")
    page.get_by_label("Weight of lora2").fill("0.25")
    say(page, "the quick brown fox")
    assert page.locator("article.turn .who").inner_text() == "lora0 × 0.5 + lora2 × 0.25"


def test_stop_ends_an_answer(page: Any, served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = served.service.engine._loop
    step = loop.step
    monkeypatch.setattr(loop, "step", lambda now_s: time.sleep(0.02) or step(now_s))  # slower than a hand at the mouse
    page.get_by_label("Temperature").fill("0")  # whatever is drawn, it may be the end
    page.get_by_label("Most tokens").fill("480")
    page.get_by_label("Message").fill("the")
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Stop").click()
    page.locator(".said:not(.busy)").last.wait_for(state="attached")
    assert served.service.gate.num_inside <= 1
    assert page.get_by_role("button", name="Send").is_enabled()


def test_compare_shows_the_arms_and_runs_no_markup(page: Any) -> None:
    visit(page, "compare")
    page.get_by_label("Adapter").select_option("lora0")
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("button", name="Compare", disabled=False).wait_for()
    assert page.locator(".arm h3").all_inner_texts() == ["Base", "Teacher", "Adapter plugged in"]
    assert EVIL in page.locator(".arm").nth(1).inner_text()
    assert page.title() == "Compare · regraft"


def test_the_gallery_has_cards_and_runs_no_markup(page: Any) -> None:
    visit(page, "adapters")
    assert page.locator("article").count() == 3
    assert "98.0\u00a0%" in page.locator("article").first.inner_text()
    assert EVIL in page.locator("article").first.inner_text()
    assert page.get_by_role("img", name="Scores: Teacher 0.500, Plugged in 0.450, Recovered 0.500").is_visible()
    assert page.title() == "Adapters · regraft"
    page.get_by_role("link", name="Chat with lora1").click()
    assert page.get_by_label("Who answers").input_value() == "lora1"


def test_the_machine_shows_its_memory(page: Any, served: Running) -> None:
    served.service.engine.generate("the", "lora2", max_tokens=2)
    visit(page, "machine")
    page.get_by_text("answers running").wait_for()
    assert page.locator(".tag").all_inner_texts() == ["lora2"]
    assert page.get_by_role("img", name="Memory:").is_visible()


@pytest.mark.parametrize("width", [360, 390, 1200])
def test_nothing_scrolls_sideways(browser: Any, served: Running, width: int) -> None:
    with opened(browser, served, viewport={"width": width, "height": 800}) as page:
        for view in VIEWS:
            visit(page, view)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view


def test_dark_follows_the_system_and_the_switch(browser: Any, served: Running) -> None:
    with opened(browser, served, color_scheme="dark") as page:
        colour = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(colour)
        page.get_by_role("button", name="Switch to light colours").click()
        light = page.evaluate(colour)
        assert (dark, light) == ("rgb(22, 24, 20)", "rgb(247, 246, 242)")
        page.reload()
        page.get_by_role("button", name="Switch to dark colours").wait_for()
        assert page.evaluate(colour) == light


def test_the_keyboard_is_enough(page: Any) -> None:
    page.get_by_text("Nothing said yet").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.hash") == "#adapters"
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Adapters", level=1).wait_for()
    assert page.evaluate("document.activeElement.id") == "view"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Chat with lora0"


def test_a_key_is_asked_for_and_kept_for_the_session(browser: Any, made: Path) -> None:
    key = "sk-reader-0123456789"
    keys = Keys({key: frozenset()})
    with running(made / "base", made / "loras", keys=keys) as served, opened(browser, served) as page:
        page.get_by_role("button", name="Enter a key").click()
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Use it").click()
        page.get_by_role("heading", name="Chat", level=1).wait_for()
        assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]


def test_a_full_server_says_when_to_come_again(browser: Any, made: Path) -> None:
    one = Settings(max_answers=1)
    with running(made / "base", settings=one) as served, opened(browser, served) as page, served.service.gate.enter(1):
        page.get_by_label("Message").fill("the")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="The server is full").wait_for()
        assert "Try again in" in page.get_by_role("alert").inner_text()


def test_a_folder_without_adapters(browser: Any, made: Path) -> None:
    with running(made / "base") as served, opened(browser, served) as page:
        for view in ("compare", "adapters"):
            visit(page, view)
            assert page.get_by_text("No adapters yet").is_visible()


def test_a_server_that_stops_is_said_to_be_gone(browser: Any, made: Path) -> None:
    with running(made / "base") as served:
        ctx = opened(browser, served)
        page = ctx.page
        page.get_by_role("heading", name="Chat", level=1).wait_for()
        visit(page, "machine")
        page.get_by_text("answers running").wait_for()
    page.get_by_role("heading", name="The server is gone").wait_for()
    assert ctx.errors == []
    ctx.context.close()


def test_the_files_come_with_a_strict_policy(served: Running) -> None:
    for path in ("/", "/page/main.js", "/page/style.css"):
        reply = served.send("GET", path)
        assert reply.status == 200 and "default-src 'none'" in reply.headers["content-security-policy"]
        assert (
            b"http://" not in reply.data.replace(b"http://www.w3.org/2000/svg", b"") and b"https://" not in reply.data
        )
    assert served.send("GET", "/page/..%2fapp.py").status == 404
    assert served.send("GET", "/page/nothing.js").status == 404
