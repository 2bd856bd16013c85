"""The trainers on a stand-in for TRL, which takes long to import: what is ours of them. `tests/parity` runs them in TRL."""

import importlib.util
import sys
import types
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from equipoise.core.errors import BadInput, MissingExtra
from equipoise.reinforcement import apo, policy_loss, r2po, sppo
from equipoise.reinforcement.critic import Critic, prompt_logits

NAME = "equipoise.reinforcement.trl"
PLACE = Path(policy_loss.__file__).with_name("trl.py")
DEFAULTS = {
    "num_generations": 2,
    "num_generations_eval": 3,
    "generation_batch_size": 4,
    "loss_type": "dapo",
    "beta": 0.0,
    "use_bias_correction_kl": True,
    "delta": None,
    "bf16": None,
    "use_cpu": True,
    "per_device_train_batch_size": 2,
    "steps_per_generation": 5,
    "max_grad_norm": 1.0,
    "weight_decay": 0.25,
    "seed": 3,
    "should_save": True,
}


@dataclass
class GRPOConfig:
    output_dir: str = "out"
    num_generations: int | None = 2
    delta: float | None = None
    beta: float = 0.0
    loss_type: str = "dapo"
    use_bias_correction_kl: bool = True
    bf16: bool | None = None
    use_cpu: bool = True

    def __post_init__(self):
        if (self.num_generations or 0) < 2:
            raise ValueError("TRL wants two")
        if self.bf16 is None:
            self.bf16 = True
        self.seen = self.num_generations


class Accelerator:
    num_processes, process_index, device = 1, 0, torch.device("cpu")

    def gather(self, tensor):
        return tensor

    def reduce(self, tensor, reduction):
        assert reduction == "mean"
        return tensor / self.num_processes

    def unwrap_model(self, model):
        return getattr(model, "wrapped", model)

    autocast = staticmethod(nullcontext)


class GRPOTrainer:
    """What TRL's does around the methods that are replaced."""

    def __init__(self, model, reward_funcs=None, args=None, train_dataset=None, **settings):
        self.args = types.SimpleNamespace(**DEFAULTS | vars(args or GRPOConfig()) | settings)
        for name in ("num_generations", "num_generations_eval", "loss_type", "beta"):
            setattr(self, name, getattr(self.args, name))
        self.model, self.train_dataset = model, train_dataset
        self.accelerator = Accelerator()
        self.importance_sampling_level, self.top_entropy_quantile, self.temperature = "token", 1.0, 0.8
        self.off_policy_mask_threshold = None
        self._entropy_bonus_enabled = self.aux_loss_enabled = self.use_vllm = False
        self.is_fsdp_enabled = self.is_deepspeed_enabled = False
        for name, value in settings.items():
            setattr(self, name, value)
        self.epsilon_low, self.epsilon_high = 0.1, 0.3
        self.max_completion_length, self.current_gradient_accumulation_steps = 8, 2
        self.reward_weights = torch.tensor([1.0, 2.0])
        self._logs, self._metrics = {"advantages": [9.0]}, {"train": defaultdict(list), "eval": defaultdict(list)}
        self._tokenizer = types.SimpleNamespace(pad_token_id=0)
        self.state = types.SimpleNamespace(global_step=0)
        self.done = []

    def _calculate_rewards(self, inputs, *, scale):
        return inputs * scale

    def _generate_and_score_completions(self, inputs):
        self.done.append("generated")
        self._calculate_rewards(self.judged, scale=1)
        self._logs["advantages"].extend([0.5] * len(self.judged))
        return dict(self.batch)

    def _compute_loss(self, model, inputs):
        return "TRL's own"

    def _generate(self, prompts):
        return self.head.active, prompts

    def _save(self, output_dir=None, state_dict=None):
        self.done.append(("saved", output_dir, state_dict, type(self.model.get_output_embeddings()).__name__))

    def _save_optimizer_and_scheduler(self, output_dir):
        self.done.append(("optimizer", output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint):
        self.done.append(("loaded", checkpoint))

    def _load_from_checkpoint(self, checkpoint, model=None):
        self.done.append(("resumed", checkpoint, model, type(self.model.get_output_embeddings()).__name__))


@contextmanager
def use_adapter(model, adapter_name):
    model.asked = adapter_name
    yield


@contextmanager
def imported(**trl):
    """A module of its own, which stands on what is given as TRL; what others have imported stays."""
    with pytest.MonkeyPatch.context() as patch:
        utils = types.ModuleType("trl.trainer.utils")
        utils.use_adapter = use_adapter
        given = types.ModuleType("trl")
        vars(given).update(trl)
        for name, module in {
            "trl": given,
            "trl.trainer": types.ModuleType("trl.trainer"),
            utils.__name__: utils,
        }.items():
            patch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location(NAME, PLACE)
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, NAME, module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def ours():
    with imported(GRPOConfig=GRPOConfig, GRPOTrainer=GRPOTrainer) as module:
        yield module


def tiny(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def adapted(*, off=False):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    if off:
        model.base_model.disable_adapter_layers()
    return model


BATCH = {  # prompts padded on the left, completions on the right, one that stops at once
    "prompt_ids": torch.tensor([[0, 3, 4], [5, 6, 7], [0, 0, 8]]),
    "prompt_mask": torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1]]),
    "completion_ids": torch.tensor([[2, 9, 4, 1], [3, 1, 0, 0], [0, 0, 0, 0]]),
    "completion_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]),
}
MASK = BATCH["completion_mask"].bool()


