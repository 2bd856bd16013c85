"""The work of the job `reinforce`: measured before, along the way and after; written, loaded again and scored again.

Killed at any moment, the same call resumes at the last checkpoint. The artifact is only given its name when the model that
the folder gives back answers as the trained one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core import progress
from equipoise.core.errors import BadInput
from equipoise.core.job import Processes, Request
from equipoise.core.state import save_state, stored_state
from equipoise.core.terminal import say
from equipoise.language.encode import IGNORE, Example, encode_prompts
from equipoise.language.features import objects_digests
from equipoise.language.generate import check_room
from equipoise.language.model import LanguageModel, wrap
from equipoise.language.rehearsal import Writes, rehearse
from equipoise.language.rollouts import roll_out
from equipoise.language.taught import TAUGHT, opened, taught_once
from equipoise.language.templates import DATE
from equipoise.language.written import write_checked
from equipoise.reinforcement.acting import refuse_rewards
from equipoise.reinforcement.attempts import Attempts, Tasks
from equipoise.reinforcement.critic import Critic, is_critic, open_critic
from equipoise.reinforcement.measures import Solved, tokens_per_second
from equipoise.reinforcement.predicting import EMBEDDINGS, PredictorSource
from equipoise.reinforcement.recipe import ADVANTAGES, Recipe, recipe
from equipoise.reinforcement.result import Answered, Reinforced, ReinforcePlan, all_alike
from equipoise.reinforcement.training import MIXED_ATTEMPTS, ReinforceState, prepare, train
from equipoise.training.team import Team

SHOWN = 4  # answers shown
COMPARED = 16  # prompts on which the written model must agree with the trained one
TIMED = (8, 16)  # responses and tokens of the rollout that a plan is made from
STATE, BEFORE = "state.safetensors", "before.safetensors"


@dataclass(frozen=True, eq=False)
class Reinforcing(Request):
    """A request to reinforce, read and found right."""

    model: str | Path | LanguageModel
    tasks: Tasks
    recipe: Recipe
    method: str
    samples: int
    every: int
    save_every: int
    critic: Path | None
    source: PredictorSource | None
    loading: Mapping[str, Any]
    attention: str | None
    team: Team
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        model: Any,
        tokenizer: Any,
        prompts: Any,
        environment: Any,
        *,
        judged: Mapping[str, Any],
        played: Mapping[str, Any],
        method: str,
        settings: Mapping[str, Any],
        predictor: Path | None,
        rates: Path | None,
        **how: Any,
    ) -> "Reinforcing":
        """Raises BadInput for a wrong request; loads no model."""
        refuse_server(model)
        if tokenizer is not None or not isinstance(model, str | Path | LanguageModel):
            loading = how["loading"]
            model = wrap(model, tokenizer, chat_template=loading["chat_template"], date=loading["date"] or DATE)
        team = Team.of(how["loading"]["device"])
        chosen = recipe(method, **settings)
        if chosen.parameters == "lora" and str(model) == "tiny":
            raise BadInput("An adapter of 'tiny' would name no base model: use parameters full, or another model.")
        tasks = cls._tasks(chosen, prompts, environment, judged, played)
        training, names = tasks.problems, dict(tasks.names)
        source = PredictorSource.read(chosen, training, predictor, rates)
        digests = {**tasks.inputs, **({} if source is None else source.inputs)}
        digests |= objects_digests({"model": model}, changed=True)
        names["model"] = model.name if isinstance(model, LanguageModel) else str(model)
        resolved = {name: getattr(chosen, name) for name in sorted({*chosen.model_fields_set, "seed"})}
        resolved["date"] = how["loading"]["date"] = how["loading"]["date"] or DATE
        return cls(
            model=model,
            tasks=tasks,
            recipe=chosen,
            method=method,
            source=source,
            team=team,
            names=names,
            inputs=digests,
            resolved=resolved,
            **how,
        )

    @staticmethod
    def _tasks(
        chosen: Recipe, prompts: Any, environment: Any, judged: Mapping[str, Any], played: Mapping[str, Any]
    ) -> Tasks:
        if (prompts is None) == (environment is None):
            raise BadInput("there is something to learn from in prompts or in an environment: give one of both.")
        unused, why = (judged, "are of prompts, and an environment judges itself")
        if environment is None:
            unused, why = (played, "are of an environment: give one")
        if given := [name for name, value in unused.items() if value not in (None, False, 0)]:
            raise BadInput(f"{' and '.join(given)} {why}, or leave them out.")
        if environment is not None:
            return Tasks.of_environment(environment, chosen, **played)
        return Tasks.of_prompts(prompts, **judged)

    @property
    def processes(self) -> Processes:
        return self.team

    def plan(self) -> ReinforcePlan:
        """From one timed rollout of a few tokens."""
        recipe = self.recipe
        language_model = self._opened(None, taught=False)
        self._check(language_model)
        first = self.tasks.problems[: TIMED[0]]
        (ids, *_), _ = encode_prompts(language_model, [first[0].asked])
        critic = self._critic(language_model)
        language_model = prepare(language_model, recipe)
        rehearse(language_model, writes=self._writes())
        asked, timed = [problem.asked for problem in first], min(TIMED[1], recipe.max_new_tokens)
        rate = tokens_per_second(language_model, asked, timed, recipe.temperature)
        tokens = self._responses() * recipe.max_new_tokens * self.tasks.turns
        trained = sum(p.numel() for p in language_model.model.parameters() if p.requires_grad)
        tokenizer: Any = language_model.tokenizer
        return ReinforcePlan(
            model=language_model.source,
            recipe=recipe.resolved(trained, guided=self.tasks.guided),
            verifier=self.tasks.judge,
            problems={"to learn from": len(self.tasks.problems), "to measure on": len(self.tasks.measured)},
            first=tuple({"prompt": p.prompt, "gold": list(p.gold)} for p in self.tasks.problems[:3]),
            shown=tokenizer.decode(ids),
            trained_parameters=trained,
            critic_parameters=0 if critic is None else sum(p.numel() for p in critic.parameters()),
            generated_tokens=tokens,
            seconds=1.5 * tokens / rate,
            notes=self._notes(),
        )

    def _responses(self) -> int:
        """How many are written at most, to learn from and to measure."""
        recipe, tasks = self.recipe, self.tasks
        looks = (recipe.steps - 1) // self.every  # each a sampled response and the likeliest
        measuring = len(tasks.measured) * ((self.samples + 1) * 2 + 2 * looks)
        prompts = recipe.steps * recipe.prompts_per_step * (MIXED_ATTEMPTS if recipe.mixed_only else 1)
        prompts += recipe.measured(len(tasks.problems)) // recipe.samples
        each = recipe.samples + ADVANTAGES[recipe.advantage].greedy + tasks.beside(recipe)
        return prompts * each + measuring

    def work(self, folder: Path | None) -> Reinforced:
        stored, notes = ({}, []) if folder is None else stored_state(folder / STATE)
        language_model = self._opened(folder)
        source = language_model.source
        self._check(language_model)
        with self.tasks.opened() as attempts:
            return self._work(language_model, attempts, folder, stored, notes, source)

    def _work(
        self,
        language_model: LanguageModel,
        attempts: Attempts,
        folder: Path | None,
        stored: dict[str, Any],
        notes: list[str],
        source: str,
    ) -> Reinforced:
        recipe = self.recipe
        measured, damaged = ({}, []) if folder is None else stored_state(folder / BEFORE, of="measurement before")
        notes += damaged
        before = Solved.of(measured) if measured else self._solve(language_model, attempts)
        refuse_rewards(
            recipe, float(before.rewards.min()), float(before.rewards.max()), "a reward of the first model is"
        )
        path: list[dict[str, float]] = stored.get("path") or [{"step": 0.0, **_values(before)}]
        alike = stored.get("alike", 0)
        critic = self._critic(language_model)
        if critic is not None and recipe.critic != "token" and (self.critic is None or not is_critic(self.critic)):
            critic.start_at(float(before.rewards.mean()))
        sampler = None
        if self.source is not None:
            sampler = self.source.sampler(recipe, language_model, self.tasks.problems, folder, self.team)
        language_model = prepare(language_model, recipe)
        sample, weigh = attempts.stages(language_model, recipe)
        if not stored:
            rehearse(language_model, writes="nothing" if folder is None else self._writes())
        if folder is not None and self.team.main and not measured:  # it can take longer than the first steps
            save_state(folder / BEFORE, before.state())
        generated, looked = stored.get("generated", 0), stored.get("looked", 0)

        def look(reached: ReinforceState) -> bool:
            nonlocal alike, generated, looked
            alike += teaches_nothing(recipe, reached.step.rewards, reached.metrics["zero_advantage"])
            generated += int(reached.metrics["generated_tokens"])
            if reached.done == alike == 1 and self.team.main and not progress.is_quiet():
                say(all_alike(recipe.advantage, ADVANTAGES[recipe.advantage].within))
            if reached.done % self.every == 0 and reached.done < recipe.steps:
                seen = self._solve(language_model, attempts, samples=1)
                path.append({"step": float(reached.done), **_values(seen)})
                looked += seen.tokens
            return False

        def save(state: dict[str, Any]) -> None:
            if folder is not None and self.team.main:
                kept = {
                    "training": state,
                    "path": path,
                    "alike": alike,
                    "generated": generated,
                    "looked": looked,
                }
                save_state(folder / STATE, kept)

        fitted = train(
            language_model,
            recipe,
            self.tasks.problems,
            attempts.reward,
            critic=critic,
            sampler=sampler,
            sample=sample,
            weigh=weigh,
            accelerator=self.team.accelerator,
            callbacks=[look],
            log=None if folder is None else folder / "metrics.jsonl",
            save=save,
            save_every=self.save_every,
            state=stored.get("training"),
        )
        after = self._solve(language_model, attempts)
        path.append({"step": float(fitted.steps), **_values(after)})
        gap = math.nan
        if folder is not None and self.team.main:
            examples = self._compared(language_model, after)
            gap = write_checked(
                language_model, folder, examples, adapter=recipe.parameters == "lora", kept=folder / STATE
            )
            if critic is not None:
                critic.save(folder / "critic", language_model.tokenizer)
        trained = sum(p.numel() for p in language_model.model.parameters() if p.requires_grad)
        return Reinforced(
            recipe=recipe.model_dump(),
            resolved=recipe.resolved(trained, guided=self.tasks.guided),
            method=self.method,
            verifier=self.tasks.judge,
            before=before.estimates(after),
            after=after.estimates(before),
            changes=after.changes(before),
            path=tuple(path),
            answers=self._answers(before, after),
            lengths={
                f"{name}, {when}": value
                for when, solved in (("before", before), ("after", after))
                for name, value in _lengths(solved).items()
            },
            problems={"to learn from": len(self.tasks.problems), "to measure on": len(self.tasks.measured)},
            steps=fitted.steps,
            alike=alike / fitted.steps,
            within=ADVANTAGES[recipe.advantage].within,
            moved=fitted.moved,
            tokens={"training": generated, "measuring": before.tokens + looked + after.tokens},
            source=source,
            names=self.names,
            critic=critic is not None,
            chance=self.tasks.chance,
            selected=fitted.selected,
            predictor="" if self.source is None else self.source.told,
            gap=gap,
            notes=(*notes, *self._notes(), *_missing(before, after)),
            model=language_model,
        )

    def scratch(self) -> tuple[str, ...]:
        return (STATE, BEFORE, TAUGHT, EMBEDDINGS)

    def _solve(self, language_model: LanguageModel, attempts: Attempts, samples: int | None = None) -> Solved:
        recipe = self.recipe
        return attempts.solve(
            language_model,
            self.tasks.measured,
            samples=samples or self.samples,
            max_new_tokens=recipe.max_new_tokens,
            temperature=recipe.temperature,
            seed=recipe.seed,
            batch_size=recipe.rollout_batch_size,
        )

    def _writes(self) -> Writes:
        return "adapter" if self.recipe.parameters == "lora" else "model"

    def _notes(self) -> tuple[str, ...]:
        tasks = self.tasks
        notes, count, met = list(tasks.notes), len(tasks.measured), tasks.met
        if tasks.environment and not tasks.held_out:
            notes.append(
                f"Before and after are compared on {count} episodes that were learnt from: there are too few to hold "
                "out some."
            )
        elif tasks.environment:
            notes.append(f"Before and after are compared on {count} seeds that were not learnt from.")
            if met:
                notes.append(
                    f"{met} of these {count} begin with a text that was learnt from: where nothing else of the seed "
                    "matters, they are no new tasks."
                )
        elif tasks.held_out:
            notes.append(f"{count} of the prompts were held out: before and after are compared on them.")
        elif met == count:
            notes.append(
                "Before and after are compared on the prompts that were learnt from: give --eval-prompts for others."
            )
        if met and not tasks.environment and met < count:
            notes.append(f"{met} of the {count} prompts that before and after are compared on were learnt from, too.")
        if self.source is not None and self.source.rates is not None and self.source.rates.left_out:
            notes.append(
                f"{self.source.rates.left_out} rates are of prompts that are not learnt from, and were left out."
            )
        return tuple(notes)

    def _check(self, language_model: LanguageModel) -> None:
        if self.source is not None:
            self.source.check(language_model)
        self.tasks.check(language_model, self.recipe)
        every = (*self.tasks.problems, *self.tasks.measured)
        encoded, _ = encode_prompts(language_model, [problem.asked for problem in every])
        check_room(language_model, encoded, self.recipe.max_new_tokens, [repr(problem.id) for problem in every])

    def _critic(self, language_model: LanguageModel) -> Critic | None:
        recipe = self.recipe
        if recipe.critic == "none":
            if self.critic is not None:
                raise BadInput(f"{recipe.advantage} has no critic: leave --critic out.")
            return None
        if self.critic is None:
            return Critic.of(language_model, seed=recipe.seed)
        return open_critic(self.critic, language_model, seed=recipe.seed)

    def _opened(self, folder: Path | None, *, taught: bool = True) -> LanguageModel:
        return opened(
            self.model,
            self.loading,
            lambda: tiny_model(folder, self.recipe.seed, self.team, taught=taught),
            self.attention,
        )

    def _compared(self, language_model: LanguageModel, after: Solved) -> list[Example]:
        """What the model itself answers, to be scored by the one that the folder gives back."""
        chosen = self.tasks.measured[:COMPARED]
        rolled = roll_out(
            language_model,
            [problem.asked for problem in chosen],
            samples=1,
            max_new_tokens=min(self.recipe.max_new_tokens, 32),
            temperature=0.0,
            seed=0,
        )
        rows = [(list(rolled.prompts[row]), rolled.ids[row][rolled.mask[row]].tolist()) for row in range(len(chosen))]
        return [Example((*prompt, *ids), (*[IGNORE] * len(prompt), *ids)) for prompt, ids in rows]

    def _answers(self, before: Solved, after: Solved) -> tuple[Answered, ...]:
        """Problems whose answer changed first."""
        order = sorted(range(len(self.tasks.measured)), key=lambda place: before.texts[place] == after.texts[place])
        return tuple(
            Answered(
                self.tasks.measured[place].prompt,
                " | ".join(self.tasks.measured[place].gold),
                before.texts[place],
                after.texts[place],
                float(before.greedy[place]),
                float(after.greedy[place]),
            )
            for place in order[:SHOWN]
        )


def tiny_model(folder: Path | None, seed: int, processes: Processes, *, taught: bool = True) -> LanguageModel:
    """A tiny model that knows some arithmetic. taught: whether it is taught that, which a plan does not need."""
    from equipoise.data.arithmetic import CHARACTERS
    from equipoise.language.tiny import tiny
    from equipoise.language.warm_start import arithmetic_model

    if not taught:
        return replace(tiny([CHARACTERS], seed=seed, tokens="characters"), chat_template="none")
    language_model = taught_once(folder, processes, lambda: arithmetic_model("levels", seed).language_model)
    parameters = sum(parameter.numel() for parameter in language_model.model.parameters())
    source = f"A Llama of {parameters / 1e6:.1f} million parameters, taught some chains of one-digit arithmetic."
    return replace(language_model, name="tiny", source=source, origin=None, chat_template="none")


def teaches_nothing(recipe: Recipe, rewards: Any, zero_advantage: float) -> bool:
    """Whether a step's rewards [P, N] are all one number, or where they are compared within a prompt alone, one for each.

    zero_advantage: the share of responses without one. Advantages of turns or tasks may tell apart what has one reward.
    """
    if not ADVANTAGES[recipe.advantage].within:
        return bool((rewards == rewards.flatten()[0]).all())
    return zero_advantage == 1 and bool((rewards == rewards[:, :1]).all())


def refuse_server(model: Any) -> None:
    """Raises BadInput for the address of a server: its weights cannot be updated from here."""
    if isinstance(model, str) and "://" in model:
        raise BadInput(
            f"{model} is a server, whose weights cannot be updated from here: give the folder or hub id of its model. "
            "`solvable fit` can let a server generate."
        )


def _values(solved: Solved) -> dict[str, float]:
    return {name: float(np.nanmean(values)) for name, values in solved.per_problem().items()}


def _lengths(solved: Solved) -> dict[str, float]:
    right = solved.solved
    return {
        "right": float(solved.lengths[right].mean()) if right.any() else math.nan,
        "wrong": float(solved.lengths[~right].mean()) if not right.all() else math.nan,
    }


def _missing(before: Solved, after: Solved) -> list[str]:
    return [
        f"{solved.missing} of {solved.rewards.size} responses {when} had nothing to be judged by, and count as wrong."
        for when, solved in (("before", before), ("after", after))
        if solved.missing
    ]
