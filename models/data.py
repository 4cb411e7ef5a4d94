"""Data from files inside installed packages, which are read but never imported."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minigrad.models.errors import InputError, failing_as


def package_folder(package: str, install: str) -> Path:
    """The folder of an installed package, without importing it.

    If it is missing, InputError names the command `install`.
    """
    spec = find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise InputError(f"the package {package} is not installed: run {install}")
    return Path(places[0])


def read_text(path: Path) -> str:
    """A UTF-8 text file with line ends as \\n; InputError describes what is wrong with it."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_bytes(path: Path) -> bytes:
    """All bytes of a file; InputError if it cannot be read."""
    with failing_as(f"cannot read {path}"):
        return path.read_bytes()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or {} if there is no file; InputError for other content."""
    if not path.is_file():
        return {}
    text = read_text(path)
    try:
        values: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object")
    return values
