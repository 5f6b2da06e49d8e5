"""Files of ready attack prompts, in the formats they are published in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from steer2edit.artifacts.manifest import parse_object
from steer2edit.errors import DataError
from steer2edit.steering.data_files import read_text
from steer2edit.steering.rows import Row, read_table
from steer2edit.steering.transformation import REQUEST

SUFFIX_COLUMNS = ("adv", "suffix", "adv_suffix", "control", "best_string")
PROMPT_COLUMNS = (
    "adv_prompt", "jailbreak_prompt", "attack_prompt", "nested_prompt", "final_suffix", "cipher_prompt",
    "encoded_prompt", "test_case", "jailbreak", "template", "prompt", "text",
)  # fmt: skip
"""In the order in which they count: JailbreakBench, PAIR, ReNeLLM, AutoDAN, CipherChat, HarmBench, GPTFuzzer, AIM."""
REQUEST_COLUMNS = ("goal", "behavior", "request", "forbidden_prompt", "original_harm_behavior", "plain_prompt")
PLACEHOLDERS = (
    "[INSERT PROMPT HERE]", "[INSERT_PROMPT_HERE]", "[REPLACE]", "[GOAL]", "{goal}", "{behavior}", "{query}",
    "{question}", "{prompt}", "{request}",
)  # fmt: skip
"""What stands for the request in published templates."""
_REQUESTS_OF_SUFFIXES = (*REQUEST_COLUMNS, "prompt", "instruction", "question")
_ZOU = "Zou et al. 2023, arXiv 2307.15043"
_REPEATS = 3


class ReadyPrompt(NamedTuple):
    """A prompt of an attack, and the request it is about, where the file says so."""

    text: str
    request: str | None = None


@dataclass(frozen=True)
class AttackFile:
    """What a file holds: ready prompts, or templates (a suffix is one) that go with any request."""

    format: str  # of the file, for people
    citation: str  # where the attack was published
    prompts: tuple[ReadyPrompt, ...] = ()  # ready prompts
    templates: tuple[str, ...] = ()  # with `{request}` for the request, where there are no ready prompts
    note: str = ""  # what was left out


def read_attacks(path: Path | str) -> AttackFile:
    """The attacks of a file in one of the formats of docs/stress.md.

    A JSON object is told by its keys; rows have a column of suffixes or of ready prompts, with the request or without.
    A prompt with one of the `PLACEHOLDERS` is a template: it is filled with the row's request, or goes with any.

    Raises:
        DataError: there is no such file, it is of no known format, or an entry is not as the format has it.
        ArtifactError: it begins as a JSON object, but is none.
    """
    source, where = Path(path).expanduser(), str(Path(path).expanduser())
    text = read_text(source) if source.suffix.lower() == ".json" else ""
    if not text.lstrip().startswith("{"):
        return _of_rows(read_table(where).rows)
    content = Row(where, parse_object(text.encode("utf-8", "surrogatepass"), where)).cells
    for key, read in _OBJECTS.items():
        if key in content:
            return read(content, where)
    if content and all(isinstance(value, Mapping) for value in content.values()):
        return _of_rows([Row(f"{where}, {name!r}", dict(value)) for name, value in content.items()])
    if content and all(isinstance(value, list) for value in content.values()):
        cases = [(name, text) for name, texts in content.items() for text in _texts(texts, f"{where}: {name}")]
        return _of_rows([Row(f"{where}, {name!r}", {"test_case": text}) for name, text in cases])
    raise DataError(
        f"{where} is no attack file that is known: a JSON object needs one of {', '.join(_OBJECTS)}, found "
        f"{', '.join(content) or 'nothing'}."
    )


def _jailbreakbench(content: Mapping[str, Any], where: str) -> AttackFile:
    """Source: JailbreakBench/artifacts, `attack-artifacts/METHOD/TYPE/MODEL.json`; a `prompt` may be null."""
    entries, prompts = _list(content["jailbreaks"], f"{where}: jailbreaks"), []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, Mapping):
            raise DataError(f"{where}, jailbreak {number} must be an object, got {entry!r}.")
        row = Row(f"{where}, jailbreak {number}", dict(entry))
        if "prompt" not in entry or entry["prompt"] is not None:
            row.needs("goal", "prompt")
            prompts.append(ReadyPrompt(row.text("prompt"), row.text("goal")))
    absent = len(entries) - len(prompts)
    if not prompts:
        raise DataError(f"{where} has no prompt: all {absent} jailbreaks have null in its place.")
    note = f"{absent} of {len(entries)} behaviours have no prompt in the file." if absent else ""
    parameters = content.get("parameters")
    method = parameters.get("method") if isinstance(parameters, Mapping) else None
    name = f"JailbreakBench artifact, {method}" if isinstance(method, str) else "JailbreakBench artifact"
    return AttackFile(name, "Chao et al. 2024, arXiv 2404.01318", tuple(prompts), note=note)


def _adv_llm(content: Mapping[str, Any], where: str) -> AttackFile:
    """Source: SunChungEn/ADV-LLM, `generated_adv_prompts`: a prompt per request, or a list of beams (the first counts).

    `adv_prompts_goal_rep4` has the request three times in front of each prompt.
    """
    firsts: dict[str, list[str]] = {}
    most = 1
    for key in ("adv_prompts", "adv_prompts_goal_rep4"):
        for number, entry in enumerate(_list(content[key], f"{where}: {key}") if key in content else (), start=1):
            beams = entry if isinstance(entry, list) else [entry]
            if not beams or not all(isinstance(text, str) and text.strip() for text in beams):
                raise DataError(f"{where}: {key}, entry {number} must be a text or a list of texts, got {entry!r}.")
            firsts.setdefault(key, []).append(beams[0])
            most = max(most, len(beams))
    texts, wholes = firsts["adv_prompts"], firsts.get("adv_prompts_goal_rep4")
    if wholes is not None and len(wholes) != len(texts):
        raise DataError(f"{where} has {len(texts)} adv_prompts, but {len(wholes)} adv_prompts_goal_rep4.")
    prompts = [ReadyPrompt(text) for text in texts] if wholes is None else []
    for number, (text, whole) in enumerate(zip(texts, wholes or (), strict=False), start=1):
        before = whole.removesuffix(text)
        request = before[: len(before) // _REPEATS - 1]
        if not request or before != f"{request} " * _REPEATS or before == whole:
            raise DataError(
                f"{where}, prompt {number}: adv_prompts_goal_rep4 must be the request three times and then the prompt."
            )
        prompts.append(ReadyPrompt(text, request))
    note = f"Of up to {most} beams for a request the first was asked." if most > 1 else ""
    return AttackFile("ADV-LLM prompts", "Sun et al. 2024, arXiv 2410.18469", tuple(prompts), note=note)


def _gcg(content: Mapping[str, Any], where: str) -> AttackFile:
    """Suffixes of GCG: `goal` and `controls` of one length."""
    if "goal" not in content:
        raise DataError(
            f"{where} has controls, but no goal for each. Of a log of llm-attacks, give a table of each goal and its "
            "last suffix, in columns goal and suffix."
        )
    suffixes, goals = (_texts(content[key], f"{where}: {key}") for key in ("controls", "goal"))
    if len(goals) != len(suffixes):
        raise DataError(f"{where} has {len(goals)} goals, but {len(suffixes)} controls.")
    pairs = zip(goals, suffixes, strict=True)
    return AttackFile("GCG suffixes", _ZOU, tuple(ReadyPrompt(f"{goal} {suffix}", goal) for goal, suffix in pairs))


_OBJECTS: Mapping[str, Callable[[Mapping[str, Any], str], AttackFile]] = {
    "jailbreaks": _jailbreakbench,
    "adv_prompts": _adv_llm,
    "controls": _gcg,
    "best_string": lambda content, where: AttackFile(  # of nanogcg's GCGResult
        "nanogcg result", _ZOU, templates=(f"{REQUEST} {Row(where, content).text('best_string')}",)
    ),
}


def _of_rows(rows: Sequence[Row]) -> AttackFile:
    """The columns are those of the first row."""
    suffix, prompt = _column(rows[0], SUFFIX_COLUMNS), _column(rows[0], PROMPT_COLUMNS)
    column = suffix or prompt
    if column is None:
        raise DataError(
            f"{rows[0].where} has neither a suffix nor a prompt: need one of "
            f"{', '.join(SUFFIX_COLUMNS + PROMPT_COLUMNS)}, found {', '.join(rows[0].cells) or 'none'}."
        )
    about = _column(rows[0], _REQUESTS_OF_SUFFIXES if suffix else REQUEST_COLUMNS)
    found = [(row.text(about) if about else None, row.text(column)) for row in rows]
    if suffix and not about:
        return AttackFile("suffixes", _ZOU, templates=tuple(dict.fromkeys(f"{REQUEST} {text}" for _, text in found)))
    if suffix:
        return AttackFile("requests with suffixes", _ZOU, tuple(ReadyPrompt(f"{r} {text}", r) for r, text in found))
    prompts: list[ReadyPrompt] = []
    templates: dict[str, None] = {}
    for request, text in found:
        place = next((one for one in PLACEHOLDERS if one in text), None)
        if place is not None and request is None:
            templates[text.replace(place, REQUEST)] = None
        else:
            prompts.append(ReadyPrompt(text.replace(place, request) if place and request else text, request))
    if prompts and templates:
        raise DataError(f"{rows[0].where}: a file must hold ready prompts, or templates; not both. Make two of it.")
    kind = "templates" if templates else "ready prompts"
    return AttackFile(kind, "the file's own", tuple(prompts), tuple(templates))


def _column(row: Row, names: Sequence[str]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{what} must be a list and not empty, got {value if value == [] else type(value).__name__}.")
    return value


def _texts(value: Any, what: str) -> list[str]:
    for number, text in enumerate(_list(value, what), start=1):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{what}, entry {number} must be text and not empty, got {text!r}.")
    return list(value)
