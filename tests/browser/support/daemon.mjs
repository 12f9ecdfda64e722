import { execFile, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { until } from './until.mjs';

export const PROGRAM = resolve(process.env.EDGECAM_BIN ?? fileURLToPath(new URL('../../../target/debug/edgecam', import.meta.url)));

/** A camera whose pictures are numbered, small enough for a busy machine to encode. */
export const FRONT = `
[[camera]]
id = "front"
source = "test"
width = 640
height = 360
fps = 30
linger_s = 1
`;

/** The real program on ports of its own, with the test source for a camera. */
export class Daemon {
  #folder;
  #child;
  #log = [];

  /** Starts one for this test, and stops it after it. */
  static async start(t, toml = FRONT, id = 'testbench', ice = '') {
    if (!existsSync(PROGRAM)) throw new Error(`there is no ${PROGRAM}; build it first, or name another in EDGECAM_BIN`);
    const daemon = new Daemon();
    daemon.#folder = await mkdtemp(join(tmpdir(), 'edgecam-browser-'));
    t.after(() => daemon.#end());
    await writeFile(daemon.file('token-key'), 'a key for tests only, not to be used for anything else', { mode: 0o600 });
    [daemon.toml, daemon.id, daemon.ice] = [toml, id, ice];
    await daemon.run();
    return daemon;
  }

  /** Again on the same port, if it ran before. */
  async run() {
    this.port ??= await freePort();
    const head = `[device]\nid = "${this.id}"\nstate_dir = "HERE/state"\n[http]\nlisten = "127.0.0.1:${this.port}"\n[ice]\nudp_port = 0\nadvertise = ["127.0.0.1"]\n${this.ice}\n`;
    // HERE: the folder of the configuration, for what a test puts there.
    await writeFile(this.config, (head + this.toml).replaceAll('HERE', this.#folder));
    this.#child = spawn(PROGRAM, ['run', '--config', this.config], { stdio: ['ignore', 'pipe', 'pipe'] });
    for (const stream of [this.#child.stdout, this.#child.stderr]) stream.on('data', (text) => this.#log.push(text));
    this.#child.on('exit', (code, signal) => this.#log.push(`— ended with ${code ?? signal}\n`));
    await until(`the daemon answers\n${this.log}`, async () => {
      if (this.#child.exitCode !== null) throw new Error(`the daemon ended:\n${this.log}`);
      return (await fetch(this.at('healthz'))).ok;
    });
  }

  get config() {
    return this.file('edgecam.toml');
  }

  /** A file beside the configuration. */
  file(name) {
    return join(this.#folder, name);
  }

  /** Of each start. */
  get mediaPorts() {
    return [...this.log.matchAll(/media_port=(\d+)/g)].map(([, port]) => port);
  }

  get log() {
    return this.#log.join('');
  }

  at(path = '') {
    return `http://127.0.0.1:${this.port}/${path}`;
  }

  /** What `/api/cameras` says of one camera. */
  async camera(id = 'front') {
    const { cameras } = await (await fetch(this.at('api/cameras'))).json();
    return cameras.find((camera) => camera.id === id);
  }

  /** The sum over all samples of a metric with these labels. */
  async metric(name, labels = '') {
    const text = await (await fetch(this.at('metrics'))).text();
    const samples = text.split('\n').filter((line) => line.startsWith(`${name} `) || (line.startsWith(`${name}{`) && line.includes(labels)));
    if (!samples.length) throw new Error(`no metric ${name} with ${labels} in\n${text}`);
    return samples.reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0);
  }

  /** `edgecam token`, with the key of this daemon. */
  async token(...args) {
    const { stdout } = await promisify(execFile)(PROGRAM, ['token', '--config', this.config, ...args]);
    return stdout.trim();
  }

  /** Without a goodbye, as by a pulled plug. */
  async kill() {
    const gone = new Promise((ended) => this.#child.once('exit', ended));
    this.#child.kill('SIGKILL');
    await gone;
  }

  async #end() {
    if (this.#child?.exitCode === null && this.#child.signalCode === null) {
      const gone = new Promise((ended) => this.#child.once('exit', ended));
      this.#child.kill('SIGTERM');
      const late = setTimeout(() => this.#child.kill('SIGKILL'), 10_000);
      await gone;
      clearTimeout(late);
    }
    if (process.env.EDGECAM_LOG) console.error(this.log);
    await rm(this.#folder, { recursive: true, force: true });
  }
}

const given = new Set();

/** A port nobody listens on, and none that was given before. Below Linux' range for outgoing connections. */
export async function freePort() {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 12_000);
    const server = createServer();
    const isFree = await new Promise((known) => server.on('error', () => known(false)).listen(port, '127.0.0.1', () => known(true)));
    await new Promise((closed) => server.close(closed));
    if (isFree && !given.has(port)) {
      given.add(port);
      return port;
    }
  }
}
