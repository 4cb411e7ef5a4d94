"""A headless browser for pages in a folder, and checks of these pages."""

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
    """The missing package, if the browser, its driver or selenium is not installed; else None."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "the package selenium is not installed"
    if not any(map(shutil.which, BROWSERS)):
        return "the package chromium is not installed"
    return None if shutil.which("chromedriver") else "the package chromium-driver is not installed"


def axe() -> Path | None:
    """The path of axe-core's script in the package axe-playwright-python, which is not imported."""
    found = importlib.util.find_spec("axe_playwright_python")
    places = list(found.submodule_search_locations or ()) if found is not None else []
    return Path(places[0]) / "axe.min.js" if places else None


AXE = """
axe.run().then(found => arguments[0](found.violations
  .filter(fault => ["serious", "critical"].includes(fault.impact))
  .flatMap(fault => fault.nodes.map(node => `${fault.id}: ${node.html} ${node.failureSummary}`))));
"""


def faults(driver: Any, script: Path) -> list[str]:
    """axe-core's serious and critical findings in the page."""
    driver.execute_script(script.read_text("utf-8"))
    found: list[str] = driver.execute_async_script(AXE)
    return found


@contextmanager
def browser() -> Iterator[Any]:
    """Headless Chromium from the distribution; selenium downloads nothing."""
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
    """Set the size of the page; windows themselves cannot be narrower than about 500 pixels."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def scheme(driver: Any, name: str) -> None:
    """Set the preferred colour scheme, "light" or "dark", as the system's setting."""
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": name}]},
    )


def visit(driver: Any, page: Path) -> list[str]:
    """Open a page from its file; gives the console's errors and warnings."""
    driver.get_log("browser")  # discards messages of the previous page
    driver.get(page.resolve().as_uri())
    return said(driver)


def said(driver: Any) -> list[str]:
    """Errors and warnings in the console since the last call."""
    return [entry["message"] for entry in driver.get_log("browser")
            if entry["level"] in ("SEVERE", "WARNING")]  # fmt: skip


PLAY = """
return [...document.querySelectorAll("[data-widget]")].map(box => ({
  name: box.dataset.widget,
  moves: box.plays.map(move => ({...move, found: box.play(move.do)})),
}));
"""


def play(driver: Any) -> list[dict[str, Any]]:
    """Do each widget's moves; gives the values then shown, and those expected."""
    played: list[dict[str, Any]] = driver.execute_script(PLAY)
    return played


def too_wide(driver: Any) -> list[str]:
    """Elements beyond the right edge, if the page scrolls sideways."""
    found: list[str] = driver.execute_script("""
        const room = document.documentElement.clientWidth;
        if (document.documentElement.scrollWidth <= room) return [];
        return [...document.querySelectorAll("body *")]
            .filter(e => e.getBoundingClientRect().right > room + 1)
            .map(e => `${e.tagName}.${e.getAttribute("class")} ${e.textContent.slice(0, 40)}`);
    """)
    return found
