// The host's interfaces. `tessera build` gives them with `connect`; where it did not, as in unit tests, asking says so.
const absent = (name) =>
  new Proxy({}, {
    get: (_, what) => () => {
      throw new Error(`${name}.${String(what)} asks the host, which is there only in a deployed component`);
    },
  });

export const host = Object.fromEntries(
  ['assets', 'compute', 'graphInfo', 'logging', 'requestHeaders', 'settings', 'streaming'].map((name) => [
    name,
    absent(name),
  ]),
);

/** Where an import of the component model throws, the value of its error; other exceptions go on. */
export function errorOf(thrown) {
  if (thrown !== null && typeof thrown === 'object' && 'payload' in thrown) return thrown.payload;
  throw thrown;
}

/** Bytes of the host as an array of this realm: the engine's own part has another, so that `instanceof` would not know it. */
export function own(bytes) {
  return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
