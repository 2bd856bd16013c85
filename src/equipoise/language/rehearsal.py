"""What a job must know before its first step: that the model can be trained, scored, asked, written and loaded again.

Each is tried on a few tokens, so that what an architecture, a tokenizer or a folder makes impossible is refused in seconds
and not after hours of training. Nothing is changed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from equipoise.core.errors import BadInput, EquipoiseError
from equipoise.core.options import closed
from equipoise.language.adapters import require_base
from equipoise.language.encode import IGNORE, Example, collate, frame
from equipoise.language.generate import generate, write
from equipoise.language.model import evaluating
from equipoise.language.pretrained import without_bars
from equipoise.language.score import labelled_logits, token_log_likelihoods

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

Writes = Literal["model", "adapter", "nothing"]
_APART = 1e-3  # of the largest logit, or four roundings where that is more; an untrained BERT is 5e-3 apart


@closed
def rehearse(
    language_model: LanguageModel, *, trains: bool = True, generates: bool = True, writes: Writes = "model"
) -> None:
    """Raises BadInput, naming what cannot be done, unless the model does all of this; scoring is always tried.

    trains: a gradient reaches a parameter that requires one (call it when those are chosen). generates: unequal prompts are
    answered together, once and several times each. writes: what the job will `save` ("model") or `export` ("adapter"), and
    load again.
    """
    name, examples = language_model.name, _examples(language_model)
    _try(f"{name} cannot score a text", lambda: token_log_likelihoods(language_model, examples))
    _refuse_sight_of_what_follows(language_model, examples)
    if trains:
        _try(f"{name} cannot be trained", lambda: _gradient(language_model, examples))
    if generates:
        prompts = ["a", "a a a"]
        _try(f"{name} cannot answer prompts", lambda: generate(language_model, prompts, max_new_tokens=2))
        _try(f"{name} cannot answer prompts", lambda: _repeated(language_model, examples))
    if writes == "adapter":
        require_base(language_model)
    elif writes == "model":
        _try(f"{name} could not be loaded again after it was written", lambda: _loaded_again(language_model))


def _try(problem: str, work: Callable[[], Any]) -> None:
    """Runs `work`; whatever it raises, of the dozens of types that models raise, becomes one sentence."""
    try:
        work()
    except EquipoiseError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split("\n\n")[0].split())[:300] or "no reason given"
        raise BadInput(f"{problem} ({type(error).__name__}: {reason}): use another model.") from error


def _examples(language_model: LanguageModel) -> list[Example]:
    """Three tokens that begin alike and two that do not, all labelled but the first."""
    begin, _ = frame(language_model)
    usable = [token for token in range(language_model.vocabulary) if token not in language_model.end_ids][-2:]
    last, other = usable[0], usable[-1]
    rows = [(*begin, last, last, last), (*begin, last, other, other), (*begin, other, last)]
    return [Example(row, (IGNORE, *row[1:])) for row in rows]


def _refuse_sight_of_what_follows(language_model: LanguageModel, examples: list[Example]) -> None:
    """Two rows that begin alike must get the same prediction there, whatever follows."""
    alike = [
        Example(each.input_ids, tuple(IGNORE if i != 1 else t for i, t in enumerate(each.input_ids)))
        for each in examples
    ]
    with evaluating(language_model.model):
        logits, _, _ = labelled_logits(
            language_model.model, collate(alike[:2], language_model.pad_id, language_model.device)
        )
    allowed = max(_APART, 4 * torch.finfo(logits.dtype).eps)
    if (logits[0] - logits[1]).abs().max() > allowed * logits.abs().max():
        raise BadInput(
            f"{language_model.name} ({type(language_model.model).__name__}) sees the tokens that it should predict: it is "
            "no causal model, so its scores would mean nothing."
        )


def _repeated(language_model: LanguageModel, examples: list[Example]) -> None:
    """Two prompts of unequal length, each answered twice, of which answers end at unequal steps."""
    rows = [examples[0].input_ids, examples[2].input_ids]
    with evaluating(language_model.model):
        for _ in write(
            language_model, rows, frozenset(), [3, 1, 2, 3], lambda logits, *_: logits.argmax(-1), repeats=2
        ):
            pass


def _gradient(language_model: LanguageModel, examples: list[Example]) -> None:
    model = language_model.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise BadInput(f"{language_model.name} has no parameter that requires a gradient: nothing would be trained.")
    logits, labels, _ = labelled_logits(model, collate(examples, language_model.pad_id, language_model.device))
    loss = nn.functional.cross_entropy(logits.float(), labels)
    # Of one parameter alone, the one farthest from the loss: that takes no memory, and goes through all others.
    (gradient,) = torch.autograd.grad(loss, trained[:1], allow_unused=True)
    if gradient is not None and not gradient.isfinite().all():
        raise BadInput(
            f"{language_model.name} has a gradient that is no number, on three tokens: use float32 or bfloat16."
        )


def _loaded_again(language_model: LanguageModel) -> None:
    """Everything but the weights, written and read as the artifact will be; without memory for a second model."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    trusted = language_model.origin is not None and language_model.origin.trust_remote_code
    model = language_model.model
    with tempfile.TemporaryDirectory() as folder, without_bars():
        model.save_pretrained(folder, state_dict={})
        language_model.tokenizer.save_pretrained(folder)
        AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
        config = AutoConfig.from_pretrained(Path(folder), trust_remote_code=trusted)
        with torch.device("meta"):
            again = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    ours, theirs = ({n: p.shape for n, p in each.named_parameters()} for each in (model, again))
    if ours != theirs:
        different = sorted(ours.items() ^ theirs.items())[0][0]
        raise BadInput(
            f"{language_model.name} would be another model when it is loaded again: its configuration does not describe the "
            f"parameter {different}. Save it with save_pretrained where it was made, and look what load makes of that."
        )
