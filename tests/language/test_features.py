"""Stored features against states read text by text; streamed, resumed, refused."""

import copy
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chat_models import untaught
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.language import features
from equipoise.language.embed import fingerprint
from equipoise.language.encode import IGNORE, Example, encode_prompts
from equipoise.language.features import Features, extract, weights_digest
from equipoise.language.states import recording

TEXTS = ["yes", "Where was Mulum Kunwick born?", "one two three four", "no", "Norway? Oslo", "a", "Who is it then?"]
PLACES = ["block.1.input", "block.0.mlp.down", "block.0.mlp", "block.1.attention", "head.input"]


@pytest.fixture(scope="module")
def lm():
    return untaught(3)


def one_by_one(lm, rows, places, pool):
    """[n, places, width] in float64, each text read alone."""
    found = []
    for ids, chosen in rows:
        with torch.no_grad(), recording(lm.model, places) as states:
            lm.model(input_ids=torch.tensor([ids]))
        kept = [states[place][0, chosen].double() for place in places]
        pooled = {"mean": lambda each: each.mean(0), "sum": lambda each: each.sum(0), "last": lambda each: each[-1]}
        found.append(torch.stack([pooled[pool](each) for each in kept]))
    return torch.stack(found).numpy()


@pytest.mark.parametrize(
    ("pool", "dtype", "near"), [("mean", "float16", 1e-3), ("last", "float32", 2e-6), ("sum", "float64", 2e-6)]
)
def test_batches_agree_with_texts_read_alone(lm, tmp_path, pool, dtype, near):
    rows = [(ids, list(range(len(ids)))) for ids in encode_prompts(lm, TEXTS)[0]]
    found = extract(lm, TEXTS, PLACES, pool=pool, into=tmp_path / "f", dtype=dtype, batch_tokens=24)
    assert found.values.dtype == dtype and not found.values.flags.writeable
    expected = one_by_one(lm, rows, PLACES, pool)
    assert np.abs(found.values - expected).max() < near * np.abs(expected).max()
    assert np.array_equal(found.at("block.0.mlp"), found.values[:, 2])
    assert {each.name for each in (tmp_path / "f").iterdir()} == {"values.npy", "features.json"}


def test_of_an_example_what_is_labelled_is_pooled(lm, tmp_path):
    examples = [
        Example((1, 20, 30, 40, 50), (IGNORE, IGNORE, 30, IGNORE, 50)),
        Example((1, 60, 70), (IGNORE, 60, IGNORE)),
    ]
    rows = [([1, 20, 30, 40, 50], [2, 4]), ([1, 60, 70], [1])]
    for pool in ("mean", "last"):
        found = extract(lm, examples, ["block.0"], pool=pool, into=tmp_path / pool, dtype="float32")
        np.testing.assert_allclose(found.values, one_by_one(lm, rows, ["block.0"], pool), atol=1e-4)
    with pytest.raises(BadInput, match="Text 1 has no token to pool"):
        extract(lm, [examples[0], Example((1, 2), (IGNORE, IGNORE))], ["block.0"], pool="mean", into=tmp_path / "x")


def test_a_model_is_read_only_as_far_as_it_must(lm, tmp_path):
    seen = []
    hooks = [
        block.register_forward_hook(lambda *_, n=n: seen.append(n)) for n, block in enumerate(lm.model.model.layers)
    ]
    extract(lm, TEXTS, ["block.1.input", "block.0"], pool="mean", into=tmp_path / "f")
    for hook in hooks:
        hook.remove()
    assert set(seen) == {0} and len(lm.model.model.layers) > 1


def test_what_was_cut_off_goes_on_and_what_was_damaged_is_read_again(lm, tmp_path, monkeypatch):
    asked = {"pool": "mean", "dtype": "float32", "batch_tokens": 24}
    whole = extract(lm, TEXTS, PLACES, into=tmp_path / "whole", **asked)
    real, read = features._pooled, []

    def pooled(language_model, rows, *rest):
        if len(read) == 3:
            raise KeyboardInterrupt
        read.append(len(rows))
        return real(language_model, rows, *rest)

    monkeypatch.setattr(features, "_pooled", pooled)
    with pytest.raises(KeyboardInterrupt):
        extract(lm, TEXTS, PLACES, into=tmp_path / "cut", **asked)
    with pytest.raises(BadInput, match="holds no features"):
        Features.load(tmp_path / "cut")
    stored = np.load(tmp_path / "cut" / "values.npy", mmap_mode="r+")
    longest = max(range(len(TEXTS)), key=lambda index: len(encode_prompts(lm, TEXTS)[0][index]))
    stored[longest, 0, 0] += 1  # of the first batch
    stored.flush()
    again = []
    monkeypatch.setattr(features, "_pooled", lambda *given: (again.append(len(given[1])), real(*given))[1])
    found = extract(lm, TEXTS, PLACES, into=tmp_path / "cut", **asked)
    assert sum(again) == len(TEXTS) - sum(read[1:]) and len(read) == 3
    assert found.values.tobytes() == whole.values.tobytes()
    assert (tmp_path / "cut" / "values.npy").read_bytes() == (tmp_path / "whole" / "values.npy").read_bytes()
    again.clear()
    assert extract(lm, TEXTS, PLACES, into=tmp_path / "cut", **asked).values.tobytes() == whole.values.tobytes()
    assert not again  # what is there is not read twice


