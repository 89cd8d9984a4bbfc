// The clips of a row start together and start again together; large clips are scaled smoothly.
const videos = [...document.querySelectorAll("video")], button = document.getElementById("play");
let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
const start = pair => pair.forEach(v => { v.currentTime = 0; v.play().catch(() => {}); });
const show = () => { button.textContent = playing ? "Pause all clips" : "Play all clips"; button.setAttribute("aria-pressed", !playing); };
for (const sides of document.querySelectorAll(".sides")) {
  const pair = [...sides.querySelectorAll("video")];
  for (const v of pair) {
    v.loop = false;
    v.addEventListener("ended", () => { if (playing && pair.every(p => p.ended)) start(pair); });
    const smooth = () => { if (v.videoWidth > v.clientWidth) v.style.imageRendering = "auto"; };
    v.readyState ? smooth() : v.addEventListener("loadedmetadata", smooth);
  }
  playing ? start(pair) : pair.forEach(v => { v.autoplay = false; v.pause(); });
}
if (button) {
  button.hidden = false; show();
  button.onclick = () => {
    playing = !playing; show();
    videos.forEach(v => playing ? v.play().catch(() => {}) : v.pause());
  };
}
