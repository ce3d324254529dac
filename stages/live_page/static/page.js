"use strict";

// A message is the length of a header (4 bytes, little endian), the header (JSON), a JPEG and a PNG.
// The PNG's first byte of a pixel has a bit for each of the first eight anatomies, and so on.
// The next frame comes when this one is drawn, so that late frames are never waited for.

const byId = (id) => document.getElementById(id);
const picture = byId("picture");
const overlay = byId("overlay");
const scratch = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const raw = { colorSpaceConversion: "none", premultiplyAlpha: "none" };

let anatomies = []; // {name, colour, checkbox}
let view = null; // {number, width, height, bits}
let frozen = false;
let drawing = null; // a promise, of the frame that is drawn now or was last
let waiting = null; // a message that came while the picture was frozen
let lastIndex = null; // of the last segmented frame that came; null after a pause
let skipped = 0; // segmented frames that came while this page was drawing
let settings = null; // of the server, as text
let news = performance.now(); // when the server last said something
const SILENCE = 3000; // milliseconds without news, after which the picture counts as old
let socket = null;

// ---- drawing

function topmost(byte) {
  // For each value of a byte of bits: 1 + the last anatomy in it that is shown, or 0.
  const table = new Uint8Array(256);
  for (let value = 0; value < 256; value += 1) {
    for (let bit = 0; bit < 8; bit += 1) {
      const index = 8 * byte + bit;
      const isShown = index < anatomies.length && anatomies[index].checkbox.checked;
      if (value & (1 << bit) && isShown) table[value] = index + 1;
    }
  }
  return table;
}

function tops(bits) {
  // 1 + the anatomy that is on top in each pixel, or 0. Neighbours are mostly alike.
  const tables = [topmost(0), topmost(1), topmost(2)];
  const several = anatomies.length > 8;
  const words = new Uint32Array(bits.buffer, bits.byteOffset, bits.length / 4);
  const top = new Uint8Array(words.length);
  let last = words[0] ^ 1;
  let index = 0;
  for (let i = 0; i < top.length; i += 1) {
    const word = words[i];
    if (word !== last) {
      last = word;
      index = tables[0][word & 255];
      if (several) index = tables[2][(word >> 16) & 255] || tables[1][(word >> 8) & 255] || index;
    }
    top[i] = index;
  }
  return top;
}

function drawOverlay() {
  if (view === null) return;
  const { width, height } = view;
  const top = tops(view.bits);
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const { edge, fill } = colours();
  // An edge is two pixels of the screen wide, however small the picture is shown.
  const thick = Math.max(1, Math.round((2 * width) / Math.max(1, overlay.clientWidth)));
  for (let y = 0, i = 0; y < height; y += 1) {
    const up = y >= thick ? thick * width : 0;
    for (let x = 0; x < width; x += 1, i += 1) {
      const here = top[i];
      const left = x >= thick ? top[i - thick] : here;
      const above = top[i - up];
      pixels[i] = here === left && here === above ? fill[here] : edge[here || left || above];
    }
  }
  overlay.width = width;
  overlay.height = height;
  overlay.getContext("2d").putImageData(image, 0, 0);
}

function colours() {
  // Of edges and of areas, for 0 and each anatomy, as a pixel's bytes are read as one number.
  const isFilled = document.querySelector("input[name=style]:checked").value === "fill";
  const alpha = Math.round(2.55 * byId("opacity").value);
  const edge = new Uint32Array(anatomies.length + 1);
  const fill = new Uint32Array(anatomies.length + 1);
  anatomies.forEach(({ colour }, i) => {
    const value = parseInt(colour.value.slice(1), 16);
    const turned = ((value & 0xff) << 16) | (value & 0xff00) | (value >> 16);
    edge[i + 1] = (turned | 0xff000000) >>> 0;
    fill[i + 1] = isFilled ? (turned | (alpha << 24)) >>> 0 : 0;
  });
  return { edge, fill };
}

async function draw(message) {
  const data = new DataView(message);
  const end = 4 + data.getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(message, 4, end - 4)));
  const jpeg = new Blob([message.slice(end, end + header.jpeg)], { type: "image/jpeg" });
  const png = new Blob([message.slice(end + header.jpeg)], { type: "image/png" });
  const [photo, bits] = await Promise.all([createImageBitmap(jpeg), createImageBitmap(png, raw)]);
  const { width, height } = header;
  picture.width = width;
  picture.height = height;
  byId("stage").style.maxWidth = `calc(80vh * ${width / height})`; // the controls stay in sight
  picture.getContext("2d").drawImage(photo, 0, 0);
  scratch.canvas.width = width;
  scratch.canvas.height = height;
  scratch.drawImage(bits, 0, 0);
  if (lastIndex !== null) skipped += Math.max(0, header.index - lastIndex - 1);
  lastIndex = frozen ? null : header.index;
  byId("skipped").textContent = skipped;
  view = { number: header.number, width, height, bits: scratch.getImageData(0, 0, width, height).data };
  photo.close();
  bits.close();
  byId("freeze").disabled = false;
  drawOverlay();
}

async function show(message, own, hasWaited = false) {
  await draw(message);
  // A hidden page is given no animation frames.
  if (!document.hidden) await new Promise(requestAnimationFrame);
  if (hasWaited) lastIndex = null;
  if (own.readyState === WebSocket.OPEN) own.send(hasWaited || document.hidden ? "late" : "drawn");
}

