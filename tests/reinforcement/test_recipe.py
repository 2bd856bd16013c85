"""The vocabulary: presets, what counts with which method, and what is refused."""

import math
from functools import cache

import pytest

from equipoise.core.errors import BadInput
from equipoise.reinforcement.recipe import ADVANTAGES, METHODS, Advantage, Recipe, recipe
from reinforcement_world import ALL, SMALL, equal, reinforced, weights


def test_every_preset():
    assert {name: METHODS[name] for name in METHODS} == {
        "sppo": {"advantage": "sppo", "dual_clip": 3.0},
        "ppo": {"advantage": "gae"},
        "ppo-bce": {"advantage": "gae-bce"},
        "grpo": {"advantage": "grpo", "aggregate": "seq-mean-token-mean"},
        "dr-grpo": {"advantage": "dr-grpo", "aggregate": "seq-mean-token-sum-norm"},
        "rloo": {"advantage": "rloo", "aggregate": "seq-mean-token-sum-norm"},
        "remax": {"advantage": "remax", "aggregate": "seq-mean-token-sum-norm"},
        "reinforce": {"advantage": "reinforce"},
        "reinforce++": {"advantage": "reinforce++"},
        "reinforce++-baseline": {"advantage": "reinforce++-baseline", "kl_beta": 0.001, "kl_estimator": "k2"},
        "dapo": {"advantage": "grpo", "clip_high": 0.28, "mixed_only": True},
        "apo": {"advantage": "grpo", "loss": "anchored"},
        "starpo": {
            "advantage": "grpo",
            "aggregate": "seq-mean-token-mean",
            "clip_high": 0.28,
            "entropy_beta": 0.001,
        },
        "r2po": {"advantage": "r2po", "head": "trained", "kl_beta": 0.04, "aggregate": "seq-mean-token-mean"},
    }
    assert all(recipe(method) for method in METHODS)


def test_every_advantage():
    found = {
        name: (each.critic, each.samples, each.least, each.unit, each.settings) for name, each in ADVANTAGES.items()
    }
    assert found == {
        "sppo": ("prompt", 1, 1, True, ("normalize",)),
        "gae": ("token", 1, 1, False, ("gae_lambda",)),
        "gae-bce": ("token-bce", 1, 1, True, ("gae_lambda",)),
        "grpo": ("none", 8, 2, False, ()),
        "dr-grpo": ("none", 8, 2, False, ()),
        "rloo": ("none", 8, 2, False, ()),
        "r2po": ("none", 8, 2, False, ()),
        "segments": ("none", 8, 2, False, ()),
        "task-normalized": ("none", 8, 2, False, ()),
        "remax": ("none", 1, 1, False, ()),
        "reinforce": ("none", 1, 1, False, ()),
        "reinforce++": ("none", 1, 1, False, ()),
        "reinforce++-baseline": ("none", 8, 2, False, ()),
        "batch-mean": ("none", 1, 1, False, ()),
        "running-mean": ("none", 1, 1, False, ()),
    }
    assert [name for name in ADVANTAGES if ADVANTAGES[name].of_tokens] == ["reinforce++", "gae", "gae-bce"]
    assert [name for name in ADVANTAGES if ADVANTAGES[name].greedy] == ["remax"]
    assert [name for name in ADVANTAGES if ADVANTAGES[name].past] == ["running-mean"]
    with pytest.raises(BadInput, match=r"'tokens'\. Did you mean 'token'"):
        Advantage(compute=lambda step, recipe: step.rewards, critic="tokens")


# Other values of everything, the same for all methods; a setting that does not count may have any.
OTHER = {
    "push": 2.0,
    "pull": 0.7,
    "anchors": 2,
    "clip_mode": "outside",
    "inclusive": True,
    "dual_clip": 1.01,
    "kl_estimator": "k2",
    "kl_in": "reward",
    "kl_on": "wrong",
    "normalize": True,
    "gae_lambda": 0.3,
    "critic_learning_rate": 0.1,
    "lora_rank": 3,
    "head_advantage": "rarity",
    "head_steps": 3,
    "policy_steps": 7,
    "head_learning_rate": 0.1,
    "head_scale": 0.5,
    "importance_cap": 0.9,
    "select_every": 3,
    "difficulty_target": 0.1,
    "select_temperature": 0.3,
    "reference_questions": 9,
    "refit": "cross-fitted",
    "prediction_worth": 2.0,
    "replay_capacity": 1,
    "clip_window": "current",
}


def several(method):
    """An optimizer step of some of a batch's responses: else no ratio leaves 1."""
    return {"batch_size": 9 if recipe(method).samples > 1 else 2}


