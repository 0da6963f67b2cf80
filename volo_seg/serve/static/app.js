// The page: sends an image to POST v1/segment, once for each model, and draws what comes back.
// Names of files and classes are set as text, never as HTML.

const find = (id) => document.getElementById(id);
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

const slug = (text) => text.replace(/[^\p{L}\p{N}_.-]+/gu, '-').replace(/^[-.]+|[-.]+$/g, '').slice(0, 80) || 'image';

const state = { request: null, timer: null, panels: [], view: 'classes', stem: 'image' };

// ---- from the answer to numbers

function toBlob(base64, type) {
  return new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], { type });
}

// COCO's run lengths go down the columns
function readLabels(answer) {
  const labels = new Uint16Array(answer.width * answer.height);
  for (const { id, rle } of answer.classes) {
    let at = 0;
    rle.counts.forEach((count, i) => {
      if (i % 2) for (let p = at; p < at + count; p++) {
        labels[(p % answer.height) * answer.width + Math.floor(p / answer.height)] = id;
      }
      at += count;
    });
  }
  return labels;
}

async function readConfidence(answer) {
  const bitmap = await createImageBitmap(toBlob(answer.confidence, 'image/png'), { colorSpaceConversion: 'none' });
  const context = new OffscreenCanvas(answer.width, answer.height).getContext('2d', { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, answer.width, answer.height);
  return new Uint8Array(data.length / 4).map((_, i) => data[4 * i]);
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
  const { width, height } = panel.canvas;
  const context = panel.canvas.getContext('2d');
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let y = 0, i = 0; y < height; y++) {
    const row = Math.floor(((y + 0.5) * panel.height) / height) * panel.width;
    for (let x = 0; x < width; x++, i++) {
      pixels[i] = table[numbers[row + Math.floor(((x + 0.5) * panel.width) / width)]];
    }
  }
  context.putImageData(image, 0, 0);
  panel.scale.hidden = !asConfidence;
}

// ---- one panel a model

