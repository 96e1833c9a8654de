from __future__ import annotations

import base64
import io
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from nearfar.config import ContrastConfig
from nearfar.recipe import Recipe, to_dict
from nearfar.report import Embedding, NeighbourRow, map2d, svg, write_report
from nearfar.report.curves import collect
from nearfar.report.pictures import picture
from nearfar.report.style import DARK, LIGHT

EVIL = "<script>alert(1)</script>\"'&"


DOT = np.zeros((1, 1, 1), np.uint8)


class Page(HTMLParser):
    """What a browser would see: tags, attributes, text; and that every tag is closed in order."""

    VOID = frozenset({"meta", "img", "path", "circle", "br"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def score(value: float, width: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width, "n": 100}


def report(path: Path, word: str = "digit", **changes: Any) -> str:
    image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    geometry = {"alignment": 0.5, "uniformity": -2.0, "effective_rank": 9.0}
    values: dict[str, Any] = {
        "title": f"SimCLR {word}",
        "recipe": to_dict(Recipe(name="images/simclr", method=ContrastConfig())) | {"recipe": f"images/{word}"},
        "metrics": [
            {"step": 10, "epoch": 0, "loss": 3.5, "lr": 0.1, **geometry, word: 1},
            {"step": 20, "epoch": 1, "loss": 2.5, "lr": 0.0, **geometry, word: 2},
            {"step": 20, "scores": {"knn": score(0.9), word: 0.5}},
        ],
        "timings": [{"step": 10, "samples_per_s": 100.0}, {"step": 20, "samples_per_s": 120.0}],
        "scores": {"before": {"knn": score(0.8)}, "after": {"knn": score(0.9), word: score(0.7)}},
        "environment": {"python": "3.11", "device": word, "versions": {"torch": "2.14.1"}},
        "embedding": Embedding(points=np.eye(4)[:, :2], labels=[0, 1, 1, -1], class_names=[word, f"other {word}"]),
        "neighbours": [NeighbourRow(query=image, images=[image, image], right=[True, False], names=[word, word, "b"])],
        "views": [[image, image[:, :, :1]]],
        "notes": [f"2 images are {word}"],
    }  # fmt: skip
    write_report(path, **values | changes)
    return path.read_text()


def test_the_page_holds_everything_and_nothing_else(tmp_path: Path):
    text = report(tmp_path / "report.html")
    page = Page(text)
    for heading in ("Warnings", "Before and after", "Training", "Geometry", "Map", "Nearest neighbours", "Views",
                    "Other curves", "Recipe", "Environment"):  # fmt: skip
        assert heading in page.text
    for words in ("SimCLR digit", "0.900", "from 0.800 before training", "+0.100 intervals apart", "[0.790, 0.810]",
                  "2 images are digit", "alignment", "samples per s", "temperature", "2.14.1", "kNN accuracy",
                  "nearfar images train --recipe recipe.json", "loss: 3.5 at step 10"):  # fmt: skip
        assert words in page.text, words
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_page_fetches_and_runs_nothing(tmp_path: Path):
    text = report(tmp_path / "report.html")
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name in ("src", "href", "action", "srcset", "style")]
    assert all(
        value is not None and value.startswith(("data:image/png;base64,", "background:var(--")) for value in links
    )
    assert "url(" not in text
    assert "@import" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in text


def test_words_of_the_data_are_never_markup(tmp_path: Path):
    text = report(tmp_path / "report.html", EVIL)
    assert "<script" not in text.lower()
    page = Page(text)
    assert "script" not in page.tags
    # Still shown as they are: title twice, recipe, notes, environment, class names, scores and curves.
    assert page.text.count("<script>alert(1)</script>\"'&") >= 12
    plain = Page(report(tmp_path / "plain.html"))
    assert page.tags == plain.tags
    assert [name for name, _ in page.attributes] == [name for name, _ in plain.attributes]


def test_the_least_that_a_run_has_still_makes_a_page(tmp_path: Path):
    write_report(tmp_path / "r.html", title="t", recipe={}, metrics=[], scores={}, environment={})
    page = Page((tmp_path / "r.html").read_text())
    for heading in ("Before and after", "Training", "Geometry", "Map", "Neighbours", "Views", "Warnings"):
        assert heading not in page.text
    row = {"step": 1, "loss": math.nan}
    write_report(
        tmp_path / "r.html", title="t", recipe={}, metrics=[row], environment={},
        scores={"after": {"knn": {"value": math.nan, "low": math.nan, "high": math.nan}, "rank": {"value": -3.0}}},
    )  # fmt: skip
    page = Page((tmp_path / "r.html").read_text())
    assert "nan" in page.text
    assert "NaN" not in " ".join(value or "" for _, value in page.attributes)


def test_intervals_that_meet_are_said_to_overlap(tmp_path: Path):
    scores = {"before": {"knn": score(0.9, 0.02)}, "after": {"knn": score(0.91, 0.02)}}
    assert "+0.010 intervals overlap" in Page(report(tmp_path / "r.html", scores=scores)).text
    scores = {"before": {"knn": score(0.9, 0.02)}, "after": {"knn": score(0.8, 0.02)}}
    assert "\u22120.100 intervals apart" in Page(report(tmp_path / "r.html", scores=scores)).text


def test_numbers_without_an_interval_have_no_axis_and_no_verdict(tmp_path: Path):
    arms = {"knn": score(0.95), "std": {"value": 0.1}, "rows": {"value": 450, "low": 450, "high": 450}}
    text = report(tmp_path / "r.html", scores={"before": arms, "after": arms | {"std": {"value": 0.4}}})
    assert text.count('class="interval"') == 1
    assert "0.9 to 1" in Page(text).text
    assert "450 450 \u00b10.000" in Page(text).text
    assert Page(text).text.count("intervals overlap") == 1


def test_a_page_replaces_the_old_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    report(tmp_path / "r.html", "first")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report(tmp_path / "r.html", "second")
    assert "SimCLR first" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("channels", [1, 3])
def test_small_pictures_keep_their_pixels(channels: int):
    image = np.random.default_rng(0).integers(0, 256, (9, 7, channels), dtype=np.uint8)
    tag = picture(image, EVIL)
    assert 'class="small"' in tag
    assert "<script" not in tag
    data = base64.b64decode(re.search(r"base64,([^\"]+)", tag).group(1))  # type: ignore[union-attr]
    seen = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(seen.reshape(image.shape), image)


def test_large_pictures_are_reduced():
    tag = picture(np.zeros((1000, 500, 3), dtype=np.uint8), "x")
    data = base64.b64decode(re.search(r"base64,([^\"]+)", tag).group(1))  # type: ignore[union-attr]
    assert Image.open(io.BytesIO(data)).size == (64, 128)
    assert "small" not in tag


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_pictures_of_another_form_are_refused(image: np.ndarray):
    with pytest.raises(ValueError, match=r"image: expected uint8 \[H, W, C\] with C 1 or 3, received"):
        picture(image, "x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": Embedding(points=np.zeros((3, 3)), labels=None, class_names=())}, r"expected shape \[N, 2\]"),
        (
            {"embedding": Embedding(points=np.zeros((3, 2)), labels=[1], class_names=())},
            "expected 3 labels, received 1",
        ),
        ({"neighbours": [NeighbourRow(query=DOT, images=[], right=[True])]}, "right: expected 0 flags"),
        ({"neighbours": [NeighbourRow(query=DOT, images=[], right=None, names=["a", "b"])]}, "names: expected 1 names"),
    ],
)
def test_wrong_parts_are_refused_by_name(tmp_path: Path, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        report(tmp_path / "r.html", **changes)


def test_neighbours_without_labels_carry_no_verdict(tmp_path: Path):
    image = np.zeros((4, 4, 1), np.uint8)
    row = NeighbourRow(query=image, images=[image], right=None)
    text = report(tmp_path / "r.html", neighbours=[row], embedding=None)
    assert "\u2713" not in text
    assert "\u2717" not in text
    assert 'class="wrong"' not in text


def test_metrics_are_sorted_into_series():
    rows = [
        {"step": 1, "epoch": 0, "loss": 2.0, "geometry": {"rank": 3}, "flag": True},
        {"step": 2, "loss": 1.0},
        {"loss": 9.0},
    ]
    found = collect(rows)
    assert set(found) == {"loss", "geometry/rank"}
    assert (found["loss"].x, found["loss"].y) == ([1.0, 2.0], [2.0, 1.0])


@pytest.mark.parametrize("seed", range(20))
def test_ticks_are_round_inside_and_about_as_many_as_asked(seed: int):
    rng = np.random.default_rng(seed)
    low = float(rng.normal() * 10.0 ** rng.integers(-4, 5))
    high = low + float(10.0 ** rng.uniform(-4, 5))
    marks = svg.ticks(low, high, 5)
    step = marks[1] - marks[0]
    lead = step / 10.0 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(lead - m) for m in (1, 2, 5, 10)) < 1e-5
    assert 2 <= len(marks) <= 6
    assert marks[0] >= low - 1e-6 * step
    assert marks[-1] <= high + 1e-6 * step
    assert marks[0] - step < low
    assert marks[-1] + step > high


