// @ts-check
/** One camera on the page: its picture, what is said over it, and its buttons. */

import { hold, snapshot, toggleFullscreen, togglePip } from './picture.js';
import { Player } from './player.js';
import { Sight } from './sight.js';
import { lines } from './stats.js';
import { badge, say, title, unable } from './words.js';

/** @import { Around, Camera, Parts, Saying, State } from './types.d.ts' */
/** @import { Figures } from './stats.js' */

const IDLE_MS = 3_000;
/** A moment of few pictures needs no words. */
const SLOW_LOOKS = 3;

export class Tile {
  /** @type {Camera | undefined} */
  camera;
  #parts;
  #around;
  #sight;
  /** @type {Saying | null} */
  #saying = null;
  /** It gets few pictures; for how many looks the device has said that the network is why. */
  #few = false;
  #slow = 0;
  #idle = 0;

  /** @param {string} id the device's name for it @param {Around} around @param {string} name ours @param {string} href */
  constructor(id, around, name = id, href = id) {
    this.id = id;
    this.name = name;
    this.#around = around;
    const template = /** @type {HTMLTemplateElement} */ (document.getElementById('tile'));
    this.element = /** @type {HTMLElement} */ (template.content.firstElementChild?.cloneNode(true));
    this.#parts = partsOf(this.element);
    this.player = new Player({
      camera: id,
      signaling: around.signaling,
      show: (stream) => this.#show(stream),
      figures: (figures) => this.#figures(figures),
      quality: () => this.#parts.quality.value,
      curious: () => this.#few || !this.#parts.stats.hidden,
      changed: (before) => {
        this.#holdPicture(before);
        this.render();
        around.changed(this);
      },
    });
    this.#label(href);
    this.#keepQuality();
    this.#listen();
    this.#sight = new Sight(this.element, { exempt: () => this.#inPip, tell: (event) => this.player.tell(event) });
    this.render();
  }

  /** It plays, or is about to. */
  get busy() {
    return !['off', 'ended', 'paused'].includes(this.player.state.is);
  }

  /** It plays, or will as soon as it can and is seen. */
  get wanted() {
    return !['off', 'ended'].includes(this.player.state.is);
  }

