// Asks for what is new every two seconds, and lays it out. What is chosen is in the address (#run=NAME&run=NAME&axis=time).

import { Charts, RUN_COLOURS } from "./charts.js";
import { byId, documentBesideSeed, element, show, suggestion, table, tile } from "./elements.js";

const EVERY_MS = 2000, ENDED_EVERY_MS = 15000, LIST_EVERY_MS = 10000, DOCUMENTS_EVERY_MS = 20000;
const CANNOT_BE_READ = { word: "cannot be read", tone: "bad" };
const charts = new Charts();
const looks = new Map(); // number -> { cursor, content, curves, problem, asked }
const chosen = { names: new Set(), focus: "", axis: "tokens" };
let list = [];
let documentsInSight = false;
const due = new Map(); // what -> when to ask again

// --- asking ---

async function ask(address) {
  const answer = await fetch(address, { cache: "no-store" });
  const content = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(content.error), { answered: true });
  return content;
}

// What failed is due at once: until it succeeds, nobody says that all is well.
async function whenDue(what, everyMs, work) {
  if ((due.get(what) ?? 0) > performance.now()) return;
  due.set(what, performance.now() + everyMs);
  try {
    await work();
  } catch (error) {
    due.delete(what);
    throw error;
  }
}

async function look(number) {
  const before = looks.get(number), ended = before && !before.problem && !before.content.live;
  await whenDue(number, ended ? ENDED_EVERY_MS : EVERY_MS - 100, () => lookNow(number, before));
}

async function lookNow(number, before) {
  try {
    const content = await ask(`/api/runs/${number}?after=${encodeURIComponent(before?.cursor ?? "")}`);
    const curves = Object.fromEntries(Object.entries(content.curves)
      .map(([name, part]) => [name, { columns: joined(before?.curves[name].columns, part) }]));
    looks.set(number, { cursor: content.cursor, content, curves, marks: content.marks ?? before.marks, problem: "" });
  } catch (error) {
    if (!error.answered) throw error;
    if (before) before.problem = error.message;
    list.find((run) => run.number === number).problem = error.message;
  }
}

// The rows before `part.start` stay, the others are replaced.
const joined = (columns, part) => Object.fromEntries(Object.entries(part.columns)
  .map(([name, values]) => [name, columns ? [...columns[name].slice(0, part.start), ...values] : values]));

async function poll() {
  try {
    if (!document.hidden) {
      await whenDue("list", LIST_EVERY_MS, readList);
      await Promise.all(drawn().map((run) => look(run.number)));
      layOut();
      if (documentsInSight) await readDocuments();
      say(`live, ${new Date().toLocaleTimeString()}`, "good");
    }
  } catch (error) {
    console.warn(error);
    say(`no answer from sbp dashboard (${error.message}); what is shown may be old`, "bad");
  }
  setTimeout(poll, EVERY_MS);
}

function say(text, tone) {
  byId("connection").textContent = text;
  byId("connection").className = tone;
}

// --- which runs ---

const drawn = () => list.filter((run) => chosen.names.has(run.name));
function focused() { // one that cannot be read has no details
  const read = drawn().filter((run) => looks.has(run.number));
  return read.find((run) => run.name === chosen.focus) ?? read[0] ?? drawn()[0];
}

async function readList() {
  const first = !list.length;
  list = (await ask("/api/runs")).runs;
  if (first && !chosen.names.size && list.length) chosen.names = new Set(atFirst().map(({ name }) => name));
  byId("chooser").hidden = list.length < 2;
  show(byId("list"), [list, [...chosen.names]], () => list.map(choice));
}

// The runs that were asked for; else one that lives, or the one that was made last.
function atFirst() {
  const asked = list.filter((run) => run.chosen).slice(0, RUN_COLOURS);
  if (asked.length) return asked;
  const worth = (run) => [run.brief?.state.tone === "good" && run.brief.state.word !== "done" ? 1 : 0, run.brief?.created ?? 0];
  return [...list].sort((a, b) => worth(b)[0] - worth(a)[0] || worth(b)[1] - worth(a)[1]).slice(0, 1);
}

function choice(run) {
  const box = element("input", { type: "checkbox", checked: chosen.names.has(run.name) });
  box.addEventListener("change", () => {
    chosen.names[box.checked ? "add" : "delete"](run.name);
    changed();
  });
  const { state, line } = run.brief
    ?? { state: run.problem ? CANNOT_BE_READ : { word: "not read yet", tone: "plain" }, line: run.problem };
  return element("label", {}, box, swatch(run), element("b", { textContent: run.name }),
    element("span", { className: state.tone, textContent: state.word }), element("span", { textContent: line }));
}

const colourOf = (run) => drawn().indexOf(run) % RUN_COLOURS;
const swatch = (run) => element("i", { className: chosen.names.has(run.name) ? `swatch run-${colourOf(run)}` : "swatch" });

function changed() {
  const address = new URLSearchParams([...chosen.names].map((name) => ["run", name]));
  if (chosen.axis !== "tokens") address.set("axis", chosen.axis);
  if (chosen.names.size > 1 && chosen.focus) address.set("details", chosen.focus);
  history.replaceState(null, "", `#${address}`);
  show(byId("list"), [list, [...chosen.names]], () => list.map(choice));
  Promise.all(drawn().map((run) => look(run.number))).then(layOut, () => {});
}

function readAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  chosen.names = new Set(address.getAll("run"));
  chosen.axis = address.get("axis") === "time" ? "time" : "tokens";
  chosen.focus = address.get("details") ?? "";
  document.querySelector(`#axis input[value=${chosen.axis}]`).checked = true;
}

// --- laying out ---

