// Runs once when the page is there, with `element`, `props`, `trigger` and `watch` given by Gradio's HTML component.
// Labels and confidence arrive as compressed bytes, one number a pixel: everything below is done in the browser.

const find = (name) => element.querySelector('[data-vs="' + name + '"]');
const make = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
const css = (colour) => 'rgb(' + colour.join(',') + ')';
const percent = (share) => (share < 0.001 ? '< 0.1 %' : (100 * share).toFixed(share < 0.0995 ? 1 : 0) + ' %');

// dark blue is unsure, yellow is sure; readable without telling red from green
const SCALE = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

const state = { sequence: 0, started: 0, timer: null, panels: [], urls: [], view: 'classes', stem: 'image' };

// ---- from the answer to numbers

async function inflate(text, bytes) {
  const packed = atob(text);
  const raw = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) raw[i] = packed.charCodeAt(i);
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream('deflate'));
  const buffer = await new Response(stream).arrayBuffer();
  return bytes === 2 ? new Uint16Array(buffer) : new Uint8Array(buffer);
}

function scaleColour(value) {
  const place = value * (SCALE.length - 1);
  const below = Math.min(Math.floor(place), SCALE.length - 2);
  return SCALE[below].map((v, i) => Math.round(v + (place - below) * (SCALE[below + 1][i] - v)));
}

const packColour = (c) => ((255 << 24) | (c[2] << 16) | (c[1] << 8) | c[0]) >>> 0;

