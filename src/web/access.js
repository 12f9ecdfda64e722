// @ts-check
/** Who is watching: tokens and passwords arrive in the URL's fragment, which no server sees, and stay in this tab. */

/** For browsers that refuse storage. @type {Record<string, string>} */
const held = {};

/** Takes what it knows, `#token=…` and the like, out of the address and out of sight. @param {...string} names */
export function takeFromFragment(...names) {
  const fragment = new URLSearchParams(location.hash.slice(1));
  for (const name of names) {
    if (fragment.has(name)) keep(name, fragment.getAll(name).join(' '));
    fragment.delete(name);
  }
  history.replaceState(null, '', location.pathname + location.search + (`${fragment}` && `#${fragment}`));
}

/** @param {string} name @param {string} value */
export function keep(name, value) {
  held[name] = value.trim();
  try {
    sessionStorage.setItem(`edgecam-${name}`, held[name]);
  } catch {}
}

/** Empty without one. @param {string} name @returns {string} */
export function kept(name) {
  try {
    return held[name] || sessionStorage.getItem(`edgecam-${name}`) || '';
  } catch {
    return '';
  }
}

export const token = () => kept('token');
