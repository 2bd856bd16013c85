"""Answers from a GGUF file by llama.cpp (xllamacpp): on a CPU several times faster than torch.

No prompt cache by default: what a call finds in it would depend on the calls before, and sums of another order round
differently; without it a repeated call gives identical numbers in any order. The sampling is that of the torch engine
(temperature, then top_k, then top_p; none of llama.cpp's other defaults), with llama.cpp's own random numbers. Asked for
log-probabilities, llama.cpp says nothing of a token that ends within a character: the answer's `tokens` are without those.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from equipoise.chat.batching import GenerationAnswer, GenerationRequest, Token
from equipoise.chat.grammar import json_grammar
from equipoise.core.errors import BadInput, MissingExtra, WorkFailed
from equipoise.data.text import unjoined

_SILENT = -1
_HEADER = 2**26  # bytes; the fields of a GGUF file stand before its weights
_TEMPLATE_FIELD = b"tokenizer.chat_template"


class LlamaEngine:
    """Engine over one GGUF file. threads: None is OMP_NUM_THREADS, else the physical cores. context: None is 8192.

    chat_template: "auto" (the file's), "none" (only single texts can be asked), or the path of a Jinja file.
    parallel: how many calls are computed together; above 1 the numbers depend a little on who shares the batch.
    Raises MissingExtra without xllamacpp, BadInput for a file that llama.cpp does not load.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        threads: int | None = None,
        context: int | None = None,
        parallel: int = 1,
        chat_template: str = "auto",
    ) -> None:
        try:
            xllamacpp: Any = import_module("xllamacpp")  # has no type stubs
        except ImportError as error:
            raise MissingExtra("The engine llama.cpp needs xllamacpp: pip install 'equipoise[llamacpp]'.") from error
        self.name = name
        parameters = xllamacpp.CommonParams()
        parameters.verbosity = _SILENT
        parameters.model.path = str(path)
        parameters.n_ctx = (context or 8192) * parallel  # llama.cpp lowers it to what the model was made for
        parameters.n_parallel = parallel
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads or default_threads()
        parameters.warmup = False
        parameters.cache_prompt = False
        parameters.cache_ram_mib = 0
        parameters.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE  # part of the text
        self._uses_template = chat_template != "none" and (chat_template != "auto" or _has_template(path))
        if chat_template not in ("auto", "none"):
            from equipoise.language.model import chat_template_text

            parameters.chat_template = chat_template_text(chat_template)
        try:
            self._server = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise BadInput(
                f"llama.cpp cannot load {path}: the file may be cut short, of an architecture it does not know, or too "
                "large for the memory at this context. Fetch it again, lower context, or use engine=transformers."
            ) from error

    def run(
        self,
        requests: Sequence[GenerationRequest],
        reply: Callable[[int, GenerationAnswer | Exception], None],
        wanted: Callable[[int], bool],
    ) -> None:
        for index, request in enumerate(requests):
            if wanted(index):
                try:
                    reply(index, self._answer(request, lambda index=index: wanted(index)))
                except (BadInput, WorkFailed) as error:
                    reply(index, error)

    def close(self) -> None:
        """Frees the model's memory and ends llama.cpp's threads."""
        del self._server

    def _answer(self, request: GenerationRequest, wanted: Callable[[], bool]) -> GenerationAnswer:
        chunks: list[dict[str, Any]] = []

        def receive(chunk: dict[str, Any]) -> bool:
            chunks.append(chunk)
            return not wanted()  # true ends the call

        body = _body(request)
        if self._uses_template:
            handle = self._server.handle_chat_completions
            body["messages"] = [{"role": turn.role, "content": turn.content} for turn in request.messages]
        else:
            handle = self._server.handle_completions
            body["prompt"] = self._plain(request)
        try:
            result = handle(body, receive)
        except (ValueError, RuntimeError) as error:
            raise BadInput(f"llama.cpp refuses the call: {error}") from error
        return self._read(request, [*chunks, result] if isinstance(result, dict) else chunks)

    def _plain(self, request: GenerationRequest) -> str:
        if [turn.role for turn in request.messages] != ["user"]:
            raise BadInput(
                f"The prompt is a conversation, but {self.name} has no chat template in use: give a Jinja file as "
                "chat_template, or ask with one text."
            )
        return request.messages[0].content.rstrip(" ")

    def _read(self, request: GenerationRequest, chunks: list[dict[str, Any]]) -> GenerationAnswer:
        """One answer from the parts that llama.cpp sent."""
        text, finish, usage, tokens = "", None, {}, []
        for chunk in chunks:
            if error := chunk.get("error"):
                raise self._failure(error)
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices", ()):
                text += (choice["delta"].get("content") if "delta" in choice else choice.get("text")) or ""
                finish = choice.get("finish_reason") or finish
                tokens += (choice.get("logprobs") or {}).get("content") or ()
        written = int(usage.get("completion_tokens", 0))
        short = "max_tokens" if written >= request.max_tokens else "model_length"
        return GenerationAnswer(
            text=unjoined(text),
            ended="stop" if finish == "stop" else short,
            input_tokens=int(usage.get("prompt_tokens", 0)),
            output_tokens=written,
            tokens=tuple(_token(entry, request.settings.logprobs or 0) for entry in tokens),
        )

    def _failure(self, error: dict[str, Any]) -> BadInput | WorkFailed:
        if error.get("type") == "exceed_context_size_error":
            return BadInput(
                f"The prompt has {error['n_prompt_tokens']} tokens, and {self.name} reads {error['n_ctx']} with the "
                "answer: shorten it, or raise context where the model was made for more."
            )
        kind = BadInput if error.get("code") == 400 else WorkFailed
        return kind(f"llama.cpp could not answer: {error.get('message', error)}")


def default_threads() -> int:
    """OMP_NUM_THREADS when it is set, else the physical cores this process may use, at least 1.

    More would be slower: llama.cpp's threads wait for each other in a busy loop.
    """
    stated = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if stated.isdecimal() and int(stated):
        return int(stated)
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def _body(request: GenerationRequest) -> dict[str, Any]:
    settings = request.settings
    body: dict[str, Any] = {
        "stream": True,  # so that a call can be ended, and without the beginning that it was given
        "stream_options": {"include_usage": True},
        "max_tokens": request.max_tokens,
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "samplers": ["temperature", "top_k", "top_p"],
        "seed": request.seed % 2**31,  # 2^32 - 1 would mean "at random"
        "cache_prompt": False,
    }
    if settings.stop:
        body["stop"] = list(settings.stop)
    if settings.logprobs is not None:
        body["n_probs"] = max(1, settings.logprobs)
    if request.schema is not None:
        # llama.cpp's own conversion ignores what it does not know, such as bounds of a number.
        body["grammar"] = json_grammar(request.schema)
    return body


def _token(entry: dict[str, Any], count: int) -> Token:
    top = tuple(_token(other, 0) for other in entry.get("top_logprobs", ())[:count])
    return Token(entry["token"], entry["logprob"], bytes(entry["bytes"]), top)


def _has_template(path: Path) -> bool:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(_TEMPLATE_FIELD, 0, _HEADER) >= 0