def plain_log_probs(model, batch=BATCH, temperature=0.8):
    """By whole rows, one after the other."""
    found = torch.zeros(batch["completion_ids"].shape)
    for row in range(len(found)):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        answer = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        if not len(answer):
            continue
        logits = model(torch.cat([prompt, answer]).unsqueeze(0)).logits[0, len(prompt) - 1 : -1] / temperature
        found[row, : len(answer)] = logits.log_softmax(-1).gather(-1, answer.unsqueeze(-1)).squeeze(-1)
    return found


def test_without_trl_it_is_said_what_to_install():
    with pytest.raises(MissingExtra, match="TRL"), imported():
        pass


def test_scores_are_those_of_each_row_alone(ours):
    model = tiny().eval()
    scores = ours._scores(model, BATCH, 0.8, top=2, entropies=True)
    assert_close(scores.log_probs, plain_log_probs(model), rtol=1e-4, atol=1e-5)
    assert scores.top_ids.shape == (3, 4, 2) and scores.entropies.shape == (3, 4)


def test_a_wrapper_is_called_and_its_model_is_looked_into(ours):
    wrapped = ours._Wrapped(lambda **given: given, types.SimpleNamespace(config="its own"))
    assert wrapped(a=1) == {"a": 1} and wrapped.config == "its own"


