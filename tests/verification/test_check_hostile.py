"""Files that somebody made to deceive the checker, or that were damaged: each is refused with a sentence, alone."""

import io
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.cli import main
from equipoise.verification import certify, check, check_files, from_module
from equipoise.verification.bounds import Search, geometry
from equipoise.verification.certificate import certified_margins, contents, write
from equipoise.verification.check_files import METADATA, Net, Refused, Undescribed, fit, read_certificate, read_net
from equipoise.verification.check_folder import check_folder, read_inputs
from equipoise.verification.network import Builder
from equipoise.verification.read import read_network

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz_certificates.py"


def stored(path, description, tensors, metadata=None, **changes):
    """A safetensors file, whatever it says. tensors: name -> array; changes: of entries of the header."""
    header, data = {"__metadata__": {METADATA: json.dumps(description)} if metadata is None else metadata}, b""
    for name, array in tensors.items():
        array = np.asarray(array)
        kind = {"f4": "F32", "f8": "F64", "f2": "F16", "i8": "I64"}[array.dtype.str[1:]]
        end = len(data) + array.nbytes
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(data), end]}
        data += array.tobytes()
    text = json.dumps(header | changes).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def dense(*sizes, seed=0):
    """Description and tensors of linear layers with a ReLU between each two."""
    rng, layers, tensors = np.random.default_rng(seed), [], {}
    for n, m in itertools.pairwise(sizes):
        if layers:
            layers.append({"kind": "relu", "inputs": [len(layers)]})
        tensors[f"{len(layers)}.weight"] = rng.normal(size=(m, n)) / n**0.5
        tensors[f"{len(layers)}.bias"] = rng.normal(size=m)
        layers.append({"kind": "linear", "inputs": [len(layers)]})
    return {"shape": list(sizes[:1]), "layers": layers}, tensors


