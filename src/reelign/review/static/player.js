// One or two clips that start together, stay together and loop together.
//
// The longer clip leads. Each frame of the screen, the other is compared with it: a small drift is taken out by playing
// a little faster or slower, a large one by a jump. When the leader ends, both go back to their first frame, wait until
// both are there, and start again.

const JUMP_S = 0.12;
const HOLD_MS = 250;

export function makeVideo(src) {
  const video = document.createElement("video");
  Object.assign(video, { src, muted: true, playsInline: true, preload: "auto", tabIndex: -1 });
  video.setAttribute("playsinline", "");
  video.disableRemotePlayback = true;
  return video;
}

export class Player {
  // clips: [{video, fps, frames}], one or two, `video` null where it cannot be played.
  constructor(clips, onChange) {
    this.clips = clips.filter((clip) => clip.video);
    this.onChange = onChange;
    this.rate = 1;
    this.playing = false;
    this.closed = false;
    this.turn = 0;
    this.tick = this.tick.bind(this);
  }

  get leader() {
    return this.clips.reduce((best, clip) => (clip.video.duration > best.video.duration ? clip : best), this.clips[0]);
  }

  async ready() {
    await Promise.all(this.clips.map(({ video }) => video.readyState >= 3 || once(video, "canplay")));
  }

  async play(fromStart = false) {
    if (!this.clips.length || this.closed) return;
    this.playing = true;
    this.onChange();
    const turn = ++this.turn;
    await this.ready();
    this.clips = this.clips.filter(({ video }) => !video.error);
    if (!this.clips.length) return;
    const ended = this.clips.every(({ video }) => video.ended);
    if (fromStart || ended) await this.seek(() => 0);
    else await this.align();
    if (turn !== this.turn || !this.playing || this.closed) return;
    for (const { video } of this.clips) video.playbackRate = this.rate;
    await Promise.all(this.clips.map(({ video }) => (video.ended ? null : video.play().catch(() => this.pause()))));
    requestAnimationFrame(this.tick);
  }

  pause() {
    this.playing = false;
    this.turn += 1;
    for (const { video } of this.clips) video.pause();
    this.onChange();
  }

  toggle() {
    return this.playing ? this.pause() : this.play();
  }

  setRate(rate) {
    this.rate = rate;
    for (const { video } of this.clips) video.playbackRate = rate;
  }

  async step(direction) {
    if (!this.clips.length) return;
    this.pause();
    const { video, fps, frames } = this.leader;
    const frame = Math.min(Math.max(Math.floor(video.currentTime * fps + 0.01) + direction, 0), frames - 1);
    await this.seek(() => (frame + 0.5) / fps);
  }

  // Both to the same time, each at most to its own last frame; resolves when the pictures are there.
  seek(time) {
    return Promise.all(
      this.clips.map(({ video, fps, frames }) => {
        const goal = Math.min(time(), (frames - 0.5) / fps);
        if (Math.abs(video.currentTime - goal) < 1e-4 && !video.seeking) return null;
        const there = once(video, "seeked");
        video.currentTime = goal;
        return there;
      }),
    );
  }

  align() {
    const time = this.leader.video.currentTime;
    return this.clips.some(({ video }) => Math.abs(video.currentTime - time) > 0.01) ? this.seek(() => time) : null;
  }

  tick() {
    if (!this.playing || this.closed) return;
    const lead = this.leader;
    if (lead.video.ended) {
      this.restart();
      return;
    }
    for (const clip of this.clips) if (clip !== lead) this.follow(clip, lead);
    requestAnimationFrame(this.tick);
  }

  follow({ video, fps }, lead) {
    if (video.ended || video.seeking) return;
    const drift = video.currentTime - lead.video.currentTime;
    if (Math.abs(drift) > JUMP_S) video.currentTime = lead.video.currentTime;
    else if (Math.abs(drift) > 0.5 / fps) video.playbackRate = this.rate * (drift > 0 ? 0.9 : 1.1);
    else if (video.playbackRate !== this.rate) video.playbackRate = this.rate;
  }

  async restart() {
    const turn = this.turn;
    await new Promise((resolve) => setTimeout(resolve, HOLD_MS));
    if (turn === this.turn && this.playing && !this.closed) this.play(true);
  }

  close() {
    this.closed = true;
    for (const { video } of this.clips) {
      video.pause();
      video.removeAttribute("src");
      video.load();
    }
  }
}

function once(video, event) {
  return new Promise((resolve) => {
    const done = () => {
      video.removeEventListener(event, done);
      video.removeEventListener("error", done);
      resolve();
    };
    video.addEventListener(event, done);
    video.addEventListener("error", done);
  });
}
