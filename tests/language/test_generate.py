import copy
import importlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    DynamicCache,
    FalconH1Config,
    FalconH1ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    RwkvConfig,
    RwkvForCausalLM,
)
from transformers.cache_utils import DynamicLayer

from equipoise.core.errors import BadInput
from equipoise.data.records import Record
from equipoise.language.cache import row_choice, with_room
from equipoise.language.encode import encode, encode_prompts
from equipoise.language.generate import Written, choose, generate, write
from equipoise.language.rehearsal import rehearse
from equipoise.language.score import log_likelihoods
from equipoise.language.tiny import tiny

generating = importlib.import_module("equipoise.language.generate")  # the package shows the function of that name
PROMPTS = [
    "yes",
    "Where was Mulum Kunwick born?",
    "one two three four five six",
    "no",
    "What is the capital of Norway? Oslo",
]


@pytest.fixture(scope="module")
def gpt2(small):
    """Absolute positions: an offset from left padding would show at once."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(small.tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.4,
        bos_token_id=1,
        eos_token_id=2,
    )
    return replace(small, model=GPT2LMHeadModel(config).eval())


def one_by_one(language_model, prompt: str, steps: int) -> str:
    """Greedy without cache, padding or batch."""
    (ids,), ends = encode_prompts(language_model, [prompt])
    written = []
    for _ in range(steps):
        with torch.no_grad():
            token = int(language_model.model(torch.tensor([ids + written])).logits[0, -1].argmax())
        if token in ends:
            break
        written.append(token)
    return language_model.tokenizer.decode(written, skip_special_tokens=True).removeprefix(" ")


@pytest.mark.parametrize("template", ["auto", "none"])
def test_greedy_against_a_loop(small, gpt2, template):
    for model in (replace(small, chat_template=template), replace(gpt2, chat_template=template)):
        expected = [one_by_one(model, prompt, 12) for prompt in PROMPTS]
        assert len(set(expected)) > 1
        for batch_size in (1, 2, 32):
            assert generate(model, PROMPTS, max_new_tokens=12, batch_size=batch_size) == expected, batch_size


class NoCache(LlamaForCausalLM):
    """As code that a folder brings may be: it takes a cache and gives none back."""

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, **words):
        assert past_key_values is None
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask, **words)
        output.past_key_values = None
        return output


STATES = {
    "no cache": lambda **words: NoCache(
        LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, **words)
    ),
    "mamba": lambda **words: MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8, **words)),
    "rwkv": lambda **words: RwkvForCausalLM(
        RwkvConfig(hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, context_length=128, **words)
    ),
}

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
# States in layers of their own (which transformers' caches cannot choose rows of), and beside keys and values in one layer
# (of which they would choose those of the keys alone).
HYBRID = {
    "lfm2": lambda **words: Lfm2ForCausalLM(
        Lfm2Config(layer_types=["conv", "full_attention"], block_multiple_of=16, **SIZES, **HEADS, **words)
    ),
    "falcon-h1": lambda **words: FalconH1ForCausalLM(
        FalconH1Config(
            mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8, mamba_chunk_size=16,
            **SIZES, **HEADS, **words,
        )
    ),
}  # fmt: skip
STATES |= HYBRID


@pytest.mark.parametrize("name", STATES)
def test_models_without_a_key_value_cache(small, name):
    """State-space models: answers and scores as of each row alone, and all that a job needs."""
    torch.manual_seed(1)
    model = STATES[name](vocab_size=len(small.tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)  # so that what is said depends on the tokens before the last
    state_space = replace(small, model=model)
    expected = [one_by_one(state_space, prompt, 8) for prompt in PROMPTS]
    assert len(set(expected)) > 1
    for batch_size in (1, 2, 32):
        assert generate(state_space, PROMPTS, max_new_tokens=8, batch_size=batch_size) == expected
    examples = encode(state_space, [Record(id=f"{i}", prompt=p, completion="yes no") for i, p in enumerate(PROMPTS)])
    together, _ = log_likelihoods(state_space, examples)
    alone, _ = log_likelihoods(state_space, examples, batch_size=1)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)
    rehearse(state_space, writes="nothing" if name == "no cache" else "model")


@pytest.mark.parametrize("name", HYBRID)
def test_rows_with_states_end_by_themselves(small, name, monkeypatch):
    """Every token that some answer of a hybrid model holds, taken as the end; each is still read once."""
    torch.manual_seed(1)
    made = HYBRID[name](vocab_size=len(small.tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    ids = encode_prompts(replace(small, model=made), PROMPTS)[0]
    alone = [list(greedy(made, row, 8)) for row in ids]
    monkeypatch.setattr(generating, "_WithoutCache", None)
    for end in sorted({token for row in alone for token in row}):
        with torch.no_grad():
            written = dict(
                write(replace(small, model=made), ids, frozenset({end}), [8] * 5, lambda logits, *_: logits.argmax(-1))
            )
        for row, tokens in enumerate(alone):
            assert written[row].tokens == (tokens[: tokens.index(end)] if end in tokens else tokens), end


def greedy(model, ids, steps):
    ids = list(ids)
    for _ in range(steps):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        yield ids[-1]


class Fuller(DynamicLayer):
    """A layer that may hold more than keys and values."""


class Own(DynamicCache):
    """A cache that may hold more than layers, and knows what."""

    def batch_select_indices(self, indices):
        self.chosen = indices


def test_rows_of_a_cache_are_chosen_by_what_knows_all_of_it():
    cache, keys = DynamicCache(), torch.arange(6.0).view(3, 1, 2, 1)
    cache.update(keys, -keys, 0)
    roomy = with_room(cache)
    row_choice(roomy)(torch.tensor([2, 0, 0]))
    assert torch.equal(roomy.layers[0].keys, keys[[2, 0, 0]]) and torch.equal(roomy.layers[0].values, -keys[[2, 0, 0]])
    both = roomy.update(keys[:, :, :1], keys[:, :, 1:], 0)
    row_choice(roomy)(torch.tensor([1]))
    roomy.update(keys[:1, :, :1], keys[:1, :, :1], 0)
    assert torch.equal(roomy.layers[0].keys, torch.cat([both[0][1:2], keys[:1, :, :1]], dim=-2))
    cache.layers = [*cache.layers, Fuller()]
    assert row_choice(cache) is None and row_choice(None) is None and row_choice(((keys, keys),)) is None
    own = Own()
    row_choice(own)(torch.tensor([1]))
    assert own.chosen.tolist() == [1] and row_choice(type("Silent", (DynamicCache,), {"__module__": "x"})()) is None


ANSWERS = {  # as a model wrote them -> as they are told
    "    return 1\n    # so": "    return 1\n    # so",
    "  1": "  1",
    " 1": "1",
    "1": "1",
    "\n    1": "\n    1",
    " ": "",
}


@pytest.mark.parametrize("prompt", ["def f():\n", "def f():", "a\n    "])
@pytest.mark.parametrize("stop", [(), ("so",)])
def test_the_indentation_of_an_answer_stays(prompt, stop):
    """Of one blank it cannot be told whether it joins, and no code is indented by one."""
    made = replace(tiny(["adefnrstuo1 #():\n"], seed=0, tokens="characters"), chat_template="none")
    (ids,), ends = encode_prompts(made, [prompt])
    for text, told in ANSWERS.items():
        tokens = made.tokenizer(text, add_special_tokens=False).input_ids
        said = [torch.tensor([token]) for token in tokens]
        with torch.no_grad():
            found = list(write(made, [ids], ends, [len(said)], lambda *given, said=said: said[given[3]], stop=stop))
        ((_, written),) = found
        assert written.text == (told.removesuffix("so") if stop else told)


def test_the_blank_that_sentencepiece_drops_is_part_of_the_indentation():
    """Its decoder takes one blank from the beginning, whatever was written there."""
    words = ["<unk>", "\u2581", "\u2581\u2581", "\u2581\u2581\u2581\u2581", "return", "\u2581return"]
    made = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [], unk_token="<unk>"))
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    for tokens, text in (
        ([3, 4], "    return"),
        ([3, 5], "     return"),
        ([2, 4], "  return"),
        ([1, 5], "  return"),
        ([5], "return"),
        ([1, 4], "return"),
        ([4, 5], "return return"),
        ([], ""),
    ):
        assert generating.answer_text(tokenizer, tokens) == text


def test_rows_end_by_themselves(gpt2, monkeypatch):
    """Every token that some greedy answer holds, taken as the end: rows end at different steps, others go on."""
    free = {prompt: one_by_one(gpt2, prompt, 10) for prompt in PROMPTS}
    (ids,), _ = encode_prompts(gpt2, [PROMPTS[1]])
    with torch.no_grad():
        written = []
        for _ in range(4):
            written.append(int(gpt2.model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    monkeypatch.setattr(gpt2.model.generation_config, "eos_token_id", [written[3], gpt2.tokenizer.eos_token_id])
    expected = [one_by_one(gpt2, prompt, 10) for prompt in PROMPTS]
    assert expected[1] != free[PROMPTS[1]] and expected != [expected[1]] * len(expected)
    for batch_size in (1, 5):
        assert generate(gpt2, PROMPTS, max_new_tokens=10, batch_size=batch_size) == expected


def test_samples_depend_on_the_generator_only(gpt2):
    def sample(seed, **options):
        return generate(
            gpt2, PROMPTS, max_new_tokens=8, temperature=1.0, generator=torch.Generator().manual_seed(seed), **options
        )

    torch.manual_seed(0)
    first = sample(5, batch_size=1)
    torch.manual_seed(1)
    assert sample(5, batch_size=3) == sample(5, batch_size=32) == first
    assert sample(6) != first


def test_sampling_follows_the_distribution():
    logits = torch.tensor([2.0, 0.0, -1.0, float("-inf"), 1.0])
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = choose(logits.expand(len(draws), -1), 0.7, draws)
    found = torch.bincount(tokens, minlength=5) / len(draws)
    expected = (logits / 0.7).softmax(-1)
    assert (found - expected).abs().max() < 4 * 0.5 / len(draws) ** 0.5  # four standard errors at most
    assert found[3] == 0
    edges = torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64)
    assert choose(logits.expand(2, -1), 1.0, edges).tolist() == [0, 4]


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [(3, 1.0, [0, 1, 4]), (0, 0.7, [0, 4]), (0, 0.5, [0]), (2, 0.5, [0]), (2, 0.999, [0, 4]), (9, 0.99, [0, 1, 2, 4])],
)
def test_cuts_of_the_distribution(top_k, top_p, kept):
    """Shares before the cut are about 0.62, 0.08, 0.03, 0, 0.23: after top_k 2 the first alone has 0.73."""
    logits = torch.tensor([2.0, 0.0, -1.0, float("-inf"), 1.0])
    draws = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    tokens = choose(logits.expand(len(draws), -1), 1.0, draws, top_k=top_k, top_p=top_p)
    found = torch.bincount(tokens, minlength=5) / len(draws)
    share = torch.zeros(5)
    share[kept] = logits[kept].softmax(-1)
    torch.testing.assert_close(found, share, atol=5e-4, rtol=0)


def test_stop_strings_cut_the_answer(gpt2):
    whole = generate(gpt2, PROMPTS, max_new_tokens=12)
    mark = whole[1][len(whole[1]) // 2 :][:2]
    stopped = generate(gpt2, PROMPTS, max_new_tokens=12, stop=[mark, "never there"])
    assert stopped == [text.split(mark)[0] for text in whole]
    assert mark in whole[1] and stopped[1] != whole[1]


def test_refusals(small):
    with pytest.raises(BadInput, match="needs a generator"):
        generate(small, ["a"], temperature=1.0)
    with pytest.raises(BadInput, match="temperature is -1"):
        generate(small, ["a"], temperature=-1)
    with pytest.raises(BadInput, match=r"Prompt 1 has .* context of 128"):
        generate(small, ["a", "one " * 200])
    with pytest.raises(BadInput, match="stop string is empty"):
        generate(small, ["a"], stop=[""])
    assert generate(small, []) == []


def test_what_is_written_in_which_batches(small, monkeypatch):
    """Longest prompts first, the answers in the order of the prompts; 64 tokens and 32 rows unless it is said otherwise."""
    seen = []

    def write(language_model, rows, ends, limits, following, *, stop):
        seen.append((rows, limits, stop))
        yield from ((row, Written(text=str(ids[-1]))) for row, ids in enumerate(rows))

    monkeypatch.setattr(generating, "write", write)
    ids = {"a": [1], "b": [1, 2, 3], "c": [1, 2], "d": [1, 4]}
    monkeypatch.setattr(generating, "encode_prompts", lambda model, prompts: ([ids[p] for p in prompts], frozenset()))
    assert generate(small, ["a", "b", "c", "d"], batch_size=3, max_new_tokens=5, stop=["x"]) == ["1", "3", "2", "4"]
    assert seen == [([[1, 2, 3], [1, 2], [1, 4]], [5] * 3, ("x",)), ([[1]], [5], ("x",))]
    seen.clear()
    generate(small, ["a"] * 33)
    assert [(len(rows), limits[0], stop) for rows, limits, stop in seen] == [(32, 64, ()), (1, 64, ())]


def test_draws_are_made_before_anything_else_row_by_row(small, monkeypatch):
    """The k-th number of a prompt's row decides its k-th token, whatever batch it is in; greedy draws none."""
    seen = []
    monkeypatch.setattr(
        generating,
        "choose",
        lambda logits, temperature, uniform: seen.append((temperature, uniform)) or torch.zeros(len(logits)).long(),
    )
    generator = torch.Generator().manual_seed(7)
    expected = torch.rand(3, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    prompts = ["a", "a b c d e", "a b"]
    generate(small, prompts, max_new_tokens=2, temperature=0.5, generator=generator, batch_size=2)
    assert [temperature for temperature, _ in seen] == [0.5] * 4
    assert [uniform.tolist() for _, uniform in seen] == [
        [expected[row, step].item() for row in rows] for rows in ([1, 2], [0]) for step in (0, 1)
    ]
    seen.clear()
    state = generator.get_state()
    generate(small, prompts, max_new_tokens=1, generator=generator)
    assert seen == [(0.0, None)] and torch.equal(generator.get_state(), state)


def test_room_for_an_answer_is_counted_to_the_last_token(small):
    ((ids,), _) = encode_prompts(small, ["one"])
    room = small.context - len(ids)
    with pytest.raises(BadInput) as caught:
        generate(small, ["one"], max_new_tokens=room + 1)
    assert str(caught.value) == (
        f"Prompt 0 has {len(ids)} tokens; with {room + 1} new ones that is more than the context of 128: shorten it, "
        "or lower max_new_tokens."
    )
    near = replace(small, model=copy.deepcopy(small.model))
    near.model.config.max_position_embeddings = len(ids) + 2
    assert generate(near, ["one"], max_new_tokens=2) == generate(small, ["one"], max_new_tokens=2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0 and batch_size 32: both must be at least 1."),
        ({"batch_size": 0}, "max_new_tokens is 64 and batch_size 0: both must be at least 1."),
        ({"stop": ["a", ""]}, "A stop string is empty, which would end every answer before it begins: leave it out."),
        ({"temperature": -0.5}, "The temperature is -0.5: use 0 for the likeliest answer, or a number above."),
        ({"temperature": float("inf")}, "The temperature is inf: use 0 for the likeliest answer, or a number above."),
        ({"temperature": float("nan")}, "The temperature is nan: use 0 for the likeliest answer, or a number above."),
        ({"temperature": 1e-9}, "Sampling needs a generator: pass generator=torch.Generator().manual_seed(seed)."),
    ],
)
def test_requests_that_are_wrong(small, options, sentence):
    with pytest.raises(BadInput) as caught:
        generate(small, ["a"], **options)
    assert str(caught.value) == sentence