def pictures():
    """A convolution, a residual sum and a linear layer."""
    rng = np.random.default_rng(0)
    picture = {"shape": [2, 3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 2}
    layers = [
        {"kind": "scale", "inputs": [0]},
        {"kind": "conv2d", "inputs": [1], **picture},
        {"kind": "relu", "inputs": [2]},
        {"kind": "add", "inputs": [3, 1]},
        {"kind": "linear", "inputs": [4]},
    ]
    shapes = {0: (18,), 1: (2, 1, 3, 3), 4: (3, 18)}
    tensors = {f"{place}.weight": rng.normal(size=shape) for place, shape in shapes.items()}
    return {"shape": [2, 3, 3], "layers": layers}, tensors | {f"{p}.bias": np.ones(s[0]) for p, s in shapes.items()}


def test_what_is_written_is_read_and_of_every_place_the_form_is_closed(tmp_path):
    text, tensors = pictures()
    net = read_net(stored(tmp_path / "net", text, tensors))
    assert net.sizes == [18, 18, 18, 18, 18, 3] and net.shape == (2, 3, 3) and net.bent == [2]
    assert read_network(tmp_path / "net").digest == net.digest
    assert net.digest == read_net(stored(tmp_path / "net", text, dict(reversed(tensors.items())))).digest


ROW = ("layers", 1)
WRONG = {
    "a value that is not there yet": (("layers", 2, "inputs"), [3]),
    "a value counted from the end": (("layers", 3, "inputs"), [3, -1]),
    "a value twice": (("layers", 3, "inputs"), [3, 3]),
    "a truth value": (("layers", 3, "inputs"), [3, True]),
    "a number with a point": (("layers", 2, "inputs"), [2.0]),
    "text": (("layers", 2, "inputs"), ["2"]),
    "too many values": (("layers", 2, "inputs"), [2, 1]),
    "one value of a sum": (("layers", 3, "inputs"), [3]),
    "no values": (("layers", 0, "inputs"), []),
    "no list": (("layers", 2, "inputs"), 2),
    "an unknown kind": (("layers", 2, "kind"), "sigmoid"),
    "a kind that is no text": (("layers", 2, "kind"), ["relu"]),
    "a key too many": (("layers", 2, "slope"), 0.1),
    "a key of another kind": (("layers", 4, "groups"), 1),
    "another top key": (("note",), "hello"),
    "no layers": (("layers",), []),
    "layers that are none": (("layers",), {"0": {"kind": "relu", "inputs": [0]}}),
    "a layer that is none": (("layers", 2), "relu"),
    "an input of another size": (("shape",), [19]),
    "an input without a size": (("shape",), []),
    "a negative input": (("shape",), [-2, -3, 3]),
    "an input of truth values": (("shape",), [True, 18]),
    "an enormous input": (("shape",), [10**12, 10**12]),
    "a number of 9,000 digits": (("shape",), [int("9" * 4200), int("9" * 4200), 3]),
    "an input of a hundred dimensions": (("shape",), [1] * 97 + [2, 3, 3]),
    "a picture of another size": ((*ROW, "shape"), [2, 3, 4]),
    "a flat picture": ((*ROW, "shape"), [18]),
    "no stride": ((*ROW, "stride"), [0, 1]),
    "one stride": ((*ROW, "stride"), [1]),
    "a negative padding": ((*ROW, "padding"), [-1, 1]),
    "an enormous padding": ((*ROW, "padding"), [10**6, 10**6]),
    "no dilation": ((*ROW, "dilation"), [0, 0]),
    "a kernel beyond the picture": ((*ROW, "dilation"), [3, 3]),
    "no groups": ((*ROW, "groups"), 0),
    "groups of truth": ((*ROW, "groups"), True),
    "other groups": ((*ROW, "groups"), 1),
    "a sum that ends elsewhere": (("layers", 4, "inputs"), [3]),  # and nothing reads the sum
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_description_outside_the_grammar_is_refused(tmp_path, kind):
    text, tensors = pictures()
    (*way, key), value = WRONG[kind]
    place = text
    for each in way:
        place = place[each]
    place[key] = value
    with pytest.raises(Refused) as refused:
        read_net(stored(tmp_path / "net", text, tensors))
    assert 10 < len(str(refused.value)) < 200 and str(refused.value).isascii()


def test_missing_keys_are_refused(tmp_path):
    for place, key in [(place, key) for place, row in enumerate(pictures()[0]["layers"]) for key in row]:
        text, tensors = pictures()
        del text["layers"][place][key]
        with pytest.raises(Refused):
            read_net(stored(tmp_path / "net", text, tensors))


BIAS = (880, 904)  # where 4.bias lies in `pictures`


def entry(kind="F64", shape=(3,), offsets=BIAS, **more):
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(offsets), **more}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"4.bias": entry("I64")}, "its tensor 4.bias is of type 'I64', not F32 or F64"),
        ({"4.bias": entry("F16", offsets=(880, 886))}, "is of type 'F16', not F32 or F64"),
        ({"4.bias": entry(["F64"])}, "its tensor 4.bias is of type"),
        ({"4.bias": entry(shape=(1, 3))}, "has the shape [1, 3], not [3]"),
        ({"4.bias": entry(shape=(3, 1))}, "has the shape [3, 1], not [3]"),
        ({"4.bias": entry(shape=())}, "the shape of tensor '4.bias' is []"),
        ({"4.bias": entry(shape=(-3,))}, "the shape of tensor '4.bias' is [-3]"),
        ({"4.bias": entry(shape=(3.0,))}, "the shape of tensor '4.bias' is [3.0]"),
        ({"4.bias": entry(offsets=(880, 905))}, "4.bias lies from byte 880 to 905, not from 880 to 904"),
        ({"4.bias": entry(offsets=(-24, 0))}, "the place of tensor 4.bias is [-24, 0]"),
        ({"4.bias": entry(offsets=(*BIAS, 904))}, "the place of tensor 4.bias is [880, 904, 904], not 2 of them"),
        ({"4.bias": entry(offsets=(8, 32))}, "4.bias lies from byte 8 to 32, not from 144 to 168"),  # on another's
        ({"4.bias": entry(offsets=(False, 24))}, "the place of tensor 4.bias is [False, 24]"),
        ({"4.bias": entry(more=1)}, "its entry of tensor '4.bias' is not dtype, shape and data_offsets"),
        ({"4.bias": {**entry(), "dtype": 1} | {"kind": 1}}, "its entry of tensor '4.bias' is not"),
        ({"4.bias": {"dtype": "F64", "shape": [3]}}, "its entry of tensor '4.bias' is not"),
        ({"4.bias": [3]}, "its entry of tensor '4.bias' is not"),
        ({"4.bias": None}, "its entry of tensor '4.bias' is not"),
        ({"4.offset": entry(), "5.bias": entry()}, "parameters: ['4.offset', '5.bias']"),
        ({"04.bias": entry()}, "parameters: ['04.bias']"),
        ({"__metadata__": {METADATA: json.dumps(pictures()[0]), "format": "pt"}}, "its metadata hold something other"),
        ({"__metadata__": {METADATA: pictures()[0]}}, "its metadata hold something other"),
        ({"__metadata__": {METADATA: "[" * 100_000}}, "its description is no JSON"),
        ({"__metadata__": {METADATA: '{"shape": [18], "shape": [2, 3, 3], "layers": []}'}}, "('a name stands twice')"),
        ({"__metadata__": {METADATA: "\ud800"}}, "its description is no JSON"),
        ({"__metadata__": {METADATA: "NaN"}}, "the description has not exactly layers, shape: nan"),
    ],
    ids=lambda change: ascii(change)[:60],
)
def test_a_header_outside_the_format_is_refused(tmp_path, change, reason):
    assert read_net(stored(tmp_path / "net", *pictures(), **{"4.bias": entry()})).sizes[-1] == 3
    with pytest.raises(Refused, match=re.escape(reason)):
        read_net(stored(tmp_path / "net", *pictures(), **change))


