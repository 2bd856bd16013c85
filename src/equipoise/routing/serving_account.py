"""The account of calls as a file: a call is on the disk before it goes out, so that no restart makes the budget larger.

Written whole, by a rename, with a digest of itself. Calls that are decided while one write is on its way share the next.
What was answered locally since the last call may be lost in a kill: then fewer calls are left than there could be, never
more.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import FILES, lock, read_regular, seal, unseal, write_atomic
from equipoise.routing.controller import Controller

_VERSION = 1


class AccountFile:
    """Where a controller's account is kept. router: a digest of the router, whose scores no other router goes on with."""

    def __init__(self, path: Path, controller: Controller, router: str = "") -> None:
        self.path, self._controller, self._router = path, controller, router
        self._next: asyncio.Task[None] | None = None
        self._last: asyncio.Task[None] | None = None

    def resume(self) -> bool:
        """Take up the account that the file holds; whether there was one. Changes no file.

        Raises BadInput for a file that is no account, was altered, or lies where nothing can be written.
        """
        found = self._read()
        above = self.path.absolute().parent
        while not above.exists():
            above = above.parent
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise BadInput(f"--account {self.path}: nothing can be written in {above}.")
        if found is not None:
            self._controller.restore(found["state"], scores=found["router"] == self._router)
        return found is not None

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Holds the file against other servers, and takes up its account; whether there was one.

        Raises BadInput as `resume` does, and WorkFailed where another server has it.
        """
        path = self.path
        holder = f"another server that keeps the account {path}"
        with lock(path.with_name(f".{path.name}.lock"), waiting_for=holder):
            resumed = self.resume()
            self.write()
            yield resumed

    def write(self) -> None:
        """Write it now. Raises WorkFailed where that is not possible."""
        self._write(self._content())

    async def save(self) -> None:
        """Returns when everything that was decided before is on the disk. Raises WorkFailed where that is not possible."""
        if self._next is None:
            self._next = asyncio.create_task(self._write_next(self._last))
        await asyncio.shield(self._next)  # a client that goes must not end the write of others

    async def _write_next(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        self._last, self._next = self._next, None
        content = self._content()
        await asyncio.to_thread(self._write, content)

    def _content(self) -> bytes:
        return seal({"account": _VERSION, "router": self._router, "state": self._controller.state()})

    def _write(self, content: bytes) -> None:
        try:
            write_atomic(self.path, content)
            FILES.sync_folder(self.path.parent)
        except OSError as error:
            raise WorkFailed(f"The account {self.path} cannot be written ({error.strerror or error}).") from error

    def _read(self) -> Mapping[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            found, sealed = unseal(read_regular(self.path))
            if not sealed or found.get("account") != _VERSION or not isinstance(found.get("state"), dict):
                raise ValueError("it is none, or one of another version")
            if not isinstance(found.get("router"), str):
                raise ValueError("it names no router")
        except (OSError, ValueError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(
                f"{self.path} cannot be read as an account of calls ({error}): name another --account, or move the "
                "file away to begin a new one."
            ) from error
        return found
