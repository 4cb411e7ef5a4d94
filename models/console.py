"""What the scripts have in common: flags, readable errors, a progress bar."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from difflib import get_close_matches
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from minigrad import Device, Tensor, explain
from minigrad.collective import Group
from minigrad.errors import MinigradError
from minigrad.models.errors import InputError, failing_as
from minigrad.models.interrupt import Stopped
from minigrad.models.metrics import shown
from minigrad.runtimes.host import memory_bytes
from minigrad.settings import put

MOST_RANKS = 1024  # each is a thread or process with its own model
MOST = 10**18  # limit of integers; its square of floats. Products of larger ones are infinite.


def limited(
    kind: Callable[[str], float], least: float, what: str, most: float
) -> Callable[[str], float]:
    """An argparse type: a finite number from `least` to `most`. what: "at least 1", for errors."""

    def parse(text: str) -> float:
        number = kind(text)
        if not least <= number < math.inf:
            raise argparse.ArgumentTypeError(f"expected {what}, got {text}")
        if number > most:
            raise argparse.ArgumentTypeError(f"expected at most {most:g}, got {text}")
        return number

    parse.__name__ = "int" if kind is int else "number"  # as in "invalid int value: 'x'"
    return parse


positive_int = limited(int, 1, "at least 1", MOST)
natural_int = limited(int, 0, "at least 0", MOST)
positive_float = limited(float, math.ulp(0.0), "a number above 0", float(MOST**2))
natural_float = limited(float, 0.0, "a number of at least 0", float(MOST**2))
share = limited(float, math.ulp(0.0), "a number above 0", 1.0)


PREFIXES = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
AMOUNT = re.compile(r"([-+.\deE]*?\d\.?)\s*(?:([kKMGTPE]?)(i?)([A-Za-z/]*))")


def amount(unit: str, least: float) -> Callable[[str], float]:
    """An argparse type: a number ≥ `least`, such as 8e9, or with a unit "8GB" or "8GiB".

    A smaller number was probably meant in another unit: nobody has 80 bytes of memory.
    """

    def parse(text: str) -> float:
        found = AMOUNT.fullmatch(text.strip())
        if found is None or found[4] not in ("", unit):
            raise argparse.ArgumentTypeError(
                f"expected a number of {unit}, such as 80G{unit}, got {text}"
            )
        base = 1024.0 if found[3] else 1000.0
        number = positive_float(found[1]) * base ** PREFIXES[found[2].replace("K", "k")]
        if number < least:
            raise argparse.ArgumentTypeError(
                f"{text} means {number:g} {unit}: add the unit, as in {found[1]}G{unit}"
            )
        return number

    parse.__name__ = f"number of {unit}"
    return parse


# What --help calls the value of a flag, by the type's name; others: the flag's name in capitals.
METAVARS = {"int": "N", "number": "X"}


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults that are numbers or words, and keeps the layout of descriptions."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        known = METAVARS.get(getattr(action.type, "__name__", ""))
        return known or super()._get_default_metavar_for_optional(action)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if default is None or isinstance(default, (bool, list)) or not str(default).strip():
            return action.help
        if isinstance(default, float):
            return f"{action.help} (default: %(default)g)"
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Reports errors in one sentence, without the list of all flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=Help, **options)

    def _get_values(self, action: argparse.Action, given: list[str]) -> Any:
        """Refuses an empty value: as a path it would mean this folder, as a host all interfaces."""
        is_command = isinstance(action, argparse._SubParsersAction)
        if "" in given and not is_command and action.dest not in ("api_key", "system"):
            raise argparse.ArgumentError(action, "expected at least one character, got ''")
        return super()._get_values(action, given)

    def error(self, message: str) -> NoReturn:
        """Print the error, and the flag that a misspelled one may mean; exit with status 2."""
        words = message.split() if message.startswith("unrecognized") else []
        known = [flag for one in _parsers(self) for action in one._actions
                 for flag in action.option_strings]  # fmt: skip
        found = [get_close_matches(word, known, 1) for word in words]
        meant = next((f"; did you mean {flag}?" for flag, in filter(None, found)), "")
        self.exit(2, f"{self.prog}: error: {message}{meant} (see --help)\n")


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Add --seed, --device and --debug, which every script has."""
    parser.add_argument("--seed", type=natural_int, default=0, help="seed of all random numbers")
    parser.add_argument("--device",
                        help="device, such as CL, REF or CPU:1 (default: MINIGRAD_DEVICE or CPU)")
    parser.add_argument("--debug", type=natural_int, choices=range(6), metavar="0…5",
                        help="what the compiler prints: 1 summaries … 5 machine code")  # fmt: skip


def given_flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> set[str]:
    """The names of flags that are on the command line; `parser` cannot be used afterwards."""
    for one in _parsers(parser):
        one._defaults.clear()
        for action in one._actions:
            action.default = argparse.SUPPRESS
    return set(vars(parser.parse_args(arguments)))


def refuse_idle(given: Iterable[str], why: str) -> None:
    """InputError for the first of the given flags, which have no effect."""
    for name in sorted(given):
        raise InputError(f"--{name.replace('_', '-')} has no effect {why}")


def check_apart(
    read: Mapping[str, str | Path | None], written: Mapping[str, str | Path | None]
) -> None:
    """InputError if an output file is also an input, or is written twice."""
    known: dict[Path, str] = {}
    for name, path in [*read.items(), *written.items()]:
        if path is None:
            continue
        place = Path(os.path.realpath(path))  # resolve() raises if links form a ring
        if place in known and name in written:
            raise InputError(f"{name} and {known[place]} are both {path}: use different names")
        known[place] = name


