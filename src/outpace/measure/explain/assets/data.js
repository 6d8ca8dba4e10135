// The trace, and small questions about it.

const { trace, summary } = JSON.parse(document.getElementById("data").textContent);
const steps = trace.steps;
const PHASES = ["draft", "forward", "verify", "commit"];
const numPrompt = trace.prompt.length;

// steps[s] wrote the output tokens [firstToken[s], firstToken[s + 1]); a stop string may have cut some of them off.
const firstToken = steps.map((step) => step.position - numPrompt);
const stepOfToken = new Array(trace.tokens.length);
steps.forEach((step, s) => {
  const end = Math.min(firstToken[s] + step.tokens.length, trace.tokens.length);
  for (let i = firstToken[s]; i < end; i++) stepOfToken[i] = s;
});

const ownerOf = new Map(summary.owners.map((owner, o) => [owner.names.join("\n"), o]));
const MOST_OWNERS = 7; // colours; rarer owners share the last
/** The colour number of those who drafted a token, or "target". */
const owner = (names) => (names.length ? Math.min(ownerOf.get(names.join("\n")), MOST_OWNERS - 1) : "target");
const ownerName = (names) => (names.length ? names.join(" + ") : "the target");

/** The first sentence of what a drafter is; empty for one of the caller's own. */
const aboutDrafter = (name) => summary.guessers.find((row) => row.name === name)?.about.split(". ")[0] ?? "";

/** An element. Text goes in as text, never as HTML. */
function el(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const percent = (share) => (share > 0 && share < 0.01 ? "< 1 %" : `${Math.round(100 * share)} %`);
const total = (step) => PHASES.reduce((sum, phase) => sum + step.seconds[phase], 0);

/** Seconds in the unit that a reader wants. */
function time(seconds) {
  if (seconds >= 1) return `${seconds.toFixed(2)} s`;
  if (seconds >= 0.1) return `${(1e3 * seconds).toFixed(0)} ms`;
  return seconds >= 1e-4 ? `${(1e3 * seconds).toFixed(1)} ms` : `${(1e6 * seconds).toFixed(0)} µs`;
}

/** A token's text for a label: line ends made visible, and a mark for part of a character, which has no text. */
function word(id, text = trace.texts?.[id]) {
  if (text === undefined) return `#${id}`;
  if (text === "") return "▪";
  return text.replace(/\n/g, "↵").replace(/\t/g, "⇥");
}
/** A token's text within a sentence. */
function quoted(id, text) {
  const shown = word(id, text).trim();
  return shown === "▪" ? "part of a character" : shown ? `“${shown}”` : "a space";
}

/** The drafts' nodes by parent: children[0] are the root's, children[n + 1] those of node n. */
function childrenOf(tree) {
  const children = Array.from({ length: tree.tokens.length + 1 }, () => []);
  tree.parents.forEach((parent, node) => children[parent + 1].push(node));
  return children;
}

/** What became of each node: accepted, rejected (its turn came, and it was wrong), or after a rejected one. */
function fates(step) {
  const accepted = new Set(step.path);
  return step.tree.parents.map((parent, node) =>
    accepted.has(node) ? "accepted" : parent < 0 || accepted.has(parent) ? "rejected" : "behind",
  );
}

/** The step in one sentence. */
function sentence(s) {
  const step = steps[s];
  const drafted = step.tree.tokens.length;
  const wrote = plural(step.tokens.length, "token");
  const reading = step.num_pending > 1 ? `The target read ${plural(step.num_pending, "waiting token")}. ` : "";
  if (!drafted) return `${reading}Nobody guessed; the target wrote ${wrote} itself.`;
  const names = [...new Set(step.tree.sources.flat())].join(" + ");
  const right = step.path.length;
  const kept = right === drafted ? (right === 1 ? "and it was right" : "and all were right") : right ? `${right} right` : "none right";
  return `${reading}${names} guessed ${plural(drafted, "token")}, ${kept}. The step wrote ${wrote}.`;
}

// The chosen step. Everything that shows it is told when it changes.
const chosen = { step: 0, token: 0, held: false };
const watchers = [];
/** Choose a step, and of its tokens one. by: "pointer" while only hovering, else "hand". */
function choose(s, token = null, by = "hand") {
  if (by === "pointer" && chosen.held) return;
  const step = Math.max(0, Math.min(steps.length - 1, s));
  const own = token ?? Math.min(firstToken[step], trace.tokens.length - 1);
  if (step === chosen.step && own === chosen.token && by === "pointer") return;
  Object.assign(chosen, { step, token: own });
  for (const watch of watchers) watch(by);
}
function hold(held) {
  chosen.held = held;
  for (const watch of watchers) watch("hand");
}

/** A slider over all steps, kept in tune with the chosen one. */
function slider(label) {
  const input = el("input", {
    type: "range", min: 1, max: steps.length, step: 1, value: 1, "aria-label": label,
    oninput: () => { chosen.held = true; choose(Number(input.value) - 1); },
  });
  const show = () => {
    input.value = chosen.step + 1;
    input.setAttribute("aria-valuetext", `step ${chosen.step + 1} of ${steps.length}: ${sentence(chosen.step)}`);
  };
  watchers.push(show);
  return input;
}
