"""The store against a model in plain Python, through any order of work, death, merging, damage and change.

Two output folders, as of two machines. The model computes every result by itself and remembers what is complete, what may
be resumed from where, and what was damaged. Death is simulated: the file layer stops in the middle of an operation, no
handler runs, the lock goes.
"""

import copy
import itertools
import json
import math
import re
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from equipoise.core.files import Files
from equipoise.study.declare import Arm, Outcome, Study
from equipoise.study.fingerprint import code_of
from equipoise.study.results import load
from equipoise.study.store import (
    ARTIFACTS,
    CHECKPOINT,
    CONFIG,
    COST,
    ITEMS,
    ITEMS_TABLE,
    MEASUREMENTS,
    PARTIAL,
    Attempt,
    Store,
    Task,
    identify,
    take,
    with_partial,
)

PLACES = ("left", "right")
OPTIONS = ({"steps": 2}, {"steps": 3})
ARTIFACT = f"{ARTIFACTS}/model.bin"
HARMS = list(itertools.product((CONFIG, MEASUREMENTS, ITEMS_TABLE, COST), ("altered", "cut", "gone")))
NEVER = math.inf
deaths = st.sampled_from([NEVER] * 15 + [*range(9)])  # operations on files that a process still does


class Killed(BaseException):
    """The process is gone: no `except Exception` runs."""


