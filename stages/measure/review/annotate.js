// The page of `tunetrail annotate`. Texts of prompts and answers are put in as text, never as markup.
const at = (id) => document.getElementById(id);
const drafts = new Map(); // what is typed and not saved, by row
let rows = [];
let current = 0;
let timer = 0;

function put(element, text) {
  element.textContent = text === "" ? "(empty)" : text;
  element.classList.toggle("empty", text === "");
}

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

async function send(name, message) {
  const reply = await fetch(name, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(message),
  });
  if (!reply.ok) throw new Error(await reply.text());
  return reply.json();
}

const reason = (error) => (error instanceof TypeError ? "is tunetrail annotate still running?" : error.message);

function tell(problem) {
  at("problem").textContent = problem === null ? "Keeps the contract" : problem;
  at("problem").classList.toggle("wrong", problem !== null);
  at("editor").setAttribute("aria-invalid", String(problem !== null));
}

async function check() {
  const number = current;
  const completion = at("editor").value;
  try {
    const { problem } = await send("check", { number, completion });
    if (number === current && completion === at("editor").value) tell(problem);
  } catch (error) {
    say(`Not checked: ${reason(error)}`, true);
  }
}

function show(number, focus = true) {
  current = number;
  const row = rows[number];
  at("row").textContent = `Row ${number + 1} of ${rows.length}`;
  for (const part of ["instruction", "prompt", "answer", "reasons"]) put(at(part), row[part]);
  at("editor").value = drafts.get(number) ?? (row.done && !row.done.skipped ? row.done.completion : row.draft);
  at("reason").value = row.done?.skipped ?? "";
  at("previous").disabled = number === 0;
  at("next").disabled = number === rows.length - 1;
  mark();
  check();
  if (focus) {
    at("row").focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }
}

function mark() {
  const done = rows.filter((row) => row.done).length;
  at("count").textContent = done === rows.length ? `All ${done} rows done, thank you` : `${done} of ${rows.length} rows done`;
  at("bar").max = rows.length;
  at("bar").value = done;
  at("open").disabled = done === rows.length;
  at("back").disabled = !rows[current].done;
}

async function keep(skipped, back = false) {
  const number = current;
  const completion = at("editor").value;
  say("Saving");
  try {
    const { problem } = await send("answer", { number, completion, skipped, back });
    if (problem !== null) {
      tell(problem);
      say("Not saved: the answer breaks the contract", true);
      return;
    }
  } catch (error) {
    say(`Not saved: ${reason(error)}`, true);
    return;
  }
  rows[number].done = back ? null : { completion: completion.trim(), skipped };
  drafts.delete(number);
  mark();
  say(back ? "Taken back" : skipped === null ? "Saved" : "Skipped");
  if (!back && number === current) goOpen();
}

function skip() {
  const text = at("reason").value.trim();
  if (text) keep(text);
  else say("Skipping needs a reason", true);
}

function go(number) {
  if (number >= 0 && number < rows.length) show(number);
}

function firstOpen(from) {
  const order = rows.map((_, index) => (from + index) % rows.length);
  return order.find((index) => !rows[index].done);
}

function goOpen() {
  const number = firstOpen(current + 1);
  if (number !== undefined) show(number);
}

const keys = {
  e: () => at("editor").focus(),
  s: () => at("reason").focus(),
  u: goOpen,
  ArrowLeft: () => go(current - 1),
  ArrowRight: () => go(current + 1),
};

document.addEventListener("keydown", (event) => {
  if (!rows.length || event.isComposing) return;
  const typing = event.target === at("editor") || event.target === at("reason");
  let act = null;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) act = () => keep(null);
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (typing && event.key === "Escape") act = () => at("row").focus();
  else if (event.target === at("reason") && event.key === "Enter") act = skip;
  else if (!typing) act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

at("editor").addEventListener("input", () => {
  drafts.set(current, at("editor").value);
  clearTimeout(timer);
  timer = setTimeout(check, 150);
});
at("save").addEventListener("click", () => keep(null));
at("back").addEventListener("click", () => keep(null, true));
at("skip").addEventListener("click", skip);
at("previous").addEventListener("click", () => go(current - 1));
at("next").addEventListener("click", () => go(current + 1));
at("open").addEventListener("click", goOpen);
at("form").addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("beforeunload", (event) => { if (drafts.size) event.preventDefault(); });

async function start() {
  try {
    const reply = await fetch("state");
    if (!reply.ok) throw new Error(await reply.text());
    const state = await reply.json();
    rows = state.rows;
    document.title = `Tunetrail annotate: ${state.annotator}`;
    at("annotate").hidden = false;
    if (rows.length) show(firstOpen(0) ?? 0, false);
    else at("count").textContent = "No row is yours";
  } catch (error) {
    at("count").textContent = `The rows cannot be read: ${error.message}`;
  }
}

start();
