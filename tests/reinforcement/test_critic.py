"""The critic: what it cannot see, what it begins with, and that it comes back from its folder."""

import json

import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.language import adapters
from equipoise.language.rollouts import Rollouts, padded, roll_out
from equipoise.reinforcement import stages
from equipoise.reinforcement.critic import Critic, last_logits, prompt_logits, token_logits
from equipoise.reinforcement.recipe import recipe
from reinforcement_world import PROBLEMS, SMALL, equal, model, odd, weights

ROWS = [[1, 5, 9], [1, 7], [1, 40, 41, 42, 43, 44]]


@pytest.fixture(scope="module")
def lm():
    return model()


@pytest.fixture(scope="module")
def critic(lm):
    """Its linear map is large, so that every token of a prompt matters."""
    made = Critic.of(lm, seed=3, bias=0.25)
    with torch.no_grad():
        made.head.weight.mul_(100)
    return made


def test_rows_are_padded_on_the_right():
    ids, mask = padded(ROWS, 0, torch.device("cpu"))
    assert ids.tolist() == [[1, 5, 9, 0, 0, 0], [1, 7, 0, 0, 0, 0], ROWS[2]]
    assert mask.tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1] * 6] and mask.dtype == ids.dtype == torch.long


def test_what_it_says_of_a_prompt_depends_on_the_prompt_alone(critic):
    """By the body and the linear map at the last token, alone; together, padded left or right by whatever it may be."""
    expected = []
    with torch.no_grad():
        for row in ROWS:
            state = critic.body(input_ids=torch.tensor([row])).last_hidden_state[0, -1]
            expected.append((critic.head.weight[0] @ state + critic.head.bias[0]).item())
        assert len({round(each, 3) for each in expected}) == 3
        assert prompt_logits(critic, ROWS, 0, torch.device("cpu")).tolist() == pytest.approx(expected, abs=1e-5)
        for pad_id in (0, 77):
            ids, mask = padded([*ROWS, [1] * 20], pad_id, torch.device("cpu"))
            assert last_logits(critic, ids, mask)[:3].tolist() == pytest.approx(expected, abs=1e-5)
            for gap in (1, 7):
                for row, value in zip(ROWS, expected, strict=True):
                    ids = torch.tensor([[pad_id] * gap + row])
                    mask = torch.tensor([[0] * gap + [1] * len(row)])
                    assert critic(ids, mask)[0, -1].item() == pytest.approx(value, abs=1e-5)


def test_it_is_blind_to_what_was_answered(lm, critic):
    """The success probability and the gradient of its loss are the same bits, whatever the responses are."""
    chosen = recipe("sppo", **SMALL, num_generations=2)
    found = []
    for seed in (0, 1):
        step = stages.sample(lm, recipe("sppo", **SMALL, num_generations=2, seed=seed), PROBLEMS, range(5), odd, 0)
        step = stages.look(lm, chosen, stages.replace(step, rewards=torch.eye(5)[:, :2]), critic=critic)
        total, _ = stages.critic_objective("prompt")(critic, stages.critic_batch(step, range(10), "prompt", None))
        gradients = torch.autograd.grad(total, list(critic.parameters()))
        found.append((step.rollouts.texts, step.success_probability, gradients))
    (one, p, gradient), (two, q, other) = found
    assert one != two and torch.equal(p, q) and all(map(torch.equal, gradient, other))


def test_values_of_tokens_are_of_the_states_before_them(lm, critic):
    found = roll_out(lm, [each.prompt for each in PROBLEMS[:3]], samples=2, max_new_tokens=6, temperature=1.0, seed=0)
    values = token_logits(critic, found.batch([5, 0, 3]))
    assert found.lengths[[5, 0, 3]].unique().numel() > 1
    with torch.no_grad():
        for place, row in enumerate([5, 0, 3]):
            prompt, tokens = list(found.prompts[row // 2]), found.ids[row][found.mask[row]].tolist()
            for t in range(len(tokens)):
                expected = prompt_logits(critic, [prompt + tokens[:t]], 0, lm.device)
                assert values[place, t].item() == pytest.approx(expected.item(), abs=1e-5)
            assert not values[place, len(tokens) :].any()
    assert isinstance(found, Rollouts)


def test_what_it_begins_with(lm):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two, other = Critic.of(lm, seed=3), Critic.of(lm, seed=3), Critic.of(lm, seed=4, bias=-1.5)
    assert torch.equal(torch.get_rng_state(), state)  # not from the global state
    assert equal(weights(one), weights(two)) and not torch.equal(one.head.weight, other.head.weight)
    rows = [each.prompt.encode() for each in PROBLEMS]
    logits = prompt_logits(other, [list(row) for row in rows], 0, lm.device)
    assert_close(logits, torch.full((5,), -1.5), rtol=0, atol=0.1)
    assert one.body is not lm.model.model and all(each.requires_grad for each in one.parameters()) and not one.training
    body = dict(lm.model.model.named_parameters())
    assert all(torch.equal(each, body[name]) and each is not body[name] for name, each in one.body.named_parameters())
    wide = Critic.of(model(dtype=torch.bfloat16), seed=3)
    assert wide.head.weight.dtype == torch.bfloat16
    assert prompt_logits(wide, ROWS, 0, lm.device).dtype == torch.float32


def test_a_model_with_an_adapter_comes_too_late():
    attached = adapters.attach(model(), 2, 4.0, seed=0)
    with pytest.raises(BadInput, match=r"^tiny has an adapter: make its critic before the adapter is attached\.$"):
        Critic.of(attached, seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_comes_back_as_it_was(tmp_path, dtype):
    language_model = model(dtype=dtype)
    made = Critic.of(language_model, seed=3, bias=0.5)
    made.save(tmp_path / "a", language_model.tokenizer)
    loaded = Critic.load(tmp_path / "a")
    assert equal(weights(made), weights(loaded)) and not loaded.training
    expected = prompt_logits(made, ROWS, 0, language_model.device)
    assert torch.equal(prompt_logits(loaded, ROWS, 0, language_model.device), expected)
    loaded.save(tmp_path / "b", language_model.tokenizer)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"model.safetensors", "critic_head.safetensors", "critic.json", "tokenizer.json"} <= names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_folder_that_holds_none(tmp_path):
    made = Critic.of(model(), seed=3)

    def broken(name, change):
        folder = tmp_path / name
        made.save(folder)
        change(folder)
        return folder

    wrong = {
        "nothing": lambda folder: [path.unlink() for path in folder.iterdir()],
        "no head": lambda folder: (folder / "critic_head.safetensors").unlink(),
        "cut head": lambda folder: (folder / "critic_head.safetensors").write_bytes(b"x" * 30),
        "no body": lambda folder: (folder / "model.safetensors").unlink(),
        "no settings": lambda folder: (folder / "critic.json").unlink(),
        "other settings": lambda folder: (folder / "critic.json").write_text(json.dumps({"critic": 2})),
        "no json": lambda folder: (folder / "critic.json").write_text("{"),
        "no configuration": lambda folder: (folder / "config.json").unlink(),
    }
    for name, change in wrong.items():
        with pytest.raises(
            BadInput, match=r"holds no critic \(.+\): give the critic folder of reinforce or solvable\.$"
        ):
            Critic.load(broken(name, change))
    with pytest.raises(BadInput, match="holds no critic"):
        Critic.load(tmp_path / "nowhere")
