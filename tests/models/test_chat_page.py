"""The chat page in a browser: typing, streaming, stopping, continuing, and what a reload keeps."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from lessons.site import WIDTHS, axe, browser, faults, missing, resize, said, scheme, too_wide
from served import serving, strong_model, tokenizer

from minigrad.models.chat_template import ends_of, template_of
from minigrad.models.engine import Engine, Request

ABSENT = missing()
pytestmark = pytest.mark.skipif(ABSENT is not None, reason=f"no browser: {ABSENT}")
PATIENCE = 60  # seconds within which the page must show something


@dataclass
class Gate:
    """An engine that does only as many steps as allowed, and records its requests."""

    engine: Engine
    requests: list[Request] = field(default_factory=list)
    left: float = math.inf
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        step, submit = self.engine.slots.step, self.engine.submit

        def waiting(tokens: Any) -> Any:
            with self.changed:
                self.changed.wait_for(lambda: self.left > 0)
                self.left -= 1
            return step(tokens)

        def noting(request: Request) -> None:
            submit(request)
            self.requests.append(request)

        self.engine.slots.step = waiting  # type: ignore[method-assign]
        self.engine.submit = noting  # type: ignore[method-assign]

    def allow(self, steps: float) -> None:
        """Allow this many steps from now on."""
        with self.changed:
            self.left = steps
            self.changed.notify_all()


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    engine = Engine(strong_model(1024), 1, 1024)
    engine.start()
    found = Gate(engine)
    yield found
    found.allow(math.inf)
    engine.close()


@pytest.fixture(scope="module")
def driver(gate: Gate) -> Iterator[Any]:
    with serving(gate.engine) as place, browser() as found:
        found.place = place
        yield found


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, driver: Any, gate: Gate) -> Iterator[Page]:
    driver.get_log("browser")  # drop messages about the previous page
    resize(driver, WIDTHS[request.param])
    driver.get(driver.place)
    found = Page(driver)
    found.click("clear")
    found.choose_greedy()
    yield found
    gate.allow(math.inf)
    assert too_wide(driver) == []


class Page:
    """A user's actions on the page, and what the page shows."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def find(self, name: str) -> Any:
        """The element with this id."""
        return self.driver.find_element("id", name)

    def click(self, name: str) -> None:
        self.find(name).click()

    def choose_greedy(self) -> None:
        """Set the temperature to 0 in the settings."""
        self.click("settings")
        self.find("temperature").clear()
        self.find("temperature").send_keys("0")

    def type(self, text: str) -> None:
        self.find("text").send_keys(text)

    def shown(self) -> list[tuple[str, str]]:
        """(role, text) of each message shown."""
        found: list[list[str]] = self.driver.execute_script(
            "return [...document.querySelectorAll('#talk > div')]"
            ".map(box => [box.className, box.textContent])"
        )
        return [(role, text) for role, text in found]

    def until(self, good: Any) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, PATIENCE, 0.02).until(lambda _: good(self.shown()))

    def is_done(self, _: Any = None) -> bool:
        return bool(self.find("send").is_enabled() and not self.find("stop").is_enabled())


def read_of(*texts: str) -> list[int]:
    """The tokens that the model reads for a conversation."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return template_of(tokenizer()).encode(tokenizer(), messages)


def answer_of(gate: Gate, ids: list[int]) -> str:
    """The whole answer, computed without a server."""
    model, ends = gate.engine.slots.model, ends_of(tokenizer())
    found = [token for token in model.generate(ids, 100, 0.0, stop=ends) if token not in ends]
    return b"".join(map(tokenizer().token_bytes, found)).decode("utf-8", "replace")


def test_a_conversation(page: Page, gate: Gate) -> None:
    gate.allow(5)
    page.type("Hi\ue008\ue007\ue008there\ue007")  # shift, enter, shift; then enter
    page.until(lambda shown: len(shown) == 2 and shown[1][1])
    assert not page.is_done() and page.find("text").get_property("value") == ""
    begun = page.shown()[1][1]
    gate.allow(math.inf)
    page.until(page.is_done)
    first = answer_of(gate, read_of("Hi\nthere"))
    assert page.shown() == [("user", "Hi\nthere"), ("assistant", first)]
    assert first.startswith(begun) and len(first) > len(begun)
    page.type("  And then? ")
    page.click("send")
    page.until(lambda shown: len(shown) == 4 and page.is_done())
    ids = read_of("Hi\nthere", first, "And then?")
    assert gate.requests[-1].prompt == ids
    assert page.shown()[2:] == [("user", "And then?"), ("assistant", answer_of(gate, ids))]
    before = page.shown()
    page.driver.refresh()
    assert page.shown() == before
    assert page.find("temperature").get_property("value") == "0.7"
    page.choose_greedy()
    page.type("More\ue007")
    page.until(lambda shown: len(shown) == 6 and page.is_done())
    assert gate.requests[-1].prompt == read_of(*(text for _, text in before), "More")
    page.click("clear")
    assert page.shown() == []
    page.driver.refresh()
    assert page.shown() == []
    assert said(page.driver) == []


def test_stop(page: Page, gate: Gate) -> None:
    gate.allow(5)
    page.type("Hi\ue007")
    page.until(lambda shown: len(shown) == 2 and shown[1][1])
    page.click("stop")
    page.until(page.is_done)
    part = page.shown()[1][1]
    gate.allow(math.inf)
    page.type("Go on\ue007")
    page.until(lambda shown: len(shown) == 4 and page.is_done())
    stopped, second = gate.requests[-2:]
    assert stopped.cancelled and len(stopped.said) <= 6
    assert second.prompt == read_of("Hi", part, "Go on")
    assert said(page.driver) == []


def test_an_unanswered_message_can_be_sent_again(page: Page, gate: Gate) -> None:
    """An answer stopped before the first word, a page that was left, and a refused request."""
    gate.allow(0)
    page.type("Hi\ue007")
    page.until(lambda shown: len(shown) == 2)
    page.click("stop")
    page.until(page.is_done)
    assert page.shown() == [] and page.find("text").get_property("value") == "Hi"
    page.click("send")
    page.until(lambda shown: len(shown) == 2)
    page.driver.refresh()
    assert page.shown() == [] and page.find("text").get_property("value") == "Hi"
    assert said(page.driver) == []
    gate.allow(math.inf)
    page.driver.execute_script("document.getElementById('text').value = 'x'.repeat(1100)")
    page.click("send")
    page.until(lambda shown: shown and shown[-1][0] == "error" and page.is_done())
    assert [role for role, _ in page.shown()] == ["error"]
    assert "the context has" in page.shown()[0][1]
    assert len(page.find("text").get_property("value")) == 1100
    (network,) = said(page.driver)
    assert "400" in network  # the browser's own message


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_accessibility(colours: str, page: Page, gate: Gate) -> None:
    script = axe()
    if script is None:
        pytest.skip("axe-playwright-python is not installed")
    scheme(page.driver, colours)
    page.type("Hi\ue007")
    page.until(lambda shown: len(shown) == 2 and page.is_done())
    page.driver.execute_script("show('error', 'It failed')")
    assert faults(page.driver, script) == []
