/** The fleet's page in Debian's Chromium, devices that are the real program, and Debian's mosquitto between them. */

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { MqttBroker } from './support/broker.mjs';
import { Daemon, FRONT, PROGRAM } from './support/daemon.mjs';
import { devices, hostPage } from './support/fleet.mjs';
import { HOSTILE } from './support/hostile.mjs';
import { until } from './support/until.mjs';
import { PHONE, Viewer, launch } from './support/viewer.mjs';
import { wall } from './support/wall.mjs';

/** What Chromium says of a broker that is not there. */
const REFUSED = /ERR_CONNECTION_REFUSED/;
const EXAMPLES = fileURLToPath(new URL('../../docs/examples/mqtt/', import.meta.url));

let browser;
before(async () => (browser = await launch()));
after(() => browser?.close());

const atBroker = (broker, more = '') => `[mqtt]\nurl = "mqtt://127.0.0.1:${broker.port}"\n${more}`;
const OPEN = '[auth]\nanyone_may_watch = true\n';
const online = (broker, ...names) => {
  const listener = broker.connect({ filters: names.map((name) => ({ topic: `edgecam/${name}/+` })) });
  const told = (name, last) => listener.heard.findLast(({ topic }) => topic === `edgecam/${name}/${last}`)?.text;
  return until(`${names} are online`, () => names.every((name) => told(name, 'status') === 'online' && told(name, 'info'))).finally(() => listener.close());
};
const word = (viewer, name) => viewer.tile(name).locator('.word').innerText();

test('a camera plays through the broker alone; of three devices, the one that is killed is shown offline', async (t) => {
  const broker = await MqttBroker.start(t);
  const names = ['garden', 'gate', 'harbour'];
  const daemons = await Promise.all(names.map((name) => Daemon.start(t, `${atBroker(broker)}${OPEN}${FRONT}`, name)));
  await online(broker, ...names);
  const page = await hostPage(t, broker, '--title', 'Three of ours');
  const around = await wall(t, page, broker.url);
  const stranger = await Viewer.come(t, browser, { proxy: around.proxy });
  await assert.rejects(stranger.open(daemons[1].at('healthz')), 'no way to its HTTP');
  await stranger.context.close();
  assert.match(around.asked[0], /^GET .*healthz/, 'the wall stands');
  around.asked.length = 0;
  const viewer = await Viewer.come(t, browser, { proxy: around.proxy });
  await viewer.open(page);
  await until('three devices', async () => (await viewer.page.locator('#count').innerText()) === '3 of 3 devices online');
  await viewer.tile('gate').getByRole('button', { name: 'Play gate' }).click();
  await viewer.sees('gate');
  await viewer.rate(30);
  assert.equal((await daemons[1].camera()).viewers, 1);
  await viewer.page.getByRole('button', { name: 'Play all' }).click();
  await Promise.all(names.map((name) => viewer.sees(name)));
  await viewer.assertUsable('a fleet that plays');

  const killed = Date.now();
  await daemons[2].kill();
  await until('it is offline', async () => (await word(viewer, 'harbour')) === 'Offline');
  t.diagnostic(`offline ${Date.now() - killed} ms after the kill`);
  assert.match(await viewer.says('harbour'), /The device is offline/);
  assert.equal(await viewer.page.locator('#count').innerText(), '2 of 3 devices online');
  assert.equal(await word(viewer, 'gate'), 'Live', 'the others play on');
  await viewer.screenshot('fleet-offline');
  await daemons[2].run();
  await viewer.sees('harbour');

  // ICE over TCP goes by the proxy, too: that is media, and no way to a device's HTTP.
  const media = new Set(daemons.flatMap(({ mediaPorts }) => mediaPorts).map((port) => `CONNECT 127.0.0.1:${port} HTTP/1.1`));
  assert.deepEqual(around.asked.filter((line) => !media.has(line)), [], 'nobody but the page’s server and the broker was asked');
  viewer.assertNoComplaints();
});

