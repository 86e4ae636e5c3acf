"""Open WebUI with its default settings, in a real browser: its first message to ``regraft serve`` is answered.

It needs an environment of its own, as it pins a hundred packages:

    python3.11 -m venv .venv-open-webui
    .venv-open-webui/bin/pip install torch==2.13.0 open-webui==0.12.4
    apt-get install chromium
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.processes import PATIENCE_S, regraft_process, started_process, until

REPOSITORY = Path(__file__).parents[2]
OPEN_WEBUI = Path(os.environ.get("OPEN_WEBUI", REPOSITORY / ".venv-open-webui/bin/open-webui"))
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not OPEN_WEBUI.exists(), reason=f"Open WebUI is not installed: see {Path(__file__).name}"),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
LEFT_OUT = "left out tools;reason="


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server with the real base and the zoo's adapters, and its log."""
    log = tmp_path_factory.mktemp("serve") / "log"
    options = ["--adapters", REPOSITORY / "zoo/adapters", "--port", 0]
    with log.open("w") as sink, regraft_process("serve", "smollm2-135m", *options, stderr=sink) as process:
        until(lambda: "serving" in log.read_text() or process.poll() is not None)
        found = re.search(r"serving .* on (http\S+)", log.read_text())
        assert found, log.read_text()
        yield found[1], log


@pytest.fixture(scope="module")
def open_webui(served: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of Open WebUI, which was told nothing but where the server is."""
    data = tmp_path_factory.mktemp("open-webui")
    told = {"DATA_DIR": str(data), "OPENAI_API_BASE_URL": served[0], "OPENAI_API_KEY": "none"}
    offline = {"HF_HUB_OFFLINE": "1"}  # it would fetch a model for documents
    port = free_port()
    command = [OPEN_WEBUI, "serve", "--host", "127.0.0.1", "--port", port]
    with (data / "log").open("w") as log:
        options: dict[str, Any] = {"cwd": data, "env": os.environ | told | offline, "stdout": log, "stderr": log}
        with started_process(*command, **options) as process:
            address = f"http://127.0.0.1:{port}"
            until(lambda: answers(f"{address}/health") or process.poll() is not None, every_s=0.5)
            assert process.poll() is None, (data / "log").read_text()[-3000:]
            yield address


@pytest.fixture
def page(open_webui: str) -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER)
        found = browser.new_page(viewport={"width": 1280, "height": 860})
        found.set_default_timeout(PATIENCE_S * 1000)
        found.goto(open_webui)
        yield found
        browser.close()


def test_the_first_message_is_answered(page: Any, served: tuple[str, Path], tmp_path: Path) -> None:
    page.get_by_text("Get started").first.click()
    page.get_by_placeholder("Enter Your Full Name").fill("Ada")
    page.get_by_placeholder("Enter Your Email").fill("ada@example.org")
    page.get_by_placeholder("Enter Your Password").fill("correct horse battery")
    page.get_by_role("button", name="Create Admin Account").click()
    page.get_by_role("button", name="Okay, Let's Go!").click()  # it has read what is new
    answer = say(page, "Hello, who are you?")
    assert answer and "chat template" not in answer
    page.screenshot(path=str(tmp_path / "open-webui.png"))
    log = served[1].read_text()
    assert LEFT_OUT in log  # else it has sent none, and the test shows nothing
    assert not re.search(r'" [45]\d\d', log), log  # titles and tags, which it asks for beside, were answered too


def say(page: Any, text: str) -> str:
    """Send a first message, and wait for the whole answer."""
    page.locator("#chat-input").click()
    page.keyboard.type(text)
    page.keyboard.press("Enter")
    page.locator(".copy-response-button").wait_for(state="attached")  # it has ended
    return str(page.locator("#response-content-container").inner_text())


def answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except (URLError, OSError):
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
