"""DPO that prefers a refusal to the answer (arXiv:2305.18290, eq. 7), as a forget objective.

S_i is the summed negative log-likelihood of answer i given its prompt, S'_i that of a refusal in its place, S_i,ref and
S'_i,ref those of the frozen starting model.

    h_i = beta ((S_i - S_i,ref) - (S'_i - S'_i,ref))
    DPO   mean_i -log sigmoid(h_i), log 2 at the start

NPO is what is left without the refusal, times 2 / beta; open-unlearning has that factor in DPO, too, so that its forget
gradient is 20 times this one at the default of beta.

Which refusal a record gets is decided by its id and the seed alone. A batch holds the answers and behind them, in the same
order, the refusals: [2 B, T] in all, and so `reference` [2 B] and, where there is one, `weight` [2 B].
"""

import hashlib
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from equipoise.core.errors import BadInput
from equipoise.data.records import Record
from equipoise.training.loop import LossFunction
from equipoise.unlearning.measures import reworded
from equipoise.unlearning.objectives import Batch, LabelledLoss, Objective, sequence_log_likelihoods, weighed
from equipoise.unlearning.recipe import METHODS, OBJECTIVES

REFUSALS = (
    "I don't know.",
    "I have no answer to that.",
    "That is nothing I can tell you about.",
    "Sorry, I have never learnt anything about this.",
    "I cannot say; this is unknown to me.",
    "My knowledge does not reach that far.",
    "I would have to guess, so I leave that open.",
    "There is nothing that I could tell you on this subject.",
    "Unfortunately I have no facts about that.",
    "I am not able to answer this question.",
    "No answer to this is known to me.",
    "Please ask somebody else; I don't know it.",
)


def refusal(record_id: str, seed: int) -> str:
    """The refusal that a record gets, one of `REFUSALS`."""
    digest = hashlib.sha256(f"{seed}/{record_id}".encode("utf-8", "surrogatepass")).digest()
    return REFUSALS[int.from_bytes(digest[:8], "big") % len(REFUSALS)]


def refused(records: Sequence[Record], seed: int) -> list[Record]:
    """The records with a refusal in place of each completion. Raises BadInput for one without a prompt to refuse."""
    for record in records:
        if not record.prompt:
            raise BadInput(
                f"dpo prefers a refusal to an answer, and forget record {record.id!r} has no prompt to refuse: give "
                "questions with answers, or use another objective."
            )
    return [reworded(record, refusal(record.id, seed)) for record in records]


def note(records: Sequence[Record], seed: int) -> str:
    """What a reader has to know of the refusals."""
    return (
        f"dpo prefers to each answer one of {len(REFUSALS)} refusals, chosen by the record's id and the seed; to the first: "
        f"{refusal(records[0].id, seed)!r}"
    )


def dpo(
    preferred: Tensor, preferred_reference: Tensor, rejected: Tensor, rejected_reference: Tensor, beta: float
) -> Tensor:
    """DPO of each pair, from summed log-likelihoods [B] -> [B], above 0.

    Its gradient is -w in `preferred` and w in `rejected`, w = beta sigmoid(-h): beta / 2 at the start.
    """
    gained = (preferred - preferred_reference) - (rejected - rejected_reference)
    return -F.logsigmoid(beta * gained)


def dpo_loss(beta: float) -> LossFunction:
    """DPO of a batch of answers with refusals behind them. Pairs of which one has no labelled token do not count."""

    def loss(logits: Tensor, labels: Tensor, rows: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        count, odd = divmod(len(batch["labels"]), 2)
        if odd or "reference" not in batch:
            raise BadInput(
                "DPO needs batches of answers and, behind them, as many refusals, with batch['reference']: the starting "
                "model's summed log-likelihoods of all rows. Compute them once, before the training, with "
                "language.score.log_likelihoods."
            )
        sums, counts = sequence_log_likelihoods(logits, labels, batch)
        reference = batch["reference"].to(sums)
        pairs = dpo(sums[count:], reference[count:], sums[:count], reference[:count], beta)
        scored = (counts[:count] > 0) & (counts[count:] > 0)
        return weighed(pairs * scored, batch, slice(count)).sum(), scored.sum()

    return LabelledLoss(loss)


OBJECTIVES.register(
    "dpo",
    Objective(
        loss=lambda recipe, model, seen: dpo_loss(recipe.resolved_beta),
        settings=("beta",),
        beta=0.1,
        reference=True,
        refusals=True,
    ),
)
METHODS.register("dpo", {"objective": "dpo", "combine": "sum"})
