"""Network files and certificates as the checker reads them: closed formats, nothing in them is guessed or ignored.

Whatever a file holds beyond the format, lacks, or holds in another form ends as Refused. Names, types and shapes are
compared with what the network's sizes allow before anything is unpacked: a file cannot take more memory than they do.
"""

import hashlib
import json
import math
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

FORMAT = 2  # of certificates; 1 had no number, and its sha256 of a network left out the shapes of the parameters
# What a file may ask of the machine.
HEADER = 2**24  # bytes of a network file's header
PARAMETERS = 2**27  # numbers
VALUES = 2**24  # numbers of all values of a network together
WIDE = 2**26  # classes times the numbers of the largest value, or of the largest picture with its padding
TAPS = 2**16  # positions in all kernels of a network
CERTIFICATE = 2**30  # bytes, unpacked
DIRECTORY = 2**20  # bytes of an archive's list of names
LARGEST = 2**40  # whole number
DIMENSIONS = 32

METADATA = "equipoise_network"
ARITY = {"linear": 1, "conv2d": 1, "scale": 1, "relu": 1, "add": 2}
PAIRS = ("stride", "padding", "dilation")
KINDS = 5  # inequalities a neuron of a refined margin


class Refused(Exception):
    """Why a file is not read, or a certificate proves nothing."""


class Undescribed(Refused):
    """The file does not say how its parameters are used."""


# Networks


@dataclass
class Net:
    """Layers as read from a file: dicts with kind, inputs, and for affine ones weight and bias in float64.

    sizes: how many numbers each value has, the input (of shape `shape`) first. norms: those that were proved.
    """

    shape: tuple[int, ...]
    sizes: list[int]
    layers: list[dict[str, Any]]
    digest: str
    norms: dict[tuple[int, float], float] = field(default_factory=dict)

    @cached_property
    def bent(self) -> list[int]:
        """The values that a ReLU reads."""
        return sorted({layer["inputs"][0] for layer in self.layers if layer["kind"] == "relu"})


def read_net(path: str | Path) -> Net:
    """The network of a safetensors file with its description in the header. Raises Refused for anything else."""
    path = Path(path)
    try:
        if not path.is_file():
            raise Refused("it is no file")
        with path.open("rb") as file:
            return _net(file, path.stat().st_size)
    except (OSError, ValueError) as error:  # a ValueError where it became shorter meanwhile
        raise Refused(f"it cannot be read: {error}") from error
    except MemoryError:
        raise Refused("it needs more memory than there is") from None


def _net(file: BinaryIO, size: int) -> Net:
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, HEADER):
        raise Undescribed(f"it is no safetensors file: a header of {length} bytes in a file of {size}")
    header = plain_json(file.read(length), "its header")
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or METADATA not in metadata:
        raise Undescribed("it does not say how its parameters are used")
    if set(metadata) != {METADATA} or not isinstance(metadata[METADATA], str):
        raise Refused(f"its metadata hold something other than a description: {told(sorted(metadata))}")
    text = plain_json(metadata[METADATA], "its description")
    shape, sizes, layers, parameters = _described(text, _shapes(header))
    entries = _entries(header, parameters, size - 8 - length)
    digest = hashlib.sha256(json.dumps(text, sort_keys=True).encode())
    for name, wanted in parameters.items():
        kind, begin, count = entries[name]
        file.seek(8 + length + begin)
        with np.errstate(invalid="ignore"):  # a signalling nan, which is refused as any other
            whole = np.frombuffer(file.read(count), kind).astype("<f8").reshape(wanted)
        if not np.isfinite(whole).all():
            raise Refused(f"its parameter {name} holds a number that is not finite")
        place, part = name.split(".")
        layers[int(place)][part] = whole
        # As the shape says where the numbers end, no two networks give the same bytes.
        digest.update(f"\n{name} {list(wanted)}\n".encode() + whole.tobytes())
    return Net(shape, sizes, layers, digest.hexdigest())


