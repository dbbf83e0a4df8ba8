"use strict";
// One pair at a time; every choice is in the browser's storage at once, so closing the page loses nothing.
(() => {
  const at = (id) => document.getElementById(id);
  const { id, rows } = JSON.parse(at("sheet").textContent);
  const key = `lit-rlhf-sheet-${id}`;
  let state = { annotator: "", place: 0, answers: {} };
  try { state = { ...state, ...JSON.parse(localStorage.getItem(key) || "{}") }; } catch { /* a fresh start */ }
  state.answers = Object.assign(Object.create(null), state.answers);

  const save = () => { try { localStorage.setItem(key, JSON.stringify(state)); } catch { at("progress").title = "not kept"; } };
  const done = () => rows.filter((row) => state.answers[row.pair]?.answer).length;

  function show() {
    state.place = Math.max(0, Math.min(state.place, rows.length - 1));
    const row = rows[state.place] || { prompt: "", left: "", right: "" };
    for (const part of ["prompt", "left", "right"]) at(part).textContent = row[part];
    const given = state.answers[row.pair] || {};
    at("comment").value = given.comment || "";
    for (const button of document.querySelectorAll("[data-choice]"))
      button.setAttribute("aria-pressed", String(button.dataset.choice === given.answer));
    at("progress").textContent = `Pair ${state.place + 1} of ${rows.length}; ${done()} judged`;
  }

  function choose(answer) {
    const row = rows[state.place];
    if (!row) return;
    state.answers[row.pair] = { answer, comment: at("comment").value };
    const open = rows.findIndex((each, place) => place > state.place && !state.answers[each.pair]?.answer);
    const first = rows.findIndex((each) => !state.answers[each.pair]?.answer);
    state.place = open >= 0 ? open : first >= 0 ? first : Math.min(state.place + 1, rows.length - 1);
    save();
    show();
  }

  function back() {
    state.place -= 1;
    save();
    show();
  }

  const cell = (text) => `"${String(text).replace(/"/g, '""')}"`;
  const line = (cells) => cells.map(cell).join(",") + "\r\n";

  function download() {
    const lines = rows.filter((row) => state.answers[row.pair]?.answer).map((row) => {
      const { answer, comment } = state.answers[row.pair];
      return line([row.pair, answer, comment || "", state.annotator]);
    });
    const text = line(["pair", "answer", "comment", "annotator"]) + lines.join("");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    const name = state.annotator.trim().replace(/[^\p{L}\p{N}]+/gu, "-") || "answered";
    link.download = `${name}-${id}.csv`;
    link.click();
  }

  const keys = { 1: "left", ArrowLeft: "left", 2: "tie", ArrowDown: "tie", 3: "right", ArrowRight: "right" };
  addEventListener("keydown", (event) => {
    if (event.target.closest?.("input, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowUp") back();
    else if (keys[event.key]) choose(keys[event.key]);
    else return;
    event.preventDefault();
  });
  for (const button of document.querySelectorAll("[data-choice]")) button.onclick = () => choose(button.dataset.choice);
  at("back").onclick = back;
  at("download").onclick = download;
  at("annotator").value = state.annotator;
  at("annotator").oninput = () => { state.annotator = at("annotator").value; save(); };
  at("comment").oninput = () => {
    const row = rows[state.place];
    if (row && state.answers[row.pair]) { state.answers[row.pair].comment = at("comment").value; save(); }
  };
  show();
  document.documentElement.dataset.ready = "yes";
})();
