"""Losses that forget and losses that retain: first on log-probabilities, then on batches of a causal model.

B rows, T places, n labelled tokens of a batch, V vocabulary, D width. log p is natural. S_i is the summed negative
log-likelihood of sequence i over its n_i labelled tokens, S_i,ref that of the frozen starting model.

    GA          - mean over tokens of -log p                     (unbounded below)
    NPO         -(2 / beta) mean_i log sigmoid(beta (S_i - S_i,ref))               arXiv:2404.05868, eq. 3
    IHL         mean over tokens of 1 + p_y - max over v != y of p_v, in [0, 2]    arXiv:2408.06621 (LoKU)
    SimNPO      -(2 / beta) mean_i log sigmoid(beta S_i / n_i - gamma)             arXiv:2410.07163, eq. 4
    RMU         mean over tokens and dimensions of (h - u)^2, u = c v / ||v||, v ~ Uniform[0, 1)^D     arXiv:2403.03218
    GD retain   mean over tokens of -log p
    KL retain   mean over tokens of KL(p_ref || p); padding is masked (the authors of SAGO average over it as well)
    RMU retain  mean over tokens and dimensions of (h - h_ref)^2

Released code, SimNPO's own and open-unlearning's, takes its margin off before the factor: beta (S_i / n_i - delta), in nats
per token. That is gamma = beta delta; at the default of 0 they agree.

A loss over batches returns (sum, weight): sequences weigh 1 in NPO and SimNPO, labelled tokens in GA, GD and IHL, tokens
that are no padding in KL and RMU. A batch has input_ids, attention_mask and labels, [B, T], labels aligned with it and -100
where nothing is scored; for NPO also `reference` [B], the frozen model's summed log-likelihoods, looked up instead of
computed with a second model. Where a batch has `weight` [B], each row's part of the sum is multiplied by its own, and the
divisor stays what it was: in a forget set whose weights have mean 1 a record counts as if it were w_i records.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.core.errors import BadInput
from equipoise.language.encode import IGNORE
from equipoise.language.score import head_reads, labelled_logits
from equipoise.language.states import blocks, editing, module_at
from equipoise.training.loop import LossFunction
from equipoise.training.reference import ReferenceModel
from equipoise.training.two_gradients import BothLosses
from equipoise.unlearning.recipe import METHODS, OBJECTIVES, Recipe

if TYPE_CHECKING:
    from equipoise.unlearning.mcu import Representations

Batch = Mapping[str, Tensor]
ONE_PASS = 1024  # tokens; beyond, a step is its matrix products, and two passes hold half of the activations


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What pushes the forget set away, as a recipe names it.

    loss: of the forget set, from the recipe, the starting model and what that represents of the forget set. places: where it
    looks at representations; what it knows of them is None where the recipe projects nothing, unless it `measures` them.
    retain: of the retain set, where it is not the recipe's own; likewise parameters, what it trains. settings: of the
    recipe's, those that only some objectives have. beta,
    retain_weight: what they are when not given. reference: it needs the starting model's log-likelihoods. refusals: it
    needs a refusal beside each forget example. distills: it compares with the starting model's logits at every step.
    """

    loss: "Callable[[Recipe, nn.Module, Representations | None], LossFunction]"
    retain: Callable[[Recipe, nn.Module], LossFunction] | None = None
    parameters: Callable[[nn.Module], list[nn.Parameter]] | None = None
    settings: tuple[str, ...] = ()
    beta: float = math.nan
    retain_weight: float = 1.0
    reference: bool = False
    refusals: bool = False
    distills: bool = False
    places: Callable[[Recipe, nn.Module], list[str]] | None = None
    measures: bool = False


def npo(log_likelihood: Tensor, reference: Tensor, beta: float) -> Tensor:
    """NPO of each sequence, [B]. Its gradient is w times that of log p, w = 2 sigmoid(-beta (S - S_ref)): 1 at the start."""
    return -2 / beta * F.logsigmoid(beta * (reference - log_likelihood))