@cache
def plain(method):
    return reinforced(method, **several(method))


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[] if name in ("sppo", "apo") else pytest.mark.slow) for name in ALL],
)
def test_what_does_not_count_changes_nothing(method):
    """Bit by bit, with all such settings changed at once."""
    expected = plain(method)
    unused = set(Recipe.model_fields) - expected.recipe.used()
    assert unused <= OTHER.keys()
    if expected.recipe.loss == "anchored":
        unused -= {"dual_clip"}  # may not even be given
    found = reinforced(method, **several(method), **{name: OTHER[name] for name in unused})
    assert equal(found.weights, expected.weights)
    assert found.recipe.resolved(10) == expected.recipe.resolved(10)
    if expected.critic is not None:
        assert equal(weights(found.critic), weights(expected.critic))


COUNTS = {
    "ppo": {"gae_lambda": 0.3, "kl_beta": 0.5, "entropy_beta": 0.1, "critic_learning_rate": 0.1},
    "sppo": {"normalize": True, "num_generations": 2, "temperature": 0.5, "max_grad_norm": 0.01, "seed": 1},
    "apo": {"push": 2.0, "pull": 0.7, "anchors": 2, "clip_mode": "outside", "inclusive": True, "prompts_per_step": 2},
    "grpo": {
        "dual_clip": 1.01,
        "clip_low": 0.001,
        "clip_high": 0.001,
        "aggregate": "token-mean",
        "overlong": 3,
        "batch_size": 24,
        "learning_rate": 1e-4,
        "weight_decay": 0.5,
        "schedule": "cosine",
        "warmup_ratio": 0.5,
        "mixed_only": True,
        "max_new_tokens": 3,
    },
    "reinforce++-baseline": {"kl_estimator": "k3", "kl_on": "wrong", "kl_beta": 0.5},
    "r2po": {"head_advantage": "rarity", "head_learning_rate": 0.1, "importance_cap": 0.9},
}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "name"), [(method, name) for method in COUNTS for name in COUNTS[method]])
def test_what_counts_changes_the_result(method, name):
    more = {}
    if method == "r2po" or "clip_" in name or name == "dual_clip":
        more = {"learning_rate": 0.02}
    if name == "mixed_only":
        more = {"num_generations": 2}
    expected = reinforced(method, **several(method), **more) if more else plain(method)
    found = reinforced(method, **{**several(method), **more, name: COUNTS[method][name]})
    assert name in found.recipe.used() and not equal(found.weights, expected.weights)


def test_the_kl_in_the_reward_is_k1_on_every_token():
    assert not {"kl_estimator", "kl_on"} & recipe("ppo", kl_beta=0.1, kl_in="reward").used()
    assert {"kl_estimator", "kl_on", "kl_in"} <= recipe("ppo", kl_beta=0.1).used()
    assert (
        "head_scale" in recipe("r2po", head="random").used()
        and "head_steps" not in recipe("r2po", head="random").used()
    )
    assert not {
        name for name in recipe("r2po", head="none").used() if name.startswith(("head_", "policy_", "importance"))
    }
    assert "lora_rank" in recipe("grpo", parameters="lora").used()


def test_the_settings_with_their_values():
    resolved = recipe("sppo", prompts_per_step=10, micro_batch_size=2).resolved(1000)
    assert resolved == {
        "advantage": "sppo",
        "loss": "clipped",
        "parameters": "full",
        "steps": 50,
        "prompts_per_step": 10,
        "num_generations": 1,
        "batch_size": 10,
        "micro_batch_size": 2,
        "rollout_batch_size": 64,
        "max_new_tokens": 256,
        "temperature": 1.0,
        "learning_rate": 1e-4,
        "schedule": "constant",
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "aggregate": "token-mean",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "dual_clip": 3.0,
        "kl_beta": 0.0,
        "entropy_beta": 0.0,
        "normalize": False,
        "critic_learning_rate": 5 * 1e-4,
        "mixed_only": False,
        "overlong": 0,
        "head": "none",
        "select": "uniform",
        "replay": 0.0,
        "seed": 0,
    }
    of_head = recipe("r2po", learning_rate=0.5, head_steps=3).resolved(1000)
    assert (of_head["head_learning_rate"], of_head["head_steps"], of_head["policy_steps"]) == (0.5, 3, 40)
    assert "importance_cap" not in of_head and "dual_clip" not in of_head
    again = recipe(**resolved)
    assert again.resolved(10**10) == resolved  # a record replays, whatever the size


@pytest.mark.parametrize(
    ("settings", "trained", "rate"),
    [({}, 50_000_000, 1e-4), ({}, 50_000_001, 5e-6), ({}, 1_000_000_000, 5e-6), ({}, 1_000_000_001, 1e-6),
     ({"parameters": "lora"}, 10**10, 1e-4), ({"parameters": "lora", "learning_rate": 0.5}, 7, 0.5)],
)  # fmt: skip
def test_the_learning_rate_goes_by_what_is_trained(settings, trained, rate):
    assert Recipe(**settings).resolved_learning_rate(trained) == rate


