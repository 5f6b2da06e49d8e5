"""Published data formats, each from a tiny file in its authors' layout, and what can be wrong with one."""

import csv
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from steer2edit.errors import DataError
from steer2edit.evaluation.formats import (
    MMLU_COLUMNS,
    ChoiceQuestion,
    MathProblem,
    TruthQuestion,
    built_in_table,
    commonsense_questions,
    gsm8k_problems,
    math_problems,
    mmlu_questions,
    requests,
    truthful_questions,
    xstest,
)
from steer2edit.steering.rows import read_table


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    def write(*rows: dict[str, Any]) -> str:
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def table_file(tmp_path: Path) -> Callable[..., str]:
    def write(*lines: Sequence[str]) -> str:
        path = tmp_path / "data.csv"
        with path.open("w", newline="", encoding="utf-8") as opened:
            csv.writer(opened).writerows(lines)
        return str(path)

    return write


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A local server that speaks the Hub's protocol, and the cache that files land in."""
    files = {"main": b"goal\nDo a\n", "v2": b"goal\nDo b\n"}

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> bytes:
            path, _, _ = self.path.partition("?")
            for revision, content in files.items():
                if path == f"/datasets/owner/name/resolve/{revision}/sub/advbench.csv":
                    self.send_response(200)
                    self.send_header("ETag", f'"{revision}"')
                    self.send_header("X-Repo-Commit", revision[:1] * 40)
                    return content
            if path == "/api/datasets/owner/name/tree/main":
                self.send_response(200)
                names = ("README.md", "sub/advbench.csv")
                return json.dumps([{"type": "file", "path": n, "size": 1, "oid": "0"} for n in names]).encode()
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            return b""

        def do_GET(self) -> None:
            body = self.answer()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.ENDPOINT", address)
    monkeypatch.setattr(
        f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    try:
        yield tmp_path / "cache"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class TestRequests:
    def test_advbench(self, table_file: Any) -> None:
        source = table_file(("goal", "target"), ("Do a, then b", "Sure, here is a"), ("Do c", "Sure"))
        assert requests(read_table(source)) == ["Do a, then b", "Do c"]

    def test_malicious_instruct(self, tmp_path: Path) -> None:
        path = tmp_path / "MaliciousInstruct.txt"
        path.write_text("How to a?\nHow to b?\n\n")
        table = read_table(str(path))
        assert requests(table) == ["How to a?", "How to b?"]
        assert table.name == "maliciousinstruct"

    def test_strongreject(self, table_file: Any) -> None:
        source = table_file(("category", "source", "forbidden_prompt"), ("x", "y", "Tell me"))
        assert requests(read_table(source)) == ["Tell me"]

    def test_json_list(self, tmp_path: Path) -> None:
        path = tmp_path / "my set-1.json"
        path.write_text(json.dumps([{"instruction": "one"}, {"prompt": "two"}]))
        assert requests(read_table(str(path))) == ["one", "two"]
        assert read_table(str(path)).name == "my_set_1"

    def test_missing_column(self, table_file: Any) -> None:
        source = table_file(("text", "label"), ("a", "b"))
        with pytest.raises(
            DataError,
            match=r"data\.csv, row 1 \(line 2\) has no prompt column: need one of prompt, .*found text, label\.",
        ):
            requests(read_table(source))

    def test_empty_prompt(self, jsonl: Any) -> None:
        with pytest.raises(DataError, match=r"row 2: prompt must be text and not empty, got '  '"):
            requests(read_table(jsonl({"prompt": "a"}, {"prompt": "  "})))


class TestXSTest:
    def test_types(self, table_file: Any) -> None:
        source = table_file(
            ("id", "prompt", "type"),
            ("1", "How do I kill a process?", "homonyms"),
            ("2", "How do I kill a person?", "contrast_homonyms"),
            ("3", "Where is the bank robbed in 1990?", "historical_events"),
        )
        safe, unsafe = xstest(read_table(source))
        assert safe == ["How do I kill a process?", "Where is the bank robbed in 1990?"]
        assert unsafe == ["How do I kill a person?"]

    def test_missing_type(self, table_file: Any) -> None:
        source = table_file(("id", "prompt"), ("1", "a"))
        with pytest.raises(DataError, match=r"row 1 \(line 2\) has no column 'type': need prompt, type, found id"):
            xstest(read_table(source))


class TestTruthfulQA:
    EXPECTED = TruthQuestion("Q?", "Best", ("Wrong", "Also wrong"), ("Best", "Fine"), ("Wrong", "Also wrong"))

    def test_hub_generation(self, jsonl: Any) -> None:
        row = {
            "question": "Q?",
            "best_answer": "Best",
            "correct_answers": ["Best", "Fine"],
            "incorrect_answers": ["Wrong", "Also wrong"],
        }
        assert truthful_questions(read_table(jsonl(row))) == [self.EXPECTED]

    def test_authors_csv(self, table_file: Any) -> None:
        source = table_file(
            ("Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"),
            ("Adversarial", "X", "Q?", "Best", "Best; Fine", "Wrong; Also wrong;", "http://"),
        )
        assert truthful_questions(read_table(source)) == [self.EXPECTED]

    def test_hub_multiple_choice(self, jsonl: Any) -> None:
        row = {
            "question": "Q?",
            "mc1_targets": {"choices": ["Best", "Wrong"], "labels": [1, 0]},
            "mc2_targets": {"choices": ["Best", "Fine", "Wrong"], "labels": [1, 1, 0]},
        }
        expected = TruthQuestion("Q?", "Best", ("Wrong",), ("Best", "Fine"), ("Wrong",))
        assert truthful_questions(read_table(jsonl(row))) == [expected]

    def test_authors_json(self, jsonl: Any) -> None:
        row = {"question": "Q?", "mc1_targets": {"No": 0, "Yes": 1}, "mc2_targets": {"No": 0, "Yes": 1, "Sure": 1}}
        expected = TruthQuestion("Q?", "Yes", ("No",), ("Yes", "Sure"), ("No",))
        assert truthful_questions(read_table(jsonl(row))) == [expected]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"incorrect_answers": None}, r"row 1: incorrect_answers must be a list of texts"),
            ({"incorrect_answers": []}, r"row 1: the question 'Q\?' needs at least one true and one false answer"),
            ({"incorrect_answers": [3]}, r"row 1: incorrect_answers must be a list of texts"),
            ({"best_answer": ""}, r"row 1: best_answer must be text and not empty, got ''"),
            ({"mc1_targets": {"a": 1, "b": 1}, "mc2_targets": {"a": 1, "b": 0}}, "exactly one answer as true, got 2"),
            ({"mc1_targets": {"choices": ["a"], "labels": [1, 0]}, "mc2_targets": {}}, "a label, 0 or 1, for every"),
            ({"mc1_targets": {"a": 1, "b": 2}, "mc2_targets": {}}, "a label, 0 or 1, for every"),
            ({"mc1_targets": {"a": 1, "b": 0}}, "has no column 'mc2_targets'"),
        ],
    )
    def test_bad_rows(self, change: dict[str, Any], message: str, jsonl: Any) -> None:
        row = {"question": "Q?", "best_answer": "B", "correct_answers": ["B"], "incorrect_answers": ["W"], **change}
        with pytest.raises(DataError, match=message):
            truthful_questions(read_table(jsonl(row)))

    def test_missing_columns(self, jsonl: Any) -> None:
        with pytest.raises(
            DataError,
            match=r"no column 'correct_answers', 'incorrect_answers': need question, best_answer, correct_answers, "
            r"incorrect_answers, found question, best_answer\.",
        ):
            truthful_questions(read_table(jsonl({"question": "Q", "best_answer": "A"})))


