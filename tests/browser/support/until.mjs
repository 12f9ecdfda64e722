import { setTimeout as sleep } from 'node:timers/promises';

/**
 * Asks again and again until `condition` gives something truthy, and gives that. Machines differ and are busy: a test waits for what
 * it needs, never for a time.
 */
export async function until(what, condition, { within = 30_000, every = 100 } = {}) {
  const deadline = Date.now() + within;
  let last;
  for (;;) {
    try {
      const met = await condition();
      if (met) return met;
      last = undefined;
    } catch (error) {
      last = error;
    }
    if (Date.now() > deadline) throw new Error(`not within ${within / 1000} s: ${what}${last ? `; ${last.message}` : ''}`, { cause: last });
    await sleep(every);
  }
}
