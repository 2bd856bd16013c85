"""The trainers inside TRL, run for real on a CPU: against TRL's own GRPO where they must agree, else against the parts."""

import copy
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput

pytestmark = pytest.mark.slow
trl = pytest.importorskip("trl", reason="needs TRL: pip install 'equipoise[trl]'")

from datasets import Dataset  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from equipoise.reinforcement import apo, group_baselines, policy_loss, r2po, sppo  # noqa: E402
from equipoise.reinforcement import trl as ours  # noqa: E402

WORDS = ["<pad>", "<end>", *"abcdefghij"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a small Llama in float32 and a tokenizer of twelve words."""
    folder = tmp_path_factory.mktemp("model")
    vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", eos_token="<end>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def share_of_a(completions, **_):
    """In [0, 1]: how much of the answer is the letter a."""
    return [text.split().count("a") / max(len(text.split()), 1) for text in completions]


PROMPTS = Dataset.from_list([{"prompt": text} for text in ("b c", "d", "e f g h", "i j", "c", "b b b") * 4])


def trained(trainer, config, model, folder, *, reward=share_of_a, arguments=None, resume=None, **settings):
    """The trainer after its steps."""
    defaults = {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 0.5,
        "optim": "sgd",
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "bf16": False,
    }
    args = config(output_dir=str(folder), **defaults | settings)
    made = trainer(model, reward, args, PROMPTS, **arguments or {})
    made.train(resume_from_checkpoint=resume)
    return made


def weights(trainer):
    return {name: each.detach().clone() for name, each in trainer.model.state_dict().items()}


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "grpo", "beta": 0.1},
        {"loss_type": "bnpo", "beta": 0.1, "use_bias_correction_kl": False, "num_iterations": 2, "max_steps": 3},
        {"loss_type": "dapo", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"loss_type": "dapo", "steps_per_generation": 2, "per_device_train_batch_size": 4},
        {"loss_type": "dr_grpo", "num_iterations": 2, "max_steps": 3, "mask_truncated_completions": True},
    ],
)
def test_with_the_same_functions_it_is_trls_own(model, tmp_path, settings):
    """GRPO's advantage and clipped loss as functions: the same weights after steps of TRL's own trainer."""
    functions = {
        "advantage_fn": partial(group_baselines.grpo, epsilon=1e-4),
        "policy_loss_fn": policy_loss.clipped_tokens,
    }
    theirs = trained(trl.GRPOTrainer, trl.GRPOConfig, model, tmp_path / "theirs", **settings)
    found = trained(
        ours.ObjectiveTrainer, ours.ObjectiveConfig, model, tmp_path / "ours", arguments=functions, **settings
    )
    assert_close(weights(found), weights(theirs), rtol=1e-4, atol=1e-6)
    start = AutoModelForCausalLM.from_pretrained(model).state_dict()
    assert not torch.allclose(weights(found)["lm_head.weight"], start["lm_head.weight"], atol=1e-3)
    rows = [row for row in found.state.log_history if "clip_fraction_low" in row]
    assert rows[0]["ratio"] == pytest.approx(1, abs=1e-6) and rows[0]["clip_fraction_low"] == 0
    assert list(found._logs["advantages"]) == pytest.approx(list(theirs._logs["advantages"]), abs=1e-5)


def test_another_advantage_reaches_the_loss_and_the_log(model, tmp_path):
    seen = {}

    def advantage(rewards):
        seen["rewards"], seen["made"] = rewards, 3 * group_baselines.rloo(rewards)
        return seen["made"]

    found = trained(
        ours.ObjectiveTrainer, ours.ObjectiveConfig, model, tmp_path, max_steps=1, arguments={"advantage_fn": advantage}
    )
    assert seen["rewards"].shape == (2, 4)
    logged = list(found._logs["rewards"]["share_of_a"])
    assert_close(seen["rewards"].flatten().tolist(), logged)
    assert_close(list(found._logs["advantages"]), seen["made"].flatten().tolist())
    buffered = torch.cat([batch["advantages"] for batch in found._buffered_inputs])
    assert sorted(buffered.tolist()) == pytest.approx(sorted(seen["made"].flatten().tolist()))


def test_responses_that_nobody_judged_have_no_advantage(model, tmp_path):
    def second_unjudged(completions, **_):
        return [None if place == 1 else float(place % 3) for place in range(len(completions))]

    found = trained(
        ours.ObjectiveTrainer,
        ours.ObjectiveConfig,
        model,
        tmp_path,
        reward=second_unjudged,
        max_steps=1,
        arguments={"advantage_fn": lambda rewards: torch.ones_like(rewards)},
    )
    assert list(found._logs["advantages"]) == [1, 0, 1, 1, 1, 1, 1, 1]


class RecordedSPPO(ours.SPPOTrainer):
    """Notes what the critic said before it learnt."""

    def _fit_critic(self, prompts, rewards):
        with torch.no_grad():
            before = self._says(prompts).sigmoid()
        super()._fit_critic(prompts, rewards)
        with torch.no_grad():
            self.noted = (*getattr(self, "noted", ()), (prompts, rewards, before, self._says(prompts).sigmoid()))


def test_sppo(model, tmp_path):
    """One response a prompt; R - p of the critic before its update; saved and resumed with its optimizer."""
    settings = {
        "num_generations": 1,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 2,
        "critic_learning_rate": 1e-2,
    }
    found = trained(RecordedSPPO, ours.SPPOConfig, model, tmp_path / "a", max_steps=3, **settings)
    for prompts, _, before, after in found.noted:
        assert len(prompts) == 8 and before.max() < 1
        assert not torch.equal(before, after)
    prompts, rewards, before, _ = found.noted[-1]
    assert len(set(map(tuple, prompts))) > 1 and len(set(map(len, prompts))) > 1
    assert_close(list(found._logs["advantages"]), sppo.advantages(rewards, before).tolist())
    assert found.noted[0][2].mean() == pytest.approx(0.5, abs=0.05)
    resumed = trained(
        RecordedSPPO,
        ours.SPPOConfig,
        model,
        tmp_path / "a",
        max_steps=3,
        resume=str(tmp_path / "a" / "checkpoint-2"),
        **settings,
    )
    assert_close(resumed.critic.state_dict(), found.critic.state_dict())
    assert_close(weights(resumed), weights(found))


def test_sppo_learns(model, tmp_path):
    """The reward rises, and the critic with it."""
    found = trained(
        RecordedSPPO,
        ours.SPPOConfig,
        model,
        tmp_path,
        max_steps=40,
        num_generations=1,
        per_device_train_batch_size=16,
        optim="adamw_torch",
        learning_rate=1e-2,
        critic_learning_rate=1e-2,
    )
    rewards = [row["reward"] for row in found.state.log_history if "reward" in row]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3
    assert found.noted[-1][3].mean() > found.noted[0][2].mean() + 0.05


def test_sppo_refuses_rewards_outside(model, tmp_path):
    with pytest.raises(BadInput, match=r"rewards\[0\] is -1"):
        trained(
            ours.SPPOTrainer,
            ours.SPPOConfig,
            model,
            tmp_path,
            reward=lambda completions, **_: [-1.0] * len(completions),
        )


class RecordedAPO(ours.APOTrainer):
    """Notes each loss, its batch and the weights it was computed with."""

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self.noted = (*getattr(self, "noted", ()), (loss.item(), inputs, weights(self)))
        return loss


@pytest.mark.parametrize("clip_mode", ["inside", "outside"])
def test_apo(model, tmp_path, clip_mode):
    """Its loss is that of the parts on its batch, from whole softmaxes of the model then and of the model at the start."""
    found = trained(
        RecordedAPO,
        ours.APOConfig,
        model,
        tmp_path,
        max_steps=4,
        anchors=3,
        clip_mode=clip_mode,
        loss_type="grpo",
        num_iterations=2,
    )
    start = AutoModelForCausalLM.from_pretrained(model)
    for step, (loss, batch, at) in enumerate(found.noted):
        now = AutoModelForCausalLM.from_pretrained(model)
        now.load_state_dict(at)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        width = batch["completion_ids"].shape[1]
        with torch.no_grad():
            current, reference = (
                each(ids, attention_mask=attention).logits[:, -width - 1 : -1] for each in (now, start)
            )
        mask, tokens = batch["completion_mask"].bool(), batch["completion_ids"]
        anchor_ids, anchor_probs = apo.anchors(reference, 3)
        log_probs = current.log_softmax(-1)
        chosen = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        expected, stats = apo.anchored_loss(
            chosen,
            batch["old_per_token_logps"],
            log_probs.gather(-1, anchor_ids),
            anchor_probs,
            anchor_ids == tokens.unsqueeze(-1),
            batch["advantages"],
            mask,
            clip_mode=clip_mode,
            aggregate="seq-mean-token-mean",
        )
        assert loss == pytest.approx(expected.item(), abs=1e-5)
        rows = [row for row in found.state.log_history if "support_coverage" in row]
        assert rows[step]["support_coverage"] == pytest.approx(stats["support_coverage"].item(), abs=1e-5)
    assert not torch.equal(found.noted[0][2]["lm_head.weight"], found.noted[2][2]["lm_head.weight"])


def test_apo_without_push_and_pull_is_trls_grpo(model, tmp_path):
    settings = {"max_steps": 3, "num_iterations": 3, "beta": 0.0}
    theirs = trained(trl.GRPOTrainer, trl.GRPOConfig, model, tmp_path / "theirs", **settings)
    found = trained(ours.APOTrainer, ours.APOConfig, model, tmp_path / "ours", push=1.0, pull=0.0, **settings)
    assert_close(weights(found), weights(theirs), rtol=1e-4, atol=1e-6)
    pulled = trained(ours.APOTrainer, ours.APOConfig, model, tmp_path / "pulled", **settings)
    assert not torch.allclose(weights(pulled)["lm_head.weight"], weights(theirs)["lm_head.weight"], atol=1e-4)


def test_apo_with_an_adapter(model, tmp_path):
    """The reference is the model under the adapter: at the start r_anc is 1, later it is not."""
    from peft import LoraConfig

    adapter = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    found = trained(
        RecordedAPO,
        ours.APOConfig,
        model,
        tmp_path,
        max_steps=3,
        arguments={"peft_config": adapter},
        optim="adamw_torch",
        learning_rate=0.1,
    )
    ratios = [row["anchor_ratio"] for row in found.state.log_history if "anchor_ratio" in row]
    assert ratios[0] == pytest.approx(1, abs=1e-5) and max(abs(each - 1) for each in ratios[1:]) > 5e-4


class RecordedR2PO(ours.R2POTrainer):
    """Notes the weights, and whose stage it is, at each loss."""

    def _compute_loss(self, model, inputs):
        self.noted = (*getattr(self, "noted", ()), (self._head_learns, weights(self)))
        return super()._compute_loss(model, inputs)


def test_r2po_stages(model, tmp_path):
    """In turn: what does not learn stays as it is to the bit; what is saved is the plain model, the head beside it."""
    found = trained(
        RecordedR2PO,
        ours.R2POConfig,
        model,
        tmp_path,
        max_steps=6,
        head_steps=2,
        policy_steps=1,
        weight_decay=0.1,
        optim="adamw_torch",
        learning_rate=1e-2,
        head_advantage="rarity",
        importance_cap=2.0,
        save_strategy="steps",
        save_steps=6,
    )
    assert [stage for stage, _ in found.noted] == [True, True, False] * 2
    states = [state for _, state in found.noted] + [weights(found)]
    for (head_learns, before), after in zip(found.noted, states[1:], strict=True):
        for name, value in before.items():
            of_head = name in ("lm_head.first", "lm_head.second")
            assert torch.equal(value, after[name]) or of_head == head_learns, name
    moved = {name for name in states[0] if not torch.equal(states[0][name], states[-1][name])}
    assert {"lm_head.second", "lm_head.base.weight", "model.embed_tokens.weight"} <= moved
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-6")
    assert_close(plain.state_dict()["lm_head.weight"], states[-1]["lm_head.base.weight"])
    assert "lm_head.first" not in plain.state_dict()
    head = r2po.RolloutHead.load(plain, tmp_path / "checkpoint-6" / "rollout_head.safetensors")
    assert_close(head.second.detach(), states[-1]["lm_head.second"])


class RecordedReference(RecordedR2PO):
    """Notes also the reference's log-probabilities of each batch, beside those that the starting model gives it."""

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        with torch.no_grad():
            own = ours._scores(self.start, batch, self.temperature).log_probs
        mask = batch["completion_mask"].bool()
        self.gaps = (*getattr(self, "gaps", ()), (batch["ref_per_token_logps"] - own)[mask].abs().max().item())
        return batch


@pytest.mark.parametrize("kind", ["full", "new adapter", "adapter of before"])
def test_r2pos_reference_is_the_starting_model_and_one_side_learns(model, tmp_path, kind):
    """The KL is to the model that the training began with, without the head; the adapter rests while the head learns."""
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=kind == "new adapter"
    )
    given, arguments = model, {}
    RecordedReference.start = AutoModelForCausalLM.from_pretrained(model)
    if kind == "new adapter":
        arguments = {"peft_config": adapter}
    elif kind == "adapter of before":
        torch.manual_seed(1)
        given = get_peft_model(AutoModelForCausalLM.from_pretrained(model), adapter)
        RecordedReference.start = copy.deepcopy(given)
    found = trained(
        RecordedReference,
        ours.R2POConfig,
        given,
        tmp_path,
        max_steps=6,
        head_steps=2,
        policy_steps=1,
        optim="adamw_torch",
        learning_rate=0.05,
        arguments=arguments | {"processing_class": AutoTokenizer.from_pretrained(model)},
    )
    assert max(found.gaps) < 1e-5
    assert all(each > 1e-3 for each in (found.head.second.abs().max(), found.head.first.abs().max()))
    states = [state for _, state in found.noted] + [weights(found)]
    for (head_learns, before), after in zip(found.noted, states[1:], strict=True):
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved and all(name.endswith(("lm_head.first", "lm_head.second")) == head_learns for name in moved)


