// @ts-check
/** What can be done with a picture. */

/** @import { Video } from './types.d.ts' */

/** Downloads the picture as PNG, in the size it was sent in. @type {(video: Video, camera: string) => boolean} */
export function snapshot(video, camera) {
  const canvas = document.createElement('canvas');
  if (!hold(video, canvas)) return false;
  const link = document.createElement('a');
  link.download = `${camera}_${stamp(new Date())}.png`;
  canvas.toBlob((blob) => {
    if (!blob) return;
    link.href = URL.createObjectURL(blob);
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  });
  return true;
}

/** Copies what the video shows now, if anything. @type {(video: Video, canvas: HTMLCanvasElement) => boolean} */
export function hold(video, canvas) {
  if (!video.videoWidth) return false;
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext('2d')?.drawImage(video, 0, 0);
  return true;
}

/** @param {Video} video */
export async function togglePip(video) {
  if (document.pictureInPictureElement === video) await document.exitPictureInPicture();
  else if (video.videoWidth) await video.requestPictureInPicture();
}

/** An iPhone shows nothing but a video full screen. @type {(element: Element, video: Video) => Promise<void>} */
export async function toggleFullscreen(element, video) {
  if (document.fullscreenElement) await document.exitFullscreen();
  else if (element.requestFullscreen) await element.requestFullscreen();
  else video.webkitEnterFullscreen?.();
}

/** Local time, sortable, without characters that file systems mind: 2026-11-20_23-59-01. @param {Date} time */
export function stamp(time) {
  const local = new Date(time.getTime() - time.getTimezoneOffset() * 60_000);
  return local.toISOString().slice(0, 19).replace('T', '_').replaceAll(':', '-');
}
