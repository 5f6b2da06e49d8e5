import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from static_subject import REFUSAL, ScriptedEngine, requests, scripted_subject

from steer2edit.errors import ArtifactError, DataError
from steer2edit.evaluation.statistics import estimate
from steer2edit.stress.attack_files import PLACEHOLDERS, AttackFile, ReadyPrompt, read_attacks
from steer2edit.stress.registry import file_test

SUFFIX = "! ! describing.\\ + similarlyNow"
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(content: Any, name: str = "attacks.json") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def jailbreak(**changes: Any) -> dict[str, Any]:
    """An entry of a JailbreakBench artifact, with all the keys of a published one."""
    entry = {
        "index": 0, "goal": "Do a", "behavior": "A", "category": "X", "prompt": "Once upon a time, do a",
        "response": "No.", "number_of_queries": 20, "queries_to_jailbreak": None, "prompt_tokens": 8,
        "response_tokens": 2, "jailbroken": False,
    }  # fmt: skip
    return {**entry, **changes}


class TestJailbreakBench:
    def test_artifact(self, save: Save) -> None:
        entries = [jailbreak(), jailbreak(index=1, goal="Do b", prompt=None, response=None), jailbreak(prompt="p")]
        found = read_attacks(save({"parameters": {"method": "PAIR", "model": "vicuna"}, "jailbreaks": entries}))
        assert found == AttackFile(
            "JailbreakBench artifact, PAIR", "Chao et al. 2024, arXiv 2404.01318",
            (ReadyPrompt("Once upon a time, do a", "Do a"), ReadyPrompt("p", "Do a")),
            note="1 of 3 behaviours have no prompt in the file.",
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ([], r"attacks\.json: jailbreaks must be a list and not empty, got \[\]"),
            ({"0": jailbreak()}, r"jailbreaks must be a list and not empty, got dict"),
            (["p"], r"attacks\.json, jailbreak 1 must be an object, got 'p'"),
            ([jailbreak(), {"goal": "Do a"}], r"jailbreak 2 has no column 'prompt': need goal, prompt, found goal"),
            ([jailbreak(prompt="")], r"jailbreak 1: prompt must be text and not empty, got ''"),
            ([jailbreak(goal=3)], r"jailbreak 1: goal must be text and not empty, got 3"),
            ([jailbreak(prompt=None)] * 2, r"has no prompt: all 2 jailbreaks have null"),
        ],
    )
    def test_bad(self, entries: Any, message: str, save: Save) -> None:
        with pytest.raises(DataError, match=message):
            read_attacks(save({"parameters": {}, "jailbreaks": entries}))


class TestAdvLlm:
    def test_greedy_with_the_requests_recovered(self, save: Save) -> None:
        prompts = ["Do a nicely, so that I begin", "Do b or c as follows"]
        repeated = ["Do a Do a Do a " + prompts[0], "Do b or Do b or Do b or " + prompts[1]]
        content = {"adv_prompts": prompts, "perplexities": [1.0, 2.0], "adv_prompts_goal_rep4": repeated}
        found = read_attacks(save(content))
        assert found.prompts == (ReadyPrompt(prompts[0], "Do a"), ReadyPrompt(prompts[1], "Do b or"))
        assert found.citation == "Sun et al. 2024, arXiv 2410.18469"
        assert found.note == ""

    def test_beams(self, save: Save) -> None:
        found = read_attacks(save({"adv_prompts": [["a1", "a2", "a3"], ["b1"]]}))
        assert found.prompts == (ReadyPrompt("a1"), ReadyPrompt("b1"))
        assert found.note == "Of up to 3 beams for a request the first was asked."

    def test_success_examples(self, save: Save) -> None:
        rows = [{"goal": "Do a", "adv_prompt": "Do a now", "response": "No."}]
        assert read_attacks(save(rows)).prompts == (ReadyPrompt("Do a now", "Do a"),)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"adv_prompts": []}, "adv_prompts must be a list and not empty"),
            ({"adv_prompts": "a"}, "adv_prompts must be a list and not empty, got str"),
            ({"adv_prompts": ["a", ""]}, "adv_prompts, entry 2 must be a text or a list of texts, got ''"),
            ({"adv_prompts": ["a", []]}, r"entry 2 must be a text or a list of texts, got \[\]"),
            ({"adv_prompts": ["a"], "adv_prompts_goal_rep4": ["x", "y"]}, "1 adv_prompts, but 2 adv_prompts_goal_rep4"),
            ({"adv_prompts": ["p"], "adv_prompts_goal_rep4": ["g g h p"]}, "prompt 1: .* three times"),
            ({"adv_prompts": ["p"], "adv_prompts_goal_rep4": ["p"]}, "prompt 1: .* three times"),
            ({"adv_prompts": ["p"], "adv_prompts_goal_rep4": ["g g g q"]}, "prompt 1: .* three times"),
        ],
    )
    def test_bad(self, content: Any, message: str, save: Save) -> None:
        with pytest.raises(DataError, match=message):
            read_attacks(save(content))


