"""DOTS, difficulty-targeted online selection (arXiv:2506.05316): train on questions that the policy solves half the time.

N questions of a pool, K references among them, G responses to a question, M models, E the width of an embedding, H of an
adapter. Everything here is in difficulty d = 1 - mean reward, in [0, 1]. For 0/1 rewards with success probability p and the
advantages R - mean (`group_baselines.dr_grpo`):

    signal        E A^2 = p (1 - p) (1 - 1 / G), largest at p = 1/2                                   the paper's theorem
    attention     a = softmax_k(<f(x), g(x_k)> / sqrt(H)),  d^ = sum_k a_k d_k          f, g adapters of frozen embeddings
    calibration   (u1, u2) = MLP([mean, standard deviation of the d_k]),  l = logit(d^)
                  divide     sigmoid(l / softplus(u1) + tanh(u2))                                        the released code
                  multiply   sigmoid(softplus(u1) l + tanh(u2))                                                  the paper
    learning      BCE to the difficulties that other models met; a mini-batch shares one draw of K references, and each row
                  reads what its own model met on them
    selection     P(q) proportional to exp(-|d^_q - target| / temperature), without replacement

Differs from both: scores are perturbed by Gumbel noise in float64 and the largest taken, which is that draw exactly, where a
softmax in float32 has nothing left beyond 0.1 from the best. How far predictions can be trusted is measured on references
that they were not made from; below `min_correlation`, or where all references are equally hard, selection is uniform until
the next block. The released code works with success rates, the same thing at a target of 1/2, and refits predictions by a
line through the references, on predictions that had read the very values they are compared with: offered
(`refit="in-sample"`), and without that leak (`"cross-fitted"`).

With standardized advantages (`grpo`) the signal of a group is 1 - p^G - (1 - p)^G, flat in the middle: 0.99 at p = 1/2 and
0.66 at 1/8 for G = 8. Then there is less to be gained.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.core.errors import BadInput
from equipoise.core.files import read_regular, sha256_file, write_atomic
from equipoise.core.options import closed
from equipoise.core.serialize import serialize
from equipoise.core.streams import torch_stream
from equipoise.reinforcement.group_baselines import mixed
from equipoise.reinforcement.rates import GroupCounts, RateStore, SamplerStatistics
from equipoise.reinforcement.sppo import check_rewards
from equipoise.training.order import without_replacement

Calibration = Literal["divide", "multiply"]
Refit = Literal["none", "in-sample", "cross-fitted"]

_EDGE = 1e-4  # a difficulty is kept this far from 0 and 1 before its logit
_TEMPERATURES = (1e-2, 10.0)
_FOLDS = 4
LEAST_REFERENCES = 2 * _FOLDS
_AT_ONCE = 4096  # questions of a pass
# Streams of a seed, apart from those of the order (0), the trainer (3), rollouts (4) and measurements (5).
_REFERENCES, _SELECTION, _LEARNING = 6, 7, 8
_WEIGHTS, _SETTINGS = "predictor.safetensors", "predictor.json"
_VERSION = 1


class Predictor(Protocol):
    """What guesses the difficulty of questions from that of a few others."""

    def predict(self, embeddings: Tensor, reference_embeddings: Tensor, reference_difficulty: Tensor) -> Tensor:
        """embeddings [N, E], reference_embeddings [K, E], reference_difficulty [K] -> difficulty [N] in [0, 1]."""
        ...


def attended(queries: Tensor, references: Tensor, difficulty: Tensor) -> Tensor:
    """The references' difficulty, averaged by how much each resembles a query, [B].

    queries: [B, H], references: [K, H], difficulty: [K], or [B, K] where each query has values of its own.
    """
    scores = queries @ references.mT / math.sqrt(queries.shape[-1])
    return (scores.softmax(-1) * difficulty).sum(-1)


@closed
def calibrated(estimate: Tensor, scale: Tensor, shift: Tensor, form: Calibration = "divide") -> Tensor:
    """The logit of an estimated difficulty [B] in [0, 1], stretched by u1 = scale and moved by u2 = shift, [B] each."""
    logit = estimate.clamp(_EDGE, 1 - _EDGE).logit()
    stretch = functional.softplus(scale)
    return (logit / stretch.clamp(*_TEMPERATURES) if form == "divide" else stretch * logit) + shift.tanh()


class EmbeddingPredictor:
    """The baseline: attention over embeddings as they are, without adapter and calibration; nothing is learnt."""

    def predict(self, embeddings: Tensor, reference_embeddings: Tensor, reference_difficulty: Tensor) -> Tensor:
        """The difficulty of questions, [N] in [0, 1]; what it takes and refuses is what `DifficultyPredictor` does."""
        _check(embeddings, reference_embeddings, reference_difficulty, embeddings.shape[-1])
        parts = embeddings.split(_AT_ONCE)
        return torch.cat([attended(part, reference_embeddings, reference_difficulty.to(part)) for part in parts])


class DifficultyPredictor(nn.Module):
    """Attention between adapted embeddings of questions and references, calibrated by how hard the references are.

        predictor = DifficultyPredictor.fit(embeddings, difficulty, reference_embeddings, reference_difficulty, seed=0)
        predictor.predict(embeddings, embeddings[chosen], measured)          [N], of a policy that it never saw

    width: E. hidden: H. It does not change while the policy is trained; the references tell it what has changed.
    """

    @closed
    def __init__(
        self, width: int, *, seed: int, hidden: int = 896, dropout: float = 0.1, calibration: Calibration = "divide"
    ) -> None:
        super().__init__()
        self.settings = {"width": width, "hidden": hidden, "dropout": dropout, "calibration": calibration}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.query_adapter = _adapter(width, hidden, dropout)
            self.reference_adapter = _adapter(width, hidden, dropout)
            self.moments = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 2))
        self.eval()

    def forward(self, embeddings: Tensor, reference_embeddings: Tensor, reference_difficulty: Tensor) -> Tensor:
        """Logits of the difficulty [B] of embeddings [B, E], from those of references [K, E]: [K], or [B, K] by row."""
        estimate = attended(
            self.query_adapter(embeddings), self.reference_adapter(reference_embeddings), reference_difficulty
        )
        spread = torch.stack([reference_difficulty.mean(-1), reference_difficulty.std(-1)], dim=-1)
        scale, shift = self.moments(spread).unbind(-1)
        return calibrated(estimate, scale, shift, self.settings["calibration"])

    @torch.no_grad()
    def predict(self, embeddings: Tensor, reference_embeddings: Tensor, reference_difficulty: Tensor) -> Tensor:
        """The difficulty of questions, [N] in (0, 1).

        embeddings: [N, E], reference_embeddings: [K, E], reference_difficulty: [K] in [0, 1], measured now. Raises BadInput
        for embeddings of another width, for fewer than 2 references and for a difficulty outside.
        """
        _check(embeddings, reference_embeddings, reference_difficulty, self.settings["width"])
        like = next(self.parameters())
        references, difficulty = reference_embeddings.to(like), reference_difficulty.to(like)
        logits = torch.cat([self(part.to(like), references, difficulty) for part in embeddings.split(_AT_ONCE)])
        exact = torch.finfo(logits.dtype)
        return logits.sigmoid().clamp(exact.tiny, 1 - exact.eps / 2)  # rounding would close the interval

    @classmethod
    @closed
    def fit(
        cls,
        embeddings: Tensor,
        difficulty: Tensor,
        reference_embeddings: Tensor,
        reference_difficulty: Tensor,
        *,
        seed: int,
        references: int = 256,
        hidden: int = 896,
        dropout: float = 0.1,
        calibration: Calibration = "divide",
        epochs: int = 20,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
    ) -> DifficultyPredictor:
        """A predictor taught by what M other models met on N questions and on R references, none of them among the N.

        embeddings: [N, E]; difficulty: [M, N] in [0, 1], nan where it was not measured. reference_embeddings: [R, E];
        reference_difficulty: [M, R], complete. references: K of the R, drawn a mini-batch. Adam, with a rate that rises over
        the first tenth (at most 100 steps) and falls linearly. The same arguments give the same predictor.
        Raises BadInput for shapes that do not fit, values outside, no measured difficulty, and K outside 2 to R.
        """
        from equipoise.training.loop import OneLoss, TrainerSettings, fit

        models, count = difficulty.shape[0], reference_embeddings.shape[0]
        known = ~difficulty.isnan()
        if difficulty.shape != (models, len(embeddings)) or reference_difficulty.shape != (models, count):
            raise BadInput(
                f"difficulty is {list(difficulty.shape)} and reference_difficulty {list(reference_difficulty.shape)}: "
                f"expected a row a model, with {len(embeddings)} and {count} columns, as there are embeddings."
            )
        if not known.any():
            raise BadInput("difficulty holds no measured value: there is nothing to learn from.")
        check_rewards(difficulty.where(known, 0), "difficulty")
        _check(embeddings, reference_embeddings, reference_difficulty[0], embeddings.shape[-1])
        check_rewards(reference_difficulty, "reference_difficulty")
        if not 2 <= references <= count:
            raise BadInput(f"references is {references}, expected 2 to {count}, as many as there are to draw from.")
        predictor = cls(embeddings.shape[-1], seed=seed, hidden=hidden, dropout=dropout, calibration=calibration)
        predictor.to(embeddings.device)
        rows = known.nonzero()
        steps = math.ceil(epochs * len(rows) / batch_size)
        order = without_replacement(len(rows), batch_size, seed)

        def draw(step: int) -> list[tuple[int, int]]:
            return [(step, row) for row in order(step)]

        def collate(examples: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
            drawn = np.random.default_rng(np.random.SeedSequence([seed, _LEARNING, examples[0][0]]))
            chosen = torch.from_numpy(drawn.choice(count, references, replace=False))
            model, question = rows[[row for _, row in examples]].unbind(-1)
            return {
                "embeddings": embeddings[question].float(),
                "reference_embeddings": reference_embeddings[chosen].float(),
                "reference_difficulty": reference_difficulty[model][:, chosen].float(),
                "difficulty": difficulty[model, question].float(),
            }

        def loss(module: Any, batch: dict[str, Tensor]) -> tuple[Tensor, float]:
            difficulty = batch.pop("difficulty")
            losses = functional.binary_cross_entropy_with_logits(module(**batch), difficulty, reduction="sum")
            return losses, float(len(difficulty))

        settings = TrainerSettings(
            steps=steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            warmup_ratio=min(100 / steps, 0.1),
            max_grad_norm=None,
            seed=seed,
        )
        fit(predictor, OneLoss(loss), draw, settings, collate=collate, title="Learning to predict difficulty")
        return predictor

    def save(self, folder: str | Path) -> None:
        """A folder: weights as safetensors, and the settings that `load` needs with a digest of the weights as JSON."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: each.detach().cpu() for name, each in self.state_dict().items()}, folder / _WEIGHTS)
        stored = {"difficulty_predictor": _VERSION, **self.settings, "weights": sha256_file(folder / _WEIGHTS)}
        write_atomic(folder / _SETTINGS, json.dumps(stored))

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device = "cpu") -> DifficultyPredictor:
        """What `save` wrote. Raises BadInput for a folder that holds no predictor, and for one that was altered."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            stored = json.loads(read_regular(folder / _SETTINGS))
            if stored.pop("difficulty_predictor") != _VERSION:
                raise ValueError(f"{_SETTINGS} is of another version")
            if stored.pop("weights") != sha256_file(folder / _WEIGHTS):
                raise ValueError(f"{_WEIGHTS} was altered since it was written")
            predictor = cls(**stored, seed=0)
            predictor.load_state_dict(load_file(folder / _WEIGHTS))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            raise BadInput(f"{folder} holds no difficulty predictor ({str(error).splitlines()[0]}).") from error
        return predictor.to(device)


def _adapter(width: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, hidden),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.LayerNorm(hidden),
    )


def _check_embeddings(embeddings: Tensor, width: int, name: str) -> None:
    if embeddings.dim() != 2 or embeddings.shape[-1] != width:
        raise BadInput(f"{name} are {list(embeddings.shape)}, expected a row of {width} numbers a question.")
    wrong = (~embeddings.isfinite()).any(-1).nonzero()
    if len(wrong):
        raise BadInput(f"{name}[{int(wrong[0])}] holds a value that is no finite number.")


def _check(embeddings: Tensor, reference_embeddings: Tensor, reference_difficulty: Tensor, width: int) -> None:
    _check_embeddings(embeddings, width, "embeddings")
    _check_embeddings(reference_embeddings, width, "reference_embeddings")
    count, shape = len(reference_embeddings), reference_difficulty.shape
    if count < 2 or shape != (count,):
        raise BadInput(
            f"there are {count} reference questions with difficulties of shape {list(shape)}: expected at least 2, with "
            "one each."
        )
    check_rewards(reference_difficulty, "reference_difficulty")


def select(
    difficulty: Tensor,
    count: int,
    *,
    target: float = 0.5,
    temperature: float = 1e-3,
    generator: torch.Generator,
) -> Tensor:
    """Draw `count` different questions, each with P proportional to exp(-|d - target| / temperature): ids [count].

    difficulty: [N], predicted or measured; a refitted one may leave [0, 1]. They come in the order of sequential draws, so
    that the first m are a draw of m. temperature: inf draws uniformly, whatever the difficulty. Raises BadInput for a
    temperature that is not above 0, for more questions than there are, and for a difficulty that is no number.
    """
    if not temperature > 0:
        raise BadInput(f"temperature is {temperature}, expected a number above 0; inf draws uniformly.")
    if not 0 <= count <= len(difficulty):
        raise BadInput(f"{count} questions are to be drawn, expected 0 to {len(difficulty)}, as many as there are.")
    wrong = (~difficulty.isfinite()).nonzero()
    if len(wrong):
        raise BadInput(f"difficulty[{int(wrong[0])}] is {difficulty[int(wrong[0])].item()}, expected a finite number.")
    logits = -(difficulty.to(generator.device, torch.float64) - target).abs() / temperature
    gumbel = -torch.empty_like(logits).exponential_(generator=generator).log()
    return (logits + gumbel).topk(count).indices


def pearson(one: Tensor, other: Tensor) -> float:
    """The correlation of two [N]; nan where one of them is constant."""
    both = torch.stack([one.double(), other.double()])
    return float(torch.corrcoef(both)[0, 1]) if mixed(both).all() else math.nan


def refitted(difficulty: Tensor, predicted: Tensor, measured: Tensor) -> Tensor:
    """Predictions [N] on the least-squares line of what was measured [K] on what was predicted [K] there.

    The result may leave [0, 1]. Where all of `predicted` are equal, it is the mean of `measured`.
    """
    centered = predicted - predicted.mean()
    squares = centered.square().sum()
    slope = (centered * measured).sum() / squares if squares > 0 else 0.0
    return measured.mean() + slope * (difficulty - predicted.mean())


def cross_predicted(predictor: Predictor, embeddings: Tensor, difficulty: Tensor) -> Tensor:
    """Each reference's difficulty as the others predict it, fold by fold of four: [K, E] and [K] -> [K] float64.

    Raises BadInput for fewer than 8.
    """
    if len(difficulty) < LEAST_REFERENCES:
        raise BadInput(f"there are {len(difficulty)} reference questions, expected at least {LEAST_REFERENCES}.")
    fold, found = torch.arange(len(difficulty)) % _FOLDS, torch.empty(len(difficulty), dtype=torch.float64)
    for number in range(_FOLDS):
        own = fold == number
        found[own] = predictor.predict(embeddings[own], embeddings[~own], difficulty[~own]).double().cpu()
    return found


@dataclass(frozen=True, eq=False)
class DifficultyEstimate:
    """difficulty: [N] float64, as it ranks questions. correlation: of predictions and measurements on references that the
    predictions were not made from; nan where all are equal.
    """

    difficulty: Tensor
    correlation: float

    @property
    def probabilities(self) -> Tensor:
        """The difficulty as a share of failures: a refitted line may leave [0, 1]."""
        return self.difficulty.clamp(0, 1)


@closed
def estimate(
    predictor: Predictor, embeddings: Tensor, ids: Tensor, measured: Tensor, *, refit: Refit = "none"
) -> DifficultyEstimate:
    """The difficulty of all questions from those of the references.

    embeddings: [N, E]; ids: [K], the references' places among them; measured: [K], their difficulty. refit: a line through
    the references, of what was measured on what is predicted there: `in-sample` with themselves among what they are
    predicted from, which flatters the line, or `cross-fitted`. Raises BadInput for fewer than 8 references.
    """
    chosen, measured = embeddings[ids], measured.double()
    difficulty = predictor.predict(embeddings, chosen, measured).double().cpu()
    crossed = cross_predicted(predictor, chosen, measured)
    if refit != "none":
        difficulty = refitted(difficulty, crossed if refit == "cross-fitted" else difficulty[ids], measured)
    return DifficultyEstimate(difficulty, pearson(crossed, measured))


class DifficultySampler:
    """Which questions to train on next, for any trainer.

        sampler = DifficultySampler(embeddings, predictor, seed=0)
        for step in range(steps):
            ids = sampler.references()                                           mostly none
            if len(ids):
                sampler.observe(ids, rewards_of(ids), reference=True)
            ids = sampler.next(64)
            sampler.observe(ids, train_on(ids))                                  rewards [64, G]

    A block is as many calls of `next` as `block` says (mu): before it the references are measured, and its questions drawn
    at once and shuffled. questions: embeddings [N, E], or texts with `embed`, which gives such. predictor: a
    `DifficultyPredictor`, or anything that predicts; None is the oracle: every question is a reference in every block, and
    ranked by what was measured of it. references: K. refit: see `estimate`. min_correlation: below it, and
    where it is nan, a block is drawn uniformly; not given: 2 / sqrt(K), two standard errors above chance. temperature: inf
    draws uniformly for good and needs no references: the order that the trainer has by its own seed. prediction_worth: a
    prediction counts as this many rollouts beside those that training has made of a question, which count half after
    `half_life` steps; inf, as published, ranks by predictions alone. reward_range: of the worst and best reward. Whatever is
    drawn follows from the seed and the number of the block.

    steps, blocks: a row of what was observed each step, and of each block's correlation, as JSON values. ranked: [N], the
    difficulty by which the present block was drawn.
    """

    @closed
    def __init__(
        self,
        questions: Tensor | Sequence[str],
        predictor: Predictor | None,
        *,
        seed: int,
        references: int = 256,
        block: int = 2,
        target: float = 0.5,
        temperature: float = 1e-3,
        refit: Refit = "none",
        min_correlation: float | None = None,
        prediction_worth: float = math.inf,
        half_life: float = 10.0,
        reward_range: tuple[float, float] = (0.0, 1.0),
        embed: Callable[[Sequence[str]], Tensor] | None = None,
    ) -> None:
        if isinstance(questions, Tensor):
            embeddings = questions
        elif embed is not None:
            embeddings = embed(questions)
        else:
            raise BadInput("questions are texts: give embed=, which makes embeddings of them, or the embeddings.")
        _check_embeddings(embeddings, embeddings.shape[-1], "questions")
        self.embeddings, self.predictor = embeddings.detach().float(), predictor
        count, (low, high) = len(questions), reward_range
        references = count if predictor is None else references
        for name, value, right, expected in (
            (
                "references",
                references,
                predictor is None or LEAST_REFERENCES <= references <= count,
                f"{LEAST_REFERENCES} to {count}, the questions that there are",
            ),
            ("block", block, block >= 1, "at least 1 call of next"),
            ("temperature", temperature, temperature > 0, "a number above 0"),
            ("prediction_worth", prediction_worth, prediction_worth > 0, "a number of rollouts above 0"),
            ("reward_range", reward_range, low < high, "the lowest and the highest reward"),
        ):
            if not right:
                raise BadInput(f"{name} is {value}, expected {expected}.")
        self.seed, self.block, self.target, self.temperature = seed, block, target, temperature
        self.refit: Refit = refit
        self.prediction_worth, self.reward_range = prediction_worth, reward_range
        self.min_correlation = 2 / math.sqrt(references) if min_correlation is None else min_correlation
        self.rates = RateStore(count, half_life=half_life)
        self._trained = self._referred = GroupCounts()
        self.steps: list[dict[str, Any]] = []
        self.blocks: list[dict[str, Any]] = []
        self.ranked: Tensor | None = None
        self._order = without_replacement(count, 1, seed)
        self._step = self._drawn = 0  # calls of next, and questions of the uniform order
        self._queue: list[int] = []
        self._measured = torch.full((references,), math.nan, dtype=torch.float64)
        self._settings = serialize(  # what must be the same for the same draws
            {
                "questions": hashlib.sha256(self.embeddings.cpu().numpy().tobytes()).hexdigest(),
                "seed": seed,
                "references": references,
                "block": block,
                "target": target,
                "temperature": temperature,
                "refit": refit,
                "min_correlation": self.min_correlation,
                "prediction_worth": prediction_worth,
                "half_life": half_life,
                "reward_range": reward_range,
            }
        )

    def references(self) -> Tensor:
        """Questions to be rolled out and observed, each as a reference, before `next` is called; mostly none."""
        if self._queue or self.temperature == math.inf:
            return torch.empty(0, dtype=torch.long)
        return self._reference_ids()[self._measured.isnan()]

    def next(self, count: int) -> Tensor:
        """The ids of the `count` questions of the next step.

        Raises BadInput while references are to be measured, for a number that the rest of a block does not have, and when a
        block would be larger than the pool.
        """
        if count < 1:
            raise BadInput(f"count is {count}, expected at least 1.")
        if self.temperature == math.inf:
            ids = self._uniform(count)
        else:
            if not self._queue:
                self._begin_block(self.block * count)
            if count > len(self._queue):
                raise BadInput(
                    f"{count} questions are asked for and the block has {len(self._queue)} left: a step may change its "
                    "size at the beginning of a block."
                )
            ids, self._queue = self._queue[:count], self._queue[count:]
        self._step += 1
        return torch.tensor(ids)

    def observe(self, ids: Tensor | Sequence[int], rewards: Tensor, *, reference: bool = False) -> None:
        """Take in what was measured: rewards [n, G] of responses to questions [n], for training or as references.

        Raises BadInput for rewards outside `reward_range`, naming the question, for an unknown id, and for a reference that
        was not asked for.
        """
        rewards, (low, high) = rewards.detach().cpu().double(), self.reward_range
        if rewards.dim() != 2 or len(rewards) != len(ids) or not rewards.shape[1]:
            raise BadInput(f"rewards are {list(rewards.shape)}, expected a row for each of {len(ids)} questions.")
        wrong = (~((rewards >= low) & (rewards <= high))).any(-1).nonzero()
        if len(wrong):
            question = int(ids[int(wrong[0])])
            raise BadInput(f"question {question} has a reward outside {low:g} to {high:g}: say it with reward_range.")
        self._note(ids, (high - rewards.mean(-1)) / (high - low), mixed(rewards), rewards.shape[1], reference)

    def observe_rates(
        self, ids: Tensor | Sequence[int], rates: Tensor, rollouts: int, *, reference: bool = False
    ) -> None:
        """The same from success rates [n] of `rollouts` responses each, whose rewards are 0 and 1."""
        check_rewards(rates, "rates")
        rates = rates.detach().cpu().double()
        if rates.shape != (len(ids),) or rollouts < 1:
            raise BadInput(f"there are {len(rates)} rates of {rollouts} rollouts for {len(ids)} questions.")
        self._note(ids, 1 - rates, (rates > 0) & (rates < 1), rollouts, reference)

    def know(self, ids: Tensor | Sequence[int], difficulty: Tensor) -> None:
        """Take in the difficulty [n] of references [n] that took no rollouts: of a policy whose chances can be computed."""
        check_rewards(difficulty, "difficulty")
        if difficulty.shape != (len(ids),):
            raise BadInput(
                f"difficulty is {list(difficulty.shape)}, expected a number for each of {len(ids)} references."
            )
        self._refer(torch.as_tensor(ids, dtype=torch.long).cpu(), difficulty.detach().cpu().double())

    def statistics(self) -> SamplerStatistics:
        """What the selection brought until now."""
        known = ((each["step"], each["correlation"]) for each in self.blocks)
        return SamplerStatistics(
            trained=self._trained,
            references=self._referred,
            blocks=len(self.blocks),
            uniform_blocks=sum(each["uniform"] for each in self.blocks),
            correlations=tuple((step, math.nan if value is None else value) for step, value in known),
        )

    def state_dict(self) -> dict[str, Any]:
        """JSON values and tensors (copies) with which a new sampler goes on to the same draws."""
        return {
            "settings": dict(self._settings),
            "step": self._step,
            "drawn": self._drawn,
            "queue": list(self._queue),
            "measured": self._measured.clone(),
            "ranked": None if self.ranked is None else self.ranked.clone(),
            "rates": [self.rates.step, self.rates.total.clone(), self.rates.rollouts.clone()],
            "trained": asdict(self._trained),
            "referred": asdict(self._referred),
            "steps": copy.deepcopy(self.steps),
            "blocks": copy.deepcopy(self.blocks),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the sampler that returned the state. Raises BadInput for one of other questions or settings."""
        for name, now in self._settings.items():
            stored = state["settings"].get(name)
            if stored != now:
                raise BadInput(f"the stored sampler has {name}={stored}, this one {now}: start it anew.")
        state = copy.deepcopy(dict(state))
        self._step, self._drawn, self._queue = state["step"], state["drawn"], state["queue"]
        self._measured, self.ranked = state["measured"], state["ranked"]
        self.rates.step, self.rates.total, self.rates.rollouts = state["rates"]
        self._trained, self._referred = GroupCounts(**state["trained"]), GroupCounts(**state["referred"])
        self.steps, self.blocks = state["steps"], state["blocks"]

    def _begin_block(self, count: int) -> None:
        missing = len(self.references())
        if missing:
            raise BadInput(
                f"{missing} references are to be measured first: roll out sampler.references() and give their rewards to "
                "sampler.observe(..., reference=True)."
            )
        if count > len(self.embeddings):
            raise BadInput(
                f"a block of {count} questions is drawn from {len(self.embeddings)}: make block or the step smaller."
            )
        if self.predictor is None:
            found, uniform = DifficultyEstimate(self._measured, math.nan), False
        else:
            found = estimate(self.predictor, self.embeddings, self._reference_ids(), self._measured, refit=self.refit)
            uniform = not found.correlation >= self.min_correlation  # nan among what is not trusted
        self.ranked = self.rates.blended(found.difficulty, self._step, self.prediction_worth)
        if uniform:
            self._queue = self._uniform(count)
        else:
            generator = self._generator(_SELECTION)
            drawn = select(self.ranked, count, target=self.target, temperature=self.temperature, generator=generator)
            self._queue = drawn[torch.randperm(count, generator=generator)].tolist()
        known = None if math.isnan(found.correlation) else found.correlation
        self.blocks.append({"step": self._step, "correlation": known, "uniform": uniform})
        self._measured = torch.full_like(self._measured, math.nan)

    def _note(
        self, ids: Tensor | Sequence[int], difficulty: Tensor, effective: Tensor, rollouts: int, reference: bool
    ) -> None:
        ids = torch.as_tensor(ids, dtype=torch.long).cpu()
        if not len(ids):
            return
        if not 0 <= int(ids.min()) <= int(ids.max()) < len(self.embeddings):
            raise BadInput(f"questions have the ids 0 to {len(self.embeddings) - 1}, and {ids.tolist()} were observed.")
        counts = GroupCounts(len(ids), int(effective.sum()), len(ids) * rollouts)
        if reference:
            self._refer(ids, difficulty)
            self._referred += counts
        else:
            self._trained += counts
            means = {"difficulty": difficulty.mean(), "distance": (difficulty - self.target).abs().mean()}
            self.steps.append({"step": self._step, **asdict(counts), **{k: float(v) for k, v in means.items()}})
        self.rates.add(ids, difficulty, rollouts, self._step)

    def _refer(self, ids: Tensor, difficulty: Tensor) -> None:
        awaited = self.references()
        unasked = set(ids.tolist()) - set(awaited.tolist())
        if unasked or len(set(ids.tolist())) < len(ids):
            raise BadInput(f"of {ids.tolist()} some were observed as references and not asked for, or twice.")
        places = {question: place for place, question in enumerate(self._reference_ids().tolist())}
        self._measured[[places[question] for question in ids.tolist()]] = difficulty

    def _reference_ids(self) -> Tensor:
        """The references of the block that comes: of all questions, uniformly; all of them, where nothing is predicted."""
        if self.predictor is None:
            return torch.arange(len(self.embeddings))
        order = torch.randperm(len(self.embeddings), generator=self._generator(_REFERENCES))
        return order[: len(self._measured)]

    def _uniform(self, count: int) -> list[int]:
        """The next questions of the order that a trainer without a sampler has."""
        first, self._drawn = self._drawn, self._drawn + count
        return [self._order(place)[0] for place in range(first, self._drawn)]

    def _generator(self, stream: int) -> torch.Generator:
        return torch_stream(self.seed, stream, len(self.blocks))
