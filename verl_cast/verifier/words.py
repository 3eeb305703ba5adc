"""The words that `reading` knows: what may lead to an answer, what may follow it, and what makes it none."""

import re


def _any(words: str) -> str:
    return "(?:" + "|".join(words.split()) + ")"


# A sentence may start with these. None of them negates, hedges, compares, computes or names a second value.
LEAD = _any(
    "the so thus therefore hence then finally final correct required desired answers? results? solutions? "
    "values? total sum number count amount is are be was equals equal to must will of for in this that it its we "
    "he she they you get gets got obtain have has had find found conclude makes? needs? pays? costs? earns? there "
    "exactly ways? probability area perimeter volume length height width radius angle distance time speed average "
    "mean median price remainder product difference ratio quotient maximum minimum largest smallest greatest option "
    "choice which where set interval range domain triangle circle rectangle my our by as altogether triple pair "
    "sold sells left remaining expected"
)
CHINESE_LEAD = "|".join(
    "综上所述 综上 所以 因此 因而 于是 从而 故 则 即 可得 得到 得出 得 最终 最后 正确 答案 结果 答 解 选项 选择 "
    "应选 选 一共有 总共有 共有 一共 总共 共 有 应该是 应为 就是 是 为 等于 该 这个 所求 的 值 数 概率 面积 周长 "
    "体积 长度 总和 我们 在".split()
)

# Who uses one of these behind a value, or before a conclusion, has not said one value.
DOUBT = re.compile(
    r"\b(?:not|no|nor|never|cannot|or|either|neither|but|wait|maybe|perhaps|possibly|probably|likely|might|may|could|"
    r"would|should|if|unless|except|think|thought|guess|believe|suppose|wrong|incorrect|false|true|impossible|instead|"
    r"rather|actually|sorry|oops|mean|meant|hmm|least|most|more|less|fewer|than|about|around|approximately|approx|"
    r"roughly|nearly|almost|close|between|from|until|up|under|over|above|below|different from|other|another|else|"
    r"one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|nope|kidding|unsure|uncertain|sure)\b"
    r"|n't\b|n’t\b|\?|？|不(?!同)|没|非|无|错|吗|或|约|左右|上下|以[上下内外]|之间|超|近|吧|呢|至[少多]|可能|也许|大概|多|少|余|否",
    re.IGNORECASE,
)
# No unit: they change the value, or make a sentence of it.
CHANGING = re.compile(
    r"\b(?:and|is|are|was|were|be|so|that|to|with|when|where|minus|plus|times|squared?(?! \w*(?:feet|foot|unit|meter|"
    r"metre|inch|mile|yard|cm|km))|cubed?(?! \w)|factorial|halves|half|thirds?|quarters?|fifths?|sixths|eighths|"
    r"tenths?|hundredths?|thousandths?|double|twice|dozens?|hundreds?|thousands?|millions?|billions?|trillions?|root|mod|"
    r"modulo|base|as|at|factors?|divisors?|points?|power|divided|multiplied|percentage|rejected|excluded|disputed|"
    r"estimated?|approximate|rounded|fails?|seems?|trap|negative|negated|invers[ei]\w*|inverted|reciprocal|repeat\w*|"
    r"recurring|reversed|doubled|tripled|halved|complement|conjugate|tens|ones|too|short$)\b|"
    r"[百千万亿倍分成折半舍疑]|次方|方$|之一|一个",
    re.IGNORECASE,
)

_UNITS = {
    "m": "m meter metre 米", "km": "km kilometer kilometre 千米 公里", "cm": "cm centimeter centimetre 厘米",
    "mm": "mm millimeter millimetre 毫米", "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard",
    "mi": "mi mile", "g": "g gram 克", "kg": "kg kilogram 千克 公斤", "mg": "mg milligram", "lb": "lb lbs pound",
    "oz": "oz ounce", "s": "s sec second 秒", "min": "min minute 分钟", "h": "h hr hour 小时", "day": "day 天",
    "l": "l L liter litre 升", "ml": "ml mL milliliter millilitre 毫升", "dollar": "dollar $ USD", "cent": "cent",
    "euro": "euro € EUR", "pound sterling": "£ GBP", "yuan": "yuan ¥ 元 RMB", "degree": r"degree deg ^\circ 度",
    "radian": "radian rad", "mi/h": "mph", "km/h": "kph kmph", "V": "V", "W": "W", "N": "N", "J": "J",
    "K": "K", "A": "A", "C": r"^\circC", "F": r"^\circF", "Hz": "Hz", "Pa": "Pa",
}  # fmt: skip
UNITS = {name: unit for unit, names in _UNITS.items() for name in names.split()}


def unit(text: str) -> str | None:
    """The unit that the text is: canonical where known, "?" for another noun, None where it is no unit.

    A unit that is not known has a word of four letters, so that `2 xyz` stays a product.
    """
    in_brackets = text.strip().startswith("(")
    text = re.sub(r"^(?:an?|per|each|every)\s+", "", " ".join(text.split()).strip(" .()"))
    plain = re.sub(r"\^\{?\d\}?$", "", text)
    for name in (text, text.removesuffix("s"), text.lower(), text.lower().removesuffix("s")):
        if name in UNITS:
            return UNITS[name]
    if plain != text and (known := unit(plain)):
        return known + text[len(plain) :].strip("^{}") if known != "?" else "?"
    if in_brackets or DOUBT.search(text) or CHANGING.search(text):
        return None
    parts = [UNITS.get(part) for part in text.split("/")]
    if None not in parts:
        return "/".join(parts)
    if re.fullmatch(r"[\u3400-\u9fff]{1,10}", text):
        return "?"
    known_or_long = re.search(r"[A-Za-z]{4,}|^(?:men|\w+/\w+|cc|sq|cu)\b", text)
    words = re.fullmatch(r"[A-Za-z]+(?:[ /-][A-Za-z]+){0,4}(?:\^\{?\d\}?)?", text)
    return "?" if known_or_long and words else None
