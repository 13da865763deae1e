"""Writes the sample: `python make.py` in this folder makes the three files anew, the same each time.

Sentences are templates filled with names. Train sees four fifths of the names and of the templates; validation and test
see all, so that some are new to them.
"""

import json
import random
from pathlib import Path

NAMES = {
    "person": """Alma Beck;Anton;Mr Fields;Bao Nguyen;Chiara;Clara Holm;Dmitri;Edda;Elif Kaya;Farid;Mrs Lindgren;
        Gregor Stein;Hana Sato;Ines;Ivo;Jamal Carter;Joanna;Kofi;Dr Ruiz;Leonie Fuchs;Lucas;Maeve;Marek Nowak;Mina;
        Nora Quist;Olu;Paolo Conti;Priya;Ruth Adler;Samir;Sofia Lima;Tomas;Una;Viktor Dahl;Wanda;Yusuf;Zoe Marsh;
        Ms Okafor;Theo;Ada Winter""",
    "product": """desk lamp;oak table;kettle;coffee grinder;blue armchair;bookcase;toaster;pair of speakers;rug;
        standing desk;wool blanket;dish rack;garden bench;mirror;air fryer;mattress;bread bin;floor lamp;wardrobe;
        set of knives;tea pot;wall clock;shoe cabinet;pressure cooker;hand mixer;side table;linen curtain;frying pan;
        office chair;picture frame""",
    "place": """Aarhus;Bristol;Camden Road;Dresden;Elm Street 14;Faro;Ghent;Harbour Lane;Izmir;Joensuu;Kraków;Leeds;
        Market Square;New Haven;Old Mill Road 3;Porto;Quay Street;Rosenheim;Station Road;Trieste;Utrecht;Valletta;
        West End;Ypres;the Northgate depot;Zürich;Lake Avenue 21;Bergen;Victoria Park;Saint Malo""",
    "company": """Larkfield;Parcelwing;Nordwind Logistics;Quickcart;Blue Heron Freight;Brook & Sons;Hollin Bank;
        Tandem Pay;Everdale;Kestrel Couriers;Moss Mill;Redgate Insurance;Silver Birch;Stonebridge Credit;
        Two Rivers Post;Wren""",
    "date": """Monday;3 May;tomorrow;next Friday;12 October;yesterday;the 21st;last week;Christmas Eve;Tuesday morning;
        30 June;this afternoon;the first of August;Sunday;2 January;Thursday evening""",
}

TEMPLATES = """{person} ordered a {product} from {company} on {date} .
The {product} for {person} was sent to {place} .
Please deliver the {product} to {place} before {date} .
{company} says the parcel left {place} {date} .
I am {person} and my {product} has not arrived yet .
Could {person} pick up the {product} in {place} {date} ?
My {product} broke on {date} , what does {company} do about it ?
{company} charged me twice for the {product} .
A driver of {company} left the {product} at {place} .
On {date} we moved from {place} to {place} , please change the address .
{person} and {person} share one account with {company} .
The refund for the {product} should have come on {date} .
Is the {product} in stock again on {date} ?
Tell {person} that {company} is closed {date} .
Nobody at {company} answered when {person} called {date} .
I paid with {company} , but the order still waits for payment .
Where is my order ?
Thank you , everything is fine now .
The {product} I got is not the one in the picture .
Send the invoice to {person} , {place} .
We expected the {product} {date} and it came to {place} instead .
{person} from {company} promised a new {product} by {date} .
Does {company} ship to {place} ?
Cancel the {product} , keep the {product} .
The courier was at {place} {date} , yet {person} was at home all day .
How do I return something that I bought {date} ?
{place} is not the address that I gave {company} .
{date} is too late for me , says {person} .
Both the {product} and the {product} arrived broken in {place} .
I would like to speak to {person} about the {product} .""".splitlines()

SPLITS = {"train": 800, "validation": 120, "test": 200}


def filled(template: str, names: dict[str, list[str]], chance: random.Random) -> dict[str, list[str]]:
    """Words and BIO tags of a template with names drawn for its slots."""
    tokens, tags = [], []
    for word in template.split():
        kind = word.strip("{}")
        if kind == word:
            tokens.append(word)
            tags.append("O")
        else:
            own = chance.choice(names[kind]).split()
            tokens += own
            tags += [f"B-{kind}", *[f"I-{kind}"] * (len(own) - 1)]
    if chance.random() < 0.3:  # customers do not always care for capitals
        tokens = [token.lower() for token in tokens]
    return {"tokens": tokens, "ner_tags": tags}


if __name__ == "__main__":
    chance = random.Random(0)
    every = {kind: [name.strip() for name in text.split(";")] for kind, text in NAMES.items()}
    for names in every.values():
        chance.shuffle(names)
    known = {kind: names[: len(names) * 4 // 5] for kind, names in every.items()}
    for split, count in SPLITS.items():
        given, templates = (known, TEMPLATES[:24]) if split == "train" else (every, TEMPLATES)
        rows = [filled(chance.choice(templates), given, chance) for _ in range(count)]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        Path(f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
