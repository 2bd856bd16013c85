"""A causal language model with its tokenizer, and `load`, the one door through which every model comes in.

load("smollm2")                   SmolLM2-135M-Instruct, fetched once into the cache
load("./folder")                  safetensors as save_pretrained writes them, or a LoRA adapter, merged on loading
load("./model.gguf")              a GGUF file, de-quantised
load("owner/name", revision=...)  a model of the hub; HF_HUB_OFFLINE is respected
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from equipoise.core.errors import BadInput, MissingExtra, did_you_mean
from equipoise.core.options import choice
from equipoise.language import adapters, catalog
from equipoise.language.gguf import read_gguf
from equipoise.language.pretrained import save, settle_special_tokens, without_bars
from equipoise.language.templates import DATE, check_date
from equipoise.training.memory import memory_advice as advice

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TINY = "tiny"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Origin:
    """What `load` was asked for: enough to load the same weights again, here or as the base of an adapter."""

    name: str
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass
class LanguageModel:
    """A causal model, its tokenizer, where both came from, and whether prompts go through the chat template.

    source is a sentence for reports. chat_template: "auto" uses the tokenizer's template when it has one, "none" never.
    date: the one that templates write, on whatever day they are rendered. origin: None for a model made in memory.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    source: str
    chat_template: str = "auto"
    date: datetime.date = DATE
    origin: Origin | None = None

    def __post_init__(self) -> None:
        choice("chat_template", self.chat_template, ("auto", "none"))
        settle_special_tokens(self.model, self.tokenizer, self.name)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        embedding: Any = self.model.get_input_embeddings()
        return embedding.weight.device

    @property
    def pad_id(self) -> int:
        """The token that fills up a batch."""
        pad: Any = self.tokenizer.pad_token_id  # settled on construction
        return pad

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens at which an answer ends."""
        ends = self.model.generation_config.eos_token_id
        return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])

    @property
    def vocabulary(self) -> int:
        """The number of tokens that the model has embeddings for; its tokenizer may know fewer, or more."""
        embedding: Any = self.model.get_input_embeddings()
        return embedding.weight.shape[0]

    @property
    def context(self) -> int:
        """The largest number of tokens the model was made for; 2^31 when it does not say."""
        stated = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return stated if stated and stated > 0 else 2**31

    @property
    def uses_chat_template(self) -> bool:
        """Whether conversations are written by a template of the tokenizer."""
        return self.chat_template != "none" and self.tokenizer.chat_template is not None

    def use_attention(self, implementation: str) -> None:
        """Switch to "sdpa", "eager" or another that transformers knows. Raises BadInput for an unknown one."""
        try:
            self.model.set_attn_implementation(implementation)
        except (ValueError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(f"{self.name} cannot use the attention {implementation!r}: {reason}") from error

    def save(self, folder: str | Path) -> None:
        """Writes a folder that transformers and `load` take as it is: safetensors, configuration, tokenizer."""
        if hasattr(self.model, "peft_config"):
            raise BadInput(f"{self.name} has an adapter: merge it first, or write the adapter alone with export().")
        save(self.model, self.tokenizer, folder)

    def reload(self, folder: str | Path) -> LanguageModel:
        """What `save` or `adapters.export` wrote there, loaded as this one was: device, precision, template, own code."""
        return load(
            folder,
            device=str(self.device),
            dtype=self.model.dtype,
            trust_remote_code=self.origin is not None and self.origin.trust_remote_code,
            chat_template=self.chat_template,
            date=self.date,
        )


def load(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str = "auto",
    date: str | datetime.date = DATE,
) -> LanguageModel:
    """Load a model by catalogue name, folder, GGUF file or hub id (tried in this order), in evaluation mode.

    device: "auto" is cuda, else mps, else cpu. dtype: "auto" is the checkpoint's own on cuda and float32 elsewhere
    (bfloat16 is slower than float32 on most CPUs). revision: of a model of the hub. chat_template: "auto", "none", or the
    path of a Jinja file. date: what chat templates write as today's ("2026-07-26"), the same on every day.
    Only safetensors are read. Raises BadInput, with the remedy, for whatever cannot be loaded.
    """
    name = str(name)
    target = _device(device)
    number = _dtype(dtype, target)
    template, date = chat_template_text(chat_template), check_date(date)
    if name == TINY:
        raise BadInput(
            "'tiny' has no weights to load: it is taught on the spot. Use tiny(texts, seed=0) and teach(...) of "
            "equipoise.language.tiny, run a study with --model tiny, or load 'smollm2' or a folder."
        )
    path = Path(name).expanduser()
    local = name not in catalog.CATALOG and path.exists()
    if revision is not None and (local or name in catalog.CATALOG):
        raise BadInput(f"{name} has no revisions, only models of the hub have: leave revision {revision!r} out.")
    if name in catalog.CATALOG:
        model, tokenizer = _from_folder(catalog.folder(name), number)
        source = catalog.CATALOG[name].source
    elif path.is_file():
        model, tokenizer, source = _from_file(path, number)
    elif (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        options: dict[str, Any] = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
        return _from_adapter(path, chat_template=chat_template, date=date, **options)
    elif path.is_dir():
        _check_folder(path)
        model, tokenizer = _from_folder(path, number, trust_remote_code=trust_remote_code)
        source = f"The folder {path.name} ({_size(model)})."
    else:
        _check_hub_name(name, path, (*catalog.CATALOG, TINY))
        model, tokenizer = _from_folder(name, number, trust_remote_code=trust_remote_code, revision=revision)
        commit = getattr(model.config, "_commit_hash", None) or revision or "an unstated revision"
        source = f"{name} of the model hub at {commit} ({_size(model)})."
    if template is not None:
        tokenizer.chat_template = template
    with advice(f"on {target}, for the weights of {name}", "use dtype bfloat16 or device cpu"):
        model = model.to(target).eval()
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        source=source,
        chat_template="none" if chat_template == "none" else "auto",
        date=date,
        origin=Origin(str(path.resolve()) if local else name, revision, trust_remote_code),
    )


def wrap(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    name: str = "",
    chat_template: str = "auto",
    date: str | datetime.date = DATE,
) -> LanguageModel:
    """A model and its tokenizer that are in memory already, as a LanguageModel; neither is copied.

    name: for reports, else what the model was loaded from. chat_template, date: as of `load`. Raises BadInput for what is no
    causal language model of transformers, and without its tokenizer.
    """
    if not callable(getattr(model, "get_input_embeddings", None)) or not hasattr(model, "config"):
        raise BadInput(f"Found a {type(model).__name__} where a causal language model of transformers was expected.")
    if tokenizer is None or not callable(getattr(tokenizer, "decode", None)):
        found = "no tokenizer" if tokenizer is None else f"a {type(tokenizer).__name__} as tokenizer"
        raise BadInput(f"Found {found} beside a model that is given as an object: give tokenizer=, the model's own.")
    template, date = chat_template_text(chat_template), check_date(date)
    if template is not None:
        tokenizer.chat_template = template
    name = name or Path(getattr(model.config, "_name_or_path", "") or type(model).__name__).name
    chosen = "none" if chat_template == "none" else "auto"
    return LanguageModel(model, tokenizer, name, f"{name}, given in memory ({_size(model)}).", chosen, date)


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # Not inference mode: what is scored here may be a constant in a loss later, which such tensors cannot be.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def memory_advice(batch_size: int) -> Iterator[None]:
    """Turns running out of memory into a sentence with the next batch size to try."""
    smaller = f"try a batch size of {batch_size // 2}" if batch_size > 1 else "use a smaller model or shorter texts"
    with advice(f"at batch size {batch_size}", smaller):
        yield


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise BadInput(
            f"Device {device!r} is unknown. {did_you_mean(device, ['auto', 'cpu', 'cuda', 'mps'])}"
        ) from error
    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}.get(target.type, lambda: True)
    if not available():
        raise BadInput(f"Device {device!r} was asked for, but this machine's torch has none: use --device cpu.")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"Device {device!r} was asked for, but there are {torch.cuda.device_count()}, counted from 0.")
    return target


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype | str:
    if device.type == "mps" and dtype in ("float64", torch.float64):
        raise BadInput("Device mps has no float64: use dtype float32, or device cpu.")
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return "auto" if device.type == "cuda" else torch.float32
    if dtype not in _DTYPES:
        raise BadInput(f"Number type {dtype!r} is unknown. {did_you_mean(dtype, ['auto', *_DTYPES])}")
    return _DTYPES[dtype]


def chat_template_text(chat_template: str) -> str | None:
    """The text of a template given as a file, None for "auto" and "none". Raises BadInput for a file that cannot be read."""
    if chat_template in ("auto", "none"):
        return None
    path = Path(chat_template).expanduser()
    if not path.is_file():
        raise BadInput(
            f"Chat template {chat_template!r} is neither 'auto' nor 'none' nor a file with a Jinja template."
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: the chat template cannot be read ({error}): it must be a text in UTF-8.") from error


def _from_file(path: Path, dtype: torch.dtype | str) -> tuple[Any, Any, str]:
    if path.suffix.lower() != ".gguf":
        raise BadInput(f"{path} is a file: a model is a folder with config.json and *.safetensors, or a .gguf file.")
    model, tokenizer, quantisation = read_gguf(path, dtype if isinstance(dtype, torch.dtype) else torch.float32)
    return model, tokenizer, f"{path.name}, de-quantised from {quantisation} ({_size(model)})."


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        models = sorted(child.name for child in path.iterdir() if (child / "config.json").is_file())
        files = sorted(child.name for child in path.glob("*.gguf"))
        inside = f" Did you mean {path / (models + files)[0]}?" if models or files else ""
        raise BadInput(
            f"{path} holds no config.json, so it is no model folder. "
            f"Give the folder that save_pretrained wrote, or a .gguf file.{inside}"
        )
    if not any(path.glob("*.safetensors")):
        pickles = sorted({file.name for pattern in _PICKLES for file in path.glob(pattern)})
        found = (
            f"{pickles[0]} is a pickle, which can run code when it is read" if pickles else "there is no weight file"
        )
        raise BadInput(
            f"{path} holds no *.safetensors: {found}. "
            "Convert it where you trust it: load it with transformers and call save_pretrained."
        )
    if not any((path / file).is_file() for file in _TOKENIZER_FILES):
        raise BadInput(
            f"{path} holds a model but no tokenizer ({', '.join(_TOKENIZER_FILES[:3])} ...). "
            "Save the model's own there: AutoTokenizer.from_pretrained(ITS_NAME).save_pretrained(FOLDER)."
        )


def _check_hub_name(name: str, path: Path, known: tuple[str, ...]) -> None:
    """Refuses what cannot be a hub id (owner/name) before anything is looked up: a mistyped path or name."""
    parts = name.split("/")
    looks_like_path = name.startswith((".", "~", os.sep)) or "\\" in name or len(parts) > 2 or path.suffix == ".gguf"
    if len(parts) == 2 and all(parts) and not looks_like_path:
        return
    if not looks_like_path:
        raise BadInput(
            f"No model is called {name!r}, and there is no such folder. {did_you_mean(name, known)} "
            "A model of the hub is written owner/name."
        )
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    siblings = [child.name for child in parent.iterdir()] if parent.is_dir() else []
    near = did_you_mean(path.name, siblings) if parent == path.parent and siblings else f"{parent} exists."
    raise BadInput(f"{path} does not exist. {near} Known names: {', '.join(sorted(known))}.")


def _from_folder(
    where: str | Path, dtype: torch.dtype | str, *, trust_remote_code: bool = False, revision: str | None = None
) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision or "main"}
    try:
        with without_bars():
            tokenizer = AutoTokenizer.from_pretrained(where, **options)
            model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, use_safetensors=True, **options)
    except ImportError as error:
        raise MissingExtra(f"{where} needs a package that is not installed: {_first_sentence(error)}") from error
    except Exception as error:
        # transformers, huggingface_hub, safetensors and json raise a dozen unrelated types for a model that is absent,
        # gated, cut short, of an unknown architecture or in need of its own code; each message says which.
        raise BadInput(f"{where} cannot be loaded: {_first_sentence(error)}{_remedy(where, error)}") from error
    # Where it was found is no property of it: written on, a resumed job would end in other bytes than one in one go.
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    return model, tokenizer


def _remedy(where: str | Path, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return " It brings its own code: pass trust_remote_code=True only if you have read it."
    if isinstance(where, Path):
        return " The folder may be incomplete: write it again with save_pretrained."
    offline = " HF_HUB_OFFLINE is set, so only models already in the hub's cache are found." * bool(
        os.environ.get("HF_HUB_OFFLINE")
    )
    return f" Check the id, and that the hub can be reached.{offline} 'smollm2' and a folder need no hub."


def _from_adapter(path: Path, **options: Any) -> LanguageModel:
    """The base model that the adapter names, with the adapter merged into it."""
    try:
        stated = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        base, revision = stated.get("base_model_name_or_path"), stated.get("revision")
    except (OSError, ValueError, AttributeError) as error:
        raise BadInput(f"{path / 'adapter_config.json'} cannot be read ({error}): export the adapter again.") from error
    if not isinstance(base, str) or not base or base == TINY:
        raise BadInput(f"{path} is an adapter that names no base model to load: attach it with PeftModel to its own.")
    language_model = load(base, revision=revision, **options)
    language_model = adapters.merge(adapters.attach_saved(language_model, path))
    language_model.name = str(path)
    language_model.source = f"{language_model.source} With the adapter {path.name} merged into it."
    language_model.origin = Origin(str(path.resolve()), None, bool(options["trust_remote_code"]))
    return language_model


def _size(model: PreTrainedModel) -> str:
    dtype = str(model.dtype).removeprefix("torch.")
    return f"{type(model).__name__}, {model.num_parameters() / 1e6:.1f} million parameters, {dtype}"


def _first_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
