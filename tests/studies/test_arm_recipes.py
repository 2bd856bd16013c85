"""What the arms of studies on small decoders ask of the training: numbers that every arm of a study shares, and its own."""

from types import SimpleNamespace

import numpy as np
import pytest

from equipoise.data.arithmetic import problems, solution
from equipoise.language.warm_start import WORLDS
from equipoise.reinforcement import actguide_world, dots_world, nested_world, tiny_world
from equipoise.studies import actguide, apo_tiny, dots, guard, mcu, nait, nested_games, r2po_tiny, sdp_crown, sppo_tiny
from equipoise.study import registry


class Stub:
    """A world that is opened, and notes what it is to train."""

    def __init__(self, world=None):
        self.opened, self.asked = [], []
        self.made = SimpleNamespace(world=world or SimpleNamespace(max_new_tokens=33))
        self.language_model = SimpleNamespace(model=object())
        self.test, self.names, self.held_out = [], [], SimpleNamespace(names=[])

    def open(self, *given, **named):
        self.opened.append((given, named))
        return self

    def reinforce(self, run, made, *more, **named):
        self.asked.append((made, {**named, "more": more}))


def run_of(study, arm, point=0):
    settings = study.arm(arm).points()[point]
    return SimpleNamespace(options=study.options, settings=settings, seed=4, prepared="folder", arm=arm)


def asked(monkeypatch, holder, name, stub, study, arm, point=0):
    monkeypatch.setattr(holder, name, stub)
    study.run(run_of(study, arm, point))
    return stub.asked[-1]


def fields(made, *names):
    assert not any(type(getattr(made, name)) is float for name in SHARED[:6])  # 64.0 responses are none
    return tuple(getattr(made, name) for name in names)


SHARED = ("steps", "prompts_per_step", "num_generations", "batch_size", "max_new_tokens", "seed", "aggregate")


@pytest.mark.parametrize(
    ("arm", "share", "samples", "critic"),
    [
        ("sppo", 1.0, 1, "prompt"),
        ("sppo-quarter", 0.25, 1, "prompt"),
        ("ppo-gae", 1.0, 1, "token"),
        ("grpo", 1.0, 8, "none"),
        ("batch-mean", 1.0, 1, "none"),
    ],
)
def test_sppo_on_a_tiny_decoder(monkeypatch, arm, share, samples, critic):
    made_critics = []
    monkeypatch.setattr(
        tiny_world, "shallow_critic", lambda *given, **named: made_critics.append((given, named)) or "it"
    )
    stub, study = Stub(), registry.load("sppo-tiny").build()
    made, more = asked(monkeypatch, tiny_world, "TinyWorld", stub, study, arm)
    assert stub.opened == [(("levels", 4, "folder"), {"train": 1000, "test": 500})]
    assert fields(made, *SHARED) == (60, 64 // samples, samples, 64, 33, 4, "token-mean")
    assert made.critic == critic and made.critic_learning_rate == 1e-3 and more["evaluations"] == 4
    assert made_critics == ([] if critic == "none" else [((stub.language_model, share), {"seed": 4})])
    assert more["critic"] == (None if critic == "none" else "it")
    assert (made.learning_rate, sppo_tiny.FIXED_RATE) == (1e-4, 1e-4)


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("apo", {}),
        ("grpo", {"kl_beta": 0.0}),
        ("grpo-kl-0.02", {"kl_beta": 0.02}),
        ("kl-on-wrong", {"kl_beta": 0.1, "kl_on": "wrong"}),
        ("push-only", {"pull": 0.0}),
        ("pull-only", {"push": 1.0}),
    ],
)
def test_apo_on_a_tiny_decoder(monkeypatch, arm, words):
    stub, study = Stub(), registry.load("apo-tiny").build()
    made, more = asked(monkeypatch, tiny_world, "TinyWorld", stub, study, arm, point=1)
    assert stub.opened == [(("routes", 4, "folder"), {"train": 1000, "test": 128})]
    assert fields(made, *SHARED) == (60, 8, 8, 32, 33, 4, "token-mean") and made.learning_rate == 2e-4
    assert more["evaluations"] == 4 and {name: getattr(made, name) for name in words} == words
    assert (apo_tiny.KS, apo_tiny.SAMPLES, apo_tiny.DEAD, apo_tiny.REACH) == ((1, 2, 4, 8, 16, 32), 32, 0.01, 1e-3)


