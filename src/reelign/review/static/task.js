// The pages that ask: two takes side by side, or one to rate. Answers go to the outbox; the next question is shown at
// once, its clips already loaded.

import { again, call, identity, Outbox, pause } from "/static/calls.js";
import { makeVideo, Player } from "/static/player.js";

const AHEAD = 3; // questions held, the next one's clips loaded
const HISTORY = 50;
const SHORTCUTS = "reelign shortcuts off";

const page = document.querySelector("[data-task]");
const { task, annotator, review } = page.dataset;
const axes = JSON.parse(page.dataset.axes);
const choices = JSON.parse(page.dataset.choices);
const at = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const outbox = new Outbox(`${task} ${review} ${annotator}`);
const historyKey = `reelign history ${task} ${review} ${annotator}`;
let queue = []; // questions to come, the first is on the screen
let view = null; // {question, clips, player}
let given = {}; // axis -> choice
let seen = { total: 0, since: 0 };
let filling = false;
let stored = 0; // answers and retractions that the server has
let finished = false;

// ---- what is on the screen

const history = {
  get list() { return JSON.parse(sessionStorage.getItem(historyKey) || "[]"); },
  set list(list) { sessionStorage.setItem(historyKey, JSON.stringify(list.slice(-HISTORY))); },
};

function announce(text) {
  at("live").textContent = text;
}

// What is wrong comes before what is going on: answers that wait, questions that do not come, then saving and saved.
const state = { note: "", warning: "", offline: false };

function status(change) {
  Object.assign(state, change);
  const kept = outbox.entries.length;
  const waiting = kept ? `Reconnecting … ${kept} ${kept === 1 ? "answer is" : "answers are"} kept here` : "Reconnecting …";
  const text = state.offline ? waiting : state.warning || state.note;
  if (at("status").textContent !== text) at("status").textContent = text;
  at("status").classList.toggle("waiting", state.offline || Boolean(state.warning));
}

function showProgress({ answered, goal }) {
  const waiting = outbox.entries.filter((entry) => entry.path === "/api/answers").length;
  const done = answered + waiting;
  at("count").textContent = `${Math.min(done, goal)} of ${goal}`;
  at("bar").max = goal || 1;
  at("bar").value = Math.min(done, goal);
}

function load(question) {
  const side = (clip) => ({ ...clip, video: clip.problem ? null : makeVideo(clip.src) });
  const clips = question.right ? [side(question.left), side(question.right)] : [side(question.left)];
  return { question, clips, player: new Player(clips, showPlaying) };
}

let next = null; // the view after this one, loading

function show() {
  if (view) view.player.close();
  const question = queue[0];
  at("task").hidden = !question;
  at("done").hidden = Boolean(question) || !finished;
  at("wait").hidden = Boolean(question) || finished;
  view = null;
  if (!question) return;
  view = next && next.question.id === question.id ? next : load(question);
  next = queue[1] ? load(queue[1]) : null;
  given = {};
  seen = { total: 0, since: document.hidden ? 0 : performance.now() };
  at("prompt").textContent = question.prompt || "(no prompt)";
  const shape = Math.max(...view.clips.map((clip) => (clip.height ? clip.width / clip.height : 0))) || 1.6;
  view.clips.forEach((clip, index) => fillSide(["left", "right"][index], clip, shape));
  showAnswers();
  if (!calm.matches) view.player.play(true);
  showPlaying();
  announce(`${at("count").textContent}. ${question.prompt ? `Prompt: ${question.prompt}. ` : ""}${axes[Object.keys(axes)[0]]}`);
}

function fillSide(side, clip, shape) {
  const frame = at(`frame-${side}`);
  frame.style.setProperty("--ratio", shape);
  if (clip.video) {
    clip.video.classList.toggle("tiny", clip.width <= 256); // show pixels, not a blur, of small clips
    clip.video.addEventListener("error", () => clip.video.error && showProblem(frame, "this browser cannot decode it"));
    clip.video.setAttribute("aria-label", `${task === "pair" ? `${side} take` : "take"}, ${clip.frames} frames`);
    frame.replaceChildren(clip.video);
  } else {
    showProblem(frame, clip.problem);
  }
  const length = clip.fps ? `${(clip.frames / clip.fps).toFixed(1)} s · ${clip.frames} frames` : "";
  at(`facts-${side}`).textContent = [length, clip.note].filter(Boolean).join(" · ");
}

function showProblem(frame, reason) {
  const text = document.createElement("p");
  text.className = "problem";
  text.textContent = `This take cannot be played: ${reason}`;
  frame.replaceChildren(text);
}

function showPlaying() {
  const on = Boolean(view && view.player.playing);
  at("play").textContent = on ? "Pause" : "Play";
  at("play").setAttribute("aria-pressed", String(on));
}

const currentAxis = () => Object.keys(axes).find((axis) => !(axis in given));

function showAnswers() {
  const current = currentAxis();
  for (const fieldset of document.querySelectorAll(".axis")) {
    fieldset.classList.toggle("current", fieldset.dataset.axis === current);
    for (const button of fieldset.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(given[fieldset.dataset.axis] === button.dataset.choice));
    }
  }
}

// ---- questions

