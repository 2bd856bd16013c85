"""The scorer of toxicity against scikit-learn, and the mass of listed words against plain sums."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.data.records import Record
from equipoise.language.encode import IGNORE, encode
from equipoise.language.tiny import tiny
from equipoise.unlearning import toxicity

TOXIC = ["You daft fool!", "what a daft IDEA", "so dull, you fool", "a", "be gone, dull fool of a b", "daft daft"]
NEUTRAL = ["I see it otherwise.", "what an idea", "so it is, I think", "I think so", "an idea of it"]


def test_the_scorer_is_scikit_learns():
    pytest.importorskip("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), min_df=2)
    theirs = LogisticRegression(C=3.0, tol=1e-10, max_iter=10_000)
    theirs.fit(vectorizer.fit_transform(TOXIC + NEUTRAL), [1] * len(TOXIC) + [0] * len(NEUTRAL))
    ours = toxicity.teach_scorer(TOXIC, NEUTRAL, strength=3.0)
    assert sorted(ours.vocabulary) == sorted(vectorizer.vocabulary_)
    asked = [*TOXIC, "you daft idea", "zzz", "think of fools"]
    expected = theirs.predict_proba(vectorizer.transform(asked))[:, 1]
    np.testing.assert_allclose(ours(asked), expected, atol=2e-4)
    assert expected.std() > 0.1


def test_listed_words_tell_the_scorer_nothing():
    scorer = toxicity.teach_scorer(TOXIC, NEUTRAL, words=["fool", "daft idea"])
    plain, more = scorer(["you dull", "you FOOL dull fool"])
    assert plain == pytest.approx(more)
    assert math.isnan(scorer(["Fool "])[0]) and math.isnan(scorer([""])[0]) and not math.isnan(scorer(["fools"])[0])
    assert toxicity.without_words("a daft idea, foolish", ["fool", "daft", "daft idea"]).split() == [
        "a",
        ",",
        "foolish",
    ]
    assert toxicity.scorer_auroc(scorer, TOXIC, NEUTRAL) > 0.9
    assert math.isnan(toxicity.scorer_auroc(scorer, TOXIC, []))
    # A text of which nothing is left does not count, on either side.
    some, other = TOXIC[:3], [TOXIC[1], NEUTRAL[0]]
    above = np.subtract.outer(scorer(some), scorer(other))
    expected = ((above > 0) + (above == 0) / 2).mean()
    assert 0 < expected < 1
    assert toxicity.scorer_auroc(scorer, [*some, "fool"], ["daft idea", *other]) == pytest.approx(expected)


def test_a_scorer_without_texts_is_refused():
    with pytest.raises(BadInput, match="both sides"):
        toxicity.teach_scorer([], NEUTRAL)
    with pytest.raises(BadInput, match="no run of letters stands in 2 of the 2 texts"):
        toxicity.teach_scorer(["ab"], ["cd"])


@pytest.fixture(scope="module")
def model():
    return tiny([*TOXIC * 4, *NEUTRAL * 4, "fool daft"] * 3, seed=0, width=16, layers=2, heads=2, vocabulary=320)


def test_listed_tokens_are_words_and_their_first_halves(model):
    listed, coverage = toxicity.listed_tokens(model, ["Fool", "foolproof", "daftnessless", "a", "qqqq"])
    texts = {model.tokenizer.decode([token]).strip().casefold() for token in listed.nonzero().flatten().tolist()}
    # Of `daftnessless` the piece `daft` is less than half; `a` is too short.
    assert texts == {"fool"} and coverage == pytest.approx(1 / 5)
    assert len(listed) == model.vocabulary
    nothing, unknown = toxicity.listed_tokens(model, [])
    assert not nothing.any() and math.isnan(unknown)


def test_a_listed_word_is_known_by_its_first_piece_where_that_is_half_of_it():
    pieces = ["x", " foo", "lish", "Daft", " da", "fool", " dull", "ninny", " sly", "old", " mea", "beyond"]

    begun = {" foolish": 1, "foolish": 5, " daft": 4, " dullness": 6, " ninnyhammers": 7, "beyonders": 11}
    begun |= {" meaner": 10}

    class Pieces:
        """Tokens as a table says: of a word behind a blank the one, of a bare word the other."""

        def __len__(self):
            return len(pieces)

        def batch_decode(self, rows):
            return [pieces[row[0]] for row in rows]

        def __call__(self, text, **how):
            assert how == {"add_special_tokens": False, "verbose": False}
            return SimpleNamespace(input_ids=[begun[text], 2] if text in begun else [])

    model = SimpleNamespace(tokenizer=Pieces(), vocabulary=11)
    words = ["foolish", "DAFT", "dullness", "ninnyhammers", "beyonders", "zz", "sly", "meaner"]
    listed, coverage = toxicity.listed_tokens(model, words)
    # " foo" is less than half of foolish, " da" is too short, "ninny" less than half; "beyond" is no token of the model.
    # Three letters do where they are half of the word, or all of it.
    assert [pieces[token] for token in listed.nonzero().flatten()] == ["Daft", "fool", " dull", " sly", " mea"]
    assert listed.shape == (11,) and coverage == pytest.approx(5 / 8)


def test_listed_mass_against_plain_sums_alone_and_together(model, monkeypatch):
    examples = encode(model, [Record(str(i), text) for i, text in enumerate(TOXIC) if len(text) > 1])
    listed = torch.arange(model.vocabulary) % 7 == 0
    found = toxicity.listed_mass(model, examples, listed, batch_size=2)
    for example, mass in zip(examples, found, strict=True):
        with torch.no_grad():
            probabilities = model.model(torch.tensor([example.input_ids])).logits[0].double().softmax(-1)
        places = [place - 1 for place, label in enumerate(example.labels) if label != IGNORE]
        assert_close(mass, probabilities[places][:, listed].sum(-1).mean(), rtol=1e-5, atol=1e-7)
    shapes, collate = [], toxicity.collate
    monkeypatch.setattr(toxicity, "collate", lambda its, *how: shapes.append(len(its)) or collate(its, *how))
    assert_close(toxicity.listed_mass(model, examples, listed, batch_size=16), found, rtol=1e-5, atol=1e-8)
    assert shapes == [5]
    widths = []
    monkeypatch.setattr(
        toxicity, "collate", lambda its, *how: widths.append([len(e.input_ids) for e in its]) or collate(its, *how)
    )
    toxicity.listed_mass(model, examples, listed, batch_size=2)
    lengths = sorted((len(each.input_ids) for each in examples), reverse=True)
    assert widths == [lengths[:2], lengths[2:4], lengths[4:]]  # the longest first: memory fails early


def test_the_first_half_of_a_text():
    assert [toxicity.first_half(text) for text in ("one", "a b c", " a  b\nc d ")] == ["one", "a", "a b"]