@pytest.mark.parametrize(
    ("arm", "head", "more_words"),
    [
        (
            "r2po-task",
            "trained",
            {"head_advantage": "task", "head_learning_rate": 3e-4, "head_steps": 6, "policy_steps": 12},
        ),
        ("r2po-rarity", "trained", {"head_advantage": "rarity", "head_learning_rate": 3e-4}),
        ("grpo", "none", {}),
        ("grpo-t-1.8", "none", {"temperature": 1.8}),
        ("random-head", "random", {}),
        ("staging-alone", "none", {}),
    ],
)
def test_r2po_on_a_tiny_decoder(monkeypatch, arm, head, more_words):
    frozen = []
    monkeypatch.setattr(tiny_world, "freezing_output", lambda model, of: frozen.append(of) or {"callbacks": "froze"})
    stub, study = Stub(WORLDS["format"]), registry.load("r2po-tiny").build()
    made, more = asked(monkeypatch, tiny_world, "TinyWorld", stub, study, arm)
    assert stub.opened == [(("format", 4, "folder"), {"train": 1000, "test": 500})]
    assert fields(made, *SHARED[:4]) == (3 * 18, 8, 8, 64)
    assert (made.max_new_tokens, made.seed, made.head, more["evaluations"]) == (
        WORLDS["format"].max_new_tokens,
        4,
        head,
        6,
    )
    assert {name: getattr(made, name) for name in more_words} == more_words
    assert ("callbacks" in more) == bool(frozen) == (arm == "staging-alone")
    if frozen:  # as the head's steps come before the policy's
        assert [frozen[0](step) for step in range(20)] == [*[False] * 6, *[True] * 12, False, False]
    reward = more["reward"]
    problem = problems(1, seed=0, kind=WORLDS["format"].kind, levels=(2,), part="test")[0]
    strict, habit = (solution(problem, form=form).text for form in ("strict", "habit"))
    assert reward(problem, strict) == 2.25 and reward(problem, habit) == 0.0
    assert reward(problem, "?") == -2.0


def test_dots_on_a_tiny_decoder(monkeypatch):
    stub, study = Stub(), registry.load("dots").build()
    made, more = asked(monkeypatch, dots_world, "DotsWorld", stub, study, "dots")
    assert stub.opened == [((4, "folder"), {"prompts": 1050, "test": 280})]
    assert fields(made, *SHARED) == (
        80_000, 16, 8, 64, dots_world.WORLD.max_new_tokens, 4, "seq-mean-token-mean",
    )  # fmt: skip
    assert fields(made, "rollout_batch_size", "reference_questions", "select_every", "advantage") == (
        128,
        16,
        4,
        "dr-grpo",
    )
    assert (more["tokens"], more["evaluations"]) == (80_000, 10)
    assert (dots.PROMPTS, dots.GROUP, dots.REFERENCES, dots.BLOCK) == (16, 8, 16, 4)


@pytest.mark.parametrize(("arm", "tokens"), [("actguide", 30_000), ("grpo", 30_000), ("sft", 0), ("sft-grpo", 30_000)])
def test_actguide_on_a_tiny_decoder(monkeypatch, arm, tokens):
    stub, study = Stub(), registry.load("actguide").build()
    made, more = asked(monkeypatch, actguide_world, "GuideWorld", stub, study, arm)
    assert stub.opened == [((4, "folder"), {"train": 100, "test": 60})]
    assert fields(made, *SHARED[:6]) == (30_000, 8, 8, 32, 1, 4)
    assert fields(made, "rollout_batch_size", "learning_rate", "kl_beta", "dual_clip", "schedule") == (
        64, 5e-4, 0.0, 3.0, "constant",
    )  # fmt: skip
    assert (more["tokens"], more["evaluations"]) == (tokens, 4) and "reinforced" not in more
    assert (actguide.PROMPTS, actguide.GROUP) == (8, 8)


def test_nested_games_on_a_tiny_decoder(monkeypatch):
    stub, study = Stub(), registry.load("nested-games").build()
    arm = next(each.name for each in study.arms if each.name != "base")
    made, more = asked(monkeypatch, nested_world, "NestedWorld", stub, study, arm)
    assert stub.opened == [((4, "folder"), {})] and more["more"][0] == arm
    assert fields(made, "steps", "prompts_per_step", "num_generations", "rollout_batch_size", "max_new_tokens", "seed") == (
        study.options["steps"], 2, 16, 128, nested_world.MAX_NEW_TOKENS, 4,
    )  # fmt: skip
    assert more["evaluations"] == study.options["evaluations"]
    assert (nested_games.PROMPTS, nested_games.GROUP, r2po_tiny.GROUP, r2po_tiny.RESPONSES) == (2, 16, 8, 64)


def test_the_radii_of_each_network():
    """In pixels of 255 for CIFAR-10; the first is where claims are judged."""
    pixels = tuple(each / 255 for each in (24, 8, 16, 36))
    cifar = dict.fromkeys((f"cifar10_{name}" for name in ("cnn_a", "cnn_c", "convsmall", "convdeep")), pixels)
    assert {
        "small": (0.4, 0.1, 0.2, 0.6),
        "mnist_mlp": (1.0, 0.25, 0.5, 1.5),
        "mnist_convsmall": (0.3, 0.1, 0.2, 0.5),
        **cifar,
    } == sdp_crown.RADII