function drawPanel(panel) {
  const asConfidence = state.view === 'confidence' && panel.confidence;
  const numbers = asConfidence ? panel.confidence : panel.labels;
  const table = new Uint32Array(65536);
  if (asConfidence) for (let i = 0; i < 256; i++) table[i] = packColour(scaleColour(i / 255));
  else for (const row of panel.rows.values()) {
    table[row.id] = panel.only === null || panel.only === row.id ? packColour(row.colour) : 0;
  }
  const context = panel.canvas.getContext('2d');
  const image = context.createImageData(panel.canvas.width, panel.canvas.height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = table[numbers[i]];
  context.putImageData(image, 0, 0);
  panel.scale.hidden = !asConfidence;
}

// ---- one panel a model

function buildLegend(panel) {
  const list = make('ul', 'vs-legend');
  for (const row of panel.rows.values()) {
    const button = make('button');
    button.type = 'button';
    button.title = 'Show only this class';
    button.setAttribute('aria-pressed', 'false');
    const swatch = make('span', 'vs-swatch');
    swatch.style.background = css(row.colour);
    const bar = make('span', 'vs-bar');
    bar.append(make('i'));
    bar.firstChild.style.width = 100 * row.share + '%';
    button.append(swatch, make('em', '', row.name), make('b', '', percent(row.share)), bar);
    button.addEventListener('click', () => showOnly(panel, panel.only === row.id ? null : row.id));
    row.button = button;
    const item = make('li');
    item.append(button);
    list.append(item);
  }
  return list;
}

function showOnly(panel, id) {
  panel.only = id;
  for (const row of panel.rows.values()) row.button.setAttribute('aria-pressed', String(row.id === id));
  drawPanel(panel);
}

function buildScale(answer) {
  const scale = make('div', 'vs-scale');
  const bar = make('i');
  bar.style.background = 'linear-gradient(90deg,' + SCALE.map(css).join(',') + ')';
  const ends = make('span');
  ends.append(make('span', '', '0 %'), make('span', '', '100 %'));
  const mean = 'Probability of the class that was chosen; mean ' + percent(answer.mean_confidence || 0);
  scale.append(make('span', '', mean), bar, ends);
  return scale;
}

function buildFiles(panel, answer) {
  const files = make('div', 'vs-files');
  const bytes = Uint8Array.from(atob(answer.file), (c) => c.charCodeAt(0));
  const url = URL.createObjectURL(new Blob([bytes], { type: 'image/png' }));
  state.urls.push(url);
  const labels = make('a', '', 'Labels (PNG)');
  labels.href = url;
  labels.download = state.stem + '_' + answer.slug + '_labels.png';
  labels.title = 'Class ids at the size of the image';
  const overlay = make('button', '', 'Overlay (PNG)');
  overlay.type = 'button';
  overlay.title = 'The picture as it is shown now';
  overlay.addEventListener('click', () => saveOverlay(panel, state.stem + '_' + answer.slug + '_overlay.png'));
  files.append(labels, overlay);
  return files;
}

function saveOverlay(panel, name) {
  const sheet = make('canvas');
  sheet.width = panel.canvas.width;
  sheet.height = panel.canvas.height;
  const context = sheet.getContext('2d');
  context.drawImage(panel.photo, 0, 0, sheet.width, sheet.height);
  context.globalAlpha = find('opacity').value / 100;
  context.drawImage(panel.canvas, 0, 0);
  sheet.toBlob((blob) => {
    const link = make('a');
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });
}

function buildStage(panel, answer, picture) {
  const stage = make('div', 'vs-stage');
  stage.tabIndex = 0;
  stage.setAttribute('role', 'application');
  stage.setAttribute('aria-label', answer.name + ': point at the picture, or use the arrow keys, to read its classes');
  panel.photo = make('img');
  panel.photo.alt = '';
  panel.photo.draggable = false;
  panel.photo.src = picture.source;
  panel.photo.width = picture.view[0];
  panel.photo.height = picture.view[1];
  panel.canvas = make('canvas');
  [panel.canvas.width, panel.canvas.height] = picture.view;
  panel.canvas.style.opacity = find('opacity').value / 100;
  panel.pin = make('span', 'vs-pin');
  panel.pin.hidden = true;
  stage.append(panel.photo, panel.canvas, panel.pin);
  const [width, height] = picture.view;
  stage.style.aspectRatio = width + ' / ' + height;
  stage.style.width = 'min(100%, ' + (78 * width) / height + 'vh)';
  const point = (event) => {
    const box = stage.getBoundingClientRect();
    pointAt((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  };
  stage.addEventListener('pointermove', (event) => event.pointerType === 'mouse' && point(event));
  stage.addEventListener('click', point);
  stage.addEventListener('keydown', pointByKey);
  return stage;
}

async function buildPanel(answer, picture) {
  const panel = { only: null, size: picture.size, rows: new Map(answer.legend.map((row) => [row.id, row])) };
  panel.labels = await inflate(answer.labels, answer.bytes);
  panel.confidence = answer.confidence && (await inflate(answer.confidence, 1));
  const box = make('article', 'vs-panel');
  const title = make('div', 'vs-title');
  const facts = picture.size.join(' x ') + ' pixels, ' + answer.seconds.toFixed(answer.seconds < 10 ? 1 : 0) + ' s';
  title.append(make('h2', '', answer.name), make('span', '', facts));
  const left = make('div');
  panel.readout = make('div', 'vs-readout');
  panel.readout.setAttribute('aria-live', 'polite');
  panel.readout.append(make('span', '', 'Point at the picture, or tap it, to name a class.'));
  const under = make('div', 'vs-under');
  under.append(panel.readout, buildFiles(panel, answer));
  left.append(buildStage(panel, answer, picture), under);
  const right = make('div');
  panel.scale = buildScale(answer);
  right.append(panel.scale, buildLegend(panel));
  const body = make('div', 'vs-body');
  body.append(left, right);
  box.append(title, body);
  panel.box = box;
  drawPanel(panel);
  return panel;
}

// ---- pointing: one place, read in every panel

function pointAt(x, y) {
  state.point = [Math.min(Math.max(x, 0), 0.999999), Math.min(Math.max(y, 0), 0.999999)];
  for (const panel of state.panels) readPanel(panel, ...state.point);
}

function pointByKey(event) {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  const [x, y] = state.point || [0.5, 0.5];
  pointAt(x + step[0] / 100, y + step[1] / 100);
}

function readPanel(panel, x, y) {
  const { width, height } = panel.canvas;
  const at = Math.floor(y * height) * width + Math.floor(x * width);
  const row = panel.rows.get(panel.labels[at]);
  const swatch = make('span', 'vs-swatch');
  swatch.style.background = css(row.colour);
  const where = 'at ' + Math.floor(x * panel.size[0]) + ', ' + Math.floor(y * panel.size[1]);
  const sure = panel.confidence ? Math.round(panel.confidence[at] / 2.55) + ' % sure, ' : '';
  panel.readout.replaceChildren(swatch, make('b', '', row.name), make('span', '', sure + where));
  panel.pin.hidden = false;
  panel.pin.style.left = 100 * x + '%';
  panel.pin.style.top = 100 * y + '%';
  for (const other of panel.rows.values()) other.button.classList.toggle('vs-here', other === row);
}

// ---- asking, waiting, showing

function wait(doing) {
  clearInterval(state.timer);
  find('error').hidden = true;
  find('busy').hidden = false;
  state.started = Date.now();
  const tick = () => {
    const seconds = Math.round((Date.now() - state.started) / 1000);
    find('doing').textContent = doing + (seconds > 1 ? ' ' + seconds + ' s' : '');
    if (seconds % 4 === 3) checkServer();
  };
  tick();
  state.timer = setInterval(tick, 1000);
}

// a server that is gone is told by nobody else: Gradio only goes on trying
function checkServer() {
  const sequence = state.sequence;
  fetch('robots.txt', { cache: 'no-store' }).catch(() => {
    if (sequence === state.sequence) complain('The server does not answer; is it still running?');
  });
}

function stopWaiting() {
  clearInterval(state.timer);
  find('busy').hidden = true;
}

function complain(sentence) {
  stopWaiting();
  clearResult();
  find('error').textContent = sentence;
  find('error').hidden = false;
}

function clearResult() {
  state.urls.splice(0).forEach((url) => URL.revokeObjectURL(url));
  state.panels = [];
  state.point = null;
  find('panels').replaceChildren();
  find('result').hidden = true;
}

function sendFile(file) {
  if (!file) return;
  const sequence = ++state.sequence;
  if (file.size > props.max_bytes) {
    const size = (file.size / 2 ** 20).toFixed(1);
    complain(file.name + ' has ' + size + ' MB; this page takes up to ' + props.max_bytes / 2 ** 20 + ' MB.');
    return;
  }
  wait('Segmenting ' + file.name + ' …');
  const reader = new FileReader();
  reader.onerror = () => complain(file.name + ' could not be read by the browser.');
  reader.onload = () => {
    if (sequence !== state.sequence) return;
    const image = reader.result.slice(reader.result.indexOf(',') + 1);
    trigger('submit', { sequence, name: file.name, image: file.size ? image : '' });
  };
  reader.readAsDataURL(file);
}

function sendExample(index) {
  const sequence = ++state.sequence;
  wait('Segmenting ' + props.examples[index].name + ' …');
  trigger('submit', { sequence, example: index });
}

async function show(answer) {
  if (!answer || answer.sequence !== state.sequence) return;
  if (answer.error) return complain(answer.error);
  clearResult();
  state.stem = answer.stem;
  const panels = [];
  for (const model of answer.models) panels.push(await buildPanel(model, answer.picture));
  if (answer.sequence !== state.sequence) return;
  state.panels = panels;
  find('panels').replaceChildren(...panels.map((panel) => panel.box));
  const confident = panels.some((panel) => panel.confidence);
  element.querySelector('[data-view="confidence"]').hidden = !confident;
  stopWaiting();
  find('error').hidden = true;
  find('result').hidden = false;
}

// ---- the controls

find('models').textContent = props.models.join(' · ');
find('limits').textContent = props.limits;
find('file').addEventListener('change', (event) => {
  sendFile(event.target.files[0]);
  event.target.value = '';
});
const drop = find('drop');
for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
  element.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle('vs-over', kind === 'dragenter' || kind === 'dragover');
    if (kind === 'drop') sendFile(event.dataTransfer.files[0]);
  });
}
document.addEventListener('paste', (event) => sendFile(event.clipboardData.files[0]));
find('opacity').addEventListener('input', (event) => {
  find('percent').textContent = event.target.value + ' %';
  for (const panel of state.panels) panel.canvas.style.opacity = event.target.value / 100;
});
for (const button of element.querySelectorAll('[data-view]')) {
  button.addEventListener('click', () => {
    state.view = button.dataset.view;
    for (const other of element.querySelectorAll('[data-view]')) {
      other.setAttribute('aria-pressed', String(other === button));
    }
    state.panels.forEach(drawPanel);
  });
}
props.examples.forEach((example, index) => {
  const button = make('button');
  button.type = 'button';
  button.title = example.name;
  const image = make('img');
  image.src = example.source;
  image.alt = example.name;
  button.append(image);
  button.addEventListener('click', () => sendExample(index));
  find('examples').append(button);
});
find('examples').hidden = props.examples.length === 0;
watch('value', () => show(props.value));
window.addEventListener('volo-seg-failure', () => {
  complain('The server is busy, or did not take the image; try again in a moment.');
});
