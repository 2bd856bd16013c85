"""Layers that write in place keep what plain ones would, and how much is computed at once."""

import torch
from transformers import DynamicCache

from equipoise.language import cache, rollouts, score


def test_a_layer_with_room_holds_what_was_written(monkeypatch):
    """Keys of width 3 grow past the room of two again and again; rows may be chosen between."""
    monkeypatch.setattr(cache, "_ROOM", 2)
    generator, plain = torch.Generator().manual_seed(0), DynamicCache()
    first = [torch.randn(2, 2, 4, 3, generator=generator) for _ in range(2)]
    plain.update(*first, 0)
    roomy = cache.with_room(plain)
    (layer,) = roomy.layers
    assert isinstance(layer, cache._RoomyLayer) and roomy.get_seq_length() == 4
    keys, values = first
    for step, length in enumerate((1, 1, 1, 3, 1, 2)):
        new = [torch.randn(len(keys), 2, length, 3, generator=generator) for _ in range(2)]
        found = layer.update(*new)
        keys, values = torch.cat([keys, new[0]], dim=-2), torch.cat([values, new[1]], dim=-2)
        assert found[0].equal(keys) and found[1].equal(values) and layer.get_seq_length() == keys.shape[-2]
        assert keys.shape[-2] <= layer._room[0].shape[-2] <= keys.shape[-2] + 2
        if step == 2:
            layer.reorder_cache(torch.tensor([1]))
            keys, values = keys[1:], values[1:]
            assert layer.keys.equal(keys) and not layer._room
    longer = cache._longer(keys, 20)
    assert longer.shape == (1, 2, 20, 3) and longer[..., : keys.shape[-2], :].equal(keys)


def test_logits_at_once_fit_into_so_many_megabytes():
    """In float32, as is stated beside them."""
    assert rollouts._LOGITS_AT_ONCE * 4 == 64 * 2**20 and score._LOGITS_AT_ONCE * 4 == 256 * 2**20
