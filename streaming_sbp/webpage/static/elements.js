// Making elements. Whatever a run says is untrusted: it only ever becomes text (textContent), never markup.

export const byId = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Replaces what is in `parent`, but only when it would look different: a reader may be selecting or scrolling it.
const shown = new WeakMap();
export function show(parent, value, make) {
  const now = JSON.stringify(value);
  if (shown.get(parent) === now) return;
  shown.set(parent, now);
  parent.replaceChildren(...[make(value)].flat());
}

export function table(content, nothing) {
  if (!content.rows.length) return element("p", { className: "note", textContent: nothing });
  const kind = (i) => (content.columns[i].number ? "number" : "");
  const head = content.columns.map((column, i) =>
    element("th", { scope: "col", textContent: column.title, className: kind(i) }));
  const rows = content.rows.map((row) => element("tr", {}, ...row.map((cell, i) => tableCell(cell, kind(i)))));
  return element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}

function tableCell(cell, kind) {
  if (typeof cell === "string") return element("td", { textContent: cell, className: kind });
  if (cell.time !== undefined) return element("td", { textContent: clock(cell.time), className: "time" });
  return element("td", { textContent: cell.text, className: `${kind} ${cell.tone}` });
}

export function clock(unixTime) {
  const when = new Date(unixTime * 1000), today = when.toDateString() === new Date().toDateString();
  return today ? when.toLocaleTimeString() : when.toLocaleString();
}

export function tile(content) {
  return element("li", { className: content.tone },
    element("span", { textContent: content.label }),
    element("b", { textContent: content.figure }),
    element("span", { textContent: content.meaning }));
}

export function suggestion(content) {
  return element("li", {}, element("span", { textContent: content.reason }),
    element("code", { textContent: content.command }));
}

export function documentBesideSeed(content) {
  const part = (title, text, className) => element("div", { className },
    element("h3", { textContent: title }), element("p", { textContent: text }));
  return element("article", {},
    element("div", { className: "pair" },
      part("seed document", content.seed ?? "not in the data set", "seed"),
      part(`synthetic document ${content.number}`, content.text, "synthetic")),
    element("footer", { textContent: content.notes.join("\n") }));
}
