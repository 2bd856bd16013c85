"""Who's the Spy as an environment: four players, one of whom has another word than the rest and is not told so.

Three share a word, the spy has a related one; who is the spy, and which seat the model has, is drawn. In two rounds each
player in the order of seats gives a clue, then all vote at once, not for themselves; whoever has most votes is out, ties at
random. The civilians win when the spy is out, the spy when somebody else is. The model's three turns are two clues and a
vote: 1 when its side wins, else 0. A clue that may not be given is lost and costs 0.1; a vote that cannot be read loses the
game and costs 0.1 (GIFT, arXiv:2601.05633; its vote prompt tells civilian and spy apart, here both read the same).

The other players are functions text -> text and see what a person at the table would. `ScriptedPlayer` is one without a
model: it says what is true of its word, and votes for whose clues fit it least.

English, "spy"      everyday words (`spy_words.txt`), clues in sentences
Bits, "spy-bits"    a toy for models of characters: a word is a vector of bits, written as the letters of those that are set
                    ("acd"), a clue one letter
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from random import Random
from typing import Any, Protocol

from equipoise.core.errors import BadInput
from equipoise.data.environment import ENVIRONMENTS
from equipoise.data.spoken import decided, one_number, unwrapped
from equipoise.data.text import printable

Player = Callable[[str], str]
SEATS = 4
ROUNDS = 2
INVALID = -0.1  # the reward of a clue or vote that does not count
RANDOM_VOTES = 0.375  # of successes when all vote at random: 1/4 of 3/4 as the spy, 3/4 of 1/4 as one of the others
LONGEST = 200  # characters of a clue that the others hear
CHARACTERS = "abcdefghijklmnopqrstuvwxyz1234:?!=+-\n"  # of all texts and actions of the toy


@dataclass(frozen=True, slots=True)
class Seen:
    """What a player knows. seat: from 1. clues: who said what so far, "" where a clue was lost. voting: or a clue."""

    seat: int
    word: str
    clues: tuple[tuple[int, str], ...]
    voting: bool


class Deck(Protocol):
    """The words of a game, and how its texts are written and read.

    scripted: whether there is something to say of every word. no_skill: the share of successes without skill beside scripted
    players, None where it is not known. lost_clue, lost_vote: what is said to one whose clue or vote does not count.
    """

    scripted: bool
    no_skill: float | None
    lost_clue: str
    lost_vote: str

    def draw(self, random: Random) -> tuple[str, str]:
        """The word of three players, and that of the spy."""
        ...

    def clues(self, word: str) -> Sequence[str]:
        """What a scripted player can say of a word."""
        ...

    def noise(self, random: Random) -> str:
        """A clue of one who has not seen its word."""
        ...

    def fit(self, clue: str, word: str) -> float:
        """How well a clue fits a word, from 0 to 1."""
        ...

    def heard(self, text: str, word: str) -> str:
        """The clue that a text gives to a word, "" where it gives none that may be given."""
        ...

    def write(self, seen: Seen, since: int = 0) -> str:
        """What a player reads: everything, or the clues from `since` on, and what it is to do."""
        ...

    def read(self, text: str) -> Seen:
        """What a player knows who reads everything."""
        ...

    def ending(self, out: int, spy: int, word: str, won: bool) -> str:
        """How the game ended: who is out, who was the spy, with which word."""
        ...


@dataclass(frozen=True, slots=True)
class ScriptedPlayer:
    """A player without a model: a function of its seed and of what it reads.

    Its clue is one of its word's that nobody has given; its vote goes to whose clues fit its word least, one of them at
    random.
    """

    deck: Deck
    seed: int

    def __call__(self, text: str) -> str:
        seen = self.deck.read(text)
        random = Random(self.seed << 8 | len(seen.clues))
        if not seen.voting:
            given, own = {clue for _, clue in seen.clues}, self.deck.clues(seen.word)
            return random.choice([clue for clue in own if clue not in given] or own)
        doubts = dict.fromkeys((seat for seat in range(1, SEATS + 1) if seat != seen.seat), 0.0)
        for seat, clue in seen.clues:
            if seat != seen.seat:
                doubts[seat] += 1 - self.deck.fit(clue, seen.word)
        most = max(doubts.values())
        return str(random.choice([seat for seat, doubt in doubts.items() if doubt == most]))


@ENVIRONMENTS.register("spy")
class Spy:
    """A game at a table with three others.

    players: the others in the order of their seats, the same ones in every episode; after the same texts they should say the
    same. Not given, scripted ones, drawn anew with each seed. deck: `English()` or another. Raises BadInput for another
    number of players, and for a deck whose words scripted players know nothing of.
    """

    def __init__(
        self, *, players: Sequence[Player] | None = None, deck: Deck | None = None, rounds: int = ROUNDS
    ) -> None:
        if rounds < 1 or (players is not None and len(players) != SEATS - 1):
            raise BadInput(f"rounds is {rounds} and players {players}: give at least 1, and {SEATS - 1} functions.")
        self._deck = deck or _english()
        if players is None and not self._deck.scripted:
            raise BadInput("Scripted players need something to say of every word: fill the pairs, or give players.")
        self._players, self._rounds = players, rounds
        self.max_turns = rounds + 1
        self.score_range = (self.max_turns * INVALID, 1.0)

    def reset(self, seed: int) -> str:
        """The rules, the model's word, and the clues of those before it."""
        self._random = random = Random(seed)
        word, other = self._deck.draw(random)
        self._seat, self._spy = random.randrange(SEATS), random.randrange(SEATS)
        self._words = [other if seat == self._spy else word for seat in range(SEATS)]
        others = self._players or [ScriptedPlayer(self._deck, random.getrandbits(32)) for _ in range(SEATS - 1)]
        seats = [seat for seat in range(SEATS) if seat != self._seat]
        self._others = dict(zip(seats, others, strict=True))
        self._clues: list[tuple[int, str]] = []
        self._listen()
        return self._deck.write(self._seen(self._seat))

    def step(self, text: str) -> tuple[str, float, bool, dict[str, Any]]:
        """Give a clue; after the rounds, vote."""
        if self._voting:
            return self._vote(text)
        clue = self._deck.heard(text, self._words[self._seat])
        self._clues.append((self._seat + 1, clue))
        since = len(self._clues)
        self._listen()
        reply = ("" if clue else self._deck.lost_clue) + self._deck.write(self._seen(self._seat), since)
        actions = [{"name": "clue", "arguments": {"text": clue}}] if clue else []
        return reply, 0.0 if clue else INVALID, False, {"success": False, "valid": bool(clue), "actions": actions}

    @property
    def _voting(self) -> bool:
        return len(self._clues) == SEATS * self._rounds

    def _seen(self, seat: int) -> Seen:
        return Seen(seat + 1, self._words[seat], tuple(self._clues), self._voting)

    def _listen(self) -> None:
        """The clues of the others until it is the model's turn."""
        while not self._voting and (seat := len(self._clues) % SEATS) != self._seat:
            said = self._others[seat](self._deck.write(self._seen(seat)))
            self._clues.append((seat + 1, self._deck.heard(said, self._words[seat])))

    def _vote(self, text: str) -> tuple[str, float, bool, dict[str, Any]]:
        own = _vote_of(text, self._seat)
        if own is None:
            return self._deck.lost_vote, INVALID, True, {"success": False, "valid": False, "actions": []}
        votes = Counter([own])
        for seat, player in self._others.items():
            vote = _vote_of(player(self._deck.write(self._seen(seat))), seat)
            votes.update([] if vote is None else [vote])
        most = max(votes.values())
        out = self._random.choice([seat for seat in range(SEATS) if votes[seat] == most])
        success = (out == self._spy) != (self._seat == self._spy)
        reply = self._deck.ending(out + 1, self._spy + 1, self._words[self._spy], success)
        action = {"name": "vote", "arguments": {"player": own + 1}}
        return reply, float(success), True, {"success": success, "valid": True, "actions": [action]}

    def chance_levels(self, episodes: int = 2000) -> dict[str, float]:
        """Played, with the seeds from 0: the successes of clues that know nothing of the game and of random votes."""
        won = 0
        for seed in range(episodes):
            random = Random(f"no skill {seed}")
            self.reset(seed)
            for _ in range(self._rounds):
                self.step(self._deck.noise(random))
            vote = random.choice([seat for seat in range(1, SEATS + 1) if seat != self._seat + 1])
            won += self.step(str(vote))[3]["success"]
        return {"success": won / episodes, "score": won / episodes}

    @property
    def chance(self) -> dict[str, float]:
        """What `chance_levels` told of 10,000 episodes of the decks as they come; else where all votes are random."""
        known = self._players is None and self._rounds == ROUNDS
        level = self._deck.no_skill if known and self._deck.no_skill is not None else RANDOM_VOTES
        return {"success": level, "score": level}