def test_configurations_take_floats_of_32_bits_without_an_accelerator(ours, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert ours.ObjectiveConfig(use_cpu=True).bf16 is False
    assert ours.ObjectiveConfig(use_cpu=False).bf16 is True
    assert ours.ObjectiveConfig(use_cpu=True, bf16=True).bf16 is True
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert ours.ObjectiveConfig(use_cpu=False).bf16 is False
    for asked, seen in ((1, 2), (None, 2), (2, 2), (5, 5)):
        config = ours.SPPOConfig(num_generations=asked)
        assert (config.num_generations, config.seen) == (asked, seen)
    assert ours.SPPOConfig().num_generations == 1 and ours.SPPOConfig().delta == 3
    with pytest.raises(BadInput, match="clip_mode"):
        ours.APOConfig(clip_mode="beside")
    with pytest.raises(BadInput, match="head_advantage"):
        ours.R2POConfig(head_advantage="luck")


def test_what_is_not_said_is_the_papers(ours):
    def of(config, *names):
        return [getattr(config, name) for name in names]

    names = ("num_generations", "delta", "critic_learning_rate", "critic_batch_size", "normalize")
    assert of(ours.SPPOConfig(), *names) == [1, 3.0, 5e-6, None, False]
    names = ("push", "pull", "anchors", "clip_mode", "inclusive")
    assert of(ours.APOConfig(), *names) == [1.05, 0.1, 8, "inside", False]
    names = ("loss_type", "beta", "use_bias_correction_kl", "head_advantage", "head_steps", "policy_steps")
    assert of(ours.R2POConfig(), *names, "importance_cap") == ["grpo", 0.04, False, "task", 20, 40, None]


def clipped(log_probs, old, advantages, mask):
    return policy_loss.clipped_tokens(log_probs, old, advantages, mask)


def test_a_function_that_a_trainer_has_of_its_own_is_refused(ours):
    model = tiny()
    for trainer, name in (
        (ours.SPPOTrainer, "advantage_fn"),
        (ours.R2POTrainer, "advantage_fn"),
        (ours.APOTrainer, "policy_loss_fn"),
    ):
        with pytest.raises(BadInput, match=name):
            trainer(model, **{name: clipped})
    assert ours.ObjectiveTrainer(model, advantage_fn=clipped).advantage_fn is clipped
    assert ours.R2POTrainer(model, policy_loss_fn=clipped).policy_loss_fn is clipped


@pytest.mark.parametrize(
    "name, allowed, refused",
    [
        ("loss_type", "luspo", "cispo"),
        ("importance_sampling_level", "token", "sequence"),
        ("delta", None, 0.0001),
        ("top_entropy_quantile", 1, 0.9),
        ("off_policy_mask_threshold", None, 0.5),
        ("_entropy_bonus_enabled", False, True),
        ("aux_loss_enabled", False, True),
    ],
)
def test_settings_of_trls_own_losses_are_refused_beside_another_loss(ours, name, allowed, refused):
    ours.ObjectiveTrainer(None, policy_loss_fn=clipped, **{name: allowed})
    ours.ObjectiveTrainer(None, **{name: refused})
    with pytest.raises(BadInput, match=r"belongs to TRL's own losses"):
        ours.ObjectiveTrainer(None, policy_loss_fn=clipped, **{name: refused})


def test_too_few_prompts_for_a_batch_are_refused(ours):
    ours.ObjectiveTrainer(None, None, None, ["a", "b"])  # 4 responses, 2 a prompt
    ours.ObjectiveTrainer(None, None, None, iter(["a"]))  # of no known length
    with pytest.raises(BadInput, match="There are 1 prompts, but a generation batch takes 2"):
        ours.ObjectiveTrainer(None, None, None, ["a"])


def moded(training):
    return types.SimpleNamespace(training=training)


def test_advantages_replace_trls_in_the_batch_and_in_the_log(ours):
    seen = []

    def advantage(rewards):
        seen.append(rewards)
        return 10 * rewards

    nan = torch.nan
    trainer = ours.ObjectiveTrainer(moded(True), advantage_fn=advantage)
    trainer.judged = torch.tensor([[1.0, 1.0], [nan, 2.0], [nan, nan], [0.0, nan], [nan, 0.5], [-1.0, 1.0]])
    trainer.batch = {"advantages": None, "kept": 1}
    trainer.accelerator.process_index = 1
    batch = trainer._generate_and_score_completions([{}] * 2)
    assert torch.equal(seen[0].nan_to_num(99), torch.tensor([[3.0, 4.0], [99.0, 0.0], [1.0, 1.0]]))
    assert batch["advantages"].tolist() == [0, 0] and batch["kept"] == 1  # rows 2 and 3, nobody having judged the first
    assert trainer._logs["advantages"] == [9, 30, 40, 0, 0, 10, 10]
    metrics = trainer._metrics["train"]
    assert metrics["zero_advantage_share"] == [pytest.approx(2 / 6)]
    assert metrics["mean_absolute_advantage"] == [pytest.approx(15)]
    trainer.accelerator.process_index = 2
    assert trainer._generate_and_score_completions([{}] * 2)["advantages"].tolist() == [10, 10]
    trainer.model.training = False
    trainer._generate_and_score_completions([{}] * 2)
    assert seen[-1].shape == (2, 3) and len(trainer._metrics["eval"]["zero_advantage_share"]) == 1


def test_an_advantage_that_is_no_number_is_none(ours):
    trainer = ours.ObjectiveTrainer(moded(True), advantage_fn=lambda rewards: rewards / rewards.sum(1, keepdim=True))
    trainer.judged, trainer.batch = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.5]]), {}
    assert trainer._generate_and_score_completions([{}] * 4)["advantages"].tolist() == [0, 0, 0.75, 0.25]


def test_advantages_of_another_number_are_refused_and_without_a_function_trls_stay(ours):
    trainer = ours.ObjectiveTrainer(moded(True), advantage_fn=lambda rewards: rewards[:, :1])
    trainer.judged, trainer.batch = torch.ones(4, 2), {"advantages": "TRL's"}
    with pytest.raises(BadInput, match=r"made \(2,\) of 4 rewards"):
        trainer._generate_and_score_completions([{}] * 4)
    trainer = ours.ObjectiveTrainer(moded(True))
    trainer.judged, trainer.batch = torch.ones(4, 2), {"advantages": "TRL's"}
    assert trainer._generate_and_score_completions([{}] * 4)["advantages"] == "TRL's"
    assert trainer._compute_loss(None, {}) == "TRL's own"


