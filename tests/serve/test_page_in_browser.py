"""The chat page in a real browser: a message, the answer as it comes, Stop, Forget, reload, an API key."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Server, eventually, running

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

SEED = 7  # its answer to "Once upon" is long: drawn without one, one in some twenty ends after a few tokens

# Keeps every length that the last answer has had, and whether one could stop and send then. The page sees each;
# whoever asks from outside comes when he can, which on a busy machine is after the end.
WATCH = """() => {
  window.lengths = [];
  window.buttons = [];
  const usable = (id) => !document.getElementById(id).disabled;
  const look = () => {
    const found = document.querySelectorAll("#talk p.assistant");
    if (!found.length) return;
    window.lengths.push(found[found.length - 1].textContent.length);
    window.buttons.push([usable("stop"), usable("send")]);
  };
  new MutationObserver(look).observe(document.getElementById("talk"), { childList: true, subtree: true });
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(30_000)
    errors: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.route("**/v1/chat/completions", _with_seed)
    page.goto(server.url)
    yield page
    context.close()
    assert errors == []
    assert [url for url in asked if not url.startswith(server.url)] == []


def _with_seed(route: Any) -> None:
    route.continue_(post_data=json.dumps({**json.loads(route.request.post_data), "seed": SEED}))


@pytest.fixture
def network(page: Any) -> Any:
    """Chromium's own protocol, for what Playwright has no words for."""
    return page.context.new_cdp_session(page)


def _send(page: Any, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")


def _until(page: Any, condition: str) -> None:
    """Wait for it; Playwright's own way to wait is what the page's Content-Security-Policy forbids."""
    eventually(lambda: page.evaluate(condition))


def _wait_until_done(page: Any) -> None:
    _until(page, "running === null && !document.getElementById('send').disabled")


def _slow(network: Any, bytes_a_second: int) -> None:
    """What the server writes at once reaches the page piece by piece; -1 for as fast as it comes."""
    conditions = {
        "offline": False,
        "latency": 0,
        "downloadThroughput": bytes_a_second,
        "uploadThroughput": -1,
    }
    network.send("Network.emulateNetworkConditions", conditions)


def _turns(page: Any) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in page.evaluate("turns")]


def test_an_answer_comes_piece_by_piece(page: Any, network: Any) -> None:
    page.evaluate(WATCH)
    _slow(network, 6000)
    _send(page, "Once upon")
    _until(page, "window.lengths.length > 0")
    _wait_until_done(page)
    assert len(set(page.evaluate("lengths"))) > 3
    assert [buttons for buttons in page.evaluate("buttons") if buttons != [True, False]] == []
    assert page.is_disabled("#stop")
    assert page.is_enabled("#send")
    shown = page.text_content("#talk p.assistant")
    assert shown
    assert page.evaluate("lengths") == sorted(page.evaluate("lengths"))
    assert _turns(page) == [("user", "Once upon"), ("assistant", shown)]
    assert page.input_value("#text") == ""


def test_stop_ends_the_answer_and_keeps_what_was_shown(page: Any, network: Any) -> None:
    page.evaluate(WATCH)
    _slow(network, 2000)
    _send(page, "Once upon")
    _until(page, "window.lengths.some((length) => length > 0)")
    page.click("#stop")
    _wait_until_done(page)
    shown = page.text_content("#talk p.assistant")
    assert shown
    _slow(network, -1)
    page.wait_for_timeout(200)
    assert page.text_content("#talk p.assistant") == shown
    assert _turns(page) == [("user", "Once upon"), ("assistant", shown)]
    _send(page, "there was")  # and the conversation goes on
    _wait_until_done(page)
    assert [role for role, _ in _turns(page)] == ["user", "assistant"] * 2
    assert page.locator("#talk p.error").count() == 0


def test_forget_and_reload_begin_anew(page: Any, network: Any) -> None:
    _send(page, "Once upon")
    _wait_until_done(page)
    page.click("#reset")
    assert page.locator("#talk p").count() == 0
    assert _turns(page) == []
    _slow(network, 2000)
    page.evaluate(WATCH)
    _send(page, "a time")
    _until(page, "window.lengths.length > 0")
    page.click("#reset")  # while it is being answered
    _wait_until_done(page)
    assert _turns(page) == []
    _slow(network, -1)
    _send(page, "there was")
    _wait_until_done(page)
    assert [turn for turn in _turns(page) if turn[0] == "user"] == [("user", "there was")]
    page.reload()
    assert page.locator("#talk p").count() == 0
    assert _turns(page) == []


def test_text_of_a_user_is_text(page: Any) -> None:
    text = "<img src=x onerror='window.broken = 1'> & <b>Once</b>"
    _send(page, text)
    _wait_until_done(page)
    assert page.text_content("#talk p.user") == text
    assert page.locator("#talk img, #talk b").count() == 0
    assert page.evaluate("window.broken") is None


def test_what_is_refused_is_said_and_not_kept(page: Any) -> None:
    _send(page, "a b " * 3000)
    _wait_until_done(page)
    assert "longer than the context" in page.text_content("#talk p.error")
    assert _turns(page) == []
    _send(page, "Once")
    _wait_until_done(page)
    assert [role for role, _ in _turns(page)] == ["user", "assistant"]


def test_an_api_key(browser: Any, bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef0123456789abcdef\n")
    with running(bundle, "--api-key-file", keys) as server:
        page = browser.new_page()
        page.goto(server.url)
        _send(page, "Once")
        _wait_until_done(page)
        assert re.search("API key", page.text_content("#talk p.error"))
        page.fill("#key", "0123456789abcdef0123456789abcdef")
        _send(page, "Once")
        _wait_until_done(page)
        assert page.text_content("#talk p.assistant >> nth=-1")
        page.close()
