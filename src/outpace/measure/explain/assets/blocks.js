// The KV cache of this text: blocks of slots as they fill, are shared and are given back.

const MOST_BLOCKS = 150; // drawn; of longer texts the latest
const KINDS = {
  cached: "known from an earlier text",
  prompt: "prompt",
  output: "the text so far",
  fresh: "kept by this step",
  forgotten: "wrong guesses, forgotten",
};

/** The table after step s: its blocks, and whether they were all given back with the end of the text. */
function tableAfter(s) {
  const step = steps[s];
  const ended = s === steps.length - 1 && !step.blocks?.length && trace.finish_reason !== "cancelled";
  return { blocks: ended ? (steps[s - 1]?.blocks ?? []) : (step.blocks ?? []), refCounts: ended ? [] : (step.ref_counts ?? []), ended };
}

/** What lies in a slot after step s, or null. A slot's number is its token's position. */
function slotKind(slot, s) {
  const step = steps[s];
  const length = step.position + step.path.length;
  if (slot >= length) return slot < step.position + step.tree.tokens.length ? "forgotten" : null;
  if (slot >= step.position - step.num_pending && (s > 0 || slot >= trace.stats.cached_tokens)) {
    return s === 0 && slot < numPrompt ? "prompt" : "fresh";
  }
  return slot < trace.stats.cached_tokens ? "cached" : slot < numPrompt ? "prompt" : "output";
}

function drawBlock(place, s, { blocks, refCounts, ended }, before) {
  const size = trace.kv.block_size;
  const across = size % 8 === 0 ? 8 : Math.ceil(Math.sqrt(size));
  const paths = { empty: "" };
  let filled = 0;
  for (let offset = 0; offset < size; offset++) {
    const kind = blocks[place] === -1 ? null : slotKind(place * size + offset, s);
    if (kind && kind !== "forgotten") filled++;
    const [x, y] = [8 * (offset % across), 8 * Math.floor(offset / across)];
    const inset = kind === "forgotten" ? 1.5 : kind ? 0.5 : 3;
    paths[kind ?? "empty"] = `${paths[kind ?? "empty"] ?? ""}M${x + inset} ${y + inset}h${8 - 2 * inset}v${8 - 2 * inset}h${-(8 - 2 * inset)}z`;
  }
  const height = 8 * Math.ceil(size / across);
  const picture = svg("svg", { viewBox: `0 0 ${8 * across} ${height}`, "aria-hidden": true },
    ...Object.entries(paths).map(([kind, d]) => svg("path", { d, "data-slot": kind })));
  const id = blocks[place];
  const texts = refCounts[place] ?? 1;
  const isGhost = id === undefined;
  const state = id === -1 ? "freed" : isGhost ? "given back" : ended ? (filled === size ? "findable" : "given back")
    : texts > 1 ? `in ${texts} texts` : filled === size ? "full" : `${filled}/${size}`;
  const changed = id >= 0 && before !== undefined && before !== id;
  return el("li", { class: `block ${state.replace(/ .*/, "").replace(/^\d.*/, "filling")}${changed ? " changed" : ""}` },
    picture, el("span", {}, isGhost ? "–" : id === -1 ? "–" : `#${id}`, el("small", {}, changed ? `${state}, new` : state)));
}

function drawBlocks(box) {
  if (!steps.some((step) => step.blocks?.length)) {
    document.getElementById("blocks-section").hidden = true;
    return;
  }
  const size = trace.kv.block_size;
  document.getElementById("block-size").textContent = size;
  const says = el("p", { class: "blocks-reading" });
  const list = el("ol", { class: "blocks" });
  const note = el("p", { class: "hint" });
  const legend = el("ul", { class: "legend" }, ...Object.entries(KINDS).map(([kind, name]) =>
    el("li", { "data-kind": kind }, svg("svg", { viewBox: "0 0 8 8", class: "key", "aria-hidden": true },
      svg("path", { d: kind === "forgotten" ? "M1.5 1.5h5v5h-5z" : "M.5 .5h7v7h-7z", "data-slot": kind })), name)));
  if (!trace.stats.cached_tokens) legend.querySelector("[data-kind=cached]").remove();
  box.append(slider("Step of the cache"), says, list, note, legend);
  const show = () => {
    const s = chosen.step;
    const step = steps[s];
    const table = tableAfter(s);
    const written = step.num_pending + step.tree.tokens.length;
    const lost = step.tree.tokens.length - step.path.length;
    const reach = Math.ceil((step.position + step.tree.tokens.length) / size);
    const count = Math.max(table.blocks.length, reach);
    const start = Math.max(0, count - MOST_BLOCKS);
    const previous = s > 0 ? steps[s - 1].blocks ?? [] : [];
    list.replaceChildren(...Array.from({ length: count - start }, (_, i) => drawBlock(start + i, s, table, previous[start + i])));
    note.textContent = start ? `The first ${plural(start, "block")} of this text are not drawn.` : "";
    const shared = table.refCounts.filter((count) => count > 1).length;
    const freed = table.blocks.filter((block) => block === -1).length;
    says.textContent = [
      `Step ${s + 1} wrote ${plural(written, "slot")}: ${written - lost} kept${lost ? `, ${lost} forgotten` : ""}.`,
      table.ended ? "Then the text ended and gave its blocks back; full ones can still be found by a text that begins alike, until their room is needed."
        : `The text holds ${plural(table.blocks.length - freed, "block")}${shared ? `, ${shared} together with other texts` : ""}${freed ? `; ${freed} freed outside the window` : ""}.`,
    ].join(" ");
  };
  // Only while it is in sight: a long text has many blocks.
  let inSight = false;
  new IntersectionObserver(([entry]) => { inSight = entry.isIntersecting; if (inSight) show(); }, { rootMargin: "200px" }).observe(box);
  watchers.push(() => { if (inSight) show(); });
}
