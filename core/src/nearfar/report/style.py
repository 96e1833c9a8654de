"""The look of the page: one palette for light, one for dark, and the sheet that uses them."""

from __future__ import annotations

LIGHT = {
    "page": "#f7f7f5", "card": "#ffffff", "ink": "#1c1e21", "soft": "#5c6168", "rule": "#e2e2de", "warn": "#8a5200",
    "c0": "#2f5bd0", "c1": "#cc3d24", "c2": "#23803a", "c3": "#7a3fd0", "c4": "#9a6700",
    "c5": "#0b7a82", "c6": "#be2f7c", "c7": "#7a5236", "c8": "#3f74ad", "c9": "#666b72",
}  # fmt: skip

DARK = {
    "page": "#131417", "card": "#1c1e22", "ink": "#ececea", "soft": "#a3a8b0", "rule": "#34373d", "warn": "#f0c060",
    "c0": "#8ba6ff", "c1": "#ff8c78", "c2": "#6fcf87", "c3": "#c7a2ff", "c4": "#efc24d",
    "c5": "#59d0d4", "c6": "#ff97c8", "c7": "#d2a888", "c8": "#9ec6f2", "c9": "#b3b8bf",
}  # fmt: skip


def _variables(palette: dict[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in palette.items())


_COLOURS = "".join(f".f{k}{{fill:var(--c{k})}}.l{k}{{stroke:var(--c{k})}}" for k in range(10))

SHEET = (
    f":root{{color-scheme:light dark;{_variables(LIGHT)}}}"
    f"@media(prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}"
    f"{_COLOURS}"
    """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
 font-variant-numeric:tabular-nums;overflow-wrap:break-word}
main{max-width:1120px;margin:0 auto;padding:40px 20px 64px}
h1{font-size:2rem;line-height:1.2;letter-spacing:-.02em;margin:0 0 6px;font-weight:680}
h2{font-size:1.15rem;letter-spacing:-.01em;margin:0 0 4px;font-weight:640}
h3{font-size:.9rem;margin:0 0 8px;font-weight:600}
p{margin:0 0 12px}
.soft{color:var(--soft);font-size:.875rem}
header{margin-bottom:28px}
section{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:22px 24px;margin:0 0 18px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:14px;margin:0 0 18px}
.tile{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:16px 20px}
.tile b{display:block;font-size:2rem;line-height:1.25;font-weight:660;letter-spacing:-.02em}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:22px 28px;margin-top:14px}
figure{margin:0;min-width:0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.925rem}
th{font-weight:500;color:var(--soft);text-align:left;font-size:.825rem}
th,td{padding:7px 16px 7px 0;border-bottom:1px solid var(--rule);vertical-align:middle}
tr:last-child td{border-bottom:0}
td.n,th.n{text-align:right;white-space:nowrap}
.scores td:first-child{white-space:nowrap}.fields td{overflow-wrap:anywhere}
td .soft{white-space:nowrap}
.chart{width:100%;height:auto;display:block;overflow:visible}
.grid{stroke:var(--rule);fill:none}.axis{stroke:var(--soft);fill:none}
.tick{fill:var(--soft);font-size:11.5px}.end{text-anchor:end}.mid{text-anchor:middle}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.band{opacity:.14}
.hit{fill:transparent}.dot:hover circle:last-of-type{r:4.5px}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;margin:6px 0 8px;padding:0;
 list-style:none;font-size:.85rem;color:var(--soft)}
.legend li{display:flex;align-items:center;gap:6px}
.legend i{width:14px;height:3px;border-radius:2px;background:currentColor}
.swatch{width:12px;height:12px;flex:none}
.map{max-width:720px;margin:0 auto}
.points{opacity:.82;transition:opacity .12s}.plain{fill:var(--soft)}
.interval{width:100%;min-width:170px;max-width:300px;height:30px;display:block}
.interval path{fill:none;stroke-width:2.5;stroke-linecap:round}.interval .grid{stroke-width:1}
.before path{stroke:var(--c9)}.before circle{fill:var(--card);stroke:var(--c9);stroke-width:2}
.after path{stroke:var(--c0)}.after circle{fill:var(--c0)}
.key{display:inline-flex;align-items:center;gap:6px;margin-right:14px}
.key::before{content:"";width:9px;height:9px;border-radius:50%;border:2px solid var(--c9)}
.key.new::before{border-color:var(--c0);background:var(--c0)}
.notes{border-color:var(--warn)}.notes h2{color:var(--warn)}
.notes ul{margin:6px 0 0;padding-left:20px}
.pictures{display:grid;gap:10px;margin-top:14px}
.strip{display:flex;gap:8px;align-items:flex-start}
.strip figure{flex:0 0 auto;text-align:center;font-size:.75rem;color:var(--soft);width:68px}
.strip img{width:64px;height:64px;object-fit:contain;border-radius:6px;border:2px solid var(--rule);
 background:var(--page);display:block;margin:0 auto 2px}
.strip img.small{image-rendering:pixelated}
.strip .query{margin-right:12px}
.strip .right img{border-color:var(--c2)}.strip .wrong img{border-color:var(--c1);border-style:dashed}
.strip .right figcaption{color:var(--c2)}.strip .wrong figcaption{color:var(--c1)}
.views .strip figure{width:88px}.views .strip img{width:84px;height:84px}
details{margin-top:10px}summary{cursor:pointer;font-weight:560}
.fields{columns:2 340px;column-gap:36px;margin-top:12px}
.fields div{break-inside:avoid;margin-bottom:16px}
.fields table{font-size:.85rem}.fields td{padding:4px 10px 4px 0}.fields td:last-child{text-align:right}
code{font:.875em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
@media print{body{background:#fff}section,.tile{break-inside:avoid}}
@media(max-width:560px){main{padding:24px 12px 40px}section{padding:18px 16px}h1{font-size:1.6rem}}
"""
)


def highlight(labels: list[int]) -> str:
    """Rules that dim the other classes of the map while a legend entry is hovered, without a script."""
    return "".join(
        f'.embedding:has(li[data-class="{k}"]:hover) .points:not([data-class="{k}"]){{opacity:.08}}' for k in labels
    )
