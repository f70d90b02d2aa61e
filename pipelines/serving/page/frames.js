// A clip's frames: its pixels on canvases, and its orders as `.npy` files.

import { writeNpy } from "./npy.js";

export class Clip {
  constructor(file, hash, { shape, values, frameIndex, fps }) {
    const [count, height, width] = shape;
    Object.assign(this, { name: file.name, size: file.size, hash, count, height, width, values, frameIndex, fps });
    this.isVideo = !file.name.toLowerCase().endsWith(".npy");
    this.frameBytes = height * width * 3;
  }

  bytesOf(position) {
    return this.values.subarray(position * this.frameBytes, (position + 1) * this.frameBytes);
  }

  npy(positions) {
    return writeNpy([positions.length, this.height, this.width, 3], positions.map((i) => this.bytesOf(i)));
  }

  frameNpy(position) {
    return writeNpy([this.height, this.width, 3], [this.bytesOf(position)]);
  }

  draw(canvas, position) {
    if (canvas.width !== this.width || canvas.height !== this.height) Object.assign(canvas, { width: this.width, height: this.height });
    canvas.getContext("2d").putImageData(this.#pixels(position), 0, 0);
  }

  // A small copy, as wide as `canvas`.
  drawSmall(canvas, position) {
    this.draw((this.scratch ??= document.createElement("canvas")), position);
    canvas.height = Math.max(1, Math.round((canvas.width * this.height) / this.width));
    canvas.getContext("2d").drawImage(this.scratch, 0, 0, canvas.width, canvas.height);
  }

  #pixels(position) {
    const rgb = this.bytesOf(position);
    const image = new ImageData(this.width, this.height);
    for (let i = 0, j = 0; i < rgb.length; i += 3, j += 4) {
      image.data[j] = rgb[i];
      image.data[j + 1] = rgb[i + 1];
      image.data[j + 2] = rgb[i + 2];
      image.data[j + 3] = 255;
    }
    return image;
  }

  // Seconds from the start of the source to a frame; null where its rate is not known.
  seconds(position) {
    return this.fps ? this.frameIndex[position] / this.fps : null;
  }
}
