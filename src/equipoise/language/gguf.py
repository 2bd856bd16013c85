"""Reading a GGUF file into a transformers model: de-quantised weights, a tokenizer that follows the metadata."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.core.errors import BadInput
from equipoise.core.progress import progress
from equipoise.language.pretrained import without_bars

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MAGIC = b"GGUF"
_SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}


@contextlib.contextmanager
def _our_bar(title: str) -> Iterator[None]:
    """The GGUF reader's bar, which has no switch, replaced by ours."""
    from transformers import modeling_gguf_pytorch_utils as reader

    def track(tensors: Iterable[Any], **_: Any) -> Iterator[Any]:
        for tensor in tensors:
            yield tensor
            bar.advance()

    tqdm = reader.tqdm
    with progress(title, unit="tensors") as bar, without_bars():
        reader.tqdm = track
        try:
            yield
        finally:
            reader.tqdm = tqdm


def check_gguf(path: Path) -> None:
    """Raises BadInput when the file does not begin as a GGUF file does."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise BadInput(f"{path} is not a GGUF file (its first bytes are not 'GGUF'): the download may be broken.")


def read_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """The de-quantised model in `dtype`, its tokenizer, and the name of the quantisation ("Q4_1").

    Raises BadInput when the file is cut short or holds an architecture that transformers cannot read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_gguf(path)
    model: Any
    try:
        metadata = _metadata(path)
        with _our_bar(f"Reading {path.name}"):
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
    except (ValueError, KeyError, IndexError, NotImplementedError, OSError, RuntimeError) as error:
        # The reader has no error of its own for a file that ends too early: it fails in numpy's or its own lookups.
        raise BadInput(
            f"{path} cannot be read as GGUF ({error}): fetch it again, or use a safetensors folder."
        ) from error
    # save_pretrained refuses a model that remembers the quantisation it no longer has.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    _follow_metadata(tokenizer, metadata)
    return model, tokenizer, _quantisation(metadata)


def _metadata(path: Path) -> dict[str, Any]:
    """The scalar and string fields of the file; the token list and other arrays are left out."""
    import gguf

    fields = gguf.GGUFReader(str(path)).fields
    return {
        name: field.contents()
        for name, field in fields.items()
        if field.types and field.types[0] != gguf.GGUFValueType.ARRAY
    }


def _quantisation(metadata: dict[str, Any]) -> str:
    import gguf

    try:
        return gguf.LlamaFileType(metadata["general.file_type"]).name.removeprefix("MOSTLY_")
    except (KeyError, ValueError):
        return "an unstated quantisation"


def _follow_metadata(tokenizer: Any, metadata: dict[str, Any]) -> None:
    """Mend what transformers' GGUF reader (5.10) gets wrong.

    It takes the token that begins a text for the one that ends it, forgets the padding token, and splits text as GPT-2
    does whatever `tokenizer.ggml.pre` says. For "smollm" (digits one by one, then GPT-2's pattern) that gives other
    tokens wherever two blanks or line ends stand before a digit, as in every numbered list.
    """
    from tokenizers import decoders, pre_tokenizers

    for role, field in _SPECIAL.items():
        identity = metadata.get(f"tokenizer.ggml.{field}")
        if identity is not None:
            setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(int(identity)))
    if metadata.get("tokenizer.ggml.pre") == "smollm":
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        backend.decoder = decoders.ByteLevel()
    tokenizer.clean_up_tokenization_spaces = False
    context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if context:
        tokenizer.model_max_length = int(context)