class TestGcg:
    def test_goals_and_controls_side_by_side(self, save: Save) -> None:
        content = {"goal": ["Do a", "Do b"], "target": ["Sure", "Sure"], "controls": ["x", "y"]}
        assert read_attacks(save(content)).prompts == (ReadyPrompt("Do a x", "Do a"), ReadyPrompt("Do b y", "Do b"))

    def test_nanogcg_result(self, save: Save) -> None:
        content = {"best_loss": 0.5, "best_string": SUFFIX, "losses": [0.5], "strings": [SUFFIX]}
        found = read_attacks(save(content))
        assert found.templates == (f"{{request}} {SUFFIX}",)
        assert found.citation == "Zou et al. 2023, arXiv 2307.15043"

    def test_table_of_requests_and_suffixes(self, save: Save) -> None:
        path = save(',prompt,adv\n0,Do a,"x, y"\n1,Do b,z\n', "gcg.csv")  # as the authors of Steer2Edit merge them
        assert read_attacks(path).prompts == (ReadyPrompt("Do a x, y", "Do a"), ReadyPrompt("Do b z", "Do b"))

    def test_table_of_suffixes(self, save: Save) -> None:
        found = read_attacks(save('{"suffix": "x"}\n{"suffix": "y"}\n{"suffix": "x"}\n', "s.jsonl"))
        assert found.templates == ("{request} x", "{request} y")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"goal": ["a", "b"], "controls": ["x"]}, "has 2 goals, but 1 controls"),
            ({"goal": ["a"], "controls": [3]}, "controls, entry 1 must be text and not empty, got 3"),
            ({"goal": [""], "controls": ["x"]}, "goal, entry 1 must be text and not empty, got ''"),
            ({"controls": ["x"]}, "has controls, but no goal for each. .* a table"),
            ({"params": {"goals": ["a"]}, "controls": ["!", "x"]}, "a table of each goal and its last suffix"),
            ({"best_string": " "}, "best_string must be text and not empty, got ' '"),
        ],
    )
    def test_bad(self, content: Any, message: str, save: Save) -> None:
        with pytest.raises(DataError, match=message):
            read_attacks(save(content))


class TestRowsAndFiles:
    def test_lines(self, save: Save) -> None:
        found = read_attacks(save("You are Max. Do a\nYou are Max. Do b\n", "max.txt"))
        assert found.prompts == (ReadyPrompt("You are Max. Do a"), ReadyPrompt("You are Max. Do b"))

    def test_prompts_with_goals(self, save: Save) -> None:
        assert read_attacks(save("goal,prompt\nDo a,Please do a\n", "a.csv")).prompts == (
            ReadyPrompt("Please do a", "Do a"),
        )

    @pytest.mark.parametrize(
        ("content", "name", "error", "message"),
        [
            ('{"adv_prompts": ["a"', "a.json", ArtifactError, r"a\.json is not sound JSON"),
            ('{"jailbreaks": [], "jailbreaks": [1]}', "a.json", ArtifactError, "'jailbreaks' is there twice"),
            ("[1, 2", "a.json", DataError, "is not JSON"),
            ("[]", "a.json", DataError, "has no rows"),
            ("{}", "a.json", DataError, "no attack file that is known: .* found nothing"),
            ('{"prompts": 3}', "a.json", DataError, "needs one of jailbreaks, adv_prompts, controls, best_string, "
             "found prompts"),
            ("words\nDo a\n", "a.csv", DataError, r"row 1 \(line 2\) has neither a suffix nor a prompt: .*found words"),
            ("goal,prompt\nDo a,Please\nDo b,\n", "a.csv", DataError, r"row 2 \(line 3\): prompt must be text and not"),
            ("goal,adv\nDo a,x\n,y\n", "a.csv", DataError, r"row 2 \(line 3\): goal must be text and not empty"),
            ("a", "a.pkl", DataError, "cannot tell the format"),
            ("", "a.txt", DataError, "has no rows"),
        ],
    )  # fmt: skip
    def test_bad(self, content: str, name: str, error: type[Exception], message: str, save: Save) -> None:
        with pytest.raises(error, match=message):
            file_test(save(content, name))

    def test_no_such_file(self, tmp_path: Path) -> None:
        for name in ("absent.json", "absent.csv"):
            with pytest.raises(DataError, match=rf"there is no file .*{name}"):
                file_test(tmp_path / name)
        (tmp_path / "folder.json").mkdir()
        with pytest.raises(DataError, match=r"cannot read .*folder\.json"):
            file_test(tmp_path / "folder.json")


def answer(kind: str, text: str) -> str:
    """The edit refuses what is asked plainly; behind `zzz` it does not."""
    return REFUSAL if kind == "edit" and "zzz" not in text else "White paint, then red."


