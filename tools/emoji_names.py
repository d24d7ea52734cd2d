"""Turns Unicode names of emoji into captions: lower case, and what the image shows.

Unicode writes WHITE for an outline and BLACK for a filled shape, whatever the colour of today's
art; a caption that is to teach colours cannot keep these.
"""

import re

RENAMED = {
    "ADULT": "person",
    "ANGER SYMBOL": "anger mark",
    "BASKETBALL AND HOOP": "basketball",
    "BATH": "person taking bath",
    "BELL WITH CANCELLATION STROKE": "bell with slash",
    "BLACK CLUB SUIT": "club suit",
    "BLACK DIAMOND SUIT": "diamond suit",
    "BLACK HEART SUIT": "heart suit",
    "BLACK NIB": "pen nib",
    "BLACK SCISSORS": "scissors",
    "BLACK SPADE SUIT": "spade suit",
    "BLACK SUN WITH RAYS": "sun",
    "BLACK TELEPHONE": "telephone",
    "BREAST-FEEDING": "woman breast-feeding",
    "CARP STREAMER": "carp streamers",
    "CONSTRUCTION SIGN": "construction barrier",
    "COOKING": "fried egg in a pan",
    "DANCER": "woman dancing",
    "DASH SYMBOL": "puff of air",
    "DIRECT HIT": "bullseye",
    "DIZZY FACE": "face with crossed-out eyes",
    "DIZZY SYMBOL": "dizzy star",
    "DNA DOUBLE HELIX": "dna",
    "E-MAIL SYMBOL": "e-mail",
    "EAR OF MAIZE": "ear of corn",
    "EARTH GLOBE AMERICAS": "globe showing the americas",
    "EARTH GLOBE ASIA-AUSTRALIA": "globe showing asia and australia",
    "EARTH GLOBE EUROPE-AFRICA": "globe showing europe and africa",
    "ELECTRIC TORCH": "flashlight",
    "ENVELOPE WITH DOWNWARDS ARROW ABOVE": "envelope with arrow",
    "EXTRATERRESTRIAL ALIEN": "alien",
    "FACE MASSAGE": "person getting massage",
    "FACE PALM": "person facepalming",
    "FACE WITH NO GOOD GESTURE": "person gesturing no",
    "FACE WITH OK GESTURE": "person gesturing ok",
    "FATHER CHRISTMAS": "santa claus",
    "FISTED HAND SIGN": "oncoming fist",
    "FOGGY": "foggy city",
    "GIRAFFE FACE": "giraffe",
    "GRINNING FACE WITH SMILING EYES": "beaming face with smiling eyes",
    "GUARDSMAN": "guard",
    "HAIRCUT": "person getting haircut",
    "HANDBALL": "person playing handball",
    "HEADPHONE": "headphones",
    "HEAVY BLACK HEART": "red heart",
    "HIGH VOLTAGE SIGN": "lightning bolt",
    "HOCHO": "kitchen knife",
    "HOUSE BUILDING": "house",
    "IMP": "angry face with horns",
    "INFORMATION DESK PERSON": "person tipping hand",
    "IZAKAYA LANTERN": "red paper lantern",
    "JUGGLING": "person juggling",
    "LEFT-POINTING MAGNIFYING GLASS": "magnifying glass tilted left",
    "MAN WITH GUA PI MAO": "person with skullcap",
    "MAN WITH TURBAN": "person wearing turban",
    "MELON": "green melon",
    "MOBILE PHONE WITH RIGHTWARDS ARROW AT LEFT": "mobile phone with arrow",
    "MOTHER CHRISTMAS": "mrs claus",
    "MOYAI": "moai statue",
    "MULTIPLE MUSICAL NOTES": "musical notes",
    "OCTAGONAL SIGN": "stop sign",
    "OLDER ADULT": "older person",
    "PEDESTRIAN": "person walking",
    "PERSON RAISING BOTH HANDS IN CELEBRATION": "raised hands in celebration",
    "PERSON WITH FOLDED HANDS": "folded hands",
    "PERSON WITH HEADSCARF": "woman with headscarf",
    "PERSONAL COMPUTER": "laptop",
    "PISTOL": "water pistol",
    "PLAYING CARD BLACK JOKER": "joker playing card",
    "POLICE CARS REVOLVING LIGHT": "police car light",
    "RAISED HAND WITH PART BETWEEN MIDDLE AND RING FINGERS": "vulcan salute",
    "RIGHT-POINTING MAGNIFYING GLASS": "magnifying glass tilted right",
    "ROSETTE": "rosette flower",
    "ROWBOAT": "person rowing boat",
    "SCHOOL SATCHEL": "backpack",
    "SCOOTER": "kick scooter",
    "SHRUG": "person shrugging",
    "SLEEPING ACCOMMODATION": "person in bed",
    "SLEEPING SYMBOL": "zzz letters",
    "SMOKING SYMBOL": "cigarette",
    "SPEAKER WITH CANCELLATION STROKE": "muted speaker",
    "SPLASHING SWEAT SYMBOL": "sweat droplets",
    "STEAMING BOWL": "steaming bowl of noodles",
    "WATER POLO": "person playing water polo",
    "WHITE DOWN POINTING BACKHAND INDEX": "backhand index pointing down",
    "WHITE LEFT POINTING BACKHAND INDEX": "backhand index pointing left",
    "WHITE MEDIUM STAR": "star",
    "WHITE RIGHT POINTING BACKHAND INDEX": "backhand index pointing right",
    "WHITE SMILING FACE": "smiling face",
    "WHITE UP POINTING BACKHAND INDEX": "backhand index pointing up",
    "WHITE UP POINTING INDEX": "index pointing up",
    "WOMAN WITH BUNNY EARS": "people with bunny ears",
    "WRESTLERS": "people wrestling",
}
"""Caption by Unicode name, where no rule below gets it right."""

