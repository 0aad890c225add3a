"""Write the training set of the intent-json adapter: spoken commands and the JSON they mean.

Each intent has a list of templates in the grammar of ``grammar.py`` and a sampler that draws slot
values and says which templates fit them. Fillers, politeness and letter case are varied on top. The
output is the same for the same ``--seed`` and ``--count``.

    python generate.py --out train.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from grammar import expand
from numbers_spoken import alternatives, number

Slots = dict[str, str | int]

DEFAULT_COUNT = 4000
DEFAULT_SEED = 7
CONTINUATION_SEED = 8


@dataclass(frozen=True)
class Spoken:
    """One command before casing: a template, the words that fill it, and the slots it stands for."""

    template: str
    words: dict[str, str]
    slots: Slots


ROOMS = alternatives(
    "kitchen|living room|bedroom|bathroom|hallway|office|garage|dining room|nursery|basement|attic|porch|guest room|"
    "study|laundry room|balcony|kids room|entrance|corridor|lounge|closet|sunroom|stairs|back yard|"
    "conservatory|loft|gym|den|utility room|cloakroom|foyer|hobby room|reading corner|home theater|storage room|carport"
)
DAYS = alternatives("today|tonight|tomorrow|monday|tuesday|wednesday|thursday|friday|saturday|sunday|this weekend")
ALARM_DAYS = alternatives("tomorrow|monday|tuesday|wednesday|thursday|friday|saturday|sunday")
PEOPLE = alternatives(
    "mom|dad|anna|ben|carla|david|emma|felix|grandma|hannah|igor|julia|my wife|my husband|my sister|my brother|kate|"
    "leo|maria|nina|oscar|priya|robert|sofia|tom|uncle ray|victor|wendy|my boss|the babysitter|aunt lucy|mister chen|"
    "doctor patel|my neighbor|jonas|yara|the landlord|grandpa|ahmed|chloe|my roommate|coach miller|fatima|george|"
    "abigail|bjorn|claire|dmitri|my teacher|fiona|gustavo|harold|isabel|joanna|the neighbors|karim|linda|miss brown|"
    "mateo|nora|my daughter|olivia|paul|rashid|stella|the dentist|uncle bob|vivian|walter|xavier|yusuf|zoe|my team"
)
PLACES = alternatives(
    "london|paris|berlin|madrid|tokyo|new york|oslo|lisbon|rome|vienna|boston|chicago|dublin|cairo|sydney|mumbai|"
    "toronto|seattle|prague|athens|warsaw|denver|lima|seoul|bangkok|geneva|naples|san diego|cape town|budapest|"
    "nairobi|milan|zurich|austin|glasgow|portland|kyoto|helsinki|bristol|havana|riga|salt lake city|porto|manila|"
    "antwerp|bogota|cologne|dallas|florence|ghent|hamburg|istanbul|jakarta|kansas city|leeds|montreal|new orleans|"
    "osaka|palermo|quito|reykjavik|stockholm|tampa|utrecht|valencia|winnipeg|xian|york|"
    "zagreb|san antonio|tel aviv|belfast"
)
GENRES = alternatives(
    "jazz|rock|classical music|hip hop|country|blues|reggae|techno|folk music|opera|disco|soul|lo-fi beats|punk|"
    "ambient sounds|christmas songs|piano music|eighties hits|dance music|salsa|heavy metal|bossa nova|whale sounds|"
    "movie soundtracks|workout music|sleep sounds|gospel|bluegrass|party songs|rain sounds|flamenco|synth pop"
)
ARTISTS = alternatives(
    "the beatles|miles davis|queen|daft punk|nina simone|bob marley|adele|radiohead|johnny cash|abba|coldplay|"
    "david bowie|aretha franklin|mozart|ella fitzgerald|pink floyd|stevie wonder|dolly parton|metallica|bach|"
    "fleetwood mac|elton john|prince|billie holiday|the rolling stones|u2|shakira|louis armstrong|joni mitchell"
)
TITLE_FIRST = alternatives(
    "blue|golden|midnight|broken|summer|silent|electric|paper|lonely|crystal|winter|dancing|hidden"
)
TITLE_SECOND = alternatives("river|heart|train|sky|garden|moon|lights|road|rain|dreams|ocean|fire|city|birds|letters")
LISTS = alternatives("shopping|grocery|to-do|packing|party|hardware|gift|holiday|camping|wish|christmas|work|pharmacy")
ITEMS = alternatives(
    "milk|eggs|bread|butter|bananas|olive oil|toilet paper|coffee|rice|dog food|batteries|tomatoes|dish soap|cheese|"
    "sunscreen|toothpaste|paper towels|chicken breast|apples|light bulbs|socks|a phone charger|yogurt|oat milk|garlic|"
    "orange juice|shampoo|birthday candles|wrapping paper|sparkling water|frozen peas|trash bags|two lemons|onions|"
    "a loaf of rye bread|cat litter|spaghetti|cinnamon|screws|paint brushes|a raincoat|hiking boots|the passports|"
    "six bottles of water|a new mop|honey|peanut butter|black beans|call the plumber|water the plants|pay the rent|"
    "book a dentist appointment|fix the bike|clean the gutters|return the library books|renew the passport"
)
QUALITIES = alternatives(
    "red|fresh|small|wooden|spicy|organic|soft|frozen|dried|cheap|plain|dark|warm|crunchy|plastic|striped|heavy|salted|"
    "yellow|canned|whole|smoked|green|double|extra|quiet|old|purple|local|ground|gentle|ripe|velvet|iron|silver|northern"
)
THINGS = alternatives(
    "almonds|buttons|candles|dumplings|envelopes|figs|gloves|hangers|ink|jam|kiwis|lentils|mushrooms|noodles|olives|"
    "pencils|quinoa|ribbons|soup|tea|umbrellas|vinegar|walnuts|zucchini|beans|crackers|marbles|napkins|pillows|sponges|"
    "towels|tape|rope|plums|muffins|ladders|herbs|glue|forks|chalk|carrots|blankets|beets|waffles|thread|pretzels"
)
DOORS = alternatives("front|back|garage|side|patio|basement|cellar|main|kitchen|balcony|shed|garden|porch|office")
MESSAGES = (
    "(i'm|i am) (running|about) (five|ten|twenty) minutes late",
    "(i'll|i will) be (home|there) (soon|in an hour|by six|after lunch|around eight)",
    "(dinner|lunch|breakfast) is (ready|at seven|in the oven|on me today)",
    "(can you|could you|please) (pick up|buy|bring) (some milk|the kids|a bottle of wine|my jacket|bread)",
    "(happy birthday|good luck|congratulations|good night|merry christmas|thank you so much)",
    "the (meeting|game|party|class) (starts at nine|is cancelled|moved to friday|went really well)",
    "(call|text|ring) me (back|when you can|when you land|later|tonight)",
    "(where are you|what time is dinner|did you feed the cat|are we still on for tonight|is everything okay)",
    "(i|we) (love|miss) you",
    "(the train|my flight|the bus) is (late|delayed by an hour|on time)",
    "(don't|please don't) forget (the keys|your umbrella|our appointment|to lock up|the tickets)",
    "(just|we) (arrived|landed|left the house|finished work)",
    "see you (at the station|tomorrow|at noon|next week|there)",
    "(the dog|the package|the plumber) (is here|has arrived|needs to go out)",
    "(the|my|our) QUALITY THINGS (are|were) (gone|lovely|in the car|on the table|too expensive|on sale|a bit QUALITY)",
    "(i|we) (found|bought|lost|ordered|forgot|need) (the|some|two|more|your) QUALITY THINGS (yesterday|again|today|)",
    "(thanks for|how much are|did you see|what happened to|who took|look at) the QUALITY THINGS",
)

POLITE_BEFORE = (
    *("please", "could you", "can you", "would you", "hey", "ok", "hi there", "can you please", "um", "now", "so"),
    *("and", "quick", "well", "computer", "next", "hello", "actually", "good evening", "be nice and", "listen"),
)
POLITE_AFTER = ("please", "thanks", "thank you", "for me", "now", "right now", "if you can", "will you")


def _pick(rng: random.Random, *templates: str) -> str:
    return rng.choice(templates)


def _compose(template: str, rng: random.Random) -> str:
    """Put made-up pairs of words into a text, so that the adapter meets more words than the lists hold."""
    return template.replace("QUALITY", rng.choice(QUALITIES)).replace("THINGS", rng.choice(THINGS))


def light_on(rng: random.Random) -> Spoken:
    if rng.random() < 0.2:
        template = _pick(
            rng,
            "(turn|switch|put) (on the (light|lights|lamps)|the (light|lights|lamps) on)",
            "lights on",
            "(give me|i need|let's have) (some|more|a bit of) light (in here|)",
            "it's (too|so|really|getting) dark (in here|)",
        )
        return Spoken(template, {}, {})
    room = rng.choice(ROOMS)
    template = _pick(
        rng,
        "(turn|switch|put|flip) on (the|my|all the|) {room} (light|lights|lamp|lamps)",
        "(turn|switch|put|get|flip) (the|my|) {room} (light|lights|lamps) (on|back on)",
        "(turn|switch|put) on the (light|lights|lamp) in the {room}",
        "(turn|switch|put|have) the (light|lights|lamps) in the {room} on",
        "{room} (light|lights) on",
        "(light up|illuminate|brighten up) the {room}",
        "(i need|i want|we need|give me) (some|) (light|lights) in the {room}",
        "it's (too|so|really|pretty) dark in the {room}",
        "(activate|enable|start) the {room} (light|lights)",
        "in the {room} (turn|switch) the (light|lights) on",
        "i can't see (anything|a thing) in the {room}",
        "(make sure|see that) the {room} (light is|lights are) on",
    )
    return Spoken(template, {"room": room}, {"room": room})


def light_off(rng: random.Random) -> Spoken:
    if rng.random() < 0.2:
        template = _pick(
            rng,
            "(turn|switch|shut) (off (the|all the|all) (light|lights|lamps)|the (light|lights|lamps) off)",
            "lights (off|out)",
            "(kill|cut) the lights",
            "(make it|i want it) dark (in here|)",
        )
        return Spoken(template, {}, {})
    room = rng.choice(ROOMS)
    template = _pick(
        rng,
        "(turn|switch|shut|flip) off (the|my|all the|) {room} (light|lights|lamp|lamps)",
        "(turn|switch|shut|get) (the|my|) {room} (light|lights|lamps) (off|out|back off)",
        "(turn|switch|shut) off the (light|lights|lamp) in the {room}",
        "(turn|switch|have) the (light|lights|lamps) in the {room} off",
        "{room} (light|lights) (off|out)",
        "(kill|cut|put out) the (light|lights) in the {room}",
        "(kill|cut|put out) the {room} (light|lights)",
        "(i don't need|we don't need|nobody needs|no need for) (the|any|) (light|lights) in the {room} (anymore|)",
        "(make the {room} dark|darken the {room})",
        "(deactivate|disable|stop) the {room} (light|lights)",
        "(someone|i|we) left the {room} (light|lights) on",
        "nobody is in the {room} so (turn|switch|shut) (off the lights|the lights off)",
        "(make sure|see that) the {room} (light is|lights are) off",
    )
    return Spoken(template, {"room": room}, {"room": room})


def set_brightness(rng: random.Random) -> Spoken:
    percent = rng.choice([rng.randint(1, 100), rng.randrange(5, 101, 5), rng.randrange(10, 101, 10)])
    words = {"n": number(percent, rng)}
    if rng.random() < 0.3:
        template = _pick(
            rng,
            "(set|change|adjust|put|bring) the (brightness|lights|light level) to {n} (percent|%)",
            "(dim|lower|brighten|raise) the (lights|light|lamps) to {n} percent",
            "(brightness|lights) (to|at) {n} percent",
            "(i want|i'd like|let's have) the lights at {n} percent",
            "{n} percent (brightness|light) (please|)",
        )
        return Spoken(template, words, {"percent": percent})
    room = rng.choice(ROOMS)
    template = _pick(
        rng,
        "(set|change|adjust|put|bring|turn) the {room} (brightness|lights|light|lamps) to {n} (percent|%)",
        "(dim|lower|brighten|raise|turn down|turn up) the {room} (lights|light|lamps) to {n} (percent|%)",
        "(set|change|adjust|dim|lower|raise) the (brightness|lights|light level) in the {room} to {n} (percent|%)",
        "(dim|brighten) the {room} to {n} percent",
        "{room} (brightness|lights|light) (to|at) {n} percent",
        "(i want|i'd like|make) the {room} (lights|light) (at|to be at) {n} percent",
        "make the {room} {n} percent bright",
        "(in|for) the {room} (set|bring|dim) the (lights|brightness) to {n} percent",
        "{n} percent (brightness|light) in the {room}",
        "(give me|let's have) {n} percent light in the {room}",
        "can the {room} (lights|lamps) (go|be) (down to|up to|at) {n} percent",
    )
    return Spoken(template, words | {"room": room}, {"room": room, "percent": percent})


def set_temperature(rng: random.Random) -> Spoken:
    degrees = rng.choice([rng.randint(14, 30), rng.randint(58, 80)])
    words = {"n": number(degrees, rng)}
    if rng.random() < 0.5:
        template = _pick(
            rng,
            "(set|change|adjust|put|turn|raise|lower) the (temperature|thermostat|heating|heat|ac) to {n} (degrees|)",
            "(make it|i want it|i'd like it|get it|keep it) {n} degrees (in here|inside|)",
            "(heat|warm|cool) (the house|the place|the apartment|it) (to|up to|down to) {n} (degrees|)",
            "(thermostat|temperature|heating) (to|at) {n} (degrees|)",
            "{n} degrees (in here|)",
            "(it's|i'm) (cold|hot|freezing|too warm) (set|make) (it|the heating) (to|) {n} degrees",
            "(turn|bring) the (heat|heating|ac|temperature) (up|down) to {n}",
        )
        return Spoken(template, words, {"degrees": degrees})
    room = rng.choice(ROOMS)
    template = _pick(
        rng,
        "(set|change|adjust|put|turn|raise) the {room} (temperature|thermostat|heating|heat|ac) to {n} (degrees|)",
        "(set|change|adjust|put|turn|raise) the (temperature|thermostat|heating|heat) in the {room} to {n} (degrees|)",
        "(make|keep|get|i want|i'd like) the {room} (at|) {n} degrees",
        "(heat|warm|cool) the {room} (to|up to|down to) {n} (degrees|)",
        "{room} (thermostat|temperature|heating) (to|at) {n} (degrees|)",
        "{n} degrees in the {room}",
        "(in|for) the {room} (set|make) (the temperature|the heating|it) (to|) {n} degrees",
        "it's too (cold|hot|chilly|warm) in the {room} (make it|set it to|go to) {n} (degrees|)",
        "(turn|bring) the {room} (heat|heating|temperature) (up|down) to {n} (degrees|)",
    )
    return Spoken(template, words | {"room": room}, {"room": room, "degrees": degrees})


def play_music(rng: random.Random) -> Spoken:
    title = f"{rng.choice(TITLE_FIRST)} {rng.choice(TITLE_SECOND)}"
    if rng.random() < 0.5:
        title = _compose("QUALITY THINGS", rng)
    query = rng.choice([rng.choice(GENRES), rng.choice(ARTISTS), title, f"{title} by {rng.choice(ARTISTS)}"])
    template = _pick(
        rng,
        "play (some|me some|a bit of|) {Query}",
        "(play|put on|start|start playing|throw on) {Query}",
        "put (some|on some|a little) {Query} on",
        "put {Query} on (the speaker|the speakers|the stereo|)",
        "(i want to|i'd like to|let me|let's) (hear|listen to) (some|) {Query}",
        "(i feel like|i'm in the mood for|how about|let's have|give me) (some|) {Query}",
        "{Query} (please|on the speakers)",
        "(can we|could we) (hear|have|listen to) (some|) {Query}",
        "(play|put on|start) (some|) {Query} (on the stereo|on the speaker|in the background|for us)",
        "(turn on|queue up|stream|shuffle) (some|) {Query}",
        "(find|look up) {Query} and play it",
        "(the kids|my guests|we) want to hear (some|) {Query}",
    )
    return Spoken(template, {"Query": query}, {"query": query})


def set_timer(rng: random.Random) -> Spoken:
    unit, amount = rng.choice(
        [
            ("seconds", rng.choice([5, 10, 15, 20, 30, 40, 45, 50, 60, 90])),
            ("minutes", rng.randint(1, 60)),
            ("minutes", rng.randint(1, 60)),
            ("minutes", rng.randrange(5, 91, 5)),
            ("hours", rng.randint(1, 12)),
        ]
    )
    said = number(amount, rng)
    singular = unit[:-1]
    length = f"{said} {singular if amount == 1 else unit}"
    if amount == 1:
        length = rng.choice([length, {"seconds": "a second", "minutes": "a minute", "hours": "an hour"}[unit]])
    elif unit == "minutes" and amount in (15, 30) and rng.random() < 0.5:
        length = {15: "a quarter of an hour", 30: "half an hour"}[amount]
    compound = "timer for {length}" if length.startswith(("a ", "an ", "half")) else "{n} {unit} timer"
    template = _pick(
        rng,
        "(set|start|make|create|give me|begin) a timer for {length}",
        "(set|start|put on|run) (a|my|the|another) " + compound,
        "(start|begin) (counting down|a countdown) (from|of|for) {length}",
        "(set|start) the (kitchen timer|timer|oven timer|clock) (for|to) {length}",
        "(i need|i want|give me) a timer (for|of) {length}",
        "timer (for|of|) {length}",
        "(count down|time) {length}",
        "(tell me|let me know|beep|alert me|ping me) (in|after|when) {length} (is up|have passed|)",
        "{length} (timer|on the timer|on the clock)",
        "(remind me|wake me|notify me|shout) (in|after) {length}",
        "(have|make) the timer (run|go off) (for|in|after) {length}",
    )
    return Spoken(template, {"length": length, "n": said, "unit": singular}, {unit: amount})


def _clock(rng: random.Random) -> tuple[str, str]:
    """A spoken time of day and its 24-hour form."""
    hour = rng.choice([5, 6, 6, 7, 7, 8, 9, 10, 11, *range(1, 24)])
    minute = rng.choice([0, 0, 0, 15, 30, 30, 45, rng.randrange(5, 60, 5)])
    twelve = hour % 12 or 12
    if minute == 0:
        said = rng.choice([str(twelve), number(twelve, rng, 1.0), str(twelve), f"{twelve} o'clock"])
    elif minute == 30 and rng.random() < 0.4:
        said = f"half past {number(twelve, rng)}"
    elif minute == 15 and rng.random() < 0.4:
        said = f"quarter past {number(twelve, rng)}"
    elif minute == 45 and rng.random() < 0.4:
        said = f"quarter to {number(twelve % 12 + 1, rng)}"
        # The part of the day below still fits: 11:45 is "quarter to twelve" in the morning.
    elif rng.random() < 0.3 and minute > 5:
        said = f"{number(twelve, rng, 1.0)} {number(minute, rng, 1.0)}"
    else:
        said = f"{twelve}:{minute:02d}"
    part = "morning" if hour < 12 else "afternoon" if hour < 18 else "evening" if hour < 21 else "night"
    if "o'clock" in said or "past" in said or "quarter" in said:
        suffix = f" in the {part}" if part != "night" else " at night"
    else:
        spoken_part = f" in the {part}" if part != "night" else " at night"
        suffix = rng.choice([" am", " am", spoken_part] if hour < 12 else [" pm", " pm", spoken_part])
    if hour == 12 and minute == 0 and rng.random() < 0.7:
        return "noon", "12:00"
    if 5 <= hour <= 11 and rng.random() < 0.3:
        return said, f"{hour:02d}:{minute:02d}"  # no part of the day said: an alarm means the morning
    return said + suffix, f"{hour:02d}:{minute:02d}"


def set_alarm(rng: random.Random) -> Spoken:
    said, time = _clock(rng)
    words: dict[str, str] = {"time": said}
    slots: Slots = {"time": time}
    if rng.random() < 0.45:
        template = _pick(
            rng,
            "(set|create|make|schedule|add|put) an alarm (for|at) {time}",
            "(set|put) (my|the) alarm (clock|) (for|at|to) {time}",
            "(wake me|wake me up|get me up|get me out of bed) at {time}",
            "(i need|i want|i have) to (get up|wake up|be up|be awake) at {time}",
            "alarm (for|at|) {time}",
            "(i need|i want|give me) an alarm (for|at) {time}",
            "{time} alarm",
            "(ring|have the alarm go off|sound the alarm) at {time}",
        )
        return Spoken(template, words, slots)
    day = rng.choice(ALARM_DAYS)
    words["Day"] = day
    words["on"] = day if day == "tomorrow" else f"on {day}"
    template = _pick(
        rng,
        "(set|create|make|schedule|add|put) an alarm (for|at) {time} {on_Day}",
        "(set|put) (my|the) alarm (clock|) (for|at|to) {time} {on_Day}",
        "(wake me|wake me up|get me up) {on_Day} at {time}",
        "(wake me|wake me up|get me up|get me out of bed) at {time} {on_Day}",
        "(i need|i want|i have) to (get up|wake up|be up|be awake) at {time} {on_Day}",
        "(set an alarm for|alarm for|set the alarm for|alarm) {Day} (at|) {time}",
        "{on_Day} (wake me|wake me up|i get up|i need to get up) at {time}",
        "(i need|i want|give me) an alarm {on_Day} (at|for) {time}",
        "(ring|have the alarm go off) {on_Day} at {time}",
    )
    words["on_Day"] = words.pop("on")
    return Spoken(template, words, {"time": time, "day": day})


def add_to_list(rng: random.Random) -> Spoken:
    item = rng.choice(ITEMS) if rng.random() < 0.5 else _compose("QUALITY THINGS", rng)
    name = rng.choice(LISTS[:4] * 2 + LISTS)
    words = {"item": item, "list": name}
    if rng.random() < 0.2:
        template = _pick(
            rng,
            "(add|put|write|note|jot down) {item} (to|on) (my|the) list",
            "(put|stick) {item} on (my|the|our) list",
            "(add|write down) {item} on the list",
        )
        return Spoken(template, words, {"item": item})
    template = _pick(
        rng,
        "(add|append) {item} to (my|the|our|) {list} list",
        "(put|write|stick|note|jot|throw|get) {item} (on|down on|onto) (my|the|our) {list} list",
        "(my|the|our) {list} list (needs|should have|should include|is missing) {item}",
        "(on|to) (my|the|our) {list} list (add|put|write) {item}",
        "{item} (goes|belongs|should go|should be) on (my|the|our) {list} list",
        "(i need|we need|i want) {item} on the {list} list",
        "{list} list (add|new item|plus) {item}",
        "(make sure|see that) {item} (is|gets) on (my|the) {list} list",
        "(don't let me forget|remember) {item} (add it to|put it on) (my|the) {list} list",
        "(include|add) {item} (in|on|to) the {list} list",
    )
    return Spoken(template, words, {"item": item, "list": name})


def weather(rng: random.Random) -> Spoken:
    place, day = rng.choice(PLACES), rng.choice(DAYS)
    on_day = f"on {day}" if day.endswith("day") and day != "today" else day
    opening = (
        "((what's|what is|how's|tell me|check|get me) the (weather|forecast|weather forecast)|what's the weather like)",
        "(will it|is it going to|is it gonna|might it|could it) (rain|snow|be sunny|be cold|be hot|be windy|get warm)",
        "(do i|will i|should i) (need|bring|take|wear) (an umbrella|a coat|a jacket|sunglasses|boots)",
        "how (warm|cold|hot|windy|wet) (is it|will it be|does it get|is it going to get)",
        "(what's the temperature|how many degrees will it be|any rain|any snow|any storms|is there rain)",
        "(weather|forecast|weather report|weather forecast)",
    )
    start = rng.choice(opening)
    kind = rng.random()
    if kind < 0.1:
        return Spoken(start + " (outside|)", {}, {})
    if kind < 0.4:
        return Spoken(start + " (in|for|over in) {Place}", {"Place": place}, {"place": place})
    if kind < 0.6 and day != "this weekend" and rng.random() < 0.3:
        template = "(what's|how's|check|show me|tell me|) {Day}'s (weather|forecast|weather forecast)"
        return Spoken(template, {"Day": day}, {"day": day})
    if kind < 0.6:
        return Spoken(start + " {Day}", {"Day": on_day}, {"day": day})
    template = _pick(
        rng,
        start + " (in|for|over in) {Place} {Day}",
        start + " {Day} in {Place}",
        start + " in {Place} {Day}",
        "(i'm|we're) (flying|going|driving|travelling) to {Place} {Day} (what's|how's) the weather (there|)",
        "{Place} (weather|forecast) {Day}",
    )
    return Spoken(template, {"Place": place, "Day": on_day}, {"place": place, "day": day})


def lock_door(rng: random.Random) -> Spoken:
    if rng.random() < 0.2:
        template = _pick(
            rng,
            "(lock|secure|bolt) (the|my) door (behind me|)",
            "(lock up|lock up the house|lock it)",
            "is the door locked if not lock it",
        )
        return Spoken(template, {}, {})
    door = rng.choice(DOORS)
    template = _pick(
        rng,
        "(lock|secure|bolt|lock up|latch) (the|my|our|) {door} door (behind me|)",
        "(make sure|see that|check that|be sure) the {door} door is (locked|bolted|secure)",
        "(i forgot|did i forget|we forgot) to lock the {door} door",
        "{door} door (lock|locked)",
        "(keep|get|have) the {door} door locked (tonight|)",
        "(i want|i need) the {door} door (locked|secured)",
        "(put|set|engage) the lock on the {door} door",
        "the {door} door (should be|needs to be|has to be|must be) locked",
        "(is the {door} door locked if not lock it|i left the {door} door (open|unlocked) lock it)",
    )
    return Spoken(template, {"door": door}, {"door": door})


def set_volume(rng: random.Random) -> Spoken:
    level = rng.choice([rng.randint(0, 10), rng.randint(1, 100), rng.randrange(5, 101, 5)])
    template = _pick(
        rng,
        "(set|change|adjust|put|bring|turn) the (volume|sound|sound level|speaker volume) to {n} (percent|)",
        "(turn|bring|crank|take) the (volume|sound|music|tv|speaker|radio) (up|down) to {n} (percent|)",
        "(volume|sound) (to|at|level|) {n} (percent|)",
        "(raise|lower|increase|reduce|drop) the (volume|sound|music volume) to {n} (percent|)",
        "(i want|i'd like|make) the (volume|sound) (at|on|to be) {n} (percent|)",
        "(turn|crank) it (up|down) to {n} (percent|)",
        "(make|play) (it|the music) (louder|quieter|softer) (go to|volume) {n}",
        "(the music|the tv|it) is too (loud|quiet) (set it|turn it|go) to {n}",
        "(speaker|tv|radio|music) volume (to|at|) {n} (percent|)",
    )
    return Spoken(template, {"n": number(level, rng)}, {"level": level})


def send_message(rng: random.Random) -> Spoken:
    person, text = rng.choice(PEOPLE), _compose(expand(rng.choice(MESSAGES), rng), rng)
    template = _pick(
        rng,
        "(text|message|tell|write|write to) {Person} {text}",
        "(text|message|tell|let) {Person} (know|) that {text}",
        "(send|shoot|write) (a message|a text|a note|an sms) to {Person} (saying|that says|with) {text}",
        "(send|shoot|drop|write) {Person} (a message|a text|a line) (saying|that says|) {text}",
        "(send|text|message) {text} to {Person}",
        "(let {Person} know|inform {Person}) (that|) {text}",
        "(say|pass on) {text} to {Person}",
        "(message|text) to {Person} {text}",
        "(i want to|i need to) (tell|text|message) {Person} (that|) {text}",
        "(reply|answer|respond) to {Person} (with|saying|) {text}",
        "(write a message|new message) (to|for) {Person} {text}",
    )
    return Spoken(template, {"Person": person, "text": text}, {"to": person, "text": text})


INTENTS: dict[str, tuple[Callable[[random.Random], Spoken], int]] = {
    "light_on": (light_on, 4),
    "light_off": (light_off, 4),
    "set_brightness": (set_brightness, 4),
    "set_temperature": (set_temperature, 4),
    "play_music": (play_music, 4),
    "set_timer": (set_timer, 5),
    "set_alarm": (set_alarm, 9),
    "add_to_list": (add_to_list, 5),
    "weather": (weather, 6),
    "lock_door": (lock_door, 3),
    "set_volume": (set_volume, 4),
    "send_message": (send_message, 6),
}
"""Each intent's sampler and how often it is drawn, relative to the others."""


