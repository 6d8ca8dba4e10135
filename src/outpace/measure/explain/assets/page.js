// Put everything in its place.

function themeButton(button) {
  const names = ["system", "light", "dark"];
  const root = document.documentElement;
  const set = (name) => {
    if (name === "system") delete root.dataset.theme;
    else root.dataset.theme = name;
    button.textContent = `Theme: ${name}`;
  };
  const remember = (name) => { try { localStorage.setItem("outpace-theme", name); } catch { /* not allowed for this file */ } };
  let name = "system";
  try { name = localStorage.getItem("outpace-theme") ?? name; } catch { /* not allowed for this file */ }
  set(names.includes(name) ? name : "system");
  button.addEventListener("click", () => {
    name = names[(names.indexOf(root.dataset.theme ?? "system") + 1) % names.length];
    set(name);
    remember(name);
  });
}

function drawFacts(list) {
  const facts = {
    model: trace.model, strategy: trace.strategy, temperature: trace.temperature, seed: trace.seed, ops: trace.ops, threads: trace.threads,
    "keys and values": trace.kv.format, "ended by": trace.finish_reason, "prompt tokens": numPrompt,
    "time to first token": time(trace.stats.prefill_seconds), Outpace: trace.outpace,
  };
  for (const [name, value] of Object.entries(facts)) {
    if (value !== undefined) list.append(el("div", {}, el("dt", {}, name), el("dd", {}, String(value))));
  }
}

const part = (id) => document.getElementById(id);
themeButton(part("theme"));
drawFacts(part("facts"));
drawPrompt(part("prompt"));
if (trace.tokens.length && steps.length) {
  drawLegend(part("legend"));
  drawExample(part("example"));
  stepPanel(part("step"));
  drawText(part("text"));
  drawTimeline(part("timeline"));
  stepTable(part("all-steps"));
  drawAcceptance(part("acceptance"));
  drawPassages(part("passages"));
  drawBlocks(part("blocks"));
  const start = summary.example ?? steps.findIndex((step) => step.path.length);
  choose(Math.max(0, start), null, "start");
} else {
  for (const section of document.querySelectorAll("#text-section ~ section, #text-section")) section.hidden = true;
}
document.documentElement.dataset.ready = "";
