"""The checks of GLOSS against closed forms and planted truth: directions, ranking, shared subspace, projection."""

import copy
import math

import pytest
import torch
import transformers
from torch import nn
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.language.model import wrap
from equipoise.language.states import blocks, module_at, recording
from equipoise.language.tiny import tiny
from equipoise.unlearning import gloss, toxic_vectors
from equipoise.unlearning.value_matrices import projected, readout, replaced, value_matrices


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(count, width, seed=0):
    return torch.linalg.qr(drawn(width, width, seed=seed))[0].T[:count]


# 1 to 4. The projection.


def test_the_projection_is_symmetric_idempotent_and_of_its_rank():
    basis = gloss.random_basis(7, 3, torch.Generator().manual_seed(0))
    projection = torch.eye(7, dtype=torch.float64) - gloss.project(torch.eye(7, dtype=torch.float64), basis)
    assert_close(projection, projection.T)
    assert_close(projection @ projection, projection)
    values = torch.linalg.eigvalsh(projection)
    assert_close(values, torch.tensor([0.0] * 4 + [1.0] * 3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.allclose(projection.trace(), torch.tensor(3.0, dtype=torch.float64))


def test_no_direction_leaves_the_same_bits():
    weight = drawn(5, 8).to(torch.bfloat16)
    empty = gloss.global_basis(drawn(4, 5), 0)
    assert empty.shape == (0, 5) and gloss.rank_of(drawn(0, 5)) == 0
    for edited in (gloss.project(weight, empty), gloss.project(weight, orthonormal(2, 5), strength=0.0)):
        assert torch.equal(edited, weight) and edited.data_ptr() != weight.data_ptr()


def test_nothing_is_left_along_the_basis_and_again_changes_nothing():
    basis, weight, bias = orthonormal(3, 6), drawn(6, 9), drawn(6, seed=1)
    edited, moved = gloss.project(weight, basis), gloss.project(bias, basis)
    for neurons in drawn(4, 9, seed=2):
        assert_close(basis @ (edited @ neurons + moved), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert_close(gloss.project(edited, basis), edited, atol=1e-14, rtol=0)
    along = (basis @ weight).square().sum()
    assert_close(edited.square().sum(), weight.square().sum() - along)
    assert gloss.removed_energy(weight, basis) == pytest.approx((along / weight.square().sum()).item())
    assert_close(gloss.project(weight, basis, strength=0.25), weight - 0.25 * (weight - edited))
    for strength in (0.0, 0.25, 0.5, 1.0):
        left = gloss.project(weight, basis, strength=strength).square().sum() / weight.square().sum()
        assert gloss.removed_energy(weight, basis, strength=strength) == pytest.approx(1 - left.item(), abs=1e-12)


def test_a_transposed_copy_gives_the_same_function():
    basis, weight = orthonormal(2, 5), drawn(5, 5)  # square: only the flag tells the layouts apart
    assert_close(gloss.project(weight.T, basis, transposed=True), gloss.project(weight, basis).T)
    assert (gloss.project(weight.T, basis) - gloss.project(weight, basis).T).abs().max() > 0.1
    energy = gloss.removed_energy(weight.T, basis, transposed=True)
    assert energy == pytest.approx(gloss.removed_energy(weight, basis))
    assert energy != pytest.approx(gloss.removed_energy(weight.T, basis))


def test_half_precision_is_rounded_once():
    basis, weight = orthonormal(2, 6), drawn(6, 9).to(torch.bfloat16)
    exact = (torch.eye(6, dtype=torch.float64) - basis.T @ basis) @ weight.double()
    edited = gloss.project(weight, basis)
    assert edited.dtype == torch.bfloat16 and torch.equal(edited, exact.to(torch.bfloat16))


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(BadInput, match="stored transposed: the layer writes vectors of 9"):
        gloss.project(drawn(6, 9), orthonormal(2, 6), transposed=True)
    with pytest.raises(BadInput, match="not orthonormal"):
        gloss.project(drawn(6, 9), 2 * orthonormal(2, 6))
    with pytest.raises(BadInput, match="rank 7 in layers that are 6 wide: use 0 to 6"):
        gloss.global_basis(drawn(9, 6), 7)
    with pytest.raises(BadInput, match="rank 3 of 2 directions that are kept: use a lower rank"):
        gloss.global_basis(drawn(2, 6), 3)
    with pytest.raises(BadInput, match="each pair needs both sides"):
        gloss.layer_directions(drawn(4, 6), drawn(3, 6), 1)
    with pytest.raises(BadInput, match="the neutral side holds activations that are not finite"):
        gloss.layer_directions(drawn(4, 6), drawn(4, 6) / 0, 1)
    with pytest.raises(BadInput, match="vary in 1 directions and 2 were asked for"):
        gloss.layer_directions(torch.ones(4, 6).double(), drawn(1, 6).repeat(4, 1), 2)


# Directions, signs, ranking.


def test_directions_are_those_of_the_published_form():
    """Against an SVD of T (I - u u') written out; both ways that the subspace is found in, N above and below d."""
    for pairs in (5, 40):
        toxic, neutral = drawn(pairs, 8) + 1, drawn(pairs, 8, seed=1) + torch.arange(8.0)
        u = torch.linalg.svd(neutral, full_matrices=False)[2][0]
        rest = (toxic - neutral) @ (torch.eye(8, dtype=torch.float64) - u.outer(u))
        expected = torch.linalg.svd(rest, full_matrices=False)[2][:3]
        found = gloss.layer_directions(toxic, neutral, 3)
        assert_close((found * expected).sum(-1).abs(), torch.ones(3, dtype=torch.float64))
        assert_close(found @ u, torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)
        plain = gloss.layer_directions(toxic, neutral, 3, centring="none")
        assert (plain @ u).abs().max() > 0.1
        swapped = gloss.layer_directions(neutral + (neutral - toxic) / 2, neutral, 3)  # ProFS: other sign, half as long
        assert_close(swapped, found, atol=1e-9, rtol=0)


def test_neither_signs_nor_repeated_pairs_change_the_projection():
    directions = drawn(6, 9)
    signs = torch.tensor([1.0, -1, -1, 1, -1, 1], dtype=torch.float64)
    one, other = (gloss.global_basis(rows, 3) for rows in (directions, directions * signs[:, None]))
    assert_close(one.T @ one, other.T @ other)
    toxic, neutral = drawn(7, 9), drawn(7, 9, seed=1)
    once = gloss.layer_directions(toxic, neutral, 4)
    twice = gloss.layer_directions(toxic.repeat(2, 1), neutral.repeat(2, 1), 4)
    assert_close(once.T @ once, twice.T @ twice, atol=1e-9, rtol=0)


def test_a_direction_gets_the_sign_under_which_its_tokens_are_listed():
    unembedding = torch.tensor([[1.0, 0], [0.9, 0.1], [-1, 0], [-0.9, 0.1], [0, 1]], dtype=torch.float64)
    listed = torch.tensor([False, False, True, False, True])
    directions = torch.eye(2, dtype=torch.float64)
    assert gloss.decode(directions, unembedding, 2).tolist()[0] == [0, 1]
    signed, scores = gloss.rank_by_tokens(directions, unembedding, listed, tokens=2)
    assert_close(signed, torch.tensor([[-1.0, 0], [0, 1]], dtype=torch.float64))
    assert scores.tolist() == [0.5, 0.5]  # -e1: tokens 2, 3; e2: token 4 and one of 1, 3
    gain = torch.tensor([1.0, 20.0], dtype=torch.float64)
    mixed = torch.tensor([[1.0, 0.2]], dtype=torch.float64)
    assert gloss.decode(mixed, unembedding, 1).item() == 0
    assert gloss.decode(mixed, unembedding, 1, gain=gain).item() == 4


def test_what_is_kept_and_how_large_the_subspace_is():
    scores = torch.tensor([0.0, 0.5, 0.1, 0.0, 1.0, 0.0], dtype=torch.float64)
    assert gloss.keep(scores, least=1).tolist() == [4, 1]  # the mean is 0.267
    assert gloss.keep(scores, alpha=1.0, least=1).tolist() == [4]  # one deviation above: 0.642
    assert gloss.keep(scores, alpha=9.0, least=3).tolist() == [4, 1, 2]
    assert gloss.keep(scores[:2], alpha=9.0).tolist() == [1, 0]
    rows = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64))  # squares 9, 4, 1, 0.25 of 14.25
    assert [gloss.rank_of(rows, share=share) for share in (0.5, 9 / 14.25, 0.9, 0.99)] == [1, 1, 2, 4]
    assert gloss.rank_of(rows, share=0.99, most=3) == 3


def test_at_least_five_are_kept_and_as_many_as_have_nine_tenths_of_the_mass():
    scores = torch.tensor([0.1 * n for n in range(9)], dtype=torch.float64)
    assert gloss.keep(scores, alpha=9.0).tolist() == [8, 7, 6, 5, 4]
    assert gloss.keep(scores, least=1).tolist() == [8, 7, 6, 5]  # those above the mean, not that at it
    assert gloss.keep(torch.ones(3, dtype=torch.float64), least=2).tolist() == [0, 1]
    alike = torch.eye(20, dtype=torch.float64)
    assert gloss.rank_of(alike[:5]) == 5 and gloss.rank_of(alike[:10]) == 9 and gloss.rank_of(alike) == 10
    assert gloss.rank_of(alike[:1]) == 1


def test_signs_of_equal_shares_stay_and_tokens_are_decoded_in_parts():
    unembedding = drawn(40, 5)
    directions = drawn(70, 5, seed=1)
    whole = (directions @ unembedding.T).topk(3, dim=-1).indices
    assert torch.equal(gloss.decode(directions, unembedding, 3), whole)
    assert gloss.decode(directions[:0], unembedding, 3).shape == (0, 3)
    assert gloss.decode(directions, unembedding, 40).shape == (70, 40)
    for count in (0, 41):
        with pytest.raises(BadInput, match="of a vocabulary of 40 were asked for: use 1 to so many"):
            gloss.decode(directions, unembedding, count)
    signed, shares = gloss.rank_by_tokens(directions, unembedding, torch.zeros(40, dtype=torch.bool), tokens=3)
    assert torch.equal(signed, directions) and not shares.any()


def test_ranks_and_bases_at_their_limits():
    with pytest.raises(BadInput, match="rank -1 in layers that are 6 wide"):
        gloss.global_basis(drawn(9, 6), -1)
    assert gloss.global_basis(drawn(9, 6), 6).shape == (6, 6)
    for count in (-1, 7):
        with pytest.raises(BadInput, match=f"rank {count} in layers that are 6 wide: use 0 to 6"):
            gloss.random_basis(6, count, torch.Generator())
    assert gloss.random_basis(6, 0, torch.Generator()).shape == (0, 6)
    assert gloss.random_basis(6, 6, torch.Generator()).shape == (6, 6)
    weight, basis = drawn(6, 9), orthonormal(2, 6)
    gloss.project(weight, basis * (1 + 4e-5))  # off by 8e-5
    with pytest.raises(BadInput, match="not orthonormal"):
        gloss.project(weight, basis * (1 + 6e-5))
    with pytest.raises(BadInput, match="the layer writes vectors of 6"):
        gloss.project(drawn(6), orthonormal(2, 5))
    with pytest.raises(BadInput, match="each pair needs both sides"):
        gloss.layer_directions(drawn(4), drawn(4), 1)
    zero = torch.zeros(4, 6, dtype=torch.float64)  # nothing is taken out of the differences
    assert_close(gloss.layer_directions(drawn(4, 6), zero, 1).abs(), torch.linalg.svd(drawn(4, 6))[2][:1].abs())


def test_of_profs_a_basis_is_all_of_a_layers_candidates_unless_fewer_are_asked_for():
    toxic, neutral = ({n: drawn(9, 6, seed=seed + n) for n in (3, 5)} for seed in (0, 10))
    found = gloss.candidates(toxic, neutral, 3, method="profs")
    assert found.layers == (3, 3, 3, 5, 5, 5) and found.numbers == (0, 1, 2, 0, 1, 2) and found.kept == tuple(range(6))
    for rank, rows in ((None, 3), (3, 3), (1, 1)):
        own = gloss.bases(found, "profs", rank)
        assert torch.equal(own[3], found.directions[:rows]) and torch.equal(own[5], found.directions[3 : 3 + rows])
    pooled = gloss.bases(found, "pooled")
    assert len(pooled[3]) == gloss.rank_of(found.directions)


# 6. A planted subspace.


def planted(seed, *, shared):
    """12 layers of 30 pairs, 64 wide: a toxic part in a subspace S of rank 3, and a stronger nuisance of rank 3.

    The nuisance is another one in each layer, or one that all share. 60 of 400 tokens lie along S.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(draw(64, 64))[0].T
    true, common = basis[:3], basis[3:6]
    unembedding = draw(400, 64) / 8
    unembedding[:60] += 3 * nn.functional.normalize(draw(60, 3), dim=-1) @ true
    toxic, neutral = {}, {}
    for layer in range(12):
        nuisance = common if shared else torch.linalg.qr(draw(64, 3))[0].T
        neutral[layer] = 0.3 * draw(30, 64) + 3 * draw(1, 64)
        strength = 0.5 + 1.5 * layer / 12
        change = strength * (draw(30, 3) + 0.5) @ true + 2 * draw(30, 3) @ nuisance + 0.5 * draw(30, 64)
        toxic[layer] = neutral[layer] + change
    return true, toxic, neutral, unembedding, torch.arange(400) < 60


def captured(shared):
    """Mean over three draws: the layers alone, pooled, and ranked with alpha 0, 0.5 and 1, all of rank 3."""
    found = []
    for seed in range(3):
        true, toxic, neutral, unembedding, listed = planted(seed, shared=shared)
        alone = [gloss.capture(gloss.layer_directions(toxic[n], neutral[n], 3), true) for n in toxic]
        values = {"alone": sum(alone) / len(alone)}
        own = {"centring": "neutral"}  # twelve means drawn at random leave little of 64 dimensions
        pooled = gloss.candidates(toxic, neutral, 3, method="pooled", **own)
        values["pooled"] = gloss.capture(gloss.bases(pooled, "pooled", 3)[0], true)
        for alpha in (0.0, 0.5, 1.0):
            how = {"unembedding": unembedding, "listed": listed, "tokens": 20, "alpha": alpha} | own
            ranked = gloss.candidates(toxic, neutral, 3, **how)
            values[alpha] = gloss.capture(gloss.bases(ranked, "gloss", 3)[0], true)
        found.append(values)
    return {name: sum(each[name] for each in found) / 3 for name in found[0]}


def test_pooling_finds_what_layers_share_and_a_strict_threshold_loses_it():
    """Chance is 3 / 64 = 0.05. The nuisance is each layer's own: no list is needed."""
    found = captured(shared=False)
    assert found["alone"] < 0.3 < 0.6 < found["pooled"]
    assert found[0.0] > 0.65 and found[0.0] > found[0.5] > found[1.0]


def test_ranking_tells_a_nuisance_apart_that_all_layers_share():
    found = captured(shared=True)
    assert found["pooled"] < 0.05 and found["alone"] < 0.25
    assert found[0.5] > 5 * found["pooled"] and found[0.0] > 3 * found["pooled"]


def test_the_shared_direction_is_their_mean_which_centring_would_delete():
    shared = torch.eye(5, dtype=torch.float64)[0]
    rows = shared + 0.1 * drawn(8, 5)
    basis = gloss.global_basis(rows, 1)
    assert gloss.capture(basis, shared[None]) > 0.95
    centred = torch.linalg.svd(rows - rows.mean(0))[2][:1]
    assert gloss.capture(centred, shared[None]) < 0.5


def test_what_one_layer_writes_on_average_is_kept_though_another_tells_texts_apart_by_it():
    """Layer 0 writes e1 on average, and e1 is all that differs in layer 1, whose own mean is e2."""
    axes = torch.eye(8, dtype=torch.float64)
    neutral = {0: 5 * axes[0] + 0.1 * drawn(20, 8), 1: 5 * axes[1] + 0.1 * drawn(20, 8, seed=1)}
    toxic = {
        0: neutral[0] + axes[2] + 0.1 * drawn(20, 8, seed=2),
        1: neutral[1] + 3 * axes[0] + axes[3] + 0.1 * drawn(20, 8, seed=3),
    }
    kept = gloss.main_directions(neutral.values())
    assert kept.shape == (2, 8) and gloss.capture(kept, axes[:2]) > 0.99
    along = {}
    for centring in ("layers", "neutral"):
        found = gloss.candidates(toxic, neutral, 1, method="pooled", centring=centring)
        along[centring] = gloss.bases(found, "pooled", 2)[0] @ axes.T
    assert along["neutral"][:, 0].norm() > 0.9  # a projection would take out what layer 0 always writes
    assert along["layers"][:, 0].norm() < 0.05 and along["layers"][:, 2:4].norm(dim=0).min() > 0.9
    own = gloss.candidates(toxic, neutral, 1, method="profs").directions
    assert (own == gloss.candidates(toxic, neutral, 1, method="pooled", centring="neutral").directions).all()


# 7. Methods.


def test_of_one_layer_and_one_direction_gloss_is_profs():
    toxic, neutral = {2: drawn(9, 6)}, {2: drawn(9, 6, seed=1)}
    found = gloss.candidates(toxic, neutral, 1, method="pooled")
    one, other = (gloss.bases(found, method, 1)[2] for method in ("pooled", "profs"))
    assert_close(one.T @ one, other.T @ other)


def test_each_layer_its_own_by_profs_and_one_for_all_else():
    toxic, neutral = ({n: drawn(9, 6, seed=seed + n) for n in (3, 5)} for seed in (0, 10))
    own = gloss.bases(gloss.candidates(toxic, neutral, 2, method="profs"), "profs", 2)
    for layer in (3, 5):
        assert_close(own[layer], gloss.layer_directions(toxic[layer], neutral[layer], 2))
    found = gloss.candidates(toxic, neutral, 2, method="pooled")
    shared = gloss.bases(found, "pooled", 3)
    assert shared[3] is shared[5] and shared[3].shape == (3, 6)
    drawn_basis = gloss.bases(found, "random", 3, seed=1)[3]
    assert_close(drawn_basis @ drawn_basis.T, torch.eye(3, dtype=torch.float64))
    assert not torch.allclose(drawn_basis, gloss.bases(found, "random", 3, seed=2)[3])
    with pytest.raises(BadInput, match="rank 3 of 2 candidates a layer"):
        gloss.bases(found, "profs", 3)
    with pytest.raises(BadInput, match="method"):
        gloss.bases(found, "glos")


def test_without_a_listed_token_nothing_is_ranked():
    toxic, neutral = {0: drawn(9, 6)}, {0: drawn(9, 6, seed=1)}
    nothing = torch.zeros(20, dtype=torch.bool)
    found = gloss.candidates(toxic, neutral, 3, unembedding=drawn(20, 6), listed=nothing, tokens=5)
    assert found.scores.isnan().all() and found.kept == (0, 1, 2)


# The older edit, and the paper's first criticism of it.


def test_the_probe_and_the_vectors_that_it_names():
    wanted = drawn(200, 4)
    probe = toxic_vectors.probe_direction(wanted + torch.tensor([0.0, 3, 0, 0]), wanted)
    assert probe[1] > 0.99
    values = {0: torch.eye(4, dtype=torch.float64), 7: torch.tensor([[0.0, 0, 0], [5, -9, 0], [5, 0, 0], [0, 0, 0]])}
    chosen = toxic_vectors.toxic_vectors(values, torch.eye(4, dtype=torch.float64)[1], 2)
    assert {layer: each.tolist() for layer, each in chosen.items()} == {0: [1], 7: [0]}
    nearest = toxic_vectors.toxic_vectors(values, torch.eye(4, dtype=torch.float64)[1], 1)
    assert {layer: each.tolist() for layer, each in nearest.items()} == {0: [1], 7: []}  # not the longest one
    edited = toxic_vectors.without(values[7], chosen[7])
    assert edited[:, 0].abs().sum() == 0 and torch.equal(edited[:, 1:], values[7][:, 1:])
    assert torch.equal(toxic_vectors.without(values[7].T, chosen[7], transposed=True), edited.T)
    with pytest.raises(BadInput, match="8 of 7 value vectors"):
        toxic_vectors.toxic_vectors(values, probe, 8)


def test_a_zeroed_vector_is_rebuilt_from_those_left_and_a_subspace_is_not():
    vectors = drawn(40, 8)
    removed, left = vectors[:3], vectors[3:]
    assert toxic_vectors.rebuilding_residual(removed, left).max() < 1e-9  # 37 vectors span all 8 dimensions
    basis = orthonormal(2, 8)
    outside = gloss.project(vectors, basis, transposed=True)
    assert_close(toxic_vectors.rebuilding_residual(basis, outside), torch.ones(2, dtype=torch.float64))
    solved = [torch.linalg.lstsq(left[:4].T, v).solution @ left[:4] for v in removed]
    expected = torch.stack([(v - s).norm() / v.norm() for v, s in zip(removed, solved, strict=True)])
    assert_close(toxic_vectors.rebuilding_residual(removed, left[:4]), expected)
    by_terms = [toxic_vectors.rebuilding_residual(removed, left, terms) for terms in (1, 2, 8)]
    cosines = (nn.functional.normalize(removed, dim=-1) @ nn.functional.normalize(left, dim=-1).T).abs()
    assert_close(by_terms[0], (1 - cosines.max(-1).values.square()).sqrt())  # the nearest one alone: the sine
    assert (by_terms[1] < by_terms[0]).all() and by_terms[2].max() < 1e-6
    assert math.isnan(toxic_vectors.rebuilding_residual(torch.zeros(1, 8).double(), left)[0])


# In models.


@pytest.fixture(scope="module")
def start():
    made = tiny(["a few more words of it"], seed=0, width=16, layers=3, heads=2, vocabulary=300)
    made.model.double()
    return made


@pytest.fixture
def small(start):
    made = copy.copy(start)
    made.model = copy.deepcopy(start.model)
    return made


def of_kind(kind, start):
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=start.vocabulary,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        n_inner=24,
        max_position_embeddings=32,
    )
    name = "GPT2LMHeadModel" if kind == "GPT2" else "GPTNeoXForCausalLM"
    model = getattr(transformers, name)(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases, too: as they begin they would hide what is left out
            parameter.copy_(drawn(*parameter.shape, seed=parameter.numel()))
    return wrap(model, start.tokenizer)


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "GPTNeoX"])
def test_no_layer_of_the_range_writes_along_the_basis(start, small, kind):
    """Both layouts, with and without bias; other layers, the embedding and the attention keep their bits."""
    made = small if kind == "Llama" else of_kind(kind, start)
    matrices = value_matrices(made.model)
    assert [each.transposed for each in matrices] == [kind == "GPT2"] * 3
    assert [each.bias is None for each in matrices] == [kind == "Llama"] * 3
    assert all(each.values.shape == (16, 24) or kind == "Llama" for each in matrices)
    basis = orthonormal(2, 16)
    edited = projected(matrices, {1: basis, 2: basis})
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    ids, places = torch.randint(0, 250, (2, 5)), [f"block.{n}.mlp" for n in range(3)]
    with replaced(made.model, edited), recording(made.model, places) as found, torch.no_grad():
        made.model(ids)
        changed = {name for name, value in made.model.state_dict().items() if not torch.equal(value, before[name])}
        along = [(found[place] @ basis.T).abs().max().item() for place in places]
    assert along[0] > 1e-3 and max(along[1:]) < 1e-10
    assert changed == set(edited) and len(changed) == (2 if kind == "Llama" else 4)
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())