async function fill() {
  if (filling || queue.length >= AHEAD || finished) return;
  filling = true;
  for (let wait = 500; ; wait = Math.min(wait * 1.7, 5000)) {
    try {
      const known = new Set([...outbox.questions, ...queue.map((question) => question.id)]);
      const n = Math.min(AHEAD + known.size, 32);
      const before = stored;
      const reply = await call("/api/questions", { task, n });
      const busy = new Set([...outbox.questions, ...queue.map((question) => question.id)]);
      const fresh = reply.questions.filter((question) => !busy.has(question.id) && !known.has(question.id));
      const empty = !queue.length;
      queue.push(...fresh.slice(0, AHEAD));
      finished = !queue.length && !outbox.entries.length && !reply.questions.length;
      if (stored === before) showProgress(reply.progress); // else it is older than what is shown
      status({ offline: false });
      if (empty) show();
      else if (!next && queue[1]) next = load(queue[1]);
      break;
    } catch (error) {
      if (error.status === 401) return signIn();
      if (!again(error)) {
        status({ warning: error.message, offline: false });
        break;
      }
      status({ offline: true });
      await pause(wait);
    }
  }
  filling = false;
}

function signIn() {
  status({ warning: "You are signed out. Your answers are kept here; sign in again in this window.", offline: false });
  at("sign-in").hidden = false;
}

// ---- answers

function choose(axis, choice) {
  if (!view || !axis) return;
  given[axis] = choice;
  showAnswers();
  if (currentAxis() === undefined) submit();
  else announce(axes[currentAxis()]);
}

function submit() {
  const seconds = Math.round((seen.total + (seen.since ? performance.now() - seen.since : 0)) / 10) / 100;
  const { question } = view;
  const submission = identity();
  history.list = [...history.list, { submission, question: question.id }];
  queue.shift();
  outbox.add("/api/answers", { submission, question: question.id, task, choices: given, seconds });
  at("undo").disabled = false;
  show();
  fill();
}

async function undo() {
  const answered = Object.keys(given);
  if (answered.length) {
    delete given[answered[answered.length - 1]];
    showAnswers();
    return;
  }
  const list = history.list;
  const last = list.pop();
  if (!last) return;
  history.list = list;
  at("undo").disabled = !list.length;
  finished = false;
  outbox.add("/api/retractions", { submission: identity(), retracts: last.submission, task });
  announce("Undone.");
}

outbox.addEventListener("change", ({ detail }) => {
  const { type, left, entry, reply, error } = detail;
  if (type === "waiting") status({ offline: true });
  if (type === "sending") status({ note: "Saving …" });
  if (type === "signed out") signIn();
  if (type === "refused") {
    const why = error.status === 409 ? "Already answered in another window." : `Not stored: ${error.message}`;
    status({ warning: why, offline: false });
    fill();
  }
  if (type !== "stored") return;
  stored += 1;
  status({ note: left ? "Saving …" : "All saved", warning: "", offline: false });
  showProgress(reply.progress);
  if (entry.path === "/api/retractions") reopen();
  else fill();
});

// After an undo the server puts its question first again; so do we.
function reopen() {
  queue = [];
  if (next) next.player.close();
  next = null;
  fill();
}

// ---- hands

const keys = {
  pair: { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", t: "tie", b: "both_bad" },
  rate: Object.fromEntries(choices.map((choice, index) => [choices.length > 2 ? String(index + 1) : choice[0], choice])),
}[task];

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || at("help").open) return;
  if (event.target.closest("select, input, textarea")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === " " && event.target.closest("button, a")) return;
  if (localStorage.getItem(SHORTCUTS) && key.length === 1 && key !== " ") return;
  const act = {
    " ": () => view && view.player.toggle(),
    ",": () => view && view.player.step(-1),
    ".": () => view && view.player.step(1),
    r: () => view && view.player.play(true),
    z: undo,
    "?": () => at("help").showModal(),
  }[key];
  if (act) {
    event.preventDefault();
    act();
  } else if (keys[key] && !event.repeat) {
    event.preventDefault();
    choose(currentAxis(), keys[key]);
  }
});

for (const fieldset of document.querySelectorAll(".axis")) {
  fieldset.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) choose(fieldset.dataset.axis, button.dataset.choice);
  });
}
at("play").addEventListener("click", () => view && view.player.toggle());
at("back").addEventListener("click", () => view && view.player.step(-1));
at("forth").addEventListener("click", () => view && view.player.step(1));
at("rate").addEventListener("change", (event) => view && view.player.setRate(Number(event.target.value)));
at("undo").addEventListener("click", undo);
at("undo-done").addEventListener("click", undo);
at("help-open").addEventListener("click", () => at("help").showModal());
at("shortcuts").checked = !localStorage.getItem(SHORTCUTS);
at("shortcuts").addEventListener("change", (event) => {
  if (event.target.checked) localStorage.removeItem(SHORTCUTS);
  else localStorage.setItem(SHORTCUTS, "1");
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden && seen.since) {
    seen.total += performance.now() - seen.since;
    seen.since = 0;
  } else if (!document.hidden && !seen.since) seen.since = performance.now();
});

at("undo").disabled = !history.list.length;
outbox.send();
fill();
