// @ts-check
/** The viewer's token: arrives in the URL's fragment, which no server sees, and stays in this tab. */

const KEY = 'edgecam-token';
/** For browsers that refuse storage: the token then lasts as long as the page. */
let kept = '';

/** Takes a token out of `#token=…` and out of sight. */
export function takeFromFragment() {
  const found = new URLSearchParams(location.hash.slice(1)).get('token');
  if (found === null) return;
  keep(found);
  history.replaceState(null, '', location.pathname + location.search);
}

/** @param {string} token */
export function keep(token) {
  kept = token.trim();
  try {
    sessionStorage.setItem(KEY, kept);
  } catch {}
}

/** Empty without one. @returns {string} */
export function token() {
  try {
    return kept || (sessionStorage.getItem(KEY) ?? '');
  } catch {
    return kept;
  }
}
