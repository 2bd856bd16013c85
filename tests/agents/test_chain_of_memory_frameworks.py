"""Chains behind the interfaces of LangChain and LlamaIndex, on the worked example; what is said where these are missing."""

import enum
import importlib
import importlib.util
import sys
from datetime import datetime
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, Field

from equipoise.agents.chain_of_memory import UNDATED, read_date
from equipoise.core.errors import BadInput, MissingExtra

VECTORS = {"A": [0.8, 0.6, 0.0], "B": [0.6, 0.8, 0.0], "C": [0.6, 0.0, 0.8], "D": [0.0, 0.6, 0.8], "?": [1.0, 0.0, 0.0]}


class Document(BaseModel):
    page_content: str
    id: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class TextNode(BaseModel):
    text: str
    id_: str
    embedding: list[float] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @property
    def node_id(self):
        return self.id_

    def get_content(self, mode):
        return self.text


class NodeWithScore(BaseModel):
    node: TextNode
    score: float


class QueryBundle(BaseModel):
    query_str: str
    embedding: list[float] | None = None

    def __init__(self, query_str, **more):
        super().__init__(query_str=query_str, **more)

    @property
    def embedding_strs(self):
        return [self.query_str]


class BaseEmbedding(BaseModel):
    def get_text_embedding_batch(self, texts):
        return [self._get_text_embedding(text) for text in texts]

    def get_agg_embedding_from_queries(self, queries):
        (query,) = queries
        return self._get_query_embedding(query)


class BaseNodePostprocessor(BaseModel):
    def postprocess_nodes(self, nodes, query_bundle=None, query_str=None):
        return self._postprocess_nodes(nodes, query_bundle or (query_str and QueryBundle(query_str)))


STAND_INS = {
    "langchain_core": {},
    "langchain_core.documents": {"Document": Document, "BaseDocumentCompressor": type("Base", (BaseModel,), {})},
    "langchain_core.embeddings": {"Embeddings": type("Embeddings", (), {})},
    "llama_index": {},
    "llama_index.core": {},
    "llama_index.core.base": {},
    "llama_index.core.base.embeddings": {},
    "llama_index.core.base.embeddings.base": {"BaseEmbedding": BaseEmbedding},
    "llama_index.core.postprocessor": {},
    "llama_index.core.postprocessor.types": {"BaseNodePostprocessor": BaseNodePostprocessor},
    "llama_index.core.schema": {
        "NodeWithScore": NodeWithScore, "QueryBundle": QueryBundle, "TextNode": TextNode,
        "MetadataMode": enum.Enum("MetadataMode", ["LLM", "EMBED"]),
    },
}  # fmt: skip


@pytest.fixture
def library(monkeypatch):
    """(name) -> the library where it is installed, else what our part of it asks of it."""

    def stand_in(name):
        if importlib.util.find_spec(name) is None:
            for path, held in STAND_INS.items():
                if path.split(".")[0] == name:
                    module = ModuleType(path)
                    module.__dict__.update(held)
                    monkeypatch.setitem(sys.modules, path, module)

    names = [f"equipoise.agents.chain_of_memory_{name}" for name in ("langchain", "llamaindex")]
    yield stand_in
    for name in names:
        sys.modules.pop(name, None)


def test_dates_are_read_in_one_way():
    nine = datetime(2024, 5, 7, 9, 0)
    assert (
        read_date("2024-05-07T09:00", "x") == read_date(nine, "x") == read_date("2024-05-07T11:00+02:00", "x") == nine
    )
    assert read_date(None, "x") == read_date("", "x") == UNDATED
    with pytest.raises(BadInput, match=r"Node 'x' has the date '2024/05/07 \(Tue\)': use ISO 8601"):
        read_date("2024/05/07 (Tue)", "Node 'x'")


@pytest.mark.parametrize("name", ["langchain", "llamaindex"])
def test_without_the_library_the_sentence_that_installs_it(name):
    if importlib.util.find_spec({"langchain": "langchain_core", "llamaindex": "llama_index"}[name]) is not None:
        pytest.skip("it is installed")
    with pytest.raises(MissingExtra, match=r"pip install (langchain|llama-index)-core"):
        importlib.import_module(f"equipoise.agents.chain_of_memory_{name}")