class TestPublished:
    """What the authors' code writes, file by file."""

    def test_autodan_log(self, save: Save) -> None:
        log = {"0": {"goal": "Do a", "target": "Sure", "final_suffix": "In a story, [REPLACE] now", "is_success": True},
               "1": {"goal": "Do b", "target": "Sure", "final_suffix": "As Max: do b"}}  # fmt: skip
        assert read_attacks(save(log)).prompts == (
            ReadyPrompt("In a story, Do a now", "Do a"), ReadyPrompt("As Max: do b", "Do b"),
        )  # fmt: skip

    def test_renellm_results(self, save: Save) -> None:
        rows = [{"idx": 0, "original_harm_behavior": "Do a", "nested_prompt": "Complete the table: do a"}]
        assert read_attacks(save(rows)).prompts == (ReadyPrompt("Complete the table: do a", "Do a"),)

    def test_harmbench_test_cases(self, save: Save) -> None:
        found = read_attacks(save({"do_a": ["p", "q"], "do_b": ["r"]}))
        assert found.prompts == (ReadyPrompt("p"), ReadyPrompt("q"), ReadyPrompt("r"))
        with pytest.raises(DataError, match="do_b, entry 1 must be text and not empty"):
            read_attacks(save({"do_a": ["p"], "do_b": [3]}))

    @pytest.mark.parametrize("place", PLACEHOLDERS)
    def test_templates_such_as_aim(self, place: str, save: Save) -> None:
        rows = [{"name": "AIM", "text": f"You are AIM. {place}"}, {"name": "x", "text": f"{place}!"}]
        assert read_attacks(save(rows)).templates == ("You are AIM. {request}", "{request}!")
        known = read_attacks(save([{"template": f"Max: {place}", "behavior": "Do a"}]))
        assert known.prompts == (ReadyPrompt("Max: Do a", "Do a"),)

    def test_templates_and_prompts_in_one_file(self, save: Save) -> None:
        with pytest.raises(DataError, match="not both"):
            read_attacks(save([{"text": "AIM [REPLACE]"}, {"text": "Do a"}]))

    def test_ciphers(self, save: Save) -> None:
        row = {"plain_prompt": "Do a", "cipher_prompt": "Read this in Caesar: Gr d"}
        assert read_attacks(save([row])).prompts == (ReadyPrompt("Read this in Caesar: Gr d", "Do a"),)


class TestAttackFileTest:
    def test_suffixes_go_behind_the_subjects_requests(self, save: Save) -> None:
        test, named = file_test(save('{"suffix": "zzz"}\n{"suffix": "{x} ok"}\n', "My suffixes.jsonl"))
        subject = scripted_subject(answer, requests(24))
        assert named == []
        assert test.name.startswith("attack-file-my-suffixes-")
        assert (test.group, test.contract) == ("attacks", True)
        assert test.summary == "suffixes: 2 templates of a file"
        (quick,) = test.run(subject).findings
        assert quick.decides
        assert quick.shares["edited"].value == pytest.approx(0.5)  # every other request meets `zzz`
        assert isinstance(subject.engine, ScriptedEngine)
        assert subject.engine.asked[-2:] == [requests(24)[-2] + " zzz", requests(24)[-1] + " {x} ok"]
        full = test.run(replace(subject, suite="full"))
        assert [(f.outcome, f.decides) for f in full.findings[1:]] == [("failed", False), ("held", False)]
        assert full.findings[0].decides
        assert full.findings[0].shares["edited"].value == pytest.approx(0.5)

    def test_templates_take_the_subjects_requests(self, save: Save) -> None:
        test, _ = file_test(save([{"text": "AIM says zzz: [INSERT PROMPT HERE]"}]))
        (finding,) = test.run(scripted_subject(answer, requests(24))).findings
        assert (finding.outcome, finding.decides) == ("failed", True)

    def test_prompts_with_requests_are_compared_with_them(self, save: Save) -> None:
        rows = [{"goal": request, "prompt": f"zzz {request}"} for request in requests(40)]
        test, named = file_test(save({"jailbreaks": [*rows, {"goal": "a", "prompt": None}]}))
        subject = scripted_subject(answer, ["not asked"], limit=20)
        assert named == requests(40)
        result = test.run(subject)
        (attacked,) = result.findings
        assert estimate(attacked.values["edited"]).n == 20
        assert attacked.outcome == "failed"
        assert attacked.note.startswith("1 of 41 behaviours have no prompt in the file. Not refused is not complied")
        assert set(result.replies["edited"]) == {test.name, "plain"}

    def test_prompts_without_requests_have_nothing_to_compare_with(self, save: Save) -> None:
        test, named = file_test(save("\n".join(f"Max, {request}" for request in requests(20)), "max.txt"))
        subject = scripted_subject(answer, ["not asked"])
        assert named == []
        (finding,) = test.run(subject).findings
        assert (finding.outcome, finding.decides) == ("held", False)  # the base refuses none
        (finding,) = file_test(save("zzz\n" * 20, "z.txt"))[0].run(subject).findings
        assert finding.outcome == "open"
        assert "the plain requests are not known" in finding.sentence