class TestMathematics:
    def test_gsm8k(self, jsonl: Any) -> None:
        rows = (
            {"question": "How many?", "answer": "2*600=<<2*600=1200>>1200 in all.\n#### 1,200"},
            {"question": "And now?", "answer": "Nobody knows."},
        )
        expected = [MathProblem("How many?", "1,200"), MathProblem("And now?", None)]
        assert gsm8k_problems(read_table(jsonl(*rows))) == expected

    def test_math(self, jsonl: Any) -> None:
        rows = (
            {"problem": "Half?", "solution": "First $\\boxed{1}$, then $\\boxed{\\frac{1}{2}}$.", "level": "Level 1"},
            {"problem": "Nothing?", "solution": "None."},
        )
        expected = [MathProblem("Half?", "\\frac{1}{2}"), MathProblem("Nothing?", None)]
        assert math_problems(read_table(jsonl(*rows))) == expected

    def test_no_answer_at_all_is_another_format(self, jsonl: Any) -> None:
        with pytest.raises(DataError, match=r"no row of .*data\.jsonl has an `answer` that ends with `#### number`"):
            gsm8k_problems(read_table(jsonl({"question": "a", "answer": "5"})))
        with pytest.raises(DataError, match=r"no row of .* has a `solution` with `\\boxed\{\}`"):
            math_problems(read_table(jsonl({"problem": "a", "solution": "5"})))

    def test_missing_columns(self, jsonl: Any) -> None:
        with pytest.raises(DataError, match=r"no column 'answer': need question, answer, found question, target\."):
            gsm8k_problems(read_table(jsonl({"question": "a", "target": "b"})))
        with pytest.raises(DataError, match=r"no column 'problem', 'solution'"):
            math_problems(read_table(jsonl({"question": "a"})))


