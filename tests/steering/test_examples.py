"""Reading contrast data: every shape a row may have, and a message that finds the fault where it has another."""

import json
from pathlib import Path

import pytest

from steer2edit.errors import DataError
from steer2edit.steering.examples import Example, read_examples
from steer2edit.steering.rows import read_table

USER = {"role": "user", "content": "Why?"}
ASSISTANT = {"role": "assistant", "content": "Because."}
SYSTEM = {"role": "system", "content": "Be brief."}


def write(path: Path, name: str, content: str | list) -> Path:
    file = path / name
    file.write_text(content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content))
    return file


class TestFormats:
    ROWS = (
        {"prompt": "a", "response": "x, y", "label": "positive"},
        {"prompt": "b", "response": "z", "label": "negative"},
    )
    WANTED = (Example("a", "x, y", "positive"), Example("b", "z", "negative"))

    def test_jsonl(self, tmp_path: Path) -> None:
        file = write(tmp_path, "data.jsonl", [*self.ROWS])
        file.write_text(file.read_text().replace("\n", "\n\n"))  # blank lines do not matter
        assert read_examples(file) == [*self.WANTED]

    def test_json(self, tmp_path: Path) -> None:
        assert read_examples(write(tmp_path, "data.JSON", json.dumps(self.ROWS))) == [*self.WANTED]

    def test_csv(self, tmp_path: Path) -> None:
        text = '\ufeffprompt,response,label\na,"x, y",positive\nb,z,negative\n'  # with the mark that Excel writes
        assert read_examples(write(tmp_path, "data.csv", text)) == [*self.WANTED]

    def test_csv_field_with_line_breaks(self, tmp_path: Path) -> None:
        (example,) = read_examples(write(tmp_path, "data.csv", 'prompt,response\n"one\ntwo","x ""y"" z"\n'))
        assert example == Example("one\ntwo", 'x "y" z')

    def test_csv_empty_cell_is_a_missing_value(self, tmp_path: Path) -> None:
        file = write(tmp_path, "data.csv", "prompt,response,label\na,,\nb,y,positive\n")
        assert read_examples(file) == [Example("a"), Example("b", "y", "positive")]

    def test_txt(self, tmp_path: Path) -> None:
        assert read_examples(write(tmp_path, "data.txt", " a b \n\nc\n")) == [Example("a b"), Example("c")]

    def test_rows_of_text_lines(self, tmp_path: Path) -> None:
        table = read_table(write(tmp_path, "data.txt", "a\nb\n"))
        assert [row.cells for row in table] == [{"prompt": "a"}, {"prompt": "b"}]

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("data.jsonl", '{"prompt": "one\u2028two"}\n'),  # what json.dumps(..., ensure_ascii=False) writes
            ("data.jsonl", '{"prompt": "one\x85two"}\n'),
            ("data.csv", "prompt\none\u2028two\n"),
            ("data.txt", "one\u2028two\n"),
        ],
    )
    def test_only_line_feeds_end_a_line(self, tmp_path: Path, name: str, text: str) -> None:
        (tmp_path / name).write_text(text, encoding="utf-8")
        (example,) = read_examples(tmp_path / name)
        assert example.prompt in ("one\u2028two", "one\x85two")


class TestRows:
    def read(self, tmp_path: Path, *rows: object, label: str | None = None) -> list[Example]:
        return read_examples(write(tmp_path, "data.jsonl", [*rows]), label)

    def test_pair(self, tmp_path: Path) -> None:
        row = {"prompt": "a", "positive": "x", "negative": "y", "split": "train", "reference": 42}
        assert self.read(tmp_path, row) == [
            Example("a", "x", "positive", "42", "train"),
            Example("a", "y", "negative", "42", "train"),
        ]

    @pytest.mark.parametrize("column", ["prompt", "question", "goal", "instruction"])
    def test_prompt_columns(self, tmp_path: Path, column: str) -> None:
        assert self.read(tmp_path, {column: "a"}) == [Example("a")]

    def test_two_files(self, tmp_path: Path) -> None:
        rows = [{"prompt": "a", "response": "x"}, {"prompt": "b"}]
        assert self.read(tmp_path, *rows, label="negative") == [
            Example("a", "x", "negative"),
            Example("b", None, "negative"),
        ]

    def test_messages(self, tmp_path: Path) -> None:
        rows = [{"messages": [SYSTEM, USER], "response": "x"}, {"prompt": [USER]}]
        assert self.read(tmp_path, *rows) == [Example([SYSTEM, USER], "x"), Example([USER])]

    def test_a_conversation_brings_its_response(self, tmp_path: Path) -> None:
        rows = [
            {"messages": [USER, ASSISTANT], "label": "positive"},
            {"messages": [USER, ASSISTANT, USER], "response": "x"},
        ]
        assert self.read(tmp_path, *rows) == [
            Example([USER], "Because.", "positive"),
            Example([USER, ASSISTANT, USER], "x"),
        ]

    def test_neither_response_nor_label(self, tmp_path: Path) -> None:
        assert self.read(tmp_path, {"prompt": "a", "split": "held_out"}) == [Example("a", split="held_out")]

    def test_keys(self) -> None:
        assert Example(" a b\n").key == Example("a b").key != Example("a  b").key
        assert Example([USER]).key == Example([{"content": "Why?", "role": "user"}]).key
        assert Example([USER]).key != Example([SYSTEM, USER]).key