def test_what_nobody_measured_is_not_averaged(ours):
    trainer = ours.ObjectiveTrainer(moded(True))
    trainer._note(a=torch.tensor([1.0, torch.nan, 3.0]), b=torch.tensor(torch.nan))
    assert dict(trainer._metrics["train"]) == {"a": [2.0]}


def losses_of(kind, total, sums, means, tokens, training):
    """As TRL averages [rows]; 2 micro-batches, 5 a generation, 8 tokens at most, 3 processes, 30 tokens in the batch."""
    accumulated = 2 if training else 1
    if kind == "dapo":
        return total / (30 / 3 * (accumulated / 5 if training else 1))
    by = {"grpo": means.sum() / 3, "bnpo": total / tokens, "dr_grpo": sums.sum() / 8 / 3, "luspo": sums.sum() / 3}
    return by[kind] / accumulated


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dapo", "dr_grpo", "luspo"])
def test_losses_are_averaged_as_trl_averages_its_own(ours, kind, training):
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    log_probs, old, reference, entropies = -draw(3, 4), -draw(3, 4), -draw(3, 4), draw(3, 4)
    given, advantages, ratio = {}, torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64), draw(3, 1)
    tools = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1]])

    def function(*arguments):
        given["all"] = arguments
        return arguments[2] * arguments[0], {"mine": torch.tensor(7.0)}

    trainer = ours.ObjectiveTrainer(moded(training), policy_loss_fn=function, loss_type=kind, beta=0.25)
    trainer.accelerator.num_processes = 3

    def model_says(model, ids, attention, width, *, compute_entropy, **named):
        given["ids"], given["attention"], given["named"] = ids, attention, named
        assert (model, width, compute_entropy) == ("wrapped", 4, True)
        return log_probs, entropies, None

    trainer._get_per_token_logps_and_entropies = model_says
    inputs = BATCH | {
        "advantages": advantages,
        "tool_mask": tools,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "importance_sampling_ratio": ratio,
        "num_items_in_batch": torch.tensor(30.0),
        "image_sizes": "sizes",
    }
    loss = trainer._compute_loss("wrapped", inputs)
    mask = MASK & tools.bool()
    found_log_probs, found_old, found_advantages, found_mask = given["all"]
    assert torch.equal(found_mask, mask) and found_old is old and found_log_probs is log_probs
    assert torch.equal(found_advantages, advantages.unsqueeze(1) * mask)
    gap = reference - log_probs
    divergence = (gap.exp() - 1 - gap) * (log_probs - old).exp()
    values = (found_advantages * log_probs * ratio + 0.25 * divergence) * mask
    means = values.sum(1) / mask.sum(1).clamp(min=1)
    assert_close(loss, losses_of(kind, values.sum(), values.sum(1), means, mask.sum(), training))
    metrics = trainer._metrics["train" if training else "eval"]
    assert metrics["mine"] == [7] and metrics["entropy"] == [pytest.approx(entropies[mask].mean().item())]
    assert metrics["kl"] == [pytest.approx(divergence[mask].mean().item())]
    assert torch.equal(given["ids"][0], torch.tensor([0, 3, 4, 2, 9, 4, 1]))
    assert torch.equal(given["attention"][1], torch.tensor([1, 1, 1, 1, 1, 0, 0]))
    assert given["named"]["image_sizes"] == "sizes" and len(given["named"]) == 10
    assert given["named"]["pixel_values"] is None


