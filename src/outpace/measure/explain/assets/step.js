// One step: its tree with what became of each guess, its times, and what the router expected.

const GLYPHS = { accepted: "✓", rejected: "✗", behind: "·", target: "◆" };
const FATES = { accepted: "accepted", rejected: "rejected", behind: "after a rejected guess", target: "the target's own" };

/** One token of a tree. */
function chip(id, fate, names, note, title) {
  return el(
    "span", { class: `chip ${fate}`, "data-owner": owner(names), title },
    el("span", { class: "glyph", "aria-hidden": true }, GLYPHS[fate]),
    el("span", { class: "token" }, word(id)),
    el("span", { class: "unseen" }, ` (${FATES[fate]}${names.length ? `, drafted by ${ownerName(names)}` : ""})`),
    note ? el("span", { class: "note" }, note) : null,
  );
}

/** The tree as nested lists: guesses in a row follow one another, a list is a choice between ways on. */
function drawTree(step, mostBehind = Infinity) {
  const tree = step.tree;
  const children = childrenOf(tree);
  const fate = fates(step);
  const last = step.path.length ? step.path[step.path.length - 1] : -1;
  const node = (n) => {
    const target = step.target_tokens[n + 1];
    const then = target >= 0 ? `; after it the target writes ${quoted(target)}` : "";
    const title = `${FATES[fate[n]]}; drafted by ${ownerName(tree.sources[n])}, who gave it ${percent(tree.confidence[n])}${then}`;
    return chip(tree.tokens[n], fate[n], tree.sources[n], percent(tree.confidence[n]), title);
  };
  const own = () => {
    const cut = step.tokens.length <= step.path.length;
    const title = cut ? "the target's own token; a stop condition cut it off" : "the target's own token";
    return chip(step.target_tokens[last + 1], "target", [], cut ? "cut off" : null, title);
  };
  // One row: a node and those after it, as long as there is one way on. Loops, not recursion, along a chain.
  const row = (start) => {
    const item = el("li");
    const line = el("div", { class: "row" });
    item.append(line);
    let at = start;
    for (let behind = 0; ; ) {
      line.append(at === "own" ? own() : node(at));
      if (fate[at] === "behind" && ++behind === mostBehind) {
        line.append(el("span", { class: "more" }, "…"));
        return item;
      }
      if (at === "own") return item;
      const ways = [...children[at + 1]].sort((a, b) => (fate[a] === "accepted" ? -1 : 0) - (fate[b] === "accepted" ? -1 : 0));
      if (at === last) ways.unshift("own");
      if (!ways.length) return item;
      if (ways.length > 1) {
        item.append(el("ul", {}, ...ways.map(row)));
        return item;
      }
      at = ways[0];
    }
  };
  const first = [...children[0]].sort((a, b) => (fate[a] === "accepted" ? -1 : 0) - (fate[b] === "accepted" ? -1 : 0));
  if (last < 0) first.unshift("own");
  return el("ul", { class: "tree" }, ...first.map(row));
}

/** A bar of the four phases, with their times. */
function drawTimes(step) {
  const whole = total(step) || 1;
  const bar = el("div", { class: "phase-bar", "aria-hidden": true });
  const list = el("dl", { class: "phase-times" });
  for (const phase of PHASES) {
    const part = el("i", { "data-phase": phase });
    part.style.flexGrow = step.seconds[phase] / whole;
    bar.append(part);
    list.append(el("div", {}, el("dt", { "data-phase": phase }, phase), el("dd", {}, time(step.seconds[phase]))));
  }
  const shared = step.batch > 1 ? `, shared by ${step.batch} texts` : "";
  return [el("h4", {}, `Time: ${time(total(step))}${shared}`), bar, list];
}

