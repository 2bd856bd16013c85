"""The parts that chat models play in a job: one record, one account and one budget for all of them.

    roles = Roles([Role("reader", "openai/gpt-4o"), Role("grader", like="reader")], budget="calls=500")
    with roles.open(folder) as players:
        replies = players.chat("reader").ask(calls)

A job declares its options with the types of `options` and reads them by the names of its roles:
`Roles.read(asked, Role("reader"), Role("grader", like="reader"))`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from equipoise.chat.account import OWN, Account
from equipoise.chat.client import Chat, identity, resolve
from equipoise.chat.record import Record
from equipoise.core.budget import Budget
from equipoise.core.errors import BadInput, MissingExtra, did_you_mean
from equipoise.core.secrets import SECRET_NAME, named_secrets

RECORD = "calls.jsonl"  # in the folder of a job


@dataclass(frozen=True, eq=False)
class Role:
    """A part in a job, and who plays it.

    name: as in the options, where `reader` has `reader_args` and `reader_url`. player: the name of a model, one of the words
    of `own` for what the job does without one, or an object with all of `methods`; None for nobody, which only an `optional`
    part may have. like: where nobody is named, whoever plays this other role plays it. local: the model is one of this
    machine or of the hub, run in this process. asked: False for a model that is not asked by chat, such as a local one whose
    log-probabilities are read.
    """

    name: str
    player: Any = None
    arguments: Mapping[str, Any] | None = None
    url: str | None = None
    methods: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    like: str | None = None
    optional: bool = False
    local: bool = False
    asked: bool = True

    @property
    def model(self) -> str | None:
        """The name of the model that plays it, None where none does."""
        if not isinstance(self.player, str) or self.player in self.own:
            return None
        return OWN + self.player.removeprefix(OWN) if self.local else self.player

    def check(self) -> None:
        """Raises BadInput for who cannot play it, and for arguments that would be ignored or hold a secret."""
        player, needs = self.player, ", ".join(self.methods)
        if player is None:
            able = self.optional or self.like is not None
        else:
            able = isinstance(player, str) or (needs and all(hasattr(player, name) for name in self.methods))
        if not able:
            wanted = f"a name, or an object with {needs}" if needs else "the name of a model"
            raise BadInput(f"The {self.name} is {player!r:.80}: expected {wanted}.")
        if (self.arguments or self.url) and self.model is None:
            raise BadInput(f"{self.name}_args and {self.name}_url are for a named model; this {self.name} is none.")
        check_no_secrets(self.arguments, self.url)


class Roles:
    """Who plays what and how they are asked, found right; nothing is opened yet.

    prices: model -> dollars per million tokens read and written, or read, read from a cache, and written. replay: the
    record that alone answers, offline. max_connections: calls of a model at once.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        *,
        prices: Mapping[str, Sequence[float]] | None = None,
        budget: str | Budget | None = None,
        replay: str | Path | None = None,
        max_connections: int | None = None,
    ) -> None:
        """Raises BadInput for what cannot be meant, would be ignored, or holds a secret."""
        self.budget = Budget.parse(budget) if isinstance(budget, str) else budget
        self.max_connections = max_connections
        for role in roles:
            role.check()
        first = {role.name: role for role in reversed(roles)}
        self.roles = [_played(role, first) for role in roles]
        _refuse_one_name_for_two(self.roles)
        self.prices = self._priced(prices or {})
        if self.budget is not None and "usd" in self.budget.limits and replay is None:
            self._check_all_priced()
        self.replay = None if replay is None else Record(replay, read_only=True)
        shared = {"budget": budget, "replay": replay, "max_connections": max_connections}
        given = [name for name, value in shared.items() if value is not None]
        if given and not any(role.asked and role.model for role in self.roles):
            raise BadInput(f"{given[0]} is for chat models, and none is asked here; leave it out.")

    @classmethod
    def read(cls, asked: SimpleNamespace, *roles: Role) -> Roles:
        """From the options of a job. An option that lists several models gives as many roles of its name."""
        given = vars(asked)
        played: list[Role] = []
        for role in roles:
            named = given[role.name]
            how = {"arguments": given.get(f"{role.name}_args"), "url": given.get(f"{role.name}_url")}
            # An empty list of a role that must be played is refused below, as any other wrong player.
            players = named if isinstance(named, list | tuple) and (named or role.optional) else [named]
            played += [replace(role, player=player, **how) for player in players]
        shared = ("prices", "budget", "replay", "max_connections")
        return cls(played, **{name: given.get(name) for name in shared})

    @property
    def models(self) -> list[str]:
        """The models that take part, by the names that were given."""
        return [role.model for role in self.roles if role.model is not None]

    @contextlib.contextmanager
    def open(self, folder: str | Path | None) -> Iterator[Players]:
        """Every model that is asked, with the memory of the folder (calls.jsonl), or with one that is not kept.

        Raises BadInput, MissingExtra among them, for what cannot be had: before a call is paid for.
        """
        account, chats = Account(self.prices), dict[str, list[Chat]]()
        with contextlib.ExitStack() as opened:
            record = self.replay
            for role in self.roles:
                if role.model is None or not role.asked:
                    continue
                if record is None:
                    if importlib.util.find_spec("inspect_ai") is None:
                        raise MissingExtra("Asking a chat model needs Inspect AI: pip install 'equipoise[chat]'")
                    record_folder = folder or opened.enter_context(tempfile.TemporaryDirectory())
                    record = opened.enter_context(Record(Path(record_folder) / RECORD))
                chat = Chat(
                    role.model,
                    record=record,
                    account=account,
                    budget=self.budget,
                    model_args=role.arguments,
                    base_url=role.url,
                    max_connections=self.max_connections,
                    offline=self.replay is not None,
                )
                chat.open()
                chats.setdefault(role.name, []).append(opened.enter_context(chat))
            yield Players(self.roles, chats, account)

    def _priced(self, prices: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float, float]]:
        """Prices by the names that the account knows. Raises BadInput for one of a model that takes no part."""
        known = {name: full for model in self.models for full in [resolve(model)[0]] for name in (model, full)}
        for model in prices.keys() - known.keys():
            raise BadInput(f"There is a price for {model!r}, which takes no part. {did_you_mean(model, self.models)}")
        return {known[model]: (each[0], each[-2], each[-1]) for model, each in prices.items()}

    def _check_all_priced(self) -> None:
        account = Account(self.prices)
        for model in self.models:
            if not account.has_price(resolve(model)[0]):
                raise BadInput(
                    f"A budget in usd needs the price of {model}: --prices {model}=READ:WRITTEN, dollars per million tokens."
                )