def test_the_shape_of_a_batch():
    grpo = recipe("grpo", prompts_per_step=5, batch_size=16)
    assert (grpo.samples, grpo.responses, grpo.minibatch, grpo.updates) == (8, 40, 16, 3)
    assert (
        recipe("grpo", prompts_per_step=5).minibatch,
        recipe("grpo", prompts_per_step=5, batch_size=99).updates,
    ) == (40, 1)
    assert (recipe("sppo").samples, recipe("sppo", num_generations=4).samples, recipe("sppo").critic) == (
        1,
        4,
        "prompt",
    )
    r2po = recipe("r2po", head_steps=2, policy_steps=3)
    assert [r2po.stage(step) for step in range(7)] == ["head"] * 2 + ["policy"] * 3 + ["head"] * 2
    assert {recipe("r2po", head="random").stage(step) for step in range(9)} == {"policy"}
    assert [recipe(method).reference for method in ("grpo", "apo", "r2po")] == [False, True, True]


@pytest.mark.parametrize(
    ("method", "settings", "sentence"),
    [
        ("grpo", {"num_generations": 1}, "num_generations is 1, but grpo compares the responses"),
        ("grpo", {"kl_beta": 0.1, "kl_in": "reward"}, "kl_in is 'reward', which needs rewards of tokens"),
        ("ppo", {"kl_beta": 0.1, "kl_in": "reward", "kl_on": "wrong"}, "kl_on is 'wrong', but in the reward"),
        ("reinforce++", {"kl_beta": 0.1, "kl_in": "reward", "head": "random"}, "kl_in is 'reward', where the KL is of what"),
        ("apo", {"dual_clip": 3.0}, "dual_clip bounds a ratio above 0, and APO's may be below: use dual_clip=None."),
        ("sppo", {"head": "random"}, "a rollout head and the critic of sppo do not go together: use grpo."),
        *(
            (method, {"head": "trained"}, "num_generations is 1, and a trained head is paid for what differs in a group")
            for method in ("remax", "reinforce++", "reinforce")
        ),
        ("r2po", {"steps": 20}, "steps is 20, but the first 20 (head_steps) are the head's"),
        ("grpo", {"overlong": 257}, "overlong is 257, more than max_new_tokens (256)."),
        ("sppo", {"overlong": 8}, "overlong takes up to 1 off a reward, and sppo needs rewards in [0, 1]: use 0."),
        ("sppo", {"mixed_only": True}, "mixed_only looks for right and wrong responses to one prompt"),
        ("sppo", {"select": "dots"}, "select is 'dots', which seeks prompts with right and wrong responses: use num_gen"),
        ("dapo", {"select": "oracle"}, "select is 'oracle', which does not go together with mixed_only, which draws"),
        ("remax", {"select": "dots", "num_generations": 2}, "select is 'dots', which does not go together with remax"),
        ("grpo", {"replay": 0.007}, "replay is 0.007, which is 0 of the 64 prompts of a batch: at least one has to come"),
        ("grpo", {"replay": 0.995}, "replay is 0.995, which is 64 of the 64 prompts of a batch"),
        ("grpo", {"replay": 0.5, "replay_capacity": 31}, "replay_capacity is 31, but 32 prompts of a batch come again"),
        ("reinforce++", {"replay": 0.5}, "replay keeps prompts with right and wrong responses: use num_generations=2"),
        ("sppo", {"replay": 0.5}, "replay is 0.5, which does not go together with the critic of sppo"),
        ("reinforce", {"advantage": "running-mean", "replay": 0.5}, "replay is 0.5, which does not go together with run"),
        ("remax", {"replay": 0.5}, "replay is 0.5, which does not go together with remax, whose greedy answers"),
        ("grpo", {"replay": 0.5, "head": "random"}, "replay is 0.5, which does not go together with a rollout head"),
        ("apo", {"replay": 0.5}, "replay is 0.5, which does not go together with loss='anchored'"),
        ("grpo", {"replay": 0.5, "kl_beta": 0.1}, "replay is 0.5, which does not go together with kl_beta above 0"),
        ("dapo", {"replay": 0.5}, "replay is 0.5, which does not go together with mixed_only"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(method, settings, sentence):
    with pytest.raises(BadInput) as caught:
        recipe(method, **settings)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("settings", "prompts", "sentence"),
    [
        ({"select": "dots"}, 255, "reference_questions is 256, and there are 255 prompts: use at most 255."),
        (
            {"select": "dots", "reference_questions": 8},
            7,
            "reference_questions is 8, and there are 7 prompts: use select",
        ),
        (
            {"select": "dots", "reference_questions": 8},
            127,
            "a block of 2 steps takes 128 different prompts, and there are",
        ),
        (
            {"select": "oracle", "select_every": 3},
            191,
            "a block of 3 steps takes 192 different prompts, and there are 191",
        ),
    ],
)
def test_a_pool_that_is_too_small(settings, prompts, sentence):
    made = recipe("grpo", **settings)
    with pytest.raises(BadInput) as caught:
        made.check_pool(prompts)
    assert str(caught.value).startswith(sentence)
    made.check_pool(256)
    recipe("grpo").check_pool(1)


def test_the_least_that_is_enough():
    """Each setting at its limit."""
    assert recipe("grpo", num_generations=2, overlong=256).overlong == 256
    assert recipe("r2po", num_generations=2).head == "trained" and recipe("dapo", num_generations=2).mixed_only
    assert recipe("grpo", select="dots", num_generations=2).select == "dots"
    replaying = recipe("grpo", replay=0.5, replay_capacity=1, num_generations=2, prompts_per_step=2)
    assert (replaying.replayed, replaying.capacity) == (1, 1)
    recipe("grpo", select="dots", reference_questions=128).check_pool(128)
    with pytest.raises(BadInput, match=r"there are 8 prompts: use at most 8\.$"):
        recipe("grpo", select="dots").check_pool(8)
    with pytest.raises(BadInput, match=r"there are 7 prompts: use select=uniform, since 8 are the fewest\.$"):
        recipe("grpo", select="dots").check_pool(7)


def test_what_selection_and_replay_count_with():
    """Of a batch of 5 three come again; an oracle measures every prompt, and has nothing to predict."""
    replaying = recipe("grpo", replay=0.5, prompts_per_step=5)
    assert (replaying.replayed, replaying.capacity, replaying.resolved(1)["replay_capacity"]) == (3, 5, 5)
    assert {"replay_capacity", "clip_window", "select_every"} <= replaying.used()
    dots, oracle = (recipe("grpo", select=word, steps=5, num_generations=4) for word in ("dots", "oracle"))
    assert (dots.measured(900), oracle.measured(900), replaying.measured(900)) == (3 * 256 * 4, 3 * 900 * 4, 0)
    assert recipe("grpo", select="dots", select_temperature=math.inf).measured(900) == 0  # uniform for good
    assert {"reference_questions", "refit", "prediction_worth"} == dots.used() - oracle.used()
    assert {"difficulty_target", "select_temperature", "select_every"} <= oracle.used()


def test_a_kl_that_has_no_gradient_is_refused():
    with pytest.raises(BadInput, match="whose gradient is 0 on average"):
        recipe("grpo", kl_beta=0.1, kl_estimator="k1")
    assert recipe("grpo", kl_estimator="k1").kl_beta == 0  # not asked for
    assert recipe("ppo", kl_beta=0.1, kl_in="reward", kl_estimator="k1").kl_beta == 0.1
    assert recipe("sppo", kl_on="wrong", kl_in="reward").kl_on == "wrong"
    assert recipe("sppo", loss="anchored", dual_clip=None).loss == "anchored"
    assert recipe("r2po", steps=21).steps == 21 and recipe("r2po", steps=20, head="random").steps == 20


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("gpro", {}, "no method of reinforcement is called 'gpro'. Did you mean 'grpo'"),
        (None, {"advantage": "spo"}, "'advantage' is 'spo'. Did you mean 'sppo'"),
        (None, {"learnig_rate": 1.0}, "Did you mean 'learning_rate'"),
        (None, {"aggregate": "token_mean"}, "Did you mean 'token-mean'"),
        (None, {"temperature": 0}, "'temperature' should be"),
        (None, {"dual_clip": 1.0}, "'dual_clip' should be"),
        (None, {"clip_low": 1.01}, "'clip_low' should be"),
        (None, {"clip_low": 0.0}, "'clip_low' should be"),
        (None, {"steps": 0}, "'steps' should be"),
        (None, {"kl_beta": -0.1}, "'kl_beta' should be"),
        (None, {"overlong": -1}, "'overlong' should be"),
        (None, {"seed": -1}, "'seed' should be"),
        (None, {"gae_lambda": 1.01}, "'gae_lambda' should be"),
    ],
)
def test_words_and_values_that_are_wrong(method, settings, message):
    with pytest.raises(BadInput, match=message):
        recipe(method, **settings)


def test_a_recipe_that_was_not_checked_is_refused_by_the_loop():
    from equipoise.reinforcement.training import train
    from reinforcement_world import PROBLEMS, model, odd

    with pytest.raises(BadInput, match=r"^num_generations is 1, but rloo"):
        train(model(), Recipe(advantage="rloo", num_generations=1, **SMALL), PROBLEMS, odd)
