"""How the page looks: two palettes, one sheet of styles, for screens of any width and for paper."""

from __future__ import annotations

__all__ = ["PALETTES", "SERIES", "stylesheet"]

#: Colours by theme. Texts have at least 4.5 : 1 to what they stand on, marks 3 : 1 (WCAG 2.2, AA); a test computes it.
PALETTES: dict[str, dict[str, str]] = {
    "light": {
        "page": "#fbfaf7",
        "card": "#ffffff",
        "ink": "#1c2127",
        "soft": "#59626d",
        "line": "#dcd9d1",
        "grid": "#e9e6df",
        "mark": "#858b92",
        "link": "#1a52a5",
        "good": "#17693c",
        "bad": "#a3341f",
        "tint": "#eef3fb",
        "series-0": "#1f5fbf",
        "series-1": "#b3560b",
        "series-2": "#1d7a4c",
        "series-3": "#8a3fa0",
        "series-4": "#8b1e3f",
        "series-5": "#4e6470",
        "part-0": "#15425f",
        "part-1": "#3a86a8",
        "part-2": "#9a8a3c",
    },
    "dark": {
        "page": "#14171b",
        "card": "#1b1f25",
        "ink": "#e9ebee",
        "soft": "#a6afba",
        "line": "#343b44",
        "grid": "#2a3038",
        "mark": "#7d8792",
        "link": "#8fb8f6",
        "good": "#7fd3a2",
        "bad": "#f2a08d",
        "tint": "#1f2a3a",
        "series-0": "#7fb0ff",
        "series-1": "#f0a35a",
        "series-2": "#6fd0a0",
        "series-3": "#d59be6",
        "series-4": "#f08fa8",
        "series-5": "#a9bcc7",
        "part-0": "#d3ebf8",
        "part-1": "#62a9cb",
        "part-2": "#a3934a",
    },
}
#: Series that can be told apart by colour and shape; further ones begin again.
SERIES = 6


def stylesheet() -> str:
    """All of the page's styles."""
    variables = {name: "".join(f"--{key}:{value};" for key, value in each.items()) for name, each in PALETTES.items()}
    series = "".join(f".s{i}{{--c:var(--series-{i})}}" for i in range(SERIES))
    series += "".join(f".p{i}{{--c:var(--part-{i})}}" for i in range(3))
    return (
        f":root{{color-scheme:light dark;{variables['light']}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{variables['dark']}}}}}"
        f"{series}{_SHEET}"
    )


