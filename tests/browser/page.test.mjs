/** Debian's Chromium against the real program: what people see and do. */

import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { Daemon, FRONT } from './support/daemon.mjs';
import { until } from './support/until.mjs';
import { PHONE, Viewer, connect, launch, launchServer } from './support/viewer.mjs';

/** What Chromium says of a device that is not there, is just going, or wants a token. */
const REFUSED = /ERR_CONNECTION_(REFUSED|RESET)|status of 401/;

let browser;
before(async () => (browser = await launch()));
after(() => browser?.close());

test('the page of a camera plays at once, at the camera’s rate', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser);
  await (await viewer.open(daemon.at('front'))).sees();
  // A busy machine may leave out pictures for a while, and show late ones faster after it.
  await until('30 pictures a second', async () => {
    const rate = await viewer.rate(60);
    return rate > 27 && rate < 33;
  }, { within: 90_000 });
  viewer.assertNoComplaints();
});

test('the pictures shown are those the camera takes now, in their order', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser);
  await (await viewer.open(daemon.at('front'))).sees();
  const marks = await viewer.marks(90);
  const readable = marks.filter(({ number }) => number !== null);
  assert.ok(readable.length >= 85, `${readable.length} of 90 could be read`);
  for (let i = 1; i < readable.length; i++) {
    const step = (readable[i].number - readable[i - 1].number) & 0xffff;
    assert.ok(step >= 1 && step < 90, `picture ${readable[i].number} came after ${readable[i - 1].number}`);
  }
  const ages = readable.map(({ age }) => age).sort((a, b) => a - b);
  t.diagnostic(`a picture is ${ages[45]} ms old when it is read, ${ages.at(-1)} ms at most`);
  assert.ok(ages[0] >= 0 && ages[45] < 1_000, `ages ${ages[0]} to ${ages.at(-1)} ms`);
});

test('the list plays several cameras over one socket', async (t) => {
  const daemon = await Daemon.start(t, `${FRONT}${FRONT.replace('front', 'garden')}`);
  const viewer = await Viewer.come(t, browser);
  const sockets = [];
  viewer.page.on('websocket', (socket) => sockets.push(socket));
  await viewer.open(daemon.at());
  await viewer.page.getByRole('button', { name: 'Play all' }).click();
  await Promise.all([viewer.sees('front'), viewer.sees('garden')]);
  assert.equal(sockets.length, 1);
  await viewer.tile('garden').getByRole('button', { name: 'Stop garden' }).click();
  await until('garden is left, front is not', async () => (await daemon.camera('garden')).viewers === 0 && (await daemon.camera('front')).viewers === 1);
  await viewer.tile('front').getByRole('link', { name: 'front' }).click();
  assert.equal(new URL(viewer.page.url()).pathname, '/front');
  await viewer.page.goBack();
  assert.equal(await viewer.tile('front').getAttribute('data-state'), 'live', 'it went on playing');
  viewer.assertNoComplaints();
});

test('tiles that are scrolled away give their places back until they are seen again', async (t) => {
  const daemon = await Daemon.start(t, `${FRONT}${FRONT.replace('front', 'garden')}`);
  const viewer = await Viewer.come(t, browser, { viewport: { width: 500, height: 300 } });
  await viewer.open(daemon.at());
  await viewer.tile('garden').waitFor();
  const scroll = (camera) => viewer.tile(camera).evaluate((tile) => tile.scrollIntoView());
  const watched = async () => [(await daemon.camera('front')).viewers, (await daemon.camera('garden')).viewers].join();
  await viewer.page.evaluate(() => document.querySelectorAll('.tile')[1].style.setProperty('margin-top', '600px'));
  await viewer.page.getByRole('button', { name: 'Play all' }).click();
  await viewer.sees('front');
  await until('only what is seen plays', async () => (await watched()) === '1,0');
  await scroll('garden');
  await viewer.sees('garden');
  await until('front has given its place back', async () => (await watched()) === '0,1');
  assert.equal(await viewer.tile('front').getAttribute('data-state'), 'paused');
  await scroll('front');
  await viewer.sees('front');
  await viewer.page.getByRole('button', { name: 'Stop all' }).click();
  await until('nothing plays', async () => (await watched()) === '0,0');
  viewer.assertNoComplaints();
});