def test_losses_with_nothing_beside_them(ours):
    """No KL, no old pass, no entropies: the old log-probabilities are this pass's, without a gradient."""
    log_probs = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]], requires_grad=True)
    mask = torch.tensor([[True, True], [False, False]])
    trainer = ours.ObjectiveTrainer(moded(True), policy_loss_fn=clipped, loss_type="bnpo")
    old = trainer._old({}, log_probs)
    assert torch.equal(old, log_probs) and not old.requires_grad

    def averaged(losses, **inputs):
        return trainer._averaged(losses, log_probs, None, {}, mask, inputs).item()

    assert averaged(torch.full((2, 2), 3.0)) == 1.5
    assert dict(trainer._metrics["train"]) == {}
    trainer.beta, trainer.args.use_bias_correction_kl = 0.5, False
    reference = log_probs.detach() + 1
    value = averaged(torch.zeros(2, 2), ref_per_token_logps=reference, old_per_token_logps=log_probs.detach() - 1)
    assert value == pytest.approx(0.5 * (torch.e - 2) / 2)
    for kind, expected in (("grpo", 0), ("bnpo", 0), ("dapo", 0)):  # nothing counts: 0, not nan
        trainer.loss_type, trainer.beta = kind, 0.0
        nothing = torch.zeros_like(mask)
        items = {"num_items_in_batch": torch.tensor(0.0)}
        assert trainer._averaged(torch.ones(2, 2), log_probs, None, {}, nothing, items).item() == expected
    with pytest.raises(BadInput, match=r"gave a loss of shape \(2,\), expected one for each token, \(2, 2\)"):
        averaged(torch.ones(2))


# SPPO.


def sppo_trainer(ours, model=None, **settings):
    model = model or tiny().train()
    return ours.SPPOTrainer(model, None, ours.SPPOConfig(critic_learning_rate=0.01, **settings))


def test_sppos_critic_is_a_copy_of_the_policys_body(ours):
    model = tiny().train().requires_grad_(False)
    trainer = sppo_trainer(ours, model)
    assert not trainer.critic.training and all(each.requires_grad for each in trainer.critic.parameters())
    own, body = model.base_model.state_dict(), trainer.critic.body.state_dict()
    assert_close(body, own)
    assert all(body[name].data_ptr() != own[name].data_ptr() for name in own)
    assert torch.equal(trainer.critic.head.weight, Critic(model.base_model, seed=3).head.weight)
    (group,) = trainer.critic_optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.01, 0.25)
    given = Critic(tiny(1).base_model, seed=5)
    assert ours.SPPOTrainer(model, critic=given).critic is given
    with pytest.raises(BadInput, match="has an adapter"):
        sppo_trainer(ours, adapted())
    assert ours.SPPOTrainer(adapted(), critic=given).critic is given


@pytest.mark.parametrize("training", [True, False])
def test_sppos_advantages_are_against_the_critic_before_it_learns(ours, training):
    trainer = sppo_trainer(ours, tiny().train(training))
    rewards = torch.tensor([1.0, torch.nan, 0.25])
    prompts = [[3, 4], [5, 6, 7], [8]]
    with torch.no_grad():
        p = prompt_logits(trainer.critic, prompts, 0, torch.device("cpu")).sigmoid()
    fitted = []
    trainer._fit_critic = lambda *arguments: fitted.append(arguments)
    found = trainer.compute_advantages(rewards, BATCH)
    assert_close(found, torch.stack([1 - p[0], torch.tensor(0.0), 0.25 - p[2]]))
    mode = "train" if training else "eval"
    expected = ((1 - p[0]) ** 2 + (0.25 - p[2]) ** 2) / 2
    assert trainer._metrics[mode]["critic_brier"] == [pytest.approx(expected.item(), rel=1e-5)]
    assert len(fitted) == training
    if training:
        assert fitted[0][0] == prompts and torch.equal(fitted[0][1].nan_to_num(9), rewards.nan_to_num(9))
    trainer.args.normalize = True
    assert_close(trainer.compute_advantages(rewards, BATCH)[0], (1 - p[0]) / (p[0] * (1 - p[0])).sqrt())


def test_sppos_critic_learns_from_its_own_processs_part(ours):
    trainer = sppo_trainer(ours)
    trainer.accelerator.process_index = 1
    trainer.accelerator.gather = lambda tensor: torch.cat([tensor, tensor]) if tensor.dim() else tensor
    fitted = []
    trainer._fit_critic = lambda prompts, rewards: fitted.append(rewards.tolist())
    trainer.compute_advantages(torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]), BATCH)
    assert fitted == [pytest.approx([0.3, 0.4, 0.5])]


