"""Writes the sample: `python make.py` in this folder makes the three files anew, the same each time.

English sentences with numbers, times and dates in words, and their German translations, both by the rules below. No
sentence is in two files.
"""

import json
import random
from pathlib import Path

SPLITS = {"train": 1500, "validation": 100, "test": 200}

SMALL = """zero;one;two;three;four;five;six;seven;eight;nine;ten;eleven;twelve;thirteen;fourteen;fifteen;sixteen;
    seventeen;eighteen;nineteen"""
TENS = "twenty;thirty;forty;fifty;sixty;seventy;eighty;ninety"
KLEIN = """null;eins;zwei;drei;vier;fünf;sechs;sieben;acht;neun;zehn;elf;zwölf;dreizehn;vierzehn;fünfzehn;sechzehn;
    siebzehn;achtzehn;neunzehn"""
ZEHNER = "zwanzig;dreißig;vierzig;fünfzig;sechzig;siebzig;achtzig;neunzig"
UNLIKE = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
UNLIKE |= {"twelve": "twelfth"}
UNGLEICH = {"eins": "ersten", "drei": "dritten", "sieben": "siebten", "acht": "achten"}

MONTHS = """January Januar;February Februar;March März;April April;May Mai;June Juni;July Juli;August August;
    September September;October Oktober;November November;December Dezember"""
DAYS = """Monday Montag;Tuesday Dienstag;Wednesday Mittwoch;Thursday Donnerstag;Friday Freitag;Saturday Samstag;
    Sunday Sonntag"""
PLACES = """Vienna Wien;Munich München;Cologne Köln;Prague Prag;Warsaw Warschau;Milan Mailand;Venice Venedig;
    Geneva Genf;Brussels Brüssel;Copenhagen Kopenhagen;Lisbon Lissabon;Athens Athen;Zurich Zürich;Berlin Berlin;
    Hamburg Hamburg;Paris Paris;London London;Oslo Oslo;Madrid Madrid;Nuremberg Nürnberg"""

TEMPLATES = """The train to {place} leaves from platform {low}.|Der Zug nach {place} fährt von Gleis {low} ab.
The train from {place} is {low} minutes late.|Der Zug aus {place} hat {low} Minuten Verspätung.
Flight {high} to {place} is ready for boarding.|Flug {high} nach {place} ist zum Einsteigen bereit.
The ticket to {place} costs {high} euros.|Die Fahrkarte nach {place} kostet {high} Euro.
It is {time}.|Es ist {time}.
The shop opens at {time} on {day}.|Das Geschäft öffnet am {day} um {time}.
We will meet on {day}, {date}, at {time}.|Wir treffen uns am {day}, dem {date}, um {time}.
The concert on {date} begins at {time}.|Das Konzert am {date} beginnt um {time}.
Yesterday {high} people arrived from {place}.|Gestern sind {high} Personen aus {place} angekommen.
Please send the letter by {date}.|Bitte senden Sie den Brief bis zum {date}.
The bus to {place} departs at {time} from stop {low}.|Der Bus nach {place} fährt um {time} von Haltestelle {low} ab.
Room {high} is free until {date}.|Zimmer {high} ist bis zum {date} frei.
The seats from {low} to {high} are reserved.|Die Plätze von {low} bis {high} sind reserviert.
The museum is closed on {day} and on {date}.|Das Museum ist am {day} und am {date} geschlossen.
The flight to {place} takes {low} hours.|Der Flug nach {place} dauert {low} Stunden.
The number of the hotel in {place} is {high}.|Die Nummer des Hotels in {place} ist {high}.""".splitlines()


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(";")]


def english(number: int) -> str:
    """Below 1000."""
    if number < 20:
        return listed(SMALL)[number]
    if number < 100:
        return listed(TENS)[number // 10 - 2] + (f"-{english(number % 10)}" if number % 10 else "")
    rest = f" and {english(number % 100)}" if number % 100 else ""
    return f"{english(number // 100)} hundred{rest}"


def german(number: int) -> str:
    """Below 1000."""
    if number < 20:
        return listed(KLEIN)[number]
    if number < 100:
        unit = "ein" if number % 10 == 1 else german(number % 10)
        return (f"{unit}und" if number % 10 else "") + listed(ZEHNER)[number // 10 - 2]
    hundreds = "ein" if number // 100 == 1 else german(number // 100)
    return f"{hundreds}hundert{german(number % 100) if number % 100 else ''}"


def ordinal(number: int) -> str:
    """Below 100, as in "the third"."""
    *first, last = english(number).split("-")
    last = UNLIKE.get(last, f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")
    return "-".join([*first, last])


def ordnung(number: int) -> str:
    """Below 100, as in "am dritten"."""
    return UNGLEICH.get(german(number), german(number) + ("ten" if number < 20 else "sten"))


def time(chance: random.Random) -> tuple[str, str]:
    """Of day, in both languages."""
    hour, minutes = chance.randint(1, 12), chance.choice([5, 10, 20, 25])
    after = hour % 12 + 1
    return chance.choice(
        [
            (f"{english(hour)} o'clock", "ein Uhr" if hour == 1 else f"{german(hour)} Uhr"),
            (f"half past {english(hour)}", f"halb {german(after)}"),
            (f"a quarter past {english(hour)}", f"Viertel nach {german(hour)}"),
            (f"a quarter to {english(hour)}", f"Viertel vor {german(hour)}"),
            (f"{english(minutes)} minutes past {english(hour)}", f"{german(minutes)} Minuten nach {german(hour)}"),
            (f"{english(minutes)} minutes to {english(hour)}", f"{german(minutes)} Minuten vor {german(hour)}"),
        ]
    )


def pairs(text: str) -> list[tuple[str, str]]:
    return [(source, target) for source, target in (pair.split() for pair in listed(text))]


def sentence(chance: random.Random) -> tuple[str, str]:
    """In English and in German."""
    low, high = chance.randint(2, 40), chance.randint(41, 999)
    day, month = chance.randint(1, 28), chance.choice(pairs(MONTHS))
    slots = {
        "low": (english(low), german(low)),
        "high": (english(high), german(high)),
        "date": (f"the {ordinal(day)} of {month[0]}", f"{ordnung(day)} {month[1]}"),
        "day": chance.choice(pairs(DAYS)),
        "place": chance.choice(pairs(PLACES)),
        "time": time(chance),
    }
    sides = chance.choice(TEMPLATES).split("|")
    source, target = (side.format(**{name: both[i] for name, both in slots.items()}) for i, side in enumerate(sides))
    return source, target


if __name__ == "__main__":
    chance, seen = random.Random(0), set()
    for split, count in SPLITS.items():
        lines: list[str] = []
        while len(lines) < count:
            source, target = sentence(chance)
            if source not in seen:
                seen.add(source)
                lines.append(json.dumps({"source": source, "target": target}, ensure_ascii=False))
        Path(f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