_SHEET = """
*{box-sizing:border-box}
html{scroll-padding-top:1rem;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:1rem/1.6 "Source Sans 3","Source Sans Pro",-apple-system,
BlinkMacSystemFont,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",Arial,sans-serif;font-variant-numeric:tabular-nums}
a{color:var(--link);text-underline-offset:.18em;text-decoration-thickness:1px}
a:hover{text-decoration-thickness:2px}
:focus-visible{outline:3px solid var(--link);outline-offset:2px;border-radius:3px}
.skip{position:absolute;left:1rem;top:-6rem;background:var(--card);color:var(--link);padding:.6rem 1rem;z-index:2}
.skip:focus{top:1rem}
.page{max-width:76rem;margin:0 auto;padding:0 1.25rem 4rem}
header{padding:3.2rem 0 2rem;max-width:58rem}
.kicker{margin:0 0 .9rem;color:var(--soft);font-size:.95rem}
h1{font:600 clamp(1.85rem,1.2rem + 2.9vw,3.1rem)/1.14 "Source Serif 4",Charter,"Bitstream Charter","Sitka Text",
Cambria,Georgia,"Liberation Serif",serif;letter-spacing:-.012em;margin:0 0 1rem;text-wrap:balance;
overflow-wrap:anywhere}
.lead{font-size:1.14rem;line-height:1.55;margin:0;max-width:46rem;color:var(--ink)}
.lead+.lead{margin-top:.6rem}
h2{font:600 1.55rem/1.25 "Source Serif 4",Charter,"Bitstream Charter","Sitka Text",Cambria,Georgia,"Liberation Serif",
serif;margin:0 0 .35rem;letter-spacing:-.006em}
h3{font-size:1.04rem;line-height:1.35;margin:0 0 .5rem;font-weight:650;overflow-wrap:anywhere}
p{margin:0 0 .9rem;max-width:44rem}
small,.soft{color:var(--soft)}
.layout{display:grid;grid-template-columns:minmax(0,1fr);gap:0 3.5rem}
nav ul{list-style:none;margin:0;padding:0;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.95rem}
nav{border-block:1px solid var(--line);padding:.7rem 0}
nav a{color:var(--soft);text-decoration:none;display:inline-block;padding:.14rem 0}
nav a:hover{color:var(--link);text-decoration:underline}
main>section{padding:2.6rem 0 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.4rem,1fr));gap:1.1rem 1.6rem;margin:1.3rem 0 1.6rem;
padding:0}
.tiles div{border-top:2px solid var(--line);padding-top:.45rem}
.tiles dt{color:var(--soft);font-size:.88rem;line-height:1.3}
.tiles dd{margin:.1rem 0 0;font-size:1.42rem;line-height:1.25;font-weight:600;letter-spacing:-.01em}
.tiles dd small{display:block;font-size:.85rem;font-weight:400;letter-spacing:0;line-height:1.35;margin-top:.1rem}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));gap:1.1rem;margin:1.1rem 0}
.figures>*{margin:0}
figure{margin:1.1rem 0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem 1.1rem .8rem;
min-width:0}
figcaption{font-weight:650;line-height:1.35;margin-bottom:.15rem}
figcaption small{display:block;font-weight:400;margin-top:.1rem;line-height:1.4}
svg{display:block;max-width:100%;overflow:visible}
svg.chart{width:100%;height:auto;margin-top:.5rem}
svg text{font:12.5px "Source Sans 3","Source Sans Pro",-apple-system,BlinkMacSystemFont,"Segoe UI",Roboto,"Noto Sans",
"Liberation Sans",Arial,sans-serif;fill:var(--soft);font-variant-numeric:tabular-nums}
svg text.name{fill:var(--ink);font-weight:600}
.grid{stroke:var(--grid)}.axis{stroke:var(--mark)}
.curve{fill:none;stroke:var(--c);stroke-width:2.25;stroke-linejoin:round;stroke-linecap:round}
.dots{fill:none;stroke:var(--c);stroke-width:5.5;stroke-linecap:round;stroke-opacity:.62}
.area{fill:var(--c)}.whisker{stroke:var(--c);stroke-width:2;stroke-linecap:round}
.point{fill:var(--c);stroke:var(--card);stroke-width:1}
.ring{fill:var(--card);stroke:var(--c);stroke-width:2.25}.stem{stroke:var(--c);stroke-width:1;stroke-opacity:.45}
.zero{stroke:var(--ink);stroke-dasharray:2 3}
.rule{stroke:var(--mark);stroke-dasharray:5 4}
.interval{width:100%;min-width:9rem;height:1.5rem}
.key{display:flex;flex-wrap:wrap;gap:.15rem 1.1rem;margin:.45rem 0 0;padding:0;list-style:none;font-size:.9rem}
.key li{display:flex;align-items:center;gap:.4rem}
.key svg,.name svg{width:1.5rem;height:.9rem;max-width:none;flex:none;display:inline-block;
vertical-align:-.06em}
.name{white-space:nowrap}
.scroll{overflow-x:auto;margin:1rem 0;border-radius:4px}
table{border-collapse:collapse;width:100%;font-size:.95rem;line-height:1.4}
caption{text-align:left;font-weight:650;padding:0 0 .45rem;line-height:1.35}
th,td{text-align:left;padding:.34rem .9rem .34rem 0;border-bottom:1px solid var(--line);vertical-align:top;
font-weight:400}
th:last-child,td:last-child{padding-right:0}
thead th{white-space:nowrap;color:var(--soft);font-size:.88rem;border-bottom:1px solid var(--mark);
vertical-align:bottom}
.number{text-align:right;white-space:nowrap}
tbody tr.group th{padding-top:1rem;font-weight:650}
td.bar{width:42%;min-width:9rem}
.clear{color:var(--good);font-weight:600}.chance{color:var(--soft)}.worse{color:var(--bad);font-weight:600}
.clear,.chance,.worse{white-space:nowrap}
details{margin:.7rem 0 .2rem;font-size:.92rem}
summary{cursor:pointer;color:var(--link);width:fit-content;padding:.1rem .2rem .1rem 0}
details>*:not(summary){margin-top:.6rem}
.notes{padding:.9rem 1.1rem;background:var(--tint);border-radius:8px;margin:1.2rem 0;max-width:none;list-style:none}
.notes li+li{margin-top:.35rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));gap:1.1rem;margin:1.1rem 0;
align-items:start}
.cards>article{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem 1.1rem;min-width:0}
article table{font-size:.92rem}
article .scroll{margin:.6rem 0 0}
article td small{display:block;line-height:1.4}
.hit{color:var(--good);font-weight:650;white-space:nowrap}
.has{font-size:.94rem;margin:0 0 .4rem}
bdi{overflow-wrap:break-word}
.has bdi,article td bdi{overflow-wrap:anywhere}
.pair{white-space:nowrap}
footer{margin-top:3.2rem;padding-top:1rem;border-top:1px solid var(--line);color:var(--soft);font-size:.92rem}
@media (min-width:68rem){
.layout{grid-template-columns:11rem minmax(0,1fr)}
nav{border:0;padding:2.9rem 0 0;position:sticky;top:0;align-self:start;max-height:100vh;overflow:auto}
nav ul{display:block}nav li{padding:.14rem 0}
}
@media (max-width:34rem){th,td{padding-right:.55rem}.interval,td.bar{min-width:4.2rem}.page{padding:0 .9rem 3rem}}
@media (prefers-reduced-motion:no-preference){html{scroll-behavior:smooth}}
@media print{
@page{margin:16mm 14mm}
html{font-size:12px}body{background:#fff}.page{max-width:none;padding:0}
nav,.skip,summary{display:none}header{padding-top:0}
.layout{display:block}main>section{padding-top:1.6rem}
figure,.cards>article,tr,.tiles div,.notes{break-inside:avoid}h2,h3,caption{break-after:avoid}
.figures{grid-template-columns:1fr 1fr}.cards{display:block}.cards>article{margin-bottom:1rem}
.scroll{overflow:visible}th,td{padding-right:.5rem}
.interval{min-width:4.5rem;height:1.2rem}
figure,.cards>article{padding:.6rem .7rem}a{color:inherit;text-decoration:none}
}
@media (forced-colors:active){.point,.area{fill:CanvasText}.curve,.whisker,.dots{stroke:CanvasText}}
"""
