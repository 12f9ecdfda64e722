import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Fleet } from '../../../src/web/fleet.js';

function fleet(messages, prefix = 'edgecam') {
  const fleet = new Fleet(prefix);
  for (const [topic, message] of Object.entries(messages)) fleet.hear(`${prefix}/${topic}`, typeof message === 'string' ? message : JSON.stringify({ v: 1, ...message }));
  return fleet;
}
const info = (...ids) => ({ cameras: ids.map((id) => ({ id })) });

test('a device with one camera goes by its name, with several each has its own; 2 comes before 10', () => {
  const { length, ...names } = fleet({ 'door-10/info': info('front'), 'door-2/info': info('front'), 'yard/info': info('a', 'b') }).cameras().map(({ name }) => name);
  assert.deepEqual(Object.values(names), ['door-2', 'door-10', 'yard · a', 'yard · b']);
});

test('what is told of a device and of its camera comes together, in any order', () => {
  const messages = [['door/status', 'offline'], ['door/info', info('front')], ['door/cam/front/state', { state: 'running', enabled: false, viewers: 3, max_viewers: 8, error: null, encoder: 'x264enc' }]];
  for (const order of [[0, 1, 2], [2, 1, 0], [1, 2, 0]]) {
    const [{ key, device, camera }] = fleet(Object.fromEntries(order.map((i) => messages[i]))).cameras();
    assert.deepEqual([key, device], ['door/front', 'door']);
    const { away, state, enabled, viewers, encoder, source } = camera;
    assert.deepEqual([away?.code, state, enabled, viewers, encoder, source], ['offline', 'running', false, 3, 'x264enc', null]);
  }
});

test('presence changes what is known, and nothing else', () => {
  const it = fleet({ 'door/status': 'online', 'door/info': info('front') });
  it.hear('edgecam/door/status', 'stopped');
  assert.deepEqual(it.cameras().map(({ camera }) => camera.away?.code), ['stopped']);
  it.hear('edgecam/door/status', 'drop table');
  assert.deepEqual(it.cameras().map(({ camera }) => camera.away), [undefined]);
});

test('a device is forgotten when all that was kept of it is', () => {
  const it = fleet({ 'door/status': 'online', 'door/info': info('front'), 'door/cam/front/state': { state: 'idle' } });
  for (const topic of ['door/cam/front/state', 'door/info', 'door/status']) it.hear(`edgecam/${topic}`, '');
  assert.equal(it.devices.size, 0);
  assert.deepEqual(it.cameras(), []);
  it.hear('edgecam/attic/info', '');
  assert.equal(it.devices.size, 0, 'nor does forgetting make one');
});

test('a prefix may have several levels', () => {
  const it = fleet({ 'door/info': info('front') }, 'site/hall-2');
  assert.deepEqual(it.topics[0], 'site/hall-2/+/status');
  assert.equal(it.cameras()[0].key, 'door/front');
});

test('nonsense is no camera', () => {
  const it = fleet({ 'door/status': 'online' });
  for (const text of ['', '{', 'null', '[]', '{"v":2,"cameras":[{"id":"front"}]}', '{"v":1}', '{"v":1,"cameras":{"id":"front"}}', '{"v":1,"cameras":[null,7,{"id":"a b"},{"id":"<img>"},{}]}']) {
    it.hear('edgecam/door/info', text);
    assert.deepEqual(it.cameras(), [], text);
  }
  for (const topic of ['edgecam/a b/status', 'edgecam//status', 'edgecamera/door/status', 'edgecam/door/cam//state', 'edgecam', 'edgecam/door/cam/front/enabled/state']) it.hear(topic, '{"v":1}');
  assert.deepEqual([...it.devices.keys()], ['door']);
  it.hear('edgecam/door/cam/front/state', '{"v":1,"state":"<b>","viewers":"many","width":"1e9","error":{"a":1}}');
  const [{ camera }] = it.cameras();
  assert.deepEqual([camera.state, camera.viewers, camera.width, camera.error], ['idle', 0, null, null]);
});

test('who fills the broker does not fill the page', () => {
  const it = new Fleet('edgecam');
  for (let i = 0; i < 10_100; i++) it.hear(`edgecam/d${i}/status`, 'online');
  assert.equal(it.devices.size, 10_000);
  for (let i = 0; i < 100; i++) it.hear(`edgecam/d1/cam/c${i}/state`, '{"v":1}');
  assert.equal(it.cameras().length, 64);
});
