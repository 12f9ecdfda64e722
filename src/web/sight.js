// @ts-check
/** Whether anybody can see a tile. What is out of sight for a while gives its place back until it is seen again. */

/** @import { Event } from './types.d.ts' */

const SCROLLED_MS = 4_000;
const BACKGROUND_MS = 30_000;

/** @type {Map<Element, Sight>} */
const all = new Map();
const observer = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) all.get(target)?.scrolled(isIntersecting);
  },
  { rootMargin: '20%' },
);
document.addEventListener('visibilitychange', () => all.forEach((sight) => sight.look()));

export class Sight {
  /** Until it was out of sight for a while. */
  seen = true;
  #element;
  #its;
  #inView = true;
  #timer = 0;

  /** @param {Element} element @param {{ exempt: () => boolean, tell: (event: Event) => void }} its */
  constructor(element, its) {
    this.#element = element;
    this.#its = its;
    all.set(element, this);
    observer.observe(element);
  }

  end() {
    clearTimeout(this.#timer);
    all.delete(this.#element);
    observer.unobserve(this.#element);
  }

  /** @param {boolean} inView */
  scrolled(inView) {
    this.#inView = inView;
    this.look();
  }

  /** Also to be called when it is no longer exempt. */
  look() {
    clearTimeout(this.#timer);
    if (this.#inView && !document.hidden) {
      this.seen = true;
      this.#its.tell({ type: 'shown' });
    } else {
      this.#timer = setTimeout(() => this.#away(), document.hidden ? BACKGROUND_MS : SCROLLED_MS);
    }
  }

  #away() {
    if (this.#its.exempt()) return;
    this.seen = false;
    this.#its.tell({ type: 'hidden' });
  }
}