test('three viewers cost one opened camera', async (t) => {
  const daemon = await Daemon.start(t);
  const viewers = await Promise.all([1, 2, 3].map(() => Viewer.come(t, browser)));
  await Promise.all(viewers.map(async (viewer) => (await viewer.open(daemon.at('front'))).sees()));
  assert.equal((await daemon.camera()).viewers, 3);
  assert.equal(await daemon.metric('edgecam_camera_opened_total', 'camera="front"'), 1);
  await Promise.all(viewers.map((viewer) => viewer.rate(30)));
  assert.equal(await daemon.metric('edgecam_camera_opened_total', 'camera="front"'), 1);
});

test('the camera is closed when nobody watches any more', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser);
  await (await viewer.open(daemon.at('front'))).sees();
  await viewer.page.close();
  await until('the camera is closed', async () => {
    const { viewers, state } = await daemon.camera();
    return viewers === 0 && state === 'idle';
  });
});

test('viewers whose browser is killed are gone within 35 seconds, with and without a socket', async (t) => {
  const daemon = await Daemon.start(t);
  const server = await launchServer();
  t.after(() => server.kill());
  const doomed = await connect(server);
  const onSocket = await Viewer.come(t, doomed);
  await (await onSocket.open(daemon.at('front'))).sees();
  const onWhep = await Viewer.come(t, doomed);
  await onWhep.open(daemon.at());
  await onWhep.page.evaluate(playByWhep, daemon.at('whep/front'));
  assert.equal((await daemon.camera()).viewers, 2);
  // The whole process group at once: no process of the browser says goodbye for another.
  process.kill(-server.process().pid, 'SIGKILL');
  await until('both places are free', async () => (await daemon.camera()).viewers === 0, { within: 35_000 });
});

test('a full house is told in words, and the place is taken when it is free', async (t) => {
  const daemon = await Daemon.start(t, `${FRONT}max_viewers = 1\n`);
  const [first, second] = await Promise.all([Viewer.come(t, browser), Viewer.come(t, browser)]);
  await (await first.open(daemon.at('front'))).sees();
  await second.open(daemon.at('front'));
  await until('the words', async () => /The only place is taken, trying again in \d+ s/.test(await second.says()));
  await second.assertUsable('a full house');
  await second.screenshot('full');
  await first.page.close();
  await second.sees();
  second.assertNoComplaints();
});

test('the statistics show figures', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser);
  await (await viewer.open(daemon.at('front'))).sees();
  await viewer.page.keyboard.press('i');
  const expected = [/Picture\s+640 × 360, [1-9]\d* fps/, /Bitrate\s+[1-9]\d* kbit\/s/, /Loss\s+\d+\.\d %/, /Round trip\s+[\d.]+ ms/, /Jitter buffer\s+[\d.]+ ms/,
    /Path\s+you \w+ → camera \w+, UDP/, /Codec\s+H264 42e01f/, /Encoder\s+(?!not known).*enc/, /Source\s+test picture 640x360/];
  await until('all figures', async () => {
    const text = await viewer.tile().locator('dl').innerText();
    const missing = expected.filter((line) => !line.test(text));
    if (missing.length) throw new Error(`${missing.join(', ')} in\n${text}`);
    return true;
  });
  await viewer.assertUsable('statistics');
  await viewer.screenshot('statistics');
  viewer.assertNoComplaints();
});

test('a snapshot is a PNG in the size of the picture, named by camera and time', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser);
  await (await viewer.open(daemon.at('front'))).sees();
  const [download] = await Promise.all([viewer.page.waitForEvent('download'), viewer.page.getByRole('button', { name: 'Save a snapshot' }).click()]);
  assert.match(download.suggestedFilename(), /^front_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.png$/);
  const png = await readFile(await download.path());
  assert.equal(png.subarray(1, 4).toString(), 'PNG');
  assert.deepEqual([png.readUInt32BE(16), png.readUInt32BE(20)], [640, 360]);
  viewer.assertNoComplaints();
});

