"""Simulates the sample: `python make.py` in this folder makes its files anew, the same each time.

Customers of an invented shop have tastes that nobody sees: one weight for each of twelve themes, drawn from a Dirichlet
distribution, and how much they like to spend. What a customer takes next is drawn, among all that is on sale and that
he has not, with probabilities in proportion to

    exp(INTEREST * interest + QUALITY * quality - PRICE * dearness + NOVELTY * novelty + SEASON * season)

of his weight for the article's theme against an even one (as a logarithm), the article's quality (normal), how far its
price for its department is from what he likes to spend (as a logarithm), how new it is (exp(-days / 10)), and the
season of its theme, a wave of 60 days. Texts tell the thing, which tells the theme, and categories are departments, in
which every theme has things: so a tent and a head torch share no word and no category, and are taken by the same
people.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

INTEREST, QUALITY, PRICE, NOVELTY, SEASON = 2.2, 0.8, 1.0, 1.0, 0.8
SPREAD = 0.25
START = datetime(2026, 1, 1, tzinfo=UTC)
ITEMS, USERS, EVENTS, DAYS, LATER = 500, 400, 6000, 90, 10
"""Of the sample; its last ``LATER`` days are in no log."""

DEPARTMENTS = {"clothing": 40.0, "tools": 30.0, "books": 18.0, "home": 35.0, "electronics": 90.0, "food": 9.0}
"""Name -> what an article of it costs, more or less."""

THEMES = {
    "camping": "fleece jacket,trekking socks;pocket knife,tent;trail guide,star atlas;"
    "sleeping bag,camping mug;head torch,solar charger;trail mix,freeze-dried stew",
    "baking": "apron,oven gloves;whisk,rolling pin;dessert cookbook,sourdough primer;"
    "cake tin,mixing bowl;stand mixer,kitchen scale;vanilla sugar,rye flour",
    "gaming": "hoodie with pixels,wrist rest;cable ties,screwdriver for consoles;strategy guide,fantasy lore book;"
    "swivel chair,light strip;controller,mechanical keyboard;energy drink,spicy crisps",
    "gardening": "straw hat,rubber boots;secateurs,watering can;herb almanac,orchard handbook;"
    "flower pot,raised bed;soil sensor,hedge trimmer;tomato seeds,peppermint tea",
    "fitness": "leggings,running vest;skipping rope,resistance band;stretching manual,marathon diary;"
    "yoga mat,foam roller;heart-rate strap,step counter;protein bar,isotonic powder",
    "baby": "romper,muslin cloth;cabinet lock,bottle brush;lullaby book,weaning guide;"
    "cot mobile,changing mat;baby monitor,night light with stars;carrot puree,rusk biscuits",
    "cycling": "padded shorts,rain cape;tyre lever,chain oil;touring atlas,bike repair manual;"
    "pannier,wall hook for bikes;dynamo lamp,handlebar computer;glucose gel,salted peanuts",
    "painting": "smock,beret;palette knife,brush set;colour theory,watercolour course;"
    "easel,picture frame;tracing light pad,projector for murals;linseed oil,gum arabic sweets",
    "office": "tie,blouse;stapler,hole punch;time planner,letter-writing guide;"
    "desk lamp,filing box;label printer,webcam;ground coffee,mint drops",
    "dogs": "dog coat,treat pouch;lead,nail clipper;puppy school,breed lexicon;"
    "dog basket,food bowl;gps collar,automatic feeder;chewing bones,liver biscuits",
    "sewing": "tape-measure bracelet,thimble;fabric shears,seam ripper;pattern book,quilting for all;"
    "thread rack,pin cushion;sewing machine,steam iron;button-shaped chocolate,chamomile tea",
    "beach": "swimsuit,flip-flops;tent peg for sand,air pump;surf novel,seashell lexicon;"
    "parasol,deck chair;waterproof speaker,underwater camera;coconut water,ice-lolly mix",
}
"""Theme -> of each department, in their order, two things."""

LOOKS = [
    "light",
    "sturdy",
    "classic",
    "slim",
    "large",
    "small",
    "handmade",
    "simple",
    "folding",
    "premium",
    "everyday",
    "soft",
    "vintage",
    "smart",
]
COLOURS = ["green", "navy", "red", "grey", "sand", "black", "white", "yellow", "terracotta", "mint"]


@dataclass
class Shop:
    """Articles, customers and what they took; arrays by article or customer.

    Attributes:
        days: when each article came on sale, in days since `START`; may be negative.
        events: customer, article, day.
    """

    texts: list[str]
    themes: np.ndarray
    categories: list[str]
    prices: np.ndarray
    days: np.ndarray
    quality: np.ndarray
    tastes: np.ndarray
    budgets: np.ndarray
    phases: np.ndarray
    events: list[tuple[int, int, float]] = field(default_factory=list)

    def utilities(self, user: int, day: float) -> np.ndarray:
        """The exponent above, of each article for ``user``; -inf for what is not on sale yet."""
        expected = np.array([DEPARTMENTS[name] for name in self.categories])
        dearness = np.abs(np.log(self.prices / expected) - self.budgets[user])
        season = np.sin(2 * math.pi * day / 60 + self.phases)[self.themes]
        novelty = np.exp(-np.maximum(0, day - self.days) / 10)
        told = INTEREST * self.tastes[user, self.themes] + QUALITY * self.quality - PRICE * dearness
        return np.where(self.days <= day, told + NOVELTY * novelty + SEASON * season, -np.inf)


def simulate(seed: int, items: int, users: int, events: int, days: int) -> Shop:
    """A shop of ``days`` days; a third of the articles and customers come while it runs."""
    chance = np.random.default_rng(seed)
    shop = _stocked(chance, items, days)
    weights = chance.gamma(SPREAD, size=(users, len(THEMES)))
    even = weights.mean(axis=1, keepdims=True)
    shop.tastes = np.log((weights + 0.1 * even) / (1.1 * even))
    shop.budgets = chance.normal(0, 0.5, users)
    shop.phases = chance.uniform(0, 2 * math.pi, len(THEMES))
    comes = np.where(chance.random(users) < 1 / 3, chance.uniform(0, days, users), 0)
    busy = chance.gamma(1.5, size=users)
    taken = np.zeros((users, items), dtype=bool)
    for day in np.sort(chance.uniform(0, days, events)):
        here = np.where(comes <= day, busy, 0)
        user = int(chance.choice(users, p=here / here.sum()))
        drawn = shop.utilities(user, day) + chance.gumbel(size=items)
        article = int(np.where(taken[user], -np.inf, drawn).argmax())
        taken[user, article] = True
        shop.events.append((user, article, float(day)))
    return shop


def _stocked(chance: np.random.Generator, items: int, days: int) -> Shop:
    things = [
        (theme, department, thing)
        for theme, told in enumerate(THEMES.values())
        for department, pair in zip(DEPARTMENTS, told.split(";"), strict=True)
        for thing in pair.split(",")
    ]
    found: dict[str, tuple[int, str]] = {}
    while len(found) < items:
        theme, department, thing = things[chance.integers(len(things))]
        found.setdefault(f"{chance.choice(LOOKS)} {thing}, {chance.choice(COLOURS)}", (theme, department))
    themes, categories = map(list, zip(*found.values(), strict=True))
    usual = np.array([DEPARTMENTS[name] for name in categories])
    prices = np.round(usual * np.exp(chance.normal(0, 0.5, items)), 2)
    launched = np.where(chance.random(items) < 1 / 3, chance.uniform(0, days, items), chance.uniform(-60, 0, items))
    none = np.empty(0)
    return Shop(
        *(list(found), np.array(themes), categories, prices, launched, chance.normal(size=items)), none, none, none
    )


def moment(day: float) -> str:
    return (START + timedelta(days=day)).isoformat(timespec="seconds")


def write(shop: Shop, folder: Path, until: float) -> None:
    """``catalogue.csv``, and ``log.csv`` of what was taken before the day ``until``."""
    articles = zip(shop.texts, shop.categories, shop.prices, shop.days, strict=True)
    rows = [
        [f"A{n}", text, kind, f"{price:.2f}", moment(day)] for n, (text, kind, price, day) in enumerate(articles, 1)
    ]
    _write_csv(folder / "catalogue.csv", [["item", "text", "category", "price", "date"], *rows])
    taken = [[f"U{user + 1}", f"A{item + 1}", moment(day)] for user, item, day in shop.events if day < until]
    _write_csv(folder / "log.csv", [["user", "item", "time"], *taken])


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    from hf_efficient.tasks.apps.interactions import write_pairs

    shop = simulate(0, ITEMS, USERS, EVENTS, DAYS)
    write(shop, Path("."), DAYS)
    later = sum(day >= DAYS - LATER for _, _, day in shop.events)
    write_pairs(".", ".", ".", newest=0.3, test=later / EVENTS)
    write(shop, Path("."), DAYS - LATER)