def test_the_bytes_do_not_depend_on_the_order_of_texts(lm, tmp_path):
    one = extract(lm, TEXTS, ["block.0"], pool="mean", into=tmp_path / "1", dtype="float32", batch_tokens=24)
    two = extract(lm, TEXTS[::-1], ["block.0"], pool="mean", into=tmp_path / "2", dtype="float32", batch_tokens=24)
    np.testing.assert_allclose(one.values, two.values[::-1], atol=1e-6)


def test_sums_need_more_than_half_precision_and_an_infinity_is_an_error(lm, tmp_path):
    with pytest.raises(BadInput, match="mps has no float64 to add in"):
        extract(SimpleNamespace(device=torch.device("mps")), TEXTS, [], pool="mean", into=tmp_path, dtype="float64")
    with pytest.raises(BadInput, match="sums do not fit into float16"):
        extract(lm, TEXTS, ["block.0"], pool="sum", into=tmp_path / "a", dtype="float16")
    assert extract(lm, TEXTS, ["block.0"], pool="sum", into=tmp_path / "b").values.dtype == np.float32
    scaled = untaught(3)
    with torch.no_grad():
        scaled.model.get_input_embeddings().weight[:] *= 1e9
    with pytest.raises(WorkFailed, match=r"text \d at embed .* too large; use dtype float32"):
        extract(scaled, TEXTS, ["embed"], pool="mean", into=tmp_path / "c")
    assert np.isfinite(
        extract(scaled, TEXTS, ["embed"], pool="mean", into=tmp_path / "d", dtype="float32").values
    ).all()


def test_what_cannot_be_is_refused(lm, tmp_path):
    for places, said in (
        ([], "give one or more"),
        (["block.0", "block.0"], "each once"),
        (["head"], "head.input"),
        (["block.9"], "no place 'block.9'"),
        (["block.0", "block.0.mlp.down.input"], "different widths"),
    ):
        with pytest.raises(BadInput, match=said):
            extract(lm, TEXTS, places, pool="mean", into=tmp_path / "x")
    with pytest.raises(BadInput, match=r"Text 1 has \d+ tokens, more than the context of \d+"):
        extract(lm, ["yes", "yes " * lm.context], ["block.0"], pool="mean", into=tmp_path / "w")
    with pytest.raises(BadInput, match="no text"):
        extract(lm, [], ["block.0"], pool="mean", into=tmp_path / "y")
    found = extract(lm, TEXTS, ["block.0"], pool="mean", into=tmp_path / "z")
    for changed, said in (
        ({"pool": "last"}, "another pool"),
        ({"texts": TEXTS[:3]}, "another texts"),
        ({"lm": untaught(4)}, "weights"),
    ):
        given = {"pool": "mean", **{name: value for name, value in changed.items() if name == "pool"}}
        with pytest.raises(BadInput, match=said):
            extract(changed.get("lm", lm), changed.get("texts", TEXTS), ["block.0"], into=tmp_path / "z", **given)
    with pytest.raises(BadInput, match=r"no features of 'block\.1'"):
        found.at("block.1")
    about = json.loads((tmp_path / "z" / "features.json").read_text())
    (tmp_path / "z" / "features.json").write_text(json.dumps(about | {"pool": "last"}))
    with pytest.raises(BadInput, match="altered"):
        Features.load(tmp_path / "z")
    with pytest.raises(BadInput, match=r"features\.json is of no features \(it was altered"):
        extract(lm, TEXTS, ["block.0"], pool="last", into=tmp_path / "z")


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("values.npy", b"mine"),
        ("batches.jsonl", b'{"id": 1}'),
        ("features.json", b'{"age": 3}'),
        ("features.json", b"[]"),
    ],
)
def test_files_of_somebody_else_stay_as_they_are(lm, tmp_path, name, own):
    (tmp_path / name).write_bytes(own)
    with pytest.raises(BadInput, match=rf"{name.replace('.', '[.]')} is of no features.*give another folder"):
        extract(lm, TEXTS, ["block.0"], pool="mean", into=tmp_path)
    assert (tmp_path / name).read_bytes() == own and [each.name for each in tmp_path.iterdir()] == [name]


