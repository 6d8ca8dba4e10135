// Pictures over all steps: the timeline, acceptance, passages. One path per colour, however many steps there are.

const LEAST_COLUMNS = 24;

/** Columns that stay readable: the height that all but a few outliers need. */
function reach(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const most = sorted[sorted.length - 1] || 1;
  const usual = sorted[Math.floor(0.95 * (sorted.length - 1))] || most;
  return most > 2.5 * usual ? 1.6 * usual : most;
}

/** Add a bar to a path: column x, from height a to b of 100, downwards from the top. */
const bar = (x, a, b, gap) => `M${x + gap} ${a.toFixed(2)}H${x + 1 - gap}V${b.toFixed(2)}H${x + gap}Z`;

function drawTimeline(box) {
  const count = steps.length;
  const columns = Math.max(count, LEAST_COLUMNS);
  const gap = columns > 400 ? 0 : 0.08;
  const mostTokens = Math.max(1, ...steps.map((step) => step.tokens.length));
  const mostSeconds = reach(steps.map(total));
  const wrote = { accepted: "", own: "" };
  const took = Object.fromEntries(PHASES.map((phase) => [phase, ""]));
  const breaks = [];
  steps.forEach((step, s) => {
    const right = Math.min(step.path.length, step.tokens.length);
    const unit = 100 / mostTokens;
    const middle = 100 - unit * right;
    if (right) wrote.accepted += bar(s, middle, 100, gap);
    if (step.tokens.length > right) wrote.own += bar(s, 100 - unit * step.tokens.length, middle, gap);
    let y = 0;
    for (const phase of PHASES) {
      const end = Math.min(100, y + (100 * step.seconds[phase]) / mostSeconds);
      if (end - y > 0.01) took[phase] += bar(s, y, end, gap);
      y = end;
    }
    if (total(step) > mostSeconds) breaks.push(s);
  });
  const view = { viewBox: `0 0 ${columns} 100`, preserveAspectRatio: "none", "aria-hidden": true };
  const above = svg("svg", { ...view, class: "columns" },
    svg("path", { d: wrote.accepted, class: "accepted-bar" }), svg("path", { d: wrote.own, class: "own-bar" }));
  const cuts = breaks.map((s) => bar(s, 92, 95, 0)).join("");
  const below = svg("svg", { ...view, class: "columns" },
    ...PHASES.map((phase) => svg("path", { d: took[phase], "data-phase": phase })), svg("path", { d: cuts, class: "cut" }));
  const cursor = el("div", { class: "cursor", "aria-hidden": true });
  const plot = el("div", { class: "plot", role: "img" }, above, el("div", { class: "axis" }), below, cursor);
  const others = breaks.filter((s) => s > 0).length;
  const cut = [breaks[0] === 0 ? "the first step, which also reads the prompt," : "", others ? plural(others, "longer step") : ""].filter(Boolean);
  const longer = cut.length ? `; ${cut.join(" and ")} cut short, with a gap` : "";
  plot.setAttribute("aria-label", `Timeline of ${plural(count, "step")}. The table below has the same figures.`);
  const at = (event) => {
    const area = plot.getBoundingClientRect();
    return Math.min(count - 1, Math.max(0, Math.floor(((event.clientX - area.left) / area.width) * columns)));
  };
  plot.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") choose(at(event), null, "pointer"); });
  plot.addEventListener("click", (event) => { chosen.held = true; choose(at(event)); });
  const key = (attributes, name) => el("li", {}, el("i", { class: "key", ...attributes }), name);
  const reading = el("p", { class: "timeline-reading" });
  watchers.push(() => {
    cursor.style.insetInlineStart = `${(100 * chosen.step) / columns}%`;
    cursor.style.inlineSize = `max(3px, ${100 / columns}%)`;
    const step = steps[chosen.step];
    reading.textContent = `Step ${chosen.step + 1}: ${plural(step.tokens.length, "token")} in ${time(total(step))}. ${sentence(chosen.step)}`;
  });
  box.append(
    el("p", { class: "axis-name" }, `tokens written (up to ${mostTokens})`), plot,
    el("p", { class: "axis-name" }, `time (up to ${time(mostSeconds)}${longer})`), slider("Step of the timeline"), reading,
    el("ul", { class: "legend" }, key({ "data-bar": "accepted" }, "accepted guesses"), key({ "data-bar": "own" }, "the target's own token"),
      ...PHASES.map((phase) => key({ "data-phase": phase }, `${phase} ${time(summary.seconds[phase])} in all`))));
}