test('everything can be done with keys alone', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser);
  await viewer.open(daemon.at());
  await until('the tile', () => viewer.tile().isVisible());
  const { keyboard } = viewer.page;
  await keyboard.press('Space');
  await viewer.sees();
  const [download] = await Promise.all([viewer.page.waitForEvent('download'), keyboard.press('s')]);
  assert.ok(download);
  await keyboard.press('f');
  await until('full screen', () => viewer.page.evaluate(() => document.fullscreenElement?.classList.contains('tile')));
  await keyboard.press('f');
  await until('not full screen', () => viewer.page.evaluate(() => !document.fullscreenElement));
  await keyboard.press('?');
  await until('help', () => viewer.page.getByRole('dialog').isVisible());
  await viewer.assertUsable('help');
  await viewer.screenshot('help');
  await keyboard.press('Escape');
  await until('no help', async () => !(await viewer.page.getByRole('dialog').isVisible()));
  await keyboard.press('Space');
  await until('it is stopped', async () => (await daemon.camera()).viewers === 0);
  assert.equal(await viewer.tile().getAttribute('data-state'), 'off');
  viewer.assertNoComplaints();
});

test('a key pressed right after the help was closed is not lost', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser);
  await viewer.open(daemon.at());
  await viewer.tile().waitFor();
  // Until the next frame is drawn, the browser still takes the closed help's button for the focused one.
  await viewer.page.evaluate(() => {
    const help = document.querySelector('dialog');
    help.showModal();
    help.close();
    document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: ' ', bubbles: true, cancelable: true }));
  });
  await viewer.sees();
});

test('focus stays where the hands are when play becomes stop', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser);
  await viewer.open(daemon.at());
  await viewer.page.getByRole('button', { name: 'Play front' }).press('Enter');
  await viewer.sees();
  const focused = () => viewer.page.evaluate(() => document.activeElement?.ariaLabel);
  assert.equal(await focused(), 'Stop front');
  await viewer.page.keyboard.press('Enter');
  assert.equal(await focused(), 'Play front');
});

test('the page is usable on desk and phone, dark and light', async (t) => {
  const daemon = await Daemon.start(t, `${FRONT}${FRONT.replace('front', 'garden')}`);
  const windows = { desk: {}, 'desk-light': { colorScheme: 'light' }, phone: PHONE, 'phone-light': { ...PHONE, colorScheme: 'light' } };
  for (const [name, options] of Object.entries(windows)) {
    const viewer = await Viewer.come(t, browser, options);
    await viewer.open(daemon.at());
    await viewer.tile('garden').waitFor();
    await viewer.assertUsable(`${name}, list`);
    await viewer.page.getByRole('button', { name: 'Play front' }).click();
    await viewer.sees();
    await viewer.assertUsable(`${name}, playing`);
    await viewer.screenshot(`${name}-list`);
    const small = await viewer.page.locator('button:visible, .button:visible').evaluateAll((buttons) =>
      buttons.map((button) => ({ label: button.ariaLabel ?? button.textContent, ...button.getBoundingClientRect().toJSON() })).filter(({ width, height }) => width < 44 || height < 44));
    assert.deepEqual(small, [], 'buttons too small for fingers');
    const overflow = await viewer.page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(overflow <= 0, `${name} is ${overflow} pixels too wide`);
    await viewer.page.goto(daemon.at('front'));
    await viewer.sees();
    await viewer.screenshot(name);
    viewer.assertNoComplaints();
    await viewer.context.close();
  }
});

test('when the device goes and comes back, the last picture stands, then the page plays again by itself', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser);
  await (await viewer.open(daemon.at('front'))).sees();
  await daemon.kill();
  await until('the page says so', async () => /The device does not answer, trying again in \d+ s/.test(await viewer.says()));
  assert.ok(await viewer.tile().locator('canvas').isVisible(), 'the last picture stands');
  await viewer.screenshot('unreachable');
  await daemon.run();
  await viewer.sees();
  assert.ok(!(await viewer.tile().locator('canvas').isVisible()), 'the last picture gave way to a new one');
  viewer.assertNoComplaints(REFUSED);
});

