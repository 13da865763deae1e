"""Write train.jsonl, validation.jsonl and test.jsonl: `python make.py`. See README.md.

A headline is somebody, what happened to them, and often when or why. What happened decides the label. Phrases of the
validation and test files are none of the train file's.
"""

import json
import random
import string
from pathlib import Path

SPLITS = {"train": 2000, "validation": 240, "test": 300}
HELD_OUT = {"validation": 8, "test": 12}
"""Phrases of each label that only this file has."""

NAMES = """Aldermoor Bank;Baltrex;Calder Mills;Corvane Motors;Dunmore Foods;Eastwick Energy;Elmspan;Farrow Steel;
    Glenmore Air;Harbour & Pike;Ironvale;Juniper Health;Kestrel Telecom;Larkfield Retail;Lindqvist Paper;Marlowe Pharma;
    Northgate Rail;Norvik Shipping;Oakhurst Insurance;Orbis Chips;Pellham Cement;Quayside Hotels;Redfern Software;
    Rowan Logistics;Sable Mining;Solent Gas;Tamarind Media;Tessaly Semiconductor;Thornbury;Umbra Games;Valdor Chemicals;
    Verity Payments;Westmark Property;Wyndale Brewery;Yarrow Textiles;Zephyr Wind"""

POSITIVE = """profit jumps {big} %, ahead of forecasts
raises full-year outlook after strong {time}
shares climb to a {long} high
wins {money} order from {place}
beats estimates on record sales
net loss narrows as costs come down
lifts dividend by {small} %
returns to profit after {long} of losses
secures {money} contract to supply {thing}
stock rallies {small} % on takeover interest
upgraded to buy by {broker}
revenue growth picks up in {time}
cuts debt faster than planned
bad loans fall to a {long} low
margins widen as input costs ease
gains market share in {place}
surges in first day of trading
lands permit for new plant in {place}
order book swells to a record
rating raised by {broker} on better cash flow
turnaround ahead of schedule, says chief executive
sells unit in {place} at a handsome premium
demand for {thing} outstrips supply
shares rebound as fears over {thing} fade
swings to a {money} profit
drug passes late-stage trial, shares soar
bullish on {place} after bumper {time}
wins appeal, {money} fine is overturned
clears last hurdle for merger, investors cheer
tops list of the best performing shares in {time}
sees no slowdown as bookings hit new high
free cash flow doubles in {time}
customers flock to new {thing}, sales double
settles strike on good terms, output recovers
earnings smash expectations for the {ordinal} time in a row
attracts record inflows as savers return
posts best {time} in its history
doubles profit on strong demand for {thing}
expands into {place} after record year
hires hundreds as orders pour in
gets green light for {thing} in {place}
pays back loans early
shares extend gains for {ordinal} day
sees upbeat start to {time}
beats rivals to {money} tender
hopes rise for {name2} tie-up, stock up {small} %
boosts buyback to {money}
reports healthy growth in {place}
outperforms peers in {time}
profit better than feared
cost savings exceed target
wins back customers with cheaper {thing}
patent for {thing} upheld, shares gain
secures funding for expansion in {place}
recovery gathers pace in {place}
sales of {thing} soar
strong {time} lifts hopes for the year
awarded licence to sell {thing} in {place}
investors applaud plan to leave {place}
credit outlook improved to positive by {broker}
shares hit all-time high
raises prices without losing customers
cheaper {thing} to help margins
good harvest brightens prospects
turns corner with {ordinal} rise in sales
exports of {thing} at record
raises {money} from keen investors at higher value
named top pick by {broker}
breakthrough in {thing} delights analysts
agrees better terms with lenders""".splitlines()

NEGATIVE = """profit slumps {big} % as costs bite
cuts full-year outlook, blames weak {time}
shares sink to a {long} low
loses {money} order from {place}
misses estimates as sales disappoint
net loss widens to {money}
scraps dividend to save cash
slides into the red after {long} of profits
defaults on {money} of bonds
stock tumbles {small} % on accounting doubts
downgraded to sell by {broker}
revenue growth stalls in {time}
warns it may breach loan terms
bad loans rise to a {long} high
margins squeezed as input costs soar
loses ground to rivals in {place}
flops in first day of trading
denied permit for new plant in {place}
orders dry up, plant in {place} to shut
rating cut to junk by {broker}
chief executive quits amid fraud inquiry
writes off {money} on unit in {place}
glut of {thing} hits prices
shares plunge as fears over {thing} grow
swings to a {money} loss
drug fails late-stage trial, shares collapse
gloomy on {place} after dismal {time}
hit with {money} fine over price fixing
merger falls apart, investors flee
worst performer of the index in {time}
warns of slowdown as bookings dwindle
burns through cash in {time}, lenders worried
recalls {thing} after fires, faces lawsuits
strike halts output for the {ordinal} week
profit warning is the {ordinal} in a year
suffers record outflows as savers leave
posts worst {time} in its history
profit halves on weak demand for {thing}
retreats from {place} after dire year
cuts hundreds of jobs as orders fall
permission for {thing} in {place} withdrawn
misses payment to lenders
shares extend losses for {ordinal} day
sees grim start to {time}
beaten by rivals to {money} tender
hopes fade for {name2} tie-up, stock down {small} %
suspends buyback
reports shrinking business in {place}
lags peers in {time}
profit worse than feared
costs spiral out of control
loses customers to cheaper {thing}
patent for {thing} struck down, shares drop
fails to find funding for plant in {place}
downturn deepens in {place}
sales of {thing} collapse
poor {time} clouds the year
stripped of licence to sell {thing} in {place}
investors angry at plan for {place}
credit outlook lowered to negative by {broker}
files for bankruptcy
forced to cut prices to keep customers
dearer {thing} to hurt margins
drought threatens supply of {thing}
in trouble after {ordinal} fall in sales
exports of {thing} dry up
slashes value in emergency share sale
dropped from list of top picks by {broker}
delay to {thing} dismays analysts
faces tougher terms from lenders""".splitlines()