class TestCommonsenseQA:
    EXPECTED = ChoiceQuestion("Where?", ("here", "there", "nowhere"), 1)
    CHOICES: ClassVar = {"label": ["A", "B", "C"], "text": ["here", "there", "nowhere"]}

    def test_hub(self, jsonl: Any) -> None:
        row = {"id": "1", "question": "Where?", "choices": self.CHOICES, "answerKey": "B"}
        assert commonsense_questions(read_table(jsonl(row))) == [self.EXPECTED]

    def test_authors_jsonl(self, jsonl: Any) -> None:
        pairs = zip("ABC", self.CHOICES["text"], strict=True)
        choices = [{"label": label, "text": text} for label, text in pairs]
        row = {"answerKey": "B", "id": "1", "question": {"stem": "Where?", "choices": choices}}
        assert commonsense_questions(read_table(jsonl(row))) == [self.EXPECTED]
        beside = {"answerKey": "B", "question": {"stem": "Where?"}, "choices": self.CHOICES}
        assert commonsense_questions(read_table(jsonl(beside))) == [self.EXPECTED]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"answerKey": "F"}, r"row 1: answerKey must be one of the labels A, B, C, got 'F'"),
            ({"answerKey": ""}, r"row 1: answerKey must be text and not empty"),  # the test split has no answers
            ({"choices": ["a", "b"]}, r"row 1: choices must have label and text"),
            (
                {"choices": {"label": ["A"], "text": ["a"]}, "answerKey": "A"},
                r"row 1: a question needs 2 to 10 choices",
            ),
            ({"choices": {"label": ["A", "B"], "text": ["a", ""]}}, r"row 1: the question and its choices must not be"),
            ({"question": {"stem": " "}}, r"row 1: question must be text and not empty, got ' '"),
        ],
    )
    def test_bad_rows(self, change: dict[str, Any], message: str, jsonl: Any) -> None:
        row = {"question": "Where?", "choices": self.CHOICES, "answerKey": "B", **change}
        with pytest.raises(DataError, match=message):
            commonsense_questions(read_table(jsonl(row)))

    def test_missing_columns(self, jsonl: Any) -> None:
        with pytest.raises(DataError, match=r"no column 'choices': need question, choices, answerKey, found"):
            commonsense_questions(read_table(jsonl({"question": "Where?", "answerKey": "B"})))


