"""Synthetic English-like sentences with a topic: the texts of the tiny corpus, the tiny tasks and the tests.

A sentence is a template filled from its topic's words, so topics can be told apart by words, and two sentences are the
closer the more slots they share.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from talas_lib.errors import TalasError

TOPICS: dict[str, dict[str, Sequence[str]]] = {
    "kitchen": {
        "who": ("the cook", "my aunt", "a baker", "the young chef"),
        "did": ("stirred", "tasted", "warmed up", "burnt"),
        "what": ("the soup", "a pot of rice", "the bread", "her lentil stew"),
        "where": ("in the kitchen", "on the stove", "at the bakery", "before dinner"),
    },
    "football": {
        "who": ("the striker", "our goalkeeper", "a defender", "the new coach"),
        "did": ("kicked", "saved", "missed", "passed"),
        "what": ("the ball", "a penalty", "the last shot", "the free kick"),
        "where": ("in the stadium", "before half time", "near the goal", "during the final"),
    },
    "weather": {
        "who": ("the storm", "a cold wind", "heavy rain", "the morning fog"),
        "did": ("covered", "reached", "flooded", "crossed"),
        "what": ("the coast", "the valley", "three villages", "the northern hills"),
        "where": ("late at night", "over the weekend", "after a dry summer", "without warning"),
    },
    "music": {
        "who": ("the pianist", "a street band", "the choir", "her little brother"),
        "did": ("played", "sang", "rehearsed", "recorded"),
        "what": ("an old song", "the second sonata", "a slow waltz", "the opening melody"),
        "where": ("at the concert", "in the studio", "for the guests", "on a borrowed piano"),
    },
    "railway": {
        "who": ("the conductor", "an express train", "the engine driver", "a tired passenger"),
        "did": ("left", "passed through", "waited at", "returned to"),
        "what": ("the station", "platform four", "the long tunnel", "the ticket office"),
        "where": ("with an hour of delay", "on time", "before the signal changed", "on the night service"),
    },
    "garden": {
        "who": ("the gardener", "our neighbour", "a busy bee", "the old farmer"),
        "did": ("visited", "watered", "looked after", "cut back"),
        "what": ("the roses", "a row of tomatoes", "the apple tree", "the tulip beds"),
        "where": ("behind the shed", "in early spring", "along the fence", "before the frost"),
    },
}
SLOTS = ("who", "did", "what", "where")
_FRAMES = (
    "{who} {did} {what} {where}.",
    "we saw that {who} {did} {what} {where}.",
    "{where}, {who} {did} {what}.",
    "everybody noticed how {who} {did} {what} {where}.",
    "yesterday {who} {did} {what} {where}, as usual.",
)


@dataclass(frozen=True)
class TinySentence:
    """A topic, the index of the chosen word for each slot, and the frame around them."""

    topic: str
    choice: tuple[int, ...]
    frame: int

    @property
    def text(self) -> str:
        words = {slot: TOPICS[self.topic][slot][i] for slot, i in zip(SLOTS, self.choice, strict=True)}
        sentence = _FRAMES[self.frame].format(**words)
        return sentence[0].upper() + sentence[1:]

    def reframed(self, rng: random.Random) -> TinySentence:
        """The same content in another frame."""
        other = [frame for frame in range(len(_FRAMES)) if frame != self.frame]
        return TinySentence(self.topic, self.choice, rng.choice(other))

    def changed(self, slots: int, rng: random.Random) -> TinySentence:
        """The same topic with this many slots (0 to 4) filled otherwise, in another frame."""
        choice = list(self.choice)
        for slot in rng.sample(range(len(SLOTS)), slots):
            others = [i for i in range(len(TOPICS[self.topic][SLOTS[slot]])) if i != choice[slot]]
            choice[slot] = rng.choice(others)
        return TinySentence(self.topic, tuple(choice), self.frame).reframed(rng)


def tiny_sentences(count: int, seed: int) -> list[TinySentence]:
    """Distinct sentences, topics in turn; the same seed gives the same list, and the beginning of every longer one.

    TalasError for more than half of the 7,680 there are.
    """
    if count > 3840:
        raise TalasError(
            f"{count} tiny sentences are too many: there are at most 3840; use a packaged or a file corpus"
        )
    rng = random.Random(f"tiny-texts-{seed}")
    topics = list(TOPICS)
    sentences: list[TinySentence] = []
    seen: set[TinySentence] = set()
    while len(sentences) < count:
        topic = topics[len(sentences) % len(topics)]
        choice = tuple(rng.randrange(len(TOPICS[topic][slot])) for slot in SLOTS)
        sentence = TinySentence(topic, choice, rng.randrange(len(_FRAMES)))
        if sentence not in seen:
            seen.add(sentence)
            sentences.append(sentence)
    return sentences
