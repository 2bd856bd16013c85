"""The work of `solvable fit`: answers are sampled and judged, a critic learns the solve rates, is calibrated and tested.

Killed at any moment, the same call goes on: sampled.jsonl has a row for each few prompts that were answered and judged,
calls.jsonl each answer of a server, and the critic resumes at its last checkpoint.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from equipoise.core import progress
from equipoise.core.calibration import Calibration
from equipoise.core.columns import duration
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import seal, write_atomic
from equipoise.core.job import Alone, Request
from equipoise.core.rows import Rows
from equipoise.core.state import save_state, stored_state
from equipoise.core.terminal import say
from equipoise.data.problems import Problem
from equipoise.data.records import Message
from equipoise.data.text import printable
from equipoise.data.verify import Verifier, open_verifier
from equipoise.language.encode import encode_prompts
from equipoise.language.features import objects_digests
from equipoise.language.generate import check_room
from equipoise.language.model import LanguageModel, load, wrap
from equipoise.language.rollouts import padded
from equipoise.language.taught import opened
from equipoise.language.templates import DATE
from equipoise.reinforcement import solvable
from equipoise.reinforcement.attempts import read_prompts, rewarding
from equipoise.reinforcement.critic import Critic, is_critic, reader
from equipoise.reinforcement.measures import Generate, own_responses, tokens_per_second
from equipoise.reinforcement.recipe import recipe
from equipoise.reinforcement.reinforcing import tiny_model
from equipoise.reinforcement.solvable import Part
from equipoise.reinforcement.solvable_result import CONSTANT, CRITIC, LENGTH, RAW, Scored, Solvable, SolvablePlan
from equipoise.reinforcement.solvable_scorer import Scorer, logits, open_device
from equipoise.reinforcement.stages import Reward, critic_objective, judged
from equipoise.training.loop import OneLoss, TrainerSettings, TrainerState, fit
from equipoise.training.order import without_replacement

if TYPE_CHECKING:
    from equipoise.chat.client import Chat
    from equipoise.chat.roles import Roles
    from equipoise.reinforcement.solvable_job import FitSettings

STATE, SAMPLED, OUTCOMES = "state.safetensors", "sampled.jsonl", "outcomes.jsonl"
AT_ONCE = (16, 64)  # prompts that are answered and judged together, and stored as one row: by a model here, by a server
SCORED_AT_ONCE = 64  # prompts
SHOWN = 6  # prompts of which the scorer was most wrong
TIMED = (8, 16)  # responses and tokens that a plan is made from
APART = 1e-3  # probabilities of the written scorer from those of the fitted one, at most
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Fitting(Request):
    """A request to fit a scorer, read and found right. parts: of each problem. roles: the server that answers, or None."""

    model: str | Path | LanguageModel
    problems: tuple[Problem, ...]
    groups: tuple[str, ...]
    parts: tuple[str, ...]
    settings: "FitSettings"
    opened: Callable[[], Verifier]
    roles: "Roles | None"
    critic: str | Path | None
    loading: Mapping[str, Any]
    save_every: int
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        model: Any,
        tokenizer: Any,
        prompts: Any,
        *,
        verifier: Any,
        reward: Any,
        unsafe: bool,
        limit: int | None,
        fields: Mapping[str, str] | None,
        critic: str | Path | None,
        server: SimpleNamespace,
        loading: dict[str, Any],
        save_every: int,
        settings: "FitSettings",
    ) -> "Fitting":
        """Raises BadInput for a wrong request; loads no model."""
        date = loading["date"] = loading["date"] or DATE
        roles = _roles(model, critic, server)
        if tokenizer is not None or not isinstance(model, str | Path | LanguageModel):
            model = wrap(model, tokenizer, chat_template=loading["chat_template"], date=date)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise BadInput("`solvable fit` works in one process: start it without torchrun or accelerate launch.")
        needed = reward is None
        problems, names, digests = read_prompts({"prompts": prompts}, limit, fields, needed)

        def opened() -> Verifier:
            return open_verifier(verifier, reward=reward, unsafe=unsafe)

        with opened() as found:
            if needed:
                found.check(problems["prompts"])
            digests |= {"reward": found.digest} if found.digest else {}
            names |= {"verifier": found.name}
        groups = [problem.group or digest_of(problem) for problem in problems["prompts"]]
        names["model"] = model.name if isinstance(model, LanguageModel) else str(model)
        names["critic"] = f"a copy of {names['model']}" if critic is None else str(critic)
        return cls(
            model=model,
            problems=tuple(problems["prompts"]),
            groups=tuple(groups),
            parts=tuple(solvable.divide(groups, settings.seed)),
            settings=settings,
            opened=opened,
            roles=roles,
            critic=critic,
            loading=loading,
            save_every=save_every,
            names=names,
            inputs=digests | objects_digests({"model": model}),
            resolved={**settings.model_dump(), "date": date},
        )

    def plan(self) -> SolvablePlan:
        """Of a model here from one timed rollout of a few tokens."""
        with self._answering(None, taught=False) as (language_model, chat, _):
            critic, own = self._critic(language_model)
            rows = self._encode(language_model, own)
            tokenizer: Any = own.tokenizer
            return SolvablePlan(
                model=self.names["model"] if language_model is None else language_model.source,
                critic=self.names["critic"],
                verifier=self.names["verifier"],
                problems=self._counts(),
                settings=self._resolved(critic),
                first=tuple({"prompt": p.prompt, "gold": list(p.gold)} for p in self.problems[:3]),
                shown=tokenizer.decode(rows[0]),
                critic_parameters=sum(each.numel() for each in critic.parameters()),
                estimate=self._estimate(language_model, chat),
            )

    def work(self, folder: Path | None) -> Solvable:
        with self._answering(folder) as (language_model, chat, generate), self.opened() as verifier:
            critic, own = self._critic(language_model)
            rows = self._encode(language_model, own)
            stored, at_once = Rows(None if folder is None else folder / SAMPLED), AT_ONCE[chat is not None]
            sampled = sample(self.problems, generate, rewarding(verifier), self.settings, stored, at_once)
            tokens, calls = sampled.tokens, 0
            if chat is not None:
                total = chat.account.total()
                tokens, calls = total.usage.generated, total.calls
        rates = sampled.rewards.mean(axis=1)
        self._refuse_alike(sampled)
        learnt, notes = self._learn(critic, own, rows, rates, folder)
        scorer, result = self._measured(critic, own, rows, sampled, learnt, folder)
        notes = (*stored.damaged, *notes, *self._notes(sampled))
        if folder is not None:
            scorer.save(folder)
            again = Scorer.read(folder, device=str(own.device))
            few = rows[:SCORED_AT_ONCE]
            if not np.abs(again.of_tokens(few) - scorer.of_tokens(few)).max() <= APART:
                raise WorkFailed(
                    f"the written scorer says something else than the fitted one, which is in {folder / STATE}."
                )
        source = f"{self.names['model']}, asked by its server." if language_model is None else language_model.source
        return Solvable(
            names=self.names,
            source=source,
            settings=self._resolved(critic),
            problems=self._counts(),
            tokens=tokens,
            calls=calls,
            critic_parameters=sum(each.numel() for each in critic.parameters()),
            notes=notes,
            **result,
        )

    def scratch(self) -> tuple[str, ...]:
        return (STATE,)

    # --- who answers, who reads ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _answering(
        self, folder: Path | None, *, taught: bool = True
    ) -> Iterator[tuple[LanguageModel | None, "Chat | None", Generate]]:
        """The model that answers, here or by its server, and how it is asked."""
        settings = self.settings
        if self.roles is None:
            tiny = partial(tiny_model, folder, settings.seed, Alone(), taught=taught)
            language_model = opened(self.model, self.loading, tiny)
            generate = own_responses(language_model, settings.max_new_tokens, settings.rollout_batch_size)
            yield language_model, None, generate
            return
        with self.roles.open(folder) as players:
            chat = players.chat("model")
            yield None, chat, served_responses(chat, settings.max_new_tokens)

    def _critic(self, language_model: LanguageModel | None) -> tuple[Critic, LanguageModel]:
        """The critic, and what reads prompts for it; made, and a wrong one refused, before anything is sampled."""
        seed = self.settings.seed
        if self.critic is None:
            assert language_model is not None
            return Critic.of(language_model, seed=seed), language_model
        if is_critic(self.critic):
            critic = Critic.load(self.critic, device=open_device(self.loading["device"])).requires_grad_(True)
            written = {name: self.loading[name] for name in ("chat_template", "date")}
            return critic, reader(critic, self.critic, **written)
        own = load(self.critic, **self.loading)
        return Critic.of(own, seed=seed), own

    def _encode(self, language_model: LanguageModel | None, own: LanguageModel) -> list[list[int]]:
        """The prompts as the critic reads them. Raises BadInput for one that it, or who answers, has no room for."""
        asked, names = [problem.asked for problem in self.problems], [repr(problem.id) for problem in self.problems]
        rows, _ = encode_prompts(own, asked)
        check_room(own, rows, 0, names)
        if language_model is not None:
            encoded = rows if language_model is own else encode_prompts(language_model, asked)[0]
            check_room(language_model, encoded, self.settings.max_new_tokens, names)
        return rows

    # --- learning -----------------------------------------------------------------------------------------------------

    def _of(self, *parts: Part) -> NDArray[np.intp]:
        return np.flatnonzero(np.isin(self.parts, parts))

    def _refuse_alike(self, sampled: "Sampled") -> None:
        """Raises WorkFailed where there is nothing to learn."""
        chosen = self._of("fit")
        rates = sampled.rewards[chosen].mean(axis=1)
        if np.ptp(rates) == 0:
            first = int(chosen[0])
            raise WorkFailed(f"There is nothing to learn. {alike(self.problems[first], sampled, first, len(chosen))}")

    def _training(self, critic: Critic, count: int) -> TrainerSettings:
        settings = self.settings
        size = min(settings.batch_size, count)
        rate = settings.learning_rate
        if rate is None:  # as reinforce chooses it for the same critic
            rate = 5 * recipe("sppo").resolved_learning_rate(sum(each.numel() for each in critic.parameters()))
        shared = ("micro_batch_size", "warmup_ratio", "weight_decay", "max_grad_norm", "seed")
        return TrainerSettings(
            steps=settings.epochs * -(-count // size),
            learning_rate=rate,
            batch_size=size,
            **{name: getattr(settings, name) for name in shared},
        )

    def _learn(
        self, critic: Critic, own: LanguageModel, rows: Sequence[Sequence[int]], rates: Array, folder: Path | None
    ) -> tuple["Learnt", list[str]]:
        """Train the critic on the solve rates, to the weights of least loss on the prompts for stopping."""
        chosen, watched = self._of("fit"), self._of("stopping")
        training = self._training(critic, len(chosen))
        stored, notes = ({}, []) if folder is None else stored_state(folder / STATE)
        if self.critic is None or not is_critic(self.critic):
            critic.start_at(float(rates[chosen].mean()))

        def loss() -> float:
            said = logits(critic, own, [rows[place] for place in watched], SCORED_AT_ONCE)
            return float(solvable.log_losses(Calibration(1.0, 0.0)(said), rates[watched]).mean())

        def weights() -> dict[str, torch.Tensor]:
            return {name: each.detach().cpu().clone() for name, each in critic.state_dict().items()}

        learnt = Learnt(**stored["learnt"]) if stored else Learnt([{"step": 0.0, "loss": loss()}], 0, weights(), 0)
        every = training.steps // self.settings.epochs

        def look(reached: TrainerState) -> bool:
            if reached.step % every:
                return False
            now = loss()
            if now < min(each["loss"] for each in learnt.path):
                learnt.kept_step, learnt.kept = reached.step, weights()
            learnt.path.append({"step": float(reached.step), "loss": now})
            return reached.step - learnt.kept_step >= self.settings.patience * every

        def save(state: dict[str, Any]) -> None:
            if folder is not None:
                save_state(folder / STATE, {"training": state, "learnt": vars(learnt)})

        def collate(places: Sequence[int]) -> dict[str, torch.Tensor]:
            ids, mask = padded([rows[place] for place in places], own.pad_id, own.device)
            wanted = torch.tensor(rates[list(places)], dtype=torch.float32, device=own.device)
            return {"input_ids": ids, "attention_mask": mask, "rewards": wanted}

        order = without_replacement(len(chosen), training.batch_size, self.settings.seed)
        done = fit(
            critic,
            OneLoss(critic_objective("prompt")),
            lambda step: chosen[order(step)].tolist(),
            training,
            collate=collate,
            callbacks=[look],
            log=None if folder is None else folder / "metrics.jsonl",
            save=save,
            save_every=self.save_every,
            state=stored.get("training"),
            title="Fitting the critic",
        )
        learnt.steps = done.steps
        critic.load_state_dict(learnt.kept)
        return learnt, notes

    # --- what came of it ----------------------------------------------------------------------------------------------

    def _measured(
        self,
        critic: Critic,
        own: LanguageModel,
        rows: Sequence[Sequence[int]],
        sampled: "Sampled",
        learnt: "Learnt",
        folder: Path | None,
    ) -> tuple[Scorer, dict[str, Any]]:
        """The calibrated scorer, and what is known of it from the problems that nothing was chosen by."""
        seed = self.settings.seed
        rewards, rates = sampled.rewards, sampled.rewards.mean(axis=1)
        said = logits(critic, own, rows, SCORED_AT_ONCE)
        seen, chosen, test = self._of("fit", "stopping", "calibration"), self._of("calibration"), self._of("test")
        calibration = Calibration.of(said[chosen], rates[chosen])
        lengths = np.log([len(row) for row in rows])
        p = calibration(said)
        predictors = {
            CRITIC: p[test],
            RAW: Calibration(1.0, 0.0)(said[test]),
            LENGTH: Calibration.of(lengths[seen], rates[seen], rising=False)(lengths[test]),
            CONSTANT: np.full(len(test), rates[seen].mean()),
        }
        clusters = np.unique(np.array(self.groups)[test], return_inverse=True)[1]
        tested = rewards[test]
        scorer = Scorer(critic, own, calibration, self.names["model"], (float(p[test].min()), float(p[test].max())))
        if folder is not None:
            write_atomic(folder / OUTCOMES, b"".join(self._outcome(place, said, p, rates) for place in range(len(p))))
        wrong = test[np.argsort(-np.abs(p[test] - rates[test]), kind="stable")[:SHOWN]].tolist()
        return scorer, {
            "solved": solvable.mean_rate(rates[test], clusters),
            "floor": solvable.floor(tested),
            "measures": {name: solvable.measures(each, tested, clusters, seed) for name, each in predictors.items()},
            "gains": {name: solvable.gains(p[test], predictors[name], tested, clusters) for name in (CONSTANT, LENGTH)},
            "slope": calibration.slope,
            "intercept": calibration.intercept,
            "spread": scorer.spread,
            "bins": solvable.reliability(p[test], rates[test], clusters),
            "coverages": solvable.selective(p[test], rates[test], clusters),
            "thresholds": solvable.thresholds(p[chosen], rates[chosen], p[test], rates[test], clusters),
            "surprises": tuple(self._scored(place, p, rates, sampled) for place in wrong),
            "path": tuple(learnt.path),
            "steps": learnt.steps,
            "kept_step": learnt.kept_step,
        }

    def _outcome(self, place: int, said: Array, p: Array, rates: Array) -> bytes:
        problem = self.problems[place]
        numbers = {"solve_rate": rates[place], "logit": said[place], "probability": p[place]}
        names = {"id": problem.id, "prompt_sha256": digest_of(problem), "part": self.parts[place]}
        return seal({**names, **{name: float(value) for name, value in numbers.items()}})

    def _scored(self, place: int, p: Array, rates: Array, sampled: "Sampled") -> Scored:
        problem = self.problems[place]
        return Scored(
            problem.id,
            problem.prompt,
            " | ".join(problem.gold),
            printable(sampled.responses[place]),
            float(p[place]),
            float(rates[place]),
        )

    def _counts(self) -> dict[str, int]:
        return {part: len(self._of(part)) for part in solvable.SHARES}

    def _resolved(self, critic: Critic) -> dict[str, Any]:
        training = self._training(critic, len(self._of("fit")))
        return {
            **self.settings.model_dump(),
            "learning_rate": float(f"{training.learning_rate:.6g}"),
            "batch_size": training.batch_size,
        }

    def _notes(self, sampled: "Sampled") -> list[str]:
        notes = []
        if sampled.missing:
            notes.append(
                f"{sampled.missing} of {sampled.rewards.size} responses had nothing to be judged by, and count as wrong."
            )
        if len(set(np.array(self.groups)[self._of("test")])) < solvable.FEWEST_CLUSTERS:
            notes.append(
                f"Under {solvable.FEWEST_CLUSTERS} test problems (or groups of them) ECE, AUROC, Spearman, AURC and the "
                "curve have no interval that could be relied on, so none is given."
            )
        return notes

    def _estimate(self, language_model: LanguageModel | None, chat: "Chat | None") -> str:
        settings = self.settings
        tokens = len(self.problems) * settings.samples * settings.max_new_tokens
        if chat is not None:
            from equipoise.chat.account import estimate

            calls = served_calls([each.asked for each in self.problems], settings.samples, settings.max_new_tokens, 1.0)
            return str(estimate(calls, model=chat.name, prices=chat.account.prices))
        assert language_model is not None
        asked, few = [problem.asked for problem in self.problems[: TIMED[0]]], min(TIMED[1], settings.max_new_tokens)
        rate = tokens_per_second(language_model, asked, few, settings.temperature)
        return f"{tokens:,} generated tokens, {duration(tokens / rate)}, and the critic"


@dataclass(eq=False)
class Learnt:
    """Where the critic is: the loss on the prompts for stopping at each look, and its best weights so far."""

    path: list[dict[str, float]]
    kept_step: int
    kept: dict[str, torch.Tensor]
    steps: int


@dataclass(frozen=True, eq=False)
class Sampled:
    """rewards: [N, S]. missing: responses that could not be judged. responses: the first to each problem."""

    rewards: Array
    missing: int
    tokens: int
    responses: tuple[str, ...]


def sample(
    problems: Sequence[Problem],
    generate: Generate,
    reward: Reward,
    settings: "FitSettings",
    rows: Rows,
    at_once: int,
) -> Sampled:
    """Sample and judge responses, a few problems at a time; those that are in `rows` already are not asked again.

    What a problem yields depends on its place in the file and the seed, not on how many there are. Raises BadInput for a
    reward outside [0, 1], naming its problem. Says at once when the first rewards are all alike.
    """
    known = {row["first"]: row for row in rows}
    samples, total = settings.samples, len(problems) * settings.samples
    with progress.progress("Sampling and judging", total=total, unit="responses") as bar:
        for first in range(0, len(problems), at_once):
            some = problems[first : first + at_once]
            ids = [problem.id for problem in some]
            if first not in known or known[first]["ids"] != ids:
                keys = range(first, first + len(some))
                asked = [problem.asked for problem in some]
                texts, tokens = generate(asked, samples, settings.temperature, settings.seed, keys)
                every = [problem for problem in some for _ in range(samples)]
                found, missing = judged(reward, every, texts, completion_ids=tokens)
                rewards = found.double().view(len(some), samples)
                refuse_outside(some, rewards)
                row = {"first": first, "ids": ids, "rewards": rewards.tolist(), "missing": int(missing.sum())}
                known[first] = {**row, "tokens": sum(map(len, tokens or ())), "responses": list(texts[::samples])}
                rows.add(known[first])
                if first == 0 and rewards.unique().numel() == 1 and not progress.is_quiet():
                    say(alike(some[0], _joined([known[0]]), 0, len(some)))
            bar.advance(len(some) * samples)
    return _joined([known[first] for first in range(0, len(problems), at_once)])


def _joined(rows: Sequence[Mapping[str, Any]]) -> Sampled:
    return Sampled(
        np.array([rewards for row in rows for rewards in row["rewards"]], dtype=float),
        sum(row["missing"] for row in rows),
        sum(row["tokens"] for row in rows),
        tuple(text for row in rows for text in row["responses"]),
    )


def refuse_outside(problems: Sequence[Problem], rewards: torch.Tensor) -> None:
    """Raises BadInput for the first reward, [n, S], that is not in [0, 1]."""
    outside = ((rewards < 0) | (rewards > 1)).nonzero()
    if len(outside):
        place, number = outside[0].tolist()
        raise BadInput(
            f"the reward of a response to problem {problems[place].id!r} is {rewards[place, number]:g}, expected a number "
            "in [0, 1]. Rescale: -1 and 1 become 0 and 1 by (reward + 1) / 2."
        )


def alike(problem: Problem, sampled: Sampled, place: int, count: int) -> str:
    """What to say, and to change, where all rewards of some problems are alike."""
    rate, answer = sampled.rewards[place].mean(), " ".join(sampled.responses[place].split())
    shown, gold = (answer if len(answer) <= 80 else f"...{answer[-80:]}"), " | ".join(problem.gold)
    return (
        f"All {count} problems so far are solved in the same share, {rate:g}: use prompts nearer to what the model can do, "
        "more samples, a higher temperature, more max_new_tokens, or look whether the verifier understands the "
        f"answers, such as {shown!r}" + (f" (gold: {gold!r:.80})." if gold else ".")
    )


def served_calls(prompts: Sequence[Any], samples: int, max_new_tokens: int, temperature: float) -> list[Any]:
    """The calls that ask a server for responses to each prompt in turn."""
    from equipoise.chat.calls import Call

    turns = [(Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt) for prompt in prompts]
    how = {"phase": "sample", "max_tokens": max_new_tokens, "temperature": temperature}
    return [Call(messages, sample=number, **how) for messages in turns for number in range(samples)]


def served_responses(chat: "Chat", max_new_tokens: int) -> Generate:
    """What a server answers; tokens are in its account. What it refuses, or rejects, is an empty response."""
    from equipoise.chat.client import answers

    def generate(
        prompts: Sequence[Any], samples: int, temperature: float, seed: int, keys: Sequence[int] | None = None
    ) -> tuple[Sequence[str], None]:
        calls = served_calls(prompts, samples, max_new_tokens, temperature)
        replies = answers(chat, calls, f"{chat.name} answers")
        return [reply.text for reply in replies], None

    return generate


def digest_of(problem: Problem) -> str:
    """sha256 of what a model is asked."""
    turns = [[turn.role, turn.content] for turn in problem.messages] or problem.prompt
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()


def _roles(model: Any, critic: Any, server: SimpleNamespace) -> "Roles | None":
    """The server that answers, None for a model here. Raises BadInput for what cannot be meant, or would be ignored."""
    from equipoise.chat.roles import Role, Roles

    if isinstance(model, str) and "://" in model:
        raise BadInput(
            f"{model} is the address of a server: give it as --model-url, and as --model the model by its name there, such "
            "as openai-api/local/NAME."
        )
    if server.model_url is None and not str(model).startswith("openai-api/"):
        if server.model_args:
            raise BadInput("model_args are for a server: give its address as --model-url, or leave them out.")
        Roles.read(SimpleNamespace(**vars(server), model=None), Role("model", optional=True))
        return None
    if critic is None:
        raise BadInput(
            "The model of a server cannot read prompts as a critic: give a model here as --critic, such as smollm2 or a "
            "folder."
        )
    return Roles.read(SimpleNamespace(**vars(server), model=str(model)), Role("model"))