def simnpo(log_likelihood: Tensor, tokens: Tensor, beta: float, gamma: float = 0.0) -> Tensor:
    """SimNPO of each sequence, [B]: without reference, normalised by length; gamma is the margin of the paper's reward."""
    return -2 / beta * F.logsigmoid(-beta * log_likelihood / tokens - gamma)


def ihl(logits: Tensor, labels: Tensor) -> Tensor:
    """The inverted hinge of each token, [n, V] and [n] -> [n]: 1 + p_y - the largest other probability.

    From 0 (another token is certain) over 1 (some other is as likely) to 2 (y is certain); bounded, unlike GA.
    """
    probabilities = wide(logits).softmax(-1)
    own = labels.unsqueeze(-1)
    rival = probabilities.scatter(-1, own, -1.0).amax(-1)
    return 1 + probabilities.gather(-1, own).squeeze(-1) - rival


def kl(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(p_ref || p) of each row of logits, [n, V] -> [n], in nats."""
    reference, current = wide(reference_logits).log_softmax(-1), wide(logits).log_softmax(-1)
    return F.kl_div(current, reference, reduction="none", log_target=True).sum(-1)


def distance(states: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference over the dimensions, [..., D] -> [...]: RMU's loss of each token."""
    return (wide(states) - wide(target)).square().mean(-1)


def steering_vector(width: int, length: float, generator: torch.Generator) -> Tensor:
    """RMU's u = length * v / ||v|| with v ~ Uniform[0, 1)^width, drawn once a run."""
    vector = torch.rand(width, generator=generator)
    return length * vector / vector.norm()


@dataclass(frozen=True)
class LabelledLoss:
    """A loss of the logits at the labelled tokens alone; called with a model and a batch, as any loss.

    of: (logits [n, V], labels [n], rows [n] in [0, B), batch) -> (sum, weight).
    """

    of: Callable[[Tensor, Tensor, Tensor, Batch], tuple[Tensor, Tensor | float]]

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | float]:
        return self.of(*labelled_logits(model, batch), batch)


def in_one_pass(forget: LossFunction, retain: LossFunction) -> BothLosses | None:
    """Both losses from one pass over both batches, for small ones; None where a loss needs more than labelled tokens."""
    if not (isinstance(forget, LabelledLoss) and isinstance(retain, LabelledLoss)):
        return None

    def both(model: nn.Module, first: Batch, second: Batch) -> Any:
        (rows, length), (others, longer) = first["input_ids"].shape, second["input_ids"].shape
        tokens = (rows + others) * max(length, longer)
        if tokens > min(ONE_PASS, 1.25 * (rows * length + others * longer)):
            return None
        logits, labels, owners = labelled_logits(model, _stacked(first, second))
        count = int((owners < rows).sum())
        return (
            forget.of(logits[:count], labels[:count], owners[:count], first),
            retain.of(logits[count:], labels[count:], owners[count:] - rows, second),
        )

    return both


def _stacked(first: Batch, second: Batch) -> dict[str, Tensor]:
    """The rows of both, padded on the right."""
    length = max(first["labels"].shape[1], second["labels"].shape[1])
    return {
        name: torch.cat(
            [F.pad(batch[name], (0, length - batch[name].shape[1]), value=fill) for batch in (first, second)]
        )
        for name, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", IGNORE))
    }


