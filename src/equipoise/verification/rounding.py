"""Arithmetic in float64 that knows how wrong it may be: what the checker of certificates computes with.

Every operation obeys, in round to nearest, fl(a op b) = (a op b)(1 + d) + e with |d| <= u = 2^-53. The absolute part e is 0
but where a result is below the smallest normal number, eta = 2^-1022: there |e| <= eta, whether such results are rounded
or, as some libraries switch it, set to 0. A sum of n products, added up in any order, is then off by at most

    n u / (1 - n u) sum |a_i b_i|  +  3 n eta

(Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, sections 2.1 and 3.1, and an eta for each operation).
Without the second part an error is lost where products underflow together with the first: 1e-110 thrice is 0 with an error
of 0, and 1e110 thrice behind it makes 0 of what is 1. An overflow ends as inf or nan, which fails every comparison with a
claim.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
U = 2.0**-53
ROOM = 2.0**-47  # 64 u: pays for the roundings of some thirty operations without cancellation
TINY = 2.0**-1000  # four million eta: pays for as many underflows, those in a vector's or a matrix's length among them


def up(x):
    """At least what x stands for, where a few operations without cancellation computed it, and for a few more to come."""
    return x + ROOM * abs(x) + TINY


def down(x):
    """At most what x stands for, as `up`."""
    return x - ROOM * abs(x) - TINY


def off(terms: float, size):
    """How far a sum of that many products may be from its exact value. size: the sum of their sizes, as computed.

    The computed size s is itself below the exact one, by a share n u / (1 - n u) and 3 n eta at most, which this includes:
    n u / (1 - 2 n u) s would do, were it not for the roundings here.
    """
    share = terms * U
    return share / (1 - 8 * share) * size + terms * TINY


def length(x: Array, axis: int = -1) -> Array:
    """At least the l2 norm: of numbers over their largest, so that no square underflows that counts."""
    top = abs(x).max(axis, keepdims=True)
    squares = np.square(x / np.where(top > 0, top, 1)).sum(axis)
    return up(np.sqrt(squares + off(x.shape[axis] + 4, squares)) * top.squeeze(axis))


@dataclass(frozen=True, eq=False)
class Near:
    """Real numbers that are each within `error` of `value`. Plain arrays beside them are taken as exact."""

    value: Array
    error: Array

    __array_ufunc__ = None  # an array on the left is a mistake, not an array of these

    @property
    def T(self) -> "Near":
        return Near(self.value.T, self.error.T)

    @property
    def size(self) -> Array:
        """How large they may be, up to one rounding."""
        return abs(self.value) + self.error

    @property
    def least(self) -> Array:
        return down(self.value - self.error)

    @property
    def most(self) -> Array:
        return up(self.value + self.error)

    def __getitem__(self, index) -> "Near":
        return Near(self.value[index], self.error[index])

    def __neg__(self) -> "Near":
        return Near(-self.value, self.error)

    def __add__(self, other: "Near | Array") -> "Near":
        other = near(other)
        value = self.value + other.value
        return Near(value, up(self.error + other.error + U * abs(value)))

    def __sub__(self, other: "Near | Array") -> "Near":
        return self + -near(other)

    def __mul__(self, other: "Near | Array | float") -> "Near":
        other = near(other)
        value = self.value * other.value
        crossed = abs(self.value) * other.error + self.error * other.size
        return Near(value, up(crossed + U * abs(value)))

    def __matmul__(self, other: "Near | Array") -> "Near":
        other = near(other)
        size = abs(self.value)
        spread = size @ other.error + self.error @ other.size
        # The spread is such a sum, too, of two parts, one factor of which is itself a sum; and it is added to.
        error = spread + off(len(other.value) + 4, spread + size @ abs(other.value))
        return Near(self.value @ other.value, error)

    def sum(self, axis: int = -1) -> "Near":
        spread = self.error.sum(axis)
        error = spread + off(self.value.shape[axis] + 2, spread + abs(self.value).sum(axis))
        return Near(self.value.sum(axis), error)

    def least_of(self, other: "Near") -> "Near":
        """The smaller of both, one by one."""
        return Near(np.minimum(self.value, other.value), np.maximum(self.error, other.error))

    def where(self, here: NDArray[np.bool_], other: "Near") -> "Near":
        """These where `here` is true, the others elsewhere."""
        return Near(np.where(here, self.value, other.value), np.where(here, self.error, other.error))

    def through(self, linear: Callable[..., Array], terms: int, shift: Array | float = 0.0) -> "Near":
        """linear(x) + shift. linear(x, abs): the map of the sizes of its weights. terms: no sum has more products."""
        spread = linear(self.error, abs)
        error = spread + off(terms + 2, spread + linear(abs(self.value), abs) + abs(shift))
        return Near(linear(self.value) + shift, error)


def near(x) -> Near:
    """Numbers as they are: exact."""
    return x if isinstance(x, Near) else Near(np.asarray(x, dtype=np.float64), np.zeros(np.shape(x)))