test('a camera that is not there is waited for, and plays when it comes', async (t) => {
  const daemon = await Daemon.start(t, FRONT.replace('"test"', '"clip:HERE/clip.h264"'));
  const viewer = await Viewer.come(t, browser);
  await viewer.open(daemon.at('front'));
  await until('the words', async () => {
    const words = await viewer.says();
    return /Camera unplugged or not answering, waiting for it to come back/.test(words) && /clip\.h264/.test(words);
  });
  assert.match(await viewer.tile().locator('.state').innerText(), /Camera gone/);
  await viewer.assertUsable('a camera that is gone');
  await viewer.screenshot('camera-gone');
  await writeFile(daemon.file('clip.h264'), Buffer.from(await viewer.page.evaluate(recordClip), 'base64'));
  await until('the picture', async () => /^Live/.test(await viewer.tile().locator('.state').innerText()), { within: 60_000 });
  await viewer.sees();
  assert.equal(await daemon.metric('edgecam_sessions_opened_total'), 1, 'in the same session');
  viewer.assertNoComplaints();
});

test('an ICE restart keeps the session and its pictures', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser);
  await (await viewer.open(daemon.at('front'))).sees();
  const fragment = () => viewer.page.evaluate(() => /a=ice-ufrag:(\S+)/.exec(window.peers.at(-1).currentRemoteDescription.sdp)[1]);
  const before = await fragment();
  // As if the network had changed: what the browser then says, without the minute it takes to notice.
  await viewer.page.evaluate(() => {
    const peer = window.peers.at(-1);
    Object.defineProperty(peer, 'connectionState', { configurable: true, value: 'failed' });
    peer.onconnectionstatechange();
    delete peer.connectionState;
  });
  await until('a new answer', async () => (await fragment()) !== before);
  await viewer.page.evaluate(() => window.peers.at(-1).onconnectionstatechange());
  await viewer.sees();
  await viewer.rate(60);
  assert.equal(await viewer.page.evaluate(() => window.peers.length), 1);
  assert.equal(await daemon.metric('edgecam_sessions_opened_total'), 1);
  viewer.assertNoComplaints();
});

test('when the device says that its address changed, ICE is restarted at once, in the same session', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser);
  const wire = await listenIn(viewer);
  await (await viewer.open(daemon.at('front'))).sees();
  const [{ session }] = wire.said('offer');
  wire.tell({ v: 1, type: 'state', session, state: 'address-changed' });
  await until('a restart is answered', () => wire.heard('answer').length === 2);
  assert.equal(await viewer.tile().getAttribute('data-state'), 'live', 'the picture was never in question');
  await viewer.rate(60);
  assert.equal(await daemon.metric('edgecam_sessions_opened_total'), 1);
  viewer.assertNoComplaints();
});

test('when its socket is lost, the page comes back by another, and the pictures never stop', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser);
  const wire = await listenIn(viewer);
  await (await viewer.open(daemon.at('front'))).sees();
  wire.cut();
  await until('another socket has taken over', () => wire.heard('welcome').length === 2);
  assert.equal(wire.heard('welcome')[1].resumed, true);
  await viewer.rate(60);
  assert.deepEqual(wire.said('restart'), [], 'the way of the pictures was never in question');
  assert.equal(await viewer.tile().getAttribute('data-state'), 'live');
  assert.equal(await viewer.page.evaluate(() => window.peers.length), 1);
  assert.equal(await daemon.metric('edgecam_sessions_opened_total'), 1);
  viewer.assertNoComplaints();
});