// ---- what comes

function connect() {
  const own = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/view`);
  socket = own;
  own.binaryType = "arraybuffer";
  own.onopen = begunAnew;
  own.onmessage = ({ data }) => {
    news = performance.now();
    if (typeof data === "string") tell(JSON.parse(data));
    else if (frozen) waiting = data;
    else drawing = show(data, own);
  };
  own.onclose = () => {
    say("lost", "The connection to mtkd is lost. Trying again");
    waiting = null;
    lastIndex = null;
    byId("saves").hidden = true; // the server has forgotten the frozen frame
    setTimeout(connect, 1000);
  };
}

async function begunAnew() {
  // Another mtkd may be behind the same address, with other anatomies.
  const now = await (await fetch("/settings")).text();
  if (now !== settings) location.reload();
}

function listen() {
  const silent = performance.now() - news;
  if (silent > SILENCE) say("lost", "No news from mtkd. Is the connection still there?");
}

function say(state, message) {
  byId("old").hidden = state === "live" || view === null;
  byId("old").textContent = `Not live: ${message}`;
  if (byId("state").textContent === message) return; // a screen reader says only what changes
  byId("state").textContent = message;
  byId("state").dataset.state = state;
}

const milliseconds = (value) => (value === null ? "–" : `${value} ms`);

function tell(status) {
  say(status.state, status.message);
  byId("fps").textContent = status.fps === null ? "–" : status.fps.toFixed(1);
  byId("latency").textContent = milliseconds(status.latency_ms);
  byId("late").textContent = milliseconds(status.latency_p95_ms);
  byId("network").textContent = milliseconds(status.network_ms);
  byId("dropped").textContent = `${status.dropped} of ${status.captured}`;
  byId("precision").textContent = status.precision;
  byId("recording").textContent = status.recording ?? "";
}

// ---- controls

function addAnatomy({ name, colour }, index) {
  const item = document.createElement("li");
  const label = document.createElement("label");
  const checkbox = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
  const picker = Object.assign(document.createElement("input"), { type: "color", value: colour });
  picker.setAttribute("aria-label", `Colour of ${name}`);
  label.append(checkbox, name);
  item.append(label, picker);
  checkbox.onchange = drawOverlay;
  picker.oninput = drawOverlay;
  byId("anatomies").append(item);
  anatomies[index] = { name, colour: picker, checkbox };
}

function showEvery(shown) {
  anatomies.forEach(({ checkbox }) => { checkbox.checked = shown; });
  drawOverlay();
}

async function freeze() {
  if (view === null) return;
  frozen = !frozen;
  byId("freeze").setAttribute("aria-pressed", String(frozen));
  byId("saves").hidden = true;
  lastIndex = null;
  if (frozen) {
    await drawing;
    if (!frozen) return;
    // The server keeps the last frames that it sent to this page.
    for (const name of ["frame", "labels", "overlay"]) byId(`save-${name}`).download = `${name}_${view.number}.png`;
    for (const name of ["frame", "labels"]) byId(`save-${name}`).href = `/frames/${view.number}/${name}.png`;
    byId("saves").hidden = socket.readyState !== WebSocket.OPEN;
  } else if (waiting !== null) {
    const message = waiting;
    waiting = null;
    drawing = show(message, socket, true);
  }
}

function nameUnder(event) {
  const box = overlay.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * overlay.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * overlay.height);
  if (view === null || x < 0 || y < 0 || x >= view.width || y >= view.height) return;
  const index = tops(view.bits.subarray(4 * (y * view.width + x)).slice(0, 4))[0];
  byId("under").textContent = index ? anatomies[index - 1].name : "";
}

function saveOverlay() {
  const both = document.createElement("canvas");
  both.width = picture.width;
  both.height = picture.height;
  const context = both.getContext("2d");
  context.drawImage(picture, 0, 0);
  context.drawImage(overlay, 0, 0);
  byId("save-overlay").href = both.toDataURL("image/png");
}

async function begin() {
  settings = await (await fetch("/settings")).text();
  const { title, model, anatomies: named } = JSON.parse(settings);
  document.title = `${title} – mtkd live`;
  byId("source").textContent = title;
  byId("model").textContent = model;
  named.forEach(addAnatomy);
  byId("all").onclick = () => showEvery(true);
  byId("none").onclick = () => showEvery(false);
  byId("freeze").onclick = freeze;
  byId("save-overlay").onclick = saveOverlay;
  byId("opacity").oninput = () => {
    byId("opacity-value").textContent = `${byId("opacity").value} %`;
    drawOverlay();
  };
  document.querySelectorAll("input[name=style]").forEach((radio) => { radio.onchange = drawOverlay; });
  document.addEventListener("keydown", (event) => {
    const isPlain = !event.ctrlKey && !event.metaKey && !event.altKey && !event.repeat;
    if (event.key.toLowerCase() === "f" && isPlain) freeze();
  });
  byId("stage").onpointermove = nameUnder;
  byId("stage").onpointerleave = () => { byId("under").textContent = ""; };
  setInterval(listen, 1000);
  connect();
}

begin();
