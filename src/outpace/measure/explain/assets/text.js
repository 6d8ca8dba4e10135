// The text: each token marked by who drafted it; pointing, tapping and keys choose a token's step.

/** A token's class for what its text alone would not show. */
function look(text) {
  if (text === "") return " part";
  if (/^\n+$/.test(text)) return " line-end";
  return /^<\|?[\w ]+\|?>$/.test(text) ? " control" : "";
}

function drawText(box) {
  const spans = trace.pieces.map((text, i) =>
    el("span", { class: `t${look(text)}`, "data-owner": owner(trace.sources[i]), tabindex: -1 }, text));
  const index = new Map(spans.map((span, i) => [span, i]));
  const tokenAt = (event) => index.get(event.target.closest?.(".t"));
  box.replaceChildren();
  spans.forEach((span, i) => {
    // Where other marks begin, the space before the word keeps out of them.
    const space = /^ (?=\S)/.test(trace.pieces[i]) && (!i || span.dataset.owner !== spans[i - 1].dataset.owner);
    if (space) {
      span.textContent = trace.pieces[i].slice(1);
      box.append(" ");
    }
    box.append(span);
  });

  let current = null;
  let marked = [];
  const show = (by) => {
    marked.forEach((span) => span.classList.remove("in-step"));
    const s = chosen.step;
    const end = Math.min(firstToken[s] + steps[s].tokens.length, spans.length);
    marked = spans.slice(firstToken[s], end);
    marked.forEach((span) => span.classList.add("in-step"));
    if (current) {
      for (const name of ["role", "aria-pressed", "aria-label"]) current.removeAttribute(name);
      current.tabIndex = -1;
      current.classList.remove("current");
    }
    current = spans[chosen.token];
    if (!current) return;
    // Only the token that has the keyboard's turn is a button: a screen reader reads the rest as plain text.
    current.tabIndex = 0;
    current.classList.add("current");
    current.setAttribute("role", "button");
    current.setAttribute("aria-pressed", chosen.held);
    current.setAttribute("aria-label", `${quoted(trace.tokens[chosen.token], trace.pieces[chosen.token])}, by ${ownerName(trace.sources[chosen.token])}, step ${s + 1}`);
    if (by === "hand") document.getElementById("announce").textContent = `Step ${s + 1}. ${sentence(s)}`;
  };
  watchers.push(show);

  box.addEventListener("pointerover", (event) => {
    const token = tokenAt(event);
    if (token !== undefined && event.pointerType === "mouse") choose(stepOfToken[token], token, "pointer");
  });
  box.addEventListener("click", (event) => {
    const token = tokenAt(event);
    if (token === undefined) return;
    chosen.held = !(chosen.held && chosen.token === token);
    choose(stepOfToken[token], token);
  });
  const keys = {
    ArrowLeft: () => chosen.token - 1,
    ArrowRight: () => chosen.token + 1,
    ArrowUp: () => firstToken[Math.max(0, chosen.step - 1)],
    ArrowDown: () => firstToken[Math.min(steps.length - 1, chosen.step + 1)],
    Home: () => 0,
    End: () => spans.length - 1,
  };
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" || event.key === " ") hold(!chosen.held);
    else if (event.key === "Escape") hold(false);
    else if (event.key in keys) {
      const token = Math.max(0, Math.min(spans.length - 1, keys[event.key]()));
      choose(stepOfToken[token], token);
      spans[token].focus();
    } else return;
    event.preventDefault();
  });
}

function drawLegend(list) {
  const own = trace.sources.filter((names) => !names.length).length;
  const entry = (mark, name, count, what) =>
    el("li", { title: what ?? false }, el("span", { class: "t swatch", "data-owner": mark, "aria-hidden": true }, "token"),
      ` ${name} `, el("span", { class: "count" }, count.toLocaleString("en")));
  list.append(entry("target", "the target itself", own));
  summary.owners.slice(0, MOST_OWNERS - 1).forEach(({ names, tokens }, o) => {
    const what = names.map((name) => (aboutDrafter(name) ? `${name}: ${aboutDrafter(name)}` : name)).join("; ");
    list.append(entry(o, names.join(" + "), tokens, what));
  });
  const rest = summary.owners.slice(MOST_OWNERS - 1);
  if (rest.length === 1) list.append(entry(MOST_OWNERS - 1, rest[0].names.join(" + "), rest[0].tokens));
  if (rest.length > 1) list.append(entry(MOST_OWNERS - 1, "others", rest.reduce((sum, { tokens }) => sum + tokens, 0)));
}

function drawPrompt(details) {
  const pieces = trace.prompt_pieces ?? [];
  const cached = trace.stats.cached_tokens;
  const known = cached ? `, ${cached.toLocaleString("en")} of them known from earlier texts` : "";
  details.querySelector("summary").textContent = `The prompt: ${plural(numPrompt, "token")}${known}`;
  if (pieces.length) details.querySelector(".prompt").textContent = pieces.join("");
  else details.hidden = true;
}
