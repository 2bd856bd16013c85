import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from equipoise.core.errors import BadInput
from equipoise.language.model import LanguageModel
from equipoise.language.tiny import tiny
from equipoise.uncertainty.perturbed import basis, noise_of, perturb, sampled, token_noise

TEXTS = ["two and two are four", "three and one are four as well"]


@pytest.fixture
def model() -> LanguageModel:
    return tiny(TEXTS, seed=0, width=32, layers=2, heads=2)


def gpt2() -> LanguageModel:
    small = tiny(TEXTS, seed=0, width=32, layers=2, heads=2)
    config = GPT2Config(
        vocab_size=small.vocabulary, n_embd=32, n_layer=2, n_head=2, n_positions=64,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return LanguageModel(GPT2LMHeadModel(config).eval(), small.tokenizer, "gpt2", "A GPT-2.", "none")


def test_the_covariance_is_that_of_explicitly_sampled_weights():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    x = torch.randn(7, generator=generator, dtype=torch.float64)
    u, sigma, draws = basis(weight, 2), 0.3, 200_000
    due = sigma**2 * x.square().sum() * u @ u.T
    z = torch.randn(draws, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(noise_of(x.expand(draws, 7), z, u, sigma).T.cov(), due, atol=0.01, rtol=0.02)
    entries = sigma * torch.randn(draws, 2, 7, generator=generator, dtype=torch.float64)
    outputs = (weight + u @ entries) @ x
    torch.testing.assert_close(outputs.T.cov(), due, atol=0.01, rtol=0.02)
    torch.testing.assert_close(outputs.mean(0), weight @ x, atol=0.02, rtol=0)


def test_the_basis_is_orthonormal_and_spans_what_matters_most():
    weight = torch.diag(torch.tensor([1.0, 5.0, 3.0, 0.5], dtype=torch.float64))
    found = basis(weight, 2)
    torch.testing.assert_close(found.T @ found, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(found @ found.T, torch.diag(torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)))


def test_the_law_does_not_depend_on_the_signs_of_the_basis():
    """U' U'^T is all that the covariance reads, and the sign of a column is the sign of its z."""
    generator = torch.Generator().manual_seed(1)
    u = basis(torch.randn(6, 6, generator=generator, dtype=torch.float64), 3)
    signs = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    x, z = (torch.randn(4, n, generator=generator, dtype=torch.float64) for n in (6, 3))
    torch.testing.assert_close(noise_of(x, z, u * signs, 0.2), noise_of(x, z * signs, u, 0.2))


def test_noise_reaches_the_named_maps_alone_and_leaves_nothing_behind(model: LanguageModel):
    perturbed = perturb(model, rank=2, sigma=0.5, targets=("v_proj",))
    assert [p.name for p in perturbed.projections] == [f"model.layers.{i}.self_attn.v_proj:v_proj" for i in (0, 1)]
    attention = model.model.model.layers[0].self_attn
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    clean = [attention.q_proj(x), attention.v_proj(x)]
    z = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(1))
    with pytest.raises(RuntimeError), perturbed.noise(lambda index, inputs: z):
        assert torch.equal(attention.q_proj(x), clean[0])
        torch.testing.assert_close(
            attention.v_proj(x) - clean[1],
            0.5 * x.norm(dim=-1, keepdim=True) * (z @ perturbed.projections[0].basis.T),
        )
        raise RuntimeError
    assert torch.equal(attention.v_proj(x), clean[1])


def test_a_fused_map_is_perturbed_projection_by_projection():
    perturbed = perturb(gpt2(), rank=3, sigma=0.5, targets=("v_proj",))
    fused = perturbed.projections[0].module
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    clean = fused(x)
    with perturbed.noise(sampled(torch.Generator().manual_seed(1), 3)):
        moved = fused(x) - clean
    assert torch.equal(moved[:, :64], torch.zeros(2, 64)) and moved[:, 64:].abs().min() > 0
    torch.testing.assert_close(perturbed.projections[0].basis, basis(fused.weight.T[64:], 3))  # type: ignore[operator]


def test_a_tokens_noise_is_named_by_seed_member_and_key_and_not_by_what_follows():
    longer = token_noise(9, 2, 3, seed=5, member=1, key=(7,))
    assert torch.equal(token_noise(4, 2, 3, seed=5, member=1, key=(7,)), longer[:4])
    others = [token_noise(9, 2, 3, seed=s, member=m, key=k) for s, m, k in ((6, 1, (7,)), (5, 2, (7,)), (5, 1, (8,)))]
    assert all((other - longer).abs().min() > 0 for other in others)


def test_bad_input_is_refused_by_name(model: LanguageModel):
    with pytest.raises(BadInput, match=r"no linear map 'w_q'.*q_proj"):
        perturb(model, targets=("w_q",))
    with pytest.raises(BadInput, match="use at most 32"):
        perturb(model, rank=33)
    for wrong in ({"sigma": -1.0}, {"sigma": float("nan")}, {"rank": 0}, {"targets": ()}, {"targets": ("q_proj",) * 2}):
        with pytest.raises(BadInput):
            perturb(model, **wrong)
    with pytest.raises(BadInput, match="no linear map 'lm_head'"):
        perturb(model, targets=("lm_head",))


def test_settings_of_noise_at_their_limits(model: LanguageModel):
    for wrong, words in (
        ({"rank": 0}, "at least 1"), ({"sigma": -0.1}, "0 for no noise"), ({"sigma": float("inf")}, "0 for no noise"),
        ({"targets": ()}, "There is no target"), ({"targets": ("q_proj", "q_proj")}, "twice"),
        ({"rank": 33}, "use at most 32"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=words):
            perturb(model, **wrong)
    assert perturb(model, rank=32, sigma=0.0).rank == 32
    with pytest.raises(BadInput, match="0 for no noise"):
        perturb(model).at(-1.0)


def test_every_projection_has_noise_on_its_own_outputs():
    """Of GPT-2's fused map the second third is k_proj: noise on it alone moves these outputs and no others."""
    language_model = gpt2()
    found = perturb(language_model, rank=2, sigma=0.5, targets=("k_proj",))
    (one, two) = found.projections
    assert [(each.begin, each.end) for each in (one, two)] == [(32, 64)] * 2 and one.basis.shape == (32, 2)
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    clean = one.module(x)
    z = torch.ones(1, 3, 2)
    with found.noise(lambda index, inputs: z):
        moved = one.module(x) - clean
    due = 0.5 * x.norm(dim=-1, keepdim=True) * (z @ one.basis.T)
    torch.testing.assert_close(moved[..., 32:64], due, atol=1e-5, rtol=1e-4)
    assert not moved[..., :32].any() and not moved[..., 64:].any() and torch.equal(one.module(x), clean)


def test_noise_of_a_token_is_named_by_all_that_names_it():
    import numpy as np

    found = token_noise(3, 2, 4, seed=5, member=6, key=(7, 8))
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([5, 6, 7, 8])))
    assert found.shape == (3, 2, 4) and found.tolist() == generator.standard_normal((3, 2, 4)).tolist()
    drawn = sampled(torch.Generator().manual_seed(1), 4)(0, torch.zeros(2, 3, 9))
    assert drawn.shape == (2, 3, 4) and torch.equal(
        drawn, torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    )
