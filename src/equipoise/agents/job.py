"""Two jobs: ask a memory of conversations, and compare memory systems so that no answer sees the future."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from equipoise.agents.memory_result import MemoryComparison, MemoryReply
from equipoise.chat.options import CallBudget, Connections, ModelArguments, ModelPrices, Replay
from equipoise.core.job import Request, job
from equipoise.core.options import Setting

if TYPE_CHECKING:
    from equipoise.data.histories import History

    Histories = str | Path | Sequence[History]
else:  # what a command line can give
    Histories = Path

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Asked = Literal["online", "asof", "offline"]


def _of_own(systems: Any) -> bool:
    """Whether one of them is a file, whose code runs."""
    return any(":" in str(each) for each in (systems if isinstance(systems, list | tuple) else [systems]))


@job("memory compare", MemoryComparison)
def compare(
    data: Annotated[Histories, Setting(objects=True)],
    *,
    systems: Annotated[list[str], Setting(alias=("--system",), typed=_of_own)],
    protocols: tuple[Asked, ...] = ("online", "asof", "offline"),
    reader: str | None = None,
    grader: list[str] | None = None,
    extractor: str | None = None,
    k: Count = 20,
    context_tokens: Count | None = None,
    embedder: str | None = None,
    limit: Count | None = None,
    reader_url: str | None = None,
    reader_args: ModelArguments = None,
    grader_url: str | None = None,
    grader_args: ModelArguments = None,
    extractor_url: str | None = None,
    extractor_args: ModelArguments = None,
    budget: CallBudget = None,
    prices: ModelPrices = None,
    max_connections: Connections = None,
    replay: Replay = None,
    seed: Seed = 0,
) -> Request:
    """Compare memory systems on the same questions: what they find, what is answered from it, and what both cost.

    Example that runs: `equipoise memory compare --data examples/kitchen.json --systems bm25,recency --k 3`

    Your own: `equipoise memory compare --data d.json --systems chain-of-memory,mine.py:memory --reader openai/gpt-4o-mini`

    Full text and plain retrieval are rivals in every comparison. The folder gets answers.jsonl and a report. The same
    command goes on where it was stopped, and asks no model twice.

    Parameters
    ----------
    data
        Conversations with questions: LifeDialBench's, LoCoMo's or LongMemEval's files, or a JSON list of histories (name,
        sessions of time and turns, questions); in Python also History objects.
    systems
        By name (full, recency, bm25, rag-turns, rag-sessions, chain-of-memory, facts, notes, session-notes, empty, oracle,
        thinned), or FILE:FUNCTION for one of your own.
    protocols
        online: a question is asked as soon as it can be, of what was said until then. asof: after the end, of items that are
        not younger than the question. offline: after the end, of everything. Scores are compared under the first of these.
    reader
        Who answers from what a system prints, as Inspect AI names it (openai/gpt-4o-mini, or openai-api/local/NAME with
        reader_url); equipoise/NAME is a model of this machine. Not given: nobody answers, and evidence recall is compared.
    grader
        Models that grade answers in words; the first decides, a second one shows how far both agree. Not given: an answer is
        right when it holds the words of a right one.
    extractor
        Who writes what facts, notes and session-notes keep; the reader when not given.
    k
        Items that a system may find for a question. full and oracle print all of theirs, notes the linked ones too.
    context_tokens
        Words that it may print, the same for all systems; not given: as many as k items have.
    embedder
        Who makes vectors: minilm, none, or the folder of a sentence-transformers model. minilm when not given and needed, by
        a function of your own where it names `embedder`. With none, thinned searches by words.
    limit
        Only the first so many questions of each history.
    reader_url
        The address of a server that speaks OpenAI's protocol.
    reader_args
        Arguments of the reader's client, as Inspect AI takes them.
    grader_url
        The address of the graders' server.
    grader_args
        Arguments of the graders' client.
    extractor_url
        The address of the extractor's server.
    extractor_args
        Arguments of the extractor's client.
    budget
        Of calls: calls=500,tokens=2e6,usd=4,minutes=30.
    prices
        Dollars per million tokens read and written, NAME=2.5:10.
    max_connections
        Calls of a model at once.
    replay
        A record of calls that alone answers, offline.
    seed
        Of planted answers and of redrawn clusters.
    """
    from equipoise.agents.comparing import Comparing

    return Comparing.read(
        data,
        systems,
        protocols,
        SimpleNamespace(
            reader=reader, reader_url=reader_url, reader_args=reader_args, grader=grader, grader_url=grader_url,
            grader_args=grader_args, extractor=extractor, extractor_url=extractor_url, extractor_args=extractor_args,
            budget=budget, prices=prices, max_connections=max_connections, replay=replay, k=k,
            context_tokens=context_tokens, embedder=embedder, limit=limit, seed=seed,
        ),
    )  # fmt: skip


@job("memory ask", MemoryReply)
def ask(
    history: Annotated[Histories, Setting(objects=True)],
    question: str,
    *,
    now: str | None = None,
    conversation: str | None = None,
    system: Annotated[str, Setting(typed=_of_own)] = "chain-of-memory",
    reader: str | None = None,
    extractor: str | None = None,
    k: Count = 20,
    context_tokens: Count | None = None,
    embedder: str | None = None,
    reader_url: str | None = None,
    reader_args: ModelArguments = None,
    extractor_url: str | None = None,
    extractor_args: ModelArguments = None,
    budget: CallBudget = None,
    prices: ModelPrices = None,
    max_connections: Connections = None,
    replay: Replay = None,
) -> Request:
    """Ask a memory of conversations: the answer with its evidence, and the decisions that led to it.

    Example that runs: `equipoise memory ask --history examples/kitchen.json --question "Who has the key?" --system bm25`

    Your own: `equipoise memory ask --history h.json --question "Who is the doctor?" --reader openai/gpt-4o-mini`

    Without a reader the evidence alone is shown: turns with their ids and dates.

    Parameters
    ----------
    history
        Conversations, in the forms that `memory compare` reads; in Python also History objects.
    question
        What is asked.
    now
        The moment at which it is asked, 2024-05-07 18:30, or the end of a day: what was said later is not known, in the
        middle of a session where its turns have times of their own. After the end when not given.
    conversation
        Which history, by its name, where the file holds several.
    system
        A memory system by name, or FILE:FUNCTION for one of your own.
    reader
        Who answers from what the system prints, as Inspect AI names it; equipoise/NAME is a model of this machine.
    extractor
        Who writes what facts, notes and session-notes keep; the reader when not given.
    k
        Items that the system may find; full and oracle print all of theirs, notes the linked ones too.
    context_tokens
        Words that it may print; not given: as many as k items have.
    embedder
        Who makes vectors: minilm, none, or the folder of a sentence-transformers model. minilm when not given and needed, by
        a function of your own where it names `embedder`. With none, thinned searches by words.
    reader_url
        The address of a server that speaks OpenAI's protocol.
    reader_args
        Arguments of the reader's client, as Inspect AI takes them.
    extractor_url
        The address of the extractor's server.
    extractor_args
        Arguments of the extractor's client.
    budget
        Of calls: calls=500,tokens=2e6,usd=4,minutes=30.
    prices
        Dollars per million tokens read and written, NAME=2.5:10.
    max_connections
        Calls of a model at once.
    replay
        A record of calls that alone answers, offline.
    """
    from equipoise.agents.asking import Asking

    return Asking.read(
        history,
        question,
        SimpleNamespace(
            reader=reader, reader_url=reader_url, reader_args=reader_args, extractor=extractor, extractor_url=extractor_url,
            extractor_args=extractor_args, budget=budget, prices=prices, max_connections=max_connections, replay=replay,
            k=k, context_tokens=context_tokens, embedder=embedder, now=now, conversation=conversation, system=system,
        ),
    )  # fmt: skip