test('the viewer chooses a quality, which is kept, and sees in the statistics what comes of it', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser);
  const wire = await listenIn(viewer);
  await (await viewer.open(daemon.at('front'))).sees();
  const picker = viewer.page.getByLabel('Quality of front');
  assert.equal(await picker.inputValue(), 'auto');
  const before = await viewer.tile().boundingBox();
  await picker.selectOption('Low');
  assert.equal(await until('it is said', () => wire.said('quality')[0]?.quality), 'low');
  assert.deepEqual(wire.said('stats'), [], 'nobody asks for what nobody looks at');
  await viewer.tile().getByRole('button', { name: 'Statistics' }).click();
  const overlay = viewer.tile().locator('.stats');
  await until('the device’s figures', async () => wire.heard('stats').at(-1)?.quality === 'low' && /kbit\/s of \d+ sent/.test(await overlay.innerText()));
  assert.equal(wire.said('stats')[0].session, wire.said('offer')[0].session);
  assert.match(await overlay.innerText(), /Path\s+you \w+ → camera \w+, UDP, direct/);
  await viewer.assertUsable('the picker and the statistics');
  await viewer.screenshot('statistics');
  await viewer.tile().getByRole('button', { name: 'Statistics' }).click();
  assert.deepEqual(await viewer.tile().boundingBox(), before, 'nothing moved');

  await viewer.page.reload();
  await viewer.sees();
  assert.equal(wire.said('offer').at(-1).quality, 'low');
  assert.equal(await picker.inputValue(), 'low');
  await picker.press('ArrowUp');
  assert.equal(await picker.inputValue(), 'high', 'by keyboard, too');
  viewer.assertNoComplaints();
});

test('who gets few pictures is told why, and the picture’s place does not change with its size', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser, { viewport: { width: 390, height: 700 } });
  const wire = await listenIn(viewer);
  // As a device says it to a viewer whose network is slow.
  wire.change = (message) => (message.type === 'stats' ? { ...message, rendition: 'low', thinned: true, estimate_kbps: 210, sent_kbps: 180, round_trip_ms: 210, loss: 0.031 } : message);
  await (await viewer.open(daemon.at('front'))).sees();
  const hint = viewer.tile().locator('.hint');
  assert.ok(!(await hint.isVisible()));
  await viewer.tile().getByRole('button', { name: 'Statistics' }).click();
  await until('the words', () => hint.isVisible());
  assert.match(await viewer.tile().locator('.stats').innerText(), /few pictures: slow network/);
  assert.match(await viewer.page.locator('#announcer').innerText(), /front: few pictures, the network is slow/);
  await viewer.screenshot('slow-network-statistics');
  await viewer.tile().getByRole('button', { name: 'Statistics' }).click();
  await viewer.screenshot('slow-network');
  await until('it is over', async () => !(await hint.isVisible()));
  const place = await viewer.tile().locator('.picture').boundingBox();
  await viewer.tile().locator('video').evaluate((video) => {
    Object.defineProperties(video, { videoWidth: { value: 160 }, videoHeight: { value: 120 } });
    video.onresize();
  });
  assert.deepEqual(await viewer.tile().locator('.picture').boundingBox(), place);
  viewer.assertNoComplaints();
});

test('a camera that does not exist is told in words', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser);
  await viewer.open(daemon.at('attic'));
  await until('the words', async () => /no camera of that name/.test(await viewer.says('attic')));
  await viewer.page.getByRole('link', { name: 'All cameras' }).click();
  await until('the camera there is', () => viewer.tile('front').isVisible());
  await until('only the camera there is', async () => (await viewer.tile('attic').count()) === 0);
  viewer.assertNoComplaints();
});

test('where a token is needed the page asks for it, and shows nothing before', async (t) => {
  const daemon = await Daemon.start(t, `[auth]\ntoken_key_file = "token-key"\n${FRONT}`);
  const viewer = await Viewer.come(t, browser);
  await viewer.open(daemon.at());
  await viewer.page.getByLabel('Token').waitFor();
  assert.ok(!(await viewer.page.content()).includes('front'), 'no camera is named');
  assert.ok(!(await viewer.page.content()).includes('testbench'), 'nor the device');
  await viewer.assertUsable('asking for a token');
  await viewer.screenshot('token');
  await viewer.page.getByLabel('Token').fill('not a token');
  await viewer.page.keyboard.press('Enter');
  await until('it is refused in words', async () => (await viewer.page.locator('#access-message').innerText()).length > 10);
  await viewer.page.getByLabel('Token').fill(await daemon.token());
  await viewer.page.keyboard.press('Enter');
  await viewer.page.getByRole('button', { name: 'Play front' }).click();
  await viewer.sees();
  viewer.assertNoComplaints(REFUSED);
});

