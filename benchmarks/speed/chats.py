"""Generated chats for the language model: questions of different lengths whose answers follow from them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from pefttools import atomic

THINGS = (
    "river", "window", "garden", "letter", "mountain", "kitchen", "bridge", "winter", "teacher", "village", "island",
    "candle", "market", "forest", "station", "painter", "harbour", "engine", "doctor", "library", "orchard", "valley",
)  # fmt: skip
COLOURS = ("red", "green", "blue", "white", "black", "yellow", "brown", "grey")
NUMBER, LONGEST = 400, 12
"""Number of chats, and the upper limit of things in one."""


def chat(draw: random.Random) -> dict[str, str]:
    """A chat about things with colours and a question about one of them; it has 30 to 200 tokens."""
    things = draw.sample(THINGS, draw.randint(2, LONGEST))
    colours = {thing: draw.choice(COLOURS) for thing in things}
    facts = " ".join(f"The {thing} that you can see over there is {colour}." for thing, colour in colours.items())
    asked = draw.choice(things)
    same = [thing for thing in things if colours[thing] == colours[asked] and thing != asked]
    more = f" So are {', '.join(f'the {thing}' for thing in same)}." if same else " Nothing else is."
    return {
        "prompt": f"{facts} What is the colour of the {asked}?",
        "completion": f"The {asked} is {colours[asked]}.{more}",
    }


def write(file: Path) -> Path:
    """The path of a JSON lines file with the chats, which are the same every time; writes it if it does not exist."""
    if not file.exists():
        draw = random.Random(0)
        atomic.write_text(file, "".join(json.dumps(chat(draw)) + "\n" for _ in range(NUMBER)))
    return file.absolute()