def _vote_of(text: str, seat: int) -> int | None:
    """The seat, from 0, that a text votes for, None where it names none, several, or its own."""
    vote = one_number(text)
    return vote - 1 if vote is not None and 1 <= vote <= SEATS and vote != seat + 1 else None


# Words and what can be said of them.


@dataclass(frozen=True, slots=True)
class WordPair:
    """Two words of a kind. both, of_first, of_second: what is true of both, or of one alone, as it goes on from "It"."""

    first: str
    second: str
    both: tuple[str, ...] = ()
    of_first: tuple[str, ...] = ()
    of_second: tuple[str, ...] = ()


@cache
def word_pairs() -> tuple[WordPair, ...]:
    """Those of `spy_words.txt`, a line each: "coffee, tea: is drunk hot, ... | of coffee alone | of tea alone"."""
    found: list[WordPair] = []
    for line in (Path(__file__).parent / "spy_words.txt").read_text(encoding="utf-8").splitlines():
        words, _, said = line.partition(": ")
        first, second = words.split(", ")
        both, of_first, of_second = (tuple(part.split(", ")) for part in said.split(" | "))
        found.append(WordPair(first, second, both, of_first, of_second))
    return tuple(found)


_RULES = (
    "You are Player {seat} of four in a game of Who's the Spy. Three players have the same word; the fourth, the spy, has a "
    "related one. Nobody is told who is the spy. In turn each gives clues to their word; then all vote. Whoever has most "
    'votes is out: the others win when it is the spy, the spy when it is not.\n\nYour word is "{word}".'
)
_SILENCE = "(says nothing)"
_GIVE = "Give a clue to your word in one sentence, without the word itself."
_VOTE = 'Vote for one of the other players to be out. Answer with their number, behind "Answer:" if you write more.'
_WORD = re.compile(r'^Your word is "(.+)"\.$', re.MULTILINE)
_SEAT = re.compile(r"You are Player (\d)")
_CLUE = re.compile(r"^Player (\d): (.+)$", re.MULTILINE)
_LABEL = re.compile(r"^\W*(?:Player \d|(?:My )?clue(?: is)?)\W*: *", re.IGNORECASE)
_EMPTY_WORDS = frozenset(
    re.findall(r"\w+", "a an and are as at be by can does for from has have in is it its of on or the to up with")
)


