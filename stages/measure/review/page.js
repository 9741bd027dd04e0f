"use strict";

// Texts of models reach the page through textContent alone: nothing in them is ever markup.
const at = (id) => document.getElementById(id);
const unsaved = new Set();
let rows = [];
let current = 0;
let timer = 0;
let saving = Promise.resolve();

const answered = (row) => row.answer !== null && row.answer.best !== null;

function put(element, text) {
  element.textContent = text === "" ? "(empty)" : text;
  element.classList.toggle("empty", text === "");
}

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
  at("again").hidden = !wrong;
}

function makeCard(text, place) {
  const card = at("card").content.cloneNode(true);
  card.querySelector(".name").textContent = `Answer ${place + 1}`;
  card.querySelector("kbd").textContent = String(place + 1);
  put(card.querySelector(".text"), text);
  card.querySelector("input").addEventListener("change", () => toggle(place));
  return card;
}

function show(number, focus = true) {
  current = number;
  const row = rows[number];
  at("row").textContent = `Row ${number + 1} of ${rows.length}`;
  for (const part of ["instruction", "prompt", "reference"]) put(at(part), row[part]);
  at("cards").replaceChildren(...row.cards.map(makeCard));
  at("comment").value = row.answer ? row.answer.comment : "";
  at("previous").disabled = number === 0;
  at("next").disabled = number === rows.length - 1;
  mark();
  if (focus) {
    at("row").focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }
}

// What is chosen, and how far the reviewer is.
function mark() {
  const row = rows[current];
  const best = answered(row) ? row.answer.best : null;
  at("cards").querySelectorAll("input").forEach((box, place) => { box.checked = best !== null && best.includes(place); });
  at("tie").setAttribute("aria-pressed", String(best !== null && best.length === row.cards.length));
  at("bad").setAttribute("aria-pressed", String(best !== null && best.length === 0));
  const done = rows.filter(answered).length;
  at("count").textContent = done === rows.length ? `All ${done} rows answered, thank you` : `${done} of ${rows.length} rows answered`;
  at("bar").max = rows.length;
  at("bar").value = done;
  at("open").disabled = done === rows.length;
}

function choose(best) {
  const row = rows[current];
  row.answer = { best, comment: at("comment").value };
  mark();
  keep(current);
}

function toggle(place) {
  const row = rows[current];
  if (place >= row.cards.length) return;
  const best = new Set(answered(row) ? row.answer.best : []);
  if (!best.delete(place)) best.add(place);
  choose(best.size ? [...best].sort() : null);
}

function pressed(id) {
  return at(id).getAttribute("aria-pressed") === "true";
}

function comment() {
  clearTimeout(timer);
  const row = rows[current];
  const text = at("comment").value;
  if (text === (row.answer ? row.answer.comment : "")) return;
  row.answer = { best: row.answer ? row.answer.best : null, comment: text };
  if (answered(row)) keep(current);
  else say("A comment is saved together with a choice");
}

// One message after the other, so that the last choice is the one that stays.
function keep(number) {
  unsaved.add(number);
  say("Saving");
  saving = saving.then(saveAll);
}

async function saveAll() {
  for (const number of [...unsaved]) {
    const { best, comment: text } = rows[number].answer;
    try {
      const reply = await fetch("answer", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ number, best, comment: text }),
        keepalive: true,
      });
      if (!reply.ok) throw new Error(await reply.text());
      if (rows[number].answer.best === best && rows[number].answer.comment === text) unsaved.delete(number);
    } catch (error) {
      const reason = error instanceof TypeError ? "is tunetrail review still running?" : error.message;
      say(`Not saved: ${reason}`, true);
      return;
    }
  }
  if (!unsaved.size) say("Saved");
}

function go(number) {
  comment();
  if (number >= 0 && number < rows.length) show(number);
}

function firstOpen(from) {
  const order = rows.map((_, index) => (from + index) % rows.length);
  return order.find((index) => !answered(rows[index]));
}

function goOpen() {
  comment();
  const number = firstOpen(current + 1);
  if (number !== undefined) show(number);
}

const keys = {
  t: () => at("tie").click(),
  b: () => at("bad").click(),
  c: () => at("comment").focus(),
  u: goOpen,
  ArrowLeft: () => go(current - 1),
  ArrowRight: () => go(current + 1),
  Enter: () => go(current + 1),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !rows.length) return;
  if (event.target === at("comment")) {
    if (event.key === "Escape") at("row").focus();
    return;
  }
  if (event.key === "Enter" && event.target.closest("button, summary")) return;
  const act = /^[1-9]$/.test(event.key) ? () => toggle(Number(event.key) - 1) : keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

at("tie").addEventListener("click", () => choose(pressed("tie") ? null : rows[current].cards.map((_, place) => place)));
at("bad").addEventListener("click", () => choose(pressed("bad") ? null : []));
at("comment").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(comment, 600); });
at("comment").addEventListener("blur", comment);
at("previous").addEventListener("click", () => go(current - 1));
at("next").addEventListener("click", () => go(current + 1));
at("open").addEventListener("click", goOpen);
at("again").addEventListener("click", () => { saving = saving.then(saveAll); });
at("form").addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("pagehide", comment);
window.addEventListener("beforeunload", (event) => { if (unsaved.size) event.preventDefault(); });

async function start() {
  try {
    const reply = await fetch("state");
    if (!reply.ok) throw new Error(await reply.text());
    const state = await reply.json();
    rows = state.rows;
    document.title = `Tunetrail review: ${state.reviewer}`;
    at("review").hidden = false;
    show(firstOpen(0) ?? 0, false);
  } catch (error) {
    at("count").textContent = `The rows cannot be read: ${error.message}`;
  }
}

start();
