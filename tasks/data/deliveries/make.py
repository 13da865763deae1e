"""Writes the sample: `python make.py` in this folder makes the three files anew, the same each time.

Reports of deliveries, each with a line that says what counts: how much of what for whom, where, and how it went. Their
sentences come in any order, and some do not matter. No report is in two files.
"""

import json
import random
from pathlib import Path

SPLITS = {"train": 1200, "validation": 100, "test": 200}

COUNTS = "two;three;four;five;six;seven;eight;nine;ten;twelve"
PEOPLE = """Alma Beck;Anton Ruiz;Bao Nguyen;Clara Holm;Elif Kaya;Farid Nasser;Gregor Stein;Hana Sato;Jamal Carter;
    Leonie Fuchs;Marek Nowak;Nora Quist;Paolo Conti;Ruth Adler;Sofia Lima;Viktor Dahl"""
GOODS = """desk lamps;oak tables;kettles;armchairs;bookcases;toasters;rugs;blankets;mirrors;wardrobes;wall clocks;
    curtains;frying pans;office chairs;picture frames;bread bins"""
PLACES = "Aarhus;Bristol;Dresden;Faro;Ghent;Izmir;Leeds;Porto;Rosenheim;Trieste;Utrecht;Valletta;Ypres;Bergen"
COMPANIES = "Larkfield;Parcelwing;Quickcart;Everdale;Kestrel Couriers;Moss Mill;Silver Birch;Wren"
DAYS = "Monday;Tuesday;Wednesday;Thursday;Friday;Saturday"

OPENINGS = """This is the report of {company} for {day}.
Our driver wrote the following on {day}.
Here is what the depot in {other_place} knows.
A note about a parcel of {company}."""
ORDERS = """{person} had ordered {count} {goods}.
The order was for {count} {goods}, and the name on it was {person}.
{count} {goods} were to go to {person}."""
WAYS = """The parcel went to {place}.
The address was in {place}.
{place} was where it had to go."""
ENDS = """It came {late} days after the promised one.|{late} days late
When it was unpacked, one piece was broken.|one broken
Nobody opened the door, so it went back to the depot.|not at home
Everything was there and in order.|in order
The customer had been charged twice for it.|charged twice
One piece was missing in the box.|one missing
It was not what had been ordered.|wrong goods"""
BESIDES = """The weather was fine all day.
The driver took the usual road.
{other_person} asked about {other_goods}, which are sold out.
The office closes at noon on {day}.
{company} has a new van.
A parcel for {other_place} waits until {day}.
The phone rang three times."""


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(";")]


def report(chance: random.Random) -> tuple[str, str]:
    """The report, and its line."""
    slots = {"count": chance.choice(listed(COUNTS)), "late": chance.choice(listed(COUNTS))}
    for name, text in (("person", PEOPLE), ("goods", GOODS), ("place", PLACES)):
        slots[name], slots[f"other_{name}"] = chance.sample(listed(text), 2)
    for name, text in (("company", COMPANIES), ("day", DAYS)):
        slots[name] = chance.choice(listed(text))
    end, outcome = chance.choice(ENDS.splitlines()).split("|")
    facts = [chance.choice(ORDERS.splitlines()), chance.choice(WAYS.splitlines()), end]
    body = [*facts, *chance.sample(BESIDES.splitlines(), chance.randint(0, 2))]
    chance.shuffle(body)
    opening = [chance.choice(OPENINGS.splitlines())] if chance.random() < 0.3 else []
    sentences = [line.format(**slots) for line in (*opening, *body)]
    document = " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)
    return document, f"{{count}} {{goods}} for {{person}}, {{place}}: {outcome}".format(**slots)


if __name__ == "__main__":
    chance, seen = random.Random(0), set()
    for split, count in SPLITS.items():
        lines: list[str] = []
        while len(lines) < count:
            document, summary = report(chance)
            if document not in seen:
                seen.add(document)
                lines.append(json.dumps({"document": document, "summary": summary}))
        Path(f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