def say(spoken: Spoken, rng: random.Random) -> str:
    """Word a command: expand its template, add fillers, choose the letter case and fill in the values.

    About half of the commands come out like a bare transcript (lower case, no punctuation), the others
    like typed text. Fields with a capital letter hold proper names and are title-cased in typed text.
    """
    template = expand(spoken.template, rng)
    typed = rng.random() < 0.5
    before = f"{rng.choice(POLITE_BEFORE)} " if rng.random() < 0.3 else ""
    ends_in_text = template.endswith(("{text}", "{item}", "{Query}"))
    after = f" {rng.choice(POLITE_AFTER)}" if rng.random() < 0.2 and not ends_in_text else ""
    if typed and ends_in_text and rng.random() < 0.3:
        after = f", {rng.choice(['please', 'thanks'])}"
    text = before + template + after
    for name, value in spoken.words.items():
        proper = name[0].isupper() or name == "on_Day"
        shown = " ".join(word if word in ("on", "by", "my", "the") else word.capitalize() for word in value.split())
        lowers = ("tomorrow", "today", "tonight", "this weekend")
        text = text.replace("{" + name + "}", shown if typed and proper and value not in lowers else value)
    if not typed:
        return text
    text = text[0].upper() + text[1:]
    text = text.replace(" i ", " I ").replace(" i'", " I'")
    question = text.lower().startswith(("what", "how", "will", "is ", "do ", "should", "could", "can", "would"))
    return text + rng.choice(["?", "?", ""] if question else [".", "", "!", ""])


def answer(intent: str, slots: Slots) -> str:
    """The compact one-line JSON the adapter learns to write."""
    return json.dumps({"intent": intent, "slots": slots}, separators=(",", ":"), ensure_ascii=False)


def examples(count: int, seed: int) -> list[tuple[str, str]]:
    """``count`` distinct (command, answer) pairs in random order."""
    rng = random.Random(seed)
    names = [name for name, (_, weight) in INTENTS.items() for _ in range(weight)]
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        intent = rng.choice(names)
        spoken = INTENTS[intent][0](rng)
        pairs.setdefault(say(spoken, rng), answer(intent, spoken.slots))
    return list(pairs.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Write ``{"input", "expected"}`` lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON-lines file to write")
    parser.add_argument("--count", type=int, default=DEFAULT_COUNT, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    with args.out.open("w", encoding="utf-8") as file:
        for command, expected in examples(args.count, args.seed):
            file.write(json.dumps({"input": command, "expected": expected}, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
