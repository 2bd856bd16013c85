"""Starts of adapters, piece by piece: which records are read, what they allow, what it costs, and what is told of a map."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.language import adapters
from equipoise.language.encode import IGNORE, Example, collate
from equipoise.language.tiny import tiny
from equipoise.unlearning import fila, reglu, starts
from equipoise.unlearning.recipe import Recipe, recipe
from equipoise.unlearning.training import prepare


@pytest.fixture
def model():
    made = tiny(["red blue green black door wall"], seed=0, width=16, layers=1, heads=2, vocabulary=300)
    with torch.no_grad():
        for parameter in made.model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.shape[1]))
    return made


def example(*ids, asked=0):
    """Tokens, of which the first `asked` are a prompt."""
    return Example(ids, (IGNORE,) * asked + ids[asked:])


FORGET = [example(5, 6, 7), example(30, 40, 8, 9, 5, asked=2), example(12, 13, 14, 15), example(60, 61, asked=1)]
RETAIN = [example(20 + n, 90 + 2 * n, 50 - n, 7 + n, asked=n % 2) for n in range(7)]


def lora(**words):
    return recipe(**{"objective": "ihl", "combine": "sum", "parameters": "lora", "lora_rank": 2, **words})


def test_of_each_side_256_records_are_read_and_of_the_retain_set_every_fifth_is_held_out():
    forget, kept, held = starts._sampled(range(1000), range(2000))
    assert (len(forget), len(kept), len(held)) == (256, 256, 64)
    assert (forget[0], forget[-1]) == (0, 999) and (kept[0], held[-1]) == (0, 1999)
    assert starts._sampled(range(2), range(11)) == ([0, 1], [0, 1, 2, 3, 5, 6, 7, 8, 10], [4, 9])
    assert starts._sampled(range(2), range(4)) == ([0, 1], [0, 1, 2, 3], [])


@pytest.mark.parametrize(
    ("words", "passes"),
    [
        ({"start": "reglu"}, 7 / 3),  # forward only
        ({"start": "fila"}, 28 / 3),
        ({"start": "vila"}, 28 / 3),
        ({"orthogonality": 0.5}, 7 / 3),
        ({}, 0),
    ],
)
def test_what_finding_a_start_costs_in_passes(words, passes):
    """Of two forget and five retain records: a forward pass is a third of both, and a gradient needs both."""
    found = starts.passes(lora(**words), 2, 5)
    assert found == pytest.approx(passes) and isinstance(found, float)


class Map:
    """A map with an adapter, as far as shapes go."""

    fan_in_fan_out = False

    def __init__(self, outputs, inputs, dtype=torch.float32):
        self.weight = torch.empty(outputs, inputs, dtype=dtype, device="meta")

    def get_base_layer(self):
        return self


@pytest.fixture
def maps(monkeypatch):
    def given(*shapes, **how):
        monkeypatch.setattr(adapters, "adapted_maps", lambda _: {f"m{n}": Map(*s, **how) for n, s in enumerate(shapes)})

    return given


@pytest.mark.parametrize(
    ("words", "device", "looked", "after"),
    [
        # Pooled outputs of 7 + 8 + 2 records in float64; at once, of the map that needs most, 4 n d + 3 min(n, d)^2 of 15
        # records (the wider one, 4 x 15 x 40 + 3 x 225 numbers, against 4 x 15 x 20 + 3 x 225); rank 2 of all sides, twice.
        ({"start": "reglu"}, "cpu", 8 * 17 * 60 + 8 * (4 * 15 * 40 + 3 * 15**2), 2 * 4 * 2 * (20 + 30 + 40 + 10)),
        ({"start": "reglu"}, "cuda", 0, 4 * 2 * (20 + 30 + 40 + 10)),
        # Importances of both sides, FILA's gradient, the decomposition in float64.
        ({"start": "fila"}, "cuda", (8 + 2) * (600 + 400) + 48 * 600, 4 * 2 * 100),
        ({"start": "vila"}, "cuda", 8 * (600 + 400) + 48 * 600, 4 * 2 * 100),
        ({"start": "vila"}, "cpu", 8 * 17 * 60 + 8 * 1000 + 48 * 600, 2 * 4 * 2 * 100),
        # Kept out of a quarter of each map, or of so many directions, and of no more than there are records.
        ({"orthogonality": 0.5}, "cuda", 0, 4 * (20 * 5 + 40 * 8)),
        ({"orthogonality": 0.5, "retain_directions": 3}, "cuda", 0, 4 * 3 * 60),
        ({"start": "reglu", "orthogonality": 0.5, "retain_directions": 1}, "cuda", 0, 4 * 2 * 100 + 4 * 60),
        ({}, "cpu", 0, 0),
    ],
)
def test_what_finding_a_start_costs_in_memory(maps, words, device, looked, after):
    maps((20, 30), (40, 10), dtype=torch.bfloat16)
    model = SimpleNamespace(device=torch.device(device))
    assert starts.peak_bytes(model, lora(**words), 7, 10) == (looked, after)


def test_narrow_maps_are_kept_out_of_one_direction_and_wide_ones_of_128(maps):
    maps((3, 5), (1000, 5))
    model = SimpleNamespace(device=torch.device("cuda"))
    assert starts.peak_bytes(model, lora(orthogonality=0.5), 300, 1000)[1] == 4 * (3 + 1000 * 128)


def distinct(count, begin=0):
    return [example(n, n + 1) for n in range(begin, begin + count)]


@pytest.mark.parametrize(
    ("words", "shapes", "sides", "why"),
    [
        ({"start": "fila", "lora_rank": 4}, [(9, 4)], (1, 1), None),
        ({"start": "fila", "lora_rank": 5}, [(9, 4)], (1, 1), "m0 has 4 inputs and 9 outputs, .* use at most 4"),
        ({"start": "vila", "lora_rank": 5}, [(9, 9), (4, 9)], (1, 1), "m1 has 9 inputs and 4 outputs, .* at most 4"),
        ({"start": "reglu", "lora_rank": 6}, [(6, 2)], (6, 2), None),  # the inputs do not count
        ({"start": "reglu", "lora_rank": 7}, [(6, 2)], (9, 9), "m0 has 2 inputs and 6 outputs, .* use at most 6"),
        # As many directions as forget records, unless both sides span the map.
        ({"start": "reglu", "lora_rank": 3}, [(9, 9)], (3, 4), None),
        ({"start": "reglu", "lora_rank": 4}, [(9, 9)], (3, 4), "m0 has 9 outputs, and 3 different .* beside 4 retain"),
        ({"start": "reglu", "lora_rank": 4}, [(7, 9)], (3, 4), None),
        ({"start": "reglu", "lora_rank": 4}, [(8, 9)], (3, 4), "at most 3 directions"),
        ({"start": "reglu", "lora_rank": 4, "guidance": 0.0}, [(7, 9)], (3, 4), "at most 3 directions .* guidance 0:"),
        ({"start": "reglu", "lora_rank": 4, "guidance": 1.0}, [(4, 9)], (9, 4), None),
        ({"start": "reglu", "lora_rank": 4, "guidance": 1.0}, [(5, 9)], (9, 4), "at most 0 directions"),
        ({"orthogonality": 0.5, "retain_directions": 5, "lora_rank": 9}, [(6, 9)], (1, 1), None),
        ({"orthogonality": 0.5, "retain_directions": 6}, [(6, 9)], (1, 1), "m0 has 6 outputs, and 6 .* fewer than 6"),
        ({"start": "fila", "retain_directions": 6}, [(6, 9)], (1, 1), None),  # nothing is kept out of them
        ({"orthogonality": 0.5}, [(6, 9)], (1, 1), None),
        ({"start": "fila", "lora_rank": 1}, [(6, 9, torch.int8)], (1, 1), r"m0 has weights \[6, 9\] of torch.int8"),
    ],
)
def test_what_so_many_records_and_such_maps_allow(maps, words, shapes, sides, why):
    maps(*shapes)
    forget, retain = distinct(sides[0]), distinct(sides[1], 100)
    if why is None:
        starts.check(None, lora(**words), forget, retain)
    else:
        with pytest.raises(BadInput, match=why):
            starts.check(None, lora(**words), forget, retain)


def test_a_map_that_is_no_matrix_is_refused(monkeypatch):
    own = SimpleNamespace(get_base_layer=lambda: SimpleNamespace(weight=torch.zeros(4, 3, 2)), fan_in_fan_out=False)
    monkeypatch.setattr(adapters, "adapted_maps", lambda _: {"conv": own})
    with pytest.raises(BadInput, match=r"conv has weights \[4, 3, 2\] of torch.float32"):
        starts.check(None, lora(start="fila", lora_rank=1), FORGET, RETAIN)


@pytest.mark.parametrize("words", [{"start": "reglu", "lora_rank": 3}, {"orthogonality": 1.0, "retain_directions": 2}])
def test_what_is_told_of_each_map(model, words):
    chosen = lora(**words)
    adapted = prepare(model, chosen)
    begun = starts.find(adapted, chosen, FORGET, RETAIN)
    kept, held = [RETAIN[n] for n in (0, 1, 2, 3, 5, 6)], [RETAIN[4]]
    forgotten, known, unseen = (starts.pooled_outputs(adapted, side) for side in (FORGET, kept, held))
    assert [each.name for each in begun.spectra] == list(adapters.adapted_maps(adapted))
    for told in begun.spectra:
        name = told.name
        if "start" in words:
            found = reglu.directions(forgotten[name], known[name], 3, beta=0.7)
            q = found.vectors
            shares = [
                ((side[name] @ q).square().sum() / side[name].square().sum()).item() for side in (forgotten, unseen)
            ]
            assert (told.forget, told.leakage) == pytest.approx(shares, rel=1e-4)
            assert told.positive == found.positive and told.directions == 0 and not begun.bases
        else:
            basis = reglu.retain_basis(known[name], 2)
            share = (unseen[name] @ basis).square().sum() / unseen[name].square().sum()
            assert told.covered == pytest.approx(share.item(), rel=1e-4)
            assert (told.directions, told.positive) == (2, None) and told.leakage != told.leakage and not begun.factors
        assert told.width == len(adapters.adapted_maps(adapted)[name].get_base_layer().weight)
    restored = starts.Begun.restored(begun.stored())
    assert restored.factors.keys() == begun.factors.keys() and restored.bases.keys() == begun.bases.keys()
    for name, pair in begun.factors.items():
        assert all(torch.equal(old, new) for old, new in zip(pair, restored.factors[name], strict=True))


def test_fila_begins_by_what_its_gradients_say_of_both_sides(model):
    chosen = lora(start="fila", lora_rank=3)
    adapted = prepare(model, chosen)
    begun = starts.find(adapted, chosen, FORGET, RETAIN)
    kept = [RETAIN[n] for n in (0, 1, 2, 3, 5, 6)]
    forget, retain = (starts._importances(adapted, chosen, side) for side in (FORGET, kept))
    for name, own in adapters.adapted_maps(adapted).items():
        weight = own.get_base_layer().weight.detach()
        a, b, _ = fila.initialize(weight, forget[name], retain[name], rank=3, scale=2.0)
        assert_close(begun.factors[name], (a, b))


def test_the_importance_of_vila_is_the_product_of_the_variances_of_its_factors_gradients(model):
    """By autograd, a record at a time, each weighed by its labelled tokens but the first, which nothing predicts."""
    chosen = lora(start="vila", seed=5)
    adapted = prepare(model, chosen)
    found = starts._importances(adapted, chosen, FORGET)
    pairs = {name: adapters.factors(own) for name, own in adapters.adapted_maps(adapted).items()}
    generator = torch.Generator().manual_seed(5)
    for pair in pairs.values():
        for factor in pair:
            factor.data = (0.05 * torch.randn(factor.shape, generator=generator, dtype=torch.float64)).float()
    flat = [factor for pair in pairs.values() for factor in pair]
    rows, tokens = [], torch.tensor([2.0, 3.0, 3.0, 1.0], dtype=torch.float64)
    for each in FORGET:
        loss = adapted.model(**collate([each], model.pad_id)).loss  # a mean over the predicted labels
        rows.append([gradient.double() for gradient in torch.autograd.grad(loss, flat)])
    shares = tokens / tokens.sum()
    for index, name in enumerate(pairs):
        variances = []
        for which in (0, 1):
            seen = torch.stack([row[2 * index + which] for row in rows])
            mean = torch.einsum("n,nij->ij", shares, seen)
            variances.append(torch.einsum("n,nij->ij", shares, (seen - mean) ** 2))
        assert_close(found[name].double(), variances[1] @ variances[0], rtol=1e-3, atol=1e-12)


def test_a_start_reads_16_texts_at_once_a_record_alone_and_keeps_nothing_of_a_pass(model, monkeypatch):
    advised, passes = [], []
    memory_advice = starts.memory_advice
    monkeypatch.setattr(starts, "memory_advice", lambda size: advised.append(size) or memory_advice(size))
    adapted = prepare(model, lora(start="fila"))

    def seen(_, args, kwargs):
        passes.append((tuple(kwargs["input_ids"].shape), kwargs["use_cache"]))

    adapted.model.register_forward_pre_hook(seen, with_kwargs=True)
    lengths = [2, 5, 3, *[4] * 15]
    found = starts.pooled_outputs(adapted, [example(*range(7, 7 + length)) for length in lengths])
    assert passes == [((16, 5), False), ((2, 3), False)] and advised == [16]
    assert all(values.shape[0] == 18 for values in found.values())
    starts._importances(adapted, lora(start="fila"), FORGET[:2])
    assert [shape for shape, _ in passes[2:]] == [(1, 3), (1, 5)] and advised == [16, 1]


class Twice(torch.nn.Module):
    """A model that calls its one map so often, and maybe on tokens that are told apart."""

    def __init__(self, times, flat=False):
        super().__init__()
        self.map, self.head, self.times, self.flat = Based(), torch.nn.Linear(3, 4), times, flat

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, attention_mask, use_cache):
        states = torch.nn.functional.one_hot(input_ids % 2, 2).float()
        for _ in range(self.times):
            self.map.base(states.flatten(0, 1) if self.flat else states)


class Based(torch.nn.Module):
    fan_in_fan_out = False

    def __init__(self):
        super().__init__()
        self.base = torch.nn.Linear(2, 3)

    def get_base_layer(self):
        return self.base


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ((2,), r"^m is used several times in a pass, so its outputs say nothing of a record"),
        ((1, True), r"^m does not see whole sequences \(an expert\), so"),
        ((0,), r"^m was not used for a record, so nothing says where"),
    ],
)
def test_a_map_that_sees_no_sequence_once_has_no_start(monkeypatch, made, why):
    given = Twice(*made)
    monkeypatch.setattr(adapters, "adapted_maps", lambda _: {"m": given.map})
    model = SimpleNamespace(model=given, pad_id=0, device=torch.device("cpu"))
    with pytest.raises(BadInput, match=why):
        starts.pooled_outputs(model, FORGET[:2])
    once = SimpleNamespace(model=Twice(1), pad_id=0, device=torch.device("cpu"))
    monkeypatch.setattr(adapters, "adapted_maps", lambda _: {"m": once.model.map})
    with torch.no_grad():
        of_even, of_odd = (once.model.map.base(torch.eye(2))).double()
    found = starts.pooled_outputs(once, FORGET[:2])["m"]  # tokens 5, 6, 7 and 30, 40, 8, 9, 5
    assert_close(found, torch.stack([of_even + 2 * of_odd, 3 * of_even + 2 * of_odd]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("start", "told"), [("default", False), ("reglu", True), ("fila", False), ("vila", False)])
def test_a_plan_says_what_is_known_late_of_a_rank(maps, start, told):
    maps((6, 9))
    chosen = Recipe(parameters="lora", start=start, lora_rank=3)
    found = starts.plan_notes(None, chosen)
    assert len(found) == told and all(note.startswith("Whether lora_rank 3 is within the directions") for note in found)