def test_layers_are_edited_in_any_order(small):
    matrices, one, two = value_matrices(small.model), orthonormal(2, 16), orthonormal(1, 16, seed=5)
    both = projected(matrices, {0: one, 2: two})
    apart = projected(matrices, {2: two}) | projected(matrices, {0: one})
    assert both.keys() == apart.keys() and all(torch.equal(both[name], apart[name]) for name in both)


def test_tied_embeddings_are_not_touched(start):
    made = of_kind("GPT2", start)
    assert made.model.get_output_embeddings().weight is made.model.get_input_embeddings().weight
    assert all(".mlp." in name for name in projected(value_matrices(made.model), {0: orthonormal(1, 16)}))


def test_the_readout_is_what_the_model_makes_of_a_change(start, small):
    """Against the change of logits when a little of a direction is added to a last state, of two kinds of norm."""
    for made, norm in ((small, lambda m: m.model.norm), (of_kind("GPT2", start), lambda m: m.transformer.ln_f)):
        with torch.no_grad():
            norm(made.model).weight.copy_(1 + drawn(16).abs())
        state, direction = drawn(16, seed=3), drawn(16, seed=4)
        state, direction = state - state.mean(), direction - (direction @ state) * state / state.square().sum()
        state = state / state.square().mean().sqrt()

        def logits(at, made=made, norm=norm):
            return made.model.get_output_embeddings()(norm(made.model)(at))

        with torch.no_grad():
            change = (logits(state + 1e-4 * direction) - logits(state - 1e-4 * direction)) / 2e-4
        # A LayerNorm takes the mean of the direction out, and then what is left along the state.
        if made is not small:
            direction = direction - direction.mean()
            direction = direction - (direction @ state) * state / state.square().sum()
        assert_close(readout(made).double() @ direction, change, rtol=1e-3, atol=1e-3)
        assert (readout(made).mean(dim=-1).abs().max().item() < 1e-6) is (made is not small)  # blind to what is in all


