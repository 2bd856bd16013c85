"""Does a certificate prove its margins? An independent reading of network and certificate, in numpy and nothing else.

It shares no code with what made the certificate and trusts none of its numbers. A certificate claims, for an input xh and a
radius R, that for every x with ||x - xh||_2 <= R (and inside the box, if it names one) and every class j other than its
label, f_label(x) - f_j(x) >= margin_j. What is proved, in order:

1. The network is the one whose sha256 the certificate names.
2. Every claimed spectral norm s is one: s^2 I - W'W has a Cholesky factor, which for a factorisation in floating point
   means that its smallest eigenvalue is above a known, tiny negative number (Rump, BIT 46, 2006).
3. Every claimed enclosure (centre, axes, lower, upper) of a ReLU layer's input holds all values that the network can take
   there, by induction from the input: |W u + b - centre| + s |u - u_centre| and row by row.
4. Going back from the output, each ReLU layer is replaced by g'z + d, where d is the Lagrangian bound at the claimed
   multiplier (any is sound), and what remains is minimised over the input set.
5. Margins that the certificate lists as refined may be proved in another way: with all values affine in a vector w whose
   norm is bounded, and inequalities (f'w)(g'w) <= 0 that hold by 3, c'f - t plus their claimed nonnegative combination is a
   quadratic form in w that has a Cholesky factor, as in 2. It is nonnegative, and so then is c'f - t.

Every operation is in float64 and its rounding error is bounded: a sum of n terms errs by at most n u / (1 - n u) times the
sum of their sizes, in whatever order. What is compared with a claim is always the value less all these errors.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
U = 2.0**-53
DENSE = 2**25  # entries of a map whose norm is proved by a factorisation; above, sqrt(|W|_1 |W|_inf) is the bound


class Refused(Exception):
    """Why a certificate proves nothing."""


def check(certificate: Path, network: "Net | Path") -> Array:
    """The margins that the certificate proves, one a class other than its label. Raises Refused with the reason."""
    net = network if isinstance(network, Net) else read_net(network)
    try:
        with np.load(certificate, allow_pickle=False) as stored:
            content = {key: stored[key] for key in stored.files}
    except OSError as error:
        raise Refused(f"{certificate} cannot be read: {error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:  # numpy advises to load it unsafely
        raise Refused(f"{certificate} is no archive of plain arrays, or a damaged one") from error
    return prove(content, net)


def prove(content: Mapping[str, NDArray], net: "Net") -> Array:
    """As `check`, for a certificate's content."""
    try:
        if str(content["network"]) != net.digest:
            raise Refused(f"it names another network ({str(content['network'])[:12]}, not {net.digest[:12]})")
        with np.errstate(all="ignore"):  # an overflow ends as a margin that is not proved
            return _Proof(content, net).margins()
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise Refused(f"it is not whole: {error!r}") from error


# The network


@dataclass
class Net:
    """Layers as read from a file: dicts with kind, inputs, and for affine ones weight and bias in float64."""

    size: int
    layers: list[dict[str, Any]]
    digest: str
    norms: dict[tuple[int, float], float] = field(default_factory=dict)


def read_net(path: Path) -> Net:
    """The network of a safetensors file with its description in the header. Raises Refused for anything else."""
    try:
        raw = Path(path).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        text = json.loads(header.pop("__metadata__")["equipoise_network"])
        kinds = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
        tensors = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            flat = np.frombuffer(raw[8 + length + begin : 8 + length + end], kinds[entry["dtype"]])
            tensors[name] = flat.astype(np.float64).reshape(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"{path} is no network file of Equipoise ({error!r})") from error
    digest = hashlib.sha256(json.dumps(text, sort_keys=True).encode())
    layers = []
    for place, row in enumerate(text["layers"]):
        layer = dict(row)
        if row["kind"] in ("linear", "conv2d", "scale"):
            layer |= {"weight": tensors[f"{place}.weight"], "bias": tensors[f"{place}.bias"]}
            digest.update(layer["weight"].tobytes() + layer["bias"].tobytes())
        elif row["kind"] not in ("relu", "add"):
            raise Refused(f"layer {place} is a {row['kind']!r}, which is not known")
        layers.append(layer)
    return Net(int(np.prod(text["shape"])), layers, digest.hexdigest())


