import { createServer } from 'node:net';

/**
 * A browser that uses this proxy reaches these addresses and no others, over HTTP or WebSocket: the proxy hangs up on everybody, and
 * notes what they asked for. Chromium asks a proxy for loopback addresses, too, when it is told `<-loopback>`; pictures over UDP know no proxy.
 * @param {...string} reachable URLs
 */
export async function wall(t, ...reachable) {
  const its = { asked: [], proxy: undefined };
  const server = createServer((socket) => {
    socket.on('error', () => {}).once('data', (text) => {
      const [line] = String(text).split('\r\n');
      // Chromium asks its maker what forms are for; no page asks that.
      if (!line.includes('.googleapis.com:')) its.asked.push(line);
      socket.destroy();
    });
  });
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
  t.after(() => server.close());
  its.proxy = { server: `http://127.0.0.1:${server.address().port}`, bypass: ['<-loopback>', ...reachable.map((url) => new URL(url).host)].join(',') };
  return its;
}
