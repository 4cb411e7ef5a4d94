"""The lessons' site in a browser: built once with `quick`, then every page is opened and played.

MINIGRAD_TEST_LESSONS names the folder of an existing site, which is tested instead.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minigrad.models.lessons.__main__ import build, numbered

from .site import WIDTHS, axe, browser, faults, missing, play, resize, said, scheme, too_wide, visit

ABSENT = missing()
pytestmark = pytest.mark.skipif(ABSENT is not None, reason=f"no browser: {ABSENT}")
PAGES = ["index", *(module.__name__.rpartition(".")[2] for module in numbered())]
MOST_BYTES = 15e6  # of the whole site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("MINIGRAD_TEST_LESSONS")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("site")
    build(folder, quick=True)
    return folder


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browser() as found:
        yield found


def away(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest number; infinite if texts differ."""
    if isinstance(expected, str) or (expected and isinstance(expected[0], str)):
        return 0.0 if found == expected else float("inf")
    one, other = (np.array(values, np.float64).ravel() for values in (found, expected))
    if one.shape != other.shape:
        return float("inf")
    return float(np.abs(one - other).max(initial=0) / max(np.abs(other).max(initial=0), 1e-30))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, width: str, site: Path, driver: Any) -> None:
    resize(driver, WIDTHS[width])
    scheme(driver, "dark" if width == "phone" else "light")
    assert visit(driver, site / f"{page}.html") == []
    assert too_wide(driver) == []
    for widget in play(driver):
        assert widget["moves"], f"{widget['name']}: nobody plays it"
        for move in widget["moves"]:
            assert away(move["found"], move["shows"]) <= move["within"], (
                f"{widget['name']}, {move['do']}: shows {move['found']}, minigrad {move['shows']}"
            )
    assert said(driver) == []
    assert too_wide(driver) == [], "after it was played with"


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_accessibility(page: str, colours: str, site: Path, driver: Any) -> None:
    script = axe()
    if script is None:
        pytest.skip("axe-playwright-python is not installed")
    resize(driver, WIDTHS["desktop"])
    scheme(driver, colours)
    visit(driver, site / f"{page}.html")
    assert faults(driver, script) == []


def test_every_lesson_has_something_to_do(site: Path) -> None:
    for page in PAGES[1:]:
        assert "data-widget=" in (site / f"{page}.html").read_text("utf-8"), page


def test_links_lead_somewhere_inside(site: Path) -> None:
    for page in PAGES:
        text = (site / f"{page}.html").read_text("utf-8")
        for link in re.findall(r'(?:href|src)="([^"]*)"', text):
            if not link.startswith(("#", "data:,")):
                assert (site / link).is_file(), f"{page}: {link}"


def test_the_site_is_small(site: Path) -> None:
    assert sum(path.stat().st_size for path in site.iterdir()) < MOST_BYTES
