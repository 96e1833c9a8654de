"""`nearfar images index|search|duplicates`: words to options, options to an index on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.markup import escape

from nearfar.checks import expect
from nearfar.flags import parse
from nearfar.terminal import console, print_json
from nearfar_images.options import RunOptions

if TYPE_CHECKING:
    from nearfar_images.index import Index

PROG = "nearfar images"


@dataclass(frozen=True, kw_only=True)
class IndexOptions(RunOptions):
    """Options of `nearfar images index`."""

    root: str
    """folder of images"""
    out: str
    """folder of the index"""
    output_name: str = "default"
    """which of the method's outputs, e.g. embedding"""
    backend: Literal["exact", "hnsw"] = "exact"
    """exact: compare with every image; hnsw: walk a graph, for a million images and more (pip install faiss-cpu)"""
    workers: int = 0
    """loader processes"""


INDEX = """Makes an index of a folder of images, or brings one up to date: only new and changed files are embedded.

Examples:
  nearfar images index --run RUN --root IMAGES --out images.index
  nearfar images search --index images.index --query cat.jpg
"""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of `nearfar images search`."""

    index: str
    """folder that `nearfar images index` made"""
    query: tuple[str, ...]
    """images to look for"""
    k: int = 10
    """answers to each"""
    run: str = ""
    """folder of the run, where it has moved since the index was made"""
    html: str = ""
    """write a contact sheet of the first query to this file"""
    json: bool = False
    """print JSON and nothing else"""
    trust_code: bool = False
    """allow a run whose recipe is code of your own to import it"""


SEARCH = """The images of an index most similar to query images, by the cosine of their features.

Examples:
  nearfar images search --index images.index --query cat.jpg dog.jpg --k 5
"""


@dataclass(frozen=True, kw_only=True)
class DuplicatesOptions:
    """Options of `nearfar images duplicates`."""

    index: str
    """folder that `nearfar images index` made"""
    threshold: float = 0.95
    """cosine from which two images count as near-duplicates"""
    json: bool = False
    """print JSON and nothing else"""


DUPLICATES = """Groups of images of an index whose features are nearly the same.

What a cosine means depends on the encoder: look at a few groups and move the threshold.

Examples:
  nearfar images duplicates --index images.index --threshold 0.98
"""


def index(argv: list[str]) -> int:
    """`nearfar images index --run RUN --root FOLDER --out INDEX`."""
    options = parse(IndexOptions, argv, f"{PROG} index", INDEX)
    from nearfar_images.commands import _load
    from nearfar_images.index import Index, Made

    def say(made: Made) -> None:
        skipped = f", {len(made.skipped)} unreadable left out" if made.skipped else ""
        console(stderr=True).print(
            f"{made.added} embedded, {made.kept} kept, {made.removed} gone{skipped}", style="dim", soft_wrap=True
        )

    loaded = _load(options.run, options.checkpoint, options.trust_code)
    made = Index.build(
        options.out, loaded, options.root, run=options.run, output=options.output_name, backend=options.backend,
        workers=options.workers, say=say,
    )  # fmt: skip
    console().print(f"{options.out}: {len(made)} images, {made.features.shape[1]} numbers each", soft_wrap=True)
    return 0


def search(argv: list[str]) -> int:
    """`nearfar images search --index INDEX --query IMAGE ...`."""
    options = parse(SearchOptions, argv, f"{PROG} search", SEARCH)
    from nearfar_images import gallery
    from nearfar_images.index import Index

    expect(len(options.query) > 0, "query", "one image or more", "none")
    found = Index.load(options.index)
    loaded = _method_of(found, options.run, options.trust_code)
    answers: dict[str, Any] = {}
    for query in options.query:
        feature = gallery.embed_image(loaded.method, query, loaded.recipe.data, output=found.about["output"])
        answers[query] = found.search(feature, k=options.k, leave_out=[query])[0]
    if options.html:
        from nearfar.recipe import to_dict

        first = options.query[0]
        gallery.contact_sheet(options.html, first, answers[first], to_dict(loaded.recipe))
    if options.json:
        print_json({query: [asdict(item) for item in items] for query, items in answers.items()})
        return 0
    out = console()
    for query, items in answers.items():
        if len(answers) > 1:
            out.print(f"[bold]{escape(query)}[/]", soft_wrap=True)
        for item in items:
            out.print(f"{item.similarity:6.3f}  {escape(item.path)}", soft_wrap=True)
    if options.html:
        out.print(f"sheet   {escape(options.html)}", soft_wrap=True)
    return 0


def duplicates(argv: list[str]) -> int:
    """`nearfar images duplicates --index INDEX`."""
    options = parse(DuplicatesOptions, argv, f"{PROG} duplicates", DUPLICATES)
    from nearfar_images.index import Index

    groups = Index.load(options.index).duplicates(options.threshold)
    if options.json:
        print_json(groups)
        return 0
    out = console()
    for group in groups:
        for k, path in enumerate(group):
            out.print(f"{'' if k else '* '}{'  ' if k else ''}{escape(path)}", soft_wrap=True)
    images = sum(map(len, groups))
    out.print(f"[dim]{len(groups)} groups, {images} images, cosine {options.threshold:g} or more[/]")
    return 0


def _method_of(found: Index, run: str, trust: bool) -> Any:
    """The method that an index was made with; another one's features would not compare."""
    from nearfar.train.checkpoint import file_hash
    from nearfar_images.commands import _load

    loaded = _load(run or found.about["run"], found.about["checkpoint"].removeprefix("step-"), trust)
    weights = file_hash(loaded.checkpoint / "model.safetensors")
    expect(
        weights == found.about["weights"], "run", f"the one whose {found.about['checkpoint']} the index was made with",
        f"{run or found.about['run']}, whose weights differ; make the index again",
    )  # fmt: skip
    return loaded
