"""The request to certify, piece by piece: inputs and labels as they come, radii, the largest one, what is said."""

import hashlib
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.verification import certify, certifying, check
from equipoise.verification.bounds import geometry, lip_naive
from equipoise.verification.certificate import specifications
from equipoise.verification.certifying import Certifying, _classes, _radii, _read_inputs, _turned
from equipoise.verification.check_folder import check_folder
from equipoise.verification.network import Builder


def network(shape=(4,), outputs=3, seed=0, *, unit=1.0, inputs=1.0, common=0.0):
    """unit, inputs: the network in other units of its outputs and inputs. common: what every output is raised by."""
    rng = torch.Generator().manual_seed(seed)
    builder, size = Builder(shape), math.prod(shape)
    first = builder.linear(
        builder.flatten(0), torch.randn(5, size, generator=rng, dtype=torch.float64) / 2 / inputs, None
    )
    last = torch.randn(outputs, 5, generator=rng, dtype=torch.float64) / 2
    bias = torch.randn(outputs, generator=rng).double() + common
    return builder.build(builder.linear(builder.relu(first), last * unit, bias * unit), "net")


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def request(net=None, x=X, radius=0.05, labels=None, **others):
    words = {"largest": False, "box": None, "architecture": None, "shape": None, "limit": None}
    how = {"slopes": "free", "offset": "ball-box", "iterations": 4, "attack_steps": 3, "refine": False, "seed": 0}
    words |= {name: others.pop(name) for name in list(others) if name in words}
    return Certifying.read(net or network(), x, radius, labels=labels, **words, **(how | others))


# --- what is read ---------------------------------------------------------------------------------------------------


def test_radii_for_all_and_for_each():
    assert _radii(0.5, 3).tolist() == [0.5] * 3 and _radii([0.5], 2).tolist() == [0.5] * 2
    assert _radii([0.5, 0.25], 2).tolist() == [0.5, 0.25] and _radii(0.5, 1).tolist() == [0.5]
    assert all(map(math.isnan, _radii(None, 2).tolist())) and _radii(None, 2).dtype == torch.float64
    for wrong, said in (
        ([0.1, 0.2], "2 radii for 3 inputs: give one for all, or one each."),
        ([0.1, 0.0, -1.0], "The radius is 0; it must be a number above 0, in the units of the raw inputs."),
        (math.nan, "The radius is nan; it must be a number above 0, in the units of the raw inputs."),
        (math.inf, "The radius is inf; it must be a number above 0, in the units of the raw inputs."),
    ):
        with pytest.raises(BadInput) as error:
            _radii(wrong, 3)
        assert str(error.value) == said


@pytest.mark.parametrize("name", ["X", "x", "inputs", "images", "array"])
@pytest.mark.parametrize("classes", ["y", "Y", "labels", "label", "targets", "target"])
def test_arrays_of_a_file_by_their_names(tmp_path, name, classes):
    file = tmp_path / "data.npz"
    np.savez(file, other=np.zeros(2), **{name: X.numpy(), classes: np.arange(6)})
    x, labels, whose, digests = _read_inputs(file, None)
    assert torch.equal(x, X) and labels.tolist() == list(range(6)) and labels.dtype == torch.int64
    assert whose == f"of data.npz, array {classes}"
    assert digests == {"the inputs": hashlib.sha256(file.read_bytes()).hexdigest()}


def test_labels_that_are_given_come_before_those_of_the_file(tmp_path):
    file, own = tmp_path / "data.npz", tmp_path / "own.npy"
    np.savez(file, X=X.numpy(), y=np.zeros(6, int))
    np.save(own, np.ones((6, 1)))
    _, labels, whose, digests = _read_inputs(str(file), [2] * 6)
    assert labels.tolist() == [2] * 6 and whose == "given" and list(digests) == ["the inputs"]
    _, labels, whose, digests = _read_inputs(file, str(own))
    assert labels.tolist() == [1] * 6 and whose == "of own.npy" and list(digests) == ["the inputs", "the labels"]
    assert digests["the labels"] == hashlib.sha256(own.read_bytes()).hexdigest()
    x, labels, whose, digests = _read_inputs(X.float().numpy(), None)
    assert x.dtype == torch.float64 and labels is None and whose == "the network's own answers" and digests == {}
    np.save(own, X.numpy())
    x, labels, whose, digests = _read_inputs(own, None)
    assert (
        torch.equal(x, X)
        and labels is None
        and whose == "the network's own answers"
        and list(digests) == ["the inputs"]
    )


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": np.zeros(2), "b": np.zeros(2)}, "has no array X (found: a, b)."),
        ({}, "has no array X (found: nothing)."),
        (
            {"X": np.zeros((3, 2)), "classes": np.zeros(3, dtype=np.uint8)},
            "has an array 'classes' of 3 whole numbers that may be the labels: call it y, or give --labels; without it the "
            "network's own answers would count as right.",
        ),
    ],
)
def test_files_whose_arrays_cannot_be_told(tmp_path, arrays, said):
    file = tmp_path / "data.npz"
    np.savez(file, **arrays)
    with pytest.raises(BadInput) as error:
        _read_inputs(file, None)
    assert str(error.value) == f"{file} {said}"


