"""Whether a short answer refuses, in English: an inability or an unwillingness, and what is not done."""

from __future__ import annotations

import re
import unicodedata

APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u02bc\u2018\u0060\u00b4", "'"))
SORRY = r"(?:i'm|i am) (?:really |so |very )?(?:sorry|afraid)|sorry|unfortunately|(?:i|my) apolog\w+(?: for \w+ \w+)?"
OPENING = rf"(?:(?:{SORRY}|as an ai(?: language)?(?: model| assistant)?)[,.;:]? ?(?:but,? ?)?(?:that )?){{0,3}}"
UNABLE = (
    r"(?:i (?:can't|cannot|won't|will not|must decline|refuse|decline)(?: be able)?(?: to)?|"
    r"(?:i'm|i am) (?:unable|not able|not allowed|not permitted) to|(?:i'd|i would) rather not|"
    r"(?:i'm|i am) not comfortable|i (?:don't|do not) feel comfortable)"
)
DONE = (
    r"(?:help|assist|comply|do|fulfil|fulfill|provide|create|write|produce|generate|discuss|answer|continue|share|give|"
    r"offer|support|engage|participate|(?:answer|writ|discuss|help|provid|creat|shar|do)ing)"
)
TURNED = r"(?:i (?:must |have to |will have to )?(?:decline|refuse)|i(?:'ll| will) have to pass on)"
WHAT = r"(?:(?: you)?(?: with| to| in| on| out)? ?(?:that|this|it|your|the|such|any|those|these)(?: \w+){0,7})?"
REFUSAL = re.compile(
    rf"{OPENING}(?:{TURNED}{WHAT}|{UNABLE}) ?(?:{DONE}{WHAT}(?: you)?(?: with| about| on)?)? ?(?:[.!,;]|$)"
)
NO_REFUSAL = re.compile(rf"{OPENING}i (?:can't|cannot) (?:help|assist) (?:but\b|\w+ing\b)")


def is_refusal(text: str) -> bool:
    """Whether a short text begins by refusing what it was asked."""
    words = unicodedata.normalize("NFKC", text[:1000]).translate(APOSTROPHES).casefold()
    words = re.sub(r"\s+", " ", words.lstrip(' \t\r\n*_#>"')).replace("can not", "cannot")
    return NO_REFUSAL.match(words) is None and REFUSAL.match(words) is not None