def test_values_whose_beginning_was_damaged_are_read_anew(lm, tmp_path, monkeypatch):
    asked = {"pool": "mean", "dtype": "float32", "batch_tokens": 24}
    whole = extract(lm, TEXTS, ["block.0"], into=tmp_path / "whole", **asked)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(features, "sha256_file", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        extract(lm, TEXTS, ["block.0"], into=tmp_path / "cut", **asked)
    for damaged in (b"", b"\x93NUMPX" + (tmp_path / "cut" / "values.npy").read_bytes()[6:]):
        folder = tmp_path / f"cut{len(damaged)}"
        shutil.copytree(tmp_path / "cut", folder)
        (folder / "values.npy").write_bytes(damaged)
        assert extract(lm, TEXTS, ["block.0"], into=folder, **asked).values.tobytes() == whole.values.tobytes()


def test_a_rounded_digest_survives_another_precision_and_no_other_weights(lm):
    """Of the numbers themselves, and of these in bfloat16; one number that is looked at makes another."""
    other = copy.deepcopy(lm.model)
    assert weights_digest(other) == weights_digest(lm.model) != weights_digest(lm.model, numbers=16)
    assert fingerprint(other) == weights_digest(lm.model, numbers=16, rounded=True)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1
    assert weights_digest(other) != weights_digest(lm.model) and fingerprint(other) != fingerprint(lm.model)
    narrow = copy.deepcopy(lm.model).to(torch.bfloat16)
    assert fingerprint(narrow) == fingerprint(lm.model) and weights_digest(narrow) != weights_digest(lm.model)
    whole = {rounded: weights_digest(lm.model, numbers=None, rounded=rounded) for rounded in (False, True)}
    assert weights_digest(narrow, numbers=None, rounded=True) == whole[True] != whole[False]
    assert weights_digest(copy.deepcopy(lm.model), numbers=None) == whole[False] != weights_digest(narrow, numbers=None)


@pytest.mark.parametrize(
    ("lengths", "tokens", "batches"),
    [
        ([5, 3, 3, 2, 1], 6, [[0], [1, 2], [3, 4]]),
        ([1, 2, 3], 100, [[2, 1, 0]]),
        ([4, 4, 4], 8, [[0, 1], [2]]),
        ([4, 4, 4], 7, [[0], [1], [2]]),
        ([9], 1, [[0]]),  # one text at least
        ([], 5, []),
    ],
)
def test_batches_of_texts_of_like_length(lengths, tokens, batches):
    assert list(features._batches(lengths, tokens)) == batches


def test_a_digest_of_weights_takes_some_numbers_of_each_tensor():
    import hashlib

    model = SimpleNamespace(
        state_dict=lambda: {"a": torch.arange(300.0).view(100, 3), "b": torch.tensor([1.0, 1.001], dtype=torch.float64)}
    )

    def digest(a, b):
        found = hashlib.sha256()
        for name, shape, some in (("a", (100, 3), a), ("b", (2,), b)):
            found.update(f"{name} {shape}".encode() + np.asarray(some).tobytes())
        return found.hexdigest()

    numbers = np.arange(300, dtype=np.float32)
    both = np.array([1.0, 1.001])
    assert weights_digest(model) == digest(numbers[::4], both.astype(np.float32))
    assert weights_digest(model, numbers=300) == digest(numbers, both.astype(np.float32))
    assert weights_digest(model, numbers=None) == digest(numbers, both)
    rounded = torch.arange(0, 300.0, 18).bfloat16().float().numpy()
    assert weights_digest(model, numbers=16, rounded=True) == digest(rounded, np.ones(2, np.float32))
    assert fingerprint(model) == weights_digest(model, numbers=16, rounded=True)


def test_what_is_extracted_when_nothing_else_is_said(lm, tmp_path, monkeypatch):
    asked = {}
    fill = features._fill

    def noted(language_model, rows, wanted, pool, values, folder, batch_tokens):
        asked[pool] = (batch_tokens, str(values.dtype))
        fill(language_model, rows, wanted, pool, values, folder, batch_tokens)

    monkeypatch.setattr(features, "_fill", noted)
    for pool in ("mean", "last", "sum"):
        extract(lm, TEXTS[:2], PLACES[:1], pool=pool, into=tmp_path / pool)
    assert asked == {"mean": (512, "float16"), "last": (512, "float16"), "sum": (512, "float32")}


def test_what_is_pooled_by_hand(lm, monkeypatch):
    """Two texts of three and two tokens, whose states are 1, 2, 3 and 4, 5, padding 6: chosen are the first and the last."""
    states = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]], [[4.0, 40.0], [5.0, 50.0], [6.0, 60.0]]])
    monkeypatch.setattr(features, "_at", lambda model, wanted, ids, use: [use(states), use(-states)])
    rows = [
        (np.array([7, 8, 9], np.int32), np.array([0, 2], np.int32)),
        (np.array([7, 8], np.int32), np.array([1], np.int32)),
    ]
    for pool, first, second in (("mean", 2.0, 5.0), ("sum", 4.0, 5.0), ("last", 3.0, 5.0)):
        for dtype in ("float16", "float64"):
            found = features._pooled(lm, rows, ["a", "b"], pool, np.dtype(dtype))
            assert found.dtype == dtype and found.shape == (2, 2, 2)
            assert found.tolist() == [
                [[first, 10 * first], [-first, -10 * first]], [[second, 10 * second], [-second, -10 * second]]
            ]  # fmt: skip


