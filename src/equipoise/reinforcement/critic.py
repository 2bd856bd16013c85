"""A critic: a decoder that reads a prompt, or a response along, and says how likely success is.

    critic = Critic.of(language_model, seed=0)          a copy of the model's own body, and a new linear map to one number
    logits = prompt_logits(critic, rows, pad_id)        one a prompt, [B]: SPPO's V, sigmoid(logit) is the chance of success

SPPO's reads the prompt alone (arXiv:2604.08865): what was answered cannot reach it. PPO's gives a value before each token of
the response. Any decoder of transformers is a body, also a smaller one than the policy's, with the policy's tokenizer.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput
from equipoise.core.files import read_regular, write_atomic
from equipoise.language.pretrained import without_bars
from equipoise.language.rollouts import padded
from equipoise.language.templates import DATE

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

_HEAD = "critic_head.safetensors"
_SETTINGS = "critic.json"
_FORMAT = {"critic": 1}
_NEAREST = 0.01  # to 0 and 1 that a critic begins


class Critic(nn.Module):
    """A decoder's body and a linear map from its last states to a logit, [B, L] -> [B, L]; in evaluation mode.

    bias: what the logit is about before anything is learnt; logit(mean reward) begins where a constant baseline stands.
    """

    def __init__(self, body: nn.Module, *, seed: int, bias: float = 0.0) -> None:
        super().__init__()
        self.body = body
        config: Any = body.config
        width = config.get_text_config().hidden_size
        parameter = next(body.parameters())
        # Not by its own draws, which would be from the global state.
        self.head: Any = nn.utils.skip_init(nn.Linear, width, 1, dtype=parameter.dtype, device=parameter.device)
        drawn = torch.randn(1, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            self.head.weight.copy_(0.02 * drawn / width**0.5)
            self.head.bias.fill_(bias)
        self.eval()

    @classmethod
    def of(cls, language_model: LanguageModel, *, seed: int, bias: float = 0.0) -> Critic:
        """The critic whose body is a copy of a language model's own, all of it trainable."""
        model: Any = language_model.model
        if hasattr(model, "peft_config"):
            raise BadInput(f"{language_model.name} has an adapter: make its critic before the adapter is attached.")
        body = copy.deepcopy(model.base_model).requires_grad_(True)
        return cls(body, seed=seed, bias=bias)

    def start_at(self, rate: float) -> None:
        """Begin where a constant baseline stands: its logit is about that of this mean reward, kept from 0 and 1."""
        rate = min(max(rate, _NEAREST), 1 - _NEAREST)
        with torch.no_grad():
            self.head.bias.fill_(math.log(rate / (1 - rate)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if "position_ids" in inspect.signature(self.body.forward).parameters:
            # Each row's own first token is place 0, wherever padding stands.
            given["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        states = self.body(**given).last_hidden_state
        return self.head(states).squeeze(-1).float()

    def save(self, folder: str | Path, tokenizer: Any = None) -> None:
        """A folder of safetensors: the body as transformers writes it, the linear map, and what `load` needs."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        body: Any = self.body
        with without_bars():
            body.save_pretrained(folder)
        save_file(
            {name: each.detach().cpu().contiguous() for name, each in self.head.state_dict().items()}, folder / _HEAD
        )
        write_atomic(folder / _SETTINGS, json.dumps(_FORMAT))
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device = "cpu") -> Critic:
        """What `save` wrote. Raises BadInput for a folder that holds no critic."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        from transformers import AutoModel

        folder = Path(folder)
        try:
            if json.loads(read_regular(folder / _SETTINGS)) != _FORMAT:
                raise ValueError(f"{_SETTINGS} is of another version")
            head = load_file(folder / _HEAD)
            with without_bars():
                body = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=head["weight"].dtype)
            critic = cls(body, seed=0)
            critic.head.load_state_dict(head)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(
                f"{folder} holds no critic ({reason}): give the critic folder of reinforce or solvable."
            ) from error
        return critic.to(device).eval()


def prompt_logits(critic: nn.Module, rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> Tensor:
    """The critic's logit at the last token of each row of token ids, [B]: what it says of a prompt, before any response."""
    return last_logits(critic, *padded(rows, pad_id, device))


def last_logits(critic: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The critic's logit at the last token of each row that is padded on the right, [B]."""
    logits = critic(input_ids, attention_mask)
    return logits.gather(-1, attention_mask.sum(dim=-1, keepdim=True) - 1).squeeze(-1)


def token_logits(critic: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The critic's value of the state before each response token of a `Rollouts.batch`, [B, T]; 0 where there is none."""
    values = critic(batch["input_ids"], batch["attention_mask"])
    mask = batch["mask"]
    return values.new_zeros(mask.shape).index_put((*mask.nonzero(as_tuple=True),), values[batch["predicts"]])


def is_critic(path: str | Path) -> bool:
    """Whether a folder is one that `Critic.save` wrote."""
    return (Path(path) / _SETTINGS).is_file()


def reader(critic: Critic, folder: str | Path, *, chat_template: str = "auto", date: Any = DATE) -> LanguageModel:
    """What reads prompts for a critic that was saved: its body, with the tokenizer beside it, as `encode_prompts` takes it.

    Raises BadInput for a folder without a tokenizer.
    """
    from transformers import AutoTokenizer, GenerationConfig

    from equipoise.language.model import wrap

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(
            f"{folder} has no tokenizer beside the critic: save both, critic.save(folder, tokenizer)."
        ) from error
    body: Any = critic.body
    body.generation_config = GenerationConfig()  # a body alone has none, where the end of a text is looked up
    return wrap(body, tokenizer, name=Path(folder).name, chat_template=chat_template, date=date)


def open_critic(path: str | Path, language_model: LanguageModel, *, seed: int) -> Critic:
    """A critic that was saved, or a new one on the body of another, mostly smaller model, for the prompts of this model.

    Raises BadInput for a body with another number of tokens: it would read other words.
    """
    from equipoise.language.model import load

    path = Path(path)
    if is_critic(path):
        critic = Critic.load(path, device=language_model.device)
    else:
        critic = Critic.of(load(path, device=str(language_model.device)), seed=seed)
    body: Any = critic.body
    known = body.get_input_embeddings().weight.shape[0]
    if known != language_model.vocabulary:
        raise BadInput(
            f"the critic {path} knows {known} tokens and {language_model.name} {language_model.vocabulary}: it must read "
            "prompts by the same tokenizer."
        )
    return critic.requires_grad_(True)
