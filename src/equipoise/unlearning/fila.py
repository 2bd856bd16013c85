"""FILA and VILA: adapters that begin in the weights that matter more to the forget set than to the retain set.

FILA (ICLR 2025, from the code of "LoKU"), VILA (COLM 2025). Of one linear map with weight W [d_out, d_in]; F_f and F_r: how
much each weight matters to either side, g_i the gradient of record i's loss and c_i its labelled tokens.

    FILA   F = sum_i c_i g_i^2 / sum_i c_i
    VILA   F = v_B v_A,  v = max(0, E[g^2] - E[g]^2) over records, of the factors A, B ~ N(0, 0.05^2) of an adapter, by c_i
    w_j = sqrt(sum_k F_f[j, k] / (1e-5 + F_r[j, k]))                       a weight for each row of W
    U S V' = svd(diag(w) W), the first r
    A0 = sqrt(S / s) V',  B0 = diag(1 / (w + 1e-5)) U sqrt(S / s),  W - s B0 A0 stays behind

Gradients are of single records, where the released code squares those of batches: what is found does not depend on who
shares a batch. VILA's ten epochs are one, since nothing moves meanwhile.
"""

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.training.gradients import sum_dtype
from equipoise.unlearning.recipe import METHODS
from equipoise.unlearning.reglu import residual

EPSILON = 1e-5
SPREAD = 0.05  # standard deviation of the factors at which VILA looks


class GradientMoments:
    """E[g^2], and with `centred` E[g], of one parameter over records, each weighed by its labelled tokens."""

    def __init__(self, parameter: Tensor, *, centred: bool) -> None:
        """parameter: what the gradients are of; sums are kept on its device, in float32 or more."""
        wide = torch.promote_types(parameter.dtype, torch.float32)
        self._squares = torch.zeros_like(parameter, dtype=wide, requires_grad=False)
        self._sum = torch.zeros_like(self._squares) if centred else None
        self._tokens = 0

    @torch.no_grad()
    def add(self, gradient: Tensor | None, tokens: int) -> None:
        """One record's; None where it does not reach the parameter."""
        self._tokens += tokens
        if gradient is None:
            return
        wide = gradient.to(self._squares)
        self._squares.addcmul_(wide, wide, value=tokens)
        if self._sum is not None:
            self._sum.add_(wide, alpha=tokens)

    @property
    def square(self) -> Tensor:
        """E[g^2]: FILA's importance."""
        return self._squares / self._tokens

    @property
    def variance(self) -> Tensor:
        """max(0, E[g^2] - E[g]^2). Raises BadInput where E[g] was not kept."""
        if self._sum is None:
            raise BadInput("these moments are not centred, so they have no variance: make them with centred=True.")
        return (self.square - (self._sum / self._tokens).square()).clamp(min=0)


def product_importance(variance_a: Tensor, variance_b: Tensor) -> Tensor:
    """VILA's importance [d_out, d_in] from variances of the factors' gradients, [r, d_in] and [d_out, r]."""
    return variance_b @ variance_a


def row_weights(forget_importance: Tensor, retain_importance: Tensor) -> Tensor:
    """w [d_out] from importances [d_out, d_in]."""
    wide = sum_dtype(forget_importance.device)
    forget, retain = forget_importance.to(wide), retain_importance.to(wide)
    return (forget / (EPSILON + retain)).sum(-1).sqrt()


def initialize(
    weight: Tensor, forget_importance: Tensor, retain_importance: Tensor, *, rank: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(A0 [rank, d_in], B0 [d_out, rank], base) with base + scale B0 A0 the weight [d_out, d_in], as `reglu.initialize`.

    Raises BadInput for a rank above the smaller side of the weight, and where no weight matters to the forget set.
    """
    if not 1 <= rank <= min(weight.shape):
        raise BadInput(f"rank {rank} of a weight {list(weight.shape)}: use a rank from 1 to {min(weight.shape)}.")
    rows = row_weights(forget_importance, retain_importance)
    if not rows.isfinite().all() or not rows.any():
        raise BadInput(
            "no weight matters to the forget set (its gradients are zero, or no numbers), so nothing says where to begin."
        )
    u, singular, v = torch.linalg.svd(rows.unsqueeze(-1) * weight.to(rows), full_matrices=False)
    root = (singular[:rank] / scale).sqrt()
    return residual(weight, root.unsqueeze(-1) * v[:rank], u[:, :rank] * root / (rows + EPSILON).unsqueeze(-1), scale)


METHODS.register(
    "fila",
    {
        "objective": "ihl",
        "combine": "sum",
        "parameters": "lora",
        "start": "fila",
        "lora_rank": 32,
        "learning_rate": 1e-4,
    },
)
METHODS.register(
    "vila",
    {
        "objective": "ihl",
        "combine": "sum",
        "parameters": "lora",
        "start": "vila",
        "lora_rank": 32,
        "learning_rate": 1e-4,
    },
)