BY_CODE = {"1F935": "person in tuxedo"}
"""Caption by code point, where the data has one name twice."""

PAIRS = {"WOMAN, MAN": "a woman and a man", "MAN, MAN": "two men", "WOMAN, WOMAN": "two women"}
FAMILIES = {
    "ADULT, ADULT, CHILD": "two adults and a child",
    "ADULT, ADULT, CHILD, CHILD": "two adults and two children",
    "ADULT, CHILD": "an adult and a child",
    "ADULT, CHILD, CHILD": "an adult and two children",
}

RULES = (
    (r"^clock face (\w+) oclock$", r"clock at \1 o'clock"),
    (r"^clock face (\w+-thirty)$", r"clock at \1"),
    (r"^(\w+): bald$", r"bald \1"),
    (r"^(\w+): beard$", r"\1 with beard"),
    (r"^(\w+): (\w+ hair)$", r"\1 with \2"),
    (r"\b(wo)?mans\b", r"\1man's"),
    (r"^banknote with (\w+) sign$", r"\1 banknote"),
    (r" (symbol|sign)$", ""),
)


def caption(code: str, name: str) -> str:
    """Say what emoji `code`, "1F34E", shows, from its Unicode name, "RED APPLE": "red apple".

    Raises:
        ValueError: a name for which there is no rule would leave signs in the caption.
    """
    if found := BY_CODE.get(code) or RENAMED.get(name):
        return found
    kind, _, members = name.partition(": ")
    if kind in ("KISS", "COUPLE WITH HEART"):
        return f"{kind.lower()} of {PAIRS[members]}" if members else kind.lower()
    if kind == "FAMILY":
        return f"family of {FAMILIES[members]}"
    text = name.lower().replace("’", "'")
    for pattern, better in RULES:
        text = re.sub(pattern, better, text)
    if not re.fullmatch(r"[a-z][a-z'-]*( [a-z][a-z'-]*)*", text):
        raise ValueError(f"{code} {name} becomes {text!r}, no plain words: add it to RENAMED")
    return text