class Mortal(Files):
    """Ends the process in the middle of the operation that follows `left` others."""

    left: float = NEVER

    def _dies(self) -> bool:
        self.left -= 1
        return self.left < 0

    def _step(self) -> None:
        if self._dies():
            raise Killed

    def produce(self, path, writer):
        dies = self._dies()
        super().produce(path, writer)
        if dies:
            super().truncate(path, path.stat().st_size // 2)
            raise Killed

    def append(self, path, data):
        dies = self._dies()
        super().append(path, data[: len(data) // 2] if dies else data)
        if dies:
            raise Killed

    def truncate(self, path, size):
        self._step()
        super().truncate(path, size)

    def replace(self, source, target):
        self._step()
        super().replace(source, target)

    def make_folder(self, path):
        self._step()
        super().make_folder(path)

    def remove(self, path):
        self._step()
        super().remove(path)


@dataclass(frozen=True)
class Spec:
    """What a run is. Its numbers differ with every part of it, so that a mix-up shows."""

    seed: int
    options: int
    code: int

    @property
    def steps(self) -> int:
        return OPTIONS[self.options]["steps"]

    def next(self, step: int, height: float) -> float:
        return 2 * height + 1 + step + 10 * self.seed + 100 * self.options + 1000 * self.code

    def measured(self) -> list[dict]:
        """What an uninterrupted run measures."""
        heights = itertools.accumulate(range(self.steps), lambda height, step: self.next(step, height), initial=0.0)
        places = [{"at": {"step": step}, "order": 2 * step} for step in range(self.steps)]
        return [{"value": height, **place} for height, place in zip(list(heights)[1:], places, strict=True)]

    def rows(self) -> set[tuple]:
        """The same as rows of the two tables: (seed, item or "", value, step, order)."""
        rows = set()
        for each in self.measured():
            value, step, order = each["value"], each["at"]["step"], each["order"]
            rows |= {(self.seed, "", value, step, order)}
            rows |= {(self.seed, "i", value, step, order + 1), (self.seed, "j", None, step, order + 1)}
        return rows


@dataclass
class Unfinished:
    """A KEY.partial folder. After a death in the middle there are several steps it may go on from, and several states.

    `finishing`: it may have all its files already. `damaged`: "no", "yes", or "maybe" where the damage may lie behind
    the checkpoint, where it does no harm.
    """

    steps: set[int] = field(default_factory=lambda: {0})
    states: set[str] = field(default_factory=lambda: {"resumable"})
    finishing: bool = False
    damaged: str = "no"


@dataclass
class Working:
    """A process at work on a run."""

    spec: Spec
    held: AbstractContextManager
    attempt: Attempt
    step: int = 0
    height: float = 0.0


class StoreMachine(RuleBasedStateMachine):
    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.files = Mortal()
        self.stores = {place: Store(root / place, self.files) for place in PLACES}
        for store in self.stores.values():
            store.home("test").mkdir(parents=True)
        self.options = self.code = 0
        self.working: dict[str, Working] = {}
        # The model. Of a complete folder: the content of its files, None once it was damaged.
        self.complete: dict[str, dict[Spec, dict[str, bytes] | None]] = {place: {} for place in PLACES}
        self.unfinished: dict[str, dict[Spec, Unfinished]] = {place: {} for place in PLACES}
        self.aside = dict.fromkeys(PLACES, 0)
        self.unread = True
        self.tasks: dict[tuple[str, Spec], Task] = {}

    def teardown(self) -> None:
        for place in list(self.working):
            self.leave(place)
        shutil.rmtree(self.root)

    # ---- rules -------------------------------------------------------------------------------------------------------

    @initialize()
    def begin(self):
        """Left, runs of all options and code are complete; right, one of them was killed behind its checkpoint."""
        for spec in (Spec(1, 0, 0), Spec(0, 1, 0), Spec(1, 0, 1)):
            self.open("left", spec, resume=False)
            self.go_on("left", finish=True)
        self.open("right", Spec(1, 0, 0), resume=False)
        self.go_on("right", finish=False)
        self.save("right")
        self.go_on("right", finish=False)
        self.leave("right")

    @precondition(lambda self: len(self.working) < len(PLACES))
    @rule(data=st.data(), seed=st.integers(0, 1), left=deaths)
    def start(self, data, seed, left):
        """Begin, or begin anew without asking for a checkpoint."""
        self.open(data.draw(st.sampled_from(self.idle())), Spec(seed, self.options, self.code), resume=False, left=left)

    @precondition(lambda self: any(self.unfinished[place] for place in self.idle()))
    @rule(data=st.data(), asks=st.sampled_from([True, True, False]), left=deaths)
    def resume(self, data, asks, left):
        """Go on with an unfinished run; one that does not ask for its checkpoint starts from nothing."""
        known = [(place, spec) for place in self.idle() for spec in self.unfinished[place]]
        self.open(*data.draw(st.sampled_from(known)), resume=asks, left=left)

    @precondition(lambda self: self.working)
    @rule(data=st.data(), finish=st.booleans())
    def measure(self, data, finish):
        """One step, or all that are left and the end of the run."""
        self.go_on(self.some(data), finish=finish)

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def checkpoint(self, data):
        self.save(self.some(data))

    @precondition(lambda self: self.working)
    @rule(
        data=st.data(), during=st.sampled_from(["nothing", "measure", "checkpoint", "finish"]), left=st.integers(0, 18)
    )
    def kill(self, data, during, left):
        """End the process between two steps, or in the middle of one after `left` operations on files."""
        place = self.some(data)
        spec = self.working[place].spec
        self.files.left = left
        try:
            if during == "checkpoint":
                self.save(place)
            elif during != "nothing":
                self.go_on(place, finish=during == "finish")
        except Killed:
            self.settle(place, spec)
        self.files.left = NEVER
        if place in self.working:
            self.leave(place)

    @precondition(lambda self: self.working)
    @rule(data=st.data(), by_itself=st.booleans())
    def fail(self, data, by_itself):
        """End by an error of the run, or by the watchdog."""
        place = self.some(data)
        working = self.working[place]
        if by_itself:
            working.attempt.fail("the arm broke", "Traceback")
        self.leave(place)
        if not by_itself:
            self.stores[place].mark(self.task(place, working.spec), "gave up", "stood still")
        self.unfinished[place][working.spec].states = {"failed" if by_itself else "gave up"}

    @rule(source=st.sampled_from(PLACES))
    def merge(self, source):
        """Copy into the other folder what it does not have."""
        target = "left" if source == "right" else "right"
        self.unread = True
        for spec, content in self.complete[source].items():
            if spec not in self.complete[target] and not self.busy(target, spec):
                shutil.copytree(self.folder(source, spec), self.folder(target, spec))
                self.complete[target][spec] = content
        for spec, known in self.unfinished[source].items():
            if spec not in self.unfinished[target]:
                shutil.copytree(with_partial(self.folder(source, spec)), with_partial(self.folder(target, spec)))
                self.unfinished[target][spec] = copy.deepcopy(known)

    @precondition(lambda self: self.unread)
    @rule()
    def read(self):
        """The union of both folders is what the model knows, in either order, by reading and by copying."""
        self.unread = False
        whole = all(content is not None for known in self.complete.values() for content in known.values())
        for order in (PLACES, PLACES[::-1]):
            folders = [self.root / place for place in order]
            self.check_reading(folders)
            if whole:  # else a damaged copy may lie over a good one
                copied = self.root / "copied"
                for each in folders:
                    shutil.copytree(each, copied, dirs_exist_ok=True)
                self.check_reading([copied])
                shutil.rmtree(copied)

    @precondition(lambda self: any(self.complete.values()))
    @rule(data=st.data(), harm=st.sampled_from(HARMS))
    def corrupt(self, data, harm):
        """Harm one file of a complete run."""
        name, how = harm
        place, spec = data.draw(st.sampled_from([(place, spec) for place in PLACES for spec in self.complete[place]]))
        path = self.folder(place, spec) / name
        if path.exists():
            _harm(path, how)
            self.complete[place][spec] = None
            self.unread = True

    @precondition(lambda self: self.abandoned())
    @rule(
        data=st.data(),
        name=st.sampled_from([CONFIG, COST, MEASUREMENTS, ITEMS, CHECKPOINT]),
        how=st.sampled_from(["cut", "altered", "gone"]),
    )
    def corrupt_unfinished(self, data, name, how):
        """Harm one file of an unfinished run that nobody works on."""
        place, spec = data.draw(st.sampled_from(self.abandoned()))
        known = self.unfinished[place][spec]
        folder = with_partial(self.folder(place, spec))
        if (folder / name).exists():
            noticed = self.noticed(folder, known, name, how)
            # The damage may have been in this file; and without its list of files a run is not read to its end.
            if known.damaged == "yes" and (how == "gone" or name == CONFIG):
                known.damaged = "maybe"
            known.damaged = max(known.damaged, noticed, key=["no", "maybe", "yes"].index)
            _harm(folder / name, how)

    @precondition(lambda self: not self.unread)
    @rule()
    def change_options(self):
        self.options, self.unread = 1 - self.options, True

    @precondition(lambda self: not self.unread)
    @rule()
    def change_code(self):
        self.code, self.unread = 1 - self.code, True

    # ---- invariants --------------------------------------------------------------------------------------------------

    @invariant()
    def every_run_is_absent_resumable_or_complete(self):
        for place, store in self.stores.items():
            known = {spec: {"complete"} for spec in self.complete[place]}
            for spec, unfinished in self.unfinished[place].items():
                known.setdefault(spec, unfinished.states)
            for spec in [Spec(*parts) for parts in itertools.product((0, 1), repeat=3)]:
                assert store.state(self.task(place, spec)) in known.get(spec, {"absent"})
            names = {self.folder(place, spec).name for spec in self.complete[place]}
            names |= {self.folder(place, spec).name + PARTIAL for spec in self.unfinished[place]}
            assert {each.name for each in store.home("test").iterdir()} == names

    @invariant()
    def nothing_complete_is_changed(self):
        for place in PLACES:
            for spec, content in self.complete[place].items():
                if content is not None:
                    assert _content(self.folder(place, spec)) == content

    @invariant()
    def what_was_set_aside_is_kept(self):
        for place in PLACES:
            assert self.aside_on_disk(place) == self.aside[place]

    # ---- what a process does -----------------------------------------------------------------------------------------

    def open(self, place: str, spec: Spec, *, resume: bool, left: float = NEVER) -> None:
        store, task = self.stores[place], self.task(place, spec)
        said = store.repair(task)
        if spec in self.complete[place] and self.complete[place][spec] is None:
            assert said is not None and task.key in said and "set aside" in said
            del self.complete[place][spec]
            self.aside[place] += 1
        else:
            assert said is None
        self.files.left = left
        held = take(store, task)
        try:
            attempt, notes = held.__enter__()
            notes = [each for each in notes if "what was spent is counted from the last checkpoint" not in each]
            self.opened(place, spec, held, attempt, notes)
            if attempt is not None and resume:
                stored = attempt.resume()
                working, known = self.working[place], self.unfinished[place][spec]
                if stored is not None:
                    working.step, working.height = stored["state"]["step"], float(stored["state"]["height"][0])
                assert working.step in known.steps
                known.steps = {working.step}
        except Killed:
            self.settle(place, spec, opening=True)
        finally:
            self.files.left = NEVER

    def opened(self, place: str, spec: Spec, held, attempt: Attempt | None, notes: list[str]) -> None:
        known = self.unfinished[place].get(spec, Unfinished())
        if attempt is None:
            held.__exit__(None, None, None)
            if spec not in self.complete[place]:
                assert known.finishing, "a run that is not complete was taken for complete"
                self.completed(place, spec)
            assert notes == []
            return
        assert spec not in self.complete[place], "a complete run was to be done again"
        assert len(notes) <= 1
        if notes:
            assert known.damaged != "no" and "is damaged" in notes[0] and "set aside" in notes[0]
            self.aside[place] += 1
            known = Unfinished()
        assert known.damaged != "yes", "a damaged run was resumed"
        known.damaged, known.finishing, known.states = "no", False, {"resumable"}
        self.unfinished[place][spec] = known
        self.working[place] = Working(spec, held, attempt)

    def go_on(self, place: str, *, finish: bool) -> None:
        working = self.working[place]
        spec, attempt = working.spec, working.attempt
        self.lose_what_is_ignored(place)
        for step in range(working.step, spec.steps if finish else min(working.step + 1, spec.steps)):
            height = spec.next(step, working.height)
            attempt.append(MEASUREMENTS, {"outcome": "height", "value": height, "of": None, "missing": 0, **_at(step)})
            chunk = {"items": ["i", "j"], "clusters": ["", ""], "scores": [height, None]}
            attempt.append(ITEMS, {"outcome": "height", **chunk, **_at(step)})
            attempt.ledger.add("build", {"optimizer_steps": 1})
            working.step, working.height = step + 1, height
        if finish:
            (attempt.folder / ARTIFACT).write_bytes(repr(working.height).encode())
            self.unfinished[place][spec].finishing = True
            attempt.finish()
            self.leave(place)
            self.completed(place, spec)

    def save(self, place: str) -> None:
        working = self.working[place]
        known = self.unfinished[place][working.spec]
        self.lose_what_is_ignored(place)
        known.steps |= {working.step}
        state = {"step": working.step, "height": np.array([working.height])}
        working.attempt.checkpoint({"state": state})
        known.steps = {working.step}

    def lose_what_is_ignored(self, place: str) -> None:
        """A process that begins without its checkpoint removes it: from here on the run may start from nothing."""
        working = self.working[place]
        known = self.unfinished[place][working.spec]
        if working.step == 0:
            known.steps |= {0}
            working.attempt.begin()
            known.steps = {0}

    def completed(self, place: str, spec: Spec) -> None:
        """The run has its final name: it is what an uninterrupted run would be, and stays so."""
        del self.unfinished[place][spec]
        folder = self.folder(place, spec)
        lines = [json.loads(line) for line in (folder / MEASUREMENTS).read_text().splitlines()]
        assert [{key: line[key] for key in ("value", "at", "order")} for line in lines] == spec.measured()
        assert (folder / ARTIFACT).read_text() == repr(spec.measured()[-1]["value"])
        cost = json.loads((folder / COST).read_text())  # of `spent` a part may be lost, with a file that went missing
        assert cost["work"] == {"build": {"optimizer_steps": spec.steps}}
        self.complete[place][spec] = _content(folder)
        self.unread = True

    def leave(self, place: str) -> None:
        """The process ends; its lock goes with it."""
        self.working.pop(place).held.__exit__(None, None, None)

    def settle(self, place: str, spec: Spec, *, opening: bool = False) -> None:
        """After a death in the middle: what the disk holds is one of what it may hold, and is what it is from now on."""
        self.files.left = NEVER
        if place in self.working:
            self.leave(place)
        before = self.unfinished[place].get(spec)
        if self.aside_on_disk(place) > self.aside[place]:
            assert before is not None and before.damaged != "no"
            self.aside[place] += 1
            del self.unfinished[place][spec]
            before = None
        state = self.stores[place].state(self.task(place, spec))
        if state == "complete":
            assert before is not None and before.finishing
            self.completed(place, spec)
        elif before is not None:
            before.states |= {"resumable"}
        elif state != "absent":
            assert opening and state == "resumable"
            self.unfinished[place][spec] = Unfinished()

    # ---- what is expected --------------------------------------------------------------------------------------------

    def check_reading(self, folders: list[Path]) -> None:
        study = self.study(self.options, self.code)
        results = load(folders, study)
        measured = [{**row, "item": "", "score": row["value"]} for row in results.measurements.to_pylist()]
        rows = set()
        for row in measured + results.items.to_pylist():
            score = None if math.isnan(row["score"]) else row["score"]
            rows.add((row["seed"], row["item"], score, json.loads(row["at"])["step"], row["order"]))
        assert results.measurements.num_rows + results.items.num_rows == len(rows), "a run was counted twice"
        there = {
            spec
            for known in self.complete.values()
            for spec, content in known.items()
            if content is not None and spec.options == self.options
        }
        codes = {spec.code for spec in there}
        expected = {code: set().union(*(spec.rows() for spec in there if spec.code == code)) for code in codes}
        if self.code in codes:
            assert rows == expected[self.code]
        else:  # an unfinished run of the current code keeps those of other code out
            assert rows in [set(), *expected.values()]
        damaged = [self.task(p, s).key for p in PLACES for s, content in self.complete[p].items() if content is None]
        for key in damaged:
            assert any(key in note and "damaged" in note for note in results.notes)
        assert not any("different values" in note for note in results.notes)

    def noticed(self, folder: Path, known: Unfinished, name: str, how: str) -> str:
        """Whether harm to a file of an unfinished run must be noticed: behind the checkpoint it is not read again."""
        try:
            listed = "files" in json.loads((folder / CONFIG).read_text())
        except (OSError, ValueError):
            listed = False
        if listed and name == CONFIG:
            return "maybe"  # it is no longer known to be finished; what it needs to go on may be gone
        if listed:
            return "no" if name in (ITEMS, CHECKPOINT) else "yes"
        if name == CONFIG and how != "gone":  # its task writes it anew, unless the run may have been complete
            return "no" if (folder / CHECKPOINT).exists() else "yes"
        if name == COST:
            return "no"  # the checkpoint knows what was spent
        if name in (MEASUREMENTS, ITEMS):
            return "no" if known.steps == {0} else "maybe" if 0 in known.steps else "yes"
        if how == "gone":  # as if the run had not come so far
            known.steps |= {0} if name == CHECKPOINT else set()
            return "no"
        return "yes"

    def idle(self) -> list[str]:
        return [place for place in PLACES if place not in self.working]

    def some(self, data) -> str:
        return data.draw(st.sampled_from(sorted(self.working)))

    def abandoned(self) -> list[tuple[str, Spec]]:
        return [(place, spec) for place in PLACES for spec in self.unfinished[place] if not self.busy(place, spec)]

    def busy(self, place: str, spec: Spec) -> bool:
        return place in self.working and self.working[place].spec == spec

    def aside_on_disk(self, place: str) -> int:
        folder = self.root / place / "set-aside"
        return sum(each.is_dir() for each in folder.iterdir()) if folder.exists() else 0

    def folder(self, place: str, spec: Spec) -> Path:
        return self.stores[place].folder(self.task(place, spec))

    def study(self, options: int, code: int) -> Study:
        """Declared in a file of its own for every version of the code."""
        source = self.root.parent / f"study_{code}.py"
        if not source.exists():
            source.write_text(f"VERSION = {code}\n")
        return Study(
            name="machine",
            arms=[Arm("up")],
            outcomes=[Outcome("height", better="higher")],
            claims=[],
            run=lambda run: None,
            budget="optimizer_steps",
            without_control="nothing is claimed",
            options=OPTIONS[options],
            source=source,
        )

    def task(self, place: str, spec: Spec) -> Task:
        if (place, spec) not in self.tasks:
            self.tasks[place, spec] = self.declared(place, spec)
        return self.tasks[place, spec]

    def declared(self, place: str, spec: Spec) -> Task:
        """As `execute` declares it: told apart by a fingerprint of code, options, settings and seed."""
        study = self.study(spec.options, spec.code)
        assert study.source is not None
        code = code_of(study.source)
        config = {"study": study.name, "arm": "up", "settings": {}, "seed": spec.seed, "role": "test"}
        config |= {"options": study.options, "threads": 1, "kind": "method", "point": 0, "code": code.digest}
        key, digest = identify(config)
        return Task(
            key=key,
            role="test",
            reference="none",
            root=str(self.root / place),
            options=study.options,
            seed=spec.seed,
            fingerprint=digest,
            config={**config, "fingerprint": digest},
        )


def _at(step: int) -> dict:
    return {"at": {"step": step}, "where": {}}


def _content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _harm(path: Path, how: str) -> None:
    """Cut a file short, take it away, or alter its first digit: what was JSON still is."""
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[: min(10, len(data) // 2)])
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(re.sub(rb"[0-9]", lambda digit: b"%d" % ((int(digit[0]) + 1) % 10), data, count=1))


def run_machine(folder: Path, **wanted) -> None:
    numbers = itertools.count()
    run_state_machine_as_test(
        lambda: StoreMachine(folder / str(next(numbers))), settings=settings(deadline=None, database=None, **wanted)
    )


def test_the_store_does_what_its_model_does(tmp_path):
    # The same examples every time, and no search for a shorter failure: it takes minutes, and the long test does it.
    run_machine(tmp_path, max_examples=12, stateful_step_count=30, derandomize=True, phases=[Phase.generate])


@pytest.mark.slow
def test_the_store_does_what_its_model_does_at_length(tmp_path):
    run_machine(tmp_path, max_examples=200, stateful_step_count=50)
