"""Chain-of-Memory behind a retriever of LangChain: documents go in as they were found, and come out in chains.

    ContextualCompressionRetriever(base_retriever=yours, base_compressor=ChainCompressor(embeddings=yours))

Let the retriever find k documents or more. `organized` gives blocks, print and trace of one question.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

from equipoise.agents.chain_of_memory import Context, Gate, Organized, organize, read_date
from equipoise.agents.memory import MemoryItem, words
from equipoise.core.errors import MissingExtra

try:
    from langchain_core.documents import BaseDocumentCompressor, Document  # pyright: ignore[reportMissingImports]
    from langchain_core.embeddings import Embeddings  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise MissingExtra("This compressor is a part of LangChain: pip install langchain-core.") from error


class ChainCompressor(BaseDocumentCompressor):
    """Documents in chains, best anchor first. Settings as of `chain_of_memory.organize`.

    embeddings: those that the store was made with. date_field: of a document's metadata, ISO 8601 text or a datetime; None
    for none. Copies come back, with the chain's number and the score in their metadata; a document that comes twice under
    one id is taken once. Raises BadInput as `organize` does.
    """

    embeddings: Embeddings
    k: int = 20
    anchors: int = 3
    beta: float | Literal["adaptive"] = 0.5
    gate: Gate = "product"
    context: Context = "mean"
    max_length: int | None = None
    repeat: bool = False
    budget: int | None = None
    count: Callable[[str], int] = words
    date_field: str | None = "date"

    model_config = {"arbitrary_types_allowed": True, "extra": "forbid"}  # noqa: RUF012

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Any = None
    ) -> Sequence[Document]:
        """The documents that are printed, in their order."""
        named = self._named(documents)
        made = self._organized(named, query)
        score = {item.id: value for item, value in zip(made.pool, made.scores, strict=True)}
        return [
            named[item.id].model_copy(
                update={"metadata": {**named[item.id].metadata, "chain": chain, "score": score[item.id]}}
            )
            for chain, block in enumerate(made.blocks, 1)
            for item in block
        ]

    def organized(self, documents: Sequence[Document], query: str) -> Organized:
        """Blocks, print, trace and costs; items have the documents' ids; where these have none, "0", "1", ... as far as no
        document is called so.
        """
        return self._organized(self._named(documents), query)

    def _named(self, documents: Sequence[Document]) -> dict[str, Document]:
        named: dict[str, Document] = {}
        taken = {document.id for document in documents}
        free = (name for name in map(str, itertools.count()) if name not in taken)
        for document in documents:
            named.setdefault(document.id or next(free), document)
        return named

    def _organized(self, named: dict[str, Document], query: str) -> Organized:
        dates = {
            name: read_date(document.metadata.get(self.date_field) if self.date_field else None, f"Document {name!r}")
            for name, document in named.items()
        }
        items = [MemoryItem(name, each.page_content, dates[name], (name,)) for name, each in named.items()]
        texts = [item.text for item in items]
        return organize(
            items,
            self.embeddings.embed_documents(texts) if texts else [],
            self.embeddings.embed_query(query) if texts else [],
            k=self.k,
            anchors=self.anchors,
            beta=self.beta,
            gate=self.gate,
            context=self.context,
            max_length=self.max_length,
            embedder=self.embeddings.embed_documents if self.context == "concatenated" else None,
            repeat=self.repeat,
            headers=False,
            budget=self.budget,
            count=self.count,
        )
