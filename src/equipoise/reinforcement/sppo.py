"""SPPO, sequence-level PPO (arXiv:2604.08865): one advantage a response, against a critic that reads only the prompt.

B responses, one a prompt. R in [0, 1] is the verifiable reward, v the critic's logit at the last token of the prompt,
p = sigmoid(v) the success probability that it predicts, before the response and without it.

    advantage   A = R - p, the same at every token; no whitening, no division, no GAE
    critic      mean over responses of BCE(v, R);  d BCE / d v = p - R
    actor       PPO's loss per token, `policy_loss.clipped` with dual_clip=3; no entropy bonus, no KL

A is that of PPO with gamma = lam = 1 and a value that is the prompt's at every token. In a step p is computed once,
before the critic learns from R: afterwards the label has leaked into it.

Differs from the paper: rewards may be graded, any number in [0, 1], which the paper's loss takes as a soft label;
`normalize=True` gives (R - p) / sqrt(p (1 - p)), GRPO's scale, which the authors' earlier code has (as exp(-v/2) for a
success, -exp(v/2) for a failure) and the paper does not, with p held in [0.02, 0.98] so that it stays finite.
"""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from equipoise.core.errors import BadInput
from equipoise.reinforcement.recipe import ADVANTAGES, METHODS, Advantage, Recipe

if TYPE_CHECKING:
    from equipoise.reinforcement.stages import Step

NORMALIZED_RANGE = (0.02, 0.98)


def advantages(rewards: Tensor, success_probability: Tensor, *, normalize: bool = False) -> Tensor:
    """R - p of each response, [B], without gradient to the critic.

    rewards, success_probability: [B] in [0, 1]; raises BadInput for others, naming the index. normalize: divide by the
    standard deviation sqrt(p (1 - p)) of a reward that is 1 with probability p.
    """
    check_rewards(rewards)
    check_rewards(success_probability, "success_probability")
    p = success_probability.detach()
    if not normalize:
        return rewards - p
    p = p.clamp(*NORMALIZED_RANGE)
    return (rewards - p) / (p * (1 - p)).sqrt()


def critic_loss(logits: Tensor, rewards: Tensor) -> Tensor:
    """Mean binary cross-entropy of the critic's logits [B] and rewards [B] in [0, 1], soft labels included.

    Raises BadInput for a reward outside, naming its index.
    """
    check_rewards(rewards)
    return F.binary_cross_entropy_with_logits(logits, rewards.to(logits))


def check_rewards(rewards: Tensor, name: str = "rewards") -> None:
    """Raises BadInput for the first value that is not in [0, 1], nan included."""
    outside = (~((rewards >= 0) & (rewards <= 1))).nonzero()
    if len(outside):
        index = outside[0].tolist()
        where = ", ".join(map(str, index))
        raise BadInput(
            f"{name}[{where}] is {rewards[tuple(index)].item():g}, expected a number in [0, 1]. "
            "Rescale: -1 and 1 become 0 and 1 by (reward + 1) / 2."
        )


def _of_step(step: "Step", recipe: Recipe) -> Tensor:
    assert step.success_probability is not None
    expected = step.success_probability.unsqueeze(-1).expand_as(step.rewards).flatten().to(step.rewards)
    return advantages(step.rewards.flatten(), expected, normalize=recipe.normalize).view_as(step.rewards)


ADVANTAGES.register("sppo", Advantage(compute=_of_step, critic="prompt", samples=1, unit=True, settings=("normalize",)))
METHODS.register("sppo", {"advantage": "sppo", "dual_clip": 3.0})
