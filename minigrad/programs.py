"""The programs of this process, specialized and general ones, looked up by their graph."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import ne
from types import MappingProxyType
from typing import Any

from minigrad.device import Device, Program
from minigrad.errors import CompileError
from minigrad.gc_pause import gc_paused
from minigrad.graph.canonical import Canonical, Cell, Graph
from minigrad.graph.general import MOST_SAMPLES, General, Refused, Special, generalize
from minigrad.graph.interned import Bounded
from minigrad.graph.node import ASSIGN, COLLECTIVE, Op
from minigrad.graph.pieces import Term
from minigrad.graph.sharding import meshes
from minigrad.locks import new_rlock
from minigrad.pieced import Find, Pieced, in_pieces, in_stages, program_of
from minigrad.settings import report, thread

MOST_PROGRAMS = 1024  # programs that are kept; a capture keeps its own
MOST_SPECIAL = 64  # programs of one structure
# A graph is run in pieces if at least MOST_ALIKE of the LATEST programs for graphs of its kind had
# at most SELDOM uses each, on average, and WORTH nodes together: then it will hardly come again
# either, and as much time went into such programs as the pieces' will take. The programs are of
# different structures, or of one whose numbers vary in ways that no general program covers.
MOST_ALIKE, LATEST, SELDOM = 3, 8, 4 / 3
LEAST_NODES = 64  # of such graphs: fewer compile in no time, and pieces are not cut again
OF_PROGRAM = 12  # nodes that compile, within a whole graph, in the time of a piece's program
WORTH = 64 * OF_PROGRAM
# Uses of a structure after which it gets a general program even if its pieces are known. For a
# loss like DETR's such a use takes 50 ms longer, and compiling the whole graph takes 2 s. If there
# is none, to find that out takes 50 ms, too; so it is tried again after so many more uses.
RECURRING = 16
MOST_TERMS = 1 << 13  # terms of pieces whose programs are known
# Programs in pieces count as so many more, because their key is large (the structure of a whole
# graph) and may never come again.
OF_PIECED = 16
# Uses with the same numbers after which a padded program, or one in pieces, gets a special one
# beside it: up to twice as fast, but compiling it takes as long as some hundred uses.
FREQUENT = 32


class Family:
    """The programs of graphs of one structure.

    special: by all of their numbers. general: programs that take some of the numbers as arguments,
    the newest first. samples: the numbers from which a general one is to be made.
    """

    def __init__(self) -> None:
        self.special: dict[tuple[Cell, ...], Program] = {}
        self.general: list[tuple[General, Program]] = []
        self.samples: list[tuple[Cell, ...]] = []
        self.refused: Refused = Bounded(MOST_PROGRAMS)
        self.generalizes = True
        # numbers → how often a program that is padded, or in pieces, served them
        self.often = Bounded[tuple[Cell, ...], int](MOST_PROGRAMS)
        self.used = 0  # when a program was last found, on `_clock`
        self.uses = 0  # how often
        self.tried = 0  # at which of its uses a general program was last looked for

    def __len__(self) -> int:
        programs = [*self.special.values(), *(program for _, program in self.general)]
        return len(programs) + OF_PIECED * any(isinstance(one, Pieced) for one in programs)

    def find(
        self, cells: tuple[Cell, ...], may_pad: bool
    ) -> tuple[Program, Mapping[str, int]] | None:
        """The program for these numbers and the values of its own variables; None: compile one.

        may_pad: whether it may be a padded program, or one in pieces.
        """
        found = None
        program = self.special.get(cells)
        is_final = not isinstance(program, Pieced) or program.final
        if program is not None and (is_final or (may_pad and not self._is_frequent(cells))):
            found = program, NO_VALUES
        for general, program in self.general if found is None else ():
            values = general.match(cells)
            if values is not None and (may_pad or not general.padded):
                if not (general.padded and self._is_frequent(cells)):
                    found = program, values
                break
        if found is not None:
            self.used, self.uses = next(_clock), self.uses + 1
        return found

    def _is_frequent(self, cells: tuple[Cell, ...]) -> bool:
        """Count a use of these numbers; whether they are worth a program of their own."""
        self.often[cells] = self.often.get(cells, 0) + 1
        return self.often[cells] > FREQUENT

    def generalize(
        self, call: Canonical, compile: Callable[[Graph], Program], may_pad: bool
    ) -> bool:
        """Compile a general program that serves the call, if there is one; whether there is.

        For all samples and the call, or else for the call and one of the two most similar ones. If
        no recipe accepts such a program, give up on them.
        """
        self.tried = self.uses
        samples = [cells for cells in self.samples if cells != call.cells]
        if not samples or not self.generalizes:
            return False
        similar = sorted(samples, key=lambda cells: sum(map(ne, cells, call.cells)))[:2]
        pairs = [([cells], True) for cells in similar]
        for some, lines in ((samples, True), (samples, False), *pairs):
            try:
                general = generalize(call, [*some, call.cells], may_pad, self.refused, lines)
                program = program_of(general, len(call.inputs), compile)
            except Special as special:
                reason = str(special.args[0])
            except CompileError as error:
                self.generalizes, reason = False, str(error)
                break
            else:
                self.general.insert(0, (general, program))
                del self.general[MOST_SAMPLES:]
                return True
        report(1, lambda: f"compiled for these numbers only: {reason}")
        return False

    def keep(self, cells: tuple[Cell, ...], program: Program) -> None:
        """Keep a program for these numbers only."""
        if len(self.special) >= MOST_SPECIAL:
            del self.special[next(iter(self.special))]
        self.special[cells] = program


NO_VALUES: Mapping[str, int] = MappingProxyType({})
_clock = itertools.count()


def _key_of(call: Canonical) -> Any:
    """What programs of one family share. Hashing it is expensive: it describes a whole graph."""
    values = thread.values
    return call.structure, values["FUSE"], values["GUARD"], values["TUNE"]


class _Kind:
    """Graphs with results of one kind, and whether it pays to run them in pieces.

    latest: the families of the latest programs, each with its uses before and the graph's nodes.
    known: the latest cuts in succession that were not costly, because most pieces were known.
    """

    def __init__(self) -> None:
        self.known = 0
        self.latest: deque[tuple[weakref.ref[Family], int, int]] = deque(maxlen=LATEST)
        self._costly = 0  # the latest cuts in succession that were costly
        self._whole = 0  # how many of the next graphs are not cut

    def seldom_recurs(self) -> bool:
        """Whether enough programs were compiled for graphs that hardly came again."""
        if self._whole:
            self._whole -= 1
            return False
        known = [
            (family, before, nodes) for link, before, nodes in self.latest
            if (family := link()) is not None
        ]  # fmt: skip
        first = {family: before for family, before, _ in reversed(known)}
        uses = sum(family.uses - before for family, before in first.items())
        rare = len(known) >= MOST_ALIKE and uses <= SELDOM * len(known)
        return rare and sum(nodes for _, _, nodes in known) >= WORTH

    def cut(self, costly: bool) -> None:
        """Note a graph in pieces; costly: their programs took longer than that of the whole graph.

        The first pieces are always new. If those of the next graph are, too, they do not repeat,
        and the next attempt comes later and later.
        """
        self._costly, self.known = (self._costly + 1, 0) if costly else (0, self.known + 1)
        if self._costly > 1:
            self._whole = MOST_ALIKE << self._costly


class Programs:
    """The programs of this process: about `most`. Families that were unused longest are dropped."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._families: dict[Any, Family] = {}
        # the terms of pieces, with the settings → family, cells, and the places of inputs among the
        # slots that the term reads
        self._by_term = Bounded[Any, tuple[Family, tuple[Cell, ...], list[int]]](MOST_TERMS)
        # by dtypes, dimensions, in place or not, of results
        self._kinds = Bounded[Any, _Kind](most)
        self._about = 0  # at least as many programs as there are, without counting them
        self._compiled = 0  # programs so far, but for those that consist of others
        self._lock = new_rlock()

    def __len__(self) -> int:
        return sum(map(len, self._families.values()))

    def find(
        self, call: Canonical, compile: Callable[[Graph], Program], may_pad: bool = True
    ) -> tuple[Program, Mapping[str, int]]:
        """The program of a call, compiled if necessary, and values of variables besides the call's.

        may_pad: whether it may copy the call's arrays to others (not in a captured step).
        """
        return self.known(call, may_pad) or self._made(call, compile, may_pad)[1]

    def known(
        self, call: Canonical, may_pad: bool = True
    ) -> tuple[Program, Mapping[str, int]] | None:
        """As `find`, without compiling: None if there is no program."""
        family = self._families.get(_key_of(call))
        return None if family is None else family.find(call.cells, may_pad)

    def _of_piece(
        self, term: Term | None, make: Callable[[], Canonical],
        compile: Callable[[Graph], Program], may_pad: bool,
    ) -> tuple[Program, Mapping[str, int], Sequence[int]]:  # fmt: skip
        """As `find`, of a piece, and its inputs. make: its call, if there is no term or a new one.

        To describe a piece, and to hash what describes it, takes longer than to run its program.
        """
        key = None if term is None else (term[0], thread.key)
        known = self._by_term.get(key)
        found = None if known is None else known[0].find(known[1], may_pad)
        if known is not None and found is not None and term is not None:
            return (*found, [term[1][at] for at in known[2]])
        call = make()
        family, found = self._made(call, compile, may_pad)
        if term is not None and {*call.inputs} <= {*term[1]}:
            places = [term[1].index(slot) for slot in call.inputs]
            self._by_term[key] = family, call.cells, places
        return (*found, call.inputs)

    def _made(
        self, call: Canonical, compile: Callable[[Graph], Program], may_pad: bool
    ) -> tuple[Family, tuple[Program, Mapping[str, int]]]:
        """The family of a call, and its program as in `find`."""
        with self._lock:
            family = self._families.setdefault(_key_of(call), Family())
            found = family.find(call.cells, may_pad)  # another thread may have made it
            if found is None:
                self._make_room(family)
                before = len(family)
                with gc_paused():
                    self._make(call, family, compile, may_pad)
                self._about += len(family) - before
                found = family.find(call.cells, may_pad)
        assert found is not None, call
        return family, found

    def _make(
        self, call: Canonical, family: Family, compile: Callable[[Graph], Program], may_pad: bool
    ) -> None:
        """Compile what `find` then finds: a general program, one in pieces, or a special one.

        Pieces come before general programs, unless a structure comes for the second time, or often
        where most pieces are known.
        """
        often = family.often.pop(call.cells, 0) > FREQUENT or call.cells in family.special
        may_pad = may_pad and not often
        part = partial(self._of_piece, compile=compile, may_pad=may_pad)
        operations, device = {node.op for node in call.order}, call.roots[0].device
        loops = Op.LOOP in operations
        if loops:
            compile = partial(in_stages, inputs=len(call.inputs), find=part, final=not may_pad)
        general = partial(family.generalize, call, compile, may_pad and not loops)
        key = frozenset([(root.op is ASSIGN, root.dtype, root.ndim) for root in call.roots])
        kind = self._kinds[key] = self._kinds.get(key) or _Kind()
        pieces = partial(self._in_pieces, call, family, kind, part)
        if kind.known < MOST_ALIKE:
            recurs = len(family.samples) == 1
        else:
            recurs = family.uses - family.tried >= RECURRING and not family.general
        ways = [general, pieces] if recurs else [pieces, general]
        if loops or COLLECTIVE in operations or device in meshes or call.values or not may_pad:
            ways = [general]
        # numbers that are frequent in a padded program may have a general one that is not
        may = (not often or family.general) and Device[device].generalizes
        made = next((way for way in ways if way()), None) if may else None
        if made is None:
            family.keep(call.cells, compile(call.graph()))
        self._compiled += made in (None, general)
        family.samples = [*family.samples[-MOST_SAMPLES:], call.cells]

    def _in_pieces(self, call: Canonical, family: Family, kind: _Kind, find: Find) -> bool:
        """Make the program in pieces if graphs of the call's kind seldom recur; whether it did."""
        if len(call.order) < LEAST_NODES:
            return False
        rare = kind.seldom_recurs()
        kind.latest.append((weakref.ref(family), family.uses, len(call.order)))
        if not rare:
            return False
        before = self._compiled
        program = in_pieces(call, find)
        kind.cut((self._compiled - before) * OF_PROGRAM > len(call.order))
        if program is not None:
            family.keep(call.cells, program)
        return program is not None

    def forget(self) -> None:
        """Forget all programs: the next graph of each structure counts as its first."""
        with self._lock:
            self._families.clear()
            self._by_term.clear()
            self._kinds.clear()
            self._about = 0

    def _make_room(self, wanted: Family) -> None:
        """Forget an eighth of the programs at once, so that the search for the oldest is rare."""
        if self._about < self.most:
            return
        self._about = len(self)
        self._by_term.clear()
        for key, family in sorted(self._families.items(), key=lambda item: item[1].used):
            if self._about <= self.most - max(self.most // 8, 1):
                break
            if family is not wanted:
                self._about -= len(family)
                del self._families[key]


programs = Programs(MOST_PROGRAMS)
