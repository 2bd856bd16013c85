"""Caches of keys and values: with room for what comes, of which rows can leave, and such that gradients flow through."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

_ROOM = 64  # tokens, made at once


def differentiable(model: Any) -> DynamicCache | None:
    """An empty cache through which gradients flow; None where a model has no such, or states that are no keys and values.

    transformers' own decoders of full attention have one, unless they make their activations again in the backward pass.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not type(bare).__module__.startswith("transformers.models.") or bare.is_gradient_checkpointing:
        return None
    if not {"past_key_values", "position_ids"} <= inspect.signature(bare.forward).parameters.keys():
        return None
    cache = DynamicCache(config=bare.config)
    return cache if all(type(layer) is DynamicLayer for layer in cache.layers) else None


def with_room(cache: Any) -> Any:
    """The cache, its plain layers replaced by such as write in place; others (sliding windows, states) stay as they are.

    transformers' layers copy all that they have for every token.
    """
    if isinstance(cache, DynamicCache):
        cache.layers = [_RoomyLayer(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def row_choice(cache: Any) -> Callable[[Tensor], object] | None:
    """What makes a cache one of these rows [A] alone, by their places; None where it is no cache, or may hold more.

    Not `batch_select_indices` of transformers' own: layers of states (LFM2, Qwen3-Next) have none, and that of layers of
    states and keys (Falcon-H1) leaves the states as they are. A class that brings its own knows what it holds.
    """
    if not isinstance(cache, Cache):
        return None
    if type(cache).__module__ != Cache.__module__:
        return cache.batch_select_indices if "batch_select_indices" in vars(type(cache)) else None
    known = (Cache.__module__, __name__)
    reorder: Any = cache.reorder_cache  # is typed for a tensor class that no tensor is of
    return reorder if all(type(layer).__module__ in known for layer in _layers(cache)) else None


def _layers(cache: Any) -> list[Any]:
    """Of an encoder-decoder's cache those of both."""
    halves = [vars(cache)[name] for name in ("self_attention_cache", "cross_attention_cache") if name in vars(cache)]
    return [layer for half in halves or [cache] for layer in half.layers]


class _RoomyLayer(DynamicLayer):
    """keys, values: [A, heads, length, width], the written part of `_room`, or tensors of their own."""

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        vars(self).update(vars(layer))
        self._room: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All keys and values, with these at their end."""
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if not self._room or self._room[0].shape[-2] < end:
            self._room = [_longer(each, end + _ROOM) for each in (self.keys, self.values)]
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[..., begin:end, :] = states
        self.keys, self.values = (room[..., :end, :] for room in self._room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """These rows alone, in tensors of their own."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._room = []


def _longer(tensor: Any, length: int) -> Tensor:
    made = tensor.new_empty(*tensor.shape[:-2], length, tensor.shape[-1])
    made[..., : tensor.shape[-2], :] = tensor
    return made