function layOut() {
  const runs = drawn(), known = runs.filter((run) => looks.has(run.number)), run = focused();
  const seen = run && looks.get(run.number);
  byId("nothing").hidden = Boolean(run);
  byId("nothing").firstChild.textContent = list.length ? "No run is chosen. Choose one or several under " : "There is no run yet. They will be under ";
  for (const id of ["overview", "details"]) byId(id).hidden = !seen;
  byId("curves").hidden = !known.length;
  byId("compared").hidden = runs.length < 2;
  byId("which").hidden = runs.length < 2;
  document.querySelector("main").classList.toggle("several", runs.length > 1);
  show(byId("focus"), [runs.map(({ name }) => name), run?.name], () => runs.map(({ name }) =>
    element("option", { textContent: name, value: name, selected: name === run.name })));
  const unreadable = runs.filter((each) => !looks.has(each.number) && each.problem);
  show(byId("unreadable"), unreadable.map(({ name, problem }) => `${name}: ${problem}`), (lines) =>
    lines.map((textContent) => element("p", { className: "bad", textContent })));
  if (seen) layOutRun(seen);
  if (known.length > 1) compare(known);
  if (known.length) {
    charts.draw(known.map((each) => ({ name: each.name, colour: colourOf(each), ...looks.get(each.number) })), chosen.axis);
  }
}

function layOutRun({ content, problem }) {
  const state = problem ? { ...CANNOT_BE_READ, sentence: `${problem} What is shown is older.` } : content.state;
  document.title = `${content.name}: ${state.word}`;
  byId("name").textContent = content.name;
  byId("name").title = content.dir;
  byId("word").textContent = state.word;
  byId("word").className = `badge ${state.tone}`;
  byId("sentence").textContent = state.sentence;
  byId("progress").value = content.progress;
  show(byId("problems"), [content.problems, content.all_well], ([problems]) => (problems.length ? problems.map(suggestion)
    : element("li", { className: content.all_well.tone, textContent: content.all_well.text })));
  show(byId("tiles"), content.tiles, (tiles) => tiles.map(tile));
  show(byId("roles"), content.roles, (roles) => table(roles, "No process has started yet."));
  show(byId("ledger"), content.ledger, (ledger) => table(ledger, ""));
  show(byId("reasons"), content.reasons, (reasons) => (reasons.rows.length ? table(reasons) : []));
  byId("equation").textContent = content.equation;
  show(byId("snapshots"), content.snapshots, (snapshots) => table(snapshots, "None has been tuned yet."));
  show(byId("events"), content.events, (events) => table(events, "Nothing yet."));
  byId("next").hidden = !content.advice.length;
  show(byId("advice"), content.advice, (advice) => advice.map(suggestion));
}

function compare(runs) {
  const contents = runs.map((run) => looks.get(run.number).content);
  const evaluations = runs.map((run) => looks.get(run.number).curves.evaluations.columns);
  const reached = Math.min(...evaluations.map(({ tokens }) => tokens.at(-1) ?? 0));
  const texts = ["", "run", "state"], titles = [...texts, ...Object.keys(contents[0].comparison), "held-out at equal tokens"];
  const rows = contents.map((content, i) => ["", content.name, { text: content.state.word, tone: content.state.tone },
    ...Object.values(content.comparison), lossAt(evaluations[i], reached)?.toFixed(3) ?? "–"]);
  const columns = titles.map((title) => ({ title, number: !texts.includes(title) }));
  show(byId("comparison"), { columns, rows, colours: runs.map(colourOf) }, (content) => {
    const made = table(content, "");
    [...made.tBodies[0].rows].forEach((row, i) => row.cells[0].append(swatch(runs[i])));
    return made;
  });
  byId("equal").textContent = reached ? `Equal tokens: ${reached.toLocaleString("en")}, which all of them have reached; between two evaluations linearly.` : "";
}

function lossAt({ tokens, heldout_loss }, at) {
  const before = tokens.findLastIndex((each) => each <= at), after = tokens.findIndex((each) => each >= at);
  if (before < 0 || after < 0 || heldout_loss[before] == null || heldout_loss[after] == null) return null;
  const part = after === before ? 0 : (at - tokens[before]) / (tokens[after] - tokens[before]);
  return heldout_loss[before] + part * (heldout_loss[after] - heldout_loss[before]);
}

async function readDocuments() {
  const run = focused();
  if (!run || !looks.has(run.number)) return;
  await whenDue(`documents of ${run.number}`, DOCUMENTS_EVERY_MS, () => readDocumentsOf(run));
}

async function readDocumentsOf(run) {
  try {
    const { documents } = await ask(`/api/runs/${run.number}/documents`);
    if (run !== focused()) return;
    show(byId("documents"), documents, () => (documents.length ? documents.map(documentBesideSeed)
      : element("p", { className: "note", textContent: "None yet: they arrive after the first snapshot is published." })));
  } catch (error) {
    if (!error.answered) throw error;
    show(byId("documents"), error.message, (textContent) => element("p", { className: "note", textContent }));
  }
}

// --- starting ---

byId("axis").addEventListener("change", (event) => { chosen.axis = event.target.value; changed(); });
byId("focus").addEventListener("change", (event) => {
  chosen.focus = event.target.value;
  due.delete(`documents of ${focused()?.number}`);
  changed();
});
addEventListener("hashchange", () => { readAddress(); changed(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { charts.forget(); layOut(); });
new IntersectionObserver((entries) => {
  documentsInSight = entries.at(-1).isIntersecting;
  if (documentsInSight) readDocuments().catch(() => {});
}, { rootMargin: "400px" }).observe(byId("documents"));
readAddress();
poll();