def test_the_first_stop_string_ends_an_answer_wherever_it_is_named():
    words = {1: " one", 2: " two", 3: " one", 4: " three"}
    tokenizer = SimpleNamespace(
        decode=lambda ids, skip_special_tokens, clean_up_tokenization_spaces: "".join(words[i] for i in ids),
        convert_ids_to_tokens=words.get,
    )
    model = SimpleNamespace(tokenizer=tokenizer)
    for stop, text, ended in (
        ((), "one two one three", False),
        (("three", "two"), "one ", True),
        (("two", "three"), "one ", True),
        (("one",), "", True),
        (("four",), "one two one three", False),
    ):
        assert generating._text(model, [1, 2, 3, 4], stop) == (text, ended)
    words[1] = "  one"
    assert generating._text(model, [1], ()) == ("  one", False)  # one blank joins both, two are the answer's own
    assert Written() == Written(tokens=[], text="", ended=False)


def test_a_row_ends_at_its_own_limit_or_when_it_leaves(small):
    """Rows of other lengths and limits, one that is told to leave after its second token; each tokens as it is alone."""
    rows = [[1, 50, 60], [1, 50], [1, 50, 60, 70]]

    def greedy(limits, which, leaves=lambda row: False):
        chosen = []

        def follow(logits, states, alive, step):
            chosen.append((list(alive), step))
            return logits.argmax(-1)

        with torch.no_grad():
            found = dict(write(small, [rows[i] for i in which], frozenset(), limits, follow, leaves=leaves))
        return {which[row]: (answer.tokens, answer.ended) for row, answer in found.items()}, chosen

    asked = []
    together, chosen = greedy([3, 1, 4], [0, 1, 2], lambda row: asked.append(row) or (row == 2 and asked.count(2) == 2))
    assert [len(together[row][0]) for row in range(3)] == [3, 1, 2]
    assert [together[row][1] for row in range(3)] == [False, False, True]
    assert chosen == [([0, 1, 2], 0), ([0, 2], 1), ([0], 2)]
    for row, limit in ((0, 3), (1, 1), (2, 2)):
        assert greedy([limit], [row])[0][row][0] == together[row][0]
    first = together[0][0]
    with torch.no_grad():
        ((_, answer),) = write(
            small, [rows[0]], frozenset(first[1:2]), [5], lambda logits, states, alive, step: logits.argmax(-1)
        )
    assert (answer.tokens, answer.ended) == (first[: first.index(first[1])], True)


