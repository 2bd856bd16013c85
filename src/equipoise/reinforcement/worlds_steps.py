"""NAIT's world with the truth: chains with slips, policies that complete any prefix of them, judges, a decoder that reads.

    world = StepWorld.draw(seed, train=3000, test=1000)     problems, written chains, rollouts and verdicts; save, open
    world.labels("strong", "rules", "hard")                 of every step of the chains to train on
    StepStages(world, "strong", StepRecipe(...), seed)      a PRM of these labels: train, score, refresh, train again

A chain is that of `data.arithmetic` with sums alone: "7+5+3" is worked as "7+5=2;2+3=5", last digits only. A step is right
when its value is the true one: what a policy makes of it later is no part of the truth. In written chains a step is one
too high with the chance `ERROR`, and nothing is taken up again.

A policy completes a prefix step by step: with the chance e a step has another value than it should, any of nine; with the
chance c a wrong value, that of the prefix included, is taken up by a "Wait", which starts from the true value before and
errs as any step does. A sum keeps what a value is off by, so that with n steps left the chance of success has a form:

    p_n = p* + (p_0 - p*) a^n,    a = (1 - 10 e / 9) (1 - c (1 - e)),    p* = p_n of n -> infinity,
    p_0 = 1 after a right step and c (1 - e) after a wrong one

Judges of a completion: `exact` says R = 1 when a "Wait" changes a value while the value has been wrong from the step under
test on; `faulty` misses a fifth of these, each by itself; `rules` is `reflection.rule_judge` on the text. A success that is
left in spite of an exact judge was luck: an error that cancelled an error.

Legend: N chains, T places, S steps of all chains (row by row), K completions of a prefix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.core.options import check_fields, closed
from equipoise.core.state import load_state, save_state
from equipoise.data.arithmetic import WAIT, ArithmeticProblem, Part, problems
from equipoise.reinforcement import nait
from equipoise.reinforcement.prm import Solution, StepExample, add_tokens, collate, encode, score, step_loss
from equipoise.reinforcement.reflection import ContinuedSolution, rule_judge
from equipoise.reinforcement.worlds import draws
from equipoise.training.loop import OneLoss, TrainerSettings, fit
from equipoise.training.order import without_replacement

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

Booleans = NDArray[np.bool_]
Digits = NDArray[np.int8]
PolicyName = Literal["strong", "weak"]
StepJudge = Literal["none", "exact", "faulty", "rules"]
StepLabel = Literal["hard", "soft", "truth"]

LEVELS = (4, 5, 6, 7, 8)  # steps of a chain
SIGN = "+"
ERROR = 0.1  # of a written step
MISSED = 0.2  # of what the faulty judge is to find
VALIDATION = 300  # chains
WIDTH, LAYERS, HEADS, CONTEXT = 32, 2, 4, 64  # of the decoder that reads
AT_ONCE = 512  # chains that are scored
_TRAIN, _TEST, _ROLLOUTS = range(3)  # what is drawn for, beside the seed
_FILE = "world.safetensors"


@dataclass(frozen=True)
class StepPolicy:
    """The chances that a step is mistaken, and that a wrong value is taken up again."""

    error: float
    correct: float


POLICIES: dict[PolicyName, StepPolicy] = {"strong": StepPolicy(0.05, 0.7), "weak": StepPolicy(0.25, 0.05)}


@dataclass(frozen=True, eq=False)
class Chains:
    """N written chains. shifts: [N, T], what each value is above the true one, mod 10; 0 behind the end of a chain."""

    problems: Sequence[ArithmeticProblem]
    shifts: Digits

    @classmethod
    @closed
    def write(cls, count: int, seed: int, use: int, part: Part) -> Chains:
        """Chains of the levels in turn, with slips; no problem is in both parts."""
        asked = problems(count, seed=seed, levels=LEVELS, operators=SIGN, part=part)
        generator = draws(seed, use)
        shape = count, LEVELS[-1]
        slips = generator.random(shape) < ERROR
        written = np.arange(shape[1]) < np.array([problem.level for problem in asked])[:, None]
        return cls(asked, np.where(written, slips.cumsum(axis=1) % 10, 0).astype(np.int8))

    @cached_property
    def lengths(self) -> list[int]:
        """Steps of each chain."""
        return [problem.level for problem in self.problems]

    @cached_property
    def steps(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Chain and place of each step, [S] each."""
        lengths = np.array(self.lengths)[:, None]
        chains, places = (np.arange(self.shifts.shape[1]) < lengths).nonzero()
        return chains, places

    @cached_property
    def right(self) -> Tensor:
        """The truth of each step, [S] bool."""
        return torch.from_numpy(self.shifts[self.steps] == 0)

    @cached_property
    def first_errors(self) -> list[int]:
        """The first wrong step of each chain, -1 for none."""
        shown = self.right.float().split(self.lengths)
        return [index for index in map(nait.first_error, shown) if index is not None]

    @cached_property
    def solutions(self) -> list[Solution]:
        """As texts."""
        found: list[Solution] = []
        for problem, row in zip(self.problems, self.shifts.tolist(), strict=True):
            pairs = enumerate(pairwise([0, *row[: problem.level]]))
            found.append((problem.prompt.strip(), [_step(problem, place, *pair) for place, pair in pairs]))
        return found

    def part(self, start: int, stop: int) -> Chains:
        """Some of them."""
        return Chains(self.problems[start:stop], self.shifts[start:stop])


