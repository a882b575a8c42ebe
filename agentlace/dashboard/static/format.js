// Numbers as people read them, always with their unit.

const PREFIXES = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];

export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  for (const [scale, prefix] of PREFIXES) {
    if (size >= scale * 10 || (scale > 1e3 && size >= scale)) return `${digits(value / scale)}${prefix}`;
  }
  return digits(value);
}

function digits(value) {
  const size = Math.abs(value);
  if (size >= 100 || Number.isInteger(value)) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  if (size >= 0.01 || size === 0) return value.toFixed(2);
  return value.toExponential(1);
}

export function rate(value) {
  return value === null || value === undefined ? "–" : `${number(value)}/s`;
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, unit] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (value >= size) return `${digits(value / size)} ${unit}`;
  }
  return `${value.toFixed(0)} B`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (value >= 2 * size) return `${Math.round(value / size)} ${unit}`;
  }
  if (value >= 10) return `${value.toFixed(0)} s`;
  if (value >= 0.1 || value === 0) return `${value.toFixed(1)} s`;
  return value >= 0.001 ? `${(1000 * value).toFixed(1)} ms` : `${(1e6 * value).toFixed(0)} µs`;
}

export function clock(atS) {
  return new Date(1000 * atS).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
}

export function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}
