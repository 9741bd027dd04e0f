"use strict";

// What both pages do: one row at a time, how far it is, what is said of saving.
// Texts of models reach a page through textContent alone: nothing in them is ever markup.
const at = (id) => document.getElementById(id);
let page = null; // what differs: verb, who, word, parts, done, fill, marked, leave
let rows = [];
let current = 0;

function put(element, text) {
  element.textContent = text === "" ? "(empty)" : text;
  element.classList.toggle("empty", text === "");
}

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

const reason = (error) => (error instanceof TypeError ? `is tunetrail ${page.verb} still running?` : error.message);

async function send(name, message, keepalive = false) {
  const reply = await fetch(name, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(message),
    keepalive,
  });
  if (!reply.ok) throw new Error(await reply.text());
  return reply.json();
}

function show(number, focus = true) {
  current = number;
  const row = rows[number];
  at("row").textContent = `Row ${number + 1} of ${rows.length}`;
  for (const part of page.parts) put(at(part), row[part]);
  page.fill(row);
  at("previous").disabled = number === 0;
  at("next").disabled = number === rows.length - 1;
  mark();
  if (focus) {
    at("row").focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }
}

function mark() {
  const done = rows.filter(page.done).length;
  const all = done === rows.length;
  at("count").textContent = all ? `All ${done} rows ${page.word}, thank you` : `${done} of ${rows.length} rows ${page.word}`;
  at("bar").max = rows.length;
  at("bar").value = done;
  at("open").disabled = all;
  page.marked(rows[current]);
}

function go(number) {
  page.leave();
  if (number >= 0 && number < rows.length) show(number);
}

function firstOpen(from) {
  const order = rows.map((_, index) => (from + index) % rows.length);
  return order.find((index) => !page.done(rows[index]));
}

function goOpen() {
  page.leave();
  const number = firstOpen(current + 1);
  if (number !== undefined) show(number);
}

const moves = { u: goOpen, ArrowLeft: () => go(current - 1), ArrowRight: () => go(current + 1) };
const keyOf = (event) => (event.key.length === 1 ? event.key.toLowerCase() : event.key);

async function begin(what) {
  page = what;
  at("previous").addEventListener("click", moves.ArrowLeft);
  at("next").addEventListener("click", moves.ArrowRight);
  at("open").addEventListener("click", goOpen);
  at("form").addEventListener("submit", (event) => event.preventDefault());
  try {
    const reply = await fetch("state");
    if (!reply.ok) throw new Error(await reply.text());
    const state = await reply.json();
    rows = state.rows;
    document.title = `Tunetrail ${page.verb}: ${state[page.who]}`;
    document.querySelector("main").hidden = false;
    if (rows.length) show(firstOpen(0) ?? 0, false);
    else at("count").textContent = "No row is yours";
  } catch (error) {
    at("count").textContent = `The rows cannot be read: ${error.message}`;
  }
}