class TestBadFiles:
    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.jsonl", '{"prompt": "a"}\n\n{"prompt": \n', r"a\.jsonl, line 3 is not JSON"),
            ("a.json", "[{]", r"a\.json is not JSON"),
            ("a.json", '{"prompt": "a"}', "must hold a list of rows, got dict"),
            ("a.jsonl", '"just text"\n', "row 1 must be an object"),
            ("a.json", "[1, 2]", "row 1 must be an object"),
            (
                "a.xlsx",
                "x",
                r"cannot tell the format of .*a\.xlsx: the name must end in \.jsonl, \.json, \.csv, \.tsv, \.txt",
            ),
            ("a.jsonl", "", r"a\.jsonl has no rows"),
            ("a.json", "[]", r"a\.json has no rows"),
            ("a.csv", "", r"a\.csv has no rows"),
            ("a.csv", "prompt,response\n", r"a\.csv has no rows"),
            ("a.txt", " \n\n", r"a\.txt has no rows"),
            ("a.csv", "text,answer\nx,y\n", r"has no prompt column: need one of prompt, .*found text, answer\."),
        ],
    )
    def test_message(self, tmp_path: Path, name: str, content: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            read_examples(write(tmp_path, name, content))

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"there is no file .*nowhere\.jsonl"):
            read_examples(tmp_path / "nowhere.jsonl")

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(b"\x80\x03PK\xff\xfe")
        with pytest.raises(DataError, match=r"a\.jsonl, line 1 is not UTF-8 \(it has the byte 0x80\)"):
            read_examples(tmp_path / "a.jsonl")

    def test_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").mkdir()
        with pytest.raises(DataError, match=r"cannot read .*a\.jsonl"):
            read_examples(tmp_path / "a.jsonl")


class TestBadRows:
    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"text": "a", "answer": "b"}, "no prompt column: need one of prompt, messages, .*found text, answer"),
            ({}, "no prompt column"),
            ({"prompt": ""}, "prompt must be text and not empty"),
            ({"prompt": "  "}, "prompt must be text and not empty"),
            ({"prompt": None}, "the prompt is empty"),
            ({"prompt": 7}, "got 7"),
            ({"messages": []}, r"got \[\]"),
            ({"messages": [{"role": "user"}]}, "a list of {role, content} messages"),
            ({"messages": [{"role": "user", "content": None}]}, "a list of {role, content} messages"),
            ({"prompt": "a", "response": 3}, "response must be text and not empty, got 3"),
            ({"prompt": "a", "label": "good"}, "label must be one of positive, negative, got 'good'"),
            ({"prompt": "a", "label": 1}, "label must be one of positive, negative, got 1"),
            ({"prompt": "a", "split": "test"}, "split must be one of train, validation, held_out, got 'test'"),
            ({"prompt": "a", "positive": "x"}, "text in both 'positive' and 'negative' .*found prompt, positive"),
            ({"prompt": "a", "negative": "x"}, "text in both 'positive' and 'negative' .*found prompt, negative"),
            ({"prompt": "a", "positive": "x", "negative": 1}, "negative must be text and not empty, got 1"),
        ],
    )
    def test_message_names_the_row(self, tmp_path: Path, row: dict, message: str) -> None:
        file = write(tmp_path, "a.jsonl", [{"prompt": "fine"}, row])
        with pytest.raises(DataError, match=rf"a\.jsonl, row 2.*{message}"):
            read_examples(file)

    def test_csv_row_with_too_many_cells(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="row 1"):
            read_examples(write(tmp_path, "a.csv", "prompt,response\nHello, world, an answer\n"))

    @pytest.mark.parametrize("row", [{"response": "", "label": "positive"}, {"positive": "", "negative": "y"}])
    def test_empty_response(self, tmp_path: Path, row: dict) -> None:
        with pytest.raises(DataError, match=r"row 1: .*empty"):
            read_examples(write(tmp_path, "a.jsonl", [{"prompt": "a", **row}]))
