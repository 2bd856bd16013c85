"""One nested state as one safetensors file: tensors and arrays as tensors, everything else as JSON in its metadata.

No pickle: what is read back can only be data. Tuples, integer keys, dtypes and nan survive the round trip; a tensor
that occurs twice (tied weights) is stored once. A digest over all of it tells a file that was altered; files of earlier
versions have none and are read without.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import FILES, Files, free_name, open_regular, produce_atomic

_TREE, _DIGEST = "equipoise_state", "equipoise_sha256"


def save_state(path: Path, nested: Any, *, files: Files = FILES) -> None:
    """Write dicts, lists and tuples of JSON values, numpy arrays and torch tensors (any device) to `path`, atomically.

    Equal states are equal bytes. Raises BadInput for anything else, naming where in the state it is.
    """
    tensors: dict[str, Any] = {}
    tree = json.dumps(_encode(nested, "state", tensors, {}))
    metadata = {_TREE: tree, _DIGEST: _digest(tree, tensors)}
    if any(_is_tensor(each) for each in tensors.values()):
        import torch
        from safetensors.torch import save_file

        tensors = {key: each if _is_tensor(each) else torch.from_numpy(each) for key, each in tensors.items()}
    else:
        from safetensors.numpy import save_file

    def write(target: Path) -> None:
        save_file(tensors, target, metadata=metadata)
        _order_header(target)

    produce_atomic(Path(path), write, files=files)


def _order_header(path: Path) -> None:
    """Sorts the entries of a safetensors header in place: the library leaves those of its metadata to chance."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
        ordered = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) <= length:
            file.seek(8)
            file.write(ordered.ljust(length))


def load_state(path: Path) -> Any:
    """Read what `save_state` wrote; tensors arrive on the CPU. Raises WorkFailed for what is cut, altered or foreign."""
    from safetensors import SafetensorError, safe_open

    open_regular(path).close()
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        tree = metadata[_TREE]
        if '"$tensor"' in tree:
            from safetensors.torch import load_file
        else:
            from safetensors.numpy import load_file
        tensors = load_file(path)
        if metadata.get(_DIGEST, digest := _digest(tree, tensors)) != digest:
            raise WorkFailed(f"{path} was altered since it was written.")
        return _decode(json.loads(tree), tensors)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WorkFailed(f"{path} is cut, altered or was not written by Equipoise ({error}).") from error


def stored_state(path: Path, *, of: str = "training") -> tuple[dict[str, Any], list[str]]:
    """What an earlier attempt left of its training, {} for nothing, with notes: a damaged file is kept aside, and said."""
    if not path.exists():
        return {}, []
    try:
        return load_state(path), []
    except WorkFailed as error:
        aside = free_name(path, "damaged")
        path.rename(aside)
        return {}, [f"{error} It is kept as {aside.name}, and the {of} was done again from its start."]


def _digest(tree: str, tensors: Mapping[str, Any]) -> str:
    """sha256 over the tree, and name, type, shape and bytes of every tensor, whichever library holds it."""
    digest = hashlib.sha256(tree.encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"\0{key} {dtype} {list(tensor.shape)}\0".encode())
        if _is_tensor(tensor):
            tensor = tensor.reshape(-1).view(sys.modules["torch"].uint8).numpy()
        digest.update(tensor.reshape(-1).view("uint8"))
    return digest.hexdigest()


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _encode(value: Any, where: str, tensors: dict[str, Any], seen: dict[tuple, str]) -> Any:
    import numpy as np

    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        key = str(len(tensors))
        native = value.dtype.newbyteorder("=")  # as it comes back
        tensors[key] = np.ascontiguousarray(value, native).reshape(value.shape)
        return {"$array": key}
    if _is_tensor(value):
        value = value.detach()
        identity = (value.data_ptr(), value.shape, value.stride(), value.dtype, str(value.device))
        if value.numel() == 0 or identity not in seen:
            key = str(len(tensors))
            # A view must not drag the rest of its storage along, nor look shared to safetensors.
            whole = value.is_contiguous() and value.untyped_storage().nbytes() == value.numel() * value.element_size()
            tensors[key] = (value if whole else value.contiguous().clone()).cpu()
            seen[identity] = key
        return {"$tensor": seen[identity]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _encode(each, f"{where}.{key}", tensors, seen) for key, each in value.items()}
        pairs = value.items()
        return {
            "$pairs": [
                [_encode(k, where, tensors, seen), _encode(v, f"{where}[{k!r}]", tensors, seen)] for k, v in pairs
            ]
        }
    if isinstance(value, (list, tuple)):
        encoded = [_encode(each, f"{where}[{index}]", tensors, seen) for index, each in enumerate(value)]
        return {"$tuple": encoded} if isinstance(value, tuple) else encoded
    raise BadInput(f"{where} is a {type(value).__name__}; a state holds JSON values, numpy arrays and torch tensors.")


def _decode(tree: Any, tensors: Mapping[str, Any]) -> Any:
    import numpy as np

    if isinstance(tree, list):
        return [_decode(each, tensors) for each in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1:
        kind, content = next(iter(tree.items()))
        if kind == "$tensor":
            return tensors[content]
        if kind == "$array":
            array = tensors[content]
            return array if isinstance(array, np.ndarray) else array.numpy()
        if kind == "$tuple":
            return tuple(_decode(each, tensors) for each in content)
        if kind == "$pairs":
            return {_decode(key, tensors): _decode(value, tensors) for key, value in content}
    return {key: _decode(value, tensors) for key, value in tree.items()}