def _taps(layer: dict[str, Any]):
    """Per kernel position: the weights [out, in] and the slices of the padded picture that it meets."""
    (sy, sx), (dy, dx) = layer["stride"], layer["dilation"]
    out, each, height, width = layer["weight"].shape
    _, rows, columns = _out_shape(layer)
    groups = layer["groups"]
    for i in range(height):
        for j in range(width):
            whole = np.zeros((out, each * groups))
            for group in range(groups):
                these = slice(group * (out // groups), (group + 1) * (out // groups))
                whole[these, group * each : (group + 1) * each] = layer["weight"][these, :, i, j]
            at = (slice(i * dy, i * dy + (rows - 1) * sy + 1, sy), slice(j * dx, j * dx + (columns - 1) * sx + 1, sx))
            yield whole, at


def _out_shape(layer: dict[str, Any]) -> tuple[int, int, int]:
    out, _, *kernel = layer["weight"].shape
    return (
        out,
        *(
            (layer["shape"][1 + i] + 2 * layer["padding"][i] - layer["dilation"][i] * (kernel[i] - 1) - 1)
            // layer["stride"][i]
            + 1
            for i in (0, 1)
        ),
    )


def _apply(layer: dict[str, Any], x: Array, change=lambda weight: weight) -> Array:
    """W x without the bias for rows x [..., n]; `change` is applied to the weights (absolute values, squares)."""
    if layer["kind"] == "linear":
        return x @ change(layer["weight"]).T
    if layer["kind"] == "scale":
        return x * change(layer["weight"])
    (channels, height, width), (py, px) = layer["shape"], layer["padding"]
    pictures = np.zeros((x.size // (channels * height * width), channels, height + 2 * py, width + 2 * px))
    pictures[:, :, py : py + height, px : px + width] = x.reshape(-1, channels, height, width)
    found = np.zeros((len(pictures), *_out_shape(layer)))
    for weight, (rows, columns) in _taps(layer):
        found += np.einsum("oi,biyx->boyx", change(weight), pictures[:, :, rows, columns], optimize=True)
    return found.reshape(*x.shape[:-1], -1)


def _back(layer: dict[str, Any], c: Array, change=lambda weight: weight) -> Array:
    """W'c for rows c [..., m]."""
    if layer["kind"] == "linear":
        return c @ change(layer["weight"])
    if layer["kind"] == "scale":
        return c * change(layer["weight"])
    (channels, height, width), (py, px) = layer["shape"], layer["padding"]
    given = c.reshape(-1, *_out_shape(layer))
    pictures = np.zeros((len(given), channels, height + 2 * py, width + 2 * px))
    for weight, (rows, columns) in _taps(layer):
        pictures[:, :, rows, columns] += np.einsum("oi,boyx->biyx", change(weight), given, optimize=True)
    return pictures[:, :, py : py + height, px : px + width].reshape(*c.shape[:-1], -1)


def _bias(layer: dict[str, Any]) -> Array:
    """The bias of every output of a layer."""
    if layer["kind"] == "conv2d":
        _, height, width = _out_shape(layer)
        return np.repeat(layer["bias"], height * width)
    return layer["bias"]


def _terms(layer: dict[str, Any]) -> int:
    """How many products any sum of W x, W'c or the constant has at most, with its bias and a margin."""
    return (
        max(layer["weight"].size, len(_bias(layer))) + 2
        if layer["kind"] == "conv2d"
        else sum(layer["weight"].shape) + 2
    )


def gamma(terms: float) -> float:
    """The relative error of a sum of that many products."""
    return terms * U / (1 - terms * U)


# The proof


class _Proof:
    def __init__(self, content: Mapping[str, NDArray], net: Net) -> None:
        self.content, self.net = content, net
        self.radius = float(content["radius"])
        self.input = self._numbers("input", (net.size,))
        if not 0 <= self.radius < np.inf:
            raise Refused(f"its radius is {self.radius}")
        self.box = self._numbers("box", (2,)) if "box" in content else None

    def _numbers(self, key: str, *shapes: tuple[int, ...]) -> Array:
        found = np.asarray(self.content[key], dtype=np.float64)
        if shapes and found.shape not in shapes:
            raise Refused(f"{key} has the shape {found.shape}")
        if not np.isfinite(found).all():
            raise Refused(f"{key} holds a number that is not finite")
        return found

    def margins(self) -> Array:
        self._prove_enclosures()
        proved = self._lower_bounds()
        if "refined" in self.content:
            proved = self._refined(proved)
        claimed = self._numbers("margins", proved.shape)
        if not (proved >= claimed).all():
            worst = int(np.argmin(proved - claimed))
            raise Refused(
                f"the margin {claimed[worst]:.9g} to class {self.others[worst]} is not proved: {proved[worst]:.9g}"
            )
        return claimed

    # Going forward

    def _prove_enclosures(self) -> None:
        """Every claimed enclosure holds; self.sets[v] = (centre, axes, lower, upper) for the input v of a ReLU layer."""
        x, r = self.input, self.radius
        # centre, scale t and direction d of an ellipsoid |(v - centre) / (t d)| <= 1, lower, upper
        low, high = x - r * (1 + 4 * U) - 4 * U * abs(x), x + r * (1 + 4 * U) + 4 * U * abs(x)
        if self.box is not None:
            low, high = np.maximum(low, self.box[0]), np.minimum(high, self.box[1])
            if not (low <= high).all():
                raise Refused("its ball does not meet its box")
        values: list[tuple[Array, float, Array, Array, Array]] = [(x, r, np.ones(1), low, high)]
        readers = {layer["inputs"][0] for layer in self.net.layers if layer["kind"] == "relu"}
        for place, layer in enumerate(self.net.layers):
            given = [values[index] for index in layer["inputs"]]
            centre, t, d, low, high = given[0]
            if layer["kind"] == "relu":
                new = (np.maximum(centre, 0), t, d, np.maximum(low, 0), np.maximum(high, 0))
            elif layer["kind"] == "add":
                other = given[1]
                total = (t * d.max() + other[1] * other[2].max()) * (1 + 8 * U)
                new = self._rounded(centre + other[0], U * abs(centre + other[0]), total, np.ones(1))
                spread = [4 * U * (abs(each[3]) + abs(each[4])) for each in given]
                slack = spread[0] + spread[1]
                box = (low + other[3] - slack, high + other[4] + slack)
                new = (*new[:3], np.maximum(new[3], box[0]), np.minimum(new[4], box[1]))
            else:
                new = self._affine(place, layer, centre, t, d)
            values.append(new)
        self.sets = {}
        for at in readers:
            centre, t, d, low, high = values[at]
            size = len(centre)
            claimed = self._numbers(f"centre_{at}", (size,))
            axes = self._numbers(f"axes_{at}", (1,), (size,))
            lower, upper = self._numbers(f"lower_{at}", (size,)), self._numbers(f"upper_{at}", (size,))
            if not (axes > 0).all():
                raise Refused(f"axes_{at} are not positive")
            # |(v - claimed)/axes| <= |t d/axes|_inf + |(centre - claimed)/axes|
            needed = (t * d / axes).max() + np.linalg.norm((centre - claimed) / axes)
            if not needed * (1 + gamma(2 * size + 8)) <= 1:
                raise Refused(f"the ball at layer input {at} is too small or elsewhere (by a factor {needed:.9f})")
            if not ((lower <= low).all() and (upper >= high).all()):
                raise Refused(f"the box at layer input {at} is too small")
            self.sets[at] = (claimed, axes, lower, upper)

    @staticmethod
    def _rounded(centre: Array, error: Array, t: float, d: Array) -> tuple[Array, float, Array, Array, Array]:
        """A set whose centre is known up to `error`, grown to hold that."""
        t = (t + float(np.linalg.norm(error / d)) * (1 + gamma(len(centre) + 4))) * (1 + 4 * U)
        reach = t * d * (1 + 4 * U) + 4 * U * abs(centre)
        return centre, t, d, centre - reach, centre + reach

    def _affine(self, place: int, layer: dict[str, Any], centre: Array, t: float, d: Array):
        bias = _bias(layer)
        exact = _apply(layer, centre) + bias
        error = gamma(_terms(layer)) * (_apply(layer, abs(centre), abs) + abs(bias)) * (1 + 1e-6)
        if layer["kind"] == "scale":
            d = np.maximum(abs(layer["weight"]) * d, 1e-300)
            if len(d) == 1:  # one number: an ellipsoid is a ball
                t, d = t * float(d[0]) * (1 + 4 * U), np.ones(1)
            return self._rounded(exact, error, t * (1 + 4 * U), d)
        norm = self._norm(place, layer, d)
        _, t_out, one, low, high = self._rounded(exact, error, t * norm * (1 + 4 * U), np.ones(1))
        squares = _apply(layer, np.broadcast_to(d * d, (_inputs(layer),)), lambda weight: weight * weight)
        reach = t * np.sqrt(squares) * (1 + gamma(2 * _terms(layer))) + error + 4 * U * abs(exact)
        reach *= 1 + 8 * U
        return exact, t_out, one, np.maximum(low, exact - reach), np.minimum(high, exact + reach)

    def _norm(self, place: int, layer: dict[str, Any], d: Array) -> float:
        """An upper bound on |W diag(d)|_2, proved from the claimed one; proved once a network."""
        claimed = float(self.content[f"norm_{place}"])
        # The direction d depends on the layers alone, so the claim is all that can differ.
        if (place, claimed) not in self.net.norms:
            self.net.norms[place, claimed] = prove_norm(layer, d, claimed)
        return self.net.norms[place, claimed]

    # All layers at once

    def _refined(self, proved: Array) -> Array:
        """The margins with those listed as refined replaced where their quadratic forms prove more."""
        places = np.asarray(self.content["refined"])
        if places.ndim != 1 or not np.isin(places, np.arange(len(proved))).all():
            raise Refused(f"refined names margins that there are not: {places}")
        balls = self._numbers("ball", places.shape)
        claimed = self._numbers("margins", proved.shape)
        f, g, outputs, bent = self._rows()
        label = int(self.content["label"])
        entries = f[0].shape[1]
        # Of w: the 1, the input and every layer's outputs are in unit balls.
        size = 2 + len(bent)
        proved = proved.copy()
        for row, place in enumerate(places):
            parts = [self._numbers(f"multipliers_{at}")[row][:, here].reshape(-1) for at, here in bent.items()]
            m, ball = np.concatenate([np.zeros(0), *parts]), balls[row]
            if len(m) != len(f[0]) or not (m >= 0).all() or not ball >= 0:
                raise Refused(f"the multipliers of margin {place} are not nonnegative numbers, one an inequality")
            objective = outputs[0][label] - outputs[0][self.others[place]]
            error = outputs[1][label] + outputs[1][self.others[place]] + U * abs(objective)
            form = (f[0].T * m) @ g[0] / 2
            # Each factor is known up to its own error; the sum over the inequalities rounds, too.
            high_f, high_g = abs(f[0]) + f[1], abs(g[0]) + g[1]
            wrong = (f[1].T * m) @ high_g + (high_f.T * m) @ g[1] + gamma(len(m) + 8) * ((high_f.T * m) @ high_g)
            form[0] += objective / 2
            wrong[0] += error
            form, wrong = form + form.T, wrong + wrong.T
            diagonal = np.zeros(entries)
            diagonal[1 : 1 + len(self.input)] = ball
            diagonal[0] = -ball - claimed[place]
            form[np.diag_indices(entries)] += diagonal
            wrong += 8 * U * abs(form)
            wrong[np.diag_indices(entries)] += 8 * U * (ball + abs(claimed[place]) + abs(diagonal))
            # Asked of the form: that it holds for t = claim + lost, where lost pays for all that is not exact.
            lost = float(np.sqrt((wrong * wrong).sum())) * (1 + 1e-6)
            factor = gamma(entries + 3) / (1 - gamma(entries + 3)) * float(abs(form.diagonal()).sum()) * (1 + 1e-6)
            form[0, 0] -= (lost + factor) * size * (1 + 1e-6)
            try:
                root = np.linalg.cholesky(form)
            except np.linalg.LinAlgError:
                continue
            if np.isfinite(root).all():  # not every LAPACK stops at a nan
                proved[place] = max(proved[place], claimed[place])
        return proved

    def _rows(self):
        """f and g of all inequalities, and the outputs, as rows over w, each with its error; and which neurons may bend."""
        order = dict.fromkeys(layer["inputs"][0] for layer in self.net.layers if layer["kind"] == "relu")
        bent = {at: np.flatnonzero((self.sets[at][2] < 0) & (self.sets[at][3] > 0)) for at in order}
        inputs = len(self.input)
        entries = 1 + inputs + sum(map(len, bent.values()))
        start = np.zeros((inputs, entries))
        start[:, 0] = self.input
        start[:, 1 : 1 + inputs] = self.radius * np.eye(inputs)
        values, position, done = [(start, np.zeros_like(start))], 1 + inputs, {}
        f, g = [(start[:0], start[:0])], [(start[:0], start[:0])]
        for layer in self.net.layers:
            at = layer["inputs"][0]
            rows, error = values[at]
            if layer["kind"] == "relu":
                if at not in done:
                    centre, axes, lower, upper = self.sets[at]
                    here = bent[at]
                    n = len(here)
                    y = np.zeros((n, entries))
                    y[:, 0] = np.maximum(centre[here], 0)
                    y[:, position : position + n] = axes.max() * np.eye(n)
                    position += n
                    z, off, none = rows[here], error[here], np.zeros((n, entries))
                    one, above, below = none.copy(), z.copy(), z.copy()
                    one[:, 0] = 1
                    above[:, 0] -= lower[here]
                    below[:, 0] -= upper[here]
                    # Rounded up: the line through the ends of relu over [lower, upper], or a steeper one.
                    slope = (upper[here] / (upper[here] - lower[here]) * (1 + 8 * U))[:, None]
                    near, under = off + U * abs(above), off + U * abs(below)
                    chord = slope * near + 4 * U * (abs(y) + slope * abs(above))
                    between = off + U * abs(y - z)
                    f += [(one, none), (one, none), (y, none), (one, none), (above, near)]
                    g += [(-y, none), (z - y, between), (y - z, between), (y - slope * above, chord), (below, under)]
                    active = (lower >= 0)[:, None]
                    out, out_error = np.where(active, rows, 0), np.where(active, error, 0)
                    out[here], out_error[here] = y, 0
                    done[at] = (out, out_error)
                values.append(done[at])
            elif layer["kind"] == "add":
                other, other_error = values[layer["inputs"][1]]
                total = rows + other
                values.append((total, error + other_error + U * abs(total)))
            else:
                total = _apply(layer, rows.T).T
                bias = _bias(layer)
                total[:, 0] += bias
                size = _apply(layer, abs(rows).T, abs).T
                size[:, 0] += abs(bias)
                values.append((total, (_apply(layer, error.T, abs).T + gamma(_terms(layer)) * size) * (1 + 1e-6)))
        stacked = [tuple(np.concatenate(part) for part in zip(*each, strict=True)) for each in (f, g)]
        return *stacked, values[-1], bent

    # Going back

    def _lower_bounds(self) -> Array:
        layers = self.net.layers
        label = int(self.content["label"])
        classes = len(_bias(layers[-1])) if layers[-1]["kind"] not in ("relu", "add") else 0
        if not 0 <= label < classes:
            raise Refused(f"its label is {label}")
        self.others = [each for each in range(classes) if each != label]
        start = np.eye(classes)[label] - np.eye(classes)[self.others]
        # value -> coefficients and how far from the exact ones they may be
        pending = {len(layers): (start, np.zeros_like(start))}
        bound, wrong = np.zeros(len(start)), np.zeros(len(start))
        for index in range(len(layers), 0, -1):
            if index not in pending:
                continue
            (c, error), layer = pending.pop(index), layers[index - 1]
            if layer["kind"] == "relu":
                at = layer["inputs"][0]
                offset, slack, g = self._relu(at, c)
                bound, wrong = bound + offset, wrong + slack + error @ np.maximum(self.sets[at][3], 0)
                back = (g, np.zeros_like(g))
            elif layer["kind"] == "add":
                back = (c, error)
            else:
                bias = _bias(layer)
                bound = bound + c @ bias
                wrong = wrong + error @ abs(bias) + gamma(len(bias) + 2) * (abs(c) @ abs(bias))
                size = gamma(_terms(layer)) * _back(layer, abs(c), abs)
                back = (_back(layer, c), (_back(layer, error, abs) + size) * (1 + 1e-6))
            for before in layer["inputs"]:
                if before in pending:
                    total = pending[before][0] + back[0]
                    pending[before] = (total, (pending[before][1] + back[1] + U * abs(total)) * (1 + 1e-6))
                else:
                    pending[before] = back
            wrong = wrong + 2 * U * abs(bound)
        a, error = pending[0]
        least, slack = self._input(a)
        bound = bound + least
        wrong = wrong + slack + error @ (abs(self.input) + self.radius) + 2 * U * abs(bound)
        return bound - wrong * (1 + 1e-6)

    def _relu(self, at: int, c: Array) -> tuple[Array, Array, Array]:
        """A lower bound on c'relu(z) - g'z over the enclosure, its rounding error, and g."""
        centre, axes, lower, upper = self.sets[at]
        g = c * self._numbers(f"slopes_{at}", c.shape)
        multiplier = self._numbers(f"lambda_{at}", (len(c),))
        if not (multiplier > 0).all():
            raise Refused(f"lambda_{at} is not positive")
        pull = multiplier[:, None] / (axes * axes)
        rise = c - g
        right = _least(rise, pull, centre, np.maximum(lower, 0), np.maximum(upper, 0), U * abs(rise))
        left = _least(-g, pull, centre, np.minimum(lower, 0), np.minimum(upper, 0), 0 * g)
        # Where a neuron can be only on one side, the other side's minimum does not count.
        only_left, only_right = upper < 0, lower > 0
        values = np.where(only_left, left[0], np.where(only_right, right[0], np.minimum(left[0], right[0])))
        errors = np.where(only_left, left[1], np.where(only_right, right[1], np.maximum(left[1], right[1])))
        slack = errors.sum(1)
        # sum pull (z - centre)^2 <= max(pull axes^2), which is lambda but for rounding
        away = (pull * axes * axes).max(1) / 2 * (1 + 8 * U)
        sizes = abs(values).sum(1)
        return values.sum(1) - away, slack + gamma(values.shape[1] + 4) * (sizes + away), g

    def _input(self, a: Array) -> tuple[Array, Array]:
        """A lower bound on a'x over the input set, and its rounding error."""
        x, r, terms = self.input, self.radius, a.shape[1] + 8
        if self.box is None:
            norms = np.sqrt((a * a).sum(1))
            products = abs(a) @ abs(x)
            return a @ x - r * norms, gamma(2 * terms) * (products + r * norms)
        multiplier = self._numbers("lambda_input", (len(a),))
        if not (multiplier > 0).all():
            raise Refused("lambda_input is not positive")
        low = np.broadcast_to(self.box[0], x.shape)
        high = np.broadcast_to(self.box[1], x.shape)
        values, slack = _least(a, multiplier[:, None] + np.zeros_like(a), x, low, high, 0 * a)
        away = multiplier * r * r / 2 * (1 + 8 * U)
        return values.sum(1) - away, slack.sum(1) + gamma(terms) * (abs(values).sum(1) + away)


def _least(a: Array, w: Array, centre: Array, low: Array, high: Array, error: Array) -> tuple[Array, Array]:
    """A lower bound on a z + w/2 (z - centre)^2 over low <= z <= high for an a known up to `error`, and its rounding error.

    A convex function lies above its tangent, so the bound holds wherever the tangent is laid: at the minimiser as computed.
    """
    z = np.clip(centre - a / w, low, high)
    away = z - centre
    slope = a + w * away
    tangent = np.minimum(np.minimum(slope * (low - z), slope * (high - z)), 0)
    # z and centre are exact as they stand, so their difference, and all that is made of it, errs in proportion to itself.
    size = abs(a * z) + w * away * away + (abs(a) + w * abs(away)) * (high - low)
    return a * z + w / 2 * away * away + tangent, 16 * U * size + error * np.maximum(abs(low), abs(high))


def _inputs(layer: dict[str, Any]) -> int:
    return layer["weight"].shape[1] if layer["kind"] == "linear" else int(np.prod(layer["shape"]))


def prove_norm(layer: dict[str, Any], d: Array, claimed: float) -> float:
    """An upper bound on the spectral norm of W diag(d), a hair above `claimed`. Raises Refused when that is too small."""
    n, m = _inputs(layer), len(_bias(layer))
    d = np.broadcast_to(d, (n,))
    if n * m > DENSE:
        across = _apply(layer, d[None], abs).max()
        down = (_back(layer, np.ones((1, m)), abs) * d).max()
        return float(np.sqrt(across * down) * (1 + gamma(4 * _terms(layer))))
    matrix = layer["weight"] if layer["kind"] == "linear" else _apply(layer, np.eye(n)).T
    matrix = matrix * d
    gram = matrix @ matrix.T if m < n else matrix.T @ matrix
    size, square = len(gram), float((matrix * matrix).sum())
    shifted = -gram
    shifted[np.diag_indices(size)] += claimed * claimed
    try:
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        raise Refused(f"a layer's spectral norm is not as small as the claimed {claimed:.9g}") from None
    # The factorisation, the Gram matrix, the diagonal and the products with d, each up to its rounding error.
    factor = gamma(size + 3) / (1 - gamma(size + 3)) * float(np.trace(shifted))
    error = factor + (gamma(max(m, n) + 4) + 8 * U) * square * 1.01 + 4 * U * claimed * claimed
    return float(np.sqrt(claimed * claimed + error) * (1 + 4 * U))
