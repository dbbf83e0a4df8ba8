"use strict";

const byId = (id) => document.getElementById(id);
const parsed = (node) => JSON.parse(node.textContent);
const fixed = (x, digits) => (x === null || x === undefined ? "none" : Number(x).toFixed(digits));

function element(tag, cls, text) {
  const node = document.createElement(tag);
  node.className = cls;
  node.textContent = text; // never markup, whatever a model wrote
  return node;
}

for (const box of document.querySelectorAll(".plot")) {
  const figure = parsed(box.querySelector("script"));
  box.style.minHeight = `${figure.layout.height}px`;
  Plotly.newPlot(box, figure.data, figure.layout, { responsive: true, displayModeBar: false });
}

// Samples side by side: the SFT model (before the first update) and every run at one iteration.

const stamp = (sample) => (sample.step === 0 ? "before training" : `iteration ${sample.at}`);
const facts = (sample) =>
  `score ${fixed(sample.score, 3)}, KL ${fixed(sample.kl, 4)} per token, ${sample.length ?? sample.tokens.length} tokens`;

function card(name, color, sample) {
  const box = element("article", "sample", "");
  const cut = sample.ended === false ? ", cut by the length limit" : "";
  const response = element("div", "text", sample.response || "(empty)");
  response.dir = "auto";
  box.style.setProperty("--run", color);
  box.append(element("h3", "", name), element("small", "", `${stamp(sample)}: ${facts(sample)}${cut}`), response);
  return box;
}

function setUpSides(runs) {
  const prompt = byId("side-prompt"), slider = byId("side-at");
  const held = (run) => run.samples.filter((s) => s.kind === "fixed");
  const all = runs.flatMap(held);
  if (!all.length) { prompt.closest("section").hidden = true; return; }
  const distinct = (key) => [...new Set(all.map((s) => s[key]))].sort((a, b) => a - b);
  const steps = distinct("step");
  for (const index of distinct("index")) {
    const question = all.find((s) => s.index === index).prompt;
    prompt.append(new Option(`${index + 1}. ${question.trim().slice(0, 60)}`, index));
  }
  const show = () => {
    const index = Number(prompt.value), step = steps[Number(slider.value)];
    const first = all.find((s) => s.index === index && s.step === 0);
    const cards = first ? [card("SFT", "var(--dim)", first)] : [];
    let at = "start";
    for (const run of runs) {
      const past = held(run).filter((s) => s.index === index && s.step <= step && (s.step > 0 || !first));
      if (past.length) { at = past.at(-1).at; cards.push(card(run.name, run.color, past.at(-1))); }
    }
    byId("side").replaceChildren(...cards);
    byId("side-question").textContent = all.find((s) => s.index === index).prompt;
    byId("side-at-text").textContent = at;
  };
  slider.max = slider.value = steps.length - 1;
  prompt.onchange = slider.oninput = show;
  show();
}

// Token view. Blue is negative, orange positive, white zero: told apart with every common color-vision deficiency.
// The strongest tenth is underlined as well, so that color is never the only sign.

const COLUMNS = {
  kl: "KL (nats)", advantage: "advantage", value: "value", reward: "reward", logprob: "log-probability",
  ref_logprob: "reference log-probability",
};
const columnsOf = (sample) => Object.keys(COLUMNS).filter((name) => sample.columns[name]);
const numbers = (sample, k, colon, join) =>
  columnsOf(sample).map((name) => `${COLUMNS[name]}${colon} ${fixed(sample.columns[name][k], 4)}`).join(join);

function quantile(values, q) {
  const ordered = values.map(Math.abs).sort((a, b) => a - b);
  return ordered.length ? ordered[Math.min(ordered.length - 1, Math.floor(q * ordered.length))] : 0;
}

function tint(value, limit) {
  const share = Math.min(1, Math.abs(value ?? 0) / (limit || 1));
  return `color-mix(in srgb, var(--${value < 0 ? "sky" : "orange"}) ${(100 * share).toFixed(1)}%, white)`;
}

function setUpTokens(runs) {
  const run = byId("token-run"), pick = byId("token-sample"), column = byId("token-column"), area = byId("token-text");
  const detail = byId("token-detail");
  const whole = runs.map((r) => r.samples.filter((s) => s.tokens.length && columnsOf(s).length));
  runs.forEach((r, k) => { if (whole[k].length) run.append(new Option(r.name, k)); });
  if (!run.options.length) { run.closest("section").hidden = true; return; }
  const samples = () => whole[Number(run.value)];
  const sample = () => samples()[Number(pick.value)];

  const listSamples = () => {
    pick.replaceChildren(...samples().map((s, k) =>
      new Option(`${stamp(s)}, ${s.kind} ${s.index + 1}: ${s.response.trim().slice(0, 40)}`, k)));
    pick.value = samples().length - 1;
    listColumns();
  };
  const listColumns = () => {
    const before = column.value, names = columnsOf(sample());
    column.replaceChildren(...names.map((name) => new Option(COLUMNS[name], name)));
    column.value = names.includes(before) ? before : names[0];
    show();
  };
  const show = () => {
    const s = sample(), values = s.columns[column.value];
    // One scale for all responses of the run, so that two of them can be compared.
    const everything = samples().flatMap((other) => other.columns[column.value] ?? []).filter((x) => x !== null);
    const limit = quantile(everything, 0.98), strong = quantile(values.map((x) => x ?? 0), 0.9);
    area.replaceChildren(...s.tokens.map((text, k) => {
      const isStrong = values[k] && Math.abs(values[k]) >= strong;
      const token = element("span", isStrong ? "token strong" : "token", text === "" ? "␀" : text.replace(/\n/g, "⏎\n"));
      token.style.background = tint(values[k], limit);
      token.tabIndex = k === 0 ? 0 : -1;
      token.dataset.k = k;
      token.title = numbers(s, k, ":", "\n");
      return token;
    }));
    byId("token-question").textContent = s.prompt;
    byId("token-low").textContent = `−${limit.toPrecision(3)}`;
    byId("token-high").textContent = `+${limit.toPrecision(3)}`;
    byId("token-name").textContent = `${COLUMNS[column.value]}; underlined: strongest tenth of this response`;
    detail.textContent = `This response: ${facts(s)}.`;
  };
  const tell = (event) => {
    const k = event.target.dataset.k, s = sample();
    if (k === undefined) return;
    detail.textContent = `Token ${Number(k) + 1} of ${s.tokens.length} “${s.tokens[k]}”: ${numbers(s, k, "", ", ")}`;
    if (event.type !== "focusin") return;
    area.querySelector("[tabindex='0']").tabIndex = -1; // one stop of the tab key for the whole response
    event.target.tabIndex = 0;
  };
  const move = (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity };
    const step = steps[event.key], k = Number(event.target.dataset.k);
    if (step === undefined || Number.isNaN(k)) return;
    event.preventDefault();
    area.children[Math.max(0, Math.min(area.children.length - 1, k + step))].focus();
  };
  area.addEventListener("mouseover", tell);
  area.addEventListener("focusin", tell);
  area.addEventListener("click", (event) => { if (event.target.dataset.k) event.target.focus(); });
  area.addEventListener("keydown", move);
  run.onchange = listSamples;
  pick.onchange = listColumns;
  column.onchange = show;
  listSamples();
}

if (byId("samples")) {
  const runs = parsed(byId("samples"));
  setUpSides(runs);
  setUpTokens(runs);
}
document.documentElement.dataset.ready = document.querySelectorAll(".plot .main-svg").length ? "yes" : "no-plots";
