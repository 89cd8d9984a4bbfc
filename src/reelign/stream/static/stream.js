// The page: what is typed goes to the server, frames come back and are drawn as they come. What a frame is, and what is
// said, is in messages.py. Text is only ever set as text.

const HEADER = 12;
const TINY = 256; // pixels; smaller pictures are shown with their pixels, not a blur of them
const LAST = "reelign stream last"; // the secret name of this browser's last stream, to save it after a reload
const ON_ITS_WAY = "The first frame is on its way";
const at = (id) => document.getElementById(id);
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

let socket = null;
let facts = null; // the server's hello
let state = "away"; // away, idle, waiting, starting, running, stopping
let stream = null; // the secret name of the stream on the screen
let shown = -1; // index of the frame on the screen
let prompts = []; // {prompt, frame}
let drawing = Promise.resolve(); // one frame after the other
let retry_ms = 500;

// ---- what is on the screen

function status(text, warn = false) {
  if (at("status").textContent !== text) at("status").textContent = text;
  at("status").classList.toggle("waiting", warn);
}

function complain(text) {
  at("error").textContent = text;
  at("error").hidden = !text;
}

function enter(next) {
  state = next;
  const busy = ["waiting", "starting", "running", "stopping"].includes(state);
  at("go").textContent = state === "running" ? "Change prompt" : "Start";
  at("go").disabled = !["idle", "running"].includes(state);
  at("stop").disabled = !["waiting", "starting", "running"].includes(state);
  at("stop").textContent = state === "waiting" ? "Leave the queue" : "Stop";
  at("save").disabled = !stream || state === "away" || (busy && shown < 0);
  at("seed").disabled = at("steps").disabled = busy;
  if (state !== "waiting") at("queue").textContent = busy ? "your turn" : "–";
}

function showHistory() {
  const current = prompts.filter((entry) => entry.frame <= Math.max(shown, 0)).length - 1;
  const items = prompts.map((entry, index) => {
    const item = document.createElement("li");
    const when = document.createElement("span");
    const what = document.createElement("span");
    when.className = "when";
    when.textContent = index > current ? `at frame ${entry.frame} …` : `frame ${entry.frame}`;
    what.textContent = entry.prompt;
    item.append(when, what);
    if (index === current) item.setAttribute("aria-current", "true");
    return item;
  });
  at("history").replaceChildren(...items);
  at("no-history").hidden = prompts.length > 0;
  if (items[current]) at("history").scrollTop = items[current].offsetTop - at("history").offsetTop; // and not the page
  const showing = prompts[current];
  if (showing) at("picture").setAttribute("aria-label", `Video of: ${showing.prompt}`);
}

function showNumbers(numbers) {
  at("first").textContent = `${numbers.first_frame_s.toFixed(2)} s`;
  at("speed").textContent = `${numbers.frames_per_s.toFixed(1)} frames/s`;
}

function forgetPicture() {
  shown = -1;
  prompts = [];
  const canvas = at("picture");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  canvas.setAttribute("aria-label", "No picture yet");
  for (const id of ["first", "speed", "length"]) at(id).textContent = "–";
  at("shown").textContent = "No picture yet";
  at("empty").hidden = false;
  at("empty").textContent = ON_ITS_WAY;
  showHistory();
}

async function draw(data, mine) {
  const view = new DataView(data);
  const index = view.getUint32(0, true);
  const bitmap = await createImageBitmap(new Blob([data.slice(HEADER)], { type: "image/jpeg" }));
  if (mine !== socket) return;
  at("picture").getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
  const first = shown < 0;
  shown = index;
  at("empty").hidden = true;
  at("shown").textContent = `Frame ${index}, block ${view.getUint32(4, true)}`;
  at("length").textContent = `${((index + 1) / facts.fps).toFixed(1)} s`;
  if (first) enter(state);
  if (first || prompts.some((entry) => entry.frame === index)) showHistory();
  say({ type: "seen", index });
}

// ---- what the server says

