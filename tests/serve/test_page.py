"""The page at / in a browser: what a person does with it, at a desk and on a phone."""

from __future__ import annotations

import re
import shutil

import pytest
from live import KEY, Live, small

from interlace.serve import streamed
from interlace.serve.keys import Keys
from interlace.serve.served import Served

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of playwright's own process
]


@pytest.fixture(scope="module")
def server():
    """Two models, one of which holds no conversation; no key is asked for."""
    plain = small(max_positions=2000)
    plain.tokenizer.chat_template = None
    models = {"tiny": small(max_positions=20_000), "plain": plain}
    made = Live({name: Served(name, model, "2GB", 8, None) for name, model in models.items()}, Keys([]), 40)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def comments(monkeypatch):
    """Streams hold comments."""
    monkeypatch.setattr(streamed, "SILENCE", 0.001)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def tab(browser):
    """Return what opens the page; all that it asks for, and all errors, are kept."""
    contexts = []

    def opened(server, **how):
        context = browser.new_context(**how)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.asked, page.wrong = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("console", lambda said: page.wrong.append(said.text) if said.type == "error" else None)
        page.goto(f"{server.url}/")
        return page

    yield opened
    for context in contexts:
        context.close()


def say(page, text):
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.locator("#send").wait_for()  # it is there again once the answer has ended
    page.locator("#log li.assistant:not(.going)").last.wait_for()


def bodies(page):
    return page.locator("#log .body").all_inner_texts()


def test_a_conversation(tab, server, says):
    says("the fox jumps")
    page = tab(server)
    page.locator("#model option").first.wait_for(state="attached")
    page.fill("#text", "the quick")
    page.press("#text", "Shift+Enter")
    page.type("#text", "brown")
    page.press("#text", "Enter")
    page.locator(".bar").first.wait_for()
    assert bodies(page) == ["the quick\nbrown", "the fox jumps"]
    figures = " ".join(page.locator(".figures").all_inner_texts())
    assert re.search(r"\d+ tokens, [\d.]+ tokens/s, first after [\d.]+ s · \d+ tokens read", figures)
    assert re.search(r"state [\d.]+ kB · a transformer's cache would be [\d.]+ kB", figures)
    say(page, "lazy")
    page.locator(".bar").nth(1).wait_for()
    assert re.search(r"\d+ of \d+ tokens reused", page.locator(".figures").all_inner_texts()[-2])
    page.reload()
    page.locator("#model option").first.wait_for(state="attached")
    assert bodies(page) == ["the quick\nbrown", "the fox jumps", "lazy", "the fox jumps"]
    page.click("#new")
    assert bodies(page) == []
    assert page.wrong == []
    assert all(url.startswith((server.url, "data:")) for url in page.asked)


def test_an_edit_is_a_branch_and_nothing_is_lost(tab, server, says):
    says("the fox")
    page = tab(server)
    say(page, "one")
    say(page, "two")
    page.locator("#log li").nth(0).get_by_role("button", name="Edit this message as a branch").click()
    page.fill(".edit textarea", "other")
    page.press(".edit textarea", "Enter")
    page.locator("#log li").nth(2).wait_for(state="detached")
    page.locator("#send").wait_for()
    assert bodies(page) == ["other", "the fox"]
    assert "branch 2 of 2" in page.locator("#log li").nth(0).inner_text()
    page.get_by_role("button", name="Earlier branch").click()
    assert bodies(page) == ["one", "the fox", "two", "the fox"]
    says("lazy dog")
    page.locator("#log li").nth(1).get_by_role("button", name="Another answer as a branch").click()
    page.locator("#send").wait_for()
    page.locator("text=lazy dog").wait_for()
    assert bodies(page) == ["one", "lazy dog"]
    page.get_by_role("button", name="Earlier branch").last.click()
    assert bodies(page) == ["one", "the fox", "two", "the fox"]
    assert page.wrong == []


