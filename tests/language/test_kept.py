"""What was kept of one model's words is not continued by another."""

import copy
from dataclasses import replace

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


@pytest.mark.parametrize("place", [(0, 0), (7, 3), (-1, -1)])
def test_one_number_anywhere_makes_another_model_and_another_precision_none(tmp_path, place):
    path, model = tmp_path / "said.jsonl", untaught(0, context=64)
    keep_to(Rows(path), model)
    keep_to(Rows(path), replace(model, model=copy.deepcopy(model.model).to(torch.bfloat16)))
    with torch.no_grad():
        model.model.get_input_embeddings().weight[place] += 1
    with pytest.raises(BadInput, match="begun with: its weights are others now"):
        keep_to(Rows(path), model)


def test_rows_that_an_earlier_version_began_say_so(tmp_path):
    rows = Rows(tmp_path / "said.jsonl")
    rows.add({"weights": "0" * 64})
    with pytest.raises(BadInput, match="begun by an earlier version, which noted a part of the model's weights"):
        keep_to(rows, untaught(0, context=64))
