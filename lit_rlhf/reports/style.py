"""The page's style sheet: one column on a phone, a grid on a desk, colors that pass contrast on white."""

STYLE = """
:root { color-scheme: light; --line: #d0d5dd; --soft: #f5f6f8; --ink: #1d2430; --dim: #566072; --mark: #0072B2; }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, "Segoe UI", sans-serif; color: var(--ink); background: #fff; }
header, main, footer { max-width: 1320px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 20px; }
h1 { font-size: 1.5rem; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 34px 0 8px; padding-bottom: 4px; border-bottom: 1px solid var(--line); }
.skip { position: absolute; left: -9999px; }
.skip:focus { left: 8px; top: 8px; background: #fff; padding: 6px 10px; z-index: 9; }
.note, footer { color: var(--dim); font-size: .88rem; margin: 4px 0 10px; }
footer { padding-bottom: 30px; margin-top: 30px; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 22px; padding: 0; margin: 0; }
.legend svg { vertical-align: middle; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 12px; }
.grid.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); }
.plot { border: 1px solid var(--line); border-radius: 6px; min-width: 0; overflow: hidden; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { text-align: left; padding: 5px 16px 5px 0; border-bottom: 1px solid var(--line); }
.events { padding-left: 18px; }
.controls { display: flex; flex-wrap: wrap; gap: 8px 22px; margin: 8px 0; align-items: center; }
.controls label { display: inline-flex; gap: 8px; align-items: center; max-width: 100%; font-size: .92rem; }
.controls select { font: inherit; padding: 4px 6px; min-width: 0; max-width: min(60vw, 460px); }
.controls output { min-width: 3em; font-variant-numeric: tabular-nums; }
.question, .card p, .tokens { white-space: pre-wrap; overflow-wrap: anywhere; }
.question { background: var(--soft); border-radius: 6px; padding: 8px 12px; margin: 8px 0; }
.question:empty { display: none; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 12px; }
.card { border: 1px solid var(--line); border-top: 4px solid var(--card, #888); border-radius: 6px; padding: 8px 12px; }
.card h3 { margin: 0; font-size: 1rem; }
.card small { color: var(--dim); }
.card p { margin: 6px 0 0; }
.tokens { line-height: 2.05; border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px; }
.tok { padding: 3px 1px; border-radius: 3px; cursor: default; border-bottom: 2px solid transparent; }
.tok:focus, .tok:hover { outline: 2px solid var(--ink); outline-offset: 0; }
.tok.strong { border-bottom-color: var(--ink); }
.detail { min-height: 3.2em; margin-top: 8px; padding: 6px 12px; background: var(--soft); border-radius: 6px;
  font-variant-numeric: tabular-nums; }
.scale { display: flex; align-items: center; gap: 8px; font-size: .85rem; color: var(--dim); margin: 4px 0; }
.scale i { display: inline-block; width: 150px; max-width: 34vw; height: 12px; border-radius: 3px; }
details { margin: 6px 0; } summary { cursor: pointer; }
pre { background: var(--soft); padding: 10px 12px; border-radius: 6px; overflow: auto; max-height: 480px;
  font-size: .82rem; }
:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; }
@media (max-width: 600px) {
  header, main, footer { padding-left: 12px; padding-right: 12px; }
  h1 { font-size: 1.25rem; }
}
"""