class English:
    """Everyday words, with clues in sentences. pairs: each as likely; not given, `word_pairs()`."""

    lost_clue = "Your clue was not heard: give one sentence, without the word itself.\n\n"
    lost_vote = "That is no vote: expected the number of another player."

    def __init__(self, pairs: Sequence[WordPair] | None = None) -> None:
        self.no_skill = 0.460 if pairs is None else None
        self._pairs = word_pairs() if pairs is None else tuple(pairs)
        if not self._pairs:
            raise BadInput("There are no pairs of words: give at least one.")
        own: dict[str, list[str]] = {}
        related: dict[str, list[str]] = {}
        for pair in self._pairs:
            first, second = ([_sentence(said) for said in each] for each in (pair.of_first, pair.of_second))
            both = [_sentence(said) for said in pair.both]
            for word, mine, theirs in ((pair.first, first, second), (pair.second, second, first)):
                own.setdefault(word, []).extend([*both, *mine])
                related.setdefault(word, []).extend(theirs)
        self._own = {word: tuple(dict.fromkeys(said)) for word, said in own.items()}
        self._related = {word: tuple(dict.fromkeys(said)) for word, said in related.items()}
        self._noise = tuple(said for word in self._own for said in self._own[word]) or ("It is a word.",)
        self.scripted = all(self._own.values())

    def draw(self, random: Random) -> tuple[str, str]:
        """Either word of a pair may be the spy's."""
        pair = random.choice(self._pairs)
        return (pair.first, pair.second) if random.random() < 0.5 else (pair.second, pair.first)

    def clues(self, word: str) -> Sequence[str]:
        """What is true of it, as sentences."""
        return self._own[word]

    def noise(self, random: Random) -> str:
        """What is true of any word."""
        return random.choice(self._noise)

    def fit(self, clue: str, word: str) -> float:
        """1 for what is true of the word, 0 for what is true of its relatives alone, 1/2 for what is neither.

        Other sentences count by the share of a known one's words that they hold.
        """
        own, related = (_overlap(clue, known[word]) for known in (self._own, self._related))
        return (1 + own - (related if related > own else 0)) / 2

    def heard(self, text: str, word: str) -> str:
        """What was said, in one line and without a label, cut at 200 characters; "" for nothing or the word itself."""
        return _heard(text, word)

    def write(self, seen: Seen, since: int = 0) -> str:
        """The rules where everything is written; a line a clue; what to do. Who the spy is shows nowhere."""
        lines = [f"Player {seat}: {clue or _SILENCE}" for seat, clue in seen.clues[since:]]
        rules = [] if since else [_RULES.format(seat=seen.seat, word=seen.word)]
        return "\n\n".join([*rules, *(["\n".join(lines)] if lines else []), _VOTE if seen.voting else _GIVE])

    def read(self, text: str) -> Seen:
        """By the lines that `write` writes."""
        word, seat = _WORD.search(text), _SEAT.search(text)
        assert word is not None and seat is not None
        clues = tuple((int(who), "" if clue == _SILENCE else clue) for who, clue in _CLUE.findall(text))
        return Seen(int(seat[1]), word[1], clues, text.endswith(_VOTE))

    def ending(self, out: int, spy: int, word: str, won: bool) -> str:
        """In sentences."""
        side = "won" if won else "lost"
        return f'Player {out} is out. The spy was Player {spy}, with the word "{word}". Your side has {side}.'