  get #inPip() {
    return document.pictureInPictureElement === this.#parts.video;
  }

  /** @param {Camera | undefined} camera what the device says of it now */
  update(camera) {
    this.camera = camera;
    if (camera && !unable(camera) && this.#sight.seen) this.player.tell({ type: 'ready' });
    this.render();
  }

  play() {
    this.player.tell({ type: this.#sight.seen ? 'play' : 'later' });
  }

  /** Stops, and leaves the page. */
  remove() {
    this.stop();
    this.#sight.end();
    this.element.remove();
  }

  stop() {
    this.player.tell({ type: 'stop' });
  }

  toggle() {
    this.busy ? this.stop() : this.play();
  }

  snapshot() {
    if (this.busy && snapshot(this.#parts.video, this.name)) this.#around.announce(`Snapshot of ${this.name} saved`);
  }

  fullscreen() {
    if (this.busy) toggleFullscreen(this.element, this.#parts.video).catch(() => {});
  }

  pip() {
    if (this.busy) togglePip(this.#parts.video).catch(() => {});
  }

  statistics() {
    if (this.busy) this.#showStats(!!this.#parts.stats.hidden);
  }

  /** To the button that is there now. */
  focus() {
    const { start, again, stop, name } = this.#parts;
    (this.busy ? stop : [start, again].find((button) => !button.hidden) ?? name).focus();
  }

  /** Brings the page up to the state; called on every change and, while something is counted, every second. */
  render() {
    const { start, controls, state, shot, pip, video, word, watching, quality } = this.#parts;
    const { is } = this.player.state;
    const { word: badgeWord, tone } = badge(this.player.state, this.camera);
    this.element.dataset.state = is;
    state.dataset.tone = tone;
    text(word, badgeWord);
    text(watching, this.camera?.viewers && !unable(this.camera) ? `${this.camera.viewers} watching` : '');
    const focused = document.activeElement;
    start.hidden = (is !== 'off' && is !== 'paused') || unable(this.camera);
    controls.hidden = !this.busy;
    if (!this.busy) this.#showStats(false);
    shot.disabled = pip.disabled = !video.videoWidth;
    quality.options[2].disabled = this.camera?.low?.state === 'unavailable';
    this.#renderMessage();
    // Whoever pressed a button that is gone now stands at its opposite, not at the top of the page.
    if (this.element.contains(focused) && !focused?.getClientRects().length) this.focus();
    // Of the camera, not of what it sends just now: nothing moves when the picture gets smaller.
    const [width, height] = this.camera?.width ? [this.camera.width, this.camera.height] : [video.videoWidth, video.videoHeight];
    if (width) this.element.style.setProperty('--ratio', `${width} / ${height}`);
  }

  #renderMessage() {
    const { message, title: heading, detail, again, start, held } = this.#parts;
    const { state } = this.player;
    const now = performance.now();
    const before = this.#saying;
    const saying = (this.#saying = say(state, this.camera, this.player.standing));
    if (saying && saying.title !== before?.title) this.#around.announce(`${this.name}: ${title(saying, now)}`);
    if (!saying && before && state.is === 'live') this.#around.announce(`${this.name}: live`);
    message.hidden = !saying;
    if (!saying) return;
    text(heading, title(saying, now));
    text(detail, saying.detail ?? '');
    text(again, saying.action ?? '');
    again.hidden = !saying.action;
    message.dataset.busy = String(!!saying.busy);
    message.dataset.beside = String(!start.hidden || !held.hidden || ('picture' in state && state.picture));
  }

  /** @param {string} href */
  #label(href) {
    const { name, video, controls, start, stop, quality } = this.#parts;
    name.textContent = this.element.ariaLabel = this.name;
    name.href = href;
    video.ariaLabel = `Live picture of ${this.name}`;
    controls.ariaLabel = `Controls of ${this.name}`;
    start.ariaLabel = `Play ${this.name}`;
    stop.ariaLabel = `Stop ${this.name}`;
    quality.ariaLabel = `Quality of ${this.name}`;
  }

  /** Each camera's choice, in this browser. */
  #keepQuality() {
    const { quality } = this.#parts;
    const key = `edgecam-quality ${this.name}`;
    try {
      quality.value = localStorage.getItem(key) ?? 'auto';
    } catch {
      // Without storage the choice lasts as long as the page.
    }
    if (!quality.value) quality.value = 'auto';
    quality.onchange = () => {
      this.player.prefer();
      localStorage.setItem(key, quality.value);
    };
  }

  #listen() {
    const { start, again, stop, shot, info, pip, full, name, video, held, picture } = this.#parts;
    start.onclick = again.onclick = () => this.play();
    stop.onclick = () => this.stop();
    shot.onclick = () => this.snapshot();
    info.onclick = () => this.statistics();
    pip.onclick = () => this.pip();
    pip.hidden = !document.pictureInPictureEnabled;
    full.onclick = picture.ondblclick = () => this.fullscreen();
    name.onclick = (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      this.#around.open(this);
    };
    video.onloadeddata = () => {
      held.hidden = true;
      this.player.tell({ type: 'picture' });
      this.render();
    };
    video.onresize = () => this.render();
    video.onleavepictureinpicture = () => this.#sight.look();
    this.element.onpointermove = this.element.onpointerdown = this.element.onkeydown = () => {
      delete this.element.dataset.idle;
      clearTimeout(this.#idle);
      this.#idle = setTimeout(() => (this.element.dataset.idle = ''), IDLE_MS);
    };
  }

  /** @param {MediaStream} stream */
  #show(stream) {
    const { video } = this.#parts;
    video.srcObject = stream;
    // Muted, so refused only where the system saves power. The browser's own button then shows the way.
    video.play().then(
      () => (video.controls = false),
      (error) => (video.controls = error.name === 'NotAllowedError'),
    );
  }

  /** The last picture stands while a new connection is made, and goes when the viewer stops it. @param {State} before */
  #holdPicture(before) {
    const { video, held } = this.#parts;
    const { is } = this.player.state;
    if (is === 'off' || is === 'ended') {
      video.srcObject = null;
      held.hidden = true;
    } else if ('picture' in before && before.picture && is !== 'live' && is !== 'restoring') {
      held.hidden = !hold(video, held);
    }
  }

  /** @param {boolean} shown */
  #showStats(shown) {
    const { stats, info } = this.#parts;
    if (stats.hidden !== shown) return;
    stats.hidden = !shown;
    info.ariaPressed = String(shown);
    if (shown) this.#figures(null);
  }

  /** @param {Figures | null} figures */
  #figures(figures) {
    this.#slow = figures?.said?.thinned ? this.#slow + 1 : 0;
    if (this.#slow === SLOW_LOOKS) this.#around.announce(`${this.name}: few pictures, the network is slow`);
    this.#parts.hint.hidden = this.#slow < SLOW_LOOKS;
    this.#few = !!figures && figures.fps < (this.camera?.fps ?? 0) / 2;
    this.render();
    const rows = figures ? lines(figures, this.camera) : [['Picture', 'measuring']];
    if (!this.#parts.stats.hidden) this.#parts.stats.replaceChildren(...rows.flatMap(([label, value]) => [make('dt', label), make('dd', value)]));
  }
}

/** @param {HTMLElement} element @returns {Parts} */
function partsOf(element) {
  const parts = [...element.querySelectorAll('[data-part]')].map((part) => [/** @type {HTMLElement} */ (part).dataset.part, part]);
  return Object.fromEntries(parts);
}

/** Writing the same text again would make some screen readers read it again. @param {Element} element @param {string} value */
function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

/** @param {string} tag @param {string} content */
function make(tag, content) {
  const element = document.createElement(tag);
  element.textContent = content;
  return element;
}
