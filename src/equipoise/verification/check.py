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

Every operation is in float64 and its rounding error is bounded, that of results which underflow included (`rounding`). What
is compared with a claim is always the value less all these errors.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.verification.check_files import FORMAT, Net, Refused, fit, read_certificate, read_net
from equipoise.verification.rounding import Array, Near, down, length, near, off, up

DENSE = 2**25  # entries of a map whose norm is proved by a factorisation; above, sqrt(|W|_1 |W|_inf) is the bound
PIECE = 2**22  # numbers of padded pictures at once, where a convolution is made such a map
FLATTEST = 2.0**-20  # of the longest axis: the error of a centre over a flatter one would be the longest
SMALLEST = 2.0**-900  # of an axis: beside smaller ones an underflow would count
ROWS = 2**28  # numbers of all values' rows in a quadratic form


def check(certificate: str | Path, network: Net | str | Path) -> Array:
    """The margins that the certificate proves, one a class other than its label. Raises Refused with the reason."""
    net = network if isinstance(network, Net) else read_net(network)
    return prove(read_certificate(certificate, net), net)


def prove(content: Mapping[str, NDArray], net: Net) -> Array:
    """As `check`, for a certificate's content."""
    fit({name: (array.dtype.str, array.shape) for name, array in content.items()}, net)
    if content["format"] != FORMAT:
        raise Refused(f"it is of format {content['format']}, and this checker reads {FORMAT}")
    if content["network"] != net.digest:
        name = content["network"].tobytes().decode("utf-32-le", "replace")
        raise Refused(f"it names another network ({name[:12]!a}, not '{net.digest[:12]}')")
    for name, array in content.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Refused(f"its {name} holds a number that is not finite")
    try:
        with np.errstate(all="ignore"):  # an overflow ends as a margin that is not proved
            return _Proof(content, net).margins()
    except MemoryError:
        raise Refused("its proof needs more memory than there is") from None


# The layers, as maps


def _taps(layer: dict[str, Any]):
    """Per kernel position: the weights by group [g, out, in] and the slices of the padded picture that they meet."""
    (sy, sx), (dy, dx) = layer["stride"], layer["dilation"]
    _, each, height, width = layer["weight"].shape
    _, rows, columns = _out_shape(layer)
    for i in range(height):
        for j in range(width):
            at = (slice(i * dy, i * dy + (rows - 1) * sy + 1, sy), slice(j * dx, j * dx + (columns - 1) * sx + 1, sx))
            yield layer["weight"][:, :, i, j].reshape(layer["groups"], -1, each), at


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


def _same(weight: Array) -> Array:
    return weight