def _step(problem: ArithmeticProblem, place: int, before: int, shift: int) -> str:
    """The text of a step by how much the value before and its own are off."""
    right = problem.steps[place]
    return f"{(int(right[0]) + before) % 10}{right[1:-1]}{(int(right[-1]) + shift) % 10}"


@dataclass(frozen=True, eq=False)
class Completions:
    """K completions of every prefix that ends with a step, by how much their values are off, mod 10.

    written: [S, K, T], at each place as first written, -1 where nothing is. retaken: [S, K, T], after a "Wait", -1 where
    there is none. outcomes: [S, K], the last value is true. reflected: [S, K], R of the exact judge.
    """

    written: Digits
    retaken: Digits
    outcomes: Booleans
    reflected: Booleans


def complete(chains: Chains, policy: StepPolicy, samples: int, generator: np.random.Generator) -> Completions:
    """What the policy makes of every prefix of every chain, K = samples times."""
    chain, start = chains.steps
    last = np.array(chains.lengths)[chain] - 1
    shape = len(chain), samples
    written, retaken = (np.full((*shape, chains.shifts.shape[1]), -1, np.int8) for _ in range(2))

    def mistaken() -> NDArray[np.int64]:
        return np.where(generator.random(shape) < policy.error, generator.integers(1, 10, shape), 0)

    shift = np.broadcast_to(chains.shifts[chain, start][:, None].astype(np.int64), shape)
    unbroken, reflected = np.not_equal(shift, 0), np.zeros(shape, np.bool_)
    for place in range(chains.shifts.shape[1]):
        goes_on = ((place > start) & (place <= last))[:, None]
        shift = np.where(goes_on, (shift + mistaken()) % 10, shift)
        written[:, :, place] = np.where(goes_on, shift, -1)
        unbroken &= shift != 0
        takes_up = (
            (goes_on | np.equal(start, place)[:, None]) & (shift != 0) & (generator.random(shape) < policy.correct)
        )
        again = mistaken()
        retaken[:, :, place] = np.where(takes_up, again, -1)
        reflected |= takes_up & unbroken & (again != shift)
        shift = np.where(takes_up, again, shift)
        unbroken &= shift != 0
    return Completions(written, retaken, shift == 0, reflected)


def continuation(chains: Chains, completions: Completions, step: int, sample: int) -> tuple[str, ...]:
    """The steps, as texts, with which a completion goes on."""
    chain, start = (int(each[step]) for each in chains.steps)
    problem, standing = chains.problems[chain], int(chains.shifts[chain, start])
    texts = []
    for place in range(start, problem.level):
        written, again = int(completions.written[step, sample, place]), int(completions.retaken[step, sample, place])
        if place > start:
            texts.append(_step(problem, place, standing, written))
            standing = written
        if again >= 0:
            texts.append(WAIT + _step(problem, place, 0, again))
            standing = again
    return tuple(texts)