def test_layouts_that_are_not_known_are_refused_by_name(small):
    block = blocks(small.model)[1]
    down = block.mlp.down_proj
    block.post_feedforward_layernorm = nn.Identity()
    with pytest.raises(BadInput, match="Layer 1 of LlamaForCausalLM has post_feedforward_layernorm behind"):
        value_matrices(small.model)
    del block.post_feedforward_layernorm
    block.mlp.down_proj = nn.Linear(down.in_features, 8)
    with pytest.raises(BadInput, match="layer 1 writes vectors of 8, the model's states are 16 wide"):
        value_matrices(small.model)
    del block.mlp.down_proj
    with pytest.raises(
        BadInput, match="Layer 1 of LlamaForCausalLM writes through a LlamaMLP, not through one linear map"
    ):
        value_matrices(small.model)
    block.mlp.down_proj = nn.Identity()
    with pytest.raises(BadInput, match="value matrix of layer 1 is a Identity without a plain matrix"):
        value_matrices(small.model)
    assert module_at(small.model, "block.1.mlp.down") is block.mlp.down_proj


def test_a_vector_is_rebuilt_from_so_many_of_those_that_help_most():
    unit = torch.eye(4, dtype=torch.float64)
    removed = torch.stack([3 * unit[0] + 2 * unit[1] + unit[2], 5 * unit[3]])
    remaining = torch.stack([unit[0], 2 * unit[0], -unit[1], unit[2], 0 * unit[0]])
    squares = torch.tensor([14.0, 5.0, 1.0, 0.0, 0.0], dtype=torch.float64)  # left after each, of 14
    for terms in range(5):
        found = toxic_vectors.rebuilding_residual(removed, remaining, terms)
        assert_close(found, torch.stack([(squares[terms] / 14).sqrt(), torch.ones(()).double()]))
    # Twice the same direction: nothing can be added to what is there, and that is no division by zero.
    twice = toxic_vectors.rebuilding_residual(removed, torch.stack([unit[0], unit[0], -unit[0]]), 3)
    assert_close(twice, torch.tensor([(5 / 14) ** 0.5, 1.0], dtype=torch.float64))
    skewed = torch.stack([unit[0], unit[0] + unit[1]])
    assert_close(toxic_vectors.rebuilding_residual(unit[1:2], skewed, 1), torch.tensor([0.5**0.5]).double())
    assert_close(toxic_vectors.rebuilding_residual(unit[1:2], skewed, 2), torch.zeros(1).double(), atol=1e-12, rtol=0)
    assert toxic_vectors.rebuilding_residual(removed[:0], remaining, 2).shape == (0,)


def test_rows_that_are_nothing_have_no_main_direction():
    some = torch.tensor([[0.0, 3.0, 4.0], [0.0, 6.0, 8.0]], dtype=torch.float64)
    found = gloss.main_directions([torch.zeros(2, 3, dtype=torch.float64), some])
    assert_close(found.abs(), torch.tensor([[0.0, 0.6, 0.8]], dtype=torch.float64))
