"""Environments as a job asks for them: composed, guided by recorded actions, with rewards for calls that help."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.core.errors import BadInput
from equipoise.core.files import sha256_file
from equipoise.data.environment import open_environment
from equipoise.data.problems import Problem
from equipoise.reinforcement import stages
from equipoise.reinforcement.playing import Playing
from equipoise.reinforcement.recipe import ADVANTAGES, Recipe
from equipoise.reinforcement.stages import Step

if TYPE_CHECKING:
    from equipoise.data.environment import OpenedEnvironment
    from equipoise.language.model import LanguageModel
    from equipoise.reinforcement.actguide import ActionLog
    from equipoise.reinforcement.guiding import Guided

INSTANCES, MEASURED = 512, 64  # seeds of an environment that are learnt from, and that before and after are compared on
FEWEST = 40  # problems of which a tenth is held out


@dataclass(frozen=True)
class Acting:
    """What is played and how it is learnt from. problems, measured: seeds. actions: by the ids of problems.

    held_out: whether none of the measured seeds is learnt from; met: how many of them begin with a text that is. compose:
    nested, mixed or rotate, "" for one environment alone. keep_widest, tool_reward, no_call: as of the job.
    """

    playing: Playing
    problems: tuple[Problem, ...]
    measured: tuple[Problem, ...]
    held_out: bool
    met: int
    compose: str
    keep_widest: float | None
    tool_reward: str | None
    no_call: str | None
    actions: Mapping[str, Any]
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    notes: tuple[str, ...]

    @classmethod
    def read(
        cls,
        environment: Any,
        chosen: Recipe,
        *,
        instances: int | None,
        max_turns: int | None,
        invalid_penalty: float,
        compose: str | None,
        compose_reward: str | None,
        keep_widest: float | None,
        actions: Path | None,
        tool_reward: str | None,
        no_call: str | None,
    ) -> "Acting":
        """Raises BadInput for what cannot be opened or read, and for settings that do not go together."""
        _refuse(chosen, keep_widest, actions, tool_reward, no_call)
        given = environment.split(",") if isinstance(environment, str) else environment
        several = list(given) if isinstance(given, list | tuple) else [given]
        if len(several) == 1 and (compose or compose_reward):
            raise BadInput("compose and compose_reward are of several environments: give NAME,NAME, or leave them out.")
        compose = (compose or "nested") if len(several) > 1 else ""
        if actions is not None and compose in ("mixed", "rotate"):
            raise BadInput(f"actions are of the episodes of one environment, and compose is {compose!r}: use nested.")
        for clash, what in (
            (
                chosen.select != "uniform",
                f"select is {chosen.select!r}: the same seed is another game when it comes again",
            ),
            (ADVANTAGES[chosen.advantage].past, f"{chosen.advantage} remembers what a seed was worth, as another game"),
        ):
            if clash and compose in ("mixed", "rotate"):
                raise BadInput(f"compose is {compose!r}, and {what}. Use nested, or leave it out.")
        if compose_reward and compose != "nested":
            raise BadInput(f"compose_reward is of nested environments, and compose is {compose!r}: leave it out.")
        count = instances or INSTANCES
        if compose:
            from equipoise.reinforcement import nested_games

            parts = nested_games.tasks_of([each.strip() if isinstance(each, str) else each for each in several])
            opened = (
                nested_games.nested(parts, compose_reward or "mean")  # type: ignore[arg-type]
                if compose == "nested"
                else nested_games.mixed(parts)
            )
            each = len(parts) if compose in ("mixed", "rotate") else 1
            # Of mixed ones a seed that is a multiple of their number stands for one of each, see `nested_games.Even`.
            learnt, others = range(0, count * each, each), range(count * each, count * each + MEASURED)
        else:
            opened = open_environment(several[0])
            learnt, others = seeds_of(count, opened.instances)
            parts = {opened.name: opened}
        notes = _counted(parts, len(learnt))
        least, most = opened.score_range or (0.0, 1.0)
        where = "an episode can come to" + (" (with invalid_penalty)" if invalid_penalty else "")
        refuse_rewards(chosen, least - invalid_penalty, most, where)
        playing = Playing(opened, max_turns, invalid_penalty)
        problems, measured = playing.problems(learnt), playing.problems(others)
        played = playing.problems(range(count * len(parts))) if compose in ("mixed", "rotate") else problems
        lists, inputs = {}, {"environment": opened.digest} if opened.digest else {}
        names = {"environment": opened.name}
        if actions is not None:
            from equipoise.reinforcement.actguide import read_actions

            log = read_actions(actions)
            lists = log.of(problems)
            if not lists:
                raise BadInput(
                    f"{actions} has lists of {len(log.lists)} tasks, and none is of an episode that is played: name a task "
                    f"by its id, for example {problems[0].id!r}, or by the first text of its episode."
                )
            notes += _notes(log, lists, len(problems))
            names["actions"], inputs["actions"] = str(actions), sha256_file(Path(actions))
        return cls(
            playing,
            tuple(problems),
            tuple(measured),
            not set(learnt) & set(others),
            met(played, measured),
            compose,
            keep_widest,
            tool_reward,
            no_call,
            lists,
            names,
            inputs,
            notes,
        )

    def check(self, language_model: "LanguageModel", recipe: Recipe) -> None:
        """Raises BadInput for a recipe that cannot be guided, and for a hint without room."""
        if self.actions:
            self._guided(self.playing).check(language_model, recipe, self.problems)

    def beside(self, recipe: Recipe) -> int:
        """The episodes that a seed may take beside those of its group."""
        return self._guided(self.playing).beside(recipe) if self.actions else 0

    def _guided(self, playing: Playing) -> "Guided":
        from equipoise.reinforcement.guiding import Guided

        return Guided(playing, self.actions)

    def stages(
        self, language_model: "LanguageModel", recipe: Recipe
    ) -> tuple[Callable[..., Step], Callable[[Recipe, Step], Step]]:
        """The stages `sample` and `weigh` of `training.train`, for the model that is trained."""
        playing, weigh = self.playing, stages.weigh
        if self.tool_reward:
            from equipoise.reinforcement.entropy_tools import ToolReward

            tools = ToolReward(language_model, recipe, no_call=self.no_call or "full")  # type: ignore[arg-type]
            if self.tool_reward == "process":
                weigh = tools.weigh
            else:
                playing = replace(playing, shape=tools.shape)
        if self.keep_widest is not None:
            from equipoise.reinforcement.nested_games import Spread

            weigh = Spread(self.keep_widest, weigh)
        sample: Callable[..., Step] = playing
        if self.compose in ("mixed", "rotate"):
            from equipoise.reinforcement.nested_games import Even, Rotating

            sample = Even(playing) if self.compose == "mixed" else Rotating(playing)
        if self.actions:
            sample = self._guided(playing)
        return sample, weigh


def seeds_of(count: int, instances: int | None) -> tuple[Sequence[int], Sequence[int]]:
    """The seeds that are learnt from, `count` at most, and those that are measured, of an environment of so many instances.

    Where these are too few for both, a tenth is held out, evenly spread over them; of fewer than FEWEST, where `count`
    leaves none, the same are measured as are learnt from. instances: None for as many as there are seeds.
    """
    if instances is None or count + MEASURED <= instances:
        return range(count), range(count, count + MEASURED)
    held = min(max(instances - count, instances // 10 if instances >= FEWEST else 0), MEASURED)
    apart = dict.fromkeys(place * instances // held for place in range(held))
    rest = [seed for seed in range(instances) if seed not in apart][:count]
    return rest, list(apart) or rest[:MEASURED]


def met(learnt: Sequence[Problem], measured: Sequence[Problem]) -> int:
    """How many of the measured problems ask, or begin with, a text that is learnt from, too."""
    texts = {problem.asked for problem in learnt}
    return sum(problem.asked in texts for problem in measured)


def refuse_rewards(chosen: Recipe, least: float, most: float, where: str) -> None:
    """Raises BadInput for rewards between these that the recipe cannot take. where: whose they are, in words."""
    if least >= 0 and most <= 1:
        return
    for clash, what, remedy in (
        (ADVANTAGES[chosen.advantage].unit, chosen.advantage, "use --method grpo, which takes any"),
        (chosen.select != "uniform", f"select is {chosen.select!r}, which", "leave it out"),
    ):
        if clash:
            raise BadInput(
                f"{what} takes rewards in [0, 1], and {where} {least if least < 0 else most:g}: {remedy}, or give others."
            )


def _counted(parts: "Mapping[str, OpenedEnvironment]", learnt: int) -> tuple[str, ...]:
    """What is said of environments that have a number of different episodes."""
    counted = {name: part.instances for name, part in parts.items() if part.instances is not None}
    if len(parts) == 1:
        return tuple(
            f"{name} has {count} different episodes: {learnt} are learnt from." for name, count in counted.items()
        )
    return tuple(
        f"{name} has {count} different episodes: before and after are compared on some that were learnt from, too."
        for name, count in counted.items()
    )


def _refuse(
    chosen: Recipe, keep_widest: float | None, actions: Path | None, tool_reward: str | None, no_call: str | None
) -> None:
    if chosen.replay:
        raise BadInput(f"replay is {chosen.replay}, which keeps single responses, no episodes: use replay=0.")
    if chosen.overlong:
        raise BadInput(f"overlong is {chosen.overlong}, which is of single responses: use invalid_penalty, or 0.")
    if no_call and tool_reward != "outcome":
        raise BadInput(f"no_call is of tool_reward outcome, and tool_reward is {tool_reward}: leave it out.")
    if tool_reward == "process" and chosen.critic != "none":
        raise BadInput(
            f"tool_reward process gives advantages of its own, and {chosen.advantage} has a critic: use grpo."
        )
    if keep_widest is not None and chosen.samples < 2:
        raise BadInput("keep_widest compares the episodes of a seed: use num_generations=2 or more.")
    if actions is not None and tool_reward:
        raise BadInput("actions and tool_reward each change what is learnt from a call: use one of them.")


def _notes(log: "ActionLog", lists: Mapping[str, Any], problems: int) -> tuple[str, ...]:
    """What the file of actions came to."""
    told = [
        (log.errors, "rows say that they failed"),
        (log.repeated, "are of a task that has a list as short"),
        (log.unreadable, "calls are no JSON"),
        (log.leaks, "actions hold the answer"),
    ]
    left_out = ", ".join(f"{count} {what}" for count, what in told if count)
    return (
        f"{len(lists)} of {problems} tasks have recorded actions.",
        *((f"Left out of the recorded actions: {left_out}.",) if left_out else ()),
    )
