"""The look of the page: light and dark by the reader's system, one column on a phone."""

STYLE = """
:root{color-scheme:light dark;--paper:#f6f7f9;--card:#fff;--ink:#1b2430;--soft:#5d6877;--rule:#dfe3e8;--series:#2f6fde;
--wrong:#d1495b;--track:#e9edf2;--on:#fff}
@media (prefers-color-scheme:dark){:root{--paper:#12161c;--card:#1a2029;--ink:#e7ebf0;--soft:#9aa5b3;--rule:#2c3541;
--series:#6ea3ff;--wrong:#ff7b8a;--track:#28313d;--on:#0d1117}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.6rem;margin:0;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:0 0 12px}
h3{font-size:.95rem;margin:20px 0 6px}
header p,.note,small{color:var(--soft)}
header p{margin:2px 0 18px;overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:18px;margin:0 0 16px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(132px,1fr));padding:0;overflow:hidden}
.tiles div{box-shadow:0 0 0 .5px var(--rule);padding:14px 16px;display:flex;flex-direction:column;min-height:92px}
.tiles span{color:var(--soft);font-size:.85rem}
.tiles b{font-size:1.55rem;font-weight:600;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:16px}
figure{margin:0}
.chart{max-width:560px}
.small{max-width:380px}
figcaption{color:var(--soft);font-size:.9rem;overflow-wrap:anywhere}
figcaption b{color:var(--ink);font-weight:600}
.chart figcaption{display:flex;justify-content:space-between;padding:0 14px 0 6px}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:11px;font-variant-numeric:tabular-nums}
.grid{stroke:var(--rule);fill:none}
.line{stroke:var(--series);stroke-width:2;fill:none;stroke-linejoin:round;stroke-linecap:round}
.raw{stroke:var(--series);stroke-opacity:.3;fill:none}
.dot{fill:var(--card);stroke:var(--series);stroke-width:2}
.column{fill:var(--series)}
.confusion text{fill:var(--ink)}
.confusion .on{fill:var(--on)}
.right{fill:var(--series)}
.wrong{fill:var(--wrong)}
.none{fill:var(--track)}
.scroll{overflow-x:auto}
.beside{display:flex;flex-wrap:wrap;gap:12px 40px;align-items:flex-start}
.beside>.scroll{flex:1 1 420px;max-width:100%}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th{font-weight:400;text-align:left}
td{text-align:right}
th,td{padding:4px 12px 4px 0;vertical-align:top}
thead th{color:var(--soft);font-size:.85rem}
thead th:not(:first-child){text-align:right}
.classes{width:100%}
.classes td,.classes th{white-space:nowrap;padding:3px 0 3px 12px}
.classes th:first-child{padding-left:0;white-space:normal;overflow-wrap:anywhere}
.classes .bar{width:55%;vertical-align:middle}
.bar i{display:block;height:12px;min-width:1px;border-radius:0 4px 4px 0;background:var(--series)}
td.bar{background:linear-gradient(var(--track),var(--track)) 12px 50%/100% 12px no-repeat}
.shot{margin-top:18px}
img{display:block;width:100%;max-width:984px;min-width:620px;border-radius:6px;background:#fff}
details{margin-top:8px}
summary{cursor:pointer;padding:4px 0}
details .scroll{margin-top:6px}
.record{margin:0}
.record td{text-align:left;overflow-wrap:anywhere}
.record table{margin-top:8px;font-size:.9rem}
.record th{color:var(--soft);white-space:nowrap}
@media (max-width:560px){main{padding:16px 8px 40px}section{padding:14px 12px}
.tiles{grid-template-columns:1fr 1fr;padding:0}
.classes .bar{width:34%}.classes th:nth-child(5),.classes td:nth-child(5){display:none}}
"""
