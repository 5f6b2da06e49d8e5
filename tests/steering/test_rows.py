"""Data files as spreadsheets, data frames and scrapers write them: read as what they say, or refused by row."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steer2edit.errors import DataError
from steer2edit.evaluation import behaviour, build_tasks
from steer2edit.evaluation.formats import mmlu_questions, requests
from steer2edit.steering.data_files import read_text
from steer2edit.steering.examples import Example, read_examples
from steer2edit.steering.rows import Row, read_table
from steer2edit.stress.attack_files import read_attacks

PLAIN = "prompt,positive,negative\nHow do I bake bread?,Yes.,No.\nWhat is tea?,A drink.,Unknown.\n"
WANTED = [
    Example("How do I bake bread?", "Yes.", "positive"),
    Example("How do I bake bread?", "No.", "negative"),
    Example("What is tea?", "A drink.", "positive"),
    Example("What is tea?", "Unknown.", "negative"),
]
Save = Callable[[str, str | bytes], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


class TestSpreadsheets:
    @pytest.mark.parametrize(
        "text",
        [
            PLAIN.replace("prompt,positive", "Prompt, POSITIVE"),
            PLAIN.replace(",", ";"),
            PLAIN.replace(",", "\t"),
            PLAIN.replace(",", ", ").replace("A drink.", '"A drink."'),
            PLAIN.replace("\n", ",,\n") + ",,,,\n\n",  # as a spreadsheet leaves columns and rows that were cleared
            PLAIN.replace("\n", "\r\n"),
        ],
        ids=["capitals", "semicolons", "tabs", "spaces", "cleared cells", "CRLF"],
    )
    def test_the_same_rows(self, text: str, save: Save) -> None:
        assert read_examples(save("a.csv", text)) == WANTED

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
    def test_a_mark_names_the_encoding(self, encoding: str, save: Save) -> None:
        wanted = [Example("Tee für zwei?", "Ja.", "positive"), Example("Tee für zwei?", "Nein.", "negative")]
        text = "prompt;positive;negative\nTee für zwei?;Ja.;Nein.\n"
        assert read_examples(save("a.csv", text.encode(encoding))) == wanted

    def test_tabs_by_name(self, save: Save) -> None:
        assert read_examples(save("a.tsv", PLAIN.replace(",", "\t"))) == WANTED

    def test_cells_of_any_size_and_the_limit_of_others_stays(self, save: Save) -> None:
        before = csv.field_size_limit()
        huge = "x" * 140_000
        table = read_table(save("a.csv", f"prompt,page\nWhat is tea?,{huge}\n"))
        assert table.rows[0].text("page") == huge
        assert csv.field_size_limit() == before

    def test_semicolons_in_text_do_not_matter(self, save: Save) -> None:
        table = read_table(save("a.csv", "prompt,type\none; two; three; four,x\n"))
        assert table.rows[0].cells == {"prompt": "one; two; three; four", "type": "x"}
        plain = save("b.csv", "Which; of; these; is; it; then; here?,a,b,c,d,B\n")
        columns = ("question", "A", "B", "C", "D", "answer")
        assert mmlu_questions(read_table(plain, columns))[0].question == "Which; of; these; is; it; then; here?"

    def test_a_space_before_text_is_text_unless_the_header_has_it_too(self, save: Save) -> None:
        (example,) = read_examples(save("a.csv", "prompt,response\na, b\n"))
        assert example.response == " b"
        (example,) = read_examples(save("a.csv", "prompt, response\na, b\n"))
        assert example.response == "b"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("prompt,note,Note\na,b,c\n", r"row 1 \(line 2\): the column 'note' is there twice"),
            ("prompt,note,note\na,b,c\n", r"the column 'note' is there twice: rename or remove one"),
            ("prompt,response,,\nHello, world, an answer,\n", r"row 1 \(line 2\) has more cells than the header"),
            ("prompt;response\na;b;c\n", "put text that has semicolons into double quotes"),
            ('prompt,response\n"a\nb",c\n"d"e,f\n', r"line 4 is not CSV.*write a quote in it twice"),
        ],
    )
    def test_refused(self, text: str, message: str, save: Save) -> None:
        with pytest.raises(DataError, match=message):
            read_examples(save("a.csv", text))


class TestEncodings:
    def test_the_line_of_a_wrong_byte(self, save: Save) -> None:
        text = 'prompt,response\n"one\ntwo",x\ncafé,y\n'.encode("cp1252")
        with pytest.raises(DataError, match=r"a\.csv, line 4 is not UTF-8 \(it has the byte 0xe9\): save"):
            read_examples(save("a.csv", text))

    @pytest.mark.parametrize(
        ("name", "content", "place"),
        [
            ("a.csv", "prömpt\na\n", "line 1"),
            ("a.jsonl", '{"prompt": "a"}\n\n{"prompt": "é"}\n', "line 3"),
            ("a.json", '[{"prompt": "a"},\n{"prompt": "é"}]', "line 2"),
            ("a.txt", "a\né\n", "line 2"),
        ],
    )
    def test_every_format(self, name: str, content: str, place: str, save: Save) -> None:
        with pytest.raises(DataError, match=rf"{name}, {place} is not UTF-8"):
            read_examples(save(name, content.encode("latin-1")))

    def test_a_text_file(self, save: Save) -> None:
        assert read_text(save("a.j2", "\ufeffé")) == "é"
        with pytest.raises(DataError, match=r"a\.j2, line 2 is not UTF-8"):
            read_text(save("a.j2", b"a\n\xe9"))


HALF = json.loads('"\\ud83d"')


class TestHalfCharacters:
    @pytest.mark.parametrize(
        "row",
        [
            {"prompt": f"tea {HALF}"},
            {"prompt": "tea", "positive": HALF, "negative": "x"},
            {"prompt": "tea", "page": ["fine", {"x": HALF}]},
            {"prompt": "tea", HALF: "x"},
            {"prompt": "tea", "page": {HALF: 1}},
            {"messages": [{"role": "user", "content": HALF}]},
            {"messages": json.dumps([{"role": "user", "content": HALF}])},
        ],
    )
    def test_anywhere_in_a_row(self, row: Any, save: Save) -> None:
        path = save("a.jsonl", lines({"prompt": "a"}, row))
        with pytest.raises(DataError, match=r"a\.jsonl, row 2: .*has half of a character, \\ud83d") as info:
            read_examples(path)
        str(info.value).encode("ascii", "strict")  # the path is ASCII here, so is all of the message
        with pytest.raises(DataError, match="row 2: "):
            requests(read_table(path))

    def test_a_whole_pair_is_a_character(self, save: Save) -> None:
        assert read_examples(save("a.jsonl", '{"prompt": "tea \\ud83c\\udf75"}\n')) == [Example("tea 🍵")]

    def test_in_an_object_of_attacks(self, save: Save) -> None:
        path = save("a.json", json.dumps({"adv_prompts": ["fine", HALF]}))
        with pytest.raises(DataError, match=r"a\.json: 'adv_prompts' has half of a character"):
            read_attacks(path)

    def test_in_a_list_in_a_cell(self) -> None:
        with pytest.raises(DataError, match="row 1: 'choices' has half"):
            Row("row 1", {}).parsed("choices", '["a", "\\ud83d"]', "a list of texts")


USER = {"role": "user", "content": "What is tea?"}
BEGUN = {"role": "assistant", "content": "Well,"}


class TestConversations:
    def test_a_cell_with_one(self, save: Save) -> None:
        with (path := save("a.csv", "")).open("w", newline="") as file:
            csv.writer(file).writerows([("messages", "response"), (json.dumps([USER]), "x")])
        assert read_examples(path) == [Example([USER], "x")]
        assert requests(read_table(path)) == [[USER]]

    def test_a_text_about_one_is_a_text(self, save: Save) -> None:
        text = '[{"role": "user"}] is what?'
        assert read_examples(save("a.jsonl", lines({"prompt": text}))) == [Example(text)]

    def test_tasks_ask_it_whole(self, save: Save) -> None:
        conversation = [{"role": "system", "content": "Be brief."}, USER]
        (task,) = build_tasks([f"over-refusal={save('a.jsonl', lines({'messages': conversation}))}"])
        assert task.asked == {"a": [conversation]}

    def test_where_only_a_text_will_do(self, save: Save) -> None:
        path = save("a.jsonl", lines(*[{"messages": [USER]}] * 5))
        with pytest.raises(DataError, match=r"row \d: a conversation cannot be used here"):
            behaviour("safety", "held_out", data={"harmful": str(path)})
        with pytest.raises(DataError, match=r"row 1 \(line 2\): prompt must be text, not a conversation"):
            read_attacks(save("a.csv", 'prompt\n"[{""role"": ""user"", ""content"": ""x""}]"\n'))

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"messages": [USER, BEGUN], "positive": "x", "negative": "y"}, "the conversation ends with the assistant"),
            ({"messages": [USER, BEGUN], "response": "x"}, "the conversation ends with the assistant"),
            ({"messages": [BEGUN]}, "the conversation needs a request"),
            ({"messages": [USER, {**BEGUN, "content": " "}]}, "the conversation needs a request, and words"),
            ({"messages": [{**USER, "tool_calls": [1]}]}, "message 1 of messages has 'tool_calls' besides role"),
            ({"messages": str([USER])}, "messages must be a conversation as JSON, got"),  # what pandas writes to CSV
            ({"messages": [USER], "prompt": "a"}, "there are 2 prompts, prompt, messages: rename all of them but one"),
            (
                {"prompt": "a", "positive": "x", "negative": "y", "response": "z"},
                "found prompt, positive, negative",
            ),
            ({"prompt": "a", "positive": "x", "negative": "y", "label": "positive"}, "then neither a label nor"),
            (
                {"prompt": "a", "response": str([BEGUN]), "label": "positive"},
                "response must be text, not a con",
            ),
        ],
    )
    def test_nothing_is_dropped_silently(self, row: Any, message: str, save: Save) -> None:
        with pytest.raises(DataError, match=rf"row 1: {message}|row 1: .*{message}"):
            read_examples(save("a.jsonl", lines(row)))

    @pytest.mark.parametrize("row", [{"response": "x", "label": "negative"}, {"positive": "x", "negative": "y"}])
    def test_a_row_against_its_file(self, row: Any, save: Save) -> None:
        with pytest.raises(DataError, match="row 1: "):
            read_examples(save("a.jsonl", lines({"prompt": "a", **row})), "positive")

    def test_a_key_twice(self, save: Save) -> None:
        with pytest.raises(DataError, match=r"line 1 is not JSON: 'prompt' is there twice"):
            read_examples(save("a.jsonl", '{"prompt": "a", "prompt": "b"}\n'))

    def test_a_task_needs_a_request_at_the_end(self, save: Save) -> None:
        with pytest.raises(DataError, match="row 1: the conversation ends with the assistant, not with a request"):
            requests(read_table(save("a.jsonl", lines({"messages": [USER, BEGUN]}))))