class Players:
    """Who plays each role, ready to be asked. chats: of the models, by role; account: of all their calls."""

    def __init__(self, roles: Sequence[Role], chats: Mapping[str, Sequence[Chat]], account: Account) -> None:
        self._objects = {role.name: role.player for role in reversed(roles)}
        self._chats, self.account = chats, account

    def __getitem__(self, name: str) -> Any:
        """The chat of a role; where no model is asked, its object, its word, or None."""
        return self._chats[name][0] if name in self._chats else self._objects[name]

    def chat(self, name: str) -> Chat:
        """The chat of a role that a model plays."""
        return self._chats[name][0]

    def chats(self, name: str) -> Sequence[Chat]:
        """The chats of all models that play a role, in order."""
        return self._chats.get(name, ())


def check_no_secrets(arguments: Mapping[str, Any] | None, url: str | None) -> None:
    """Raises BadInput for a key at any depth of the arguments, which are stored and shown in reports, or in an address."""
    try:
        address = urlsplit(url or "")
    except ValueError as error:
        raise BadInput(f"{url!r} is no address: {error}.") from None
    names = [name for name in arguments or {} if SECRET_NAME.search(name)]
    names += [name for name, text in named_secrets(arguments or {}) if text]
    asked = any(SECRET_NAME.search(name) for name, _ in parse_qsl(address.query, keep_blank_values=True))
    if names or asked or "@" in address.netloc:
        what = f"The argument {names[0]!r}" if names else "The address"
        raise BadInput(
            f"{what} holds a secret; keys belong into the variable of the environment that the provider reads."
        )


def _refuse_one_name_for_two(roles: Sequence[Role]) -> None:
    """Raises BadInput where the record could not tell two servers apart: its keys leave the host out, so that a model can
    move and its answers still be found.
    """
    seen: dict[str, Role] = {}
    for role in roles:
        if role.model is None or not role.asked:
            continue
        who = identity(resolve(role.model)[0], role.arguments or {}, role.url)
        other = seen.setdefault(json.dumps(who, sort_keys=True), role)
        if (other.url or "").rstrip("/") != (role.url or "").rstrip("/"):
            raise BadInput(
                f"The {other.name} and the {role.name} are {role.model} at two addresses, and each would get the other's "
                "answers from the record: give the servers different model names."
            )


def _played(role: Role, first: Mapping[str, Role]) -> Role:
    """The role with its player, its own or that of the role that it is like."""
    if role.player is not None or role.like is None:
        return role
    other = _played(first[role.like], first)
    filled = replace(role, player=other.player, arguments=other.arguments, url=other.url, local=other.local)
    filled.check()
    return filled