/** What the router expected and why it chose so; nothing where no router was. */
function drawForecast(step) {
  const forecast = step.forecast;
  if (!forecast) return [];
  const seconds = forecast.seconds;
  const fact = (name, expected, found) =>
    el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, expected), el("td", {}, found));
  const pass = step.seconds.forward + step.seconds.verify;
  const rows = [fact("tokens written", forecast.tokens.toFixed(1), String(step.tokens.length))];
  if (seconds.pass > 0) rows.push(fact("this pass", time(seconds.pass), time(pass)));
  if (seconds.plain > 0) rows.push(fact("without a draft", time(seconds.plain), "–"));
  for (const [name, asked] of Object.entries(forecast.drafters)) {
    const right = step.path.filter((node) => step.tree.sources[node].includes(name)).length;
    rows.push(fact(`right by ${name}`, `${asked.expected.toFixed(1)} (of ${asked.proposed} offered)`, String(right)));
  }
  const head = el("tr", {}, el("th", { scope: "col" }, "The router"), el("th", { scope: "col" }, "expected"), el("th", { scope: "col" }, "came"));
  const reason = seconds.plain > 0 && step.tree.tokens.length
    ? `${forecast.reason}: ${(forecast.tokens / (seconds.pass + seconds.draft)).toFixed(0)} tokens/s expected, against ${(1 / seconds.plain).toFixed(0)} without a draft`
    : forecast.reason;
  return [
    el("h4", {}, `Why: ${reason}`),
    el("table", { class: "forecast" }, el("thead", {}, head), el("tbody", {}, ...rows)),
  ];
}

/** The chosen token: who drafted it, and how sure the target was. */
function drawToken(token, s) {
  const step = steps[s];
  const names = trace.sources[token];
  const depth = token - firstToken[s];
  const how = names.length
    ? `Guessed by ${ownerName(names)} (${percent(step.tree.confidence[step.path[depth]])} sure), and right.`
    : step.tree.tokens.length ? "Written by the target itself." : "Written by the target; there was no guess.";
  const box = el("div", { class: "chosen-token" },
    el("p", {}, el("strong", { class: "token" }, word(trace.tokens[token], trace.pieces[token])), " ", how));
  const sure = trace.logprobs?.[token];
  if (sure) {
    const top = sure[1].slice(0, 3);
    if (!top.some(([id]) => id === trace.tokens[token])) top.push([trace.tokens[token], sure[0]]);
    const list = el("ul", { class: "odds", "aria-label": "What the target thought of it" });
    for (const [id, logprob] of top) {
      const share = Math.exp(logprob);
      const meter = el("i");
      meter.style.inlineSize = `${100 * share}%`;
      list.append(el("li", { class: id === trace.tokens[token] ? "own" : "" },
        el("span", { class: "token" }, word(id)), el("span", { class: "meter", "aria-hidden": true }, meter), el("span", {}, percent(share))));
    }
    box.append(list);
  }
  return box;
}

function stepPanel(panel) {
  const go = (by) => () => { chosen.held = true; choose(chosen.step + by); };
  const back = el("button", { type: "button", "aria-label": "Previous step", onclick: go(-1) }, "←");
  const on = el("button", { type: "button", "aria-label": "Next step", onclick: go(1) }, "→");
  const title = el("h3");
  const pin = el("button", { type: "button", class: "pin", onclick: () => hold(!chosen.held) }, "hold");
  const body = el("div", { class: "step-body" });
  panel.append(el("div", { class: "step-head" }, title, pin, back, on), slider("Step"), body);
  watchers.push(() => {
    const s = chosen.step;
    const step = steps[s];
    title.textContent = `Step ${(s + 1).toLocaleString("en")} of ${steps.length.toLocaleString("en")}`;
    pin.textContent = chosen.held ? "held" : "hold";
    pin.setAttribute("aria-pressed", chosen.held);
    back.disabled = s === 0;
    on.disabled = s === steps.length - 1;
    body.replaceChildren(
      chosen.token >= 0 ? drawToken(chosen.token, stepOfToken[chosen.token] ?? s) : "",
      el("p", { class: "sentence" }, sentence(s)),
      drawTree(step), ...drawForecast(step), ...drawTimes(step),
    );
  });
}

/** A step of this very text, as an illustration of the idea. */
function drawExample(box) {
  if (summary.example === null) return;
  const step = steps[summary.example];
  const right = step.path.map((node) => word(step.tree.tokens[node])).join("");
  const last = step.path[step.path.length - 1];
  const wrong = step.tree.parents.indexOf(last);
  const before = trace.pieces.slice(Math.max(0, firstToken[summary.example] - 8), firstToken[summary.example]).join("");
  box.append(el("figure", {},
    el("p", { class: "before" }, `…${before.replace(/\s+/g, " ")}`),
    drawTree(step, 2),
    el("figcaption", {}, `Step ${summary.example + 1} of this text: the guesses “${right.trim()}” were right (✓). Then came `,
      `${quoted(step.tree.tokens[wrong])} (✗), but the target writes ${quoted(step.target_tokens[last + 1])} (◆), so what was guessed after it (·) `,
      `is void. One pass, ${plural(step.tokens.length, "token")}. The percentages are the drafter's own confidence.`)));
}