NEUTRAL = """to report {time} results on {day}
names new finance chief
board to meet on {day} to consider share split
holds annual meeting in {place}
keeps outlook unchanged for {time}
issues {money} of bonds due in {years} years
moves head office to {place}
shares little changed in thin trade
to buy stake in maker of {thing}
appoints {broker} as adviser on listing
in talks with lender in {place}
sales flat in {time}, in line with forecasts
to open office in {place}
sets record date for dividend
renames unit that makes {thing}
files papers for listing in {place}
signs memorandum with partner in {place}
trading ex-dividend from {day}
to present plan for {thing} on {day}
chairman to speak at conference in {place}
publishes notice of general meeting
completes move to new accounting standard
plans to split off unit for {thing}
rated hold by {broker}
sells and leases back building in {place}
says review of unit in {place} goes on
extends term of auditor by {years} years
joins index on {day}
to raise {money} in rights issue
holders to vote on merger on {day}
ends talks on {thing} without comment
lists {money} of notes on exchange
to release sales figures for {time} on {day}
adds two members to its board
maintains interim dividend at last year's level
changes ticker symbol from {day}
to announce {time} figures on {day}
meets analysts on {day}
invites bids for work in {place}
moves annual meeting to {day}
considers options for plant in {place}
reshuffles management of unit in {place}
shares steady ahead of {time} numbers
sees {time} in line with last year
bids in {money} tender
and {name2} discuss joint purchase of {thing}
continues buyback as planned
opens warehouse in {place}
in line with peers in {time}
profit unchanged from a year ago
publishes annual report
introduces new range of {thing}
applies for patent on {thing}
seeks {money} loan from banks
to hold investor day in {place}
sales of {thing} unchanged
what to expect from {time} results
applies for licence to sell {thing} in {place}
investors await plan for {place}
credit rating affirmed by {broker}
shares to be traded in {place} from {day}
leaves prices of {thing} as they are
buys {thing} for delivery in {years} months
moves production of {thing} to {place}
five things to know about the company
ships {thing} to {place}
exchanges old notes for new ones due in {years} years
covered by {broker} for the first time, rated neutral
shows prototype of {thing} at fair in {place}
asks holders to approve auditor""".splitlines()

PHRASES = {"negative": NEGATIVE, "neutral": NEUTRAL, "positive": POSITIVE}

AFTER = """{name} {what};{name} {what};{name} {what};{name}: {what};
    {name} {what}, shows filing;{name} {what}, says {broker};Update: {name} {what};{name} {what} - report;
    {place}'s {name} {what};Maker of {thing} {name} {what}"""

SLOTS = {
    "time": "first quarter;second quarter;third quarter;fourth quarter;first half;holiday season;March quarter",
    "long": "two-year;five-year;ten-month;six-month;three-year;decade",
    "place": "Brazil;Canada;Chile;Germany;India;Japan;Kenya;Mexico;Poland;Spain;Sweden;Turkey;Vietnam",
    "thing": "batteries;chips;cement;copper;electric vans;generics;insulin;jet fuel;mobile masts;packaging;"
    "solar panels;soft drinks;sugar;tyres;urea;vaccines;wheat;wind turbines",
    "broker": "Ashby Securities;Brandt & Sohn;Copperfield Capital;Lomond Research;Pinecrest Partners;Sterling Row",
    "day": "Monday;Tuesday;Wednesday;Thursday;Friday",
    "ordinal": "second;third;fourth;fifth",
    "years": "three;five;seven;ten",
}


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(";")]


def phrases(label: str, split: str) -> list[str]:
    """What may happen in ``split``: no phrase is in two."""
    order = random.Random(label).sample(PHRASES[label], len(PHRASES[label]))
    start = 0
    for name, count in HELD_OUT.items():
        if name == split:
            return order[start : start + count]
        start += count
    return order[start:]


def headline(chance: random.Random, label: str, split: str) -> str:
    slots = {name: chance.choice(listed(values)) for name, values in SLOTS.items()}
    slots["small"], slots["big"] = str(chance.randint(3, 14)), str(chance.randint(15, 90))
    slots["name2"] = chance.choice(listed(NAMES))
    currency = chance.choice(["$", "€", "£", "Rs "])
    slots["money"] = (
        f"{currency}{chance.choice([12, 35, 60, 120, 250, 400, 750])} {chance.choice(['million', 'm', 'mn'])}"
    )
    what = chance.choice(phrases(label, split)).format(**slots)
    text = chance.choice(listed(AFTER)).format(name=chance.choice(listed(NAMES)), what=what, **slots)
    return string.capwords(text) if chance.random() < 0.1 else text


if __name__ == "__main__":
    chance, seen = random.Random(0), set()
    for split, count in SPLITS.items():
        lines: list[str] = []
        while len(lines) < count:
            label = sorted(PHRASES)[len(lines) % len(PHRASES)]
            text = headline(chance, label, split)
            if text not in seen:
                seen.add(text)
                lines.append(json.dumps({"text": text, "label": label}, ensure_ascii=False))
        chance.shuffle(lines)
        Path(f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