test('a link with a token plays, and the token leaves the address', async (t) => {
  const daemon = await Daemon.start(t, `[auth]\ntoken_key_file = "token-key"\n${FRONT}`);
  const viewer = await Viewer.come(t, browser);
  await viewer.open(`${daemon.at('front')}#token=${await daemon.token('--camera', 'front')}`);
  await viewer.sees();
  assert.equal(viewer.page.url(), daemon.at('front'));
  await viewer.page.reload();
  await viewer.sees();
  viewer.assertNoComplaints();
});

test('a plain script plays by WHEP', async (t) => {
  const daemon = await Daemon.start(t);
  const viewer = await Viewer.come(t, browser);
  await viewer.open(daemon.at());
  const session = await viewer.page.evaluate(playByWhep, daemon.at('whep/front'));
  await viewer.rate(60);
  assert.equal((await daemon.camera()).viewers, 1);
  assert.equal((await viewer.page.evaluate((url) => fetch(url, { method: 'DELETE' }).then(({ status }) => status), session)), 200);
  await until('the place is free', async () => (await daemon.camera()).viewers === 0);
  viewer.assertNoComplaints();
});

/** Stands between page and device, with `said` and `heard`, can `tell` the page something, and `cut` the line. */
async function listenIn(viewer) {
  const lines = { said: [], heard: [] };
  const wire = {
    said: (kind) => lines.said.filter(({ type }) => type === kind),
    heard: (kind) => lines.heard.filter(({ type }) => type === kind),
    change: (message) => message,
  };
  await viewer.page.routeWebSocket(/\/ws$/, (page) => {
    const device = page.connectToServer();
    page.onMessage((text) => {
      lines.said.push(JSON.parse(text));
      device.send(text);
    });
    device.onMessage((text) => {
      const message = wire.change(JSON.parse(text));
      lines.heard.push(message);
      page.send(JSON.stringify(message));
    });
    wire.tell = (message) => page.send(JSON.stringify(message));
    wire.cut = () => {
      device.close({ code: 4000 });
      page.close({ code: 4001 });
    };
  });
  return wire;
}

/** In the page: a second of H.264 in Annex B, as base64. */
async function recordClip() {
  const parts = [];
  const encoder = new VideoEncoder({
    output: (chunk) => {
      const bytes = new Uint8Array(chunk.byteLength);
      chunk.copyTo(bytes);
      parts.push(...bytes);
    },
    error: (error) => console.error(error),
  });
  encoder.configure({ codec: 'avc1.42e01f', width: 640, height: 360, bitrate: 500_000, framerate: 30, avc: { format: 'annexb' }, latencyMode: 'realtime' });
  const canvas = new OffscreenCanvas(640, 360);
  const context = canvas.getContext('2d');
  for (let i = 0; i < 30; i++) {
    context.fillStyle = `hsl(${12 * i} 50% 50%)`;
    context.fillRect(0, 0, 640, 360);
    const frame = new VideoFrame(canvas, { timestamp: i * 33_333 });
    encoder.encode(frame, { keyFrame: i === 0 });
    frame.close();
  }
  await encoder.flush();
  return btoa(String.fromCharCode(...parts));
}

/** In the page: the shortest WHEP client there is. Gives the session's URL when the first picture is there. */
async function playByWhep(endpoint) {
  const peer = new RTCPeerConnection();
  const video = Object.assign(document.createElement('video'), { muted: true, autoplay: true });
  document.body.append(video);
  peer.ontrack = ({ streams }) => (video.srcObject = streams[0]);
  peer.addTransceiver('video', { direction: 'recvonly' });
  await peer.setLocalDescription();
  const response = await fetch(endpoint, { method: 'POST', headers: { 'Content-Type': 'application/sdp' }, body: peer.localDescription.sdp });
  if (response.status !== 201) throw new Error(`${response.status} ${await response.text()}`);
  await peer.setRemoteDescription({ type: 'answer', sdp: await response.text() });
  await new Promise((playing) => (video.onloadeddata = playing));
  return new URL(response.headers.get('Location'), endpoint).href;
}
