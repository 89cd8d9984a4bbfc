// A tile plays while the pointer or the keyboard is on it; a still that cannot be made says so.

const calm = matchMedia("(prefers-reduced-motion: reduce)");

for (const tile of document.querySelectorAll("[data-take]")) {
  const picture = tile.querySelector(".picture");
  let video = null;
  const start = () => {
    if (video || calm.matches || tile.dataset.bad) return;
    video = document.createElement("video");
    Object.assign(video, { muted: true, loop: true, playsInline: true, src: `/media/${tile.dataset.take}` });
    picture.append(video);
    video.play().catch(() => {});
  };
  const stop = () => {
    if (!video) return;
    video.remove();
    video.removeAttribute("src");
    video.load();
    video = null;
  };
  tile.addEventListener("pointerenter", start);
  tile.addEventListener("pointerleave", stop);
  tile.addEventListener("focusin", start);
  tile.addEventListener("focusout", stop);
  const still = tile.querySelector("img");
  const bad = () => {
    tile.dataset.bad = "1";
    still.remove();
  };
  still.addEventListener("error", bad);
  if (still.complete && !still.naturalWidth && still.src) bad();
}