/** The same as a table, built when it is first opened. */
function stepTable(details) {
  details.addEventListener("toggle", () => {
    const box = details.querySelector(".wide");
    if (!details.open || box.firstChild) return;
    const head = ["step", "guesses", "accepted", "tokens", "text", ...PHASES].map((name) => el("th", { scope: "col" }, name));
    const rows = steps.map((step, s) => el("tr", {},
      el("th", { scope: "row" }, String(s + 1)),
      ...[step.tree.tokens.length, step.path.length, step.tokens.length].map((value) => el("td", {}, String(value))),
      el("td", { class: "token" }, trace.pieces.slice(firstToken[s], firstToken[s] + step.tokens.length).join("").replace(/\n/g, "↵")),
      ...PHASES.map((phase) => el("td", {}, time(step.seconds[phase])))));
    box.append(el("table", { class: "figures" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows)));
  }, { once: false });
}

/** A row with a bar: how much of `whole` (of which the largest is `most`) is `part`. */
function meterRow(name, part, whole, most, words) {
  const outer = el("i", { class: "whole" });
  const inner = el("i", { class: "share" });
  outer.style.inlineSize = `${(100 * whole) / most}%`;
  inner.style.inlineSize = `${whole ? (100 * part) / whole : 0}%`;
  outer.append(inner);
  return el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "bar" }, el("span", { "aria-hidden": true }, outer)), el("td", {}, words));
}

function drawAcceptance(box) {
  if (!summary.by_drafter.length) {
    box.append(el("p", {}, "Nobody guessed in this text."));
    return;
  }
  const table = (caption, rows) => el("table", { class: "meters" }, el("caption", {}, caption), el("tbody", {}, ...rows));
  const share = (row) => `${row.accepted} of ${row.verified} · ${percent(row.accepted / row.verified)}`;
  const deepest = Math.max(...summary.by_depth.map((row) => row.verified));
  const depths = summary.by_depth.map((row, d) => meterRow(`${d + 1}`, row.accepted, row.verified, deepest, share(row)));
  const most = Math.max(...summary.by_drafter.map((row) => row.verified));
  const drafters = summary.by_drafter.map((row) => {
    const shown = meterRow(row.name, row.accepted, row.verified, most, share(row));
    if (aboutDrafter(row.name)) shown.firstChild.append(el("small", {}, aboutDrafter(row.name)));
    return shown;
  });
  box.append(table("By place in the draft (1: the first guess)", depths), table("By drafter (a shared guess counts for each)", drafters));
}

function drawPassages(box) {
  const found = summary.passages;
  if (found.length < 2 || !summary.owners.some(({ tokens }) => tokens)) {
    document.getElementById("passages-section").hidden = true;
    return;
  }
  const most = Math.max(...found.map((passage) => passage.tokens_per_step));
  const rows = found.map((passage) => {
    const row = meterRow("", passage.tokens_per_step, passage.tokens_per_step, most, `${passage.tokens_per_step.toFixed(1)} tokens per step`);
    const jump = () => { chosen.held = true; choose(stepOfToken[passage.start], passage.start); document.querySelector(".t.current").focus(); };
    row.firstChild.append(el("button", { type: "button", class: "link", onclick: jump }, passage.begins || "…"), el("small", {}, `${passage.kind}, ${plural(passage.end - passage.start, "token")}`));
    return row;
  });
  box.append(el("table", { class: "meters passages" }, el("caption", { class: "unseen" }, "Passages and their tokens per step"), el("tbody", {}, ...rows)));
}
