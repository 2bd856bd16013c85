"""Measurements as open-unlearning's evaluation writes them: TOFU_EVAL.json with every item, TOFU_SUMMARY.json with means.

Its own tools read them: the TOFU_EVAL.json of a model trained without the forget set is its `retain_logs_path`, for
forget_quality and privleak. A log is {metric: {"agg_value": mean, "value_by_index": {"0": {...}}}}, items by their place in
the set. Three habits of that code are kept here, so that values compare to the last digits: the geometric mean in every
truth ratio, 1e-10 added to denominators, and an extraction strength of at least 1 / n. Its ROUGE stems words with nltk's
Porter stemmer: without `stem` those entries differ. Its Min-K% leaves the end token out, which ours scores.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.files import write_atomic
from equipoise.core.options import closed
from equipoise.core.serialize import serialize
from equipoise.data.answers import rouge_l_recall, rouge_tokens
from equipoise.unlearning.measures import Attack, Membership, forget_quality
from equipoise.unlearning.muse import rouge_l_f1
from equipoise.unlearning.tofu import Scored, model_utility

if TYPE_CHECKING:
    from equipoise.unlearning.extraction import Memorized

Log = Mapping[str, Any]
Stem = Callable[[str], str] | None
EPSILON = 1e-10
FILES = ("TOFU_EVAL.json", "TOFU_SUMMARY.json")
SETS = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
ATTACKS: Mapping[Attack, str] = {
    "loss": "mia_loss",
    "min-k": "mia_min_k",
    "min-k++": "mia_min_k_plus_plus",
    "zlib": "mia_zlib",
}
UTILITY = (
    *("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"),
    *("ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
    *("wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
)


@closed
def evaluation(
    sets: Mapping[str, Scored],
    *,
    memorized: Memorized | None = None,
    membership: Mapping[Attack, Membership] | None = None,
    reference: Log | None = None,
    stem: Stem = None,
) -> dict[str, dict[str, Any]]:
    """Everything that can be said of one model, as open-unlearning's evaluation would log it.

    sets: by "forget", "retain", "real_authors", "world_facts", as many as there are; model_utility needs the last three.
    memorized: of the forget set. membership: of the forget set against a hold-out. reference: the log of a model trained
    without the forget set, read from its TOFU_EVAL.json; without it there is no forget_quality, and privleak's reference is
    0.5. stem: of ROUGE's words.
    Raises BadInput for a set of another name, and for a reference without what is compared.
    """
    log: dict[str, dict[str, Any]] = {}
    for name, scored in sets.items():
        if name not in SETS:
            raise BadInput(f"open-unlearning's TOFU log has no set {name!r}: {', '.join(SETS)}.")
        log |= _of_set(SETS[name], scored, stem)
    if all(metric in log for metric in UTILITY):
        log["model_utility"] = {"agg_value": model_utility({name: log[name]["agg_value"] for name in UTILITY})}
    if memorized is not None:
        log["exact_memorization"] = _scores(memorized.exact)
        log["extraction_strength"] = _scores(torch.maximum(memorized.strength, 1 / memorized.tokens))
    for attack, found in (membership or {}).items():
        sides = {"forget": _scores(-found.members), "holdout": _scores(-found.others)}  # losses: a member's is lower
        log[ATTACKS[attack]] = {**sides, "auc": found.auroc, "agg_value": found.auroc}
    if "mia_min_k" in log:
        trained_without = 0.5 if reference is None else _metric(reference, "mia_min_k")["agg_value"]
        gap = trained_without - log["mia_min_k"]["agg_value"]
        log["privleak"] = {"agg_value": 100 * gap / (1 - trained_without + EPSILON)}
    if reference is not None and "forget_truth_ratio" in log:
        ratios = [_ratios(_metric(each, "forget_truth_ratio")) for each in (log, reference)]
        log["forget_quality"] = {"agg_value": forget_quality(*ratios).p_value}
    return log


def write(folder: Path, log: Log) -> None:
    """Both files, with metrics in alphabetical order as that code has them."""
    summary = {name: each["agg_value"] for name, each in log.items()}
    for name, content in zip(FILES, (log, summary), strict=True):
        write_atomic(folder / name, json.dumps(dict(sorted(serialize(content).items())), indent=4))


def read(path: str | Path) -> dict[str, Any]:
    """A TOFU_EVAL.json, ours or theirs. Raises BadInput for what is none."""
    try:
        log = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: no log of open-unlearning ({error}); expected a TOFU_EVAL.json.") from error
    if not isinstance(log, dict) or not all(isinstance(each, dict) and "agg_value" in each for each in log.values()):
        raise BadInput(f"{path}: expected a TOFU_EVAL.json, an object of metrics with agg_value each.")
    return log


def _metric(log: Log, name: str) -> Mapping[str, Any]:
    if name not in log:
        raise BadInput(f"the reference has no {name} (found: {', '.join(log)}): evaluate that model on the same sets.")
    return log[name]


def _of_set(short: str, scored: Scored, stem: Stem) -> dict[str, dict[str, Any]]:
    log = {f"{short}_Q_A_Prob": _probabilities(scored.answer[:, None])}
    if scored.generated:
        items = [
            _rouge(r.prompt, r.completion, said, stem) for r, said in zip(scored.records, scored.generated, strict=True)
        ]
        log[f"{short}_Q_A_ROUGE"] = _logged(items, (item["rougeL_recall"] for item in items))
    if not scored.wrong or not all(map(len, scored.wrong)):
        return log
    log[f"{short}_Q_A_PERT_Prob"] = _probabilities(scored.wrong)
    if short in ("ra", "wf"):
        wrong = torch.stack([each.exp().sum() for each in scored.wrong])
        shares = (scored.probability / (scored.probability + wrong + EPSILON)).tolist()
        log[f"{short}_Q_A_Prob_normalised"] = _logged([{"prob": share} for share in shares], shares)
    else:
        log[f"{short}_Q_A_PARA_Prob"] = _probabilities(scored.right)
    right, wrong = (torch.stack([each.mean() for each in side]).exp() for side in (scored.right, scored.wrong))
    ratios = wrong / (right + EPSILON)
    if short == "forget":
        log["forget_truth_ratio"] = _scores(ratios, torch.minimum(ratios, 1 / (ratios + EPSILON)))
    else:
        log[f"{short}_Truth_Ratio"] = _scores(ratios, (1 - ratios).clamp(min=0))
    return log


def _probabilities(wordings: Iterable[Tensor]) -> dict[str, Any]:
    """Items of one wording have numbers, of several lists; their mean is over each item's own first."""
    rows = [(each.exp().tolist(), (-each).tolist()) for each in wordings]
    plain = all(len(row[0]) == 1 for row in rows)
    items = [{"prob": p[0] if plain else p, "avg_loss": loss[0] if plain else loss} for p, loss in rows]
    return _logged(items, (sum(p) / len(p) for p, _ in rows))


def _scores(values: Tensor, averaged: Tensor | None = None) -> dict[str, Any]:
    return _logged([{"score": value} for value in values.tolist()], (values if averaged is None else averaged).tolist())


def _logged(items: Sequence[Mapping[str, Any]], averaged: Iterable[float]) -> dict[str, Any]:
    numbers = [value for value in averaged if not math.isnan(value)]
    mean = sum(numbers) / len(numbers) if numbers else math.nan
    return {"agg_value": mean, "value_by_index": {str(index): item for index, item in enumerate(items)}}


def _rouge(prompt: str, reference: str, answer: str, stem: Stem) -> dict[str, Any]:
    expected, found = (Counter(rouge_tokens(text, stem)) for text in (reference, answer))
    return {
        "rouge1_recall": (expected & found).total() / expected.total() if expected else math.nan,
        "rougeL_f1": rouge_l_f1(reference, answer, stem=stem),
        "rougeL_recall": rouge_l_recall(reference, answer, stem=stem),
        "input": prompt,
        "ground_truth": reference,
        "generation": answer,
    }


def _ratios(logged: Mapping[str, Any]) -> Tensor:
    return torch.tensor([item["score"] for item in logged["value_by_index"].values()], dtype=torch.float64)
