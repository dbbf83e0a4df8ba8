"""The page's script: draws the figures when they come into view, and the two sample views."""

SCRIPT = r"""
"use strict";
const byId = (id) => document.getElementById(id);
const parse = (id) => JSON.parse(byId(id).textContent);
const figures = parse("figures"), runs = parse("samples-data");
const text = (node, value) => { node.textContent = value; return node; };
const make = (tag, cls, value) => { const n = document.createElement(tag); if (cls) n.className = cls;
  return value === undefined ? n : text(n, value); };
const fixed = (x, digits) => x === null || x === undefined ? "none" : Number(x).toFixed(digits);

function draw(box) {
  const figure = figures[Number(box.dataset.figure)];
  box.style.minHeight = figure.layout.height + "px";
  Plotly.newPlot(box, figure.data, figure.layout,
    { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false });
}
for (const box of document.querySelectorAll(".plot")) draw(box);

// Samples side by side: the SFT model (before the first update) and every run at one iteration.
const held = (run) => run.samples.filter((s) => s.kind === "fixed");
const stamp = (s) => s.step === 0 ? "before training" : "iteration " + s.at;
function card(name, color, sample) {
  const box = make("article", "card");
  box.style.setProperty("--card", color);
  box.append(make("h3", "", name));
  const ended = sample.ended === false ? ", cut by the length limit" : "";
  box.append(make("small", "", `${stamp(sample)} · score ${fixed(sample.score, 3)} · ` +
    `KL ${fixed(sample.kl, 4)} a token · ${sample.length ?? sample.tokens.length} tokens${ended}`));
  box.append(make("p", "", sample.response || "(empty)"));
  return box;
}
function setUpSides() {
  const all = runs.flatMap(held), prompt = byId("side-prompt"), slider = byId("side-at");
  if (!all.length) { prompt.closest("section").hidden = true; return; }
  const indices = [...new Set(all.map((s) => s.index))].sort((a, b) => a - b);
  const steps = [...new Set(all.map((s) => s.step))].sort((a, b) => a - b);
  for (const k of indices) {
    const question = all.find((s) => s.index === k).prompt;
    prompt.append(new Option(`${k + 1}. ${question.trim().slice(0, 60)}`, k));
  }
  slider.max = steps.length - 1; slider.value = steps.length - 1;
  const show = () => {
    const index = Number(prompt.value), step = steps[Number(slider.value)], cards = byId("side");
    cards.replaceChildren();
    const first = all.find((s) => s.index === index && s.step === 0);
    const any = all.find((s) => s.index === index);
    text(byId("side-question"), any ? any.prompt : "");
    if (first) cards.append(card("SFT", "#555555", first));
    let shown = null;
    for (const run of runs) {
      const past = held(run).filter((s) => s.index === index && s.step <= step && (s.step > 0 || !first));
      if (past.length) { shown = past[past.length - 1]; cards.append(card(run.name, run.color, shown)); }
    }
    text(byId("side-at-text"), shown ? String(shown.at) : "start");
  };
  prompt.onchange = show; slider.oninput = show; show();
}

// Token view. Blue is negative, orange positive, white zero: told apart with every common color-vision deficiency.
// The strongest tenth is underlined as well, so that color is never the only sign.
const NAMES = { kl: "KL (nats)", advantage: "advantage", value: "value", reward: "reward", logprob: "log-probability",
  ref_logprob: "reference log-probability" };
const NEGATIVE = [86, 160, 211], POSITIVE = [240, 150, 60];
function tint(x, limit) {
  if (x === null || x === undefined) return "#ffffff";
  const share = Math.min(1, Math.abs(x) / (limit || 1)), end = x < 0 ? NEGATIVE : POSITIVE;
  return `rgb(${end.map((c) => Math.round(255 + (c - 255) * share)).join(",")})`;
}
function quantile(xs, q) {
  const ordered = [...xs].sort((a, b) => a - b);
  return ordered.length ? ordered[Math.min(ordered.length - 1, Math.floor(q * ordered.length))] : 0;
}
const numbers = (s, k, colon, join) => Object.keys(NAMES).filter((n) => s.columns[n])
  .map((n) => `${NAMES[n]}${colon} ${fixed(s.columns[n][k], 4)}`).join(join);
function setUpTokens() {
  const run = byId("token-run"), pick = byId("token-sample"), column = byId("token-column"), area = byId("token-text");
  const whole = runs.map((r) => r.samples.filter((s) => s.tokens.length));
  runs.forEach((r, k) => { if (whole[k].length) run.append(new Option(r.name, k)); });
  if (!run.options.length) { run.closest("section").hidden = true; return; }
  const samples = () => whole[Number(run.value)];
  const sample = () => samples()[Number(pick.value)];
  const listSamples = () => {
    pick.replaceChildren();
    samples().forEach((s, k) => pick.append(
      new Option(`${stamp(s)}, ${s.kind} ${s.index + 1}: ${s.response.trim().slice(0, 40)}`, k)));
    pick.value = samples().length - 1;
    listColumns();
  };
  const listColumns = () => {
    const before = column.value, names = Object.keys(NAMES).filter((n) => sample().columns[n]);
    column.replaceChildren(...names.map((n) => new Option(NAMES[n], n)));
    column.value = names.includes(before) ? before : names[0];
    show();
  };
  const detail = (k) => {
    const s = sample();
    text(byId("token-detail"), `Token ${k + 1} of ${s.tokens.length} “${s.tokens[k]}”: ${numbers(s, k, "", ", ")}`);
  };
  const show = () => {
    const s = sample(), name = column.value, values = s.columns[name].map((x) => x === null ? 0 : x);
    // One scale for all responses of the run, so that two of them can be compared.
    const everything = samples().flatMap((o) => (o.columns[name] || []).filter((x) => x !== null).map(Math.abs));
    const limit = quantile(everything, 0.98), strong = quantile(values.map(Math.abs), 0.9);
    text(byId("token-question"), s.prompt);
    area.replaceChildren(...s.tokens.map((token, k) => {
      const span = make("span", "tok" + (Math.abs(values[k]) >= strong && values[k] !== 0 ? " strong" : ""),
        token === "" ? "␀" : token.replace(/\n/g, "⏎\n"));
      span.style.background = tint(s.columns[name][k], limit);
      span.tabIndex = k === 0 ? 0 : -1;
      span.dataset.k = k;
      span.title = numbers(s, k, ":", "\n");
      return span;
    }));
    const scale = byId("token-scale"), bar = make("i");
    bar.style.background = `linear-gradient(90deg, ${tint(-limit, limit)}, #fff, ${tint(limit, limit)})`;
    const ends = [`-${limit.toPrecision(3)}`, `+${limit.toPrecision(3)}`].map((end) => make("span", "", end));
    scale.replaceChildren(ends[0], bar, ends[1],
      make("span", "", `${NAMES[name]}; underlined: strongest tenth of this response`));
    const facts = `Score ${fixed(s.score, 3)}, KL ${fixed(s.kl, 4)} a token over ${s.tokens.length} tokens.`;
    text(byId("token-detail"), facts);
  };
  const at = (event) => event.target.dataset && event.target.dataset.k;
  area.addEventListener("mouseover", (event) => { if (at(event)) detail(Number(at(event))); });
  area.addEventListener("focusin", (event) => { if (at(event)) detail(Number(at(event))); });
  area.addEventListener("click", (event) => { if (at(event)) event.target.focus(); });
  area.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key], k = Number(at(event));
    const goal = event.key === "Home" ? 0 : event.key === "End" ? area.children.length - 1 : step ? k + step : NaN;
    if (Number.isNaN(goal)) return;
    event.preventDefault();
    const next = area.children[Math.max(0, Math.min(area.children.length - 1, goal))];
    for (const token of area.children) token.tabIndex = -1;
    next.tabIndex = 0; next.focus();
  });
  run.onchange = listSamples; pick.onchange = listColumns; column.onchange = show;
  listSamples();
}
if (byId("samples")) { setUpSides(); setUpTokens(); }
document.documentElement.dataset.ready = document.querySelectorAll(".plot .main-svg").length ? "yes" : "no-plots";
"""
