"""Inspect AI's provider `equipoise/NAME`: whatever `language.load` loads, answered in this process.

NAME is a catalogue name, a folder, a GGUF file or a hub id. Arguments (-M on Inspect's command line):

engine             "transformers" or "llama.cpp". Without one: llama.cpp on a CPU, for a GGUF file or a catalogue name, when
                   xllamacpp is installed and no argument of transformers alone is given; else transformers.
chat_template      "auto", "none" or the path of a Jinja file
context            most tokens of prompt and answer together (transformers: the model's; llama.cpp: that, at most 8192)
transformers only  device, dtype, revision, trust_remote_code (see language.load), batch_size (32)
llama.cpp only     threads (OMP_NUM_THREADS, else the physical cores), parallel (1)

Sampling: temperature (without one 0, the likeliest token), top_p, top_k, seed. The random numbers of a call come from a
hash of its messages, settings and seed: the same call gives the same answer whoever shares its batch, so draw again with
another seed or with num_choices. A last message of the assistant is the beginning of the answer. max_tokens is 2048
unless set. What cannot be done (tools, pictures, penalties) is refused, never ignored.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from equipoise.chat.batching import (
    Batcher,
    GenerationAnswer,
    GenerationEngine,
    GenerationRequest,
    GenerationSettings,
    Token,
)
from equipoise.core.errors import BadInput, MissingExtra, did_you_mean
from equipoise.data.records import Message
from equipoise.language import catalog

ENGINES = ("transformers", "llama.cpp")
MAX_TOKENS = 2048
BATCH_SIZE = 32
_COMMON = ("engine", "chat_template", "context")
_TRANSFORMERS_ONLY = ("device", "dtype", "revision", "trust_remote_code", "batch_size", "date")
_LLAMA_ONLY = ("threads", "parallel")
_COUNTS = ("context", "batch_size", "threads", "parallel")
_REFUSED = ("frequency_penalty", "presence_penalty", "logit_bias", "best_of", "prompt_logprobs", "extra_body")


class EquipoiseAPI(ModelAPI):
    """A model in this process. Two of one name and arguments share one loaded model, until both are closed.

    Raises BadInput, with the remedy, for a name that cannot be loaded or an argument that does not exist.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, config=config or GenerateConfig())
        if base_url is not None:
            raise BadInput(f"equipoise/{model_name} runs in this process and has no base URL: leave {base_url!r} out.")
        self._arguments = _arguments(model_name, model_args)
        self._loaded: _Loaded | None = _acquire(model_name, self._arguments)

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Raises BadInput for what cannot be asked (tools, pictures, a prompt longer than the context)."""
        if tools:
            raise BadInput(f"equipoise/{self.model_name} calls no tools: leave {tools[0].name!r} out.")
        if self._loaded is None:  # closed by an evaluation that is over
            self._loaded = await asyncio.to_thread(_acquire, self.model_name, self._arguments)
        batcher = self._loaded.batcher
        requests = _requests(input, config)
        start = time.perf_counter()
        answers = await asyncio.gather(*(batcher.ask(request) for request in requests))
        return _output(self.model_name, answers, time.perf_counter() - start, config)

    def max_tokens(self) -> int | None:
        return MAX_TOKENS

    def max_connections(self) -> int:
        """Twice what is computed at once, so that the next batch waits at the engine and not outside."""
        return 2 * (self._loaded.at_once if self._loaded else 1)

    def connection_key(self) -> str:
        return json.dumps([self.model_name, self._arguments], default=str)

    def collapse_user_messages(self) -> bool:
        return True

    def close(self) -> None:
        """Gives the model back; the last to do so ends its threads and frees its memory. Asked again, it loads anew."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            _release(loaded)

    async def aclose(self) -> None:
        await asyncio.to_thread(self.close)


@dataclass(eq=False, slots=True)
class _Loaded:
    key: str
    batcher: Batcher
    at_once: int
    users: int = 1