def sequence_log_likelihoods(logits: Tensor, labels: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed log-likelihood [B] (with graph) and number of labelled tokens [B] of each row, of its labelled logits."""
    tokens = -F.cross_entropy(wide(logits), labels, reduction="none")
    # Filled in row by row and summed along the rows: adding at indices is not deterministic on a GPU.
    labelled = batch["labels"][:, 1:] != IGNORE
    return tokens.new_zeros(labelled.shape).masked_scatter(labelled, tokens).sum(-1), labelled.sum(-1)


def weighed(values: Tensor, batch: Batch, rows: Tensor | slice = slice(None)) -> Tensor:
    """Values of the batch's rows [B, ...], or of these rows [n], times the rows' weights; as they are where it has none."""
    if "weight" not in batch:
        return values
    weights = batch["weight"].to(values)[rows]
    return values * weights.view(-1, *[1] * (values.ndim - 1))


def gd_loss() -> LossFunction:
    """Cross-entropy on the labelled tokens: what retains, and what teaches."""

    return LabelledLoss(_cross_entropy)


def ga_loss() -> LossFunction:
    """Gradient ascent: the negative of `gd_loss`."""

    def loss(logits: Tensor, labels: Tensor, rows: Tensor, batch: Batch) -> tuple[Tensor, float]:
        total, weight = _cross_entropy(logits, labels, rows, batch)
        return -total, weight

    return LabelledLoss(loss)


def _cross_entropy(logits: Tensor, labels: Tensor, rows: Tensor, batch: Batch) -> tuple[Tensor, float]:
    if "weight" in batch:
        tokens = F.cross_entropy(wide(logits), labels, reduction="none")
        return weighed(tokens, batch, rows).sum(), len(labels)
    return F.cross_entropy(wide(logits), labels, reduction="sum"), len(labels)


def ihl_loss() -> LossFunction:
    """IHL on the labelled tokens."""

    def loss(logits: Tensor, labels: Tensor, rows: Tensor, batch: Batch) -> tuple[Tensor, float]:
        return weighed(ihl(logits, labels), batch, rows).sum(), len(labels)

    return LabelledLoss(loss)


def npo_loss(beta: float) -> LossFunction:
    """NPO; every row of the batch needs its `reference`. Rows without a labelled token do not count."""

    def loss(logits: Tensor, labels: Tensor, rows: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        if "reference" not in batch:
            raise BadInput(
                "NPO needs batch['reference']: the starting model's summed log-likelihoods of the rows. Compute them "
                "once, before the training, with language.score.log_likelihoods."
            )
        sums, counts = sequence_log_likelihoods(logits, labels, batch)
        scored = counts > 0
        return weighed(npo(sums, batch["reference"].to(sums), beta) * scored, batch).sum(), scored.sum()

    return LabelledLoss(loss)


def simnpo_loss(beta: float, gamma: float = 0.0) -> LossFunction:
    """SimNPO. Rows without a labelled token do not count."""

    def loss(logits: Tensor, labels: Tensor, rows: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        sums, counts = sequence_log_likelihoods(logits, labels, batch)
        scored = counts > 0
        return weighed(simnpo(sums, counts.clamp(min=1), beta, gamma) * scored, batch).sum(), scored.sum()

    return LabelledLoss(loss)


def kl_loss(frozen: nn.Module | ReferenceModel) -> LossFunction:
    """KL to the frozen model at every token that is no padding."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        with torch.no_grad():
            reference = _real_logits(frozen, batch)
        logits = _real_logits(model, batch)
        return kl(reference, logits).sum(), len(logits)

    return loss


def _real_logits(model: Any, batch: Batch) -> Tensor:
    """[n, V], at every token that is no padding."""
    with head_reads(model, batch["attention_mask"].bool()):
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return output.logits.squeeze(0)


def rmu_loss(block: int, steering: Tensor, seen: "Representations | None" = None) -> LossFunction:
    """RMU's forget loss at the output of a block (counted from 0): towards the steering vector [D].

    seen: what is projected out of the states, not out of the steering vector; then without each text's first token.
    """

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        states, mask = block_states(model, block, batch), batch["attention_mask"]
        if seen is not None:
            states, mask = seen.project(f"block.{block}", wide(states)), counted(batch)
        return weighed(distance(states, steering.to(states)) * mask, batch).sum(), mask.sum()

    return loss


def rmu_retain_loss(block: int, frozen: nn.Module | ReferenceModel) -> LossFunction:
    """RMU's retain loss: towards the states of the frozen model at the same block."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            reference = block_states(frozen, block, batch)
        states, mask = block_states(model, block, batch), batch["attention_mask"]
        return (distance(states, reference) * mask).sum(), mask.sum()

    return loss


def rmu_block(model: nn.Module) -> int:
    """Block 7 of 32 as in arXiv:2403.03218, at the same relative depth in another model; at least 1."""
    return max(round(7 / 32 * len(blocks(model))), 1)


def rmu_steering(recipe: Recipe, model: nn.Module) -> Tensor:
    """The steering vector of a recipe's seed, as wide as the model."""
    width = model.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]
    generator = torch.Generator().manual_seed(recipe.seed)
    return steering_vector(width, recipe.steering, generator).to(next(model.parameters()).device)