const heard = {
  hello(message) {
    const again = facts !== null;
    facts = message;
    const canvas = at("picture");
    if (canvas.width !== facts.width || canvas.height !== facts.height) {
      canvas.width = facts.width;
      canvas.height = facts.height;
    }
    canvas.classList.toggle("tiny", Math.max(facts.width, facts.height) <= TINY);
    at("screen").style.setProperty("--ratio", facts.width / facts.height);
    at("seed").placeholder = facts.seed;
    at("steps").placeholder = facts.steps;
    at("facts").textContent = `: ${facts.width} × ${facts.height} pixels, ${facts.fps} frames a second`;
    retry_ms = 500;
    complain("");
    enter("idle");
    remember(again);
  },
  waiting({ before }) {
    enter("waiting");
    at("queue").textContent = `${before} before you`;
    at("empty").textContent = "Waiting for your turn";
    status(`Waiting: ${plural(before, "stream")} before yours`, true);
  },
  started(message) {
    stream = message.stream;
    localStorage.setItem(LAST, stream);
    enter("running");
    at("empty").textContent = ON_ITS_WAY;
    status("Streaming");
  },
  prompt({ prompt, frame }) {
    prompts = [...prompts.filter((entry) => entry.frame !== frame), { prompt, frame }];
    showHistory();
    if (frame) status(`From frame ${frame}: ${prompt}`);
  },
  numbers: showNumbers,
  refused({ detail }) {
    complain(detail);
    if (state === "starting") enter("idle");
  },
  ended({ reason, detail, frames }) {
    drawing.then(() => {
      if (!frames) at("empty").textContent = "Type a prompt and start";
      enter("idle");
      if (reason === "failed") complain(detail);
      const why = {
        stopped: "Stopped", failed: "Failed", limit: `At its longest, ${facts.longest_s} s`,
        "nobody watches": "Ended, because this page took no frames",
      }[reason];
      status(frames ? `${why}: ${plural(frames, "frame")}, ${(frames / facts.fps).toFixed(1)} s` : why, reason !== "stopped");
    });
  },
};

// After a reload or a lost connection: the stream ended, but what was made of it can be saved.
async function remember(again) {
  const last = localStorage.getItem(LAST);
  status(again ? "Connected again" : "Ready");
  if (!last) return;
  const reply = await call("/api/clip", { stream: last });
  if (state !== "idle") return;
  if (!reply.ok) {
    localStorage.removeItem(LAST);
    if (stream === last) stream = null;
  } else if (reply.data.frames) {
    stream = last;
    prompts = reply.data.prompts;
    showHistory();
    const made = `${plural(reply.data.frames, "frame")} of the last stream can be saved`;
    status(again ? `Connected again; ${made}` : made);
  }
  enter("idle");
}

// ---- talking

function say(message) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

async function call(path, body) {
  try {
    const reply = await fetch(path, {
      method: "POST", headers: { "content-type": "application/json", "x-reelign": "1" }, body: JSON.stringify(body),
    });
    return { ok: reply.ok, status: reply.status, data: await reply.json() };
  } catch {
    return { ok: false, status: 0, data: { detail: "the server does not answer" } };
  }
}

function connect() {
  const mine = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/stream`);
  mine.binaryType = "arraybuffer";
  mine.addEventListener("message", ({ data }) => {
    if (mine !== socket) return;
    if (typeof data === "string") {
      const message = JSON.parse(data);
      if (message.type in heard) heard[message.type](message);
    } else {
      drawing = drawing.then(() => draw(data, mine)).catch(() => complain("A frame could not be shown by this browser"));
    }
  });
  mine.addEventListener("close", () => lost(mine));
  socket = mine;
}

async function lost(mine) {
  if (mine !== socket) return;
  enter("away");
  status("Connection lost; trying again …", true);
  const reply = await call("/api/clip", { stream: "" });
  if (reply.status === 401) {
    location.assign("/sign-in?next=/");
    return;
  }
  setTimeout(connect, retry_ms);
  retry_ms = Math.min(retry_ms * 1.6, 5000);
}

function options() {
  const given = ["seed", "steps"].filter((name) => at(name).value !== "");
  return Object.fromEntries(given.map((name) => [name, Number(at(name).value)]));
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = at("prompt").value;
  complain("");
  if (state === "running") {
    say({ type: "change", prompt });
  } else if (state === "idle") {
    stream = null;
    forgetPicture();
    enter("starting");
    status("Starting …");
    say({ type: "start", prompt, options: options() });
  }
});

at("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!at("go").disabled) at("ask").requestSubmit();
});

at("stop").addEventListener("click", () => {
  say({ type: "stop" });
  enter("stopping");
  status("Stopping …");
});

at("save").addEventListener("click", async () => {
  const reply = await call("/api/save", { stream });
  if (!reply.ok) {
    complain(reply.data.detail);
    return;
  }
  const link = document.createElement("a");
  link.href = reply.data.url;
  link.download = "reelign-stream.mp4";
  link.click();
  status(`Saved ${plural(reply.data.frames, "frame")}, ${reply.data.seconds.toFixed(1)} s`);
});

// A page that is taken out of the browser's back-forward cache has no connection.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

connect();