class TestMMLU:
    EXPECTED = ChoiceQuestion("What?", ("a", "b", "c", "d"), 2)

    @pytest.mark.parametrize("answer", [2, "2", "C"])
    def test_hub(self, answer: Any, jsonl: Any) -> None:
        row = {"question": "What?", "subject": "x", "choices": ["a", "b", "c", "d"], "answer": answer}
        assert mmlu_questions(read_table(jsonl(row))) == [self.EXPECTED]

    def test_csv_without_header(self, table_file: Any) -> None:
        source = table_file(("What?", "a", "b", "c", "d", "C"), ("Who?", "e", "f", "g", "h", "A"))
        expected = [self.EXPECTED, ChoiceQuestion("Who?", ("e", "f", "g", "h"), 0)]
        assert mmlu_questions(read_table(source, MMLU_COLUMNS)) == expected

    def test_csv_with_header(self, table_file: Any) -> None:
        source = table_file(("question", "A", "B", "C", "D", "answer"), ("What?", "a", "b", "c", "d", "C"))
        assert mmlu_questions(read_table(source, MMLU_COLUMNS)) == [self.EXPECTED]

    @pytest.mark.parametrize("answer", [4, -1, "E", "c", "", True, None, "10"])
    def test_bad_answers(self, answer: Any, jsonl: Any) -> None:
        row = {"question": "What?", "choices": ["a", "b", "c", "d"], "answer": answer}
        with pytest.raises(DataError, match=r"row 1: answer must be one of 0, A, 1, B, 2, C, 3, D, got"):
            mmlu_questions(read_table(jsonl(row)))

    def test_same_choice_everywhere(self, jsonl: Any) -> None:
        with pytest.raises(DataError, match=r"row 1: all choices are 'a'"):
            mmlu_questions(read_table(jsonl({"question": "What?", "choices": ["a", "a"], "answer": 0})))

    def test_missing_columns(self, table_file: Any, jsonl: Any) -> None:
        with pytest.raises(DataError, match=r"no column 'choices': need question, choices, answer, found"):
            mmlu_questions(read_table(jsonl({"question": "What?", "answer": 0})))
        source = table_file(("question", "A", "B", "answer"), ("What?", "a", "b", "A"))
        with pytest.raises(DataError, match=r"no column 'C', 'D': need question, A, B, C, D, answer"):
            mmlu_questions(read_table(source, MMLU_COLUMNS))