@pytest.mark.parametrize("size", [None, 3])
def test_sppos_critic_takes_one_step_a_part_and_none_of_what_nobody_judged(ours, size):
    """Against the same steps by hand; the last part is smaller than the others."""
    import copy

    trainer = sppo_trainer(ours, critic_batch_size=size)
    trainer.accelerator.num_processes = 2  # the mean over two, of which the other has no gradient
    trainer.args.max_grad_norm = 0.1
    critic = copy.deepcopy(trainer.critic)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=0.01, weight_decay=0.25)
    prompts, rewards = [[3, 4], [5, 6, 7], [8], [9], [2]], torch.tensor([1.0, 0.5, torch.nan, torch.nan, 0.0])
    losses = []
    for first in range(0, 5, size or 2):
        part = rewards[first : first + (size or 2)]
        judged = ~part.isnan()
        logits = prompt_logits(critic, prompts[first : first + (size or 2)], 0, torch.device("cpu"))
        loss = sppo.critic_loss(logits[judged], part[judged]) if judged.any() else 0 * logits.sum()
        (loss / 2).backward()
        torch.nn.utils.clip_grad_norm_(critic.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    trainer._fit_critic(prompts, rewards)
    assert_close(trainer.critic.state_dict(), critic.state_dict())
    assert trainer._metrics["train"]["critic_loss"] == pytest.approx(losses)
    assert all(each.grad is None for each in trainer.critic.parameters())


def test_sppos_critic_is_saved_and_resumed_with_its_optimizer(ours, tmp_path):
    trainer = sppo_trainer(ours)
    trainer.args.output_dir = str(tmp_path / "out")
    trainer._fit_critic([[3, 4], [5]], torch.tensor([1.0, 0.0]))
    trainer._save(str(tmp_path / "a"), "state")
    trainer._save_optimizer_and_scheduler(str(tmp_path / "a"))
    trainer._save()
    assert (tmp_path / "out" / "critic").is_dir()
    assert trainer.done[:2] == [("saved", str(tmp_path / "a"), "state", "Linear"), ("optimizer", str(tmp_path / "a"))]
    other = sppo_trainer(ours, tiny(1).train())
    other._load_optimizer_and_scheduler(None)
    assert other.done == [("loaded", None)] and not other.critic_optimizer.state_dict()["state"]
    other._load_optimizer_and_scheduler(str(tmp_path / "a"))
    for each in (trainer, other):
        each._fit_critic([[6, 2], [7]], torch.tensor([0.5, 0.0]))
    assert_close(other.critic.state_dict(), trainer.critic.state_dict())
    trainer.args.should_save = False
    (tmp_path / "b").mkdir()
    trainer._save_optimizer_and_scheduler(str(tmp_path / "b"))
    assert list((tmp_path / "b").iterdir()) == []


# APO.


def test_apos_reference_is_the_model_as_it_came(ours):
    model = tiny().train()
    trainer = ours.APOTrainer(model, None, ours.APOConfig(anchors=3))
    with torch.no_grad():
        expected = ours._scores(tiny().eval(), BATCH, 0.8, top=3)
        model.lm_head.weight.add_(torch.randn(12, 8, generator=torch.Generator().manual_seed(1)))
    trainer.judged, trainer.batch = torch.ones(4, 2), dict(BATCH)
    batch = trainer._generate_and_score_completions([{}] * 3)
    assert torch.equal(batch["anchor_ids"], expected.top_ids) and batch["anchor_ids"].shape == (3, 4, 3)
    assert_close(batch["anchor_probs"], expected.top_probs)
    assert torch.equal(batch["prompt_ids"], BATCH["prompt_ids"]) and not batch["anchor_probs"].requires_grad
    trainer.args.anchors = 99
    assert trainer._generate_and_score_completions([{}] * 3)["anchor_ids"].shape == (3, 4, 12)


@pytest.mark.parametrize("names, asked", [(("default",), None), (("default", "ref"), "ref")])
def test_apos_reference_of_an_adapter_is_what_lies_under_it(ours, names, asked):
    model = adapted()
    for name in names[1:]:
        model.add_adapter(name, model.peft_config["default"])
    trainer = ours.APOTrainer(model, None, ours.APOConfig())
    with trainer._reference() as reference:
        assert reference is model and model.asked == asked


def test_apo_refuses_models_in_pieces_and_settings_of_trls_losses(ours):
    for name in ("is_fsdp_enabled", "is_deepspeed_enabled"):
        with pytest.raises(BadInput, match="use DDP"):
            ours.APOTrainer(tiny(), None, ours.APOConfig(), None, **{name: True})
    with pytest.raises(BadInput, match="delta"):
        ours.APOTrainer(tiny(), None, ours.APOConfig(), None, delta=2.0)


@pytest.mark.parametrize("clip_mode, inclusive", [("inside", False), ("outside", True)])
def test_apos_loss_is_that_of_its_parts(ours, clip_mode, inclusive):
    settings = {"push": 1.5, "pull": 0.4, "clip_mode": clip_mode, "inclusive": inclusive}
    trainer = ours.APOTrainer(tiny().eval(), None, ours.APOConfig(anchors=3, loss_type="bnpo", **settings))
    start = ours._scores(tiny(1).eval(), BATCH, 0.8, top=3)
    anchor_ids, anchor_probs = start.top_ids, start.top_probs
    anchor_ids[0, 0, 1] = BATCH["completion_ids"][0, 0]
    model = tiny(2).eval()
    advantages = torch.tensor([1.0, -2.0, 1.0])
    old = (start.log_probs - 0.1).detach()
    inputs = BATCH | {
        "anchor_ids": anchor_ids,
        "anchor_probs": anchor_probs,
        "advantages": advantages,
        "old_per_token_logps": old,
    }
    loss = trainer._compute_loss(model, inputs)
    now = ours._scores(model, BATCH, 0.8, gather=anchor_ids)
    losses, stats = apo.anchored_tokens(
        now.log_probs,
        old,
        now.gathered,
        anchor_probs,
        anchor_ids == BATCH["completion_ids"].unsqueeze(-1),
        advantages.unsqueeze(-1) * MASK,
        MASK,
        clip_low=0.1,
        clip_high=0.3,
        **settings,
    )
    assert_close(loss, losses[MASK].mean())
    assert trainer._metrics["eval"]["support_coverage"] == [pytest.approx(stats["support_coverage"].item())]
    assert trainer._metrics["eval"]["entropy"][0] > 0


# R2PO.


def r2po_trainer(ours, model=None, **settings):
    return ours.R2POTrainer(model or tiny().train(), None, ours.R2POConfig(**settings))


def test_r2po_wants_one_process_of_transformers(ours):
    trainer = r2po_trainer(ours)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(trainer.head.first, 0.02 * torch.randn(8, 8, generator=generator))
    assert trainer.model.get_output_embeddings() is trainer.head and len(trainer._policy) == len(
        list(tiny().parameters())
    )
    with pytest.raises(BadInput, match="on one process"):
        ours.R2POTrainer(tiny(), use_vllm=True)

    class Many(ours.R2POTrainer):
        @property
        def accelerator(self):
            return types.SimpleNamespace(num_processes=2)

        @accelerator.setter
        def accelerator(self, value):
            pass

    with pytest.raises(BadInput, match="on one process"):
        Many(tiny())


def test_r2po_learns_in_turn(ours):
    trainer = r2po_trainer(ours, head_steps=2, policy_steps=3)
    policy = dict(trainer.model.named_parameters())
    own = {name: policy.pop(name) for name in ("lm_head.first", "lm_head.second")}
    turns = []
    for trainer.state.global_step in range(11):
        trainer._choose_stage()
        turns.append(trainer._head_learns)
        assert {each.requires_grad for each in own.values()} == {trainer._head_learns}
        assert {each.requires_grad for each in policy.values()} == {not trainer._head_learns}
    assert turns == [True, True, False, False, False] * 2 + [True]


@pytest.mark.parametrize("step, training, cap", [(0, True, 1.25), (2, True, 1.25), (2, True, None), (2, False, 1.25)])
def test_r2po_weighs_what_its_head_sampled_while_the_policy_learns(ours, step, training, cap):
    trainer = r2po_trainer(ours, tiny().train(training), head_steps=2, policy_steps=3, importance_cap=cap)
    with torch.no_grad():
        trainer.head.second.normal_(std=60, generator=torch.Generator().manual_seed(1))
    trainer.state.global_step = step
    trainer.judged, trainer.num_generations_eval = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), 2
    trainer.batch = dict(BATCH)
    trainer.accelerator.process_index = 0
    batch = trainer._generate_and_score_completions([{}] * 3)
    own = r2po.task_advantages(torch.tensor([[1.0, 2.0], [3.0, 0.0]])).flatten()[:3]
    if not (training and step == 2 and cap):
        assert_close(batch["advantages"], own)
        assert trainer._head_learns is (training and step == 0)
        return
    with torch.no_grad():
        old = ours._scores(trainer.model, BATCH, 0.8).log_probs
        with trainer.head.rollouts():
            sampled = ours._scores(trainer.model, BATCH, 0.8).log_probs
    weights = (old - sampled).exp().clamp(max=1.25)
    assert weights[MASK].min() < 0.99 and (weights == 1.25).any()
    assert_close(batch["advantages"], own.unsqueeze(-1) * weights)
    assert not trainer.head.active


