// The first moment at which success has been at or above the threshold for `hold` moments in a row; -1 for none.
export function alarmAt(success, threshold, hold) {
  let held = 0;
  for (let i = 0; i < success.length; i += 1) {
    held = success[i] >= threshold ? held + 1 : 0;
    if (held >= hold) return i;
  }
  return -1;
}
