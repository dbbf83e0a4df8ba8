// Equations: KaTeX on what the Markdown extension arithmatex has marked, \( \) in lines and \[ \] in blocks.
for (const box of document.querySelectorAll(".arithmatex")) {
  const text = box.textContent.trim();
  katex.render(text.slice(2, -2), box, { displayMode: text.startsWith("\\["), throwOnError: false });
}
