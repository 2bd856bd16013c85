"""Reinforcement of a tiny decoder that can do some arithmetic: what the `-tiny` studies of SPPO, APO and R2PO share.

    tiny = TinyWorld.open("levels", run.seed, run.prepared)     the model as `warm_start.teach` left it, and its problems
    tiny.reinforce(run, recipe(...), look, evaluations=5)       looks at the start, along the way and at the end; resumable

The model is sampled for training alone. How likely it is to solve a problem is computed: a solution that counts is one text
for each route to the answer, and the probability of a text is a product (`solution_probabilities`). Left out are solutions
that take a step up again ("Wait"), which nobody taught it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from equipoise.core.options import closed
from equipoise.data.arithmetic import ArithmeticProblem, solution
from equipoise.data.problems import Problem
from equipoise.data.records import Record
from equipoise.language.encode import encode, encode_prompts
from equipoise.language.model import evaluating
from equipoise.language.rollouts import Rollouts, roll_out, score_responses
from equipoise.language.score import log_likelihoods
from equipoise.language.warm_start import ArithmeticModel, World, open_model
from equipoise.reinforcement import stages
from equipoise.reinforcement.critic import Critic, prompt_logits
from equipoise.reinforcement.recipe import Recipe
from equipoise.reinforcement.training import ReinforceState, prepare, train

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

Array = NDArray[np.float64]
AT_ONCE = 256  # rows of an evaluation


@dataclass(frozen=True)
class Look:
    """A place on the path of a run. done: steps. tokens: generated so far. last: it is the end.

    updates: optimizer steps so far. logged: what was logged of each step of the policy since the look before. notes: what
    earlier looks left for later ones, kept with the training.
    """

    done: int
    updates: int
    tokens: int
    last: bool
    logged: Sequence[Mapping[str, float]]
    notes: dict[str, Any]

    @property
    def at(self) -> dict[str, int]:
        """As measurements name it."""
        return {"optimizer_steps": self.updates, "generated_tokens": self.tokens}

    def mean(self, name: str) -> float:
        """Of what was logged under a name; nan where the policy made no step."""
        return float(np.mean([each[name] for each in self.logged])) if self.logged else math.nan

    def so_far(self, name: str, values: Sequence[float] | Array) -> Array:
        """The mean of an outcome's values [N] over this look and all before it, by trapezoids, [N]; asked once a look."""
        path = self.notes.setdefault(name, [])
        path.append(np.asarray(values, float))
        return np.trapezoid(path, axis=0) / (len(path) - 1) if len(path) > 1 else path[0]


