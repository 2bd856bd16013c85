"""Chains behind the interfaces of LangChain and LlamaIndex, on the worked example; what is said where these are missing."""

import importlib
import importlib.util
from datetime import datetime

import pytest

from equipoise.agents.chain_of_memory import UNDATED, read_date
from equipoise.core.errors import BadInput, MissingExtra

VECTORS = {"A": [0.8, 0.6, 0.0], "B": [0.6, 0.8, 0.0], "C": [0.6, 0.0, 0.8], "D": [0.0, 0.6, 0.8], "?": [1.0, 0.0, 0.0]}


def test_dates_are_read_in_one_way():
    nine = datetime(2024, 5, 7, 9, 0)
    assert (
        read_date("2024-05-07T09:00", "x") == read_date(nine, "x") == read_date("2024-05-07T11:00+02:00", "x") == nine
    )
    assert read_date(None, "x") == read_date("", "x") == UNDATED
    with pytest.raises(BadInput, match=r"Node 'x' has the date '2024/05/07 \(Tue\)': use ISO 8601"):
        read_date("2024/05/07 (Tue)", "Node 'x'")


@pytest.mark.parametrize("library", ["langchain", "llamaindex"])
def test_without_the_library_the_sentence_that_installs_it(library):
    if importlib.util.find_spec({"langchain": "langchain_core", "llamaindex": "llama_index"}[library]) is not None:
        pytest.skip("it is installed")
    with pytest.raises(MissingExtra, match=r"pip install (langchain|llama-index)-core"):
        importlib.import_module(f"equipoise.agents.chain_of_memory_{library}")


def test_a_compressor_of_langchain():
    documents = pytest.importorskip("langchain_core.documents")
    embeddings = pytest.importorskip("langchain_core.embeddings")
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


def test_a_postprocessor_of_llamaindex():
    schema = pytest.importorskip("llama_index.core.schema")
    base = pytest.importorskip("llama_index.core.base.embeddings.base")
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
    for call in (
        lambda: own.postprocess_nodes(found, query_bundle=query),
        lambda: own.postprocess_nodes(brought, query_str="?"),
        lambda: chained.postprocess_nodes(found),
        lambda: chained.postprocess_nodes([node("A", metadata={"date": "soon"})], query_str="?"),
    ):
        with pytest.raises(BadInput, match=r"give embed_model=|are of a question|Node 'a' has the date"):
            call()