@lru_cache(4096)  # what scripted players say comes again and again
def _heard(text: str, word: str) -> str:
    said = _LABEL.sub("", printable(unwrapped(text)), count=1)[:LONGEST].strip()
    return "" if re.search(rf"(?<!\w){re.escape(word)}(?:e?s)?(?!\w)", said, re.IGNORECASE) else said


@cache
def _english() -> English:
    return English()


def _sentence(said: str) -> str:
    return f"It {said}."


@cache
def _content(sentence: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", sentence.lower())) - _EMPTY_WORDS


@lru_cache(16384)
def _overlap(clue: str, known: tuple[str, ...]) -> float:
    """The largest share of a known sentence's words that a clue holds."""
    if clue in known:
        return 1.0
    said = frozenset(re.findall(r"\w+", clue.lower()))
    return max((len(said & _content(each)) / len(_content(each)) for each in known), default=0.0)


class Bits:
    """Vectors of bits, `ones` of which are set, as letters ("acd"); those of a pair share all but ones - shared."""

    scripted, lost_clue, lost_vote = True, "=?\n", "=!\n"

    def __init__(self, bits: int = 6, ones: int = 3, shared: int = 2) -> None:
        if not 0 <= shared < ones or not 2 * ones - shared <= bits <= 26:
            raise BadInput(
                f"bits is {bits}, ones {ones} and shared {shared}: two words need 2 ones - shared of 26 letters."
            )
        self.no_skill = 0.380 if (bits, ones, shared) == (6, 3, 2) else None
        self._letters, self._ones, self._shared = "abcdefghijklmnopqrstuvwxyz"[:bits], ones, shared

    def draw(self, random: Random) -> tuple[str, str]:
        """Two words that differ in 2 (ones - shared) bits."""
        letters = random.sample(self._letters, 2 * self._ones - self._shared)
        both, first, second = letters[: self._shared], letters[self._shared : self._ones], letters[self._ones :]
        return "".join(sorted(both + first)), "".join(sorted(both + second))

    def clues(self, word: str) -> Sequence[str]:
        """Its letters."""
        return tuple(word)

    def noise(self, random: Random) -> str:
        """Any letter."""
        return random.choice(self._letters)

    def fit(self, clue: str, word: str) -> float:
        """1 for a letter of the word, else 0."""
        return float(clue != "" and clue in word)

    def heard(self, text: str, word: str) -> str:
        """A letter alone, of the word or not; "" for none or several."""
        letters = set(re.findall(rf"(?<![a-z])[{self._letters}](?![a-z])", decided(text).lower()))
        return letters.pop() if len(letters) == 1 else ""

    def write(self, seen: Seen, since: int = 0) -> str:
        """Seat and word, a line a clue, and "?" for a clue or "!" for a vote."""
        word = "" if since else f"{seen.seat}:{seen.word}\n"
        lines = "".join(f"{seat}{clue or '-'}\n" for seat, clue in seen.clues[since:])
        return f"{word}{lines}{'!' if seen.voting else '?'}\n"

    def read(self, text: str) -> Seen:
        """By the lines that `write` writes."""
        own, *lines, asked = text.split()
        clues = tuple((int(line[0]), line[1:].replace("-", "")) for line in lines)
        return Seen(int(own[0]), own[2:], clues, asked == "!")

    def ending(self, out: int, spy: int, word: str, won: bool) -> str:
        """ "+" for won, "-" for lost."""
        return "+\n" if won else "-\n"


@ENVIRONMENTS.register("spy-bits")
def spy_bits(*, bits: int = 6, ones: int = 3, shared: int = 2, players: Sequence[Player] | None = None) -> Spy:
    """The game with vectors of bits for words."""
    return Spy(deck=Bits(bits, ones, shared), players=players)