test('tiles that are scrolled away give their places back until they are seen again', async (t) => {
  const broker = await MqttBroker.start(t);
  const daemon = await Daemon.start(t, `${atBroker(broker)}${OPEN}${FRONT}${FRONT.replace('front', 'garden')}`, 'gate');
  await online(broker, 'gate');
  const [front, garden] = ['gate · front', 'gate · garden'];
  const viewer = await Viewer.come(t, browser, { viewport: { width: 500, height: 300 } });
  await viewer.open(await hostPage(t, broker));
  await viewer.tile(garden).waitFor();
  const scroll = (name) => viewer.tile(name).evaluate((tile) => tile.scrollIntoView());
  const watched = async () => [(await daemon.camera('front')).viewers, (await daemon.camera('garden')).viewers].join();
  await viewer.page.evaluate(() => document.querySelectorAll('.tile')[1].style.setProperty('margin-top', '600px'));
  await scroll(front);
  await viewer.page.getByRole('button', { name: 'Play all' }).click();
  await viewer.sees(front);
  await until('only what is seen plays', async () => (await watched()) === '1,0');
  await scroll(garden);
  await viewer.sees(garden);
  await until('front has given its place back', async () => (await watched()) === '0,1');
  assert.equal(await viewer.tile(front).getAttribute('data-state'), 'paused');
  await scroll(front);
  await viewer.sees(front);
  await until('garden has, too', async () => (await watched()) === '1,0');
  viewer.assertNoComplaints();
});

test('a tab in the background gives its places back, but not what plays in picture-in-picture', async (t) => {
  const broker = await MqttBroker.start(t);
  const daemon = await Daemon.start(t, `${atBroker(broker)}${OPEN}${FRONT}`, 'gate');
  await online(broker, 'gate');
  const viewer = await Viewer.come(t, browser);
  await viewer.context.addInitScript(hideable);
  await viewer.open(`${await hostPage(t, broker)}#camera=gate/front`);
  await viewer.sees('gate');
  const viewers = async () => (await daemon.camera()).viewers;
  const hidden = (hidden) => viewer.page.evaluate((hidden) => window.setHidden(hidden), hidden);
  await hidden(true);
  await until('its place is free', async () => (await viewers()) === 0);
  assert.equal(await viewer.tile('gate').getAttribute('data-state'), 'paused');
  await hidden(false);
  await viewer.sees('gate');
  assert.equal(await viewers(), 1);

  await viewer.tile('gate').getByRole('button', { name: 'Picture in picture' }).click();
  await until('picture in picture', () => viewer.page.evaluate(() => !!document.pictureInPictureElement));
  const before = await viewer.page.evaluate(() => window.halfMinutes);
  await hidden(true);
  await until('half a minute is over', () => viewer.page.evaluate((before) => window.halfMinutes > before, before));
  await viewer.rate(30);
  assert.equal(await viewer.tile('gate').getAttribute('data-state'), 'live');
  await viewer.page.evaluate(() => document.exitPictureInPicture());
  await until('its place is free', async () => (await viewers()) === 0);
  viewer.assertNoComplaints();
});

test('pictures play on while the broker is away, and the page is back when it is', async (t) => {
  const broker = await MqttBroker.start(t);
  const daemon = await Daemon.start(t, `${atBroker(broker)}${OPEN}${FRONT}`, 'gate');
  await online(broker, 'gate');
  const viewer = await Viewer.come(t, browser);
  await viewer.open(`${await hostPage(t, broker)}#camera=gate/front`);
  await viewer.sees('gate');
  await broker.kill();
  await until('the page says so', async () => /broker 127\.0\.0\.1:\d+ does not answer, trying again in \d+ s/.test(await viewer.page.locator('#notice').innerText()));
  await viewer.screenshot('fleet-no-broker');
  await viewer.rate(60);
  assert.equal(await word(viewer, 'gate'), 'Live');
  await broker.run();
  await until('the page is back', async () => !(await viewer.page.locator('#notice').isVisible()));
  await viewer.rate(60);
  assert.equal(await daemon.metric('edgecam_sessions_opened_total'), 1, 'in the same session');
  viewer.assertNoComplaints(REFUSED);
});

