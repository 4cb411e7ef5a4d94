"""A headless browser on pages of a folder, and what goes wrong in them."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = {"phone": 390, "desktop": 1280}


def missing() -> str | None:
    """What is not installed of a browser, its driver, and Python's side of it."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "the package selenium is not installed"
    if not any(map(shutil.which, BROWSERS)):
        return "the package chromium is not installed"
    return None if shutil.which("chromedriver") else "the package chromium-driver is not installed"


def axe() -> Path | None:
    """axe-core's script in the package axe-playwright-python, which is read and not imported."""
    found = importlib.util.find_spec("axe_playwright_python")
    places = list(found.submodule_search_locations or ()) if found is not None else []
    return Path(places[0]) / "axe.min.js" if places else None


AXE = """
axe.run().then(found => arguments[0](found.violations
  .filter(fault => ["serious", "critical"].includes(fault.impact))
  .flatMap(fault => fault.nodes.map(node => `${fault.id}: ${node.html} ${node.failureSummary}`))));
"""


def faults(driver: Any, script: Path) -> list[str]:
    """What axe-core finds serious or critical in the page."""
    driver.execute_script(script.read_text("utf-8"))
    found: list[str] = driver.execute_async_script(AXE)
    return found


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium without a window, from the distribution; selenium downloads nothing."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
                 "--hide-scrollbars", "--force-device-scale-factor=1"):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.set_script_timeout(120)
        yield driver
    finally:
        driver.quit()


def resize(driver: Any, width: int, height: int = 900) -> None:
    """The width of the page itself, which windows cannot have below some 500 pixels."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def scheme(driver: Any, name: str) -> None:
    """"light" or "dark", as the reader's system says."""
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": name}]},
    )


def visit(driver: Any, page: Path) -> list[str]:
    """Open a page from its file; gives what the console says of it."""
    driver.get_log("browser")  # of the page before
    driver.get(page.resolve().as_uri())
    return said(driver)


def said(driver: Any) -> list[str]:
    """Errors and warnings of the console since it was last asked."""
    return [entry["message"] for entry in driver.get_log("browser")
            if entry["level"] in ("SEVERE", "WARNING")]  # fmt: skip


PLAY = """
return [...document.querySelectorAll("[data-widget]")].map(box => ({
  name: box.dataset.widget,
  moves: box.plays.map(move => ({...move, found: box.play(move.do)})),
}));
"""


def play(driver: Any) -> list[dict[str, Any]]:
    """Do in each widget what its lesson says; gives what each then shows, and what it should."""
    played: list[dict[str, Any]] = driver.execute_script(PLAY)
    return played


def too_wide(driver: Any) -> list[str]:
    """Elements that reach beyond the page's width, where the page can be scrolled sideways."""
    found: list[str] = driver.execute_script("""
        const room = document.documentElement.clientWidth;
        if (document.documentElement.scrollWidth <= room) return [];
        return [...document.querySelectorAll("body *")]
            .filter(e => e.getBoundingClientRect().right > room + 1)
            .map(e => `${e.tagName}.${e.getAttribute("class")} ${e.textContent.slice(0, 40)}`);
    """)
    return found