function buildLegend(panel) {
  const list = make('ul', 'legend');
  for (const row of panel.rows.values()) {
    const button = make('button');
    button.type = 'button';
    button.title = 'Show only this class';
    button.setAttribute('aria-pressed', 'false');
    const swatch = make('span', 'swatch');
    swatch.style.background = css(row.colour);
    const bar = make('span', 'bar');
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
  const scale = make('div', 'scale');
  const bar = make('i');
  bar.style.background = 'linear-gradient(90deg,' + SCALE.map(css).join(',') + ')';
  const ends = make('span');
  ends.append(make('span', '', '0 %'), make('span', '', '100 %'));
  const mean = 'Probability of the class that was chosen; mean ' + percent(answer.mean_confidence || 0);
  scale.append(make('span', '', mean), bar, ends);
  return scale;
}

function buildFiles(panel, answer) {
  const files = make('div', 'files');
  panel.url = URL.createObjectURL(toBlob(answer.labels, 'image/png'));
  const labels = make('a', '', 'Labels (PNG)');
  labels.href = panel.url;
  labels.download = state.stem + '_' + slug(answer.model) + '_labels.png';
  labels.title = 'Class ids at the size of the image';
  const overlay = make('button', '', 'Overlay (PNG)');
  overlay.type = 'button';
  overlay.title = 'The picture as it is shown now';
  overlay.addEventListener('click', () => saveOverlay(panel, state.stem + '_' + slug(answer.model) + '_overlay.png'));
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

function buildStage(panel, answer, photo) {
  const stage = make('div', 'stage');
  stage.tabIndex = 0;
  stage.setAttribute('role', 'application');
  stage.setAttribute('aria-label', answer.model + ': point at the picture, or use the arrow keys, to read its classes');
  const [width, height] = [photo.naturalWidth, photo.naturalHeight];
  panel.photo = photo.cloneNode();
  panel.photo.alt = '';
  panel.photo.draggable = false;
  panel.canvas = make('canvas');
  [panel.canvas.width, panel.canvas.height] = [width, height];
  panel.canvas.style.opacity = find('opacity').value / 100;
  panel.pin = make('span', 'pin');
  panel.pin.hidden = true;
  stage.append(panel.photo, panel.canvas, panel.pin);
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

async function buildPanel(answer, photo) {
  const { width, height } = answer;
  const panel = { only: null, width, height, rows: new Map(answer.classes.map((row) => [row.id, row])) };
  panel.labels = readLabels(answer);
  panel.confidence = answer.confidence && (await readConfidence(answer));
  const box = make('article', 'panel');
  const title = make('div', 'title');
  const seconds = answer.seconds.toFixed(answer.seconds < 10 ? 1 : 0);
  title.append(make('h2', '', answer.model), make('span', '', `${width} x ${height} pixels, ${seconds} s`));
  const left = make('div');
  panel.readout = make('div', 'readout');
  panel.readout.setAttribute('aria-live', 'polite');
  panel.readout.append(make('span', '', 'Point at the picture, or tap it, to name a class.'));
  const under = make('div', 'under');
  under.append(panel.readout, buildFiles(panel, answer));
  left.append(buildStage(panel, answer, photo), under);
  const right = make('div');
  panel.scale = buildScale(answer);
  right.append(panel.scale, buildLegend(panel));
  const body = make('div', 'body');
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
  const [column, line] = [Math.floor(x * panel.width), Math.floor(y * panel.height)];
  const at = line * panel.width + column;
  const row = panel.rows.get(panel.labels[at]);
  const swatch = make('span', 'swatch');
  swatch.style.background = css(row.colour);
  const sure = panel.confidence ? Math.round(panel.confidence[at] / 2.55) + ' % sure, ' : '';
  panel.readout.replaceChildren(swatch, make('b', '', row.name), make('span', '', `${sure}at ${column}, ${line}`));
  panel.pin.hidden = false;
  panel.pin.style.left = 100 * x + '%';
  panel.pin.style.top = 100 * y + '%';
  for (const other of panel.rows.values()) other.button.classList.toggle('here', other === row);
}

// ---- asking, waiting, showing

function wait(doing) {
  stopWaiting();
  find('error').hidden = true;
  find('busy').hidden = false;
  const start = Date.now();
  const tick = () => {
    const seconds = Math.round((Date.now() - start) / 1000);
    find('doing').textContent = doing + (seconds > 1 ? ' ' + seconds + ' s' : '');
  };
  tick();
  state.timer = setInterval(tick, 1000);
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
  state.panels.forEach((panel) => URL.revokeObjectURL(panel.url));
  state.panels = [];
  state.point = null;
  find('panels').replaceChildren();
  find('result').hidden = true;
}

// ask(path, options) -> answer; a sentence is thrown where there is none
async function ask(path, options) {
  const response = await fetch(path, options).catch((error) => {
    throw error.name === 'AbortError' ? error : new Error('The server does not answer; is it still running?');
  });
  if (!response.ok) throw new Error((await response.json()).detail);
  return response;
}

async function segment(model, name, blob, signal) {
  const query = new URLSearchParams({ model: model.name, output: 'json', masks: 'rle', include: 'labels' });
  if (model.confidence) query.append('include', 'confidence');
  if (model === models[0]) query.append('include', 'image');
  const body = new FormData();
  body.append('image', blob, name);
  return (await ask('v1/segment?' + query, { method: 'POST', body, signal })).json();
}

// `open` gives the image; a request that is still running is given up
async function send(name, open) {
  state.request?.abort();
  const request = (state.request = new AbortController());
  const { signal } = request;
  try {
    wait('Segmenting ' + name + ' …');
    const blob = await open(signal);
    if (blob.size > max_bytes) {
      throw new Error(`${name} has ${megabytes(blob.size).toFixed(1)} MB; this page takes up to ${megabytes(max_bytes)} MB.`);
    }
    const answers = await Promise.all(models.map((model) => segment(model, name, blob, signal)));
    await show(name, answers, signal);
  } catch (error) {
    if (request === state.request) complain(error.message);
    request.abort();
  }
}

async function show(name, answers, signal) {
  const photo = make('img');
  photo.src = 'data:image/jpeg;base64,' + answers[0].image;
  await photo.decode();
  const panels = [];
  state.stem = slug(name.replace(/(.)\.[^.]*$/, '$1'));
  for (const answer of answers) panels.push(await buildPanel(answer, photo));
  signal.throwIfAborted();
  clearResult();
  state.panels = panels;
  find('panels').replaceChildren(...panels.map((panel) => panel.box));
  document.querySelector('[data-view="confidence"]').hidden = !panels.some((panel) => panel.confidence);
  stopWaiting();
  find('result').hidden = false;
}

// ---- the controls

const sendFile = (file) => file && send(file.name, async () => file);
const megabytes = (bytes) => Math.round((100 * bytes) / 2 ** 20) / 100;

find('file').addEventListener('change', (event) => {
  sendFile(event.target.files[0]);
  event.target.value = '';
});
for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    find('drop').classList.toggle('over', kind === 'dragenter' || kind === 'dragover');
    if (kind === 'drop') sendFile(event.dataTransfer.files[0]);
  });
}
document.addEventListener('paste', (event) => sendFile(event.clipboardData.files[0]));
find('opacity').addEventListener('input', (event) => {
  find('percent').textContent = event.target.value + ' %';
  for (const panel of state.panels) panel.canvas.style.opacity = event.target.value / 100;
});
for (const button of document.querySelectorAll('[data-view]')) {
  button.addEventListener('click', () => {
    state.view = button.dataset.view;
    for (const other of document.querySelectorAll('[data-view]')) {
      other.setAttribute('aria-pressed', String(other === button));
    }
    state.panels.forEach(drawPanel);
  });
}

const { models, max_bytes, max_pixels } = await (await ask('v1/models')).json();
const names = models.map((model) => model.name);
document.title = 'volo-seg: ' + names.join(', ');
find('models').textContent = names.join(' · ');
const megapixels = (max_pixels / 1e6).toFixed(1);
find('limits').textContent = `JPEG, PNG, WebP, TIFF or BMP, up to ${megabytes(max_bytes)} MB, ${megapixels} megapixels`;
const examples = await (await ask('v1/examples')).json();
examples.forEach((name, index) => {
  const button = make('button');
  button.type = 'button';
  button.title = name;
  const image = make('img');
  image.src = `v1/examples/${index}?thumbnail=true`;
  image.alt = name;
  button.append(image);
  button.addEventListener('click', () => {
    send(name, async (signal) => (await ask('v1/examples/' + index, { signal })).blob());
  });
  find('examples').append(button);
});
find('examples').hidden = examples.length === 0;
document.body.dataset.ready = 'true';
