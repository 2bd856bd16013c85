"""Certified upper bounds on the largest singular value of a layer: never an estimate from below, as power iteration is.

The exact value comes from a dense decomposition in float64 and is raised by more than its rounding error. The map of a
convolution is made dense for that; one too large for it gets sqrt(|W|_1 |W|_inf), a bound that needs two passes.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from equipoise.verification.network import Affine, Convolution, Linear, Scale

DENSE = 2**25  # entries of a map up to which it is decomposed
# Above the error of a symmetric eigensolver, n u |W|^2 with n below 10^4, and above what a checker needs to prove it.
SLACK = 1e-8

LEAST = 1e-100  # of smaller norms the squares come near to what underflows
TINY = 1e-9  # claimed of these and of a layer of zeros, so that a factorisation can prove it


def spectral_norm(layer: Affine, axes: Tensor) -> float:
    """An upper bound on the spectral norm of W diag(axes), at most 1e-8 above it where it is decomposed.

    axes: [n] or [1], positive.
    """
    if isinstance(layer, Scale):
        return (layer.weight.abs() * axes).max().item() * (1 + SLACK)
    inputs, outputs = input_size(layer), output_size(layer)
    if inputs * outputs > DENSE:
        return _one_infinity(layer, axes, inputs, outputs)
    whole = dense(layer) * axes
    gram = whole @ whole.T if outputs < inputs else whole.T @ whole
    # An eigenvalue of the Gram matrix is wrong by some u |W|_F^2; its trace is that square.
    largest = torch.linalg.eigvalsh(gram)[-1].clamp(min=0)
    norm = (largest + SLACK * largest + 1e-13 * gram.trace()).sqrt().item()
    return norm if norm > LEAST else TINY


def row_norms(layer: Affine, axes: Tensor) -> Tensor:
    """The l2 norm of every row of W diag(axes), rounded up. axes: [n] or [1] -> [m]."""
    return layer.squared(axes.square()).sqrt() * (1 + SLACK)


def dense(layer: Affine) -> Tensor:
    """The matrix [m, n] of a layer."""
    if isinstance(layer, Linear):
        return layer.weight
    unit = torch.eye(input_size(layer), dtype=layer.weight.dtype)
    return (layer.forward(unit) - layer.forward(torch.zeros_like(unit[:1]))).T


def input_size(layer: Affine) -> int:
    """How many numbers a layer takes."""
    if isinstance(layer, Linear):
        return layer.weight.shape[1]
    return len(layer.weight) if isinstance(layer, Scale) else math.prod(layer.shape)


def output_size(layer: Affine) -> int:
    """How many numbers a layer gives."""
    return math.prod(layer.out_shape) if isinstance(layer, Convolution) else len(layer.weight)


def _one_infinity(layer: Affine, axes: Tensor, inputs: int, outputs: int) -> float:
    positive = replace(layer, weight=layer.weight.abs(), bias=torch.zeros_like(layer.bias))
    across = positive.forward(axes.expand(inputs)[None]).max()
    down = (positive.back(torch.ones(1, outputs, dtype=torch.float64)) * axes).max()
    return (across * down).sqrt().item() * (1 + SLACK)