@pytest.mark.parametrize("other", [np.zeros(3), np.zeros(4, int), np.zeros((3, 1), int), np.zeros(3, bool)])
def test_other_arrays_are_no_labels(tmp_path, other):
    np.savez(tmp_path / "data.npz", X=np.zeros((3, 2)), other=other)
    assert _read_inputs(tmp_path / "data.npz", None)[1:3] == (None, "the network's own answers")


@pytest.mark.parametrize("x", [np.zeros(3), np.zeros((0, 2)), np.full((2, 2), np.inf)])
def test_inputs_that_are_none(x):
    with pytest.raises(BadInput) as error:
        _read_inputs(x, None)
    assert str(error.value) == (
        f"The inputs have the shape {x.shape}; expected finite numbers [inputs, ...], at least one."
    )


def test_numbers_of_every_real_type_are_read_as_they_are(tmp_path):
    x, labels = X.round(decimals=1), [0, 1, 2, 0, 1, 2]
    for given in (
        x.numpy().astype(">f8"),
        x.numpy().astype("longdouble"),
        np.asfortranarray(x.numpy()),
        x.clone().requires_grad_(),
        x.tolist(),
        list(x.numpy()),
    ):
        assert torch.equal(_read_inputs(given, None)[0], x)
    assert torch.equal(_read_inputs(X.bfloat16(), None)[0], X.bfloat16().double())
    assert torch.equal(_read_inputs(np.arange(4, dtype=">u2").reshape(2, 2), None)[0], torch.arange(4.0).reshape(2, 2))
    for kind in (">i4", "f4", "u8", "longdouble"):
        assert _classes(np.array(labels, dtype=kind)).tolist() == labels
    assert _classes(torch.tensor(1)).tolist() == _classes(np.array(1)).tolist() == [1]
    for radius in (np.full(6, 0.25), torch.full((6,), 0.25), np.array(0.25), np.float32(0.25), torch.tensor(0.25)):
        read = request(radius=radius)
        assert read.radii.tolist() == [0.25] * 6
        assert read.resolved["radius"] == ([0.25] * 6 if np.ndim(radius) else 0.25)
    np.savez(tmp_path / "flat.npz", X=np.float64(3))
    for given, said in (
        (x.numpy() + 1j, "The inputs are complex128; expected real numbers."),
        (x + 1j, "The inputs are complex128; expected real numbers."),
        (x.numpy().astype("U8"), "The inputs are <U8; expected real numbers."),
        (x.numpy().astype(object), "The inputs are object; expected real numbers."),
        ([[1.0, 2.0], [3.0]], "The inputs are no array of numbers"),
        (np.full((2, 2), 1e4000, dtype="longdouble") * 10, "expected finite numbers"),
        (tmp_path / "flat.npz", "The inputs have the shape ()"),
    ):
        with pytest.raises(BadInput) as error:
            _read_inputs(given, None)
        assert said in str(error.value)
    with pytest.raises(BadInput, match="The labels are <U1; expected real numbers"):
        _classes(["a", "b"])
    with pytest.raises(BadInput, match="The radii are no array of numbers"):
        request(radius=[0.1, [0.2, 0.3]])


