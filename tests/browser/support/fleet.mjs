import { execFile } from 'node:child_process';
import { createServer } from 'node:http';
import { promisify } from 'node:util';
import { PROGRAM } from './daemon.mjs';

/** Any web server: it knows the one file that `edgecam page` prints, and nothing else. Gives its address. */
export async function hostPage(t, broker, ...args) {
  const { stdout: page } = await promisify(execFile)(PROGRAM, ['page', '--mqtt', broker.url, ...args], { maxBuffer: 1 << 20 });
  const server = createServer((request, response) => {
    response.writeHead(request.url === '/' ? 200 : 404, { 'Content-Type': 'text/html; charset=utf-8' });
    response.end(request.url === '/' ? page : '');
  });
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${server.address().port}/`;
}

/** What devices with one camera each keep at the broker: `state(i)` tells what is particular to one. */
export function devices(count, state = () => ({})) {
  const messages = {};
  for (let i = 0; i < count; i++) {
    const [device, { status = 'online', ...more }] = [`site-${i}`, state(i)];
    messages[`edgecam/${device}/status`] = status;
    messages[`edgecam/${device}/info`] = { v: 1, versions: [1], device, cameras: [{ id: 'front' }] };
    messages[`edgecam/${device}/cam/front/state`] = { v: 1, enabled: true, live: false, state: 'idle', viewers: 0, max_viewers: 8, error: null, ...more };
  }
  return messages;
}