def test_a_compressor_of_langchain(library):
    library("langchain_core")
    documents = importlib.import_module("langchain_core.documents")
    embeddings = importlib.import_module("langchain_core.embeddings")
    from equipoise.agents.chain_of_memory_langchain import ChainCompressor

    class Known(embeddings.Embeddings):
        def embed_documents(self, texts):
            return [
                [sum(values) for values in zip(*(VECTORS[part] for part in text.split()), strict=True)]
                for text in texts
            ]

        def embed_query(self, text):
            return VECTORS[text]

    found = [
        documents.Document(page_content=text, id=text.lower(), metadata={"date": f"2024-05-0{day}", "page": day})
        for day, text in enumerate("DCBA", 1)
    ]
    made = ChainCompressor(embeddings=Known()).compress_documents(found, "?")
    assert [(each.id, each.metadata["chain"], each.metadata["page"]) for each in made] == [
        ("a", 1, 4),
        ("b", 1, 3),
        ("c", 2, 2),
    ]
    assert made[0].metadata["score"] == pytest.approx(0.8) and found[0].metadata == {"date": "2024-05-01", "page": 1}
    some_named = [
        found[3].model_copy(update={"id": "1"}),
        *(each.model_copy(update={"id": None}) for each in found[:3]),
    ]
    organized = ChainCompressor(embeddings=Known()).organized(some_named, "?")
    assert {item.id: item.text for item in organized.pool} == {"1": "A", "0": "D", "2": "C", "3": "B"}
    joined = ChainCompressor(embeddings=Known(), context="concatenated", repeat=True)
    assert [each.page_content for each in joined.compress_documents(found, "?")] == [
        *"ABCABBA"
    ]  # of b and c the older one first
    trace = joined.organized([*found, found[0]], "?")
    assert trace.amounts["embedding_calls"] == 7 and len(trace.pool) == 4
    assert ChainCompressor(embeddings=Known()).compress_documents([], "?") == []
    assert [each.id for each in ChainCompressor(embeddings=Known(), budget=2).compress_documents(found, "?")] == [
        "a",
        "b",
    ]
    found[1].metadata["date"] = "yesterday"
    with pytest.raises(BadInput, match="Document 'c' has the date 'yesterday'"):
        ChainCompressor(embeddings=Known()).compress_documents(found, "?")
    assert len(ChainCompressor(embeddings=Known(), date_field=None).compress_documents(found, "?")) == 3
    with pytest.raises(ValueError, match="gate"):
        ChainCompressor(embeddings=Known(), gate="both")


def test_a_postprocessor_of_llamaindex(library):
    library("llama_index")
    schema = importlib.import_module("llama_index.core.schema")
    base = importlib.import_module("llama_index.core.base.embeddings.base")
    from equipoise.agents.chain_of_memory_llamaindex import ChainPostprocessor

    asked = []

    class Known(base.BaseEmbedding):
        def _get_text_embedding(self, text):
            asked.append(text)
            return VECTORS[text.split()[-1]]

        _get_query_embedding = _get_text_embedding

        async def _aget_query_embedding(self, query):
            return self._get_query_embedding(query)

    def node(text, **more):
        return schema.NodeWithScore(node=schema.TextNode(text=text, id_=text.lower(), **more), score=0.1)

    found = [node(text) for text in "DCBA"]
    chained = ChainPostprocessor(embed_model=Known())
    made = chained.postprocess_nodes([*found, found[0]], query_str="?")
    assert [(each.node.node_id, each.score) for each in made] == [("a", 0.8), ("b", 0.6), ("c", 0.6)]
    assert sorted(asked) == sorted("?ABCD") and chained.class_name() == "ChainPostprocessor"
    assert [row["reason"] for row in chained.organized(found, schema.QueryBundle("?")).trace if "reason" in row] == [
        "blocked", "blocked", "unrelated",
    ]  # fmt: skip
    brought = [node(text, embedding=VECTORS[text]) for text in "ABCD"]
    own = ChainPostprocessor(repeat=True)
    query = schema.QueryBundle("?", embedding=VECTORS["?"])
    assert "".join(each.node.node_id for each in own.postprocess_nodes(brought, query_bundle=query)) == "abbacab"
    assert chained.postprocess_nodes([], query_str="?") == []
    asked.clear()
    assert len(chained.postprocess_nodes(brought, query_bundle=query)) == 3 and not asked  # all vectors are there
    chained.postprocess_nodes([*brought[:3], found[0]], query_bundle=query)
    assert sorted(asked) == sorted("?ABCD")  # of one model, also where some are
    asked.clear()
    joined = ChainPostprocessor(embed_model=Known(), context="concatenated")
    assert joined.postprocess_nodes(brought, query_bundle=query) and any(len(text) > 1 for text in asked)
    assert "?" not in asked
    assert len(ChainPostprocessor(budget=2).postprocess_nodes(brought, query_bundle=query)) == 2
    dated = [node(text, metadata={"date": f"2024-05-0{day}"}) for day, text in enumerate("DCBA", 1)]
    later = [node(text, metadata={"date": f"2024-05-0{day}"}) for day, text in enumerate("ABCD", 1)]
    bundle = schema.QueryBundle("?")
    days = [{item.id: item.time.day for item in chained.organized(nodes, bundle).pool} for nodes in (dated, later)]
    assert days == [{"d": 1, "c": 2, "b": 3, "a": 4}, {"a": 1, "b": 2, "c": 3, "d": 4}]
    assert {item.time for item in chained.organized(found, bundle).pool} == {UNDATED}
    no_field = ChainPostprocessor(embed_model=Known(), date_field=None)
    assert {item.time for item in no_field.organized(dated, bundle).pool} == {UNDATED}
    for call in (
        lambda: own.postprocess_nodes(found, query_bundle=query),
        lambda: own.postprocess_nodes(brought, query_str="?"),
        lambda: ChainPostprocessor(context="concatenated").postprocess_nodes(brought, query_bundle=query),
        lambda: chained.postprocess_nodes(found),
        lambda: chained.postprocess_nodes([node("A", metadata={"date": "soon"})], query_str="?"),
    ):
        with pytest.raises(BadInput, match=r"give embed_model=|are of a question|Node 'a' has the date"):
            call()