def by_rules(chains: Chains, completions: Completions) -> Booleans:
    """R of `rule_judge`, [S, K]: asked of successes with a "Wait", since its rules find nothing where there is no cue."""
    asked = completions.outcomes & (completions.retaken >= 0).any(axis=-1)
    shown = []
    for step, sample in zip(*asked.nonzero(), strict=True):
        chain, place = (int(each[step]) for each in chains.steps)
        problem, steps = chains.solutions[chain]
        shown.append(
            ContinuedSolution(problem, tuple(steps[: place + 1]), continuation(chains, completions, step, sample))
        )
    found = np.zeros_like(asked)
    found[asked] = [verdict.reflects for verdict in rule_judge(shown)]
    return found


@dataclass(frozen=True, eq=False)
class StepWorld:
    """Chains to train on, to choose a threshold on and to test on; what completions and judges say of the first.

    outcomes: [S, K] of each policy. reflected: [S, K] of each policy and judge.
    """

    train: Chains
    validation: Chains
    test: Chains
    outcomes: dict[PolicyName, Tensor]
    reflected: dict[PolicyName, dict[StepJudge, Tensor]]

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def draw(cls, seed: int, *, train: int, test: int, samples: int = 8) -> StepWorld:
        """Everything follows from the seed."""
        chains = Chains.write(train, seed, _TRAIN, "train")
        outcomes: dict[PolicyName, Tensor] = {}
        reflected: dict[PolicyName, dict[StepJudge, Tensor]] = {}
        for number, (name, policy) in enumerate(POLICIES.items()):
            generator = draws(seed, _ROLLOUTS, number)
            made = complete(chains, policy, samples, generator)
            verdicts: dict[StepJudge, Booleans] = {
                "none": np.zeros_like(made.reflected),
                "exact": made.reflected,
                "faulty": made.reflected & (generator.random(made.reflected.shape) >= MISSED),
                "rules": by_rules(chains, made),
            }
            outcomes[name] = torch.from_numpy(made.outcomes)
            reflected[name] = {judge: torch.from_numpy(each) for judge, each in verdicts.items()}
        return cls(chains, *_held_out(seed, test), outcomes, reflected)

    def save(self, folder: Path) -> None:
        """What `open` reads, into a folder that is there."""
        save_state(folder / _FILE, {"outcomes": self.outcomes, "reflected": self.reflected})

    @classmethod
    def open(cls, folder: Path, seed: int, *, train: int, test: int) -> StepWorld:
        """The world of the seed that was saved there; only its rollouts and verdicts are stored."""
        stored = load_state(folder / _FILE)
        chains = Chains.write(train, seed, _TRAIN, "train")
        return cls(chains, *_held_out(seed, test), stored["outcomes"], stored["reflected"])

    @closed
    def labels(self, policy: PolicyName, judge: StepJudge, kind: StepLabel) -> Tensor:
        """Of the steps to train on, [S] in [0, 1]: Monte Carlo labels as the judge corrects them, or the truth."""
        if kind == "truth":
            return self.train.right.float()
        soft, hard = nait.monte_carlo(nait.correct(self.outcomes[policy], self.reflected[policy][judge]))
        return hard if kind == "hard" else soft


def _held_out(seed: int, test: int) -> tuple[Chains, Chains]:
    """Chains to choose a threshold on, and to test on."""
    both = Chains.write(VALIDATION + test, seed, _TEST, "test")
    return both.part(0, VALIDATION), both.part(VALIDATION, VALIDATION + test)


# A decoder that reads chains, and its stages.