test('a camera that is switched off says so and plays again by itself, on both pages', async (t) => {
  const broker = await MqttBroker.start(t);
  const daemon = await Daemon.start(t, `${atBroker(broker)}${OPEN}${FRONT}`, 'gate');
  await online(broker, 'gate');
  const [far, near] = [await Viewer.come(t, browser), await Viewer.come(t, browser)];
  await far.open(`${await hostPage(t, broker)}#camera=gate/front`);
  await near.open(daemon.at('front'));
  await Promise.all([far.sees('gate'), near.sees('front')]);
  const owner = broker.connect();
  await owner.up;
  t.after(() => owner.close());
  await owner.say('edgecam/gate/cam/front/enabled/set', 'OFF');
  for (const [viewer, tile] of [[far, 'gate'], [near, 'front']]) {
    await until('the words', async () => /The camera is switched off/.test(await viewer.says(tile)) && (await word(viewer, tile)) === 'Switched off');
    await viewer.assertUsable('a camera that is switched off');
  }
  await near.screenshot('switched-off');
  const opened = await daemon.metric('edgecam_sessions_opened_total');
  await owner.say('edgecam/gate/cam/front/enabled/set', 'ON');
  await Promise.all([far.sees('gate'), near.sees('front')]);
  assert.equal(await daemon.metric('edgecam_sessions_opened_total'), opened + 2);
  far.assertNoComplaints();
  near.assertNoComplaints();
});

test('broker and device ask who is watching, and each viewer hears only its own answers', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'edgecam-passwords-'));
  t.after(() => rm(folder, { recursive: true }));
  for (const user of ['frontdoor', 'anna']) await promisify(execFile)('mosquitto_passwd', ['-b', ...(user === 'frontdoor' ? ['-c'] : []), join(folder, 'passwords'), user, `${user}-secret`]);
  const files = { passwords: await readFile(join(folder, 'passwords'), 'utf8'), acl: await readFile(`${EXAMPLES}acl`, 'utf8'), password: 'frontdoor-secret' };
  const broker = await MqttBroker.start(t, 'allow_anonymous false\npassword_file HERE/passwords\nacl_file HERE/acl', files);
  const mine = `username = "frontdoor"\npassword_file = "${broker.file('password')}"\n[auth]\ntoken_key_file = "token-key"\n`;
  const daemon = await Daemon.start(t, `${atBroker(broker, mine)}${FRONT}`, 'frontdoor');
  const page = await hostPage(t, broker);
  const viewer = await Viewer.come(t, browser);
  await viewer.open(page);
  await until('the form', () => viewer.page.getByRole('heading', { name: 'Who is watching?' }).isVisible());
  await viewer.page.getByLabel('User of the broker').fill('anna');
  await viewer.page.getByLabel('Password').fill('wrong');
  await viewer.page.getByRole('button', { name: 'Open' }).click();
  await until('the words', async () => /not authorised|password is wrong/.test(await viewer.page.locator('#access').innerText()));
  await viewer.assertUsable('the form');
  await viewer.screenshot('fleet-who');
  await viewer.page.getByLabel('Password').fill('anna-secret');
  await viewer.page.getByRole('button', { name: 'Open' }).click();
  await viewer.tile('frontdoor').getByRole('button', { name: 'Play frontdoor' }).click();
  await until('a token is asked for', () => viewer.page.getByLabel('Token').isVisible());
  await viewer.page.getByLabel('Token').fill(await daemon.token('--camera', 'front'));
  await viewer.page.getByRole('button', { name: 'Open' }).click();
  await viewer.sees('frontdoor');
  await viewer.page.reload();
  await viewer.tile('frontdoor').getByRole('button', { name: 'Play frontdoor' }).click();
  await viewer.sees('frontdoor');

  // All of it may come with the link, and leaves the address.
  const guest = await Viewer.come(t, browser);
  await guest.open(`${page}#user=anna&password=anna-secret&token=${await daemon.token()}&camera=frontdoor/front`);
  await guest.sees('frontdoor');
  assert.doesNotMatch(guest.page.url(), /secret|token|anna/);
  await viewer.rate(30);
  viewer.assertNoComplaints();
  guest.assertNoComplaints();
});