def test_a_number_that_is_none_is_named():
    pooled = np.zeros((2, 2, 3))
    features._refuse_infinite(pooled, [4, 7], ["a", "b"], np.dtype("float32"))
    pooled[1, 0, 2] = np.inf
    with pytest.raises(WorkFailed, match=r"of text 7 at a hold .* float32 cannot: it is no number, or too large\.$"):
        features._refuse_infinite(pooled, [4, 7], ["a", "b"], np.dtype("float32"))
    with pytest.raises(WorkFailed, match="too large; use dtype float32"):
        features._refuse_infinite(pooled, [4, 7], ["a", "b"], np.dtype("float16"))


class Marked:
    """What runs when a pickle of it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_runs_where_values_are_a_pickle(lm, tmp_path):
    import pickle

    marker = tmp_path / "marker"
    (tmp_path / features.VALUES).write_bytes(pickle.dumps(Marked(marker)))
    with pytest.raises(ValueError, match="allow_pickle"):
        Features.of(tmp_path, {"places": ["a"], "pool": "mean", "model": "m"})
    rows = [(np.array([5], np.int32), np.array([0], np.int32))]
    found = features._values(lm, rows, PLACES[:1], tmp_path / features.VALUES, "float32")
    assert found.shape[:2] == (1, 1) and not marker.exists()


def test_what_is_another_content_of_a_folder(lm, tmp_path):
    asked = {"pool": "mean", "batch_tokens": 5}
    features._refuse_other(tmp_path, {**asked, "sha256": "x"}, asked)
    with pytest.raises(BadInput, match="another batch tokens"):
        features._refuse_other(tmp_path, {"pool": "mean", "batch_tokens": 6}, asked)
    found = extract(lm, TEXTS[:1], PLACES[:1], pool="mean", into=tmp_path / "f")
    assert np.array_equal(Features.load(tmp_path / "f").values, found.values)
    about, sealed = features.unseal((tmp_path / "f" / features.ABOUT).read_bytes())
    assert sealed and about["features"] == 1
    for written in (json.dumps(about).encode(), features.seal({**about, "features": 2})):
        shutil.copytree(tmp_path / "f", tmp_path / "g", dirs_exist_ok=True)
        (tmp_path / "g" / features.ABOUT).write_bytes(written)
        with pytest.raises(BadInput, match="another version, or was altered"):
            Features.load(tmp_path / "g")


def test_texts_that_cannot_be_read(lm):
    context = lm.context
    fitting = Example((1,) * context, (IGNORE, *(1,) * (context - 1)))
    assert len(features._encoded(lm, [fitting])[0][0]) == context
    with pytest.raises(BadInput, match=f"Text 1 has {context + 1} tokens"):
        features._encoded(lm, [fitting, Example((1,) * (context + 1), (1,) * (context + 1))])
    with pytest.raises(BadInput, match="Text 0 has no token to pool"):
        features._encoded(lm, [Example((1, 2), (IGNORE, IGNORE))])
    with pytest.raises(BadInput, match="no text to read"):
        features._encoded(lm, [])
    for wanted, words in (([], "each once"), (["embed", "embed"], "each once"), (["head"], "head.input")):
        with pytest.raises(BadInput, match=words):
            features._check_places(lm.model, wanted)
    with pytest.raises(BadInput, match=r"no place 'block\.99'"):
        features._check_places(lm.model, ["embed", "block.99.input"])


def test_widths_are_found_by_one_token_and_nothing_is_kept_of_what_is_read(lm, tmp_path):
    read = []
    hook = lm.model.register_forward_pre_hook(lambda _, args, named: read.append(named), with_kwargs=True)
    try:
        extract(lm, TEXTS[:2], PLACES[:1], pool="mean", into=tmp_path / "f")
    finally:
        hook.remove()
    assert read[0]["input_ids"].shape == (1, 1) and read[1]["input_ids"].shape[0] == 2
    assert [each["use_cache"] for each in read] == [False, False]
