"""The account on the disk: there before a call goes out, taken up by the next server, held against a second one."""

import asyncio
import json
import os

import pytest

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import seal
from equipoise.routing.controller import Controller
from equipoise.routing.serving_account import AccountFile


def stored(path):
    return json.loads(path.read_text())["state"]


def test_an_account_goes_on(tmp_path):
    path = tmp_path / "new" / "account.json"
    controller = Controller(0.3, 0.5)
    with AccountFile(path, controller, "router").held() as resumed:
        assert not resumed
        for score in (0.1, 0.9, 0.1, 0.1):
            controller.decide(score)
        asyncio.run(AccountFile(path, controller, "router").save())
    again = Controller(0.3, 0.5)
    with AccountFile(path, again, "router").held() as resumed:
        assert resumed
    assert again.state() == controller.state()
    other = Controller(0.3, 0.5)
    assert AccountFile(path, other, "another router").resume()
    assert other.state() == {**controller.state(), "recent": []}


def test_what_is_decided_before_is_on_the_disk_after_and_writes_are_shared(tmp_path):
    controller = Controller(1.0, 0.5)
    account = AccountFile(tmp_path / "account.json", controller)
    writes, write = [], account._write
    account._write = lambda content: (writes.append(content), write(content))

    async def call():
        controller.force()
        mine = controller.calls
        await account.save()
        assert stored(account.path)["calls"] >= mine

    async def many():
        await asyncio.gather(*(call() for _ in range(50)))
        cancelled = asyncio.create_task(account.save())
        await asyncio.sleep(0)
        cancelled.cancel()
        await call()

    asyncio.run(many())
    assert stored(account.path)["calls"] == 51
    assert len(writes) <= 5


def test_a_second_server_is_refused(tmp_path):
    path = tmp_path / "account.json"
    first, second = (AccountFile(path, Controller(0.3, 0.5)) for _ in range(2))
    with first.held(), pytest.raises(WorkFailed, match="another server"), second.held():
        pass


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"my notes", seal({"account": 1}), seal({"account": 2, "router": "", "state": {}}),
     seal({"account": 1, "router": "", "state": {"calls": "many"}})],
)  # fmt: skip
def test_a_file_that_is_no_account_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "account.json"
    path.write_bytes(content)
    with pytest.raises(BadInput), AccountFile(path, Controller(0.3, 0.5)).held():
        pass
    assert path.read_bytes() == content


def test_an_altered_account_is_refused(tmp_path):
    path = tmp_path / "account.json"
    controller = Controller(0.3, 0.5)
    controller.force()
    AccountFile(path, controller).write()
    path.write_text(path.read_text().replace('"calls": 1', '"calls": 0'))
    with pytest.raises(BadInput, match="altered"):
        AccountFile(path, Controller(0.3, 0.5)).resume()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_where_nothing_can_be_written_is_known_before(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(BadInput, match="nothing can be written"):
        AccountFile(folder / "deep" / "account.json", Controller(0.3, 0.5)).resume()


def test_a_disk_that_fails_is_told(tmp_path):
    path = tmp_path / "account.json"
    account = AccountFile(path, Controller(0.3, 0.5))
    path.mkdir()
    with pytest.raises(WorkFailed, match="cannot be written"):
        asyncio.run(account.save())


def test_what_an_account_holds_and_which_ones_are_read(tmp_path):
    path = tmp_path / "account.json"
    controller = Controller(0.3, 0.5)
    controller.force()
    AccountFile(path, controller, "r").write()
    held = json.loads(path.read_text())
    assert {name: held[name] for name in ("account", "router", "state")} == {
        "account": 1,
        "router": "r",
        "state": controller.state(),
    }
    good = {"account": 1, "router": "r", "state": controller.state()}
    path.write_bytes(seal(good))
    assert AccountFile(path, Controller(0.3, 0.5), "r").resume() is True
    for wrong, said in (
        (seal(good | {"account": 2}), "of another version"),
        (seal(good | {"state": [controller.state()]}), "of another version"),
        (json.dumps(good).encode(), "of another version"),
        (seal(good | {"router": None}), "names no router"),
        (seal({name: good[name] for name in ("account", "state")}), "names no router"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(BadInput, match=said):
            AccountFile(path, Controller(0.3, 0.5), "r").resume()
    assert AccountFile(tmp_path / "none.json", Controller(0.3, 0.5)).resume() is False
    assert not (tmp_path / "none.json").exists()


def test_the_nearest_folder_that_is_there_has_to_be_one_that_can_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"nothing can be written in .*/file\."):
        AccountFile(tmp_path / "file" / "deep" / "account.json", Controller(0.3, 0.5)).resume()
    asked = []
    monkeypatch.setattr(os, "access", lambda *given: asked.append(given))
    with pytest.raises(BadInput, match="nothing can be written"):
        AccountFile(tmp_path / "a" / "b" / "account.json", Controller(0.3, 0.5)).resume()
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]