def test_ticks_of_nothing():
    assert svg.ticks(3.0, 3.0) == [3.0]
    assert svg.ticks(0.0, math.inf) == [0.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3000, "3,000"), (0.9634, "0.963"), (0.0005, "0.0005"), (2e-5, "2.00e-05"), (-3.1, "-3.1"),
     (1234.5, "1,234"), (1e7, "1.00e+07"), (math.nan, "nan"), (math.inf, "inf")],
)  # fmt: skip
def test_numbers_in_about_three_digits(value: float, text: str):
    assert svg.number(value) == text


def _tree(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart)


def test_a_line_runs_through_its_points():
    chart = _tree(svg.lines([svg.Series("a", [0, 10], [0.0, 1.0])], title="t"))
    (path,) = [p for p in chart.iter("path") if "line" in p.get("class", "")]
    (x0, y0), (x1, y1) = re.findall(r"([\d.]+) ([\d.]+)", path.get("d", ""))
    assert (float(x0), float(x1)) == (svg.LEFT, svg.WIDTH - svg.RIGHT)
    span = svg.HEIGHT - svg.TOP - svg.BOTTOM
    assert float(y0) - float(y1) == pytest.approx(span / 1.12, abs=0.2)
    assert [t.text for t in chart.iter("title")] == ["a: 0 at step 0", "a: 1 at step 10"]


