"""Noisy passes over a finished text in which what came before a token is clean, as in decoding that caches clean states.

While decoding, each token is read once with noise and once without, and what stays in the cache is clean: noise moves the
token's own path alone. The same numbers come of one pass over all tokens at once. Where q~, k~, v~ are of the noisy stream
and K, V those of the clean pass, token t attends with

    scores  q~_t . K_j for j < t,  q~_t . k~_t for itself;      values  V_j for j < t,  v~_t for itself.

Tokens before the first that is scored are read without noise alone. R rows, T tokens of the longest, A scored tokens of the
longest, P perturbed projections, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from equipoise.core.errors import BadInput
from equipoise.language.model import LanguageModel
from equipoise.uncertainty.perturbed import Perturbed

FAMILIES = ("gemma", "gpt2", "llama", "mistral", "qwen2", "qwen3")
_NAME = "equipoise_clean_history"
_SCORES_AT_ONCE = 2**25  # values; 128 MB in float32


@dataclass(frozen=True)
class Reading:
    """What a clean pass leaves: its cache, the tokens [R, A] whose successors are scored, where they stand, which are real.

    states: [R, A, H], what enters the output matrix, without noise.
    """

    cache: Any
    ids: Tensor
    places: Tensor
    real: Tensor
    states: Tensor


def check_family(language_model: LanguageModel) -> None:
    """Raises BadInput for an architecture whose attention is not known to be of this form."""
    model: Any = language_model.model
    kind = getattr(model.config, "model_type", type(model).__name__)
    if kind not in FAMILIES or not type(model).__module__.startswith("transformers.models."):
        raise BadInput(
            f"{language_model.name} is of the architecture {kind!r}, whose attention cannot be given a clean history: "
            f"use a model of transformers' own {', '.join(FAMILIES)}."
        )


def read(language_model: LanguageModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Reading:
    """The clean pass over each prompt and answer, padded on the right. Neither may be empty."""
    device, pad = language_model.device, language_model.pad_id
    # The last token of an answer predicts nothing that is scored.
    rows = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    lengths = torch.tensor([[len(row)] for row in rows], device=device)
    longest, widest = max(map(len, rows)), max(map(len, answers))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=device)
    begins = torch.tensor([[len(prompt) - 1] for prompt in prompts], device=device)
    places = begins + torch.arange(widest, device=device)
    real = places < lengths
    places = places.where(real, lengths - 1)
    cache = DynamicCache()
    states = _body(language_model)(
        input_ids=ids,
        attention_mask=(torch.arange(longest, device=device) < lengths).long(),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    line = torch.arange(len(rows), device=device).unsqueeze(-1)
    return Reading(cache, ids[line, places], places, real, states[line, places])


def read_noisily(perturbed: Perturbed, reading: Reading, z: Tensor) -> Tensor:
    """The states [R, A, H] of the scored tokens with noise z [R, A, P, rank] on their own path."""
    model: Any = perturbed.language_model.model
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        with perturbed.noise(lambda index, _: z[:, :, index]):
            return _body(perturbed.language_model)(
                input_ids=reading.ids, position_ids=reading.places, use_cache=False, clean_history=reading
            ).last_hidden_state
    finally:
        model.set_attn_implementation(before)


def logits_of(language_model: LanguageModel, states: Tensor) -> Tensor:
    """What the model says of states [..., H] that enter its output matrix: [..., V]."""
    model: Any = language_model.model
    return model.get_output_embeddings()(states)


def _body(language_model: LanguageModel) -> Any:
    """The model without its output matrix."""
    model: Any = language_model.model
    return model.base_model


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    clean_history: Reading,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [R, heads, A, D], key and value [R, groups, A, D] of the noisy stream -> [R, A, heads, D]."""
    layer = clean_history.cache.layers[module.layer_idx]
    keys, values = layer.keys.unsqueeze(2), layer.values.unsqueeze(2)  # [R, groups, 1, T, D]
    query = query.unflatten(1, (key.shape[1], -1))  # [R, groups, heads of a group, A, D]
    place = torch.arange(keys.shape[-2], device=query.device)
    many = query[..., :1, 0].numel() * len(place)
    parts = []
    for cut in torch.arange(query.shape[-2], device=query.device).split(max(_SCORES_AT_ONCE // many, 1)):
        own_place = clean_history.places[:, cut].unsqueeze(-1)
        hidden = place >= own_place
        if sliding_window is not None:
            hidden |= place <= own_place - sliding_window
        asked, own_key, own_value = query[..., cut, :], key[:, :, None, cut], value[:, :, None, cut]
        scores = torch.cat([asked @ keys.mT, (asked * own_key).sum(-1, keepdim=True)], dim=-1) * scaling
        scores[..., :-1].masked_fill_(hidden[:, None, None], -torch.inf)
        wide = torch.promote_types(scores.dtype, torch.float32)
        share = scores.softmax(dim=-1, dtype=wide).to(value.dtype)
        parts.append(share[..., :-1] @ values + share[..., -1:] * own_value)
    return torch.cat(parts, dim=-2).flatten(1, 2).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(_NAME, _attend)
# Which keys are seen is decided above, by the places of the tokens.
ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, lambda *_, **__: None)
