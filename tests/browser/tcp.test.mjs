/** Chromium where UDP goes nowhere: it has nothing but TCP to the media port. */

import assert from 'node:assert/strict';
import { connect, createServer } from 'node:net';
import { after, before, test } from 'node:test';
import { Daemon } from './support/daemon.mjs';
import { until } from './support/until.mjs';
import { Viewer, launch } from './support/viewer.mjs';

let browser;
// Chromium's own switch for networks like these: not one datagram leaves it.
before(async () => (browser = await launch('--webrtc-ip-handling-policy=disable_non_proxied_udp')));
after(() => browser?.close());

test('where UDP is dropped the page plays by TCP, at the camera’s rate', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser);
  await (await viewer.open(daemon.at('front'))).sees();
  // Where the machine pauses, packets are dropped for a moment; not while the pictures flow.
  await until('30 pictures a second, and nothing dropped meanwhile', async () => {
    const dropped = await daemon.metric('edgecam_packets_dropped_total');
    return (await viewer.rate(60)) > 27 && (await daemon.metric('edgecam_packets_dropped_total')) === dropped;
  }, { within: 90_000 });
  assert.deepEqual(await viewer.page.evaluate(pathOfPictures), { protocol: 'tcp', port: await mediaPort(viewer) });
  assert.equal(await daemon.metric('edgecam_media_connections'), 1);
  await viewer.page.close();
  await until('the connection is closed', async () => (await daemon.metric('edgecam_media_connections')) === 0);
  viewer.assertNoComplaints();
});

test('where TCP is not wanted nothing listens, and the page says that there is no way', async (t) => {
  const daemon = await Daemon.start(t, undefined, undefined, 'tcp = false');
  const viewer = await Viewer.come(t, browser);
  await viewer.open(daemon.at('front'));
  const port = await mediaPort(viewer);
  assert.equal(await canConnect(port), false);
  await until('the words', async () => /No way through for the video/.test(await viewer.says()));
});

test('a connection that breaks is replaced, and the pictures go on in the same session', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser);
  const between = await Between.open(t);
  await viewer.context.addInitScript(goThrough, between.port);
  await viewer.open(daemon.at('front'));
  between.device = await mediaPort(viewer);
  await viewer.sees();
  await viewer.rate(30);
  for (let times = 1; times <= 2; times++) {
    between.break();
    const start = Date.now();
    await viewer.rate(30);
    t.diagnostic(`a second of pictures ${Date.now() - start} ms after the break`);
    // The page may have restarted ICE meanwhile, and so opened another.
    assert.ok(between.opened > times, `${between.opened} opened`);
  }
  assert.equal(await viewer.page.evaluate(() => window.peers.length), 1);
  assert.equal(await daemon.metric('edgecam_sessions_opened_total'), 1);
  viewer.assertNoComplaints();
});

/** Stands between browser and device, and breaks connections. */
class Between {
  opened = 0;
  #ends = new Set();

  static async open(t) {
    const between = new Between();
    const server = createServer((viewer) => between.#join(viewer));
    await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
    t.after(() => {
      between.break();
      server.close();
    });
    between.port = server.address().port;
    return between;
  }

  break() {
    for (const end of this.#ends) end.destroy();
  }

  async #join(viewer) {
    this.opened++;
    await until('it is known where the device is', () => this.device);
    const device = connect(this.device, '127.0.0.1');
    for (const [end, other] of [[viewer, device], [device, viewer]]) {
      this.#ends.add(end);
      end.on('error', () => {});
      end.on('close', () => {
        this.#ends.delete(end);
        other.destroy();
      });
      end.pipe(other);
    }
  }
}

const canConnect = (port) =>
  new Promise((known) => {
    const socket = connect(port, '127.0.0.1');
    socket.on('error', () => known(false));
    socket.on('connect', () => {
      socket.destroy();
      known(true);
    });
  });

/** The media port of the device, as its answer says. */
const mediaPort = (viewer) =>
  until('the answer', () =>
    viewer.page.evaluate(() => {
      const answer = window.answer ?? window.peers.at(-1)?.remoteDescription?.sdp;
      return Number(/a=candidate:\S+ 1 udp \S+ 127\.0\.0\.1 (\d+)/.exec(answer)?.[1] ?? 0);
    }));

/** In the page: what carries the pictures. */
async function pathOfPictures() {
  const stats = await window.peers.at(-1).getStats();
  const transport = [...stats.values()].find(({ type }) => type === 'transport');
  const { protocol, port } = stats.get(stats.get(transport.selectedCandidatePairId).remoteCandidateId);
  return { protocol, port };
}

/** In the page: the answer's candidates by TCP get another port. */
function goThrough(port) {
  const set = RTCPeerConnection.prototype.setRemoteDescription;
  RTCPeerConnection.prototype.setRemoteDescription = function ({ type, sdp }) {
    window.answer = sdp;
    return set.call(this, { type, sdp: sdp.replace(/( 1 tcp \d+ 127\.0\.0\.1) \d+/g, `$1 ${port}`) });
  };
}