def _apply(layer: dict[str, Any], x: Array, change: Callable[[Array], Array] = _same) -> Array:
    """W x without the bias for rows x [..., n]; `change` is applied to the weights (absolute values, squares)."""
    if layer["kind"] == "linear":
        return x @ change(layer["weight"]).T
    if layer["kind"] == "scale":
        return x * change(layer["weight"])
    pictures = _padded(layer, x.size // _inputs(layer))
    inner = _inner(layer, pictures)
    inner[:] = x.reshape(inner.shape)
    out, *size = _out_shape(layer)
    outputs = np.zeros((*pictures.shape[:2], out // layer["groups"], np.prod(size)))
    for weight, (rows, columns) in _taps(layer):
        met = pictures[..., rows, columns]
        outputs += change(weight) @ met.reshape(*met.shape[:3], -1)
    return outputs.reshape(*x.shape[:-1], -1)


def _back(layer: dict[str, Any], c: Array, change: Callable[[Array], Array] = _same) -> Array:
    """W'c for rows c [..., m]."""
    if layer["kind"] == "linear":
        return c @ change(layer["weight"])
    if layer["kind"] == "scale":
        return c * change(layer["weight"])
    out, *size = _out_shape(layer)
    given = c.reshape(-1, layer["groups"], out // layer["groups"], np.prod(size))
    pictures = _padded(layer, len(given))
    for weight, (rows, columns) in _taps(layer):
        met = pictures[..., rows, columns]
        met += (change(weight).swapaxes(1, 2) @ given).reshape(met.shape)
    return _inner(layer, pictures).reshape(*c.shape[:-1], -1)


def _padded(layer: dict[str, Any], count: int) -> Array:
    """Pictures of zeros with room for the padding, their channels by group."""
    (channels, height, width), (py, px), groups = layer["shape"], layer["padding"], layer["groups"]
    return np.zeros((count, groups, channels // groups, height + 2 * py, width + 2 * px))


def _inner(layer: dict[str, Any], pictures: Array) -> Array:
    (_, height, width), (py, px) = layer["shape"], layer["padding"]
    return pictures[..., py : py + height, px : px + width]


def _bias(layer: dict[str, Any]) -> Array:
    """The bias of every output of a layer."""
    if layer["kind"] == "conv2d":
        _, height, width = _out_shape(layer)
        return np.repeat(layer["bias"], height * width)
    return layer["bias"]


def _inputs(layer: dict[str, Any]) -> int:
    return layer["weight"].shape[-1] if layer["kind"] != "conv2d" else int(np.prod(layer["shape"]))


def _terms(layer: dict[str, Any]) -> int:
    """More products, the bias among them, than any sum of W x or W'c has."""
    return (layer["weight"].size if layer["kind"] == "conv2d" else sum(layer["weight"].shape)) + 2


def _forward(layer: dict[str, Any], x: Near) -> Near:
    """W x + b."""
    return x.through(lambda rows, change=_same: _apply(layer, rows, change), _terms(layer), _bias(layer))


def _backward(layer: dict[str, Any], c: Near) -> Near:
    """W'c."""
    return c.through(lambda rows, change=_same: _back(layer, rows, change), _terms(layer))


# The norms of maps


def prove_norm(layer: dict[str, Any], d: Array, claimed: float) -> float:
    """An upper bound on the spectral norm of W diag(d), a hair above `claimed`. Raises Refused when that is too small."""
    n, m = _inputs(layer), len(_bias(layer))
    d = np.broadcast_to(d, (n,))
    if n * m > DENSE:
        rows = near(d).through(lambda x, _=abs: _apply(layer, x, abs), _terms(layer))
        columns = near(np.ones(m)).through(lambda c, _=abs: _back(layer, c, abs), _terms(layer)) * d
        return float(np.sqrt(rows.most.max()) * np.sqrt(columns.most.max()))
    matrix = _matrix(layer) * d
    gram = matrix @ matrix.T if m < n else matrix.T @ matrix
    shifted = -gram
    shifted[np.diag_indices(len(gram))] += claimed * claimed
    if not _has_factor(shifted):
        raise Refused(f"a layer's spectral norm is not as small as the claimed {claimed:.9g}")
    # Paid for: the Gram matrix, whose sums of sizes make a matrix no longer than the square of this one's length, with two
    # terms more for the products with d; the factorisation; by `up`, what rounds on the diagonal, 4 u of the claim's square.
    square = float(length(matrix.ravel())) ** 2
    error = off(max(m, n) + 2, square) + _factor_error(shifted.diagonal())
    return float(up(np.sqrt(claimed * claimed + error)))


def _matrix(layer: dict[str, Any]) -> Array:
    """The matrix [m, n] of a layer, exactly: of a convolution every entry is one weight, and zeros."""
    if layer["kind"] == "linear":
        return layer["weight"]
    n, m = _inputs(layer), len(_bias(layer))
    through, size = (_apply, n) if n <= m else (_back, m)
    step = max(PIECE // _padded(layer, 1).size, 1)
    rows = [through(layer, np.eye(min(step, size - begin), size, begin)) for begin in range(0, size, step)]
    return np.concatenate(rows).T if n <= m else np.concatenate(rows)


def _has_factor(matrix: Array) -> bool:
    """Whether its Cholesky factorisation runs to its end."""
    try:
        return bool(np.isfinite(np.linalg.cholesky(matrix)).all())  # not every LAPACK stops at a nan
    except np.linalg.LinAlgError:
        return False


def _factor_error(diagonal: Array) -> float:
    """No eigenvalue of a symmetric matrix that has a factor is below the negative of this (Rump, BIT 46, 2006).

    There it is (n + 1) u / (1 - 2 (n + 1) u) times the trace and 3 n (2 n + max a_ii) eta; 2 u of the trace are spare.
    """
    return float(off(len(diagonal) + 3, abs(diagonal).sum()))


def _nonnegative(form: Near, size: float) -> bool:
    """Whether w'Sw >= 0 is proved for every symmetric S that is near the form and every w with w_0 = 1 and |w|^2 <= size."""
    lowered = form.value.copy()
    # The roundings of this line are in what the factorisation is allowed.
    lowered[0, 0] -= (length(form.error.ravel()) + _factor_error(form.value.diagonal())) * size
    return _has_factor(lowered)


def _chord(low: Array, high: Array) -> Array:
    """At least the slope of the line through the ends of relu over [low, high], low < 0 < high."""
    return up(high / (high - low))


# The proof


class _Proof:
    def __init__(self, content: Mapping[str, NDArray], net: Net) -> None:
        self.content, self.net = content, net
        self.radius, self.label = float(content["radius"]), int(content["label"])
        self.input, self.box = content["input"], content.get("box")
        if self.radius < 0:
            raise Refused(f"its radius is {self.radius}")
        if not 0 <= self.label < net.sizes[-1]:
            raise Refused(f"its label is {self.label}")
        self.others = [each for each in range(net.sizes[-1]) if each != self.label]

    def _above(self, least: float, key: str) -> Array:
        array = self.content[key]
        if not (array > least).all():
            raise Refused(f"{key} is not above {least:.3g}")
        return array

    def margins(self) -> Array:
        self._prove_enclosures()
        proved, claimed = self._lower_bounds(), self.content["margins"]
        if "refined" in self.content:
            proved = self._refined(proved)
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
        low, high = down(x - r), up(x + r)
        if self.box is not None:
            low, high = np.maximum(low, self.box[0]), np.minimum(high, self.box[1])
            if not (low <= high).all():
                raise Refused("its ball does not meet its box")
        # Of every value centre, scale t and direction d of an ellipsoid |(v - centre) / (t d)| <= 1, lower, upper.
        values: list[tuple[Array, float, Array, Array, Array]] = [(x, r, np.ones(1), low, high)]
        for index, layer in enumerate(self.net.layers):
            centre, t, d, low, high = values[layer["inputs"][0]]
            if layer["kind"] == "relu":
                new = (np.maximum(centre, 0), t, d, np.maximum(low, 0), np.maximum(high, 0))
            elif layer["kind"] == "add":
                centre2, t2, d2, low2, high2 = values[layer["inputs"][1]]
                new = _around(near(centre) + centre2, t * d.max() + t2 * d2.max(), np.ones(1))
                new = (*new[:3], np.maximum(new[3], down(low + low2)), np.minimum(new[4], up(high + high2)))
            elif layer["kind"] == "scale":
                # Where it is one number, an ellipsoid is a ball.
                d = abs(layer["weight"]) * d
                d = np.maximum(d, max(FLATTEST * d.max(), 1e-300))  # a longer axis holds as much and more
                new = _around(_forward(layer, near(centre)), *((t, d) if len(d) > 1 else (t * d[0], np.ones(1))))
            else:
                after = _forward(layer, near(centre))
                new = _around(after, t * self._norm(index, layer, d), np.ones(1))
                away = t * _row_lengths(layer, d) + after.error  # both with room for the roundings here
                new = (*new[:3], np.maximum(new[3], new[0] - away), np.minimum(new[4], new[0] + away))
            values.append(new)
        self.sets = {}
        for at in self.net.bent:
            centre, t, d, low, high = values[at]
            claimed, axes = self.content[f"centre_{at}"], self._above(SMALLEST, f"axes_{at}")
            lower, upper = self.content[f"lower_{at}"], self.content[f"upper_{at}"]
            # |(v - claimed)/axes| <= |t d/axes|_inf + |(centre - claimed)/axes|
            needed = up((t * d / axes).max() + length((centre - claimed) / axes))
            if not needed <= 1:
                raise Refused(f"the ball at layer input {at} is too small or elsewhere (by a factor {needed:.9f})")
            if not ((lower <= low).all() and (upper >= high).all()):
                raise Refused(f"the box at layer input {at} is too small")
            self.sets[at] = (claimed, axes, lower, upper)

    def _norm(self, index: int, layer: dict[str, Any], d: Array) -> float:
        """An upper bound on |W diag(d)|_2, proved from the claimed one; proved once a network."""
        claimed = float(self.content[f"norm_{index}"])
        # The direction d depends on the layers alone, so the claim is all that can differ.
        if (index, claimed) not in self.net.norms:
            self.net.norms[index, claimed] = prove_norm(layer, d, claimed)
        return self.net.norms[index, claimed]

    # All layers at once

    def _refined(self, proved: Array) -> Array:
        """The margins with those listed as refined replaced where their quadratic forms prove more."""
        indices, balls, claimed = (self.content[name] for name in ("refined", "ball", "margins"))
        if not np.isin(indices, np.arange(len(proved))).all():
            raise Refused(f"refined names margins that there are not: {indices}")
        f, g, outputs, bent = self._rows()
        corner = np.zeros((outputs.value.shape[1], 1))
        corner[0] = 1
        input_ball = np.diag(np.isin(np.arange(len(corner)), np.arange(1, 1 + len(self.input))) - corner[:, 0])
        # Of w: the 1, the input and every layer's outputs are in unit balls.
        size = 2 + len(bent)
        proved = proved.copy()
        for row, index in enumerate(indices):
            parts = [self.content[f"multipliers_{at}"][row][:, here].reshape(-1) for at, here in bent.items()]
            m, ball = np.concatenate([np.zeros(0), *parts]), balls[row]
            if not (m >= 0).all() or not ball >= 0:
                raise Refused(f"the multipliers of margin {index} are not nonnegative numbers, one an inequality")
            objective = outputs[self.label] - outputs[self.others[index]]
            half = (f.T * m) @ g + objective[None] * corner
            form = (half + half.T) * 0.5 + input_ball * ball - corner * claimed[index] * corner.T
            if _nonnegative(form, size):
                proved[index] = max(proved[index], claimed[index])
        return proved

    def _rows(self) -> tuple[Near, Near, Near, dict[int, NDArray]]:
        """f and g of all inequalities, and the outputs, as rows over w; and which neurons may bend."""
        order = dict.fromkeys(layer["inputs"][0] for layer in self.net.layers if layer["kind"] == "relu")
        bent = {at: np.flatnonzero((self.sets[at][2] < 0) & (self.sets[at][3] > 0)) for at in order}
        inputs = len(self.input)
        entries = 1 + inputs + sum(map(len, bent.values()))
        if entries * (sum(self.net.sizes) + 10 * entries) > ROWS:
            raise Refused(f"its refined margins are about {entries} numbers at once, too many for this checker")
        start = np.zeros((inputs, entries))
        start[:, 0] = self.input
        start[:, 1 : 1 + inputs] = self.radius * np.eye(inputs)
        values, position, done = [near(start)], 1 + inputs, {}
        f, g = [values[0][:0]], [values[0][:0]]
        for layer in self.net.layers:
            at = layer["inputs"][0]
            rows = values[at]
            if layer["kind"] == "relu":
                if at not in done:
                    (centre, axes, lower, upper), here = self.sets[at], bent[at]
                    n = len(here)
                    one, y = np.zeros((2, n, entries))
                    one[:, 0], y[:, 0] = 1, np.maximum(centre[here], 0)
                    y[:, position : position + n] = axes.max() * np.eye(n)
                    position += n
                    low, high = lower[here, None], upper[here, None]
                    z, above, below = rows[here], rows[here] - low * one, rows[here] - high * one
                    f += [near(one), near(one), near(y), near(one), above]
                    g += [near(-y), z - y, near(y) - z, near(y) - above * _chord(low, high), below]
                    active = (lower >= 0)[:, None]
                    out = Near(np.where(active, rows.value, 0), np.where(active, rows.error, 0))
                    out.value[here], out.error[here] = y, 0
                    done[at] = out
                values.append(done[at])
            elif layer["kind"] == "add":
                values.append(rows + values[layer["inputs"][1]])
            else:
                linear = rows.T.through(lambda x, change=_same, of=layer: _apply(of, x, change), _terms(layer)).T
                shift = np.zeros(linear.value.shape)
                shift[:, 0] = _bias(layer)
                values.append(linear + shift)
        return _stacked(f), _stacked(g), values[-1], bent

    # Going back

    def _lower_bounds(self) -> Array:
        layers, unit = self.net.layers, np.eye(self.net.sizes[-1])
        # Of every value that is not passed yet the coefficients, which are up to their errors those of the bound.
        pending = {len(layers): near(unit[self.label] - unit[self.others])}
        bound = near(np.zeros(len(self.others)))
        for index in range(len(layers), 0, -1):
            c, layer = pending.pop(index), layers[index - 1]
            if layer["kind"] == "relu":
                offset, c = self._relu(layer["inputs"][0], c)
                bound = bound + offset
            elif layer["kind"] != "add":
                bound, c = bound + c @ _bias(layer), _backward(layer, c)
            for before in layer["inputs"]:
                pending[before] = pending[before] + c if before in pending else c
        return (bound + self._input(pending[0])).least

    def _relu(self, at: int, c: Near) -> tuple[Near, Near]:
        """A lower bound on c'relu(z) - g'z over the enclosure, and g."""
        centre, axes, lower, upper = self.sets[at]
        g = near(c.value * self.content[f"slopes_{at}"])
        pull = self._above(0, f"lambda_{at}")[:, None] / (axes * axes)
        right = _least(c - g, pull, centre, np.maximum(lower, 0), np.maximum(upper, 0))
        left = _least(-g, pull, centre, np.minimum(lower, 0), np.minimum(upper, 0))
        # Where a neuron can be only on one side, the other side's minimum does not count.
        one_side = right.where(lower > 0, left.where(upper < 0, left.least_of(right)))
        return one_side.sum() - _penalty(pull, axes).max(1), g

    def _input(self, a: Near) -> Near:
        """A lower bound on a'x over the input set."""
        x, r = self.input, self.radius
        if self.box is None:
            return a @ x - r * length(a.size)
        multiplier = self._above(0, "lambda_input")
        low, high = np.broadcast_to(self.box[:, None], (2, len(x)))
        return _least(a, multiplier[:, None], x, low, high).sum() - _penalty(multiplier, r)


def _around(centre: Near, t: float, d: Array) -> tuple[Array, float, Array, Array, Array]:
    """The ellipsoid, as a few operations computed it, around a centre known up to its error; grown to hold both errors."""
    t = float(up(t + length(centre.error / d)))
    reach = up(t * d)
    return centre.value, t, d, down(centre.value - reach), up(centre.value + reach)


def _row_lengths(layer: dict[str, Any], d: Array) -> Array:
    """At least the l2 norm of every row of W diag(d), of weights and directions over their largest, as in `length`."""
    largest, widest = abs(layer["weight"]).max() or 1.0, d.max()
    parts = np.broadcast_to(np.square(d / widest), (_inputs(layer),))
    squares = _apply(layer, parts, lambda weight: np.square(weight / largest))
    return up(np.sqrt(squares + off(_terms(layer) + 8, squares)) * (largest * widest))


def _penalty(w: Array, reach: Array | float) -> Array:
    """At least w/2 (z - centre)^2 for every z within `reach` of the centre."""
    return up(w * reach * reach) / 2


def _least(a: Near, w: Array, centre: Array, low: Array, high: Array) -> Near:
    """A lower bound on a z + w/2 (z - centre)^2 over low <= z <= high.

    A convex function lies above its tangent, so the bound holds wherever the tangent is laid: at the minimiser as computed.
    """
    z = np.clip(centre - a.value / w, low, high)
    pull = (near(z) - centre) * w
    slope = a + pull
    tangent = (slope * (near(low) - z)).least_of(slope * (near(high) - z))
    return a * z + pull * (near(z) - centre) * 0.5 + tangent


def _stacked(parts: list[Near]) -> Near:
    return Near(np.concatenate([each.value for each in parts]), np.concatenate([each.error for each in parts]))
