// @ts-check
/** `/api/cameras`: what the device says of its cameras. */

import { token } from './access.js';

/** @import { Answer } from './types.d.ts' */

const PATIENCE_MS = 8_000;

/** @returns {Promise<Answer>} */
export async function cameras() {
  const bearer = token();
  try {
    const response = await fetch('api/cameras', {
      headers: bearer ? { Authorization: `Bearer ${bearer}` } : {},
      cache: 'no-store',
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
    const body = await response.json();
    if (response.ok) return { is: 'board', board: body };
    return { is: response.status === 401 ? 'unauthorized' : 'refused', message: body.detail };
  } catch {
    return { is: 'unreachable' };
  }
}