def of_length(completions, **_):
    """Three values, so that rarity and size are two orders."""
    return [float(min(len(text.split()), 2)) for text in completions]


@pytest.mark.parametrize("paid", ["rarity", "task"])
def test_r2po_pays_its_head(model, tmp_path, paid):
    settings = {"max_steps": 1, "per_device_train_batch_size": 16, "num_generations": 8, "head_advantage": paid}
    found = trained(ours.R2POTrainer, ours.R2POConfig, model, tmp_path, reward=of_length, **settings)
    rewards = torch.tensor(list(found._logs["rewards"]["of_length"])).view(2, 8)
    functions = {"rarity": r2po.rarity_advantages, "task": r2po.task_advantages}
    assert not torch.allclose(*(each(rewards) for each in functions.values()))
    assert_close(list(found._logs["advantages"]), functions[paid](rewards).flatten().tolist())


def test_r2po_whose_head_never_learns_is_trls_grpo(model, tmp_path):
    """W2 = 0: epsilon 1e-4, ddof 1, k3, mean per response."""
    settings = {"max_steps": 3, "loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False}
    theirs = trained(trl.GRPOTrainer, trl.GRPOConfig, model, tmp_path / "theirs", **settings)
    found = trained(
        ours.R2POTrainer, ours.R2POConfig, model, tmp_path / "ours", head_steps=0, policy_steps=1, **settings
    )
    own = {name.replace("lm_head.base", "lm_head"): each for name, each in weights(found).items()}
    their_weights = weights(theirs)
    assert_close({name: own[name] for name in their_weights}, their_weights, rtol=1e-4, atol=1e-6)
    assert own["lm_head.second"].abs().sum() == 0


def test_what_is_refused(model, tmp_path):
    make = partial(trained, model=model, folder=tmp_path, max_steps=1)
    with pytest.raises(BadInput, match="delta is 3"):
        make(
            ours.ObjectiveTrainer,
            ours.ObjectiveConfig,
            delta=3.0,
            arguments={"policy_loss_fn": policy_loss.clipped_tokens},
        )
    with pytest.raises(BadInput, match="clipped_tokens, not clipped"):
        make(ours.ObjectiveTrainer, ours.ObjectiveConfig, arguments={"policy_loss_fn": policy_loss.clipped})
    with pytest.raises(BadInput, match="advantage_fn would replace"):
        make(ours.SPPOTrainer, ours.SPPOConfig, arguments={"advantage_fn": group_baselines.rloo})
    with pytest.raises(BadInput, match="policy_loss_fn would replace"):
        make(ours.APOTrainer, ours.APOConfig, arguments={"policy_loss_fn": policy_loss.clipped_tokens})
    with pytest.raises(BadInput, match="advantage_fn made"):
        make(ours.ObjectiveTrainer, ours.ObjectiveConfig, arguments={"advantage_fn": lambda rewards: rewards.mean(-1)})
    with pytest.raises(BadInput, match="24 prompts, but a generation batch takes 26"):
        make(ours.SPPOTrainer, ours.SPPOConfig, num_generations=1, per_device_train_batch_size=26)
    with pytest.raises(BadInput, match="clip_mode"):
        ours.APOConfig(str(tmp_path), clip_mode="beside")


def test_default_precision_works_here(tmp_path):
    assert ours.ObjectiveConfig(str(tmp_path)).bf16 is torch.accelerator.is_available()
    assert ours.SPPOConfig(str(tmp_path), use_cpu=True).bf16 is False
