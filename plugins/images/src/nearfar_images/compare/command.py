"""`nearfar compare images`: words to options, options to a comparison and its table."""

from __future__ import annotations

from pathlib import Path

from nearfar.flags import parse
from nearfar.terminal import console, print_json
from nearfar_images.compare.options import HELP, CompareOptions


def main(argv: list[str]) -> int:
    """0 when every system ran; 1 when one failed, which the table names."""
    options = parse(CompareOptions, argv, "nearfar compare images", HELP)
    from nearfar_images.compare import show
    from nearfar_images.compare.run import compare

    progress = console(stderr=True)
    result = compare(options, say=lambda text: progress.print(text, style="dim", markup=False, soft_wrap=True))
    folder = Path(options.out)
    show.page(result, options.metric, folder / "comparison.html")
    if options.json:
        print_json(result)
    else:
        show.show(result, options.metric, folder)
    return 1 if any(row["error"] for row in result["rows"]) else 0
