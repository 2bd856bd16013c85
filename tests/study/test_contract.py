"""What every study that is found must keep to: packaged, plugged in, in any order."""

import inspect
import json

import pytest

from equipoise.cli import study as command
from equipoise.study import registry
from equipoise.study.fingerprint import code_of

NAMES = registry.names()
FLAGS = {name.strip("_") for name in inspect.signature(command.run).parameters} - {"options"}


def test_there_are_studies():
    assert "sago" in NAMES
    assert [each.name for each in registry.found().values() if each.declaration is None] == []


@pytest.mark.parametrize("name", NAMES)
class TestEveryStudy:
    def test_is_fair(self, name):
        study = registry.load(name).build()
        kinds = {arm.kind for arm in study.arms}
        assert {"baseline", "control"} <= kinds or study.without_control
        assert study.seeds >= 3
        points = {len(arm.points()) for arm in study.arms if not arm.fixed}
        assert len(points) == 1

    def test_says_where_its_claims_come_from_and_on_what_scale_it_was_run(self, name):
        study = registry.load(name).build()
        assert study.claims and study.scale and study.summary and study.trades and study.paper
        assert all(claim.source and (claim.test is not None or claim.untested) for claim in study.claims)
        assert any(claim.judged for claim in study.claims)

    def test_measures_both_sides_of_the_trade(self, name):
        study = registry.load(name).build()
        assert len(study.outcomes) >= 2
        assert len({outcome.name for outcome in study.outcomes}) == len(study.outcomes)

    def test_can_be_rebuilt_from_what_is_stored(self, name):
        declaration = registry.load(name)
        study = declaration.build()
        stored = json.loads(json.dumps(study.options))
        again = declaration.build(**stored)
        assert again.options == study.options
        assert [(arm.name, arm.points()) for arm in again.arms] == [(arm.name, arm.points()) for arm in study.arms]
        json.dumps([arm.points() for arm in study.arms], allow_nan=False)

    def test_options_do_not_hide_behind_flags_of_the_command(self, name):
        assert not FLAGS & set(registry.load(name).options())

    def test_its_code_is_reached(self, name):
        declaration = registry.load(name)
        code = code_of(declaration.source)
        assert not [module for module in code.modules if module.startswith(("equipoise.study.", "equipoise.cli"))]
        assert len(code.digest) == 64
