"""DR-SAC (arXiv:2506.12622): soft actor-critic against the worst transition kernel in a KL ball about the nominal one.

P(delta) = { p : KL(p || p_0(.|s,a)) <= delta }. In SAC's step the target of the critics becomes

    y = r + gamma (1 - terminated) inf { E_p V' : p in P(delta) }
      = r + gamma (1 - terminated) sup_{b >= 0} { -b log E_{s' ~ p_0} exp(-V'(s') / b) - b delta }

s'_1 ... s'_m are drawn from a nominal model that is learnt from the logs (`nominal`), v_j = V'(s'_j) is computed once; b is

    exact        solved for each pair, for the whole batch at once (`robust.robust_value`)
    functional   g(s, a), a positive network, by a few steps of AdamW a step on
                 mean over the batch of  -g (logsumexp_j(-v_j / g) - log m) - g delta,   with slope KL(w_g) - delta

Any g gives a lower bound of the exact value. The nominal model is trained alone for `nominal_steps`, then on every batch of
the agent, in its backward pass. Without `robust` it is SAC to the bit.

Differs from the released code: V' reads the samples once a step, not six times, and before the nominal model's own
step; g is a softplus in units of a Gaussian's
optimum, the mean standard deviation of the batch's values over sqrt(2 delta), so that the unit of the rewards does not
matter; pairs whose worst mean rests on fewer than five samples are counted; the exact dual is solved for a whole
batch at once.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.control.agent import About, Batch, adamw, seeded, zip_path
from equipoise.control.networks import by_columns, perceptron, set_gradients
from equipoise.control.nominal import NOMINAL, Nominal, Simulated, Simulator
from equipoise.control.robust import dual_value, effective_sample_size, robust_value, worst_case_weights
from equipoise.control.sac import SAC
from equipoise.control.settings import DRSACSettings
from equipoise.core.errors import BadInput
from equipoise.core.streams import torch_stream

__all__ = ["DRSAC", "dual_value", "effective_sample_size", "robust_value", "worst_case_weights"]

COUNTED = 8  # steps of which one counts pairs
FEW = 5.0  # samples that a worst mean should rest on at least
BLOCK = 1 << 21  # numbers of a layer, so that they stay in the processor's cache: twice as fast as all at once
FLOOR = 1e-4  # of g, in units of a Gaussian's optimum
ONE = math.log(math.e - 1)  # where g is 1 above the floor


class DRSAC(SAC):
    """See the module; learn, predict, save and load as of `SAC`, with the nominal model's `spread` beside them.

    simulator: draws next states in place of a learnt nominal model: (s, a in [-1, 1], count, generator) -> [B, count, ds].
    """

    Settings: ClassVar[Any] = DRSACSettings
    name: ClassVar[str] = "dr-sac"

    def __init__(self, env_or_data: Any = None, *, simulator: Simulator | None = None, **settings: Any) -> None:
        self._simulator = simulator
        self._few = self._seen = 0
        super().__init__(env_or_data, **settings)

    @classmethod
    def load(cls, path: str | Path, env_or_data: Any = None, *, simulator: Simulator | None = None) -> "DRSAC":
        """As of `SAC`. simulator: the one that it was made with, which no file holds; without it such an agent only acts."""

        def more(about: About) -> dict[str, Any]:
            if not about.simulator and simulator is not None:
                raise BadInput(f"{path} holds a learnt nominal model; with a simulator it would be another agent.")
            return {"simulator": simulator or _absent} if about.simulator else {}

        return cls._loaded(zip_path(path), env_or_data, more)

    def _about(self) -> About:
        return super()._about().model_copy(update={"simulator": self._simulator is not None})

    def sample_next(self, observations: Any, actions: Any, count: int = 200, *, seed: int = 0) -> np.ndarray:
        """Next states by the nominal model: [B, ds] and actions [B, da] in the environment's units -> [B, count, ds]."""
        s, a = self._pairs(observations, actions, count)
        return self._each(s, a, count, seed).numpy()

    def worst_case(self, observations: Any, actions: Any, count: int = 200, *, seed: int = 0) -> dict[str, np.ndarray]:
        """Which outcomes it fears: next_observations [B, count, ds], values and weights [B, count], value and effective [B].

        value: the worst mean; effective: how many samples it rests on.
        """
        s, a = self._pairs(observations, actions, count)
        drawn = self._each(s, a, count, seed)
        with torch.no_grad():
            values = torch.stack([self.slow_value(each).squeeze(-1) for each in drawn])
        delta = self.settings.delta
        weights = worst_case_weights(values, delta)
        found = {
            "next_observations": drawn, "values": values, "weights": weights, "value": robust_value(values, delta)[0],
            "effective": effective_sample_size(weights),
        }  # fmt: skip
        return {name: each.numpy() for name, each in found.items()}

    def _each(self, s: Tensor, a: Tensor, count: int, seed: int) -> Tensor:
        """Samples of each pair by a stream of its own, so that they do not depend on how many are asked with it."""
        pairs = enumerate(zip(s.split(1), a.split(1), strict=True))
        return torch.cat([self.nominal.sample(*pair, count, torch_stream(seed, row)) for row, pair in pairs])

    def spread(self, *, seed: int = 0) -> float:
        """Spread of the nominal model's samples over their error on what the agent learns from: 1 is right, 0 a point."""
        self._check_logs()
        return self.nominal.spread(self._buffer.all(), torch_stream(seed))

    @property
    def few(self) -> float:
        """Share of pairs whose worst mean rested on fewer than five samples, of every eighth step; nan before any."""
        return self._few / self._seen if self._seen else math.nan

    def _pairs(self, observations: Any, actions: Any, count: int) -> tuple[Tensor, Tensor]:
        s, asked = (np.atleast_2d(np.array(each, np.float32)) for each in (observations, actions))
        self._check_built()
        if s.shape[1:] != self._shape[:1] or asked.shape[1:] != self._shape[1:] or len(s) != len(asked):
            raise BadInput(
                f"observations {tuple(s.shape)} and actions {tuple(asked.shape)} are not pairs of {self._shape}."
            )
        if count < 1:
            raise BadInput(f"count is {count}: a sample of what follows is one or more.")
        if not np.isfinite(s).all() or not ((asked >= self.low) & (asked <= self.high)).all():
            raise BadInput(
                "an observation is no number, or an action lies outside the box that this agent was made for."
            )
        return torch.from_numpy(s), torch.from_numpy(self._scaled(asked).astype(np.float32))

    # --- building -----------------------------------------------------------------------------------------------------

    nominal: Nominal
    g: nn.Sequential

    def _made(self) -> dict[str, nn.Module]:
        given, networks = self.settings, super()._made()
        with seeded(given.seed + 1):
            if self._simulator is not None:
                networks["nominal"] = Simulated(*self._shape, self._simulator)
            else:
                made = NOMINAL[given.nominal]
                networks["nominal"] = made(*self._shape, given.hidden, latent=given.latent, vae_loss=given.vae_loss)
            networks["g"] = perceptron(sum(self._shape), given.hidden, 1)
        return networks

    def _begin(self) -> None:
        super()._begin()
        given = self.settings
        self._dual_optimizer = adamw(self.g.parameters(), given.dual_learning_rate, given.weight_decay)
        # Once a block of this size has been freed, glibc keeps memory between steps in place of taking it anew at each.
        torch.empty(3 * BLOCK)
        # Their own generators: with robust off the agent's are as SAC's.
        self._nominal_noise = torch_stream(given.seed, 3)
        self._trained = 0

    def _learnt(self) -> list[dict[str, Any]]:
        nominal = {"params": list(self.nominal.parameters()), "lr": self.settings.nominal_learning_rate}
        return super()._learnt() + [nominal] * (self._simulator is None)

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {**super()._optimizers(), "g": self._dual_optimizer}

    def _generators(self) -> dict[str, torch.Generator]:
        return {**super()._generators(), "nominal": self._nominal_noise}

    def state(self) -> dict[str, Any]:
        """As of `SAC`, with the nominal model, g, and what was counted."""
        return {**super().state(), "trained": self._trained, "few": self._few, "seen": self._seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        super().restore(state)
        self._trained, self._few, self._seen = (int(state[name]) for name in ("trained", "few", "seen"))

    # --- one step -----------------------------------------------------------------------------------------------------

    def pretrain(self, most: int | None = None) -> bool:
        """Let the nominal model learn alone, `most` steps at most; whether it has had all of its steps."""
        given = self.settings
        self._check_logs()
        if not given.robust or self._simulator is not None:
            return True
        if self._trained == 0:
            self.nominal.fit_units(self._buffer.all())
        ends = given.nominal_steps if most is None else min(given.nominal_steps, self._trained + most)
        while self._trained < ends:
            self.train_nominal(self._buffer.draw(given.batch_size, self._nominal_noise))
        return self._trained >= given.nominal_steps

    def _learn_once(self) -> None:
        self.pretrain()
        super()._learn_once()

    def train_nominal(self, batch: Batch) -> float:
        """One step of the nominal model; its loss."""
        loss = self._nominal_loss(batch)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())

    def _own_loss(self, batch: Batch) -> Tensor | float:
        if not self.settings.robust or self._simulator is not None:
            return super()._own_loss(batch)
        return self._nominal_loss(batch)

    def _nominal_loss(self, batch: Batch) -> Tensor:
        self._trained += 1
        return self.nominal.loss(batch, self._nominal_noise)

    @torch.no_grad()
    def _next_value(self, batch: Batch) -> Tensor:
        given = self.settings
        if not given.robust:
            return super()._next_value(batch)
        values = self._sampled_values(batch)
        # At 0 and from log m on it is the mean or the minimum: there is nothing to search for.
        if given.dual == "exact" or not 0 < given.delta < math.log(given.samples):
            value, beta = robust_value(values, given.delta)
        else:
            value, beta = self.functional_value(batch, values)
        if self.steps % COUNTED == 0:
            self._count(values, beta)
        return value

    def _sampled_values(self, batch: Batch) -> Tensor:
        """V' of samples of what follows each pair, [B, m], in blocks of pairs."""
        count = self.settings.samples
        pairs = max(1, BLOCK // (count * max(self.settings.hidden)))
        blocks = zip(batch.s.split(pairs), batch.a.split(pairs), strict=True)
        drawn = (self.nominal.columns(s, a, count, self._nominal_noise).flatten(1) for s, a in blocks)
        return torch.cat([by_columns(self.slow_value, each).view(-1, count) for each in drawn])

    @torch.no_grad()
    def functional_value(self, batch: Batch, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values [B] at g(s, a) after its steps on this batch, and g [B]. values: [B, m]."""
        given = self.settings
        unit = values.std(1, correction=0).mean() / math.sqrt(2 * given.delta)
        if not unit > 0:  # every pair's samples are equal
            return values[:, 0], torch.zeros(len(values))
        pairs = torch.cat([batch.s, batch.a], 1).T
        above = (values - values.amin(1, keepdim=True)) / unit
        for _ in range(given.dual_steps):
            kept: list[Tensor] = []
            raw = by_columns(self.g, pairs, kept) + ONE
            tilted = above / -_positive(raw).T
            weights = tilted.exp()
            total = weights.sum(1)
            # KL(w) - delta, the slope of the dual in g, in place of a backward pass over all samples.
            slope = (weights * tilted).sum(1) / total - total.log() + (math.log(values.shape[1]) - given.delta)
            # In units of the optimum, so that AdamW's epsilon is as small against it in every unit of the rewards.
            set_gradients(self.g, kept, raw.sigmoid() * slope / -len(slope))
            self._dual_optimizer.step()
        g = unit * _positive(by_columns(self.g, pairs) + ONE)[0]
        return dual_value(values, given.delta, g), g

    def _count(self, values: Tensor, beta: Tensor) -> None:
        if self.settings.delta == 0:
            return
        low, high = values.aminmax(dim=1)
        # 0 / 0 is a smallest sample where b is 0: these share all.
        weights = ((low[:, None] - values) / beta[:, None]).nan_to_num_(0.0, neginf=-math.inf).exp_()
        few = weights.sum(1).square() < FEW * weights.square().sum(1)
        # Samples that are all equal are no few: any number of them would tell the same.
        self._few += int((few & (high > low)).sum())
        self._seen += len(values)


def _absent(*_: Any) -> Tensor:
    raise BadInput(
        "this agent's nominal model was a simulator, which no file holds: DRSAC.load(path, env_or_data, simulator=...)."
    )


def _positive(raw: Tensor) -> Tensor:
    """Above the floor everywhere, linear far up: no exponential to overflow. Its slope is raw.sigmoid()."""
    return FLOOR + F.softplus(raw)