def rmu_parameters(model: nn.Module, block: int) -> list[nn.Parameter]:
    """What RMU trains: the down-projections of the feed-forward parts of `block` and of the two blocks before it."""
    down = [module_at(model, f"block.{index}.mlp.down") for index in range(max(block - 2, 0), block + 1)]
    return [module.get_parameter("weight") for module in down]


def counted(batch: Batch) -> Tensor:
    """[B, T] bool: tokens that are neither padding nor their text's first, whose state dwarfs all others in most models."""
    mask = batch["attention_mask"].bool()
    return mask & (mask.cumsum(-1) > 1)


class _Reached(Exception):
    """All that is wanted has been computed; what comes after it is of no use."""


def states_at(model: nn.Module | ReferenceModel, places: Sequence[str], batch: Batch) -> dict[str, Tensor]:
    """Hidden states [B, T, D] at places of `language.states`; what comes after the last of them is not computed."""
    found: dict[str, Tensor] = {}

    def keep(place: str) -> Callable[[Tensor], Tensor]:
        def read(states: Tensor) -> Tensor:
            found[place] = states
            if len(found) == len(places):
                raise _Reached
            return states

        return read

    with suppress(_Reached), editing(model, {place: keep(place) for place in places}):
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return found


def block_states(model: nn.Module | ReferenceModel, block: int, batch: Batch) -> Tensor:
    """Hidden states [B, T, D] after a block (counted from 0); the blocks above it are not computed."""
    return states_at(model, [f"block.{block}"], batch)[f"block.{block}"]


def wide(tensor: Tensor) -> Tensor:
    """In float64 where it is that already, else in float32: what losses are computed in."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


OBJECTIVES.register("ga", Objective(loss=lambda recipe, model, seen: ga_loss()))
OBJECTIVES.register("ihl", Objective(loss=lambda recipe, model, seen: ihl_loss()))
OBJECTIVES.register(
    "npo",
    Objective(
        loss=lambda recipe, model, seen: npo_loss(recipe.resolved_beta),
        settings=("beta",),
        beta=0.1,
        retain_weight=0.1,
        reference=True,
    ),
)
OBJECTIVES.register(
    "simnpo",
    Objective(
        loss=lambda recipe, model, seen: simnpo_loss(recipe.resolved_beta, recipe.gamma),
        settings=("beta", "gamma"),
        beta=2.5,
        retain_weight=0.1,
    ),
)
OBJECTIVES.register(
    "rmu",
    Objective(
        loss=lambda recipe, model, seen: rmu_loss(rmu_block(model), rmu_steering(recipe, model), seen),
        retain=lambda recipe, model: rmu_retain_loss(rmu_block(model), ReferenceModel(model)),
        parameters=lambda model: rmu_parameters(model, rmu_block(model)),
        settings=("steering",),
        places=lambda recipe, model: [f"block.{rmu_block(model)}"],
    ),
)
METHODS.register("graddiff", {"objective": "ga", "combine": "sum"})
METHODS.register("ihl", {"objective": "ihl", "combine": "sum"})
METHODS.register("npo", {"objective": "npo", "combine": "sum"})
METHODS.register("simnpo", {"objective": "simnpo", "combine": "sum"})
METHODS.register("rmu", {"objective": "rmu", "combine": "sum"})