def test_r2po_generates_with_its_head_and_evaluates_without(ours):
    trainer = r2po_trainer(ours)
    assert trainer._generate(["p"]) == (True, ["p"])
    trainer.model.eval()
    assert trainer._generate(["p"]) == (False, ["p"]) and not trainer.head.active


def test_r2pos_head_is_paid_for_rarity_where_it_learns_alone(ours):
    rewards = torch.tensor([1.0, 1.0, 0.0, 3.0, 2.0, 2.0])
    task, rare = (each(rewards.view(2, 3)).flatten() for each in (r2po.task_advantages, r2po.rarity_advantages))
    assert not torch.allclose(task, rare)
    for paid, learns, expected in (("rarity", True, rare), ("rarity", False, task), ("task", True, task)):
        trainer = r2po_trainer(ours, head_advantage=paid)
        trainer.num_generations, trainer._head_learns = 3, learns
        assert_close(trainer.compute_advantages(rewards, {}), expected)


def scored(trainer, model):
    ids = torch.cat([BATCH["prompt_ids"], BATCH["completion_ids"]], dim=1)
    attention = torch.cat([BATCH["prompt_mask"], BATCH["completion_mask"]], dim=1)
    with torch.no_grad():
        return trainer._get_per_token_logps_and_entropies(model, ids, attention, 4, compute_entropy=True)