def plain_json(raw: bytes | str, what: str) -> Any:
    """JSON, in UTF-8, whose objects have no name twice. Raises Refused."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name stands twice")
        return dict(pairs)

    try:
        return json.loads(raw if isinstance(raw, str) else raw.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{what} is no JSON ({told(str(error))})") from error


def _shapes(header: Mapping[str, Any]) -> dict[str, list[int]]:
    """Of every tensor, as its entry says."""
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise Refused(f"its entry of tensor {told(name)} is not dtype, shape and data_offsets")
        _whole(entry["shape"], f"the shape of tensor {told(name)}", 1)
    return {name: entry["shape"] for name, entry in header.items()}


def _entries(header: Mapping[str, Any], parameters: Mapping[str, tuple[int, ...]], size: int):
    """Per parameter its type, place and bytes. They lie one behind the other and fill the file."""
    if set(header) != set(parameters):
        other = sorted(set(header) ^ set(parameters))
        raise Refused(f"its tensors are not the description's parameters: {told(other)}")
    if sum(map(math.prod, parameters.values())) > PARAMETERS:
        raise Refused(f"it has more than {PARAMETERS} parameters, too many for this checker")
    found, end = {}, 0
    for name in sorted(header, key=lambda name: _offsets(name, header[name])):
        begin, until = _offsets(name, header[name])
        kind = {"F32": "<f4", "F64": "<f8"}.get(_word(header[name]["dtype"]))
        if kind is None:
            raise Refused(f"its tensor {name} is of type {told(header[name]['dtype'])}, not F32 or F64")
        count = math.prod(parameters[name]) * np.dtype(kind).itemsize
        if (begin, until) != (end, end + count):
            raise Refused(f"its tensor {name} lies from byte {begin} to {until}, not from {end} to {end + count}")
        found[name], end = (kind, begin, count), until
    if end != size:
        raise Refused(f"its tensors end at byte {end} of {size}")
    return found


def _offsets(name: str, entry: Mapping[str, Any]) -> tuple[int, ...]:
    return _whole(entry["data_offsets"], f"the place of tensor {name}", 0, 2)


def _described(text: Any, tensors: Mapping[str, list[int]]):
    """The shape of an input, the size of every value, the layers, and the shape of every parameter by its name."""
    _keys(text, {"shape", "layers"}, "the description")
    shape = _whole(text["shape"], "the shape of an input", 1)
    if not isinstance(text["layers"], list) or not text["layers"]:
        raise Refused("its layers are no list with one at least")
    sizes, padded, layers, parameters = [math.prod(shape)], [0], [], {}
    total, taps = sizes[0], 0
    for place, row in enumerate(text["layers"]):
        where = f"layer {place}"
        kind = _word(row.get("kind")) if isinstance(row, dict) else ""
        if kind not in ARITY:
            raise Refused(f"{where} is {told(row.get('kind') if isinstance(row, dict) else row)}, which is not known")
        picture = {"shape", "groups", *PAIRS} if kind == "conv2d" else set()
        _keys(row, {"kind", "inputs", *picture}, where)
        inputs = _whole(row["inputs"], f"the inputs of {where}", 0, ARITY[kind])
        if max(inputs) > place:
            raise Refused(f"{where} reads the value {max(inputs)}, which comes after it")
        given = [sizes[index] for index in inputs]
        size = given[0]
        if kind == "add" and (given[0] != given[1] or inputs[0] == inputs[1]):
            raise Refused(f"{where} adds the values {inputs[0]} and {inputs[1]}, of {given[0]} and {given[1]} numbers")
        if kind in ("linear", "conv2d", "scale"):
            weight, wanted = tensors.get(f"{place}.weight", []), (size,)
            if kind == "linear":
                size, wanted = (weight or [0])[0], (*weight[:1], size)
            elif kind == "conv2d":
                wide, size, wanted = _convolution(row, weight, size, where)
                padded.append(wide)
                taps += math.prod(wanted[2:])
            parameters |= {f"{place}.weight": wanted, f"{place}.bias": wanted[:1]}
        layers.append(dict(row))
        sizes.append(size)
        total += size
        if total > VALUES or taps > TAPS:
            raise Refused(f"its values have {total} numbers and its kernels {taps} places, too many for this checker")
    for name, wanted in parameters.items():
        if tuple(tensors.get(name, ())) != wanted:
            raise Refused(f"its parameter {name} has the shape {told(tensors.get(name))}, not {list(wanted)}")
    unread = set(range(len(layers))) - {index for layer in layers for index in layer["inputs"]}
    if unread:
        raise Refused(f"nothing reads its value {min(unread)}")
    if sizes[-1] < 2:
        raise Refused("it has one output: there is no other class to have a margin to")
    if sizes[-1] * max(*sizes, *padded) > WIDE:
        raise Refused(f"{sizes[-1]} classes and {max(*sizes, *padded)} numbers at once are too many for this checker")
    return shape, sizes, layers, parameters


def _convolution(row: Mapping[str, Any], weight: list[int], size: int, where: str):
    """How many numbers the padded picture and the result have, and the shape of the weight, of which only some is free."""
    shape = _whole(row["shape"], f"the picture of {where}", 1, 3)
    stride, padding, dilation = (_whole(row[name], f"the {name} of {where}", name != "padding", 2) for name in PAIRS)
    (groups,) = _whole([row["groups"]], f"the groups of {where}", 1)
    if math.prod(shape) != size:
        raise Refused(f"{where} reads a picture of {math.prod(shape)} numbers and is given {size}")
    if len(weight) != 4 or shape[0] != weight[1] * groups or weight[0] % groups:
        raise Refused(f"{where} has a weight of shape {told(weight)} for {shape[0]} channels in {groups} groups")
    padded = [shape[1 + i] + 2 * padding[i] for i in (0, 1)]
    out = [(padded[i] - dilation[i] * (weight[2 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    if min(out) < 1:
        raise Refused(f"{where} has a kernel that is larger than its picture")
    return shape[0] * math.prod(padded), weight[0] * math.prod(out), tuple(weight)


def _keys(row: Any, wanted: Collection[str], where: str) -> None:
    if not isinstance(row, dict) or set(row) != set(wanted):
        other = sorted(set(row) ^ set(wanted)) if isinstance(row, dict) else row
        raise Refused(f"{where} has not exactly {', '.join(sorted(wanted))}: {told(other)}")


def _whole(value: Any, what: str, least: int, count: int | None = None) -> tuple[int, ...]:
    """A list of whole numbers from `least` on. A truth value is none, although Python has it for one."""
    numbers = value if isinstance(value, list) and 0 < len(value) <= DIMENSIONS else [None]
    if not all(type(each) is int and least <= each <= LARGEST for each in numbers):
        raise Refused(f"{what} is {told(value)}, not one or some whole numbers from {int(least)} on")
    if count is not None and len(value) != count:
        raise Refused(f"{what} is {told(value)}, not {count} of them")
    return tuple(value)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def told(value: Any) -> str:
    """What a file says, on one line of bounded length."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# Certificates