def test_a_network_is_as_large_as_can_be_checked_and_no_larger(tmp_path, monkeypatch):
    network = stored(tmp_path / "net", *pictures())
    for limit, most, said in (
        ("VALUES", 93, "its values have 93 numbers and its kernels 9 places"),
        ("TAPS", 9, "its values have 54 numbers and its kernels 9 places"),
        ("PARAMETERS", 18 + 18 + 54 + 18 + 2 + 3, "it has more than 112 parameters"),
        ("WIDE", 3 * 2 * 5 * 5, "3 classes and 50 numbers at once are too many"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(check_files, limit, most)
            assert read_net(network).sizes[-1] == 3
            patch.setattr(check_files, limit, most - 1)
            with pytest.raises(Refused, match=said):
                read_net(network)


@pytest.mark.parametrize(
    ("shape", "weight", "stride", "padding", "dilation", "out"),
    [
        ((1, 1, 1), (1, 1, 1, 1), (1, 1), (0, 0), (1, 1), (1, 1)),
        ((2, 7, 9), (4, 1, 2, 3), (1, 1), (0, 0), (1, 1), (6, 7)),
        ((2, 7, 9), (4, 1, 2, 3), (2, 3), (1, 0), (2, 1), (4, 3)),
        ((4, 5, 3), (2, 2, 3, 2), (1, 2), (2, 3), (3, 4), (3, 3)),
        ((4, 3, 5), (6, 4, 3, 5), (9, 9), (0, 0), (1, 1), (1, 1)),
        ((4, 3, 5), (6, 4, 1, 2), (1, 1), (0, 1), (9, 6), (3, 1)),
    ],
)
def test_the_sizes_of_pictures(tmp_path, shape, weight, stride, padding, dilation, out):
    """By hand: (size + 2 padding - dilation (kernel - 1) - 1) // stride + 1; and of the padded picture."""
    row = {"kind": "conv2d", "inputs": [0], "shape": list(shape), "groups": shape[0] // weight[1]}
    row |= {"stride": list(stride), "padding": list(padding), "dilation": list(dilation)}
    size, result = int(np.prod(shape)), weight[0] * out[0] * out[1]
    text = {"shape": list(shape), "layers": [row, {"kind": "linear", "inputs": [1]}]}
    tensors = {"0.weight": np.ones(weight), "0.bias": np.ones(weight[0]), "1.weight": np.ones((2, result))}
    net = read_net(stored(tmp_path / "net", text, tensors | {"1.bias": np.ones(2)}))
    assert net.sizes == [size, result, 2] and read_network(tmp_path / "net").sizes == (size, result, 2)
    padded = shape[0] * (shape[1] + 2 * padding[0]) * (shape[2] + 2 * padding[1])
    wide, length, parameter = check_files._convolution(row, list(weight), size, "it")
    assert (wide, length, parameter) == (padded, result, weight)


def test_a_network_without_parameters_is_all_header(tmp_path, monkeypatch):
    network = stored(tmp_path / "net", {"shape": [2], "layers": [{"kind": "relu", "inputs": [0]}]}, {})
    assert read_net(network).sizes == [2, 2]
    length = network.stat().st_size - 8
    monkeypatch.setattr(check_files, "HEADER", length)
    assert read_net(network).sizes == [2, 2]
    monkeypatch.setattr(check_files, "HEADER", length - 1)
    with pytest.raises(Undescribed, match=f"a header of {length} bytes in a file of {length + 8}"):
        read_net(network)
    for text, said in ((b"{}", "it does not say how"), (b"1", "a header of 1 bytes in a file of 9")):
        network.write_bytes(struct.pack("<Q", len(text)) + text)
        with pytest.raises(Undescribed, match=said):
            read_net(network)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["<f4", "<f8"])
def test_parameters_are_finite(tmp_path, value, kind):
    text, tensors = pictures()
    tensors["0.bias"] = np.full(18, value, dtype=kind)
    with pytest.raises(Refused, match=r"0\.bias holds a number that is not finite"):
        read_net(stored(tmp_path / "net", text, tensors))


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    contents_of = {
        "empty": b"",
        "short": b"\x05\0\0\0\0\0\0\0{}",
        "endless": b"\xff" * 8 + b"{}",
        "enormous": struct.pack("<Q", 2**40) + b"{}",
        "list": struct.pack("<Q", 2) + b"[]",
        "text": struct.pack("<Q", 4) + b"nope",
        "latin": struct.pack("<Q", 8) + '{"ä": 1}'.encode("latin-1"),
        "utf-16": struct.pack("<Q", 6) + "{}".encode("utf-16"),
        "other": struct.pack("<Q", 20) + b'{"__metadata__": 7}  ',
        "brackets": struct.pack("<Q", 10**5) + b"[" * 10**5,
    }
    for name, content in contents_of.items():
        (tmp_path / name).write_bytes(content)
    net = read_net(stored(tmp_path / "net", *dense(4, 3, 2)))
    for name in (*contents_of, "fifo", "folder", "loop", "nothing", "n\0ne", "n" * 300):
        with pytest.raises(Refused):
            read_net(tmp_path / name)
        with pytest.raises(Refused):
            read_certificate(tmp_path / name, net)
    with pytest.raises(Undescribed):
        read_net(stored(tmp_path / "bare", {}, {"a.weight": np.ones((2, 2))}, metadata={}))


def test_networks_of_other_shapes_have_other_digests(tmp_path):
    """The same description and the same bytes: 8 + 2 numbers, 18 + 9, 27 + 3 cut into 12 + 3, 21 + 7, 21 + 3."""
    rng = np.random.default_rng(0)
    one, two = dense(4, 2, 9, 3), dense(4, 3, 7, 3)
    assert one[0] == two[0]
    count = [sum(each.size for each in tensors.values()) for _, tensors in (one, two)]
    assert count[0] == count[1]
    numbers = rng.normal(size=count[0])
    digests = []
    for text, tensors in (one, two):
        ends = np.cumsum([each.size for each in tensors.values()])[:-1]
        cut = [part.reshape(each.shape) for part, each in zip(np.split(numbers, ends), tensors.values(), strict=True)]
        path = stored(tmp_path / "net", text, dict(zip(tensors, cut, strict=True)))
        digests.append(read_net(path).digest)
        assert read_network(path).digest == digests[-1]
    assert digests[0] != digests[1]


def test_a_network_too_large_for_the_machine_is_refused_before_it_is_read(tmp_path):
    relus = [{"kind": "relu", "inputs": [place]} for place in range(20_000)]
    text, tensors = dense(4, 3, 2)
    deep = {"shape": [1000], "layers": [*relus, {"kind": "linear", "inputs": [len(relus)]}]}
    many = {"shape": [10], "layers": [{"kind": "linear", "inputs": [0]}]}
    assert read_net(stored(tmp_path / "net", text, tensors)).sizes == [4, 3, 3, 2]
    fine = {"shape": [1, 300, 300], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    blurred = {"shape": [300, 300], "layers": [{"kind": "conv2d", "inputs": [0], **fine}]}
    with pytest.raises(Refused, match="its kernels 84100 places, too many"):
        read_net(stored(tmp_path / "net", blurred, {"0.weight": np.ones((2, 1, 290, 290)), "0.bias": np.ones(2)}))
    for description in (deep, many):
        where = f"{len(description['layers']) - 1}"
        entries = {f"{where}.weight": entry(shape=(10**9, description["shape"][0]), offsets=(0, 8 * 10**10))}
        entries[f"{where}.bias"] = entry(shape=(10**9,), offsets=(8 * 10**10, 8 * 10**10 + 8 * 10**9))
        with pytest.raises(Refused, match="too many for this checker"):
            read_net(stored(tmp_path / "net", description, {}, **entries))


# Certificates


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The folder of a job with five certificates, its network, inputs as written, and its command line's inputs."""
    folder = tmp_path_factory.mktemp("job")
    rng = torch.Generator().manual_seed(0)
    builder, value = Builder((6,)), 0
    for n, m in ((6, 5), (5, 5), (5, 3)):
        value = builder.relu(value) if value else value
        square = torch.linalg.qr(torch.randn(6, 6, generator=rng, dtype=torch.float64))[0]
        value = builder.linear(value, square[:m, :n], 0.3 * torch.randn(m, generator=rng, dtype=torch.float64))
    network = builder.build(value, "small")
    x = torch.rand(6, 6, generator=rng, dtype=torch.float64)
    labels = network(x).argmax(1)
    labels[2] = (labels[2] + 1) % 3
    np.savez(folder / "x.npz", X=x.numpy(), y=labels.numpy())
    certify(network, folder / "x.npz", 0.05, out=folder / "out", iterations=4, attack_steps=4)
    return folder


@pytest.fixture
def copied(job, tmp_path):
    import shutil

    shutil.copytree(job / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(scope="module")
def net(job):
    return read_net(job / "out" / "network.safetensors")


def members(path):
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def refused(path, net, match=None):
    with pytest.raises(Refused, match=match) as why:
        check.check(path, net)
    assert str(why.value) and len(str(why.value)) < 400
    return str(why.value)


def test_certificates_of_before_are_told_apart(copied, net):
    path = copied / "certificates" / "00000.npz"
    content = members(path)
    del content["format"]
    write(content, path)
    assert "Make it again with equipoise certify run" in refused(path, net, "an earlier version made it")
    write({**content, "format": np.array(3)}, path)
    refused(path, net, "it is of format 3, and this checker reads 2")


def test_every_array_has_one_type_and_shape(copied, net):
    path = copied / "certificates" / "00000.npz"
    content = members(path)
    for name, array in content.items():
        for other in (
            array[None],
            np.broadcast_to(array, (2, *array.shape)),
            array.astype("<f2") if array.dtype.kind == "f" else array.astype("<U1"),
            array.astype(array.dtype.newbyteorder(">")),
            array.astype(complex) if array.dtype.kind != "U" else array.astype("S64"),
            np.array(None),
        ):
            with pytest.raises(Refused):
                fit({key: (each.dtype.str, each.shape) for key, each in {**content, name: other}.items()}, net)
            np.savez(path, allow_pickle=True, **{**content, name: other})
            refused(path, net)
    for extra in ("notes", "norm_7", "box", "lambda_input", "refined", "multipliers_1", "__class__"):
        write({**content, extra: np.zeros(2)}, path)
        refused(path, net, "not those of a certificate about this network")
    write(content, path)
    assert (check.check(path, net) == content["margins"]).all()


def test_numbers_that_are_none(copied, net):
    path = copied / "certificates" / "00000.npz"
    content = members(path)
    for name, array in content.items():
        if array.dtype.kind == "f":
            for value in (np.nan, np.inf, -np.inf):
                changed = array.copy()
                changed[(0,) * array.ndim] = value
                with pytest.raises(Refused, match=f"its {name} holds a number that is not finite"):
                    check.prove({**content, name: changed}, net)
    for name, value in {"label": -1, "label ": 3, "radius": -0.1}.items():
        with pytest.raises(Refused, match=f"its {name.strip()} is"):
            check.prove({**content, name.strip(): np.array(value)}, net)
    for network in ("", "\udcff", "é" * 64, "0" * 63):
        with pytest.raises(Refused, match="it names another network") as why:
            check.prove({**content, "network": np.array(network, dtype="<U64")}, net)
        assert str(why.value).isascii()
    beyond = np.frombuffer(b"\xff\xff\xff\x7f" * 64, "<U64").reshape(())  # no character at all
    with pytest.raises(Refused, match="it names another network"):
        check.prove({**content, "network": beyond}, net)


def test_a_certificate_is_as_large_as_can_be_checked_and_no_larger(copied, net, monkeypatch):
    path = copied / "certificates" / "00000.npz"
    content = members(path)
    directory = int.from_bytes(path.read_bytes()[-10:-6], "little")
    for limit, most, said in (
        ("CERTIFICATE", sum(array.nbytes for array in content.values()), "its arrays have more than"),
        ("DIRECTORY", directory, "a damaged one .its end."),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(check_files, limit, most)
            assert (check.check(path, net) == content["margins"]).all()
            patch.setattr(check_files, limit, most - 1)
            refused(path, net, said)


def test_as_many_margins_as_there_are_can_be_refined(copied, net):
    content = members(copied / "certificates" / "00000.npz")
    forms = {name: (array.dtype.str, array.shape) for name, array in content.items()}
    for count in (0, 1, 2, 3):
        refining = {"refined": ("<i8", (count,)), "ball": ("<f8", (count,))}
        refining |= {f"multipliers_{at}": ("<f8", (count, 5, net.sizes[at])) for at in net.bent}
        if count < 3:
            fit(forms | refining, net)
            continue
        with pytest.raises(Refused, match=r"^it refines 3 of 2 margins$"):
            fit(forms | refining, net)


def test_whole_numbers_and_words_of_a_file():
    whole, told = check_files._whole, check_files.told
    for good in ([1], [2**40], [1] * 32, [7, 1, 2**40]):
        assert whole(good, "it", 1) == tuple(good) == whole(good, "it", True, len(good))
    assert whole([0], "it", 0) == whole([0], "it", False) == (0,)
    for bad in ([0], [], [1] * 33, [2**40 + 1], [True], [1.0], ["1"], [[1]], (1,), 1, None, [-1]):
        with pytest.raises(Refused) as why:
            whole(bad, "it", 1)
        assert str(why.value) == f"it is {told(bad)}, not one or some whole numbers from 1 on"
    for count in (1, 3):
        with pytest.raises(Refused, match=rf"^it is \[1, 2\], not {count} of them$"):
            whole([1, 2], "it", 1, count)
    assert told("a" * 58) == f"'{'a' * 58}'" and told("a" * 59) == f"'{'a' * 56}..." and told("é") == r"'\xe9'"


def archive(path, content, **changes):
    """An archive of the arrays as numpy writes it, with members changed: name -> bytes of the file, or None."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in content.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array)
            given = changes.get(name, buffer.getvalue())
            if given is not None:
                file.writestr(f"{name}.npy", given)


def head(text, version=b"\1\0"):
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text


def test_members_that_are_no_arrays(copied, net):
    path = copied / "certificates" / "00000.npz"
    content = members(path)
    archive(path, content)
    assert (check.check(path, net) == content["margins"]).all()
    good = content["margins"].tobytes()
    shape = "{'descr': '<f8', 'fortran_order': False, 'shape': %s, }\n"
    for given in (
        b"",
        b"nothing",
        good,
        head((shape % "(2,)").encode()),
        head((shape % "(2,)").encode()) + good + b"\0",
        head((shape % "(2,)").encode(), b"\3\0") + good,
        head((shape % "(-2,)").encode()) + good,
        head((shape % "(2, )*9").encode()) + good,
        head((shape % "(1 1,)").encode()) + good,
        head((shape % f"({10**30},)").encode()) + good,
        head((shape % "(2,)").replace("False", "True").encode()) + good,
        head((shape % "(2,)").replace("<f8", "|O").encode()) + good,
        head(b"{'descr': __import__('os').abort(), 'fortran_order': False, 'shape': (2,), }\n") + good,
        head(b"\xff" * 60000) + good,
        None,
    ):
        archive(path, content, margins=given)
        refused(path, net)
    archive(path, content)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as file:
        file.writestr("margins.npy", b"")
    refused(path, net, "a name stands twice")
    for name, kind in (("margins", zipfile.ZIP_STORED), ("margins.npy", zipfile.ZIP_BZIP2)):
        archive(path, content, margins=None)
        with zipfile.ZipFile(path, "a", kind) as file:
            file.writestr(name, head((shape % "(2,)").encode()) + good)
        refused(path, net)


def test_archives_whose_directory_lies(copied, net):
    path = copied / "certificates" / "00000.npz"
    raw = path.read_bytes()
    for change in (
        raw + b"tail",
        raw[:-22] + raw[-22:-10] + struct.pack("<L", 2**31) + raw[-6:],  # of two gigabytes
        raw[:-22] + b"PK\6\7" + bytes(16) + raw[-22:],  # a long one stands elsewhere
        raw[:-22],
        raw.replace(b"margins.npy", b"margins\0npy"),
        raw.replace(b"margins.npy", b"margins\xff.np"),
        raw.replace(b"radius.npy", b"../../r.py"),
        raw.replace(b"PK\1\2\x2d\3\x2d", b"PK\1\2\x2d\3\xff"),  # for a version that is not known
        raw.replace(b"PK\1\2", b"PK\1\3"),
    ):
        assert change != raw
        path.write_bytes(change)
        refused(path, net)
    for offset in range(6, 40):  # every field of a local header and of the directory
        for start in (raw.index(b"PK\3\4"), raw.index(b"PK\1\2")):
            at = start + offset
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :])
            try:
                content = read_certificate(path, net)
            except Refused:
                continue
            assert all((content[name] == array).all() for name, array in members(path).items())


BOMB = """
import resource, sys
from equipoise.verification.check_files import Refused, read_certificate, read_net
net = read_net(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    try:
        read_certificate(path, net)
    except Refused as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_bomb_takes_no_memory(copied, net, tmp_path):
    """80 MB of zeros in 80 kB, as an array too large, as one too many, and behind a true header."""
    content = members(copied / "certificates" / "00000.npz")
    zeros = bytes(2**24)

    def bomb(path, name, begin):
        archive(path, content, **{name: None})
        with (
            zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
            file.open(f"{name}.npy", "w") as member,
        ):
            member.write(begin)
            for _ in range(5):
                member.write(zeros)

    large = head(b"{'descr': '<f8', 'fortran_order': False, 'shape': (10485760,), }\n")
    true = head(b"{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }\n")
    bomb(tmp_path / "large.npz", "margins", large)
    bomb(tmp_path / "many.npz", "notes", large)
    bomb(tmp_path / "behind.npz", "margins", true)
    paths = [str(tmp_path / f"{name}.npz") for name in ("large", "many", "behind")]
    command = [sys.executable, "-c", BOMB, str(copied / "network.safetensors"), *paths]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert len(said) == 4 and int(said[-1]) < 20_000  # kilobytes


# Certificates together


def told(found, name):
    (reason,) = [each.reason for path, each in found.items() if path.endswith(name)]
    return reason


def test_a_job_is_whole(job, net):
    inputs = read_inputs(job / "x.npz", net)
    for where in ("out", "out/certificates", "out/certificates/00003.npz"):
        for given in (None, inputs):
            found = check_folder(job / where, net, given)
            assert all(each.accepted for each in found.values())
            assert len(found) == (1 if where.endswith("npz") else 5)


def test_each_is_refused_alone(copied, net):
    folder = copied / "certificates"
    (folder / "00000.npz").write_bytes(b"")
    os.mkfifo(folder / "00009.npz")
    (folder / "00008.npz").mkdir()
    (folder / "00001.npz").write_bytes((folder / "00001.npz").read_bytes()[:-100])
    found = check_folder(copied, net)
    assert [Path(path).stem for path, each in found.items() if each.accepted] == ["00003", "00004", "00005"]
    assert len(found) == 7


def test_copies_of_one_are_refused(copied, net, job):
    folder = copied / "certificates"
    one = (folder / "00003.npz").read_bytes()
    for path in folder.iterdir():
        path.write_bytes(one)
    assert sum(each.accepted for each in check_folder(folder, net).values()) == 1
    tied = check_folder(folder, net, read_inputs(job / "x.npz", net))
    assert sum(each.accepted for each in tied.values()) == 1
    (copied / "rows.jsonl").unlink()
    alone = check_folder(folder, net)
    assert sum(each.accepted for each in alone.values()) == 1
    assert told(alone, "00005.npz").startswith("it is about the same input as 00000.npz")
    tied = check_folder(folder, net, read_inputs(job / "x.npz", net))
    assert [Path(path).stem for path, each in tied.items() if each.accepted] == ["00003"]
    assert told(tied, "00005.npz") == "it is not about input 5, but about input 3"


def test_inputs_that_stand_twice_may_have_equal_certificates(copied, net, job):
    folder = copied / "certificates"
    (copied / "rows.jsonl").unlink()
    (folder / "00005.npz").write_bytes((folder / "00003.npz").read_bytes())
    inputs = read_inputs(job / "x.npz", net)
    inputs[5] = inputs[3]
    assert all(each.accepted for each in check_folder(folder, net, inputs).values())
    inputs[5, 0] = np.nextafter(inputs[5, 0], 1)
    assert told(check_folder(folder, net, inputs), "00005.npz") == "it is not about input 5, but about input 3"
    assert told(check_folder(folder, net, inputs[:5]), "00005.npz") == "there are 5 inputs, and none of index 5"


def test_a_folder_is_compared_with_its_rows(copied, net):
    folder, rows = copied / "certificates", copied / "rows.jsonl"
    lines = [json.loads(line) for line in rows.read_text().splitlines()]

    def changed(index, /, **fields):
        def one(line):
            row = line.get("row", line)
            return {**line, "row": {**row, **fields}} if row["index"] == index else line

        rows.write_text("".join(json.dumps(one(line)) + "\n" for line in lines))
        return check_folder(copied, net)

    assert all(each.accepted for each in changed(3).values())
    row = next(line.get("row", line) for line in lines if line["index"] == 3)
    assert "label" in told(changed(3, label=(row["label"] + 1) % 3), "00003.npz")
    assert "radius" in told(changed(3, radius=0.06), "00003.npz")
    assert "margins" in told(changed(3, margins=[m - 1e-9 for m in row["margins"]]), "00003.npz")
    assert "its row says wrong" in told(changed(3, verdict="wrong"), "00003.npz")
    other = "undecided" if row["verdict"] == "certified" else "certified"
    assert f"its row says {other}" in told(changed(3, verdict=other), "00003.npz")
    for index, fields in {
        2: {"index": 9},
        3: {"index": True},
        4: {"margins": ["1", 2]},
        5: {"verdict": ["wrong"]},
    }.items():
        assert any(not each.accepted and "rows.jsonl" in path for path, each in changed(index, **fields).items())
    changed(3)
    rows.write_text(rows.read_text() + rows.read_text())  # what was made again
    assert all(each.accepted for each in check_folder(copied, net).values())
    rows.write_bytes(rows.read_bytes() + b'{"index": 3, "lab')
    assert [path[-14:] for path, each in check_folder(copied, net).items() if not each.accepted] == ["/rows.jsonl:13"]
    changed(3)
    (folder / "00000.npz").rename(folder / "00007.npz")
    (folder / "00001.npz").rename(folder / "1.npz")
    found = check_folder(copied, net)
    assert "it is missing" in told(found, "00000.npz") and "it is missing" in told(found, "00001.npz")
    assert told(found, "00007.npz") == "no row of rows.jsonl is about input 7"
    assert "its name is not the index" in told(found, "/1.npz")
    (folder / "1.npz").rename(folder / "²³.npz")
    assert "its name is not the index" in told(check_folder(copied, net), "²³.npz")
    for content in (b"\xff\xfe", b"[" * 10**5, b'{"index": 1e400}', b""):
        rows.write_bytes(content + b"\n")
        assert not any(each.accepted for each in check_folder(copied, net).values())


@pytest.mark.parametrize("name", ["X", "x", "inputs", "images"])
def test_inputs_are_read_as_the_job_reads_them(tmp_path, name):
    net = Net((2, 3, 4), [24], [], "")
    x = np.random.default_rng(0).random((5, 2, 3, 4)).astype(np.float32)
    for array in (x, x.transpose(0, 2, 3, 1), x.reshape(5, 24)):
        np.savez_compressed(tmp_path / "x.npz", other=np.ones(3), **{name: array})
        np.save(tmp_path / "x.npy", array)
        for path in ("x.npz", "x.npy"):
            assert (read_inputs(tmp_path / path, net) == x.reshape(5, 24).astype(np.float64)).all()
    for array in (
        x[:, 0],
        x[0],
        x * np.nan,
        x.astype(complex),
        x.astype("S4"),
        np.array(None),
        x.transpose(0, 3, 2, 1),
    ):
        np.savez(tmp_path / "x.npz", allow_pickle=True, **{name: array})
        with pytest.raises(Refused):
            read_inputs(tmp_path / "x.npz", net)
    for content in (b"", b"PK\3\4", b"\x93NUMPY"):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(Refused):
            read_inputs(tmp_path / "x.npz", net)


# The command


def said(capsys, *arguments):
    code = main(["certify", "check", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err and "Error" not in err
    return code, out, err


def test_the_command(copied, job, capsys):
    network = ["--network", copied / "network.safetensors"]
    code, out, err = said(capsys, copied, *network, "--inputs", job / "x.npz")
    assert code == 0 and out.count("accepted") == 5 and "5 of 5 accepted" in err
    (copied / "certificates" / "00003.npz").write_bytes(b"odd")
    code, out, err = said(capsys, copied, *network, "--json")
    found = json.loads(out)
    assert code == 1 and sum(each["accepted"] for each in found.values()) == 4 and "4 of 5 accepted" in err
    assert said(capsys, copied, *network, "--inputs", "nothing.npz")[0] == 2
    assert said(capsys, copied / "none", *network)[0] == 2
    assert said(capsys, copied / ("n" * 300), *network)[0] == 2
    (copied / "certificates" / "\x1b[2J\udcff.npz").write_bytes(b"")
    code, out, _ = said(capsys, copied, *network)
    assert code == 1 and "\x1b" not in out
    (copied / "rows.jsonl").rename(copied / "other")
    code, out, err = said(capsys, copied, *network)
    assert code == 2 and "No certificate in" in err


def test_a_network_that_the_checker_refuses_does_not_go_through_another_reader(tmp_path, capsys, copied):
    text, tensors = dense(6, 5, 3)
    text["layers"][2]["inputs"] = [-1]
    path = stored(tmp_path / "net.safetensors", text, tensors)
    code, out, err = said(capsys, copied, "--network", path)
    assert code == 2 and not out and "is refused: the inputs of layer 2" in err


def test_an_architecture_is_obeyed_or_refused(copied, capsys):
    network = ["--network", copied / "network.safetensors"]
    words = "linear 0, relu, linear 2, relu, linear 4"
    assert said(capsys, copied, *network, "--architecture", words, "--input-shape", "6")[0] == 0
    code, out, _ = said(capsys, copied, *network, "--architecture", "linear 0, relu, linear 4", "--input-shape", "6")
    assert (code, out.count("refused: ")) == (1, 5) or code == 2  # or because a parameter is left over
    code, _, err = said(capsys, copied, *network, "--input-shape", "2,3")
    assert code == 2 and "--input-shape is 2,3, and an input of" in err
    assert said(capsys, copied, *network, "--input-shape", "6")[0] == 0
    assert said(capsys, copied, *network, "--input-shape", "six")[0] == 2
    (copied / "n.onnx").write_bytes(b"")
    code, _, err = said(capsys, copied, "--network", copied / "n.onnx", "--architecture", words)
    assert code == 2 and "leave --architecture out" in err


# The fuzzer's own kinds, some of each


def test_damaged_files_are_refused_or_read_as_what_they_were(tmp_path):
    fuzz = SimpleNamespace(**run_path(str(SCRIPT)))
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8, 3))
    found = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        network = fuzz.draw(rng, 1)[0] if seed else from_module(module.double(), (1, 3, 3))
        x, radius = torch.rand(1, network.sizes[0], dtype=torch.float64), torch.full((1,), 0.1, dtype=torch.float64)
        labels, shape = network(x).argmax(1), geometry(network)
        (proved,) = certified_margins(network, x, radius, labels, shape=shape, search=Search(iterations=1))
        (content,) = contents(network, x, radius, labels, shape, proved)
        found += fuzz.damaged(rng, network, content, tmp_path, 60)
    assert [deceived for _, deceived in found if deceived] == []
    kinds = [kind for kind, _ in found]
    assert kinds.count("damaged_refused") > 100 and kinds.count("damaged_read") > 10


def test_a_certificate_that_cannot_be_read_is_no_damaged_one(monkeypatch, tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK")

    def locked(*_, **__):
        raise PermissionError("it is locked")

    monkeypatch.setattr(Path, "open", locked)
    with pytest.raises(Refused, match=r"^it cannot be read: it is locked$"):
        read_certificate(tmp_path / "x.npz", None)