_loaded: dict[str, _Loaded] = {}
_loading = threading.Lock()


def _acquire(name: str, arguments: dict[str, Any]) -> _Loaded:
    key = json.dumps([name, arguments], sort_keys=True, default=str)
    with _loading:
        if key in _loaded:
            _loaded[key].users += 1
        else:
            engine, batch_size, workers = _engine(name, arguments)
            _loaded[key] = _Loaded(key, Batcher(engine, batch_size, workers), batch_size * workers)
        return _loaded[key]


def _release(loaded: _Loaded) -> None:
    with _loading:
        loaded.users -= 1
        if not loaded.users:
            del _loaded[loaded.key]
            loaded.batcher.close()


def _arguments(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with the engine settled. Raises BadInput for an unknown one, or one of the other engine."""
    known = (*_COMMON, *_TRANSFORMERS_ONLY, *_LLAMA_ONLY)
    for argument in given:
        if argument not in known:
            raise BadInput(f"equipoise/{name} takes no argument {argument!r}. {did_you_mean(argument, known)}")
    arguments = {argument: value for argument, value in given.items() if value is not None}
    for argument in _COUNTS:
        value = arguments.get(argument, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadInput(f"{argument} is {value!r}: use a whole number of at least 1.")
    if not isinstance(arguments.get("trust_remote_code", False), bool):
        raise BadInput(f"trust_remote_code is {arguments['trust_remote_code']!r}: use true or false.")
    engine = arguments.setdefault("engine", _default_engine(name, arguments))
    if engine not in ENGINES:
        raise BadInput(f"Engine {engine!r} is unknown. {did_you_mean(str(engine), ENGINES)}")
    for argument in _LLAMA_ONLY if engine == "transformers" else _TRANSFORMERS_ONLY:
        if argument in arguments:
            raise BadInput(f"The engine {engine} has no {argument}: leave it out, or choose the other engine.")
    return arguments


def _default_engine(name: str, arguments: Mapping[str, Any]) -> str:
    if any(argument in arguments for argument in _LLAMA_ONLY):
        return "llama.cpp"
    if any(argument in arguments for argument in _TRANSFORMERS_ONLY):
        return "transformers"
    is_gguf = name in catalog.CATALOG or Path(name).suffix.lower() == ".gguf"
    if not is_gguf or importlib.util.find_spec("xllamacpp") is None:
        return "transformers"
    import torch

    return "transformers" if torch.cuda.is_available() or torch.backends.mps.is_available() else "llama.cpp"


def _engine(name: str, arguments: Mapping[str, Any]) -> tuple[GenerationEngine, int, int]:
    """The engine, the size of its batches and the number of its workers."""
    options = {key: arguments[key] for key in ("chat_template", "context") if key in arguments}
    if arguments["engine"] == "llama.cpp":
        from equipoise.chat.llama_engine import LlamaEngine

        parallel = arguments.get("parallel", 1)
        threads = arguments.get("threads")
        return LlamaEngine(_gguf(name), name=name, threads=threads, parallel=parallel, **options), 1, parallel
    from equipoise.chat.transformers_engine import TransformersEngine
    from equipoise.language.model import load

    loading = ("device", "dtype", "revision", "trust_remote_code", "chat_template", "date")
    language_model = load(name, **{key: arguments[key] for key in loading if key in arguments})
    batch_size = arguments.get("batch_size", BATCH_SIZE)
    return TransformersEngine(language_model, context=arguments.get("context")), batch_size, 1


def _gguf(name: str) -> Path:
    if importlib.util.find_spec("xllamacpp") is None:  # before a file is fetched for it
        raise MissingExtra("The engine llama.cpp needs xllamacpp: pip install 'equipoise[llamacpp]'.")
    if name in catalog.CATALOG:
        return catalog.gguf_file(name)
    path = Path(name).expanduser()
    if path.suffix.lower() != ".gguf" or not path.is_file():
        reason = "is no GGUF file" if path.exists() else "does not exist"
        raise BadInput(
            f"{name} {reason}: the engine llama.cpp takes a .gguf file or a name of the catalogue "
            f"({', '.join(catalog.CATALOG)}); for others use engine=transformers."
        )
    from equipoise.language.gguf import check_gguf

    check_gguf(path)
    return path


def _requests(messages: Sequence[ChatMessage], config: GenerateConfig) -> list[GenerationRequest]:
    """One request per choice. Raises BadInput for settings out of range or that no engine here has."""
    if not messages:
        raise BadInput("There is no message to answer: give at least one.")
    for setting in _REFUSED:
        if getattr(config, setting):
            raise BadInput(f"{setting} is not known to the models of equipoise: leave it out.")
    temperature = 0.0 if config.temperature is None else config.temperature
    top_p = 1.0 if config.top_p is None else config.top_p
    top_k = 0 if config.top_k is None else max(0, config.top_k)  # some say -1 for "all"
    max_tokens = MAX_TOKENS if config.max_tokens is None else config.max_tokens
    stop = tuple(config.stop_seqs or ())
    if not 0 <= temperature < float("inf"):
        raise BadInput(f"The temperature is {temperature}: use 0 for the likeliest answer, or a number above.")
    if not 0 < top_p <= 1:
        raise BadInput(f"top_p is {top_p}: use a share above 0, at most 1.")
    if max_tokens < 1:
        raise BadInput(f"max_tokens is {max_tokens}: use at least 1.")
    if "" in stop:
        raise BadInput("A stop sequence is empty, which would end every answer before it begins: leave it out.")
    settings = GenerationSettings(
        temperature, top_p, top_k, stop, (config.top_logprobs or 0) if config.logprobs else None
    )
    turns = tuple(_turn(message) for message in messages)
    schema = None
    if config.response_schema is not None:
        if turns[-1].role == "assistant":
            raise BadInput(
                "The answer cannot both go on from a given beginning and follow a response schema: drop one."
            )
        schema = json.dumps(config.response_schema.json_schema.model_dump(exclude_none=True))
    what = [[asdict(turn) for turn in turns], asdict(settings), max_tokens, schema, config.seed]
    return [
        GenerationRequest(turns, settings, max_tokens, _seed([*what, choice]), schema)
        for choice in range(config.num_choices or 1)
    ]


def _seed(what: list[Any]) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(what).encode()).digest()[:4], "big") >> 1


def _turn(message: ChatMessage) -> Message:
    if message.role == "tool":
        raise BadInput("A message holds the result of a tool, and the models of equipoise call none: leave it out.")
    for part in [] if isinstance(message.content, str) else message.content:
        if not isinstance(part, ContentText | ContentReasoning):
            raise BadInput(f"A message holds a part of the type {part.type!r}; these models read text alone.")
    return Message(message.role, message.text)


def _output(name: str, answers: Sequence[GenerationAnswer], seconds: float, config: GenerateConfig) -> ModelOutput:
    choices = [
        ChatCompletionChoice(
            message=ChatMessageAssistant(content=answer.text, model=name, source="generate"),
            stop_reason=answer.ended,
            logprobs=Logprobs(content=[_logprob(token) for token in answer.tokens]) if config.logprobs else None,
        )
        for answer in answers
    ]
    read, written = answers[0].input_tokens, sum(answer.output_tokens for answer in answers)
    usage = ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written)
    return ModelOutput(model=name, choices=choices, usage=usage, time=seconds)


def _logprob(token: Token) -> Logprob:
    top = [TopLogprob(token=other.text, logprob=other.logprob, bytes=_bytes(other)) for other in token.top]
    return Logprob(token=token.text, logprob=token.logprob, bytes=_bytes(token), top_logprobs=top)


def _bytes(token: Token) -> list[int] | None:
    return None if token.content is None else list(token.content)
