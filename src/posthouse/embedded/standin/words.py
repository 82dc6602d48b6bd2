"""Words of a text: which of them tell something, and which of two mean the same."""

import re

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
_STOP_WORDS = """
a about above after again all also always am an and another any are aren't as at be because
been before being below best better between both but by can can't cannot could did didn't do
does doesn't doing don't done down during each either else etc even ever every few for from
further get gets give given go goes going had has hasn't have haven't having he her here hers
him his how however i if in instead into is isn't it it's its itself just let like likely many
may me might more most much must my near need needs neither never no nor not now of off often
on once one only onto or other our out over own per please quite rather really same say says
she should since so some something soon still such than that that's the their them then there
these they thing things this those though through thus to too toward under until up upon us use
used uses using very via want was way we well were what what's when where whether which while
who whom whose why will with within without won't would yet you your yours compare comparison
deep depth describe detail details different difference differences explain find guide
information overview report research summarise summarize summary tell topic understand work
works
"""
_STOP = frozenset(_STOP_WORDS.split())
_ENDINGS = (
    ("isations", "is"), ("izations", "iz"), ("isation", "is"), ("ization", "iz"), ("ations", "at"),
    ("ation", "at"), ("ies", "y"), ("ings", ""), ("ing", ""), ("ied", "y"), ("ers", ""), ("er", ""),
    ("ed", ""), ("es", ""), ("ly", ""), ("s", ""), ("e", ""),
)  # fmt: skip


def words(text: str) -> list[str]:
    """Every word of the text in lower case, in order."""
    return _WORD.findall(text.lower())


def stem(word: str) -> str:
    """The word without its ending, so that "leases", "leased" and "lease" are one."""
    word = word.removesuffix("'s").removesuffix("\u2019s")
    for ending, instead in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            return word.removesuffix(ending) + instead
    return word


def telling(text: str) -> list[str]:
    """The words that say what a text is about, each once, in order."""
    found = (w for w in words(text) if w not in _STOP and (len(w) > 1 or w.isdigit()))
    return list(dict.fromkeys(found))


def stems(text: str) -> frozenset[str]:
    """The stems of the telling words."""
    return frozenset(stem(word) for word in telling(text))