def test_r2pos_log_probabilities_are_with_the_head_while_it_learns(ours):
    trainer = r2po_trainer(ours)
    with torch.no_grad():
        trainer.head.second.normal_(std=20, generator=torch.Generator().manual_seed(0))
    plain = plain_log_probs(tiny().eval())
    wrapper = types.SimpleNamespace(wrapped=trainer.model)
    assert trainer.accelerator.unwrap_model(wrapper) is trainer.model
    for learns, training, with_head in ((True, True, True), (False, True, False), (True, False, False)):
        trainer._head_learns = learns
        trainer.model.train(training)
        log_probs, entropies, nothing = scored(trainer, trainer.model)
        assert nothing is None and entropies.shape == (3, 4)
        assert torch.allclose(log_probs, plain, atol=1e-4) != with_head
    trainer._head_learns = True
    trainer.model.train()
    assert_close(scored(trainer, tiny())[0], plain, rtol=1e-4, atol=1e-4)  # a reference that is a model of its own


def test_r2pos_reference_of_an_adapter_is_without_the_head(ours):
    model = adapted().train()
    trainer = r2po_trainer(ours, model)
    assert trainer._adapters == ["default"] and len(trainer._policy) == 2
    with torch.no_grad():
        trainer.head.second.normal_(std=20, generator=torch.Generator().manual_seed(0))
    trainer._head_learns = True
    plain = plain_log_probs(tiny().eval())
    assert not torch.allclose(scored(trainer, model)[0], plain, atol=1e-2)
    with model.disable_adapter():
        assert trainer._acting_adapters() == []
        assert_close(scored(trainer, model)[0], plain, rtol=1e-4, atol=1e-4)
    assert r2po_trainer(ours)._adapters == []


def test_r2po_saves_the_plain_model_and_its_head_beside_it(ours, tmp_path):
    trainer = r2po_trainer(ours)
    trainer.args.output_dir = str(tmp_path)
    with torch.no_grad():
        trainer.head.second.normal_(generator=torch.Generator().manual_seed(0))
    (tmp_path / "a").mkdir()
    trainer._save(str(tmp_path / "a"), {"with": "the head"})
    trainer._save()
    assert trainer.done == [("saved", str(tmp_path / "a"), None, "Linear"), ("saved", None, None, "Linear")]
    assert trainer.model.get_output_embeddings() is trainer.head
    assert (tmp_path / "rollout_head.safetensors").is_file()
    other = r2po_trainer(ours)
    other._load_from_checkpoint(str(tmp_path / "a"), "model")
    assert other.done == [("resumed", str(tmp_path / "a"), "model", "Linear")]
    assert torch.equal(other.head.second, trainer.head.second) and other.model.get_output_embeddings() is other.head
    with pytest.raises(ZeroDivisionError), other._plain():
        raise ZeroDivisionError
    assert other.model.get_output_embeddings() is other.head
