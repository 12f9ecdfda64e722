// A viewer with a browser: opens a page in Debian's Chromium and writes down what it sees.
//
// usage: node viewer.mjs '{"url": …, "out": "seen.jsonl", "script"?: {"file": "peer.js", "url": …}, "args"?: […], "servers"?: "stun"}'
//
// Rows of `out`: {type: "frame", t, video, n, width, age?, number?} for each picture shown, {type: "stats", t, …} four times a second,
// {type: "event", …}. Times are seconds since 1970. Each line on stdin is {"eval": "…"}, answered with {"result": …}; it ends with the end of stdin.
import { createWriteStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { chromium } from '../tests/browser/node_modules/playwright-core/index.mjs';

const its = JSON.parse(process.argv[2]);
const out = createWriteStream(its.out);
const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
const write = (row) => out.write(`${JSON.stringify(row)}\n`);

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  headless: true,
  args: [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--disable-background-networking',
    '--disable-component-update',
    // In a namespace Chromium gathers no candidates without these two.
    '--disable-features=WebRtcHideLocalIpsWithMdns',
    '--allow-loopback-in-peer-connection',
    ...(its.args ?? []),
  ],
});
const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ignoreHTTPSErrors: true });
await context.addInitScript(watch, its.servers ?? '');
const page = await context.newPage();
page.on('console', (message) => message.type() === 'error' && write({ type: 'event', t: Date.now() / 1000, console: message.text() }));
page.on('pageerror', (error) => write({ type: 'event', t: Date.now() / 1000, error: String(error) }));

let ended = false;
const drained = drain();
try {
  await page.goto(its.url);
  // A file with a function in it: who has no page of its own to open.
  if (its.script) await page.evaluate(`(${await readFile(its.script.file, 'utf8')})(${JSON.stringify(its.script.url)})`);
  say({ opened: true });
  for await (const line of createInterface({ input: process.stdin })) {
    try {
      say({ result: await page.evaluate(JSON.parse(line).eval) });
    } catch (error) {
      say({ error: String(error) });
    }
  }
} catch (error) {
  say({ error: String(error) });
}
ended = true;
await drained;
await browser.close();
out.end();
process.exitCode = 0;

/** Takes what the page has noted. */
async function drain() {
  while (!ended) {
    await sleep(500);
    const rows = await page.evaluate(() => window.lab?.rows.splice(0) ?? []).catch(() => []);
    for (const row of rows) write(row);
  }
}

/** In the page, before its own scripts. Servers whose URLs do not begin so are kept from it. */
function watch(servers) {
  const lab = (window.lab = { rows: [], peers: [], configurations: [] });
  const now = () => (performance.timeOrigin + performance.now()) / 1000;
  const note = (row) => lab.rows.push(row);

  window.RTCPeerConnection = class extends RTCPeerConnection {
    constructor(given, ...more) {
      const iceServers = given?.iceServers?.filter(({ urls }) => [urls].flat().every((url) => url.startsWith(servers)));
      const configuration = { ...given, iceServers };
      super(configuration, ...more);
      lab.peers.push(this);
      lab.configurations.push(configuration);
      const peer = lab.peers.length;
      for (const state of ['connectionState', 'iceConnectionState', 'signalingState']) {
        this.addEventListener(state.toLowerCase() + 'change', () => note({ type: 'event', t: now(), peer, [state]: this[state] }));
      }
    }
  };

  setInterval(async () => {
    const peer = lab.peers.at(-1);
    if (!peer) return;
    const entries = await peer.getStats().catch(() => null);
    if (!entries) return;
    const all = [...entries.values()];
    const inbound = all.find(({ type, kind }) => type === 'inbound-rtp' && kind === 'video') ?? {};
    const transport = all.find(({ type }) => type === 'transport');
    const pair = entries.get(transport?.selectedCandidatePairId);
    const side = (id) => {
      const it = entries.get(id);
      return it && `${it.candidateType} ${it.protocol}${it.relayProtocol ? ` by ${it.relayProtocol}` : ''} ${it.address}:${it.port}`;
    };
    note({
      type: 'stats',
      t: now(),
      peer: lab.peers.length,
      state: peer.connectionState,
      decoded: inbound.framesDecoded ?? 0,
      received: inbound.framesReceived ?? 0,
      dropped: inbound.framesDropped ?? 0,
      keyframes: inbound.keyFramesDecoded ?? 0,
      freezes: inbound.freezeCount ?? 0,
      frozen: inbound.totalFreezesDuration ?? 0,
      width: inbound.frameWidth ?? 0,
      height: inbound.frameHeight ?? 0,
      bytes: (inbound.bytesReceived ?? 0) + (inbound.headerBytesReceived ?? 0),
      packets: inbound.packetsReceived ?? 0,
      lost: inbound.packetsLost ?? 0,
      repaired: inbound.retransmittedPacketsReceived ?? 0,
      nacks: inbound.nackCount ?? 0,
      plis: inbound.pliCount ?? 0,
      buffered: inbound.jitterBufferDelay ?? 0,
      emitted: inbound.jitterBufferEmittedCount ?? 0,
      rtt: pair?.currentRoundTripTime,
      local: side(pair?.localCandidateId),
      remote: side(pair?.remoteCandidateId),
    });
  }, 250);

  // Every video element is looked at from when it first shows something.
  const watched = new Set();
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [480, 64];
  const context = canvas.getContext('2d', { willReadFrequently: true });
  const look = () => {
    for (const video of document.querySelectorAll('video')) {
      if (watched.has(video)) continue;
      watched.add(video);
      const id = watched.size;
      video.requestVideoFrameCallback(function shown(_, { presentedFrames: n, width }) {
        const row = { type: 'frame', t: now(), video: id, n, width };
        // Reading pixels costs; every sixth picture tells how old pictures are.
        if (n % 6 === 0) Object.assign(row, readMark(video));
        note(row);
        video.requestVideoFrameCallback(shown);
      });
    }
  };
  setInterval(look, 100);

  /** The mark of edgecam's test picture (src/camera/test_source.rs), which is scaled when the picture is. */
  function readMark(video) {
    const scale = video.videoWidth / (window.labWidth ?? 1280);
    context.drawImage(video, 0, 0, 480 * scale, 64 * scale, 0, 0, 480, 64);
    const { data } = context.getImageData(0, 0, 480, 64);
    let bits = 0n;
    for (let cell = 0; cell < 56; cell++) {
      const [x, y] = [24 + (cell % 28) * 16, 24 + Math.floor(cell / 28) * 16];
      bits = (bits << 1n) | (data[(y * 480 + x) * 4 + 1] > 128 ? 1n : 0n);
    }
    const word = bits >> 8n;
    let sum = 0;
    for (let byte = 0n; byte < 6n; byte++) sum = (sum + Number((word >> (byte * 8n)) & 255n)) & 255;
    if (sum !== Number(bits & 255n)) return {};
    const age = ((Math.floor(performance.timeOrigin + performance.now()) >>> 0) - Number(word >> 16n)) | 0;
    return { number: Number(word & 0xffffn), age };
  }
}
