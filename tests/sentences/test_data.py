"""Files of sentences, and the sources they become."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nearfar.data.source import TooManyFaults
from nearfar_sentences import manual, templates
from nearfar_sentences.config import TextDataConfig
from nearfar_sentences.data import TextSource, open_texts
from nearfar_sentences.reading import read_table


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_plain_text_leaves_blank_lines_out(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "a.txt", "\ufeffone two\n\n  \nthree\tfour  \n"))
    assert table.columns == {"text": ["one two", "three\tfour  "]}
    assert table.lines == [1, 4]
    assert table.texts("text") == ["one two", "three four"]


def test_csv_keeps_commas_and_quotes(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "a.csv", 'text,label\n"a, ""b""",x\nc,y\n'))
    assert table.columns == {"text": ['a, "b"', "c"], "label": ["x", "y"]}


def test_every_format_gives_one_table(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [{"text": "a b", "label": "x"}, {"text": "c", "label": "y"}]
    written(tmp_path, "a.csv", "text,label\na b,x\nc,y\n")
    written(tmp_path, "a.tsv", "text\tlabel\na b\tx\nc\ty\n")
    written(tmp_path, "a.jsonl", "\n".join(json.dumps(row) for row in rows))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = [read_table(tmp_path / f"a.{kind}").columns for kind in ("csv", "tsv", "jsonl", "parquet")]
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "at least one sentence, received an empty file"),
        ("a.txt", "\n \n", "at least one sentence, received an empty file"),
        ("a.doc", "x", "data.root: format"),
        ("a.csv", "a,a\n1,2\n", "line 1: expected a header with each column once"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(written(tmp_path, name, text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data.root: expected a file of sentences"):
        read_table(tmp_path / "none.txt")


def test_bytes_that_are_no_text_are_counted_and_named(tmp_path: Path) -> None:
    lines = [b"good"] * 99 + [b"caf\xe9 bad"]
    table = read_table(written(tmp_path, "a.txt", b"\n".join(lines)))
    assert len(table.lines) == 99
    assert table.skipped[0].path.endswith("line 100")
    assert "not UTF-8 at byte 4" in table.skipped[0].reason
    with pytest.raises(TooManyFaults, match="line 100"):
        read_table(written(tmp_path, "b.txt", b"\n".join([*lines, b"\xff", b"\xfe"])))


def test_rows_that_do_not_fit_the_header_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text,label\na,x\nb\nc,y,z\n")
    with pytest.raises(TooManyFaults, match=r"line 3 \(expected 2 fields as in the header, received 1\)"):
        read_table(path)
    with pytest.raises(TooManyFaults, match="line 2 .*not JSON"):
        read_table(written(tmp_path, "a.jsonl", '{"text": "a"}\n{oops\n[1]\n'))


def test_an_empty_cell_names_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text,positive\na,b\nc,\n")
    with pytest.raises(ValueError, match="line 3: positive: expected a sentence, received ''"):
        open_texts(TextDataConfig(root=str(path), positive="positive"))


def test_wrong_columns_name_those_that_are_there(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "first,second\na,b\nc,d\n")
    with pytest.raises(ValueError, match=r"data.text: expected a column of first, second, received ''"):
        open_texts(TextDataConfig(root=str(path)))
    with pytest.raises(ValueError, match=r"data.negative: expected a column of first, second, received 'third'"):
        open_texts(TextDataConfig(root=str(path), text="first", negative="third"))


def test_columns_labels_and_held_out_part(tmp_path: Path) -> None:
    rows = "\n".join(f"sentence {k},other {k},{k % 2}" for k in range(20))
    path = written(tmp_path, "a.csv", f"text,positive,label\n{rows}\n")
    data = open_texts(TextDataConfig(root=str(path), positive="positive", validation=0.2))
    assert (len(data.train), len(data.test)) == (16, 4)
    sample = data.train[0]
    assert sample["positive"] == f"other {sample['index']}"
    assert sample["label"] == sample["index"] % 2
    few = open_texts(TextDataConfig(root=str(path), validation=0.2, limit=5), seed=1)
    assert len(few.train) == 5
    assert len(few.test) == 4


def test_a_batch_is_what_single_samples_collate_to() -> None:
    from nearfar.batch import collate

    text, positive, negative = templates.triplets(6, 0)
    source = TextSource(text, positive=positive, negative=negative, labels="aabbcc", image=np.ones((6, 2), np.float32))
    places = np.array([4, 0, 5])
    whole, single = source.batch(places), collate([source[int(i)] for i in places])
    assert whole.keys() == single.keys()
    for name, value in whole.items():
        assert value == single[name] if isinstance(value, list) else bool((value == single[name]).all()), name


def test_sources_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="positive: expected 2 sentences, received 1"):
        TextSource(["a", "b"], positive=["c"])
    with pytest.raises(ValueError, match="text 1: expected a sentence, received ' '"):
        TextSource(["a", " "])
    with pytest.raises(ValueError, match="label 1: expected one of x"):
        TextSource(["a", "b"], labels=["x", "z"], class_names=["x", "y"])
    with pytest.raises(ValueError, match=r"image: expected features \[2, F\]"):
        TextSource(["a", "b"], image=np.ones((3, 4)))


def test_the_manual_is_a_corpus_with_topics() -> None:
    found = manual.sentences()
    assert len(found) > 1000
    assert len({sentence for sentence, _ in found}) == len(found)
    assert len({topic for _, topic in found}) > 40
    assert all(5 <= len(sentence.split()) <= 60 for sentence, _ in found)
    data = open_texts(TextDataConfig(source="manual"))
    assert manual.fingerprint() in data.train.name


def test_the_grammar_knows_what_it_says() -> None:
    rng = np.random.default_rng(0)
    scene = templates.meaning(rng)
    assert templates.overlap(scene, scene) == 1
    assert len({templates.say(scene, rng) for _ in range(60)}) > 20
    for slots in range(templates.NUM_SLOTS + 1):
        found = templates.overlap(scene, templates.edited(scene, rng, slots))
        assert found == pytest.approx(1 - slots / templates.NUM_SLOTS)
    _, _, scores = templates.scored_pairs(60, 3)
    assert sorted(set(scores)) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