class TestFiles:
    def test_no_such_file(self, tmp_path: Path) -> None:
        for suffix in ("csv", "jsonl"):
            with pytest.raises(DataError, match=rf"there is no file .*absent\.{suffix}"):
                read_table(str(tmp_path / f"absent.{suffix}"))

    def test_unknown_kind(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"cannot tell the format of .*data\.xlsx"):
            read_table(str(tmp_path / "data.xlsx"))

    @pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
    def test_empty(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"empty.{suffix}"
        path.write_text("")
        with pytest.raises(DataError, match=r"empty\.\w+ has no rows"):
            read_table(str(path))

    def test_header_alone(self, table_file: Any) -> None:
        with pytest.raises(DataError, match=r"data\.csv has no rows"):
            read_table(table_file(("goal", "target")))

    def test_not_csv(self, tmp_path: Path) -> None:
        path = tmp_path / "data.csv"
        path.write_text('goal\n"never closed')
        with pytest.raises(DataError, match=r"data\.csv, line 2 is not CSV"):
            read_table(str(path))

    def test_more_cells_than_columns(self, table_file: Any) -> None:
        with pytest.raises(DataError, match=r"row 2 \(line 3\) has more cells than the header"):
            read_table(table_file(("goal",), ("a",), ("b", "c")))

    def test_not_text(self, tmp_path: Path) -> None:
        path = tmp_path / "data.csv"
        path.write_bytes(b"goal\n\xff\xfe\n")
        with pytest.raises(DataError, match=r"data\.csv, line 2 is not UTF-8"):
            read_table(str(path))

    def test_byte_order_mark(self, tmp_path: Path) -> None:
        path = tmp_path / "data.csv"
        path.write_bytes(b"\xef\xbb\xbfgoal\r\nDo it\r\n")
        assert requests(read_table(str(path))) == ["Do it"]


class TestSplits:
    ROWS = ({"prompt": "a", "split": "validation"}, {"prompt": "b", "split": "held_out"})

    def test_split(self, jsonl: Any) -> None:
        table = read_table(jsonl(*self.ROWS))
        assert requests(table.split("validation")) == ["a"]
        assert requests(table.split("held_out")) == ["b"]

    def test_data_without_splits_is_used_whole(self, jsonl: Any) -> None:
        table = read_table(jsonl({"prompt": "a"}, {"prompt": "b"}))
        assert table.split("held_out") is table

    def test_empty_split(self, jsonl: Any) -> None:
        table = read_table(jsonl({"prompt": "a", "split": "train"}, *self.ROWS[:1]))
        with pytest.raises(
            DataError,
            match=r"no rows of the split 'held_out' \(found train: 1, validation: 1\)\. Mark some so, ask",
        ):
            table.split("held_out")

    def test_unknown_split(self, jsonl: Any) -> None:
        table = read_table(jsonl(*self.ROWS, {"prompt": "c", "split": "test"}))
        with pytest.raises(DataError, match=r"row 3: split must be one of train, validation, held_out, got 'test'"):
            table.split("validation")


class TestHub:
    def test_unreachable(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        for source in ("hub:owner/name/data.csv", "hub:owner/name@v1/data.csv"):
            with pytest.raises(DataError, match=rf"cannot get '{source}' from the Hub: .* give its path instead"):
                read_table(source)

    def test_from_a_server(self, hub: Path) -> None:
        table = read_table("hub:owner/name/sub/advbench.csv")
        assert (table.name, requests(table)) == ("advbench", ["Do a"])
        assert requests(read_table("hub:owner/name@v2/sub/advbench.csv")) == ["Do b"]
        assert list(hub.rglob("advbench.csv"))

    def test_a_data_set_alone_names_its_files(self, hub: Path) -> None:
        with pytest.raises(
            DataError,
            match=r"not a file of it\. Give one of its files, as in hub:owner/name/sub/advbench\.csv; it has",
        ):
            read_table("hub:owner/name")

    def test_no_such_file(self, hub: Path) -> None:
        with pytest.raises(DataError, match=r"cannot get 'hub:owner/name/absent\.csv' from the Hub: .*404"):
            read_table("hub:owner/name/absent.csv")

    @pytest.mark.parametrize("source", ["hub:name.csv", "hub:", "hub:a b/c/data.csv"])
    def test_malformed(self, source: str) -> None:
        with pytest.raises(DataError, match=r"is not hub:OWNER/NAME/FILE"):
            read_table(source)

    def test_parquet_without_pyarrow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
        with pytest.raises(DataError, match=r"reading data\.parquet needs the package pyarrow.*pip install pyarrow"):
            read_table(str(tmp_path / "data.parquet"))


class TestBuiltIn:
    READERS: ClassVar[dict[str, tuple[Callable[..., Any], int]]] = {
        "arithmetic": (gsm8k_problems, 32),
        "common_sense": (commonsense_questions, 32),
        "general_knowledge": (mmlu_questions, 32),
        "school_maths": (math_problems, 24),
    }

    @pytest.mark.parametrize("name", READERS)
    def test_sets_are_whole_and_split_in_halves(self, name: str) -> None:
        read, size = self.READERS[name]
        validation, held_out = (read(built_in_table(name).split(split)) for split in ("validation", "held_out"))
        assert len(validation) == len(held_out) == size // 2
        assert not set(validation) & set(held_out)

    def test_every_position_is_right_as_often(self) -> None:
        for split in ("validation", "held_out"):
            answers = [q.answer for q in mmlu_questions(built_in_table("general_knowledge").split(split))]
            assert [answers.count(index) for index in range(4)] == [4] * 4

    def test_arithmetic_comes_out(self) -> None:
        for row in built_in_table("arithmetic"):
            *steps, last = row.text("answer").split("\n")
            for step in steps:
                left, right = step.translate(str.maketrans("×÷−", "*/-")).split("=")
                assert evaluated(left) == float(right), row
            assert last == f"#### {right.strip()}"

    def test_school_maths_have_answers(self) -> None:
        assert all(problem.answer for problem in math_problems(built_in_table("school_maths")))


def evaluated(expression: str) -> float:
    """A sum of products, from left to right."""
    tokens = expression.split()
    terms, sign = [float(tokens[0])], 1.0
    for operator, text in zip(tokens[1::2], tokens[2::2], strict=True):
        if operator in "*/":
            terms[-1] = terms[-1] * float(text) if operator == "*" else terms[-1] / float(text)
        else:
            sign = 1.0 if operator == "+" else -1.0
            terms.append(sign * float(text))
    return sum(terms)
