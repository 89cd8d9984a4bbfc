// Calls to the server, and the outbox: answers wait in this browser until the server has acknowledged them.

const TIMEOUT_MS = 10000;

// Reply of a call, or an error with `status` (0: no reply).
export async function call(path, body) {
  let reply;
  try {
    reply = await fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json", "x-reelign": "1" },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    const data = await reply.json();
    if (reply.ok) return data;
    throw Object.assign(new Error(typeof data.detail === "string" ? data.detail : "the server refused"), { status: reply.status });
  } catch (error) {
    if (error.status === undefined) error.status = reply && reply.status >= 400 ? reply.status : 0;
    throw error;
  }
}

export const again = (error) => error.status === 0 || error.status >= 500;

// crypto.randomUUID exists on https and localhost only; a review on a plain network address needs this too.
export function identity() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Sends entries one after the other, in order, as often as it takes. Entries survive a reload; sending one twice is
// harmless, because the server knows its identity.
export class Outbox extends EventTarget {
  // name: of the task, the review and the annotator; another review on the same address has an outbox of its own.
  constructor(name) {
    super();
    this.key = `reelign outbox ${name}`;
    this.sending = false;
    window.addEventListener("online", () => this.wake && this.wake());
  }

  get entries() {
    return JSON.parse(localStorage.getItem(this.key) || "[]");
  }

  set entries(list) {
    localStorage.setItem(this.key, JSON.stringify(list));
  }

  add(path, body) {
    this.entries = [...this.entries, { path, body }];
    this.send();
  }

  // Questions whose answer is on its way: the server still thinks them open.
  get questions() {
    return new Set(this.entries.map((entry) => entry.body.question).filter(Boolean));
  }

  async send() {
    if (this.sending) return;
    this.sending = true;
    let wait = 500;
    while (this.entries.length) {
      const entry = this.entries[0];
      this.say("sending");
      try {
        const reply = await call(entry.path, entry.body);
        this.drop(entry);
        wait = 500;
        this.say("stored", { entry, reply });
      } catch (error) {
        if (error.status === 401) {
          this.say("signed out", { entry, error });
          break;
        }
        if (again(error)) {
          this.say("waiting", { error });
          await Promise.race([pause(wait), new Promise((resolve) => (this.wake = resolve))]);
          wait = Math.min(wait * 1.7, 5000);
          continue;
        }
        this.drop(entry);
        this.say("refused", { entry, error });
      }
    }
    this.sending = false;
  }

  drop(entry) {
    this.entries = this.entries.filter((other) => other.body.submission !== entry.body.submission);
  }

  say(type, detail = {}) {
    this.dispatchEvent(new CustomEvent("change", { detail: { type, left: this.entries.length, ...detail } }));
  }
}
