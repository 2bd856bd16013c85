"""Text environments: what a model acts in, turn by turn, and how one is named on a command line.

    first = environment.reset(seed)                        what the model sees first
    text, reward, done, info = environment.step(action)    what it is told then, for the whole text that it wrote

One object plays one episode at a time; what is passed about is what makes them, a class or a function without arguments
(`Maker`). After reset(seed) everything but the actions follows from the seed, an opponent's moves among it: the episodes of
one seed are compared with each other. An episode's score is the sum of its rewards.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict, runtime_checkable

from equipoise.core.errors import BadInput, EquipoiseError, did_you_mean
from equipoise.core.files import sha256_file
from equipoise.core.registry import Registry
from equipoise.core.user_file import named_in_file
from equipoise.data.verifiers_environment import from_verifiers, is_verifiers


class Info(TypedDict, total=False):
    """What `step` tells beside the text. All of it may be missing, and more may stand there.

    success: whether what ended with this step was solved. valid: whether the action was understood and allowed.
    owner: who wrote the text, "environment" (when missing) or "tool". task: the part of a composed episode that the action
    belonged to; task_done: whether it ended with it. actions: what was done, as {"name", "arguments"} each.
    """

    success: bool
    valid: bool
    owner: str
    task: str
    task_done: bool
    actions: list[dict[str, Any]]


@runtime_checkable
class Environment(Protocol):
    """One episode at a time. May also have max_turns: int, the most that an episode can take; instances: int, how many
    different ones there are where they are counted: the seeds s and s + instances are then the same task; score_range: the
    least and the most that an episode can come to.
    """

    def reset(self, seed: int) -> str:
        """Begin the episode of a seed of at least 0: the text that the model sees first, never empty."""
        ...

    def step(self, text: str) -> tuple[str, float, bool, Mapping[str, Any]]:
        """Act: the text that the model sees next, a finite reward, whether the episode is over, and `Info`."""
        ...


Maker = Callable[[], Environment]
ENVIRONMENTS: Registry[Maker] = Registry("equipoise.data", "ENVIRONMENTS")


@dataclass(frozen=True, slots=True)
class OpenedEnvironment:
    """What was named: its maker, what to call it, the sha256 of its file ("" for one of ours or of Python's).

    max_turns: its own, None where it has none. chance: by the names of scores, what is had without any skill. instances:
    how many different episodes there are, score_range: what one can come to, None where it does not say.
    """

    make: Maker
    name: str
    digest: str = ""
    max_turns: int | None = None
    chance: Mapping[str, float] = field(default_factory=dict)
    instances: int | None = None
    score_range: tuple[float, float] | None = None


def open_environment(source: str | Any) -> OpenedEnvironment:
    """An environment by its name, as FILE:FUNCTION, or by what makes it. Raises BadInput.

    The function is called without arguments for each episode that is played beside others. The file is run as Python would
    run it, its neighbours can be imported: it is the user's own, and has to be typed. An environment of the package
    `verifiers`, or a function that makes one, which is then called once, is taken as it is (`from_verifiers`).
    """
    digest = ""
    if not isinstance(source, str):
        make, name = source, str(getattr(source, "__name__", type(source).__name__))
    elif source in ENVIRONMENTS:
        make, name = ENVIRONMENTS[source], source
    elif ":" not in source:
        raise BadInput(
            f"there is no environment {source!r}. {did_you_mean(source, ENVIRONMENTS)} Your own: FILE:FUNCTION."
        )
    else:
        make, path, name = named_in_file(source, kind="environment", what="an environment", example="shop.py:make")
        digest = sha256_file(path)
    make, made = _made(make, name)
    instances = getattr(made, "instances", None)
    if instances is not None and (not isinstance(instances, int) or isinstance(instances, bool) or instances < 1):
        raise BadInput(
            f"{name} has instances={instances!r}, expected how many different episodes it has, or no such attribute."
        )
    reached = getattr(made, "score_range", None)
    if reached is not None:
        try:
            least, most = map(float, reached)
        except (TypeError, ValueError):
            least, most = 1.0, 0.0
        if not least <= most:
            raise BadInput(
                f"{name} has score_range={reached!r}, expected the least and the most that an episode comes to."
            )
        reached = (least, most)
    turns, chance = getattr(made, "max_turns", None), dict(getattr(made, "chance", {}))
    return OpenedEnvironment(make, name, digest, turns, chance, instances, reached)


def _made(make: Any, name: str) -> tuple[Maker, Environment]:
    made = make if is_verifiers(make) else _called(make, name)
    if is_verifiers(made):
        make = from_verifiers(made)
        return make, make()
    if not isinstance(made, Environment):
        raise BadInput(f"{name}() gives a {type(made).__name__}, expected an object with reset(seed) and step(text).")
    return make, made


def _called(make: Any, name: str) -> Any:
    if not callable(make):
        raise BadInput(f"{name} is no class and no function: give what makes an environment, without arguments.")
    try:
        return make()
    except EquipoiseError:
        raise
    except Exception as error:
        raise BadInput(f"{name}() gives no environment: {type(error).__name__}: {error}") from error