test('a thousand devices are there at once; what is looked for is found, plays and stops', async (t) => {
  const broker = await MqttBroker.start(t, 'allow_anonymous true\nmax_queued_messages 20000');
  await broker.retain(devices(1_000, (i) => (i % 50 === 7 ? { status: 'offline' } : i % 90 === 3 ? { viewers: 2, state: 'running' } : {})));
  const page = await hostPage(t, broker);
  const viewer = await Viewer.come(t, browser);
  const came = Date.now();
  await viewer.open(page);
  await until('all of them', async () => (await viewer.page.locator('.row').count()) === 1_000, { every: 20 });
  t.diagnostic(`1000 devices in ${Date.now() - came} ms`);
  assert.equal(await viewer.page.locator('#count').innerText(), '980 of 1000 devices online');
  await viewer.assertUsable('a thousand devices');
  await viewer.screenshot('fleet-thousand');
  const filter = viewer.page.getByRole('searchbox');
  await filter.fill('site-77 offline');
  await until('nothing', async () => (await viewer.page.locator('.row, .tile').count()) === 0);
  await filter.fill('offline');
  await until('those offline, as tiles', async () => (await viewer.page.locator('.tile').count()) === 20);
  await filter.fill('site-99');
  await until('eleven', async () => (await viewer.page.locator('.tile').count()) === 11);
  await filter.fill('');
  // Nobody stands behind this name.
  await viewer.page.getByRole('button', { name: 'site-3 2 watching Play', exact: true }).click();
  await until('the words', async () => /took too long to answer, trying again/.test(await viewer.says('site-3')) && /not connected to the broker/.test(await viewer.says('site-3')));
  await viewer.tile('site-3').getByRole('button', { name: 'Stop site-3' }).click();
  await until('a row again', () => viewer.page.getByRole('button', { name: 'site-3 2 watching Play', exact: true }).isVisible());
  viewer.assertNoComplaints();
});

test('the fleet’s page is usable on desk and phone, dark and light', async (t) => {
  const broker = await MqttBroker.start(t);
  await broker.retain(devices(40, (i) => [{}, { status: 'offline' }, { enabled: false }, { status: 'stopped' }, { viewers: 1, state: 'running' }, { state: 'failed', error: 'no such device' }][i % 6]));
  const page = await hostPage(t, broker);
  const windows = { desk: {}, 'desk-light': { colorScheme: 'light' }, phone: PHONE, 'phone-light': { ...PHONE, colorScheme: 'light' } };
  for (const [name, options] of Object.entries(windows)) {
    const viewer = await Viewer.come(t, browser, options);
    await viewer.open(page);
    for (const [what, wanted, all] of [['rows', '', '.row'], ['tiles', 'site-1', '.tile']]) {
      await viewer.page.getByRole('searchbox').fill(wanted).catch(() => {});
      await viewer.page.locator(all).first().waitFor();
      await viewer.assertUsable(`${name}, ${what}`);
      await viewer.screenshot(`fleet-${name}-${what}`);
      const small = await viewer.page.locator('button:visible, .button:visible, input:visible').evaluateAll((buttons) =>
        buttons.map((button) => ({ label: button.ariaLabel ?? button.textContent, ...button.getBoundingClientRect().toJSON() })).filter(({ width, height }) => width < 44 || height < 44));
      assert.deepEqual(small, [], 'too small for fingers');
      const overflow = await viewer.page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(overflow <= 0, `${name} is ${overflow} pixels too wide`);
    }
    viewer.assertNoComplaints();
    await viewer.context.close();
  }
});