def test_escape_stops_an_answer(tab, server, says):
    says("the fox " * 15_000)
    page = tab(server)
    page.click("#show")
    page.fill("#max_tokens", "15000")
    page.fill("#text", "go on")
    page.press("#text", "Enter")
    page.locator(".going .body:not(:empty)").wait_for()
    page.keyboard.press("Escape")
    page.locator("text=Stopped.").wait_for()
    assert len(bodies(page)[1]) > 3
    engine = server.served["tiny"].engine
    while engine.counts().live:  # or the test's time runs out
        pass


def test_what_a_model_says_is_text_and_never_markup(tab, server, says):
    said = "<img src=x onerror=alert(1)><script>alert(2)</script>\n```html\n<b>x</b>\n```\nend"
    says(said)
    page = tab(server)
    page.on("dialog", lambda dialog: page.wrong.append(dialog.message))
    say(page, "<b>bold</b>")
    assert bodies(page)[0] == "<b>bold</b>"
    assert page.locator("#log pre").inner_text().strip() == "<b>x</b>"
    assert page.locator("#log img, #log script, #log b").count() == 0
    assert page.wrong == []


def test_thoughts_are_folded(tab, server, says):
    says("<think>\nhm\n</think>\nyes")
    page = tab(server)
    say(page, "a")
    assert bodies(page)[1] == "yes"
    assert page.locator("details div").inner_text() == ""
    page.click("summary")
    assert page.locator("details div").inner_text() == "hm"


def test_a_model_without_conversations_goes_on_from_the_text(tab, server, says):
    says(" jumps")
    page = tab(server)
    page.locator("#model option").nth(1).wait_for(state="attached")
    page.select_option("#model", "plain")
    assert "holds no conversation" in page.locator("#notice").inner_text()
    say(page, "the fox")
    assert bodies(page)[0] == "the fox"
    assert bodies(page)[1].startswith(" jumps")


def test_errors_are_shown_where_they_happen(tab, server):
    page = tab(server)
    page.click("#show")
    page.fill("#max_tokens", "90000")
    say(page, "a")
    assert "max_tokens: " in page.locator("#log li.assistant").inner_text()


def test_a_key_is_asked_for(tab, live):
    page = tab(live)
    page.locator("#notice:not([hidden])").wait_for()
    assert "asks for a key" in page.locator("#notice").inner_text()
    page.fill("#key", KEY)
    page.press("#key", "Tab")
    page.locator("#model option").first.wait_for(state="attached")
    assert page.locator("#notice").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_cut_and_every_control_has_a_name(tab, server, says, scheme):
    says("the fox jumps over " * 9)
    page = tab(server, viewport={"width": 360, "height": 640}, color_scheme=scheme, has_touch=True)
    say(page, "word" * 40)
    page.click("#show")
    wide, seen = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= seen
    for control in page.locator("button:visible, input:visible, select:visible, textarea:visible").all():
        box = control.bounding_box()
        assert box["height"] >= 24, control
        assert box["x"] + box["width"] <= seen
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea')].filter(e => !e.labels.length && !e.ariaLabel).length"
    )
    assert unnamed == 0
    back, front = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert contrast(back, front) > 7


def contrast(one, other):
    """The contrast ratio of two colours, as WCAG 2 has it."""

    def light(colour):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, bright = sorted((light(one), light(other)))
    return (bright + 0.05) / (dark + 0.05)


def test_all_can_be_done_by_keyboard(tab, server, says):
    says("the fox")
    page = tab(server)
    page.locator("#model option").first.wait_for(state="attached")
    page.keyboard.type("one")  # the message has the focus from the start
    page.keyboard.press("Enter")
    page.locator("#log li.assistant:not(.going)").wait_for()
    reached = set()
    for _ in range(30):
        page.keyboard.press("Shift+Tab")
        reached.add(page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.id"))
    assert {"Edit this message as a branch", "Another answer as a branch", "show", "new", "model"} <= reached
