"""Stored features: hidden states at chosen places of a model, pooled over tokens, one row a text, streamed to a folder.

    found = features.extract(language_model, texts, ["block.3", "block.7"], pool="mean", into="features")
    found.values                                        [n, places, width], a read-only map of the file

The folder holds values.npy and features.json; of what was read only token ids are in memory. Texts are read in batches of
like length, the longest first, and only as far into the model as the last place. A run that was killed goes on at its next
batch; every batch carries a digest, and one that was damaged is read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import FILES, read_regular, seal, sha256_file, unseal, write_atomic
from equipoise.core.options import check_fields, closed
from equipoise.core.progress import progress
from equipoise.core.rows import Rows
from equipoise.language.encode import IGNORE, Example, encode_prompts
from equipoise.language.model import LanguageModel, evaluating, memory_advice
from equipoise.language.rollouts import padded
from equipoise.language.states import editing, module_at

if TYPE_CHECKING:
    from equipoise.data.records import Message

Pool = Literal["mean", "last", "sum"]
FeatureDtype = Literal["float16", "float32", "float64"]

VALUES, ABOUT, BATCHES = "values.npy", "features.json", "batches.jsonl"
_VERSION = 1
CHANGED = "(an object is changed in place: to go on, load it anew)"


@dataclass(frozen=True, eq=False)
class Features:
    """values: [n, places, width], read-only. places, pool: what they are of. model: whose they are."""

    values: NDArray[Any]
    places: tuple[str, ...]
    pool: Pool
    model: str

    def __post_init__(self) -> None:
        check_fields(self)

    def at(self, place: str) -> NDArray[Any]:
        """Those of one place, [n, width]. Raises BadInput for one that was not extracted."""
        if place not in self.places:
            raise BadInput(f"no features of {place!r} are stored, only of {', '.join(self.places)}.")
        return self.values[:, self.places.index(place)]

    @classmethod
    def load(cls, folder: str | Path) -> Features:
        """What `extract` finished. Raises BadInput for a folder that holds no features, and for one that was altered."""
        folder = Path(folder)
        try:
            about, sealed = unseal(read_regular(folder / ABOUT))
            if not sealed or about["features"] != _VERSION:
                raise ValueError(f"{ABOUT} is of another version, or was altered")
            if about["sha256"] != sha256_file(folder / VALUES):
                raise ValueError(f"{VALUES} was altered since it was written")
            return cls.of(folder, about)
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(f"{folder} holds no features ({error}): extract them anew, into another folder.") from error

    @classmethod
    def of(cls, folder: Path, about: Mapping[str, Any]) -> Features:
        """What lies in a folder, by what is known of it; the file is not read."""
        values = np.load(folder / VALUES, mmap_mode="r", allow_pickle=False)
        return cls(values, tuple(about["places"]), about["pool"], about["model"])


@closed
def extract(
    language_model: LanguageModel,
    texts: Sequence[str | Sequence[Message] | Example],
    places: Sequence[str],
    *,
    pool: Pool,
    into: str | Path,
    dtype: FeatureDtype | None = None,
    batch_tokens: int | None = None,
) -> Features:
    """The states of `texts` at `places` (`language.states`), pooled, in the folder `into`; what is there already is kept.

    texts: prompts as `encode_prompts` reads them, of which all tokens are pooled, or examples as `encode` makes them, of
    which those with a label are. pool: mean, sum, or last, the last of these tokens. dtype: float16 for mean and last when
    not given, float32 for sums, which float16 cannot hold; float64 also adds in it. batch_tokens: of a batch, padding
    included, at most; when not given 512 on a CPU, whose products gain nothing beyond, and 16,384 elsewhere.

    Raises BadInput for an unknown place, the output matrix's own output, places of different widths, an example without a
    label, a text longer than the model's context, and a folder of other features, or with files of these names that are not
    of features; WorkFailed for a value that is not finite or too large for the dtype, naming text and place.
    """
    dtype = dtype or ("float32" if pool == "sum" else "float16")
    batch_tokens = batch_tokens or (512 if language_model.device.type == "cpu" else 16_384)
    if pool == "sum" and dtype == "float16":
        raise BadInput("sums do not fit into float16, whose largest number is 65,504: use float32 or float64.")
    if dtype == "float64" and language_model.device.type == "mps":
        raise BadInput("device mps has no float64 to add in: use float32, or device cpu.")
    rows = _encoded(language_model, texts)
    _check_places(language_model.model, places)
    folder = Path(into)
    asked = {
        "features": _VERSION,
        "model": language_model.name,
        "weights": weights_digest(language_model.model),
        "texts": _digest_of_rows(rows),
        "places": list(places),
        "pool": pool,
        "dtype": dtype,
        "batch_tokens": batch_tokens,
    }
    if (folder / ABOUT).exists():
        try:
            about, sealed = unseal(read_regular(folder / ABOUT))
            if not sealed:
                raise ValueError("it carries no digest")
        except ValueError as error:
            raise BadInput(f"{folder / ABOUT} is of no features ({error}): give another folder.") from error
        _refuse_other(folder, about, asked)
        if "sha256" in about:
            return Features.load(folder)
    else:
        if strange := [name for name in (VALUES, BATCHES) if (folder / name).exists()]:
            raise BadInput(f"{folder / strange[0]} is of no features, since {ABOUT} is missing: give another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / ABOUT, seal(asked))
    values = _values(language_model, rows, places, folder / VALUES, dtype)
    _fill(language_model, rows, places, pool, values, folder, batch_tokens)
    values.flush()
    del values
    write_atomic(folder / ABOUT, seal(asked | {"sha256": sha256_file(folder / VALUES)}))
    FILES.remove(folder / BATCHES)
    return Features.of(folder, asked)


_Row = tuple[NDArray[np.int32], NDArray[np.int32]]  # the ids of a text, and the places of those that are pooled


def _digest_of_rows(rows: Sequence[_Row]) -> str:
    digest = hashlib.sha256()
    for ids, chosen in rows:
        digest.update(f"{len(ids)} {len(chosen)} ".encode() + ids.tobytes() + chosen.tobytes())
    return digest.hexdigest()


def _encoded(language_model: LanguageModel, texts: Sequence[Any]) -> list[_Row]:
    prompts = [text for text in texts if not isinstance(text, Example)]
    encoded = iter(encode_prompts(language_model, prompts)[0] if prompts else ())
    rows: list[_Row] = []
    for index, text in enumerate(texts):
        if isinstance(text, Example):
            ids, chosen = np.array(text.input_ids, np.int32), np.flatnonzero(np.array(text.labels) != IGNORE)
        else:
            ids = np.array(next(encoded), np.int32)
            chosen = np.arange(len(ids))
        if not len(chosen):
            raise BadInput(f"Text {index} has no token to pool: leave it out, or label one.")
        rows.append((ids, chosen.astype(np.int32)))
    if not rows:
        raise BadInput("There is no text to read: give one or more.")
    for index, (ids, _) in enumerate(rows):
        if len(ids) > language_model.context:
            raise BadInput(
                f"Text {index} has {len(ids)} tokens, more than the context of {language_model.context}: shorten it."
            )
    return rows


def _check_places(model: Any, wanted: Sequence[str]) -> None:
    if not wanted or len(set(wanted)) < len(wanted):
        raise BadInput(f"places are {list(wanted)}: give one or more, each once.")
    if "head" in wanted:
        raise BadInput(
            "features of 'head' would be logits, as wide as the vocabulary: use 'head.input', the last states."
        )
    for place in wanted:
        module_at(model, place.removesuffix(".input"))


def weights_digest(model: Any, *, numbers: int | None = 64, rounded: bool = False) -> str:
    """A digest of shapes and of about `numbers` numbers of every tensor: another checkpoint of a name has another.

    numbers: None for all, which takes a second for each gigabyte or two and tells a single edited row. rounded: to
    bfloat16, so that the digest survives another precision of loading.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().flatten()
        some = flat if numbers is None else flat[:: max(tensor.numel() // numbers, 1)]
        some = (some.to(torch.bfloat16) if rounded else some).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update((some.view(torch.uint8) if numbers is None else some.float()).cpu().numpy())
    return digest.hexdigest()


def objects_digests(models: Mapping[str, Any], *, changed: bool = False) -> dict[str, str]:
    """By name the digests of those models that are objects in memory, for `Request.inputs`; the frame digests folders.

    changed: whether the work changes an object in place, so that whoever goes on in the same process has another; the name
    that is told in the refusal then says what to do.
    """
    return {
        f"{name} {CHANGED}" if changed else name: weights_digest(model.model)
        for name, model in models.items()
        if isinstance(model, LanguageModel)
    }


def _refuse_other(folder: Path, about: dict[str, Any], asked: dict[str, Any]) -> None:
    for name, wanted in asked.items():
        if about.get(name) != wanted:
            raise BadInput(
                f"{folder} holds features with another {name.replace('_', ' ')}: give another folder, or remove it."
            )


def _values(
    language_model: LanguageModel, rows: Sequence[_Row], wanted: Sequence[str], path: Path, dtype: FeatureDtype
) -> Any:
    """The file's map, made as large as it will be; widths are found by reading one token."""
    ids = torch.tensor(rows[0][0][None, :1], dtype=torch.long, device=language_model.device)
    with evaluating(language_model.model):
        states = _at(language_model.model, wanted, ids, lambda state: state)
    widths = {place: state.shape[-1] for place, state in zip(wanted, states, strict=True)}
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{place} {width}" for place, width in widths.items())
        raise BadInput(f"places are of different widths ({told}): extract them into folders of their own.")
    shape = len(rows), len(wanted), next(iter(widths.values()))
    if path.exists():
        with suppress(ValueError, EOFError):  # a damaged beginning: then nothing of it is kept
            stored = np.load(path, mmap_mode="r+", allow_pickle=False)
            if stored.shape == shape and stored.dtype == dtype:
                return stored
    return open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _fill(
    language_model: LanguageModel,
    rows: Sequence[_Row],
    wanted: Sequence[str],
    pool: Pool,
    values: Any,
    folder: Path,
    batch_tokens: int,
) -> None:
    known = Rows(folder / BATCHES)
    digests = {row["batch"]: row["sha256"] for row in known}
    batches = list(_batches([len(ids) for ids, _ in rows], batch_tokens))
    with evaluating(language_model.model), progress("Reading", total=len(rows), unit="texts") as bar:
        for number, chosen in enumerate(batches):
            if number not in digests or digests[number] != _digest(values[chosen]):
                with memory_advice(len(chosen)):
                    pooled = _pooled(language_model, [rows[index] for index in chosen], wanted, pool, values.dtype)
                _refuse_infinite(pooled, chosen, wanted, values.dtype)
                values[chosen] = pooled
                values.flush()
                known.add({"batch": number, "sha256": _digest(pooled)})
            bar.advance(len(chosen))


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of texts of like length, the longest first, of at most so many tokens with padding, but one text at least."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _digest(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _pooled(
    language_model: LanguageModel, rows: Sequence[_Row], wanted: Sequence[str], pool: Pool, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """[b, places, width] in the dtype; added in float64 where that is asked for, else in float32."""
    ids, _ = padded([ids.tolist() for ids, _ in rows], language_model.pad_id, language_model.device)
    weights = torch.zeros(ids.shape, dtype=torch.float64 if dtype == np.float64 else torch.float32)
    for row, (_, chosen) in enumerate(rows):
        weights[row, chosen[-1:] if pool == "last" else chosen] = 1 / len(chosen) if pool == "mean" else 1
    weights = weights.to(ids.device).unsqueeze(1)

    def pooled(state: Tensor) -> Tensor:
        return (weights @ state.to(weights)).squeeze(1)

    found = torch.stack(_at(language_model.model, wanted, ids, pooled), dim=1)
    with np.errstate(over="ignore"):
        return found.cpu().numpy().astype(dtype)


class _Enough(Exception):
    pass


def _at(model: Any, wanted: Sequence[str], ids: Tensor, use: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """What `use` makes of the states [B, L, width] at each place; the model is run no further than it takes to have all.

    Without a mask: behind a text there is padding, which no causal model sees from before it.
    """
    made: dict[str, Tensor] = {}

    def keep(place: str) -> Callable[[Tensor], Tensor]:
        def kept(state: Tensor) -> Tensor:
            made[place] = use(state)
            return state

        return kept

    def stop(*_: Any) -> None:
        if len(made) == len(wanted):
            raise _Enough

    with editing(model, {place: keep(place) for place in wanted}), ExitStack() as hooks:
        for place in wanted:  # these hooks come after those that keep
            module = module_at(model, place.removesuffix(".input"))
            inward = place.endswith(".input")
            hook = module.register_forward_pre_hook(stop) if inward else module.register_forward_hook(stop)
            hooks.callback(hook.remove)
        with suppress(_Enough):
            model(input_ids=ids, use_cache=False)
    return [made[place] for place in wanted]


def _refuse_infinite(pooled: NDArray[Any], chosen: Sequence[int], wanted: Sequence[str], dtype: np.dtype[Any]) -> None:
    wrong = np.argwhere(~np.isfinite(pooled))
    if len(wrong):
        row, place, _ = wrong[0].tolist()
        raise WorkFailed(
            f"The features of text {chosen[row]} at {wanted[place]} hold a number that {dtype} cannot: it is no number, or "
            f"too large{'; use dtype float32' if dtype == np.float16 else ''}."
        )
