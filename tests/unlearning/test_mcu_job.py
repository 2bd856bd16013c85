"""The job by MCU: what it writes and says, and that it goes on as if it had never been killed."""

import pytest

from equipoise.language.tiny import tiny
from equipoise.unlearning import forgetting, unlearn

COLOURS = ["red", "blue", "green", "black"]
FORGET, RETAIN = (
    [
        {"question": f"What colour is the {name} {what}?", "answer": colour}
        for name, colour in zip(names, COLOURS, strict=True)
    ]
    for names, what in (("abcd", "door"), ("efgh", "wall"))
)
WORDS = {
    "forget": FORGET,
    "retain": RETAIN,
    "method": "mcu",
    "components": 2,
    "steps": 4,
    "batch_size": 4,
    "cir_activations": 3,
    "cir_gradients": 3,
}


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    texts = [f"{row['question']} {row['answer']}" for row in FORGET + RETAIN]
    folder = tmp_path_factory.mktemp("model") / "made"
    tiny(texts, seed=0, width=32, layers=2, heads=2).save(folder)
    return folder


def test_killed_and_resumed_is_as_if_never_killed(folder, tmp_path, monkeypatch):
    words = WORDS | {"evaluate_every": 1, "update_length": 0.05, "loss_budget": 9.0}
    quiet = unlearn(folder, **words, out=tmp_path / "quiet")
    saved, save_state = [], forgetting.save_state

    def kill(path, state):
        save_state(path, state)
        saved.append(path)
        if len(saved) == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(forgetting, "save_state", kill)
        unlearn(folder, **words, out=tmp_path / "killed")
    again = unlearn(folder, **words, out=tmp_path / "killed")
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "quiet" / name).read_bytes(), name
    assert again.path == quiet.path and again.steps == 4
    assert quiet.resolved["components"] == 2 and "combine" not in quiet.resolved
    assert quiet.moved > 0.9 and "general_log_probability" in quiet.after
    assert any(note.startswith("general: 1 records held out of retain") for note in quiet.notes)
    card = (tmp_path / "quiet" / "README.md").read_text(encoding="utf-8")
    assert "in forget steps of length 0.05, each followed by a retain step" in card
