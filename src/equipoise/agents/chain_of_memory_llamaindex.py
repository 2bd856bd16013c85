"""Chain-of-Memory in a query engine of LlamaIndex: nodes go in as they were found, and come out in chains.

    index.as_query_engine(similarity_top_k=20, node_postprocessors=[ChainPostprocessor(embed_model=yours)])

`organized` gives blocks, print and trace of one question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from equipoise.agents.chain_of_memory import Context, Gate, Organized, organize, read_date
from equipoise.agents.memory import MemoryItem, words
from equipoise.core.errors import BadInput, MissingExtra

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding  # pyright: ignore[reportMissingImports]
    from llama_index.core.postprocessor.types import BaseNodePostprocessor  # pyright: ignore[reportMissingImports]
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise MissingExtra("This postprocessor is a part of LlamaIndex: pip install llama-index-core.") from error


class ChainPostprocessor(BaseNodePostprocessor):
    """Nodes in chains, best anchor first, with their cosines as scores. Settings as of `chain_of_memory.organize`.

    embed_model: the one that the index was made with; not asked where all nodes and the query bring their vectors.
    date_field: of a node's metadata, ISO 8601 text or a datetime; None for none. A node that comes twice is taken once.
    Raises BadInput as `organize` does, without a query, and without vectors where there is no model.
    """

    embed_model: BaseEmbedding | None = None
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

    @classmethod
    def class_name(cls) -> str:
        """How LlamaIndex calls it."""
        return "ChainPostprocessor"

    def organized(self, nodes: Sequence[NodeWithScore], query_bundle: QueryBundle) -> Organized:
        """Blocks, print, trace and costs; items have the nodes' ids."""
        named = {node.node.node_id: node.node for node in reversed(nodes)}
        items = [
            MemoryItem(
                name,
                node.get_content(MetadataMode.LLM),
                read_date(node.metadata.get(self.date_field) if self.date_field else None, f"Node {name!r}"),
                (name,),
            )
            for name, node in named.items()
        ]
        vectors: list[Any] = [node.embedding for node in named.values()]
        query = query_bundle.embedding
        model = self.embed_model
        if model is None and (query is None or self.context == "concatenated" or None in vectors):
            raise BadInput("The nodes, the query or its contexts have no vectors: give embed_model=, the index's own.")
        if model is not None and named and (query is None or any(vector is None for vector in vectors)):
            texts = [node.get_content(MetadataMode.EMBED) for node in named.values()]
            vectors = model.get_text_embedding_batch(texts)  # all from one model, whatever some nodes brought
            query = model.get_agg_embedding_from_queries(query_bundle.embedding_strs)
        return organize(
            items,
            vectors,
            [] if query is None else query,
            k=self.k,
            anchors=self.anchors,
            beta=self.beta,
            gate=self.gate,
            context=self.context,
            max_length=self.max_length,
            embedder=model.get_text_embedding_batch if model is not None and self.context == "concatenated" else None,
            repeat=self.repeat,
            headers=False,
            budget=self.budget,
            count=self.count,
        )

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise BadInput("Chains are of a question: call postprocess_nodes with query_str= or query_bundle=.")
        named = {node.node.node_id: node.node for node in nodes}
        made = self.organized(nodes, query_bundle)
        score = {item.id: value for item, value in zip(made.pool, made.scores, strict=True)}
        return [NodeWithScore(node=named[item.id], score=score[item.id]) for item in made.items]