test('a broker without cameras is told in words', async (t) => {
  const broker = await MqttBroker.start(t);
  const viewer = await Viewer.come(t, browser);
  await viewer.open(await hostPage(t, broker, '--prefix', 'site/hall-2'));
  await until('the words', async () => /No camera is known below site\/hall-2\//.test(await viewer.page.locator('#notice').innerText()));
  viewer.assertNoComplaints();
});

test('a page that came by https says that its broker needs wss, and asks for no password', async (t) => {
  const viewer = await Viewer.come(t, browser);
  const { stdout: page } = await promisify(execFile)(PROGRAM, ['page', '--mqtt', 'ws://broker.example.org:9001'], { maxBuffer: 1 << 20 });
  await viewer.context.route('https://fleet.example.org/', (route) => route.fulfill({ body: page, contentType: 'text/html; charset=utf-8' }));
  await viewer.open('https://fleet.example.org/');
  await until('the words', async () => /came by https, so its broker needs wss/.test(await viewer.page.locator('#notice').innerText()));
  assert.ok(!(await viewer.page.locator('#access').isVisible()));
  await viewer.assertUsable('a broker that this page may not use');
  await viewer.screenshot('fleet-barred');
});

test('what the broker forgets is gone, and can be played when it is there again', async (t) => {
  const broker = await MqttBroker.start(t);
  const kept = devices(30);
  await broker.retain(kept);
  const viewer = await Viewer.come(t, browser);
  await viewer.open(await hostPage(t, broker));
  const rows = viewer.page.locator('.row');
  await until('all of them', async () => (await rows.count()) === 30);
  const play = viewer.page.getByRole('button', { name: 'site-7 Ready Play', exact: true });
  await play.click();
  await until('it is called', async () => /not connected to the broker/.test(await viewer.says('site-7')));
  const its = Object.keys(kept).filter((topic) => topic.startsWith('edgecam/site-7/') || topic.startsWith('edgecam/site-8/'));
  await broker.retain(Object.fromEntries(its.map((topic) => [topic, ''])));
  await until('they are gone', async () => (await rows.count()) === 28 && (await viewer.page.locator('.tile').count()) === 0);
  await broker.retain(Object.fromEntries(its.map((topic) => [topic, kept[topic]])));
  await until('they are back', async () => (await rows.count()) === 30);
  await play.click();
  await until('it is called again', async () => /not connected to the broker/.test(await viewer.says('site-7')));
  viewer.assertNoComplaints();
});

test('one odd message of one device costs nobody anything', async (t) => {
  const broker = await MqttBroker.start(t);
  const daemon = await Daemon.start(t, `${atBroker(broker)}${OPEN}${FRONT}`, 'gate');
  await online(broker, 'gate');
  const topics = [];
  const spy = broker.connect({ filters: [{ topic: 'edgecam/+/rpc/+' }], message: (topic) => topics.push(topic) });
  await spy.up;
  t.after(() => spy.close());
  const viewer = await Viewer.come(t, browser);
  await viewer.open(`${await hostPage(t, broker)}#camera=gate/front`);
  await viewer.sees('gate');
  const answers = (await until('its topic', () => topics[0])).replace('/rpc/', '/rsp/');
  for (const text of HOSTILE) await spy.say(answers, text);
  await spy.say(answers.replace('/gate/', '/nobody/'), '{"v":1,"type":"answer","id":5}');
  await spy.say('edgecam/gate/status', 'stopped');
  await until('what came after them is heard', async () => (await viewer.page.locator('#count').innerText()) === '0 of 1 device online');
  await viewer.rate(30);
  assert.equal(await daemon.metric('edgecam_sessions_opened_total'), 1);
  viewer.assertNoComplaints();
});

test('the page’s client and mosquitto understand each other', async (t) => {
  const broker = await MqttBroker.start(t);
  const [speaker, listener] = [broker.connect(), broker.connect({ filters: [{ topic: 'own/+', own: true }] })];
  await Promise.all([speaker.up, listener.up]);
  t.after(() => (speaker.close(), listener.close()));
  const texts = Array.from({ length: 40 }, (_, i) => 'é'.repeat(i * 800));
  const codes = await Promise.all(texts.map((text) => speaker.say('own/page', text)));
  assert.deepEqual(new Set(codes), new Set([0]));
  await until('all of them', () => listener.heard.length === texts.length);
  assert.deepEqual(listener.heard.map(({ text }) => text), texts);
  assert.equal(await speaker.say('nobody/hears', ''), 0x10, 'no subscriber');
  await broker.kill();
  assert.deepEqual(await speaker.ended, { code: undefined, reason: undefined, heard: true });
});

/** In the page, before its own scripts: hidden when a test says so, and half a minute is over in half a second. */
function hideable() {
  let hidden = false;
  Object.defineProperty(document, 'hidden', { get: () => hidden });
  window.setHidden = (value) => {
    hidden = value;
    document.dispatchEvent(new Event('visibilitychange'));
  };
  window.halfMinutes = 0;
  const real = window.setTimeout;
  window.setTimeout = (then, ms, ...rest) => (ms === 30_000 ? real(() => (then(), window.halfMinutes++), 500) : real(then, ms, ...rest));
}
