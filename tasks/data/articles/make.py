"""Simulates the sample: `python make.py` in this folder makes the three files anew, the same each time.

Users have interests that nobody sees, one weight for each topic, drawn from a Dirichlet distribution. What a user
clicks is drawn with the probability

    1 / (1 + exp(-(BASE + INTEREST * interest + QUALITY * quality + MOMENT * moment - AGE * days)))

of his weight for the article's topic against an even one (as a logarithm), the article's quality (normal), whether its
topic is one of this time of day (1) or of the other (-1), and the days since it came out. So features beside the texts
count, and no model can rank better than these probabilities do.
"""

import math
import random
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from sklearn.metrics import roc_auc_score

BASE, INTEREST, QUALITY, MOMENT, AGE = -0.8, 2.0, 0.5, 0.8, 0.1
USERS, ARTICLES, SHOWN, READ, SPREAD = 150, 300, 8, 8, 0.35
DAYS = {"train": range(10, 24), "validation": range(24, 26), "test": range(26, 30)}
IMPRESSIONS = {"train": 480, "validation": 100, "test": 200}
LIFE = 10  # days on which an article is shown

TOPICS = {
    "football": "goalkeeper;penalty;league;striker;stadium;coach;derby;transfer",
    "cooking": "recipe;oven;dessert;bakery;spices;dumplings;kitchen;soup",
    "politics": "parliament;election;minister;budget debate;mayor;coalition;referendum;senate",
    "space": "telescope;rocket;asteroid;lunar lander;satellite;astronaut;comet;orbit",
    "music": "orchestra;album;guitarist;festival stage;opera;songwriter;choir;concert hall",
    "economy": "interest rates;stock market;inflation;exports;central bank;wages;start-up;trade fair",
    "gardens": "roses;vegetable bed;orchard;hedge;tulips;compost;greenhouse;lawn",
    "travel": "ferry;mountain hut;beach hotel;night train;city tour;airport;campsite;island",
}
EVENING = ("cooking", "music", "gardens", "travel")
PLACES = "Aarhus;Bergen;Bristol;Dresden;Faro;Ghent;Izmir;Leeds;Porto;Trieste;Utrecht;Valletta"
PATTERNS = (
    "What the {thing} of {place} tells us",
    "{place}: a {thing} nobody expected",
    "New plans for the {thing} in {place}",
    "Inside the {thing} that {place} talks about",
    "Five questions about the {thing} in {place}",
    "After the {thing}: {place} looks ahead",
)


@dataclass(frozen=True)
class Article:
    name: str
    topic: str
    title: str
    quality: float
    day: int


def articles(chance: random.Random) -> list[Article]:
    found: dict[str, Article] = {}
    while len(found) < ARTICLES:
        topic = chance.choice(list(TOPICS))
        thing, place = chance.choice(TOPICS[topic].split(";")), chance.choice(PLACES.split(";"))
        title = chance.choice(PATTERNS).format(thing=thing, place=place)
        name = f"A{len(found) + 1}"
        found.setdefault(title, Article(name, topic, title, chance.gauss(0, 1), chance.randrange(30)))
    return list(found.values())


def interests(chance: random.Random) -> dict[str, float]:
    weights = {topic: chance.gammavariate(SPREAD, 1) for topic in TOPICS}
    even = sum(weights.values()) / len(TOPICS)
    return {topic: math.log((weight + 0.1 * even) / (1.1 * even)) for topic, weight in weights.items()}


def probability(user: dict[str, float], article: Article, moment: str, day: int) -> float:
    fits = 1 if (article.topic in EVENING) == (moment == "evening") else -1
    told = INTEREST * user[article.topic] + QUALITY * article.quality + MOMENT * fits - AGE * (day - article.day)
    return 1 / (1 + math.exp(-(BASE + told)))


def impression(
    user: dict[str, float], found: list[Article], day: int, chance: random.Random
) -> tuple[dict[str, Any], list[float]]:
    """A row, and the probability of each click."""
    moment = chance.choice(("morning", "evening"))
    shown = chance.sample([one for one in found if day - LIFE < one.day <= day], SHOWN)
    read = [
        one for one in found if one.day <= day - LIFE + 4 and chance.random() < probability(user, one, moment, one.day)
    ]
    before = chance.sample(read, min(READ, len(read)))
    chances = [probability(user, one, moment, day) for one in shown]
    row = {
        "history": [one.title for one in sorted(before, key=lambda one: one.day)],
        "moment": moment,
        "items": [one.name for one in shown],
        "candidates": [one.title for one in shown],
        "categories": [one.topic for one in shown],
        "age_days": [day - one.day for one in shown],
        "clicks": [int(chance.random() < each) for each in chances],
    }
    return row, chances


if __name__ == "__main__":
    chance = random.Random(0)
    found, users = articles(chance), [interests(chance) for _ in range(USERS)]
    for split, count in IMPRESSIONS.items():
        rows, best = [], []
        while len(rows) < count:
            row, chances = impression(chance.choice(users), found, chance.choice(DAYS[split]), chance)
            if 0 < sum(row["clicks"]) < SHOWN:
                rows.append(row)
                best.append(roc_auc_score(row["clicks"], chances))
        Dataset.from_list(rows).to_parquet(f"{split}.parquet")
        print(f"{split}: {count} impressions, AUC of the true probabilities {sum(best) / count:.3f}")