Form = tuple[str, tuple[int, ...]]  # type and shape
HEAD = re.compile(rb"\{'descr': '(<i8|<U64|<f4|<f8)', 'fortran_order': False, 'shape': \(([\d, ]{0,99})\), \} *\n")


def fit(forms: Mapping[str, Form], net: Net) -> None:
    """Raises Refused where these are not the arrays of a certificate about this network."""
    _named(forms, net)
    refined = math.prod(forms["refined"][1]) if "refined" in forms else 0
    if refined >= net.sizes[-1]:
        raise Refused(f"it refines {refined} of {net.sizes[-1] - 1} margins")
    for name, (kinds, shapes) in _forms(net, forms, refined).items():
        kind, shape = forms[name]
        if kind not in kinds or shape not in shapes:
            wanted = " or ".join(f"{kinds[0]} of shape {each}" for each in shapes)
            raise Refused(f"its {name} is {told(kind)} of shape {told(shape)}, not {wanted}")
    if sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in forms.values()) > CERTIFICATE:
        raise Refused(f"its arrays have more than {CERTIFICATE} bytes, too many for this checker")


def _named(names: Collection[str], net: Net) -> None:
    if "format" not in names:
        raise Refused(
            "it has no format: an earlier version made it, for which networks of different shapes could be one. Make it "
            "again with equipoise certify run"
        )
    if other := sorted(set(_forms(net, names, 0)) ^ set(names)):
        raise Refused(f"its arrays are not those of a certificate about this network: {told(other)}")


