"""Small histories whose right items are known, and vectors that are counts of words."""

import random
import re
from datetime import datetime, timedelta

import numpy as np

from equipoise.data.histories import MemoryQuestion, Session, Turn

DAY = datetime(2024, 5, 1, 9)
CLINIC = (
    Session("s1", DAY, (Turn("a", "Li", "the clinic opens at 9"), Turn("b", "Bo", "what a cold morning"))),
    Session("s2", DAY + timedelta(1), (Turn("c", "Li", "the clinic moved to 11"), Turn("d", "Bo", "my cat sleeps"))),
    Session("s3", DAY + timedelta(2), (Turn("e", "Bo", "the doctor is Li"),)),
)
WHEN = MemoryQuestion("when", "when does the clinic open", DAY + timedelta(1, hours=1), evidence=("c",))
LATER = DAY + timedelta(9)


def counts(texts):
    """[n, 64]: words by a fixed hash, and a constant, so that no text is without a direction."""
    rows = np.zeros((len(texts), 64))
    for row, text in zip(rows, texts, strict=True):
        row[63] = 0.1
        for word in text.lower().split():
            row[sum(place * ord(letter) for place, letter in enumerate(word, start=1)) % 63] += 1
    return rows


def stream(seed, sessions=8, words=12):
    """Sessions of up to four turns of a few words; some share a moment, one has no turns."""
    draw = random.Random(seed)
    said, time = [], DAY
    for number in range(sessions):
        turns = []
        for place in range(draw.randint(number != 3, 4)):
            text = " ".join(draw.choices([f"w{word}" for word in range(words)], k=5))
            turns.append(Turn(f"t{number}.{place}", draw.choice(("Li", "Bo")), text))
        said.append(Session(f"s{number}", time, tuple(turns)))
        time += timedelta(hours=draw.choice((0, 5, 24)))
    return said


def told(system, sessions=CLINIC):
    """The system with these sessions taken in."""
    for session in sessions:
        system.ingest(session, session.time)
    return system


class Clinic:
    """Times of the clinic, and who the doctor is."""

    name = "the clinic"

    def asked(self, question):
        return {"When": "time", "Who": "doctor"}.get(question.text.split()[0].strip("?"))

    def said(self, text):
        found = re.findall(r"clinic (?:opens|moved) (?:at|to) (\d+)", text)
        doctor = re.findall(r"doctor is (\w+)", text)
        return {**({"time": found[-1]} if found else {}), **({"doctor": doctor[-1]} if doctor else {})}
