// @ts-check
/** The keys that act on a camera, and the help that lists them. */

/** @import { Tile } from './tile.js' */

/** @param {() => Tile | undefined} chosen the tile that the keys are for */
export function listenToKeys(chosen) {
  const [help, show, shortcuts] = ['help', 'show-help', 'shortcuts'].map((id) => /** @type {any} */ (document.getElementById(id)));
  show.onclick = () => help.showModal();
  help.onclick = (/** @type {Event} */ event) => event.target === help && help.close();
  try {
    shortcuts.checked = !localStorage.getItem('edgecam-no-shortcuts');
    shortcuts.onchange = () => localStorage.setItem('edgecam-no-shortcuts', shortcuts.checked ? '' : 'yes');
  } catch {
    // Without storage the choice lasts as long as the page.
  }
  addEventListener('keydown', (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    if (!shortcuts.checked || event.ctrlKey || event.metaKey || event.altKey || event.repeat || help.open) return;
    if (target.matches('input, select') || (event.key === ' ' && target.matches('a, button') && target.offsetParent)) return;
    const tile = chosen();
    /** @type {Record<string, (() => void) | undefined>} */
    const keys = {
      '?': () => help.showModal(),
      ' ': () => tile?.toggle(),
      f: () => tile?.fullscreen(),
      p: () => tile?.pip(),
      s: () => tile?.snapshot(),
      i: () => tile?.statistics(),
    };
    const act = keys[event.key.toLowerCase()];
    if (act) event.preventDefault();
    act?.();
  });
}
