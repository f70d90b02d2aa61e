// Other orders of a clip's frames, as `robometer.evaluation.views` makes them: which frame to show at each moment.

const range = (from, to, step = 1) => {
  const values = [];
  for (let i = from; step > 0 ? i < to : i > to; i += step) values.push(i);
  return values;
};

const retry = (n) => {
  const first = Math.floor((n - 1) / 3);
  const second = Math.floor((2 * (n - 1)) / 3);
  return [...range(0, second + 1), ...range(second - 1, first - 1, -1), ...range(first + 1, n)];
};

export const VIEWS = {
  forward: (n) => range(0, n),
  reversed: (n) => range(n - 1, -1, -1),
  cycle: (n) => [...range(0, n), ...range(n - 2, -1, -1), ...range(1, n)],
  frozen: (n) => range(0, n).fill(0),
  retry,
};

const toEven = (value) => {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
};

// At most `most` of `count` positions, evenly spread, with the first and the last (`thin_positions` of the frames).
export function thinned(count, most) {
  if (!most || count <= most) return range(0, count);
  const step = (count - 1) / (most - 1);
  return range(0, most).map((i) => (i === most - 1 ? count - 1 : toEven(i * step)));
}

// Moments whose frames gave the value at `moment`: a model takes `most` frames of what it is shown.
export function seenAt(moment, length, mode, most) {
  return new Set(thinned(mode === "prefix" ? moment + 1 : length, most));
}
