"""Whether a reply's final answer equals the known one, as mathematics: `0.5` is `\\frac{1}{2}`."""

import re
from functools import cache
from typing import Any

from steer2edit.errors import InvalidValueError

SECONDS = 5  # for parsing and for comparing: a reply may hold an expression that cannot be worked out


def is_right(answer: str, reply: str) -> bool | None:
    """Whether the final answer of a reply is the known one.

    The last `\\boxed{}` of the reply counts, else the formula or number that `math-verify` finds in it. What cannot be
    compared within five seconds is wrong.

    Args:
        answer: the known answer, a number or LaTeX.
        reply: free text.

    Returns:
        `None` (unscored) if the known answer cannot be read.

    Raises:
        InvalidValueError: `math-verify` is not installed.

    Source: math-verify (Hugging Face).
    """
    parse, verify, rules = math_verify_functions()
    known = parse(f"\\boxed{{{answer}}}", rules, parsing_timeout=SECONDS)
    if not known:
        return None
    boxed = last_boxed(reply)
    given = parse(reply if boxed is None else f"\\boxed{{{boxed}}}", rules, parsing_timeout=SECONDS)
    return bool(verify(known, given, timeout_seconds=SECONDS))


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{}` whose braces close; `None` if there is none, or nothing in it."""
    for opening in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for position in range(opening, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[opening:position].strip() or None
    return None


@cache
def math_verify_functions() -> tuple[Any, Any, Any]:
    """Reading and comparing by math-verify, imported once, and the settings of both."""
    try:
        from math_verify import (  # type: ignore[import-untyped]
            ExprExtractionConfig,
            LatexExtractionConfig,
            parse,
            verify,
        )
    except ImportError as error:
        raise InvalidValueError(
            "exact match needs the package math-verify, which is not installed. "
            "Run: pip install math-verify[antlr4_13_2]"
        ) from error
    return parse, verify, (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