def reader(seed: int) -> LanguageModel:
    """An untaught Llama with a token a step, and the tokens of `prm`.

    By characters, a decoder of this size has to learn a table of sums from yes and no before it can learn anything of steps.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from equipoise.language.model import LanguageModel

    pad, end, unknown = "<|pad|>", "<|end|>", "<|unknown|>"
    digits = range(10)
    terms = [f"{SIGN}{digit}" for digit in digits]
    steps = [f"{left}{term}={value}" for left in digits for term in terms for value in digits]
    words = [pad, end, unknown, *map(str, digits), *terms, *steps]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d\+\d=\d|\+?\d"), "removed", invert=True)
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=pad,
        eos_token=end,
        unk_token=unknown,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        initializer_range=0.05,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        pad_token_id=words.index(pad),
        bos_token_id=None,
        eos_token_id=words.index(end),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    source = (
        f"A Llama of {model.num_parameters() / 1e6:.1f} million parameters, a token a step, untaught (seed {seed})."
    )
    found = LanguageModel(model.eval(), tokenizer, "reader", source, chat_template="none")
    add_tokens(found)
    return found


@dataclass(frozen=True)
class StepRecipe:
    """How labels are made and learnt. threshold: of `nait.refresh` between stages; None: the labels stay as they are.

    anchor: labels that a refresh compares with, those of the first stage or of the stage before. restart: every stage
    begins with an untaught decoder, not with the one of the stage before. weights: of right and of wrong steps.
    """

    judge: StepJudge = "none"
    labels: StepLabel = "hard"
    threshold: float | None = None
    anchor: Literal["initial", "current"] = "initial"
    restart: bool = False
    weights: nait.ClassWeights | Literal["none"] = (1 / 6, 5 / 6)
    loss: nait.StepLoss = "cross-entropy"

    def __post_init__(self) -> None:
        check_fields(self)


class StepStages:
    """The PRM of one policy's labels, stage by stage.

    labels: [S], those of the newest stage. positives_kept, negatives_kept: by the refresh before it, nan where there was
    none.
    """

    @closed
    def __init__(self, world: StepWorld, policy: PolicyName, recipe: StepRecipe, seed: int) -> None:
        self.world, self.recipe, self.seed = world, recipe, seed
        self.language_model = reader(seed)
        self.labels = self._first = world.labels(policy, recipe.judge, recipe.labels)
        self.positives_kept = self.negatives_kept = math.nan
        self.stage = 0
        self._examples = encode(self.language_model, world.train.solutions)

    def train(self, *, steps: int, batch_size: int, learning_rate: float) -> int:
        """One stage: refresh the labels (not before the first), then learn them; the tokens that it read."""
        recipe = self.recipe
        if self.stage and recipe.threshold is not None:
            anchor = self._first if recipe.anchor == "initial" else self.labels
            scores = torch.cat(score(self.language_model, self.world.train.solutions, batch_size=AT_ONCE))
            found = nait.refresh(anchor, scores, threshold=recipe.threshold)
            self.labels, self.positives_kept, self.negatives_kept = (
                found.labels,
                found.positives_kept,
                found.negatives_kept,
            )
        if self.stage and recipe.restart:
            self.language_model = reader(self.seed)
        labels = self.labels.split(self.world.train.lengths)
        order = without_replacement(len(labels), batch_size, self.seed)
        offset, tokens = self.stage * steps, 0

        def drawn(step: int) -> list[StepExample]:
            nonlocal tokens
            chosen = [replace(self._examples[i], labels=tuple(labels[i].tolist())) for i in order(offset + step)]
            tokens += sum(len(example.input_ids) for example in chosen)
            return chosen

        fit(
            self.language_model.model,
            OneLoss(step_loss(self.language_model, weights=recipe.weights, loss=recipe.loss)),
            drawn,
            TrainerSettings(steps=steps, learning_rate=learning_rate, batch_size=batch_size, betas=(0.9, 0.95)),
            collate=lambda chosen: collate(chosen, self.language_model.pad_id),
            title=f"Stage {self.stage + 1}",
        )
        self.stage += 1
        return tokens

    def scores(self, chains: Chains) -> list[Tensor]:
        """r of the steps of each chain."""
        return score(self.language_model, chains.solutions, batch_size=AT_ONCE)

    def state(self) -> dict[str, Any]:
        """What `restore` takes back between two stages."""
        return {"stage": self.stage, "labels": self.labels, "weights": self.language_model.model.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on as what returned the state would have."""
        self.stage, self.labels = state["stage"], state["labels"]
        self.language_model.model.load_state_dict(state["weights"])


def best_threshold(scores: Sequence[Tensor], gold: Sequence[int]) -> float:
    """Of 49 quantiles of the scores, the threshold at which first errors are found best; the first of equals."""
    thresholds = torch.cat(list(scores)).quantile(torch.arange(1, 50) / 50).tolist()
    return max(thresholds, key=lambda threshold: first_errors(scores, gold, threshold).f1)


def first_errors(scores: Sequence[Tensor], gold: Sequence[int], threshold: float = 0.5) -> nait.FirstErrorScore:
    """How well they are found at a threshold."""
    return nait.first_error_f1([nait.first_error(each, threshold) for each in scores], gold)