def _forms(net: Net, names: Collection[str], refined: int) -> dict[str, tuple[tuple[str, ...], list[tuple[int, ...]]]]:
    """The types and shapes that every array of a certificate may have, when it has `refined` margins of that kind."""
    count, number = net.sizes[-1] - 1, ("<f8",)
    forms: dict[str, tuple[tuple[str, ...], list[tuple[int, ...]]]] = {
        "format": (("<i8",), [()]),
        "network": (("<U64",), [()]),
        "label": (("<i8",), [()]),
        "input": (number, [(net.sizes[0],)]),
        "radius": (number, [()]),
        "margins": (number, [(count,)]),
    }
    for index, layer in enumerate(net.layers):
        if layer["kind"] in ("linear", "conv2d"):
            forms[f"norm_{index}"] = (number, [()])
    if "box" in names:
        forms |= {"box": (number, [(2,)]), "lambda_input": (number, [(count,)])}
    if "refined" in names:
        forms |= {"refined": (("<i8",), [(refined,)]), "ball": (number, [(refined,)])}
    for at in net.bent:
        n = net.sizes[at]
        forms |= {f"{name}_{at}": (number, [(n,)]) for name in ("centre", "lower", "upper")}
        forms[f"axes_{at}"] = (number, [(1,), (n,)])
        forms[f"slopes_{at}"] = (("<f4", "<f8"), [(count, n)])
        forms[f"lambda_{at}"] = (number, [(count,)])
        if "refined" in names:
            forms[f"multipliers_{at}"] = (number, [(refined, KINDS, n)])
    return forms


def read_certificate(path: str | Path, net: Net) -> dict[str, NDArray]:
    """The arrays of a certificate about this network. Raises Refused."""
    path = Path(path)
    try:
        if not path.is_file():
            raise Refused("it is no file")
        with path.open("rb") as file:
            return _certificate(file, net)
    except Refused:
        raise
    except OSError as error:
        raise Refused(f"it cannot be read: {error}") from error
    except MemoryError:
        raise Refused("it needs more memory than there is") from None
    except Exception as error:  # on a damaged archive zipfile and what it calls raise a dozen types, not all documented
        raise Refused(f"it is no archive of plain arrays, or a damaged one ({told(str(error))})") from error


def _certificate(file: BinaryIO, net: Net) -> dict[str, NDArray]:
    # zipfile lists a directory in memory, however long: its size stands at the end, where numpy's archives have no comment.
    file.seek(max(file.seek(0, 2) - 42, 0))
    end = file.read()
    if end[20:24] != b"PK\5\6" or end[:4] == b"PK\6\7" or int.from_bytes(end[32:36], "little") > DIRECTORY:
        raise Refused("it is no archive of plain arrays, or a damaged one (its end)")
    with zipfile.ZipFile(file) as archive:
        members = {each.filename.removesuffix(".npy"): each for each in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise Refused("a name stands twice in it")
        _named(members, net)
        heads = {name: _head(archive, member) for name, member in members.items()}
        fit({name: form for name, (form, _) in heads.items()}, net)
        content = {}
        for name, ((kind, shape), begin) in heads.items():
            with archive.open(members[name]) as member:
                member.read(begin)
                content[name] = np.frombuffer(member.read(), kind).reshape(shape)
        return content


def _head(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[Form, int]:
    """Type and shape of a member that is an array as numpy writes it, and the bytes before its numbers."""
    name = member.filename
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(f"its {name} is packed in a way that is not known")
    with archive.open(member) as file:
        start = file.read(10)
        length = int.from_bytes(start[8:], "little")
        found = HEAD.fullmatch(file.read(length)) if start[:8] == b"\x93NUMPY\1\0" else None
    if found is None or not name.endswith(".npy"):
        raise Refused(f"its {name} is no plain array")
    kind, shape = found[1].decode(), tuple(int(each) for each in found[2].split(b",") if each.strip())
    size = 10 + length + math.prod(shape) * np.dtype(kind).itemsize
    if member.file_size != size:
        raise Refused(f"its {name} has {member.file_size} bytes, not {size}")
    return (kind, shape), 10 + length