def test_quantiles_and_cuts_at_their_edges():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    for draw, token in ((0.0, 0), (0.24, 0), (0.25, 1), (0.5, 2), (0.74, 2), (0.75, 3), (1.0, 3)):
        assert choose(logits, 1.0, torch.tensor([draw], dtype=torch.float64)).tolist() == [token]
    assert choose(torch.tensor([[1.0, 3.0, 3.0]]), 0.0, None).tolist() == [1]

    def kept(top_k=0, top_p=1.0):
        draws = torch.tensor([(i + 0.5) / 64 for i in range(64)], dtype=torch.float64)
        values = torch.tensor([0.125, 0.5, 0.25, 0.125]).log().expand(64, -1)
        return sorted(set(choose(values, 1.0, draws, top_k=top_k, top_p=top_p).tolist()))

    assert [kept(top_k=k) for k in (0, 1, 2, 4, 5)] == [[0, 1, 2, 3], [1], [1, 2], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert kept(top_k=3) == [0, 1, 2, 3]  # of equal ones none is cut
    assert [kept(top_p=p) for p in (0.01, 0.49, 0.51, 0.74, 0.76, 0.88)] == [
        [1],
        [1],
        [1, 2],
        [1, 2],
        [0, 1, 2],
        [0, 1, 2, 3],
    ]
    assert kept(top_k=2, top_p=0.6) == [1] and kept(top_k=2, top_p=0.7) == [1, 2]


@pytest.mark.parametrize("name", ["cache", *STATES])
def test_rows_that_are_repeated_share_their_beginning(small, gpt2, name):
    """Each of its repeats is continued by itself; rows are numbered one by one, and end one by one."""
    torch.manual_seed(1)
    model = gpt2
    if name != "cache":
        made = STATES[name](vocab_size=len(small.tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2).eval()
        model = replace(small, model=made)
    rows, seen = [[1, 50, 60], [1, 50, 70, 80, 90]], []

    def follow(logits, states, alive, step):
        seen.append((list(alive), step))
        torch.testing.assert_close(model.model.get_output_embeddings()(states), logits, atol=1e-5, rtol=1e-5)
        ranks = torch.tensor([row % 3 for row in alive])  # the likeliest token, the next and the third
        return logits.argsort(dim=-1, descending=True)[range(len(alive)), ranks]

    limits = [4, 1, 3, 2, 4, 4]
    with torch.no_grad():
        found = dict(write(model, rows, frozenset(), limits, follow, repeats=3))
    assert [len(found[row].tokens) for row in range(6)] == limits
    assert seen == [([0, 1, 2, 3, 4, 5], 0), ([0, 2, 3, 4, 5], 1), ([0, 2, 4, 5], 2), ([0, 4, 5], 3)]
    for row, answer in found.items():
        ids = list(rows[row // 3])
        for token in answer.tokens:
            with torch.no_grad():
                logits = model.model(torch.tensor([ids])).logits[0, -1]
            assert token == int(logits.argsort(descending=True)[row % 3])
            ids.append(token)
    assert len({tuple(found[row].tokens[:1]) for row in range(3)}) == 3


def test_a_beginning_is_read_once_however_often_it_is_repeated(gpt2, monkeypatch):
    read = []
    forward = gpt2.model.forward
    monkeypatch.setattr(
        gpt2.model, "forward", lambda **inputs: read.append(tuple(inputs["input_ids"].shape)) or forward(**inputs)
    )
    monkeypatch.setattr(generating, "_reader", lambda *given: generating._WithCache(*given))
    monkeypatch.setattr(generating.inspect, "signature", lambda function: SimpleNamespace(parameters=["position_ids"]))
    with torch.no_grad():
        list(write(gpt2, [[1, 5, 6, 7]], frozenset(), [3] * 5, lambda logits, *_: logits.argmax(-1), repeats=5))
    assert read == [(1, 4), (5, 1), (5, 1)]


def test_prompts_without_room_go_by_their_names(small):
    generating.check_room(small, [[1] * 100, [1] * 120], 8)
    with pytest.raises(BadInput, match=r"^Prompt 'two' has 121 tokens; with 8 new ones"):
        generating.check_room(small, [[1] * 100, [1] * 121], 8, ["'one'", "'two'"])


def test_all_that_may_be_chosen_is_where_nothing_is_cut():
    """A token so rare that the others sum to 1 is cut by no share of 1, nor by as many tokens as there are."""
    logits, first = torch.tensor([[-40.0, 0.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert choose(logits, 1.0, first).tolist() == [0] == choose(logits, 1.0, first, top_k=2, top_p=1.0).tolist()
    assert choose(logits, 1.0, first, top_k=1).tolist() == [1] == choose(logits, 1.0, first, top_p=0.5).tolist()


def test_rows_of_a_cache_are_chosen_only_where_some_leave_or_are_repeated(gpt2, monkeypatch):
    """Each choice copies the cache."""
    chosen = []

    def choice(cache):
        choose_rows = row_choice(cache)
        return lambda lines: chosen.append(lines.tolist()) or choose_rows(lines)

    monkeypatch.setattr("equipoise.language.cache.row_choice", choice)
    for limits, repeats, due in (
        ([3, 3], 1, []),
        ([1, 3], 1, [[1]]),
        ([3, 2], 1, [[0]]),
        ([3, 3, 1, 3], 2, [[0, 0, 1, 1], [0, 1, 3]]),
    ):
        chosen.clear()
        with torch.no_grad():
            list(
                write(
                    gpt2,
                    [[1, 5], [1, 6, 7]],
                    frozenset(),
                    limits,
                    lambda logits, *_: logits.argmax(-1),
                    repeats=repeats,
                )
            )
        assert chosen == due
