"""What was kept of one model's words is not continued by another."""

import pytest
import torch

from chat_models import untaught
from equipoise.core.errors import BadInput
from equipoise.core.rows import Rows
from equipoise.language.kept import keep_to


def test_rows_are_of_one_models_weights(tmp_path):
    path = tmp_path / "said.jsonl"
    model = untaught(0, context=64)
    for _ in range(2):
        keep_to(Rows(path), model)
    Rows(path).add({"first": 0})
    assert ["weights" in row for row in Rows(path)] == [True, False]
    keep_to(Rows(path), untaught(0, context=64))
    with torch.no_grad():
        model.model.get_input_embeddings().weight[0] += 1
    with pytest.raises(BadInput, match="begun with: its weights are others now"):
        keep_to(Rows(path), model)
    keep_to(Rows(None), model)