@dataclass(frozen=True)
class TinyWorld:
    """A model at its warm start, problems to train on and to test on, and what counts as solved."""

    made: ArithmeticModel
    seed: int

    @classmethod
    @closed
    def open(cls, world: World, seed: int, folder: Path, *, train: int, test: int) -> TinyWorld:
        """Of the seed whose model `warm_start.teach` stored in the folder."""
        return cls(open_model(world, seed, folder, train=train, test=test), seed)

    @property
    def language_model(self) -> LanguageModel:
        """The model, which `reinforce` trains in place."""
        return self.made.language_model

    @property
    def test(self) -> list[ArithmeticProblem]:
        """Problems that are never trained on."""
        return self.made.test

    @property
    def names(self) -> list[str]:
        """Of the test problems."""
        return [problem.id for problem in self.test]

    def solved(self, problem: ArithmeticProblem, text: str) -> float:
        """1 for a solution that is sound, right and in the form that counts, else 0."""
        return float(self.made.world.solved(problem, text))

    def reinforce(
        self,
        run: Any,
        recipe: Recipe,
        look: Callable[[Look], None],
        *,
        evaluations: int,
        reward: Callable[[ArithmeticProblem, str], float] | None = None,
        critic: Critic | None = None,
        callbacks: Sequence[Callable[[ReinforceState], bool | None]] = (),
        **replaced: Any,
    ) -> None:
        """Train as the recipe says, on the run's books; goes on from its last checkpoint, which every look leaves.

        look: called at the start, `evaluations` times along the way, the end among them. reward: `solved` by default.
        replaced: stages of one's own, as of `training.train`.
        """
        stored = run.resume() or {"training": None, "tokens": 0, "notes": {}}
        tokens, notes, judge = stored["tokens"], stored["notes"], reward or self.solved
        logged: list[Mapping[str, float]] = []  # empty at every checkpoint, which is a look
        known = {problem.id: problem for problem in self.made.train}
        every = max(recipe.steps // evaluations, 1)

        def looked(done: int) -> None:
            look(Look(done, done * recipe.updates, tokens, done == recipe.steps, logged, notes))
            logged.clear()

        def noted(state: ReinforceState) -> None:
            nonlocal tokens
            spent = int(state.metrics["generated_tokens"])
            tokens += spent
            run.spend(phase="build", generated_tokens=spent, optimizer_steps=recipe.updates)
            if state.step.stage == "policy":
                logged.append(state.metrics)
            if state.done % every == 0 or state.done == recipe.steps:
                looked(state.done)

        if stored["training"] is None:
            looked(0)
        train(
            prepare(self.language_model, recipe),
            recipe,
            [Problem(each.id, each.prompt, (each.answer,)) for each in self.made.train],
            lambda problems, texts: [judge(known[p.id], text) for p, text in zip(problems, texts, strict=True)],
            critic=critic,
            callbacks=[*callbacks, noted],
            save=lambda state: run.checkpoint({"training": state, "tokens": tokens, "notes": notes}),
            save_every=every,
            state=stored["training"],
            **replaced,
        )

    def write(self, *, samples: int = 1, temperature: float = 0.0) -> Rollouts:
        """The likeliest answer to each test problem, or samples of them, the same random numbers at every look."""
        return roll_out(
            self.language_model,
            [problem.prompt for problem in self.test],
            samples=samples,
            max_new_tokens=self.made.world.max_new_tokens,
            temperature=temperature,
            seed=[self.seed, 6],
            batch_size=AT_ONCE,
        )

    def solution_probabilities(self) -> list[Array]:
        """Of each test problem the probability of each text that solves it, one for each of its routes."""
        form = "plain" if self.made.world.strict is None else "strict"
        texts = [[solution(problem, route=r, form=form).text for r in problem.routes] for problem in self.test]
        records = [
            Record(id=f"{problem.id} {number}", prompt=problem.prompt, completion=text)
            for problem, of_problem in zip(self.test, texts, strict=True)
            for number, text in enumerate(of_problem)
        ]
        sums, _ = log_likelihoods(self.language_model, encode(self.language_model, records), batch_size=AT_ONCE)
        ends = np.cumsum([len(of_problem) for of_problem in texts])[:-1]
        return np.split(sums.exp().numpy(), ends)

    def solve_rates(self) -> Array:
        """The probability that one sample at temperature 1 solves each test problem."""
        return np.array([each.sum() for each in self.solution_probabilities()])

    def coverage(self, start: Any, written: Rollouts, *, anchors: int) -> float:
        """The model's mass on the likeliest tokens of the model `start`, a mean over the tokens of each first sample."""
        with evaluating(start), evaluating(self.language_model.model):
            batch = written.batch(range(0, len(written.ids), written.samples))
            likeliest = score_responses(start, batch, top=anchors).top_ids
            gathered = score_responses(self.language_model.model, batch, gather=likeliest).gathered
        assert gathered is not None
        return gathered.exp().sum(dim=-1)[batch["mask"]].mean().item()

    def predictions(self, critic: Critic) -> Array:
        """What a critic of prompts says of each test problem."""
        language_model = self.language_model
        rows, _ = encode_prompts(language_model, [problem.prompt for problem in self.test])
        with evaluating(critic):
            return prompt_logits(critic, rows, language_model.pad_id, language_model.device).sigmoid().double().numpy()


def shallow_critic(language_model: LanguageModel, share: float, *, seed: int) -> Critic:
    """A critic on the policy's own body as it is, or on the first `share` of its layers."""
    critic = Critic.of(language_model, seed=seed)
    body: Any = critic.body
    body.config.num_hidden_layers = max(round(share * len(body.layers)), 1)
    body.layers = body.layers[: body.config.num_hidden_layers]
    return critic


def critic_bytes(critic: Critic | None) -> int:
    """What training a critic holds in memory beside the policy: weights, gradients and both moments of AdamW."""
    weights = 0 if critic is None else sum(each.numel() * each.element_size() for each in critic.parameters())
    return 4 * weights


def freezing_output(language_model: LanguageModel, frozen: Callable[[int], bool]) -> dict[str, Any]:
    """What makes `reinforce` keep the output matrix as it is in the steps (from 0) that are `frozen`.

    The matrix is put back after the optimizer step; the embeddings of `tiny` are tied to it, and so stay as well.
    """
    kept: dict[str, Any] = {}

    def sample(*arguments: Any) -> stages.Step:
        matrix: Any = language_model.model.get_output_embeddings()
        kept["weight"] = matrix.weight.detach().clone()
        return stages.sample(*arguments)

    def put_back(state: ReinforceState) -> None:
        if frozen(state.done - 1):
            matrix: Any = language_model.model.get_output_embeddings()
            matrix.weight.data.copy_(kept["weight"])

    return {"sample": sample, "callbacks": [put_back]}
