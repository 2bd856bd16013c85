"""Hidden states at named places of a decoder, read or edited during one forward pass, whatever the architecture.

    embed                   what enters the first block
    block.7                 what leaves block 7, counted from 0
    block.7.attention       what the attention of block 7 adds to the residual stream (after its output projection)
    block.7.mlp             what its feed-forward part adds
    block.7.mlp.down        the last linear map of the feed-forward part
    head                    the output matrix; its output are logits
    PLACE.input             what enters that module: block.7.mlp.down.input are the neurons, head.input the last states

Tensors are [B, T, width] (logits: [B, T, V]) and keep their graph. Places are modules found by shape, not by class:
Llama, Qwen, Mistral, Gemma, GPT-2, GPT-NeoX and what is built like them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from equipoise.core.errors import BadInput, did_you_mean

# Names that decoders of the field give to the parts of a block, in the order in which they are looked for.
_PARTS = {
    "attention": ("self_attn", "attn", "attention", "self_attention"),
    "mlp": ("mlp", "feed_forward", "ffn", "block_sparse_moe"),
}
_DOWN = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "wo")
_PLACE = re.compile(r"block\.(\d+)(?:\.(attention|mlp|mlp\.down))?")


def places(model: Any) -> list[str]:
    """All places of this model, in the order in which a token passes them, without their `.input` forms."""
    found = ["embed"]
    for number, block in enumerate(blocks(model)):
        parts = [part for part in _PARTS if _child(block, _PARTS[part]) is not None]
        found += [f"block.{number}.{part}" for part in parts]
        if "mlp" in parts and _child(_child(block, _PARTS["mlp"]), _DOWN) is not None:
            found.append(f"block.{number}.mlp.down")
        found.append(f"block.{number}")
    return [*found, "head"]


def blocks(model: Any) -> nn.ModuleList:
    """The decoder's blocks: the one list of modules as long as the configuration says.

    Raises BadInput when the model has none, or several.
    """
    depth = model.config.get_text_config().num_hidden_layers
    lists = {id(module): module for module in model.modules() if isinstance(module, nn.ModuleList)}
    fitting = [module for module in lists.values() if len(module) == depth]
    if len(fitting) > 1:  # experts of a block can be as many as the blocks: the outermost list is the decoder's
        inner = {id(module) for outer in fitting for module in outer.modules() if module is not outer}
        fitting = [module for module in fitting if id(module) not in inner]
    if len(fitting) != 1:
        raise BadInput(f"{type(model).__name__} has {len(fitting)} lists of {depth} blocks, so its places are unknown.")
    return fitting[0]


def module_at(model: Any, place: str) -> nn.Module:
    """The module behind a place (without `.input`). Raises BadInput for a place the model does not have."""
    if place == "embed":
        return model.get_input_embeddings()
    if place == "head":
        return model.get_output_embeddings()
    match = _PLACE.fullmatch(place)
    stack = blocks(model)
    module = None
    if match and int(match[1]) < len(stack):
        module = stack[int(match[1])]
        for part in match[2].split(".") if match[2] else ():
            module = None if module is None else _child(module, _DOWN if part == "down" else _PARTS[part])
    if module is None:
        raise BadInput(f"This model has no place {place!r}. {did_you_mean(place, places(model))}")
    return module


@contextmanager
def recording(model: Any, wanted: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A dict that each forward pass inside fills with the tensors at these places; the newest pass wins.

    Hooks are removed on leaving, also by an exception. Raises BadInput for an unknown place before anything runs.
    """
    found: dict[str, Tensor] = {}

    def keep(place: str) -> Callable[[Tensor], None]:
        return lambda tensor: found.__setitem__(place, tensor)

    with _hooked(model, {place: keep(place) for place in wanted}):
        yield found


@contextmanager
def editing(model: Any, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Inside, the tensor at each place is replaced by what its function returns; hooks are removed on leaving."""
    with _hooked(model, edits):
        yield


@contextmanager
def _hooked(model: Any, functions: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    targets = {place: module_at(model, place.removesuffix(".input")) for place in functions}
    with ExitStack() as hooks:
        for place, module in targets.items():
            if place.endswith(".input"):
                hook = module.register_forward_pre_hook(_before(functions[place]), with_kwargs=True)
            else:
                hook = module.register_forward_hook(_after(functions[place]))
            hooks.callback(hook.remove)
        yield


def _after(function: Callable[[Tensor], Tensor | None]) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(_: nn.Module, inputs: Any, output: Any) -> Any:
        state = output[0] if isinstance(output, tuple) else output
        changed = function(state)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook


def _before(function: Callable[[Tensor], Tensor | None]) -> Callable[[nn.Module, Any, dict[str, Any]], Any]:
    def hook(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        # Attention is called with hidden_states by name in most decoders, everything else by position.
        changed = function(inputs[0] if inputs else named["hidden_states"])
        if changed is None:
            return None
        return ((changed, *inputs[1:]), named) if inputs else (inputs, {**named, "hidden_states": changed})

    return hook


def _child(module: nn.Module | None, names: Sequence[str]) -> nn.Module | None:
    return next((child for name in names if (child := getattr(module, name, None)) is not None), None)