def test_labels_that_are_none(tmp_path):
    assert _classes([0.0, 2.0]).tolist() == [0, 2] and _classes(np.array([[1], [2]])).tolist() == [1, 2]
    with pytest.raises(BadInput, match=r"^The labels are no whole numbers; expected one class an input, from 0\.$"):
        _classes([0.0, 0.5])
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    with pytest.raises(BadInput) as error:
        _read_inputs(X.numpy(), tmp_path / "two.npz")
    assert str(error.value) == f"{tmp_path / 'two.npz'} holds 2 arrays (a, b); expected the labels alone."
    for content in (b"", b"no archive", b"PK\x03\x04"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(BadInput, match=r"bad\.npz cannot be read \(.*\); expected \.npy or \.npz\.$"):
            _read_inputs(tmp_path / "bad.npz", None)


def test_inputs_are_turned_to_the_shape_of_the_network():
    pictures = torch.arange(2 * 2 * 3 * 4.0).reshape(2, 2, 3, 4)
    same = SimpleNamespace(shape=(2, 3, 4), name="net")
    assert _turned(pictures, same) is pictures
    last = pictures.permute(0, 2, 3, 1)
    assert torch.equal(_turned(last, same), pictures) and _turned(last, same).is_contiguous()
    flat = SimpleNamespace(shape=(24,), name="net")
    assert torch.equal(_turned(pictures, flat), pictures.reshape(2, 24))
    assert torch.equal(_turned(pictures.reshape(2, 24), same), pictures)
    for x, net in (
        (pictures.reshape(2, 6, 4), same),  # as many numbers, in another order perhaps
        (pictures[..., :3], flat),
        (pictures.permute(0, 3, 1, 2), same),
        (pictures.reshape(2, 24), SimpleNamespace(shape=(23,), name="net")),
    ):
        with pytest.raises(BadInput) as error:
            _turned(x, net)
        assert str(error.value) == f"An input has the shape {tuple(x.shape[1:])}, net takes {net.shape}."


def test_what_is_stored_of_a_request():
    read = request(radius=0.25, limit=4)
    assert len(read.x) == len(read.labels) == len(read.predicted) == len(read.radii) == 4
    assert read.inputs == {"the network": network().digest} and read.resolved == {"radius": 0.25}
    assert torch.equal(read.labels, read.predicted) and read.whose == "the network's own answers"
    assert request(radius=[0.25, 0.5], limit=2).resolved == {"radius": [0.25, 0.5]}
    searched = request(radius=0.25, largest=True)
    assert searched.resolved == {"radius": None} and searched.radii.isnan().all()
    assert request(radius=None, largest=True).resolved == {"radius": None}
    with pytest.raises(BadInput) as error:
        request(radius=None)
    assert str(error.value) == (
        "No radius: give --radius, in the units of the raw inputs, or search for it with --largest-radius."
    )
    for labels, said in (([0] * 5, "5 labels"), ([0, 0, 0, 0, 0, 3], "6 labels"), ([0, 0, -1, 0, 0, 0], "6 labels")):
        with pytest.raises(BadInput) as error:
            request(labels=labels)
        assert str(error.value) == f"{said} for 6 inputs and 3 classes: one from 0 an input."
    with pytest.raises(BadInput, match=r"^8 labels for 6 inputs and 3 classes"):
        request(labels=[0, 1, 2, 0, 1, 2, 9, 9], limit=6)
    assert request(labels=[0, 1, 2, 0, 9, 9], limit=4).labels.tolist() == [0, 1, 2, 0]


def test_a_plan_counts_what_would_be_bounded():
    net = network()
    right = net(X).argmax(1)
    plan = request(net, labels=[*right[:4].tolist(), *((right[4:] + 1) % 3).tolist()]).plan()
    assert (plan.network, plan.shape, plan.inputs, plan.right, plan.labels) == ("net", (4,), 6, 4, "given")
    assert plan.batch == certifying.batch_size(net)


def test_the_notes_of_a_result():
    ball, box = request()._notes(), replace(request(x=X.abs().clamp(max=1)), box=(0.0, 1.5))._notes()
    assert ball == (
        "The network was given as it is: there is no original to compare it with.",
        "A certified margin holds for every point of the ball, for the network read as a function of real numbers; what a "
        "computer's own rounding adds to an output is not part of the claim.",
        "A refuted input has a point within its radius that the network puts into another class; an undecided one has "
        "neither that nor a proof.",
    )
    assert box[1].startswith("A certified margin holds for every point of the ball and the box from 0 to 1.5, for the")


# --- rows -----------------------------------------------------------------------------------------------------------


def answered(asked, margins, attacked, monkeypatch):
    """The rows of a request whose bounds and attacks are these, whatever the network."""
    seen = []

    def attack(net, x, radii, chosen, *, generator, box, steps):
        seen.append((len(x), [each.initial_seed() for each in generator], box, steps))
        worst = torch.tensor(attacked, dtype=torch.float64)
        return torch.cat([worst, worst[-1:].expand(len(x) - len(worst), -1)]), torch.zeros(len(x), 2, 4)

    def certified(its, x, radii, labels, shape, iterations):
        found = torch.tensor(margins, dtype=torch.float64)
        return SimpleNamespace(margins=torch.cat([found, found[-1:].expand(len(x) - len(found), -1)]))

    monkeypatch.setattr(certifying, "attack", attack)
    monkeypatch.setattr(Certifying, "_certified", certified)
    monkeypatch.setattr(certifying, "contents", lambda net, x, *_: [{}] * len(x))
    return [row for row, _ in asked._rows(set(), None)], seen


def test_verdicts_at_their_limits(monkeypatch):
    net = network()
    right = net(X).argmax(1)
    labels = right.clone()
    labels[2] = (labels[2] + 1) % 3
    asked = request(net, labels=labels, radius=0.5, attack_steps=9)
    margins = [[0.1, 0.2], [0.1, 0.0], [-0.5, 0.2], [-0.5, -0.6], [-0.1, 0.3]]
    attacked = [[0.2, 0.1], [0.1, 0.0], [0.0, 0.2], [-0.1, 0.2], [0.2, -0.1]]
    found, seen = answered(asked, margins, attacked, monkeypatch)
    assert [(row.index, row.verdict) for row in found] == [
        (2, "wrong"),
        (0, "certified"),
        (1, "undecided"),  # a margin of 0 is none
        (3, "undecided"),  # an attack that comes to 0 refutes nothing
        (4, "refuted"),
        (5, "refuted"),
    ]
    assert found[0].margins == found[0].attacked == () and found[0].radius == 0.5
    assert found[0].predicted == int(right[2]) and found[0].label == int(labels[2])
    assert [row.margins for row in found[1:]] == [tuple(each) for each in margins]
    assert [row.attacked for row in found[1:]] == [tuple(each) for each in attacked]
    (count, seeds, box, steps) = seen[0]
    assert (count, box, steps) == (8, None, 9)  # filled up to a number at which products round alike
    assert seeds[4:] == [seeds[4]] * 4 and len(set(seeds)) == 5
    words = [np.random.SeedSequence([0, index]).generate_state(1, np.uint64)[0] for index in (0, 1, 3, 4, 5)]
    assert seeds[:5] == [int(word) >> 1 for word in words]


def test_a_bound_above_an_attack_is_a_defect(monkeypatch):
    with pytest.raises(WorkFailed, match=r"^input 0: an attacked margin is below the certified one; this is a defect"):
        answered(request(), [[0.1, 0.2]], [[0.3, 0.0999]], monkeypatch)
    found, _ = answered(request(), [[0.1, 0.2]], [[0.3, 0.1]], monkeypatch)
    assert found[0].verdict == "certified"


def test_inputs_that_are_all_wrong_have_no_radius_in_a_search():
    net = network()
    wrong = (net(X).argmax(1) + 1) % 3
    rows = request(net, labels=wrong, largest=True).work(None).rows
    assert [(row.index, row.verdict, row.radius, row.margins) for row in rows] == [
        (n, "wrong", 0.0, ()) for n in range(6)
    ]


@pytest.mark.parametrize(("iterations", "third"), [(1, 1), (5, 1), (6, 2), (300, 100)])
def test_the_largest_radius_is_bisected_between_lipschitz_and_eight_times_that(monkeypatch, iterations, third):
    net = network()
    labels, shape, ones = net(X).argmax(1), geometry(net), torch.ones(6, dtype=torch.float64)
    chosen = specifications(labels, 3)
    at_zero = lip_naive(net, X, 0 * ones, chosen, shape)
    least = (at_zero / (at_zero - lip_naive(net, X, ones, chosen, shape))).amin(1) * (1 - 1e-5)
    limit, seen = least * torch.tensor([0.5, 1.0, 2.0, 3.0, 7.9, 100.0]), []

    def certified(its, x, radii, given, geometry_, iterations):
        seen.append(iterations)
        return SimpleNamespace(margins=torch.stack([limit - radii, ones], 1))

    monkeypatch.setattr(Certifying, "_certified", certified)
    found = request(net, largest=True, iterations=iterations)._largest(X, labels, shape)
    assert seen == [third] * 8
    for begin, most, radius in zip(least.tolist(), limit.tolist(), found.tolist(), strict=True):
        low, high = begin, 8 * begin
        for _ in range(8):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if most > middle else (low, middle)
        assert radius == pytest.approx(low * (1 if low == begin else 0.999), rel=1e-12)
    assert found[0].item() == pytest.approx(least[0].item()) and found[5].item() == pytest.approx(
        8 ** (255 / 256) * least[5].item() * 0.999
    )


def test_a_search_whose_input_is_on_the_border_has_a_radius_all_the_same(monkeypatch):
    monkeypatch.setattr(
        Certifying, "_certified", lambda its, x, radii, *_: SimpleNamespace(margins=torch.full((len(x), 1), -1.0))
    )
    net = network()
    builder = Builder((4,))
    net = builder.build(builder.linear(0, torch.ones(3, 4), None), "even")  # all outputs alike
    found = request(net, largest=True)._largest(X, torch.zeros(6, dtype=torch.int64), geometry(net))
    assert found.tolist() == pytest.approx([1e-9 * (1 - 1e-5)] * 6)


@pytest.mark.parametrize("words", [{"unit": 1e-8}, {"unit": 1e-14}, {"unit": 1e9}, {"inputs": 1e-9}, {"inputs": 1e9}])
def test_verdicts_and_radii_do_not_depend_on_the_units_of_outputs_and_inputs(tmp_path, words):
    how = {"iterations": 10, "attack_steps": 10, "refine": True}
    unit, inputs = words.get("unit", 1.0), words.get("inputs", 1.0)
    usual = certify(network(seed=6), X, 0.6, **how).rows
    found = certify(network(seed=6, **words), X * inputs, 0.6 * inputs, out=tmp_path / "within", **how)
    assert [row.verdict for row in found.rows] == [row.verdict for row in usual] and found.accepted == 6
    assert {row.verdict for row in usual} == {"certified", "refuted", "undecided"}
    for row, its in zip(found.rows, usual, strict=True):
        assert [each / unit for each in row.margins] == pytest.approx(list(its.margins), rel=0.02, abs=0.02)
    how |= {"iterations": 3, "largest_radius": True}
    usual = certify(network(seed=6), X[:3], **how).rows
    found = certify(network(seed=6, **words), X[:3] * inputs, out=tmp_path / "largest", **how)
    assert {row.verdict for row in found.rows} == {"certified"} and found.accepted == 3
    assert [row.radius / inputs for row in found.rows] == pytest.approx([row.radius for row in usual], rel=0.05)


@pytest.mark.parametrize(("common", "verdicts"), [(1e9, {"certified"}), (1e14, {"undecided"})])
def test_large_terms_that_cancel_cost_a_margin_what_their_rounding_is(tmp_path, common, verdicts):
    net = network(common=common)
    done = certify(net, X, 0.01, iterations=5, attack_steps=0, out=tmp_path / "out")
    right = [row for row in done.rows if row.verdict != "wrong"]
    assert {row.verdict for row in right} == verdicts and done.accepted == len(right) >= 5


def test_a_search_that_certifies_nothing_ends_with_the_radius_0_in_row_and_certificate(tmp_path):
    builder = Builder((4,))
    even = builder.build(builder.linear(0, torch.ones(3, 4), None), "even")  # all outputs alike
    done = certify(even, X[:2], largest_radius=True, iterations=1, attack_steps=3, out=tmp_path / "out")
    assert [(row.verdict, row.radius) for row in done.rows] == [("undecided", 0.0)] * 2
    found = check_folder(tmp_path / "out", check.read_net(tmp_path / "out" / "network.safetensors"))
    assert [each.accepted for each in found.values()] == [True] * 2


def test_the_radius_of_a_result_is_one_for_all_where_there_is_one():
    words = {"x": X[:2], "iterations": 1, "attack_steps": 0}
    for radius, told in ((0.05, 0.05), ([0.05, 0.05], 0.05), ([0.05, 0.06], None)):
        done = request(radius=radius, **words).work(None)
        assert (done.radius, done.largest, done.accepted, done.folder) == (told, False, 0, None)
        assert (done.network, done.shape, done.labels) == ("net", (4,), "the network's own answers")
        assert [row.index for row in done.rows] == [0, 1] and done.seconds > 0
    done = request(largest=True, **words).work(None)
    assert done.radius is None and done.largest


def test_rows_that_are_done_are_not_made_again(monkeypatch):
    monkeypatch.setattr(certifying, "geometry", lambda net: "shape")
    monkeypatch.setattr(certifying, "batch_size", lambda net: 3)
    asked = []

    def block(indices, shape, folder):
        asked.append((list(indices), shape, folder))
        return [(SimpleNamespace(index=index), {"file": str(index)}) for index in indices]

    request = SimpleNamespace(net=None, x=range(11), _block=block)
    found = list(certifying.Certifying._rows(request, {0, 1, 2, 4, 6, 7, 8}, "folder"))
    assert [(row.index, files) for row, files in found] == [(i, {"file": str(i)}) for i in (3, 5, 9, 10)]
    assert asked == [([3, 4, 5], "shape", "folder"), ([9, 10], "shape", "folder")]
