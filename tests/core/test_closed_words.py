"""Whatever in the package may be one of a few words refuses every other, wherever it is called from.

What is not closed is listed by name. Functions that are not marked by `closed` are not called: nobody knows what they
would do with nonsense; a dataclass or a model is built with it and has to refuse.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterable, Mapping
from typing import Literal
from unittest.mock import MagicMock

from pydantic import BaseModel, ValidationError

import equipoise
from equipoise.core.errors import BadInput, EquipoiseError
from equipoise.core.options import check_fields, closed, closed_hints, words

WRONG = "no-such-word"
# The words of commands are read by cyclopts, those of a model provider given by Inspect AI.
READ_BY_OTHERS = ("equipoise.cli.", "equipoise.chat.provider.EquipoiseAPI.generate(tool_choice)")
# Each name goes when its function is closed: @closed, check_fields(self) in __post_init__, or a pydantic model.
STILL_OPEN = {
    "equipoise.chat.batching.Answer(ended)",
    "equipoise.chat.calls.Reply(status)",
    "equipoise.chat.record.Entry(status)",
    "equipoise.core.health.Finding(state)",
    "equipoise.core.page.Badge(state)",
    "equipoise.core.plots.Axis(better)",
    "equipoise.core.plots.colours(theme)",
    "equipoise.core.plots.resolved(theme)",
    "equipoise.core.plots.to_png(theme)",
    "equipoise.core.plots.to_svg(theme)",
    "equipoise.core.sandbox.Finished(ended)",
    "equipoise.data.public.wmdp(domain)",
    "equipoise.data.public.wmdp(kind)",
    "equipoise.data.records.read_records(nothing)",
    "equipoise.data.world.Person(split)",
    "equipoise.data.world.World.questions(part)",
    "equipoise.data.world.World.questions(split)",
    "equipoise.data.world.World.sentences(split)",
    "equipoise.judging.biasscope.Settings(rule)",
    "equipoise.judging.job.audit_judge(judge_kind)",
    "equipoise.judging.job.audit_judge(rule)",
    "equipoise.judging.job.plan(judge_kind)",
    "equipoise.judging.job.plan(rule)",
    "equipoise.judging.roles.Case(choice)",
    "equipoise.judging.roles.Verdict(choice)",
    "equipoise.judging.validation.adjusted(method)",
    "equipoise.language.score.multiple_choice(by)",
    "equipoise.study.engine.Event(kind)",
    "equipoise.study.engine.Event(state)",
    "equipoise.study.results.RunInfo(state)",
    "equipoise.study.store.Store.mark(state)",
    "equipoise.study.store.Task(role)",
    "equipoise.study.summary_text.tally(by_state)",
    "equipoise.tasks.judging.judgebench(orders)",
    "equipoise.tasks.judging.judgebench_pro(orders)",
    "equipoise.tasks.judging.rewardbench(orders)",
    "equipoise.unlearning.fiction.Setting(questions)",
    "equipoise.unlearning.measures.multiple_choice_accuracy(by)",
    "equipoise.unlearning.measures.truth_ratio(mean)",
    "equipoise.unlearning.measures.truth_ratios(mean)",
    "equipoise.verification.certificate.certified_margins(method)",
    "equipoise.verification.certificate.certified_margins(offset)",
    "equipoise.verification.certificate.certified_margins(slopes)",
    "equipoise.verification.job.Certification.count(verdict)",
    "equipoise.verification.job.Row(verdict)",
    "equipoise.verification.job.certify(norm)",
    "equipoise.verification.job.certify(offset)",
    "equipoise.verification.job.certify(slopes)",
}


def modules():
    for found in pkgutil.walk_packages(equipoise.__path__, "equipoise."):
        if any(part.startswith("_") for part in found.name.split(".")):
            continue
        try:
            yield importlib.import_module(found.name)
        except (ImportError, EquipoiseError):  # an extra that is not installed
            continue


def public(module):
    """Functions, classes and the methods of classes that a module defines, by their full name."""
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(thing):
            yield f"{module.__name__}.{name}", thing
        elif inspect.isclass(thing):
            yield f"{module.__name__}.{name}", thing
            made = "" if dataclasses.is_dataclass(thing) else "__init__"
            for method, function in vars(thing).items():
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function) and (not method.startswith("_") or method == made):
                    yield f"{module.__name__}.{name}.{method}", function


def refuses(thing, parameter):
    """Whether a word that is none of the parameter's ends in a sentence that names it."""
    if inspect.isclass(thing) and issubclass(thing, BaseModel):
        try:
            thing(**{parameter: WRONG})
        except ValidationError as error:
            return any(problem["loc"][0] == parameter for problem in error.errors())
        return False
    hints = closed_hints(thing)
    needed = {
        name: words(hints[name])[0] if name in hints else MagicMock()
        for name, each in inspect.signature(thing).parameters.items()
        if each.default is each.empty and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    }
    origin = typing.get_origin(hints[parameter])
    several = isinstance(origin, type) and issubclass(origin, Iterable)
    wrong = {WRONG: 1} if several and issubclass(origin, Mapping) else (WRONG,) if several else WRONG
    try:
        thing(**needed | {parameter: wrong})
    except BadInput as error:
        return WRONG in str(error)
    except Exception:
        return False
    return False


def open_parameters():
    for module in modules():
        for name, thing in public(module):
            is_data = inspect.isclass(thing) and (dataclasses.is_dataclass(thing) or issubclass(thing, BaseModel))
            if inspect.isclass(thing) != is_data or getattr(thing, "_is_protocol", False):
                continue
            for parameter in closed_hints(thing):
                marked = is_data or hasattr(thing, "__closed__")
                if not parameter.startswith("_") and not (marked and refuses(thing, parameter)):
                    yield f"{name}({parameter})"


def test_every_word_of_the_package_is_closed():
    found = set(open_parameters())
    left = sorted(name for name in found - STILL_OPEN if not name.startswith(READ_BY_OTHERS))
    assert not left, "open to any word:\n" + "\n".join(left)
    assert not STILL_OPEN - found, f"closed by now: {sorted(STILL_OPEN - found)}"


Word = Literal["fast", "slow"]


@closed
def shut(name: str, how: Word, several: tuple[Word, ...] = ()) -> None: ...


def ajar(how: Word) -> None: ...


@dataclasses.dataclass
class Ajar:
    how: Word


@dataclasses.dataclass
class Shut:
    name: str
    how: Word | None = None
    by: Mapping[Word, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)


class Model(BaseModel):
    how: Word
    number: int


def test_what_is_open_is_found():
    assert all(refuses(shut, name) for name in ("how", "several"))
    assert all(refuses(Shut, name) for name in ("how", "by")) and refuses(Model, "how")
    assert not refuses(ajar, "how") and not refuses(Ajar, "how")
