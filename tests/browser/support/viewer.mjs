import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { chromium, devices } from 'playwright-core';
import { until } from './until.mjs';

const AXE = createRequire(import.meta.url).resolve('axe-core/axe.min.js');
const SCREENSHOTS = fileURLToPath(new URL('../../../target/browser/', import.meta.url));

const LAUNCH = {
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  headless: true,
  args: [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--disable-background-networking',
    '--disable-component-update',
    // Where there is no network but loopback, Chromium gathers no candidates without these two.
    '--disable-features=WebRtcHideLocalIpsWithMdns',
    '--allow-loopback-in-peer-connection',
  ],
};

export const launch = (...args) => chromium.launch({ ...LAUNCH, args: [...LAUNCH.args, ...args] });
/** A browser whose process is known, and can be killed. */
export const launchServer = () => chromium.launchServer(LAUNCH);
export const connect = (server) => chromium.connect(server.wsEndpoint());

export const PHONE = devices['Pixel 7'];

/** Somebody with a browser window of their own. */
export class Viewer {
  /** What the browser complained about. */
  complaints = [];

  static async come(t, browser, options = {}) {
    const viewer = new Viewer();
    viewer.context = await browser.newContext({ viewport: { width: 1280, height: 800 }, colorScheme: 'dark', ...options });
    t.after(() => viewer.context.close().catch(() => {}));
    await viewer.context.addInitScript(watchPeers);
    viewer.page = await viewer.context.newPage();
    viewer.page.on('console', (message) => message.type() === 'error' && viewer.complaints.push(message.text()));
    viewer.page.on('pageerror', (error) => viewer.complaints.push(String(error)));
    return viewer;
  }

  async open(url) {
    await this.page.goto(url);
    return this;
  }

  tile(camera = 'front') {
    return this.page.locator(`.tile[aria-label="${camera}"]`);
  }

  /** Until the camera's picture moves. */
  async sees(camera = 'front') {
    await until(`${camera} is live; the page says: ${await this.says(camera)}`, async () => {
      if ((await this.tile(camera).getAttribute('data-state')) !== 'live') throw new Error(await this.says(camera));
      return this.tile(camera).locator('video').evaluate((video) => video.videoWidth > 0 && !video.paused && video.currentTime > 0);
    });
    return this;
  }

  /** All that stands on a camera's tile. */
  async says(camera = 'front') {
    return (await this.tile(camera).count()) ? this.tile(camera).innerText() : this.page.locator('body').innerText();
  }

  /** The newest connection's counters. */
  received() {
    return this.page.evaluate(async () => {
      const report = await window.peers.at(-1).getStats();
      const { framesDecoded, timestamp } = [...report.values()].find(({ type }) => type === 'inbound-rtp') ?? {};
      return { framesDecoded: framesDecoded ?? 0, timestamp: timestamp ?? 0 };
    });
  }

  /** Pictures a second, counted over the next `frames` of them. */
  async rate(frames) {
    const before = await this.received();
    const after = await until(`${frames} more pictures`, async () => {
      const now = await this.received();
      return now.framesDecoded >= before.framesDecoded + frames && now;
    });
    return (1000 * (after.framesDecoded - before.framesDecoded)) / (after.timestamp - before.timestamp);
  }

  /** Reads the marks that the test source draws into its pictures, of the next `count` pictures shown. */
  marks(count) {
    return this.page.evaluate(readMarks, count);
  }

  async screenshot(name) {
    await mkdir(SCREENSHOTS, { recursive: true });
    await this.page.screenshot({ path: `${SCREENSHOTS}${name}.png` });
  }

  /** Fails on what keeps people from using the page. */
  async assertUsable(what) {
    // Not as a script element: the page's own policy would refuse it.
    const { readFile } = await import('node:fs/promises');
    await this.page.evaluate(await readFile(AXE, 'utf8'));
    const { violations } = await this.page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
    const serious = violations.filter(({ impact }) => impact === 'serious' || impact === 'critical');
    const told = serious.map(({ id, help, nodes }) => `${id}: ${help}\n${nodes.map(({ html, any }) => `  ${html}\n    ${any.map(({ message }) => message).join('; ')}`).join('\n')}`);
    assert.equal(told.join('\n'), '', what);
  }

  /** @param {RegExp} [expected] what may be complained about, when a test breaks something on purpose */
  assertNoComplaints(expected) {
    assert.deepEqual(this.complaints.filter((complaint) => !expected?.test(complaint)), []);
  }
}

/** In the page, before its own scripts: keeps its connections where a test finds them. */
function watchPeers() {
  window.peers = [];
  window.RTCPeerConnection = class extends RTCPeerConnection {
    constructor(...args) {
      super(...args);
      window.peers.push(this);
    }
  };
}

/**
 * In the page: the mark is 56 squares of 16 pixels in two rows from (16, 16): 32 bits of milliseconds, 16 of the picture's number, 8 of checksum.
 * In the low rendition, where nothing else is set, all that is half as large.
 * A number is null where a picture could not be read.
 */
function readMarks(count) {
  const video = document.querySelector('video');
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [480, 64];
  const context = canvas.getContext('2d', { willReadFrequently: true });
  const read = () => [1, 0.5].map(readAt).find(({ number }) => number !== null) ?? { number: null };
  const readAt = (scale) => {
    context.drawImage(video, 0, 0, 480 * scale, 64 * scale, 0, 0, 480, 64);
    const { data } = context.getImageData(0, 0, 480, 64);
    let bits = 0n;
    for (let cell = 0; cell < 56; cell++) {
      const [x, y] = [24 + (cell % 28) * 16, 24 + Math.floor(cell / 28) * 16];
      const shade = data[(y * 480 + x) * 4 + 1];
      if (Math.abs(shade - 128) < 30) return { number: null };
      bits = (bits << 1n) | (shade > 128 ? 1n : 0n);
    }
    const word = bits >> 8n;
    let sum = 0;
    for (let byte = 0n; byte < 6n; byte++) sum = (sum + Number((word >> (byte * 8n)) & 255n)) & 255;
    if (sum !== Number(bits & 255n)) return { number: null };
    const age = ((Math.floor(performance.timeOrigin + performance.now()) >>> 0) - Number(word >> 16n)) | 0;
    return { number: Number(word & 0xffffn), age };
  };
  return new Promise((done) => {
    const marks = [];
    video.requestVideoFrameCallback(function shown() {
      marks.push(read());
      if (marks.length === count) done(marks);
      else video.requestVideoFrameCallback(shown);
    });
  });
}