def test_lines_leave_out_what_is_not_finite_and_thin_what_is_too_much():
    chart = svg.lines([svg.Series("a", [0, 1, 2], [1.0, math.nan, math.inf])], title="t")
    assert "nan" not in chart
    assert "inf" not in chart
    many = list(range(10_001))
    chart = svg.lines([svg.Series("a", many, [float(v) for v in many])], title="t")
    count = chart.count("<title>")
    assert svg.MAX_POINTS / 2 <= count <= svg.MAX_POINTS + 1
    assert "at step 10,000" in chart
    assert _tree(svg.lines([], title="t")).get("role") == "img"
    assert _tree(svg.lines([svg.Series("a", [], [])], title="t")).get("role") == "img"


def test_a_band_is_drawn_around_its_line():
    chart = svg.lines([svg.Series("a", [0, 1], [0.5, 0.6], [0.4, 0.5], [0.6, 0.7])], title="t")
    assert chart.count('class="band') == 1
    assert "a: 0.5 at step 0 [0.4, 0.6]" in chart


def test_scatter_groups_points_by_class_with_colour_and_shape():
    labels = [0, 1, 1, 2, 3, 14, -1]
    chart = _tree(svg.scatter([[float(i), float(i % 3)] for i in range(7)], labels, ["a", "b"], title="t"))
    groups = {g.get("data-class"): g for g in chart.iter("g")}
    assert {k: len(g) - 1 for k, g in groups.items()} == {"-1": 1, "0": 1, "1": 2, "2": 1, "3": 1, "14": 1}
    assert [groups[k].find("title").text for k in ("0", "1", "2", "-1")] == ["a", "b", "2", "no label"]  # type: ignore[union-attr]
    looks = {(g.get("class"), re.sub(r"[\d.-]+", "", g[1].get("d", g[1].tag))) for g in groups.values()}
    assert len(looks) == 6


def test_twenty_classes_look_different():
    looks = {(k % svg.NUM_COLOURS, svg.SHAPES[k % len(svg.SHAPES)]) for k in range(20)}
    assert len(looks) == 20


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _ratio(one: str, two: str) -> float:
    low, high = sorted((_luminance(one), _luminance(two)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_colours_stand_out_from_the_page(palette: dict[str, str]):
    """WCAG 2: 4.5 for text, 3 for graphics; the colours of lines are used for small text too."""
    for ground in ("page", "card"):
        for name in ("ink", "soft", "warn", *(f"c{k}" for k in range(10))):
            assert _ratio(palette[name], palette[ground]) >= 4.5, (name, ground)


def test_the_map_repeats_and_keeps_groups_apart():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 50)) * 8
    y = np.repeat(np.arange(3), 30)
    x = centres[y] + rng.normal(size=(90, 50))
    plane = map2d(x, seed=1)
    assert plane.shape == (90, 2)
    assert plane.dtype == np.float32
    np.testing.assert_array_equal(plane, map2d(x, seed=1))
    distance = np.linalg.norm(plane[:, None] - plane[None], axis=-1) + np.diag([np.inf] * 90)
    assert (y[distance.argmin(axis=1)] == y).all()


def test_large_sets_are_mapped_by_their_principal_components():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2001, 5)) * [1, 9, 1, 4, 1]
    plane = map2d(x)
    centred = x - x.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    wanted = centred @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(plane), np.abs(wanted), atol=1e-3)
    np.testing.assert_allclose((plane**2).sum(axis=0), values[::-1][:2], rtol=1e-4)


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (3, 1), (9, 4), (12, 1), (12, 2)])
def test_small_sets_are_mapped_too(shape: tuple[int, int]):
    x = np.random.default_rng(0).normal(size=shape)
    plane = map2d(x)
    assert plane.shape == (shape[0], 2)
    assert np.isfinite(plane).all()


def test_equal_features_are_one_point():
    np.testing.assert_array_equal(map2d(np.ones((20, 4))), np.zeros((20, 2)))


def test_the_map_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match=r"features: expected shape \[N, D\], received \(3,\)"):
        map2d(np.zeros(3))
    with pytest.raises(ValueError, match="features: expected finite numbers"):
        map2d(np.array([[np.nan, 1.0]]))


def test_import_loads_no_torch():
    code = "import sys, nearfar.report; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