def test_attacks_are_those_of_the_study_of_mcu():
    assert mcu.ATTACKS == {
        "sgd": {"optimizer": "sgd", "learning_rate": 0.03, "parameters": "mlp"},
        "sgd-fast": {"optimizer": "sgd", "learning_rate": 0.3, "parameters": "mlp"},
        "sgd-fastest": {"optimizer": "sgd", "learning_rate": 1.0, "parameters": "mlp"},
        "lora": {"optimizer": "adamw", "learning_rate": 3e-3, "parameters": "lora"},
    }
    blocks = {"gradient_filter": "cir", "first_block": 0, "last_block": 3}
    assert {"objective": "mlp-breaking", **blocks} == mcu.BREAKING
    assert mcu.COMMON == {"parameters": "mlp", "update": "fixed-length"}


def test_rates_and_stages_that_no_arm_names():
    assert guard.RATE == {"gd": 3e-4, "ga": 2.5e-4} and guard.LEVEL == 0.15
    assert (nait.STAGES, nait.THRESHOLD, nait.LEARNING_RATE) == (3, 0.25, 1e-2)


class Told:
    """A run that notes what it is told, each outcome once a place."""

    def __init__(self, of):
        self.__dict__.update(vars(of))
        self.told = {}

    def note(self, outcome, where, value):
        key = (outcome, *(where or {}).values())
        assert key not in self.told
        self.told[key] = value

    def measure(self, outcome, value, *, of=1, at, where=None):
        assert at == "here"
        self.note(outcome, where, (value, of))

    def items(self, outcome, ids, scores, *, at, where=None):
        assert at == "here"
        self.note(outcome, where, (ids, scores))


def looked(monkeypatch, holder, name, stub, study, arm, **now):
    """What one look of an arm tells."""
    monkeypatch.setattr(holder, name, stub)
    run = Told(run_of(study, arm))
    study.run(run)
    stub.asked[-1][1]["more"][0](SimpleNamespace(at="here", **now))
    return run.told


def test_what_a_look_of_actguide_tells(monkeypatch):
    class World(Stub):
        def success(self, *, samples, share=None):
            return [samples, share]

        def hint_weights(self, share):
            return None, {"hint_log_ratio": np.array([share, 2.0]), "hint_weight_variance": np.array([share, 4.0])}

    stub, study = World(), registry.load("actguide").build()
    stub.test = [SimpleNamespace(id="a"), SimpleNamespace(id="b")]
    nothing = {"groups": 0, "judged": 0, "hard": 0, "guided": 0}
    always = {
        ("success",): (["a", "b"], [2, None]),
        ("hinted_success",): (["a", "b"], [1, 1.0]),
        ("log_ratio", "half"): (1.25, 1),
        ("log_ratio", "full"): (1.5, 1),
        ("weight_variance", "half"): (2.25, 1),
        ("weight_variance", "full"): (2.5, 1),
    }
    assert looked(monkeypatch, actguide_world, "GuideWorld", stub, study, "actguide", **nothing) == always
    some = {"groups": 8, "effective": 3, "judged": 6, "hard": 2, "rescued": 1, "guided": 4, "hints": 10, "shares": 2.0}
    assert looked(monkeypatch, actguide_world, "GuideWorld", stub, study, "grpo", **some) == always | {
        ("effective_share",): (3, 8),
        ("hard_share",): (2, 6),
        ("rescued_share",): (1, 2),
        ("hint_length",): (2.5, 1),
        ("hint_share",): (0.5, 1),
    }


def test_what_a_look_of_dots_tells(monkeypatch):
    stub, study = Stub(), registry.load("dots").build()
    stub.held_out = SimpleNamespace(names=["a"], solve_rates=lambda: [0.5])
    now = {"so_far": lambda rates: ["so far", *rates], "groups": 0, "blocks": 0, "correlations": {}}
    always = {("solve_rate",): (["a"], [0.5]), ("solve_rate_so_far",): (["a"], ["so far", 0.5])}
    assert looked(monkeypatch, dots_world, "DotsWorld", stub, study, "dots", **now) == always
    more = {"groups": 9, "effective": 4, "written": 70, "taught": 50, "reference_tokens": 30, "tokens": 90}
    more |= {"blocks": 3, "uniform": 1, "correlations": {"own": [0.2, 0.4], "oracle": [1.0]}}
    assert looked(monkeypatch, dots_world, "DotsWorld", stub, study, "dots", **now | more) == always | {
        ("effective_share",): (4, 9),
        ("wasted_share",): (20, 70),
        ("reference_share",): (30, 90),
        ("uniform_blocks",): (1, 3),
        ("correlation", "own"): (pytest.approx(0.3), 1),
        ("correlation", "oracle"): (1.0, 1),
    }