def check_writable(path: Path) -> None:
    """InputError if a file could not be written: better now than after hours of training."""
    place = Path(os.path.realpath(path))
    folder = place.parent
    if place.is_symlink():
        raise InputError(f"cannot write {path}: its links form a ring")
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {folder}")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"cannot write {path}: permission denied")


def check_fits(nbytes: float, what: str, advice: str) -> None:
    """InputError if something needs more memory than this machine has."""
    has = memory_bytes()
    if nbytes > has:
        raise InputError(
            f"{what} needs about {nbytes / 1e9:,.0f} GB of memory, but this machine has "
            f"{has / 1e9:,.0f} GB: {advice}"
        )


def apply_common_flags(flags: argparse.Namespace) -> None:
    """Set the default device and the debug level; DeviceError for a device that does not exist.
    """
    if flags.debug is not None:
        put("DEBUG", flags.debug)
    if flags.device is not None:
        Device.DEFAULT = flags.device
    Device[Device.DEFAULT]  # opened now: a missing device is an error before any work is done


def require(module: str) -> ModuleType:
    """Import a module of the extra `models`; if missing, InputError says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        raise InputError(
            f"the package {missing} is not installed: run pip install {missing}"
        ) from None


def run(main: Callable[[Sequence[str]], None]) -> int:
    """Run a script's main function on the command line; returns the exit status.

    User errors are reported in one sentence on stderr; a bug still shows its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # characters that it cannot show become `?`
            stream.reconfigure(errors="replace")
    try:
        main(sys.argv[1:])
        if sys.stdout is not None:  # None if it is closed
            sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (MinigradError, OSError) as error:
        print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"{sys.argv[0]}: out of memory{f': {error}' if str(error) else ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"{sys.argv[0]}: {str(error) or 'interrupted'}", file=sys.stderr)
        return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)
    return 0


def check_device_of_ranks(ranks: int) -> None:
    """InputError if several ranks would be on devices without exchanges, or if there are too many.

    Checked before they start, because one that fails on its own takes the others with it.
    """
    if ranks > MOST_RANKS:
        raise InputError(f"{ranks:,} ranks: expected at most {MOST_RANKS:,}")
    kind = Device.DEFAULT.partition(":")[0]
    if ranks > 1 and kind not in ("CPU", "REF"):
        raise InputError(
            f"{ranks} ranks on {kind} devices: parallel programs run on CPU and REF devices; "
            "choose one with --device"
        )


def speaker(speaks: bool) -> Callable[..., None]:
    """`print`; or, for other ranks than the first, a function that prints nothing."""
    return print if speaks else lambda *_, **__: None


def refuse_trace(path: str | None, flags: str) -> None:
    """InputError if a trace of a single device is requested: replayed steps record no kernels."""
    if path is not None:
        raise InputError(f"--trace needs several devices: also give {flags}")


def add_explain(add: Callable[..., Any]) -> None:
    """Add the flags of `explain_step`."""
    add("--explain", metavar="F.html",
        help="train nothing; write a page that explains a step, from source lines to machine code")
    add("--explain-values", action="store_true",
        help="with --explain: also show what kernels wrote, and where a NaN first appeared")


def check_explain(flags: argparse.Namespace, given: Set[str]) -> None:
    """InputError for values without a page, or for flags that only a training uses.

    given: the flags on the command line.
    """
    if flags.explain_values and flags.explain is None:
        refuse_idle(["explain_values"], "without --explain: also give --explain")
    if flags.explain is not None:
        idle = given & {"epochs", "metrics", "patience", "picture", "steps"}
        refuse_idle(idle, "with --explain, which trains nothing")


def explain_step(
    path: str, step: Any, *args: Any, speaks: bool = True, values: bool = False,
    ranks: Group | None = None,
) -> None:  # fmt: skip
    """Write the page that explains a training step; ranks after the first only take part."""
    check_writable(Path(path))
    with failing_as(f"cannot write {path}"), Tensor.train():
        explain(step, *args, out=path if speaks else None, values=values, ranks=ranks)
    if speaks:
        print(f"saved {path}, which explains a step: open it in a browser")


class Progress:
    """Progress: on a terminal a bar with step, loss, speed and time left; else a line now and then.

    quiet: nothing is shown.
    """

    def __init__(self, steps: int, unit: str, quiet: bool = False) -> None:
        rich = require("rich.progress")
        self.steps, self.unit, self.quiet = steps, unit, quiet
        self.bar: Any = rich.Progress(
            rich.TextColumn("step {task.completed}/{task.total}"), rich.BarColumn(),
            rich.TextColumn("{task.fields[facts]}"), rich.TimeRemainingColumn(),
            rich.TextColumn("left"), transient=True,
        )  # fmt: skip
        terminal = self.bar.console.is_terminal and not self.bar.console.is_dumb_terminal
        self.live = bool(terminal) and not quiet
        self.task = self.bar.add_task("", total=steps, facts="")

    def __enter__(self) -> Progress:
        if self.live:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.bar.stop()

    def update(self, step: int, loss: float, rate: float) -> None:
        """Report that `step` steps are done (the first is 1), with the loss and units per second.
        """
        facts = f"loss {shown(loss)}  {rate:,.0f} {self.unit}/s"
        if self.live:
            self.bar.update(self.task, completed=step, facts=facts)
        elif not self.quiet and (step == 1 or step % max(self.steps // 20, 1) == 0):
            print(f"step {step}/{self.steps}  {facts}", flush=True)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.live:
            self.bar.console.print(text, highlight=False, markup=False)
        elif not self.quiet:
            print(text, flush=True)
